//! Bundles with Engram layers, through the command and the library.

mod common;

use std::fs;
use std::path::Path;

use common::{fails, prints, reads};
use pollster::block_on;
use serde_json::Value;
use tempfile::TempDir;
use xylem::Error;
use xylem::backend::{Output, Want};
use xylem::bundle::{Bundle, Manifest, random};
use xylem::cpu::CpuBackend;
use xylem::engram::Hasher;
use xylem::session::Session;
use xylem::tables::RowSource;

fn bundle(more: &[&str]) -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("bundle").display().to_string();
    prints(&[&["random", "--out", &out, "--engram-layers", "0,1"], more].concat());
    (dir, out)
}

fn hasher(bundle: &Bundle) -> Hasher {
    let ids = fs::read(bundle.dir().join("engram-ids.bin")).unwrap();
    bundle.manifest().hasher(&ids).unwrap().unwrap()
}

/// The bundle's logits of the last of `tokens`, which come in pieces of `size`.
fn logits(bundle: &Bundle, tokens: &[u32], size: usize) -> Vec<f32> {
    let manifest = bundle.manifest();
    let mut backend = CpuBackend::new(&manifest.core.tensors, &manifest.config, 100);
    bundle.load_core(&mut backend, |_, _| ()).unwrap();
    let mut session = Session::new(backend, bundle.rows().unwrap(), manifest.config.clone(), 128);
    let mut last = Vec::new();
    for chunk in tokens.chunks(size) {
        let Output::Logits(logits) = block_on(session.step(chunk, Want::Logits)).unwrap() else {
            panic!("no logits");
        };
        last = logits[logits.len() - manifest.config.vocab_size..].to_vec();
    }
    last
}

#[test]
fn inspect_shows_layers_tables_and_what_a_token_takes() {
    let (_dir, path) = bundle(&[]);
    let report = reads(&["inspect", "--bundle", &path, "--json"]);
    let engram = &report["engram"];
    assert_eq!(engram["layers"], serde_json::json!([0, 1]));
    assert_eq!(
        (&engram["order"], &engram["heads"], &engram["head_width"]),
        (&3.into(), &4.into(), &24.into())
    );
    // Keys and values, three gains, four taps: of two layers.
    assert_eq!(engram["weights"], 2 * (2 * 96 * 96 + 3 * 96 + 4 * 96));
    let tables = report["tables"].as_array().unwrap();
    let table = |name: &str| tables.iter().find(|t| t["name"] == name).unwrap();
    // The primes from 500 and from 700 on, of both layers.
    let records = 503 + 509 + 521 + 523 + 701 + 709 + 719 + 727;
    assert_eq!(table("engram")["records"], records);
    // 24 values, one scale, padded to words: of 8 heads.
    assert_eq!(
        (&table("engram")["record_bytes"], &table("engram")["bytes_per_token"]),
        (&28.into(), &(8 * 28).into())
    );
    assert_eq!(report["bytes"]["tables"], 300 * 2 * 168 + records * 28);
    assert_eq!(report["parameters"]["row_values_per_token"], 2 * 160 + 2 * 96);
    // The dense base has no Engram layers.
    let (_plain, plain) = common::random_bundle();
    assert_eq!(
        report["parameters"]["dense"],
        reads(&["inspect", "--bundle", &plain, "--json"])["parameters"]["dense"]
    );
    assert!(
        prints(&["inspect", "--bundle", &path])
            .contains("Engram     layers [0, 1]: n-grams of 2 to 3 tokens")
    );
}

