//! A small random model: its gradients against finite differences, and its loss over a few steps.

use std::collections::BTreeMap;

use burn_tensor::Device;

use super::batch::{Compared, Job};
use super::data::Row;
use super::loss;
use super::optimiser::{self, Parameters};
use super::rounding::factors;
use super::settings::{Optimiser, Rates};
use super::start::Start;
use super::student::{Model, Tensors, Texts, download, indices, upload};
use super::train::gradients;
use crate::bundle::manifest::expected_tensors;
use crate::bundle::quant::{Dtype, dequantize, quantize};
use crate::bundle::random::weights;
use crate::config::Config;
use crate::config::tests::tiny;
use crate::convert::recipe::{Matrix, add_product};
use crate::engram::compress::Compressed;
use crate::engram::config::tests::tiny_engram;

/// Three layers: Engram in the first two, STEM in the second.
fn config() -> Config {
    Config { engram: Some(tiny_engram()), ..tiny() }
}

/// Learned features of each token.
const FEATURES: usize = 5;

/// The matrices of FFNs.
const FFN: [&str; 3] = ["ffn_gate", "ffn_up", "ffn_down"];

/// A student whose every tensor is random and none is rounded, since the loss that is rounded has steps.
fn start() -> Start {
    let c = config();
    let (hidden, ffn, rank) = (c.hidden_size, c.intermediate_size, 4);
    let tokens: Vec<u32> = (0..40).map(|i| i * 7).collect();
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, rows: usize, width: usize, scale: f32| {
        // Gains are vectors, near 1.
        let shape = if name.ends_with("_norm") { vec![width] } else { vec![rows, width] };
        let values = weights(&name, &shape, 5).iter().map(|v| v * scale).collect();
        tensors.insert(name, Matrix { rows, width, values });
    };
    for layer in 0..c.n_layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let mut parts = vec![("attn_qkv", c.qkv_dim(), hidden), ("attn_output", hidden, c.q_dim())];
        add(name("attn_norm"), 1, hidden, 1.0);
        add(name("ffn_norm"), 1, hidden, 1.0);
        if c.stem_index(layer).is_some() {
            add(name("ffn_down"), hidden, ffn, 1.0);
            add(name("stem_map"), ffn, hidden + FEATURES, 1.0);
            add(name("stem_rows"), tokens.len(), ffn, 3.0);
        }
        parts.push(("ffn_gate", ffn, hidden));
        if c.stem_index(layer).is_none() {
            parts.extend([("ffn_up", ffn, hidden), ("ffn_down", hidden, ffn)]);
        }
        for (part, rows, width) in parts {
            add(format!("{}.lora_a", name(part)), rank, width, 1.0);
            add(format!("{}.lora_b", name(part)), rows, rank, 0.3);
        }
    }
    let engram = tiny_engram();
    for own in &engram.layers {
        let name = |part: &str| format!("blk.{}.engram_{part}", own.layer);
        for part in ["key", "value"] {
            add(name(part), hidden, engram.width(), 1.0);
        }
        for part in ["query_norm", "key_norm", "conv_norm"] {
            add(name(part), 1, hidden, 1.0);
        }
        add(name("conv"), engram.kernel, hidden, 2.0);
        let records = own.primes.iter().flatten().sum::<u32>() as usize;
        add(name("rows"), records, engram.head_width, 4.0);
    }
    add("output_norm".into(), 1, hidden, 1.0);
    add("stem_embd".into(), c.vocab_size, FEATURES, 1.0);
    let ids = (0..300).map(|t| t * 7 % 290).collect();
    let compressed = Some(Compressed { ids, count: 290 });
    Start { config: c, tokens, compressed, tensors, storage: storage(Dtype::F32) }
}

/// A student whose STEM layer has its gate whole.
fn whole_gate() -> Start {
    let mut start = start();
    let name = "blk.1.ffn_gate";
    factors(name).iter().for_each(|factor| drop(start.tensors.remove(factor)));
    let (rows, width) = (start.config.intermediate_size, start.config.hidden_size);
    let values = weights(name, &[rows, width], 5);
    start.tensors.insert(name.into(), Matrix { rows, width, values });
    start
}

/// All FFNs stored in one type.
fn storage(dtype: Dtype) -> BTreeMap<String, Dtype> {
    FFN.map(|part| (part.to_owned(), dtype)).into()
}

