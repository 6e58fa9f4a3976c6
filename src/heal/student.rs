//! The model being trained, and its teacher: the base's weights, frozen, and the student's changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use burn_tensor::{Device, Int, Tensor, TensorData, Transaction};

use super::batch::Job;
use super::blocks::{self, EngramLayer, Positions};
use super::rounding::{Rounding, factors};
use super::start::{Start, first_changed};
use crate::config::Config;
use crate::convert::recipe::Matrix;
use crate::engram::Hasher;
use crate::error::{Error, Result};

/// A tensor of these values on `device`.
pub fn upload(matrix: &Matrix, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(matrix.values.clone(), [matrix.rows, matrix.width]), device)
}

/// The values of a tensor that is needed no more: not copied, where it lies in memory and nobody else has it.
///
/// # Errors
/// [`Error::Gpu`] if the device fails.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    tensor.try_into_vec_as::<f32>().map_err(|e| Error::Gpu(e.to_string()))
}

/// The values of a tensor.
///
/// # Errors
/// As [`values`].
pub fn download(tensor: &Tensor<2>) -> Result<Matrix> {
    let [rows, width] = tensor.dims();
    Ok(Matrix { rows, width, values: values(tensor.clone())? })
}

/// The values of several tensors, read at once: a GPU is waited for only once.
///
/// # Errors
/// As [`values`].
pub fn download_all(tensors: impl IntoIterator<Item = Tensor<2>>) -> Result<Vec<Matrix>> {
    let (mut shapes, mut read) = (Vec::new(), Transaction::default());
    for tensor in tensors {
        shapes.push(tensor.dims());
        read = read.register(tensor);
    }
    let read = read.try_execute().map_err(|e| Error::Gpu(e.to_string()))?;
    let matrices = read.into_iter().zip(shapes).map(|(data, [rows, width])| {
        let values = data.try_into_vec::<f32>().map_err(|e| Error::Gpu(e.to_string()))?;
        Ok(Matrix { rows, width, values })
    });
    matrices.collect()
}

/// A tensor of indices.
pub fn indices(values: impl IntoIterator<Item = u32>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.into_iter().map(|v| v as i32).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// The base's weights of one layer, each `[out, in]`, gains `[1, hidden]`.
struct Layer {
    attn_norm: Tensor<2>,
    qkv: Tensor<2>,
    output: Tensor<2>,
    ffn_norm: Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
    down: Tensor<2>,
}

impl Layer {
    /// The matrix that a bundle's core calls `blk.N.{part}`.
    fn matrix(&self, part: &str) -> Option<&Tensor<2>> {
        Some(match part {
            "attn_qkv" => &self.qkv,
            "attn_output" => &self.output,
            "ffn_gate" => &self.gate,
            "ffn_up" => &self.up,
            "ffn_down" => &self.down,
            _ => return None,
        })
    }
}

/// The student's tensors by name, tracked or not.
pub type Tensors = BTreeMap<String, Tensor<2>>;

/// The base and what the student changes of it.
pub struct Model {
    config: Config,
    device: Device,
    // [vocab, hidden]
    embedding: Tensor<2>,
    // [vocab, hidden]
    head: Tensor<2>,
    output_norm: Tensor<2>,
    layers: Vec<Layer>,
    first: usize,
    // Of a token that has a residual row, its place.
    slots: HashMap<u32, u32>,
    hasher: Option<Hasher>,
    rounding: Rounding,
    // By texts and their length.
    positions: Mutex<HashMap<[usize; 2], Positions>>,
}

/// The tokens of a forward pass, `[texts, length]` each.
#[derive(Debug, Clone, Copy)]
pub struct Texts<'a> {
    /// What is read.
    pub ids: &'a [u32],
    /// Whose rows are looked up: `ids`, unless they are swapped. From the vocabulary's size on they count `mixes`.
    pub looked_up: &'a [u32],
    /// Tokens, the mean of whose rows is looked up.
    pub mixes: &'a [Vec<u32>],
    /// Tokens of each text.
    pub length: usize,
}

