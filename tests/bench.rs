//! `xylem bench speed`: that it runs and that its figures fit together. How large they are is no matter of tests.

mod common;

use std::fs;

use common::{fails, prints, random_bundle, reads, xylem};
use serde_json::Value;

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn bench(bundle: &str, more: &[&str]) -> Value {
    let all = ["bench", "speed", "--bundle", bundle, "--new-tokens", "6", "--runs", "2", "--json"];
    reads(&[&all, more].concat())
}

fn is_spread(value: &Value) {
    let [min, median, max] = ["min", "median", "max"].map(|name| number(&value[name]));
    assert!(0.0 < min && min <= median && median <= max, "{value}");
}

fn adds_up(report: &Value) {
    for name in ["prefill_tokens_per_second", "first_token_ms", "decode_tokens_per_second"] {
        is_spread(&report[name]);
    }
    assert_eq!(report["new_tokens"], 6);
    assert_eq!(report["tokens"].as_array().unwrap().len(), 6);
    assert!(number(&report["load_ms"]) > 0.0 && number(&report["warm_up"]["first_token_ms"]) > 0.0);
    // Four layers, of which two are STEM.
    assert_eq!((&report["model"]["n_layers"], &report["model"]["stem_layers"]), (&4.into(), &2.into()));
    let (memory, download) = (&report["memory"], &report["download"]);
    assert!(number(&memory["backend_bytes"]) > number(&download["core_bytes"]));
    assert!(number(&download["rows_bytes"]) > 0.0);
    assert!(number(&download["rows_bytes"]) <= number(&download["tables_bytes"]));
    let roofline = &report["roofline"];
    // The head is tied: every weight is read.
    assert_eq!(roofline["weight_bytes"], download["core_bytes"]);
    let rate = number(&roofline["weight_bytes"]) * number(&report["decode_tokens_per_second"]["median"]);
    assert!((number(&roofline["weight_bytes_per_second"]) / rate - 1.0).abs() < 1e-9);
}

/// Of the timed runs: all parts together are a token's time.
fn parts_add_up(report: &Value, tokens: [u64; 2]) {
    for (phase, tokens) in ["prefill", "decode"].into_iter().zip(tokens) {
        let p = &report[phase];
        assert_eq!(p["tokens"], tokens, "{phase}");
        let names =
            ["rows", "embed", "attention", "dense_ffn", "stem_ffn", "engram", "head", "candidates", "other"];
        let sum: f64 = names.iter().map(|name| number(&p[format!("{name}_ms")])).sum();
        assert!((sum / number(&p["all_ms"]) - 1.0).abs() < 1e-6, "{p}");
        for name in ["attention_ms", "dense_ffn_ms", "stem_ffn_ms", "rows_ms", "head_ms"] {
            assert!(number(&p[name]) > 0.0, "{phase} {name}");
        }
        let layers = p["layers"].as_array().unwrap();
        let stem: Vec<_> = layers.iter().map(|l| l["stem"].as_bool().unwrap()).collect();
        assert_eq!(stem, [false, true, true, false]);
        let ffn: f64 = layers.iter().map(|l| number(&l["ffn_ms"])).sum();
        assert!((ffn / (number(&p["dense_ffn_ms"]) + number(&p["stem_ffn_ms"])) - 1.0).abs() < 1e-6);
        let ratio = number(&p["a_stem_ffn_ms"]) / number(&p["a_dense_ffn_ms"]);
        assert!((number(&p["stem_to_dense_ffn"]) / ratio - 1.0).abs() < 1e-9);
        assert!(number(&p["stem_with_rows_to_dense_ffn"]) > ratio);
    }
}

