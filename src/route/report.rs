//! What a server says of itself: its slots, its models, and, where it is a router of several models, which of them are
//! loaded.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// On how many requests it works at once; `None`: it does not say.
    pub slots: Option<u32>,
    /// Changes when the model behind the same name does.
    pub fingerprint: [u8; 32],
    /// The entries of its `/v1/models`, each with an `id`.
    pub models: Vec<Map<String, Value>>,
    /// llama-server in router mode: a process for each model that is loaded, and no more than so many.
    pub router: Option<Router>,
}

/// What a router says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Router {
    /// Models that it has loaded at once; `None`: any number.
    pub loaded_max: Option<usize>,
    /// Whether it loads a model that a request names.
    pub autoloads: bool,
    pub models: Vec<Routed>,
}

/// What a router says of one of its models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routed {
    pub id: String,
    pub aliases: Vec<String>,
    pub state: LoadState,
    /// `--parallel` of the command line that it is loaded by; `None`: that does not say.
    pub slots: Option<u32>,
    fingerprint: [u8; 32],
}

/// How far a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadState {
    Unloaded,
    Loading,
    Loaded,
    /// It is being downloaded, or in a state that nobody knew of: the router has the word.
    Elsewhere,
}

impl LoadState {
    fn read(state: &str) -> Self {
        match state {
            "unloaded" => Self::Unloaded,
            "loading" => Self::Loading,
            // One that sleeps is loaded again within its own process, which stays.
            "loaded" | "sleeping" => Self::Loaded,
            _ => Self::Elsewhere,
        }
    }
}

/// The fields of `/props` that tell one model from another. Others (`is_sleeping`, slot counts) change from day to
/// day without changing an answer.
const TELLING: &[&str] =
    &["model_path", "model_alias", "build_info", "chat_template", "default_generation_settings"];

/// Members of a `/v1/models` entry that change without the model changing.
const FLEETING: &[&str] = &["created", "status", "in_cache"];

/// What a router tells of the process behind a model is not for callers: paths, ports, keys.
const INTERNAL: &[&str] = &["args", "preset"];

impl Report {
    /// From the bodies of `/props` (if it is served) and `/v1/models`.
    pub fn read(props: Option<&Value>, models: Option<&Value>) -> Self {
        let mut hash = Sha256::new();
        for name in TELLING {
            let told = props.and_then(|props| props.get(*name)).cloned().unwrap_or_default();
            hash.update(name);
            hash.update(without_fleeting(told).to_string());
        }
        let list = models.and_then(|models| models.get("data")).and_then(Value::as_array);
        let mut models: Vec<_> = list
            .into_iter()
            .flatten()
            .filter_map(Value::as_object)
            .filter(|model| model.get("id").is_some_and(Value::is_string))
            .cloned()
            .collect();
        let router = props.and_then(|props| Router::read(props, &models, &hash));
        match &router {
            Some(router) => router.models.iter().for_each(|model| hash.update(model.fingerprint)),
            None => models
                .iter()
                .for_each(|model| hash.update(without_fleeting(Value::Object(model.clone())).to_string())),
        }
        for status in models.iter_mut().filter_map(|model| model.get_mut("status")?.as_object_mut()) {
            INTERNAL.iter().for_each(|name| drop(status.remove(*name)));
        }
        let slots = props.and_then(|props| props.get("total_slots")?.as_u64()?.try_into().ok());
        Self { slots, fingerprint: hash.finalize().into(), models, router }
    }

    pub fn model_ids(&self) -> impl Iterator<Item = &str> {
        self.models.iter().filter_map(|model| model.get("id").and_then(Value::as_str))
    }

    /// Whether it has a model of that name.
    pub fn has(&self, name: &str) -> bool {
        self.model_ids().any(|id| id == name)
            || self.router.as_ref().is_some_and(|router| router.model(name).is_some())
    }

    /// Changes when this very model does: of several that a router has, another may come and go.
    pub fn fingerprint_of(&self, model: Option<&str>) -> [u8; 32] {
        let routed = self.router.as_ref().and_then(|router| router.model(model?));
        routed.map_or(self.fingerprint, |model| model.fingerprint)
    }
}

impl Router {
    /// `common`: what its models have in common.
    fn read(props: &Value, models: &[Map<String, Value>], common: &Sha256) -> Option<Self> {
        if props.get("role").and_then(Value::as_str) != Some("router") {
            return None;
        }
        let loaded_max = props.get("max_instances").and_then(Value::as_u64).unwrap_or_default();
        Some(Self {
            loaded_max: usize::try_from(loaded_max).ok().filter(|max| *max > 0),
            autoloads: props.get("models_autoload").and_then(Value::as_bool).unwrap_or(true),
            models: models.iter().map(|model| Routed::read(model, common.clone())).collect(),
        })
    }

