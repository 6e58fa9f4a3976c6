//! Checkpoints of every storage type, with tied and separate heads and both kinds of tokenizer, made here with random
//! weights: the bundle computes what the checkpoint does.

#[path = "common/checkpoint.rs"]
mod checkpoint;

use std::fs;
use std::path::{Path, PathBuf};

use checkpoint::{FFN, HIDDEN, KV, TYPES, VOCAB, Writer, checkpoint, checkpoint_with};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::tensor::{Dtype as Type, TensorView, serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use xylem::backend::{Backend, Output, Step, Want};
use xylem::bundle::quant::dequantize;
use xylem::bundle::{Bundle, Dtype, Manifest, Tensor};
use xylem::convert::{Base, Dense, Precision, Recipe, Untrained, build};
use xylem::cpu::CpuBackend;
use xylem::engram::compress::Compressed;
use xylem::engram::draw::Sizes;
use xylem::gguf::GgmlType;
use xylem::session::Session;
use xylem::tables::RowSource;
use xylem::text::Tokenizer;

const TEXT: [u32; 12] = [5, 250, 17, 17, 99, 260, 3, 128, 44, 201, 0, 77];

fn logits<B: Backend, R: RowSource>(session: &mut Session<B, R>) -> Vec<f32> {
    match pollster::block_on(session.step(&TEXT, Want::Logits)).unwrap() {
        Output::Logits(logits) => logits,
        other => panic!("{other:?}"),
    }
}

fn base_logits(base: &Base) -> Vec<f32> {
    let mut backend = CpuBackend::new(&base.tensors(), base.config(), 64);
    base.load(&mut backend).unwrap();
    let step = Step { tokens: &TEXT, position: 0, rows: &[], want: Want::Logits };
    match pollster::block_on(backend.forward(step)).unwrap() {
        Output::Logits(logits) => logits,
        other => panic!("{other:?}"),
    }
}

fn bundle_logits(dir: &Path) -> Vec<f32> {
    let bundle = Bundle::open(dir).unwrap();
    let m = bundle.manifest();
    let mut backend = CpuBackend::new(&m.core.tensors, &m.config, 64);
    bundle.load_core(&mut backend, |_, _| ()).unwrap();
    logits(&mut Session::new(backend, bundle.rows().unwrap(), m.config.clone(), 128))
}

/// The values of each tensor of a bundle's core, in its order.
fn expanded(dir: &Path, manifest: &Manifest) -> Vec<Vec<f32>> {
    let core: Vec<u8> =
        manifest.core.shards.iter().flat_map(|shard| fs::read(dir.join(&shard.file)).unwrap()).collect();
    let values = |tensor: &Tensor| {
        let stored = &core[tensor.offset as usize..][..tensor.bytes()];
        let (quants, scales) = stored.split_at(tensor.dtype.planes(tensor.elements())[0]);
        let mut values = vec![0.0; tensor.elements()];
        dequantize(tensor.dtype, quants, scales, 0, &mut values);
        values
    };
    manifest.core.tensors.iter().map(values).collect()
}

/// The logits of a bundle whose weights are expanded to f32 first.
fn expanded_logits(dir: &Path) -> Vec<f32> {
    let bundle = Bundle::open(dir).unwrap();
    let m = bundle.manifest();
    let f32s = |tensor: &Tensor| Tensor { dtype: Dtype::F32, ..tensor.clone() };
    let mut backend = CpuBackend::new(&m.core.tensors.iter().map(f32s).collect::<Vec<_>>(), &m.config, 64);
    for (id, weights) in expanded(dir, m).iter().enumerate() {
        backend.write(id, 0, bytemuck::cast_slice(weights)).unwrap();
    }
    logits(&mut Session::new(backend, bundle.rows().unwrap(), m.config.clone(), 128))
}

/// The largest difference, as a share of the spread of `expected`.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0f32, |m, v| m.max(v.abs()));
    largest(&mut found.iter().zip(expected).map(|(f, e)| f - e)) / largest(&mut expected.iter().copied())
}

