//! What was said, where `log.prompts` asks for it: the prompt and the text of the answer, on their way into the
//! request's line.

use bytes::Bytes;

use crate::config::LogFormat;
use crate::wire;

use super::context::Outcome;
use super::gateway::Gateway;
use super::understood::Understood;

/// Of each of the two, so much is written.
const TEXT_BYTES_MAX: usize = 16 << 10;

/// Of an answer, so much is held to find its text in; an event has a few hundred bytes for one of text.
const HEARD_BYTES_MAX: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Quote {
    pub(super) prompt: String,
    heard: Vec<u8>,
}

impl Quote {
    /// What of a request is written; `None`: nothing, as everywhere that does not ask for it.
    pub(super) fn of(gateway: &Gateway, understood: &Understood) -> Option<Box<Self>> {
        let asked = gateway.settings.log.prompts && gateway.log_format == LogFormat::Json;
        let Understood::Json { document, .. } = understood else { return None };
        let quoted =
            || Self { prompt: wire::prompt_text(&document.members, TEXT_BYTES_MAX), heard: Vec::new() };
        (asked && gateway.log.is_on()).then(|| Box::new(quoted()))
    }

    pub(super) fn answer(&self) -> Option<String> {
        wire::answer_text(&self.heard, TEXT_BYTES_MAX)
    }
}

impl Outcome {
    /// Takes in what goes to the caller.
    pub(super) fn hears(&mut self, bytes: &Bytes) {
        if let Some(quote) = &mut self.quote {
            let room = HEARD_BYTES_MAX.saturating_sub(quote.heard.len()).min(bytes.len());
            quote.heard.extend_from_slice(&bytes[..room]);
        }
    }
}