impl<'a> Texts<'a> {
    /// What the base reads.
    pub fn told(job: &'a Job) -> Self {
        Self { ids: &job.told, looked_up: &job.told, mixes: &[], length: job.length }
    }

    /// What the student reads.
    pub fn read(job: &'a Job) -> Self {
        Self { ids: &job.read, looked_up: &job.looked_up, mixes: &job.mixes, length: job.length }
    }
}

impl Model {
    /// The base, whose tensors `tensor` gives, with the layers of `start`.
    ///
    /// # Errors
    /// What `tensor` gives, or a hasher for wrong ids.
    pub fn new(start: &Start, tensor: &dyn Fn(&str) -> Result<Vec<f32>>, device: &Device) -> Result<Self> {
        let c = start.config.clone();
        let (hidden, ffn) = (c.hidden_size, c.intermediate_size);
        let load = |name: &str, rows: usize, width: usize| -> Result<Tensor<2>> {
            Ok(upload(&Matrix { rows, width, values: tensor(name)? }, device))
        };
        let embedding = load("token_embd", c.vocab_size, hidden)?;
        let head = if c.tied_head { embedding.clone() } else { load("output", c.vocab_size, hidden)? };
        let layers = (0..c.n_layers).map(|layer| -> Result<Layer> {
            let name = |part: &str| format!("blk.{layer}.{part}");
            Ok(Layer {
                attn_norm: load(&name("attn_norm"), 1, hidden)?,
                qkv: load(&name("attn_qkv"), c.qkv_dim(), hidden)?,
                output: load(&name("attn_output"), hidden, c.q_dim())?,
                ffn_norm: load(&name("ffn_norm"), 1, hidden)?,
                gate: load(&name("ffn_gate"), ffn, hidden)?,
                up: load(&name("ffn_up"), ffn, hidden)?,
                down: load(&name("ffn_down"), hidden, ffn)?,
            })
        });
        let compressed = start.compressed.as_ref().zip(c.engram.as_ref());
        let hasher = compressed.map(|(ids, engram)| Hasher::new(engram, ids.ids.clone())).transpose()?;
        let layers: Vec<Layer> = layers.collect::<Result<_>>()?;
        let own = |name: &str| {
            let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
            layers.get(layer.parse::<usize>().ok()?)?.matrix(part).cloned()
        };
        Ok(Self {
            rounding: Rounding::new(start, own, device),
            device: device.clone(),
            embedding,
            head,
            output_norm: load("output_norm", 1, hidden)?,
            layers,
            first: first_changed(&c),
            slots: start.tokens.iter().zip(0..).map(|(token, slot)| (*token, slot)).collect(),
            hasher,
            positions: Mutex::default(),
            config: c,
        })
    }

    /// The sizes, with the student's layers.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The output embedding `[vocab, hidden]`.
    pub fn head(&self) -> &Tensor<2> {
        &self.head
    }

    /// What is rounded while it is trained.
    pub fn rounding(&self) -> &Rounding {
        &self.rounding
    }

    fn positions(&self, texts: Texts<'_>) -> Positions {
        let key = [texts.ids.len() / texts.length, texts.length];
        // What a thread that panicked has left is whole.
        let mut known = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(key).or_insert_with(|| Positions::new(&self.config, key[0], key[1], &self.device)).clone()
    }

    /// The base's stream before the first changed layer, `[texts * length, hidden]`.
    pub fn shared(&self, texts: Texts<'_>) -> Tensor<2> {
        let at = self.positions(texts);
        let mut x = self.embedding.clone().select(0, indices(texts.ids.iter().copied(), &self.device));
        for layer in &self.layers[..self.first] {
            x = self.dense(layer, x, &at);
        }
        x
    }

