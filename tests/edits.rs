//! Edits through the library and the command: what is switched off changes nothing, a swap is a swap.

mod common;

use std::fs;
use std::path::Path;

use common::{fails, prints, random_bundle, reads};
use serde_json::json;
use xylem::backend::{Output, Want};
use xylem::bundle::Bundle;
use xylem::cpu::CpuBackend;
use xylem::edits::{Edit, Edited, Method, Overlay, Recipe, Scope, Target};
use xylem::error::Result;
use xylem::sampler::Sampling;
use xylem::session::{Observer, Session};
use xylem::tables::{FileTransport, Origin, RowSource, Tables};

/// Layers 1 and 2 of 4 are STEM.
const TEXT: [u32; 12] = [5, 40, 41, 17, 99, 40, 3, 41, 44, 40, 41, 77];

fn session<R>(dir: &str, rows: impl Fn(Tables<FileTransport>) -> R) -> Session<CpuBackend, R>
where
    R: RowSource,
{
    let bundle = Bundle::open(dir).unwrap();
    let m = bundle.manifest();
    let mut backend = CpuBackend::new(&m.core.tensors, &m.config, 64);
    bundle.load_core(&mut backend, |_, _| ()).unwrap();
    let tables = bundle.tables().unwrap().unwrap();
    Session::new(backend, rows(tables), m.config.clone(), 4)
}

/// Logits `[12, vocab]` of the text, read in steps of `chunk`.
fn logits<R: RowSource>(session: &mut Session<CpuBackend, R>, chunk: usize) -> Vec<f32> {
    session.reset();
    let step = |tokens| match pollster::block_on(session.step(tokens, Want::Logits)).unwrap() {
        Output::Logits(logits) => logits,
        other => panic!("{other:?}"),
    };
    TEXT.chunks(chunk).flat_map(step).collect()
}

fn edit(scope: Scope, source: &[u32], ids: &[u32], method: Method) -> Edit {
    Edit {
        on: true,
        label: "one as another".into(),
        scope,
        source: source.into(),
        target: Target::Tokens(Recipe { ids: ids.into(), method, pad: None }),
        strength: 1.0,
        layers: None,
    }
}

/// Rows in which the tokens at some positions of [`TEXT`] have those of others: what an edit should come to.
struct Exchanged(Tables<FileTransport>, Vec<u32>);

impl RowSource for Exchanged {
    async fn gather_traced(
        &self,
        before: &[u32],
        tokens: &[u32],
        out: &mut Vec<f32>,
        _: &mut Vec<Origin>,
    ) -> Result<()> {
        self.0.gather(&self.1[before.len()..before.len() + tokens.len()], out).await
    }
}

#[test]
fn edits_switched_off_give_equal_bits() {
    let (_dir, bundle) = random_bundle();
    let plain = logits(&mut session(&bundle, |tables| tables), 12);
    let mut edited = session(&bundle, Edited::new);
    assert_eq!(logits(&mut edited, 12), plain);
    let config = edited.config().clone();
    let on = edit(Scope::Row, &[40], &[60], Method::OneToOne);
    let overlay = |edits: &[Edit]| Overlay::new(edits, &config).unwrap();
    edited.rows_mut().set_overlay(overlay(std::slice::from_ref(&on)));
    assert_ne!(logits(&mut edited, 12), plain);
    edited.rows_mut().set_overlay(overlay(&[Edit { on: false, ..on }]));
    assert_eq!(logits(&mut edited, 12), plain);
    edited.rows_mut().set_overlay(Overlay::default());
    assert_eq!(logits(&mut edited, 12), plain);
}

