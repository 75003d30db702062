//! Listeners with TLS: what they show, when it changes, and who gets in.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::support::client::{self, get};
use crate::support::expect::{auth, refused};
use crate::support::gateway::{self, Folder, Gateway, PORT, Plan, chat, chat_stream, command, run};
use crate::support::llama;
use crate::support::tls::{Authority, Hand, Pair, trusting};

const TLS_PORT: u16 = 9443;

/// A change is in force within a second; a busy machine may be late.
const IN_FORCE_MAX: Duration = Duration::from_millis(1500);

/// A plan with a plain listener and one with TLS, whose certificate is in the folder.
fn with_tls(plan: Plan, folder: &Folder, pair: &Pair, more: &str) -> Plan {
    let (cert, key) = pair.write(folder);
    let (plain, tls) = (plan.address(PORT), plan.address(TLS_PORT));
    let (cert, key) = (cert.display(), key.display());
    plan.yaml(&format!(
        "listen: [{{address: {plain}}}, {{address: {tls}, tls: {{cert: {cert}, key: {key}{more}}}}}]"
    ))
}

/// Waits until the listener shows this certificate, no longer than a change takes.
async fn shows(gateway: &Gateway, hand: &Hand<'_>, pair: &Pair) {
    let changed = Instant::now();
    eventually!(&hand.shown(gateway.at(TLS_PORT)).await == pair.der(), "{}", gateway.stderr());
    assert!(changed.elapsed() <= IN_FORCE_MAX, "it took {:?}", changed.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_of_tls_carry_both_versions_of_http() {
    let llama = llama::scripted().answers(r#"{"a": 1}"#).start().await;
    let (folder, authority) = (Folder::new("tls-versions"), Authority::new());
    let gateway = with_tls(gateway::before(&llama), &folder, &authority.server(), "").start().await;
    let address = gateway.at(TLS_PORT);
    for hand in [trusting(&authority), trusting(&authority).tls12()] {
        let mut caller = hand.caller(address).await;
        for _ in 0..2 {
            assert_eq!(caller.send(chat("hi")).await.status, 200, "the connection is used again");
        }
        for (offered, chosen) in [(&["h2", "http/1.1"][..], &b"h2"[..]), (&["http/1.1"], b"http/1.1")] {
            let stream = hand.clone().speaking(offered).shake(address).await;
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(chosen));
        }
    }
    assert!(gateway.stderr().contains(&format!("serving on https://{address}")), "{}", gateway.stderr());
    assert_eq!(gateway.scrape().await.sum("ai_gateway_tls_handshake_failures_total", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_renewed_is_shown_and_open_connections_go_on() {
    let llama = llama::scripted().streams(["one", "two"]).holds().start().await;
    let (folder, authority) = (Folder::new("tls-renewed"), Authority::new());
    let (old, new, third) = (authority.server(), authority.server(), authority.server());
    let gateway = with_tls(gateway::before(&llama), &folder, &old, "").start().await;
    let hand = trusting(&authority);
    let mut stream = hand.caller(gateway.at(TLS_PORT)).await.begin(chat_stream("hi")).await;
    llama.release();
    assert!(stream.event().await.is_some());

    // First the one file, then the other: what does not fit together is not shown.
    folder.file("tls.crt", &new.cert);
    let log = "the key does not belong to the certificate";
    eventually!(gateway.stderr().contains(log), "{}", gateway.stderr());
    assert_eq!(&hand.shown(gateway.at(TLS_PORT)).await, old.der());
    assert_eq!(gateway.stderr().matches(log).count(), 1, "{}", gateway.stderr());
    assert_eq!(gateway.scrape().await.sum("ai_gateway_config_last_reload_successful", &[]), 0.0);
    folder.private("tls.key", &new.key);
    shows(&gateway, &hand, &new).await;

    // As SIGHUP, and as a change of the file that names them, reads them again.
    third.write(&folder);
    gateway.signal("HUP");
    shows(&gateway, &hand, &third).await;

    llama.release_all();
    let (answer, mut caller) = stream.finish().await;
    assert!(answer.whole && answer.text().ends_with("data: [DONE]\n\n"), "{answer:?}");
    assert_eq!(caller.send(chat("hi again")).await.status, 200);
    assert_eq!(gateway.scrape().await.sum("ai_gateway_config_last_reload_successful", &[]), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_kubernetes_is_taken_when_its_link_moves() {
    let llama = llama::scripted().start().await;
    let (folder, authority) = (Folder::new("tls-secret"), Authority::new());
    let (old, new) = (authority.server(), authority.server());
    for (name, pair) in [("..old", &old), ("..new", &new)] {
        let (cert, key) = pair.write(&folder);
        let to = folder.path().join(name);
        fs::create_dir(&to).expect("the folder is ours");
        fs::rename(cert, to.join("tls.crt")).expect("just written");
        fs::rename(key, to.join("tls.key")).expect("just written");
    }
    let link = |to: &str, from: &str| symlink(to, folder.path().join(from)).expect("the folder is ours");
    link("..old", "..data");
    let plan = gateway::before(&llama);
    let (plain, tls, at) = (plan.address(PORT), plan.address(TLS_PORT), folder.path().display());
    let listen = format!(
        "listen: [{{address: {plain}}}, {{address: {tls}, tls: {{cert: {at}/tls.crt, key: {at}/tls.key}}}}]"
    );
    link("..data/tls.crt", "tls.crt");
    link("..data/tls.key", "tls.key");
    let gateway = plan.yaml(&listen).start().await;
    let hand = trusting(&authority);
    assert_eq!(&hand.shown(gateway.at(TLS_PORT)).await, old.der());
    link("..new", "..data_tmp");
    fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).expect("the folder is ours");
    shows(&gateway, &hand, &new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_a_key() {
    let llama = llama::scripted().answers("{}").start().await;
    let (folder, authority, strangers) = (Folder::new("tls-mutual"), Authority::new(), Authority::new());
    let ca = folder.file("ca.crt", &authority.pem());
    let client_ca = format!(", client_ca: {}", ca.display());
    let keys =
        auth(&[("alice", "sk-alice", "client_cert: [alice, 'uri:spiffe://x/alice']"), ("bob", "sk-bob", "")])
            + "    - {name: carol, client_cert: carol, limits: {requests: 1/h}}\n";
    let plan = with_tls(gateway::before(&llama), &folder, &authority.server(), &client_ca).yaml(&keys);
    let gateway = plan.start().await;
    let address = gateway.at(TLS_PORT);
    let key_of =
        async |answer: client::Answer| gateway.line_of(answer.request_id()).await.text("key").to_owned();

    let (alice, spiffe) =
        (authority.client("alice", &[]), authority.client("someone", &["spiffe://x/alice"]));
    for pair in [&alice, &spiffe] {
        let mut caller = trusting(&authority).showing(pair).caller(address).await;
        assert_eq!(key_of(caller.send(chat("hi")).await).await, "alice");
        // A key that is presented is what counts.
        assert_eq!(key_of(caller.send(chat("hi").key("sk-bob")).await).await, "bob");
        refused(&caller.send(chat("hi").key("sk-nobody")).await, 401, "invalid_api_key");
    }
    let carol = authority.client("carol", &[]);
    let mut caller = trusting(&authority).showing(&carol).tls12().caller(address).await;
    assert_eq!(key_of(caller.send(chat("hi")).await).await, "carol");
    refused(&caller.send(chat("ho")).await, 429, "rate_limit_exceeded");
    let nobody = authority.client("nobody", &[]);
    let mut caller = trusting(&authority).showing(&nobody).caller(address).await;
    refused(&caller.send(chat("hi")).await, 401, "invalid_api_key");
    // The name alone is nothing, and the plain listener asks for no certificate.
    refused(&gateway.chat("hi").await, 401, "invalid_api_key");

    let imposter = strangers.client("alice", &[]);
    for hand in [trusting(&authority), trusting(&authority).showing(&imposter)] {
        let refused = match hand.try_shake(address).await {
            Err(_) => true,
            Ok(mut stream) => !matches!(stream.read(&mut [0; 1]).await, Ok(1..)),
        };
        assert!(refused, "a caller without a certificate that is vouched for");
    }
    let failures = "ai_gateway_tls_handshake_failures_total";
    eventually!(gateway.scrape().await.sum(failures, &[("reason", "failed")]) == 2.0);
    assert_eq!(gateway.errors(), [""; 0]);

    // Another authority: from now on its certificates count.
    folder.file("ca.crt", &strangers.pem());
    let hand = trusting(&authority).showing(&imposter);
    let in_force = async || {
        let Ok(stream) = hand.try_shake(address).await else { return false };
        client::Caller::over(stream).is_told_200(&get("/live")).await
    };
    eventually!(in_force().await, "{}", gateway.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_shake_hands_in_time_or_at_all_is_closed() {
    let llama = llama::scripted().start().await;
    let (folder, authority) = (Folder::new("tls-closed"), Authority::new());
    let plan = with_tls(gateway::before(&llama), &folder, &authority.server(), "");
    let gateway = plan.yaml("connections: {handshake: 300ms}").start().await;
    let ended = async |stream: &mut TcpStream| {
        let mut rest = Vec::new();
        let ended = timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "it is not closed");
        String::from_utf8_lossy(&rest).into_owned()
    };
    let mut silent = TcpStream::connect(gateway.at(TLS_PORT)).await.expect("it listens");
    ended(&mut silent).await;
    let mut half = TcpStream::connect(gateway.at(TLS_PORT)).await.expect("it listens");
    half.write_all(&[22, 3, 1, 2, 0, 1]).await.expect("it reads");
    ended(&mut half).await;
    let mut plain = TcpStream::connect(gateway.at(TLS_PORT)).await.expect("it listens");
    plain.write_all(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it reads");
    assert!(!ended(&mut plain).await.contains("200"));
    // HTTP/2 without its preface.
    let mut mute = trusting(&authority).speaking(&["h2"]).shake(gateway.at(TLS_PORT)).await;
    let mut rest = Vec::new();
    let closed = timeout(Duration::from_secs(10), mute.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "it is not closed");
    // TLS where there is none.
    assert!(trusting(&authority).try_shake(gateway.address()).await.is_err());

    let failures = |reason| [("reason", reason)];
    let scrape = gateway.scrape().await;
    assert_eq!(scrape.sum("ai_gateway_tls_handshake_failures_total", &failures("late")), 2.0);
    assert_eq!(scrape.sum("ai_gateway_tls_handshake_failures_total", &failures("failed")), 1.0);
    assert_eq!(gateway.errors(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_has_its_time_on_the_whole() {
    let llama = llama::scripted().answers("{}").start().await;
    let (folder, authority) = (Folder::new("tls-head"), Authority::new());
    let plan = with_tls(gateway::before(&llama), &folder, &authority.server(), "");
    let gateway = plan.yaml("connections: {head: 500ms}").start().await;
    let head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\na: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    for tls in [false, true] {
        for used_before in [false, true] {
            let mut caller = match tls {
                true => trusting(&authority).caller(gateway.at(TLS_PORT)).await,
                false => gateway.caller().await,
            };
            if used_before {
                assert_eq!(caller.send(chat("hi")).await.status, 200);
            }
            let begun = Instant::now();
            // Empty lines before the head are no head.
            caller.send_raw(b"\r\n\r\n").await;
            for byte in head {
                if caller.try_send_raw(&[*byte]).await.is_err() {
                    break;
                }
                if timeout(Duration::from_millis(20), caller.wait_for_bytes()).await.is_ok() {
                    break;
                }
            }
            let (answer, mut caller) = caller.answering("POST").await.finish().await;
            refused(&answer, 408, "request_timeout");
            assert!(caller.is_closed().await);
            let took = begun.elapsed();
            assert!(took > Duration::from_millis(450) && took < Duration::from_secs(5), "{took:?}");
        }
    }
    // One that is idle between two requests has more time, and one that sends a body too.
    let mut caller = gateway.caller().await;
    assert_eq!(caller.send(chat("hi")).await.status, 200);
    assert!(timeout(Duration::from_millis(800), caller.wait_for_bytes()).await.is_err(), "it was closed");
    assert_eq!(caller.send(chat("hi")).await.status, 200);
    let body = r#"{"messages": [{"role": "user", "content": "ho"}]}"#;
    let head =
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    caller.send_raw(head.as_bytes()).await;
    assert!(timeout(Duration::from_millis(800), caller.wait_for_bytes()).await.is_err(), "it was closed");
    caller.send_raw(body.as_bytes()).await;
    assert_eq!(caller.answering("POST").await.finish().await.0.status, 200);
    assert_eq!(gateway.errors(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed() {
    let llama = llama::scripted().answers("{}").start().await;
    let gateway = gateway::before(&llama).yaml("connections: {idle: 1s}").start().await;
    let mut caller = gateway.caller().await;
    assert_eq!(caller.send(chat("hi")).await.status, 200);
    assert!(caller.is_closed().await);
    assert!(gateway.caller().await.is_closed().await, "one that never asked anything");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_ask_a_gateway_with_tls() {
    let llama = llama::scripted().start().await;
    let (folder, authority) = (Folder::new("tls-commands"), Authority::new());
    let (pair, other) = (authority.server(), authority.server());
    let (cert, key) = pair.write(&folder);
    let ca = folder.file("ca.crt", &authority.pem());
    let tls = |more: &str| format!("tls: {{cert: {}, key: {}{more}}}", cert.display(), key.display());
    let client_ca = format!(", client_ca: {}", ca.display());
    for (callers, operators) in [("", ""), (client_ca.as_str(), ""), (client_ca.as_str(), client_ca.as_str())]
    {
        let plan = gateway::before(&llama);
        let (callers_at, admin_at) = (plan.address(TLS_PORT), plan.address(TLS_PORT + 1));
        let file = format!(
            "listen: [{{address: {callers_at}, {}}}]\nadmin: {{listen: {admin_at}, token: sesame, {}}}",
            tls(callers),
            tls(operators)
        );
        let gateway = plan.yaml(&file).spawn();
        let client = authority.client("operator", &[]);
        eventually!(
            trusting(&authority).showing(&client).try_shake(admin_at).await.is_ok(),
            "{}",
            gateway.stderr()
        );
        eventually!(trusting(&authority).showing(&client).try_shake(callers_at).await.is_ok());
        let config = gateway.config();
        let ask = |name: &str| {
            let config = config.to_str().expect("temporary paths are UTF-8");
            command(&[name, "--config", config]).output().expect("the binary runs")
        };
        eventually!(ask("health").status.code() == Some(0), "{:?}", ask("health"));
        let health = ask("health");
        let said = if operators.is_empty() { r#""status":"ok""# } else { "asks for a certificate" };
        assert!(String::from_utf8_lossy(&health.stdout).contains(said), "{health:?}");
        let usage = ask("usage");
        assert_eq!(usage.status.code(), Some(i32::from(!operators.is_empty())), "{usage:?}");
        gateway.signal("KILL");
        gateway.exit().await;
        assert_eq!(ask("health").status.code(), Some(1));
    }
    // Whoever else is there is not told the token.
    let plan = gateway::before(&llama);
    let admin_at = plan.address(TLS_PORT);
    let file = format!("admin: {{listen: {admin_at}, token: sesame, {}}}", tls(""));
    let gateway = plan.yaml(&file).start().await;
    eventually!(trusting(&authority).try_shake(admin_at).await.is_ok());
    let elsewhere = Folder::new("tls-commands-elsewhere");
    let (cert, key) = other.write(&elsewhere);
    let tls = format!("tls: {{cert: {}, key: {}}}", cert.display(), key.display());
    let file = elsewhere.file(
        "gateway.yaml",
        &format!(
            "admin: {{listen: {admin_at}, token: sesame, {tls}}}\nupstreams: {{local: {}}}\n",
            llama.url()
        ),
    );
    let usage =
        command(&["usage", "--config", file.to_str().expect("UTF-8")]).output().expect("the binary runs");
    let said = String::from_utf8_lossy(&usage.stderr).into_owned();
    assert!(usage.status.code() == Some(1) && said.contains("another certificate"), "{said}");
    drop(gateway);
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_and_scrapers_have_tls_too() {
    let llama = llama::scripted().start().await;
    let (folder, authority) = (Folder::new("tls-operators"), Authority::new());
    let (cert, key) = authority.expired().write(&folder);
    let plan = gateway::before(&llama);
    let (admin_at, metrics_at) = (plan.address(TLS_PORT), plan.address(TLS_PORT + 1));
    let tls = format!("tls: {{cert: {}, key: {}}}", cert.display(), key.display());
    let gateway = plan
        .yaml(&format!("admin: {{listen: {admin_at}, {tls}}}\nmetrics: {{listen: {metrics_at}, {tls}}}"))
        .start()
        .await;
    let warning = "the certificate";
    assert_eq!(gateway.stderr().matches(warning).count(), 2, "{}", gateway.stderr());
    assert!(gateway.stderr().contains("ended at 2021-01-01"), "{}", gateway.stderr());
    let pair = authority.server();
    pair.write(&folder);
    let hand = trusting(&authority);
    eventually!(hand.try_shake(admin_at).await.is_ok() && hand.try_shake(metrics_at).await.is_ok());
    let hand = hand.speaking(&["h2", "http/1.1"]);
    for address in [admin_at, metrics_at] {
        let stream = hand.shake(address).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let page = client::Caller::over(stream).send(get("/metrics")).await.text();
        let ends = page.lines().find(|line| line.contains(r#"not_after_seconds{listener="admin"}"#));
        let ends: f64 = ends.and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("the metric");
        assert!(ends > 1_700_000_000.0, "{ends}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_a_listener_has_tls_needs_a_restart() {
    let llama = llama::scripted().start().await;
    let (folder, authority) = (Folder::new("tls-restart"), Authority::new());
    let gateway = with_tls(gateway::before(&llama), &folder, &authority.server(), "").start().await;
    let file = fs::read_to_string(gateway.config()).expect("it is there");
    let (begin, end) = (file.find(", tls:").expect("it is there"), file.find("}}]").expect("it is there"));
    fs::write(gateway.config(), format!("{}{}", &file[..begin], &file[end + 1..])).expect("the file is ours");
    let warning = "`listen[1].tls` has changed and stays as it was";
    eventually!(gateway.stderr().contains(warning), "{}", gateway.stderr());
    let mut caller = trusting(&authority).caller(gateway.at(TLS_PORT)).await;
    assert_eq!(caller.send(get("/live")).await.json(), json!({"status": "ok"}));
}

#[test]
fn keys_are_listed_with_their_certificates() {
    let folder = Folder::new("tls-list");
    let keys = "- {name: carol, client_cert: [carol, 'uri:spiffe://x/carol']}\n";
    let file = folder.file("keys.yaml", keys);
    let file = file.to_str().expect("temporary paths are UTF-8");
    let list = || String::from_utf8_lossy(&run(&["key", "list", "--file", file]).stdout).into_owned();
    assert!(list().contains("carol  cn:carol, uri:spiffe://x/carol  all"), "{}", list());
    assert!(run(&["key", "add", "--name", "dave", "--file", file]).status.success());
    assert!(list().contains("carol  cn:carol, uri:spiffe://x/carol  all"), "what stood there stays");
}
