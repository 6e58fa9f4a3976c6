//! `xylem trace`, as scripts see it.

mod common;

use std::path::Path;

use common::{fails, prints, random_bundle, reads};
use serde_json::Value;
use xylem::bundle::Bundle;
use xylem::bundle::quant::{dequantize_row, row_bytes};
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