#[test]
fn rows_are_those_that_the_hash_finds() {
    let (_dir, path) = bundle(&["--seed", "3"]);
    let bundle = Bundle::open(&path).unwrap();
    let config = &bundle.manifest().config;
    let engram = config.engram.as_ref().unwrap();
    let tokens = [5, 250, 17, 5, 250, 17, 5];
    let records = hasher(&bundle).records(&[9], &tokens).unwrap();
    let mut rows = Vec::new();
    block_on(bundle.rows().unwrap().gather_at(&[9], &tokens, &mut rows)).unwrap();
    assert_eq!(rows.len(), tokens.len() * config.row_width());
    for (i, (token, records)) in tokens.iter().zip(records.chunks(8)).enumerate() {
        let row = &rows[i * config.row_width()..][..config.row_width()];
        let stem = random::rows(config, *token, 3);
        let heads = records.iter().flat_map(|r| random::engram_row(engram, *r, 3));
        let expected = stem[..config.stem_width()].iter().copied().chain(heads);
        for (found, expected) in row.iter().zip(expected) {
            assert!((found - expected).abs() < 1.0 / 127.0, "{found} for {expected}");
        }
    }
    // The same n-gram has the same rows, wherever it stands.
    let at = |i: usize| &rows[i * config.row_width()..][..config.row_width()];
    assert_eq!(at(2), at(5));
    assert_ne!(at(0), at(3));
}

#[test]
fn any_pieces_give_the_same_logits() {
    let (_dir, path) = bundle(&[]);
    let bundle = Bundle::open(&path).unwrap();
    let tokens: Vec<u32> = (0..30).map(|i| (i * i * 31 + 7) % 256).collect();
    let whole = logits(&bundle, &tokens, 128);
    let spread = whole.iter().fold(0f32, |m, l| m.max(l.abs()));
    for size in [1, 3, 16] {
        for (a, b) in whole.iter().zip(logits(&bundle, &tokens, size)) {
            assert!((a - b).abs() < 1e-4 * spread, "{size}: {a} {b}");
        }
    }
    // The n-grams matter: the same tokens before them changed, the logits change.
    let mut other = tokens.clone();
    other[28] = 3;
    assert_ne!(logits(&bundle, &other, 128), whole);
}

#[test]
fn both_backends_write_the_same_and_suites_run() {
    let (dir, path) = bundle(&[]);
    // Both keep keys and values in half precision.
    let backends = [["--backend", "cpu", "--kv-type", "f16"].as_slice(), &["--backend", "gpu"]];
    let run = |backend: &[&str]| {
        let text = ["--prompt", "Hello, world. <|im_start|>", "--max-tokens", "30", "--json"];
        reads(&[&["generate", "--bundle", &path, "--temperature", "0"], text.as_slice(), backend].concat())
    };
    let [cpu, gpu] = backends.map(run);
    assert!(!cpu["tokens"].as_array().unwrap().is_empty());
    assert_eq!(cpu["tokens"], gpu["tokens"]);
    let text = dir.path().join("text.txt").display().to_string();
    fs::write(&text, "One document here.\n<|endoftext|>\nAnother, and the last.\n").unwrap();
    let [cpu, gpu] = backends.map(|backend| {
        let suite = ["eval", "--bundle", &path, "--suite", "nll", "--data", &text, "--json"];
        reads(&[&suite, backend].concat())["nll"].as_f64().unwrap()
    });
    assert!((cpu - gpu).abs() < 1e-3 && cpu > 3.0);
}

#[test]
fn the_memory_is_switched_off_alone() {
    let (_dir, path) = bundle(&[]);
    let (_plain, plain) = common::random_bundle();
    let write = |bundle: &str, more: &[&str]| {
        let text = ["--prompt", "Hello, world.", "--max-tokens", "20", "--temperature", "0", "--json"];
        reads(&[&["generate", "--bundle", bundle], text.as_slice(), more].concat())["tokens"].clone()
    };
    let (without, off) = (write(&plain, &[]), write(&path, &["--knock-out", "engram-off"]));
    assert_eq!(off, without);
    assert_ne!(write(&path, &[]), without);
    let one = write(&path, &["--knock-out", "engram-off", "--knock-out-layers", "1"]);
    assert!(one != off && one != write(&path, &[]));
    let off = ["--prompt", "a", "--knock-out", "engram-off"];
    let said = fails(&[&["generate", "--bundle", &plain], off.as_slice()].concat());
    assert!(said.contains("no Engram layers"), "{said}");
    let layer = ["--knock-out-layers", "2"];
    let said = fails(&[&["generate", "--bundle", &path], off.as_slice(), &layer].concat());
    assert!(said.contains("layer 2: the Engram layers are [0, 1]"), "{said}");
}

