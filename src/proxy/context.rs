//! What one request remembers between Pingora's hooks. It holds the guards: whatever a request took is given back
//! when this is dropped, however the caller leaves.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;

use crate::cache::{Dialect, Flight, Form, Gist, Key, Landing, Leader, only};
use crate::limit::{Level, Permit, Reservation, Subjects, Waited};
use crate::observe::{CacheOutcome, Trace};
use crate::route::{Fingerprint, Lease, Prompt, Resolved, Server};
use crate::wire::{BodyKind, Changes, Demand, Endpoint, Protocol, Work};

use super::bodies::BodyShare;
use super::gateway::Gateway;
use super::outlet::Outlet;
use super::quote::Quote;
use super::refusal::Refusal;
use super::roster::Member;
use super::settle;
use super::tap::Tap;
use super::timing::Timing;
use super::turned::Turned;

pub struct Context {
    pub(super) gateway: Arc<Gateway>,
    pub(super) arrival: Arrival,
    pub(super) asked: Asked,
    pub(super) told: Outcome,
    /// What goes to a server; `None` for what the gateway answers by itself.
    pub(super) job: Option<Box<Job>>,
    pub(super) route: Route,
    /// `None`: nobody is told of it.
    pub(super) trace: Option<Box<Trace>>,
    /// The answer on its way, from its header on.
    pub(super) tap: Option<Tap>,
    /// The flight that it leads, until it lands.
    pub(super) leads: Option<Leader<Refusal>>,
    /// That flight, to the end.
    pub(super) flight: Option<Arc<Flight<Refusal>>>,
    /// How its caller is given the answer.
    pub(super) outlet: Outlet,
    pub(super) guards: Guards,
}

/// What the request's head says.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) begun: Duration,
    pub(super) request_id: String,
    pub(super) trace_id: Option<String>,
    pub(super) client_ip: IpAddr,
    pub(super) method: Method,
    /// Without its query.
    pub(super) path: String,
    pub(super) protocol: Protocol,
    pub(super) origin: Option<String>,
}

/// Who asked for what, as far as it is known by now.
#[derive(Debug)]
pub(super) struct Asked {
    /// `None`: not known yet, or nobody is asked for a key.
    pub(super) caller: Option<Caller>,
    /// The limits that it is subject to, as far as they are known by now.
    pub(super) subjects: Subjects,
    pub(super) model_requested: Option<String>,
    pub(super) model: Option<String>,
    pub(super) upstream: Option<String>,
    pub(super) stream: bool,
    pub(super) cache: CacheOutcome,
    /// What `cache-status` says.
    pub(super) cache_status: &'static str,
    /// What is left of the tightest bucket of requests.
    pub(super) requests: Option<Level>,
    /// The same of tokens.
    pub(super) tokens: Option<Level>,
    /// How long it waited for what replicas share.
    pub(super) shared: Waited,
    /// Of the prompt, counted or estimated: 0 where nobody needs them.
    pub(super) prompt_tokens: u64,
    /// A look at the gateway's health, or a browser's question: written down, but no part of its work.
    pub(super) aside: bool,
    pub(super) bytes_in: u64,
}

/// Whose request it is.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) member: Arc<Member>,
    /// Within a key that tells its users apart.
    pub(super) user: Option<String>,
}

impl Asked {
    /// The name of the caller's key.
    pub(super) fn key(&self) -> Option<&str> {
        self.caller.as_ref().map(|caller| caller.member.name.as_str())
    }

    pub(super) fn user(&self) -> Option<&str> {
        self.caller.as_ref().and_then(|caller| caller.user.as_deref())
    }
}

/// What became of it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) status: u16,
    pub(super) upstream_status: Option<u16>,
    pub(super) refusal: Option<Refusal>,
    /// When the answer's first byte went out, since the request began.
    pub(super) first_byte: Option<Duration>,
    pub(super) complete: bool,
    pub(super) bytes_out: u64,
    /// The caller left before the end.
    pub(super) left: bool,
    /// The server's own answer says that it failed.
    pub(super) failed: bool,
    /// What is said, where that is written.
    pub(super) quote: Option<Box<Quote>>,
    /// The metrics have it already.
    pub(super) counted: bool,
    /// The access log has it already.
    pub(super) written: bool,
}