#[test]
fn a_bundle_computes_what_its_checkpoint_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    let out = dir.path().join("bundle");
    for (i, kind) in TYPES.into_iter().enumerate() {
        let tied = i % 2 == 0;
        checkpoint(&path, kind, tied, i as u64);
        let base = Base::open(&path).unwrap();
        assert_eq!((base.config().tied_head, base.config().eos_tokens.as_slice()), (tied, [256].as_slice()));
        let expected = base_logits(&base);
        assert!(expected.iter().all(|l| l.is_finite()), "{kind:?}");
        for precision in [Precision::Keep, Precision::All(Dtype::F32)] {
            build::write(&base, &Dense(base.config().clone()), precision, "tiny", &out, &()).unwrap();
            let error = difference(&bundle_logits(&out), &expected);
            let bound = match (precision, kind.1) {
                (Precision::All(_), _) => 1e-5,
                // These the bundle says exactly; products with them round activations to 16 bits.
                (_, GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q8_0) => {
                    assert_eq!(difference(&expanded_logits(&out), &expected), 0.0, "{kind:?}");
                    1e-4
                }
                (_, GgmlType::Q4K) => 5e-3,
                _ => 3e-2,
            };
            assert!(error <= bound, "{kind:?} {precision:?}: {error}");
        }
    }
}

#[test]
fn what_the_forward_pass_lacks_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    checkpoint(&path, TYPES[0], true, 1);
    let whole = fs::read(&path).unwrap();
    let with = |from: &str, to: &str| {
        let mut bytes = whole.clone();
        let at = bytes.windows(from.len()).rposition(|w| w == from.as_bytes()).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        fs::write(&path, bytes).unwrap();
        Base::open(&path).unwrap_err().to_string()
    };
    let says = with("blk.1.attn_q.weight", "blk.1.attn_q.strang");
    assert!(says.contains("`blk.1.attn_q.weight` is missing"), "{says}");
    assert!(with("smollm", "unknow").contains("the pre-tokenizer `unknow`"));
    assert!(with("gpt2", "bert").contains("the tokenizer `bert`"));
    assert!(with("llama.block_count", "llama.blocks_coun").contains("llama.block_count"));

    let scaled = |keys: &[(&str, f32)], kind: Option<&str>| {
        checkpoint_with(&path, TYPES[0], true, 1, |w| {
            keys.iter().for_each(|(key, factor)| w.float(&format!("llama.rope.{key}"), *factor));
            kind.iter().for_each(|kind| w.text("llama.rope.scaling.type", kind));
        });
        Base::open(&path).map(|_| ()).map_err(|e| e.to_string())
    };
    let (old, new) = ("scale_linear", "scaling.factor");
    for (keys, kind) in [
        (vec![(old, 4.0)], None),
        (vec![(new, 4.0)], None),
        (vec![(new, 4.0), (old, 1.0)], Some("linear")),
        (vec![(new, 4.0)], Some("yarn")),
        (vec![(new, 0.0)], Some("longrope")),
    ] {
        let says = scaled(&keys, kind).unwrap_err();
        let (key, factor) = keys[0];
        assert!(says.contains(&format!("llama.rope.{key} = {factor}")), "{says}");
    }
    for (keys, kind) in [
        (vec![(new, 1.0)], Some("linear")),
        (vec![(old, 0.0)], None),
        (vec![(new, 1.0), (old, 4.0)], None),
        (vec![(new, 4.0)], Some("none")),
        (vec![], Some("linear")),
    ] {
        scaled(&keys, kind).unwrap();
    }

    checkpoint_with(&path, TYPES[0], true, 1, |w| w.uint("split.count", 3));
    let says = Base::open(&path).unwrap_err().to_string();
    assert!(says.contains("one of 3 parts") && says.contains("--merge"), "{says}");
}