fn model(start: &Start, device: &Device) -> Model {
    Model::new(start, &|name| Ok(own(start, name)), device).unwrap()
}

/// The base's tensor `name`.
fn own(start: &Start, name: &str) -> Vec<f32> {
    let dense = Config { stem_layers: vec![], engram: None, ..start.config.clone() };
    let shapes: BTreeMap<_, _> = expected_tensors(&dense).into_iter().collect();
    weights(name, &shapes[name], 2)
}

/// The loss of a job, and its gradients in all that is trained.
fn both(model: &Model, parameters: &Parameters, job: &Job) -> (f64, Tensors) {
    let tensors = parameters.values();
    let multiplied = model.rounding().apply(tensors.clone()).unwrap();
    gradients(model, &tensors, &multiplied, job).unwrap()
}

/// Two such losses, and gradients that differ by no more than a `share` of a tensor's largest.
fn alike(found: &(f64, Tensors), expected: &(f64, Tensors), share: f32) {
    assert!((found.0 - expected.0).abs() < 1e-5, "{} for {}", found.0, expected.0);
    assert_eq!(found.1.len(), expected.1.len());
    for (name, expected) in &expected.1 {
        let (found, expected) = (download(&found.1[name]).unwrap(), download(expected).unwrap());
        let largest = expected.values.iter().fold(0f32, |m, v| m.max(v.abs()));
        let close = |(f, e): (&f32, &f32)| (f - e).abs() < share * largest + 1e-7;
        assert!(found.values.iter().zip(&expected.values).all(close), "{name}");
    }
}

/// Two texts, in which the student reads another token at one place, and the rows of a third one or the means of several at
/// others.
fn job() -> Job {
    let row = |seed: u32| Row {
        ids: (0..12).map(|i| (i * i * 31 + seed * 17) % 300).collect(),
        weights: (0..12).map(|i| if i < 2 { 0.25 } else { 1.0 }).collect(),
    };
    let mut job = Job::plain(&[row(1), row(2)], 12);
    job.read[5] = 77;
    job.looked_up[5] = job.told[5];
    job.looked_up[16] = 123;
    // The first of each has a residual row, some of the others have none.
    job.mixes = vec![vec![273, 200, 5], vec![266, 266]];
    job.looked_up[8] = 300;
    job.looked_up[19] = 301;
    job.looked_up[20] = 301;
    job.compared[5].exchange = [77, job.told[5]];
    job.cross_entropy = 0.3;
    job.weight = 0.7;
    job
}

/// The same texts, as facts whose answers are the last tokens of each.
fn taught() -> Job {
    let job = job();
    let compared = job.compared.iter().filter(|c| c.read % 12 > 8 && c.next.is_some()).copied();
    let compared = compared.map(|c| Compared { exchange: [0, 0], weight: 1.0, ..c }).collect();
    Job { compared, told: job.read.clone(), taught: true, cross_entropy: 1.0, ..job }
}

/// The weighted loss of a job.
fn loss_of(model: &Model, tensors: &Tensors, job: &Job) -> f64 {
    let device = model.device().clone();
    let at = |f: fn(&Compared) -> u32| indices(job.compared.iter().map(f), &device);
    let base = (!job.taught).then(|| {
        let base = model.shared(Texts::told(job));
        model.teacher(Texts::told(job), base).select(0, at(|c| c.told))
    });
    let stream = model.shared(Texts::read(job));
    let states = model.student(tensors, Texts::read(job), stream).unwrap().select(0, at(|c| c.read));
    let c = job.cross_entropy;
    let sums = loss::compare(&states, base.as_ref(), model.head(), &job.compared, c as f32, false).unwrap().0;
    job.weight * sums.loss(c)
}

#[test]
fn gradients_are_those_of_the_loss() {
    check_gradients(&start(), &job());
    check_gradients(&whole_gate(), &job());
}

