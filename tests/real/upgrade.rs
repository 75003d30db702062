//! The gateway is replaced while a real server generates.

use std::fs;

use serde_json::json;

use crate::caller::{Reply, post};
use crate::stage::{Gateway, Llama, Model, eventually};
use crate::{CHAT, chat, with};

#[test]
fn a_stream_goes_on_while_the_gateway_is_replaced_and_the_next_request_finds_its_answer() {
    let llama = Llama::with_slots(Model::Smol, 2);
    let gateway = Gateway::under(&llama, "server: {pid_file: PID_FILE}");
    let pid_file = gateway.file().with_extension("pid");
    let serving = || fs::read_to_string(&pid_file).ok()?.trim().parse::<u32>().ok();
    let before = serving().expect("a pid file");
    let long =
        with(chat("Tell me of the sea."), json!({"max_tokens": 150, "ignore_eos": true, "stream": true}));
    let mut reply = Reply::to(gateway.at, "POST", CHAT, &long);
    reply.event().expect("the stream has begun");

    let said = gateway.upgrade(&gateway.file());
    let successor = serving().expect("a pid file");
    assert_eq!(said.trim(), format!("process {successor} serves; process {before} finishes one request"));
    let short = post(gateway.at, CHAT, &chat("Good morning!").to_string());
    assert_eq!((short.status, short.header("x-cache")), (200, "miss"), "the other slot is free");

    let mut events = 1;
    while let Some(event) = reply.event() {
        events += 1;
        assert!(!event.contains("error"), "{event}");
    }
    assert!(events > 150, "{events} events of a stream of 150 tokens");
    // The process before made the answer after it was replaced; the successor has it all the same.
    eventually("the answer is found", || post(gateway.at, CHAT, &long).header("x-cache") == "hit");
    let is_gone = |process: u32| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat"));
        stat.map_or(true, |stat| stat.contains(") Z "))
    };
    eventually("the process before has ended", || is_gone(before));
    let ended = std::process::Command::new("kill").arg(successor.to_string()).status();
    assert!(ended.expect("there is a kill").success());
    eventually("its successor too", || is_gone(successor));
}
