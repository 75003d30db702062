//! The stage: llama-server and the gateway as child processes, each on an address of its own, gone when dropped.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::caller;

/// Loading SmolLM2 on a busy machine is the longest that anything here waits for.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// What the server serves.
#[derive(Clone, Copy)]
pub(crate) enum Model {
    /// Says one sentence over and over (tiny_gguf.py); thousands of tokens a second.
    Tiny,
    /// The same, but stops after the sentence.
    Ends,
    /// SmolLM2-135M-Instruct, a real chat model; tens of tokens a second.
    Smol,
}

impl Model {
    fn file(self) -> &'static Path {
        static TINY: OnceLock<PathBuf> = OnceLock::new();
        static ENDS: OnceLock<PathBuf> = OnceLock::new();
        static SMOL: OnceLock<PathBuf> = OnceLock::new();
        match self {
            Model::Tiny => TINY.get_or_init(|| written("tiny.gguf", &[])),
            Model::Ends => ENDS.get_or_init(|| written("ends.gguf", &["--ends"])),
            Model::Smol => SMOL.get_or_init(|| prepared("LLAMA_MODEL")),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Model::Tiny => "tiny",
            Model::Ends => "ends",
            Model::Smol => "smollm2",
        }
    }
}

/// A file that `make test` has put there and named in the environment.
fn prepared(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).map(PathBuf::from).unwrap_or_else(|| {
        panic!("{variable} is not set: run `make test`, which installs a real llama-server and a model for these tests")
    });
    assert!(path.exists(), "{variable} names {}, which does not exist: run `make test`", path.display());
    path
}

fn python() -> Command {
    Command::new(prepared("LLAMA_PYTHON"))
}

fn written(name: &str, options: &[&str]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let maker = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/real/tiny_gguf.py");
    let status = python().arg(maker).arg(&path).args(options).status().expect("the venv's python starts");
    assert!(status.success(), "tiny_gguf.py failed: {status}");
    path
}

/// An address that no other test has, also none of another process: Linux answers on all of 127.0.0.0/8.
fn own_address(port: u16) -> SocketAddr {
    static COUNT: AtomicU8 = AtomicU8::new(1);
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    let host = Ipv4Addr::new(127, 64 | (high & 0x3f), low, COUNT.fetch_add(1, Ordering::Relaxed));
    SocketAddr::new(IpAddr::V4(host), port)
}

/// A child process with its log in a file, killed when dropped; a failing test shows the end of the log.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(mut command: Command, at: SocketAddr) -> Process {
        let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("real-{at}.log").replace(':', "-"));
        let file = File::create(&log).expect("the log can be written");
        let errors = file.try_clone().expect("a file can be shared");
        let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn();
        Process { child: child.unwrap_or_else(|fault| panic!("{command:?} did not start: {fault}")), log }
    }

    fn kill(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("a child can be killed and waited for");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(12).collect();
            eprintln!("the end of {}:", self.log.display());
            last.iter().rev().for_each(|line| eprintln!("    {line}"));
        } else {
            // Kept only where it explains something.
            let _ = fs::remove_file(&self.log);
        }
    }
}

/// A real llama-server with one slot, unless more are asked for, and one thread.
pub(crate) struct Llama {
    pub(crate) at: SocketAddr,
    model: Model,
    slots: u8,
    process: Option<Process>,
}

impl Llama {
    /// One whose address is known and which does not run yet.
    pub(crate) fn late(model: Model) -> Llama {
        Llama { at: own_address(18080), model, slots: 1, process: None }
    }

    pub(crate) fn start(model: Model) -> Llama {
        let mut llama = Llama::late(model);
        llama.begin();
        llama
    }

    pub(crate) fn with_slots(model: Model, slots: u8) -> Llama {
        let mut llama = Llama { slots, ..Llama::late(model) };
        llama.begin();
        llama
    }

