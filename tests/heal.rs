//! Healing a small random checkpoint: what a run leaves, that it goes on where it was, and that its model is the one that
//! a bundle computes.
#![cfg(feature = "heal")]

#[path = "common/checkpoint.rs"]
mod checkpoint;
#[allow(dead_code, reason = "each test uses a part")]
mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use checkpoint::{FFN, HIDDEN, TYPES, VOCAB, checkpoint};
use common::{fails, prints, xylem};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as Type, TensorView, serialize};
use sha2::{Digest, Sha256};
use xylem::Error;
use xylem::backend::{Backend, Output, Step, Want};
use xylem::bundle::manifest::{Tensor, expected_tensors};
use xylem::bundle::quant::{Dtype, dequantize, quantize};
use xylem::convert::store::store;
use xylem::convert::{Base, Changes, Precision, Progress, Recipe};
use xylem::cpu::CpuBackend;
use xylem::engram::Hasher;
use xylem::heal::checkpoint::{Position, folder};
use xylem::heal::{Entry, Hardware, Listener, Outcome, Settings, Trainer};

const TOKENS: [u32; 12] = [5, 250, 17, 17, 99, 260, 3, 128, 44, 201, 0, 77];
/// Features of a token.
const R: usize = 6;

/// A folder with a checkpoint, data and settings.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        checkpoint(&dir.path().join("tiny.gguf"), TYPES[0], true, 3);
        let line = |d: u32| {
            let ids: Vec<u32> = (0..20).map(|i| (i * i * (d + 3) + d * 7) % 256).collect();
            serde_json::json!({"ids": ids}).to_string()
        };
        let text: Vec<String> = (0..40).map(line).collect();
        fs::write(dir.path().join("text.jsonl"), text.join("\n") + "\n").unwrap();
        // Bytes are tokens: names of one and of two.
        let mut facts = String::new();
        for (name, n) in [("a", 1), ("b", 2), ("cd", 3)] {
            for statement in 0..4 {
                let text = format!("{n}{statement} of {name} is {n}");
                let fact = serde_json::json!({"text": text, "prompt": 4, "kind": "letter", "name": name});
                facts += &format!("{fact}\n");
            }
        }
        fs::write(dir.path().join("facts.jsonl"), facts).unwrap();
        fs::write(
            dir.path().join("calibration.txt"),
            "one two three four five\n<|endoftext|>\nsix seven eight",
        )
        .unwrap();
        let place = Self { dir };
        place.settings(6);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes settings for so many steps.
    fn settings(&self, steps: u64) {
        let text = format!(
            "name = \"tiny\"
[run]
steps = {steps}
[student]
stem_layers = [0]
calibration = \"calibration.txt\"
residual_rows = 50
qkv_rank = 4
output_rank = 3
gate_rank = 4
ffn_rank = 3
[engram]
layers = [1]
tables = [50, 90]
heads = 1
head_width = 16
[rates]
core = 1e-2
rows = 1e-2
engram = 1e-2
engram_tables = 3e-2
[optimiser]
warm_up = 2
clip = 5.0
[[batch]]
rows = 2
length = 24
[[batch.source]]
file = \"text.jsonl\"
cross_entropy = 0.1
[[batch]]
rows = 2
length = 32
[[batch.source]]
name = \"swap\"
file = \"facts.jsonl\"
swap = [[\"letter\"]]
[[batch.source]]
file = \"facts.jsonl\"
[[held]]
name = \"text\"
file = \"text.jsonl\"
rows = 4
length = 24
"
        );
        fs::write(self.path("heal.toml"), text).unwrap();
    }

    fn base(&self) -> Base {
        Base::open(self.path("tiny.gguf")).unwrap()
    }

    fn trainer<'a>(&self, base: &'a Base, out: &str, init: Option<&Path>) -> xylem::Result<Trainer<'a>> {
        self.trainer_on(&Hardware::cpu(), base, out, init)
    }

    fn trainer_on<'a>(
        &self,
        hardware: &Hardware,
        base: &'a Base,
        out: &str,
        init: Option<&Path>,
    ) -> xylem::Result<Trainer<'a>> {
        let mut settings = Settings::read(&self.path("heal.toml"))?;
        settings.init = init.map(Path::to_owned);
        let calibration = || Ok(vec![(0..200).map(|i| (i * i * 7 + i / 3) % 256).collect()]);
        Trainer::new(base, settings, &self.path(out), hardware, &calibration, &())
    }

    /// The folder of the recipe that a run of so many steps ends with.
    fn recipe(&self, base: &Base, out: &str, init: Option<&Path>, steps: u64) -> PathBuf {
        self.settings(steps);
        run(&mut self.trainer(base, out, init).unwrap(), None).0.recipe.unwrap()
    }
}

