//! A Pingora proxy without any policy: what the gateway's cost is held to.
//!
//! With `--answer` it answers a fixed body from `request_filter`: the least that a hit could cost on Pingora.

use std::net::SocketAddr;

use async_trait::async_trait;
use bytes::Bytes;
use clap::Parser;
use http::header;
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::server::Server;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
struct Cli {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    server: SocketAddr,
    /// Answer every request with so many bytes instead of asking the server.
    #[arg(long)]
    answer: Option<usize>,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    #[arg(long)]
    no_work_stealing: bool,
}

struct Bare {
    server: SocketAddr,
    answer: Option<Bytes>,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session, _ctx: &mut ()) -> Result<bool> {
        let Some(answer) = &self.answer else { return Ok(false) };
        while session.read_request_body().await?.is_some() {}
        let mut header = ResponseHeader::build(200, Some(2))?;
        header.insert_header(header::CONTENT_TYPE, "application/json")?;
        header.insert_header(header::CONTENT_LENGTH, answer.len())?;
        session.write_response_header(Box::new(header), false).await?;
        session.write_response_body(Some(answer.clone()), true).await?;
        Ok(true)
    }

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.server, false, String::new())))
    }
}

fn main() {
    let cli = Cli::parse();
    let conf =
        ServerConf { threads: cli.threads, work_stealing: !cli.no_work_stealing, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let bare = Bare { server: cli.server, answer: cli.answer.map(|bytes| Bytes::from(vec![b'x'; bytes])) };
    let mut service = http_proxy_service(&server.configuration, bare);
    service.add_tcp(&cli.listen.to_string());
    server.add_service(service);
    server.run_forever();
}
