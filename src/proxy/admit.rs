//! What happens to a request before it goes anywhere: the list of steps, in their order; the first "no" ends it.
//!
//! Path and method, address, key, request limits, body, model, cache. Start reading here.

use std::net::IpAddr;
use std::sync::PoisonError;

use bytes::Bytes;
use http::{Method, header};
use pingora_proxy::Session;

use crate::auth::presented;
use crate::cache::{Control, Dialect, Follower, Form, Question, Scope};
use crate::route::Resolved;
use crate::wire::{self, Astray, BodyKind, Document, Endpoint, HEADERS_KEYED, Model, Own, Target, Work};

use super::ask::{Hit, Waiting, ask};
use super::body::{self, Stop};
use super::context::{Asked, Context, InFlight, Job, Keep};
use super::gateway::Gateway;
use super::refusal::Refusal;

/// More than any client of these protocols sends.
const HEADERS_BYTES_MAX: usize = 32 << 10;

/// What becomes of a request that nothing refused.
pub(super) enum Verdict {
    /// A browser asks what it may send.
    Preflight,
    /// The gateway answers by itself.
    Own(Own),
    /// The answer is kept.
    Hit(Hit),
    /// Another caller's request is producing it.
    Follow(Follower<Refusal>),
    /// The same, but in another form.
    Wait(Box<Waiting>),
    /// A server answers.
    Forward(Job),
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

    gateway.gate.admit_address(ctx.arrival.client_ip).map_err(Refusal::Limited)?;

    ctx.asked.caller = identify(gateway, session, ctx.arrival.client_ip)?;
    let key = ctx.asked.caller.as_ref().map(|(index, _)| *index);

    let permit = gateway.gate.admit(key, gateway.clock.now());
    ctx.asked.level = permit.as_ref().map_or_else(|refused| refused.level, |permit| permit.level);
    let permit = permit.map_err(Refusal::Limited)?;
    *ctx.guards.permit.lock().unwrap_or_else(PoisonError::into_inner) = Some(permit);

    let endpoint = match target {
        Target::Own(own) => return Ok(Verdict::Own(own)),
        Target::Server(endpoint) => endpoint,
    };

    let share = ctx.guards.body.insert(gateway.bodies.share());
    let body = body::read(session, gateway, share).await;
    ctx.asked.bytes_in = share.bytes();
    let body = body?;
    let understood = understand(gateway, session, endpoint, &body).await?;

    let resolved = resolve(gateway, understood.model(), &mut ctx.asked)?;

    let control = cache_control(session);
    let keep = keep(gateway, session, endpoint, &understood, &resolved, &mut ctx.asked, control);
    let body = understood.forwarded(body, &resolved);
    Ok(ask(gateway, ctx, Job { endpoint, body, resolved, keep }, control).await?)
}

fn headers_within_bounds(session: &Session) -> Result<(), Refusal> {
    let head = session.req_header();
    let fields: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let refusal = Refusal::HeadersTooLarge { bytes_max: HEADERS_BYTES_MAX };
    if fields + head.raw_path().len() > HEADERS_BYTES_MAX { Err(refusal) } else { Ok(()) }
}

fn identify(gateway: &Gateway, session: &Session, from: IpAddr) -> Result<Option<(usize, String)>, Refusal> {
    let Some(keyring) = &gateway.keyring else { return Ok(None) };
    let headers = &session.req_header().headers;
    let values =
        |name: &str| headers.get_all(name).iter().map(http::HeaderValue::as_bytes).collect::<Vec<_>>();
    let (bearer, x_api_key) = (values("authorization"), values("x-api-key"));
    let text = presented(bearer.into_iter(), x_api_key.into_iter()).ok_or(Refusal::InvalidKey)?;
    let caller = keyring.identify(text, from, gateway.clock.wall()).ok_or(Refusal::InvalidKey)?;
    Ok(Some((caller.index, caller.name.to_owned())))
}

/// What the gateway read in a body.
enum Understood {
    Json { document: Document, stream: bool },
    Form { model: Option<Model> },
}

