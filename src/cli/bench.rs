//! `xylem bench`: measure speed and lookups.

mod speed;

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use indicatif::HumanBytes;
use serde::Serialize;
use xylem::backend::Backend;
use xylem::bench::answer::{Arm, RoundTrips};
use xylem::bench::{Bench, Link, OverLink, Replayed, Spread, Streamed, TextRecords, replay};
use xylem::bundle::{Bundle, Table};
use xylem::cpu::{CpuBackend, KvType};
use xylem::tables::Policy;
use xylem::text::{Message, Role, Tokenizer, chat, documents};

use super::progress;

/// Measure speed and lookups.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Speed(speed::Args),
    Tables(TablesArgs),
}

/// Replay the lookups of a text with memories of several sizes, and answer a prompt with resident and with streamed rows.
/// On the CPU (docs/tables.md).
#[derive(Debug, clap::Args)]
pub struct TablesArgs {
    /// Folder of the bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// The text to replay; documents are separated by a line `<|endoftext|>`.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Replay the first so many tokens.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    tokens: Option<u64>,
    /// Replay so many tokens a lookup: 1 as when writing, 128 as when reading a prompt.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=4096))]
    step: u64,
    /// What pages in memory may take in the replays, in MiB, or `all`.
    #[arg(long, value_name = "MIB", value_delimiter = ',', default_value = "4,16,64,256,all")]
    budgets: Vec<Budget>,
    /// The prompt to answer; in the model's chat template, if it has one.
    #[arg(long, value_name = "TEXT", default_value = "How does the heart pump blood through the body?")]
    prompt: String,
    /// At most so many new tokens.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(2..))]
    answer: u64,
    /// Answers of each kind; 0 only replays.
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Answer over a simulated link too, of so many Mbit/s with a round trip of so many ms, as 20,50.
    #[arg(long, value_name = "MBIT,MS")]
    link: Option<Link>,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

/// Room for pages in memory.
#[derive(Debug, Clone, Copy)]
pub enum Budget {
    /// So many MiB.
    MiB(u32),
    /// As much as the table takes.
    All,
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(mib) => Ok(Self::MiB(mib)),
            Err(_) if text == "all" => Ok(Self::All),
            Err(e) => Err(format!("{e}; a number of MiB, or `all`")),
        }
    }
}

#[derive(Serialize)]
struct Report {
    model: String,
    table: TableSize,
    text: TextRecords,
    step: u64,
    replays: Vec<Replayed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<Answer>,
}

#[derive(Serialize)]
struct TableSize {
    bytes: u64,
    records: usize,
    record_bytes: usize,
    records_per_page: usize,
}

#[derive(Serialize)]
struct Answer {
    backend: String,
    prompt_tokens: usize,
    new_tokens: usize,
    text: String,
    runs: usize,
    #[serde(flatten)]
    streamed: Streamed,
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<OverLink>,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Speed(args) => speed::run(args),
        What::Tables(args) => tables(args),
    }
}

fn tables(args: &TablesArgs) -> Result<()> {
    let bundle = Bundle::open(&args.bundle)?;
    let Some(table) = bundle.manifest().stem_table() else {
        bail!("the model has no STEM table to look up in")
    };
    let tokenizer = bundle.tokenizer()?;
    let texts = texts(args, &bundle, &tokenizer)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let report = runtime.block_on(async {
        let (text, replays) = replays(args, &bundle, table, &texts).await?;
        let answer = if args.runs > 0 { Some(answer(args, &bundle, &tokenizer).await?) } else { None };
        anyhow::Ok(Report {
            model: bundle.manifest().hash(),
            table: TableSize {
                bytes: table.bytes(),
                records: table.records,
                record_bytes: table.record_bytes(),
                records_per_page: table.records_per_page,
            },
            text,
            step: args.step,
            replays,
            answer,
        })
    })?;
    if args.json {
        return super::print_json(&report);
    }
    Ok(super::print_line(lines(&report).join("\n"))?)
}

/// The documents, with as many tokens as were asked for.
fn texts(args: &TablesArgs, bundle: &Bundle, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
    let name = args.data.display().to_string();
    let text = std::fs::read_to_string(&args.data).with_context(|| name.clone())?;
    let mut left = args.tokens.map_or(usize::MAX, |n| n as usize);
    let mut texts = documents(&text, tokenizer, bundle.manifest().config.context_length)?;
    for text in &mut texts {
        text.truncate(left);
        left -= text.len();
    }
    texts.retain(|text| !text.is_empty());
    if texts.is_empty() {
        bail!("{name}: there are no documents");
    }
    Ok(texts)
}

