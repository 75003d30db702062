//! `conf/schema.json` says of a file what the reader says of it: the same keys, the same defaults, the same values.
//!
//! Every place of the schema is tried, with every sample: what the reader takes the schema must take, and what the
//! schema takes the reader must take, but for what only the reader can know (`KNOWS_MORE`).

use std::collections::BTreeSet;

use ai_gateway::config::{self, SCHEMA, Settings};
use jsonschema::Validator;
use pingora::server::configuration::ServerConf;
use serde_json::{Map, Value, json};

use super::{CONTRACT, K8S, conf_files, folder, yaml_files};

fn schema() -> Value {
    serde_json::from_str(SCHEMA).unwrap()
}

fn validator() -> Validator {
    jsonschema::draft7::new(&schema()).unwrap()
}

/// A place in the file, as its keys; `0` is an item of a list, `x` a name of the operator's own.
type Path = Vec<String>;

/// What stands at a place.
struct Place {
    path: Path,
    schema: Value,
}

impl Place {
    fn name(&self) -> String {
        self.path.join(".")
    }

    fn keys(&self) -> Option<BTreeSet<String>> {
        (self.schema["additionalProperties"] == json!(false))
            .then(|| self.schema["properties"].as_object().unwrap().keys().cloned().collect())
    }
}

/// Every place that the schema knows, the root first; one that may be of several kinds is there once for each.
fn places() -> Vec<Place> {
    let root = schema();
    let mut places = vec![Place { path: Vec::new(), schema: root.clone() }];
    let mut at = 0;
    while at < places.len() {
        let Place { path, schema } = &places[at];
        let mut found = Vec::new();
        let mut look = |more: Option<&str>, schema: &Value| {
            let mut schema = schema.clone();
            if let Some(name) = schema["$ref"].as_str() {
                schema = root.pointer(&name[1..]).unwrap().clone();
            }
            let path: Path = path.iter().cloned().chain(more.map(str::to_owned)).collect();
            // A file that a value stands in is no place of its own.
            if !(schema["required"] == json!(["file"])) {
                found.push(Place { path, schema });
            }
        };
        for (key, schema) in schema["properties"].as_object().unwrap_or(&Map::new()) {
            look(Some(key), schema);
        }
        if schema["items"].is_object() {
            look(Some("0"), &schema["items"]);
        }
        if schema["additionalProperties"].is_object() {
            look(Some("x"), &schema["additionalProperties"]);
        }
        for schema in schema["anyOf"].as_array().unwrap_or(&Vec::new()) {
            look(None, schema);
        }
        places.append(&mut found);
        at += 1;
    }
    places
}

/// A file in which this stands at that place, with no more around it than is required.
fn file(path: &[String], value: &Value) -> Value {
    let mut file = json!({});
    put(&mut file, path, value);
    if path.is_empty() {
        file.clone_from(value);
    }
    let Some(sections) = file.as_object_mut() else { return file };
    let servers = json!({"x": {"servers": [{"url": "http://a"}]}});
    let upstreams = sections.entry("upstreams").or_insert(servers);
    if let Some(upstream) = upstreams.get_mut("x").and_then(Value::as_object_mut) {
        let servers = upstream.entry("servers").or_insert(json!([{"url": "http://a"}]));
        fill(servers.get_mut(0), &[("url", "http://a")]);
    }
    let hash = "0".repeat(64);
    if path.len() > 2 {
        fill(file.pointer_mut("/auth/keys/0"), &[("name", "a"), ("sha256", &hash)]);
    }
    if path.first().is_some_and(|key| key == "telemetry") {
        fill(file.pointer_mut("/telemetry"), &[("otlp", "http://a")]);
    }
    fill(file.pointer_mut("/listen/0"), &[("address", "127.0.0.1:1")]);
    if path.last().is_some_and(|key| key == "burst") {
        let parent: String = path[..path.len() - 1].iter().map(|key| format!("/{key}")).collect();
        fill(file.pointer_mut(&parent), &[("requests", "5/s")]);
    }
    file
}

fn put(within: &mut Value, path: &[String], value: &Value) {
    let Some((key, rest)) = path.split_first() else { return within.clone_from(value) };
    let mut inner = json!({});
    put(&mut inner, rest, value);
    *within = if key == "0" { json!([inner]) } else { json!({ key: inner }) };
}

