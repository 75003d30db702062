//! The protocols that llama-server speaks: endpoints, bodies, streams, error envelopes.

mod endpoint;
mod tree;
mod value;
mod names;
mod estimate;
mod block;
mod spelled;
mod lex;
mod media;
mod scan;
mod fault;
mod json;
mod canonical;
mod rewrite;
mod multipart;
mod sse;
mod demand;
mod prefix;
mod report;
mod usage;
mod unasked;
mod text;
mod envelope;
mod framing;

pub use canonical::Canonical;
pub use demand::{Demand, Prompt, demand};
pub use endpoint::{
    Astray, BodyKind, Endpoint, HEADERS_KEYED, HEADERS_PASSED, MODEL_PREFIX, Own, Protocol, Target, Work,
    find, is_endpoint_path, is_known_path, protocol_at,
};
pub use envelope::ErrorBody;
pub use fault::Fault;
pub use framing::{Framing, Misframed, content_length, words};
pub use json::{Document, Model, Reading, Step, parse, refuse_slot, rename_model, wants_stream};
pub use multipart::{model as multipart_model, rename as rename_multipart_model};
pub use prefix::{BLOCK_BYTES, prefix};
pub use rewrite::{Changes, RequestRules};
pub use sse::{Watch, error_event};
pub use text::{answer as answer_text, prompt as prompt_text};
pub use tree::Members;
pub use unasked::Unasked;
pub use usage::{Noted, Usage};
pub use value::{Json, List, Name, Number, Object, Text, Value};
