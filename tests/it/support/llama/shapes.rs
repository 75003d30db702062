//! What llama-server's answers look like, endpoint by endpoint, as captured from build 11434.
//!
//! Each answer has an id of its own, as the real one's do: two answers with the same bytes are one answer, replayed.

use serde_json::{Value, json};

/// What one request asks for.
pub(super) struct Ask<'a> {
    pub(super) path: &'a str,
    pub(super) body: &'a Value,
    pub(super) words: &'a [String],
    pub(super) model: &'a str,
    /// The how-manieth request this is.
    pub(super) number: usize,
}

/// How a protocol writes its stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Chat,
    Completions,
    Messages,
    Responses,
    Native,
}

fn generation(path: &str) -> Option<Protocol> {
    Some(match path {
        "/v1/chat/completions" | "/chat/completions" => Protocol::Chat,
        "/v1/completions" => Protocol::Completions,
        "/v1/messages" => Protocol::Messages,
        "/v1/responses" | "/responses" => Protocol::Responses,
        "/completion" | "/completions" | "/infill" => Protocol::Native,
        _ => return None,
    })
}

impl Ask<'_> {
    /// Whether this is answered with a stream.
    pub(super) fn streamed(&self) -> bool {
        generation(self.path).is_some() && self.body["stream"] == json!(true)
    }

    fn text(&self) -> String {
        self.words.concat()
    }

    /// The plain answer; `None` for a path that llama-server does not have.
    pub(super) fn plain(&self) -> Option<Value> {
        let id = format!("chatcmpl-{}", self.number);
        let (text, model) = (self.text(), self.model);
        Some(match generation(self.path) {
            Some(Protocol::Chat) => json!({
                "choices": [{"finish_reason": "stop", "index": 0,
                    "message": {"role": "assistant", "content": text}}],
                "created": 1_795_441_719, "model": model, "system_fingerprint": "b11434-unknown",
                "object": "chat.completion", "usage": self.usage(), "id": id, "timings": self.timings()}),
            Some(Protocol::Completions) => json!({
                "choices": [{"text": text, "index": 0, "logprobs": null, "finish_reason": "stop"}],
                "created": 1_795_441_712, "model": model, "system_fingerprint": "b11434-unknown",
                "object": "text_completion", "usage": self.usage(), "id": id, "timings": self.timings()}),
            Some(Protocol::Messages) => json!({
                "id": id, "type": "message", "role": "assistant", "content": [{"type": "text", "text": text}],
                "model": model, "stop_reason": "end_turn", "stop_sequence": null,
                "usage": {"cache_read_input_tokens": 2, "input_tokens": 6, "output_tokens": self.words.len()}}),
            Some(Protocol::Responses) => self.response("completed", &text),
            Some(Protocol::Native) => self.native_end(&text),
            None => match self.path {
                "/v1/embeddings" => json!({"model": model, "object": "list",
                    "usage": {"prompt_tokens": 12, "total_tokens": 12},
                    "data": [{"embedding": [-0.25, 0.125, self.number], "index": 0, "object": "embedding"}]}),
                "/embedding" | "/embeddings" => {
                    json!([{"index": 0, "embedding": [[-0.25, 0.125, self.number]]}])
                }
                "/v1/rerank" | "/rerank" | "/v1/reranking" | "/reranking" => json!({"model": model,
                    "object": "list", "usage": {"prompt_tokens": 8, "total_tokens": 8},
                    "results": [{"index": 0, "relevance_score": 0.5}]}),
                "/tokenize" => json!({"tokens": [261, 333, self.number]}),
                "/detokenize" => json!({"content": text}),
                "/apply-template" => json!({"prompt": format!("<|im_start|>user\n{text}<|im_end|>\n")}),
                "/v1/messages/count_tokens" => json!({"input_tokens": 32}),
                "/v1/chat/completions/input_tokens" | "/chat/completions/input_tokens" => {
                    json!({"input_tokens": 32, "object": "response.input_tokens"})
                }
                "/v1/audio/transcriptions" | "/audio/transcriptions" => json!({"text": text}),
                _ => return None,
            },
        })
    }

    /// The stream, in the pieces that the real server writes: a piece can hold several events.
    pub(super) fn pieces(&self, end_mark: bool) -> Vec<String> {
        let protocol = generation(self.path).expect("only generations are streamed");
        let mut pieces: Vec<String> = (self.words.iter()).map(|word| self.word(protocol, word)).collect();
        if let Some(first) = pieces.first_mut() {
            first.insert_str(0, &self.opening(protocol));
        }
        pieces.push(self.closing(protocol, end_mark));
        pieces
    }

    fn opening(&self, protocol: Protocol) -> String {
        match protocol {
            Protocol::Chat => data(&self.chat_chunk(&json!({"role": "assistant", "content": null}), None)),
            Protocol::Messages => {
                let message = json!({"id": format!("chatcmpl-{}", self.number), "type": "message",
                    "role": "assistant", "content": [], "model": self.model, "stop_reason": null,
                    "stop_sequence": null,
                    "usage": {"cache_read_input_tokens": 2, "input_tokens": 6, "output_tokens": 0}});
                named("message_start", json!({"message": message}))
                    + &named(
                        "content_block_start",
                        json!({"index": 0, "content_block": {"type": "text", "text": ""}}),
                    )
            }
            Protocol::Responses => {
                let response = json!({"id": format!("resp_{}", self.number), "object": "response",
                    "status": "in_progress"});
                named("response.created", json!({"response": response}))
            }
            Protocol::Completions | Protocol::Native => String::new(),
        }
    }

    fn word(&self, protocol: Protocol, word: &str) -> String {
        match protocol {
            Protocol::Chat => data(&self.chat_chunk(&json!({"content": word}), None)),
            Protocol::Completions => data(&json!({
                "choices": [{"text": word, "index": 0, "logprobs": null, "finish_reason": null}],
                "created": 1_795_441_712, "model": self.model, "system_fingerprint": "b11434-unknown",
                "object": "text_completion", "id": format!("chatcmpl-{}", self.number)})),
            Protocol::Messages => named(
                "content_block_delta",
                json!({"index": 0, "delta": {"type": "text_delta", "text": word}}),
            ),
            Protocol::Responses => named(
                "response.output_text.delta",
                json!({"item_id": format!("msg_{}", self.number), "delta": word}),
            ),
            Protocol::Native => data(&json!({"index": 0, "content": word, "tokens": [28], "stop": false,
                "id_slot": -1, "tokens_predicted": 1, "tokens_evaluated": 4})),
        }
    }

    fn closing(&self, protocol: Protocol, end_mark: bool) -> String {
        let done = if end_mark { "data: [DONE]\n\n" } else { "" };
        match protocol {
            Protocol::Chat => {
                let mut last = self.chat_chunk(&json!({}), Some("stop"));
                if self.body["stream_options"]["include_usage"] != json!(true) {
                    last["timings"] = self.timings();
                    return data(&last) + done;
                }
                let mut usage = self.chat_chunk(&json!({}), None);
                usage["choices"] = json!([]);
                usage["usage"] = self.usage();
                usage["timings"] = self.timings();
                data(&last) + &data(&usage) + done
            }
            Protocol::Completions => {
                data(&json!({
                "choices": [{"text": "", "index": 0, "logprobs": null, "finish_reason": "stop"}],
                "created": 1_795_441_712, "model": self.model, "system_fingerprint": "b11434-unknown",
                "object": "text_completion", "usage": self.usage(),
                "id": format!("chatcmpl-{}", self.number), "timings": self.timings()}))
                    + done
            }
            Protocol::Messages => {
                let delta = json!({"delta": {"stop_reason": "end_turn", "stop_sequence": null},
                    "usage": {"output_tokens": self.words.len()}});
                let last = if end_mark { named("message_stop", json!({})) } else { String::new() };
                named("content_block_stop", json!({"index": 0})) + &named("message_delta", delta) + &last
            }
            Protocol::Responses => {
                let response = self.response("completed", &self.text());
                let done = named("response.output_text.done", json!({"text": self.text()}));
                if end_mark {
                    done + &named("response.completed", json!({"response": response}))
                } else {
                    done
                }
            }
            Protocol::Native if end_mark => data(&self.native_end("")),
            Protocol::Native => String::new(),
        }
    }

    fn chat_chunk(&self, delta: &Value, finish: Option<&str>) -> Value {
        json!({"choices": [{"finish_reason": finish, "index": 0, "delta": delta}], "created": 1_795_441_719,
            "id": format!("chatcmpl-{}", self.number), "model": self.model,
            "system_fingerprint": "b11434-unknown", "object": "chat.completion.chunk"})
    }

    fn native_end(&self, text: &str) -> Value {
        json!({"index": 0, "content": text, "tokens": [], "id_slot": 1, "stop": true, "model": self.model,
            "tokens_predicted": self.words.len(), "tokens_evaluated": 8, "prompt": "Once upon a time",
            "has_new_line": false, "truncated": false, "stop_type": "eos", "stopping_word": "",
            "tokens_cached": 10, "timings": self.timings(), "number": self.number})
    }

    fn response(&self, status: &str, text: &str) -> Value {
        json!({"completed_at": 1_795_441_732, "created_at": 1_795_441_732, "id": format!("resp_{}", self.number),
            "model": self.model, "object": "response", "status": status,
            "output": [{"content": [{"type": "output_text", "annotations": [], "logprobs": [], "text": text}],
                "id": format!("msg_{}", self.number), "role": "assistant", "status": status, "type": "message"}],
            "usage": {"input_tokens": 8, "output_tokens": self.words.len(), "total_tokens": 8 + self.words.len(),
                "input_tokens_details": {"cached_tokens": 2}}})
    }

    /// Eight prompt tokens, two of them from the KV cache; a token for each word.
    fn usage(&self) -> Value {
        json!({"completion_tokens": self.words.len(), "prompt_tokens": 8, "total_tokens": 8 + self.words.len(),
            "prompt_tokens_details": {"cached_tokens": 2}})
    }

    fn timings(&self) -> Value {
        json!({"cache_n": 2, "prompt_n": 6, "prompt_ms": 37.494, "prompt_per_token_ms": 6.249,
            "prompt_per_second": 160.025, "predicted_n": self.words.len(), "predicted_ms": 115.924,
            "predicted_per_token_ms": 57.962, "predicted_per_second": 17.252})
    }
}

