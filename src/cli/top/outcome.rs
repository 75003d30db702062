//! How a request ended and how a server stands, in words: those of the page (`src/admin/dashboard/page.js`).

use super::table::Kind;
use super::text::milliseconds;
use super::told::{Request, Server};

/// What the caller was told where the gateway does not repeat it, since that would repeat what the caller sent.
const WHY: [(&str, &str); 7] = [
    ("invalid_json", "Its body is not JSON."),
    ("invalid_request", "Its body is not what this endpoint takes; the answer said which member."),
    ("remote_media", "It names a picture by URL, which a server would fetch: body.remote_media denies it."),
    ("invalid_api_key", "It showed no key, or a wrong or expired one."),
    ("model_not_allowed", "Its key may not use this model."),
    ("not_found", "Nothing is served at this path."),
    ("model_not_found", "No model of this name: neither the file nor a server has it."),
];

pub(super) struct Words {
    pub(super) kind: Kind,
    pub(super) words: String,
    /// The same for a table.
    pub(super) short: String,
    /// Empty: that says it all.
    pub(super) why: String,
}

fn words(kind: Kind, words: impl Into<String>, why: impl Into<String>) -> Words {
    let words = words.into();
    Words { kind, short: words.clone(), words, why: why.into() }
}

pub(super) fn of_request(it: &Request) -> Words {
    let said = it.message.as_deref();
    if it.status == 499 {
        let began = it.completion_tokens.is_some_and(|tokens| tokens > 0) || it.ttft_ms.is_some();
        let why = if began {
            "Its caller left before the answer was whole."
        } else {
            "Its caller left before an answer began."
        };
        return words(Kind::Warn, "499 caller left", why);
    }
    if it.status < 400 {
        if !it.complete {
            let why = said.unwrap_or("The server broke the answer off.");
            return words(Kind::Bad, format!("{} broken off", it.status), why);
        }
        let from = match &*it.cache {
            "hit" => " from the cache",
            "shared" => " shared with another",
            _ => "",
        };
        let tries = if it.attempts > 1 { format!("After {} tries.", it.attempts) } else { String::new() };
        return words(Kind::Good, format!("{}{from}", it.status), tries);
    }
    let kind = if it.status >= 500 { Kind::Bad } else { Kind::Warn };
    let Some(code) = it.error_code.as_deref() else {
        let of = if it.upstream_status.is_some() { "The server itself answered so" } else { "Answered so" };
        return words(kind, it.status.to_string(), format!("{of}; its message went to the caller."));
    };
    let name = code.replace('_', " ");
    let known = WHY.iter().find(|(name, _)| *name == code).map(|(_, why)| *why);
    let why = said.or(known).unwrap_or_default();
    match it.limit.as_deref() {
        None => words(kind, format!("{} {name}", it.status), why),
        Some(limit) => Words {
            // Which limit it was says more than that it was one.
            short: format!("{} limit {limit}", it.status),
            ..words(kind, format!("{} {name} by limit {limit}", it.status), why)
        },
    }
}

/// Whether it is one that somebody may ask about.
pub(super) fn is_no(it: &Request) -> bool {
    it.status >= 400 || !it.complete
}

pub(super) fn of_server(server: &Server) -> Words {
    if server.draining {
        let state = match server.in_flight {
            0 => "Drained".to_owned(),
            n => format!("Draining: {n} under way"),
        };
        return words(Kind::Warn, state, "It gets nothing new.");
    }
    match &*server.breaker {
        "open" => {
            words(Kind::Bad, "Out: breaker open", "Requests failed there; it is tried again after a pause.")
        }
        "half_open" => words(Kind::Warn, "On trial", "One request tries it."),
        _ if server.up => words(Kind::Good, "Up", ""),
        _ => words(Kind::Bad, "Down", "Its health probe fails: is it running, and is its URL right?"),
    }
}

/// Where a request's time went. What the server does not tell, and what is neither, is the rest: the network, and the
/// server before it began.
pub(super) struct Parts {
    pub(super) queue_ms: f64,
    pub(super) prefill_ms: f64,
    pub(super) generation_ms: f64,
    pub(super) rest_ms: f64,
}

