"""Counts the instructions of the gateway's parts, of a proxied request and of a hit, and holds them to those in
bench/instructions.json.

A part is done by `count` (bench/src/bin/count.rs), and callgrind counts what one function of it does: what comes before
does not count. The whole gateway runs under callgrind with one thread, is sent requests one after another on one
connection, and is counted between marks; few requests taken from many leaves out what is not a request's, and the
least of several rounds what the gateway does by the clock.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import bench

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"
KEPT = ROOT / "bench" / "instructions.json"

# What is more by this part is a slow-down. Six runs differed by less than half of it: docs/PERFORMANCE.md.
BOUND_OF_PARTS = 0.01
BOUND_OF_WHOLE = 0.02
# Another compiler makes other instructions of the same source.
BOUND_OF_ANOTHER_RUSTC = 0.15

# `Store::holding` is called for /stats and /metrics alone: callgrind writes down what it has counted when it is.
MARK = "*Store*::holding*"
WHOLE = {"whole/request": {}, "whole/hit": {"same": True}, "whole/hit of a stream": {"same": True, "stream": True}}
WARM, FEW, MANY, ROUNDS = 20, 50, 250, 4

# Memory is kept, not given back by the clock; and copying is not left to one instruction that counts for each byte, from
# a length on that is another on each processor.
ENVIRONMENT = os.environ | {
    "_RJEM_MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1",
    "GLIBC_TUNABLES": "glibc.cpu.x86_rep_movsb_threshold=0x7fffffffffff:glibc.cpu.x86_rep_stosb_threshold=0x7fffffffffff",
}


def callgrind(out, *options):
    return ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", *options]


def counted(path):
    """What one file of callgrind's says."""
    found = re.search(r"^(?:summary|totals): (\d+)", path.read_text(), re.M)
    return int(found[1]) if found else 0


def parts():
    listed = subprocess.run([TARGET / "count"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return {name: int(times) for times, _, name in (line.partition("\t") for line in listed.splitlines())}


def part(name, times, folder):
    out = folder / re.sub(r"\W+", "-", name)
    command = [*callgrind(out, "--toggle-collect=count::counted*"), TARGET / "count", name]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, env=ENVIRONMENT)
    if done.returncode or not counted(out):
        sys.exit(f"error: callgrind counted nothing of {name}: {done.stderr[-2000:]}")
    return counted(out) / times


def quiet(text):
    """The file of the gateway without what goes by the clock, which would count more on a slow machine: its look at the
    server, and at the file of what each key has used."""
    return text.replace("balance: prefix", "balance: prefix, health: {every: 1h}").replace("usage: {path: usage.db}", "")


def whole(names, folder):
    out = folder / "whole.out"
    stand = bench.Bench(None, folder)
    bench.TARGET = TARGET
    os.environ |= ENVIRONMENT
    try:
        server = stand.origin(events=20, every_ms=0)
        under = callgrind(out, f"--dump-before={MARK}")
        gateway = stand.gateway(server, binary=TARGET / "ai-gateway", edit=quiet, under=under, within=120)
        marks = [0]

        def since(requests, options):
            """What so many requests took since the last mark; each mark is a file, and all begin at nothing."""
            bench.load(gateway.port, connections=1, requests=requests, **options)
            # What is left to do for the last answer, for the log as well.
            time.sleep(0.2)
            bench.Bench.ask(gateway.admin, "/stats")
            marks.append(marks[-1] + 1)
            path = folder / f"whole.out.{marks[-1]}"
            deadline = time.monotonic() + 20
            while not path.exists() or not counted(path):
                if time.monotonic() > deadline:
                    sys.exit(f"error: callgrind saw no {MARK} of src/cache/store.rs: name another in {__file__}")
                time.sleep(0.05)
            return counted(path)

        found = {}
        for name in names:
            since(WARM, WHOLE[name])
            few, many = (min(since(times, WHOLE[name]) for _ in range(ROUNDS)) for times in (FEW, MANY))
            found[name] = (many - few) / (MANY - FEW)
        return found
    finally:
        stand.stop()


def version():
    return subprocess.run(["rustc", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def bound(name, kept):
    if kept["rustc"] != version():
        return BOUND_OF_ANOTHER_RUSTC
    return BOUND_OF_WHOLE if name in WHOLE else BOUND_OF_PARTS


def judge(found, kept):
    """Prints each count beside the one that is kept; gives those that are too many, and those that are too few."""
    slower, faster = [], []
    print(f"{'':<44} {'instructions':>14} {'kept':>14} {'':>8}")
    for name, count in found.items():
        before = kept["parts"].get(name)
        if before is None:
            slower.append(f"{name} is not in {KEPT.relative_to(ROOT)}")
            print(f"{name:<44} {count:>14,} {'–':>14}")
            continue
        change = count / before - 1
        print(f"{name:<44} {count:>14,} {before:>14,} {change:>+8.2%}")
        if abs(change) > bound(name, kept):
            (slower if change > 0 else faster).append(f"{name} takes {abs(change):.2%} {'more' if change > 0 else 'less'}")
    return slower, faster


def write(found):
    lines = ",\n".join(f"    {json.dumps(name)}: {count}" for name, count in found.items())
    KEPT.write_text(f'{{\n  "rustc": {json.dumps(version())},\n  "parts": {{\n{lines}\n  }}\n}}\n')


def main():
    chosen = sys.argv[1:]
    is_chosen = lambda name: not chosen or any(word in name for word in chosen)
    found = {}
    with tempfile.TemporaryDirectory(prefix="instructions-") as name:
        folder = pathlib.Path(name)
        # Each in a process of its own, and what they take does not depend on what else is there.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            counts = {name: pool.submit(part, name, times, folder) for name, times in parts().items() if is_chosen(name)}
            found |= {name: round(count.result()) for name, count in counts.items()}
        if names := [name for name in WHOLE if is_chosen(name)]:
            found |= {name: round(count) for name, count in whole(names, folder).items()}
    if os.environ.get("UPDATE"):
        if chosen:
            found = json.loads(KEPT.read_text())["parts"] | found
        write(found)
        print(f"{KEPT.relative_to(ROOT)} is written anew")
        return
    kept = json.loads(KEPT.read_text())
    if kept["rustc"] != version():
        print(f"The counts that are kept are of {kept['rustc']}, and this is {version()}: only {BOUND_OF_ANOTHER_RUSTC:.0%} more fail.")
        print("Where this compiler is to stay, write them anew with the last source that passed: UPDATE=1 scripts/instructions")
    slower, faster = judge(found, kept)
    if not chosen:
        slower += [f"{name} is kept, and is no part" for name in kept["parts"] if name not in found]
    for line in faster:
        print(f"{line}: keep that with UPDATE=1 scripts/instructions")
    if slower:
        sys.exit("error: " + "; ".join(slower) + ". If it is worth it: UPDATE=1 scripts/instructions, and say why")


if __name__ == "__main__":
    main()
