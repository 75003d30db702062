//! What a request may cost in tokens is reserved before a server is asked, and settled by what the answer reports.
//!
//! The size of the prompt is the server's own count, asked for only where a limit or a budget needs it. Within
//! [`COUNT_TIME_MAX`], or the estimate stands.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use pingora::{Error, ErrorType};
use pingora_proxy::Session;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::limit::{Budget, Goods, Span, Spent};
use crate::route::{Kind, Resolved, Server};
use crate::store::{Period, today};
use crate::wire::{Demand, Endpoint, Prompt, Work};

use super::admit::unruled;
use super::body::Stop;
use super::context::{Asked, Context, Job};
use super::gateway::Gateway;
use super::refusal::Refusal;
use super::side::Connection;

/// A server that takes longer to count a request's prompts is not waited for.
const COUNT_TIME_MAX: Duration = Duration::from_secs(2);

/// Whether a limit or a budget of tokens applies.
pub(super) fn minds_tokens(asked: &Asked) -> bool {
    let budgets = asked.caller.as_ref().map_or(&[][..], |caller| &caller.member.account.grant().budgets);
    asked.subjects.limit_tokens() || budgets.iter().any(|budget| budget.goods == Goods::Tokens)
}

/// Whether a stream must be asked for its usage, or nobody would know what it cost: llama-server's tell their timings.
pub(super) fn asks_usage(asked: &Asked, endpoint: &Endpoint, resolved: &Resolved) -> bool {
    resolved.upstream.spec.kind == Kind::OpenAi && endpoint.work == Work::Generate && minds_tokens(asked)
}

/// Reserves what a request may cost, or says which limit or budget does not allow it. The caller may leave meanwhile.
pub(super) async fn reserve(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
    job: &mut Job,
) -> Result<(), Stop> {
    let account = ctx.asked.caller.as_ref().map(|caller| caller.member.account.clone());
    let budgets = account.as_ref().is_some_and(|account| !account.grant().budgets.is_empty());
    if !minds_tokens(&ctx.asked) && !budgets {
        return Ok(());
    }
    let key = account.as_ref().map_or("", |account| account.grant().key.as_str());
    let spent = |budget: &Budget| spent(gateway, key, budget);
    let clock = || gateway.clock.now();
    // What does not fit whatever its prompt is need not be counted.
    let (least, subjects) = (job.demand.completion_tokens, &ctx.asked.subjects);
    let mut fits = subjects.would_reserve(account.as_ref(), least, clock(), spent);
    if let (Err(_), Some(shared)) = (&fits, &gateway.shared)
        && Box::pin(shared.look_at_tokens(subjects, &mut ctx.asked.shared, clock)).await
    {
        // That was as this process last saw it; now it has seen it anew.
        fits = subjects.would_reserve(account.as_ref(), least, clock(), spent);
    }
    if let Err(refused) = fits {
        // When there will be enough for its prompt too, as far as it is known; or it would come back in vain.
        let likely = least.saturating_add(job.demand.estimate);
        let would = ctx.asked.subjects.would_reserve(account.as_ref(), likely, gateway.clock.now(), spent);
        let refused = would.err().filter(|likely| refused.wait.and(likely.wait).is_some()).unwrap_or(refused);
        ctx.asked.tokens = refused.level;
        return Err(Refusal::Limited(refused).into());
    }
    let prompt = if minds_tokens(&ctx.asked) {
        let counted = counted(gateway, session, job).await?;
        job.demand.note_counted(Some(counted));
        counted
    } else {
        0
    };
    let tokens = prompt.saturating_add(job.demand.completion_tokens);
    let (subjects, account) = (&ctx.asked.subjects, account.as_ref());
    let reservation = match &gateway.shared {
        None => subjects.reserve(account, tokens, clock(), spent),
        Some(shared) => {
            let waited = &mut ctx.asked.shared;
            let facts = (clock, spent, today(gateway.clock.wall()));
            let reserved = Box::pin(shared.reserve(subjects, account, tokens, waited, facts)).await;
            reserved.map_or_else(unruled, |reservation| Ok(Ok(reservation)))?
        }
    };
    let level = reservation.as_ref().map_or_else(|refused| refused.level, |reservation| reservation.level);
    ctx.asked.tokens = level;
    ctx.guards.reservation = Some(reservation.map_err(Refusal::Limited)?);
    ctx.asked.prompt_tokens = prompt;
    Ok(())
}

