//! The command as scripts see it: exit codes, JSON, and what it says of bad input.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{fails, prints, random_bundle, reads, xylem};

const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/base/SmolLM2-135M-Instruct.Q4_1.gguf");

#[test]
fn equal_seeds_give_equal_texts_on_both_backends() {
    let (_dir, bundle) = random_bundle();
    let run_with = |more: &[&str], backend: &str, temperature: &str, seed: &str| {
        let text = ["--prompt", "Hello, world. <|im_start|>", "--max-tokens", "30", "--json"];
        let sampling = ["--temperature", temperature, "--seed", seed, "--backend", backend];
        reads(&[&["generate", "--bundle", &bundle], text.as_slice(), &sampling, more].concat())
    };
    let run = |backend: &str, temperature: &str, seed: &str| run_with(&[], backend, temperature, seed);
    for backend in ["cpu", "gpu"] {
        let all =
            |temperature| ["1", "2", "3", "4"].map(|seed| run(backend, temperature, seed)["tokens"].clone());
        let first = all("1.2");
        assert_eq!(first, all("1.2"));
        // A text may end at once, but not all of them do.
        assert!(first.iter().any(|tokens| tokens.as_array().unwrap().len() == 30));
        assert!(first.iter().any(|tokens| *tokens != first[0]));
        // 13 bytes and a space, then one special token.
        assert_eq!(run(backend, "1.2", "1")["prompt_tokens"], 15);
    }
    // The GPU keeps keys and values in half precision.
    let exact = run_with(&["--kv-type", "f16"], "cpu", "0", "0");
    assert_eq!(exact["tokens"], run("gpu", "0", "0")["tokens"]);
    for kind in ["f16", "q8"] {
        let found = run_with(&["--kv-type", kind], "cpu", "0", "0");
        assert!(!found["tokens"].as_array().unwrap().is_empty());
    }
}

#[test]
fn the_suites_measure_a_random_model_as_guessing() {
    let (dir, bundle) = random_bundle();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let text = write("text.txt", "One document here.\n<|endoftext|>\nAnother, and the last.\n");
    let nll = reads(&["eval", "--bundle", &bundle, "--suite", "nll", "--data", &text, "--json"]);
    assert_eq!(nll["tokens"], 18 - 1 + 22 - 1);
    // A model that knows nothing would have ln 300.
    assert!(nll["nll"].as_f64().unwrap() > 3.0, "{nll}");
    assert!(nll.get("kl").is_none());
    let cut = ["--context", "10", "--json"];
    let nll =
        reads(&[&["eval", "--bundle", &bundle, "--suite", "nll", "--data", &text], cut.as_slice()].concat());
    assert_eq!(nll["tokens"], 18);

    let rows = r#"{"context": "", "question": "A b", "choices": ["c", "dd", "eee"], "label": 1}"#;
    let rows = write("choice.jsonl", &format!("{rows}\n{rows}\n"));
    let choice = reads(&["eval", "--bundle", &bundle, "--suite", "choice", "--data", &rows, "--json"]);
    assert_eq!(choice["n"], 2);
    assert!([0.0, 1.0].contains(&choice["accuracy"].as_f64().unwrap()));

    // What the model itself would say counts as exact.
    let said = reads(&[
        "generate",
        "--bundle",
        &bundle,
        "--prompt",
        "A b",
        "--max-tokens",
        "1",
        "--temperature",
        "0",
        "--json",
    ]);
    let target = said["text"].as_str().unwrap();
    let row = serde_json::json!({"prompt": "A b", "target": target, "choices": ["x", "y"], "label": 0});
    let rows = write("cloze.jsonl", &row.to_string());
    if !target.trim().is_empty() {
        let cloze = reads(&["eval", "--bundle", &bundle, "--suite", "cloze", "--data", &rows, "--json"]);
        assert_eq!(cloze["exact"], 1.0, "{said} {cloze}");
    }

    let bad = write("bad.jsonl", "{\"prompt\": 1}\n");
    let says = fails(&["eval", "--bundle", &bundle, "--suite", "cloze", "--data", &bad]);
    assert!(says.contains("bad.jsonl, line 1"), "{says}");
    let row = r#"{"prompt": "p", "target": "t", "choices": ["x", "y"], "label": 2}"#;
    let says =
        fails(&["eval", "--bundle", &bundle, "--suite", "cloze", "--data", &write("label.jsonl", row)]);
    assert!(says.contains("label 2"), "{says}");
}