fn data(event: &Value) -> String {
    format!("data: {event}\n\n")
}

fn named(name: &str, mut event: Value) -> String {
    event["type"] = json!(name);
    format!("event: {name}\ndata: {event}\n\n")
}

/// What the server says of itself; `None` for a path that it does not have.
pub(super) fn about(path: &str, model: &str, slots: u32) -> Option<Value> {
    Some(match path {
        "/health" | "/v1/health" => json!({"status": "ok"}),
        "/v1/models" | "/models" => {
            json!({"object": "list", "data": [{"id": model, "aliases": [model], "tags": [],
            "object": "model", "created": 1_795_441_710, "owned_by": "llamacpp",
            "meta": {"vocab_type": 2, "n_vocab": 49152, "n_ctx": 2048, "n_ctx_train": 8192, "n_embd": 576,
                "n_params": 134_515_008, "size": 96_576_768, "ftype": "Q4_1"}}]})
        }
        "/props" => json!({"default_generation_settings": {"params": {"temperature": 0.8, "top_k": 40},
            "n_ctx": 2048}, "total_slots": slots, "model_alias": model, "model_path": format!("/models/{model}.gguf"),
            "chat_template": "{{ messages }}", "build_info": "b11434-unknown", "is_sleeping": false}),
        _ => return None,
    })
}

/// An error as llama-server writes it.
pub(super) fn error(status: u16) -> Value {
    let (kind, message) = match status {
        400 => ("invalid_request_error", "'messages' is required"),
        401 => ("authentication_error", "Invalid API Key"),
        404 => ("not_found_error", "File Not Found"),
        501 => {
            ("not_supported_error", "This server does not support embeddings. Start it with `--embeddings`")
        }
        503 => ("unavailable_error", "Loading model"),
        _ => ("server_error", "something went wrong"),
    };
    json!({"error": {"code": status, "message": message, "type": kind}})
}
