//! Connections that come back, wait and die.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::*;

const NOW: Duration = Duration::from_secs(100);

struct Stand {
    conduits: Conduits,
    listener: TcpListener,
    peer: HttpPeer,
}

impl Stand {
    async fn new(max: Option<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let peer = HttpPeer::new(listener.local_addr().expect("an address"), false, String::new());
        Self { conduits: Conduits::new(ConnectorOptions::new(9), max), listener, peer }
    }

    async fn line(&self, afresh: bool) -> Line {
        self.conduits.line(&self.peer, afresh, NOW).await.expect("it listens")
    }

    async fn server(&self) -> TcpStream {
        self.listener.accept().await.expect("a connection").0
    }

    fn keeps(&self, stream: Stream) {
        self.conduits.keep(&self.peer, stream, NOW);
    }

    fn idle(&self) -> usize {
        self.conduits.idle().count
    }
}

#[tokio::test]
async fn a_connection_that_comes_back_is_used_again() {
    for max in [Some(9), None] {
        let stand = Stand::new(max).await;
        let mut line = stand.line(false).await;
        let mut server = stand.server().await;
        let mut read = [0; 3];
        for turn in 0..3 {
            assert_eq!((line.was_used, stand.idle()), (turn > 0, 0), "{max:?}");
            line.stream.write_all(b"ask").await.expect("it is taken");
            server.read_exact(&mut read).await.expect("it comes");
            stand.keeps(line.stream);
            assert_eq!(stand.idle(), usize::from(max.is_some()));
            line = stand.line(false).await;
        }
    }
}

#[tokio::test]
async fn no_more_of_them_wait_than_may() {
    let stand = Stand::new(Some(1)).await;
    let (one, other) = (stand.line(false).await, stand.line(false).await);
    let (_one, mut server) = (stand.server().await, stand.server().await);
    stand.keeps(one.stream);
    stand.keeps(other.stream);
    assert_eq!(stand.idle(), 1);
    assert_eq!(server.read(&mut [0]).await.expect("it ends"), 0, "the other is closed");
}

#[tokio::test]
async fn a_connection_that_a_server_closed_or_spoke_on_is_not_used_again() {
    for (speaks, sweeps) in [(false, false), (false, true), (true, false), (true, true)] {
        let stand = Stand::new(Some(9)).await;
        let mut line = stand.line(false).await;
        let mut server = stand.server().await;
        if speaks {
            server.write_all(b"unasked").await.expect("it is taken");
        } else {
            drop(server);
        }
        // Once there is something to read, or an end.
        let _ = line.stream.read(&mut [0]).await;
        stand.keeps(line.stream);
        assert_eq!(stand.idle(), 1);
        if sweeps {
            stand.conduits.sweep(NOW);
        } else {
            assert!(!stand.line(false).await.was_used);
        }
        assert_eq!(stand.idle(), 0, "{speaks} {sweeps}");
    }
}

#[tokio::test]
async fn connections_wait_for_seconds_and_some_requests_want_none_that_waited() {
    for max in [Some(9), None] {
        let stand = Stand::new(max).await;
        let line = stand.line(false).await;
        let _server = stand.server().await;
        stand.keeps(line.stream);
        let line = stand.line(true).await;
        assert!(!line.was_used, "{max:?}");
        assert_eq!(stand.idle(), usize::from(max.is_some()));
        stand.conduits.sweep(NOW + IDLE_TIME_MAX);
        assert_eq!(stand.idle(), 0);
    }
}

#[tokio::test]
async fn who_does_not_answer_in_time_is_told_from_who_is_not_there() {
    let stand = Stand::new(Some(9)).await;
    let mut peer = stand.peer.clone();
    drop(stand.listener);
    let refused = stand.conduits.line(&peer, false, NOW).await.err().expect("nobody listens");
    assert_eq!(*refused.etype(), ErrorType::ConnectRefused);
    peer.options.connection_timeout = Some(Duration::ZERO);
    let late = stand.conduits.line(&peer, false, NOW).await.err().expect("no time");
    assert!(matches!(late.etype(), ErrorType::ConnectTimedout | ErrorType::ConnectRefused), "{late}");
}
