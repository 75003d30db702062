// The operator's page: it reads `/dashboard/live`, an event a second, and shows what it says. All text goes into the
// document as text, never as markup: names and paths come from callers.
"use strict";

const $ = (id) => document.getElementById(id);
const GATEWAY = document.querySelector("meta[name=gateway]").content;
const STEPS_MAX = 360, REQUESTS_MAX = 100, SLOW_MS = 2000, SILENCE_MS_MAX = 8000, RETRY_MS_MAX = 15000;

let steps = [], requests = [], access = null, last = null, charts = [];

// --- Words and figures -------------------------------------------------------------------------------------------

function el(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
const set = (id, ...children) => $(id).replaceChildren(...children);

function count(n) {
  if (n < 10000) return String(n);
  const units = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];
  const [size, unit] = units.find(([size]) => n >= size);
  return (n / size).toFixed(n / size < 100 ? 1 : 0) + unit;
}
function ms(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  if (value < 1) return "<1 ms";
  if (value < 1000) return Math.round(value) + " ms";
  if (value < 60000) return (value / 1000).toFixed(value < 10000 ? 2 : 1) + " s";
  return Math.floor(value / 60000) + " min " + Math.round(value % 60000 / 1000) + " s";
}
function duration(seconds) {
  const [d, h, m] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  if (d) return `${d} d ${h} h`;
  if (h) return `${h} h ${m} min`;
  return m ? `${m} min` : `${Math.floor(seconds)} s`;
}
function bytes(n) {
  if (n < 1024) return n + " B";
  return n < 1048576 ? (n / 1024).toFixed(1) + " KiB" : (n / 1048576).toFixed(1) + " MiB";
}
const percent = (part, whole) => whole ? Math.round(100 * part / whole) + " %" : "–";
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

// --- Asking the gateway ------------------------------------------------------------------------------------------

const TOKEN = "ai-gateway-admin-token";
const authorized = () => {
  const token = sessionStorage.getItem(TOKEN);
  return token ? {authorization: "Bearer " + token} : {};
};

/// Reads the events of a stream; `tell` gets the data of each.
async function events(body, tell) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = "";;) {
    const {done, value} = await reader.read();
    if (done) return;
    text += value;
    const whole = text.split(/\r?\n\r?\n/);
    text = whole.pop();
    for (const event of whole) {
      const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
      if (data.length) tell(data.join("\n"));
    }
  }
}

async function problem(answer) {
  try { return (await answer.json()).error; } catch { return {code: "", message: answer.statusText || "no reason given"}; }
}

async function live() {
  for (let wait = 1000;; wait = Math.min(wait * 2, RETRY_MS_MAX)) {
    const leave = new AbortController();
    let silence, why = "it ended the connection";
    const heard = () => { clearTimeout(silence); silence = setTimeout(() => leave.abort(), SILENCE_MS_MAX); };
    try {
      heard();
      const answer = await fetch("/dashboard/live", {headers: authorized(), cache: "no-store", signal: leave.signal});
      if (answer.status === 401) {
        clearTimeout(silence);
        await login();
        wait = 500;
        continue;
      }
      if (!answer.ok) throw new Error((await problem(answer)).message);
      steps = []; requests = [];
      await events(answer.body, (data) => { heard(); wait = 1000; show(JSON.parse(data)); });
    } catch (error) {
      why = error.name === "AbortError" ? "it says nothing" : error.name === "TypeError" ? "it cannot be reached" : error.message;
    }
    clearTimeout(silence);
    await lost(why, wait);
  }
}

function lost(why, wait) {
  $("page").classList.add("old");
  state("bad", "Connection lost");
  const again = el("button", "", "Try now");
  again.type = "button";
  const seconds = Math.ceil(wait / 1000);
  set("lost", `No word from the gateway: ${why}. What stands here is old. Is the process running? Next try in ${seconds} s. `, again);
  $("lost").hidden = false;
  return new Promise((resolve) => { again.onclick = resolve; setTimeout(resolve, wait); });
}

