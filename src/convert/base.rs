//! The dense checkpoint that a conversion starts from: a GGUF file of the Llama architecture.

use std::collections::BTreeSet;
use std::path::Path;

use super::vocabulary::{self, Tokens};
use crate::backend::Backend;
use crate::bundle::manifest::{Tensor, expected_tensors};
use crate::bundle::quant::{Dtype, quantize};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::text::{Message, Role, Template, Tokenizer};

/// An open checkpoint whose every size has been checked.
#[derive(Debug)]
pub struct Base {
    gguf: Gguf,
    config: Config,
    tokens: Tokens,
    chat_template: Option<String>,
}

impl Base {
    /// Opens `path`.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Gguf`] if it can't be read, [`Error::Unsupported`] naming what this crate's
    /// forward pass does not know, [`Error::Invalid`] for impossible sizes.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        // Checked first: parts but the first lack all else.
        let parts = gguf.get("split.count").map_or(Ok(1), |_| gguf.uint("split.count"))?;
        if parts > 1 {
            return Err(Error::Unsupported {
                what: format!("{}, one of {parts} parts of a checkpoint,", gguf.path().display()),
                supported: "one whole file, as `llama-gguf-split --merge` makes it of the parts".into(),
            });
        }
        let tokens = vocabulary::read(&gguf)?;
        let config = config(&gguf, &tokens)?;
        config.validate()?;
        let chat_template = gguf.string("tokenizer.chat_template").ok().map(str::to_owned);
        let base = Self { gguf, config, tokens, chat_template };
        base.check_tensors()?;
        Ok(base)
    }

    /// The model's sizes, with no STEM layer.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The checkpoint.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The checkpoint's name: its file's, without the extension. Those inside the files are often a training run's.
    pub fn name(&self) -> String {
        self.gguf.path().file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Its licence, as far as it says.
    pub fn licence(&self) -> String {
        self.gguf.string("general.license").unwrap_or("unknown").to_owned()
    }

    /// `tokenizer.json`.
    pub fn tokenizer_json(&self) -> &[u8] {
        &self.tokens.json
    }

    /// The Jinja chat template, if there is one.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// Another chat template, or none, in place of the checkpoint's.
    pub fn set_chat_template(&mut self, template: Option<String>) {
        self.chat_template = template;
    }

    /// Whether a question can be put in the chat template, if there is one.
    ///
    /// # Errors
    /// [`Error::Template`] saying what is wrong with it.
    pub fn check_chat_template(&self) -> Result<()> {
        let Some(source) = self.chat_template() else { return Ok(()) };
        let tokenizer = Tokenizer::new(self.tokenizer_json(), self.config.bos_token)?;
        let question = Message { role: Role::User, content: "Who are you?".into() };
        Template::for_model(source, &tokenizer, &self.config)?.render(&[question]).map(drop)
    }

    /// The tensor `name` of a bundle, row-major, its blocks expanded.
    ///
    /// # Errors
    /// [`Error::Gguf`] if it is missing or has other dimensions.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for (part, shape) in self.parts(name) {
            all.extend(self.gguf.tensor(&part, &shape)?);
        }
        Ok(all)
    }

    /// The checkpoint's tensors, with their shapes, that make up the bundle's tensor `name`: one, or Q, K and V.
    pub fn parts(&self, name: &str) -> Vec<(String, Vec<usize>)> {
        let c = &self.config;
        if let Some(layer) = name.strip_suffix(".attn_qkv") {
            let sizes = [("attn_q", c.q_dim()), ("attn_k", c.kv_dim()), ("attn_v", c.kv_dim())];
            return sizes
                .map(|(part, rows)| (format!("{layer}.{part}.weight"), vec![rows, c.hidden_size]))
                .into();
        }
        let shape = expected_tensors(c).into_iter().find(|(n, _)| n == name).map_or(vec![], |(_, s)| s);
        vec![(format!("{name}.weight"), shape)]
    }

    /// The core's tensors in single precision.
    pub fn tensors(&self) -> Vec<Tensor> {
        let mut offset = 0;
        let tensor = |(name, shape)| {
            let tensor = Tensor { name, dtype: Dtype::F32, shape, offset };
            offset += tensor.bytes() as u64;
            tensor
        };
        expected_tensors(&self.config).into_iter().map(tensor).collect()
    }

    /// Writes the dense model into a backend that was made for [`Base::tensors`].
    ///
    /// # Errors
    /// As [`Base::tensor`], and what the backend gives.
    pub fn load(&self, backend: &mut impl Backend) -> Result<()> {
        for (id, tensor) in self.tensors().iter().enumerate() {
            backend.write(id, 0, &quantize(Dtype::F32, &self.tensor(&tensor.name)?))?;
        }
        Ok(())
    }

    /// Every tensor that the model needs is there in its shape, and none that would change what it computes.
    fn check_tensors(&self) -> Result<()> {
        let mut known = BTreeSet::new();
        for (name, _) in expected_tensors(&self.config) {
            for (part, shape) in self.parts(&name) {
                let Some(info) = self.gguf.tensors().get(&part) else {
                    return Err(self.damaged(format!("the tensor `{part}` is missing")));
                };
                if !info.dims.iter().rev().eq(shape.iter()) {
                    let found: Vec<_> = info.dims.iter().rev().collect();
                    return Err(
                        self.damaged(format!("the tensor `{part}` has shape {found:?}, expected {shape:?}"))
                    );
                }
                known.insert(part);
            }
        }
        match self.gguf.tensors().keys().find(|name| !known.contains(*name)) {
            None => Ok(()),
            Some(unknown) => Err(Error::Unsupported {
                what: format!("the tensor `{unknown}` of {}", self.gguf.path().display()),
                supported: "Llama's own tensors: no biases, experts or long-context RoPE factors".into(),
            }),
        }
    }

    fn damaged(&self, reason: String) -> Error {
        Error::Gguf { path: self.gguf.path().to_owned(), reason }
    }
}

