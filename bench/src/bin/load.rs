//! The load: requests one after another on each of so many connections, or so many streams at once; what it saw is one
//! line of JSON for scripts/bench.py. Times are in microseconds.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

#[derive(Parser)]
struct Cli {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long, default_value_t = 16)]
    connections: usize,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Of a body.
    #[arg(long, default_value_t = 300)]
    bytes: usize,
    /// How often a tool's answer in it says its few lines: once is a short message, 80 times a file of 12 KiB.
    #[arg(long, default_value_t = 1)]
    lines: usize,
    /// Ask for streams.
    #[arg(long)]
    stream: bool,
    /// One stream on each connection, all at once, and no more; else requests until the time is over.
    #[arg(long)]
    once: bool,
    /// So many on each connection, and no more, in whatever time.
    #[arg(long)]
    requests: Option<usize>,
    /// The same body again and again; else each asks something new.
    #[arg(long)]
    same: bool,
    #[arg(long, default_value = "bench-key")]
    key: String,
    #[arg(long, default_value = "bench")]
    model: String,
    /// Before this many requests have been answered on each connection, nothing is measured.
    #[arg(long, default_value_t = 0)]
    warm: usize,
}

#[derive(Default)]
struct Seen {
    took: Vec<u32>,
    first: Vec<u32>,
    late: Vec<u32>,
    events: u64,
    failed: u64,
}

#[derive(Serialize)]
struct Report {
    requests: usize,
    failed: u64,
    events: u64,
    seconds: f64,
    took: Spread,
    first: Spread,
    late: Spread,
}

#[derive(Serialize)]
struct Spread {
    p50: u32,
    p90: u32,
    p99: u32,
    max: u32,
}

impl Spread {
    fn of(mut all: Vec<u32>) -> Self {
        all.sort_unstable();
        let at = |part: f64| {
            all.get(((all.len() as f64 * part) as usize).min(all.len().saturating_sub(1)))
                .copied()
                .unwrap_or(0)
        };
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: all.last().copied().unwrap_or(0) }
    }
}

fn main() -> io::Result<()> {
    let cli: &'static Cli = Box::leak(Box::new(Cli::parse()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seen = Rc::new(RefCell::new(Seen::default()));
    let begun = Instant::now();
    LocalSet::new().block_on(&runtime, async {
        let callers: Vec<_> = (0..cli.connections)
            .map(|number| {
                let seen = Rc::clone(&seen);
                tokio::task::spawn_local(async move {
                    if let Err(error) = call(cli, number, begun, &seen).await {
                        eprintln!("connection {number}: {error}");
                        seen.borrow_mut().failed += 1;
                    }
                })
            })
            .collect();
        for caller in callers {
            let _ended = caller.await;
        }
    });
    let seen = std::mem::take(&mut *seen.borrow_mut());
    let report = Report {
        requests: seen.took.len(),
        failed: seen.failed,
        events: seen.events,
        seconds: begun.elapsed().as_secs_f64(),
        took: Spread::of(seen.took),
        first: Spread::of(seen.first),
        late: Spread::of(seen.late),
    };
    println!("{}", serde_json::to_string(&report).map_err(io::Error::other)?);
    Ok(())
}

/// Digits of the number that makes a body another one.
const DIGITS: usize = 20;

