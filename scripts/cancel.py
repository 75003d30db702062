"""`scripts/start cancel`: how long a slot stays busy after its caller has left; the table of docs/FLEET.md.

A caller asks through the gateway and leaves while its prompt is read or its answer generated. Another request, sent
straight to the server before that, waits there for a slot: when it begins to answer, the slot is free. So nothing polls
the server, which would delay what is measured.
"""

import json
import os
import socket
import statistics
import threading
import time

from servers import LOGS, MODEL, ROOT, Failed, Servers, free_port, play, say

TOKENS = 400
SHORT = "Tell me a story of the sea."
LONG = "The harbour, the lighthouse and the sea. " * 60  # some 500 tokens: seconds of reading
# What the server does, with which prompt, whether another slot streams meanwhile, how often it is measured.
PHASES = (
    ("generating, alone", SHORT, False, 5),
    ("generating, beside another stream", SHORT, True, 5),
    ("reading the prompt, alone", LONG, False, 3),
)


class Pair(Servers):
    """A llama-server of so many slots, and two gateways before it: one that asks as it was asked, one that streams."""

    def __init__(self, slots):
        super().__init__()
        self.slots = slots

    def start(self):
        LOGS.mkdir(exist_ok=True)
        self.llama_port = free_port(8080)
        launcher = [os.environ["LLAMA_PYTHON"], ROOT / "scripts/llama-server.py", os.environ["LLAMA_MODEL"]]
        options = [str(self.llama_port), "--alias", MODEL, "--parallel", str(self.slots)]
        with open(LOGS / "llama-server.log", "wb") as log:
            self.spawn("llama-server", [*launcher, *options], {}, log)
        self.wait_until_healthy(self.llama_port)
        self.gateways = {streamed: self.gateway(streamed) for streamed in (False, True)}

    def gateway(self, streamed):
        port, name = free_port(0), "streamed" if streamed else "as-asked"
        upstream = {"servers": [{"url": f"http://127.0.0.1:{self.llama_port}", "slots": self.slots}], "health": {"every": "1h"}}
        settings = {
            "listen": [{"address": f"127.0.0.1:{port}"}],
            "admin": {"listen": f"127.0.0.1:{free_port(0)}"},
            "upstreams": {"local": upstream | ({"streamed": "always"} if streamed else {})},
            "cache": {"size": "0B"},
        }
        path = LOGS / f"{name}.yaml"
        path.write_text(json.dumps(settings))  # JSON is YAML
        with open(LOGS / f"{name}.log", "wb") as log:
            self.spawn(name, [os.environ["GATEWAY_BINARY"], "run", "--config", path], {}, log)
        self.wait_until_live(port)
        return port

    def wait_until_live(self, port):
        for _ in range(100):
            try:
                return socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                time.sleep(0.1)
        raise Failed(f"nobody listens on port {port}")


def send(port, text, tokens, stream):
    """Sends a chat and returns its connection, nothing read."""
    members = {"max_tokens": tokens, "ignore_eos": True, "stream": stream, "cache_prompt": False}
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": text}]} | members)
    connection = socket.create_connection(("127.0.0.1", port), 300)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    connection.sendall(f"{head}\r\n\r\n{body}".encode())
    return connection


def first_byte(connection, when):
    connection.recv(1)
    when.append(time.perf_counter())
    while connection.recv(65536):
        pass


def busy_for(servers, gateway, text, stream):
    """Milliseconds from the caller's leaving until the next request begins."""
    beside = [send(servers.llama_port, "And another one.", 4 * TOKENS, True) for _ in range(servers.slots - 1)]
    for connection in beside:
        connection.recv(1)
    caller = send(gateway, text, TOKENS, stream)
    time.sleep(1.0)  # the prompt of one is read by now, and that of the other is not
    began = []
    waiting = send(servers.llama_port, "x", 1, True)
    waiting.settimeout(300)
    listener = threading.Thread(target=first_byte, args=(waiting, began))
    listener.start()
    time.sleep(0.3)
    left = time.perf_counter()
    caller.close()
    # A server answers once, so its connection ends with `connection: close` or after the keep-alive time.
    while not began:
        time.sleep(0.001)
    waiting.shutdown(socket.SHUT_RDWR)
    listener.join()
    for connection in beside:
        connection.close()
    return (began[0] - left) * 1000


def cancel():
    rows = []
    for phase, text, beside, runs in PHASES:
        with Pair(2 if beside else 1) as servers:
            for stream in (True, False):
                cells = []
                for streamed in (False, True):
                    gateway = servers.gateways[streamed]
                    times = [busy_for(servers, gateway, text, stream) for _ in range(runs)]
                    cells.append(f"{statistics.median(times):,.0f} ms ({min(times):,.0f} to {max(times):,.0f})")
                rows.append(f"| {phase} | {'a stream' if stream else 'a plain answer'} | {cells[0]} | {cells[1]} |")
    say("| the caller leaves while the server is | it asked for | as asked | `streamed: always` |")
    say("|---|---|---|---|")
    say("\n".join(rows))


play(cancel)
