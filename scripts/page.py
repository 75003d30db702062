"""The operator's page in a real browser: what people see and do, by day and night, on a phone and by keyboard.

A scripted llama-server, the gateway, and headless Chromium, driven through a pair of pipes (the DevTools protocol, with
`--remote-debugging-pipe`). Screenshots go to target/page/, for people to look at.
"""

import base64
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHOTS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "page"
GATEWAY = os.environ["GATEWAY_BINARY"]
PATIENCE_SECONDS = 20
TOKEN, ALICE, BOB = "let-me-in", "sk-alice", "sk-bob"
WORDS = "The sky is blue because air scatters short waves more than long ones .".split()


def eventually(what, holds):
    given_up = time.monotonic() + PATIENCE_SECONDS
    while not (seen := holds()):
        if time.monotonic() > given_up:
            raise AssertionError(f"not so after {PATIENCE_SECONDS} s: {what}")
        time.sleep(0.05)
    return seen


class Llama(http.server.BaseHTTPRequestHandler):
    """Says the same to everybody, a word in 20 ms; to `fail`, nothing."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply({
            "/props": {"total_slots": 4, "model_path": "qwen.gguf"},
            "/v1/models": {"object": "list", "data": [{"id": "qwen2.5-3b", "object": "model"}]},
        }.get(self.path, {"status": "ok"}))

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = asked["messages"][0]["content"]
        if self.path.endswith("/input_tokens"):
            return self.reply({"object": "response.input_tokens", "input_tokens": 120})
        if text == "fail":
            self.close_connection = True
            return
        usage = {"prompt_tokens": 120, "completion_tokens": len(WORDS), "prompt_tokens_details": {"cached_tokens": 90}}
        timings = {"prompt_n": 30, "cache_n": 90, "prompt_ms": 20.0, "predicted_n": len(WORDS), "predicted_ms": 240.0}
        told = {"object": "chat.completion", "model": "qwen2.5-3b", "usage": usage, "timings": timings}
        if text.startswith("slow"):
            time.sleep(2.2)
        if not asked.get("stream"):
            message = {"role": "assistant", "content": " ".join(WORDS)}
            return self.reply(told | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for word in WORDS:
            time.sleep(0.02)
            self.event({"choices": [{"index": 0, "delta": {"content": word + " "}, "finish_reason": None}]})
        self.event(told | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, value):
        event = f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.wfile.flush()


class Gateway:
    def __init__(self, folder, llama, ports, more):
        self.callers, self.operators = (f"http://127.0.0.1:{port}" for port in ports[:2])
        admin = f"admin: {{listen: 127.0.0.1:{ports[1]}{more.pop('admin', '')}}}"
        gpus = [f"gpu{number}: {{servers: [{{url: 'http://127.0.0.1:{port}', name: gpu{number}}}]}}"
                for number, port in enumerate((llama, ports[2]), 1)]
        upstreams = f"upstreams: {{{', '.join(gpus)}}}"
        self.file = pathlib.Path(folder) / f"gateway-{ports[0]}.yaml"
        self.file.write_text("\n".join([f"listen: [{{address: 127.0.0.1:{ports[0]}}}]", admin, upstreams,
                                        f"server: {{upgrade_sock: {folder}/{ports[0]}.sock}}", *more.values()]))
        self.start()

    def start(self):
        command = [GATEWAY, "run", "--config", self.file]
        self.child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        eventually("the gateway is live", lambda: self.status(f"{self.operators}/live") == 200)
        eventually("and serves", lambda: self.status(f"{self.callers}/live") == 200)

    def status(self, url):
        try:
            return urllib.request.urlopen(url).status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def ask(self, text, key=None, **members):
        body = {"messages": [{"role": "user", "content": text}], "model": "qwen2.5-3b"} | members
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(f"{self.callers}/v1/chat/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request) as answer:
                answer.read()
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def stop(self):
        self.child.terminate()
        self.child.communicate()


class Browser:
    """Chromium, and one page of it."""

    def __init__(self, folder):
        there, self.commands = os.pipe()
        self.answers, back = os.pipe()
        flags = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={folder}/profile", "--no-first-run",
                 "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")
        # The DevTools protocol is spoken on file descriptors 3 and 4.
        script = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'
        browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
        command = ["bash", "-c", script, "bash", str(there), str(back), browser, *flags, "about:blank"]
        self.child = subprocess.Popen(command, pass_fds=(there, back), stdin=subprocess.DEVNULL,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(there)
        os.close(back)
        self.number, self.rest, self.session, self.said, self.asked = 0, b"", None, [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.number:
            self.note(answer)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["result"]

    def read(self):
        while b"\0" not in self.rest:
            part = os.read(self.answers, 1 << 16)
            if not part:
                raise AssertionError("the browser ended")
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def note(self, event):
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.said.append(params["exceptionDetails"]["exception"].get("description"))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["source"] in ("security", "javascript"):
            self.said.append(params["entry"]["text"])
        elif event.get("method") == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])

    def run(self, script):
        told = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in told:
            raise AssertionError(f"{script}: {told['exceptionDetails']}")
        return told["result"].get("value")

    def text(self, selector):
        return self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def sees(self, selector, *words):
        """Waits until an element's text has all of these."""
        try:
            return eventually(words, lambda: all(word in self.text(selector) for word in words))
        except AssertionError:
            raise AssertionError(f"{selector} does not say {words} but: {self.text(selector)!r}") from None

    def open(self, url, width=1280, height=900, dark=False):
        self.width = width
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        window = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **window)
        self.call("Page.navigate", url=url)

    def key(self, name, modifiers=0, text=None):
        codes = {"Enter": 13, "Tab": 9}
        press = {"key": name, "code": name, "windowsVirtualKeyCode": codes[name], "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", **press, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **press)

    def shoot(self, name):
        height = self.run("document.documentElement.scrollHeight")
        width = self.run("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        (SHOTS / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))

    def stop(self):
        self.child.terminate()
        self.child.wait()


# What people cannot read: text with less than WCAG's contrast to what is behind it.
CONTRAST = """(() => {
  const rgb = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length === 3 ? [...n, 1] : n; };
  const light = ([r, g, b]) => [r, g, b].map((it) => { it /= 255; return it <= .03928 ? it / 12.92 : ((it + .055) / 1.055) ** 2.4; })
    .reduce((sum, it, at) => sum + it * [.2126, .7152, .0722][at], 0);
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((it) => it.nodeType === 3 && it.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest("button:disabled, .unseen, .skip, .uplot, main.old")) continue;
    let back = node, at = [0, 0, 0, 0];
    while (back && (at = rgb(getComputedStyle(back).backgroundColor))[3] < 1) back = back.parentElement;
    const [one, other] = [light(rgb(getComputedStyle(node).color)), light(at)].sort((a, b) => b - a);
    const ratio = (one + .05) / (other + .05);
    if (ratio < 4.5) found.push(`${node.tagName} "${node.textContent.trim().slice(0, 30)}" ${ratio.toFixed(2)}`);
  }
  return found;
})()"""


def check_look(browser, what):
    # Of a page that is too wide a phone zooms out, and its window is wider then.
    poor = browser.run(CONTRAST)
    assert not poor, f"{what}: too little contrast: {poor}"
    wide = browser.run("Math.max(document.documentElement.scrollWidth, innerWidth)")
    assert wide <= browser.width, f"{what}: the page is {wide} px wide, and its window {browser.width}"


def open_gateway(browser, gateway):
    """Nobody has asked yet, nobody needs a key."""
    browser.open(f"{gateway.operators}/dashboard")
    browser.sees("#state", "Up, with 1 of 2 servers")
    browser.sees("#requests-empty", "No request yet", f"curl {gateway.callers}/v1/chat/completions")
    browser.sees("#keys-note", "Nobody is asked for a key")
    browser.sees("#server-rows", "gpu1", "gpu2", "Down", "0 of 4", "qwen2.5-3b")
    check_look(browser, "empty")
    browser.shoot("empty")

    # By keyboard alone.
    browser.run("document.querySelector('#try-prompt').focus()")
    browser.key("Enter", modifiers=2)
    browser.sees("#try-answer", "The sky is blue")
    browser.sees("#try-said", "200", "cache: miss", "first word after")
    browser.sees("#request-rows", "200", "prefill 20 ms", "generation 240 ms", "completions stream", "120 → 14")
    eventually("another may be sent", lambda: not browser.run("document.querySelector('#try-send').disabled"))
    browser.key("Enter", modifiers=2)
    browser.sees("#try-said", "cache: hit")
    browser.sees("#request-rows tr:first-child", "200 from the cache")
    browser.shoot("tried")

    for word in ("Drain", "Undrain"):
        browser.run(f"document.querySelector('[aria-label=\"{word} server gpu1\"]').focus()")
        browser.key("Enter", text="\r")
        browser.sees("#server-rows", "Drained" if word == "Drain" else "Up")
        label = browser.run("document.activeElement.ariaLabel")
        assert label in ("Drain server gpu1", "Undrain server gpu1"), f"the focus was lost to {label}"
    browser.sees("#servers-said", "gets requests again")


def guarded_gateway(browser, gateway):
    """Keys with limits, a token for operators."""
    for number in range(3):
        assert gateway.ask(f"question {number}", ALICE) == 200
    assert gateway.ask("question 0", ALICE) == 200
    statuses = [gateway.ask(f"many {number}", BOB) for number in range(3)]
    assert statuses[-1] == 429, statuses
    assert gateway.ask("hi", "sk-nobody") == 401
    assert gateway.ask("hi", ALICE, model="gpt-9") == 404
    assert gateway.ask("slow one", ALICE) == 200
    assert gateway.ask("fail", ALICE) == 502

    browser.open(f"{gateway.operators}/dashboard")
    eventually("the token is asked for", lambda: browser.run("document.activeElement?.id") == "token")
    check_look(browser, "locked")
    browser.shoot("locked")
    for token in ("wrong", TOKEN):
        eventually("the field waits", lambda: browser.run("document.activeElement?.id") == "token")
        browser.call("Input.insertText", text=token)
        browser.key("Enter", text="\r")
        if token == "wrong":
            browser.sees("#login-error", "That is not the token.")
    browser.sees("#keys", "alice", "bob", "0 of 2", "tokens this month")
    browser.sees("#request-rows", "429 rate limit exceeded by limit key.requests", "The limit `key.requests`",
                 "401 invalid api key", "No valid API key", "404 model not found", "502 upstream error")
    browser.run("document.querySelector('[name=filter][value=no]').click()")
    browser.sees("#n-no", "(4)")
    assert "from the cache" not in browser.text("#request-rows")
    browser.run("document.querySelector('[name=filter][value=slow]').click()")
    browser.sees("#n-slow", "(1)")
    browser.run("document.querySelector('[name=filter][value=all]').click()")
    browser.sees("#ttft-note", "half are faster")
    eventually("there are charts", lambda: browser.run("document.querySelectorAll('#charts canvas').length") == 5)
    for dark in (False, True):
        browser.open(f"{gateway.operators}/dashboard", dark=dark)
        browser.sees("#request-rows", "alice")
        eventually("there are charts", lambda: browser.run("document.querySelectorAll('#charts canvas').length") == 5)
        check_look(browser, "dark" if dark else "light")
        browser.shoot("dark" if dark else "light")
    browser.open(f"{gateway.operators}/dashboard", width=360, height=740)
    browser.sees("#request-rows", "alice")
    eventually("there are charts", lambda: browser.run("document.querySelectorAll('#charts canvas').length") == 5)
    check_look(browser, "phone")
    browser.shoot("phone")

    # A prompt that is refused says why.
    browser.run("document.querySelector('#try-send').click()")
    browser.sees("#try-said", "401 invalid_api_key")
    shown = browser.run("document.documentElement.outerHTML")
    for secret in (ALICE, BOB, TOKEN, "question 0", "scatters"):
        assert secret not in shown, secret

    gateway.stop()
    browser.sees("#lost", "No word from the gateway", "Next try in", "Try now")
    browser.sees("#state", "Connection lost")
    browser.shoot("lost")
    gateway.start()
    browser.sees("#state", "Up")
    eventually("the complaint is gone", lambda: browser.run("document.querySelector('#lost').hidden"))


def main():
    SHOTS.mkdir(parents=True, exist_ok=True)
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Llama) for _ in range(7)]
    free = [server.server_address[1] for server in servers]
    for server in servers[1:]:
        server.server_close()
    threading.Thread(target=servers[0].serve_forever, daemon=True).start()
    hashed = [subprocess.run([GATEWAY, "key", "hash"], input=key, capture_output=True, text=True, check=True)
              for key in (ALICE, BOB)]
    keys = [run.stdout.strip() for run in hashed]
    auth = ("auth: {keys: ["
            f"{{name: alice, sha256: {keys[0]}, limits: {{requests: 600/min, tokens: 100000/min}}, "
            "budget: [{tokens: 5M/month}]}, "
            f"{{name: bob, sha256: {keys[1]}, limits: {{requests: 2/h}}}}]}}")
    with tempfile.TemporaryDirectory() as folder:
        started = [Gateway(folder, free[0], free[1:4], {}),
                   Gateway(folder, free[0], free[4:7], {
                       "admin": f", token: {TOKEN}", "auth": auth, "models": "models: {qwen2.5-3b: {upstream: gpu1}}"})]
        browser = Browser(folder)
        try:
            for play, gateway in zip((open_gateway, guarded_gateway), started):
                began = time.monotonic()
                browser.asked.clear()
                play(browser, gateway)
                elsewhere = {url for url in browser.asked
                             if not url.startswith((gateway.callers, gateway.operators, "data:", "about:"))}
                assert not elsewhere, f"the page asks others: {elsewhere}"
                print(f"    {play.__name__}: {play.__doc__} passed in {time.monotonic() - began:.1f} s")
            assert not browser.said, f"the browser complains: {browser.said}"
        except BaseException:
            browser.shoot("failed")
            print(f"    the page, as it failed: {SHOTS}/failed.png; the browser said: {browser.said}", file=sys.stderr)
            raise
        finally:
            browser.stop()
            for gateway in started:
                gateway.stop()
    print(f"    screenshots: {SHOTS}")


main()
