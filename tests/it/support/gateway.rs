//! The real binary as a child process, on an address of its own, with a file of its own.
//!
//! It is a process because Pingora's server owns the process: runtimes, signals, exit codes. It counts as started
//! when `/live` answers, not when a log line appears. Dropping it sends SIGTERM, and SIGKILL to one that stays.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::address::Loopback;
use super::client::{self, Answer, Caller, Request, get, post};
use super::eventually::{PATIENCE, PAUSE};
use super::llama::Llama;
use super::log::Line;
use super::scrape::Scrape;

pub(crate) const PORT: u16 = 9001;
pub(crate) const ADMIN_PORT: u16 = 9002;
/// Servers are asked for their health so often that a play does not wait long.
pub(crate) const HEALTH: &str = "health: {every: 50ms, timeout: 2s, down_after: 2, up_after: 1}";
pub(crate) const UNPROBED: &str = "health: {every: 1h}";

/// The binary under test.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("AI_GATEWAY_BIN").map_or_else(|| env!("CARGO_BIN_EXE_ai-gateway").into(), PathBuf::from)
}

/// The binary with an environment of nothing but what a play says.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end, as `ai-gateway check FILE`.
pub(crate) fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the binary runs")
}

/// A folder that is removed with its content.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ai-gateway-it-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary folder is writable");
        Self(path)
    }

    /// The same, for the owner's eyes alone.
    pub(crate) fn private(&self, name: &str, content: &str) -> PathBuf {
        let path = self.file(name, content);
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, mode).expect("the file is ours");
        path
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file of it.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).expect("the folder is ours");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A gateway that is still being described.
pub(crate) struct Plan {
    address: Loopback,
    servers: Vec<String>,
    upstream: String,
    yaml: Option<String>,
    environment: Vec<(String, String)>,
    before: Option<&'static str>,
    hosts: Option<String>,
}

/// With a file: the servers as one upstream, an admin listener, and what `yaml` adds. No limits.
pub(crate) fn before(llama: &Llama) -> Plan {
    before_urls(&[&llama.url()])
}

pub(crate) fn before_urls(urls: &[&str]) -> Plan {
    let servers = urls.iter().map(|url| (*url).to_owned()).collect();
    let upstream = HEALTH.to_owned();
    let (address, yaml) = (Loopback::claim(), Some(String::new()));
    Plan { address, servers, upstream, yaml, environment: Vec::new(), before: None, hosts: None }
}

/// Without a file: `LLM_URL`, `GATEWAY_HOST` and `GATEWAY_PORT`, and every default.
pub(crate) fn bare(llm_url: &str) -> Plan {
    let plan = Plan { yaml: None, ..before_urls(&[]) };
    let host = plan.address.ip().to_string();
    plan.env("LLM_URL", llm_url).env("GATEWAY_HOST", &host).env("GATEWAY_PORT", &PORT.to_string())
}

impl Plan {
    /// An address that its callers may find it at too.
    pub(crate) fn address(&self, port: u16) -> SocketAddr {
        self.address.port(port)
    }

    /// Adds top-level sections to the file; one that is named here replaces the one of the plan.
    pub(crate) fn yaml(mut self, sections: &str) -> Self {
        let yaml = self.yaml.as_mut().expect("a bare gateway has no file");
        yaml.push_str(sections);
        yaml.push('\n');
        self
    }

    /// What else the upstream says, as `timeouts: {…}`. Its servers are then not probed unless this says so.
    pub(crate) fn upstream(mut self, settings: &str) -> Self {
        self.upstream = if settings.contains("health:") {
            settings.to_owned()
        } else {
            format!("{UNPROBED}, {settings}")
        };
        self
    }

