//! `xylem inspect`: what a bundle holds, beside the dense model it was made from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;
use xylem::bundle::reader::folder_bytes;
use xylem::bundle::{Bundle, Cost, Manifest, TableKind};
use xylem::config::Config;

/// Show sizes, layers, tables, precisions, and parameters and FLOPs beside the dense base.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    name: &'a str,
    base: &'a str,
    licence: &'a str,
    rows: &'a str,
    hash: String,
    config: &'a Config,
    bytes: Bytes,
    tables: Vec<Table<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    engram: Option<Engram>,
    /// Weights of the core by the type that stores them.
    weights_by_type: BTreeMap<String, usize>,
    parameters: Parameters,
    flops_per_token: Flops,
}

#[derive(Serialize)]
struct Bytes {
    total: u64,
    core: u64,
    tables: u64,
}

#[derive(Serialize)]
struct Table<'a> {
    name: &'a str,
    records: usize,
    rows_per_record: usize,
    width: usize,
    record_bytes: usize,
    records_per_page: usize,
    shards: usize,
    bytes: u64,
    /// Records that one token looks up, and their bytes.
    records_per_token: usize,
    bytes_per_token: usize,
}

#[derive(Serialize)]
struct Engram {
    layers: Vec<usize>,
    /// Tokens of the longest n-gram.
    order: usize,
    /// Heads of a layer.
    heads: usize,
    head_width: usize,
    compressed_vocab: usize,
    /// Weights of the core that belong to the layers.
    weights: usize,
}

#[derive(Serialize)]
struct Parameters {
    /// Weights that every token uses.
    core: usize,
    /// Values in the tables.
    tables: usize,
    /// Values of the tables that one token brings.
    row_values_per_token: usize,
    /// Weights of the dense base.
    dense: usize,
}

#[derive(Serialize)]
struct Flops {
    /// Two for each weight that a token is multiplied with; attention over earlier positions comes on top.
    bundle: usize,
    dense: usize,
    /// Of one FFN: dense and STEM.
    dense_ffn: usize,
    stem_ffn: usize,
}

fn report<'a>(manifest: &'a Manifest, total: u64) -> Report<'a> {
    let c = &manifest.config;
    let mut weights_by_type = BTreeMap::new();
    for tensor in &manifest.core.tensors {
        *weights_by_type.entry(format!("{:?}", tensor.dtype).to_lowercase()).or_default() +=
            tensor.elements();
    }
    let cost = Cost::new(manifest);
    let table = |t: &'a xylem::bundle::Table| {
        let records_per_token = match (&t.kind, &c.engram) {
            (TableKind::Engram, Some(engram)) => engram.layers.len() * engram.heads(),
            _ => 1,
        };
        Table {
            name: &t.name,
            records: t.records,
            rows_per_record: t.rows_per_record,
            width: t.width,
            record_bytes: t.record_bytes(),
            records_per_page: t.records_per_page,
            shards: t.shards.len(),
            bytes: t.bytes(),
            records_per_token,
            bytes_per_token: records_per_token * t.record_bytes(),
        }
    };
    let engram = c.engram.as_ref().map(|e| Engram {
        layers: e.layers.iter().map(|l| l.layer).collect(),
        order: e.order(),
        heads: e.heads(),
        head_width: e.head_width,
        compressed_vocab: e.compressed_vocab,
        weights: cost.engram,
    });
    Report {
        name: &manifest.name,
        base: &manifest.source.base,
        licence: &manifest.source.licence,
        rows: &manifest.source.rows,
        hash: manifest.hash(),
        config: c,
        bytes: Bytes {
            total,
            core: manifest.core_bytes(),
            tables: manifest.tables.iter().map(xylem::bundle::Table::bytes).sum(),
        },
        tables: manifest.tables.iter().map(table).collect(),
        engram,
        weights_by_type,
        parameters: Parameters {
            core: cost.core,
            tables: cost.tables,
            row_values_per_token: cost.row_values_per_token,
            dense: cost.dense,
        },
        flops_per_token: Flops {
            bundle: cost.flops,
            dense: cost.dense_flops,
            dense_ffn: cost.dense_ffn_flops,
            stem_ffn: cost.stem_ffn_flops,
        },
    }
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    let bundle = Bundle::open(&args.bundle)?;
    let r = report(bundle.manifest(), folder_bytes(bundle.dir())?);
    if args.json {
        return super::print_json(&r);
    }
    let c = r.config;
    let millions = |n: usize| format!("{:.1} M", n as f64 / 1e6);
    let types: Vec<String> = r.weights_by_type.iter().map(|(t, n)| format!("{} {t}", millions(*n))).collect();
    let mut lines = vec![
        format!("{} (from {}, {}; rows: {})", r.name, r.base, r.licence, r.rows),
        format!(
            "  layers     {}, STEM: {:?}; hidden {}, FFN {}, heads {} ({} for keys and values), context {}",
            c.n_layers,
            c.stem_layers,
            c.hidden_size,
            c.intermediate_size,
            c.n_heads,
            c.n_kv_heads,
            c.context_length
        ),
        format!(
            "  bytes      {} in all: core {}, tables {}",
            HumanBytes(r.bytes.total),
            HumanBytes(r.bytes.core),
            HumanBytes(r.bytes.tables)
        ),
        format!("  weights    {}", types.join(", ")),
    ];
    if let Some(e) = &r.engram {
        lines.push(format!(
            "  Engram     layers {:?}: n-grams of 2 to {} tokens, {} heads x {}, {} compressed ids, {} weights",
            e.layers,
            e.order,
            e.heads,
            e.head_width,
            HumanCount(e.compressed_vocab as u64),
            HumanCount(e.weights as u64)
        ));
    }
    for t in &r.tables {
        lines.push(format!(
            "  table      {}: {} records of {} rows x {} ({} each), {} a page, {} files; {} for a token",
            t.name,
            t.records,
            t.rows_per_record,
            t.width,
            HumanBytes(t.record_bytes as u64),
            t.records_per_page,
            t.shards,
            HumanBytes(t.bytes_per_token as u64)
        ));
    }
    let p = &r.parameters;
    let f = &r.flops_per_token;
    lines.push(format!(
        "  parameters core {} (dense base {}), tables {}, {} of them for a token",
        millions(p.core),
        millions(p.dense),
        millions(p.tables),
        HumanCount(p.row_values_per_token as u64)
    ));
    lines.push(format!(
        "  FLOPs      {} a token (dense base {}); an FFN: {} dense, {} STEM",
        millions(f.bundle),
        millions(f.dense),
        millions(f.dense_ffn),
        millions(f.stem_ffn)
    ));
    Ok(super::print_line(lines.join("\n"))?)
}
