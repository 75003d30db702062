//! What the gateway reads in a body: JSON, once, or the model's name in a form.

use bytes::Bytes;
use http::header;
use pingora_proxy::Session;
use serde_json::{Map, Value};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{spawn_blocking, yield_now};

use crate::cache::{Dialect, Form, Gist, digest, is_deterministic};
use crate::route::{Prompt, Resolved};
use crate::wire::{
    self, BodyKind, Changes, Demand, Document, Endpoint, Members, Model, Reading, RequestRules, Step, Work,
};

use super::bodies::LARGE_BYTES;
use super::gateway::Gateway;
use super::refusal::Refusal;

/// A large body is read in steps of so many bytes, where it has no more than these bytes, and values with the names of
/// members. Of a chat a step takes some 50 µs, and the digest, which is not taken in steps, some 0.15 ms; what somebody
/// made up to take long, a few milliseconds.
const STEP_BYTES: usize = 64 << 10;
const STEPPED_BYTES_MAX: usize = 320 << 10;
const STEPPED_VALUES_MAX: usize = 24 << 10;

/// What the gateway read in a body.
pub(super) enum Understood {
    Json {
        document: Document,
        stream: bool,
        /// What the body is to say instead.
        changes: Changes,
        /// Its gist, where it was taken ahead.
        digested: Option<Box<Gist>>,
        /// A large one's turn to be read, which is over when this is dropped.
        _turn: Option<OwnedSemaphorePermit>,
    },
    Form {
        model: Option<Model>,
    },
    /// Its bytes were read before. No job is made of it: what goes to a server is read first.
    Known(Box<Gist>),
}

pub(super) async fn understand(
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
    parse(gateway, endpoint, body).await
}

/// What is known of a body that was read before: enough to look for its answer, and for nothing else.
pub(super) fn recall(gateway: &Gateway, endpoint: &Endpoint, body: &[u8]) -> Option<Understood> {
    let recalls = gateway.recalls() && endpoint.body == BodyKind::Json;
    let gist = gateway.memo.recall(endpoint.path, body).filter(|_| recalls)?;
    Some(Understood::Known(Box::new(gist)))
}

/// Reads a body of JSON: a large one in steps, between which others are served. One that would take too many of them is
/// read beside the threads that serve, and its digest is taken there too.
pub(super) async fn parse(
    gateway: &Gateway,
    endpoint: &Endpoint,
    body: &Bytes,
) -> Result<Understood, Refusal> {
    let remote_media = gateway.settings.body.remote_media;
    if body.len() as u64 <= LARGE_BYTES {
        return understood(wire::parse(body)?, remote_media, None);
    }
    let turn = gateway.bodies.turn(body.len()).await;
    if let Some(document) = in_steps(body).await {
        return understood(document, remote_media, turn);
    }
    let (apart, path) = (body.clone(), endpoint.path);
    let beside = spawn_blocking(move || {
        understood(wire::parse(&apart)?, remote_media, turn).map(|mut understood| {
            understood.digest_ahead(path);
            understood
        })
    });
    beside.await.unwrap_or_else(|_| understood(wire::parse(body)?, remote_media, None))
}

/// Reads a body where it came, without another thread that is to be woken and has nothing of the body near. `None`: it
/// takes too long, or is refused, and to say why takes as long again.
async fn in_steps(body: &Bytes) -> Option<Document> {
    if body.len() > STEPPED_BYTES_MAX {
        return None;
    }
    let mut reading = Reading::of(body);
    loop {
        reading = match reading.go_on(STEP_BYTES)? {
            Step::Whole(document) => {
                return Some(document).filter(|document| document.members.values() <= STEPPED_VALUES_MAX);
            }
            Step::More(more) if more.values() > STEPPED_VALUES_MAX => return None,
            Step::More(more) => more,
        };
        yield_now().await;
    }
}

fn understood(
    document: Document,
    remote_media: bool,
    turn: Option<OwnedSemaphorePermit>,
) -> Result<Understood, Refusal> {
    let stream = wire::wants_stream(&document.members)?;
    wire::refuse_slot(&document.members)?;
    if !remote_media && let Some(member) = document.remote_media {
        return Err(Refusal::RemoteMedia(member));
    }
    Ok(Understood::Json { document, stream, changes: Changes::default(), digested: None, _turn: turn })
}