/// Resolves when somebody has given a token; whether it is the right one the next answer says.
function login() {
  const had = sessionStorage.getItem(TOKEN);
  sessionStorage.removeItem(TOKEN);
  set("login-error", had ? "That is not the token." : "");
  state("unknown", "Locked");
  $("lost").hidden = true; $("page").hidden = true; $("login").hidden = false;
  $("token").focus();
  return new Promise((resolve) => {
    $("login").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(TOKEN, $("token").value);
      $("token").value = "";
      $("login").hidden = true;
      resolve();
    };
  });
}

async function change(method, path, said, done) {
  set(said, "…");
  try {
    const answer = await fetch(path, {method, headers: authorized()});
    set(said, answer.ok ? done : `Not done: ${(await problem(answer)).message}`);
  } catch { set(said, "Not done: the gateway cannot be reached."); }
}

// --- What is shown -----------------------------------------------------------------------------------------------

function state(kind, words) {
  $("state").className = "pill " + kind;
  if ($("state").textContent !== words) $("state").textContent = words;
}

function show(news) {
  last = news;
  if (news.access) access = news.access;
  steps = steps.concat(news.steps).slice(-STEPS_MAX);
  requests = requests.concat(news.requests).slice(-REQUESTS_MAX);
  $("lost").hidden = true; $("page").hidden = false; $("page").classList.remove("old");
  now(news);
  servers(news.servers);
  if (news.access) keys();
  if (news.steps.length || !charts.length) draw();
  if (news.requests.length || requests.length === 0) rows();
}

function now({ready, well, totals, minute, servers}) {
  const up = new Set(servers.filter((it) => it.up && !it.draining).map((it) => it.server));
  const all = new Set(servers.map((it) => it.server));
  if (!ready) state("warn", "Leaving: takes nothing new");
  else if (!well) state("bad", "No server is up");
  else if (up.size < all.size) state("warn", `Up, with ${up.size} of ${all.size} servers`);
  else state("good", "Up");
  document.title = (ready && well ? "" : "⚠ ") + "ai-gateway";
  set("about", `${totals.version} · running for ${duration(totals.uptime_seconds)} · ${plural(totals.requests, "request")} since`);

  const once = [...new Map(servers.map((it) => [it.url, it])).values()];
  const known = once.filter((it) => it.slots !== null);
  const [busy, slots] = [known.reduce((sum, it) => sum + it.in_flight, 0), known.reduce((sum, it) => sum + it.slots, 0)];
  set("in-flight", count(totals.in_flight));
  set("slots", slots ? `${busy} of ${plural(slots, "slot")} busy` : "slots are not known yet");
  set("queue", count(totals.queue));
  set("queue-note", totals.queue ? "every slot is busy" : "nobody waits");
  $("queue").className = totals.queue ? "warn" : "";

  const over = minute.seconds || 1;
  set("rate", count(minute.requests));
  const bad = [[minute.refused, "refused"], [minute.failed, "failed"], [minute.left, "left by callers"]].filter(([n]) => n);
  set("rate-note", bad.length ? el("span", minute.failed ? "bad" : "warn", bad.map(([n, word]) => `${n} ${word}`).join(", ")) : "none refused, none failed");
  const rate = minute.tokens_out / over;
  set("tokens", rate < 100 ? rate.toFixed(1) : count(Math.round(rate)));
  set("tokens-note", `${count(minute.tokens_in)} read, ${count(minute.tokens_out)} made`);
  set("ttft", ms(minute.ttft_p50_ms));
  set("ttft-note", minute.ttft_p50_ms === null ? "no answer in the last minute" : `half are faster; 95 % within ${ms(minute.ttft_p95_ms)}`);
  const asked = minute.hits + minute.shared + minute.misses;
  set("hits", percent(minute.hits + minute.shared, asked));
  set("hits-note", asked ? `${minute.hits} kept, ${minute.shared} shared, of ${asked}` : "nothing asked in the last minute");
  set("cache-note", `${plural(totals.cache_entries, "answer")} kept, ${bytes(totals.cache_size)} of ${bytes(totals.cache_capacity)}; `
    + `it has saved ${count(totals.saved_tokens)} tokens and ${duration(totals.saved_seconds)} of servers' time.`);
}

