//! The ways to Valkey: by TLS and as a user of its ACL, through a network that parts, in a Cluster of three, and to
//! whichever server the Sentinels name.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::client::Answer;
use crate::support::gateway::{self, Folder, Gateway, chat};
use crate::support::llama::{self, Llama};
use crate::support::tls::Authority;
use crate::support::{valkey, wire};

const LIMITS: &str = "limits: {gateway: {requests: 1/h, burst: 10}}";

async fn behind(llama: &Llama, shared: &str) -> Gateway {
    gateway::before(llama).yaml(&format!("shared: {{{shared}}}\n{LIMITS}")).start().await
}

async fn is_up(gateway: &Gateway) -> bool {
    gateway.scrape().await.sum("ai_gateway_shared_up", &[]) == 1.0
}

/// Of twenty that ask each of two, how many pass.
async fn passed(one: &Gateway, other: &Gateway) -> usize {
    let asked = |name: &str| (0..20).map(|number| chat(&format!("{name} {number}"))).collect::<Vec<_>>();
    let (first, second) = tokio::join!(one.volley(asked("one")), other.volley(asked("other")));
    let is_well = |answer: &&Answer| answer.status == 200;
    first.iter().filter(is_well).count() + second.iter().filter(is_well).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn by_tls_as_a_user_of_its_acl() {
    let (llama, folder, authority) =
        (llama::scripted().start().await, Folder::new("valkey-tls"), Authority::new());
    let plan = valkey::plan();
    let (cert, key) = authority.at(plan.address().ip()).write(&folder);
    let ca = folder.file("ca.crt", &authority.pem());
    let text = |path: &std::path::Path| path.display().to_string();
    let (cert, key, root) = (text(&cert), text(&key), text(&ca));
    let valkey = plan
        .tls(&["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &root])
        .arguments(&["--tls-auth-clients", "no"])
        .arguments(&["--user", "default", "off", "--user", "gw", "on", ">p@ss"])
        .arguments(&["~{ai-gateway*", "+@all", "-@admin"])
        .start()
        .await;
    let address = valkey.address();
    let shared = format!("valkey: \"rediss://gw:p%40ss@{address}\", ca: {root}");
    let (one, other) = (behind(&llama, &shared).await, behind(&llama, &shared).await);
    eventually!(is_up(&one).await && is_up(&other).await, "{}", one.stderr());
    assert_eq!(passed(&one, &other).await, 10);
    let wrong = behind(&llama, &format!("valkey: \"rediss://gw:wrong@{address}\", ca: {root}")).await;
    eventually!(wrong.stderr().contains("is away"));
    assert!(!wrong.stderr().contains("gw:wrong"), "{}", wrong.stderr());
    let strange = behind(&llama, &format!("valkey: \"rediss://gw:p%40ss@{address}\"")).await;
    eventually!(strange.stderr().contains("is away"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_parts_holds_nobody_up_and_heals() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let wire = wire::to(valkey.address()).await;
    let gateway = behind(&llama, &format!("valkey: \"redis://{}\"", wire.address())).await;
    assert_eq!(gateway.chat("before").await.status, 200);
    wire.cut();
    let began = Instant::now();
    eventually!(!is_up(&gateway).await);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let began = Instant::now();
    assert_eq!(gateway.chat("meanwhile").await.status, 200);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    wire.join();
    let began = Instant::now();
    eventually!(is_up(&gateway).await);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_of_three() {
    let (llama, folder) = (llama::scripted().start().await, Folder::new("valkey-cluster"));
    let nodes = valkey::cluster(folder.path()).await;
    let addresses: Vec<_> = nodes.iter().map(|node| node.address().to_string()).collect();
    let shared = format!("valkey: \"redis-cluster://{}\"", addresses.join(","));
    let (one, other) = (behind(&llama, &shared).await, behind(&llama, &shared).await);
    eventually!(is_up(&one).await && is_up(&other).await, "{}", one.stderr());
    assert_eq!(passed(&one, &other).await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_server_the_sentinels_name() {
    let (llama, folder) = (llama::scripted().start().await, Folder::new("valkey-sentinel"));
    let primary = valkey::start().await;
    let plan = valkey::plan();
    let (ip, port) = (primary.address().ip(), primary.address().port());
    let file = format!("sentinel monitor main {ip} {port} 1\ndir {}\n", folder.path().display());
    let file = folder.file("sentinel.conf", &file).display().to_string();
    let sentinel = plan.file(&file).arguments(&["--sentinel"]).start().await;
    let shared = format!("valkey: \"redis-sentinel://{}/main\"", sentinel.address());
    let (one, other) = (behind(&llama, &shared).await, behind(&llama, &shared).await);
    eventually!(is_up(&one).await && is_up(&other).await, "{}", one.stderr());
    assert_eq!(passed(&one, &other).await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_new_primary_once_the_old_one_is_dead() {
    let (llama, folder) = (llama::scripted().start().await, Folder::new("valkey-failover"));
    // To a server, its own address is the only loopback one.
    let open = ["--protected-mode", "no"];
    let primary = valkey::with(&open).await;
    let (ip, port) = (primary.address().ip().to_string(), primary.address().port().to_string());
    let plan = valkey::plan().arguments(&open).arguments(&["--repl-diskless-sync-delay", "0"]);
    let replica = plan.arguments(&["--replicaof", &ip, &port]).start().await;
    eventually!(replica.ask(&["INFO", "replication"]).contains("master_link_status:up"));
    let file = format!(
        "sentinel monitor main {ip} {port} 1\nsentinel down-after-milliseconds main 500\n\
         sentinel failover-timeout main 3000\ndir {}\n",
        folder.path().display()
    );
    let file = folder.file("sentinel.conf", &file).display().to_string();
    let sentinel = valkey::plan().file(&file).arguments(&["--sentinel"]).arguments(&open).start().await;
    let new = replica.address().ip().to_string();
    eventually!(within Duration::from_secs(30); sentinel.ask(&["SENTINEL", "replicas", "main"]).contains(&new));
    let shared = format!("valkey: \"redis-sentinel://{}/main\", required: true", sentinel.address());
    let (one, other) = (behind(&llama, &shared).await, behind(&llama, &shared).await);
    eventually!(is_up(&one).await && is_up(&other).await, "{}", one.stderr());
    for number in 0..4 {
        assert_eq!(one.chat(&format!("before {number}")).await.status, 200);
    }
    assert_eq!(primary.ask(&["WAIT", "1", "5000"]), "1", "the replica has it all");
    primary.kill();
    eventually!(!is_up(&one).await && !is_up(&other).await);
    // Sentinel takes its time; the gateways follow by themselves.
    let named = || sentinel.ask(&["SENTINEL", "get-master-addr-by-name", "main"]);
    eventually!(within Duration::from_secs(60); named().contains(&new));
    let began = Instant::now();
    eventually!(within Duration::from_secs(30); is_up(&one).await && is_up(&other).await);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(passed(&one, &other).await, 6, "four of ten are gone there too");
    assert!(replica.ask(&["INFO", "replication"]).contains("role:master"));
}
