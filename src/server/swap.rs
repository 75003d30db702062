//! Loads models at a router for those who wait: the steps of `route/swap.rs`, taken one after another.
//!
//! A model that makes room is unloaded by name before a request for the other is sent, so that the router never has to
//! choose which of its models goes. The other is loaded by the first request for it.

use std::time::Duration;

use http::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use pingora::Result;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::proxy::side::Connection;
use crate::route::Act;

use super::probe::Probe;

/// Steps at once; then the server's health has its turn.
const STEPS_MAX: usize = 16;

/// While somebody waits for a model, the router is asked no less often what it has loaded.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A model that was not unloaded is let be for so long.
const SPARED: Duration = Duration::from_secs(1);

/// How long it is waited for a model to go, and how often it is asked. The router itself kills one that does not go
/// after 10 s, its `--stop-timeout`.
const UNLOAD_TIME_MAX: Duration = Duration::from_secs(20);
const UNLOAD_LOOK_EVERY: Duration = Duration::from_millis(20);

/// What servers are complained of in.
const SWAP: &str = "swap";

impl Probe {
    /// Takes the steps that can be taken now. How long until there may be another, if nobody rings before. `asked`:
    /// when the server last told its models.
    pub(super) async fn swap(&self, asked: &mut Option<Instant>) -> Option<Duration> {
        let (server, clock) = (&self.server, self.current.load().clock);
        for _ in 0..STEPS_MAX {
            if !server.is_router() || !server.takes_requests() {
                return None;
            }
            let mut ruling = server.next_swap(clock.now());
            if !server.is_wanting() {
                return None;
            }
            let is_old = asked.is_none_or(|at| at.elapsed() >= LOOK_EVERY);
            if is_old || ruling.act != Act::Nothing {
                // Somebody else may have loaded or unloaded something since the last look.
                *asked = Some(Instant::now());
                if self.report().await.is_err() {
                    server.forget_report();
                    return Some(LOOK_EVERY);
                }
                ruling = server.next_swap(clock.now());
            }
            match ruling.act {
                Act::Nothing => {
                    let then = ruling.again.map_or(LOOK_EVERY, |then| then.saturating_sub(clock.now()));
                    return Some(then.min(LOOK_EVERY));
                }
                Act::Load(id) => match server.claim(&id) {
                    Some(_) => server.let_in(&id),
                    None => return Some(LOOK_EVERY),
                },
                Act::Swap { victim, id } => {
                    // If not, there is another rule now, by which the victim may stay.
                    let Some(upstream) = server.claim(&id) else { continue };
                    let name = &server.spec.name;
                    if let Err(why) = self.unload(&victim).await {
                        if server.is_news(SWAP, &why) {
                            log::warn!("server `{name}`: `{victim}` makes no room for `{id}`: {why}");
                        }
                        server.give_up(&victim, &id, clock.now() + SPARED);
                        return Some(SPARED);
                    }
                    server.is_relief(SWAP);
                    log::info!("server `{name}`: `{victim}` makes room for `{id}`");
                    self.current.load().metrics.swapped(&upstream.spec.name, name);
                    server.let_in(&id);
                }
            }
        }
        Some(LOOK_EVERY)
    }

    /// Unloads a model that works for nobody, and waits until it has gone; else says why not.
    async fn unload(&self, victim: &str) -> std::result::Result<(), String> {
        let server = &self.server;
        let told = |error: Box<pingora::Error>| error.to_string();
        if self.is_busy(victim).await.map_err(told)? {
            // Another gateway's callers, or one of this that has left and that the server has not noticed yet.
            return Err("a slot of it is at work, for no request of this gateway".to_owned());
        }
        let body = json!({"model": victim}).to_string().into();
        let (gateway, within) = (self.current.load(), server.check().timeout);
        let asked = gateway
            .side
            .ask(&gateway.trust, server, "/models/unload", Some(body), within, Connection::Fresh)
            .await;
        let (status, answer) = asked.map_err(told)?;
        let began = Instant::now();
        // That it is not running is no failure (400): somebody else was faster.
        while status.is_success() || status == StatusCode::BAD_REQUEST {
            self.report().await.map_err(told)?;
            if server.has_gone(victim) {
                return Ok(());
            }
            if status == StatusCode::BAD_REQUEST {
                break;
            }
            if began.elapsed() >= UNLOAD_TIME_MAX {
                return Err("it does not go".to_owned());
            }
            sleep(UNLOAD_LOOK_EVERY).await;
        }
        let answer: String = String::from_utf8_lossy(&answer).chars().take(200).collect();
        Err(format!("`/models/unload` answers {}: {answer}", status.as_u16()))
    }

    /// Whether a slot of it is at work, for whomever. A server that does not tell its slots is believed to be idle
    /// where the gateway knows of nothing.
    async fn is_busy(&self, model: &str) -> Result<bool> {
        let slots = self.json(&of_model("/slots", model)).await?;
        let slots = slots.as_ref().and_then(serde_json::Value::as_array);
        Ok(slots.is_some_and(|slots| slots.iter().any(|slot| slot["is_processing"] == true)))
    }

    /// Asks models that are loaded for their slots, where the router's list does not say. One that gives no answer is
    /// asked again with the next look.
    pub(super) async fn ask_slots(&self) {
        for model in self.server.unasked() {
            let Ok(props) = self.json(&of_model("/props", &model)).await else { continue };
            let slots = props.and_then(|props| props["total_slots"].as_u64()?.try_into().ok());
            self.server.set_slots_of(&model, slots);
        }
    }
}

/// Where a router tells of one of its models, without loading it for that.
fn of_model(path: &str, model: &str) -> String {
    format!("{path}?model={}&autoload=false", utf8_percent_encode(model, NON_ALPHANUMERIC))
}