function stateOf(server) {
  if (server.draining) return ["warn", server.in_flight ? `Draining: ${server.in_flight} under way` : "Drained", "It gets nothing new."];
  if (server.breaker === "open") return ["bad", "Out: breaker open", "Requests failed there; it is tried again after a pause."];
  if (server.breaker === "half_open") return ["warn", "On trial", "One request tries it."];
  return server.up ? ["good", "Up", ""] : ["bad", "Down", "Its health probe fails: is it running, and is its URL right?"];
}

function servers(list) {
  // Rows are kept while a button of theirs has the focus.
  const body = $("server-rows"), focused = body.contains(document.activeElement) ? document.activeElement.dataset.server : null;
  body.replaceChildren(...list.map((server) => {
    const [kind, words, why] = stateOf(server);
    const mine = requests.filter((it) => it.server === server.server && it.cached_prompt_tokens !== null && it.prompt_tokens);
    const reused = mine.reduce((sum, it) => sum + it.cached_prompt_tokens, 0), read = mine.reduce((sum, it) => sum + it.prompt_tokens, 0);
    const button = el("button", "", server.draining ? "Undrain" : "Drain");
    button.type = "button";
    button.dataset.server = server.server;
    button.setAttribute("aria-label", `${button.textContent} server ${server.server}`);
    button.title = server.draining ? "Send it requests again" : "Send it nothing new; what it has it finishes";
    button.onclick = () => {
      const to = server.draining ? "undrain" : "drain";
      change("POST", `/servers/${encodeURIComponent(server.server)}/${to}`, "servers-said",
        to === "drain" ? `${server.server} gets nothing new and finishes what it has.` : `${server.server} gets requests again.`);
    };
    const slots = el("td");
    if (server.slots === null) slots.append(`${server.in_flight} busy`);
    else {
      const bar = el("span", "slots");
      bar.setAttribute("aria-hidden", "true");
      if (server.slots <= 32) for (let n = 0; n < server.slots; n++) bar.append(el("i", n < server.in_flight ? "busy" : ""));
      slots.append(server.slots <= 32 ? bar : "", `${server.in_flight} of ${server.slots}`);
    }
    const models = server.router ? server.router.filter((it) => it.state === "loaded").map((it) => it.model) : server.models ?? [];
    return el("tr", "",
      el("td", "", el("b", "", server.server), el("div", "sub", `${server.url} in ${server.upstream}`)),
      el("td", "", el("span", kind, words), why && kind !== "good" ? el("span", "why", why) : null),
      slots, el("td", "n", String(server.waiting)),
      el("td", "n", read ? percent(reused, read) : "–"),
      el("td", "wrap", models.slice(0, 8).join(", ") + (models.length > 8 ? ` and ${models.length - 8} more` : "") || "–"),
      el("td", "n", button));
  }));
  if (focused !== null) [...body.querySelectorAll("button")].find((it) => it.dataset.server === focused)?.focus();
}

function meter(level) {
  if (!level) return el("span", "quiet", "no limit");
  const part = level.limit ? level.remaining / level.limit : 0;
  const bar = el("span", part < .1 ? "meter low" : "meter", el("i"));
  bar.firstChild.style.width = 100 * part + "%";
  bar.setAttribute("aria-hidden", "true");
  return el("span", "", bar, `${count(level.remaining)} of ${count(level.limit)}`);
}

function keys() {
  const {asks_for_key, keys, keys_count, limits} = access;
  const all = [];
  if (limits.requests) all.push(`${limits.requests.remaining} of ${limits.requests.limit} requests left`);
  if (limits.tokens) all.push(`${count(limits.tokens.remaining)} of ${count(limits.tokens.limit)} tokens left`);
  if (limits.concurrent) all.push(`${limits.concurrent.now} of ${limits.concurrent.limit} at once`);
  const together = all.length ? `All callers together: ${all.join(", ")}.` : "";
  const open = asks_for_key ? "" : "Nobody is asked for a key: name auth.keys in the file, and each caller gets a row and limits of its own. ";
  const more = keys_count > keys.length ? ` The ${keys.length} of ${keys_count} that use most.` : "";
  set("keys-note", open + together + more);
  $("key-rows").replaceChildren(...keys.map((key) => {
    const tokens = ({prompt_tokens, completion_tokens}) => prompt_tokens + completion_tokens;
    const at_once = key.limits.concurrent;
    const budgets = key.budgets.map((it) => el("div", "", meter({limit: it.amount, remaining: it.remaining}),
      el("div", "sub", `${it.of} this ${it.per}`)));
    return el("tr", "", el("td", "", el("b", "", key.name)),
      el("td", "n", at_once ? `${key.in_flight} of ${at_once.limit}` : String(key.in_flight)),
      el("td", "", meter(key.limits.requests)), el("td", "", meter(key.limits.tokens)),
      el("td", "", ...(budgets.length ? budgets : [el("span", "quiet", "no budget")])),
      el("td", "n", count(key.used.day.requests)), el("td", "n", count(tokens(key.used.day))), el("td", "n", count(tokens(key.used.month))));
  }));
  if ($("models").childElementCount !== access.models.length) set("models", ...access.models.map((it) => new Option(it)));
  $("try-key-label").hidden = !asks_for_key;
}

