"""`make bench-fleet`: which way to choose a server makes most of the KV caches; the table of docs/FLEET.md.

Several llama-servers of two slots get the same trace (fleet_trace.py) once for each row, and start cold each time:
from the gateway with each of its three ways, from sglang-router with its `cache_aware`, and from an oracle that knows
every cache (fleet_oracle.py). Numbers of reuse are the servers' own, from each answer's `usage`.

The model is the tests' tiny one, widened until it takes its time. Its answers do not depend on what was computed
before, so every row's prompts are the same to the last token; a real model's would not be.

SERVERS=3 is how many; SMOKE=1 shows in a minute, with two servers and without sglang-router, that everything works;
ROWS=prefix,oracle are those rows alone.
"""

import contextlib
import dataclasses
import functools
import hashlib
import http.client
import json
import math
import os
import subprocess
import sys
import threading
import time

from fleet_oracle import Oracle
from fleet_trace import GROUPS, SMOKE, conversations, reusable, tokens_of
from servers import BOLD, LOGS, PLAIN, ROOT, Children, Failed, free_port, play, say

SLOTS = 2
CONTEXT = 16384  # of both slots together
WIDTH, LAYERS = 384, 6
MODEL = "tiny"
GATEWAY = {"round_robin": "round_robin", "least_busy": "least_busy", "prefix": "prefix"}
SGLANG, ORACLE = "sglang-router `cache_aware`", "oracle"
HEAVY, LIGHT = "heavy", "light"
TIMEOUT_SECONDS = 300


@dataclasses.dataclass
class Answered:
    key: str
    began: float
    first: float  # seconds from the request to the first text
    took: float
    prompt: int
    reused: int
    completion: int
    foreseen: int = -1  # of `reused`, by the oracle


class Fleet(Children):
    """llama-servers, and what chooses between them in this row; the oracle is in this process."""

    def __init__(self, row, count, model, keys):
        super().__init__()
        self.row, self.count, self.model, self.keys = row, count, model, keys

    def start(self):
        self.ports = []
        for number in range(1, self.count + 1):
            port = free_port(8080 + number)
            launcher = [os.environ["LLAMA_PYTHON"], ROOT / "scripts/llama-server.py", self.model, str(port)]
            options = ["--alias", MODEL, "--parallel", str(SLOTS), "--ctx", str(CONTEXT)]
            self.run(f"llama-server-{number}", [*launcher, *options])
            self.wait_until_healthy(port)
            self.ports.append(port)
        if self.row == ORACLE:
            return
        self.port = free_port(9001)
        if self.row == SGLANG:
            self.start_sglang()
        else:
            self.start_gateway()
        self.wait_until_healthy(self.port)

    def run(self, name, command):
        with open(LOGS / f"{name}.log", "wb") as log:
            self.spawn(name, command, {}, log)

    def start_sglang(self):
        command = [os.environ["SGLANG_PYTHON"], ROOT / "scripts/sglang-router.py", "--policy", "cache_aware"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port(9002))]
        self.run("sglang-router", [*command, "--worker-urls", *self.urls()])

    def start_gateway(self):
        def keyed(key):
            return {"name": key, "sha256": hashlib.sha256(key_of(key).encode()).hexdigest()}

        upstream = {"servers": [{"url": url} for url in self.urls()], "balance": GATEWAY[self.row]}
        settings = {
            "listen": [{"address": f"127.0.0.1:{self.port}"}],
            "admin": {"listen": f"127.0.0.1:{free_port(9002)}"},
            "upstreams": {"local": upstream | {"queue": {"waiting": 1000, "wait": f"{TIMEOUT_SECONDS}s"}}},
            "auth": {"keys": [keyed(key) for key in self.keys]},
            "cache": {"size": "0B"},
        }
        file = LOGS / "bench-fleet.yaml"
        file.write_text(json.dumps(settings, indent=2))  # JSON is YAML too
        self.run("ai-gateway", [os.environ["GATEWAY_BINARY"], "run", "--config", file])

    def urls(self):
        return [f"http://127.0.0.1:{port}" for port in self.ports]


def key_of(name):
    return f"sk-of-the-{name}-key"