fn fill(section: Option<&mut Value>, members: &[(&str, &str)]) {
    let Some(section) = section.and_then(Value::as_object_mut) else { return };
    for (key, value) in members {
        section.entry(*key).or_insert(json!(value));
    }
}

/// What the reader says of it; JSON is YAML.
fn read(file: &Value) -> Result<Settings, String> {
    let environment =
        |name: &str| name.strip_prefix("V_").and_then(|hex| String::from_utf8(hex::decode(hex).ok()?).ok());
    let loaded =
        config::from_text(&file.to_string(), &folder("conf/test.yaml").display().to_string(), &environment);
    loaded.map(|loaded| loaded.settings).map_err(|faults| faults.to_string())
}

#[test]
fn every_key_that_is_read_is_described_and_no_other() {
    let mut seen = 0;
    for place in places() {
        let Some(keys) = place.keys() else { continue };
        let faults = read(&file(&place.path, &json!({"zzz": 1}))).unwrap_err();
        let known = faults.lines().find_map(|line| line.split_once("zzz: unknown key; known here: "));
        let known = known.unwrap_or_else(|| panic!("{}: {faults}", place.name())).1;
        let known: BTreeSet<String> =
            known.split(';').next().unwrap().split(", ").map(str::to_owned).collect();
        assert_eq!(keys, known, "{}", place.name());
        for key in keys {
            assert!(
                described(&place.schema["properties"][&key]),
                "{}: {key} has no description",
                place.name()
            );
            seen += 1;
        }
    }
    assert!(seen > 140, "{seen} keys");
}

fn described(schema: &Value) -> bool {
    schema["description"].as_str().is_some_and(|text| text.ends_with('.') && text.len() > 5)
}

#[test]
fn the_defaults_that_are_described_are_the_defaults() {
    let (mut checked, plain) = (0, comparable(&file(&[], &json!({}))));
    for place in places() {
        // What stands in a key or a listener is compared with another such.
        let without = file(&place.path, &json!({}));
        for (key, schema) in place.schema["properties"].as_object().unwrap_or(&Map::new()) {
            let Some(default) = schema.get("default") else { continue };
            let path: Path = place.path.iter().cloned().chain([key.clone()]).collect();
            let base = if place.path.is_empty() { plain.clone() } else { comparable(&without) };
            assert_eq!(comparable(&file(&path, default)), base, "{}: {default}", path.join("."));
            checked += 1;
        }
    }
    assert!(checked > 40, "{checked} defaults");
}

/// The settings as a text, in which what is written and what is not read the same.
fn comparable(file: &Value) -> String {
    let mut settings = read(file).unwrap_or_else(|faults| panic!("{file}: {faults}"));
    let pingora = ServerConf::from_yaml(&settings.server.pingora).unwrap();
    settings.server.pingora = format!("{pingora:?}");
    settings.admin.named = false;
    format!("{settings:#?}")
}

/// What only the reader can know of these: whether a name is one of the file's, whether a file is there, what two keys
/// say together.
const KNOWS_MORE: [&str; 28] = [
    "admin.client_ca",
    "admin.listen",
    "admin.tls.cert",
    "admin.tls.client_ca",
    "admin.tls.key",
    "auth",
    "auth.keys",
    "auth.keys.0.client_cert",
    "auth.keys.0.client_cert.0",
    "auth.keys.0.expires",
    "auth.keys_file",
    "body.total",
    "listen.0.tls.cert",
    "listen.0.tls.client_ca",
    "listen.0.tls.key",
    "log.access",
    "metrics.tls.cert",
    "metrics.tls.client_ca",
    "metrics.tls.key",
    "models",
    "models.x",
    "models.x.fallback",
    "models.x.fallback.0",
    "models.x.upstream",
    "shared.ca",
    "telemetry.ca",
    "upstreams.x.servers.0.ca",
    "upstreams.x.swap.longest_wait",
];