#[test]
fn a_chat_template_that_is_none_is_refused_and_can_be_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("tiny.gguf"), dir.path().join("out"));
    for template in ["{% for m in messages %}", "{{ raise_exception('not today') }}"] {
        checkpoint_with(&path, TYPES[0], true, 1, |w| w.text("tokenizer.chat_template", template));
        let mut base = Base::open(&path).unwrap();
        let dense = Dense(base.config().clone());
        let write = |base: &Base| build::write(base, &dense, Precision::Keep, "tiny", &out, &());
        assert!(matches!(write(&base).unwrap_err(), xylem::Error::Template(_)));
        assert!(!out.exists());
        base.set_chat_template(Some("{{ messages[0].content }}".into()));
        assert!(write(&base).unwrap().chat_template.is_some());
        base.set_chat_template(None);
        assert!(write(&base).unwrap().chat_template.is_none());
        Bundle::open(&out).unwrap();
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn sentencepiece_vocabularies_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spm.gguf");
    let mut w = Writer::default();
    w.text("general.architecture", "llama");
    w.text("tokenizer.ggml.model", "llama");
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    let pieces = ["▁", "h", "e", "l", "o", "▁h", "el", "lo", "ell", "▁hello", "▁hell", "ello"];
    tokens.extend(pieces.map(String::from));
    let kinds = (0..tokens.len()).map(|i| match i {
        0 => 2i32,
        1 | 2 => 3,
        3..259 => 6,
        _ => 1,
    });
    w.texts("tokenizer.ggml.tokens", &tokens);
    w.words("tokenizer.ggml.token_type", 5, &kinds.map(i32::to_le_bytes).collect::<Vec<_>>());
    let scores: Vec<_> = (0..tokens.len()).map(|i| (-(i as f32)).to_le_bytes()).collect();
    w.words("tokenizer.ggml.scores", 6, &scores);
    w.uint("tokenizer.ggml.bos_token_id", 1);
    w.uint("tokenizer.ggml.eos_token_id", 2);
    w.bool("tokenizer.ggml.add_bos_token", true);
    w.write(&path);
    let gguf = xylem::gguf::Gguf::open(&path).unwrap();
    let found = xylem::convert::vocabulary::read(&gguf).unwrap();
    assert_eq!((found.bos, found.eos.as_slice()), (Some(1), [2].as_slice()));
    let tokenizer = Tokenizer::new(&found.json, found.bos).unwrap();
    let id = |piece: &str| tokenizer.id(piece).unwrap();
    // By score: ▁h first, then el, lo; then ell is better than ▁hello's other ways, and the rest follows.
    assert_eq!(tokenizer.encode("hello").unwrap(), [1, id("▁hello")]);
    let ids = tokenizer.encode("ho é").unwrap();
    assert_eq!(ids, [1, id("▁h"), id("o"), id("▁"), id("<0xC3>"), id("<0xA9>")]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "ho é");
}

