//! What the gateway itself asks a server, beside its callers' requests.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, header};
use pingora::connectors::http::v1::Connector;
use pingora::http::RequestHeader;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use tokio::time::timeout;

use crate::route::Server;

/// A larger answer is not read.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Its own connections to servers.
pub struct Side(Connector);

impl Side {
    pub fn new() -> Self {
        Self(Connector::new(None))
    }

    /// One request on a connection of its own: a GET, or a POST of JSON. The whole takes no longer than `within`.
    pub async fn ask(
        &self,
        server: &Server,
        path: &str,
        body: Option<Bytes>,
        within: Duration,
    ) -> Result<(StatusCode, Bytes)> {
        let late = || Error::explain(ErrorType::ReadTimedout, "no answer in time");
        timeout(within, self.exchange(server, path, body)).await.unwrap_or_else(|_| Err(late()))
    }

    async fn exchange(
        &self,
        server: &Server,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<(StatusCode, Bytes)> {
        let spec = &server.spec;
        let address = server.address().ok_or_else(|| {
            Error::explain(ErrorType::Custom("its name does not resolve"), spec.url.host.clone())
        })?;
        let peer = HttpPeer::new(address, false, String::new());
        let (mut session, _) = self.0.get_http_session(&peer).await?;
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let mut request = RequestHeader::build(method, path.as_bytes(), Some(6))?;
        request.insert_header(header::HOST, spec.url.authority())?;
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