/// A request as it goes to a server.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) endpoint: &'static Endpoint,
    pub(super) body: Bytes,
    /// As its caller sent it, where a fallback may need it.
    pub(super) original: Option<Bytes>,
    pub(super) resolved: Resolved,
    /// The stream tells its usage to the gateway alone.
    pub(super) unasked: bool,
    /// Its body says that nothing is to be found in the KV cache.
    pub(super) apart: bool,
    /// How a plain answer is made of a stream, if it is.
    pub(super) turned: Option<Box<Turned>>,
    /// Where it goes on to if its servers cannot answer, in this order.
    pub(super) fallbacks: VecDeque<Resolved>,
    /// The model that was asked for, once a fallback is to answer.
    pub(super) asked_for: Option<Box<Resolved>>,
    /// How its answer is kept, if it is.
    pub(super) keep: Option<Keep>,
    /// What a look-up needs to know of its body, where that is as its caller sent it.
    pub(super) gist: Option<Box<Gist>>,
    /// What it may cost.
    pub(super) demand: Demand,
    /// How its prompt begins, where that matters.
    pub(super) prompt: Prompt,
}

impl Job {
    /// The model that was asked for.
    pub(super) fn requested(&self) -> &Resolved {
        self.asked_for.as_deref().unwrap_or(&self.resolved)
    }
}

/// Where an answer is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keep {
    pub(super) key: Key,
    /// In which it is asked for.
    pub(super) form: Form,
    /// In which the server makes it.
    pub(super) made: Form,
    pub(super) dialect: Option<Dialect>,
    /// What the servers reported of the model when the request came: an answer of another model is not kept.
    pub(super) fingerprint: [u8; 32],
}

impl Keep {
    /// The same, for this form alone.
    pub(super) fn only(self) -> Self {
        Self { key: only(&self.key, self.form), made: self.form, ..self }
    }
}

/// Its tries at servers.
#[derive(Debug, Default)]
pub(super) struct Route {
    pub(super) lease: Option<Lease>,
    /// When it was given its slot, and how long it had waited for it.
    pub(super) leased_at: Duration,
    pub(super) queued: Duration,
    /// Blocks of the prompt that its server was thought to hold.
    pub(super) thought: usize,
    pub(super) tried: Vec<Arc<Server>>,
    /// Where this try connects to.
    pub(super) address: Option<SocketAddr>,
    /// Addresses of this try's server that could not be connected to, and whether the next one is tried.
    pub(super) addresses_failed: usize,
    pub(super) next_address: bool,
    pub(super) attempts: u32,
    /// Those of them at the present upstream.
    pub(super) tries: u32,
    /// Tries that were sent there and broke off without an answer.
    pub(super) broken: u32,
    /// Servers that have this request on their account as a fault: one fault a request.
    pub(super) blamed: Vec<Arc<Server>>,
    /// Once somebody wanted to know it.
    pub(super) fingerprint: Option<Fingerprint>,
    /// What the model that was asked for met, once a fallback is asked.
    pub(super) missed: Option<Missed>,
    /// What the last try met.
    pub(super) met: Option<Refusal>,
    /// Why there is no further try: the answer that the caller gets.
    pub(super) failure: Option<Refusal>,
    pub(super) timing: Timing,
}

/// Why the model that was asked for did not answer, and how it is called.
#[derive(Debug)]
pub(super) struct Missed {
    pub(super) refusal: Refusal,
    pub(super) model: Option<String>,
    pub(super) upstream: Option<String>,
}

/// What must be given back.
#[derive(Debug, Default)]
pub(super) struct Guards {
    /// A caller that leaves gives it back, though its answer may go on for others.
    pub(super) permit: Option<Permit>,
    pub(super) body: Option<BodyShare>,
    pub(super) reservation: Option<Reservation>,
    pub(super) in_flight: Option<InFlight>,
    pub(super) follows: Option<InFlight>,
}

/// Counts a request in a gauge while it lasts.
#[derive(Debug)]
pub(super) struct InFlight(prometheus::IntGauge);

