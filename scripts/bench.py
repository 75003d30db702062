#!/usr/bin/env python3
"""Measures the gateway beside its peers on this machine: every figure in alternated runs, as a ratio to bare Pingora.

Each proxy has one thread and the same server behind it. What is counted is CPU time, user and system, of the proxy's
process tree: it depends less on what else the machine does than the time on the clock. See docs/PERFORMANCE.md.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
TICK = os.sysconf("SC_CLK_TCK")
KEY = "bench-key"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tree(pid):
    """The process and all below it."""
    found = [pid]
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += tree(int(child))
    return found


def cpu(pid):
    """Seconds, of the whole tree."""
    ticks = 0
    for each in tree(pid):
        fields = pathlib.Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def resident(pid):
    """KiB, of the whole tree; what processes share counts once."""
    total = 0
    for each in tree(pid):
        rollup = pathlib.Path(f"/proc/{each}/smaps_rollup").read_text()
        total += int(re.search(r"^Pss:\s+(\d+)", rollup, re.M)[1])
    return total


class Process:
    def __init__(self, name, command, port, folder, within=30):
        self.name, self.port = name, port
        log = (folder / f"{name}.log").open("ab")
        self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.pid = self.process.pid
        deadline = time.monotonic() + within
        while True:
            if self.process.poll() is not None:
                sys.exit(f"error: {name} ended: {(folder / f'{name}.log').read_text()[-2000:]}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            if time.monotonic() > deadline:
                sys.exit(f"error: {name} does not listen on port {port}")
            time.sleep(0.05)

    def stop(self):
        self.process.send_signal(signal.SIGTERM if self.name != "gateway" else signal.SIGINT)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def load(port, **options):
    command = [str(TARGET / "load"), "--to", f"127.0.0.1:{port}", "--key", KEY]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        command += [flag] if value is True else [] if value is False else [flag, str(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(done.stdout)
    if report["failed"]:
        sys.exit(f"error: {report['failed']} requests failed at port {port}: {report}")
    return report


GATEWAY = """
listen: [{{address: "127.0.0.1:{port}"}}]
admin: {{listen: "127.0.0.1:{admin}"}}
upstreams:
  local: {{servers: [{{url: "http://127.0.0.1:{server}", name: bench}}], balance: prefix, queue: {{waiting: 20000, wait: 60s}}}}
models: {{{models}}}
auth: {{keys_file: keys.yaml}}
limits:
  gateway: {{requests: 1000000/s, burst: 1000000, concurrent: 100000}}
  key: {{requests: 1000000/s, burst: 1000000, tokens: 1000000000/s, concurrent: 100000}}
  ip: {{requests: 1000000/s}}
cache: {{ttl: 1h, size: {cache}, scope: key}}
body: {{max: 32MiB, total: 512MiB}}
usage: {{path: usage.db}}
log: {{access: access.log, format: json}}
server: {{threads: 1, work_stealing: false{server_keys}}}
"""

NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.error.log;
events {{ worker_connections 8192; }}
http {{
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  log_format json escape=json '{{"ts":"$time_iso8601","status":$status,"method":"$request_method","uri":"$uri","time":$request_time,"upstream":"$upstream_addr","bytes":$body_bytes_sent,"address":"$remote_addr","cache":"$upstream_cache_status"}}';
  access_log {folder}/nginx.access.log json buffer=64k flush=1s;
  map $http_authorization $denied {{ default 1; "Bearer {key}" 0; }}
  limit_req_zone $http_authorization zone=keys:10m rate=1000000r/s;
  proxy_cache_path {folder}/cache levels=1:2 keys_zone=answers:64m max_size=1g inactive=1h;
  upstream server {{ server 127.0.0.1:{server}; keepalive 1024; }}
  keepalive_requests 100000000; client_max_body_size 32m; client_body_buffer_size 2m;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      if ($denied) {{ return 401; }}
      limit_req zone=keys burst=100000 nodelay;
      proxy_pass http://server; proxy_http_version 1.1; proxy_set_header connection ""; {caching}
    }}
  }}
}}
"""
NGINX_PASSES = "proxy_buffering off;"
NGINX_CACHES = (
    'proxy_cache answers; proxy_cache_methods POST; proxy_cache_key "$uri|$http_authorization|$request_body"; '
    "proxy_cache_valid 200 1h; proxy_ignore_headers cache-control;"
)