#[test]
fn a_swap_equals_rows_exchanged_by_hand() {
    let (_dir, bundle) = random_bundle();
    let at = |changes: &[(usize, u32)]| {
        let mut tokens = TEXT.to_vec();
        changes.iter().for_each(|(i, token)| tokens[*i] = *token);
        tokens
    };
    let whole = [40, 41];
    for (edit, expected) in [
        (edit(Scope::Row, &[40], &[60], Method::OneToOne), at(&[(1, 60), (5, 60), (9, 60)])),
        (edit(Scope::Row, &whole, &[60], Method::Pad), at(&[(2, 60), (7, 60), (10, 60)])),
        (edit(Scope::Phrase, &whole, &[60], Method::Pad), at(&[(2, 60), (10, 60)])),
        (
            edit(Scope::Phrase, &whole, &[60], Method::Copy),
            at(&[(1, 60), (2, 60), (5, 60), (9, 60), (10, 60)]),
        ),
        (edit(Scope::Position(vec![9]), &whole, &[8, 60, 61], Method::Subset), at(&[(9, 60), (10, 61)])),
    ] {
        let plain = logits(&mut session(&bundle, |tables| Exchanged(tables, expected.clone())), 12);
        let mut edited = session(&bundle, Edited::new);
        let overlay = Overlay::new(&[edit], edited.config()).unwrap();
        edited.rows_mut().set_overlay(overlay);
        assert_eq!(logits(&mut edited, 12), plain, "{expected:?}");
        // However the text is cut, the same tokens are changed.
        let in_pieces = logits(&mut edited, 5);
        let spread = plain.iter().fold(0f32, |m, l| m.max(l.abs()));
        assert!(in_pieces.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-4 * spread), "{expected:?}");
    }
}

/// The log-probabilities of the tokens of an answer.
struct LogProbs(Vec<f32>);

impl Observer for LogProbs {
    fn token(&mut self, _id: u32, log_prob: f32) {
        self.0.push(log_prob);
    }
}

#[test]
fn new_edits_reach_what_the_cache_holds() {
    let (_dir, bundle) = random_bundle();
    let mut edited = session(&bundle, Edited::new);
    let text = |session: &mut Session<CpuBackend, Edited<Tables<FileTransport>>>| {
        let mut seen = LogProbs(Vec::new());
        pollster::block_on(session.generate(&TEXT, &Sampling::greedy(4), &mut seen)).unwrap();
        seen.0
    };
    let before = text(&mut edited);
    let swap = edit(Scope::Row, &[40], &[60], Method::OneToOne);
    let overlay = Overlay::new(&[swap], edited.config()).unwrap();
    edited.rows_mut().set_overlay(overlay.clone());
    assert_eq!(edited.cached(), 0);
    let after = text(&mut edited);
    assert_ne!(after, before);
    let mut fresh = session(&bundle, Edited::new);
    fresh.rows_mut().set_overlay(overlay);
    assert_eq!(text(&mut fresh), after);
}