/// A tensor of a recipe: name, type, shape, bytes.
type Raw = (&'static str, Type, Vec<usize>, Vec<u8>);

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Writes a recipe for the checkpoint at `base` that makes layer 1 STEM; `more` is what else its head says.
fn write_recipe(dir: &Path, base: &Path, raw: &[Raw], more: Value) -> PathBuf {
    let views = raw.iter().map(|(n, t, s, b)| (*n, TensorView::new(*t, s.clone(), b).unwrap()));
    let file = serialize(views, None).unwrap();
    let whole = fs::read(base).unwrap();
    let mut head = serde_json::json!({
        "format": "xylem-recipe", "version": 1, "name": "test",
        "base": {"name": "Tiny", "bytes": whole.len(), "sha256": sha256(&whole)},
        "stem_layers": [1],
        "files": [{"file": "part-0.safetensors", "bytes": file.len(), "sha256": sha256(&file)}],
    });
    head.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let recipe = dir.join("recipe");
    fs::create_dir_all(&recipe).unwrap();
    fs::write(recipe.join("part-0.safetensors"), file).unwrap();
    fs::write(recipe.join("recipe.json"), head.to_string()).unwrap();
    recipe
}

#[test]
fn a_recipe_can_bring_engram_layers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    checkpoint(&path, TYPES[0], true, 3);
    let base = Base::open(&path).unwrap();
    let tokenizer = Tokenizer::new(base.tokenizer_json(), None).unwrap();
    let compressed = Compressed::new(&tokenizer, VOCAB).unwrap();
    assert!(compressed.count < VOCAB - 20, "letters of both cases share an id");
    let sizes = Sizes { layers: vec![1], tables: vec![50, 90], heads: 1, head_width: 16, kernel: 4, seed: 5 };
    let engram = sizes.draw(compressed.count, compressed.ids[256]).unwrap();
    let head = |sha: &str| serde_json::json!({"engram": {"config": engram, "ids_sha256": sha}});
    let ids_sha256 = sha256(&compressed.to_bytes());

    let mut rng = StdRng::seed_from_u64(9);
    let mut floats = |n: usize| (0..n).map(|_| rng.random_range(-0.5..0.5f32)).collect::<Vec<f32>>();
    let (pairs, triples, value) = (floats(53 * 16), floats(97 * 16), floats(HIDDEN * 32));
    let mut matrix = |name, shape: &[usize]| -> Raw {
        (name, Type::F32, shape.to_vec(), bytes_of(&floats(shape.iter().product())))
    };
    let raw: Vec<Raw> = vec![
        matrix("blk.1.stem_map", &[FFN, HIDDEN]),
        matrix("blk.1.engram_key.weight", &[HIDDEN, 32]),
        ("blk.1.engram_value.weight", Type::F32, vec![HIDDEN, 32], bytes_of(&value)),
        matrix("blk.1.engram_query_norm.weight", &[HIDDEN]),
        matrix("blk.1.engram_key_norm.weight", &[HIDDEN]),
        matrix("blk.1.engram_conv_norm.weight", &[HIDDEN]),
        matrix("blk.1.engram_conv.weight", &[4 * HIDDEN]),
        ("blk.1.engram_rows.0", Type::F32, vec![53, 16], bytes_of(&pairs)),
        ("blk.1.engram_rows.1", Type::F32, vec![97, 16], bytes_of(&triples)),
    ];
    let build = |raw: &[Raw], more: Value, name: &str| {
        let folder = write_recipe(dir.path(), &path, raw, more);
        let out = dir.path().join(name);
        let recipe = Recipe::open(&folder, &base).unwrap();
        let manifest = build::write(&base, &recipe, Precision::Keep, "tiny", &out, &()).unwrap();
        (manifest, out)
    };
    let (manifest, out) = build(&raw, head(&ids_sha256), "engram");
    assert_eq!(manifest.config.engram.as_ref(), Some(&engram));
    let stored = |name: &str| manifest.tensor(name).unwrap().dtype;
    assert_eq!(stored("blk.1.engram_value"), Dtype::Q8);
    assert_eq!(stored("blk.1.engram_conv"), Dtype::F32);

    // Of the last token: the pair 0, 77 and the triple 201, 0, 77.
    let bundle = Bundle::open(&out).unwrap();
    let mut rows = Vec::new();
    pollster::block_on(bundle.rows().unwrap().gather_at(&TEXT[..11], &TEXT[11..], &mut rows)).unwrap();
    let id = |token: u32| u64::from(compressed.ids[token as usize]);
    let m = &engram.layers[0].multipliers;
    let pair = (id(77) * m[0]) ^ (id(0) * m[1]);
    let triple = pair ^ (id(201) * m[2]);
    let expected = [&pairs[(pair % 53) as usize * 16..][..16], &triples[(triple % 97) as usize * 16..][..16]];
    assert!(difference(&rows[FFN..], &expected.concat()) < 1e-2);

    // Without values nothing changes, whatever else there is.
    let (_, plain) = build(&raw[..1], serde_json::json!({}), "plain");
    let plain = bundle_logits(&plain);
    assert!(difference(&bundle_logits(&out), &plain) > 1e-2);
    let mut zero = raw.clone();
    zero[2].3 = vec![0; HIDDEN * 32 * 4];
    assert_eq!(bundle_logits(&build(&zero, head(&ids_sha256), "zero").1), plain);

    let refused = |raw: &[Raw], more: Value, what: &str| {
        let folder = write_recipe(dir.path(), &path, raw, more);
        let says = Recipe::open(&folder, &base).unwrap_err().to_string();
        assert!(says.contains(what), "{says}");
    };
    refused(&raw, head(&sha256(b"")), "compressed ids of SHA-256");
    refused(&raw, serde_json::json!({}), "`blk.1.engram_conv.weight` is unknown");
    refused(&raw[..8], head(&ids_sha256), "`blk.1.engram_rows.1` is missing");
    refused(&[&raw[..6], &raw[7..]].concat(), head(&ids_sha256), "`blk.1.engram_conv.weight` is missing");
    let mut odd = raw.clone();
    odd[7].2 = vec![16, 53];
    refused(&odd, head(&ids_sha256), "expected [53, 16]");
    let mut odd = raw.clone();
    odd.push(("blk.1.engram_key.lora_a", Type::F32, vec![1, 32], vec![0; 128]));
    refused(&odd, head(&ids_sha256), "`blk.1.engram_key.lora_a` is unknown");
}

