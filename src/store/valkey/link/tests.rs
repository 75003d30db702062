//! How long a question waits for a Valkey that has fallen silent: told in turns of a timer, so that a machine that is
//! busy with other things makes no difference.

use std::sync::atomic::AtomicBool;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::store::Address;

/// Answers whatever it is asked, until it falls silent.
async fn server(silent: Arc<AtomicBool>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let silent = Arc::clone(&silent);
            tokio::spawn(async move {
                let mut bytes = [0; 64 << 10];
                while let Ok(length @ 1..) = stream.read(&mut bytes).await {
                    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                    for word in text.lines() {
                        let answer: &[u8] = match word {
                            "PEXPIRE" | "EVALSHA" => b":1\r\n",
                            "SCRIPT" | "CLIENT" | "SELECT" => b"+OK\r\n",
                            _ => continue,
                        };
                        if !silent.load(Ordering::Relaxed) {
                            stream.write_all(answer).await.expect("the link reads");
                        }
                    }
                }
            });
        }
    });
    address
}

/// So many turns of a timer: a millisecond each, unless the machine is late.
async fn turns(count: u32) {
    for _ in 0..count {
        sleep(Duration::from_micros(1)).await;
    }
}

/// On one thread the timer that gives up and the one beside it turn together, whatever else the machine does: five
/// turns at most, the first of them a part of a millisecond.
#[tokio::test]
async fn a_silent_valkey_is_given_up_within_five_turns_of_the_timer() {
    let silent = Arc::new(AtomicBool::new(false));
    let address =
        Address::parse(&format!("redis://{}", server(Arc::clone(&silent)).await)).expect("an address");
    let link = Arc::new(Link::new(Dial { address, ca: None }, "{test}:look".to_owned(), PATIENCE));
    let script = link.script("return 1");
    let keeps = Arc::clone(&link);
    tokio::spawn(async move { keeps.keep().await });
    let none: [String; 0] = [];
    let mut asked = 0;
    for round in 0..5 {
        silent.store(false, Ordering::Relaxed);
        while !link.is_up() || link.is_in_doubt() {
            sleep(Duration::from_millis(1)).await;
        }
        silent.store(true, Ordering::Relaxed);
        // Until the circuit opens; then nobody waits.
        while link.is_up() {
            asked += 1;
            tokio::select! {
                biased;
                told = link.run::<i64>(&script, &none, &none) => {
                    assert!(matches!(told, Err(Unanswered::Late(_) | Unanswered::Away)), "{round}: {told:?}");
                }
                () = turns(6) => panic!("{round}: it is still asked"),
            }
        }
        let told = link.run::<i64>(&script, &none, &none);
        assert!(matches!(futures_util::FutureExt::now_or_never(told), Some(Err(Unanswered::Away))));
    }
    assert!(asked > 20, "{asked}");
}
