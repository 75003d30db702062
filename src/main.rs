//! The command line.

mod cli;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ai_gateway::config::{self, Faults, Loaded};
use ai_gateway::server::{self, Launch, Origin};
use ai_gateway::store::Filter;
use clap::{Parser, Subcommand};
use jiff::civil::Date;

use cli::key::KeyCommand;
use cli::{Failure, note, print};

/// Gives memory back under many streams: 55 KiB a live stream, where mimalloc takes 176 (measured).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// An AI gateway in front of llama.cpp servers: keys, exact limits, a cache, routing, logs and metrics.
///
/// Without a command it runs under the environment alone: LLM_URL, GATEWAY_PORT, GATEWAY_HOST, GATEWAY_KEY,
/// GATEWAY_METRICS.
#[derive(Parser)]
#[command(name = "ai-gateway", version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run under a file.
    Run {
        #[arg(long)]
        config: PathBuf,
        /// Go to the background.
        #[arg(long)]
        daemon: bool,
        /// Take over from the running process, when that gets SIGQUIT.
        #[arg(long)]
        upgrade: bool,
        /// As the running process starts its successor.
        #[arg(long, hide = true, requires = "upgrade")]
        in_place: bool,
        /// The successor itself, and not the process that starts it and ends.
        #[arg(long, hide = true, requires = "in_place")]
        orphan: bool,
    },
    /// Replace the running gateway by this binary without dropping a request.
    Upgrade {
        #[arg(long)]
        config: PathBuf,
    },
    /// Check a file: every fault at once.
    Check { file: PathBuf },
    /// Print the JSON Schema of the file, for editors.
    Schema,
    /// Make, add, revoke, list and hash callers' keys.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Ask the running gateway whether it is well; for container health checks.
    Health {
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Print what keys have used, by day: from the file's `usage.path`, else from the running gateway.
    Usage {
        #[arg(long)]
        config: Option<PathBuf>,
        /// Of this key alone.
        #[arg(long)]
        key: Option<String>,
        /// From this day on, YYYY-MM-DD, in UTC.
        #[arg(long, value_parser = ai_gateway::store::day)]
        since: Option<Date>,
        /// As comma-separated values.
        #[arg(long)]
        csv: bool,
    },
    /// Show the running gateway in this terminal: who asks, what is slow, what was refused; elsewhere, print it once.
    Top {
        /// The file that it runs under: where operators ask, and with which token.
        #[arg(long)]
        config: Option<PathBuf>,
        /// Where operators ask, if not as the file says: http://HOST:PORT, or https.
        #[arg(long, value_name = "URL")]
        admin: Option<String>,
        /// A file that holds the token, if that is not the file's.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// Print it once and end, on a terminal too.
        #[arg(long)]
        once: bool,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        None => load(None).and_then(|loaded| run(loaded, None, Launch::default())),
        Some(Command::Run { config, in_place: true, orphan: false, .. }) => start_orphan(&config),
        Some(Command::Run { config, daemon, upgrade, in_place, .. }) => load_to_run(&config)
            .and_then(|(loaded, origin)| run(loaded, Some(origin), Launch { daemon, upgrade, in_place })),
        Some(Command::Upgrade { config }) => {
            load(Some(&config)).and_then(|loaded| cli::upgrade::run(&config, &loaded.settings))
        }
        Some(Command::Check { file }) => check(&file),
        Some(Command::Schema) => print(config::SCHEMA.trim_end()),
        Some(Command::Key(command)) => cli::key::run(command),
        Some(Command::Health { config }) => {
            load(config.as_deref()).and_then(|loaded| cli::health::show(&loaded.settings))
        }
        Some(Command::Usage { config, key, since, csv }) => load(config.as_deref())
            .and_then(|loaded| cli::usage::show(&loaded.settings, &Filter { key, since }, csv)),
        Some(Command::Top { config, admin, token_file, once }) => {
            load(config.as_deref()).and_then(|loaded| {
                cli::top::show(&loaded.settings, &cli::top::Wishes { admin, token_file, once })
            })
        }
    };
    let (code, message) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Wrong(message)) => (2, message),
        Err(Failure::Failed(message)) => (1, message),
    };
    note(&message);
    ExitCode::from(code)
}

fn load(file: Option<&Path>) -> Result<Loaded, Failure> {
    let loaded = match file {
        Some(file) => config::load(file, &config::process_environment),
        None => config::from_environment(&config::process_environment),
    };
    loaded.map_err(|faults| Failure::Wrong(faults.to_string()))
}

/// The file by its path from the root on: it is read again later, when a daemon has changed its folder.
fn load_to_run(file: &Path) -> Result<(Loaded, Origin), Failure> {
    let wrong = |faults: Faults| Failure::Wrong(faults.to_string());
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let text = config::read_file_text(&file).map_err(wrong)?;
    let name = file.display().to_string();
    let loaded = config::from_text(&text, &name, &config::process_environment).map_err(wrong)?;
    Ok((loaded, Origin { file, text }))
}

fn run(loaded: Loaded, origin: Option<Origin>, launch: Launch) -> Result<(), Failure> {
    server::run(loaded, origin, launch).map_err(|reason| Failure::Failed(format!("ai-gateway: {reason}")))
}

/// Starts a successor that is nobody's child, and says which process it is.
fn start_orphan(file: &Path) -> Result<(), Failure> {
    let process = server::start_orphan(file)
        .map_err(|error| Failure::Failed(format!("ai-gateway: cannot start a successor: {error}")))?;
    print(&process.to_string())
}

fn check(file: &Path) -> Result<(), Failure> {
    let loaded = load(Some(file))?;
    for warning in &loaded.warnings {
        print(&format!("warning: {warning}"))?;
    }
    print(&format!("{}: ok", file.display()))
}