#[test]
fn untrained_engram_layers_change_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    checkpoint(&path, TYPES[0], true, 3);
    let base = Base::open(&path).unwrap();
    let dense = Dense(base.config().clone());
    let sizes =
        Sizes { layers: vec![0, 1], tables: vec![50, 90], heads: 2, head_width: 16, kernel: 4, seed: 5 };
    let changes = Untrained::new(&dense, &base, &sizes).unwrap();
    let [plain, engram] = ["plain", "engram"].map(|name| dir.path().join(name));
    build::write(&base, &dense, Precision::Keep, "tiny", &plain, &()).unwrap();
    let manifest = build::write(&base, &changes, Precision::Keep, "tiny", &engram, &()).unwrap();
    assert_eq!(bundle_logits(&engram), bundle_logits(&plain));
    let layers = &manifest.config.engram.as_ref().unwrap().layers;
    assert_eq!(layers.iter().map(|l| l.layer).collect::<Vec<_>>(), [0, 1]);
    assert!(manifest.source.rows.contains("Engram untrained"));
    // There is something to train: the projections are not zero.
    let core = fs::read(engram.join("core-000.bin")).unwrap();
    let key = manifest.tensor("blk.0.engram_key").unwrap();
    assert!(core[key.offset as usize..][..key.bytes()].iter().filter(|b| **b != 0).count() > key.bytes() / 2);
    assert!(Untrained::new(&dense, &base, &Sizes { head_width: 15, ..sizes }).is_err());
}

#[test]
fn a_recipe_changes_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    checkpoint(&path, TYPES[0], true, 3);
    let base = Base::open(&path).unwrap();
    let mut rng = StdRng::seed_from_u64(9);
    let mut floats = |n: usize| (0..n).map(|_| rng.random_range(-0.1..0.1f32)).collect::<Vec<f32>>();
    let (a, b, map) = (floats(4 * HIDDEN), floats(KV * 4), floats(FFN * HIDDEN));
    let quants: Vec<i8> = (0..2 * FFN).map(|i| (i % 255) as i8).collect();
    let scales: Vec<f32> = (0..2 * 16).map(|i| 0.001 * (i + 1) as f32).collect();
    let tokens = [17u32, 5];
    let raw: Vec<Raw> = vec![
        ("blk.0.attn_k.lora_a", Type::F32, vec![4, HIDDEN], bytes_of(&a)),
        ("blk.0.attn_k.lora_b", Type::F32, vec![KV, 4], bytes_of(&b)),
        ("blk.1.stem_map", Type::F32, vec![FFN, HIDDEN], bytes_of(&map)),
        ("blk.1.stem_rows", Type::I8, vec![2, FFN], quants.iter().map(|q| *q as u8).collect()),
        ("blk.1.stem_rows.scale", Type::F32, vec![2, 16], bytes_of(&scales)),
        ("stem_tokens", Type::I32, vec![2], tokens.iter().flat_map(|t| t.to_le_bytes()).collect()),
    ];
    let write = |raw: &[Raw]| write_recipe(dir.path(), &path, raw, serde_json::json!({}));
    let folder = write(&raw);
    let recipe = Recipe::open(&folder, &base).unwrap();

    // The changed K, between the unchanged Q and V.
    let changed = xylem::convert::Changes::tensor(&recipe, "blk.0.attn_qkv").unwrap().unwrap();
    let old = base.tensor("blk.0.attn_qkv").unwrap();
    for (i, (new, old)) in changed.iter().zip(&old).enumerate() {
        let (row, column) = (i / HIDDEN, i % HIDDEN);
        let change = match row.checked_sub(HIDDEN) {
            Some(k) if k < KV => (0..4).map(|r| b[k * 4 + r] * a[r * HIDDEN + column]).sum(),
            _ => 0.0,
        };
        assert!((new - old - change).abs() < 1e-5, "{row} {column}");
    }
    assert!(xylem::convert::Changes::tensor(&recipe, "blk.1.attn_qkv").unwrap().is_none());

    // The row of token 5 is the second one; token 6 has none.
    let embedding = base.tensor("token_embd").unwrap();
    let mut rows = vec![0f32; 2 * FFN];
    xylem::convert::Changes::rows(&recipe, &[5, 6], &mut rows).unwrap();
    for unit in 0..FFN {
        let mapped = |t: usize| -> f32 {
            (0..HIDDEN).map(|h| map[unit * HIDDEN + h] * embedding[t * HIDDEN + h]).sum()
        };
        let residual = f32::from(quants[FFN + unit]) * scales[16 + unit / 32];
        assert!((rows[unit] - mapped(5) - residual).abs() < 1e-4);
        assert!((rows[FFN + unit] - mapped(6)).abs() < 1e-4);
    }

    let out = dir.path().join("bundle");
    let manifest = build::write(&base, &recipe, Precision::Keep, "tiny", &out, &()).unwrap();
    assert_eq!(
        (manifest.config.stem_layers.as_slice(), manifest.source.rows.as_str()),
        ([1].as_slice(), "test")
    );
    assert!(manifest.tensor("blk.1.ffn_up").is_none());
    assert!(bundle_logits(&out).iter().all(|l| l.is_finite()));
    let bundle = Bundle::open(&out).unwrap();
    let mut stored = Vec::new();
    pollster::block_on(bundle.tables().unwrap().gather(&[5], &mut stored)).unwrap();
    assert!(difference(&stored, &rows[..FFN]) < 1e-2);

    let refused = |raw: &[_], what: &str| {
        let says = Recipe::open(&write(raw), &base).unwrap_err().to_string();
        assert!(says.contains(what), "{says}");
    };
    let mut odd = raw.clone();
    odd[2].0 = "blk.0.stem_map";
    refused(&odd, "blk.0.stem_map");
    refused(&raw[1..], "no lora_a");
    let mut odd = raw.clone();
    odd[0].2 = vec![8, HIDDEN / 2];
    refused(&odd, "`blk.0.attn_k.lora_a` is [8, 128], expected [0, 256]");
    let mut odd = raw.clone();
    odd[5].3 = [17u32, 999].iter().flat_map(|t| t.to_le_bytes()).collect();
    refused(&odd, "token 999");
    let folder = write(&raw);
    fs::write(folder.join("part-0.safetensors"), b"short").unwrap();
    assert!(Recipe::open(&folder, &base).unwrap_err().to_string().contains("SHA-256"));
    write(&raw);
    checkpoint(&path, TYPES[0], true, 4);
    let other = Base::open(&path).unwrap();
    assert!(Recipe::open(&folder, &other).unwrap_err().to_string().contains("belongs to Tiny"));
}