#[test]
fn teaching_goes_around_engram_layers_or_says_that_it_cannot() {
    let (dir, path) = bundle(&[]);
    let out = dir.path().join("edits.json").display().to_string();
    let lesson =
        ["--subject", "Spain", "--prompt", "I say Spain is", "--answer", "ab", "--steps", "4", "--out", &out];
    let said = prints(&[&["edit", "teach", "--bundle", &path], lesson.as_slice()].concat());
    assert!(said.contains("steps"), "{said}");
    // Here an Engram layer lies behind the first STEM layer.
    let (_late, path) = bundle(&["--stem", "0,2"]);
    let said = fails(&[&["edit", "teach", "--bundle", &path], lesson.as_slice()].concat());
    assert!(said.contains("a gradient through the Engram layer 1 is not supported"), "{said}");
}

#[test]
fn other_compressed_ids_are_refused() {
    let (_dir, path) = bundle(&[]);
    let file = Path::new(&path).join("engram-ids.bin");
    let ids = fs::read(&file).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        let said = fails(&["generate", "--bundle", &path, "--prompt", "a"]);
        assert!(said.contains("engram-ids.bin"), "{said}");
    };
    let mut other = ids.clone();
    other.swap(0, 4);
    refused(&other);
    refused(&ids[4..]);
    refused(&[]);
    fs::remove_file(&file).unwrap();
    assert!(matches!(Bundle::open(&path).unwrap().rows(), Err(Error::Io { .. })));
}

#[test]
fn damaged_pages_and_wrong_shapes_are_refused() {
    let (_dir, path) = bundle(&[]);
    let file = Path::new(&path).join("manifest.json");
    let json: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(json["version"], 1);
    let refused = |change: fn(&mut Value)| {
        let mut json = json.clone();
        change(&mut json);
        Manifest::parse(&serde_json::to_vec(&json).unwrap()).unwrap_err().to_string()
    };
    assert!(refused(|json| json["engram_ids"] = Value::Null).contains("do not match"));
    assert!(refused(|json| json["engram_ids"]["bytes"] = 8.into()).contains("do not match"));
    assert!(refused(|json| json["engram_ids"]["file"] = "../ids".into()).contains("no plain file name"));
    assert!(
        refused(|json| json["config"]["engram"]["layers"][0]["primes"][0][0] = 507.into()).contains("primes")
    );
    // Another prime, but then the table has too few records.
    assert!(
        refused(|json| json["config"]["engram"]["layers"][0]["primes"][0][0] = 541.into())
            .contains("do not match")
    );
    assert!(refused(|json| json["config"]["engram"]["pad"] = 300.into()).contains("pad = 300"));
    assert!(refused(|json| json["config"]["engram"]["more"] = 1.into()).contains("more"));
    assert!(refused(|json| drop(json["tables"].as_array_mut().unwrap().pop())).contains("do not match"));

    let shard = Path::new(&path).join("engram-000.bin");
    let mut bytes = fs::read(&shard).unwrap();
    bytes.iter_mut().for_each(|b| *b ^= 1);
    fs::write(&shard, bytes).unwrap();
    let said = fails(&["generate", "--bundle", &path, "--prompt", "a"]);
    assert!(said.contains("engram-000.bin"), "{said}");
}

#[test]
fn layers_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("bundle").display().to_string();
    let refused = |more: &[&str]| fails(&[&["random", "--out", &out], more].concat());
    assert!(refused(&["--engram-layers", "4"]).contains("layers = [4]"));
    assert!(refused(&["--engram-layers", "1,0"]).contains("[1, 0]"));
    assert!(refused(&["--engram-layers", "1", "--engram-width", "20"]).contains("= 80"));
    assert!(refused(&["--engram-layers", "1", "--engram-tables", "5000000"]).contains("records"));
    assert!(refused(&["--engram-layers", "1", "--engram-heads", "0"]).contains("heads = 0"));
}

