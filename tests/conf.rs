//! Every file in `conf/` loads; every file in `tests/conf/broken/` is refused with exactly the faults that its
//! first lines name; no text at all makes the reader panic.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "conf/schema.rs"]
mod schema;

use std::fs;
use std::path::{Path, PathBuf};

use ai_gateway::auth::KeyHash;
use ai_gateway::cache::{Answers, Scope};
use ai_gateway::config::{self, AccessLog, Cors, LogFormat, Settings};
use ai_gateway::route::{Balance, Kind, Slots};

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn yaml_files(path: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder(path)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
    files.sort();
    files
}

fn no_variables(_: &str) -> Option<String> {
    None
}

/// The settings of a text that must have no fault and no warning.
fn settings(text: &str) -> Settings {
    let loaded =
        config::from_text(text, "test.yaml", &no_variables).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(loaded.warnings, Vec::<String>::new());
    loaded.settings
}

/// What a cluster mounts beside a Secret's keys.
const K8S: [&str; 2] = ["conf/k8s/gateway.yaml", "conf/k8s-scaled/gateway.yaml"];

/// Those that a gateway is started with; `keys.yaml` is one that they name.
fn conf_files() -> Vec<PathBuf> {
    yaml_files("conf").into_iter().filter(|file| !file.ends_with("keys.yaml")).collect()
}

#[test]
fn every_file_in_conf_loads_without_a_warning() {
    let files = conf_files();
    assert!(files.len() >= 6);
    for file in files.into_iter().chain(K8S.map(folder)) {
        let loaded = config::load(&file, &no_variables).unwrap_or_else(|faults| panic!("{faults}"));
        assert_eq!(loaded.warnings, Vec::<String>::new(), "{}", file.display());
    }
}

/// What the manifests say of the gateway's file is what stands in it.
#[test]
fn the_pod_has_the_ports_and_the_time_that_its_file_asks_for() {
    let deployment = fs::read_to_string(folder("conf/k8s/deployment.yaml")).unwrap();
    let seconds = |key: &str| -> u64 {
        let line = deployment.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap();
        line.trim().parse().unwrap()
    };
    for file in K8S {
        let file = config::load(&folder(file), &no_variables).unwrap().settings;
        let needed = file.server.pre_stop + file.server.grace_period;
        assert!(seconds("terminationGracePeriodSeconds:") > needed.as_secs(), "{needed:?}");
        let metrics = file.metrics.unwrap().address;
        for (name, port) in [("http", file.listen[0].address.port()), ("metrics", metrics.port())] {
            let named = format!("{{name: {name}, containerPort: {port}}}");
            assert!(deployment.contains(&named), "{named}");
        }
        assert!(deployment.contains(&format!("prometheus.io/port: \"{}\"", metrics.port())));
    }
}

#[test]
fn the_written_defaults_are_the_defaults() {
    let text = fs::read_to_string(folder("conf/gateway.yaml")).unwrap();
    let limits = "limits: {gateway: {requests: 5/s, burst: 10}}";
    let unwritten = format!("upstreams: {{local: http://127.0.0.1:8080}}\n{limits}");
    let (mut written, unwritten) = (settings(&text), settings(&unwritten));
    // That one is written.
    assert!(std::mem::replace(&mut written.admin.named, false));
    assert_eq!(format!("{written:#?}"), format!("{unwritten:#?}"));
}

/// A broken file begins with the faults it must give, as comments: `# line:column: path: message`.
#[test]
fn every_broken_file_says_exactly_why() {
    let files = yaml_files("tests/conf/broken");
    assert!(files.len() >= 20);
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let expected: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("# ")).collect();
        let faults = config::load(&file, &no_variables).expect_err(&file.display().to_string()).to_string();
        let folder = format!("{}/", file.parent().unwrap().display());
        let this = format!("{}:", file.file_name().unwrap().to_string_lossy());
        let relative = faults.replace(&folder, "");
        let found: Vec<&str> =
            relative.lines().map(|line| line.strip_prefix(&this).unwrap_or(line)).collect();
        if found != expected {
            wrong.push(format!("{}:\n# {}\n", file.display(), found.join("\n# ")));
        }
    }
    assert!(wrong.is_empty(), "these faults were found instead:\n{}", wrong.join("\n"));
}

