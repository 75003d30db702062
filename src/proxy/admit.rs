//! What happens to a request before it goes anywhere: the list of steps, in their order; the first "no" ends it.
//!
//! Path and method, address, key, request limits, body, model, cache. Start reading here.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Method, header};
use pingora_proxy::Session;

use crate::auth::{ClientCertificate, Presented, presented};
use crate::cache::{Control, Dialect, Gist, Question, Scope};
use crate::limit::{Permit, Refused, Unruled};
use crate::observe::CacheOutcome;
use crate::route::{Kind, Resolved};
use crate::wire::{self, Astray, Endpoint, HEADERS_KEYED, Own, Target, Work};

use super::ask::{self, Aboard, Hit, ask};
use super::bodies::arrived;
use super::body::{self, Stop};
use super::context::{Asked, Caller, Context, InFlight, Job, Keep};
use super::cost;
use super::fallback;
use super::gateway::Gateway;
use super::quote::Quote;
use super::refusal::Refusal;
use super::turned::turn;
use super::understood::{self, Understood, understand};

static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// More than any client of these protocols sends.
const HEADERS_BYTES_MAX: usize = 32 << 10;

/// Of a longer name of a user, the beginning counts.
const USER_BYTES_MAX: usize = 256;

/// What becomes of a request that nothing refused.
pub(super) enum Verdict {
    /// A browser asks what it may send.
    Preflight,
    /// The gateway answers by itself.
    Own(Own),
    /// The answer is kept.
    Hit(Hit),
    /// Another caller's request is producing it.
    Follow(Box<Aboard>),
    /// A server answers.
    Forward(Box<Job>),
}

pub(super) async fn admit(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
) -> Result<Verdict, Stop> {
    headers_within_bounds(session)?;

    let (method, path) = (&ctx.arrival.method, ctx.arrival.path.as_str());
    if method == Method::OPTIONS && wire::is_known_path(path) {
        ctx.asked.aside = true;
        return Ok(Verdict::Preflight);
    }
    let target = wire::find(method, path).map_err(|astray| match astray {
        Astray::NotFound => Refusal::NotFound,
        Astray::MethodNotAllowed(allow) => Refusal::MethodNotAllowed(allow),
    })?;
    if let Target::Own(own @ (Own::Health | Own::Stats | Own::Live | Own::Ready)) = target {
        ctx.asked.aside = true;
        return Ok(Verdict::Own(own));
    }
    ctx.guards.in_flight = Some(InFlight::new(&gateway.metrics.in_flight));

    gateway.gate.admit_address(ctx.arrival.client_ip, gateway.clock.now()).map_err(Refusal::Limited)?;

    ctx.asked.caller = identify(gateway, session, ctx.arrival.client_ip)?;
    let (account, user) =
        ctx.asked.caller.as_ref().map_or((None, None), |caller| {
            (Some(Arc::clone(&caller.member.account)), caller.user.as_deref())
        });
    let now = gateway.clock.now();
    ctx.asked.subjects = gateway.gate.subjects(account.as_deref(), user, now);
    let endpoint = match target {
        Target::Own(Own::Usage) => {
            if let Some(shared) = &gateway.shared {
                let look = shared.look(&ctx.asked.subjects, &mut ctx.asked.shared, || gateway.clock.now());
                Box::pin(look).await;
            }
            return Ok(Verdict::Own(Own::Usage));
        }
        Target::Own(own) => {
            enter(gateway, ctx, true, now).await?;
            return Ok(Verdict::Own(own));
        }
        Target::Server(endpoint) => endpoint,
    };
    // All buckets must admit at once. Where some are by model, those that are not are only looked at before the body;
    // but the places among those at once are taken.
    let late = gateway.gate.limits_models();
    enter(gateway, ctx, !late, now).await?;
    let read = read(gateway, session, ctx, endpoint).await;
    if late {
        let rule = read.as_ref().ok().and_then(|(.., resolved)| resolved.rule);
        gateway.gate.add_model(&mut ctx.asked.subjects, account.as_deref(), rule);
        // What cannot be used costs a request like any other.
        enter(gateway, ctx, true, gateway.clock.now()).await?;
    }
    let (body, mut understood, resolved) = read?;
    if let Understood::Known(_) = &understood {
        if let Some(hit) = known(gateway, session, ctx, endpoint, &understood, &resolved).await {
            return Ok(Verdict::Hit(hit));
        }
        understood = understood::parse(gateway, endpoint, &body).await?;
    }
    let bytes = body.clone();
    let streams = resolved.upstream.streams_always(|| gateway.clock.now());
    let mut job = job(gateway, session, ctx, endpoint, (body, understood, resolved), streams);
    job.fallbacks = fallback::list(gateway, &ctx.asked, endpoint, &job.resolved);
    if job.fallbacks.is_empty() {
        job.original = None;
    }
    let control = cache_control(session);
    let gist = job.gist.take();
    let verdict = ask(gateway, session, ctx, job, control).await?;
    if let (Verdict::Hit(_), Some(gist)) = (&verdict, gist) {
        gateway.memo.remember(endpoint.path, &bytes, *gist);
    }
    Ok(verdict)
}

