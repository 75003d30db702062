//! `streamed: always`: what was asked for plainly is asked of the server as a stream, and the plain answer is rendered
//! from that. llama-server notices at once that the caller of a stream has left, of a plain answer late or never
//! (docs/FLEET.md has what was measured).
//!
//! The answer's header is held back until the answer is whole (`outlet`), so that a failure on the way has its status.
//! What cannot be rendered is asked for again, plainly.

use std::time::Duration;

use bytes::Bytes;
use pingora::{Error, ErrorType, Result};

use crate::cache::render::render;
use crate::cache::{Dialect, Form};
use crate::route::Resolved;
use crate::wire::{Demand, Endpoint, Work};

use super::ask::note_rendering;
use super::context::{Context, Job, Keep};
use super::gateway::Gateway;
use super::understood::{Understood, with_usage};

/// After an answer that could not be rendered, an upstream is asked plainly for this long.
const PLAIN_TIME: Duration = Duration::from_secs(60);

/// The error of an answer that cannot be rendered.
pub(super) const UNRENDERED: ErrorType = ErrorType::Custom("the stream has no plain form");

/// How a plain answer is made.
#[derive(Debug)]
pub(super) struct Turned {
    dialect: Dialect,
    /// As what the server is asked for it.
    pub(super) made: Form,
    /// The body that asks for it plainly.
    plain: Bytes,
}

impl Job {
    /// As what the server makes the answer, if that is not what was asked for.
    pub(super) fn made(&self) -> Option<Form> {
        self.turned.as_ref().map(|turned| turned.made)
    }

    /// The same, its answer kept so: what is kept for one form alone is asked for in that.
    pub(super) fn kept(mut self: Box<Self>, keep: Keep) -> Box<Self> {
        if self.made().is_some_and(|made| made != keep.made) {
            self.ask_plainly();
        }
        self.keep = Some(keep);
        self
    }

    /// Asks plainly after all.
    pub(super) fn ask_plainly(&mut self) {
        if let Some(turned) = self.turned.take() {
            self.body = turned.plain;
            self.apart = false;
        }
    }
}

/// The body as the server gets it, and how the answer is turned if it is. `streams`: it is to be.
pub(super) fn turn(
    endpoint: &Endpoint,
    understood: &mut Understood,
    demand: &Demand,
    resolved: &Resolved,
    (body, streams): (Bytes, bool),
) -> (Bytes, Option<Box<Turned>>) {
    let plain = understood.forwarded(body.clone(), resolved);
    let Understood::Json { document, stream: false, changes, .. } = understood else { return (plain, None) };
    let Some(dialect) = Dialect::of(endpoint.path) else { return (plain, None) };
    // Several answers in one stream, or answers of chosen fields, have no plain form that is known.
    let known = match dialect {
        Dialect::Native => demand.answers <= 1 && document.members.get("response_fields").is_none(),
        _ => true,
    };
    if endpoint.work != Work::Generate || !known || !streams {
        return (plain, None);
    }
    changes.set("stream", true);
    if dialect.has_usage_option() {
        changes.set("stream_options", with_usage(&document.members));
    }
    let made = Form::Stream { include_usage: dialect.has_usage_option() };
    (understood.forwarded(body, resolved), Some(Box::new(Turned { dialect, made, plain })))
}

/// The plain answer that a whole stream amounts to.
pub(super) fn rendered(gateway: &Gateway, ctx: &Context) -> Result<Bytes> {
    let Some(job) = &ctx.job else { return Ok(Bytes::new()) };
    let stream = ctx.tap.as_ref().and_then(|tap| tap.gathered());
    let plain = job.turned.as_ref().zip(stream).and_then(|(turned, stream)| {
        // As large as what a caller waits for in one piece: milliseconds, once a generation.
        render(turned.dialect, turned.made, &stream, Form::Plain)
    });
    plain.map_or_else(
        || {
            note_rendering(gateway, false);
            job.resolved.upstream.stream_not_before(gateway.clock.now() + PLAIN_TIME);
            log::warn!(
                "an answer of upstream `{}` to `{}` has no plain form; it is asked for plainly for {PLAIN_TIME:?}",
                job.resolved.upstream.spec.name,
                job.endpoint.path
            );
            Error::e_explain(UNRENDERED, "asked for again").map_err(|error: Box<Error>| error.into_up())
        },
        Ok,
    )
}