#[test]
fn the_command_makes_lists_and_applies_edits() {
    let (dir, bundle) = random_bundle();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let file = path("edits.json");
    let swap = ["edit", "swap", "--bundle", &bundle, "--subject", "Spain", "--out", &file, "--with"];
    let said = prints(&[&swap, ["Italy", "--at-start"].as_slice()].concat());
    assert!(said.contains("2 edits") && said.contains("\" \" gets those of \" \""), "{said}");
    let said = prints(
        &[&swap, ["Peru", "--layers", "2", "--strength", "0.5", "--scope", "row"].as_slice()].concat(),
    );
    assert!(said.contains("3 edits") && said.contains("strength 0.5, layers [2]"), "{said}");
    prints(&[&swap, ["Italy", "--at", "3", "--method", "average"].as_slice()].concat());

    let list = reads(&["edit", "list", "--edits", &file, "--bundle", &bundle, "--json"]);
    let labels: Vec<_> = list.as_array().unwrap().iter().map(|e| e["label"].as_str().unwrap()).collect();
    let start = "Spain as Italy, at the beginning of a text";
    assert_eq!(labels, [start, "Spain as Italy", "Spain as Peru", "Spain as Italy"]);
    assert_eq!((&list[0]["scope"], &list[3]["scope"]), (&json!("phrase"), &json!({"position": [3]})));
    // " Spain" has six bytes, " Peru" five: one leading token keeps its rows.
    let tokens = list[2]["tokens"].as_array().unwrap();
    assert_eq!((tokens.len(), &tokens[0]["gets"], &tokens[5]["text"]), (6, &json!("own"), &json!("n")));
    assert!(prints(&["edit", "list", "--edits", &file]).contains("  4 on "));

    let run = |prompt: &str, edits: &[&str]| {
        let text = ["generate", "--bundle", &bundle, "--prompt", prompt, "--temperature", "0"];
        reads(&[&text, ["--max-tokens", "20", "--json"].as_slice(), edits].concat())["tokens"].clone()
    };
    let edits = ["--edits", &file];
    assert_ne!(run("I like Spain", &edits), run("I like Spain", &[]));
    assert_eq!(run("zzz", &edits), run("zzz", &[]));
    let off = path("off.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&off, text.replace("\"on\": true", "\"on\": false")).unwrap();
    assert_eq!(run("I like Spain", &["--edits", &off]), run("I like Spain", &[]));

    // What can't be used is said, and the good file stays.
    let says = fails(&[&swap, ["Peru", "--layers", "0"].as_slice()].concat());
    assert!(says.contains("layer 0 has no rows") && says.contains("[1, 2]"), "{says}");
    assert!(fails(&[&swap, ["Peru", "--strength", "9"].as_slice()].concat()).contains("strength 9"));
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
    let other = path("other");
    prints(&["random", "--out", &other, "--seed", "1"]);
    let generate = ["generate", "--prompt", "a", "--edits", &file, "--bundle"];
    assert!(fails(&[generate.as_slice(), &[&other]].concat()).contains("made for the model"));
    fs::write(&off, "{}").unwrap();
    let says = fails(&["generate", "--bundle", &bundle, "--prompt", "a", "--edits", &off]);
    assert!(says.contains("off.json") && says.contains("not a file of edits"), "{says}");
    assert!(!Path::new(&format!("{file}.partial")).exists());
}

#[test]
fn files_are_put_together_and_switched() {
    let (dir, bundle) = random_bundle();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (one, other, all) = (path("one.json"), path("other.json"), path("all.json"));
    for (file, with) in [(&one, "Italy"), (&other, "Peru")] {
        let swap = ["edit", "swap", "--bundle", &bundle, "--subject", "Spain", "--with", with, "--out", file];
        prints(&[&swap, ["--at-start"].as_slice()].concat());
    }
    let apply = ["edit", "apply", "--bundle", &bundle, "--edits", &one, "--edits", &other];
    let list = |more: &[&str]| {
        prints(&[&apply, ["--out", &all].as_slice(), more].concat());
        let list = reads(&["edit", "list", "--edits", &all, "--json"]);
        let list = list.as_array().unwrap().clone();
        list.iter().map(|e| (e["label"].clone(), e["on"] == true, e["strength"].clone())).collect::<Vec<_>>()
    };
    let whole = list(&[]);
    assert_eq!(whole.iter().filter(|(label, on, _)| label == "Spain as Peru" && *on).count(), 1);
    assert_eq!((whole.len(), &whole[1].0), (4, &json!("Spain as Italy")));
    let on: Vec<bool> = list(&["--off", "all", "--on", "2"]).iter().map(|e| e.1).collect();
    assert_eq!(on, [false, true, false, false]);
    let rest = list(&["--remove", "1,2", "--strength", "0.5"]);
    assert_eq!(rest[1], (json!("Spain as Peru"), true, json!(0.5)));
    assert_eq!(rest.len(), 2);
    // Without a file to write they are checked and shown.
    let shown = prints(&apply);
    assert!(shown.contains("  4 on  Spain as Peru") && !shown.contains("Wrote"), "{shown}");

    let run = |edits: &[&str]| {
        let text = ["generate", "--bundle", &bundle, "--prompt", "I like Spain", "--temperature", "0"];
        reads(&[&text, ["--max-tokens", "20", "--json"].as_slice(), edits].concat())["tokens"].clone()
    };
    list(&["--off", "3,4"]);
    assert_eq!(run(&["--edits", &all]), run(&["--edits", &one]));
    assert_ne!(run(&["--edits", &all]), run(&[]));

    let says = |more: &[&str]| fails(&[apply.as_slice(), more].concat());
    assert!(says(&["--off", "5"]).contains("there is no edit 5; the files have 4"));
    assert!(says(&["--strength", "9"]).contains("strength 9"));
    let another = path("another");
    prints(&["random", "--out", &another, "--seed", "1"]);
    let says = fails(&["edit", "apply", "--bundle", &another, "--edits", &one]);
    assert!(says.contains("one.json") && says.contains("made for the model"), "{says}");
}

