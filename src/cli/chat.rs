//! `xylem chat`: a conversation in the terminal.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use xylem::error::Error;
use xylem::session::{Finish, Observer};
use xylem::text::{Message, Role, TextStream, chat};

use super::generate::SamplingArgs;
use super::interrupt;
use super::model::{self, Kind, Model};

const HELP: &str = "/new begins anew, /system TEXT sets the system message and begins anew, /quit (or Ctrl-D) ends; \
                    Ctrl-C stops an answer";

/// Chat in the terminal. Ctrl-C stops an answer, a second one ends the chat; /help lists the commands.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// The system message.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// A file of edits (see `xylem edit`) to lay over the rows.
    #[arg(long, value_name = "FILE")]
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
    /// Positions to make room for; the oldest turns go when they are used up.
    #[arg(long, value_name = "N", default_value_t = 8192)]
    context: usize,
}

/// Prints an answer as it comes.
struct Printer<'a> {
    stream: TextStream<'a>,
    text: String,
    interrupted: &'a AtomicBool,
    failure: Option<anyhow::Error>,
}

impl Printer<'_> {
    fn print(&mut self, piece: Result<String, Error>) {
        let print = |piece: &str| {
            let mut out = std::io::stdout().lock();
            out.write_all(piece.as_bytes()).and_then(|()| out.flush())
        };
        let printed = piece.map_err(anyhow::Error::from).and_then(|piece| {
            print(&piece)?;
            self.text += &piece;
            Ok(())
        });
        if let Err(e) = printed {
            self.failure.get_or_insert(e);
        }
    }
}

impl Observer for Printer<'_> {
    fn token(&mut self, id: u32, _log_prob: f32) {
        let piece = self.stream.push(id);
        self.print(piece);
    }

    fn stopped(&self) -> bool {
        self.failure.is_some() || self.interrupted.load(Ordering::Relaxed)
    }
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    args.sampling.sampling().validate()?;
    let mut model = Model::bundle(&args.bundle, args.backend, args.context)?;
    model.chat_template()?;
    args.kv.apply(model.session.backend_mut())?;
    args.out.apply(&mut model)?;
    if let Some(path) = &args.edits {
        model.edit(path)?;
    }
    let interrupted = interrupt::ctrl_c()?;
    let interactive = std::io::stdin().is_terminal();
    if interactive {
        eprintln!("{}. {HELP}.", model.backend_name());
    }
    let mut system = args.system.clone();
    let mut messages = Vec::new();
    let mut input = std::io::stdin().lock();
    loop {
        // What stopped an answer is not the first of two that end the chat.
        interrupted.store(false, Ordering::Relaxed);
        if interactive {
            eprint!("\n> ");
        }
        let mut line = String::new();
        if input.read_line(&mut line).context("standard input")? == 0 {
            return Ok(());
        }
        match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
            ("", _) => continue,
            ("/quit", _) => return Ok(()),
            ("/help", _) => eprintln!("{HELP}"),
            ("/new", _) => messages.clear(),
            ("/system", text) => {
                system = Some(text.to_owned()).filter(|t| !t.is_empty());
                messages.clear();
            }
            (command, _) if command.starts_with('/') => eprintln!("no such command: {command}; {HELP}"),
            _ => {
                messages.push(Message { role: Role::User, content: line.trim().to_owned() });
                // Ctrl-C while nothing was being answered stops no answer.
                interrupted.store(false, Ordering::Relaxed);
                answer(args, &mut model, system.as_deref(), &mut messages, &interrupted)?;
            }
        }
    }
}

/// Answers the last message and adds the answer to the others; a question that can't be answered is taken back.
fn answer(
    args: &Args,
    model: &mut Model,
    system: Option<&str>,
    messages: &mut Vec<Message>,
    interrupted: &AtomicBool,
) -> Result<()> {
    let sampling = args.sampling.sampling();
    let context = args.context.min(model.session.config().context_length);
    let system = system.map(|text| Message { role: Role::System, content: text.to_owned() });
    let all: Vec<Message> = system.into_iter().chain(messages.iter().cloned()).collect();
    let prompt =
        match chat::prompt(&model.tokenizer, model.chat_template()?, &all, context, sampling.max_tokens) {
            Ok(prompt) => prompt,
            Err(e @ Error::ContextFull { .. }) => {
                eprintln!("{e}");
                messages.pop();
                return Ok(());
            }
            Err(e) => return Err(e.into()),
        };
    if prompt.dropped_turns > 0 {
        eprintln!("(the oldest {} turns no longer fit and are left out)", prompt.dropped_turns);
    }
    let mut printer =
        Printer { stream: model.tokenizer.stream(), text: String::new(), interrupted, failure: None };
    let generation = pollster::block_on(model.session.generate(&prompt.tokens, &sampling, &mut printer))?;
    if let Some(failure) = printer.failure {
        return Err(failure);
    }
    let rest = printer.stream.finish()?;
    super::print_line(&rest)?;
    let note = match generation.finish {
        Finish::Stop => "",
        Finish::Length => "; cut off at --max-tokens",
        Finish::Stopped => "; stopped",
        Finish::Context => "; the context is full",
    };
    eprintln!(
        "[{} tokens, {:.1} a second, the first after {:.0} ms{note}]",
        generation.tokens.len(),
        generation.tokens_per_second,
        generation.first_token_ms
    );
    if generation.tokens.is_empty() {
        messages.pop(); // a question without an answer would stand before the next one
    } else {
        messages.push(Message { role: Role::Assistant, content: printer.text + &rest });
    }
    Ok(())
}
