//! Anthropic's messages: a message that starts empty, blocks of content that grow, and how it ended.

use std::collections::BTreeMap;

use super::events::{self, Stream};
use super::json::{self, NULL, Object, Text};

/// A block of content that is being told.
#[derive(Debug)]
struct Block<'a> {
    kind: Kind,
    start: Object<'a>,
    text: String,
    signature: Option<String>,
    stopped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Thinking,
    ToolUse,
}

impl Kind {
    fn of(block: &Object<'_>) -> Option<Self> {
        match block.string("type")?.as_str() {
            "text" => Some(Self::Text),
            "thinking" => Some(Self::Thinking),
            "tool_use" => Some(Self::ToolUse),
            _ => None,
        }
    }

    /// The member that grows; where it is told in pieces, the pieces' type and member.
    fn growing(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Text => ("text", "text_delta", "text"),
            Self::Thinking => ("thinking", "thinking_delta", "thinking"),
            Self::ToolUse => ("input", "input_json_delta", "partial_json"),
        }
    }
}

/// The plain answer that a stream amounts to.
pub(super) fn plain(stream: &str) -> Option<Object<'_>> {
    let mut events = events::split(stream)?.into_iter();
    let mut start = events.next().filter(|event| event.name == Some("message_start"))?.object()?;
    let mut message = Object::parse(start.raw("message")?)?;
    let mut blocks = BTreeMap::new();
    let (mut ended, mut stopped) = (false, false);
    for event in events {
        let mut data = event.object()?;
        match event.name? {
            "ping" => {}
            "content_block_start" if !ended => {
                let block = Block::start(Object::parse(data.raw("content_block")?)?)?;
                blocks.insert(index(&mut data)?, block).is_none().then_some(())?;
            }
            "content_block_delta" if !ended => {
                let block = blocks.get_mut(&index(&mut data)?)?;
                block.grow(Object::parse(data.raw("delta")?)?)?;
            }
            "content_block_stop" if !ended => blocks.get_mut(&index(&mut data)?)?.stop()?,
            "message_delta" if !ended => {
                message.set_all(Object::parse(data.raw("delta")?)?);
                if let Some(usage) = data.raw("usage") {
                    let mut whole = message.text("usage").map_or(Some(Object::new()), Object::parse)?;
                    whole.set_all(Object::parse(usage)?);
                    message.set("usage", whole);
                }
                ended = true;
            }
            "message_stop" if ended && !stopped => stopped = true,
            _ => return None,
        }
    }
    stopped.then_some(())?;
    let blocks: Vec<_> = blocks.into_values().map(Block::say).collect::<Option<_>>()?;
    message.get("content")?;
    message.set("content", json::array(blocks));
    Some(message)
}

fn index(data: &mut Object<'_>) -> Option<u64> {
    json::count(data.raw("index")?)
}

impl<'a> Block<'a> {
    fn start(start: Object<'a>) -> Option<Self> {
        let kind = Kind::of(&start)?;
        let text = match kind {
            Kind::ToolUse => String::new(),
            Kind::Text | Kind::Thinking => start.string(kind.growing().0)?,
        };
        Some(Self { kind, start, text, signature: None, stopped: false })
    }

    fn grow(&mut self, mut delta: Object<'a>) -> Option<()> {
        let (_, grows, piece) = self.kind.growing();
        let kind = json::string(delta.raw("type")?)?;
        if self.stopped {
            return None;
        }
        if kind == grows {
            self.text.push_str(&json::string(delta.raw(piece)?)?);
        } else if kind == "signature_delta" && self.kind == Kind::Thinking {
            let piece = json::string(delta.raw("signature")?)?;
            self.signature.get_or_insert_default().push_str(&piece);
        } else {
            return None;
        }
        delta.names().next().is_none().then_some(())
    }

    fn stop(&mut self) -> Option<()> {
        (!std::mem::replace(&mut self.stopped, true)).then_some(())
    }

    fn say(mut self) -> Option<Object<'a>> {
        self.stopped.then_some(())?;
        let (member, ..) = self.kind.growing();
        match self.kind {
            Kind::ToolUse if self.text.is_empty() && self.start.get(member).is_some() => {}
            Kind::ToolUse if self.text.is_empty() => self.start.set(member, "{}"),
            // Input that was cut off is not JSON, and a plain answer has no place for it.
            Kind::ToolUse => self.start.set(member, json::compact(&self.text)?),
            Kind::Text | Kind::Thinking => self.start.set(member, json::quoted(&self.text)),
        }
        if let Some(signature) = self.signature {
            self.start.set("signature", json::quoted(&signature));
        }
        Some(self.start)
    }
}

/// The stream that a plain answer could have been. As llama-server does, it stops all blocks at the end.
pub(super) fn stream(mut answer: Object<'_>) -> Option<String> {
    (answer.string("type")? == "message" && answer.has("stop_reason")).then_some(())?;
    let blocks = json::items(answer.text("content")?)?;
    answer.set("content", "[]");
    let mut delta = Object::new();
    for name in ["stop_reason", "stop_sequence"] {
        if let Some(value) = answer.take_leaving(name, NULL) {
            delta.set(name, value);
        }
    }
    let mut end = Object::new().with("delta", delta);
    if let Some(usage) = answer.text("usage") {
        let mut usage = Object::parse(usage)?;
        if let Some(written) = usage.take_leaving("output_tokens", "0") {
            end.set("usage", Object::new().with("output_tokens", written));
        }
        answer.set("usage", usage);
    }
    let mut stream = Stream::default();
    stream.named("message_start", Object::new().with("message", answer));
    let mut signatures = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        signatures.push(told(&mut stream, index, Object::parse(block)?)?);
    }
    for (index, signature) in signatures.into_iter().enumerate() {
        if let Some(signature) = signature {
            let delta = Object::new().with("type", "\"signature_delta\"").with("signature", signature);
            stream.named("content_block_delta", at(index).with("delta", delta));
        }
        stream.named("content_block_stop", at(index));
    }
    stream.named("message_delta", end);
    stream.named("message_stop", Object::new());
    Some(stream.end())
}

fn at<'a>(index: usize) -> Object<'a> {
    Object::new().with("index", index.to_string())
}

/// Tells a block but for its stop; returns the signature, which comes just before that.
fn told<'a>(stream: &mut Stream, index: usize, mut block: Object<'a>) -> Option<Option<Text<'a>>> {
    let kind = Kind::of(&block)?;
    let (member, grows, piece) = kind.growing();
    let text = match kind {
        Kind::ToolUse => {
            let input = block.raw(member)?;
            Object::parse(input)?;
            json::quoted(&json::compact(input)?)
        }
        Kind::Text | Kind::Thinking => block.take_leaving(member, "\"\"")?,
    };
    let empty = json::string(&text)?.is_empty();
    let signature = if kind == Kind::Thinking { block.take("signature") } else { None };
    if let Some(signature) = &signature {
        json::string(signature)?;
    }
    stream.named("content_block_start", at(index).with("content_block", block));
    if !empty {
        let delta = Object::new().with("type", json::quoted(grows)).with(piece, text);
        stream.named("content_block_delta", at(index).with("delta", delta));
    }
    Some(signature)
}
