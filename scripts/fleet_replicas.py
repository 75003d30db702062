"""How replicas may agree on where prompts live: a simulation; the table of docs/FLEET.md.

The trace is fleet_trace.py's, and two larger ones of its kind. A balancer takes any replica for each request; servers
forget nothing, read and write at fixed speeds, and have slots for all. Each replica chooses as src/route/balance.rs
does, by its own requests and by what it knows of prompts.
"""

import dataclasses
import hashlib
import heapq
import itertools
import random

from fleet_trace import GROUPS, WORDS, Group, common, conversations, tokens_of

BLOCK_BYTES = 256
SLOTS = 8
BUSIER_MAX = 0.5
TOLD_AFTER_SECONDS = 0.1
READ_TOKENS_A_SECOND, WRITTEN_TOKENS_A_SECOND = 900, 20
RUNS = 4

TRACES = {
    "3 servers, 16 conversations": (3, GROUPS),
    "8 servers, 64 conversations": (
        8,
        tuple(dataclasses.replace(it, conversations=it.conversations * 4, apart=it.apart / 2) for it in GROUPS),
    ),
    "8 servers, 120 conversations with 40 system prompts": (
        8,
        tuple(Group((f"key {at}",), 3, 200 + at * 7 % 300, 6, at * 0.5, 1.0) for at in range(40)),
    ),
}
# What a replica does with a prompt whose beginning it does not know: None is the emptiest of the idlest servers, a number
# is rendezvous hashing on that block.
WAYS = {"knows its own": (False, None), "rendezvous 1": (False, 1), "rendezvous 4": (False, 4), "told": (True, None)}


def blocks(messages):
    text = "".join(message["role"] + message["content"] for message in messages).encode()
    hashes, hasher = [], hashlib.sha256()
    for begin in range(0, len(text) // BLOCK_BYTES * BLOCK_BYTES, BLOCK_BYTES):
        hasher.update(text[begin : begin + BLOCK_BYTES])
        hashes.append(hasher.copy().digest()[:8])
    return hashes


class Replica:
    def __init__(self, servers):
        self.busy = [0] * servers
        self.held = [0] * servers
        self.known = {}

    def held_of(self, prompt, server):
        return sum(1 for _ in itertools.takewhile(lambda it: server in self.known.get(it, ()), prompt))

    def learn(self, prompt, server):
        news = [it for it in prompt if server not in self.known.get(it, ())]
        for block in news:
            self.known.setdefault(block, set()).add(server)
        self.held[server] += len(news)
        return news

    def choose(self, prompt, hashed, dice):
        load = [busy / SLOTS for busy in self.busy]
        free = [server for server, busy in enumerate(self.busy) if busy < SLOTS] or range(len(self.busy))
        least = min(load[server] for server in free)
        near = [server for server in free if load[server] <= least + BUSIER_MAX]
        best = max(near, key=lambda it: (self.held_of(prompt, it), -load[it]))
        if self.held_of(prompt, best) >= max(2, len(prompt) // 4):
            return best
        if hashed and prompt:
            block = prompt[min(len(prompt), hashed) - 1]
            return max(near, key=lambda it: hashlib.sha256(block + bytes([it])).digest())
        idle = [server for server in free if load[server] <= least]
        fewest = min(self.held[server] for server in idle)
        return dice.choice([server for server in idle if self.held[server] <= fewest])


def reused(trace, servers, count, tells, hashed, seed):
    dice, order = random.Random(seed), itertools.count()
    replicas = [Replica(servers) for _ in range(count)]
    caches = [[] for _ in range(servers)]
    asked = found = 0
    queue = []

    def later(at, what, *of):
        heapq.heappush(queue, (at, next(order), what, of))

    for one in trace:
        later(one.starts, "ask", one, 0, [{"role": "system", "content": one.system}])
    while queue:
        now, _, what, of = heapq.heappop(queue)
        if what == "tell":
            replica, news, server = of
            replica.learn(news, server)
        elif what == "end":
            replica, server, one, turn, messages = of
            replica.busy[server] -= 1
            if turn < len(one.turns):
                later(now + one.turns[turn].think_seconds, "ask", one, turn, messages)
        else:
            one, turn, messages = of
            messages = [*messages, {"role": "user", "content": one.turns[turn].question}]
            replica, prompt, tokens = dice.choice(replicas), blocks(messages), tokens_of(messages)
            server = replica.choose(prompt, hashed, dice)
            replica.busy[server] += 1
            news = replica.learn(prompt, server)
            for other in replicas if tells else ():
                later(now + TOLD_AFTER_SECONDS, "tell", other, news, server)
            had = max((common(cached, tokens) for cached in caches[server]), default=0)
            answer = [dice.choice(WORDS) for _ in range(one.turns[turn].answer_tokens)]
            asked, found = asked + len(tokens), found + min(had, len(tokens) - 1)
            caches[server].append(tokens + answer[:-1])
            took = (len(tokens) - had) / READ_TOKENS_A_SECOND + len(answer) / WRITTEN_TOKENS_A_SECOND
            said = {"role": "assistant", "content": "".join(f" {word}" for word in answer)}
            later(now + took, "end", replica, server, one, turn + 1, [*messages, said])
    return found / asked


def main():
    for name, (servers, groups) in TRACES.items():
        print(f"{name}:", flush=True)
        trace = conversations(groups)
        for count in (1, 2, 4):
            for way, (tells, hashed) in WAYS.items():
                if count > 1 or way == "knows its own":
                    runs = [reused(trace, servers, count, tells, hashed, seed) for seed in range(RUNS)]
                    print(f"  {count}, {way}: {sum(runs) / RUNS:.1%}", flush=True)


main()
