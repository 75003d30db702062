"""The trace that `make bench-fleet` replays: conversations of several keys, always the same.

All texts are words that the tiny model has a token each for, so the sizes below are in tokens. Each message begins
with a space: it makes the first word a token too.
"""

import dataclasses
import os
import random

SEED = 5
# Of the tiny model's own sentence (tests/real/tiny_gguf.py).
WORDS = "small lighthouse keeps watch over the grey harbour while every evening boat comes home past its lamp".split()


@dataclasses.dataclass(frozen=True)
class Group:
    """Conversations that begin with the same system prompt."""

    keys: tuple  # the conversations are theirs in turn
    conversations: int
    system: int
    turns: int
    starts: float  # seconds after the beginning
    apart: float  # seconds between one conversation's start and the next one's


# The heavy key has two agents, each with four conversations that come at once and its own long system prompt; two
# keys share an assistant; the light key has one conversation and, later, another.
GROUPS = (
    Group(("first", "second"), conversations=6, system=400, turns=5, starts=0.0, apart=2.0),
    Group(("light",), conversations=2, system=200, turns=8, starts=1.0, apart=8.0),
    Group(("heavy",), conversations=4, system=600, turns=6, starts=4.0, apart=0.2),
    Group(("heavy",), conversations=4, system=300, turns=6, starts=6.0, apart=0.2),
)
SMOKE = (
    Group(("heavy",), conversations=1, system=200, turns=2, starts=0.0, apart=0.0),
    Group(("light",), conversations=1, system=200, turns=2, starts=0.5, apart=0.0),
)

QUESTION = (40, 140)
ANSWER = (24, 64)
THINK_SECONDS = (1.0, 8.0)

# How the tiny model writes the roles: a marker is followed by a space, and the longest token that it has is taken.
ROLES = {"system": [" s", *"ystem"], "user": [" ", *"user"], "assistant": [" as", *"sistant"]}


@dataclasses.dataclass(frozen=True)
class Turn:
    question: str
    answer_tokens: int
    think_seconds: float  # before the question, since the last answer; nothing before the first


@dataclasses.dataclass(frozen=True)
class Conversation:
    key: str
    starts: float
    system: str
    turns: tuple


def conversations(groups):
    dice = random.Random(SEED)

    def words(count):
        return "".join(f" {dice.choice(WORDS)}" for _ in range(count))

    def turn(number):
        think = dice.uniform(*THINK_SECONDS) if number else 0.0
        return Turn(words(dice.randint(*QUESTION)), dice.randint(*ANSWER), think)

    made = []
    for group in groups:
        system = words(group.system)
        for number in range(group.conversations):
            turns = tuple(turn(number) for number in range(group.turns))
            key = group.keys[number % len(group.keys)]
            made.append(Conversation(key, group.starts + number * group.apart, system, turns))
    return sorted(made, key=lambda conversation: conversation.starts)


def tokens_of(messages):
    """What the tiny model's template and tokenizer make of a conversation, a text for each token."""
    tokens = ["<s>"]
    for message in messages:
        words = message["content"].split()
        tokens += ["<|im_start|>", *ROLES[message["role"]], "\n", *words, "<|im_end|>", " ", "\n"]
    return [*tokens, "<|im_start|>", *ROLES["assistant"], "\n"]


def common(one, other):
    """How many tokens two prompts begin with in common."""
    if one == other[: len(one)]:
        return len(one)
    return len(os.path.commonprefix([one, other]))


def reusable(asked):
    """Of the tokens of the prompts, how many one server would have had that forgets nothing and answers at once.

    `asked`: (prompt, answer) of each request in the order of their start, in tokens.
    """
    seen, found = [], 0
    for prompt, answer in asked:
        found += max((common(earlier, prompt) for earlier in seen), default=0)
        seen.append(prompt + answer[:-1])
    return found