    /// A server that does not answer is then found out by a request, not by a probe.
    pub(crate) fn unprobed(mut self) -> Self {
        self.upstream = UNPROBED.to_owned();
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What names resolve to; `Gateway::hosts` changes it.
    pub(crate) fn hosts(mut self, lines: &str) -> Self {
        self.hosts = Some(lines.to_owned());
        self.env("GATEWAY_HOSTS_FILE", "hosts")
    }

    /// What a shell does before it becomes the gateway.
    pub(crate) fn after(mut self, before: &'static str) -> Self {
        self.before = Some(before);
        self
    }

    /// The file as it will be written.
    pub(crate) fn file(&self) -> String {
        let own = self.yaml.clone().unwrap_or_default();
        let names = |section: &str| own.lines().any(|line| line.starts_with(section));
        let mut file = String::new();
        if !names("listen:") {
            file += &format!("listen: [{{address: {}}}]\n", self.address.port(PORT));
        }
        if !names("admin:") {
            file += &format!("admin: {{listen: {}}}\n", self.address.port(ADMIN_PORT));
        }
        if !names("upstreams:") {
            let servers: Vec<String> = self.servers.iter().map(|url| format!("{{url: {url}}}")).collect();
            file +=
                &format!("upstreams: {{local: {{servers: [{}], {}}}}}\n", servers.join(", "), self.upstream);
        }
        file + &own
    }

    pub(crate) async fn start(self) -> Gateway {
        let has_operators = self.yaml.is_some() && self.file().contains(&format!(":{ADMIN_PORT}}}"));
        let gateway = self.spawn();
        let given_up = Instant::now() + PATIENCE;
        while !gateway.answers("/live").await {
            if let Some(status) = gateway.exited() {
                panic!("the gateway ended at once, {status}:\n{}", gateway.stderr());
            }
            assert!(Instant::now() < given_up, "the gateway is not live:\n{}", gateway.stderr());
            tokio::time::sleep(PAUSE).await;
        }
        // Its two listeners open one after the other.
        eventually!(!has_operators || client::try_connect(gateway.admin_address()).await.is_some());
        gateway
    }

    /// Starts the process and does not wait for it to listen.
    pub(crate) fn spawn(self) -> Gateway {
        let folder = Folder::new(&self.address.ip().to_string());
        let _ = self.hosts.as_ref().map(|lines| folder.file("hosts", lines));
        let mut command = match self.yaml {
            None => command(&[]),
            Some(_) => {
                let file = folder.file("gateway.yaml", &self.file());
                command(&["run", "--config", file.to_str().expect("temporary paths are UTF-8")])
            }
        };
        if let Some(before) = self.before {
            let gateway = command;
            command = Command::new("sh");
            command.args(["-c", &format!("{before}; exec \"$0\" \"$@\"")]).arg(gateway.get_program());
            command.args(gateway.get_args()).env_clear();
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        command.envs(self.environment).current_dir(&folder.0);
        let mut child = command.spawn().expect("the binary runs");
        let stdout = listen_to(child.stdout.take().expect("stdout is a pipe"));
        let stderr = listen_to(child.stderr.take().expect("stderr is a pipe"));
        Gateway { address: self.address, folder, child: Mutex::new(child), stdout, stderr }
    }
}

type Lines = Arc<Mutex<Vec<String>>>;

/// Reads a pipe to its end, on a thread of its own, so that the child never blocks on it.
fn listen_to(pipe: impl Read + Send + 'static) -> Lines {
    let lines = Lines::default();
    let heard = Arc::clone(&lines);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            heard.lock().expect("not poisoned").push(line.unwrap_or_default());
        }
    });
    lines
}

/// A running gateway.
pub(crate) struct Gateway {
    address: Loopback,
    folder: Folder,
    child: Mutex<Child>,
    stdout: Lines,
    stderr: Lines,
}