/// What a key has spent in the period of a budget.
pub(super) fn spent(gateway: &Gateway, key: &str, budget: &Budget) -> Spent {
    let (period, now) = (period(budget.per), gateway.clock.wall());
    let counts = gateway.ledger.spent(key, period, now);
    Spent { requests: counts.requests, tokens: counts.tokens(), ends_in: ends_in(budget.per, now) }
}

/// Until the calendar period that `now` is in ends, UTC.
fn ends_in(span: Span, now: Timestamp) -> Duration {
    let today = TimeZone::UTC.to_datetime(now).date();
    let next = match span {
        Span::Day => today.tomorrow(),
        Span::Month => today.last_of_month().tomorrow(),
    };
    let end = next.and_then(|next| TimeZone::UTC.to_timestamp(next.at(0, 0, 0, 0)));
    end.ok().and_then(|end| end.duration_since(now).try_into().ok()).unwrap_or_default()
}

pub(super) fn period(span: Span) -> Period {
    match span {
        Span::Day => Period::Day,
        Span::Month => Period::Month,
    }
}

/// The tokens of the prompt, unless the caller leaves before a server has counted them.
async fn counted(gateway: &Gateway, session: &mut Session, job: &Job) -> Result<u64, Stop> {
    let (server, path) = match known_tokens(job) {
        Ok(tokens) => return Ok(tokens),
        Err(asks) => asks,
    };
    tokio::select! {
        biased;
        // Apart: with a connection's making in it, what every request is made of would be five times as large.
        counted = timeout(COUNT_TIME_MAX, Box::pin(asked_tokens(gateway, job, &server, path))) => {
            Ok(counted.unwrap_or(job.demand.estimate))
        }
        gone = session.downstream_session.read_body_or_idle(true) => {
            let gone = gone.err().unwrap_or_else(|| Error::new(ErrorType::ConnectionClosed));
            Err(Stop::Left(gone.into_down()))
        }
    }
}

/// The tokens of the prompt as far as they are known without asking, or the server that is to be asked, and where.
fn known_tokens(job: &Job) -> Result<u64, (Arc<Server>, &'static str)> {
    let Demand { prompt, estimate, .. } = &job.demand;
    let path = match prompt {
        Prompt::None => return Ok(0),
        Prompt::Counted(tokens) => return Ok(*tokens),
        Prompt::Unknown => return Ok(*estimate),
        Prompt::Body(path) => path,
        Prompt::Texts { .. } => "/tokenize",
    };
    // Only llama-server counts; another would be asked for what it does not have.
    let counts = job.resolved.upstream.spec.kind == Kind::Llama;
    // Nor does a router load a model for that.
    let server = job.resolved.upstream.some_server(job.resolved.on_server()).filter(|_| counts);
    server.filter(|server| !server.lacks(path)).map_or(Ok(*estimate), |server| Err((server, path)))
}

/// The tokens of the prompt: counted by a server, or estimated.
async fn asked_tokens(gateway: &Gateway, job: &Job, server: &Server, path: &'static str) -> u64 {
    let Demand { prompt, estimate, .. } = &job.demand;
    let Prompt::Texts { texts, tokens } = prompt else {
        let counted = count(gateway, server, path, job.body.clone(), "input_tokens").await;
        return counted.unwrap_or(*estimate);
    };
    let mut sum = *tokens;
    for text in texts {
        let mut body = json!({"content": text, "add_special": true});
        if let Some(model) = job.resolved.on_server() {
            body["model"] = model.into();
        }
        let Some(counted) = count(gateway, server, path, body.to_string().into(), "tokens").await else {
            return *estimate;
        };
        sum = sum.saturating_add(counted);
    }
    sum
}

/// Asks a server to count; `None` where it does not.
async fn count(
    gateway: &Gateway,
    server: &Server,
    path: &'static str,
    body: Bytes,
    member: &str,
) -> Option<u64> {
    if server.lacks(path) {
        return None;
    }
    let asked = gateway.side.ask(&gateway.trust, server, path, Some(body), COUNT_TIME_MAX, Connection::Kept);
    let (status, answer) = asked.await.ok()?;
    if matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED)
    {
        server.note_lacking(path);
    }
    if !status.is_success() {
        return None;
    }
    let answer: Value = serde_json::from_slice(&answer).ok()?;
    match answer.get(member)? {
        Value::Array(tokens) => Some(tokens.len() as u64),
        number => number.as_u64(),
    }
}