#[test]
fn gradients_of_facts_are_those_of_the_loss() {
    let job = taught();
    assert_eq!(job.compared.len(), 4);
    check_gradients(&start(), &job);
    // It is the cross-entropy alone, whatever the base says.
    let device = Device::flex();
    let start = start();
    let (model, tensors) = (model(&start, &device), Parameters::new(&start.tensors, &device).values());
    let states = model.student(&tensors, Texts::read(&job), model.shared(Texts::read(&job))).unwrap();
    let logits = download(&states.matmul(model.head().clone().transpose())).unwrap();
    let losses = job.compared.iter().map(|c| {
        let logits = &logits.values[c.read as usize * logits.width..][..logits.width];
        let sum: f64 = logits.iter().map(|z| f64::from(*z).exp()).sum();
        sum.ln() - f64::from(logits[c.next.unwrap() as usize])
    });
    let expected = job.weight * losses.sum::<f64>() / 4.0;
    let found = loss_of(&model, &tensors, &job);
    assert!((found - expected).abs() < 1e-5, "{found} for {expected}");
}

fn check_gradients(start: &Start, job: &Job) {
    let device = Device::flex();
    let model = model(start, &device);
    let parameters = Parameters::new(&start.tensors, &device);
    let (loss, found) = both(&model, &parameters, job);
    assert!((job.weight * loss - loss_of(&model, &parameters.values(), job)).abs() < 1e-5);
    assert_eq!(found.len(), start.tensors.len());
    for (name, gradient) in &found {
        let gradient = download(gradient).unwrap().values;
        let at = &start.tensors[name];
        // Along the gradient the loss changes most, so that rounding matters least.
        let length = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        assert!(length > 1e-6, "{name} has no part in the loss");
        let scale = at.values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let step = (2e-3 * scale).max(1e-3);
        let moved = |by: f64| {
            let values = at.values.iter().zip(&gradient);
            let values = values.map(|(v, g)| v + (by * f64::from(*g) / length) as f32).collect();
            let mut tensors = parameters.values();
            tensors.insert(name.clone(), upload(&Matrix { values, ..*at }, &device));
            loss_of(&model, &tensors, job)
        };
        // Long steps meet curvature (an Engram gate is steep where its score is near 0), short ones rounding.
        let expected = [1.0, 0.25, 0.0625].map(|share| {
            let step = step * share;
            (moved(step) - moved(-step)) / (2.0 * step)
        });
        let close = |expected: &f64| (length - expected).abs() < 0.02 * length + 2e-4;
        assert!(expected.iter().any(close), "{name}: {length} for {expected:?}");
    }
}

#[test]
fn a_row_is_learned_only_where_it_is_read() {
    let device = Device::flex();
    let (start, job) = (start(), job());
    let model = model(&start, &device);
    let (_, found) = both(&model, &Parameters::new(&start.tensors, &device), &job);
    let rows = download(&found["blk.1.stem_rows"]).unwrap();
    for (token, row) in start.tokens.iter().zip(rows.values.chunks_exact(rows.width)) {
        let read = job.looked_up.contains(token) || job.mixes.iter().flatten().any(|t| t == token);
        assert_eq!(row.iter().any(|g| *g != 0.0), read, "{token}");
    }
    assert!(start.tokens.iter().any(|token| job.looked_up.contains(token)));
    // Features are, of every token.
    let features = download(&found["stem_embd"]).unwrap();
    for (token, features) in (0u32..).zip(features.values.chunks_exact(FEATURES)) {
        let read = job.looked_up.contains(&token) || job.mixes.iter().flatten().any(|t| *t == token);
        assert_eq!(features.iter().any(|g| *g != 0.0), read, "{token}");
    }
}

#[test]
fn a_student_without_features_is_one_whose_features_are_zero() {
    let (mut zero, mut without) = (start(), start());
    zero.tensors.get_mut("stem_embd").unwrap().values.fill(0.0);
    without.tensors.remove("stem_embd");
    let map = without.tensors.get_mut("blk.1.stem_map").unwrap();
    let hidden = map.width - FEATURES;
    map.values = map.values.chunks_exact(map.width).flat_map(|row| &row[..hidden]).copied().collect();
    map.width = hidden;
    let (found, expected) = (states(&without).values, states(&zero).values);
    assert!(found.iter().zip(&expected).all(|(f, e)| (f - e).abs() < 1e-5));
    assert_ne!(states(&start()).values, expected);
}

