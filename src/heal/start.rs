//! What training begins with: every tensor of the student, from a recipe or in closed form.
//!
//! Tensors have the names of a bundle's core (`blk.N.ffn_down`; Q, K and V are one, `blk.N.attn_qkv`), with `.lora_a`
//! `[rank, in]` and `.lora_b` `[out, rank]` where the base's matrix stays and is changed by their product; beside them
//! `blk.N.stem_map` `[ffn, hidden]`, `blk.N.stem_rows` `[tokens, ffn]` and `blk.N.engram_rows` `[records, head_width]`.
//! From a recipe that has them come `stem_embd` `[vocab, r]`, maps of `hidden + r` columns, and whole gates of STEM layers,
//! `blk.N.ffn_gate` `[ffn, hidden]`.
//! Vectors are matrices of one row, the convolution's taps `[taps, hidden]`.

use std::collections::{BTreeMap, BTreeSet};

use super::export;
use super::settings::{self, Settings};
use crate::bundle::quant::Dtype;
use crate::bundle::random;
use crate::config::Config;
use crate::convert::recipe::{Matrix, Recipe};
use crate::convert::regression::Regression;
use crate::convert::{Base, Changes, Progress, closed_form, store};
use crate::engram::compress::Compressed;
use crate::engram::draw::Sizes;
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// Ridge of the map from embeddings to rows, relative to each input's mean square.
const MAP_RIDGE: f64 = 0.02;
/// Occurrences that every token has, when rows are fitted.
const PRIOR_COUNT: f32 = 0.3;
/// Tokens whose rows are fitted at once.
const FIT_TOKENS: usize = 4096;
/// Taps of a new Engram layer's convolution.
const KERNEL: usize = 4;

/// Which rates a tensor learns at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Low-rank changes.
    Core,
    /// Gains of RMSNorm.
    Norms,
    /// Matrices of STEM layers that are trained whole: down-projections, and gates that a recipe brings so.
    Down,
    /// Maps from embeddings to rows.
    Maps,
    /// Residual rows, and features of tokens.
    Rows,
    /// Projections, gains and convolutions of Engram layers.
    Engram,
    /// Tables of Engram layers.
    EngramTables,
}

impl Group {
    /// The group of the tensor `name`.
    pub fn of(name: &str) -> Self {
        let part = name.rsplit_once("blk.").map_or(name, |(_, part)| part);
        match part.split_once('.').map_or(part, |(_, part)| part) {
            "stem_map" => Self::Maps,
            "stem_rows" | "stem_embd" => Self::Rows,
            "engram_rows" => Self::EngramTables,
            "ffn_gate" | "ffn_down" => Self::Down,
            part if part.starts_with("engram_") => Self::Engram,
            part if part.contains(".lora_") => Self::Core,
            _ => Self::Norms,
        }
    }

    /// Its peak rate.
    pub fn rate(self, rates: &settings::Rates) -> f64 {
        match self {
            Self::Core => rates.core,
            Self::Norms => rates.norms,
            Self::Down => rates.down,
            Self::Maps => rates.maps,
            Self::Rows => rates.rows,
            Self::Engram => rates.engram,
            Self::EngramTables => rates.engram_tables,
        }
    }
}

/// Every tensor of a student.
#[derive(Debug)]
pub struct Start {
    /// The base's sizes, with the STEM and Engram layers.
    pub config: Config,
    /// The tokens that have a residual row, in the rows' order.
    pub tokens: Vec<u32>,
    /// The compressed ids, if there are Engram layers.
    pub compressed: Option<Compressed>,
    /// What is trained, by name.
    pub tensors: BTreeMap<String, Matrix>,
    /// The types that a bundle stores changed matrices in, as the recipe said that it began with.
    pub storage: BTreeMap<String, Dtype>,
}

