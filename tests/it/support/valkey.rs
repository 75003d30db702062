//! A real Valkey or Redis of a play's own, on an address of its own: it can be killed, started again, paused and filled.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use super::address::Loopback;

const PORT: u16 = 6379;

/// One that is still being described.
pub(crate) struct Plan {
    address: Loopback,
    file: Option<String>,
    tls: bool,
    arguments: Vec<String>,
}

pub(crate) struct Valkey {
    plan: Plan,
    child: Mutex<Option<Child>>,
}

pub(crate) fn plan() -> Plan {
    Plan { address: Loopback::claim(), file: None, tls: false, arguments: Vec::new() }
}

/// Starts it and waits until it listens.
pub(crate) async fn start() -> Valkey {
    plan().start().await
}

/// The same, with further arguments.
pub(crate) async fn with(arguments: &[&str]) -> Valkey {
    plan().arguments(arguments).start().await
}

/// A Cluster of three, which keep their files in `folder`.
pub(crate) async fn cluster(folder: &Path) -> Vec<Valkey> {
    let mut nodes = Vec::new();
    for number in 0..3 {
        let own = folder.join(number.to_string());
        std::fs::create_dir_all(&own).expect("the folder is ours");
        let plan = plan();
        // Else the others would take it for 127.0.0.1.
        let (ip, own) = (plan.address().ip().to_string(), own.display().to_string());
        let plan = plan.arguments(&["--cluster-enabled", "yes", "--cluster-announce-ip", &ip, "--dir", &own]);
        nodes.push(plan.start().await);
    }
    let made = ["valkey-cli", "redis-cli"].iter().find_map(|name| {
        let mut cli = Command::new(name);
        cli.args(["--cluster", "create"]).args(nodes.iter().map(|node| node.address().to_string()));
        cli.arg("--cluster-yes").output().ok()
    });
    assert!(made.as_ref().is_some_and(|made| made.status.success()), "{made:?}");
    eventually!(nodes.iter().all(|node| node.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok")));
    nodes
}

impl Plan {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address.port(PORT)
    }

    /// The file that it begins with, and writes.
    pub(crate) fn file(mut self, path: &str) -> Self {
        self.file = Some(path.to_owned());
        self
    }

    pub(crate) fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|it| (*it).to_owned()));
        self
    }

    /// By TLS alone.
    pub(crate) fn tls(mut self, arguments: &[&str]) -> Self {
        self.tls = true;
        self.arguments(arguments)
    }

    pub(crate) async fn start(self) -> Valkey {
        let valkey = Valkey { plan: self, child: Mutex::new(None) };
        valkey.start().await;
        valkey
    }
}

impl Valkey {
    pub(crate) fn address(&self) -> SocketAddr {
        self.plan.address()
    }

    /// As the file names it.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    pub(crate) async fn start(&self) {
        let (ip, port) = (self.address().ip().to_string(), PORT.to_string());
        let ports: &[&str] = if self.plan.tls { &["--port", "0", "--tls-port"] } else { &["--port"] };
        let installed = |name: &&str| Command::new(name).arg("--version").output().is_ok();
        let started = ["valkey-server", "redis-server"].into_iter().find(installed).and_then(|name| {
            // Its turn comes before those of the gateways and callers, as if it had a core of its own; not an error
            // where that is not allowed.
            let mut server = Command::new("nice");
            server.args(["-n", "-10", name]);
            server
                .args(&self.plan.file)
                .args(["--bind", &ip, "--bind-source-addr", &ip])
                .args(ports)
                .arg(&port);
            if self.plan.file.is_none() {
                server.args(["--save", "", "--dir", "/tmp"]);
            }
            server.args(&self.plan.arguments);
            server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
        });
        let started = started.expect("valkey-server or redis-server is installed (scripts/needs.sh)");
        *self.child.lock().expect("not poisoned") = Some(started);
        eventually!(std::net::TcpStream::connect(self.address()).is_ok());
    }

    /// With SIGKILL.
    pub(crate) fn kill(&self) {
        if let Some(mut child) = self.child.lock().expect("not poisoned").take() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// `STOP`, `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.lock().expect("not poisoned").as_ref().expect("it runs").id().to_string();
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {pid}")).status();
        assert!(sent.expect("there is a shell").success());
    }

    /// What it says to one command.
    pub(crate) fn ask(&self, command: &[&str]) -> String {
        let (ip, port) = (self.address().ip().to_string(), PORT.to_string());
        let asked = ["valkey-cli", "redis-cli"]
            .iter()
            .find_map(|name| Command::new(name).args(["-h", &ip, "-p", &port]).args(command).output().ok());
        let answer = asked.expect("valkey-cli or redis-cli is installed");
        String::from_utf8_lossy(&answer.stdout).trim().to_owned()
    }
}

impl Drop for Valkey {
    fn drop(&mut self) {
        self.kill();
    }
}
