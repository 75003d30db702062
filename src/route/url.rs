//! Where a server is: `http[s]://host[:port]`, and for compatible servers the path that its endpoints stand under.

use std::fmt;
use std::str::FromStr;

use super::spec::Kind;

/// Two that are equal are one server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerUrl {
    pub tls: bool,
    /// A name in lower case, an IPv4 address, or an IPv6 address without its brackets.
    pub host: String,
    pub port: u16,
    /// What stands in the place of `/v1`, as `/openai/v1`; empty: `/v1` itself.
    pub base: String,
}

impl FromStr for ServerUrl {
    type Err = String;

    /// Reads the URL of a llama-server.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::read(text, Kind::Llama)
    }
}

impl ServerUrl {
    /// Reads a base URL, as SDKs have it. One that ends in an endpoint (`…/v1/completions`) means that server too.
    pub fn read(text: &str, kind: Kind) -> Result<Self, String> {
        let wrong =
            |what: &str| format!("expected a URL such as `http://127.0.0.1:8080`, found `{text}`: {what}");
        let url: http::Uri = text.parse().map_err(|_| wrong("it is not a URL"))?;
        let tls = match url.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong("it does not begin with `http://` or `https://`")),
        };
        let authority = url.authority().ok_or_else(|| wrong("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("a user or password in it is not used; name the server's key as `api_key`"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if host.is_empty() {
            return Err(wrong("it names no host"));
        }
        if url.query().is_some() {
            return Err(wrong("it has a query"));
        }
        let base = base(url.path());
        if kind == Kind::Llama && !base.is_empty() {
            return Err(wrong("its path is neither empty nor an endpoint of llama-server"));
        }
        // `Authority` takes a port that is too large as none.
        let port = match authority.as_str().rsplit_once(':') {
            Some((host, port)) if host == authority.host() && !port.is_empty() => {
                port.parse().map_err(|_| wrong("its port is not one"))?
            }
            _ => default_port(tls),
        };
        Ok(Self { tls, host, port, base: base.to_owned() })
    }

    /// `host:port`.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.bracketed(), self.port)
    }

    /// What the `host` header says: without the port where it is the scheme's own.
    pub fn host_header(&self) -> String {
        if self.port == default_port(self.tls) { self.bracketed() } else { self.authority() }
    }

    fn bracketed(&self) -> String {
        if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() }
    }

    /// The path on a server of this kind that an endpoint of the table stands at.
    pub fn path_of(&self, kind: Kind, endpoint: &str) -> String {
        match kind {
            Kind::Llama => endpoint.to_owned(),
            Kind::OpenAi => {
                let base = if self.base.is_empty() { V1 } else { &self.base };
                format!("{base}{}", endpoint.strip_prefix(V1).unwrap_or(endpoint))
            }
        }
    }
}

const V1: &str = "/v1";

fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

/// The base of a path: without what follows it in requests, and nothing where it is the usual one.
fn base(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    if crate::wire::is_endpoint_path(path) {
        return "";
    }
    let asked = ["/chat/completions", "/completions", "/responses", "/embeddings", "/messages"];
    let base = asked.iter().find_map(|asked| path.strip_suffix(asked)).unwrap_or(path);
    if base == V1 { "" } else { base }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_stands_under_the_base_and_v1_is_not_doubled() {
        let cases = [
            ("http://gpu", "/v1/chat/completions", "http://gpu:80", "gpu", "/v1/chat/completions"),
            ("http://GPU:8000/", "/chat/completions", "http://gpu:8000", "gpu:8000", "/v1/chat/completions"),
            ("https://a.example/v1/", "/v1/models", "https://a.example:443", "a.example", "/v1/models"),
            (
                "https://a.example:443/openai/v1",
                "/v1/chat/completions",
                "https://a.example:443/openai/v1",
                "a.example",
                "/openai/v1/chat/completions",
            ),
            (
                "https://a.example/v1beta/openai/chat/completions",
                "/v1/embeddings",
                "https://a.example:443/v1beta/openai",
                "a.example",
                "/v1beta/openai/embeddings",
            ),
            (
                "https://[::1]:8443/v1/chat/completions",
                "/v1/responses",
                "https://[::1]:8443",
                "[::1]:8443",
                "/v1/responses",
            ),
        ];
        for (text, endpoint, shown, host, path) in cases {
            let url = ServerUrl::read(text, Kind::OpenAi).expect(text);
            let found = (url.to_string(), url.host_header(), url.path_of(Kind::OpenAi, endpoint));
            assert_eq!(found, (shown.to_owned(), host.to_owned(), path.to_owned()), "{text}");
        }
        let llama: ServerUrl = "http://gpu:8080/v1".parse().expect("a llama-server");
        assert_eq!(llama.path_of(Kind::Llama, "/completion"), "/completion");
        for wrong in ["http://gpu:8080/openai/v1", "http://gpu:65536", "http://[::1]:x"] {
            assert!(wrong.parse::<ServerUrl>().is_err(), "{wrong}");
        }
        let unnamed: ServerUrl = "http://[::1]".parse().expect("the scheme's port");
        assert_eq!((unnamed.host.as_str(), unnamed.port), ("::1", 80));
    }
}
