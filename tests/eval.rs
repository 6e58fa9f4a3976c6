//! The suites that measure a model, through the command: on random models, of which is known what must come out.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{fails, prints, random_bundle, reads};
use serde_json::{Value, json};
use xylem::backend::{Output, Want};
use xylem::bundle::Bundle;
use xylem::cpu::CpuBackend;
use xylem::session::Session;

/// Writes `text` beside the bundle.
fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name).display().to_string();
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn loss_by_frequency_adds_up_to_the_whole() {
    let (dir, bundle) = random_bundle();
    let text =
        write(dir.path(), "text.txt", "One document here: zebra.\n<|endoftext|>\nAnother, the last one.\n");
    // 'e' and ' ' are frequent in it, 'z' and ':' are not there at all.
    let counted = write(dir.path(), "counted.txt", &"the one note ends here, another ".repeat(30));
    let eval = ["eval", "--bundle", &bundle, "--suite", "nll", "--data", &text, "--json"];
    let plain = reads(&eval);
    assert!(plain.get("by_input").is_none());
    let report = reads(&[eval.as_slice(), &["--counts", &counted]].concat());
    assert_eq!((&report["nll"], &report["tokens"]), (&plain["nll"], &plain["tokens"]));
    for by in ["by_input", "by_target"] {
        let bins = report[by].as_array().unwrap();
        assert_eq!((bins.len(), &bins[0]["to"], &bins[3]["from"]), (4, &json!(0), &json!(100)));
        let tokens: f64 = bins.iter().filter_map(|b| b["tokens"].as_f64()).sum();
        assert_eq!(Some(tokens), report["tokens"].as_f64(), "{by}");
        let sum: f64 = bins.iter().filter_map(|b| Some(b["nll"].as_f64()? * b["tokens"].as_f64()?)).sum();
        assert!((sum / tokens - report["nll"].as_f64().unwrap()).abs() < 1e-9, "{by}");
    }
    // Of the first document all but the last character are inputs, all but the first are targets: "z" and ":" are both.
    assert!(report["by_input"][0]["tokens"].as_f64() >= Some(2.0), "{report}");
    assert!(report["by_input"][3]["tokens"].as_f64() > report["by_input"][1]["tokens"].as_f64());
    // The built-in text has every small letter more than a hundred times.
    let built_in = reads(&[eval.as_slice(), &["--by-frequency"]].concat());
    assert!(built_in["by_target"][3]["tokens"].as_f64() > Some(30.0), "{built_in}");
}

