//! What the documents of an answer report, in whichever protocol: read for that alone, all else passed over.

use std::borrow::Cow;

use super::lex::Lex;
use super::value::Number;

/// What a document reports; `None`: nothing that is known here.
pub(super) fn report(json: &[u8]) -> Option<Report> {
    // What is no text is in what a model said, not in what is counted.
    let text = str::from_utf8(json).map_or_else(|_| String::from_utf8_lossy(json), Cow::Borrowed);
    let mut lex = Lex::of(text.as_bytes())?;
    Report::read(&mut lex).filter(|_| lex.is_over())
}

/// The union of the shapes that report usage: OpenAI's chat and completions, responses, Anthropic's messages (whole,
/// `message_start`, `message_delta`), llama.cpp's own. A document with a member of another type tells
/// nothing; of a member that is there twice, the last tells.
#[derive(Default)]
pub(super) struct Report {
    pub(super) usage: Option<Counts>,
    pub(super) timings: Option<Timings>,
    pub(super) choices: Option<Vec<Choice>>,
    pub(super) stop: Option<bool>,
    pub(super) stop_reason: Option<String>,
    pub(super) stop_type: Option<String>,
    pub(super) status: Option<Text>,
    pub(super) delta: Option<Delta>,
    pub(super) message: Option<Nested>,
    pub(super) response: Option<Nested>,
    pub(super) error: Option<Unread>,
}

#[derive(Default)]
pub(super) struct Counts {
    pub(super) prompt_tokens: Option<u64>,
    pub(super) completion_tokens: Option<u64>,
    pub(super) input_tokens: Option<u64>,
    pub(super) output_tokens: Option<u64>,
    pub(super) cache_read_input_tokens: Option<u64>,
    pub(super) prompt_tokens_details: Option<Details>,
    pub(super) input_tokens_details: Option<Details>,
}

#[derive(Default)]
pub(super) struct Details {
    pub(super) cached_tokens: Option<u64>,
}

#[derive(Default)]
pub(super) struct Timings {
    pub(super) cache_n: Option<u64>,
    pub(super) prompt_n: Option<u64>,
    pub(super) prompt_ms: Option<f64>,
    pub(super) predicted_n: Option<u64>,
    pub(super) predicted_ms: Option<f64>,
}

#[derive(Default)]
pub(super) struct Choice {
    pub(super) finish_reason: Option<String>,
    /// What a plain answer's choice says.
    pub(super) message: Option<Length>,
    pub(super) text: Option<Length>,
}

impl Choice {
    /// Of what it says, at least 1.
    pub(super) fn length(&self) -> u64 {
        self.message.as_ref().or(self.text.as_ref()).map_or(1, |Length(bytes)| *bytes as u64)
    }
}

/// What is only there.
pub(super) struct Unread;

/// How many bytes a value is spelled with.
pub(super) struct Length(usize);

/// `delta` of a stream event: an object on Anthropic's, a text on responses.
pub(super) struct Delta(pub(super) Option<Stop>);

#[derive(Default)]
pub(super) struct Stop {
    pub(super) stop_reason: Option<Text>,
}

/// A text, or nothing that is known.
pub(super) struct Text(pub(super) Option<String>);

#[derive(Default)]
pub(super) struct Nested {
    pub(super) usage: Option<Counts>,
    pub(super) status: Option<String>,
    pub(super) timings: Option<Timings>,
}

/// Reads a value of one type. `None`: it is of another.
trait Read: Sized {
    fn read(lex: &mut Lex<'_>) -> Option<Self>;
}

/// What may be `null`.
impl<T: Read> Read for Option<T> {
    fn read(lex: &mut Lex<'_>) -> Option<Self> {
        if lex.peek()? == b'n' { lex.null().map(|()| None) } else { T::read(lex).map(Some) }
    }
}

impl<T: Read> Read for Vec<T> {
    fn read(lex: &mut Lex<'_>) -> Option<Self> {
        let mut all = Self::new();
        lex.list(|lex| T::read(lex).map(|one| all.push(one)))?;
        Some(all)
    }
}

impl Read for u64 {
    fn read(lex: &mut Lex<'_>) -> Option<Self> {
        if let Number::Unsigned(number) = lex.number()? { Some(number) } else { None }
    }
}

impl Read for f64 {
    fn read(lex: &mut Lex<'_>) -> Option<Self> {
        lex.number().map(Number::as_f64)
    }
}

impl Read for bool {
    fn read(lex: &mut Lex<'_>) -> Option<Self> {
        lex.bool()
    }
}

impl Read for String {
    fn read(lex: &mut Lex<'_>) -> Option<Self> {
        let text = lex.string()?;
        lex.read(text).map(Into::into)
    }
}

impl Read for Text {
    fn read(lex: &mut Lex<'_>) -> Option<Self> {
        if lex.peek()? == b'"' {
            String::read(lex).map(Some).map(Self)
        } else {
            lex.skip().map(|()| Self(None))
        }
    }
}

impl Read for Unread {
    fn read(lex: &mut Lex<'_>) -> Option<Self> {
        lex.skip().map(|()| Self)
    }
}

impl Read for Length {
    fn read(lex: &mut Lex<'_>) -> Option<Self> {
        let start = lex.at();
        lex.skip().map(|()| Self(lex.at() - start))
    }
}

/// Reads an object with these members, if they are there, among others.
macro_rules! read_members {
    ($of:ident { $($member:ident),+ }) => {
        impl Read for $of {
            fn read(lex: &mut Lex<'_>) -> Option<Self> {
                let mut whole = Self::default();
                lex.members(|lex, name| {
                    match name {
                        $(name if name == stringify!($member).as_bytes() => whole.$member = Read::read(lex)?,)+
                        _ => lex.skip()?,
                    }
                    Some(())
                })?;
                Some(whole)
            }
        }
    };
}

read_members!(Report {
    usage,
    timings,
    choices,
    stop,
    stop_reason,
    stop_type,
    status,
    delta,
    message,
    response,
    error
});
read_members!(Counts {
    prompt_tokens,
    completion_tokens,
    input_tokens,
    output_tokens,
    cache_read_input_tokens,
    prompt_tokens_details,
    input_tokens_details
});
read_members!(Details { cached_tokens });
read_members!(Timings { cache_n, prompt_n, prompt_ms, predicted_n, predicted_ms });
read_members!(Choice { finish_reason, message, text });
read_members!(Stop { stop_reason });
read_members!(Nested { usage, status, timings });

impl Read for Delta {
    fn read(lex: &mut Lex<'_>) -> Option<Self> {
        if lex.peek()? == b'{' {
            Stop::read(lex).map(Some).map(Self)
        } else {
            lex.skip().map(|()| Self(None))
        }
    }
}
