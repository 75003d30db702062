"""`make run`: llama-server and the gateway, until Ctrl-C. The gateway's log is shown as it comes.

GATEWAY_HOST, GATEWAY_PORT and GATEWAY_KEY are handed on to the gateway where they are set.
"""

import os
import time

from servers import BOLD, PLAIN, Failed, Servers, play, say


def run():
    handed_on = ("GATEWAY_HOST", "GATEWAY_PORT", "GATEWAY_KEY")
    environment = {name: os.environ[name] for name in handed_on if os.environ.get(name)}
    with Servers(environment, gateway_output=1) as servers:
        key = ' -H "authorization: Bearer $GATEWAY_KEY"' if "GATEWAY_KEY" in environment else ""
        say(f"\n    The gateway is at {BOLD}{servers.url}{PLAIN}: one JSON line per request follows. Ctrl-C stops both.")
        say("    What llama-server says, and the gateway besides, is in .demo/. In another terminal:\n")
        say(f"    curl -i {servers.url}/v1/chat/completions{key} \\")
        say("         -d '{\"messages\":[{\"role\":\"user\",\"content\":\"Why is the sky blue?\"}]}'\n")
        while True:
            time.sleep(0.2)
            for name, child in servers.children:
                if child.poll() is not None:
                    raise Failed(f"{name} ended (exit code {child.returncode}): {servers.last_words(name)}")


play(run)