#[test]
fn a_gallery_says_what_it_tried() {
    let (dir, bundle) = random_bundle();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (data, out) = (path("facts.jsonl"), path("gallery.json"));
    // What the model says of each by itself is a fact to it; its answers in a chat are its own too.
    let ask = |subject: &str, chat: bool| {
        let prompt = if chat { format!("What of {subject}?") } else { format!("Of {subject} it is") };
        let text = ["generate", "--bundle", &bundle, "--prompt", &prompt, "--temperature", "0", "--json"];
        let more: &[&str] = if chat { &["--chat", "--max-tokens", "32"] } else { &["--max-tokens", "1"] };
        reads(&[&text, more].concat())["text"].as_str().unwrap().to_owned()
    };
    let row = |subject: &str, target: &str| {
        json!({
            "relation": "r", "subject": subject, "subject_new": "x", "prompt": format!("Of {subject} it is"),
            "paraphrase_prompts": [format!("Q: What of {subject}?\nA:")], "target_true": target,
            "target_new": " x", "locality_prompts": [],
        })
        .to_string()
    };
    let names =
        ["Spain", "Peru", "Chad", "Italy", "Togo", "Cuba", "Mali", "Oman", "Iran", "Fiji", "Laos", "Iraq"];
    let rows: Vec<String> = names.iter().map(|name| row(name, &ask(name, false))).collect();
    fs::write(&data, rows.join("\n")).unwrap();
    let known = names.iter().filter(|name| {
        let target = ask(name, false).to_lowercase();
        !target.trim().is_empty() && ask(name, true).to_lowercase().contains(target.trim())
    });
    let known: Vec<&&str> = known.collect();
    let command = ["edit", "gallery", "--bundle", &bundle, "--data", &data, "--out", &out];
    let answers: std::collections::BTreeSet<String> = known.iter().map(|n| ask(n, false)).collect();
    assert!(answers.len() > 1, "facts to exchange: {answers:?}");
    prints(&command);
    let gallery: serde_json::Value = serde_json::from_str(&fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!((&gallery["asked"], &gallery["known"]), (&json!(names.len()), &json!(known.len())));
    assert!(gallery["tried"].as_u64() >= gallery["worked"].as_u64());
    assert_eq!(gallery["worked"] == gallery["tried"], gallery["fails"].is_null());
    fs::write(&data, &rows[0]).unwrap();
    assert!(fails(&command).contains("no two entities"));
}

#[test]
fn the_suite_measures_swaps() {
    let (dir, bundle) = random_bundle();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let data = path("edits.jsonl");
    let row = |subject: &str, new: &str| {
        json!({
            "relation": "capitals", "subject": subject, "subject_new": new, "prompt": format!("Of {subject} it is"),
            "paraphrase_prompts": [format!("{subject} has")], "target_true": " one", "target_new": " two",
            "locality_prompts": [{"prompt": "Of Chad it is", "target": " four"}],
            "generation_prompts": [format!("I like {subject}.")],
        })
        .to_string()
    };
    fs::write(&data, [row("Spain", "Peru"), row("Peru", "Spain")].join("\n")).unwrap();
    let eval = ["eval", "--bundle", &bundle, "--suite", "edits", "--data", &data];
    let report = reads(&[&eval, ["--json", "--layers", "2"].as_slice()].concat());
    let swap = &report["swap"];
    assert_eq!(
        (&swap["n"], &swap["layers"], &swap["several_tokens"]["n"]),
        (&json!(2), &json!([2]), &json!(2))
    );
    for key in ["es", "ps", "ns", "s", "exact"] {
        let share = swap[key].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&share), "{key}: {swap}");
        assert!(swap["relations"]["capitals"][key].is_number());
    }
    assert!(swap["kl_unrelated"].as_f64().unwrap() > 0.0, "every text has these bytes: {swap}");
    assert!(report.get("teach").is_none());
    // At strength 0 nothing moves.
    let none = &reads(&[&eval, ["--json", "--strength", "0"].as_slice()].concat())["swap"];
    assert_eq!((&none["kl_unrelated"], &none["kl_subject"]), (&json!(0.0), &json!(0.0)));
    assert_eq!(none["ns"], none["ns_unedited"]);
    assert!(swap["kl_subject"].as_f64().unwrap() > 0.0);
    assert!(prints(&eval).contains("swap.relations.capitals.es"));

    // A row of the grid for each strength, each method, and the first and the last layers.
    let grid =
        ["--json", "--limit", "1", "--alphas", "0,0.5", "--methods", "average", "--layer-counts", "1,2"];
    let report = reads(&[eval.as_slice(), &grid].concat());
    let grid: Vec<_> = report["grid"].as_array().unwrap().iter().collect();
    let settings: Vec<_> = grid
        .iter()
        .map(|m| (m["strength"].as_f64().unwrap(), m["method"].clone(), m["layers"].clone()))
        .collect();
    let (none, both) = (json!(null), json!([1, 2]));
    assert_eq!(
        settings,
        [
            (0.0, none.clone(), both.clone()),
            (0.5, none.clone(), both.clone()),
            (1.0, json!("average"), both.clone()),
            (1.0, none.clone(), json!([1])),
            (1.0, none.clone(), json!([2])),
            (1.0, none, both),
        ]
    );
    assert_eq!((&grid[0]["kl_unrelated"], &report["swap"]["es"]), (&json!(0.0), &grid[5]["es"]));
    assert!(report["model"].is_string());
    assert!(fails(&[eval.as_slice(), &["--layer-counts", "3"]].concat()).contains("2 STEM layers"));

    let report = reads(&[&eval, ["--json", "--by", "teach", "--steps", "3"].as_slice()].concat());
    assert_eq!((&report["teach"]["n"], report.get("swap")), (&json!(2), None));
    assert!(report["teach"]["kl_unrelated"].as_f64().unwrap() >= 0.0);

    fs::write(&data, row("Spain", "Peru").replace("Of Spain", "Of it")).unwrap();
    assert!(fails(&eval).contains("does not name its subject"));
}

#[test]
fn the_command_teaches() {
    let (dir, bundle) = random_bundle();
    let file = dir.path().join("edits.json").display().to_string();
    let teach = ["edit", "teach", "--bundle", &bundle, "--subject", "Spain", "--out", &file, "--steps", "6"];
    let lesson = ["--prompt", "I think Spain is", "--answer", "ab"];
    // Both spellings, though the prompt has but one.
    let said = prints(&[teach.as_slice(), &lesson].concat());
    assert!(said.contains("6 steps") && said.contains("2 edits") && said.contains("own rows 0"), "{said}");
    let run = |edits: &[&str]| {
        let text = ["generate", "--bundle", &bundle, "--prompt", "I think Spain is", "--temperature", "0"];
        reads(&[&text, ["--max-tokens", "8", "--json"].as_slice(), edits].concat())["tokens"].clone()
    };
    assert_ne!(run(&["--edits", &file]), run(&[]));
    let says = fails(&[&teach, ["--prompt", "Peru is", "--answer", "ab"].as_slice()].concat());
    assert!(says.contains("does not name \"Spain\""), "{says}");
}
