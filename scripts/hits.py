"""`scripts/start hits`: the time of a hit beside a generation, in either form; the table of docs/CACHE.md.

Each line is a question with an answer of so many tokens, asked once as a stream and then from the cache on one
connection. The times are medians, in milliseconds, from the request's first byte to the answer's last.
"""

import http.client
import json
import statistics
import time

from servers import MODEL, Failed, Servers, play, say

TOKENS = (16, 64, 256, 1024)
HITS = 9
PAUSE_SECONDS = 0.21  # the gateway admits five requests a second


def body(tokens, stream):
    message = {"role": "user", "content": f"Tell me a story of the sea in {tokens} words."}
    members = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": stream}
    return json.dumps({"model": MODEL, "messages": [message]} | members)


def ask(connection, tokens, stream, expected):
    began = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body(tokens, stream), {"content-type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    took = (time.perf_counter() - began) * 1000
    if (response.status, response.headers["x-cache"]) != (200, expected):
        raise Failed(f"expected a {expected}, got {response.status} {response.headers['x-cache']}: {answer[:300]}")
    time.sleep(PAUSE_SECONDS)
    return took, len(answer)


def hits():
    with Servers() as servers:
        connection = http.client.HTTPConnection("127.0.0.1", servers.port, timeout=300)
        say("| tokens | generated | hit, streamed | hit, plain, rendered from the stream | bytes of the stream |")
        say("|---|---|---|---|---|")
        for tokens in TOKENS:
            generated, length = ask(connection, tokens, True, "miss")
            streamed = statistics.median(ask(connection, tokens, True, "hit")[0] for _ in range(HITS))
            plain = statistics.median(ask(connection, tokens, False, "hit")[0] for _ in range(HITS))
            say(f"| {tokens} | {generated:,.0f} ms | {streamed:.2f} ms | {plain:.2f} ms | {length:,} |")


play(hits)
