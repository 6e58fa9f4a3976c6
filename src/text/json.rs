//! Writing `tokenizer.json`, the tokenizers library's file, from a vocabulary.
//!
//! Source of the pieces: the converters of transformers (`convert_slow_tokenizer.py`) and, for the regular
//! expressions by name, llama.cpp's `llama-vocab.cpp`.

use serde_json::{Value, json};

/// How text is cut before pairs are merged, in byte-level BPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// GPT-2's words.
    Gpt2,
    /// GPT-2's words, each digit alone.
    Digits,
    /// Words by this regular expression.
    Regex(&'static str),
}

/// A vocabulary: position is id.
#[derive(Debug)]
pub struct Vocabulary<'a> {
    /// The tokens as they are stored, and whether text may name each but is never cut into it.
    pub tokens: &'a [(String, Added)],
    /// Pairs to merge, best first.
    pub merges: &'a [(String, String)],
}

/// Whether a token lies outside what merging gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// An ordinary token.
    No,
    /// Found in text before anything else, and part of the text.
    Plain,
    /// Found in text before anything else, and left out of decoded text.
    Special,
}

/// The file for byte-level BPE (GPT-2's kind). With `whole_words`, a word that is a token is not merged to it.
pub fn byte_level(vocabulary: &Vocabulary<'_>, split: Split, whole_words: bool) -> Vec<u8> {
    let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let sequence = |first: Value, then: Value| json!({"type": "Sequence", "pretokenizers": [first, then]});
    let pre_tokenizer = match split {
        Split::Gpt2 => bytes(true),
        Split::Digits => sequence(json!({"type": "Digits", "individual_digits": true}), bytes(true)),
        Split::Regex(regex) => sequence(
            json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}),
            bytes(false),
        ),
    };
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": whole_words,
    });
    file(vocabulary, model, Value::Null, pre_tokenizer, bytes(true))
}

/// The file for SentencePiece's BPE with bytes as a fallback (Llama 2's kind).
pub fn sentencepiece(vocabulary: &Vocabulary<'_>, unknown: &str, space_before: bool) -> Vec<u8> {
    let replace =
        |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", "▁")];
    let mut decoders = vec![replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if space_before {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
    });
    let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
    let decoder = json!({"type": "Sequence", "decoders": decoders});
    file(vocabulary, model, normalizer, Value::Null, decoder)
}

fn file(
    vocabulary: &Vocabulary<'_>,
    mut model: Value,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
) -> Vec<u8> {
    let tokens = vocabulary.tokens.iter().enumerate();
    let added: Vec<Value> = tokens
        .clone()
        .filter(|(_, (_, added))| *added != Added::No)
        .map(|(id, (content, added))| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *added == Added::Special,
            })
        })
        .collect();
    let vocab: serde_json::Map<String, Value> = tokens.map(|(id, (t, _))| (t.clone(), id.into())).collect();
    model["vocab"] = vocab.into();
    model["merges"] = vocabulary.merges.iter().map(|(a, b)| json!([a, b])).collect();
    let all = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": decoder, "model": model,
    });
    serde_json::to_vec(&all).expect("a JSON value can be written")
}

/// The 256 tokens that stand for single bytes in byte-level BPE, in GPT-2's order (source: `bytes_to_unicode` in
/// GPT-2's `encoder.py`).
pub fn byte_tokens() -> Vec<String> {
    let printable = |b: &u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let unprintable = (0..256).filter(|b| !printable(b)).enumerate().map(|(i, _)| 256 + i as u32);
    (0..256).filter(printable).chain(unprintable).filter_map(char::from_u32).map(String::from).collect()
}

/// A tokenizer without merges: a token a byte, then the `special` ones. For tests and random models.
pub fn bytes_only(special: &[&str]) -> Vec<u8> {
    let bytes = byte_tokens().into_iter().map(|t| (t, Added::No));
    let special = special.iter().map(|t| ((*t).to_owned(), Added::Special));
    let tokens: Vec<_> = bytes.chain(special).collect();
    byte_level(&Vocabulary { tokens: &tokens, merges: &[] }, Split::Gpt2, false)
}