impl Gateway {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address.port(PORT)
    }

    /// Another address of its own.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        self.address.port(port)
    }

    pub(crate) fn admin_address(&self) -> SocketAddr {
        self.address.port(ADMIN_PORT)
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.0.join("gateway.yaml")
    }

    /// From now on, names resolve to this.
    pub(crate) fn hosts(&self, lines: &str) {
        self.folder.file("hosts", lines);
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// A caller with a connection of its own.
    pub(crate) async fn caller(&self) -> Caller {
        client::connect(self.address()).await
    }

    /// One request on a connection of its own.
    pub(crate) async fn send(&self, request: Request) -> Answer {
        self.caller().await.send(request).await
    }

    /// A chat, plain.
    pub(crate) async fn chat(&self, text: &str) -> Answer {
        self.send(chat(text)).await
    }

    /// All of them at once, each on a connection that is open already.
    pub(crate) async fn volley(&self, requests: impl IntoIterator<Item = Request>) -> Vec<Answer> {
        let mut callers = Vec::new();
        for request in requests {
            callers.push((self.caller().await, request));
        }
        let calls =
            callers.into_iter().map(|(mut caller, request)| async move { caller.send(request).await });
        let calls: Vec<_> = calls.map(tokio::spawn).collect();
        let mut answers = Vec::new();
        for call in calls {
            answers.push(call.await.expect("a call does not panic"));
        }
        answers
    }

    /// A request to the operator's listener.
    pub(crate) async fn admin(&self, request: Request) -> Answer {
        client::connect(self.admin_address()).await.send(request).await
    }

    pub(crate) async fn scrape(&self) -> Scrape {
        Scrape::new(self.admin(get("/metrics")).await.text())
    }

    /// `/stats`, as callers see it.
    pub(crate) async fn stats(&self) -> Value {
        self.send(get("/stats")).await.json()
    }

    async fn answers(&self, path: &str) -> bool {
        let Some(mut caller) = client::try_connect(self.address()).await else { return false };
        caller.is_told_200(&get(path)).await
    }

    /// What it has written to the access log so far.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let lines = self.stdout.lock().expect("not poisoned");
        lines.iter().map(|line| Line::parse(line)).collect()
    }

    /// The access log's line of the request with this id; it is out soon after the answer.
    pub(crate) async fn line_of(&self, request_id: &str) -> Line {
        let find = || self.lines().into_iter().find(|line| line.text("request_id") == request_id);
        eventually!(find().is_some(), "no line for {request_id} in {:?}", self.stdout());
        find().expect("just seen")
    }

    /// The only line of the access log for this path.
    pub(crate) async fn line_for(&self, path: &str) -> Line {
        let find = || self.lines().into_iter().find(|line| line.text("path") == path);
        eventually!(find().is_some(), "no line for {path} in {:?}", self.stdout());
        find().expect("just seen")
    }

    pub(crate) fn stdout(&self) -> String {
        self.stdout.lock().expect("not poisoned").join("\n")
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().expect("not poisoned").join("\n")
    }

    /// What it has written of errors. Pingora writes one where two threads want the same connection to a server.
    pub(crate) fn errors(&self) -> Vec<String> {
        let lines = self.stderr.lock().expect("not poisoned");
        let is_error = |line: &&String| line.contains("ERROR") || line.contains("panicked");
        let ours = |line: &&String| !line.contains("failed to acquire reusable stream");
        lines.iter().filter(is_error).filter(ours).cloned().collect()
    }

    /// How it ended, if it has.
    pub(crate) fn exited(&self) -> Option<ExitStatus> {
        self.child.lock().expect("not poisoned").try_wait().expect("the child is ours")
    }

    /// Waits for its end.
    pub(crate) async fn exit(&self) -> ExitStatus {
        eventually!(self.exited().is_some(), "the gateway goes on:\n{}", self.stderr());
        // The thread that listens ends with what there is to hear; where a daemon goes on, that is later.
        let heard = async { eventually!(Arc::strong_count(&self.stderr) == 1) };
        let _ = tokio::time::timeout(Duration::from_secs(1), heard).await;
        self.exited().expect("just seen")
    }

    /// The process.
    pub(crate) fn id(&self) -> u32 {
        self.child.lock().expect("not poisoned").id()
    }

    /// What the process has in memory.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.bytes_of("VmRSS:")
    }

    /// The most that it ever had.
    pub(crate) fn resident_bytes_max(&self) -> u64 {
        self.bytes_of("VmHWM:")
    }

    fn bytes_of(&self, what: &str) -> u64 {
        let id = self.id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("the gateway runs");
        let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("Linux says so");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib << 10
    }

    /// The process that serves, by `server: {pid_file: gateway.pid}`.
    pub(crate) fn serving(&self) -> Option<u32> {
        std::fs::read_to_string(self.folder.0.join("gateway.pid")).ok()?.trim().parse().ok()
    }

    /// Runs `ai-gateway upgrade` to its end.
    pub(crate) async fn upgrade(&self) -> Output {
        let mut command = command(&["upgrade", "--config", "gateway.yaml"]);
        command.current_dir(&self.folder.0);
        let run = tokio::task::spawn_blocking(move || command.output());
        run.await.expect("it does not panic").expect("the binary runs")
    }

    /// Replaces the gateway; gives the process that served before.
    pub(crate) async fn upgraded(&self) -> u32 {
        let before = self.serving().expect("a pid file");
        let output = self.upgrade().await;
        assert!(output.status.success(), "{output:?}\n{}", self.stderr());
        assert_ne!(self.serving(), Some(before), "{output:?}");
        before
    }

    /// Sends a signal by its name, such as `TERM`, to the process that serves.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.serving().unwrap_or(self.id());
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {id}")).status();
        assert!(sent.expect("there is a shell").success(), "the gateway is gone");
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the gateway's stderr\n{}\n--- its stdout\n{}", self.stderr(), self.stdout());
        }
        let successor = self.serving().filter(|serving| *serving != self.id());
        if let Some(successor) = successor {
            // It is nobody's child.
            drop(Command::new("sh").arg("-c").arg(format!("kill -KILL {successor}")).status());
        }
        if self.exited().is_some() {
            return;
        }
        drop(Command::new("sh").arg("-c").arg(format!("kill -TERM {}", self.id())).status());
        let given_up = Instant::now() + Duration::from_secs(1);
        while self.exited().is_none() && Instant::now() < given_up {
            std::thread::sleep(PAUSE);
        }
        let mut child = self.child.lock().expect("not poisoned");
        drop(child.kill());
        drop(child.wait());
    }
}

/// A chat with one message.
pub(crate) fn chat(text: &str) -> Request {
    post("/v1/chat/completions")
        .json(&json!({"model": "tiny", "messages": [{"role": "user", "content": text}]}))
}

/// The same, streamed.
pub(crate) fn chat_stream(text: &str) -> Request {
    let messages = json!([{"role": "user", "content": text}]);
    post("/v1/chat/completions").json(&json!({"model": "tiny", "stream": true, "messages": messages}))
}
