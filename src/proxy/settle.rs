//! Afterwards: counted, and written as one line.

use crate::config::LogFormat;
use crate::observe::{CacheOutcome, Ended, Line, milliseconds};

use super::context::Context;
use super::gateway::Gateway;

/// nginx's status for a caller that left before its answer was whole.
const CLIENT_CLOSED_REQUEST: u16 = 499;

pub(super) fn settle(gateway: &Gateway, ctx: &Context) {
    let (arrival, asked, told) = (&ctx.arrival, &ctx.asked, &ctx.told);
    let status = if told.left && !told.complete { CLIENT_CLOSED_REQUEST } else { told.status };
    let duration = gateway.clock.now().saturating_sub(arrival.begun);
    let usage = ctx.tap.as_ref().and_then(|tap| tap.usage()).cloned().unwrap_or_default();
    let key = asked.caller.as_ref().map(|(_, name)| name.as_str());

    match asked.cache {
        CacheOutcome::Hit => gateway.metrics.cache_hits.inc(),
        CacheOutcome::Miss => gateway.metrics.cache_misses.inc(),
        CacheOutcome::Shared => gateway.metrics.cache_shared.inc(),
        CacheOutcome::Bypass => {}
    }
    gateway.metrics.ended(&Ended {
        key,
        model: asked.model.as_deref(),
        upstream: asked.upstream.as_deref(),
        status,
        cache: asked.cache,
        duration,
        first_token: told.first_byte.filter(|_| told.refusal.is_none() && asked.upstream.is_some()),
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        cached_prompt_tokens: usage.cached_prompt_tokens,
    });

    if !gateway.log.is_on() {
        return;
    }
    let refusal = told.refusal.as_ref().or(ctx.route.failure.as_ref());
    let server = ctx.route.tried.last().filter(|_| ctx.route.attempts > 0);
    let line = Line {
        ts: gateway.clock.wall(),
        request_id: &arrival.request_id,
        trace_id: arrival.trace_id.as_deref(),
        key,
        user: None,
        method: arrival.method.as_str(),
        path: &arrival.path,
        model_requested: asked.model_requested.as_deref(),
        model: asked.model.as_deref(),
        upstream: asked.upstream.as_deref(),
        server: server.map(|server| server.spec.name.as_str()),
        attempts: ctx.route.attempts,
        status,
        upstream_status: told.upstream_status,
        error_code: refusal.map(|refusal| refusal.told().code),
        limit: refusal.and_then(|refusal| refusal.limit()).map(|limit| limit.name()),
        cache: asked.cache.name(),
        stream: asked.stream,
        complete: told.complete,
        finish_reason: usage.finish_reason.as_deref(),
        queue_ms: 0.0,
        ttft_ms: told.first_byte.map(milliseconds),
        prefill_ms: usage.prefill_ms,
        generation_ms: usage.generation_ms,
        duration_ms: milliseconds(duration),
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        cached_prompt_tokens: usage.cached_prompt_tokens,
        bytes_in: asked.bytes_in,
        bytes_out: told.bytes_out,
        client_ip: Some(arrival.client_ip),
    };
    gateway.log.write(match gateway.log_format {
        LogFormat::Json => line.to_json(),
        LogFormat::Text => line.to_text(),
    });
}
