//! Afterwards: counted, and written down as one line.

use std::time::Duration;

use crate::config::LogFormat;
use crate::limit::{Reservation, Share};
use crate::observe::{ANYBODY, CacheOutcome, Ended, Line, Passed, Phase, milliseconds};
use crate::store::{Counts, Use, today};
use crate::wire::{Usage, Work};

use super::context::Context;
use super::cost;
use super::gateway::Gateway;
use super::refusal::Refusal;
use super::trace;

/// nginx's status for a caller that left before its answer was whole.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Counts a request, once: before the last byte of its answer goes out, so that who has read it finds it counted.
pub(super) fn count(gateway: &Gateway, ctx: &mut Context) {
    if !ctx.told.counted {
        count_at(gateway, ctx, gateway.clock.now());
    }
}

/// The same where it is known what time it is.
pub(super) fn count_at(gateway: &Gateway, ctx: &mut Context, now: Duration) {
    if ctx.asked.aside || std::mem::replace(&mut ctx.told.counted, true) {
        return;
    }
    match ctx.asked.cache {
        CacheOutcome::Hit => gateway.metrics.cache_hits.inc(),
        CacheOutcome::Miss => gateway.metrics.cache_misses.inc(),
        CacheOutcome::Shared => gateway.metrics.cache_shared.inc(),
        CacheOutcome::Bypass => {}
    }
    if ctx.has_left() && !ctx.told.left {
        // Its answer went on for others, and whoever sent it did not see the caller leave.
        let begun = ctx.told.first_byte.is_some();
        gateway.metrics.disconnected(if begun { Phase::Answering } else { Phase::Waiting });
    }
    let reservation = ctx.guards.reservation.take();
    let none = Usage::default();
    let usage = usage(ctx).unwrap_or(&none);
    charge(gateway, ctx, reservation, usage, now);
    let (arrival, asked, told) = (&ctx.arrival, &ctx.asked, &ctx.told);
    gateway.metrics.ended(&Ended {
        key: asked.key(),
        model: asked.model.as_deref(),
        upstream: asked.upstream.as_deref(),
        status: status(ctx),
        cache: asked.cache,
        duration: now.saturating_sub(arrival.begun),
        first_token: told.first_byte.filter(|_| told.refusal.is_none() && asked.upstream.is_some()),
        stream: asked.stream,
        generation: usage.generation_ms.and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok()),
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        cached_prompt_tokens: usage.cached_prompt_tokens,
    });
}

fn status(ctx: &Context) -> u16 {
    if ctx.has_left() { CLIENT_CLOSED_REQUEST } else { ctx.told.status }
}

fn usage(ctx: &Context) -> Option<&Usage> {
    ctx.tap.as_ref().and_then(|tap| tap.usage())
}

/// Notes in the ledger what the request used, and settles what it reserved. A request that failed used
/// nothing, nor did one whose caller left before a server was asked.
fn charge(
    gateway: &Gateway,
    ctx: &Context,
    mut reservation: Option<Reservation>,
    usage: &Usage,
    now: Duration,
) {
    let (asked, told) = (&ctx.asked, &ctx.told);
    let failed = told.refusal.is_some() || ctx.route.failure.is_some() || told.failed || told.status >= 400;
    let unasked = ctx.job.is_some() && ctx.route.attempts == 0;
    if failed || unasked || asked.upstream.is_none() {
        if let Some(reservation) = reservation {
            reservation.settle(0, now);
        }
        return;
    }
    let mut counts = Counts { requests: 1, ..Counts::default() };
    // Hits and shared answers cost a request and no tokens.
    if let Some(job) = &ctx.job {
        let cut_off = ctx.has_left();
        // A stream has about one event a token. Of a plain answer that tells nothing, what it might have cost counts
        // where tokens are limited: otherwise whoever asks for an answer without its usage would ask for nothing.
        // Elsewhere nothing bounds what a caller says that it might cost.
        let seen = match ctx.tap.as_ref() {
            Some(tap) if tap.is_stream() => tap.events(),
            Some(_) if !cut_off && cost::minds_tokens(asked) => job.demand.completion_tokens,
            _ => 0,
        };
        let milliseconds = |ms: Option<f64>| ms.unwrap_or_default().round() as u64;
        counts.prompt_tokens = match usage.prompt_tokens {
            // Of several prompts that it generates from, llama-server reports one.
            Some(told) if job.demand.prompts > 1 && job.endpoint.work == Work::Generate => {
                told.max(asked.prompt_tokens)
            }
            Some(told) => told,
            None => asked.prompt_tokens,
        };
        counts.completion_tokens = usage.completion_tokens.unwrap_or(seen);
        counts.cached_tokens = usage.cached_prompt_tokens.unwrap_or_default();
        counts.prefill_ms = milliseconds(usage.prefill_ms);
        counts.generation_ms = milliseconds(usage.generation_ms);
    }
    let share = reservation.as_mut().and_then(Reservation::take_share).or_else(|| share(gateway, ctx));
    let used = Use {
        key: asked.key().unwrap_or(ANYBODY),
        user: asked.user().unwrap_or_default(),
        model: gateway.metrics.model_label(asked.model.as_deref()),
        counts,
        open: share.as_ref().map(Share::place),
    };
    let wall = gateway.clock.wall();
    gateway.ledger.note(&used, wall);
    if let Some(share) = share {
        share.settle(counts.tokens(), today(wall));
    }
    learn(ctx, usage);
    if let Some(reservation) = reservation {
        reservation.settle(counts.tokens(), now);
    }
}

