//! Is the answer kept, being made, or to be made: one question, asked under one lock. One entry and one flight serve
//! every form; where a shape has no rendering, each form has its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pingora_proxy::Session;
use tokio::task::spawn_blocking;

use crate::cache::render::render;
use crate::cache::{Boarding, Control, Dialect, Entry, Follower, Form, Landing, among};
use crate::observe::CacheOutcome;

use super::admit::Verdict;
use super::body::Stop;
use super::context::{Context, InFlight, Job, Keep};
use super::cost;
use super::gateway::Gateway;
use super::refusal::Refusal;
use super::replicas::{self, Elsewhere};

/// A larger answer is rendered beside the threads that serve (64 KiB take about a millisecond).
const RENDERED_AT_ONCE_BYTES_MAX: usize = 64 << 10;

/// An answer that is kept, in the form that was asked for.
pub(super) struct Hit {
    pub(super) entry: Arc<Entry>,
    pub(super) content_type: Bytes,
    pub(super) body: Bytes,
}

/// A caller that joined an answer in the making, with what it takes to make it after all.
pub(super) struct Aboard {
    pub(super) follower: Follower<Refusal>,
    pub(super) keep: Keep,
    pub(super) job: Box<Job>,
    age_max: Option<Duration>,
}

/// Why a caller that joined an answer must look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// Whoever was to make it may not.
    Declined,
    /// It has no rendering in the form that was asked for.
    Unrendered,
}

/// Looks for the answer to a request, as far as its `cache-control` allows; where a server must make it, its tokens
/// are reserved.
pub(super) async fn ask(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
    job: Box<Job>,
    control: Control,
) -> Result<Verdict, Stop> {
    let mut verdict = seek(gateway, ctx, job, control).await?;
    if let Verdict::Forward(job) = &mut verdict
        && let Err(stop) = cost::reserve(gateway, session, ctx, job).await
    {
        // That concerns this caller alone: one of its followers makes the answer.
        ctx.land(Landing::Declined(job.demand.counted()));
        ctx.flight = None;
        ctx.asked.cache = CacheOutcome::Bypass;
        ctx.asked.cache_status = "ai-gateway; fwd=bypass";
        return Err(stop);
    }
    Ok(verdict)
}

async fn seek(
    gateway: &Gateway,
    ctx: &mut Context,
    job: Box<Job>,
    control: Control,
) -> Result<Verdict, Refusal> {
    // With `no-cache` a fresh answer is asked for: one that is being made may be older than the asking.
    let Some(keep) = job.keep.filter(|_| !control.no_cache) else {
        if control.only_if_cached {
            return Err(Refusal::NotCached);
        }
        if job.keep.is_some() {
            miss(ctx, "ai-gateway; fwd=request");
        }
        return Ok(Verdict::Forward(job));
    };
    let now = gateway.clock.now();
    for alone in [false, true] {
        let keep = if alone { keep.only() } else { keep };
        let look_up = || gateway.store.look_up(&keep.key, now, control.age_max);
        let boarding = match look_up() {
            Some(entry) => Boarding::Fresh(entry),
            None if control.only_if_cached => {
                let kept = replicas::kept(gateway, &keep.key, control.age_max);
                let kept = Box::pin(waited(gateway, ctx, kept)).await;
                Boarding::Fresh(kept.ok_or(Refusal::NotCached)?)
            }
            None => {
                // Keys that may use other fallbacks would get each other's answers and failures.
                let others = job.fallbacks.iter().filter_map(|fallback| fallback.name.as_deref());
                gateway.flights.board(among(&keep.key, others), keep.made, look_up)
            }
        };
        match boarding {
            Boarding::Fresh(entry) => {
                if let Some(hit) = hit(gateway, entry, keep).await {
                    ctx.asked.cache = CacheOutcome::Hit;
                    return Ok(Verdict::Hit(hit));
                }
            }
            Boarding::Busy(follower) => {
                return Ok(join(gateway, ctx, follower, keep, job, control.age_max));
            }
            Boarding::Lead(leader) => {
                let elsewhere = match &gateway.depot {
                    None => Elsewhere::Here(leader),
                    Some(depot) => {
                        let asks = replicas::ask(gateway, depot, leader, &keep, control.age_max);
                        Box::pin(waited(gateway, ctx, asks)).await
                    }
                };
                match elsewhere {
                    Elsewhere::Kept(entry) => {
                        if let Some(hit) = hit(gateway, entry, keep).await {
                            ctx.asked.cache = CacheOutcome::Hit;
                            return Ok(Verdict::Hit(hit));
                        }
                    }
                    Elsewhere::Made(follower) => {
                        return Ok(join(gateway, ctx, follower, keep, job, control.age_max));
                    }
                    Elsewhere::Here(leader) => {
                        ctx.flight = Some(Arc::clone(leader.flight()));
                        ctx.leads = Some(leader);
                        miss(ctx, "ai-gateway; fwd=uri-miss");
                        return Ok(Verdict::Forward(job.kept(keep)));
                    }
                }
            }
        }
    }
    // What is kept for one form alone is in that form, so this is not reached; it costs nothing but a generation.
    miss(ctx, "ai-gateway; fwd=uri-miss");
    Ok(Verdict::Forward(job))
}

