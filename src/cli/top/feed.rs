//! Hearing what the gateway tells: the page's own stream of events, asked for again whenever it ends.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Heard;
use super::board::Lost;
use super::text::Text;
use super::told::News;
use crate::cli::place::{Answer, Body, Place};

/// The same as the page's.
const LIVE: &str = "/dashboard/live";

/// It tells something every second: after so long it is taken for gone.
const SILENCE_MAX: Duration = Duration::from_secs(8);
const WAIT_SECONDS_MAX: u64 = 15;

/// Of an event: the first has an hour, a hundred requests and at most two hundred keys, which is a few hundred KiB.
const EVENT_BYTES_MAX: u64 = 16 << 20;
/// Of an answer that is no stream.
const REFUSAL_BYTES_MAX: u64 = 64 << 10;

/// The token, which may be typed in later.
pub(super) type Token = Mutex<Option<String>>;

pub(super) fn token_of(token: &Token) -> Option<String> {
    token.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Hears it for ever, and says so; returns when nobody listens. A word in `again` ends a wait.
pub(super) fn follow(place: &Place, token: &Token, tell: &SyncSender<Heard>, again: &Receiver<()>) {
    let mut wait = 1;
    loop {
        let lost = match Stream::open(place, token_of(token).as_deref()) {
            Err(lost) => lost,
            Ok(mut stream) => {
                let mut first = true;
                loop {
                    let news = match stream.next() {
                        Err(lost) => break lost,
                        Ok(news) => Box::new(news),
                    };
                    if tell.send(Heard::News(news, first)).is_err() {
                        return;
                    }
                    (first, wait) = (false, 1);
                }
            }
        };
        for again_seconds in (1..=wait).rev() {
            if tell.send(Heard::Lost(Lost { again_seconds, ..lost.clone() })).is_err() {
                return;
            }
            match again.recv_timeout(Duration::from_secs(1)) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        wait = (wait * 2).min(WAIT_SECONDS_MAX);
    }
}

/// What it tells, event by event.
pub(super) struct Stream(Body);

impl Stream {
    pub(super) fn open(place: &Place, token: Option<&str>) -> Result<Self, Lost> {
        let answer = place.ask("GET", LIVE, token, SILENCE_MAX).map_err(|error| unreached(&error))?;
        match answer.status {
            200 => Ok(Self(answer.body)),
            _ => Err(refused(answer, token.is_some())),
        }
    }

    pub(super) fn next(&mut self) -> Result<News, Lost> {
        let event = match next_event(&mut self.0, EVENT_BYTES_MAX) {
            Ok(Some(event)) => event,
            Ok(None) => {
                return Err(lost("it ended the connection", "If it is being replaced, it is back at once."));
            }
            Err(error) if is_silence(&error) => {
                return Err(lost("it says nothing", "Is its machine overloaded?"));
            }
            Err(error) => return Err(lost(&error.to_string(), "Is the process running?")),
        };
        serde_json::from_slice(&event).map_err(|error| {
            lost(
                &format!("what it tells is not understood ({error})"),
                "Is it of another version than this `top`?",
            )
        })
    }
}

/// The data of the next event; `None`: there are no more.
fn next_event(from: &mut impl BufRead, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut event = from.take(bytes_max);
    let (mut line, mut data) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        event.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return match event.limit() {
                0 => Err(io::Error::other("an event of it has no end")),
                // What is cut through is no event.
                _ => Ok(None),
            };
        }
        let text = line.strip_suffix(b"\r").unwrap_or(&line);
        match text.strip_prefix(b"data:") {
            Some(more) => data.extend_from_slice(more.trim_ascii_start()),
            None if text.is_empty() && !data.is_empty() => return Ok(Some(data)),
            None => {}
        }
    }
}

fn lost(why: &str, advice: &str) -> Lost {
    Lost { why: Text::of(why), advice: advice.to_owned(), ..Lost::default() }
}

fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn unreached(error: &io::Error) -> Lost {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => lost(
            "nothing listens there",
            "Is the gateway running, and is this its operator's listener (`admin.listen`)? Name its file with \
             --config FILE, or the address with --admin URL.",
        ),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => lost(
            &error.to_string(),
            "Does it speak TLS? Then name its file with --config FILE, or say --admin https://HOST:PORT.",
        ),
        _ if is_silence(error) => lost(
            "no answer came",
            "Is the address right, and does a firewall let you through? From another machine: \
             ssh -t HOST ai-gateway top.",
        ),
        _ => lost(&error.to_string(), "Is the address right? `admin.listen` of the gateway's file says it."),
    }
}

/// Why an answer is no stream.
fn refused(answer: Answer, with_token: bool) -> Lost {
    let status = answer.status;
    let message = message_of(answer);
    match status {
        401 => Lost {
            wants_token: true,
            ..match with_token {
                true => lost(
                    "it does not know this token",
                    "`admin.token` of the file that it runs under is the right one; --config FILE or --token-file \
                     FILE names it. Press t to type it in.",
                ),
                false => lost(
                    "it asks for a token",
                    "Name the gateway's file with --config FILE, or one that holds `admin.token` with --token-file \
                     FILE. Press t to type it in.",
                ),
            }
        },
        404 => lost(
            "nothing is told there",
            "That is not the operator's listener of a gateway: callers' is another. `admin.listen` of its file says \
             where it is.",
        ),
        _ => lost(&format!("it answers {status}"), &message.unwrap_or_default()),
    }
}

/// What an answer that is a refusal says, made harmless.
pub(super) fn message_of(answer: Answer) -> Option<String> {
    let mut body = Vec::new();
    answer.body.take(REFUSAL_BYTES_MAX).read_to_end(&mut body).ok()?;
    let json: serde_json::Value = serde_json::from_slice(&body).ok()?;
    json["error"]["message"].as_str().map(|message| Text::of(message).to_string())
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    #[test]
    fn events_are_read_one_by_one_and_within_their_bound() {
        let mut told = &b": hello\n\ndata: {\"a\":\ndata: 1}\r\n\r\ndata: 2\n\ndata: 3"[..];
        let mut next = || next_event(&mut told, 100).unwrap();
        assert_eq!(next().as_deref(), Some(&b"{\"a\":1}"[..]));
        assert_eq!(next().as_deref(), Some(&b"2"[..]));
        assert_eq!(next(), None, "half an event is none");
        assert!(next_event(&mut BufReader::new(io::repeat(b'x')), 1000).is_err(), "an endless line");
        assert!(next_event(&mut BufReader::new(io::repeat(b'\n')), 1000).is_err(), "an endless nothing");
    }

    #[test]
    fn whoever_cannot_be_asked_is_told_of_with_what_to_do() {
        for (kind, words) in [
            (io::ErrorKind::ConnectionRefused, "Is the gateway running"),
            (io::ErrorKind::TimedOut, "firewall"),
            (io::ErrorKind::InvalidData, "TLS"),
            (io::ErrorKind::NotFound, "Is the address right?"),
        ] {
            let lost = unreached(&kind.into());
            assert!(lost.advice.contains(words), "{kind:?}: {}", lost.advice);
        }
        let answer = |status, body: &'static str| Answer {
            status,
            body: BufReader::new(Box::new(body.as_bytes()) as Box<dyn Read + Send>).take(u64::MAX),
        };
        let unknown = refused(answer(401, ""), true);
        assert!(unknown.wants_token && unknown.advice.contains("admin.token"), "{unknown:?}");
        assert!(refused(answer(401, ""), false).advice.contains("--token-file"));
        assert!(refused(answer(404, "<html>"), false).advice.contains("admin.listen"));
        let full = refused(answer(503, r#"{"error": {"message": "16 pages\u001b[2J are open."}}"#), true);
        assert_eq!((&*full.why, full.advice.as_str()), ("it answers 503", "16 pages�[2J are open."));
    }
}
