"""`make demo`: a real model answers through the gateway, and each thing that the gateway does is seen once.

What is shown is also checked: the demo fails where the gateway does not do what is said here.
"""

import collections
import json
import time

from servers import BOLD, DIM, GREEN, MODEL, PLAIN, YELLOW, Failed, Servers, play, say

SKY = "Why is the sky blue?"
SEA = "Write a short poem about the sea."
RAPID_CALLS = 15


def chat(question, **members):
    message = {"role": "user", "content": question}
    return json.dumps({"model": MODEL, "messages": [message], "max_tokens": 80, "temperature": 0} | members)


def title(text):
    say(f"\n{BOLD}{text}{PLAIN}")


def expect(true, promise, seen):
    if not true:
        raise Failed(f"{promise}, but it was {seen}")


def quoted(text):
    return "\n".join(f"    {DIM}|{PLAIN} {line}" for line in text.splitlines())


def complete(servers, question):
    """One completion, read whole: its body, its seconds and what the cache said."""
    began = time.perf_counter()
    status, headers, body = servers.ask("POST", "/v1/chat/completions", chat(question))
    seconds = time.perf_counter() - began
    expect(status == 200, "a completion should be answered with 200", f"{status} {body.decode(errors='replace')}")
    cache = headers["x-cache"]
    say(f"    200 in {BOLD}{seconds * 1000:,.1f} ms{PLAIN}, x-cache: {GREEN if cache == 'hit' else YELLOW}{cache}{PLAIN}")
    return body, seconds, cache


def ask_and_ask_again(servers):
    title(f"1. A completion: “{SKY}”")
    answer, slow, cache = complete(servers, SKY)
    expect(cache == "miss", "the first answer should be a cache miss", cache)
    say(quoted(json.loads(answer)["choices"][0]["message"]["content"]))

    title("2. The same again: from the cache")
    again, fast, cache = complete(servers, SKY)
    expect(cache == "hit", "the second answer should be a cache hit", cache)
    expect(again == answer, "the second answer should be the first one, byte for byte", again)
    say(f"    the same {len(answer)} bytes, {BOLD}{slow / fast:,.0f} times faster{PLAIN}")

    say("    and as a stream, which nobody had asked for yet:")
    status, headers, streamed = servers.ask("POST", "/v1/chat/completions", chat(SKY, stream=True))
    cache = headers["x-cache"]
    expect((status, cache) == (200, "hit"), "the same should be a hit as a stream too", f"{status}, {cache}")
    events = [json.loads(line[6:]) for line in streamed.decode().splitlines() if line.startswith("data: {")]
    told = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    expect(told == json.loads(answer)["choices"][0]["message"]["content"], "the stream should say the same", told)
    say(f"    x-cache: {GREEN}{cache}{PLAIN}, the same words in {len(events)} events")


def stream(servers):
    title(f"3. A stream, token by token: “{SEA}”")
    began = time.perf_counter()
    response = servers.open("POST", "/v1/chat/completions", chat(SEA, stream=True))
    expect(response.status == 200, "a stream should be answered with 200", response.status)
    first, events, ended = None, 0, False
    say(f"    {DIM}|{PLAIN} ", end="")
    for line in response:
        line = line.decode().strip()
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            ended = True
            continue
        events += 1
        text = json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        if text and first is None:
            first = time.perf_counter() - began
        say(text.replace("\n", f"\n    {DIM}|{PLAIN} "), end="")
    seconds = time.perf_counter() - began
    say()
    expect(ended and first is not None, "a stream should bring words and end with [DONE]", f"{events} events")
    say(f"    first word after {BOLD}{first * 1000:,.0f} ms{PLAIN}, {events} events in {seconds * 1000:,.0f} ms")


def run_into_the_limit(servers):
    title(f"4. {RAPID_CALLS} rapid calls: 5 a second are allowed, and 10 at once")
    statuses, retry_after, message = [], None, ""
    for _ in range(RAPID_CALLS):
        status, headers, body = servers.ask("POST", "/v1/chat/completions", chat(SKY))
        statuses.append(status)
        if status == 429 and retry_after is None:
            retry_after, message = headers["retry-after"], json.loads(body)["error"]["message"]
    say("    " + " ".join(f"{GREEN if s == 200 else YELLOW}{s}{PLAIN}" for s in statuses))
    count = collections.Counter(statuses)
    expect(set(count) == {200, 429}, "some calls should get 200, some 429 and none anything else", dict(count))
    expect(retry_after is not None, "a 429 should say when to try again", "silent")
    say(f"    {BOLD}{count[200]} × 200, {count[429]} × 429{PLAIN}, retry-after: {retry_after}")
    say(quoted(message))
    time.sleep(int(retry_after))
    status, _, _ = servers.ask("POST", "/v1/chat/completions", chat(SKY))
    expect(status == 200, "a call after that many seconds should get 200", status)
    say(f"    {retry_after} s later: {GREEN}{status}{PLAIN}")


def show_stats(servers):
    title("5. What the gateway counted: GET /stats")
    status, _, body = servers.ask("GET", "/stats")
    expect(status == 200, "/stats should be answered with 200", status)
    for line in json.dumps(json.loads(body), indent=2).splitlines():
        say(f"    {line}")


def demo():
    with Servers() as servers:
        ask_and_ask_again(servers)
        stream(servers)
        run_into_the_limit(servers)
        show_stats(servers)
    title("Both servers have been stopped. What to try next:")
    say("    make run                                    # the same two, until Ctrl-C; then, in another terminal:")
    say("    curl -i localhost:9001/v1/chat/completions -d '{\"messages\":[{\"role\":\"user\",\"content\":\"Hello!\"}]}'")
    say("    curl -N localhost:9001/v1/chat/completions \\")
    say("         -d '{\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"Tell me about ships.\"}]}'")
    say("    http://127.0.0.1:9002/dashboard             # in a browser, while it runs: who asks, what is slow, what was refused")
    say("    LLM_URL=http://my-llama-server:8080 target/debug/ai-gateway     # before a llama-server of your own")


play(demo)