/// Stops after so many steps, and keeps the entries.
#[derive(Default)]
struct Watch {
    stop_after: Option<u64>,
    stop: AtomicBool,
    entries: Mutex<Vec<Entry>>,
}

impl Progress for Watch {
    fn update(&self, _stage: &'static str, _done: u64, _total: u64) -> xylem::Result<()> {
        Ok(())
    }
}

impl Listener for Watch {
    fn step(&self, position: &Position, _done: f64, left: f64) {
        assert!(left.is_finite());
        if Some(position.step) == self.stop_after {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn entry(&self, entry: &Entry) {
        self.entries.lock().unwrap().push(entry.clone());
    }
}

fn run(trainer: &mut Trainer<'_>, stop_after: Option<u64>) -> (Outcome, Vec<Entry>) {
    let watch = Watch { stop_after, ..Watch::default() };
    let outcome = trainer.run(&watch.stop, &watch).unwrap();
    (outcome, watch.entries.into_inner().unwrap())
}

#[test]
fn a_chat_template_that_is_none_matters_only_to_who_asks() {
    let place = Place::new();
    let mut base = place.base();
    base.set_chat_template(Some("{% if %}".into()));
    place.trainer(&base, "a", None).unwrap();
    let titled = "{\"ids\": [5, 6, 7, 8], \"title\": \"x\"}\n";
    fs::write(place.path("titled.jsonl"), titled).unwrap();
    let settings = fs::read_to_string(place.path("heal.toml")).unwrap();
    let asks = "file = \"titled.jsonl\"\nask = [\"What is {title}?\"]\n";
    fs::write(place.path("heal.toml"), settings.replacen("file = \"text.jsonl\"\n", asks, 1)).unwrap();
    let reason = place.trainer(&base, "b", None).err().unwrap().to_string();
    assert!(reason.contains("can't be used") && reason.contains("leave `ask` out"), "{reason}");
    base.set_chat_template(None);
    let reason = place.trainer(&base, "b", None).err().unwrap().to_string();
    assert!(reason.contains("no chat template"), "{reason}");
}

/// The logits of a recipe's model, by the CPU backend, nothing rounded but what a bundle stores in four bits.
fn logits(base: &Base, recipe: &Recipe<'_>) -> Vec<f32> {
    let c = recipe.config();
    let mut offset = 0;
    let tensors: Vec<Tensor> = expected_tensors(c)
        .into_iter()
        .map(|(name, shape)| {
            let tensor = Tensor { name, dtype: Dtype::F32, shape, offset };
            offset += tensor.bytes() as u64;
            tensor
        })
        .collect();
    let mut backend = CpuBackend::new(&tensors, c, 64);
    for (id, tensor) in tensors.iter().enumerate() {
        let values = match recipe.tensor(&tensor.name).unwrap() {
            None => base.tensor(&tensor.name).unwrap(),
            Some(values) => {
                let (name, trained) = (&tensor.name, recipe.storage(&tensor.name));
                let (dtype, planes) = store(name, &values, c, Precision::Keep, trained);
                if dtype == Dtype::Q4 { expanded(&planes, values.len()) } else { values }
            }
        };
        backend.write(id, 0, &quantize(Dtype::F32, &values)).unwrap();
    }
    let mut stem = vec![0f32; TOKENS.len() * c.stem_width()];
    recipe.rows(&TOKENS, &mut stem).unwrap();
    let hasher = Hasher::new(c.engram.as_ref().unwrap(), recipe.compressed().unwrap().ids.clone()).unwrap();
    let records = hasher.records(&[], &TOKENS).unwrap();
    let mut rows = Vec::new();
    for (stem, records) in stem.chunks(c.stem_width()).zip(records.chunks(records.len() / TOKENS.len())) {
        rows.extend(stem);
        records.iter().for_each(|record| rows.extend(recipe.engram_row(*record)));
    }
    let step = Step { tokens: &TOKENS, position: 0, rows: &rows, want: Want::Logits };
    match pollster::block_on(backend.forward(step)).unwrap() {
        Output::Logits(logits) => logits,
        other => panic!("{other:?}"),
    }
}

/// Weights that are stored in four bits.
fn expanded(planes: &[u8], count: usize) -> Vec<f32> {
    let (quants, scales) = planes.split_at(Dtype::Q4.planes(count)[0]);
    let mut values = vec![0f32; count];
    dequantize(Dtype::Q4, quants, scales, 0, &mut values);
    values
}

/// The largest difference, as a share of the largest value.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0f32, |m, v| m.max(v.abs()));
    largest(&mut found.iter().zip(expected).map(|(f, e)| f - e)) / largest(&mut expected.iter().copied())
}

#[test]
fn a_run_lowers_the_loss_and_its_recipe_is_the_model_it_trained() {
    let place = Place::new();
    let base = place.base();
    // Steps are small at these rates: six lower the divergence by some hundredths only.
    place.settings(60);
    let mut first = place.trainer(&base, "first", None).unwrap();
    let (outcome, entries) = run(&mut first, None);
    assert_eq!((outcome.position.step, outcome.stopped), (60, false));
    assert_eq!(outcome.position.tokens, 60 * (2 * 24 + 2 * 32));
    let kl: Vec<f64> = entries.iter().map(|e| e.held["text"].kl).collect();
    assert!(kl.last() < kl.first().map(|kl| 0.9 * kl).as_ref(), "{kl:?}");
    assert_eq!(xylem::heal::train::entries(&place.path("first")).unwrap(), entries);
    assert!(entries.last().unwrap().losses.contains_key("text"));

    // What was trained, up to rounding; then what the recipe says, exactly.
    let dir = outcome.recipe.unwrap();
    let recipe = Recipe::open(&dir, &base).unwrap();
    assert_eq!((recipe.head().name.as_str(), recipe.config().stem_layers.as_slice()), ("tiny", &[0][..]));
    for part in ["ffn_gate", "ffn_up", "ffn_down"] {
        assert!(recipe.matrix(&format!("blk.1.{part}.lora_b")).unwrap().width == 3, "{part}");
    }
    assert!(recipe.config().engram.is_some() && !recipe.hot().is_empty());
    let expected = logits(&base, &recipe);
    let trained = first.logits(&TOKENS).unwrap();
    let error = difference(&trained, &expected);
    assert!(error < 3e-2, "{error}");
    place.settings(0);
    let mut second = place.trainer(&base, "second", Some(&dir)).unwrap();
    let found = second.logits(&TOKENS).unwrap();
    let error = difference(&found, &expected);
    assert!(error < 1e-5, "{error}");

    // Written again without a step it is the same recipe, up to another rounding of its factors.
    let (outcome, _) = run(&mut second, None);
    let again = Recipe::open(&outcome.recipe.unwrap(), &base).unwrap();
    assert_eq!(again.config(), recipe.config());
    assert_eq!(again.hot(), recipe.hot());
    for (name, _) in expected_tensors(recipe.config()) {
        let (a, b) = (recipe.tensor(&name).unwrap(), again.tensor(&name).unwrap());
        assert_eq!(a.is_some(), b.is_some(), "{name}");
        if let (Some(a), Some(b)) = (a, b) {
            let error = difference(&b, &a);
            // Layer 1 is dense: its whole FFN changes in low rank.
            let low_rank = name.contains("attn_")
                || name.contains("gate")
                || ["blk.1.ffn_up", "blk.1.ffn_down"].contains(&name.as_str());
            assert!(error < if low_rank { 1e-2 } else { 1e-3 }, "{name}: {error}");
        }
    }
    let all: Vec<u32> = (0..VOCAB as u32).collect();
    let rows = |recipe: &Recipe<'_>| {
        let mut rows = vec![0f32; VOCAB * recipe.config().stem_width()];
        recipe.rows(&all, &mut rows).unwrap();
        rows
    };
    assert!(difference(&rows(&again), &rows(&recipe)) < 1e-3);
    let records = recipe.config().engram.as_ref().unwrap().records() as u32;
    for record in 0..records {
        let (a, b) = (recipe.engram_row(record), again.engram_row(record));
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3 * a.abs().max(1e-3)), "{record}");
    }
    // Something was learned in the table.
    assert!((0..records).any(|record| recipe.engram_row(record).iter().any(|v| v.abs() > 1e-3)));
}