/// The answer to a body that was read before, if it is kept.
async fn known(
    gateway: &Gateway,
    session: &Session,
    ctx: &mut Context,
    endpoint: &Endpoint,
    understood: &Understood,
    resolved: &Resolved,
) -> Option<Hit> {
    let control = cache_control(session);
    // What the operator decides changes the body.
    if control.no_cache || gateway.request_rules(resolved.rule).is_some() {
        return None;
    }
    let (keep, _) = keep(gateway, session, endpoint, understood, resolved, &mut ctx.asked, control)?;
    let entry = gateway.store.look_up(&keep.key, gateway.clock.now(), control.age_max)?;
    // To render it in another form takes longer than to read the body, and may fail.
    let entry = Some(entry).filter(|entry| entry.form == keep.form)?;
    let hit = ask::hit(gateway, entry, keep).await?;
    ctx.asked.cache = CacheOutcome::Hit;
    Some(hit)
}

/// The request as it goes to a model: the one that was asked for, or one of its fallbacks. `streams`: a plain answer is
/// made of a stream.
pub(super) fn job(
    gateway: &Gateway,
    session: &Session,
    ctx: &mut Context,
    endpoint: &'static Endpoint,
    (original, mut understood, resolved): (Bytes, Understood, Resolved),
    streams: bool,
) -> Box<Job> {
    let rules = gateway.request_rules(resolved.rule);
    if let Some(rules) = rules {
        understood.amend(endpoint, rules);
    }
    let control = cache_control(session);
    let keep = keep(gateway, session, endpoint, &understood, &resolved, &mut ctx.asked, control);
    let (keep, gist) = keep.unzip();
    let demand = understood.demand(endpoint, cost::minds_tokens(&ctx.asked));
    let prompt = understood.prompt(&resolved);
    let unasked = cost::asks_usage(&ctx.asked, endpoint, &resolved) && understood.ask_usage(endpoint);
    let (body, turned) = turn(endpoint, &mut understood, &demand, &resolved, (original.clone(), streams));
    let made = |keep: Keep| Keep { made: turned.as_ref().map_or(keep.form, |turned| turned.made), ..keep };
    let keep = keep.map(made);
    // What was read takes many times its body, and what follows may take long: it goes here.
    let (original, fallbacks) = (Some(original), VecDeque::new());
    Box::new(Job {
        endpoint,
        body,
        unasked,
        apart: false,
        original,
        turned,
        resolved,
        fallbacks,
        asked_for: None,
        keep,
        gist: gist.filter(|_| rules.is_none()),
        demand,
        prompt,
    })
}

/// Admits by limits of requests, or says which does not. Where it does not take, buckets are only looked at.
async fn enter(gateway: &Gateway, ctx: &mut Context, takes: bool, now: Duration) -> Result<(), Refusal> {
    let held = ctx.guards.permit.take().unwrap_or_default();
    let (subjects, clock) = (&ctx.asked.subjects, || gateway.clock.now());
    let ruled = match &gateway.shared {
        None if takes => subjects.admit_with(held, now),
        None => subjects.enter_with(held, now),
        Some(shared) => {
            gateway.check_shared()?;
            Box::pin(shared.admit(subjects, held, takes, &mut ctx.asked.shared, clock))
                .await
                .map_or_else(unruled, |permit| Ok(Ok(permit)))?
        }
    };
    permitted(ctx, ruled)
}

/// What a limit refuses is written down; nothing else is.
pub(super) fn unruled<T>(unruled: Unruled) -> Result<Result<T, Refused>, Refusal> {
    match unruled {
        Unruled::Refused(refused) => Ok(Err(refused)),
        Unruled::Away => Err(Refusal::SharedAway),
    }
}

fn permitted(ctx: &mut Context, permit: Result<Permit, Refused>) -> Result<(), Refusal> {
    ctx.asked.requests = permit.as_ref().map_or_else(|refused| refused.level, |permit| permit.level);
    let permit = permit.map_err(Refusal::Limited)?;
    ctx.guards.permit = Some(permit);
    Ok(())
}

/// Reads the body, and finds who answers to its model.
async fn read(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
    endpoint: &'static Endpoint,
) -> Result<(Bytes, Understood, Resolved), Stop> {
    // Until it has been read; what a server is sent may wait for long.
    let mut place = gateway.bodies.place(body::announced(session)).await;
    let share = ctx.guards.body.insert(gateway.bodies.share());
    let body = arrived(body::read(session, gateway, share), &mut place).await;
    ctx.asked.bytes_in = share.bytes();
    let body = body?;
    let understood = match understood::recall(gateway, endpoint, &body) {
        Some(known) => known,
        None => understand(gateway, session, endpoint, &body).await?,
    };
    ctx.told.quote = Quote::of(gateway, &understood);
    let resolved = resolve(gateway, understood.model(), &mut ctx.asked)?;
    if endpoint.is_llamas_own() && resolved.upstream.spec.kind != Kind::Llama {
        return Err(Refusal::LlamasOwn(endpoint.path).into());
    }
    Ok((body, understood, resolved))
}