#[test]
fn a_mix_is_the_mean_of_its_rows() {
    let device = Device::flex();
    let mut start = start();
    // Rows are residual rows alone, and that of token 7 is the mean of those of 14 and 21.
    start.tensors.get_mut("blk.1.stem_map").unwrap().values.fill(0.0);
    let rows = start.tensors.get_mut("blk.1.stem_rows").unwrap();
    let width = rows.width;
    for i in 0..width {
        rows.values[width + i] = (rows.values[2 * width + i] + rows.values[3 * width + i]) / 2.0;
    }
    let model = model(&start, &device);
    let tensors = Parameters::new(&start.tensors, &device).values();
    let states = |row: u32, mixes: Vec<Vec<u32>>| {
        let mut job = job();
        job.looked_up.iter_mut().for_each(|id| *id %= 300);
        (job.looked_up[8], job.mixes) = (row, mixes);
        let texts = Texts::read(&job);
        download(&model.student(&tensors, texts, model.shared(texts)).unwrap()).unwrap().values
    };
    let mixed = states(300, vec![vec![14, 21]]);
    let close = |expected: Vec<f32>| mixed.iter().zip(&expected).all(|(m, e)| (m - e).abs() < 1e-5);
    assert!(close(states(7, vec![])));
    assert!(!close(states(14, vec![])));
}

/// Of a start, what each of its rounded matrices is before and after that, by name.
fn rounded(start: &Start) -> Vec<(String, [Vec<f32>; 2])> {
    let device = Device::flex();
    let tensors = Parameters::new(&start.tensors, &device).values();
    let multiplied = model(start, &device).rounding().apply(tensors).unwrap();
    let changed = expected_tensors(&start.config).into_iter().filter_map(|(name, _)| {
        let mut whole = start.tensors.get(&name).map(|m| m.values.clone());
        let [a, b] = factors(&name).map(|factor| start.tensors.get(&factor));
        if let Some((a, b)) = a.zip(b) {
            whole = Some(own(start, &name));
            add_product(whole.as_mut().unwrap(), a, b);
        }
        let after = download(multiplied.get(&name)?).unwrap().values;
        Some((name, [whole?, after])).filter(|(_, [before, after])| before != after)
    });
    changed.collect()
}

#[test]
fn what_is_stored_in_four_bits_is_rounded() {
    let names = |storage: BTreeMap<String, Dtype>| -> Vec<String> {
        rounded(&Start { storage, ..start() }).into_iter().map(|(name, _)| name).collect()
    };
    let dense = [0, 2].map(|layer| FFN.map(|part| format!("blk.{layer}.{part}"))).concat();
    assert_eq!(names(storage(Dtype::F32)), [""; 0]);
    assert_eq!(names(storage(Dtype::Q8)), [""; 0]);
    assert_eq!(names(BTreeMap::new()), dense);
    let all = names(storage(Dtype::Q4));
    assert_eq!(all.len(), dense.len() + 2);
    assert!(["blk.1.ffn_gate", "blk.1.ffn_down"].iter().all(|name| all.contains(&(*name).to_owned())));
    let attention = names([("attn_qkv".to_owned(), Dtype::Q4)].into());
    assert_eq!(attention.len(), dense.len() + 3);
    // What changes by nothing stays the base's own.
    let mut still = start();
    still.tensors.get_mut("blk.2.ffn_up.lora_b").unwrap().values.fill(0.0);
    let names = rounded(&Start { storage: storage(Dtype::Q4), ..still });
    assert!(names.len() == all.len() - 1 && names.iter().all(|(name, _)| name != "blk.2.ffn_up"));
    // A whole gate as one that changes in low rank.
    let whole = Start { storage: storage(Dtype::Q4), ..whole_gate() };
    assert_eq!(rounded(&whole).into_iter().map(|(name, _)| name).collect::<Vec<_>>(), all);
    // As a bundle stores it.
    let start = Start { storage: storage(Dtype::Q4), ..start() };
    for (name, [before, after]) in rounded(&start).into_iter().chain(rounded(&whole)) {
        let stored = quantize(Dtype::Q4, &before);
        let (quants, scales) = stored.split_at(Dtype::Q4.planes(before.len())[0]);
        let mut expected = vec![0f32; before.len()];
        dequantize(Dtype::Q4, quants, scales, 0, &mut expected);
        assert_eq!(after, expected, "{name}");
    }
}