/// Counts how long a request waits for what replicas share.
pub(super) async fn waited<T>(gateway: &Gateway, ctx: &mut Context, asks: impl Future<Output = T>) -> T {
    let asked_at = gateway.clock.now();
    let told = asks.await;
    ctx.asked.shared.time += gateway.clock.now().saturating_sub(asked_at);
    told
}

/// Joins an answer that is being made.
fn join(
    gateway: &Gateway,
    ctx: &mut Context,
    follower: Follower<Refusal>,
    keep: Keep,
    job: Box<Job>,
    age_max: Option<Duration>,
) -> Verdict {
    ctx.guards.follows = Some(InFlight::new(&gateway.metrics.flight_followers));
    ctx.asked.cache = CacheOutcome::Shared;
    ctx.asked.cache_status = "ai-gateway; fwd=uri-miss; collapsed";
    Verdict::Follow(Box::new(Aboard { follower, keep, job, age_max }))
}

/// Looks again.
pub(super) async fn ask_again(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
    aboard: Aboard,
    why: Again,
) -> Result<Verdict, Stop> {
    let Aboard { follower, keep, mut job, age_max } = aboard;
    drop(follower);
    ctx.guards.follows = None;
    // Whoever made the answer instead makes this one no more.
    ctx.asked.model = job.resolved.on_server().map(str::to_owned);
    ctx.asked.upstream = Some(job.resolved.upstream.spec.name.clone());
    if why == Again::Unrendered {
        job.keep = Some(keep.only());
    }
    ask(gateway, session, ctx, job, Control { age_max, ..Control::default() }).await
}

fn miss(ctx: &mut Context, status: &'static str) {
    ctx.asked.cache = CacheOutcome::Miss;
    ctx.asked.cache_status = status;
}

pub(super) async fn hit(gateway: &Gateway, entry: Arc<Entry>, keep: Keep) -> Option<Hit> {
    if entry.form == keep.form {
        let (content_type, body) = (entry.content_type.clone(), entry.body.clone());
        return Some(Hit { entry, content_type, body });
    }
    let body = if entry.lacks(keep.form) {
        None
    } else {
        rendered(keep.dialect, entry.form, entry.body.clone(), keep.form).await
    };
    note_rendering(gateway, body.is_some());
    let Some(body) = body else {
        entry.note_lacking(keep.form);
        return None;
    };
    Some(Hit { entry, content_type: Bytes::from_static(keep.form.content_type().as_bytes()), body })
}

/// Counts an answer that was wanted in another form than it was made in.
pub(super) fn note_rendering(gateway: &Gateway, done: bool) {
    let metrics = &gateway.metrics;
    let count = if done { &metrics.cache_rendered } else { &metrics.cache_unrendered };
    count.inc();
}

/// Renders an answer in another form.
pub(super) async fn rendered(dialect: Option<Dialect>, from: Form, body: Bytes, to: Form) -> Option<Bytes> {
    let dialect = dialect?;
    if body.len() <= RENDERED_AT_ONCE_BYTES_MAX {
        return render(dialect, from, &body, to);
    }
    spawn_blocking(move || render(dialect, from, &body, to)).await.ok().flatten()
}
