//! What two processes say to each other over a socket of the machine: lines of JSON, an answer's body after its line.

use std::io::{self, BufRead, BufReader, BufWriter, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, getsockopt, recvmsg, sendmsg, sockopt,
};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};

use crate::proxy::Item;

/// A longer line is nonsense.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// A larger body of an answer is kept by no store.
const BODY_BYTES_MAX: usize = 64 << 20;

/// Listening sockets; Linux hands over no more at once.
const SOCKETS_MAX: usize = 253;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// The successor: its version.
    Hello {
        version: String,
    },
    /// An operator: with what the successor is to be started.
    Upgrade {
        binary: PathBuf,
        file: PathBuf,
    },
    /// The addresses of the sockets, in their order.
    Sockets {
        addresses: Vec<String>,
    },
    Ready,
    Item(Item),
    End,
    Serving,
    /// Why it does not come about.
    Failed {
        why: String,
    },
    /// To the operator: which process serves now, and how many requests the one before has yet to finish.
    Done {
        process: i32,
        requests: i64,
    },
}

/// One end of the conversation. Each step blocks, no longer than the stream's timeouts.
#[derive(Debug)]
pub(super) struct Line {
    reader: BufReader<UnixStream>,
    writer: BufWriter<UnixStream>,
    /// The other process.
    pub(super) process: i32,
}

impl Line {
    /// With a process of the same user, or of root's; nobody else's is believed, or given anything. `process`: the
    /// one that it must be instead.
    pub(super) fn with(stream: UnixStream, process: Option<i32>, silence_max: Duration) -> io::Result<Self> {
        let peer = getsockopt(&stream, sockopt::PeerCredentials)?;
        let is_ours = || peer.uid() == Uid::effective().as_raw() || peer.uid() == 0;
        if !process.map_or_else(is_ours, |process| process == peer.pid()) {
            let why = format!("process {} of user {} is at the other end", peer.pid(), peer.uid());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        stream.set_read_timeout(Some(silence_max))?;
        stream.set_write_timeout(Some(silence_max))?;
        let writer = BufWriter::new(stream.try_clone()?);
        Ok(Self { reader: BufReader::new(stream), writer, process: peer.pid() })
    }

    pub(super) fn say(&mut self, message: &Message) -> io::Result<()> {
        self.write(message, &[])?;
        self.flush()
    }

    /// Says it with what was said before, or what is said later.
    pub(super) fn write(&mut self, message: &Message, body: &[u8]) -> io::Result<()> {
        serde_json::to_writer(&mut self.writer, message)?;
        self.writer.write_all(b"\n")?;
        self.writer.write_all(body)
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }

    /// The next line and the body after it; `None` at the end. What this version does not know is passed over, as long
    /// as it has no body.
    pub(super) fn hear(&mut self) -> io::Result<Option<(Message, Bytes)>> {
        loop {
            let mut line = Vec::new();
            (&mut self.reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
            if line.is_empty() {
                return Ok(None);
            }
            if line.last() != Some(&b'\n') {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it broke off in a line"));
            }
            let Ok(message) = serde_json::from_slice(&line) else { continue };
            let bytes = match &message {
                Message::Item(Item::Answer(kept)) if kept.bytes > BODY_BYTES_MAX => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer is too large"));
                }
                Message::Item(Item::Answer(kept)) => kept.bytes,
                _ => 0,
            };
            let mut body = vec![0; bytes];
            self.reader.read_exact(&mut body)?;
            return Ok(Some((message, Bytes::from(body))));
        }
    }

    /// What is heard next must be there.
    pub(super) fn answer(&mut self) -> Result<Message, String> {
        match self.hear() {
            Ok(Some((Message::Failed { why }, _))) => Err(why),
            Ok(Some((message, _))) => Ok(message),
            Ok(None) => Err(format!("process {} has ended", self.process)),
            Err(error) => Err(format!("process {}: {}", self.process, told(&error))),
        }
    }

    /// Sends sockets. Nothing may be left in the writer.
    pub(super) fn send_sockets(&mut self, sockets: &[RawFd]) -> io::Result<()> {
        if sockets.len() > SOCKETS_MAX {
            return Err(io::Error::other(format!("{} listening sockets are too many", sockets.len())));
        }
        let rights = [ControlMessage::ScmRights(sockets)];
        let stream = self.writer.get_ref().as_raw_fd();
        // A byte must go with them.
        sendmsg::<UnixAddr>(stream, &[IoSlice::new(b"\n")], &rights, MsgFlags::empty(), None)?;
        Ok(())
    }

    /// Receives them. Nothing that comes after may have been read.
    pub(super) fn receive_sockets(&mut self) -> io::Result<Vec<RawFd>> {
        let mut byte = [0];
        let mut room = nix::cmsg_space!([RawFd; SOCKETS_MAX]);
        let stream = self.reader.get_ref().as_raw_fd();
        let mut into = [IoSliceMut::new(&mut byte)];
        let message = recvmsg::<UnixAddr>(stream, &mut into, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC)?;
        if message.bytes == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended"));
        }
        let mut sockets = Vec::new();
        for said in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(some) = said {
                sockets.extend(some);
            }
        }
        Ok(sockets)
    }
}

/// An error in words that say what was waited for.
pub(super) fn told(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it said nothing for too long".to_owned(),
        _ => error.to_string(),
    }
}