fn config(gguf: &Gguf, tokens: &Tokens) -> Result<Config> {
    let architecture = gguf.string("general.architecture")?;
    let unsupported =
        |what: String, supported: &str| Error::Unsupported { what, supported: supported.into() };
    if architecture != "llama" {
        return Err(unsupported(format!("the architecture `{architecture}`"), "llama"));
    }
    let size =
        |key: &str| gguf.uint(&format!("llama.{key}")).map(|v| usize::try_from(v).unwrap_or(usize::MAX));
    let has = |key: &str| gguf.get(&format!("llama.{key}")).is_some();
    let or = |key: &str, default: usize| if has(key) { size(key) } else { Ok(default) };
    let float = |key: &str, default: f32| match has(key) {
        false => Ok(default),
        true => gguf.float(&format!("llama.{key}")).map(|v| v as f32),
    };
    let (hidden_size, n_heads) = (size("embedding_length")?, size("attention.head_count")?);
    let head_dim = or("attention.key_length", hidden_size.checked_div(n_heads).unwrap_or(0))?;
    if or("expert_count", 0)? > 0 {
        return Err(unsupported("a mixture of experts".into(), "one FFN a layer"));
    }
    // As llama.cpp reads it: an older key holds the factor where the newer one is missing, and 0 stands for none. Unless
    // the type says that there is none, the factor counts.
    let factor = ["rope.scaling.factor", "rope.scale_linear"].into_iter().find(|key| has(key));
    let kind = if has("rope.scaling.type") { gguf.string("llama.rope.scaling.type")? } else { "linear" };
    let by = factor.map_or(Ok(0.0), |key| float(key, 0.0))?;
    if !(kind == "none" || kind == "linear" && [0.0, 1.0].contains(&by)) {
        let key = factor.unwrap_or("rope.scaling.factor");
        let what = format!("RoPE scaling of the type `{kind}` by llama.{key} = {by}");
        return Err(unsupported(what, "unscaled positions"));
    }
    let rotated = or("rope.dimension_count", head_dim)?;
    if rotated != head_dim || or("attention.value_length", head_dim)? != head_dim {
        let what = format!("a head of {head_dim} values of which {rotated} are rotated");
        return Err(unsupported(what, "heads rotated whole, with keys and values of one size"));
    }
    Ok(Config {
        vocab_size: tokens.len,
        hidden_size,
        intermediate_size: size("feed_forward_length")?,
        n_layers: size("block_count")?,
        n_heads,
        n_kv_heads: or("attention.head_count_kv", n_heads)?,
        head_dim,
        context_length: size("context_length")?,
        rope_theta: float("rope.freq_base", 10_000.0)?,
        rms_norm_eps: float("attention.layer_norm_rms_epsilon", 1e-5)?,
        tied_head: !gguf.tensors().contains_key("output.weight"),
        bos_token: tokens.bos,
        eos_tokens: tokens.eos.clone(),
        stem_layers: Vec::new(),
        engram: None,
    })
}
