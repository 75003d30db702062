//! An answer's bytes on their way: watched, followed, recorded, and at their end kept.

use std::cell::LazyCell;
use std::time::Duration;

use bytes::Bytes;
use pingora::Result;

use crate::cache::Landing;

use super::context::{Context, Job};
use super::gateway::Gateway;
use super::tap::{End, Tap};
use super::{failure, fault, turned};

/// An answer's bytes on their way.
pub(super) fn pass(
    gateway: &Gateway,
    ctx: &mut Context,
    body: &mut Option<Bytes>,
    end_of_stream: bool,
) -> Result<()> {
    let Some(tap) = &mut ctx.tap else { return Ok(()) };
    let gathers = tap.gathers();
    // Most events need no clock: whoever writes them notes when they came (`outlet.rs`).
    let now = LazyCell::new(|| gateway.clock.now());
    let begun = ctx.arrival.begun;
    let took = || now.saturating_sub(begun);
    if let Some(mut chunk) = body.take_if(|chunk| !chunk.is_empty()) {
        if gathers {
            ctx.route.timing.byte(*now);
        }
        let share = ctx.guards.body.as_mut();
        let room = |bytes| share.is_some_and(|share| gateway.bodies.grow(share, bytes));
        let ended = tap.chunk(&mut chunk, took, room);
        if let Some(leader) = &ctx.leads {
            leader.taped();
        }
        *body = Some(chunk).filter(|chunk| !gathers && !chunk.is_empty());
        if let Some(ended) = ended {
            finish(gateway, ctx, body, ended, *now)?;
            // From here on the caller has all of it: it may leave without waiting for the connection's own end.
            ctx.complete();
        }
        if body.is_some() {
            ctx.told.first_byte.get_or_insert_with(took);
        }
    }
    if !end_of_stream {
        return Ok(());
    }
    if let Some(rest) = ctx.tap.as_mut().and_then(Tap::rest) {
        if let Some(leader) = &ctx.leads {
            leader.taped();
        }
        *body = Some(rest);
    }
    let told = ctx.is_whole();
    let ended = ctx.tap.as_mut().map(|tap| tap.end(took()));
    match ended {
        Some(ended) if told => keep(gateway, ctx, ended, *now),
        Some(End::Cut) => return failure::cut(ctx, body),
        Some(End::Failed) if gathers => return failure::failed(ctx),
        Some(End::Failed) => ctx.told.failed = true,
        Some(ended) => finish(gateway, ctx, body, ended, *now)?,
        None => {}
    }
    fault::ended(ctx);
    ctx.land(Landing::Whole);
    Ok(())
}

/// Takes in that an answer is whole.
fn finish(
    gateway: &Gateway,
    ctx: &mut Context,
    body: &mut Option<Bytes>,
    ended: End,
    now: Duration,
) -> Result<()> {
    keep(gateway, ctx, ended, now);
    if ctx.tap.as_ref().is_some_and(Tap::gathers) {
        *body = Some(turned::rendered(gateway, ctx)?);
    }
    Ok(())
}

/// Keeps a whole answer, before its last byte goes out: the very next request finds it.
fn keep(gateway: &Gateway, ctx: &mut Context, ended: End, now: Duration) {
    let End::Keep(kept) = ended else { return };
    let unchanged = |job: &Job| {
        job.keep.is_some_and(|keep| {
            job.resolved.upstream.fingerprint(job.resolved.on_server()) == Some(keep.fingerprint)
        })
    };
    if ctx.job.as_deref().is_some_and(unchanged) {
        if let Some(depot) = &gateway.depot {
            let lease = ctx.leads.as_mut().and_then(|leader| leader.hand_over(&kept.key));
            depot.put(kept.key, kept.answer.clone(), now, gateway.settings.cache.ttl, lease);
        }
        gateway.store.keep(kept.key, kept.answer, now);
    }
}