async fn understand(
    gateway: &Gateway,
    session: &Session,
    endpoint: &Endpoint,
    body: &Bytes,
) -> Result<Understood, Refusal> {
    if endpoint.body == BodyKind::Multipart {
        let content_type = session.req_header().headers.get(header::CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
        return Ok(Understood::Form { model: wire::multipart_model(content_type, body).await? });
    }
    let document = wire::parse(body)?;
    let stream = wire::wants_stream(&document.members)?;
    wire::refuse_slot(&document.members)?;
    if !gateway.settings.body.remote_media
        && let Some(member) = wire::remote_media(&document.members)
    {
        return Err(Refusal::RemoteMedia(member));
    }
    Ok(Understood::Json { document, stream })
}

impl Understood {
    fn model(&self) -> Option<&Model> {
        match self {
            Self::Json { document, .. } => document.model.as_ref(),
            Self::Form { model } => model.as_ref(),
        }
    }

    fn stream(&self) -> bool {
        matches!(self, Self::Json { stream: true, .. })
    }

    /// The body as the server gets it: as it came, unless an alias changes the model.
    fn forwarded(&self, body: Bytes, resolved: &Resolved) -> Bytes {
        match (self, &resolved.rename) {
            (_, None) => body,
            (Self::Json { document, .. }, Some(name)) => {
                wire::rename_model(&body, document.model.as_ref(), name).into()
            }
            (Self::Form { model: Some(model) }, Some(name)) => {
                wire::rename_multipart_model(&body, model, name).into()
            }
            // A form without a model: the server has its own.
            (Self::Form { model: None }, Some(_)) => body,
        }
    }
}

fn resolve(gateway: &Gateway, model: Option<&Model>, asked: &mut Asked) -> Result<Resolved, Refusal> {
    asked.model_requested = model.map(|model| model.name.clone());
    let requested = asked.model_requested.as_deref();
    let resolved = gateway
        .fleet
        .resolve(requested)
        .ok_or_else(|| Refusal::ModelNotFound(requested.unwrap_or_default().to_owned()))?;
    let name = resolved.name.clone().unwrap_or_default();
    if let (Some(keyring), Some((index, _))) = (&gateway.keyring, &asked.caller)
        && !keyring.may_use(*index, &name)
    {
        return Err(Refusal::ModelNotAllowed(name));
    }
    asked.model = resolved.rename.clone().or(resolved.name.clone());
    asked.upstream = Some(resolved.upstream.spec.name.clone());
    Ok(resolved)
}

fn cache_control(session: &Session) -> Control {
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
) -> Option<Keep> {
    asked.stream = understood.stream();
    let Understood::Json { document, stream } = understood else { return None };
    let dialect = Dialect::of(endpoint.path);
    let form = Form::asked(dialect, *stream, &document.members);
    let key = asked.caller.as_ref().map(|(index, _)| *index);
    let computed = endpoint.work == Work::Compute;
    let keeps = gateway.store.keeps()
        && !control.no_store
        && gateway.answers(key, resolved.rule).keep(computed, &document.members);
    // A server that has not been asked since it was away may have come back with another model.
    let fingerprint = resolved.upstream.fingerprint().filter(|_| keeps)?;
    let headers = &session.req_header().headers;
    let keyed: Vec<_> = HEADERS_KEYED
        .iter()
        .flat_map(|name| headers.get_all(*name).iter().map(|value| (*name, value.as_bytes().to_vec())))
        .collect();
    let question = Question {
        scope: match gateway.settings.cache.scope {
            Scope::Key => asked.caller.as_ref().map(|(_, name)| name.as_str()),
            Scope::Gateway => None,
        },
        endpoint: endpoint.path,
        form,
        upstream: &resolved.upstream.spec.name,
        model: resolved.rename.as_deref().or(resolved.name.as_deref()),
        fingerprint: Some(fingerprint),
        purge: gateway.purges.mark(
            &resolved.upstream.spec.name,
            gateway.fleet.known_model(resolved),
            asked.caller.as_ref().map(|(_, name)| name.as_str()),
        ),
        headers: &keyed,
        body: &document.members,
    };
    Some(Keep { key: question.key(), form, dialect, fingerprint })
}
