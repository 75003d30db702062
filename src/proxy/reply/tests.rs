//! Answers as they come, whole and not.

use std::io::Cursor;

use futures_util::FutureExt;

use super::*;

fn kept(reply: Reply) -> bool {
    reply.into_kept().now_or_never().flatten().is_some()
}

/// What is read of an answer that comes in such pieces, before its connection ends; and whether that may carry
/// another request.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<String>, bool) {
    let mut reply = Reply::new(Box::new(Cursor::new(Vec::new())));
    let (mut said, mut body) = (Vec::new(), String::new());
    for piece in pieces.into_iter().chain([&b""[..]]) {
        let mut came = reply.take(piece);
        loop {
            match came {
                Ok(Some(HttpTask::Header(header, is_over))) => {
                    let line = |(name, value): (&HeaderName, &HeaderValue)| {
                        format!(" {name}={}", value.as_bytes().escape_ascii())
                    };
                    let lines: String = header.headers.iter().map(line).collect();
                    said.push(format!("{}{lines}{}", header.status.as_u16(), if is_over { "." } else { "" }));
                }
                Ok(Some(HttpTask::Body(more, is_over))) => {
                    body.push_str(&String::from_utf8_lossy(&more.unwrap_or_default()));
                    if is_over {
                        said.push(format!("{body}."));
                    }
                }
                Ok(Some(_)) => return (said, kept(reply)),
                Ok(None) => break,
                Err(error) => {
                    said.push(format!("{body}{}", error.etype().as_str()));
                    return (said, kept(reply));
                }
            }
            came = reply.at_hand();
        }
    }
    (said, kept(reply))
}

#[test]
fn answers_are_read_however_they_are_cut() {
    let cases: [(&str, &[&str], bool); 22] = [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", &["200 content-length=2", "{}."], true),
        ("HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", &["200 content-length=0."], true),
        ("HTTP/1.1 204 None\r\nx: \r\n\r\n", &["204 x=."], true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}x", &["200 content-length=2", "{}."], false),
        ("HTTP/1.1 204 None\r\n\r\nx", &["204."], false),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\ncontent-length: 2\r\nConnection: x, Close\r\n\r\n{}",
            &["200 content-length=2 connection=x, Close", "{}."],
            false,
        ),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}", &["200 content-length=2", "{}."], false),
        (
            "HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: Keep-Alive\r\n\r\n{}",
            &["200 content-length=2 connection=Keep-Alive", "{}."],
            true,
        ),
        ("HTTP/1.1 200 OK\r\nserver : x\r\n\r\nall", &["200 server=x", "all."], false),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
            &["200 transfer-encoding=chunked", "abc."],
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n",
            &["200 transfer-encoding=chunked", "."],
            false,
        ),
        (
            concat!(
                "HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 103 Hints\r\nlink: a\r\n\r\n",
                "HTTP/1.1 201 OK\r\ncontent-length: 1\r\n\r\n1"
            ),
            &["100", "103 link=a", "201 content-length=1", "1."],
            true,
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 02\r\n\r\n{}", &["200 content-length=2", "{}."], true),
        (
            "HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive, close\r\n\r\n{}",
            &["200 content-length=2 connection=keep-alive, close", "{}."],
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n0\r\n\r\n",
            &["200 transfer-encoding=chunked", "abmisframed"],
            false,
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2,\r\n\r\n{}", &["InvalidHTTPHeader"], false),
        ("", &["ConnectionClosed"], false),
        ("HTTP/1.1 200 OK\r\n", &["ConnectionClosed"], false),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}",
            &["200 content-length=3", "{}ConnectionClosed"],
            false,
        ),
        ("HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n", &["InvalidHTTPHeader"], false),
        ("HTTP/1.1 099 Less\r\n\r\n", &["InvalidHTTPHeader"], false),
        ("SSH-2.0-OpenSSH_9.2\r\n", &["InvalidHTTPHeader"], false),
    ];
    for (answer, expected, keeps) in cases {
        let whole = read([answer.as_bytes()]);
        assert_eq!(whole, (expected.iter().map(|it| (*it).to_owned()).collect(), keeps), "{answer}");
        // What stands behind its end is found by whoever uses the connection again, where it comes later.
        assert_eq!(read(answer.as_bytes().chunks(1)).0, whole.0, "{answer}, byte by byte");
        for at in 1..answer.len() {
            let (one, other) = answer.as_bytes().split_at(at);
            assert_eq!(read([one, other]).0, whole.0, "{answer}, cut at {at}");
        }
    }
}

#[test]
fn what_is_wrong_is_said_once_all_before_it_has_been_whatever_comes_later() {
    let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n";
    for at in [0, 20, answer.len() - 6, answer.len()] {
        let mut reply = Reply::new(Box::new(Cursor::new(Vec::new())));
        let (one, other) = answer.as_bytes().split_at(at);
        let mut said = Vec::new();
        for piece in [one, other].into_iter().filter(|piece| !piece.is_empty()) {
            let mut came = reply.take(piece);
            while let Ok(Some(_)) = came {
                said.push(came);
                came = reply.at_hand();
            }
            said.extend(came.is_err().then_some(came));
        }
        assert!(
            matches!(said[..], [Ok(Some(HttpTask::Header(..))), Ok(Some(HttpTask::Body(..))), Err(_)]),
            "{at}"
        );
    }
}

#[test]
fn a_head_has_bounds() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
    assert_eq!(read([many.as_bytes()]).0, ["InvalidHTTPHeader"]);
    let long = format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(2 * HEAD_BYTES_MAX));
    assert_eq!(read(long.as_bytes().chunks(1000)).0, ["InvalidHTTPHeader"]);
    let hints = "HTTP/1.1 100 Go on\r\n\r\n".repeat(700);
    let (said, _) = read([hints.as_bytes()]);
    assert_eq!((said.len(), said.last().map(String::as_str)), (HEADS_MAX + 1, Some("InvalidHTTPHeader")));
}