    /// Starts it, or starts it again, and waits until it has loaded its model.
    pub(crate) fn begin(&mut self) {
        let launcher = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/llama-server.py");
        let mut command = python();
        command.arg(launcher).arg(self.model.file()).arg(self.at.port().to_string());
        command.args(["--host", &self.at.ip().to_string(), "--alias", self.model.name()]);
        command.args(["--threads", "1", "--parallel", &self.slots.to_string(), "--embeddings"]);
        self.process = Some(Process::start(command, self.at));
        eventually("llama-server is ready", || caller::status_of(self.at, "/health") == Some(200));
    }

    /// SIGKILL: its sockets close, nobody says goodbye.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// How many of its slots are at work on a request.
    pub(crate) fn slots_busy(&self) -> usize {
        let slots = caller::get(self.at, "/slots").json();
        slots.as_array().map_or(0, |slots| slots.iter().filter(|slot| slot["is_processing"] == true).count())
    }

    /// Whether its one slot is at work on a request.
    pub(crate) fn busy(&self) -> bool {
        caller::get(self.at, "/slots").json()[0]["is_processing"] == true
    }
}

/// The gateway, configured by nothing but `LLM_URL` and its address.
pub(crate) struct Gateway {
    pub(crate) at: SocketAddr,
    _process: Process,
}

impl Gateway {
    /// One before this server, and healthy.
    pub(crate) fn before(llama: &Llama) -> Gateway {
        let gateway = Gateway::before_a_late(llama);
        eventually("the gateway is healthy", || caller::status_of(gateway.at, "/health") == Some(200));
        gateway
    }

    /// One under a file that says this beside its listeners and its server.
    pub(crate) fn under(llama: &Llama, yaml: &str) -> Gateway {
        Gateway::of(&format!("upstreams: {{local: \"http://{}\"}}\n{yaml}", llama.at))
    }

    /// One under a file that says this beside its listeners.
    pub(crate) fn of(yaml: &str) -> Gateway {
        let at = own_address(19001);
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("real-{}.yaml", at.ip()));
        let yaml = &yaml.replace("PID_FILE", &file.with_extension("pid").display().to_string());
        let listeners =
            format!("listen: [{{address: \"{at}\"}}]\nadmin: {{listen: \"{}:19002\"}}\n", at.ip());
        fs::write(&file, listeners + yaml).expect("the file can be written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_ai-gateway"));
        command.arg("run").arg("--config").arg(&file);
        let gateway = Gateway { at, _process: Process::start(command, at) };
        eventually("the gateway is healthy", || caller::status_of(at, "/health") == Some(200));
        gateway
    }

    /// Replaces it, by `server: {pid_file: …}` of its file; gives what the command prints.
    pub(crate) fn upgrade(&self, file: &Path) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ai-gateway"));
        let done = command.arg("upgrade").arg("--config").arg(file).output().expect("the binary runs");
        let said =
            String::from_utf8_lossy(&done.stderr).into_owned() + &String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{said}");
        said
    }

    /// The file that [`Gateway::of`] wrote.
    pub(crate) fn file(&self) -> PathBuf {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("real-{}.yaml", self.at.ip()))
    }

    /// One before a server that does not run yet: it answers, and nothing more is known.
    pub(crate) fn before_a_late(llama: &Llama) -> Gateway {
        let at = own_address(19001);
        let mut command = Command::new(env!("CARGO_BIN_EXE_ai-gateway"));
        command.env("LLM_URL", format!("http://{}", llama.at));
        command.env("GATEWAY_HOST", at.ip().to_string()).env("GATEWAY_PORT", at.port().to_string());
        command.env_remove("GATEWAY_KEY");
        let gateway = Gateway { at, _process: Process::start(command, at) };
        eventually("the gateway answers", || caller::status_of(at, "/health").is_some());
        gateway
    }
}

/// Waits until something is so, and fails by its name when it does not become so.
pub(crate) fn eventually(what: &str, is_so: impl FnMut() -> bool) {
    within(WAIT_MAX, what, is_so);
}

/// The same, with a bound of its own.
pub(crate) fn within(bound: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < bound, "not within {bound:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
