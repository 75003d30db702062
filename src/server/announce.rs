//! Who a connection comes from, where a TCP balancer says so: PROXY protocol, versions 1 and 2.
//! (<https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>)
//!
//! A balancer that speaks it begins each connection with one header. It is believed from `trusted_proxies` alone, and
//! from these it may be absent: nothing that HTTP or TLS begins with looks like it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use pingora::protocols::l4::stream::Stream;
use pingora::protocols::{GetSocketDigest, SocketDigest, UniqueID};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

/// A header of version 1 with its line's end.
const LINE_BYTES_MAX: usize = 107;
/// What follows the 16 bytes of version 2; addresses take 36 of it.
const REST_BYTES_MAX: usize = 4096;

const LINE: &[u8] = b"PROXY ";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    /// No header, but the caller's own.
    None,
    /// More of them must come.
    More,
    /// A header of so many bytes; `None`: the balancer speaks for itself.
    Whole(usize, Option<SocketAddr>),
    /// It begins as one and is none.
    Broken,
}

/// Takes the header off, if there is one, so that the stream comes from whom it says. `first` is how long the first
/// byte may take, `rest` how long the others.
pub(super) async fn heard(stream: &mut Stream, first: Duration, rest: Duration) -> io::Result<()> {
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let mut bytes = Vec::with_capacity(512);
    let left = timeout(first, stream.read_buf(&mut bytes)).await.map_err(late)?? == 0;
    let read = async {
        loop {
            match read(&bytes) {
                Head::More if stream.read_buf(&mut bytes).await? > 0 => {}
                Head::More | Head::Broken => return Err(io::Error::from(io::ErrorKind::InvalidData)),
                Head::None => return Ok((0, None)),
                Head::Whole(length, peer) => return Ok((length, peer)),
            }
        }
    };
    let (length, peer) = if left { (0, None) } else { timeout(rest, read).await.map_err(late)?? };
    stream.rewind(&bytes[length..]);
    if let Some(peer) = peer {
        let digest = SocketDigest::from_raw_fd(stream.id());
        // The cell is new.
        let _ = digest.peer_addr.set(Some(peer.into()));
        stream.set_socket_digest(digest);
    }
    Ok(())
}

fn read(bytes: &[u8]) -> Head {
    if bytes.starts_with(LINE) {
        return line(bytes);
    }
    if bytes.starts_with(SIGNATURE) {
        return binary(bytes);
    }
    if LINE.starts_with(bytes) || SIGNATURE.starts_with(bytes) { Head::More } else { Head::None }
}

/// Version 1: `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443`.
fn line(bytes: &[u8]) -> Head {
    let Some(end) = bytes.windows(2).take(LINE_BYTES_MAX - 1).position(|two| two == b"\r\n") else {
        return if bytes.len() < LINE_BYTES_MAX { Head::More } else { Head::Broken };
    };
    let Ok(text) = str::from_utf8(&bytes[LINE.len()..end]) else { return Head::Broken };
    let words: Vec<&str> = text.split(' ').collect();
    let peer = match words[..] {
        ["UNKNOWN", ..] => None,
        [family @ ("TCP4" | "TCP6"), from, _, port, _] => {
            let from = from.parse::<IpAddr>().ok().filter(|from| from.is_ipv4() == (family == "TCP4"));
            let Some(peer) = from.zip(port.parse().ok()) else { return Head::Broken };
            Some(SocketAddr::from(peer))
        }
        _ => return Head::Broken,
    };
    Head::Whole(end + 2, peer)
}