    /// The base's normalised last states, from its stream `x` before the first changed layer.
    pub fn teacher(&self, texts: Texts<'_>, mut x: Tensor<2>) -> Tensor<2> {
        let at = self.positions(texts);
        for layer in &self.layers[self.first..] {
            x = self.dense(layer, x, &at);
        }
        blocks::rms_norm(x, self.output_norm.clone(), self.config.rms_norm_eps)
    }

    fn dense(&self, layer: &Layer, x: Tensor<2>, at: &Positions) -> Tensor<2> {
        let eps = self.config.rms_norm_eps;
        let h = blocks::rms_norm(x.clone(), layer.attn_norm.clone(), eps);
        let mixed = blocks::attention(&self.config, blocks::linear(h, layer.qkv.clone()), at);
        let x = x + blocks::linear(mixed, layer.output.clone());
        let h = blocks::rms_norm(x.clone(), layer.ffn_norm.clone(), eps);
        let up = blocks::linear(h.clone(), layer.up.clone());
        x + blocks::linear(blocks::gated(blocks::linear(h, layer.gate.clone()), up), layer.down.clone())
    }

    /// The student's normalised last states, from the base's stream `x` before the first changed layer.
    ///
    /// `tensors` are those that are trained, after [`Rounding::apply`]: a matrix among them takes the place of the base's,
    /// factors change it. The states are tracked where `tensors` are.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a token outside the vocabulary.
    pub fn student(&self, tensors: &Tensors, texts: Texts<'_>, mut x: Tensor<2>) -> Result<Tensor<2>> {
        let at = self.positions(texts);
        let c = &self.config;
        let eps = c.rms_norm_eps;
        let records = self.records(texts)?;
        let rows = Lookup::new(texts, &self.slots, c.vocab_size as u32);
        let mixes = [texts.mixes.len(), rows.distinct.len()];
        let shares =
            (mixes[0] > 0).then(|| Tensor::<2>::from_data(TensorData::new(rows.shares, mixes), &self.device));
        let distinct = indices(rows.distinct, &self.device);
        let mut inputs = self.embedding.clone().select(0, distinct.clone());
        if let Some(features) = tensors.get("stem_embd") {
            inputs = Tensor::cat(vec![inputs, features.clone().select(0, distinct)], 1);
        }
        let places = indices(rows.places, &self.device);
        let slots = indices(rows.slots, &self.device);
        let count = rows.own.len();
        let own = Tensor::<2>::from_data(TensorData::new(rows.own, [count, 1]), &self.device);
        for (n, layer) in self.layers.iter().enumerate().skip(self.first) {
            let get = |part: &str| tensors[&format!("blk.{n}.{part}")].clone();
            let product = |x: Tensor<2>, part: &str, own: &Tensor<2>| {
                let name = format!("blk.{n}.{part}");
                if let Some(whole) = tensors.get(&name) {
                    return blocks::linear(x, whole.clone());
                }
                let [a, b] = factors(&name).map(|factor| tensors.get(&factor).cloned());
                blocks::changed(x, own.clone(), a.zip(b))
            };
            if let Some((engram, index)) = c.engram.as_ref().and_then(|e| Some((e, e.index(n)?))) {
                let heads = engram.heads();
                let table = get("engram_rows");
                let taken = indices(records[index].iter().copied(), &self.device);
                let e = table.select(0, taken).reshape([texts.ids.len(), heads * engram.head_width]);
                let layer = EngramLayer {
                    key: get("engram_key"),
                    value: get("engram_value"),
                    query_norm: get("engram_query_norm"),
                    key_norm: get("engram_key_norm"),
                    conv_norm: get("engram_conv_norm"),
                    conv: get("engram_conv"),
                };
                x = x.clone() + blocks::engram(&x, e, &layer, engram.order(), eps, &at);
            }
            let h = blocks::rms_norm(x.clone(), get("attn_norm"), eps);
            let mixed = blocks::attention(c, product(h, "attn_qkv", &layer.qkv), &at);
            x = x + product(mixed, "attn_output", &layer.output);
            let h = blocks::rms_norm(x.clone(), get("ffn_norm"), eps);
            let up = if c.stem_index(n).is_some() {
                let mapped = blocks::linear(inputs.clone(), get("stem_map"));
                let table = match tensors.get(&format!("blk.{n}.stem_rows")) {
                    Some(residual) => mapped + residual.clone().select(0, slots.clone()) * own.clone(),
                    None => mapped,
                };
                let table = match &shares {
                    Some(shares) => Tensor::cat(vec![table.clone(), shares.clone().matmul(table)], 0),
                    None => table,
                };
                table.select(0, places.clone())
            } else {
                product(h.clone(), "ffn_up", &layer.up)
            };
            let gated = blocks::gated(product(h, "ffn_gate", &layer.gate), up);
            x = x + product(gated, "ffn_down", &layer.down);
        }
        Ok(blocks::rms_norm(x, tensors["output_norm"].clone(), eps))
    }

