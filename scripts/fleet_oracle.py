"""A router that knows every KV cache: what `make bench-fleet` measures the gateway against.

It does to lists of tokens what llama-server does to its slots and to its cache of prompts in RAM (`--cache-ram`, on by
default), and so foresees how much of a prompt each server would reuse. The bench says how often it was right.
"""

import collections
import contextlib
import threading

from fleet_trace import common

SIMILAR_LEAST = 0.1  # of the prompt: llama-server's `--slot-prompt-similarity`
KEPT_LEAST = 0.5  # of the slot: where less is to be reused, the slot's prompt goes to RAM first
RESTORED_LEAST = 0.25  # of a prompt in RAM: where less is to be reused, it stays there


class Slot:
    def __init__(self):
        self.tokens, self.busy, self.used = [], False, -1


class Cache:
    """One llama-server's slots, and the prompts that it has in RAM."""

    def __init__(self, slots):
        self.slots = [Slot() for _ in range(slots)]
        self.in_ram = []
        self.time = 0

    def free(self):
        return [slot for slot in self.slots if not slot.busy]

    def held(self):
        return sum(len(slot.tokens) for slot in self.slots) + sum(map(len, self.in_ram))

    def foresee(self, prompt):
        """The slot that the server will choose, whether it saves that slot first, and what it then begins from."""
        alike = [(common(slot.tokens, prompt), slot) for slot in self.free()]
        best, slot = max(alike, key=lambda pair: pair[0])  # the first of equals
        if best > SIMILAR_LEAST * len(prompt):
            if best >= KEPT_LEAST * len(slot.tokens):
                return slot, False, slot.tokens
        else:
            slot = min(reversed(self.free()), key=lambda slot: slot.used)  # the last of equals
            best = common(slot.tokens, prompt)
        source, kept = slot.tokens, best / len(slot.tokens) if slot.tokens else -1
        for saved in self.in_ram:
            alike = common(saved, prompt)
            part = alike / len(saved)
            if part >= RESTORED_LEAST and part > kept and alike > best:
                source, kept, best = saved, part, alike
        return slot, True, source

    def reuses(self, prompt):
        _, _, source = self.foresee(prompt)
        # The last token is always computed: its output is where the answer begins.
        return min(common(source, prompt), len(prompt) - 1)

    def take(self, prompt):
        slot, saves, source = self.foresee(prompt)
        if saves and slot.tokens and not any(common(slot.tokens, saved) == len(slot.tokens) for saved in self.in_ram):
            self.in_ram = [saved for saved in self.in_ram if common(saved, slot.tokens) < len(saved)]
            self.in_ram.append(slot.tokens)
        if source is not slot.tokens and source in self.in_ram:
            self.in_ram.remove(source)
        slot.tokens, slot.busy = prompt, True
        return slot

    def leave(self, slot, answer):
        self.time += 1
        # The last token of an answer was never computed on.
        slot.tokens, slot.busy, slot.used = slot.tokens + answer[:-1], False, self.time


class Oracle:
    """Of the servers with a free slot, the one that has most of the prompt; first come, first served."""

    def __init__(self, servers, slots):
        self.caches = [Cache(slots) for _ in range(servers)]
        self.line = collections.deque()
        self.changed = threading.Condition()

    def choose(self, prompt):
        # Of equals the one with more free slots, then the one that holds least, as the gateway does.
        def rank(number):
            cache = self.caches[number]
            return cache.reuses(prompt), len(cache.free()), -cache.held()

        return max((number for number, cache in enumerate(self.caches) if cache.free()), key=rank)

    @contextlib.contextmanager
    def lease(self, prompt):
        """Waits for a slot; gives the server's number, what it will reuse and a list for the answer's tokens."""
        answer = []
        with self.changed:
            self.line.append(answer)
            self.changed.wait_for(lambda: self.line[0] is answer and any(cache.free() for cache in self.caches))
            self.line.popleft()
            number = self.choose(prompt)
            cache = self.caches[number]
            foreseen = cache.reuses(prompt)
            slot = cache.take(prompt)
            self.changed.notify_all()
        try:
            yield number, foreseen, answer
        finally:
            with self.changed:
                cache.leave(slot, answer)
                self.changed.notify_all()
