//! A server that answers at once what llama-server would compute: one fixed JSON answer, or a stream of events at a
//! fixed pace. Each event says when it was sent, so that the load sees how late it comes.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};

#[derive(Parser)]
struct Cli {
    #[arg(long)]
    listen: SocketAddr,
    /// Events of a stream.
    #[arg(long, default_value_t = 100)]
    events: u32,
    /// Between two of them.
    #[arg(long, default_value_t = 20)]
    every_ms: u64,
    /// Count tokens, as llama-server does, at /v1/chat/completions/input_tokens.
    #[arg(long)]
    counts: bool,
}

/// About 640 bytes, as an answer of a few words is.
const ANSWER: &str = concat!(
    r#"{"choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"A reverse proxy stands "#,
    r#"between clients and servers: it takes requests, decides which server answers, and sends the answer back."}}],"#,
    r#""created":1790000000,"model":"bench","system_fingerprint":"b1-bench","object":"chat.completion","usage":"#,
    r#"{"completion_tokens":21,"prompt_tokens":32,"total_tokens":53,"prompt_tokens_details":{"cached_tokens":8}},"#,
    r#""id":"chatcmpl-0123456789abcdefghijklmnopqrstuv","timings":{"cache_n":8,"prompt_n":24,"prompt_ms":12.5,"#,
    r#""prompt_per_token_ms":0.52,"prompt_per_second":1920.0,"predicted_n":21,"predicted_ms":210.0,"#,
    r#""predicted_per_token_ms":10.0,"predicted_per_second":100.0}}"#
);
const PROPS: &str = r#"{"total_slots":4096,"model_path":"bench.gguf","build_info":"bench","default_generation_settings":{"n_ctx":65536},"chat_template":""}"#;
const MODELS: &str =
    r#"{"object":"list","data":[{"id":"bench","object":"model","created":1790000000,"owned_by":"bench"}]}"#;

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let cli: &'static Cli = Box::leak(Box::new(Cli::parse()));
    let listener = TcpListener::bind(cli.listen).await?;
    loop {
        let (caller, _) = listener.accept().await?;
        tokio::spawn(async move {
            // Whoever leaves, leaves.
            let _left = serve(caller, cli).await;
        });
    }
}

async fn serve(mut caller: TcpStream, cli: &Cli) -> io::Result<()> {
    caller.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(16 << 10);
    loop {
        let Some((path, body)) = request(&mut caller, &mut buffer).await? else { return Ok(()) };
        let streams = memchr::memmem::find(&body, br#""stream":true"#).is_some();
        match path.as_str() {
            "/health" => plain(&mut caller, 200, r#"{"status":"ok"}"#).await?,
            "/props" => plain(&mut caller, 200, PROPS).await?,
            "/v1/models" | "/models" => plain(&mut caller, 200, MODELS).await?,
            path if path.ends_with("/input_tokens") && cli.counts => {
                plain(&mut caller, 200, r#"{"object":"response.input_tokens","input_tokens":32}"#).await?;
            }
            path if path.ends_with("/input_tokens") || path.starts_with("/slots") => {
                plain(
                    &mut caller,
                    404,
                    r#"{"error":{"code":404,"message":"none","type":"not_found_error"}}"#,
                )
                .await?;
            }
            _ if streams => stream(&mut caller, cli).await?,
            _ => plain(&mut caller, 200, ANSWER).await?,
        }
    }
}

/// The next request's path and body; `None` where there is no next.
async fn request(caller: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<(String, Vec<u8>)>> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Request::new(&mut headers);
        let parsed = head.parse(buffer).map_err(io::Error::other)?;
        if let httparse::Status::Complete(head_bytes) = parsed {
            let length =
                head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
            let length = length.and_then(|length| std::str::from_utf8(length.value).ok()?.parse().ok());
            let chunked =
                head.headers.iter().any(|header| header.name.eq_ignore_ascii_case("transfer-encoding"));
            if chunked {
                return Err(io::Error::other("this server reads no chunks"));
            }
            let path = head.path.unwrap_or("/").to_owned();
            let bytes = head_bytes + length.unwrap_or(0);
            while buffer.len() < bytes {
                if caller.read_buf(buffer).await? == 0 {
                    return Ok(None);
                }
            }
            let body = buffer[head_bytes..bytes].to_vec();
            buffer.drain(..bytes);
            return Ok(Some((path, body)));
        }
        if caller.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

async fn plain(caller: &mut TcpStream, status: u16, json: &str) -> io::Result<()> {
    let answer = format!(
        "HTTP/1.1 {status} It\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{json}",
        json.len()
    );
    caller.write_all(answer.as_bytes()).await
}

async fn stream(caller: &mut TcpStream, cli: &Cli) -> io::Result<()> {
    caller
        .write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        )
        .await?;
    let begun = Instant::now();
    for number in 0..cli.events {
        // The first comes right behind the header, as llama-server's does: a sleep of no time takes a millisecond.
        if number > 0 {
            sleep_until(begun + Duration::from_millis(cli.every_ms) * number).await;
        }
        let last = number + 1 == cli.events;
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let finish = if last { r#""stop""# } else { "null" };
        let event = format!(
            concat!(
                r#"data: {{"choices":[{{"finish_reason":{},"index":0,"delta":{{"content":" word"}}}}],"created":1790000000,"#,
                r#""id":"chatcmpl-0123456789abcdefghijklmnopqrstuv","model":"bench","system_fingerprint":"b1-bench","#,
                r#""object":"chat.completion.chunk","at":{:020}}}"#,
                "\n\n"
            ),
            finish, at
        );
        let end = if last { "data: [DONE]\n\n" } else { "" };
        let bytes = event.len() + end.len();
        let tail = if last { "0\r\n\r\n" } else { "" };
        caller.write_all(format!("{bytes:x}\r\n{event}{end}\r\n{tail}").as_bytes()).await?;
    }
    Ok(())
}
