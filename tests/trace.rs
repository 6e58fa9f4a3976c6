//! `xylem trace`, as scripts see it.

mod common;

use std::path::Path;

use common::{fails, prints, random_bundle, reads};
use serde_json::Value;
use xylem::bundle::Bundle;
use xylem::bundle::quant::{dequantize_row, row_bytes};
use xylem::engram::Hasher;
use xylem::trace::Trace;

const TEXT: [&str; 6] = ["--prompt", "Row by row.", "--max-tokens", "5", "--temperature", "0"];

fn trace(bundle: &str, more: &[&str]) -> Value {
    reads(&[&["trace", "--bundle", bundle], TEXT.as_slice(), more].concat())
}

#[test]
fn a_trace_is_of_the_text_that_generate_gives() {
    let (dir, bundle) = random_bundle();
    let json = trace(&bundle, &["--json"]);
    let parsed = Trace::parse(json.to_string().as_bytes()).unwrap();
    let said = reads(&[&["generate", "--bundle", &bundle], TEXT.as_slice(), &["--json"]].concat());
    let answer: Vec<u32> = parsed.tokens[parsed.prompt_tokens..].iter().map(|t| t.id).collect();
    assert_eq!(serde_json::json!(answer), said["tokens"]);
    assert_eq!(parsed.prompt_tokens, said["prompt_tokens"]);
    let prompt: String = parsed.tokens[..parsed.prompt_tokens].iter().map(|t| t.text.as_str()).collect();
    assert_eq!(prompt, "Row by row.");
    // It was greedy.
    for pair in parsed.tokens[parsed.prompt_tokens - 1..].windows(2) {
        assert_eq!((pair[0].next.id, pair[0].next.top[0].id), (pair[1].id, pair[1].id));
    }
    // The prompt's rows were on disk, and lie where the trace says.
    let opened = Bundle::open(&bundle).unwrap();
    let bytes = opened.tables().unwrap().unwrap().layout().table().record_bytes();
    for token in &parsed.tokens {
        let record = token.record.as_ref().unwrap();
        let shard = std::fs::read(Path::new(&bundle).join(&record.file)).unwrap();
        let rows = &shard[record.offset as usize..][..record.bytes];
        assert_eq!(record.bytes, bytes);
        for (row, norm) in rows.chunks_exact(row_bytes(160)).zip(&token.row_norm) {
            let mut values = [0.0; 160];
            dequantize_row(row, &mut values);
            let expected = values.iter().map(|v| v * v).sum::<f32>().sqrt();
            assert!((norm - expected).abs() < 1e-3, "{norm} for {expected}");
        }
    }
    assert_eq!(json["tokens"][0]["lookup"]["tier"], "fetched");
    assert!(json["tokens"][0]["lookup"]["ms"].as_f64().unwrap() > 0.0);
    let lines = prints(&[&["trace", "--bundle", &bundle], TEXT.as_slice()].concat());
    assert_eq!(lines.lines().count(), parsed.tokens.len());
    drop(dir);
}

#[test]
fn edits_show_in_a_trace() {
    let (dir, bundle) = random_bundle();
    let edits = dir.path().join("edits.json").display().to_string();
    prints(&["edit", "swap", "--bundle", &bundle, "--subject", "r", "--with", "y", "--out", &edits]);
    let (plain, edited) = (trace(&bundle, &["--json"]), trace(&bundle, &["--json", "--edits", &edits]));
    let tokens = |json: &Value| json["tokens"].as_array().unwrap()[..11].to_vec();
    // The name begins with a space, which keeps its row: it is edited to what it was.
    let mut changed = Vec::new();
    for (position, (before, after)) in tokens(&plain).iter().zip(&tokens(&edited)).enumerate() {
        let named = !after["edited"].as_array().unwrap().is_empty();
        assert!(!named || after["edited"] == serde_json::json!([1, 2]));
        if before["row_norm"] != after["row_norm"] {
            assert!(named);
            changed.push(position);
        }
    }
    assert_eq!(changed, [7]);
}

