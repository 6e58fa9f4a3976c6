//! `xylem bench speed`: how fast a bundle reads and writes here, where the time goes, and what the machine could do at best.

mod show;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use serde::Serialize;
use xylem::backend::Backend;
use xylem::bench::answer::Traffic;
use xylem::bench::speed::tokens;
use xylem::bench::{Depth, Speed, Task, depth, memory, speed};
use xylem::bundle::{Bundle, Cost, Manifest};
use xylem::config::Config;
use xylem::cpu::KvType;
use xylem::device::Device;
use xylem::gpu::limits::{Limits, Work};
use xylem::session::{Observer, Session};

use super::super::model::{Kind, Kv, device};
use super::super::progress;

/// What is read unless another prompt is given.
const PROMPT: &str = include_str!("../../bench/prompt.txt");
/// Steps at each depth.
const STEPS: usize = 8;

/// Measure how fast a bundle reads a prompt and writes, where the time of a step goes, and what the machine could do at
/// best (docs/performance.md).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the bundle.
    #[arg(long, visible_alias = "model", value_name = "DIR")]
    bundle: PathBuf,
    /// What computes.
    #[arg(long, value_enum, default_value = "cpu")]
    backend: Kind,
    #[command(flatten)]
    kv: Kv,
    /// Threads of the CPU backend; as many as there are cores unless given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// The text to read, taken as it is; a built-in one unless given.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Read so many tokens, the text over and over; the text once unless given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: Option<u32>,
    /// New tokens of a run.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..))]
    new_tokens: u32,
    /// Runs, after one that warms up.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// More runs, whose operations are timed one by one.
    #[arg(long, value_name = "N", default_value_t = 2)]
    timed_runs: u16,
    /// Measure single steps behind so many tokens too, as 0,1024,4096.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    depths: Vec<usize>,
    /// Print a JSON object, or write it to FILE and print what people read.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    machine: Machine,
    model: Model,
    backend: String,
    load_ms: f64,
    memory: Memory,
    download: Download,
    #[serde(flatten)]
    speed: Speed,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    depths: Vec<Depth>,
    roofline: Roofline,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<Gpu>,
}

#[derive(Serialize)]
struct Machine {
    system: String,
    cores: usize,
    threads: usize,
}

#[derive(Serialize)]
struct Model {
    name: String,
    hash: String,
    n_layers: usize,
    stem_layers: usize,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
}

/// Bytes that the process has in memory, where the system tells, and that the backend counts.
#[derive(Serialize)]
struct Memory {
    start_resident_bytes: Option<u64>,
    loaded_resident_bytes: Option<u64>,
    end_resident_bytes: Option<u64>,
    backend_bytes: u64,
    /// Of the CPU backend: how it stores keys and values, and what those of one position take.
    #[serde(flatten)]
    kv: Option<KvBytes>,
}

#[derive(Serialize)]
struct KvBytes {
    kv_type: KvType,
    kv_position_bytes: usize,
}

/// Bytes that a first visit fetches before its first answer, but for the page itself.
#[derive(Serialize)]
struct Download {
    core_bytes: u64,
    /// Tokenizer, chat template and the tables' indices.
    small_bytes: u64,
    /// Of the tables, for the first run.
    rows_bytes: u64,
    row_requests: u64,
    tables_bytes: u64,
}

/// A step of one token reads every weight once, so that memory bounds it.
#[derive(Serialize)]
struct Roofline {
    /// Bytes of weights that a step reads.
    weight_bytes: u64,
    /// What that comes to at the median speed.
    weight_bytes_per_second: f64,
    /// What the threads read together when they do nothing else; of a GPU, what it reads and
    /// writes when it copies.
    limit_bytes_per_second: f64,
    share: f64,
}

#[derive(Serialize)]
struct Gpu {
    #[serde(flatten)]
    work: Work,
    #[serde(flatten)]
    limits: Limits,
    /// Dispatches and the round trip alone, if they did nothing.
    empty_step_ms: f64,
    /// Its share of a step.
    empty_share: f64,
    /// Milliseconds that the device was busy in a step, by its own clock.
    busy_ms: Option<f64>,
}

/// Shows progress by tokens.
struct Bar(ProgressBar);

impl Observer for Bar {
    fn token(&mut self, _: u32, _: f32) {
        self.0.inc(1);
    }
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global().context("--threads")?;
    }
    let report = pollster::block_on(measure(args))?;
    match &args.json {
        Some(path) if path.as_os_str() == "-" => super::super::print_json(&report),
        json => {
            if let Some(path) = json {
                let text = serde_json::to_string_pretty(&report)? + "\n";
                std::fs::write(path, text).with_context(|| path.display().to_string())?;
            }
            Ok(super::super::print_line(show::lines(&report).join("\n"))?)
        }
    }
}