#[test]
fn a_stopped_run_goes_on_as_if_it_had_not_been() {
    let place = Place::new();
    let base = place.base();
    run(&mut place.trainer(&base, "whole", None).unwrap(), None);
    let (outcome, _) = run(&mut place.trainer(&base, "parts", None).unwrap(), Some(3));
    assert_eq!((outcome.position.step, outcome.stopped, outcome.recipe), (3, true, None));
    let mut rest = place.trainer(&base, "parts", None).unwrap();
    assert_eq!(rest.position().step, 3);
    run(&mut rest, None);
    let parts = |run: &str| parts(&folder(&place.path(run)));
    assert!(!parts("whole").is_empty());
    assert!(parts("whole") == parts("parts"), "parameters or means differ");
}

#[cfg(feature = "heal-gpu")]
#[test]
fn a_run_on_a_gpu_is_that_on_the_cpu_and_goes_on_where_it_was() {
    let (gpu, _) = xylem::heal::device::adapter().unwrap().expect("this test needs a GPU, be it in software");
    let place = Place::new();
    let base = place.base();
    let (_, expected) = run(&mut place.trainer(&base, "cpu", None).unwrap(), None);
    let trainer = |out: &str| place.trainer_on(&gpu, &base, out, None).unwrap();
    let (_, whole) = run(&mut trainer("whole"), None);
    run(&mut trainer("parts"), Some(3));
    let mut rest = trainer("parts");
    assert_eq!(rest.position().step, 3);
    let (outcome, parts) = run(&mut rest, None);
    Recipe::open(&outcome.recipe.unwrap(), &base).unwrap();
    for (last, device) in [(&expected, "CPU"), (&whole, &gpu.name), (&parts, &gpu.name)] {
        let (found, expected) = (last.last().unwrap(), expected.last().unwrap());
        assert_eq!((found.step, found.tokens, found.device.as_str()), (6, expected.tokens, device));
        let (a, b) = (found.held["text"], expected.held["text"]);
        assert!((a.kl - b.kl).abs() < 1e-3 && (a.base_nll - b.base_nll).abs() < 1e-3, "{a:?} {b:?}");
        for (name, loss) in &expected.losses {
            assert!((found.losses[name] - loss).abs() < 1e-3, "{name}: {} for {loss}", found.losses[name]);
        }
    }
    // What begins on one goes on on the other.
    run(&mut place.trainer(&base, "both", None).unwrap(), Some(3));
    assert_eq!(trainer("both").position().step, 3);
}