/// What others who share see of the use of a key with budgets, where nothing was reserved.
fn share(gateway: &Gateway, ctx: &Context) -> Option<Share> {
    gateway.shared.as_ref()?.share_anyway(&ctx.asked.caller.as_ref()?.member.account)
}

/// Tells the upstream what its server reused of the prompt.
fn learn(ctx: &Context, usage: &Usage) {
    let (Some(job), Some(server)) = (&ctx.job, ctx.route.tried.last()) else { return };
    if let (Some(cached), Some(prompt)) = (usage.cached_prompt_tokens, usage.prompt_tokens.filter(|n| *n > 0))
    {
        let part = cached as f64 / prompt as f64;
        let took = usage.prefill_ms.and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok());
        if let Some(took) = took {
            job.resolved.upstream.note_read(&job.prompt, 1.0 - part, took);
        }
        job.resolved.upstream.note_reused(server, &job.prompt, ctx.route.thought, part);
    }
}

/// Writes a request's line, and keeps it among the last.
pub(super) fn write(gateway: &Gateway, ctx: &mut Context) {
    ctx.told.written = true;
    if !gateway.log.is_on() && ctx.asked.aside {
        return;
    }
    let (arrival, asked, told) = (&ctx.arrival, &ctx.asked, &ctx.told);
    let none = Usage::default();
    let usage = usage(ctx).unwrap_or(&none);
    let refusal = told.refusal.as_ref().or(ctx.route.failure.as_ref());
    let no = refusal.map(Refusal::told);
    let server = ctx.server();
    let answer = told.quote.as_ref().and_then(|quote| quote.answer());
    let line = Line {
        ts: gateway.clock.wall(),
        request_id: &arrival.request_id,
        trace_id: arrival.trace_id.as_deref(),
        key: asked.key(),
        user: asked.user(),
        method: arrival.method.as_str(),
        path: &arrival.path,
        model_requested: asked.model_requested.as_deref(),
        model: asked.model.as_deref(),
        upstream: asked.upstream.as_deref(),
        server: server.map(|server| server.spec.name.as_str()),
        attempts: ctx.route.attempts,
        status: status(ctx),
        upstream_status: told.upstream_status,
        error_code: no.as_ref().map(|no| no.code),
        limit: refusal.and_then(|refusal| refusal.limit()).map(|limit| limit.name()),
        cache: asked.cache.name(),
        stream: asked.stream,
        complete: told.complete,
        finish_reason: usage.finish_reason.as_deref(),
        queue_ms: milliseconds(ctx.route.queued),
        ttft_ms: told.first_byte.map(milliseconds),
        prefill_ms: usage.prefill_ms,
        generation_ms: usage.generation_ms,
        duration_ms: milliseconds(gateway.clock.now().saturating_sub(arrival.begun)),
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        cached_prompt_tokens: usage.cached_prompt_tokens,
        bytes_in: asked.bytes_in,
        bytes_out: told.bytes_out,
        client_ip: Some(arrival.client_ip),
        shared_ms: gateway.shared.as_ref().map(|_| milliseconds(asked.shared.time)),
        prompt: told.quote.as_ref().map(|quote| quote.prompt.as_str()),
        answer: answer.as_deref(),
    };
    if !asked.aside {
        let repeats_nothing = refusal.is_some_and(|refusal| !refusal.quotes_the_body());
        let message = no.as_ref().filter(|_| repeats_nothing).map(|no| no.message.as_str());
        gateway.recent.note(Passed::of(&line, message));
        trace::tell(gateway, ctx, &line);
    }
    if !gateway.log.is_on() {
        return;
    }
    gateway.log.write(match gateway.log_format {
        LogFormat::Json => line.to_json(),
        LogFormat::Text => line.to_text(gateway.log.is_coloured()),
    });
}