// --- The last requests -------------------------------------------------------------------------------------------

const WHY = {
  invalid_json: "Its body is not JSON.",
  invalid_request: "Its body is not what this endpoint takes; the answer said which member.",
  remote_media: "It names a picture by URL, which a server would fetch: body.remote_media denies it.",
  invalid_api_key: "It showed no key, or a wrong or expired one.",
  model_not_allowed: "Its key may not use this model.",
  not_found: "Nothing is served at this path.",
  model_not_found: "No model of this name: neither the file nor a server has it.",
};

function outcome(it) {
  if (it.status === 499) return ["warn", "499 caller left", it.completion_tokens || it.ttft_ms !== null
    ? "Its caller left before the answer was whole." : "Its caller left before an answer began."];
  if (it.status < 400) {
    const from = {hit: "from the cache", shared: "shared with another"}[it.cache];
    if (!it.complete) return ["bad", `${it.status} broken off`, it.message ?? "The server broke the answer off."];
    return ["good", [it.status, from].filter(Boolean).join(" "), it.attempts > 1 ? `After ${it.attempts} tries.` : ""];
  }
  if (!it.error_code) {
    const of = it.upstream_status ? "The server itself answered so" : "Answered so";
    return [it.status >= 500 ? "bad" : "warn", String(it.status), `${of}; its message went to the caller.`];
  }
  const limit = it.limit ? ` by limit ${it.limit}` : "";
  return [it.status >= 500 ? "bad" : "warn", `${it.status} ${it.error_code.replaceAll("_", " ")}${limit}`,
    it.message ?? WHY[it.error_code] ?? ""];
}
const isNo = (it) => it.status >= 400 || !it.complete;

function bar(it, longest) {
  const known = [["queue", it.queue_ms], ["prefill", it.prefill_ms ?? 0], ["generation", it.generation_ms ?? 0]];
  const rest = Math.max(0, it.duration_ms - known.reduce((sum, [, part]) => sum + part, 0));
  const parts = [...known, ["rest", rest]].filter(([, part]) => part > 0);
  const node = el("span", "bar", ...parts.map(([name]) => el("i", name)));
  // By the square root: a second is to be seen beside a minute.
  const whole = Math.max(2, 100 * Math.sqrt(it.duration_ms / longest)), sum = parts.reduce((sum, [, part]) => sum + part, 0);
  parts.forEach(([, part], at) => { node.children[at].style.width = whole * part / sum + "%"; });
  node.setAttribute("aria-hidden", "true");
  const words = parts.filter(([name, part]) => name !== "rest" && part >= .5).map(([name, part]) => `${name} ${ms(part)}`).join(", ");
  node.title = words;
  return el("td", "", node, ms(it.duration_ms), words ? el("div", "sub", words) : null);
}