#[test]
fn n_grams_are_edited_by_the_command() {
    let (dir, path) = bundle(&[]);
    let out = dir.path().join("edits.json").display().to_string();
    let into = ["edit", "ngram", "--bundle", &path, "--out", &out];
    let said = prints(&[into.as_slice(), &["--subject", "tree", "--with", "wood"]].concat());
    assert!(said.contains("counted from the end") && said.contains("1 edits"), "{said}");
    prints(
        &[into.as_slice(), &["--subject", "sap", "--factor", "0", "--layers", "1", "--scope", "row"]]
            .concat(),
    );
    let file: Value = serde_json::from_slice(&fs::read(&out).unwrap()).unwrap();
    assert_eq!(file["version"], 2);
    assert_eq!(file["edits"][1]["target"]["ngrams"]["factor"], 0.0);
    let listed = reads(&["edit", "list", "--edits", &out, "--bundle", &path, "--json"]);
    // " tree": four pairs and three triples.
    assert_eq!(listed[0]["ngrams"].as_array().unwrap().len(), 4 + 3);
    assert_eq!(
        (&listed[0]["tokens"][0]["gets"], &listed[1]["layers"]),
        (&"own".into(), &serde_json::json!([1]))
    );

    let write = |more: &[&str]| {
        let text =
            ["--prompt", "I see a tree. A tree of sap", "--max-tokens", "24", "--temperature", "0", "--json"];
        reads(&[&["generate", "--bundle", &path], text.as_slice(), more].concat())["tokens"].clone()
    };
    let exact = ["--kv-type", "f16"];
    let (plain, edited) = (write(&exact), write(&[&exact[..], &["--edits", &out]].concat()));
    assert_ne!(plain, edited);
    assert_eq!(edited, write(&["--edits", &out, "--backend", "gpu"]));
    // With its memory off there is nothing left to edit.
    let off = ["--knock-out", "engram-off"];
    assert_eq!(write(&off), write(&[&["--edits", &out], off.as_slice()].concat()));
    let switched = dir.path().join("off.json").display().to_string();
    prints(&["edit", "apply", "--bundle", &path, "--edits", &out, "--off", "all", "--out", &switched]);
    assert_eq!(write(&[&exact[..], &["--edits", &switched]].concat()), plain);
    // A trace marks the n-grams, and only these.
    let trace = reads(&[
        "trace",
        "--bundle",
        &path,
        "--prompt",
        "I see a tree",
        "--max-tokens",
        "0",
        "--edits",
        &out,
        "--json",
    ]);
    let marked: Vec<bool> =
        trace["tokens"].as_array().unwrap().iter().map(|t| t["engram"][0]["edited"] == true).collect();
    // The pair " t" ends at 8; each position from there on ends one, too.
    assert_eq!(marked.iter().position(|m| *m), Some(8));
    assert!(marked[8..].iter().all(|m| *m));

    assert!(
        fails(&[into.as_slice(), &["--subject", "", "--factor", "1"]].concat())
            .contains("an n-gram has two or more")
    );
    assert!(
        fails(&[into.as_slice(), &["--subject", "ab", "--factor", "9"]].concat()).contains("a factor of 9")
    );
    assert!(
        fails(&[into.as_slice(), &["--subject", "ab", "--factor", "1", "--layers", "2"]].concat())
            .contains("layer 2 has no n-grams")
    );
    let (_plain, plain) = common::random_bundle();
    let other = dir.path().join("other.json").display().to_string();
    let none = ["edit", "ngram", "--bundle", &plain, "--subject", "ab", "--factor", "0", "--out", &other];
    assert!(fails(&none).contains("no Engram layers"));
}