#[test]
fn gradients_pass_the_rounding_unchanged() {
    // Of facts, about which the base isn't asked.
    let (device, job) = (Device::flex(), taught());
    let rounding = Start { storage: storage(Dtype::Q4), ..start() };
    let found = both(&model(&rounding, &device), &Parameters::new(&rounding.tensors, &device), &job);
    // A student that isn't rounded, but whose matrices are what rounding made of the other's.
    let mut plain = start();
    let mut base: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (name, [before, after]) in rounded(&rounding) {
        match plain.tensors.get_mut(&name) {
            Some(whole) => whole.values = after,
            None => {
                let moved = after.iter().zip(&before).map(|(after, before)| after - before);
                base.insert(name.clone(), own(&plain, &name).iter().zip(moved).map(|(w, m)| w + m).collect());
            }
        }
    }
    assert_eq!(base.len(), 7);
    let tensor = |name: &str| Ok(base.get(name).cloned().unwrap_or_else(|| own(&plain, name)));
    let moved = Model::new(&plain, &tensor, &device).unwrap();
    let expected = both(&moved, &Parameters::new(&plain.tensors, &device), &job);
    alike(&found, &expected, 1e-3);
}

#[test]
fn the_loss_falls() {
    falls(&start(), &Device::flex());
}

#[test]
fn the_loss_falls_while_matrices_are_rounded() {
    falls(&Start { storage: storage(Dtype::Q4), ..start() }, &Device::flex());
    falls(&Start { storage: storage(Dtype::Q4), ..whole_gate() }, &Device::flex());
}

fn falls(start: &Start, device: &Device) {
    let job = job();
    let model = model(start, device);
    let mut parameters = Parameters::new(&start.tensors, device);
    let settings = Optimiser { clip: 1.0, ..Optimiser::default() };
    let rates = Rates { rows: 2e-2, engram_tables: 2e-2, down: 2e-3, maps: 2e-3, ..Rates::default() };
    let mut losses = Vec::new();
    for step in 0..12 {
        let (loss, found) = both(&model, &parameters, &job);
        losses.push(loss);
        optimiser::step(&mut parameters, found, &settings, &rates, step, 1.0).unwrap();
    }
    assert!(losses.last() < losses.first().map(|l| 0.7 * l).as_ref(), "{losses:?}");
}

/// The student's states where base and student read the same.
fn states(start: &Start) -> Matrix {
    let (device, job) = (Device::flex(), job());
    let model = model(start, &device);
    let stream = model.shared(Texts::told(&job));
    let tensors = Parameters::new(&start.tensors, &device).values();
    download(&model.student(&tensors, Texts::told(&job), stream).unwrap()).unwrap()
}

#[test]
fn new_engram_layers_change_nothing() {
    let mut with = start();
    for (name, matrix) in &mut with.tensors {
        if name.ends_with("engram_rows") {
            matrix.values.fill(0.0);
        }
        // Without Engram layers the first layer is the base's own.
        if name.starts_with("blk.0.") && name.ends_with("lora_b") {
            matrix.values.fill(0.0);
        }
        if ["blk.0.attn_norm", "blk.0.ffn_norm"].contains(&name.as_str()) {
            matrix.values = weights(name, &[matrix.width], 2);
        }
    }
    let mut without = Start { config: tiny(), compressed: None, ..start() };
    without.tensors.retain(|name, _| !name.contains("engram") && !name.starts_with("blk.0."));
    assert_eq!(states(&with), states(&without));
    assert_ne!(states(&start()), states(&with));
}

/// The adapter of the system, be it in software.
#[cfg(feature = "heal-gpu")]
fn gpu() -> Device {
    let (gpu, _) = super::device::adapter().unwrap().expect("these tests need a GPU, be it in software");
    gpu.device
}

#[cfg(feature = "heal-gpu")]
#[test]
fn gradients_on_a_gpu_are_those_on_the_cpu() {
    for (storage, job) in [(Dtype::F32, job()), (Dtype::F32, taught()), (Dtype::Q4, job())] {
        let start = Start { storage: self::storage(storage), ..start() };
        let on =
            |device: &Device| both(&model(&start, device), &Parameters::new(&start.tensors, device), &job);
        let (expected, found) = (on(&Device::flex()), on(&gpu()));
        alike(&found, &expected, 1e-4);
    }
}

#[cfg(feature = "heal-gpu")]
#[test]
fn the_loss_falls_on_a_gpu() {
    falls(&Start { storage: storage(Dtype::Q4), ..start() }, &gpu());
}
