//! The tokenizer inside a GGUF file, as a `tokenizer.json`.
//!
//! Source of the keys: ggml's `docs/gguf.md`; of what their values mean: llama.cpp's `llama-vocab.cpp`.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::gguf::{Gguf, Value};
use crate::text::json::{Added, Split, Vocabulary, byte_level, sentencepiece};

/// Llama 3's words.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's words.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Tokens that end an answer in one model or another.
const ENDS: [&str; 8] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "<|eom_id|>",
    "</s>",
];

/// ggml's token types.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// What a checkpoint says of its tokens.
#[derive(Debug)]
pub struct Tokens {
    /// `tokenizer.json`.
    pub json: Vec<u8>,
    /// Number of tokens.
    pub len: usize,
    /// Token put before every text.
    pub bos: Option<u32>,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
}

/// Reads the vocabulary of `gguf`.
///
/// # Errors
/// [`Error::Gguf`] if it is missing or damaged, [`Error::Unsupported`] for a kind that isn't known.
pub fn read(gguf: &Gguf) -> Result<Tokens> {
    let damaged = |reason: String| Error::Gguf { path: gguf.path().to_owned(), reason };
    let texts = gguf.array("tokenizer.ggml.tokens")?;
    let kinds = match gguf.get("tokenizer.ggml.token_type") {
        Some(Value::Array(kinds)) if kinds.len() == texts.len() => kinds.as_slice(),
        Some(_) => return Err(damaged("`tokenizer.ggml.token_type` does not fit the tokens".into())),
        None => &[],
    };
    let mut ids = HashMap::with_capacity(texts.len());
    let mut tokens = Vec::with_capacity(texts.len());
    for (id, text) in texts.iter().enumerate() {
        let Value::String(text) = text else {
            return Err(damaged(format!("token {id} is no string")));
        };
        if let Some(before) = ids.insert(text.clone(), id as u32) {
            return Err(damaged(format!("tokens {before} and {id} are both `{text}`")));
        }
        let added = match kinds.get(id).and_then(uint) {
            Some(CONTROL) => Added::Special,
            Some(USER_DEFINED) => Added::Plain,
            _ => Added::No,
        };
        tokens.push((text.clone(), added));
    }
    let id = |key: &str| -> Result<Option<u32>> {
        if gguf.get(key).is_none() {
            return Ok(None);
        }
        let id = gguf.uint(key)?;
        if id >= tokens.len() as u64 {
            return Err(damaged(format!("`{key}` is {id}, there are {} tokens", tokens.len())));
        }
        Ok(Some(id as u32))
    };
    let kind = gguf.string("tokenizer.ggml.model")?;
    let split = gguf.string("tokenizer.ggml.pre").unwrap_or("default");
    let json = match kind {
        "gpt2" => {
            let (split, whole_words) = split_of(split)?;
            let merges = gguf.array("tokenizer.ggml.merges")?;
            let merges: Vec<_> = merges
                .iter()
                .map(|m| pair(m).ok_or_else(|| damaged(format!("no merge: {m:?}"))))
                .collect::<Result<_>>()?;
            byte_level(&Vocabulary { tokens: &tokens, merges: &merges }, split, whole_words)
        }
        "llama" => {
            let scores = gguf.array("tokenizer.ggml.scores")?;
            let merges = merges_by_score(&ids, scores);
            let unknown =
                (0..tokens.len()).find(|id| kinds.get(*id).and_then(uint) == Some(UNKNOWN)).unwrap_or(0);
            let space = !matches!(gguf.get("tokenizer.ggml.add_space_prefix"), Some(Value::Bool(false)));
            let unknown = tokens.get(unknown).map_or("", |(text, _)| text);
            sentencepiece(&Vocabulary { tokens: &tokens, merges: &merges }, unknown, space)
        }
        other => {
            return Err(Error::Unsupported {
                what: format!("the tokenizer `{other}`"),
                supported: "gpt2 (byte-level BPE), llama (SentencePiece BPE)".into(),
            });
        }
    };
    let wants_bos = match gguf.get("tokenizer.ggml.add_bos_token") {
        Some(Value::Bool(wants)) => *wants,
        _ => kind == "llama" || split.starts_with("llama"),
    };
    let bos = id("tokenizer.ggml.bos_token_id")?.filter(|_| wants_bos);
    let mut eos: Vec<u32> = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"]
        .iter()
        .filter_map(|key| id(key).transpose())
        .collect::<Result<_>>()?;
    let special = |name: &&str| ids.get(*name).copied().filter(|id| tokens[*id as usize].1 == Added::Special);
    eos.extend(ENDS.iter().filter_map(special));
    eos.sort_unstable();
    eos.dedup();
    Ok(Tokens { json, len: tokens.len(), bos, eos })
}

fn uint(value: &Value) -> Option<u64> {
    match value {
        Value::Uint(v) => Some(*v),
        Value::Int(v) => u64::try_from(*v).ok(),
        _ => None,
    }
}

fn pair(merge: &Value) -> Option<(String, String)> {
    let Value::String(merge) = merge else { return None };
    merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned()))
}

/// The rule of a pre-tokenizer by llama.cpp's name for it, and whether whole words come before merges.
fn split_of(name: &str) -> Result<(Split, bool)> {
    Ok(match name {
        "default" | "gpt-2" | "phi-2" | "jina-en" | "mpt" | "olmo" => (Split::Gpt2, false),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => (Split::Digits, false),
        "llama3" | "llama-v3" | "llama-bpe" => (Split::Regex(LLAMA3), true),
        "qwen2" | "deepseek-r1-qwen" => (Split::Regex(QWEN2), false),
        other => {
            return Err(Error::Unsupported {
                what: format!("the pre-tokenizer `{other}`"),
                supported:
                    "default, gpt-2, smollm, starcoder, refact, command-r, codeshell, llama-bpe, qwen2".into(),
            });
        }
    })
}

/// SentencePiece merges any two pieces whose union is one, the union with the highest score first.
fn merges_by_score(ids: &HashMap<String, u32>, scores: &[Value]) -> Vec<(String, String)> {
    let score = |id: u32| match scores.get(id as usize) {
        Some(Value::Float(score)) => *score,
        _ => 0.0,
    };
    let mut merges: Vec<(f64, u32, u32, u32, &str, &str)> = Vec::new();
    for (whole, id) in ids {
        for (at, _) in whole.char_indices().skip(1) {
            let (a, b) = whole.split_at(at);
            if let (Some(left), Some(right)) = (ids.get(a), ids.get(b)) {
                merges.push((score(*id), *id, *left, *right, a, b));
            }
        }
    }
    merges.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    merges.into_iter().map(|(.., a, b)| (a.to_owned(), b.to_owned())).collect()
}