#[test]
fn random_rows_are_as_alike_as_chance() {
    let (dir, bundle) = random_bundle();
    let letters: String = (b' '..=b'~').map(char::from).collect();
    let text = write(dir.path(), "text.txt", &letters);
    let eval = ["eval", "--suite", "rows", "--data", &text, "--json", "--bundle"];
    let report = reads(&[eval.as_slice(), &[&bundle]].concat());
    assert_eq!(report["tokens"], letters.len());
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.iter().map(|l| l["layer"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
    // Random directions in 160 dimensions: |cos| is half normal with 1 / √160, whose 95th percentile is 1.96 of these.
    let expected = 1.96 / 160f64.sqrt();
    for found in [&report["rows"], &report["rows_centred"], &layers[0]["rows"], &layers[1]["rows"]] {
        assert!((found.as_f64().unwrap() - expected).abs() < 0.02, "{found}, not {expected}");
    }
    assert!(layers[0].get("dense").is_none());
    let dense = dir.path().join("dense").display().to_string();
    prints(&["random", "--out", &dense, "--stem"]);
    assert!(fails(&[eval.as_slice(), &[&dense]].concat()).contains("no STEM layers"));
}

#[test]
fn needles_are_found_where_the_model_says_them() {
    let (dir, bundle) = random_bundle();
    let said = |prompt: &str| {
        let text =
            ["generate", "--bundle", &bundle, "--prompt", prompt, "--temperature", "0", "--max-tokens", "1"];
        reads(&[text.as_slice(), &["--json"]].concat())["text"].as_str().unwrap().to_owned()
    };
    // What the model goes on with is the right answer to one row, and stands in its context; another's is not.
    let context = |filler: usize| format!("Some words{}", ".".repeat(filler));
    let mut texts = (3..40).map(|filler| (context(filler), said(&format!("{}\nIt is", context(filler)))));
    let is_letter = |(_, end): &(String, String)| end.trim() == end && end.is_ascii() && !end.is_empty();
    let (text, end) = texts.find(is_letter).expect("an end that is a letter");
    let rows = [
        json!({"context": text, "cloze_prompt": "It is", "answers": ["\u{1}", end], "context_chars": 9, "depth": 0.5}),
        json!({"context": text, "cloze_prompt": "It is", "answers": ["\u{1}\u{2}"]}),
        json!({"context": "x".repeat(600), "cloze_prompt": "It is", "answers": [end]}),
    ];
    let data = write(dir.path(), "needle.jsonl", &rows.map(|r| r.to_string()).join("\n"));
    let eval = ["eval", "--bundle", &bundle, "--suite", "needle", "--data"];
    let report = reads(&[eval.as_slice(), &[&data, "--json"]].concat());
    assert_eq!((&report["n"], &report["accuracy"], &report["too_long"]), (&json!(2), &json!(0.5), &json!(1)));
    let bin = &report["by_length"][0];
    assert_eq!((&bin["over"], &bin["to"], &bin["n"]), (&json!(0), &json!(125), &json!(2)));
    let none = json!({"context": "a", "cloze_prompt": "b", "answers": []}).to_string();
    let none = write(dir.path(), "none.jsonl", &none);
    assert!(fails(&[eval.as_slice(), &[&none]].concat()).contains("empty answer"));
}

/// The logits `[vocab]` of what follows `text`, of which a token is a byte.
fn after(dir: &str, text: &str) -> Vec<f32> {
    let bundle = Bundle::open(dir).unwrap();
    let manifest = bundle.manifest();
    let mut backend = CpuBackend::new(&manifest.core.tensors, &manifest.config, 64);
    bundle.load_core(&mut backend, |_, _| ()).unwrap();
    let mut session = Session::new(backend, bundle.tables().unwrap(), manifest.config.clone(), 64);
    let tokens = bundle.tokenizer().unwrap().encode(text).unwrap();
    assert_eq!(tokens.len(), text.len());
    let Output::Logits(logits) = pollster::block_on(session.step(&tokens, Want::Logits)).unwrap() else {
        panic!("no logits");
    };
    // Letters are the tokens of their bytes.
    let tokenizer = bundle.tokenizer().unwrap();
    let id = |byte: u8| tokenizer.encode(&char::from(byte).to_string()).unwrap()[0];
    let last = &logits[logits.len() - manifest.config.vocab_size..];
    (0..128).map(|byte| last[id(byte) as usize]).collect()
}

/// The figures of a way to edit, by kind.
fn kinds(report: &Value, way: &str) -> BTreeMap<String, Value> {
    let all = report[way].as_array().unwrap_or_else(|| panic!("{way}: {report}"));
    all.iter().map(|f| (f["kind"].as_str().unwrap().to_owned(), f.clone())).collect()
}

#[test]
fn an_edit_reaches_where_its_rows_are_looked_up() {
    let (dir, bundle) = random_bundle();
    // Two ends of which the model finds one likelier after each name: that is what it knows of them.
    let (names, chars) = (["Spain", "Peru", "Bali"], b'a'..=b'z');
    let said = names.map(|name| after(&bundle, &format!("Of {name} it is ")));
    let pairs = chars.clone().flat_map(|x| chars.clone().map(move |y| (usize::from(x), usize::from(y))));
    let sure = |(x, y): &(usize, usize)| (said[0][*x] - said[0][*y]).min(said[1][*y] - said[1][*x]);
    let (x, y) = pairs.max_by(|a, b| sure(a).total_cmp(&sure(b))).unwrap();
    assert!(sure(&(x, y)) > 0.0, "the names make no difference");
    // Of the third it knows nothing.
    let z = chars.map(usize::from).min_by(|a, b| said[2][*a].total_cmp(&said[2][*b])).unwrap();
    let letter = |byte: usize| char::from(byte as u8).to_string();
    let entities: Vec<Value> =
        names.iter().zip([x, y, z]).map(|(name, end)| json!({"name": name, "thing": letter(end)})).collect();
    let suite = json!({
        "facts": {"thing": {"prompt": "Of {name} it is", "end": "{thing}"}},
        "probes": [
            {"kind": "other words", "fact": "thing", "prompt": "We know of {name} the", "end": "{thing}"},
            {"kind": "unnamed", "fact": "thing", "prompt": "--- -- -", "end": "{thing:lower}"},
            {"kind": "capitals", "fact": "thing", "prompt": "OF {name:upper} IT IS", "end": "{thing}"},
        ],
        "entities": entities,
    });
    let data = write(dir.path(), "suite.json", &suite.to_string());
    let eval = ["eval", "--bundle", &bundle, "--suite", "reach", "--data", &data, "--json"];
    let report = reads(&eval);
    assert_eq!((&report["judge"], &report["facts"]), (&json!("model"), &json!(3)));
    assert_eq!(report["known"], 1, "{report}");
    let swap = kinds(&report, "swap");
    let itself = &swap["the sentence itself"];
    assert_eq!(
        (&itself["n"], &itself["touched"], &itself["es_unedited"]),
        (&report["known"], &json!(1.0), &json!(0.0))
    );
    assert_eq!(itself["asked"], report["known"]);
    // The judge is the model itself, so what it knows it prefers without an edit.
    for figures in swap.values().filter(|f| f["n"] != 0) {
        assert_eq!(figures["es_unedited"], 0.0, "{figures}");
    }
    // At strength 0 nothing is touched, and nothing moves.
    let none = kinds(&reads(&[eval.as_slice(), &["--strength", "0"]].concat()), "swap");
    let itself = &none["the sentence itself"];
    assert_eq!((&itself["touched"], &itself["es"]), (&json!(0.0), &json!(0.0)));
    assert!(report.get("teach").is_none());
    let report =
        reads(&[eval.as_slice(), &["--by", "teach", "--steps", "40", "--teach-limit", "1"]].concat());
    let taught = kinds(&report, "teach");
    assert!(taught["the sentence itself"]["es"].as_f64() > Some(0.0), "{report}");
    assert_eq!((&report["taught"], &taught["unnamed"]["asked"]), (&json!(1), &json!(1)));
    if taught["unnamed"]["n"] != 0 {
        assert_eq!(taught["unnamed"]["touched"], 0.0, "the name is in neither prompt nor end: {report}");
    }

    let bad = write(dir.path(), "bad.json", &suite.to_string().replace("{thing:lower}", "{place}"));
    let says = fails(&["eval", "--bundle", &bundle, "--suite", "reach", "--data", &bad]);
    assert!(says.contains("{place}") && says.contains("no field"), "{says}");
    let says = fails(&["eval", "--bundle", &bundle, "--suite", "edits"]);
    assert!(says.contains("--data"), "{says}");
}
