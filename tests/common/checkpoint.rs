//! Small checkpoints with random weights, of every storage type.

#![allow(dead_code, reason = "each test uses a part")]

use std::fs;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xylem::gguf::GgmlType;
use xylem::text::json::byte_tokens;

pub const HIDDEN: usize = 256;
pub const FFN: usize = 512;
pub const LAYERS: usize = 2;
pub const VOCAB: usize = 280;
pub const KV: usize = 128;

/// Writes a GGUF file (source of the format: ggml's `docs/gguf.md`).
#[derive(Default)]
pub struct Writer {
    metadata: Vec<u8>,
    keys: u64,
    directory: Vec<u8>,
    tensors: u64,
    data: Vec<u8>,
}

impl Writer {
    fn string(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    pub fn key(&mut self, key: &str, kind: u32) {
        Self::string(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
        self.keys += 1;
    }

    pub fn uint(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.metadata.extend(value.to_le_bytes());
    }

    pub fn float(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.metadata.extend(value.to_le_bytes());
    }

    pub fn bool(&mut self, key: &str, value: bool) {
        self.key(key, 7);
        self.metadata.push(value.into());
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        Self::string(&mut self.metadata, value);
    }

    pub fn texts(&mut self, key: &str, values: &[String]) {
        self.key(key, 9);
        self.metadata.extend(8u32.to_le_bytes());
        self.metadata.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|v| Self::string(&mut self.metadata, v));
    }

    /// `values` of type `kind`, 4 bytes each.
    pub fn words(&mut self, key: &str, kind: u32, values: &[[u8; 4]]) {
        self.key(key, 9);
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|v| self.metadata.extend(v));
    }

    pub fn tensor(&mut self, name: &str, id: u32, shape: &[usize], bytes: &[u8]) {
        Self::string(&mut self.directory, name);
        self.directory.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|d| self.directory.extend((*d as u64).to_le_bytes()));
        self.directory.extend(id.to_le_bytes());
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.directory.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(bytes);
        self.tensors += 1;
    }

    pub fn write(self, path: &Path) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(self.tensors.to_le_bytes());
        file.extend(self.keys.to_le_bytes());
        file.extend(self.metadata);
        file.extend(self.directory);
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(self.data);
        fs::write(path, file).unwrap();
    }
}

/// ggml's numbers of the types.
pub const TYPES: [(u32, GgmlType); 11] = [
    (0, GgmlType::F32),
    (1, GgmlType::F16),
    (2, GgmlType::Q4_0),
    (3, GgmlType::Q4_1),
    (6, GgmlType::Q5_0),
    (7, GgmlType::Q5_1),
    (8, GgmlType::Q8_0),
    (12, GgmlType::Q4K),
    (13, GgmlType::Q5K),
    (14, GgmlType::Q6K),
    (30, GgmlType::BF16),
];

/// Random blocks whose weights are of the order of 0.1.
pub fn blocks(kind: GgmlType, elements: usize, rng: &mut StdRng) -> Vec<u8> {
    let (block, bytes) = kind.block();
    let half = |v: f32| half::f16::from_f32(v).to_le_bytes();
    let mut out = Vec::new();
    for _ in 0..elements / block {
        let d = rng.random_range(0.5..1.5f32);
        let mut b: Vec<u8> = (0..bytes).map(|_| rng.random()).collect();
        let mut scale = |at: usize, value: f32| b[at..at + 2].copy_from_slice(&half(value));
        match kind {
            GgmlType::F32 => b.copy_from_slice(&(0.1 * (2.0 * d - 2.0)).to_le_bytes()),
            GgmlType::F16 => scale(0, 0.1 * (2.0 * d - 2.0)),
            GgmlType::BF16 => {
                b.copy_from_slice(&half::bf16::from_f32(0.1 * (2.0 * d - 2.0)).to_le_bytes());
            }
            GgmlType::Q4_0 => scale(0, 0.01 * d),
            GgmlType::Q5_0 => scale(0, 0.005 * d),
            GgmlType::Q4_1 | GgmlType::Q5_1 => {
                scale(0, if kind == GgmlType::Q4_1 { 0.01 } else { 0.005 } * d);
                scale(2, -0.08 * d);
            }
            GgmlType::Q8_0 => {
                scale(0, 0.001 * d);
                // ggml scales a block such that its largest quant is 127; -128 does not occur.
                b[2..].iter_mut().for_each(|q| *q = if *q == 128 { 127 } else { *q });
                b[2] = 127;
            }
            GgmlType::Q4K | GgmlType::Q5K => {
                scale(0, if kind == GgmlType::Q4K { 0.0004 } else { 0.0002 } * d);
                scale(2, 0.002 * d);
            }
            GgmlType::Q6K => scale(208, 0.00005 * d),
        }
        out.extend(b);
    }
    out
}

