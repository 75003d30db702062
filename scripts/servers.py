"""llama-servers and what stands in front of them, as child processes that never outlive this one's end.

`scripts/start` has put into the environment what they need: LLAMA_PYTHON, LLAMA_MODEL and GATEWAY_BINARY.
"""

import http.client
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LOGS = ROOT / ".demo"
MODEL = "smollm2"

WAIT_SECONDS_MAX = 120  # for a large model, on a slow machine
STOP_SECONDS_MAX = 5

ON_TERMINAL = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
BOLD, DIM, GREEN, YELLOW, PLAIN = ("\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[33m", "\x1b[0m") if ON_TERMINAL else [""] * 5


class Failed(Exception):
    """Said to the person as one sentence."""


def say(text="", end="\n"):
    print(text, end=end, flush=True)


def free_port(wanted):
    """The port itself if nobody has it, else one that the system chooses."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            # As servers do; without it a port whose last connection has just closed would count as taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise Failed("no port is free on 127.0.0.1")


class Children:
    """What `start` starts: `with` it the children run, and at its end they are stopped, the last one first."""

    def __init__(self):
        self.children = []

    def start(self):
        raise NotImplementedError

    def __enter__(self):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the shell had it ignored
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda received, _: sys.exit(128 + received))
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def spawn(self, name, command, variables, output, errors=subprocess.STDOUT):
        # In a session of its own: Ctrl-C reaches this process alone, which then stops the gateway before llama-server.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("GATEWAY_")}
        if output is errors:
            errors = subprocess.STDOUT
        child = subprocess.Popen(
            command,
            env=inherited | variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        self.children.append((name, child))

    def wait_until_healthy(self, port):
        began = time.monotonic()
        while (status := self.health(port)) != 200:
            for name, child in self.children:
                if child.poll() is not None:
                    raise Failed(f"{name} ended at once (exit code {child.returncode}): {self.last_words(name)}")
            if time.monotonic() - began > WAIT_SECONDS_MAX:
                raise Failed(f"port {port} was not healthy in {WAIT_SECONDS_MAX} s (status {status}); see {LOGS}")
            time.sleep(0.1)
        return time.monotonic() - began

    def health(self, port):
        """The status of /health on that port, or none while nobody listens there."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        except OSError:
            return None
        finally:
            connection.close()

    def last_words(self, name):
        path = LOGS / f"{name}.log"
        lines = path.read_text(errors="replace").strip().splitlines()
        return "\n".join([f"the end of {path}:", *lines[-8:]])

    def stop(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for _, child in reversed(self.children):
            if child.poll() is None:
                child.terminate()
            try:
                child.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        self.children.clear()


class Servers(Children):
    """One llama-server and the gateway before it."""

    def __init__(self, environment=(), gateway_output=None):
        """`environment`: the gateway's own variables. `gateway_output`: where its log lines go; a file if absent."""
        super().__init__()
        self.environment = dict(environment)
        self.gateway_output = gateway_output

    def start(self):
        LOGS.mkdir(exist_ok=True)
        self.llama_port = free_port(8080)
        self.port = int(self.environment.get("GATEWAY_PORT") or free_port(9001))
        self.url = f"http://127.0.0.1:{self.port}"
        model = os.environ["LLAMA_MODEL"]

        say(f"{BOLD}==> llama-server on 127.0.0.1:{self.llama_port} with {os.path.basename(model)}{PLAIN}")
        launcher = [os.environ["LLAMA_PYTHON"], ROOT / "scripts/llama-server.py", model, str(self.llama_port)]
        threads = str(max(1, (os.cpu_count() or 2) // 2))
        with open(LOGS / "llama-server.log", "wb") as log:
            self.spawn("llama-server", [*launcher, "--alias", MODEL, "--threads", threads, "--embeddings"], {}, log)
        self.say_when_healthy(self.llama_port)

        variables = {"GATEWAY_HOST": "127.0.0.1"} | self.environment
        variables |= {"LLM_URL": f"http://127.0.0.1:{self.llama_port}", "GATEWAY_PORT": str(self.port)}
        shown = " ".join(f"{name}={value}" for name, value in variables.items() if name != "GATEWAY_KEY")
        say(f"{BOLD}==> {shown} ai-gateway{PLAIN}")
        with open(LOGS / "ai-gateway.log", "wb") as log:
            self.spawn("ai-gateway", [os.environ["GATEWAY_BINARY"]], variables, self.gateway_output or log, log)
        self.say_when_healthy(self.port)
        if page := self.page():
            say(f"    to see it in a browser: {BOLD}{page}{PLAIN}")

    def page(self):
        """The operator's page, or none where another process has its port."""
        log = (LOGS / "ai-gateway.log").read_text(errors="replace")
        return next((line.split()[-1] for line in log.splitlines() if "for operators: " in line), None)

    def say_when_healthy(self, port):
        say(f"    GET /health: {GREEN}200{PLAIN} after {self.wait_until_healthy(port):.1f} s")

    def open(self, method, path, body=None, headers=(), timeout=120):
        """Sends a request on a connection of its own and returns the response, its body not yet read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        connection.request(method, path, body, {"content-type": "application/json"} | dict(headers))
        return connection.getresponse()

    def ask(self, method, path, body=None, headers=(), timeout=120):
        """The same, read whole: status, headers, body."""
        response = self.open(method, path, body, headers, timeout)
        return response.status, response.headers, response.read()


def play(act):
    """Runs `act` and ends the process as a person expects: one sentence for a failure, 130 for Ctrl-C."""
    try:
        act()
    except Failed as failure:
        sys.exit(f"\n{pathlib.Path(sys.argv[0]).stem}: {failure}")
    except KeyboardInterrupt:
        say("\nstopped by Ctrl-C; nothing was left running")
        sys.exit(130)
