//! The header of an answer while it is made.
//!
//! Pingora's setters read each name anew and keep its spelling beside it: a dozen headers would cost as much as the
//! rest of the answer (14,000 instructions a request). Here names are known ones, and values are moved.

use std::fmt::{self, Write};
use std::ops::{Deref, DerefMut};

use arrayvec::ArrayString;
use http::{HeaderName, HeaderValue, StatusCode, response};
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorType, OrErr, Result};

pub(super) static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(super) static X_CACHE: HeaderName = HeaderName::from_static("x-cache");
pub(super) static CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
pub(super) static X_ELAPSED_MS: HeaderName = HeaderName::from_static("x-elapsed-ms");
pub(super) static X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
pub(super) static X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
pub(super) static RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
pub(super) static X_AI_GATEWAY_MODEL: HeaderName = HeaderName::from_static("x-ai-gateway-model");
pub(super) static X_AI_GATEWAY_SERVER: HeaderName = HeaderName::from_static("x-ai-gateway-server");

/// The headers that tell the state of a bucket.
pub(super) struct BucketHeaders {
    pub(super) limit: HeaderName,
    pub(super) remaining: HeaderName,
    pub(super) reset: HeaderName,
}

pub(super) static REQUESTS: BucketHeaders = BucketHeaders {
    limit: HeaderName::from_static("x-ratelimit-limit-requests"),
    remaining: HeaderName::from_static("x-ratelimit-remaining-requests"),
    reset: HeaderName::from_static("x-ratelimit-reset-requests"),
};
pub(super) static TOKENS: BucketHeaders = BucketHeaders {
    limit: HeaderName::from_static("x-ratelimit-limit-tokens"),
    remaining: HeaderName::from_static("x-ratelimit-remaining-tokens"),
    reset: HeaderName::from_static("x-ratelimit-reset-tokens"),
};

/// More than an answer has. For one more, twice the room would be taken, and kept as long as its stream lasts.
const HEADERS: usize = 24;

/// What [`Heading::write`] has room for.
const WORDS_BYTES_MAX: usize = 64;

/// A header in the making.
pub(super) struct Heading(response::Parts);

impl Heading {
    pub(super) fn new(status: StatusCode) -> Self {
        let mut heading = Self(empty());
        heading.status = status;
        heading.headers.reserve(HEADERS);
        heading
    }

    /// Takes a server's header to be changed; [`Heading::put`] gives it back.
    pub(super) fn take(answer: &mut ResponseHeader) -> Self {
        let mut heading = Self(std::mem::replace(answer, empty().into()).into());
        let more = HEADERS.saturating_sub(heading.headers.len());
        heading.headers.reserve(more);
        heading
    }

    pub(super) fn put(self, answer: &mut ResponseHeader) {
        *answer = self.0.into();
    }

    pub(super) fn set(&mut self, name: &HeaderName, value: impl TryInto<HeaderValue>) -> Result<()> {
        self.headers.insert(name, read(value)?);
        Ok(())
    }

    /// Sets a header to a few words or a number, written without an allocation of their own.
    pub(super) fn write(&mut self, name: &HeaderName, words: fmt::Arguments<'_>) -> Result<()> {
        let mut value = ArrayString::<WORDS_BYTES_MAX>::new();
        value.write_fmt(words).or_err(ErrorType::InvalidHTTPHeader, "a value that is too long")?;
        self.set(name, value.as_str())
    }

    /// Adds a value to those that are there.
    pub(super) fn add(&mut self, name: &HeaderName, value: impl TryInto<HeaderValue>) -> Result<()> {
        self.headers.append(name, read(value)?);
        Ok(())
    }

    /// As Pingora sends it.
    pub(super) fn finish(self) -> Box<ResponseHeader> {
        Box::new(self.0.into())
    }
}

fn empty() -> response::Parts {
    http::Response::new(()).into_parts().0
}

fn read(value: impl TryInto<HeaderValue>) -> Result<HeaderValue> {
    value
        .try_into()
        .map_err(|_| Error::explain(ErrorType::InvalidHTTPHeader, "a value that no header can have"))
}

impl Deref for Heading {
    type Target = response::Parts;

    fn deref(&self) -> &response::Parts {
        &self.0
    }
}

impl DerefMut for Heading {
    fn deref_mut(&mut self) -> &mut response::Parts {
        &mut self.0
    }
}
