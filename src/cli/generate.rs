//! `xylem generate`: continue a prompt.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;
use xylem::sampler::Sampling;
use xylem::session::Finish;
use xylem::text::{Message, Role, chat};

use super::model::{self, Kind, Model, Which};

/// Continue a prompt, taken as it is: names of special tokens in it stand for these tokens.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: Which,
    #[command(flatten)]
    prompt: PromptArgs,
    /// A file of edits (see `xylem edit`) to lay over the rows.
    #[arg(long, value_name = "FILE", conflicts_with = "base")]
    edits: Option<PathBuf>,
    #[command(flatten)]
    kv: model::Kv,
    #[command(flatten)]
    out: model::Out,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// What computes.
    #[arg(long, value_enum, default_value = "cpu")]
    backend: Kind,
    /// Positions to make room for: prompt and answer.
    #[arg(long, value_name = "N", default_value_t = 8192)]
    context: usize,
    /// Print a JSON object: the text, its tokens, why it ended, and times.
    #[arg(long)]
    json: bool,
}

/// What is continued.
#[derive(Debug, clap::Args)]
pub struct PromptArgs {
    /// The prompt; `-` reads standard input.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// Put the prompt into the model's chat template, as the user's message.
    #[arg(long)]
    chat: bool,
    /// With --chat: the system message.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
}

impl PromptArgs {
    /// Its tokens, with room in `context` for an answer of `answer` tokens if it is a chat.
    pub fn tokens(&self, model: &Model, context: usize, answer: usize) -> Result<Vec<u32>> {
        let mut prompt = self.prompt.clone();
        if prompt == "-" {
            prompt.clear();
            std::io::stdin().read_to_string(&mut prompt).context("standard input")?;
        }
        if !self.chat {
            return Ok(model.tokenizer.encode(&prompt)?);
        }
        let message = |role, content: &String| Message { role, content: content.clone() };
        let system = self.system.iter().map(|text| message(Role::System, text));
        let messages: Vec<_> = system.chain([message(Role::User, &prompt)]).collect();
        let context = context.min(model.session.config().context_length);
        Ok(chat::prompt(&model.tokenizer, model.chat_template()?, &messages, context, answer)?.tokens)
    }
}

/// How tokens are chosen.
#[derive(Debug, clap::Args)]
pub struct SamplingArgs {
    /// At most so many new tokens.
    #[arg(long, value_name = "N", default_value_t = Sampling::default().max_tokens)]
    max_tokens: usize,
    /// 0 always takes the most likely token.
    #[arg(long, value_name = "T", default_value_t = Sampling::default().temperature)]
    temperature: f32,
    /// Choose among so many of the most likely tokens; 0 for all.
    #[arg(long, value_name = "K", default_value_t = Sampling::default().top_k)]
    top_k: usize,
    /// Choose among the fewest tokens whose probabilities sum to this.
    #[arg(long, value_name = "P", default_value_t = Sampling::default().top_p)]
    top_p: f32,
    /// Make recent tokens less likely; 1 does nothing. Unless given, 1 at temperature 0.
    #[arg(long, value_name = "R")]
    repetition_penalty: Option<f32>,
    /// Equal seeds give equal texts on the same backend.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    /// The library's form.
    pub fn sampling(&self) -> Sampling {
        // At temperature 0 the plain greedy text is what one asks for.
        let usual = if self.temperature == 0.0 { 1.0 } else { Sampling::default().repetition_penalty };
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty.unwrap_or(usual),
            max_tokens: self.max_tokens,
            seed: self.seed,
            ignore_eos: false,
        }
    }
}

#[derive(Serialize)]
struct Report {
    text: String,
    tokens: Vec<u32>,
    finish: Finish,
    prompt_tokens: usize,
    seed: u64,
    backend: String,
    first_token_ms: f64,
    tokens_per_second: f64,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    let sampling = args.sampling.sampling();
    sampling.validate()?;
    let mut model = args.model.open(args.backend, args.context)?;
    args.kv.apply(model.session.backend_mut())?;
    args.out.apply(&mut model)?;
    if let Some(path) = &args.edits {
        model.edit(path)?;
    }
    let tokens = args.prompt.tokens(&model, args.context, sampling.max_tokens)?;
    let generation = pollster::block_on(model.session.generate(&tokens, &sampling, &mut ()))?;
    let text = model.tokenizer.decode(&generation.tokens)?;
    if !args.json {
        return Ok(super::print_line(text)?);
    }
    super::print_json(&Report {
        text,
        tokens: generation.tokens,
        finish: generation.finish,
        prompt_tokens: generation.prompt_tokens,
        seed: sampling.seed,
        backend: model.backend_name(),
        first_token_ms: generation.first_token_ms,
        tokens_per_second: generation.tokens_per_second,
    })
}