/// A checkpoint whose matrices are all of type `kind`.
pub fn checkpoint(path: &Path, kind: (u32, GgmlType), tied: bool, seed: u64) {
    checkpoint_with(path, kind, tied, seed, |_| ());
}

/// The same with what `more` adds to its metadata.
pub fn checkpoint_with(
    path: &Path,
    (id, kind): (u32, GgmlType),
    tied: bool,
    seed: u64,
    more: impl FnOnce(&mut Writer),
) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut w = Writer::default();
    more(&mut w);
    w.text("general.architecture", "llama");
    w.text("general.name", "Tiny");
    for (key, value) in [
        ("block_count", LAYERS),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", FFN),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("context_length", 64),
    ] {
        w.uint(&format!("llama.{key}"), value as u32);
    }
    w.float("llama.attention.layer_norm_rms_epsilon", 1e-5);
    w.text("tokenizer.ggml.model", "gpt2");
    w.text("tokenizer.ggml.pre", "smollm");
    let mut tokens = byte_tokens();
    tokens.extend((256..VOCAB).map(|i| format!("<|{i}|>")));
    w.texts("tokenizer.ggml.tokens", &tokens);
    let kinds: Vec<_> = (0..VOCAB).map(|i| if i < 256 { 1i32 } else { 3 }.to_le_bytes()).collect();
    w.words("tokenizer.ggml.token_type", 5, &kinds);
    w.texts("tokenizer.ggml.merges", &[]);
    w.uint("tokenizer.ggml.eos_token_id", 256);
    let mut matrix = |w: &mut Writer, name: &str, rows: usize, width: usize| {
        w.tensor(&format!("{name}.weight"), id, &[rows, width], &blocks(kind, rows * width, &mut rng));
    };
    let norm = |w: &mut Writer, name: &str| {
        let gain: Vec<u8> = (0..HIDDEN).flat_map(|i| (0.8 + i as f32 * 0.001).to_le_bytes()).collect();
        w.tensor(&format!("{name}.weight"), 0, &[HIDDEN], &gain);
    };
    matrix(&mut w, "token_embd", VOCAB, HIDDEN);
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}");
        norm(&mut w, &name("attn_norm"));
        matrix(&mut w, &name("attn_q"), HIDDEN, HIDDEN);
        matrix(&mut w, &name("attn_k"), KV, HIDDEN);
        matrix(&mut w, &name("attn_v"), KV, HIDDEN);
        matrix(&mut w, &name("attn_output"), HIDDEN, HIDDEN);
        norm(&mut w, &name("ffn_norm"));
        matrix(&mut w, &name("ffn_gate"), FFN, HIDDEN);
        matrix(&mut w, &name("ffn_up"), FFN, HIDDEN);
        matrix(&mut w, &name("ffn_down"), HIDDEN, FFN);
    }
    norm(&mut w, "output_norm");
    if !tied {
        matrix(&mut w, "output", VOCAB, HIDDEN);
    }
    w.write(path);
}
