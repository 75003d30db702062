//! Where the servers of a model cannot answer, its request goes on to the next of its fallbacks: as if its caller had
//! asked for that one, with its alias, upstream, queue and place in the cache. The limits are those of the model that
//! was asked for: the request was admitted under them.

use std::collections::VecDeque;
use std::sync::Arc;

use http::StatusCode;
use pingora_proxy::Session;

use crate::cache::{Head, Landing};
use crate::observe::CacheOutcome;
use crate::route::{Kind, Resolved};
use crate::wire::Endpoint;

use super::admit;
use super::ask::{self, Hit};
use super::context::{Asked, Context, Keep, Missed};
use super::gateway::Gateway;
use super::refusal::Refusal;
use super::replicas;
use super::timing::Late;
use super::understood::understand;

/// What a request may go on to: models that its caller may use, whose servers speak its protocol. What takes no slot
/// (tokenise, token counts) tells of the model that was asked for, and of no other.
pub(super) fn list(
    gateway: &Gateway,
    asked: &Asked,
    endpoint: &Endpoint,
    resolved: &Resolved,
) -> VecDeque<Resolved> {
    if !endpoint.takes_slot() {
        return VecDeque::new();
    }
    let may_use = |model: &Resolved| {
        let name = model.name.as_deref().unwrap_or_default();
        asked.caller.as_ref().is_none_or(|caller| caller.member.may_use(name))
    };
    let speaks = |model: &Resolved| !endpoint.is_llamas_own() || model.upstream.spec.kind == Kind::Llama;
    gateway.fleet.fallbacks(resolved).into_iter().filter(|model| may_use(model) && speaks(model)).collect()
}

/// Whether another model may do what this one could not. After a time-out it is not tried: the server may still be
/// working. What took servers down would take down more.
fn helps(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::NoUpstream { .. }
            | Refusal::QueueFull { .. }
            | Refusal::QueueTimeout { .. }
            | Refusal::UpstreamError(_)
            | Refusal::UpstreamTimeout(Late::Connect)
    )
}

/// Makes the job that of the next fallback, or says what the caller is told.
pub(super) async fn turn(
    gateway: &Gateway,
    session: &Session,
    ctx: &mut Context,
    refusal: Refusal,
) -> Result<(), Refusal> {
    if !helps(&refusal) {
        return Err(refusal);
    }
    let next = ctx.job.as_mut().and_then(|job| Some((job.fallbacks.pop_front()?, job.original.clone()?)));
    let Some((next, original)) = next else { return Err(give_up(ctx, refusal)) };
    let Some(job) = ctx.job.take().map(|job| *job) else { return Err(refusal) };
    let understood = understand(gateway, session, job.endpoint, &original).await?;
    if let (Some(model), Some(fallback)) =
        (gateway.fleet.rule_name(job.requested()), gateway.fleet.rule_name(&next))
    {
        gateway.metrics.fell_back(model, fallback);
    }
    let asked = &mut ctx.asked;
    let (model, upstream) = (asked.model.take(), asked.upstream.take());
    ctx.route.missed.get_or_insert(Missed { refusal, model, upstream });
    asked.model = next.on_server().map(str::to_owned);
    asked.upstream = Some(next.upstream.spec.name.clone());
    // Who follows the answer expects it in the form that was announced.
    let streams = job.turned.is_some();
    let mut made = admit::job(gateway, session, ctx, job.endpoint, (original, understood, next), streams);
    made.demand = job.demand;
    made.fallbacks = job.fallbacks;
    made.asked_for = job.asked_for.or_else(|| Some(Box::new(job.resolved)));
    ctx.job = Some(made);
    ctx.route.lease = None;
    (ctx.route.tries, ctx.route.broken, ctx.route.met) = (0, 0, None);
    ctx.route.timing.rest();
    ctx.told.upstream_status = None;
    Ok(())
}

/// Nobody is left: the caller is told what the model that it asked for met.
fn give_up(ctx: &mut Context, refusal: Refusal) -> Refusal {
    let Some(missed) = ctx.route.missed.take() else { return refusal };
    ctx.asked.model = missed.model;
    ctx.asked.upstream = missed.upstream;
    missed.refusal
}

/// The fallback's answer, if it is kept. Those who follow the flight of the model that was asked for get it too.
pub(super) async fn kept(gateway: &Gateway, session: &Session, ctx: &mut Context) -> Option<Hit> {
    let control = admit::cache_control(session);
    let keep = ctx.job.as_ref()?.keep.filter(|_| !control.no_cache)?;
    let entry = match gateway.store.look_up(&keep.key, gateway.clock.now(), control.age_max) {
        Some(entry) => entry,
        None => ask::waited(gateway, ctx, replicas::kept(gateway, &keep.key, control.age_max)).await?,
    };
    let hit = ask::hit(gateway, Arc::clone(&entry), keep).await?;
    if let Some(leader) = &ctx.leads {
        // Its followers expect it in the form that the flight makes, which may be another than its leader asked for.
        let made = ask::hit(gateway, entry, Keep { form: leader.flight().form(), ..keep }).await;
        if let Some(made) = &made {
            let (status, instead) = (StatusCode::OK, instead(ctx));
            leader.head(Head { status, content_type: made.content_type.clone(), instead });
            leader.push(&made.body);
        }
        // Where it has none, they look for themselves.
        ctx.land(if made.is_some() { Landing::Whole } else { Landing::Declined(None) });
    }
    ctx.job = None;
    ctx.flight = None;
    ctx.asked.cache = CacheOutcome::Hit;
    Some(hit)
}

/// Which model and upstream answer, where they are others than were asked for.
pub(super) fn instead(ctx: &Context) -> Option<(Option<String>, Option<String>)> {
    ctx.route.missed.as_ref().map(|_| (ctx.asked.model.clone(), ctx.asked.upstream.clone()))
}
