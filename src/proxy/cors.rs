//! Which pages a browser may call from (the Fetch standard's CORS protocol). Never with credentials.

use crate::config::Cors;

/// Headers of answers that a page may read.
pub(super) const EXPOSED: &str = "x-request-id, x-cache, cache-status, age, x-elapsed-ms, retry-after, retry-after-ms, \
    x-should-retry, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, \
    x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, x-ai-gateway-server, \
    x-ai-gateway-model";

/// Headers a page may send, where it does not say which it wants to.
pub(super) const ALLOWED_HEADERS: &str = "authorization, content-type, x-api-key, x-request-id, cache-control, \
    anthropic-version, anthropic-beta, traceparent";

/// What an answer says of the page that asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// `access-control-allow-origin`, if the page may read the answer.
    pub(super) allow: Option<String>,
    /// Whether another origin would be told otherwise.
    pub(super) varies: bool,
}

/// `origin`: the request's header, if it has one.
pub(super) fn allow(cors: &Cors, origin: Option<&str>) -> Origin {
    match cors {
        Cors::Any => Origin { allow: Some("*".to_owned()), varies: false },
        Cors::Loopback => {
            Origin { allow: origin.filter(|origin| is_loopback(origin)).map(str::to_owned), varies: true }
        }
        Cors::Listed(origins) => {
            let allow =
                origin.filter(|origin| origins.iter().any(|listed| listed.eq_ignore_ascii_case(origin)));
            Origin { allow: allow.map(str::to_owned), varies: true }
        }
    }
}

fn is_loopback(origin: &str) -> bool {
    let Ok(url) = origin.parse::<http::Uri>() else { return false };
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.ends_with(".localhost") || host.parse().is_ok_and(crate::config::is_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_this_machine_unless_others_are_named() {
        let cases = [
            ("http://localhost:3000", true),
            ("http://127.0.0.1", true),
            ("https://[::1]:8443", true),
            ("http://app.localhost", true),
            ("https://example.com", false),
            ("http://localhost.example.com", false),
            ("http://127.0.0.1.example.com", false),
            ("null", false),
        ];
        for (origin, allowed) in cases {
            assert_eq!(allow(&Cors::Loopback, Some(origin)).allow.is_some(), allowed, "{origin}");
        }
        let listed = Cors::Listed(vec!["https://example.com".to_owned()]);
        assert_eq!(allow(&listed, Some("https://example.com")).allow.as_deref(), Some("https://example.com"));
        assert_eq!(allow(&listed, Some("http://localhost")).allow, None);
        assert_eq!(allow(&Cors::Any, None).allow.as_deref(), Some("*"));
    }
}
