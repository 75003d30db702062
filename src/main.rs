//! The command line.

mod usage;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ai_gateway::auth::KeyHash;
use ai_gateway::config::{self, Loaded};
use ai_gateway::server::{self, Launch};
use ai_gateway::store::Filter;
use clap::{Parser, Subcommand};
use jiff::civil::Date;

/// Gives memory back under many streams: 55 KiB a live stream, where mimalloc takes 176 (measured).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// An AI gateway in front of llama.cpp servers: keys, exact limits, a cache, routing, logs and metrics.
///
/// Without a command it runs under the environment alone: LLM_URL, GATEWAY_PORT, GATEWAY_HOST, GATEWAY_KEY.
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
        /// Take the listening sockets over from the running process.
        #[arg(long)]
        upgrade: bool,
    },
    /// Check a file: every fault at once.
    Check { file: PathBuf },
    /// Make or hash a caller's key.
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
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Print a new key, once, and the lines of the file that hold only its hash.
    New {
        /// What logs and metrics will call it.
        #[arg(long)]
        name: String,
    },
    /// Print the hash of a key read from standard input.
    Hash,
}

/// Why the process ends with anything but 0.
enum Failure {
    /// A wrong command line or file: 2.
    Wrong(String),
    /// Something that went wrong at run time: 1.
    Failed(String),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        None => load(None).and_then(|loaded| run(loaded, Launch::default())),
        Some(Command::Run { config, daemon, upgrade }) => {
            load(Some(&config)).and_then(|loaded| run(loaded, Launch { daemon, upgrade }))
        }
        Some(Command::Check { file }) => check(&file),
        Some(Command::Key(KeyCommand::New { name })) => new_key(&name),
        Some(Command::Key(KeyCommand::Hash)) => hash_key(),
        Some(Command::Health { config }) => health(config.as_deref()),
        Some(Command::Usage { config, key, since, csv }) => load(config.as_deref())
            .and_then(|loaded| usage::show(&loaded.settings, &Filter { key, since }, csv)),
    };
    let (code, message) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Wrong(message)) => (2, message),
        Err(Failure::Failed(message)) => (1, message),
    };
    let _ = writeln!(std::io::stderr(), "{message}");
    ExitCode::from(code)
}

fn load(file: Option<&Path>) -> Result<Loaded, Failure> {
    let loaded = match file {
        Some(file) => config::load(file, &config::process_environment),
        None => config::from_environment(&config::process_environment),
    };
    loaded.map_err(|faults| Failure::Wrong(faults.to_string()))
}

fn run(loaded: Loaded, launch: Launch) -> Result<(), Failure> {
    server::run(loaded, launch).map_err(|reason| Failure::Failed(format!("ai-gateway: {reason}")))
}

fn print(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{text}")
        .map_err(|error| Failure::Failed(format!("ai-gateway: cannot write: {error}")))
}

fn check(file: &Path) -> Result<(), Failure> {
    let loaded = load(Some(file))?;
    for warning in &loaded.warnings {
        print(&format!("warning: {warning}"))?;
    }
    print(&format!("{}: ok", file.display()))
}

fn new_key(name: &str) -> Result<(), Failure> {
    if name.is_empty() || name.contains(|c: char| c.is_control()) {
        return Err(Failure::Wrong(
            "ai-gateway: --name: expected a name without control characters".to_owned(),
        ));
    }
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)
        .map_err(|error| Failure::Failed(format!("ai-gateway: no randomness: {error}")))?;
    let key = format!("sk-{}", hex::encode(secret));
    let hash = KeyHash::of(key.as_bytes());
    // A name that is plain in YAML too stands as it is.
    let plain = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.len() > 3
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !["true", "false", "null"].contains(&name.to_ascii_lowercase().as_str());
    let quoted = if plain { name.to_owned() } else { serde_json::Value::from(name).to_string() };
    print(&format!(
        "# The key, shown this once:\n{key}\n\n# For `auth.keys` of the file, which holds only its hash:\n\
         - name: {quoted}\n  sha256: {hash}"
    ))
}

fn hash_key() -> Result<(), Failure> {
    let mut text = String::new();
    let read = std::io::stdin().take(64 << 10).read_to_string(&mut text);
    read.map_err(|error| Failure::Failed(format!("ai-gateway: cannot read the key: {error}")))?;
    let key = text.trim();
    if key.is_empty() {
        return Err(Failure::Wrong("ai-gateway: expected a key on standard input".to_owned()));
    }
    print(&KeyHash::of(key.as_bytes()).to_string())
}

/// Asks `/health` of the first listener, and prints what it says.
fn health(file: Option<&Path>) -> Result<(), Failure> {
    let settings = load(file)?.settings;
    let address = reachable(settings.listen[0]);
    let (status, body) = ask(address, "/health", None)
        .map_err(|error| Failure::Failed(format!("no gateway answers on {address}: {error}")))?;
    if status == "200" { print(&body) } else { Err(Failure::Failed(body)) }
}

/// An address to connect to, where one is listened on.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Asks a running gateway; gives the status and the body.
fn ask(address: SocketAddr, target: &str, token: Option<&str>) -> std::io::Result<(String, String)> {
    const TIME_MAX: Duration = Duration::from_secs(10);
    const ANSWER_BYTES_MAX: u64 = 256 << 20;
    let mut stream = TcpStream::connect_timeout(&address, TIME_MAX)?;
    stream.set_read_timeout(Some(TIME_MAX))?;
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    write!(stream, "GET {target} HTTP/1.1\r\nhost: {address}\r\n{token}connection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((head.split(' ').nth(1).unwrap_or_default().to_owned(), body.to_owned()))
}
