//! `GET /usage`: what keys have used, by day, key, user and model.

use std::sync::Arc;

use http::{Response, StatusCode};
use pingora::http::RequestHeader;
use serde::Serialize;
use tokio::task::spawn_blocking;

use crate::proxy::Gateway;
use crate::store::{Filter, Row, day};

use super::{REQUEST, is_read, method_not_allowed, query, refusal};

#[derive(Serialize)]
struct Page {
    usage: Vec<Row>,
}

pub(super) async fn answer(gateway: &Arc<Gateway>, head: &RequestHeader) -> Response<Vec<u8>> {
    if !is_read(&head.method) {
        return method_not_allowed("GET, HEAD");
    }
    let filter = match read(head.uri.query().unwrap_or_default()) {
        Ok(filter) => filter,
        Err(message) => return refusal(400, "invalid_request", REQUEST, &message),
    };
    let gateway = Arc::clone(gateway);
    // It may read a file, and wait for another process.
    let report = spawn_blocking(move || gateway.ledger.report(&filter)).await;
    match report.unwrap_or_else(|_| Err("the process is leaving".to_owned())) {
        Ok(rows) => {
            let json = serde_json::to_vec(&Page { usage: rows }).expect("text and numbers always serialise");
            super::answer(StatusCode::OK, "application/json; charset=utf-8", json)
        }
        Err(why) => refusal(503, "usage_unavailable", "server_error", &format!("Try again: {why}.")),
    }
}

fn read(query: &str) -> Result<Filter, String> {
    let [key, since] = query::read(query, ["key", "since"])?;
    let since = since.map(|text| day(&text).map_err(|why| format!("`since`: {why}."))).transpose()?;
    Ok(Filter { key, since })
}
