//! Where the operator's listener is and whom to trust there, and asking it for more than one whole answer.

use std::io::{self, BufRead, BufReader, Read, Take, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use ai_gateway::config::{Listener, Tls};
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore, StreamOwned};

use super::ask;

/// Of the head of an answer; the gateway's own are a tenth.
const HEAD_BYTES_MAX: u64 = 64 << 10;

/// Whom to trust.
enum Trust {
    /// It speaks no TLS.
    Plain,
    /// Who shows the certificate that the file names.
    Itself(Box<Tls>),
    /// Who shows one that the system's roots vouch for.
    Roots,
}

/// Where the operator's listener is.
pub(super) struct Place {
    host: String,
    port: u16,
    trust: Trust,
}

pub(super) type Body = Take<BufReader<Box<dyn Read + Send>>>;

/// What it answers: the status, and what follows the head, until it ends the connection.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Body,
}

trait Conversation: Read + Write + Send {}

impl<T: Read + Write + Send> Conversation for T {}

impl Place {
    /// Where the file says that it listens.
    pub(super) fn of(listener: &Listener) -> Self {
        let address = ask::reachable(listener.address);
        let trust = listener.tls.clone().map_or(Trust::Plain, |tls| Trust::Itself(Box::new(tls)));
        Self { host: address.ip().to_string(), port: address.port(), trust }
    }

    /// `http://host:port`, or `https`; a certificate that the file names is trusted there too. Fails with what was
    /// expected.
    pub(super) fn at(url: &str, tls: Option<&Tls>) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{}` is no address of an operator's listener: write http://HOST:PORT",
                url.escape_debug()
            )
        };
        let uri: http::Uri = url.trim_end_matches('/').parse().map_err(|_| wrong())?;
        let trust = match (uri.scheme_str(), tls) {
            (Some("http"), _) => Trust::Plain,
            (Some("https"), Some(tls)) => Trust::Itself(Box::new(tls.clone())),
            (Some("https"), None) => Trust::Roots,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().filter(|it| !it.as_str().contains('@')).ok_or_else(wrong)?;
        if !matches!(uri.path(), "" | "/" | "/dashboard")
            || uri.query().is_some()
            || authority.host().is_empty()
        {
            return Err(wrong());
        }
        let port = authority.port_u16().unwrap_or(if matches!(trust, Trust::Plain) { 80 } else { 443 });
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port, trust })
    }

    /// As a person would write it.
    pub(super) fn url(&self) -> String {
        let scheme = if matches!(self.trust, Trust::Plain) { "http" } else { "https" };
        format!("{scheme}://{}", self.authority())
    }

    fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// Asks, and gives what follows the head as it comes. Whoever says nothing for `silence_max` is given up.
    pub(super) fn ask(
        &self,
        method: &str,
        target: &str,
        token: Option<&str>,
        silence_max: Duration,
    ) -> io::Result<Answer> {
        let mut stream = self.open(silence_max)?;
        // A header of two lines would be two headers.
        let token = token.filter(|token| token.bytes().all(|it| it.is_ascii_graphic()));
        let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        let length = if method == "POST" { "content-length: 0\r\n" } else { "" };
        // By HTTP/1.0 an answer without an end comes as it is, not in chunks.
        let request = format!(
            "{method} {target} HTTP/1.0\r\nhost: {}\r\nconnection: close\r\n{token}{length}\r\n",
            self.authority()
        );
        stream.write_all(request.as_bytes()).and_then(|()| stream.flush()).map_err(ask::explained)?;
        let stream: Box<dyn Read + Send> = Box::new(stream);
        let mut body = BufReader::new(stream);
        let head = read_head(&mut body).map_err(ask::explained)?;
        Ok(Answer { status: head.status, body: body.take(head.length.unwrap_or(u64::MAX)) })
    }

    fn open(&self, silence_max: Duration) -> io::Result<Box<dyn Conversation>> {
        let stream = self.connect()?;
        stream.set_read_timeout(Some(silence_max))?;
        let config = match &self.trust {
            Trust::Plain => return Ok(Box::new(stream)),
            Trust::Itself(tls) => ask::trusting_itself(tls),
            Trust::Roots => trusting_roots()?,
        };
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        Ok(Box::new(StreamOwned::new(ask::session(config, name)?, stream)))
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let addresses: Vec<SocketAddr> = (self.host.as_str(), self.port).to_socket_addrs()?.collect();
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match ask::connect(address) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// The system's roots, or those that `SSL_CERT_FILE` names.
fn trusting_roots() -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

struct Head {
    status: u16,
    /// Of the body, where it is told.
    length: Option<u64>,
}

/// Reads to the end of the head.
fn read_head(from: &mut impl BufRead) -> io::Result<Head> {
    let no_http = || io::Error::new(io::ErrorKind::InvalidData, "what answers there speaks no HTTP");
    let mut head = from.take(HEAD_BYTES_MAX);
    let (mut line, mut status, mut length) = (Vec::new(), None, None);
    loop {
        line.clear();
        if head.read_until(b'\n', &mut line)? == 0 || line.last() != Some(&b'\n') {
            return Err(no_http());
        }
        match status {
            None => {
                let text = String::from_utf8_lossy(&line);
                let word = text.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
                status = Some(word.and_then(|word| word.trim().parse().ok()).ok_or_else(no_http)?);
            }
            Some(status) if line.trim_ascii().is_empty() => return Ok(Head { status, length }),
            Some(_) => length = length_told(&line).or(length),
        }
    }
}

fn length_told(line: &[u8]) -> Option<u64> {
    let (name, value) = std::str::from_utf8(line).ok()?.split_once(':')?;
    name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_url_of_a_listener() {
        for (url, expected) in [
            ("http://127.0.0.1:9002", Some("http://127.0.0.1:9002")),
            ("http://gw.example:9002/", Some("http://gw.example:9002")),
            ("http://gw.example:9002/dashboard", Some("http://gw.example:9002")),
            ("https://gw.example", Some("https://gw.example:443")),
            ("http://[::1]:9002", Some("http://[::1]:9002")),
            ("127.0.0.1:9002", None),
            ("ftp://gw.example", None),
            ("http://gw.example/stats", None),
            ("http://me:secret@gw.example", None),
            ("http://\r\nx", None),
            ("", None),
        ] {
            assert_eq!(Place::at(url, None).ok().map(|place| place.url()).as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn a_head_is_read_to_its_end_and_no_further_than_it_may_be() {
        let mut good = &b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\nserver: x\r\n\r\nbody"[..];
        let head = read_head(&mut good).unwrap();
        assert_eq!((head.status, head.length, good), (401, Some(4), &b"body"[..]));
        for bad in
            ["", "\x15\x03\x01", "SSH-2.0-OpenSSH\r\n", "HTTP/1.1 200 OK\r\nserver", "HTTP/1.1\r\n\r\n"]
        {
            let error = read_head(&mut bad.as_bytes()).err().expect("no head");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bad}");
        }
        let endless = io::repeat(b'x').take(1 << 30);
        assert!(read_head(&mut BufReader::new(endless)).is_err());
    }
}
