//! `xylem random`: a bundle with random weights, for tests and for timing shapes that no checkpoint has.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use xylem::bundle::manifest::Source;
use xylem::bundle::quant::quantize_row;
use xylem::bundle::writer::{TableSpec, Writer};
use xylem::bundle::{Dtype, Manifest, random};
use xylem::config::Config;
use xylem::engram::compress::Compressed;
use xylem::engram::draw::Sizes;
use xylem::text::Tokenizer;
use xylem::text::json::bytes_only;

use super::interrupt;

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + \
    '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Write a bundle with random weights: a token a byte, ChatML, STEM layers. It speaks nonsense, but quickly.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 96)]
    hidden: usize,
    /// Width of the FFN.
    #[arg(long, default_value_t = 160)]
    ffn: usize,
    /// Layers.
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// Query heads.
    #[arg(long, default_value_t = 6)]
    heads: usize,
    /// Key and value heads.
    #[arg(long, default_value_t = 2)]
    kv_heads: usize,
    /// Width of a head.
    #[arg(long, default_value_t = 16)]
    head_dim: usize,
    /// Tokens; those beyond the bytes are never in a text.
    #[arg(long, default_value_t = 300)]
    vocab: usize,
    /// Positions.
    #[arg(long, default_value_t = 512)]
    context: usize,
    /// STEM layers, as a list; with no value there are none.
    #[arg(long, value_delimiter = ',', num_args = 0.., default_values_t = [1, 2])]
    stem: Vec<usize>,
    /// Engram layers, as a list; none unless given.
    #[arg(long, value_delimiter = ',')]
    engram_layers: Vec<usize>,
    /// The least sizes of an Engram head's table: for pairs, triples, and so on.
    #[arg(long, value_delimiter = ',', default_values_t = [500, 700])]
    engram_tables: Vec<u32>,
    /// Engram heads for each length of n-gram.
    #[arg(long, default_value_t = 2)]
    engram_heads: usize,
    /// Width of an Engram head's row.
    #[arg(long, default_value_t = 24)]
    engram_width: usize,
    /// How matrices are stored.
    #[arg(long, value_enum, default_value = "q4")]
    precision: Precision,
    /// Equal seeds give equal bundles.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// How matrices are stored.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 8 bits and a scale for 32 weights.
    Q8,
    /// 4 bits, a scale and a minimum for 32 weights.
    Q4,
}

impl From<Precision> for Dtype {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Q8 => Self::Q8,
            Precision::Q4 => Self::Q4,
        }
    }
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    let special = |i: usize| 256 + i as u32;
    let mut names: Vec<String> = SPECIAL.map(String::from).into();
    names.extend((256 + SPECIAL.len()..args.vocab).map(|id| format!("<|unused {id}|>")));
    let tokenizer = bytes_only(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let compressed = Compressed::new(&Tokenizer::new(&tokenizer, None)?, args.vocab)?;
    let engram = if args.engram_layers.is_empty() {
        None
    } else {
        let sizes = Sizes {
            layers: args.engram_layers.clone(),
            tables: args.engram_tables.clone(),
            heads: args.engram_heads,
            head_width: args.engram_width,
            kernel: 4,
            seed: args.seed,
        };
        let pad = compressed.ids.get(special(0) as usize).copied().unwrap_or_default();
        Some(sizes.draw(compressed.count, pad)?)
    };
    let config = Config {
        vocab_size: args.vocab,
        hidden_size: args.hidden,
        intermediate_size: args.ffn,
        n_layers: args.layers,
        n_heads: args.heads,
        n_kv_heads: args.kv_heads,
        head_dim: args.head_dim,
        context_length: args.context,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-5,
        tied_head: true,
        bos_token: None,
        eos_tokens: vec![special(0), special(2)],
        stem_layers: args.stem.clone(),
        engram,
    };
    config.validate()?;
    let stop = interrupt::any()?;
    let check = || interrupt::check(&stop);
    let writer = Writer::create(&args.out)?;
    let dtype = Dtype::from(args.precision);
    let core = random::core(&config, args.seed, |_| dtype).into_iter();
    let core = writer.core(core.map(|(t, planes)| check().map(|()| (t.name, t.dtype, t.shape, planes))))?;
    let mut tables = Vec::new();
    if !config.stem_layers.is_empty() {
        let order: Vec<u32> = (0..config.vocab_size as u32).collect();
        tables.push(writer.table(&TableSpec::stem(&config, &order), |token, out| {
            check()?;
            let rows = random::rows(&config, token, args.seed);
            for row in rows[..config.stem_width()].chunks_exact(config.intermediate_size) {
                quantize_row(row, out);
            }
            Ok(())
        })?);
    }
    if let Some(engram) = &config.engram {
        let order: Vec<u32> = (0..engram.records() as u32).collect();
        tables.push(writer.table(&TableSpec::engram(engram, &order), |record, out| {
            check()?;
            quantize_row(&random::engram_row(engram, record, args.seed), out);
            Ok(())
        })?);
    }
    let ids = config.engram.as_ref().map(|_| writer.file("engram-ids.bin", &compressed.to_bytes()));
    let mut manifest = Manifest::new(
        format!("Random, seed {}", args.seed),
        Source { base: "none".into(), licence: "CC0-1.0".into(), rows: "random".into() },
        config,
        core,
        tables,
        writer.file("tokenizer.json", &tokenizer)?,
        Some(writer.file("chat_template.jinja", CHATML.as_bytes())?),
    );
    manifest.engram_ids = ids.transpose()?;
    writer.finish(&manifest)?;
    Ok(super::print_line(format!("Wrote {}", args.out.display()))?)
}