    fn model(&self, name: &str) -> Option<&Routed> {
        self.models.iter().find(|model| model.id == name || model.aliases.iter().any(|alias| alias == name))
    }
}

impl Routed {
    fn read(model: &Map<String, Value>, mut hash: Sha256) -> Self {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let texts = |value: Option<&Value>| {
            let items = value.and_then(Value::as_array).into_iter().flatten();
            items.map(|item| text(Some(item))).collect::<Vec<_>>()
        };
        let (id, status) = (text(model.get("id")), model.get("status"));
        let of_status = |name: &str| status.and_then(|status| status.get(name));
        let mut args = texts(of_status("args"));
        let slots = args
            .windows(2)
            .find(|pair| matches!(pair[0].as_str(), "--parallel" | "-np"))
            .and_then(|pair| pair[1].parse().ok())
            .filter(|slots| *slots > 0);
        // Every start has a port of its own.
        if let Some(at) = args.iter().position(|arg| arg == "--port") {
            args.drain(at..args.len().min(at + 2));
        }
        // What else it says (`meta`, `architecture`) it says only while the model is loaded.
        for part in [&id, &text(of_status("preset"))].into_iter().chain(&args) {
            hash.update(part);
            hash.update([0]);
        }
        Self {
            aliases: texts(model.get("aliases")),
            state: LoadState::read(&text(of_status("value"))),
            slots,
            fingerprint: hash.finalize().into(),
            id,
        }
    }
}

fn without_fleeting(mut value: Value) -> Value {
    if let Value::Object(members) = &mut value {
        members.retain(|name, _| !FLEETING.contains(&name.as_str()));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_fingerprint_changes_with_the_model_and_with_nothing_else() {
        let props =
            json!({"model_path": "a.gguf", "build_info": "b1", "is_sleeping": false, "total_slots": 4});
        let models = json!({"data": [{"id": "a", "created": 1, "meta": {"n_params": 7}}]});
        let base = Report::read(Some(&props), Some(&models)).fingerprint;
        let changed = |name: &str, value: Value| {
            let mut props = props.clone();
            props[name] = value;
            Report::read(Some(&props), Some(&models)).fingerprint
        };
        assert_eq!(changed("is_sleeping", true.into()), base);
        assert_eq!(changed("total_slots", 1.into()), base);
        assert_ne!(changed("model_path", "b.gguf".into()), base);
        assert_ne!(changed("chat_template", "{}".into()), base);
        let later = json!({"data": [{"id": "a", "created": 2, "meta": {"n_params": 7}}]});
        assert_eq!(Report::read(Some(&props), Some(&later)).fingerprint, base);
        let other = json!({"data": [{"id": "a", "created": 1, "meta": {"n_params": 8}}]});
        assert_ne!(Report::read(Some(&props), Some(&other)).fingerprint, base);
    }

    fn router(loaded: bool, file: &str, more: &Value) -> Report {
        let port = if loaded { "60893" } else { "0" };
        let args = json!(["llama-server", "--port", port, "--model", file, "--parallel", "2"]);
        let status =
            json!({"value": if loaded { "loaded" } else { "unloaded" }, "args": args, "preset": "[a]"});
        let mut model = json!({"id": "a", "aliases": ["first"], "created": 1, "status": status});
        if loaded {
            model["meta"] = json!({"n_params": 7});
        }
        let props =
            json!({"role": "router", "max_instances": 2, "models_autoload": true, "build_info": "b1"});
        Report::read(Some(&props), Some(&json!({"data": [model, more]})))
    }

    #[test]
    fn a_router_tells_its_models_and_their_fingerprints_do_not_change_as_they_load() {
        let other = json!({"id": "b", "status": {"value": "loading", "args": ["--parallel", "-1"]}});
        let report = router(false, "a.gguf", &other);
        let told = report.router.clone().expect("a router");
        assert_eq!((told.loaded_max, told.autoloads), (Some(2), true));
        let told: Vec<_> = told.models.iter().map(|it| (it.id.as_str(), it.state, it.slots)).collect();
        assert_eq!(told, [("a", LoadState::Unloaded, Some(2)), ("b", LoadState::Loading, None)]);
        assert_eq!(
            report.models[0]["status"],
            json!({"value": "unloaded"}),
            "its command line is not for callers"
        );
        assert!(report.has("a") && report.has("first") && !report.has("c"));

        let prints = |report: &Report| (report.fingerprint_of(Some("first")), report.fingerprint);
        assert_eq!(prints(&router(true, "a.gguf", &other)), prints(&report));
        assert_ne!(prints(&router(true, "b.gguf", &other)).0, prints(&report).0);
        let added = router(true, "a.gguf", &json!({"id": "c"}));
        assert_eq!(prints(&added).0, prints(&report).0, "the model itself is what it was");
        assert_ne!(report.fingerprint_of(Some("b")), report.fingerprint_of(Some("a")));
    }
}
