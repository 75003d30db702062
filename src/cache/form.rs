//! In which form an answer is asked for, kept and given.

use crate::wire::{Members, Value};

/// Whose shapes an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's chat: choices of messages and deltas.
    Chat,
    /// OpenAI's completions: choices of text.
    Completions,
    /// OpenAI's responses: named events.
    Responses,
    /// Anthropic's messages: named events.
    Messages,
    /// llama.cpp's own completions.
    Native,
}

impl Dialect {
    /// Of an endpoint, by its path on the server; `None` where answers have one form only.
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/v1/chat/completions" | "/chat/completions" => Some(Self::Chat),
            "/v1/completions" => Some(Self::Completions),
            "/v1/responses" | "/responses" => Some(Self::Responses),
            "/v1/messages" => Some(Self::Messages),
            "/completion" | "/completions" | "/infill" => Some(Self::Native),
            _ => None,
        }
    }

    /// Whether a stream's `include_usage` chooses what is told. Elsewhere usage is always told.
    pub fn has_usage_option(self) -> bool {
        matches!(self, Self::Chat | Self::Completions)
    }
}

/// In which form an answer was recorded or is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Plain,
    Stream {
        /// Whether the stream is asked to end with an event that tells the usage.
        include_usage: bool,
    },
}

impl Form {
    /// How many there are.
    pub(super) const COUNT: usize = 3;

    /// The form that a body asks for.
    pub fn asked(dialect: Option<Dialect>, stream: bool, body: &Members) -> Self {
        match dialect {
            Some(dialect) if stream => {
                let asked = body.get("stream_options").and_then(|options| options.get("include_usage"));
                let include_usage =
                    dialect.has_usage_option() && asked.and_then(Value::as_bool) == Some(true);
                Self::Stream { include_usage }
            }
            _ => Self::Plain,
        }
    }

    /// All of them, by their places.
    pub const ALL: [Self; Self::COUNT] =
        [Self::Plain, Self::Stream { include_usage: false }, Self::Stream { include_usage: true }];

    /// Its place among all of them.
    pub fn index(self) -> usize {
        match self {
            Self::Plain => 0,
            Self::Stream { include_usage: false } => 1,
            Self::Stream { include_usage: true } => 2,
        }
    }

    /// As llama-server names it.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Plain => "application/json; charset=utf-8",
            Self::Stream { .. } => "text/event-stream",
        }
    }
}
