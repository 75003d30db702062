//! What the gateway reads in a body: JSON, once, or the model's name in a form.

use bytes::Bytes;
use http::header;
use pingora_proxy::Session;

use crate::route::{Prompt, Resolved};
use crate::wire::{self, BodyKind, Demand, Document, Endpoint, Model};

use super::gateway::Gateway;
use super::refusal::Refusal;

/// What the gateway read in a body.
pub(super) enum Understood {
    Json { document: Document, stream: bool },
    Form { model: Option<Model> },
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
    pub(super) fn model(&self) -> Option<&Model> {
        match self {
            Self::Json { document, .. } => document.model.as_ref(),
            Self::Form { model } => model.as_ref(),
        }
    }

    pub(super) fn stream(&self) -> bool {
        matches!(self, Self::Json { stream: true, .. })
    }

    /// What it may cost; `counts`: the prompt is to be counted.
    pub(super) fn demand(&self, endpoint: &Endpoint, counts: bool) -> Demand {
        match self {
            Self::Json { document, .. } => wire::demand(endpoint, &document.members, counts),
            Self::Form { .. } => Demand::default(),
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

    /// The body as the server gets it: as it came, unless an alias changes the model.
    pub(super) fn forwarded(&self, body: Bytes, resolved: &Resolved) -> Bytes {
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
