//! The subcommands, one a file: arguments, printing and progress bars. What they do is the library's work.

mod bench;
mod chat;
mod convert;
mod edit;
mod eval;
mod generate;
#[cfg(feature = "heal")]
mod heal;
mod inspect;
mod interrupt;
mod layers;
mod model;
mod progress;
mod random;
mod serve;
mod trace;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;

/// A language model whose knowledge is a table of rows: convert, chat, measure, serve.
///
/// Exit codes: 0 done, 1 failed (the reason is on standard error), 2 wrong arguments, 130 stopped by Ctrl-C.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Convert(convert::Args),
    #[cfg(feature = "heal")]
    Heal(heal::Args),
    /// Train a recipe; this build can't.
    #[cfg(not(feature = "heal"))]
    #[command(disable_help_flag = true)]
    Heal {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        _args: Vec<std::ffi::OsString>,
    },
    Chat(chat::Args),
    Generate(generate::Args),
    Edit(edit::Args),
    Eval(eval::Args),
    Serve(serve::Args),
    Inspect(inspect::Args),
    Trace(trace::Args),
    Bench(bench::Args),
    Random(random::Args),
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Convert(args) => convert::run(&args),
        #[cfg(feature = "heal")]
        Command::Heal(args) => heal::run(&args),
        #[cfg(not(feature = "heal"))]
        Command::Heal { .. } => Err(anyhow::anyhow!(
            "this build can't train; build it with `cargo build --release --features heal`, or `--features heal-gpu` for a GPU"
        )),
        Command::Chat(args) => chat::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Edit(args) => edit::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Random(args) => random::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads our output has closed it, as `head` does: nobody is left to tell.
        Err(e) if e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("xylem: {}", describe(&e));
            let stopped = e.downcast_ref().is_some_and(|e| matches!(e, xylem::Error::Stopped));
            if stopped { interrupt::EXIT_CODE.into() } else { ExitCode::FAILURE }
        }
    }
}

/// The error with its causes, but for those that it names already.
fn describe(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Prints one line to standard output; unlike `println!` it gives the error of a closed pipe back.
fn print_line(line: impl std::fmt::Display) -> std::io::Result<()> {
    writeln!(std::io::stdout().lock(), "{line}")
}

/// Prints `value` as JSON.
fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(print_line(serde_json::to_string_pretty(value)?)?)
}
