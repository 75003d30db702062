//! Connections that carry requests, come back, and die.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const HEADER: &[u8] = b"POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\n";
const BODY: &[u8] = b"body";

struct Stand {
    conduits: Arc<Conduits>,
    clock: Clock,
    listener: TcpListener,
}

impl Stand {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Self { conduits: Arc::new(Conduits::new(9)), clock: Clock::start(), listener }
    }

    async fn dials(&self, afresh: bool) -> (Stream, Arc<Link>) {
        let (conduits, link) = (Arc::clone(&self.conduits), Arc::new(Link::default()));
        let dial = Dial {
            conduits,
            clock: self.clock,
            connect: None,
            afresh,
            body_bytes: 4,
            link: Arc::clone(&link),
        };
        let address = self.listener.local_addr().expect("an address");
        (dial.connect(&address.into()).await.expect("it listens"), link)
    }

    async fn answers(&self) -> TcpStream {
        self.listener.accept().await.expect("a connection").0
    }

    fn idle(&self) -> usize {
        self.conduits.idle().count
    }
}

async fn asks(stream: &mut Stream) {
    for part in [HEADER, BODY] {
        stream.write_all(part).await.expect("it is taken");
        stream.flush().await.expect("it is taken");
    }
}

/// As Pingora does once an answer has come to its end.
async fn release(mut stream: Stream) {
    assert_eq!(stream.read(&mut [0]).await.expect("an end"), 0, "Pingora does not keep it");
}

#[tokio::test]
async fn a_request_comes_in_one_piece_and_its_connection_carries_the_next() {
    let stand = Stand::new().await;
    let (mut stream, mut link) = stand.dials(false).await;
    let mut server = stand.answers().await;
    let mut read = [0; 100];
    for turn in 0..3 {
        assert_eq!((link.was_used(), stand.idle()), (turn > 0, 0));
        asks(&mut stream).await;
        // What is sent at once is read at once, between two sockets of one machine.
        let count = server.read(&mut read).await.expect("it comes");
        assert_eq!(&read[..count], [HEADER, BODY].concat());
        server.write_all(b"yes").await.expect("it is taken");
        stream.read_exact(&mut read[..3]).await.expect("it comes");
        release(stream).await;
        assert_eq!(stand.idle(), 1);
        (stream, link) = stand.dials(false).await;
    }
}

#[tokio::test]
async fn what_is_not_done_with_is_closed() {
    let stand = Stand::new().await;
    for way in ["without an answer", "without its body", "with half of it", "after it was closed"] {
        let (mut stream, _) = stand.dials(false).await;
        let mut server = stand.answers().await;
        match way {
            "without its body" => stream.write_all(HEADER).await.expect("it is taken"),
            "with half of it" => {
                stream.write_all(HEADER).await.expect("it is taken");
                stream.flush().await.expect("it is held");
                stream.write_all(&BODY[..2]).await.expect("it is taken");
            }
            _ => asks(&mut stream).await,
        }
        if way == "after it was closed" {
            stream.shutdown().await.expect("it closes");
        }
        match way {
            "without an answer" => drop(stream),
            _ => release(stream).await,
        }
        assert_eq!(stand.idle(), 0, "{way}");
        let mut all = Vec::new();
        server.read_to_end(&mut all).await.expect("it ends");
    }
}

#[tokio::test]
async fn a_header_without_its_body_goes_out_when_it_is_flushed_again() {
    let stand = Stand::new().await;
    let (mut stream, _) = stand.dials(false).await;
    let mut server = stand.answers().await;
    stream.write_all(HEADER).await.expect("it is taken");
    for _ in 0..2 {
        stream.flush().await.expect("it is taken");
    }
    let mut read = [0; 100];
    let count = server.read(&mut read).await.expect("it comes");
    assert_eq!(&read[..count], HEADER);
}

#[tokio::test]
async fn a_connection_that_a_server_closed_is_not_used_again() {
    let stand = Stand::new().await;
    let address = stand.listener.local_addr().expect("an address");
    for sweeps in [false, true] {
        let (mut stream, _) = stand.dials(false).await;
        asks(&mut stream).await;
        let server = stand.answers().await;
        release(stream).await;
        assert_eq!(stand.idle(), 1);
        let idle = stand.conduits.take(address, stand.clock.now()).expect("it is open");
        drop(server);
        idle.readable().await.expect("its end comes");
        stand.conduits.keep(address, idle, stand.clock.now());
        if sweeps {
            stand.conduits.sweep(stand.clock.now());
        } else {
            assert!(stand.conduits.take(address, stand.clock.now()).is_none());
        }
        assert_eq!(stand.idle(), 0);
    }
}

#[tokio::test]
async fn connections_wait_for_seconds_and_some_requests_want_none_that_waited() {
    let stand = Stand::new().await;
    let (mut stream, _) = stand.dials(false).await;
    let _server = stand.answers().await;
    asks(&mut stream).await;
    release(stream).await;
    let (stream, link) = stand.dials(true).await;
    let _other = stand.answers().await;
    assert!(!link.was_used() && stand.idle() == 1);
    drop(stream);
    stand.conduits.sweep(stand.clock.now() + IDLE_TIME_MAX);
    assert_eq!(stand.idle(), 0);
}