    /// Of each Engram layer, the records `[texts * length * heads]` within its own table. N-grams are those of the text,
    /// also where rows are swapped.
    fn records(&self, texts: Texts<'_>) -> Result<Vec<Vec<u32>>> {
        let Some(hasher) = &self.hasher else { return Ok(Vec::new()) };
        let engram = hasher.engram();
        let heads = engram.heads();
        let mut all = vec![Vec::with_capacity(texts.ids.len() * heads); engram.layers.len()];
        for text in texts.ids.chunks(texts.length) {
            let records = hasher.records(&[], text)?;
            for of_token in records.chunks_exact(heads * engram.layers.len()) {
                let mut first = 0;
                for ((layer, all), records) in
                    engram.layers.iter().zip(&mut all).zip(of_token.chunks_exact(heads))
                {
                    all.extend(records.iter().map(|record| record - first));
                    first += layer.primes.iter().flatten().sum::<u32>();
                }
            }
        }
        Ok(all)
    }
}

/// Which rows a text looks up: each distinct token's is computed once, and after them those of mixes.
struct Lookup {
    distinct: Vec<u32>,
    // Of each position, its row's place.
    places: Vec<u32>,
    // Of each distinct token, the place of its residual row, 0 for none.
    slots: Vec<u32>,
    // 1 for a distinct token that has a residual row, else 0.
    own: Vec<f32>,
    // [mixes, distinct]
    shares: Vec<f32>,
}

impl Lookup {
    fn new(texts: Texts<'_>, slots: &HashMap<u32, u32>, vocab: u32) -> Self {
        let mut distinct: Vec<u32> = texts.looked_up.iter().copied().filter(|id| *id < vocab).collect();
        distinct.extend(texts.mixes.iter().flatten());
        distinct.sort_unstable();
        distinct.dedup();
        let place = |token: &u32| distinct.partition_point(|t| t < token) as u32;
        let found: Vec<Option<u32>> = distinct.iter().map(|token| slots.get(token).copied()).collect();
        let mut shares = vec![0f32; texts.mixes.len() * distinct.len()];
        for (row, mix) in shares.chunks_mut(distinct.len().max(1)).zip(texts.mixes) {
            mix.iter().for_each(|token| row[place(token) as usize] += 1.0 / mix.len() as f32);
        }
        let mixed = |id: &u32| distinct.len() as u32 + (id - vocab);
        let row = |id: &u32| if *id < vocab { place(id) } else { mixed(id) };
        Self {
            places: texts.looked_up.iter().map(row).collect(),
            slots: found.iter().map(|slot| slot.unwrap_or(0)).collect(),
            own: found.iter().map(|slot| f32::from(u8::from(slot.is_some()))).collect(),
            shares,
            distinct,
        }
    }
}