function rows() {
  if ($("hold").checked) return;
  const newest = requests.toReversed(), slow = (it) => it.duration_ms >= SLOW_MS;
  const filter = {all: () => true, no: isNo, slow}[document.querySelector("input[name=filter]:checked").value];
  const seen = newest.filter(filter), longest = Math.max(1, ...seen.map((it) => it.duration_ms));
  set("n-all", `(${newest.length})`); set("n-no", `(${newest.filter(isNo).length})`); set("n-slow", `(${newest.filter(slow).length})`);
  $("requests-table").hidden = !seen.length; $("requests-empty").hidden = !!seen.length;
  if (newest.length) set("requests-empty", "None of the last hundred is so.");
  else set("requests-empty", "No request yet. ", Object.assign(el("a", "", "Try one here"), {href: "#try"}), ", or: ",
    el("code", "", `curl ${GATEWAY}/v1/chat/completions -d '{"messages":[{"role":"user","content":"Hello!"}]}'`
      + (access?.asks_for_key ? " -H 'authorization: Bearer YOUR-KEY'" : "")));
  $("request-rows").replaceChildren(...seen.map((it) => {
    const [kind, words, why] = outcome(it), time = new Date(it.ts);
    const tokens = it.prompt_tokens === null && it.completion_tokens === null ? "–"
      : [it.prompt_tokens, it.completion_tokens].map((n) => n === null ? "–" : count(n)).join(" → ");
    const cell = el("td", "", time.toLocaleTimeString([], {hour12: false}));
    cell.title = `${it.ts}, x-request-id: ${it.request_id}`;
    return el("tr", "", cell,
      el("td", "", el("span", kind, words), why ? el("span", "why", why) : null), bar(it, longest),
      el("td", "", it.key ?? "–", it.user ? el("div", "sub", it.user) : null), el("td", "", it.model ?? "–"), el("td", "", it.server ?? "–"),
      el("td", "n", tokens, it.cached_prompt_tokens ? el("div", "sub", `${count(it.cached_prompt_tokens)} reused`) : null),
      el("td", "mono", it.path, it.stream ? el("span", "sub", " stream") : null));
  }));
}

// --- Charts ------------------------------------------------------------------------------------------------------

const CHARTS = [
  {title: "Requests a minute", lines: [["all", "--prefill", (it) => it.requests / it.seconds * 60],
    ["refused", "--queue", (it) => it.refused / it.seconds * 60], ["failed", "--bad", (it) => it.failed / it.seconds * 60]]},
  {title: "Tokens a second", lines: [["made", "--generation", (it) => it.tokens_out / it.seconds], ["read", "--prefill", (it) => it.tokens_in / it.seconds]]},
  {title: "Time to first token", unit: ms, lines: [["half", "--prefill", (it) => it.ttft_p50_ms], ["95 %", "--queue", (it) => it.ttft_p95_ms]]},
  {title: "Answered from the cache, %", most: 100, lines: [["hits", "--generation", (it) => {
    const asked = it.hits + it.shared + it.misses;
    return asked ? 100 * (it.hits + it.shared) / asked : null;
  }]]},
  {title: "Waiting and under way", lines: [["waiting", "--queue", (it) => it.queue], ["under way", "--prefill", (it) => it.in_flight]]},
];

/// A colour of the style sheet, as it is when it is used: day and night differ.
const paint = (name) => () => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function draw() {
  $("hour-empty").hidden = steps.length > 0;
  if (!steps.length) return;
  const end = steps.at(-1).at / 1000, begin = Math.max(end - 3600, Math.min(steps[0].at / 1000 - 10, end - 300));
  const times = steps.map((it) => it.at / 1000);
  if (!charts.length) charts = CHARTS.map((chart) => {
    const caption = el("figcaption", "", el("b", "", chart.title), ...chart.lines.map(([name, colour]) => {
      const key = el("i", "k");
      key.style.background = `var(${colour})`;
      return el("span", "", key, name);
    }));
    const figure = el("figure", "", caption);
    $("charts").append(figure);
    const axis = {stroke: paint("--quiet"), ticks: {show: false}, font: "11px system-ui, sans-serif",
      grid: {stroke: paint("--faint"), width: 1}};
    const plot = new uPlot({
      width: figure.clientWidth - 24, height: 130, legend: {show: false}, cursor: {show: false}, padding: [8, 8, 0, 0],
      scales: {x: {time: true}, y: {range: (_, low, high) => [0, chart.most ?? Math.max(1, high * 1.1)]}},
      axes: [{...axis, size: 22, space: 60, values: (_, at) => at.map((it) => new Date(it * 1000).toLocaleTimeString([], {hour: "2-digit", minute: "2-digit", hour12: false}))},
        {...axis, size: 48, space: 30, values: (_, at) => at.map((it) => chart.unit ? chart.unit(it) : it >= 1000 ? count(it) : String(+it.toFixed(1)))}],
      series: [{}, ...chart.lines.map(([, colour]) => ({stroke: paint(colour), width: 1.5, spanGaps: true, points: {size: 4}}))],
    }, [times, ...chart.lines.map(() => times.map(() => null))], figure);
    plot.root.setAttribute("role", "img");
    return {chart, plot, figure};
  });
  for (const {chart, plot, figure} of charts) {
    const lines = chart.lines.map(([, , read]) => steps.map(read));
    plot.setData([times, ...lines], false);
    plot.setScale("x", {min: begin, max: end});
    const latest = chart.lines.map(([name], at) => {
      const value = lines[at].findLast((it) => it !== null);
      return `${name} ${value === undefined ? "none" : chart.unit ? chart.unit(value) : +value.toFixed(1)}`;
    });
    plot.root.setAttribute("aria-label", `${chart.title}, at last: ${latest.join(", ")}`);
  }
}