HAPROXY = """
global
    nbthread 1
    maxconn 8192
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option http-keep-alive
frontend in
    bind 127.0.0.1:{port}
    stick-table type string len 64 size 100k expire 60s store http_req_rate(10s)
    http-request deny deny_status 401 unless {{ req.hdr(authorization) -m str "Bearer {key}" }}
    http-request track-sc0 req.hdr(authorization)
    http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt 100000000 }}
    default_backend out
backend out
    http-reuse always
    server one 127.0.0.1:{server}
"""

ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config:
            virtual_hosts:
            - {{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: server, timeout: 0s}}}}]}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: server
    connect_timeout: 5s
    circuit_breakers: {{thresholds: [{{max_connections: 20000, max_pending_requests: 20000, max_requests: 20000}}]}}
    load_assignment:
      cluster_name: server
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {server}}}}}}}}}]}}]
"""


class Bench:
    def __init__(self, args, folder):
        self.args, self.folder, self.running = args, folder, []

    def start(self, name, command, port, **options):
        process = Process(name, [str(part) for part in command], port, self.folder, **options)
        self.running.append(process)
        return process

    def stop(self, *processes):
        for process in processes or list(self.running):
            process.stop()
            self.running.remove(process)

    def origin(self, **options):
        port = free_port()
        command = [TARGET / "origin", "--listen", f"127.0.0.1:{port}"]
        for name, value in options.items():
            command += ["--" + name.replace("_", "-")] + ([] if value is True else [str(value)])
        return self.start("origin", command, port)

    def bare(self, server, *flags):
        port = free_port()
        command = [TARGET / "bare", "--listen", f"127.0.0.1:{port}", "--server", f"127.0.0.1:{server.port}", *flags]
        return self.start("bare", command, port)

    def valkey(self):
        port, here = free_port(), "/usr/sbin:/usr/local/bin:" + os.environ["PATH"]
        found = shutil.which("valkey-server", path=here) or shutil.which("redis-server", path=here)
        if not found:
            sys.exit("error: valkey-server or redis-server is missing: apt-get install redis-server")
        return self.start("valkey", [found, "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", self.folder], port)

    def gateway(self, server, cache="256MiB", keys=1, models=1, server_keys="", binary=None, edit=None, under=(), within=30):
        """`under`: a command that runs the binary; `within`: seconds until it is ready."""
        port, admin, folder = free_port(), free_port(), pathlib.Path(tempfile.mkdtemp(dir=self.folder))
        lines = []
        for number in range(keys):
            key = KEY if number == keys // 2 else f"other-{number}"
            lines.append(f"- {{name: k{number}, sha256: {hashlib.sha256(key.encode()).hexdigest()}}}\n")
        (folder / "keys.yaml").write_text("".join(lines))
        # The one that is asked for stands in the middle, as the key does.
        names = ["bench" if number == models // 2 else f"m{number}" for number in range(models)]
        names = ", ".join(f"{name}: {{upstream: local}}" for name in names)
        text = GATEWAY.format(
            port=port, admin=admin, server=server.port, cache=cache, models=names, server_keys=server_keys
        )
        (folder / "gateway.yaml").write_text(edit(text) if edit else text)
        binary = (binary or self.args.gateway).resolve()
        # The file's paths are taken from where the gateway runs.
        command = ["env", "-C", folder, *under, binary, "run", "--config", folder / "gateway.yaml"]
        process = self.start("gateway", command, port, within=within)
        process.folder, process.admin = folder, admin
        deadline = time.monotonic() + within
        while b"200" not in self.ask(port, "/ready")[:16]:
            if time.monotonic() > deadline:
                sys.exit("error: the gateway is not ready")
            time.sleep(0.05)
        time.sleep(0.5)
        return process

    @staticmethod
    def ask(port, path):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as caller:
            caller.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            answer = b""
            while chunk := caller.recv(65536):
                answer += chunk
            return answer

    def peer(self, name, server):
        port, folder = free_port(), pathlib.Path(tempfile.mkdtemp(dir=self.folder))
        os.chmod(folder, 0o777)  # noqa: S103 -- nginx's worker is another user where this one is root
        facts = {"port": port, "server": server.port, "folder": folder, "key": KEY}
        if name in ("nginx", "nginx-cache"):
            path = folder / "nginx.conf"
            path.write_text(NGINX.format(caching=NGINX_CACHES if name == "nginx-cache" else NGINX_PASSES, **facts))
            command = [shutil.which("nginx", path="/usr/sbin:" + os.environ["PATH"]), "-e", folder / "e.log", "-c", path]
        elif name == "haproxy":
            path = folder / "haproxy.cfg"
            path.write_text(HAPROXY.format(**facts))
            command = [shutil.which("haproxy", path="/usr/sbin:" + os.environ["PATH"]), "-db", "-f", path]
        else:
            path = folder / "envoy.yaml"
            path.write_text(ENVOY.format(**facts))
            command = [os.environ["ENVOY"], "-c", path, "--concurrency", "1", "-l", "error", "--use-dynamic-base-id"]
        return self.start(name, command, port)

    def proxies(self, server, names=None):
        """All that proxy, by name."""
        all_ = {"bare": lambda: self.bare(server), "gateway": lambda: self.gateway(server)}
        for name in ("nginx", "haproxy", "envoy"):
            all_[name] = lambda name=name: self.peer(name, server)
        chosen = names or [name for name in all_ if name in self.args.proxies]
        return {name: all_[name]() for name in chosen}

    def alternated(self, proxies, measure):
        """What `measure` gives for each proxy, in turns: name -> list of samples."""
        samples = {name: [] for name in proxies}
        for _ in range(self.args.rounds):
            for name, proxy in proxies.items():
                samples[name].append(measure(proxy))
        return samples


def per_request(seconds, **options):
    """A measure: CPU µs a request."""

    def measure(proxy):
        before = cpu(proxy.pid)
        report = load(proxy.port, seconds=seconds, **options)
        return (cpu(proxy.pid) - before) * 1e6 / report["requests"]

    return measure


def table(title, samples, unit, reference="bare", digits=1):
    middle = {name: statistics.median(values) for name, values in samples.items()}
    base = middle.get(reference)
    print(f"\n{title}\n")
    print(f"| | {unit} | spread | of {reference} |\n|---|---:|---:|---:|")
    for name, values in samples.items():
        ratio = f"{middle[name] / base:.2f}" if base else "–"
        print(f"| {name} | {middle[name]:.{digits}f} | {min(values):.{digits}f}–{max(values):.{digits}f} | {ratio} |")
    sys.stdout.flush()


def requests(bench):
    server = bench.origin()
    proxies = bench.proxies(server)
    for proxy in proxies.values():
        load(proxy.port, seconds=1)
    samples = bench.alternated(proxies, per_request(bench.args.seconds))
    table("A proxied request, 16 connections, every request another one", samples, "CPU µs")
    bench.stop()


def hits(bench):
    server = bench.origin(events=20, every_ms=0)
    proxies = {
        "bare, fixed answer": bench.bare(server, "--answer", "640"),
        "nginx-cache": bench.peer("nginx-cache", server),
        "gateway": bench.gateway(server),
    }
    for title, options in (("plain", {}), ("stream of 20 events", {"stream": True})):
        for proxy in proxies.values():
            load(proxy.port, seconds=0.2, same=True, connections=1, **options) if "bare" not in proxy.name else None
        chosen = {name: proxy for name, proxy in proxies.items() if not options or proxy.name != "bare"}
        samples = bench.alternated(chosen, per_request(bench.args.seconds, same=True, **options))
        table(f"A hit, {title}", samples, "CPU µs", "nginx-cache")
    bench.stop()


def streams(bench):
    server = bench.origin(events=150, every_ms=20)
    proxies = bench.proxies(server)
    for proxy in proxies.values():
        load(proxy.port, stream=True, once=True, connections=20)
    kinds = {"CPU µs an event": [], "KiB a live stream": [], "late p50 µs": [], "late p99 µs": [], "first event, last of all, ms": []}

    def measure(proxy):
        idle, before = resident(proxy.pid), cpu(proxy.pid)
        command = [TARGET / "load", "--to", f"127.0.0.1:{proxy.port}", "--stream", "--once", "--connections", "400"]
        running = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
        time.sleep(2)
        live = resident(proxy.pid)
        report = json.loads(running.communicate()[0])
        if report["failed"]:
            sys.exit(f"error: {proxy.name} failed: {report}")
        return {
            "CPU µs an event": (cpu(proxy.pid) - before) * 1e6 / report["events"],
            "KiB a live stream": (live - idle) / 400,
            "late p50 µs": report["late"]["p50"],
            "late p99 µs": report["late"]["p99"],
            "first event, last of all, ms": report["first"]["max"] / 1000,
        }

    first = {name: measure(proxy) for name, proxy in proxies.items()}
    samples = bench.alternated(proxies, measure)
    for kind in kinds:
        if kind == "KiB a live stream":
            # Memory that was used before is used again: the first time tells.
            table(f"400 streams of an event each 20 ms: {kind}", {name: [each[kind]] for name, each in first.items()}, kind)
        else:
            table(f"400 streams of an event each 20 ms: {kind}", {name: [it[kind] for it in each] for name, each in samples.items()}, kind)
    bench.stop()


@contextlib.contextmanager
def apart(is_wanted):
    """Whoever asks and answers runs on the first core, and the proxies that are given to what it yields on the last."""
    cores = sorted(os.sched_getaffinity(0))

    def place(proxies):
        for process in (pid for proxy in proxies for pid in tree(proxy.pid)):
            for task in pathlib.Path(f"/proc/{process}/task").iterdir():
                os.sched_setaffinity(int(task.name), {cores[-1]})

    if not is_wanted:
        yield lambda _: None
        return
    os.sched_setaffinity(0, {cores[0]})
    try:
        yield place
    finally:
        os.sched_setaffinity(0, set(cores))


def latency(bench):
    with apart(bench.args.apart) as place:
        server = bench.origin(events=3, every_ms=0)
        proxies = bench.proxies(server)
        place(proxies.values())
        over_direct(bench, {"direct": server, **proxies})


def over_direct(bench, proxies):
    for proxy in proxies.values():
        load(proxy.port, seconds=1, connections=1)

    def measure(proxy):
        plain = load(proxy.port, seconds=bench.args.seconds, connections=1)["took"]
        first = load(proxy.port, seconds=bench.args.seconds, connections=1, stream=True)["first"]
        return plain["p50"], plain["p99"], first["p50"], first["p99"]

    samples = bench.alternated(proxies, measure)
    for place, kind in enumerate(("p50", "p99", "time to first event p50", "time to first event p99")):
        direct = statistics.median(each[place] for each in samples["direct"])
        added = {name: [each[place] - direct for each in values] for name, values in samples.items() if name != "direct"}
        table(f"Added at one connection, over {direct:.0f} µs direct: {kind}", added, "µs", digits=0)
    bench.stop()


def bodies(bench):
    server = bench.origin()
    # Short messages, whose bytes cost the most; and with files in them, as tools answer.
    for kib, lines in ((4, 1), (64, 1), (256, 1), (1024, 1), (64, 80), (256, 80)):
        asked = {"bytes": kib << 10, "lines": lines}
        proxies = bench.proxies(server, ["bare", "gateway"])
        for proxy in proxies.values():
            load(proxy.port, seconds=0.5, **asked)
        samples = bench.alternated(proxies, per_request(bench.args.seconds, **asked))
        for hit in bench.alternated({"gateway": proxies["gateway"]}, per_request(bench.args.seconds, same=True, **asked)).values():
            samples["gateway, hit"] = hit
        table(f"A body of {kib} KiB, of {'short messages' if lines == 1 else 'files'}", samples, "CPU µs")
        bare, gateway = (statistics.median(samples[name]) for name in ("bare", "gateway"))
        print(f"\nOver 1.25 times bare: {(gateway - 1.25 * bare) * 1000 / (kib << 10):.2f} ns a byte")
        bench.stop(*proxies.values())
    bench.stop()


def memory(bench):
    server = bench.origin()
    samples = {}
    for name in [name for name in ("bare", "gateway", "nginx", "haproxy", "envoy") if name in bench.args.proxies]:
        proxy = bench.proxies(server, [name])[name]
        time.sleep(1)
        samples[name] = [resident(proxy.pid) / 1024]
        bench.stop(proxy)
    table("Idle", samples, "MiB")
    slow = bench.origin(events=1, every_ms=0)
    for name in [name for name in ("bare", "gateway", "envoy") if name in bench.args.proxies]:
        proxy = bench.proxies(slow, [name])[name]
        idle = resident(proxy.pid) / 1024
        command = [TARGET / "load", "--to", f"127.0.0.1:{proxy.port}", "--connections", "1500", "--bytes", "150000", "--once"]
        running = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE)
        most = 0
        while running.poll() is None:
            most = max(most, resident(proxy.pid) / 1024)
            time.sleep(0.01)
        running.communicate()
        time.sleep(bench.args.seconds * 4)
        after = resident(proxy.pid) / 1024
        print(f"1,500 bodies of 150 KB at once, {name}: {idle:.1f} MiB before, {most:.0f} at most, {after:.1f} afterwards")
        bench.stop(proxy)
    bench.stop()


def stats(proxy):
    return json.loads(Bench.ask(proxy.port, "/stats").partition(b"\r\n\r\n")[2])


def until(what, measure, least):
    """Waits until there are so many of something, and says how many there are while that takes long."""
    told = time.monotonic()
    while (now := measure()) < least:
        if time.monotonic() > told + 5:
            print(f"  {what}: {now} of {least}", file=sys.stderr)
            told = time.monotonic()
        time.sleep(0.2)


def callers(bench, proxy, count, **options):
    """So many callers at once, who go on until they are stopped; they are counted as a process of the bench."""
    command = [TARGET / "load", "--to", f"127.0.0.1:{proxy.port}", "--key", KEY, "--connections", count, "--seconds", 1e6]
    for name, value in options.items():
        command += [f"--{name}"] + ([] if value is True else [value])
    return bench.start("load", command, proxy.port)


def growth(bench):
    server, crowd = bench.origin(), bench.args.waiting
    # Its one slot is never free again: whoever comes later waits.
    slow = bench.origin(events=2, every_ms=10_000_000)
    upstream = f"slow: {{servers: [{{url: 'http://127.0.0.1:{slow.port}', name: slow, slots: 1}}], queue: {{waiting: {crowd}, wait: 1h}}}}"
    with_slow = lambda text: text.replace("\nmodels: {", f"\n  {upstream}\nmodels: {{slow: {{upstream: slow}}, ")
    proxies = {
        "1 key, 1 model": bench.gateway(server),
        "100,000 keys": bench.gateway(server, keys=100_000),
        "1,000 models": bench.gateway(server, models=1_000),
        f"{bench.args.entries:,} entries": bench.gateway(server, cache="4GiB", edit=lambda text: text.replace("ttl: 1h", "ttl: 24h")),
        f"{crowd:,} wait for another model": bench.gateway(server, edit=with_slow),
    }
    full, crowded = list(proxies.values())[-2:]
    for proxy in proxies.values():
        load(proxy.port, seconds=1)
    while (entries := stats(full)["cache_entries"]) < bench.args.entries:
        print(f"  {entries} entries", file=sys.stderr)
        load(full.port, seconds=min(10, max(1, (bench.args.entries - entries) / 10_000)))
    callers(bench, crowded, crowd + 1, model="slow", stream=True, once=True)
    until("waiting", lambda: stats(crowded)["queue"], crowd)
    first = next(iter(proxies))
    samples = bench.alternated(proxies, per_request(bench.args.seconds))
    table("What grows, and what a request costs then", samples, "CPU µs", first)
    for proxy in proxies.values():
        load(proxy.port, seconds=0.2, same=True, connections=1)
    samples = bench.alternated(proxies, per_request(bench.args.seconds, same=True))
    table("The same, and what a hit costs then", samples, "CPU µs", first)
    held = stats(crowded)["queue"], stats(full)["cache_entries"]
    print(f"\nIn the end {held[0]:,} waited, and {held[1]:,} entries were kept.")
    bench.stop()
    admissions(bench, crowd)


def admissions(bench, crowd):
    """What it costs to let one in from a queue. Many callers cost something by themselves, so as many are shown that
    need not wait."""
    server = bench.origin()
    rows = {"10 wait": (11, 1), f"{crowd:,} wait": (crowd + 1, 1), f"of {crowd + 1:,} callers none waits": (crowd + 1, 50_000)}
    loads = {}
    for name, (count, slots) in rows.items():
        edit = lambda text, slots=slots: text.replace("name: bench}", f"name: bench, slots: {slots}}}")
        proxy = bench.gateway(server, edit=edit)
        running = callers(bench, proxy, count)
        until("callers", lambda: stats(proxy)["requests"], 2 * count)
        running.process.send_signal(signal.SIGSTOP)
        loads[name] = proxy, running, count - 1 if slots == 1 else 0

    def measure(row):
        proxy, running, waiting = row
        running.process.send_signal(signal.SIGCONT)
        # One is at work, and a few are on their way back.
        until("waiting", lambda: stats(proxy)["queue"], waiting * 9 // 10)
        time.sleep(1)
        before = cpu(proxy.pid), stats(proxy)["requests"]
        time.sleep(bench.args.seconds)
        after = cpu(proxy.pid), stats(proxy)["requests"]
        running.process.send_signal(signal.SIGSTOP)
        return (after[0] - before[0]) * 1e6 / (after[1] - before[1])

    samples = bench.alternated(loads, measure)
    table("A request that waits for its turn, one slot", samples, "CPU µs", "10 wait")
    for _, running, _ in loads.values():
        running.process.kill()
    bench.stop()


def shared(bench):
    """What it costs one of several replicas that limits, and answers, are shared: Valkey is on this machine."""
    server, valkey = bench.origin(), bench.valkey()
    url = f"redis://127.0.0.1:{valkey.port}"
    share = {"edit": lambda text: text.replace("usage: {path: usage.db}", f'shared: {{valkey: "{url}"}}')}
    proxies = {
        "limits alone": bench.gateway(server, cache="0B"),
        "limits, shared": bench.gateway(server, cache="0B", **share),
        "limits and cache alone": bench.gateway(server),
        "limits and cache, shared": bench.gateway(server, **share),
    }
    for proxy in proxies.values():
        load(proxy.port, seconds=1)

    def measure(proxy):
        gateway, other = cpu(proxy.pid), cpu(valkey.pid)
        count = load(proxy.port, seconds=bench.args.seconds)["requests"]
        per = [(cpu(pid) - before) * 1e6 / count for pid, before in ((proxy.pid, gateway), (valkey.pid, other))]
        took = load(proxy.port, seconds=bench.args.seconds, connections=1)["took"]
        time.sleep(0.5)
        lines = (proxy.folder / "access.log").read_text().splitlines()[-1000:]
        waited = statistics.median(json.loads(line).get("shared_ms") or 0 for line in lines)
        return (*per, took["p50"], took["p99"], 1000 * waited)

    samples = bench.alternated(proxies, measure)
    kinds = ("the gateway's CPU", "Valkey's CPU", "p50 at one connection", "p99 at one connection", "p50 of the wait for Valkey")
    for place, kind in enumerate(kinds):
        table(f"Shared, a request: {kind}", {name: [it[place] for it in each] for name, each in samples.items()}, "µs", "limits alone")
    bench.stop()


def train(bench):
    """Drives a gateway as its callers do, for scripts/pgo: nothing is measured."""
    server = bench.origin(events=20, every_ms=1)
    gateway = bench.gateway(server)
    plays = [{}, {"same": True}, {"stream": True, "connections": 64}, {"stream": True, "same": True}]
    plays += [{"bytes": 4 << 10}, {"bytes": 64 << 10}, {"bytes": 64 << 10, "same": True}]
    for options in plays:
        load(gateway.port, seconds=bench.args.seconds, **options)
    bench.stop()


SECTIONS = {"requests": requests, "hits": hits, "streams": streams, "latency": latency, "bodies": bodies, "memory": memory, "growth": growth, "shared": shared}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), choices=[*SECTIONS, "train", []], help="all, if none is named")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="of each run")
    parser.add_argument("--entries", type=int, default=1_000_000, help="of the full cache")
    parser.add_argument("--apart", action="store_true", help="latency with the proxies on a core of their own, which the kernel else puts where it likes")
    parser.add_argument("--waiting", type=int, default=10_000, help="callers in the queue")
    parser.add_argument("--proxies", default="bare,gateway,nginx,haproxy,envoy", type=lambda it: it.split(","))
    parser.add_argument("--gateway", type=pathlib.Path, default=TARGET / "ai-gateway", help="another binary of it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        os.chmod(name, 0o755)  # noqa: S103 -- as above
        bench = Bench(args, pathlib.Path(name))
        try:
            for section in args.sections:
                (SECTIONS | {"train": train})[section](bench)
        finally:
            bench.stop()


if __name__ == "__main__":
    main()