#[test]
fn the_figures_of_the_cpu_fit_together() {
    let (dir, bundle) = random_bundle();
    let report = bench(&bundle, &["--prompt-tokens", "150", "--threads", "1", "--depths", "40,0,200"]);
    adds_up(&report);
    // Two timed runs; the first new token comes with the prompt's last step.
    parts_add_up(&report, [2 * 150, 2 * 5]);
    assert_eq!((&report["prompt_tokens"], &report["machine"]["threads"]), (&150.into(), &1.into()));
    assert!(report["backend"].as_str().unwrap().starts_with("cpu"));
    assert!(report.get("gpu").is_none());
    assert_eq!(report["memory"]["kv_type"], "q8");
    assert!(number(&report["memory"]["kv_position_bytes"]) > 0.0);
    assert!(number(&report["roofline"]["limit_bytes_per_second"]) > 1e8);
    let depths = report["depths"].as_array().unwrap();
    let positions: Vec<_> = depths.iter().map(|d| d["position"].as_u64().unwrap()).collect();
    assert_eq!(positions, [0, 40, 200]);
    for depth in depths {
        is_spread(&depth["decode_ms"]);
        assert!(number(&depth["attention_ms"]) < number(&depth["decode_ms"]["max"]));
        assert_eq!(depth["prefill_ms"].is_null(), depth["position"] == 0);
    }

    let file = dir.path().join("report.json").display().to_string();
    let text =
        ["bench", "speed", "--model", &bundle, "--prompt", "Hello", "--new-tokens", "2", "--runs", "1"];
    let shown = prints(&[text.as_slice(), &["--json", &file]].concat());
    assert!(shown.contains("a STEM FFN") && shown.contains("tokens/s"), "{shown}");
    let written: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    // A token a byte.
    assert_eq!(written["prompt_tokens"], 5);
}

#[test]
fn the_figures_of_the_gpu_fit_together() {
    let (_dir, bundle) = random_bundle();
    let report = bench(&bundle, &["--prompt-tokens", "150", "--backend", "gpu"]);
    adds_up(&report);
    assert!(report["backend"].as_str().unwrap().starts_with("gpu"));
    assert!(report["memory"].get("kv_type").is_none());
    let gpu = &report["gpu"];
    // The embedding, five a layer, the head and the candidates.
    assert_eq!((&gpu["dispatches"], &gpu["dispatches_per_layer"]), (&(1 + 4 * 5 + 2).into(), &5.0.into()));
    assert!(number(&gpu["readback_bytes"]) <= 4096.0);
    for name in ["copy_bytes_per_second", "dispatch_us", "round_trip_ms", "empty_step_ms", "empty_share"] {
        assert!(number(&gpu[name]) > 0.0, "{name}");
    }
    assert_eq!(gpu["copy_bytes_per_second"], report["roofline"]["limit_bytes_per_second"]);
    // Software adapters have timestamps too, natively.
    parts_add_up(&report, [2 * 150, 2 * 5]);
    assert!(number(&gpu["busy_ms"]) > 0.0);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let (_dir, bundle) = random_bundle();
    let speed = |more: &[&str]| {
        let all = ["bench", "speed", "--bundle", &bundle];
        [all.as_slice(), more].concat().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let code = |more: &[&str]| {
        let arguments = speed(more);
        xylem(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).status.code()
    };
    for wrong in [["--runs", "0"], ["--new-tokens", "1"], ["--prompt-tokens", "0"], ["--threads", "0"]] {
        assert_eq!(code(&wrong), Some(2), "{wrong:?}");
    }
    let long = speed(&["--prompt-tokens", "600"]);
    let says = fails(&long.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(says.contains("600 tokens") && says.contains("512"), "{says}");
    let cut = speed(&["--prompt-tokens", "500", "--new-tokens", "20"]);
    let says = fails(&cut.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(says.contains("520 tokens") && says.contains("512"), "{says}");
    let deep = speed(&["--prompt-tokens", "5", "--new-tokens", "2", "--runs", "1", "--depths", "512"]);
    let says = fails(&deep.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(says.contains("513 tokens") && says.contains("512"), "{says}");
}