/// A chat as an agent has it: a system prompt, turns of a few hundred bytes, and a number at the end.
fn body(cli: &Cli) -> Vec<u8> {
    let tail = format!(
        r#"{{"role":"user","content":"question {}"}}],"temperature":0,"max_tokens":64{}}}"#,
        "0".repeat(DIGITS),
        if cli.stream { r#","stream":true"# } else { "" }
    );
    let mut body = format!(r#"{{"model":"{}","#, cli.model).into_bytes();
    body.extend_from_slice(br#""messages":[{"role":"system","content":"You answer briefly."},"#);
    let code = r#"fn main() {\n    let arguments = std::env::args().skip(1);\n    for argument in arguments {\n        println!(\"{argument}\");\n    }\n}\n// 0.25 1e3 é 😀\n"#;
    let told =
        format!(r#"{{"role":"tool","tool_call_id":"call_1","content":"{}"}},"#, code.repeat(cli.lines));
    let turns = [
        r#"{"role":"user","content":"Read src/main.rs and tell me what it does.\nBe \"brief\": one line for each function, please."},"#,
        r#"{"role":"assistant","content":null,"tool_calls":[{"id":"call_1","type":"function","function":{"name":"read_file","arguments":"{\"path\":\"src/main.rs\",\"lines\":[1,200]}"}}]},"#,
        &told,
    ];
    // The first, which is short, fills what is left.
    for turn in turns.iter().cycle() {
        let room = cli.bytes.saturating_sub(body.len() + tail.len());
        match [turn, &turns[0]].into_iter().find(|turn| turn.len() <= room) {
            Some(turn) => body.extend_from_slice(turn.as_bytes()),
            None => break,
        }
    }
    body.extend_from_slice(tail.as_bytes());
    body
}

async fn call(cli: &Cli, number: usize, begun: Instant, seen: &RefCell<Seen>) -> io::Result<()> {
    let body = body(cli);
    let mut request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\naccept: */*\r\nuser-agent: bench\r\ncontent-length: {}\r\n\r\n",
        cli.to, cli.key, body.len()
    ).into_bytes();
    request.extend_from_slice(&body);
    let digits = memchr::memmem::rfind(&request, "0".repeat(DIGITS).as_bytes())
        .ok_or_else(|| io::Error::other("no digits"))?;
    let mut server = TcpStream::connect(cli.to).await?;
    server.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(64 << 10);
    let salt = u64::from(std::process::id()) * 1_000_000_000_000 + number as u64 * 100_000_000;
    for round in 0.. {
        let is_over = match cli.requests {
            Some(requests) => round >= requests,
            None => round > 0 && (cli.once || begun.elapsed().as_secs_f64() > cli.seconds),
        };
        if is_over {
            break;
        }
        if !cli.same {
            let unique = format!("{:020}", salt + round as u64);
            request[digits..digits + DIGITS].copy_from_slice(unique.as_bytes());
        }
        let asked = Instant::now();
        server.write_all(&request).await?;
        let counts = round >= cli.warm;
        let (whole, events) = answer(&mut server, &mut buffer, asked, counts.then_some(seen)).await?;
        let mut seen = seen.borrow_mut();
        if !whole {
            seen.failed += 1;
        }
        seen.events += events;
        if counts {
            seen.took.push(micros(asked.elapsed()));
        }
    }
    Ok(())
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// Reads one answer to its end: whether it was a whole 200, and its events.
async fn answer(
    server: &mut TcpStream,
    buffer: &mut Vec<u8>,
    asked: Instant,
    seen: Option<&RefCell<Seen>>,
) -> io::Result<(bool, u64)> {
    buffer.clear();
    let (head, status, length) = loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut headers);
        if let httparse::Status::Complete(bytes) = head.parse(buffer).map_err(io::Error::other)? {
            let length =
                head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
            let length: Option<usize> =
                length.and_then(|length| std::str::from_utf8(length.value).ok()?.parse().ok());
            break (bytes, head.code.unwrap_or(0), length);
        }
        read(server, buffer).await?;
    };
    buffer.drain(..head);
    if let Some(length) = length {
        while buffer.len() < length {
            read(server, buffer).await?;
        }
        return Ok((status == 200, 0));
    }
    let mut events = 0;
    let mut from = 0;
    let marker = memchr::memmem::Finder::new(br#""at":"#);
    loop {
        while let Some(found) = marker.find(&buffer[from..]).map(|found| found + from) {
            let digits = found + br#""at":"#.len();
            if buffer.len() < digits + DIGITS {
                break;
            }
            if let Some(seen) = seen {
                let mut seen = seen.borrow_mut();
                if events == 0 {
                    seen.first.push(micros(asked.elapsed()));
                }
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let sent: u64 = std::str::from_utf8(&buffer[digits..digits + DIGITS])
                    .ok()
                    .and_then(|it| it.parse().ok())
                    .unwrap_or(0);
                seen.late.push(micros(now.saturating_sub(Duration::from_nanos(sent))));
            }
            events += 1;
            from = digits + DIGITS;
        }
        if buffer.ends_with(b"0\r\n\r\n") {
            return Ok((status == 200 && memchr::memmem::find(buffer, b"[DONE]").is_some(), events));
        }
        if from > 32 << 10 {
            buffer.drain(..from);
            from = 0;
        }
        read(server, buffer).await?;
    }
}

async fn read(server: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<()> {
    if server.read_buf(buffer).await? == 0 {
        return Err(io::Error::other("it was closed before its end"));
    }
    Ok(())
}