impl InFlight {
    pub(super) fn new(gauge: &prometheus::IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Context {
    pub(super) fn new(gateway: Arc<Gateway>) -> Self {
        let begun = gateway.clock.now();
        Self {
            gateway,
            arrival: Arrival {
                begun,
                request_id: String::new(),
                trace_id: None,
                client_ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                method: Method::GET,
                path: String::new(),
                protocol: Protocol::OpenAi,
                origin: None,
            },
            asked: Asked {
                caller: None,
                subjects: Subjects::default(),
                model_requested: None,
                model: None,
                upstream: None,
                stream: false,
                cache: CacheOutcome::Bypass,
                cache_status: "ai-gateway; fwd=bypass",
                requests: None,
                tokens: None,
                shared: Waited::default(),
                prompt_tokens: 0,
                aside: false,
                bytes_in: 0,
            },
            told: Outcome::default(),
            job: None,
            route: Route::default(),
            trace: None,
            tap: None,
            leads: None,
            flight: None,
            outlet: Outlet::default(),
            guards: Guards::default(),
        }
    }

    /// Where its server may hold prompts of other keys, the request finds none there.
    pub(super) fn keep_apart(&mut self) {
        let (Some(job), Some(lease)) = (&mut self.job, &self.route.lease) else { return };
        if lease.reuses || job.apart || job.endpoint.work != Work::Generate {
            return;
        }
        // llama-server drops the member on the one (b11549), and the other's fields are all texts.
        if job.endpoint.protocol == Protocol::Anthropic || job.endpoint.body == BodyKind::Multipart {
            self.route.failure = Some(Refusal::InvalidRequest {
                message:
                    "keys are kept apart here (`isolation: key`), and llama-server has no way to keep them \
                          apart on this endpoint where it serves several; use /v1/chat/completions"
                        .to_owned(),
                param: None,
            });
            return;
        }
        let mut changes = Changes::default();
        changes.set("cache_prompt", false);
        if let Some(body) = changes.made_to(&job.body) {
            job.body = body.into();
            job.apart = true;
        }
    }

    /// Says how the flight that this request leads has ended. Keep the answer before, if it is to be kept.
    pub(super) fn land(&mut self, landing: Landing<Refusal>) {
        if let Some(leader) = self.leads.take() {
            leader.land(landing);
        }
    }

    /// The server that was asked last.
    pub(super) fn server(&self) -> Option<&Server> {
        self.route.tried.last().filter(|_| self.route.attempts > 0).map(AsRef::as_ref)
    }

    /// Takes in that the whole answer goes out to its caller, if that is still there.
    pub(super) fn complete(&mut self) {
        self.told.complete |= !self.is_hidden();
    }

    /// Whether the caller left before its answer was whole.
    pub(super) fn has_left(&self) -> bool {
        !self.told.complete && (self.told.left || self.is_hidden())
    }

    /// Whether it is a stream whose end mark has passed.
    pub(super) fn is_whole(&self) -> bool {
        self.tap.as_ref().is_some_and(Tap::is_whole)
    }

    /// Whether the answer goes on for others alone.
    fn is_hidden(&self) -> bool {
        self.flight.as_ref().is_some_and(|flight| flight.leader_is_gone())
    }

    /// Gives back what the request holds of servers and limits, as soon as its answer has ended.
    pub(super) fn release(&mut self) {
        self.release_at(self.gateway.clock.now());
    }

    /// The same where it is known what time it is.
    pub(super) fn release_at(&mut self, now: Duration) {
        if let (Some(_), Some(job)) = (&self.route.lease, &self.job)
            && job.endpoint.takes_slot()
        {
            let held = now.saturating_sub(self.route.leased_at);
            job.resolved.upstream.note_held(held);
        }
        self.trace_try_ended(None);
        self.route.lease = None;
        self.guards.permit = None;
        self.guards.body = None;
    }
}

/// Nobody comes to `logging` where a request is dropped: at the end of the grace period, or when the caller closes its
/// connection at the wrong moment. Such a request has its line all the same.
impl Drop for Context {
    fn drop(&mut self) {
        if !self.told.written && !self.arrival.request_id.is_empty() {
            let gateway = Arc::clone(&self.gateway);
            settle::count(&gateway, self);
            settle::write(&gateway, self);
        }
    }
}