// --- Trying a prompt ---------------------------------------------------------------------------------------------

let trying = null;

async function tryPrompt() {
  const started = performance.now(), answer = $("try-answer"), said = (kind, ...words) => set("try-said", el("span", kind, ...words));
  const body = {messages: [{role: "user", content: $("try-prompt").value}], stream: true, max_tokens: Number($("try-tokens").value) || 256};
  if ($("try-model").value.trim()) body.model = $("try-model").value.trim();
  const headers = {"content-type": "application/json"}, key = $("try-key").value.trim();
  if (key && access?.asks_for_key) headers.authorization = "Bearer " + key;
  trying = new AbortController();
  $("try-send").disabled = true; $("try-stop").disabled = false;
  set("try-answer"); answer.hidden = true; said("quiet", "Asked; waiting for the first word …");
  let first = null, pieces = 0, failed = null, finish = null;
  const meta = (reply) => [`${reply.status}`, reply.headers.get("x-cache") && `cache: ${reply.headers.get("x-cache")}`,
    first !== null && `first word after ${ms(first)}`, `${ms(performance.now() - started)} in all`,
    pieces && `${pieces} pieces`, finish === "length" && "cut at the tokens allowed"].filter(Boolean).join(" · ");
  try {
    const reply = await fetch(GATEWAY + "/v1/chat/completions", {method: "POST", headers, body: JSON.stringify(body), signal: trying.signal});
    if (!reply.ok) {
      const {code, message} = await problem(reply), wait = reply.headers.get("retry-after");
      said("bad", `${reply.status} ${code ?? ""}: ${message}${wait ? ` Try again in ${wait} s.` : ""}`);
      return;
    }
    await events(reply.body, (data) => {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) { failed = event.error.message; return; }
      const choice = event.choices?.[0], word = (choice?.delta?.reasoning_content ?? "") + (choice?.delta?.content ?? "");
      finish = choice?.finish_reason ?? finish;
      if (!word) return;
      first ??= performance.now() - started;
      pieces += 1;
      answer.hidden = false;
      answer.append(word);
      said("quiet", meta(reply));
    });
    if (failed) said("bad", `Broken off: ${failed}`);
    else said("good", meta(reply));
  } catch (error) {
    if (error.name === "AbortError") said("quiet", "Stopped.");
    else said("bad", `The gateway's answer could not be read. Does it listen at ${GATEWAY} as this browser sees it? `
      + `A page is let in by cors.origins of its file: name "${location.origin}" there.`);
  } finally {
    trying = null;
    $("try-send").disabled = false; $("try-stop").disabled = true;
  }
}

set("try-url", GATEWAY || "nowhere: this page was opened under a name that is none");
$("try-form").onsubmit = (event) => { event.preventDefault(); if (!trying) tryPrompt(); };
$("try-stop").onclick = () => trying?.abort();
$("try-prompt").onkeydown = (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("try-form").requestSubmit(); };
$("filter").onchange = rows;
$("hold").onchange = rows;
$("purge").onclick = () => {
  if (confirm("Forget every answer that is kept? The next requests go to the servers.")) change("DELETE", "/cache", "purge-said", "Purged.");
};
const redraw = () => charts.forEach(({plot, figure}) => plot.setSize({width: figure.clientWidth - 24, height: 130}));
addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
live();