impl Understood {
    /// The name of the model in it.
    pub(super) fn model(&self) -> Option<&str> {
        match self {
            Self::Json { document, .. } => document.model.as_ref().map(|model| model.name.as_str()),
            Self::Form { model } => model.as_ref().map(|model| model.name.as_str()),
            Self::Known(gist) => gist.model.as_deref(),
        }
    }

    /// Whether the same body must always have the same answer.
    pub(super) fn is_deterministic(&self) -> bool {
        match self {
            Self::Json { document, .. } => is_deterministic(&document.members),
            Self::Known(gist) => gist.deterministic,
            Self::Form { .. } => false,
        }
    }

    /// What a look-up needs to know of it; `None`: no answer to it is kept.
    pub(super) fn gist(&self, path: &str) -> Option<Gist> {
        match self {
            Self::Json { digested: Some(gist), .. } => Some(gist.as_ref().clone()),
            Self::Json { document, stream, .. } => {
                let form = Form::asked(Dialect::of(path), *stream, &document.members);
                Some(Gist {
                    model: document.model.as_ref().map(|model| model.name.clone()),
                    stream: *stream,
                    form,
                    deterministic: is_deterministic(&document.members),
                    digest: digest(form, &document.members)?,
                })
            }
            Self::Known(gist) => Some(gist.as_ref().clone()),
            Self::Form { .. } => None,
        }
    }

    fn digest_ahead(&mut self, path: &str) {
        let gist = self.gist(path);
        if let Self::Json { digested, .. } = self {
            *digested = gist.map(Box::new);
        }
    }

    /// Makes the body say what the operator decides.
    pub(super) fn amend(&mut self, endpoint: &Endpoint, rules: &RequestRules) {
        if let Self::Json { document, changes, digested, .. } = self
            && endpoint.work == Work::Generate
        {
            *digested = None;
            rules.apply(endpoint, &mut document.members, changes);
        }
    }

    /// Asks for the usage of a stream, where its caller does not; whether that changes anything.
    pub(super) fn ask_usage(&mut self, endpoint: &Endpoint) -> bool {
        let Self::Json { document, stream: true, changes, .. } = self else { return false };
        let form = Form::asked(Dialect::of(endpoint.path), true, &document.members);
        let has_option = Dialect::of(endpoint.path).is_some_and(Dialect::has_usage_option);
        if !has_option || form != (Form::Stream { include_usage: false }) {
            return false;
        }
        changes.set("stream_options", with_usage(&document.members));
        true
    }

    pub(super) fn stream(&self) -> bool {
        match self {
            Self::Json { stream, .. } => *stream,
            Self::Known(gist) => gist.stream,
            Self::Form { .. } => false,
        }
    }

    /// What it may cost; `counts`: the prompt is to be counted.
    pub(super) fn demand(&self, endpoint: &Endpoint, counts: bool) -> Demand {
        match self {
            Self::Json { document, .. } => wire::demand(endpoint, &document.members, counts),
            Self::Form { .. } | Self::Known(_) => Demand::default(),
        }
    }

    /// How the prompt begins, where it matters to which server it goes.
    pub(super) fn prompt(&self, resolved: &Resolved) -> Prompt {
        match self {
            Self::Json { document, .. } if resolved.upstream.minds_prompts() => {
                wire::prefix(resolved.on_server(), &document.members).into()
            }
            _ => Prompt::default(),
        }
    }

    /// The body as the server gets it: as it came, unless an alias changes the model or the operator the rest.
    pub(super) fn forwarded(&self, body: Bytes, resolved: &Resolved) -> Bytes {
        match (self, &resolved.rename) {
            (Self::Json { changes, .. }, rename) if !changes.is_empty() => {
                let mut changes = changes.clone();
                if let Some(name) = rename {
                    changes.set("model", name.as_str());
                }
                changes.made_to(&body).map_or(body, Bytes::from)
            }
            (_, None) => body,
            (Self::Json { document, .. }, Some(name)) => {
                wire::rename_model(&body, document.model.as_ref(), name).into()
            }
            (Self::Form { model: Some(model) }, Some(name)) => {
                wire::rename_multipart_model(&body, model, name).into()
            }
            // A form without a model: the server has its own.
            (Self::Form { model: None } | Self::Known(_), Some(_)) => body,
        }
    }
}

/// The options of a stream that tells its usage.
pub(super) fn with_usage(members: &Members) -> Value {
    let options = members.get("stream_options").and_then(wire::Value::as_object);
    let mut options: Map<String, Value> = options
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.text().to_owned(), value.to_json()))
        .collect();
    options.insert("include_usage".to_owned(), true.into());
    Value::Object(options)
}