def ask(port, key, messages, tokens):
    """One streamed answer: its text and what is to be known of it; the caller puts in when it really began."""
    body = {"model": MODEL, "messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    with contextlib.closing(connection):
        headers = {"content-type": "application/json", "authorization": f"Bearer {key_of(key)}"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise Failed(f"expected an answer, got {response.status}: {response.read()[:300]}")
        text, first, usage, done = "", None, None, False
        for line in response:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                for choice in event.get("choices", []):
                    if said := choice["delta"].get("content"):
                        first = first or time.perf_counter()
                        text += said
                usage = event.get("usage") or usage
            done = done or line.startswith(b"data: [DONE]")
    if not (done and usage and first) or usage["completion_tokens"] != tokens:
        raise Failed(f"an answer of {tokens} tokens ended early: {usage}")
    reused = usage["prompt_tokens_details"]["cached_tokens"]
    return text, Answered(key, 0, first, time.perf_counter(), usage["prompt_tokens"], reused, tokens)


class Replay:
    """The trace, replayed once: each conversation on a thread of its own, which waits for each answer."""

    def __init__(self, trace, fleet):
        self.fleet = fleet
        self.oracle = Oracle(fleet.count, SLOTS) if fleet.row == ORACLE else None
        self.answered, self.asked, self.faults = [], [], []
        threads = [threading.Thread(target=self.converse, args=(one,), daemon=True) for one in trace]
        self.began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.took = time.perf_counter() - self.began

    def converse(self, conversation):
        messages = [{"role": "system", "content": conversation.system}]
        time.sleep(conversation.starts)
        for turn in conversation.turns:
            time.sleep(turn.think_seconds)
            messages.append({"role": "user", "content": turn.question})
            began = time.perf_counter()
            try:
                text, answered = self.ask(conversation.key, messages, turn.answer_tokens)
            except (Failed, OSError, http.client.HTTPException, ValueError) as fault:
                self.faults.append(f"{conversation.key}: {fault!r}")
                return  # what would follow cannot be asked
            answered.began = began - self.began
            answered.first -= began
            answered.took -= began
            self.answered.append(answered)
            self.asked.append((answered.began, tokens_of(messages), text.split()))
            messages.append({"role": "assistant", "content": text})

    def ask(self, key, messages, tokens):
        if self.oracle is None:
            return ask(self.fleet.port, key, messages, tokens)
        with self.oracle.lease(tokens_of(messages)) as (number, foreseen, answer):
            text, answered = ask(self.fleet.ports[number], key, messages, tokens)
            answered.foreseen = foreseen
            answer += text.split()
        return text, answered

    def sum(self, name, key=None):
        return sum(getattr(one, name) for one in self.answered if key in (None, one.key))

    def first(self, part, key=None):
        """The time to the first token that this part of the requests had at most, as text."""
        times = sorted(one.first for one in self.answered if key in (None, one.key))
        return f"{times[max(0, math.ceil(part * len(times)) - 1)]:.2f} s" if times else "-"

    def fairness(self):
        """Jain's index over the tokens that the heavy and the light key got for each second that they waited."""
        rates = [self.sum("completion", key) / max(self.sum("took", key), 1e-9) for key in (HEAVY, LIGHT)]
        squares = sum(rate * rate for rate in rates)
        return sum(rates) ** 2 / (len(rates) * squares) if squares else 0.0


COLUMNS = (
    "prompt tokens reused|of the oracle's|prefilled|first token p50|p99|tokens/s|fairness|light key's p50|p99|failed"
).split("|")


def cells(replay, oracle):
    prompt, reused = replay.sum("prompt"), replay.sum("reused")
    of_oracle = f"{reused / oracle.sum('reused'):.1%}" if oracle else "-"
    return (
        f"{reused:,} ({reused / max(prompt, 1):.1%})",
        of_oracle,
        f"{prompt - reused:,}",
        replay.first(0.5),
        replay.first(0.99),
        f"{replay.sum('completion') / replay.took:.1f}",
        f"{replay.fairness():.3f}",
        replay.first(0.5, LIGHT),
        replay.first(0.99, LIGHT),
        str(len(replay.faults)),
    )


def model():
    """The file of the tiny model, as wide as it is here."""
    file = LOGS / f"tiny-{WIDTH}x{LAYERS}.gguf"
    if not file.exists():
        say(f"{BOLD}==> writing the model, {file.name}{PLAIN}")
        maker = [sys.executable, ROOT / "tests/real/tiny_gguf.py"]
        part = file.with_suffix(".part")
        subprocess.run([*maker, part, "--width", str(WIDTH), "--layers", str(LAYERS)], check=True)
        part.rename(file)
    return file


def rows():
    smoke = os.environ.get("SMOKE")
    everything = [*GATEWAY, *([] if smoke else [SGLANG]), ORACLE]
    wanted = os.environ.get("ROWS")
    chosen = [row for row in everything if not wanted or row.split()[0] in wanted.split(",")]
    return chosen or sys.exit(f"bench_fleet: ROWS names none of {', '.join(row.split()[0] for row in everything)}")


def bench():
    LOGS.mkdir(exist_ok=True)
    smoke = bool(os.environ.get("SMOKE"))
    count = int(os.environ.get("SERVERS") or (2 if smoke else 3))
    trace = conversations(SMOKE if smoke else GROUPS)
    keys = sorted({conversation.key for conversation in trace})
    start = functools.partial(Fleet, count=count, model=model(), keys=keys)
    replays = {}
    for row in rows():
        say(f"{BOLD}==> {row}{PLAIN}", end=" ")
        with start(row) as fleet:
            replay = replays[row] = Replay(trace, fleet)
        say(f"{len(replay.answered)} answers in {replay.took:.1f} s")
        for fault in replay.faults:
            say(f"    {fault}")
    tell(replays, count)
    if any(replay.faults for replay in replays.values()):
        raise Failed("requests failed")
    if len(sizes := {replay.sum("prompt") for replay in replays.values()}) > 1:
        raise Failed(f"the rows were not asked the same: {sizes} tokens of prompts")


def tell(replays, count):
    last = list(replays.values())[-1]
    asked = [(prompt, answer) for _, prompt, answer in sorted(last.asked, key=lambda one: one[0])]
    prompt, there = last.sum("prompt"), reusable(asked)
    say(f"\n{count} llama-servers of {SLOTS} slots; {len(asked)} requests, {prompt:,} tokens of prompts,", end=" ")
    say(f"{there:,} of them ({there / max(prompt, 1):.1%}) asked before; {last.sum('completion'):,} tokens of answers")
    oracle = replays.get(ORACLE)
    if oracle:
        right = sum(one.foreseen == one.reused for one in oracle.answered)
        say(f"the oracle foresaw {right} of {len(oracle.answered)} requests to the token, together", end=" ")
        say(f"{oracle.sum('foreseen'):,} tokens reused")
    say("\n| | " + " | ".join(COLUMNS) + " |")
    say("|---|" + "---:|" * len(COLUMNS))
    for row, replay in replays.items():
        say(f"| {row} | " + " | ".join(cells(replay, oracle)) + " |")


play(bench)