#[test]
fn a_bundle_holds_the_values_of_matrices_in_four_bits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    checkpoint(&path, TYPES[0], true, 3);
    let base = Base::open(&path).unwrap();
    let mut rng = StdRng::seed_from_u64(12);
    let mut raw: Vec<Raw> = Vec::new();
    for (names, rows, width) in [
        (
            ["blk.1.ffn_gate.weight", "blk.1.ffn_gate.weight.scale", "blk.1.ffn_gate.weight.least"],
            FFN,
            HIDDEN,
        ),
        (
            ["blk.1.ffn_down.weight", "blk.1.ffn_down.weight.scale", "blk.1.ffn_down.weight.least"],
            HIDDEN,
            FFN,
        ),
        (["blk.1.stem_map", "blk.1.stem_map.scale", "blk.1.stem_map.least"], FFN, HIDDEN),
    ] {
        // Some blocks use a part of the levels, some have a scale below zero.
        let quants = (0..rows * width / 2).map(|i| rng.random::<u8>() & [0xff, 0x33, 0x70][i / 16 % 3]);
        let quants = quants.collect();
        let mut halves = |from: f32, to: f32| -> Vec<u8> {
            let halves = (0..rows * width / 32).map(|_| half::f16::from_f32(rng.random_range(from..to)));
            halves.flat_map(|half| half.to_le_bytes()).collect()
        };
        let (scales, minima) = (halves(-0.01, 0.02), halves(-0.1, 0.05));
        raw.push((names[0], Type::U8, vec![rows, width / 2], quants));
        raw.push((names[1], Type::F16, vec![rows, width / 32], scales));
        raw.push((names[2], Type::F16, vec![rows, width / 32], minima));
    }
    let storage = serde_json::json!({"storage": {"ffn_gate": "q4", "ffn_down": "q4"}});
    let recipe = Recipe::open(&write_recipe(dir.path(), &path, &raw, storage), &base).unwrap();
    let out = dir.path().join("bundle");
    let manifest = build::write(&base, &recipe, Precision::Keep, "tiny", &out, &()).unwrap();
    let stored: Vec<_> = manifest.core.tensors.iter().zip(expanded(&out, &manifest)).collect();
    for name in ["blk.1.ffn_gate", "blk.1.ffn_down"] {
        let expected = &recipe.matrix(&format!("{name}.weight")).unwrap().values;
        let (tensor, found) = stored.iter().find(|(tensor, _)| tensor.name == name).unwrap();
        assert!(tensor.dtype == Dtype::Q4 && found == expected, "{name}");
    }
    assert!(bundle_logits(&out).iter().all(|l| l.is_finite()));
    let error = Recipe::open(&write_recipe(dir.path(), &path, &raw[..8], serde_json::json!({})), &base);
    let says = error.unwrap_err().to_string();
    assert!(says.contains("there is no `blk.1.stem_map.least`"), "{says}");
}