fn headers_within_bounds(session: &Session) -> Result<(), Refusal> {
    let head = session.req_header();
    let fields: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let refusal = Refusal::HeadersTooLarge { bytes_max: HEADERS_BYTES_MAX };
    if fields + head.raw_path().len() > HEADERS_BYTES_MAX { Err(refusal) } else { Ok(()) }
}

fn identify(gateway: &Gateway, session: &Session, from: IpAddr) -> Result<Option<Caller>, Refusal> {
    let Some(roster) = gateway.roster() else { return Ok(None) };
    let headers = &session.req_header().headers;
    let values =
        |name: &HeaderName| headers.get_all(name).iter().map(http::HeaderValue::as_bytes).collect::<Vec<_>>();
    let (bearer, x_api_key) = (values(&header::AUTHORIZATION), values(&X_API_KEY));
    let now = gateway.clock.wall();
    let member = match presented(bearer.into_iter(), x_api_key.into_iter()) {
        Presented::Key(text) => roster.identify(text, from, now),
        Presented::Nothing => certificate(session).and_then(|it| roster.identify_certificate(it, from, now)),
        Presented::Unclear => None,
    };
    let member = member.ok_or(Refusal::InvalidKey)?;
    let user = member.user_header.as_ref().and_then(|name| headers.get(name)).and_then(user);
    Ok(Some(Caller { member, user }))
}

/// What the caller's certificate says, where its connection asked for one.
fn certificate(session: &Session) -> Option<&ClientCertificate> {
    session.digest()?.ssl_digest.as_ref()?.extension.get()
}

/// The name of a user: what is too long or no UTF-8 is a name too, or it would be a way around the limits.
fn user(value: &http::HeaderValue) -> Option<String> {
    let bytes = value.as_bytes().trim_ascii();
    let name = String::from_utf8_lossy(&bytes[..bytes.len().min(USER_BYTES_MAX)]).into_owned();
    (!name.is_empty()).then_some(name)
}

fn resolve(gateway: &Gateway, model: Option<&str>, asked: &mut Asked) -> Result<Resolved, Refusal> {
    asked.model_requested = model.map(str::to_owned);
    let requested = asked.model_requested.as_deref();
    let resolved = gateway
        .fleet
        .resolve(requested)
        .ok_or_else(|| Refusal::ModelNotFound(requested.unwrap_or_default().to_owned()))?;
    let name = resolved.name.clone().unwrap_or_default();
    if asked.caller.as_ref().is_some_and(|caller| !caller.member.may_use(&name)) {
        return Err(Refusal::ModelNotAllowed(name));
    }
    asked.model = resolved.rename.clone().or(resolved.name.clone());
    asked.upstream = Some(resolved.upstream.spec.name.clone());
    Ok(resolved)
}

pub(super) fn cache_control(session: &Session) -> Control {
    let values = session.req_header().headers.get_all(header::CACHE_CONTROL).iter();
    Control::read(values.filter_map(|value| value.to_str().ok()))
}

/// Where the answer is kept, or `None` where it is neither kept nor looked for.
fn keep(
    gateway: &Gateway,
    session: &Session,
    endpoint: &Endpoint,
    understood: &Understood,
    resolved: &Resolved,
    asked: &mut Asked,
    control: Control,
) -> Option<(Keep, Box<Gist>)> {
    asked.stream = understood.stream();
    let key = asked.caller.as_ref().and_then(|caller| caller.member.answers);
    let computed = endpoint.work == Work::Compute;
    let keeps = gateway.store.keeps()
        && !control.no_store
        && gateway.answers(key, resolved.rule).keep(computed || understood.is_deterministic());
    // A server that has not been asked since it was away may have come back with another model.
    let fingerprint = resolved.upstream.fingerprint(resolved.on_server()).filter(|_| keeps)?;
    let gist = understood.gist(endpoint.path)?;
    let headers = &session.req_header().headers;
    let is_keyed = |name: &HeaderName| HEADERS_KEYED.iter().find(|keyed| **keyed == name.as_str());
    let mut keyed: Vec<_> = headers
        .iter()
        .filter_map(|(name, value)| is_keyed(name).map(|name| (*name, value.as_bytes().to_vec())))
        .collect();
    keyed.sort_by_key(|(name, _)| *name);
    let question = Question {
        scope: match gateway.settings.cache.scope {
            Scope::Key => asked.key(),
            Scope::Gateway => None,
        },
        endpoint: endpoint.path,
        upstream: &resolved.upstream.spec.name,
        model: resolved.on_server(),
        fingerprint: Some(fingerprint),
        purge: gateway.purges.mark(
            &resolved.upstream.spec.name,
            gateway.fleet.known_model(resolved),
            asked.key(),
        ),
        headers: &keyed,
        body: &gist.digest,
    };
    let (key, form, dialect) = (question.key(), gist.form, Dialect::of(endpoint.path));
    Some((Keep { key, form, made: form, dialect, fingerprint }, Box::new(gist)))
}
