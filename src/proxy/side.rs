//! What the gateway itself asks a server, beside its callers' requests.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, header};
use pingora::http::RequestHeader;
use pingora::protocols::Stream;
use pingora::protocols::http::HttpTask;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use tokio::time::timeout;

use crate::route::Server;

use super::clock::Clock;
use super::conduit::{Conduits, Line};
use super::exchange;
use super::reply::Reply;
use super::trust::{Trust, is_distrust};

/// One address of a server is not waited for any longer, where there is another.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);

/// The one status of its kind that no other follows.
const SWITCHING: StatusCode = StatusCode::SWITCHING_PROTOCOLS;

/// A larger answer is not read.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// What it asks by.
pub struct Side {
    conduits: Arc<Conduits>,
    clock: Clock,
}

/// Whether a connection serves more than one question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// A new one: what is asked is whether there is somebody.
    Fresh,
    /// One that is there, if there is one.
    Kept,
}

impl Side {
    pub fn new(conduits: Arc<Conduits>, clock: Clock) -> Self {
        Self { conduits, clock }
    }

    /// One request: a GET, or a POST of JSON. The whole takes no longer than `within`.
    pub async fn ask(
        &self,
        trust: &Trust,
        server: &Server,
        path: &str,
        body: Option<Bytes>,
        within: Duration,
        connection: Connection,
    ) -> Result<(StatusCode, Bytes)> {
        let late = || Error::explain(ErrorType::ReadTimedout, "no answer in time");
        let asked = async {
            let (stream, peer, is_used) = self.connect(trust, server, connection).await?;
            match self.exchange((stream, peer), server, path, body.clone(), connection).await {
                // It died while it was idle.
                Err(_) if is_used => {
                    let (stream, peer, _) = self.connect(trust, server, Connection::Fresh).await?;
                    self.exchange((stream, peer), server, path, body, Connection::Fresh).await
                }
                answer => answer,
            }
        };
        timeout(within, asked).await.unwrap_or_else(|_| Err(late()))
    }

    /// A connection to the first of its addresses that takes one, and whether it was used before.
    async fn connect(
        &self,
        trust: &Trust,
        server: &Server,
        connection: Connection,
    ) -> Result<(Stream, HttpPeer, bool)> {
        let mut left = server.addresses();
        loop {
            let address = server.address().ok_or_else(|| {
                Error::explain(
                    ErrorType::ConnectError,
                    format!("`{}` does not resolve", server.spec.url.host),
                )
            })?;
            let mut peer = trust.peer(server, address);
            peer.options.connection_timeout = Some(CONNECT_TIME_MAX);
            peer.options.total_connection_timeout = Some(CONNECT_TIME_MAX);
            match self.conduits.line(&peer, connection == Connection::Fresh, self.clock.now()).await {
                Ok(Line { stream, was_used }) => return Ok((stream, peer, was_used)),
                Err(error) if left <= 1 || is_distrust(&error) => return Err(error),
                Err(_) => server.address_failed(address),
            }
            left -= 1;
        }
    }

    async fn exchange(
        &self,
        (mut stream, peer): (Stream, HttpPeer),
        server: &Server,
        path: &str,
        body: Option<Bytes>,
        connection: Connection,
    ) -> Result<(StatusCode, Bytes)> {
        let spec = &server.spec;
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let mut request = RequestHeader::build(method, path.as_bytes(), Some(6))?;
        request.insert_header(header::HOST, spec.url.host_header())?;
        if connection == Connection::Fresh {
            request.insert_header(header::CONNECTION, "close")?;
        }
        if let Some(key) = &spec.api_key {
            request.insert_header(header::AUTHORIZATION, format!("Bearer {}", key.0))?;
        }
        if let Some(body) = &body {
            request.insert_header(header::CONTENT_TYPE, "application/json")?;
            request.insert_header(header::CONTENT_LENGTH, body.len())?;
        }
        exchange::write(&mut stream, &request, body.unwrap_or_default(), None).await?;
        let mut reply = Reply::new(stream);
        let (status, mut is_over) = loop {
            match reply.piece().await? {
                HttpTask::Header(header, is_over)
                    if !header.status.is_informational() || header.status == SWITCHING =>
                {
                    break (header.status, is_over);
                }
                _ => {}
            }
        };
        let mut answer = BytesMut::new();
        while !is_over {
            let HttpTask::Body(chunk, is_last) = reply.piece().await? else { break };
            answer.extend_from_slice(&chunk.unwrap_or_default());
            if answer.len() > ANSWER_BYTES_MAX {
                return Error::e_explain(ErrorType::ReadError, "the answer is too large");
            }
            is_over = is_last;
        }
        if connection == Connection::Kept
            && let Some(stream) = reply.into_kept().await
        {
            self.conduits.keep(&peer, stream, self.clock.now());
        }
        Ok((status, answer.freeze()))
    }
}