impl Parts {
    pub(super) fn of(it: &Request) -> Self {
        let [queue_ms, prefill_ms, generation_ms] =
            [it.queue_ms, it.prefill_ms.unwrap_or_default(), it.generation_ms.unwrap_or_default()];
        let rest_ms = (it.duration_ms - queue_ms - prefill_ms - generation_ms).max(0.0);
        Self { queue_ms, prefill_ms, generation_ms, rest_ms }
    }

    /// In words, without what is nothing.
    pub(super) fn told(&self) -> String {
        let parts = [
            ("queue", self.queue_ms),
            ("prefill", self.prefill_ms),
            ("generation", self.generation_ms),
            ("else", self.rest_ms),
        ];
        let told = parts.into_iter().filter(|(_, part)| *part >= 0.5);
        let told: Vec<String> =
            told.map(|(name, part)| format!("{name} {}", milliseconds(Some(part)))).collect();
        told.join(", ")
    }

    /// As a bar of so many columns: each part's letter as often as its share.
    pub(super) fn bar(&self, columns: usize) -> String {
        let parts =
            [('q', self.queue_ms), ('p', self.prefill_ms), ('g', self.generation_ms), ('.', self.rest_ms)];
        let whole: f64 = parts.iter().map(|(_, part)| part).sum();
        if whole <= 0.0 {
            return String::new();
        }
        let (mut bar, mut before) = (String::new(), 0.0);
        for (letter, part) in parts {
            let place = |until: f64| (until / whole * columns as f64).round() as usize;
            bar.extend(std::iter::repeat_n(letter, place(before + part) - place(before)));
            before += part;
        }
        bar
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::text::Text;

    fn request(status: u16) -> Request {
        Request { status, complete: status < 400, cache: Text::of("miss"), attempts: 1, ..Request::default() }
    }

    #[test]
    fn an_outcome_says_what_and_why() {
        let some = |text: &str| Some(Text::of(text));
        let limited = Request {
            error_code: some("rate_limit_exceeded"),
            limit: some("key.requests"),
            message: some("Try again in 2 s."),
            ..request(429)
        };
        let table = [
            (request(200), Kind::Good, "200", ""),
            (Request { cache: Text::of("hit"), ..request(200) }, Kind::Good, "200 from the cache", ""),
            (Request { attempts: 2, ..request(200) }, Kind::Good, "200", "After 2 tries."),
            (
                Request { complete: false, ..request(200) },
                Kind::Bad,
                "200 broken off",
                "The server broke the answer off.",
            ),
            (request(499), Kind::Warn, "499 caller left", "Its caller left before an answer began."),
            (limited, Kind::Warn, "429 rate limit exceeded by limit key.requests", "Try again in 2 s."),
            (
                Request { error_code: some("invalid_api_key"), ..request(401) },
                Kind::Warn,
                "401 invalid api key",
                "It showed no key, or a wrong or expired one.",
            ),
            (
                Request { upstream_status: Some(500), ..request(500) },
                Kind::Bad,
                "500",
                "The server itself answered so; its message went to the caller.",
            ),
        ];
        for (request, kind, said, why) in table {
            let told = of_request(&request);
            assert_eq!((told.kind, told.words.as_str(), told.why.as_str()), (kind, said, why));
        }
    }

    #[test]
    fn a_servers_state_is_one_word_or_two() {
        let up = Server { up: true, breaker: Text::of("closed"), in_flight: 2, ..Server::default() };
        let table = [
            (up.clone(), "Up"),
            (Server { up: false, ..up.clone() }, "Down"),
            (Server { breaker: Text::of("open"), up: false, ..up.clone() }, "Out: breaker open"),
            (Server { draining: true, ..up.clone() }, "Draining: 2 under way"),
            (Server { draining: true, in_flight: 0, ..up }, "Drained"),
        ];
        for (server, said) in table {
            assert_eq!(of_server(&server).words, said);
        }
    }

    #[test]
    fn the_parts_of_a_time_are_the_whole() {
        let it = Request {
            queue_ms: 500.0,
            prefill_ms: Some(250.0),
            generation_ms: Some(250.0),
            duration_ms: 2000.0,
            ..request(200)
        };
        let parts = Parts::of(&it);
        assert_eq!(parts.told(), "queue 500 ms, prefill 250 ms, generation 250 ms, else 1.00 s");
        assert_eq!(parts.bar(16), "qqqqppgg........");
        assert_eq!(Parts::of(&Request::default()).bar(16), "");
    }
}