fn samples() -> Vec<Value> {
    let texts = "0 1 5 -1 4294967296 10k 2M 5s 0s 300ms 1w 5 minutes,5 s,none 64KiB 64 MB,0B 64kb 5/s 60/min 1000/h 2M/day \
                 60/minute 0/s 5M/month 1.5s yes true false True on 127.0.0.1:1 [::1]:2 localhost:3 :9001 9001 10.0.0.0/8 ::1 \
                 2027-01-01 2027-01-01T00:00:00Z tomorrow http://a:1 https://a/v1 https://a redis://a a:80 * /health health \
                 a x-user-id authorization two words,all deterministic key gateway always json text debug stdout ./a.log \
                 linear prefix llama round_robin deny allow auto server model stream";
    let hash = "0".repeat(64);
    let texts = texts.split(' ').map(str::trim).filter(|text| !text.is_empty());
    let mut samples: Vec<Value> =
        texts.chain(["5 minutes", "5 s", "64 MB", "two words", "", &hash]).map(|it| json!(it)).collect();
    samples.extend([
        json!(null),
        json!(0),
        json!(1),
        json!(9001),
        json!(1_u64 << 32),
        json!(-1),
        json!(1.5),
        json!(true),
        json!(false),
    ]);
    samples.extend([json!([]), json!({}), json!(["a"]), json!([{}]), json!({"zzz": 1}), json!({"file": {}})]);
    samples
}

#[test]
fn what_is_read_is_valid_and_what_is_valid_is_read() {
    let validator = validator();
    let (samples, mut wrong) = (samples(), BTreeSet::new());
    let paths: BTreeSet<Path> = places().into_iter().map(|place| place.path).collect();
    let mut taken = 0;
    for path in paths.iter().filter(|path| !path.is_empty()) {
        let mut note =
            |what: &str, value: &Value| wrong.insert(format!("{} {what}: {value}", path.join(".")));
        for sample in &samples {
            let instance = file(path, sample);
            let (read, valid) = (read(&instance), validator.is_valid(&instance));
            if read.is_ok() && !valid {
                note("is read and not valid", sample);
            }
            // A number in quotes has no bounds that a schema could see.
            let quoted = sample.as_str().is_some_and(|text| text.bytes().all(|it| it.is_ascii_digit()));
            if valid && read.is_err() && !quoted && !KNOWS_MORE.contains(&path.join(".").as_str()) {
                note("is valid and not read", sample);
            }
            let Some(text) = sample.as_str().filter(|_| read.is_ok()) else { continue };
            taken += 1;
            // The same from the environment and, where a value stands, from a file.
            let variable = json!(format!("${{V_{}}}", hex::encode(text)));
            if !validator.is_valid(&file(path, &variable)) || self::read(&file(path, &variable)).is_err() {
                note("is not taken from the environment", sample);
            }
            let short = path.len() == 2 && path[1] == "x";
            if !short && !validator.is_valid(&file(path, &json!({"file": "a"}))) {
                note("is not taken from a file", sample);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(taken > 300, "{taken} values were taken");
}

fn yaml(text: &str) -> Option<Value> {
    serde_yaml::from_str(text).ok()
}

#[test]
fn every_file_in_conf_is_valid_and_names_its_schema() {
    let validator = validator();
    for file in conf_files().into_iter().chain(K8S.map(folder)) {
        let text = std::fs::read_to_string(&file).unwrap();
        let faults =
            validator.iter_errors(&yaml(&text).unwrap()).map(|it| it.to_string()).collect::<Vec<_>>();
        assert!(faults.is_empty(), "{}: {faults:#?}", file.display());
        let schema = if K8S.iter().any(|it| file.ends_with(it)) { "../schema.json" } else { "schema.json" };
        let names = format!("# yaml-language-server: $schema={schema}\n");
        assert!(text.starts_with(&names), "{}", file.display());
    }
    assert!(validator.is_valid(&yaml(CONTRACT).unwrap()));
}

/// What is wrong in these no schema can see: what two places say together, other files, the environment, YAML itself.
const UNSEEN: [&str; 12] = [
    "auth_without_keys.yaml",
    "body_total.yaml",
    "fallbacks.yaml",
    "keys_file.yaml",
    "keys_file_missing.yaml",
    "one_server.yaml",
    "open_admin.yaml",
    "tab_after_colon.yaml",
    "twice.yaml",
    "twin_keys.yaml",
    "twin_servers.yaml",
    "variables.yaml",
];

#[test]
fn a_broken_file_is_not_valid_either() {
    let validator = validator();
    let valid = |text: &str| yaml(text).is_some_and(|it| validator.is_valid(&it));
    let mut unseen = Vec::new();
    for file in yaml_files("tests/conf/broken") {
        if valid(&std::fs::read_to_string(&file).unwrap()) {
            unseen.push(file.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    assert_eq!(unseen, UNSEEN);
}
