//! The settings the gateway runs under: everything checked, every default filled in.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use ipnet::IpNet;

use super::tls::Tls;
use crate::auth::Key;
use crate::cache::{Answers, CachePolicy};
use crate::limit::{Allowance, Budget, Rate};
use crate::observe::Collector;
use crate::route::{ModelRule, Secret, UpstreamSpec};
use crate::store::Dial;
use crate::wire::RequestRules;

#[derive(Debug, Clone)]
pub struct Settings {
    /// At least one.
    pub listen: Vec<Listener>,
    pub admin: Admin,
    /// A listener for `/metrics` alone.
    pub metrics: Option<Listener>,
    pub connections: Connections,
    /// At least one, in the file's order.
    pub upstreams: Vec<UpstreamSpec>,
    /// In the file's order. Empty: every model goes to the first upstream.
    pub models: Vec<ModelSettings>,
    /// `None`: open to everybody.
    pub keys: Option<Vec<KeySettings>>,
    /// Read again when it changes.
    pub keys_file: Option<PathBuf>,
    pub trusted_proxies: Vec<IpNet>,
    pub limits: Limits,
    pub cache: CachePolicy,
    pub body: Body,
    pub cors: Cors,
    pub answer_headers: AnswerHeaders,
    /// What replicas share. `None`: nothing.
    pub shared: Option<Shared>,
    /// The file of what each key has used. `None`: in memory alone.
    pub usage: Option<PathBuf>,
    pub log: Log,
    /// Where traces go. `None`: nowhere.
    pub telemetry: Option<Collector>,
    pub server: Server,
    /// A file in the form of `/etc/hosts` that servers' names are looked for in first.
    pub hosts: Option<PathBuf>,
}

/// Where connections come in.
#[derive(Debug, Clone)]
pub struct Listener {
    pub address: SocketAddr,
    /// `None`: plain text.
    pub tls: Option<Tls>,
}

impl Listener {
    pub fn asks_for_certificates(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.identity.clients.is_some())
    }
}

impl Settings {
    /// Every listener, with the name of the key that names it.
    pub fn listeners(&self) -> impl Iterator<Item = (String, &Listener)> {
        let callers = self.listen.iter().enumerate().map(|(index, it)| (format!("listen[{index}]"), it));
        let others = [("admin", Some(&self.admin.listen)), ("metrics", self.metrics.as_ref())];
        callers.chain(others.into_iter().filter_map(|(name, it)| Some((name.to_owned(), it?))))
    }
}

/// What a caller has time for before it has asked anything.
#[derive(Debug, Clone, Copy)]
pub struct Connections {
    /// To shake hands, by TLS or HTTP/2.
    pub handshake: Duration,
    /// To send the whole head of a request, from its first byte on.
    pub head: Duration,
    /// To begin with a request.
    pub idle: Duration,
}

impl Connections {
    /// `idle` as Pingora wants it, where 0 would be for ever.
    pub fn idle_seconds(&self) -> u64 {
        self.idle.as_secs_f64().ceil().max(1.0) as u64
    }
}

/// The operator's listener.
#[derive(Debug, Clone)]
pub struct Admin {
    pub listen: Listener,
    /// Whether the operator wrote the address. A default address that is taken is given up with a warning.
    pub named: bool,
    pub token: Option<Secret>,
}

#[derive(Debug, Clone)]
pub struct ModelSettings {
    pub rule: ModelRule,
    /// Of all callers together; one that is `None` is as in `limits.model`.
    pub limits: Allowance,
    /// Of each key with this model; one that is `None` is as in `limits.key_model`.
    pub key_limits: Allowance,
    /// What its callers may not decide.
    pub request: Option<RequestRules>,
    /// What of this model's answers is kept, where it is less than `cache.answers`.
    pub answers: Option<Answers>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct KeySettings {
    pub key: Key,
    /// Its own limits; one that is `None` is as in `limits.key`.
    pub limits: Allowance,
    /// Of each of its users; one that is `None` is as in `limits.user`.
    pub user_limits: Allowance,
    pub budgets: Vec<Budget>,
    /// Higher goes first.
    pub priority: i32,
    /// The header that tells its users apart.
    pub user_header: Option<HeaderName>,
    pub answers: Option<Answers>,
    /// Whether it stands in `keys_file`.
    pub from_keys_file: bool,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// All callers together.
    pub gateway: Allowance,
    /// Each key, unless it has its own.
    pub key: Allowance,
    /// Each user of a key that has a `user_header`, unless the key says otherwise.
    pub user: Allowance,
    /// Each model that is named in `models`, unless it has its own.
    pub model: Allowance,
    /// Each key with each of those models, unless the model says otherwise.
    pub key_model: Allowance,
    /// Each address, before authentication; approximate.
    pub ip: Option<Rate>,
}

#[derive(Debug, Clone, Copy)]
pub struct Body {
    /// One body.
    pub bytes_max: u64,
    /// All bodies held at once.
    pub bytes_total_max: u64,
    /// The longest silence of a caller who is sending a body.
    pub idle: Duration,
    /// Whether `image_url` and the like may name something the server would fetch.
    pub remote_media: bool,
}

/// What answers say of how they came about, beyond what all say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AnswerHeaders {
    /// `x-ai-gateway-server`: the server's name.
    pub server: bool,
    /// `x-ai-gateway-model`: the model that answered, as its server calls it.
    pub model: bool,
}

/// Where replicas share limits, budgets and answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    pub dial: Dial,
    /// Whether requests are refused while it is away.
    pub required: bool,
    /// What every key there begins with, in braces: who has the same shares.
    pub prefix: String,
}

/// Which origins a browser may call from.
#[derive(Debug, Clone)]
pub enum Cors {
    Any,
    /// Pages served from this machine: `http://localhost`, `http://127.0.0.1`, `http://[::1]`, any port.
    Loopback,
    Listed(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    Stdout,
    None,
    File(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

#[derive(Debug, Clone)]
pub struct Log {
    pub access: AccessLog,
    pub format: LogFormat,
    pub level: log::LevelFilter,
    /// Whether prompts and answers are written into the access log.
    pub prompts: bool,
}

/// `server` of the file.
#[derive(Debug, Clone)]
pub struct Server {
    /// 0: one a core.
    pub threads: usize,
    /// The longest that a stream may go on after SIGTERM.
    pub grace_period: Duration,
    /// How long `/ready` is 503 before the listeners close.
    pub pre_stop: Duration,
    /// Names the serving process, where it is named.
    pub pid_file: Option<PathBuf>,
    /// Where a successor is met.
    pub upgrade_sock: PathBuf,
    /// How many idle connections to servers in plain text are kept. `None`: these are Pingora's too, which is told to
    /// make them in a way of its own.
    pub idle_max: Option<usize>,
    /// Pingora's own keys (`pid_file`, `daemon`, `work_stealing` …), as YAML that `ServerConf::from_yaml` reads.
    pub pingora: String,
}

/// Whether an address is this machine's own.
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}