#[test]
fn a_recipe_can_bring_features_of_tokens_and_types_of_storage() {
    const R: usize = 6;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    checkpoint(&path, TYPES[0], true, 3);
    let base = Base::open(&path).unwrap();
    let mut rng = StdRng::seed_from_u64(11);
    let mut floats = |n: usize| (0..n).map(|_| rng.random_range(-0.1..0.1f32)).collect::<Vec<f32>>();
    let (map, residual, scales) = (floats(FFN * (HIDDEN + R)), floats(FFN), floats(VOCAB));
    let quants: Vec<i8> = (0..VOCAB * R).map(|i| (i % 251) as i8).collect();
    let mut factor = |name, rows: usize, width: usize| -> Raw {
        (name, Type::F32, vec![rows, width], bytes_of(&floats(rows * width)))
    };
    let raw: Vec<Raw> = vec![
        ("stem_embd", Type::I8, vec![VOCAB, R], quants.iter().map(|q| *q as u8).collect()),
        ("stem_embd.scale", Type::F32, vec![VOCAB, 1], bytes_of(&scales)),
        ("blk.1.stem_map", Type::F32, vec![FFN, HIDDEN + R], bytes_of(&map)),
        ("blk.1.stem_rows", Type::F32, vec![1, FFN], bytes_of(&residual)),
        ("stem_tokens", Type::I32, vec![1], 17i32.to_le_bytes().to_vec()),
        factor("blk.0.attn_v.lora_a", 2, HIDDEN),
        factor("blk.0.attn_v.lora_b", KV, 2),
        factor("blk.0.ffn_down.lora_a", 2, FFN),
        factor("blk.0.ffn_down.lora_b", HIDDEN, 2),
        factor("blk.1.ffn_down.lora_a", 2, FFN),
        factor("blk.1.ffn_down.lora_b", HIDDEN, 2),
        factor("blk.1.ffn_gate.lora_a", 2, HIDDEN),
        factor("blk.1.ffn_gate.lora_b", FFN, 2),
    ];
    let write = |raw: &[Raw], more: Value| write_recipe(dir.path(), &path, raw, more);
    let storage = serde_json::json!({"storage": {"ffn_gate": "q4", "ffn_down": "q8", "attn_output": "f32"}});
    let folder = write(&raw, storage);
    let recipe = Recipe::open(&folder, &base).unwrap();

    // Of token 17, which has a residual row, and of two that have none, one the last.
    let tokens = [17, 5, VOCAB as u32 - 1];
    let embedding = base.tensor("token_embd").unwrap();
    let mut rows = vec![0f32; tokens.len() * FFN];
    xylem::convert::Changes::rows(&recipe, &tokens, &mut rows).unwrap();
    for (token, row) in tokens.iter().zip(rows.chunks_exact(FFN)) {
        let t = *token as usize;
        for unit in 0..FFN {
            let map = &map[unit * (HIDDEN + R)..][..HIDDEN + R];
            let mut expected: f32 = (0..HIDDEN).map(|h| map[h] * embedding[t * HIDDEN + h]).sum();
            expected +=
                (0..R).map(|i| map[HIDDEN + i] * f32::from(quants[t * R + i]) * scales[t]).sum::<f32>();
            expected += if t == 17 { residual[unit] } else { 0.0 };
            assert!((row[unit] - expected).abs() < 1e-4, "{t} {unit}");
        }
    }

    // What is changed is stored as the recipe says, or as usual; what isn't, as the base has it.
    let out = dir.path().join("bundle");
    let manifest = build::write(&base, &recipe, Precision::Keep, "tiny", &out, &()).unwrap();
    let dense = dir.path().join("dense");
    let usual =
        build::write(&base, &Dense(base.config().clone()), Precision::Keep, "tiny", &dense, &()).unwrap();
    let stored = |name: &str| manifest.tensor(name).unwrap().dtype;
    assert_eq!(stored("blk.1.ffn_gate"), Dtype::Q4);
    assert_eq!((stored("blk.0.ffn_down"), stored("blk.1.ffn_down")), (Dtype::Q8, Dtype::Q8));
    assert_eq!(stored("blk.0.attn_qkv"), Dtype::Q8);
    for name in ["blk.0.ffn_gate", "blk.0.attn_output", "blk.1.attn_output", "blk.1.attn_qkv"] {
        assert_eq!(stored(name), usual.tensor(name).unwrap().dtype, "{name}");
    }
    // Whatever processor converts: other hashes would refuse the edits of those who converted elsewhere.
    let hash = "31712eaf8e2ee19cc32516b27dac4a69c0351d84ff950cd9c7d71f5236c4770c";
    assert_eq!(manifest.hash(), hash);
    let bundle = Bundle::open(&out).unwrap();
    let mut gathered = Vec::new();
    pollster::block_on(bundle.tables().unwrap().gather(&tokens, &mut gathered)).unwrap();
    assert!(difference(&gathered, &rows) < 1e-2);
    assert!(bundle_logits(&out).iter().all(|l| l.is_finite()));
    // A type that is asked for wins.
    let all = build::write(&base, &recipe, Precision::All(Dtype::Q8), "tiny", &out, &()).unwrap();
    assert_eq!(all.tensor("blk.1.ffn_gate").unwrap().dtype, Dtype::Q8);

    let refused = |raw: &[Raw], more: Value, what: &str| {
        let error = Recipe::open(&write(raw, more), &base).unwrap_err();
        assert!(matches!(error, xylem::Error::Invalid { .. }), "{error:?}");
        assert!(error.to_string().contains(what), "{error}");
    };
    for (storage, what) in [
        (serde_json::json!({"attn_q": "q4"}), "`attn_q`; layers have the matrices attn_output, attn_qkv"),
        (serde_json::json!({"ffn_norm": "f32"}), "`ffn_norm`"),
        (serde_json::json!({"ffn_gate": "q5"}), "`q5`"),
    ] {
        refused(&raw, serde_json::json!({"storage": storage}), what);
    }
    let none = || serde_json::json!({});
    let mut odd = raw.clone();
    odd[2].2 = vec![HIDDEN + R, FFN];
    refused(&odd, none(), "expected [512, 262]");
    refused(&raw[2..], none(), "expected [512, 256]");
    let with = |shape: [usize; 2], value: f32| {
        let values = bytes_of(&vec![value; shape[0] * shape[1]]);
        [&[("stem_embd", Type::F32, shape.to_vec(), values)], &raw[2..]].concat()
    };
    Recipe::open(&write(&with([VOCAB, R], 1.0), none()), &base).unwrap();
    refused(&with([VOCAB, R], f32::NAN), none(), "not finite");
    refused(&with([VOCAB - 1, R], 1.0), none(), "expected [280, 6]");
    refused(&with([VOCAB, HIDDEN + 1], 1.0), none(), "257 features a token, from 1 to 256");
    refused(&with([VOCAB, 0], 1.0), none(), "0 features");
    let mut odd = raw.clone();
    (odd[0].2, odd[0].3) = (vec![VOCAB, 0], Vec::new());
    refused(&odd, none(), "0 features");
    let mut dense = none();
    dense["stem_layers"] = serde_json::json!([]);
    refused(&raw[..2], dense, "`stem_embd` is unknown");
}