/// Version 2: the signature, version and command, family, the length of what follows, and that: both addresses, both
/// ports, and whatever else the balancer says.
fn binary(bytes: &[u8]) -> Head {
    let Some(([command, family, high, low], rest)) = bytes[SIGNATURE.len()..].split_first_chunk::<4>() else {
        return Head::More;
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if length > REST_BYTES_MAX || !matches!(command, 0x20 | 0x21) {
        return Head::Broken;
    }
    let Some(said) = rest.get(..length) else { return Head::More };
    let whole = SIGNATURE.len() + 4 + length;
    let peer: Option<(IpAddr, &[u8])> = match (command, family) {
        (0x21, 0x11) => said.split_first_chunk::<4>().map(|(from, _)| (Ipv4Addr::from(*from).into(), said)),
        (0x21, 0x21) => said.split_first_chunk::<16>().map(|(from, _)| (Ipv6Addr::from(*from).into(), said)),
        // Its own check of this gateway, or neither TCP nor IP.
        _ => return Head::Whole(whole, None),
    };
    let peer = peer.and_then(|(from, said)| {
        let ports = 2 * if from.is_ipv4() { 4 } else { 16 };
        let port = said.get(ports..ports + 2)?;
        Some(SocketAddr::from((from, u16::from_be_bytes([port[0], port[1]]))))
    });
    peer.map_or(Head::Broken, |peer| Head::Whole(whole, Some(peer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of version 2.
    fn header(command: u8, family: u8, said: &[u8]) -> Vec<u8> {
        let length = u16::try_from(said.len()).expect("it is short").to_be_bytes();
        [SIGNATURE, &[command, family], &length, said].concat()
    }

    #[test]
    fn both_versions_say_who_it_is() {
        let ours = |text: &str| Some(text.parse().expect("an address"));
        let four = header(0x21, 0x11, &[192, 0, 2, 1, 192, 0, 2, 2, 0xdc, 0x04, 0x01, 0xbb]);
        let mut six = [0; 36];
        (six[0], six[1], six[15], six[32], six[33]) = (0x20, 0x01, 1, 0x1f, 0x90);
        let more = header(0x21, 0x11, &[192, 0, 2, 1, 192, 0, 2, 2, 0, 80, 1, 187, 4, 0, 1, 0]);
        let cases: [(&[u8], Option<SocketAddr>); 8] = [
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", ours("192.0.2.1:56324")),
            (b"PROXY TCP6 2001::1 2001::2 8080 443\r\n", ours("[2001::1]:8080")),
            (b"PROXY UNKNOWN\r\n", None),
            (b"PROXY UNKNOWN ffff:f 1 2 3\r\n", None),
            (&four, ours("192.0.2.1:56324")),
            (&header(0x21, 0x21, &six), ours("[2001::1]:8080")),
            (&more, ours("192.0.2.1:80")),
            (&header(0x20, 0x00, &[]), None),
        ];
        for (head, peer) in cases {
            let bytes = [head, b"GET / HTTP/1.1\r\n"].concat();
            for end in 0..head.len() {
                assert_eq!(read(&bytes[..end]), Head::More, "{end} of {head:?}");
            }
            assert_eq!(read(&bytes), Head::Whole(head.len(), peer), "{head:?}");
        }
    }

    #[test]
    fn what_callers_begin_with_is_no_header_and_a_broken_one_is_refused() {
        for own in [&b"POST /v1"[..], b"PRI * HTTP/2.0", b"PROXYING", b"\r\nGET /", b"\x16\x03\x01", b"G"] {
            assert_eq!(read(own), Head::None, "{own:?}");
        }
        let long = format!("PROXY TCP4 {}", "1".repeat(200));
        for broken in [
            b"PROXY TCP4 192.0.2.1 192.0.2.2 56324\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::2 1 2\r\n".to_vec(),
            b"PROXY TCP4 a b 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 70000 1\r\n".to_vec(),
            b"PROXY \xff\r\n".to_vec(),
            long.into_bytes(),
            header(0x31, 0x11, &[0; 12]),
            header(0x21, 0x11, &[0; 9]),
            header(0x21, 0x21, &[0; 12]),
            [SIGNATURE, &[0x21, 0x11, 0xff, 0xff]].concat(),
        ] {
            assert_eq!(read(&broken), Head::Broken, "{broken:?}");
        }
    }
}