/// The lowest layer that differs from the base's; those below are shared.
pub fn first_changed(config: &Config) -> usize {
    let engram = config.engram.iter().flat_map(|e| &e.layers).map(|l| l.layer);
    config.stem_layers.iter().copied().chain(engram).min().unwrap_or(config.n_layers)
}

/// The student that `settings` begin with; `counts` says how often each token occurs in the training text, and `names`
/// are tokens that shall have residual rows whatever else has.
///
/// # Errors
/// What reading the recipe or the closed form gives; [`Error::Invalid`] for a recipe that changes what is not trained
/// here, and for more residual rows than a recipe holds.
pub fn start(
    base: &Base,
    settings: &Settings,
    counts: &BTreeMap<u32, u64>,
    names: &BTreeSet<u32>,
    calibration: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<Start> {
    let mut start = match &settings.init {
        Some(dir) => of_recipe(base, &Recipe::open(dir, base)?)?,
        None => closed(base, settings, counts, calibration, progress)?,
    };
    if let (Some(sizes), None) = (&settings.engram, &start.config.engram) {
        start.add_engram(base, sizes, settings.seed)?;
    }
    start.check_features()?;
    start.add_rows(names)?;
    start.complete(base, settings)?;
    Ok(start)
}

impl Start {
    /// The type that a bundle stores the matrix `name` in where it is changed.
    pub fn stored(&self, name: &str) -> Dtype {
        let trained = store::part(name).and_then(|part| self.storage.get(part)).copied();
        store::changed(name, &self.config, trained)
    }

    /// Adds Engram layers with empty tables.
    fn add_engram(&mut self, base: &Base, sizes: &settings::Engram, seed: u64) -> Result<()> {
        let compressed =
            Compressed::new(&Tokenizer::new(base.tokenizer_json(), None)?, self.config.vocab_size)?;
        let pad = self.config.eos_tokens.first().map_or(0, |token| compressed.ids[*token as usize]);
        let sizes = Sizes {
            layers: sizes.layers.clone(),
            tables: sizes.tables.clone(),
            heads: sizes.heads,
            head_width: sizes.head_width,
            kernel: KERNEL,
            seed,
        };
        self.config.engram = Some(sizes.draw(compressed.count, pad)?);
        self.config.validate()?;
        self.compressed = Some(compressed);
        Ok(())
    }

    /// Gives `tokens` residual rows, zero at first, where they have none.
    fn add_rows(&mut self, tokens: &BTreeSet<u32>) -> Result<()> {
        let have: BTreeSet<u32> = self.tokens.iter().copied().collect();
        self.tokens.extend(tokens.difference(&have));
        let (count, ffn) = (self.tokens.len(), self.config.intermediate_size);
        let most = export::most_rows(ffn);
        if count > most {
            return Err(Error::invalid(
                format!("{count} tokens with a residual row"),
                format!(
                    "a recipe holds at most {most} of them; lower `residual_rows`, or name less in the facts"
                ),
            ));
        }
        for layer in self.config.stem_layers.iter().filter(|_| count > 0) {
            let none = Matrix { rows: 0, width: ffn, values: Vec::new() };
            let rows = self.tensors.entry(format!("blk.{layer}.stem_rows")).or_insert(none);
            rows.rows = count;
            rows.values.resize(count * ffn, 0.0);
        }
        Ok(())
    }

    /// Features of tokens must fit into the recipe at the end, better found out now.
    fn check_features(&self) -> Result<()> {
        let Some(features) = self.tensors.get("stem_embd") else { return Ok(()) };
        let most = export::most_rows(features.width);
        if features.rows <= most {
            return Ok(());
        }
        Err(Error::invalid(
            format!("{} features for each of {} tokens", features.width, features.rows),
            format!("a recipe holds those of at most {most} tokens; start from one that has fewer features"),
        ))
    }

    /// Fills in what the recipe or the closed form says nothing of: the base's own values, and changes that are zero.
    fn complete(&mut self, base: &Base, settings: &Settings) -> Result<()> {
        let c = self.config.clone();
        let ranks = &settings.student;
        let (hidden, seed) = (c.hidden_size, settings.seed);
        for layer in first_changed(&c)..c.n_layers {
            let stem = c.stem_index(layer).is_some();
            let name = |part: &str| format!("blk.{layer}.{part}");
            for part in ["attn_norm", "ffn_norm"] {
                self.base_value(base, &name(part), [1, hidden])?;
            }
            self.low_rank(&name("attn_qkv"), ranks.qkv_rank, [c.qkv_dim(), hidden], seed);
            self.low_rank(&name("attn_output"), ranks.output_rank, [hidden, c.q_dim()], seed);
            let ffn = c.intermediate_size;
            if stem {
                self.low_rank(&name("ffn_gate"), ranks.gate_rank, [ffn, hidden], seed);
                self.base_value(base, &name("ffn_down"), [hidden, ffn])?;
            } else {
                self.low_rank(&name("ffn_gate"), ranks.ffn_rank, [ffn, hidden], seed);
                self.low_rank(&name("ffn_up"), ranks.ffn_rank, [ffn, hidden], seed);
                self.low_rank(&name("ffn_down"), ranks.ffn_rank, [hidden, ffn], seed);
            }
        }
        self.base_value(base, "output_norm", [1, hidden])?;
        for engram in c.engram.iter() {
            for layer in &engram.layers {
                let name = |part: &str| format!("blk.{}.engram_{part}", layer.layer);
                let mut add = |name: String, rows: usize, width: usize, values: Vec<f32>| {
                    self.tensors.entry(name).or_insert(Matrix { rows, width, values });
                };
                for part in ["key", "value"] {
                    let shape = [hidden, engram.width()];
                    add(name(part), hidden, engram.width(), random::weights(&name(part), &shape, seed));
                }
                for part in ["query_norm", "key_norm", "conv_norm"] {
                    add(name(part), 1, hidden, vec![1.0; hidden]);
                }
                add(name("conv"), engram.kernel, hidden, vec![0.0; engram.kernel * hidden]);
                let records: usize = layer.primes.iter().flatten().map(|p| *p as usize).sum();
                add(name("rows"), records, engram.head_width, vec![0.0; records * engram.head_width]);
            }
        }
        Ok(())
    }

    fn base_value(&mut self, base: &Base, name: &str, [rows, width]: [usize; 2]) -> Result<()> {
        if !self.tensors.contains_key(name) {
            let values = base.tensor(name)?;
            self.tensors.insert(name.to_owned(), Matrix { rows, width, values });
        }
        Ok(())
    }

    /// A change that is zero: the first factor random, the second zero (source: LoRA, arXiv 2106.09685). A matrix that is
    /// trained whole needs none.
    fn low_rank(&mut self, name: &str, rank: usize, [rows, width]: [usize; 2], seed: u64) {
        let (a, b) = (format!("{name}.lora_a"), format!("{name}.lora_b"));
        if rank == 0 || [&a, name].iter().any(|have| self.tensors.contains_key(*have)) {
            return;
        }
        let values = random::weights(&a, &[rank, width], seed);
        self.tensors.insert(a, Matrix { rows: rank, width, values });
        self.tensors.insert(b, Matrix { rows, width: rank, values: vec![0.0; rows * rank] });
    }
}

/// The tensors of a recipe, under the student's names.
fn of_recipe(base: &Base, recipe: &Recipe<'_>) -> Result<Start> {
    let config = recipe.config().clone();
    let mut stored: BTreeSet<&str> = recipe.names().collect();
    let mut take = |name: &str| {
        stored.remove(name);
        recipe.matrix(name).cloned()
    };
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, matrix: Option<Matrix>| {
        if let Some(matrix) = matrix {
            tensors.insert(name, matrix);
        }
    };
    let first = first_changed(&config);
    for layer in first..config.n_layers {
        let stem = config.stem_index(layer).is_some();
        for part in ["attn_norm", "ffn_norm"] {
            add(format!("blk.{layer}.{part}"), take(&format!("blk.{layer}.{part}.weight")));
        }
        let mut changed = vec!["attn_qkv", "attn_output"];
        if !stem {
            changed.extend(["ffn_gate", "ffn_up", "ffn_down"]);
        } else {
            let gate = take(&format!("blk.{layer}.ffn_gate.weight"));
            // A gate is trained whole or in low rank.
            if gate.is_none() {
                changed.push("ffn_gate");
            }
            add(format!("blk.{layer}.ffn_gate"), gate);
            add(format!("blk.{layer}.ffn_down"), take(&format!("blk.{layer}.ffn_down.weight")));
            for part in ["stem_map", "stem_rows"] {
                add(format!("blk.{layer}.{part}"), take(&format!("blk.{layer}.{part}")));
            }
        }
        for part in changed {
            let name = format!("blk.{layer}.{part}");
            let mut factors = Vec::new();
            let mut low_rank = false;
            for (part, shape) in base.parts(&name) {
                let part = part.trim_end_matches(".weight");
                let pair = take(&format!("{part}.lora_a")).zip(take(&format!("{part}.lora_b")));
                low_rank |= pair.is_some();
                // A part that doesn't change has a change of rank 0.
                factors.push(pair.unwrap_or_else(|| {
                    let none = |rows, width| Matrix { rows, width, values: Vec::new() };
                    (none(0, shape[1]), none(shape[0], 0))
                }));
            }
            if low_rank {
                let (a, b) = join(factors);
                add(format!("{name}.lora_a"), Some(a));
                add(format!("{name}.lora_b"), Some(b));
            }
        }
    }
    add("output_norm".into(), take("output_norm.weight"));
    add("stem_embd".into(), take("stem_embd"));
    for engram in config.engram.iter() {
        let mut record = 0;
        for layer in &engram.layers {
            for part in ["key", "value", "query_norm", "key_norm", "conv_norm", "conv"] {
                let name = format!("blk.{}.engram_{part}", layer.layer);
                let mut matrix = take(&format!("{name}.weight"));
                if let (Some(matrix), "conv") = (&mut matrix, part) {
                    (matrix.rows, matrix.width) = (engram.kernel, config.hidden_size);
                }
                add(name, matrix);
            }
            let records: u32 = layer.primes.iter().flatten().sum();
            let values = (record..record + records).flat_map(|r| recipe.engram_row(r)).copied().collect();
            let rows = Matrix { rows: records as usize, width: engram.head_width, values };
            add(format!("blk.{}.engram_rows", layer.layer), Some(rows));
            record += records;
        }
    }
    if let Some(name) = stored.first() {
        return Err(Error::invalid(
            format!("the recipe `{}`", recipe.head().name),
            format!(
                "changes `{name}`, which is not trained: layers below {first}, the embedding and the head stay the \
                 base's, dense FFNs change in low rank alone, and gates of STEM layers whole or in low rank; start from \
                 another recipe"
            ),
        ));
    }
    let compressed = recipe.compressed().cloned();
    let storage = recipe.head().storage.clone();
    Ok(Start { config, tokens: recipe.hot().to_vec(), compressed, tensors, storage })
}

/// One change of matrices that lie one below the other, from a change of each: factors `(a [r, in], b [out, r])`.
///
/// Where all share the first factor, so does the whole; else the ranks add up.
fn join(factors: Vec<(Matrix, Matrix)>) -> (Matrix, Matrix) {
    let shared = factors.windows(2).all(|w| w[0].0.values == w[1].0.values);
    let width = factors[0].0.width;
    let rows = factors.iter().map(|(_, b)| b.rows).sum();
    if shared {
        let rank = factors[0].0.rows;
        let values = factors.iter().flat_map(|(_, b)| &b.values).copied().collect();
        let a = factors.into_iter().next().map(|(a, _)| a);
        let b = Matrix { rows, width: rank, values };
        return (a.unwrap_or(Matrix { rows: 0, width, values: vec![] }), b);
    }
    let rank = factors.iter().map(|(a, _)| a.rows).sum();
    let a = factors.iter().flat_map(|(a, _)| &a.values).copied().collect();
    let mut b = Vec::with_capacity(rows * rank);
    let mut before = 0;
    for (factor, part) in &factors {
        for row in 0..part.rows {
            let start = b.len();
            b.resize(start + rank, 0.0);
            b[start + before..][..factor.rows]
                .copy_from_slice(&part.values[row * part.width..][..part.width]);
        }
        before += factor.rows;
    }
    (Matrix { rows: rank, width, values: a }, Matrix { rows, width: rank, values: b })
}

/// Rows and down-projections in closed form, with the rows' map fitted to them.
fn closed(
    base: &Base,
    settings: &Settings,
    counts: &BTreeMap<u32, u64>,
    calibration: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<Start> {
    let n = base.config().n_layers;
    let layers = settings.student.stem_layers.clone();
    let layers = layers.unwrap_or_else(|| (n / 10..n / 10 + n / 3).collect());
    // A gate solved in closed form would be a whole matrix to store; training changes it in low rank.
    let options = closed_form::Options { gate_steps: 0, ..closed_form::Options::new(layers) };
    let found = closed_form::convert(base, calibration, &options, progress)?;
    let config = found.config().clone();
    let (hidden, ffn, vocab) = (config.hidden_size, config.intermediate_size, config.vocab_size);
    let mut by_count: Vec<(u64, u32)> = counts.iter().map(|(token, count)| (*count, *token)).collect();
    by_count.sort_unstable_by_key(|(count, token)| (std::cmp::Reverse(*count), *token));
    let mut tokens: Vec<u32> =
        by_count.iter().take(settings.student.residual_rows).map(|(_, token)| *token).collect();
    tokens.sort_unstable();
    let embedding = base.tensor("token_embd")?;
    let mut fits: Vec<_> = config.stem_layers.iter().map(|_| Regression::new(hidden, ffn)).collect();
    let all: Vec<u32> = (0..vocab as u32).collect();
    for (part, some) in all.chunks(FIT_TOKENS).enumerate() {
        progress.update("Rows", (part * FIT_TOKENS) as u64, vocab as u64)?;
        let mut rows = vec![0f32; some.len() * config.stem_width()];
        found.rows(some, &mut rows)?;
        // A row counts by the fourth root of its square: frequent tokens more, but not alone.
        let weight = |t: &u32| (counts.get(t).copied().unwrap_or(0) as f32 + PRIOR_COUNT).sqrt().sqrt();
        let weights: Vec<f32> = some.iter().map(weight).collect();
        let scaled = |values: Vec<&[f32]>| -> Vec<f32> {
            let pairs = values.into_iter().zip(&weights);
            pairs.flat_map(|(v, w)| v.iter().map(move |v| v * w)).collect()
        };
        let inputs = scaled(some.iter().map(|t| &embedding[*t as usize * hidden..][..hidden]).collect());
        for (i, fit) in fits.iter_mut().enumerate() {
            let targets = rows.chunks_exact(config.stem_width()).map(|row| &row[i * ffn..][..ffn]);
            fit.add(&inputs, &scaled(targets.collect()));
        }
    }
    let mut own = vec![0f32; tokens.len() * config.stem_width()];
    found.rows(&tokens, &mut own)?;
    let mut tensors = BTreeMap::new();
    for (i, (layer, fit)) in config.stem_layers.iter().zip(fits).enumerate() {
        let map = fit.solve(MAP_RIDGE, None)?;
        let mut residual = Vec::with_capacity(tokens.len() * ffn);
        for (token, row) in tokens.iter().zip(own.chunks_exact(config.stem_width())) {
            let e = &embedding[*token as usize * hidden..][..hidden];
            let maps = map.chunks_exact(hidden);
            let mapped = maps.map(|a| a.iter().zip(e).map(|(a, e)| a * e).sum::<f32>());
            residual.extend(row[i * ffn..][..ffn].iter().zip(mapped).map(|(row, mapped)| row - mapped));
        }
        tensors.insert(format!("blk.{layer}.stem_map"), Matrix { rows: ffn, width: hidden, values: map });
        if !tokens.is_empty() {
            let rows = Matrix { rows: tokens.len(), width: ffn, values: residual };
            tensors.insert(format!("blk.{layer}.stem_rows"), rows);
        }
        let down = format!("blk.{layer}.ffn_down");
        if let Some(values) = found.tensor(&down)? {
            tensors.insert(down, Matrix { rows: hidden, width: ffn, values });
        }
    }
    Ok(Start { config, tokens, compressed: None, tensors, storage: BTreeMap::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_told_by_name() {
        for (name, group) in [
            ("blk.3.attn_norm", Group::Norms),
            ("output_norm", Group::Norms),
            ("blk.13.attn_qkv.lora_a", Group::Core),
            ("blk.3.ffn_gate.lora_b", Group::Core),
            ("blk.3.ffn_down", Group::Down),
            ("blk.3.ffn_gate", Group::Down),
            ("blk.13.ffn_down.lora_a", Group::Core),
            ("blk.3.stem_map", Group::Maps),
            ("blk.3.stem_rows", Group::Rows),
            ("stem_embd", Group::Rows),
            ("blk.3.engram_key_norm", Group::Engram),
            ("blk.3.engram_rows", Group::EngramTables),
        ] {
            assert_eq!(Group::of(name), group, "{name}");
        }
    }

    #[test]
    fn features_that_no_recipe_holds_are_refused() {
        let check = |width: usize| {
            let features = Matrix { rows: 49152, width, values: Vec::new() };
            let tensors = [("stem_embd".to_owned(), features)].into();
            let (config, storage) = (crate::config::tests::tiny(), BTreeMap::new());
            Start { config, tokens: vec![], compressed: None, tensors, storage }.check_features()
        };
        check(321).unwrap();
        let says = check(322).unwrap_err().to_string();
        assert!(says.contains("322 features") && says.contains("at most 49072 tokens"), "{says}");
    }

    #[test]
    fn changes_of_parts_become_one() {
        let matrix = |rows, width, values: &[f32]| Matrix { rows, width, values: values.into() };
        let a = matrix(1, 2, &[1.0, 2.0]);
        let (shared, b) =
            join(vec![(a.clone(), matrix(2, 1, &[3.0, 4.0])), (a.clone(), matrix(1, 1, &[5.0]))]);
        assert_eq!((shared.rows, b.rows, b.width), (1, 3, 1));
        assert_eq!(b.values, [3.0, 4.0, 5.0]);
        let other = matrix(2, 2, &[6.0, 7.0, 8.0, 9.0]);
        let (a, b) = join(vec![(a, matrix(1, 1, &[3.0])), (other, matrix(2, 2, &[1.0, 2.0, 3.0, 4.0]))]);
        assert_eq!((a.rows, a.values.as_slice()), (3, &[1.0, 2.0, 6.0, 7.0, 8.0, 9.0][..]));
        assert_eq!(b.values, [3.0, 0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 3.0, 4.0]);
        let none = (matrix(0, 2, &[]), matrix(2, 0, &[]));
        let (a, b) = join(vec![(matrix(1, 2, &[1.0, 2.0]), matrix(1, 1, &[3.0])), none]);
        assert_eq!((a.rows, b.rows, b.values.as_slice()), (1, 3, &[3.0, 0.0, 0.0][..]));
    }
}