#[test]
fn a_damaged_bundle_is_named() {
    let (dir, bundle) = random_bundle();
    let path = |name: &str| PathBuf::from(&bundle).join(name);
    let generate = ["generate", "--bundle", &bundle, "--prompt", "Hi", "--max-tokens", "2"];
    let spoil = |name: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>, expected: &[&str]| {
        let whole = fs::read(path(name)).unwrap();
        fs::write(path(name), change(whole.clone())).unwrap();
        let says = fails(&generate);
        assert!(expected.iter().all(|e| says.contains(e)), "{name}: {says}");
        fs::write(path(name), whole).unwrap();
    };
    let flip = |mut bytes: Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bytes
    };
    let cut = |mut bytes: Vec<u8>| {
        bytes.truncate(bytes.len() - 3);
        bytes
    };
    spoil("core-000.bin", &flip, &["core-000.bin", "hash"]);
    spoil("core-000.bin", &cut, &["core-000.bin", "bytes"]);
    spoil("stem-index.bin", &flip, &["stem-index.bin", "hash"]);
    spoil("tokenizer.json", &cut, &["tokenizer.json", "bytes"]);
    spoil("stem-000.bin", &|b| b.iter().map(|b| !b).collect(), &["stem-000.bin", "hash"]);
    let edit = |from: &'static str, to: &'static str| {
        move |b: Vec<u8>| String::from_utf8(b).unwrap().replacen(from, to, 1).into_bytes()
    };
    spoil(
        "manifest.json",
        &edit("\"version\": 1", "\"version\": 9"),
        &["version 9", "convert the model again"],
    );
    spoil("manifest.json", &edit("\"hidden_size\": 96", "\"hidden_size\": 97"), &["hidden_size = 97"]);
    spoil("manifest.json", &edit("core-000.bin", "../../etc/x"), &["no plain file name"]);
    spoil("manifest.json", &|_| b"<html>".to_vec(), &["manifest.json", "not a manifest"]);
    fs::rename(path("core-000.bin"), dir.path().join("elsewhere")).unwrap();
    assert!(fails(&generate).contains("core-000.bin"));
    assert!(fails(&["inspect", "--bundle", &dir.path().display().to_string()]).contains("manifest.json"));
}

#[test]
fn a_prompt_beyond_the_context_is_refused() {
    let (_dir, bundle) = random_bundle();
    let long = "word ".repeat(200);
    let says = fails(&["generate", "--bundle", &bundle, "--prompt", &long]);
    assert!(says.contains("1000 tokens") && says.contains("512"), "{says}");
    assert!(fails(&["generate", "--bundle", &bundle, "--prompt", ""]).contains("empty"));
    let says = fails(&["generate", "--bundle", &bundle, "--prompt", "a", "--temperature", "11"]);
    assert!(says.contains("temperature"), "{says}");
    assert_eq!(xylem(&["generate", "--prompt", "no model"]).status.code(), Some(2));
}

#[test]
fn a_bad_checkpoint_leaves_the_good_bundle_alone() {
    let (dir, bundle) = random_bundle();
    let before = fs::read(Path::new(&bundle).join("manifest.json")).unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let whole = fs::read(BASE).expect("the base weights; `./x build` brings them");
    let truncated = file("truncated.gguf", &whole[..whole.len() / 2]);
    let foreign = file("foreign.gguf", b"PK\x03\x04 this is a zip file");
    // The architecture's name is the first value of the metadata.
    let at = whole.windows(5).position(|w| w == b"llama").unwrap();
    let mut other = whole.clone();
    other[at..at + 5].copy_from_slice(b"mamba");
    let other = file("other.gguf", &other);
    for (path, expected) in [
        (truncated.as_str(), ["truncated.gguf", "truncated:"]),
        (&foreign, ["foreign.gguf", "magic"]),
        (&other, ["`mamba`", "supported: llama"]),
        ("/no/such/file.gguf", ["/no/such/file.gguf", "No such file"]),
    ] {
        let says = fails(&["convert", "--base", path, "--layers", "none", "--out", &bundle]);
        assert!(expected.iter().all(|e| says.contains(e)), "{says}");
    }
    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("precious.txt"), "mine").unwrap();
    let says = fails(&["convert", "--base", BASE, "--layers", "none", "--out", &full.display().to_string()]);
    assert!(says.contains("holds no bundle"), "{says}");
    assert_eq!(fs::read(Path::new(&bundle).join("manifest.json")).unwrap(), before);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("partial")), "{left:?}");
}