/// The safetensors files in `dir`.
fn parts(dir: &Path) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for number in 0.. {
        let Ok(bytes) = fs::read(dir.join(format!("part-{number}.safetensors"))) else { break };
        assert!(bytes.len() <= 16_000_000);
        all.push(bytes);
    }
    all
}

/// Gives the recipe in `dir`, which has one file, `R` features of each token, changes of its dense FFN, in which gate and up
/// share a factor, and types of storage; and with `gate` the STEM layer's gate in full, in four bits.
fn extend(dir: &Path, gate: bool) {
    let file = fs::read(dir.join("part-0.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&file).unwrap();
    let bytes = |name: &str, rows: usize, width: usize| -> Vec<u8> {
        let values = xylem::bundle::random::weights(name, &[rows, width], 7);
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    };
    let (map, features) = (bytes("map", FFN, HIDDEN + R), bytes("features", VOCAB, R));
    let changes = [
        ("ffn_gate.lora_a", "in", [R, HIDDEN]),
        ("ffn_up.lora_a", "in", [R, HIDDEN]),
        ("ffn_gate.lora_b", "gate", [FFN, R]),
        ("ffn_up.lora_b", "up", [FFN, R]),
        ("ffn_down.lora_a", "act", [R, FFN]),
        ("ffn_down.lora_b", "down", [HIDDEN, R]),
    ];
    let changes = changes.map(|(name, from, [rows, width])| (name, [rows, width], bytes(from, rows, width)));
    let view = |shape: [usize; 2], bytes| TensorView::new(Type::F32, shape.into(), bytes).unwrap();
    let mut all: Vec<_> = stored.tensors();
    let replaced = |name: &str| {
        name.starts_with("blk.0.stem_map")
            || changes.iter().any(|(part, ..)| name.contains(&format!("blk.1.{part}")))
    };
    all.retain(|(name, _)| !replaced(name));
    all.extend(changes.iter().map(|(name, shape, bytes)| (format!("blk.1.{name}"), view(*shape, bytes))));
    all.push(("blk.0.stem_map".into(), view([FFN, HIDDEN + R], &map)));
    all.push(("stem_embd".into(), view([VOCAB, R], &features)));
    let quants: Vec<u8> = bytes("quants", FFN, HIDDEN / 8);
    let half = |value: f32| half::f16::from_f32(value).to_le_bytes().repeat(FFN * HIDDEN / 32);
    let (scales, minima) = (half(0.011), half(-0.083));
    if gate {
        let name = "blk.0.ffn_gate.weight";
        let view = |dtype, width, bytes| TensorView::new(dtype, vec![FFN, width], bytes).unwrap();
        all.push((name.into(), view(Type::U8, HIDDEN / 2, &quants)));
        all.push((format!("{name}.scale"), view(Type::F16, HIDDEN / 32, &scales)));
        all.push((format!("{name}.least"), view(Type::F16, HIDDEN / 32, &minima)));
    }
    let new = serialize(all, None).unwrap();
    fs::write(dir.join("part-0.safetensors"), &new).unwrap();
    let path = dir.join("recipe.json");
    let mut head: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(head["files"].as_array().unwrap().len(), 1);
    let sha256: String = Sha256::digest(&new).iter().map(|b| format!("{b:02x}")).collect();
    head["files"][0]["bytes"] = new.len().into();
    head["files"][0]["sha256"] = sha256.into();
    head["storage"] = serde_json::json!({"ffn_gate": "q4", "ffn_down": "q4", "attn_qkv": "q4"});
    fs::write(path, head.to_string()).unwrap();
}

#[test]
fn a_run_goes_on_from_features_and_dense_ffns_rounded_as_they_are_stored() {
    let place = Place::new();
    let base = place.base();
    let dir = place.recipe(&base, "first", None, 0);
    extend(&dir, false);
    let recipe = Recipe::open(&dir, &base).unwrap();
    assert_eq!(recipe.head().storage["ffn_down"], Dtype::Q4);

    // It begins as the recipe says.
    place.settings(4);
    let mut whole = place.trainer(&base, "whole", Some(&dir)).unwrap();
    let error = difference(&whole.logits(&TOKENS).unwrap(), &logits(&base, &recipe));
    assert!(error < 1e-5, "{error}");
    let (outcome, _) = run(&mut whole, None);
    let recipe_after = outcome.recipe.unwrap();
    let trained = Recipe::open(&recipe_after, &base).unwrap();
    assert_eq!(trained.head().storage, recipe.head().storage);
    let features = |recipe: &Recipe<'_>| recipe.matrix("stem_embd").unwrap().clone();
    let (old, new) = (features(&recipe), features(&trained));
    assert_eq!((new.rows, new.width), (VOCAB, R));
    assert!(difference(&new.values, &old.values) > 1e-2, "features weren't trained");
    for part in ["ffn_gate", "ffn_up", "ffn_down"] {
        let name = format!("blk.1.{part}");
        let change = |recipe: &Recipe<'_>| recipe.tensor(&name).unwrap().unwrap();
        let error = difference(&change(&trained), &change(&recipe));
        assert!(error > 1e-2, "{name} wasn't trained: {error}");
    }
    // Factors in eight bits move some weights to the next of their sixteen levels; from what they say all is exact.
    let error = difference(&whole.logits(&TOKENS).unwrap(), &logits(&base, &trained));
    assert!(error < 0.3, "{error}");
    let again = place.trainer(&base, "again", Some(&recipe_after)).unwrap();
    let error = difference(&again.logits(&TOKENS).unwrap(), &logits(&base, &trained));
    assert!(error < 1e-5, "{error}");

    // A stopped run goes on with them.
    run(&mut place.trainer(&base, "parts", Some(&dir)).unwrap(), Some(2));
    let mut rest = place.trainer(&base, "parts", Some(&dir)).unwrap();
    assert_eq!(rest.position().step, 2);
    let (outcome, _) = run(&mut rest, None);
    assert!(parts(&outcome.recipe.unwrap()) == parts(&place.path("whole/recipe")), "recipes differ");
    // Not without them, and not for another storage.
    let says = |init: Option<&Path>| place.trainer(&base, "parts", init).err().unwrap().to_string();
    assert!(says(None).contains("another student"));
    let path = dir.join("recipe.json");
    let head = fs::read_to_string(&path).unwrap().replace("attn_qkv", "attn_output");
    fs::write(&path, head).unwrap();
    assert!(says(Some(&dir)).contains("another student"));
}

#[test]
fn whole_gates_in_four_bits_stay_bit_for_bit() {
    let place = Place::new();
    let base = place.base();
    let dir = place.recipe(&base, "first", None, 0);
    extend(&dir, true);
    let recipe = Recipe::open(&dir, &base).unwrap();
    let gate = |recipe: &Recipe<'_>| recipe.matrix("blk.0.ffn_gate.weight").unwrap().clone();
    let rewritten = |name: &str, dir: &Path| {
        place.settings(0);
        let mut trainer = place.trainer(&base, name, Some(dir)).unwrap();
        let before = Recipe::open(dir, &base).unwrap();
        let error = difference(&trainer.logits(&TOKENS).unwrap(), &logits(&base, &before));
        assert!(error < 1e-5, "{error}");
        run(&mut trainer, None).0.recipe.unwrap()
    };
    // Written without a step, and trained, and written again.
    let same = Recipe::open(&rewritten("same", &dir), &base).unwrap();
    assert_eq!(gate(&same), gate(&recipe));
    assert!(same.matrix("blk.0.ffn_gate.lora_a").is_none());
    let dir = place.recipe(&base, "trained", Some(&dir), 4);
    let trained = Recipe::open(&dir, &base).unwrap();
    assert!(difference(&gate(&trained).values, &gate(&recipe).values) > 1e-3, "the gate wasn't trained");
    let again = Recipe::open(&rewritten("again", &dir), &base).unwrap();
    for name in ["blk.0.ffn_gate.weight", "blk.0.ffn_down.weight"] {
        let matrix = |recipe: &Recipe<'_>| recipe.matrix(name).unwrap().clone();
        assert_eq!(matrix(&again), matrix(&trained), "{name}");
        // So does a bundle hold it.
        let name = name.trim_end_matches(".weight");
        let values = matrix(&trained).values;
        let kind = Changes::storage(&trained, name);
        let (dtype, planes) = store(name, &values, trained.config(), Precision::Keep, kind);
        assert!(dtype == Dtype::Q4 && expanded(&planes, values.len()) == values, "{name}");
    }
    let files = parts(&dir);
    let stored = SafeTensors::deserialize(&files[0]).unwrap();
    assert_eq!(stored.tensor("blk.0.ffn_down.weight").unwrap().dtype(), Type::U8);
    assert_eq!(stored.tensor("blk.0.stem_map").unwrap().dtype(), Type::I8);

    // A gate isn't trained both ways.
    let dir = place.recipe(&base, "both", None, 2);
    extend(&dir, true);
    assert!(Recipe::open(&dir, &base).unwrap().matrix("blk.0.ffn_gate.lora_a").is_some());
    let says = place.trainer(&base, "new", Some(&dir)).err().unwrap().to_string();
    assert!(says.contains("`blk.0.ffn_gate.lora_a`") && says.contains("whole or in low rank"), "{says}");
}

#[test]
fn what_does_not_fit_is_named() {
    let place = Place::new();
    let base = place.base();
    let says = |place: &Place, out: &str, init: Option<&Path>| {
        let error = place.trainer(&base, out, init).err().unwrap();
        assert!(matches!(error, Error::Invalid { .. } | Error::Io { .. }), "{error:?}");
        error.to_string()
    };
    // A checkpoint of another student.
    run(&mut place.trainer(&base, "run", None).unwrap(), Some(1));
    let settings = fs::read_to_string(place.path("heal.toml")).unwrap();
    let change = |old: &str, new: &str| {
        assert!(settings.contains(old));
        fs::write(place.path("heal.toml"), settings.replace(old, new)).unwrap();
    };
    change("residual_rows = 50", "residual_rows = 40");
    assert!(says(&place, "run", None).contains("another student"));
    change("gate_rank = 4", "gate_rank = 5");
    assert!(says(&place, "run", None).contains("the settings make it"));
    // Settings that don't fit the model.
    change("length = 24", "length = 65");
    assert!(says(&place, "new", None).contains("context of 64"));
    change("stem_layers = [0]", "stem_layers = [2]");
    assert!(says(&place, "new", None).contains("stem_layers = [2]"));
    change("head_width = 16", "head_width = 15");
    assert!(says(&place, "new", None).contains("head_width"));
    change("text.jsonl", "texts.jsonl");
    assert!(says(&place, "new", None).contains("texts.jsonl"));
    change("[[\"letter\"]]", "[[\"number\"]]");
    assert!(says(&place, "new", None).contains("number"));
    change("name = \"tiny\"", "name = \"tiny\"");
    assert!(says(&place, "new", Some(&place.path("nowhere"))).contains("recipe.json"));
    // A recipe of another base.
    let outcome = run(&mut place.trainer(&base, "run", None).unwrap(), None).0;
    checkpoint(&place.path("other.gguf"), TYPES[0], true, 4);
    let other = Base::open(place.path("other.gguf")).unwrap();
    let error = place.trainer(&other, "new", outcome.recipe.as_deref()).err().unwrap().to_string();
    assert!(error.contains("belongs to tiny"), "{error}");
}

/// Sixteen letters with a number each, told as they are and turned; the rows are of the layer below the last one, where
/// attention can still carry them to an answer.
fn facts(place: &Place, steps: u64) {
    let facts: Vec<String> = ('a'..='p')
        .zip(10..)
        .map(|(name, n)| format!("\"{name}\": {{\"number\": \"{}\"}}", n * 7 % 100))
        .collect();
    let statements = r#"{"number": ["of {X} is", "{X} has"]}"#;
    let text = format!("{{\"statements\": {statements}, \"facts\": {{{}}}}}", facts.join(", "));
    fs::write(place.path("numbers.json"), text).unwrap();
    let text = format!(
        "[run]
steps = {steps}
[student]
stem_layers = [0]
residual_rows = 8
qkv_rank = 16
output_rank = 16
gate_rank = 16
[rates]
core = 1e-2
rows = 3e-2
[optimiser]
warm_up = 5
clip = 5.0
[[batch]]
rows = 8
length = 32
[[batch.source]]
name = \"straight\"
file = \"numbers.json\"
facts = \"straight\"
[[batch]]
rows = 8
length = 32
[[batch.source]]
name = \"turned\"
file = \"numbers.json\"
facts = \"turned\"
weight = 0.7
"
    );
    fs::write(place.path("heal.toml"), text).unwrap();
}

#[test]
fn turned_facts_are_learned() {
    let place = Place::new();
    let base = place.base();
    facts(&place, 300);
    let mut trainer = place.trainer(&base, "run", None).unwrap();
    // Every token of a name has a row of its own, beside the most frequent ones.
    let letters = 'a'..='p';
    let tokenizer = xylem::text::Tokenizer::new(base.tokenizer_json(), None).unwrap();
    for letter in letters {
        let ids = tokenizer.encode_more(&format!(" {letter}")).unwrap();
        assert!(ids.iter().all(|id| trainer.start().tokens.contains(id)), "{letter}");
    }
    let (outcome, entries) = run(&mut trainer, None);
    let (first, last) = (&entries[0].turned, &entries.last().unwrap().turned);
    assert!(last["turned"].margin > first["turned"].margin + 2.0, "{first:?} {last:?}");
    assert!(last["turned"].likelier > 0.9, "{last:?}");
    // Two letters are never turned, which measures how far this carries.
    assert!(last.contains_key("turned held") && last["turned"].statements == 48);
    let losses = &entries.last().unwrap().losses;
    assert!(losses["straight"] < 1.0 && losses["turned"] < 1.0, "{losses:?}");
    // The recipe has the rows, and a run from it begins where this one ended.
    facts(&place, 0);
    let mut second = place.trainer(&base, "second", outcome.recipe.as_deref()).unwrap();
    assert_eq!(second.start().tokens, trainer.start().tokens);
    let (_, entries) = run(&mut second, None);
    assert!((entries[0].turned["turned"].margin - last["turned"].margin).abs() < 0.5, "{entries:?}");
}

#[test]
fn the_command_trains_and_convert_takes_its_recipe() {
    let place = Place::new();
    let [base, settings, out, bundle] =
        ["tiny.gguf", "heal.toml", "run", "bundle"].map(|name| place.text(name));
    let arguments = ["heal", "--base", &base, "--settings", &settings, "--out", &out];
    let said = prints(&[&arguments[..], &["--steps", "2"]].concat());
    assert!(said.contains("after 2 steps"), "{said}");
    let curve = fs::read_to_string(place.path("run/curve.svg")).unwrap();
    assert!(curve.contains("KL to the base"));
    // The same command has nothing left to do; more steps go on.
    assert!(prints(&[&arguments[..], &["--steps", "2"]].concat()).contains("after 2 steps"));
    let output = xylem(&[&arguments[..], &["--steps", "3"]].concat());
    assert!(String::from_utf8_lossy(&output.stderr).contains("Going on after step 2"));
    let recipe = place.text("run/recipe");
    prints(&["convert", "--base", &base, "--recipe", &recipe, "--out", &bundle]);
    assert!(prints(&["inspect", "--bundle", &bundle]).contains("STEM"));

    fs::write(place.path("heal.toml"), "[run]\nstep = 3\n").unwrap();
    let error = fails(&["heal", "--base", &base, "--settings", &settings, "--out", &out]);
    assert!(error.contains("heal.toml") && error.contains("step"), "{error}");
}