/// Every key of the contract at once, with what is not in effect yet.
const CONTRACT: &str = r#"
listen:
  - address: 0.0.0.0:9001
admin: {listen: 0.0.0.0:9002, token: "${TOKEN}"}
metrics: {listen: 0.0.0.0:9003}
upstreams:
  local:
    servers:
      - url: http://127.0.0.1:8080
        api_key: ${LLAMA_API_KEY}
        slots: auto
        name: gpu1
        weight: 1
        ca: /etc/gw/ca.crt
    kind: llama
    balance: prefix
    health: {path: /health, every: 2s, timeout: 5s, down_after: 3, up_after: 1}
    timeouts: {connect: 2s, first_byte: none, between_bytes: 5m, total: none}
    retries: 2
    queue: {waiting: 256, wait: 60s}
    streamed: always
    isolation: key
  gpu:
    servers: [{url: "http://gpu:8080", slots: 4, weight: 2}, {url: "http://gpu:8081"}]
    kind: openai
    balance: least_busy
    retries: 0
models:
  qwen2.5-3b: {upstream: local}
  gpt-4o-mini: {upstream: local, as: qwen2.5-3b}
  large: {upstream: gpu, fallback: [qwen2.5-3b], request: {set: {top_k: 40}, default: {temperature: 0.7}, remove: [logit_bias], max_tokens: 4096}, cache: deterministic}
  "*": local
auth:
  keys:
    - name: alice
      sha256: 2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90
      models: [qwen2.5-3b]
      expires: 2027-01-01T00:00:00Z
      priority: 1
      from: [10.0.0.0/8]
      limits: {requests: 60/min, burst: 10, tokens: 100000/min, concurrent: 4}
      budget: [{tokens: 5M/month}]
      cache: none
      user_header: x-openwebui-user-id
    - name: bob
      sha256:
        - 81b637d8fcd2c6da6359e6963113a1170de795e4b725b84d1e0b4cfd9ec58ce9
        - 4b1ae2c9c4f2f1b2f1b0c7b3b9ab22f4dcd9c0b0ea6dbd7e4d9dd6a0b1a2c3d4
      priority: 2
  keys_file: broken/keys/good.yaml
trusted_proxies: [10.0.0.0/8]
limits:
  gateway: {requests: 5/s, burst: 10, concurrent: 100}
  key: {requests: 60/min, burst: 20, tokens: 100000/min, concurrent: 8}
  ip: {requests: 50/s}
cache:
  ttl: 300s
  size: 64MiB
  entry: 1MiB
  scope: gateway
  answers: deterministic