async fn measure(args: &Args) -> Result<Report> {
    let start_resident_bytes = memory::resident_bytes();
    let began = Instant::now();
    let bundle = Bundle::open(&args.bundle)?;
    let (manifest, tokenizer) = (bundle.manifest(), bundle.tokenizer()?);
    let text = tokenizer.encode(args.prompt.as_deref().unwrap_or(PROMPT).trim_end())?;
    let prompt = tokens(&text, args.prompt_tokens.map_or(text.len(), |n| n as usize));
    let task = Task {
        prompt: &prompt,
        new_tokens: args.new_tokens as usize,
        runs: args.runs.into(),
        timed_runs: args.timed_runs.into(),
    };
    let deepest = args.depths.iter().max().map_or(0, |depth| depth + 1);
    let context = (task.prompt.len() + task.new_tokens).max(deepest);
    let mut device = device(manifest, args.backend, context)?;
    args.kv.apply(&mut device)?;
    bundle.load_core(&mut device, |_, _| {})?;
    let chunk = super::super::model::chunk(&device);
    let mut session = Session::new(device, bundle.rows()?, manifest.config.clone(), chunk);
    let load_ms = began.elapsed().as_secs_f64() * 1e3;
    let loaded_resident_bytes = memory::resident_bytes();

    let runs = 1 + u64::from(args.runs) + u64::from(args.timed_runs);
    let bar = progress::count("Running", runs * u64::from(args.new_tokens));
    let mut bar = Bar(bar);
    let speed = speed::speed(&mut session, task, &mut bar).await?;
    bar.0.finish_and_clear();
    // What the first run looked up, no later one had to fetch.
    let traffic = Traffic::of(session.rows());
    let mut depths = args.depths.clone();
    depths.sort_unstable();
    let depths = depth::at(&mut session, &tokens(&text, deepest), &depths, STEPS).await?;
    let memory = Memory {
        start_resident_bytes,
        loaded_resident_bytes,
        end_resident_bytes: memory::resident_bytes(),
        backend_bytes: session.backend().bytes(),
        kv: session.backend().cpu().map(|backend| KvBytes::new(backend.kv_type(), &manifest.config)),
    };
    let step_ms = 1e3 / speed.decode_tokens_per_second.median;
    let gpu = match session.backend() {
        Device::Cpu(_) => None,
        Device::Gpu(backend) => Some(Gpu::new(backend.work(), backend.limits().await?, step_ms, &speed)),
    };
    let limit = match &gpu {
        Some(gpu) => gpu.limits.copy_bytes_per_second,
        None => memory::read_bytes_per_second(),
    };
    let weight_bytes = Cost::new(manifest).read_bytes;
    let weight_bytes_per_second = weight_bytes as f64 * 1e3 / step_ms;
    let (kind, name) = session.backend().describe();
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        machine: Machine {
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads: rayon::current_num_threads(),
        },
        model: Model::new(manifest),
        backend: format!("{kind}: {name}"),
        load_ms,
        memory,
        download: Download::new(manifest, traffic),
        speed,
        depths,
        roofline: Roofline {
            weight_bytes,
            weight_bytes_per_second,
            limit_bytes_per_second: limit,
            share: weight_bytes_per_second / limit,
        },
        gpu,
    })
}

impl KvBytes {
    fn new(kv_type: KvType, config: &Config) -> Self {
        Self { kv_type, kv_position_bytes: kv_type.position_bytes(config) }
    }
}

impl Model {
    fn new(manifest: &Manifest) -> Self {
        let c = &manifest.config;
        Self {
            name: manifest.name.clone(),
            hash: manifest.hash(),
            n_layers: c.n_layers,
            stem_layers: c.stem_layers.len(),
            vocab_size: c.vocab_size,
            hidden_size: c.hidden_size,
            intermediate_size: c.intermediate_size,
        }
    }
}

impl Download {
    fn new(manifest: &Manifest, rows: Traffic) -> Self {
        let files =
            [Some(&manifest.tokenizer), manifest.chat_template.as_ref(), manifest.engram_ids.as_ref()];
        let files = files.into_iter().flatten().chain(manifest.tables.iter().map(|table| &table.index));
        Self {
            core_bytes: manifest.core_bytes(),
            small_bytes: files.map(|file| file.bytes).sum(),
            rows_bytes: rows.bytes,
            row_requests: rows.requests,
            tables_bytes: manifest.tables.iter().map(xylem::bundle::Table::bytes).sum(),
        }
    }
}

impl Gpu {
    fn new(work: Work, limits: Limits, step_ms: f64, speed: &Speed) -> Self {
        let empty_step_ms = work.dispatches as f64 * limits.dispatch_us / 1e3 + limits.round_trip_ms;
        let busy_ms = speed.decode.as_ref().map(|d| {
            let layers = d.attention_ms + d.dense_ffn_ms + d.stem_ffn_ms + d.engram_ms;
            layers + d.embed_ms + d.head_ms + d.candidates_ms
        });
        Self { work, limits, empty_step_ms, empty_share: empty_step_ms / step_ms, busy_ms }
    }
}