/// The text, and a visit with each kind of memory.
async fn replays(
    args: &TablesArgs,
    bundle: &Bundle,
    table: &Table,
    texts: &[Vec<u32>],
) -> Result<(TextRecords, Vec<Replayed>)> {
    let new = || bundle.tables()?.context("the model has no STEM table to look up in");
    let text = TextRecords::of(new()?.layout(), texts);
    let bar = progress::count("Replaying", 2 * args.budgets.len() as u64);
    let mut replays = Vec::new();
    for policy in [Policy::Lru, Policy::Lfu] {
        for budget in &args.budgets {
            let bytes = match budget {
                Budget::MiB(mib) => *mib as usize * (1 << 20),
                Budget::All => table.bytes() as usize,
            };
            replays.push(replay::replay(&new()?, policy, bytes, texts, args.step as usize).await?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok((text, replays))
}

async fn answer(args: &TablesArgs, bundle: &Bundle, tokenizer: &Tokenizer) -> Result<Answer> {
    let manifest = bundle.manifest();
    let max_tokens = args.answer as usize;
    let context = manifest.config.context_length;
    let prompt = match bundle.template(tokenizer)? {
        Some(template) => {
            let message = Message { role: Role::User, content: args.prompt.clone() };
            chat::prompt(tokenizer, &template, &[message], context, max_tokens)?.tokens
        }
        None => tokenizer.encode(&args.prompt)?,
    };
    let room = (prompt.len() + max_tokens).min(context);
    let mut backend = CpuBackend::new(&manifest.core.tensors, &manifest.config, room);
    backend.set_kv_type(KvType::default());
    let bar = progress::bytes("Loading", manifest.core_bytes());
    bundle.load_core(&mut backend, |done, _| bar.set_position(done))?;
    bar.finish_and_clear();
    let mut bench = Bench::new(bundle, backend, &prompt, max_tokens).await?;
    let streamed = bench.streamed(args.runs).await?;
    let link = match args.link {
        Some(link) => Some(bench.over(link, args.runs).await?),
        None => None,
    };
    let (kind, device) = bench.backend().describe();
    Ok(Answer {
        backend: format!("{kind}: {device}"),
        prompt_tokens: bench.prompt_tokens(),
        new_tokens: bench.tokens().len(),
        text: tokenizer.decode(bench.tokens())?,
        runs: args.runs,
        streamed,
        link,
    })
}

fn lines(report: &Report) -> Vec<String> {
    let (table, text) = (&report.table, &report.text);
    let percent = |share: f64| format!("{:.2}%", share * 100.0);
    let mut lines = vec![
        format!(
            "table     {} in {} records of {} bytes",
            HumanBytes(table.bytes),
            table.records,
            table.record_bytes
        ),
        format!(
            "text      {} tokens in {} documents: {} distinct records, {:.3} and {:.0} bytes a token, {} of the table",
            text.tokens,
            text.documents,
            text.records,
            text.records_per_token,
            text.bytes_per_token,
            percent(text.table_share)
        ),
        format!(
            "document  {:.0} tokens, {:.0} distinct records, {} of the table (means)",
            text.a_document.tokens,
            text.a_document.records,
            percent(text.a_document.table_share)
        ),
    ];
    lines.extend(
        text.growth.iter().map(|g| format!("{:>9} tokens {:>7} distinct records", g.tokens, g.records)),
    );
    lines.push(format!("\nvisit, {} tokens a lookup", report.step));
    lines.push(format!(
        "{:6} {:>12} {:>9} {:>9} {:>9} {:>8} {:>9} {:>13}",
        "memory", "budget", "unique", "memory", "fetched", "hits", "requests", "bytes a token"
    ));
    lines.extend(report.replays.iter().map(|r| {
        format!(
            "{:6} {:>12} {:>9} {:>9} {:>9} {:>8} {:>9} {:>13.0}",
            format!("{:?}", r.policy),
            HumanBytes(r.budget).to_string(),
            r.unique_rows,
            r.memory,
            r.fetched,
            percent(r.hit_rate),
            r.requests,
            r.bytes_per_token
        )
    }));
    let Some(answer) = &report.answer else { return lines };
    let streamed = &answer.streamed;
    lines.push(format!(
        "\nanswer of {} tokens to a prompt of {}, {} runs each, {}",
        answer.new_tokens, answer.prompt_tokens, answer.runs, answer.backend
    ));
    lines.push(format!(
        "{:12} {:>20} {:>20} {:>22} {:>17} {:>6} {:>9}",
        "rows", "tokens/s", "first token ms", "before it", "wait ms (max)", "share", "asked"
    ));
    lines.push(arm("resident", &streamed.resident));
    lines.push(arm("cold", &streamed.cold));
    lines.push(arm("warm", &streamed.warm));
    let ratio = |s: &Spread| format!("{:.3} ({:.3} to {:.3})", s.median, s.min, s.max);
    lines.push(format!(
        "of resident  warm {}, cold {}; {}",
        ratio(&streamed.warm_to_resident),
        ratio(&streamed.cold_to_resident),
        same(streamed.identical)
    ));
    if let Some(over) = &answer.link {
        lines.push(format!("\nover {} Mbit/s, {} ms", over.link.mbit, over.link.round_trip_ms));
        lines.push(arm("cold", &over.cold));
        lines.push(arm("second time", &over.second));
        let most = over.cold.a_token.requests_max;
        let trips = over.cold_round_trips.map(|trips| {
            let RoundTrips { mean, asked, max } = trips;
            format!("{mean:.2} round trips, {asked:.2} if it asks (max {max:.2}), ")
        });
        let trips = trips.unwrap_or_default();
        lines.push(format!("cold, a new token: {trips}{most} requests at most; {}", same(over.identical)));
    }
    lines
}

fn arm(name: &str, arm: &Arm) -> String {
    let spread = |s: &Spread| format!("{:.1} ({:.1}-{:.1})", s.median, s.min, s.max);
    let (first, token) = (&arm.first_token, &arm.a_token);
    format!(
        "{name:12} {:>20} {:>20} {:>22} {:>17} {:>6} {:>9}",
        spread(&arm.tokens_per_second),
        spread(&arm.first_token_ms),
        format!("{}, {:.2}%", HumanBytes(first.traffic.bytes), first.table_share * 100.0),
        format!("{:.2} ({:.1})", token.wait_ms, token.wait_ms_max),
        format!("{:.1}%", token.wait_share * 100.0),
        format!("{:.1}%", token.asked * 100.0),
    )
}

fn same(identical: bool) -> &'static str {
    if identical { "tokens and probabilities identical" } else { "TOKENS OR PROBABILITIES DIFFER" }
}