body: {max: 32MiB, total: 512MiB, idle: 30s, remote_media: allow}
cors: {origins: ["https://chat.example.com"]}
shared: {valkey: redis://host:6379, required: false}
usage: {path: /var/lib/ai-gateway/usage.db}
log: {access: logs/access.log, format: text, level: debug, prompts: true}
telemetry: {otlp: http://collector:4317, sample: 0.5}
server: {threads: 4, grace_period_seconds: 60, pre_stop: 5s, pid_file: "/run/a \"b\".pid", daemon: false}
"#;

#[test]
fn every_key_of_the_contract_is_known() {
    let file_name = folder("tests/conf/contract.yaml").display().to_string();
    let variables = |name: &str| match name {
        "TOKEN" => Some("open sesame".to_owned()),
        "LLAMA_API_KEY" => Some("to the server".to_owned()),
        _ => None,
    };
    let loaded =
        config::from_text(CONTRACT, &file_name, &variables).unwrap_or_else(|faults| panic!("{faults}"));
    let unexpected: Vec<&String> = loaded
        .warnings
        .iter()
        .filter(|warning| !warning.ends_with("is not used: the server is reached by plain http"))
        .filter(|warning| !warning.contains("prompts and answers are written in `log.format: json` alone"))
        .collect();
    assert_eq!(unexpected, [""; 0], "every key is in effect");
    let settings = loaded.settings;
    let shared = settings.shared.unwrap();
    assert_eq!((shared.dial.address.to_string(), shared.required), ("host:6379".to_owned(), false));
    assert_eq!(settings.listen[0].address, "0.0.0.0:9001".parse().unwrap());
    assert_eq!(settings.admin.listen.address, "0.0.0.0:9002".parse().unwrap());
    assert_eq!(settings.admin.token.unwrap().0, "open sesame");
    assert_eq!(settings.metrics.unwrap().address, "0.0.0.0:9003".parse().unwrap());
    assert_eq!(settings.usage, Some("/var/lib/ai-gateway/usage.db".into()));
    let [local, gpu] = &settings.upstreams[..] else { panic!("two upstreams") };
    assert_eq!((local.name.as_str(), local.kind, local.retries), ("local", Kind::Llama, 2));
    assert_eq!(local.servers[0].name, "gpu1");
    assert_eq!(local.servers[0].api_key.as_ref().unwrap().0, "to the server");
    assert_eq!((gpu.kind, gpu.balance, gpu.retries), (Kind::OpenAi, Balance::LeastBusy, 0));
    assert_eq!((gpu.servers[0].slots, gpu.servers[0].weight), (Slots::Fixed(4), 2));
    assert_eq!(gpu.servers[1].name, "gpu:8081");
    let rules: Vec<_> =
        settings.models.iter().map(|model| (&*model.rule.pattern, &*model.rule.upstream)).collect();
    assert_eq!(rules, [("qwen2.5-3b", "local"), ("gpt-4o-mini", "local"), ("large", "gpu"), ("*", "local")]);
    assert_eq!(settings.models[1].rule.rename.as_deref(), Some("qwen2.5-3b"));
    assert_eq!(settings.models[2].answers, Some(Answers::Deterministic));
    let keys = settings.keys.unwrap();
    let names: Vec<&str> = keys.iter().map(|key| key.key.name.as_str()).collect();
    assert_eq!(names, ["alice", "bob", "carol"]);
    assert_eq!(keys[0].key.hashes, [KeyHash::of(b"alice")]);
    assert!(
        keys[0].key.models.as_ref().unwrap().allow("qwen2.5-3b") && keys[0].answers == Some(Answers::None)
    );
    assert_eq!((keys[0].limits.burst, keys[0].limits.concurrent), (Some(10), Some(4)));
    assert_eq!((keys[1].key.hashes.len(), keys[1].limits), (2, Default::default()));
    assert_eq!(settings.limits.ip.unwrap().to_string(), "50/s");
    assert_eq!(settings.limits.gateway.concurrent, Some(100));
    assert_eq!((settings.cache.scope, settings.cache.answers), (Scope::Gateway, Answers::Deterministic));
    assert!(settings.body.remote_media);
    assert!(matches!(settings.cors, Cors::Listed(origins) if origins == ["https://chat.example.com"]));
    assert_eq!(settings.log.access, AccessLog::File(folder("tests/conf/logs/access.log")));
    assert_eq!((settings.log.format, settings.log.level), (LogFormat::Text, log::LevelFilter::Debug));
    assert_eq!((settings.server.threads, settings.server.pre_stop.as_secs()), (4, 5));
    assert_eq!(
        settings.server.pingora,
        "version: 1\nthreads: 4\ndaemon: false\npid_file: \"/run/a \\\"b\\\".pid\"\n"
    );
}

#[test]
fn what_is_absent_decides_with_what_is_there() {
    const LOCAL: &str = "upstreams: {local: http://127.0.0.1:8080}";
    const KEY: &str =
        "auth: {keys: [{name: a, sha256: 2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90}]}";
    let open = settings(LOCAL);
    assert!(open.keys.is_none() && matches!(open.cors, Cors::Loopback) && !open.admin.named);
    assert_eq!(open.limits.gateway, Default::default());
    assert!(matches!(settings(&format!("{LOCAL}\n{KEY}")).cors, Cors::Any));
    assert!(matches!(settings(&format!("{LOCAL}\ncors: {{origins: ['*']}}")).cors, Cors::Any));
    let large = settings(&format!("{LOCAL}\nbody: {{max: 1GiB}}"));
    assert_eq!((large.body.bytes_max, large.body.bytes_total_max), (1 << 30, 1 << 30));
    let model = settings("upstreams: {a: http://a, b: http://b}\nmodels: {m: {as: n}}").models.remove(0);
    assert_eq!((model.rule.upstream.as_str(), model.rule.rename.as_deref()), ("a", Some("n")));
    let anchored = settings("upstreams: {a: {servers: &s [{url: http://a}]}, b: {servers: *s}}");
    assert_eq!(anchored.upstreams[1].servers[0].name, "a:80");
    assert!(settings(&format!("\u{feff}---\n{LOCAL}\n...\n")).models.is_empty());
}

#[test]
fn a_value_may_stand_in_a_file() {
    let name = folder("tests/conf/broken/main.yaml").display().to_string();
    let text = "upstreams: {local: {servers: [{url: http://127.0.0.1:8080, api_key: {file: keys/secret}}]}}";
    let loaded = config::from_text(text, &name, &no_variables).unwrap();
    assert_eq!(loaded.settings.upstreams[0].servers[0].api_key.as_ref().unwrap().0, "open sesame");
}

#[test]
fn what_is_no_text_of_this_kind_is_refused() {
    let new = std::env::temp_dir().join(format!("ai-gateway-conf-{}", std::process::id()));
    fs::create_dir_all(&new).unwrap();
    let path = |name: &str| new.join(name);
    fs::write(path("latin1"), b"upstreams:\n  caf\xe9: x").unwrap();
    fs::write(path("large"), "#".repeat((1 << 20) + 1)).unwrap();
    fs::write(path("none"), "").unwrap();
    for (path, says) in [
        (path("missing"), ": cannot be read: No such file"),
        (new.clone(), ": expected a file, found a folder"),
        (path("latin1"), ":2:6: expected UTF-8 text"),
        (path("large"), ": expected at most 1024 KiB, found more"),
        (path("none"), ":1:1: the file is empty"),
    ] {
        let faults = config::load(&path, &no_variables).unwrap_err().to_string();
        assert!(faults.starts_with(&format!("{}{says}", path.display())), "{faults}");
        assert_eq!(faults.lines().count(), 1, "{faults}");
    }
    fs::remove_dir_all(new).unwrap();
}

/// Cut anywhere, with anything written over it, a file gives settings or faults, and soon.
#[test]
fn no_text_makes_the_reader_panic() {
    let gateway = fs::read_to_string(folder("conf/gateway.yaml")).unwrap();
    for (end, _) in gateway.char_indices() {
        let _ = config::from_text(&gateway[..end], "test.yaml", &no_variables);
    }
    let pieces = [
        "{",
        "}",
        "[",
        "]",
        ":",
        ": ",
        "-",
        "- ",
        "?",
        "&a",
        "*a",
        "!",
        "|",
        ">",
        "'",
        "\"",
        "#",
        "%",
        "\n",
        "\t",
        "\r",
        "${",
        "$${",
        "---",
        "...",
        "\u{feff}",
        "\0",
        "é",
        "\u{1f600}",
        "  ",
        "null",
        "~",
        "<<",
        "@",
        "`",
        "0",
    ];
    let mut random = fastrand::Rng::with_seed(1);
    for round in 0..3000 {
        let mut text = if round % 2 == 0 { gateway.clone() } else { CONTRACT.to_owned() };
        for _ in 0..random.usize(1..6) {
            let at = text.floor_char_boundary(random.usize(..=text.len()));
            let until = text.ceil_char_boundary((at + random.usize(0..4)).min(text.len()));
            let piece = if random.bool() {
                pieces[random.usize(..pieces.len())].to_owned()
            } else {
                text[until..].chars().take(9).collect()
            };
            text.replace_range(at..until, &piece);
        }
        if let Err(faults) = config::from_text(&text, "test.yaml", &no_variables) {
            assert_eq!(faults.to_string().lines().count(), faults.iter().count(), "{text}");
        }
    }
}

#[test]
fn a_text_made_to_be_hard_is_refused_soon() {
    let deep = |unit: &str| unit.repeat((1 << 20) / unit.len());
    let names: String = (0..100_000).map(|index| format!("a{index}: \n")).collect();
    let twice = deep("a: 1\n");
    for text in [
        deep("["),
        deep("{a: "),
        deep("- "),
        deep("? "),
        deep("a:\n "),
        deep("!"),
        deep("&a "),
        deep("%"),
        deep("\""),
        deep("${"),
        names,
        twice,
    ] {
        let start = text[..4].to_owned();
        assert!(config::from_text(&text, "test.yaml", &no_variables).is_err(), "{start}");
    }
}