/// Ctrl-C, as a terminal sends it.
#[cfg(unix)]
#[test]
fn an_interrupted_conversion_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("bundle");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_xylem"));
    command.args(["convert", "--base", BASE, "--recipe", "recipe", "--out"]).arg(&out);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let names = || -> Vec<_> { fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect() };
    // Until it is well under way.
    while !names().iter().any(|partial| partial.join("core-001.bin").exists()) {
        assert!(child.try_wait().unwrap().is_none(), "it has ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "xylem: stopped\n");
    assert_eq!(names(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn the_bench_of_tables_adds_up() {
    let (dir, bundle) = random_bundle();
    let data = dir.path().join("text.txt");
    fs::write(&data, "One document here.\n<|endoftext|>\nAnother, and the last.\n").unwrap();
    let data = data.display().to_string();
    let bench = |more: &[&str]| {
        let all = ["bench", "tables", "--bundle", &bundle, "--data", &data, "--json"];
        reads(&[all.as_slice(), more].concat())
    };
    let link = ["--budgets", "0,1,all", "--answer", "12", "--runs", "1", "--link", "1000,3"];
    let report = bench(&link);
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or_else(|| panic!("{value} in {report}"));
    let text = &report["text"];
    // A token a byte.
    assert_eq!((&text["documents"], &text["tokens"]), (&2.into(), &(18 + 22).into()));
    let bytes = report["table"]["record_bytes"].as_u64().unwrap();
    let per_token = number(&text["records"]) * bytes as f64 / 40.0;
    assert!((number(&text["bytes_per_token"]) - per_token).abs() < 1e-6);
    let replays = report["replays"].as_array().unwrap();
    let kinds: Vec<_> = replays.iter().map(|r| r["policy"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["lru", "lru", "lru", "lfu", "lfu", "lfu"]);
    for replay in replays {
        let count = |name: &str| replay[name].as_u64().unwrap();
        assert_eq!(count("memory") + count("fetched"), count("unique_rows"), "{replay}");
        assert_eq!((count("rows"), count("unique_rows")), (40, 40));
        assert!((number(&replay["hit_rate"]) - count("memory") as f64 / 40.0).abs() < 1e-9);
        // Nothing is kept without room; with room for all, no page comes twice.
        assert_eq!(count("memory") == 0, count("budget") == 0, "{replay}");
        if count("budget") == report["table"]["bytes"].as_u64().unwrap() {
            assert!(count("bytes_fetched") <= count("budget"));
        }
    }
    let answer = &report["answer"];
    assert!(answer["new_tokens"].as_u64().unwrap() > 1);
    assert_eq!((&answer["identical"], &answer["link"]["identical"]), (&true.into(), &true.into()));
    assert!(number(&answer["cold"]["first_token"]["bytes"]) > 0.0);
    for warm in [&answer["resident"], &answer["warm"], &answer["link"]["second"]] {
        assert_eq!(number(&warm["first_token"]["bytes"]) + number(&warm["a_token"]["requests"]), 0.0);
    }
    assert!(number(&answer["link"]["cold"]["first_token_ms"]["median"]) >= 3.0);
    let token = &answer["link"]["cold"]["a_token"];
    assert!(number(&token["requests_max"]) <= 1.0);
    let trips = &answer["link"]["cold_round_trips"];
    assert!((number(&trips["asked"]) - number(&token["asked_wait_ms"]) / 3.0).abs() < 1e-9);
    assert!(number(&trips["mean"]) <= number(&trips["max"]));

    let report = bench(&["--tokens", "25", "--step", "10", "--runs", "0", "--budgets", "all"]);
    assert_eq!((&report["text"]["tokens"], report.get("answer")), (&25.into(), None));
    assert!(report["replays"][0]["unique_rows"].as_u64().unwrap() < 25);
    let says = xylem(&["bench", "tables", "--bundle", &bundle, "--data", &data, "--link", "20"]);
    assert_eq!(says.status.code(), Some(2));
    assert!(
        fails(&["bench", "tables", "--bundle", &bundle, "--data", "/no/such/text"]).contains("/no/such/text")
    );
}

#[test]
fn inspect_counts_parameters() {
    let (_dir, bundle) = random_bundle();
    let report = reads(&["inspect", "--bundle", &bundle, "--json"]);
    let p = &report["parameters"];
    // Two STEM layers of four: two up-projections fewer.
    assert_eq!(p["dense"].as_u64().unwrap() - p["core"].as_u64().unwrap(), 2 * 96 * 160);
    assert_eq!(p["tables"], 300 * 2 * 160);
    assert_eq!(report["flops_per_token"]["stem_ffn"], 4 * 96 * 160);
    assert!(prints(&["inspect", "--bundle", &bundle]).contains("STEM: [1, 2]"));
}