#[test]
fn a_card_finds_the_nearest_of_all_rows() {
    let (_dir, bundle) = random_bundle();
    let card = trace(&bundle, &["--card", "4,2"]);
    assert_eq!((&card["text"], &card["stem"]), (&Value::from("b"), &Value::from(true)));
    assert_eq!((&card["nearest"]["compared"], &card["nearest"]["records"]), (&300.into(), &300.into()));
    // Layer 2 is the second of the two STEM layers.
    let tables = Bundle::open(&bundle).unwrap().tables().unwrap().unwrap();
    let mut rows = vec![[0f32; 160]; 300];
    let visit = tables.visit_all(|record, bytes| {
        dequantize_row(&bytes[row_bytes(160)..], &mut rows[record as usize]);
    });
    pollster::block_on(visit).unwrap();
    let own = card["id"].as_u64().unwrap() as usize;
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let cosine =
        |i: usize| dot(&rows[own], &rows[i]) / (dot(&rows[own], &rows[own]) * dot(&rows[i], &rows[i])).sqrt();
    let mut all: Vec<(usize, f32)> = (0..300).filter(|i| *i != own).map(|i| (i, cosine(i))).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    let found = card["nearest"]["rows"].as_array().unwrap();
    assert_eq!(found.len(), 8);
    for (near, (id, cosine)) in found.iter().zip(all) {
        assert_eq!(near["id"], id);
        assert!((near["cosine"].as_f64().unwrap() - f64::from(cosine)).abs() < 1e-4);
    }
    // A dense layer computes its up-projection, so there is no row to compare.
    let dense = trace(&bundle, &["--card", "4,0"]);
    assert!(dense["nearest"].is_null() && dense["rows"].as_array().unwrap().len() == 2);
    assert!(dense["inside"]["units"][0]["added"].as_f64().unwrap() > 0.0);
    let cell = [&["trace", "--bundle", &bundle], TEXT.as_slice(), &["--card", "99,0"]].concat();
    assert!(fails(&cell).contains("position 99"));
}

/// A bundle whose n-grams collide often, opened.
fn small_memory() -> (tempfile::TempDir, String, Bundle, Hasher) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bundle").display().to_string();
    prints(&["random", "--out", &path, "--engram-layers", "0,1", "--engram-tables", "20,30"]);
    let bundle = Bundle::open(&path).unwrap();
    let hasher = bundle.engram().unwrap().unwrap().0;
    (dir, path, bundle, hasher)
}

/// Without the times of lookups, which differ from run to run.
fn tokens_of(json: &Value) -> Vec<u32> {
    json["tokens"].as_array().unwrap().iter().map(|t| t["id"].as_u64().unwrap() as u32).collect()
}

#[test]
fn a_trace_tells_of_the_memory_of_n_grams() {
    let (_dir, path, bundle, hasher) = small_memory();
    let json = trace(&path, &["--json"]);
    assert_eq!(
        (&json["model"]["engram_layers"], &json["model"]["engram_order"]),
        (&serde_json::json!([0, 1]), &3.into())
    );
    let text = json.to_string();
    let parsed = Trace::parse(text.as_bytes()).unwrap();
    let tokens = tokens_of(&json);
    let hashes = hasher.hashes(&[], &tokens).unwrap();
    for (i, token) in parsed.tokens.iter().enumerate() {
        assert_eq!(token.compressed, hasher.compressed(token.id));
        let found: Vec<u32> = token.engram.iter().flat_map(|e| &e.hashes).copied().collect();
        assert_eq!(found, hashes[i * 8..][..8]);
        for memory in &token.engram {
            assert!(memory.gate > 0.0 && memory.gate < 1.0 && memory.contribution > 0.0 && !memory.edited);
            assert!(memory.lookup.is_some());
        }
    }
    assert_eq!(json["tokens"][0]["engram"][0]["lookup"]["tier"], "fetched");
    // A trace without these values, as older ones are, is read too; one with too few is not.
    let mut old = json.clone();
    for token in old["tokens"].as_array_mut().unwrap() {
        token.as_object_mut().unwrap().remove("engram");
        token.as_object_mut().unwrap().remove("compressed");
    }
    old["model"].as_object_mut().unwrap().remove("engram_order");
    assert!(Trace::parse(old.to_string().as_bytes()).unwrap().tokens[0].engram.is_empty());
    let mut few = json.clone();
    few["tokens"][3]["engram"].as_array_mut().unwrap().pop();
    assert!(Trace::parse(few.to_string().as_bytes()).unwrap_err().to_string().contains("token 3"));
    // A model without such layers says nothing of them.
    let (_plain, plain) = random_bundle();
    let json = trace(&plain, &["--json"]);
    assert!(json["tokens"][0].get("engram").is_none() && json["model"].get("engram_order").is_none());
    drop(bundle);
}

