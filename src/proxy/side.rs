//! What the gateway itself asks a server, beside its callers' requests.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, header};
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::v1::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::v1::client::HttpSession;
use pingora::{Error, ErrorType, Result};
use tokio::time::timeout;

use crate::route::Server;

use super::trust::{Trust, is_distrust};

/// One address of a server is not waited for any longer, where there is another.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);

/// A larger answer is not read.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Its own connections to servers: each serves one question.
pub struct Side(Connector);

impl Side {
    /// `roots`: the file of those that servers are verified by; `None`: the system's.
    pub fn new(roots: Option<String>) -> Self {
        let mut options = ConnectorOptions::new(1);
        options.ca_file = roots;
        Self(Connector::new(Some(options)))
    }

    /// One request on a connection of its own: a GET, or a POST of JSON. The whole takes no longer than `within`.
    pub async fn ask(
        &self,
        trust: &Trust,
        server: &Server,
        path: &str,
        body: Option<Bytes>,
        within: Duration,
    ) -> Result<(StatusCode, Bytes)> {
        let late = || Error::explain(ErrorType::ReadTimedout, "no answer in time");
        timeout(within, self.exchange(trust, server, path, body)).await.unwrap_or_else(|_| Err(late()))
    }

    /// A connection to the first of its addresses that takes one.
    async fn connect(&self, trust: &Trust, server: &Server) -> Result<HttpSession> {
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
            match self.0.get_http_session(&peer).await {
                Ok((session, _)) => return Ok(session),
                Err(error) if left <= 1 || is_distrust(&error) => return Err(error),
                Err(_) => server.address_failed(address),
            }
            left -= 1;
        }
    }

    async fn exchange(
        &self,
        trust: &Trust,
        server: &Server,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<(StatusCode, Bytes)> {
        let spec = &server.spec;
        let mut session = self.connect(trust, server).await?;
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let mut request = RequestHeader::build(method, path.as_bytes(), Some(6))?;
        request.insert_header(header::HOST, spec.url.host_header())?;
        request.insert_header(header::CONNECTION, "close")?;
        if let Some(key) = &spec.api_key {
            request.insert_header(header::AUTHORIZATION, format!("Bearer {}", key.0))?;
        }
        if let Some(body) = &body {
            request.insert_header(header::CONTENT_TYPE, "application/json")?;
            request.insert_header(header::CONTENT_LENGTH, body.len())?;
        }
        session.write_request_header(Box::new(request)).await?;
        if let Some(body) = body {
            session.write_body(&body).await?;
            session.finish_body().await?;
        }
        session.read_response().await?;
        let status = session.get_status().unwrap_or(StatusCode::BAD_GATEWAY);
        let mut answer = BytesMut::new();
        while let Some(chunk) = session.read_body_bytes().await? {
            answer.extend_from_slice(&chunk);
            if answer.len() > ANSWER_BYTES_MAX {
                return Error::e_explain(ErrorType::ReadError, "the answer is too large");
            }
        }
        Ok((status, answer.freeze()))
    }
}