#[test]
fn a_card_says_which_n_grams_hash_to_which_rows() {
    let (_dir, path, bundle, hasher) = small_memory();
    let config = &bundle.manifest().config;
    let engram = config.engram.as_ref().unwrap();
    let json = trace(&path, &["--json"]);
    let tokens = tokens_of(&json);
    let records = hasher.records(&[], &tokens).unwrap();
    let key = |at: usize, order: usize| -> Vec<u32> {
        (0..order)
            .map(|back| at.checked_sub(back).map_or(engram.pad, |at| hasher.compressed(tokens[at]).unwrap()))
            .collect()
    };
    let mut collisions = 0;
    for (position, index) in [(0, 0), (8, 0), (10, 1)] {
        let layer = engram.layers[index].layer;
        let card = trace(&path, &["--card", &format!("{position},{layer}")]);
        let memory = &card["engram"];
        let traced = &json["tokens"][position]["engram"][index];
        for name in ["gate", "contribution"] {
            let (a, b) = (memory["inside"][name].as_f64().unwrap(), traced[name].as_f64().unwrap());
            assert!((a - b).abs() < 1e-4, "{name}: {a} {b}");
        }
        assert!((memory["norm"].as_f64().unwrap() - traced["row_norm"].as_f64().unwrap()).abs() < 1e-3);
        let attributed = json["tokens"][position]["next"]["engram"][index].as_f64().unwrap();
        assert!(attributed.is_finite() && memory["inside"]["up"][0]["logit"].as_f64().unwrap() > 0.0);
        let ngrams = memory["ngrams"].as_array().unwrap();
        assert_eq!(ngrams.len(), 2);
        for (ngram, order) in ngrams.iter().zip(2..) {
            let own = key(position, order);
            let ids: Vec<u64> = ngram["tokens"]
                .as_array()
                .unwrap()
                .iter()
                .map(|t| t["compressed"].as_u64().unwrap())
                .collect();
            assert!(ids.iter().rev().zip(&own).all(|(a, b)| *a == u64::from(*b)) && ids.len() == order);
            let again: Vec<usize> =
                (0..tokens.len()).filter(|at| *at != position && key(*at, order) == own).collect();
            assert_eq!(ngram["again"], serde_json::json!(again));
            let heads = ngram["heads"].as_array().unwrap();
            for (head, row) in heads.iter().enumerate() {
                let at = index * 4 + (order - 2) * 2 + head;
                let record = records[position * 8 + at];
                assert_eq!(row["rows"], engram.primes().nth(at).unwrap());
                assert_eq!(row["hash"], hasher.hashes(&[], &tokens).unwrap()[position * 8 + at]);
                // The row lies where the card says.
                let address = &row["record"];
                let shard = std::fs::read(Path::new(&path).join(address["file"].as_str().unwrap())).unwrap();
                let bytes = &shard[address["offset"].as_u64().unwrap() as usize..];
                let mut values = [0.0; 24];
                dequantize_row(&bytes[..row_bytes(24)], &mut values);
                let expected = values.iter().map(|v| v * v).sum::<f32>().sqrt();
                assert!((row["norm"].as_f64().unwrap() - f64::from(expected)).abs() < 1e-3);
                let mut others: Vec<Vec<u32>> = (0..tokens.len())
                    .filter(|at_| records[at_ * 8 + at] == record)
                    .map(|at| key(at, order))
                    .filter(|other| *other != own)
                    .collect();
                others.sort();
                others.dedup();
                assert_eq!(row["others"], others.len());
                for other in row["collisions"].as_array().unwrap() {
                    let place = other["position"].as_u64().unwrap() as usize;
                    assert!(records[place * 8 + at] == record && others.contains(&key(place, order)));
                    collisions += 1;
                }
            }
        }
    }
    assert!(collisions > 0, "tables so small have collisions");
    let first = trace(&path, &["--card", "0,0"]);
    let tokens = &first["engram"]["ngrams"][1]["tokens"];
    assert!(tokens[0]["id"].is_null() && tokens[1]["id"].is_null() && tokens[2]["form"] == "r");
    // Layer 2 has none.
    assert!(trace(&path, &["--card", "4,2"]).get("engram").is_none());
}
