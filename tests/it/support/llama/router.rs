//! llama-server in router mode: which of its models are loaded, by whose request, and what went for what.
//!
//! It does the worst that a router may: it has no queue, and where it is full a request for another model unloads the
//! least recently used one, at work or not. A play then asks how often that happened.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// How a router behaves.
#[derive(Debug, Clone)]
pub(crate) struct RouterScript {
    pub(super) models: Vec<String>,
    pub(super) loaded_max: usize,
    pub(super) slots: Option<u32>,
    pub(super) keeps_all: bool,
    pub(super) works_elsewhere: bool,
    pub(super) autoloads: bool,
}

/// What has become of its models.
#[derive(Debug, Default)]
pub(super) struct Router(Mutex<Loaded>);

#[derive(Debug, Default)]
struct Loaded {
    /// The least recently used first, with its requests.
    models: Vec<(String, usize)>,
    loads: Vec<String>,
    unloads: Vec<String>,
    evictions: Vec<String>,
}

/// A request at one of the models.
pub(super) struct AtWork(Arc<Router>, String);

impl Drop for AtWork {
    fn drop(&mut self) {
        if let Some(model) = self.0.loaded().models.iter_mut().find(|model| model.0 == self.1) {
            model.1 = model.1.saturating_sub(1);
        }
    }
}

impl Router {
    fn loaded(&self) -> std::sync::MutexGuard<'_, Loaded> {
        self.0.lock().expect("not poisoned")
    }

    /// A request for a model comes: loads it.
    pub(super) fn enter(self: &Arc<Self>, model: &str, script: &RouterScript) -> AtWork {
        let model = model.trim_end_matches("-alias");
        let mut loaded = self.loaded();
        let at = loaded.models.iter().position(|(id, _)| id == model);
        let (_, at_work) = at.map_or_else(|| (String::new(), 0), |at| loaded.models.remove(at));
        if at.is_none() {
            loaded.loads.push(model.to_owned());
            if loaded.models.len() >= script.loaded_max {
                let (gone, _) = loaded.models.remove(0);
                loaded.evictions.push(gone);
            }
        }
        loaded.models.push((model.to_owned(), at_work + 1));
        AtWork(Arc::clone(self), model.to_owned())
    }

    /// What it answers to `/models/unload`.
    pub(super) fn unload(&self, model: &str, script: &RouterScript) -> (u16, Value) {
        let mut loaded = self.loaded();
        if script.keeps_all {
            return (500, super::shapes::error(500));
        }
        let Some(at) = loaded.models.iter().position(|(id, _)| id == model) else {
            return (400, json!({"error": {"code": 400, "message": "model is not running"}}));
        };
        let (_, at_work) = loaded.models.remove(at);
        loaded.unloads.push(model.to_owned());
        if at_work > 0 {
            loaded.evictions.push(model.to_owned());
        }
        (200, json!({"success": true}))
    }

    /// What it says of itself or of one of its models, as build 10435 does.
    pub(super) fn about(&self, target: &str, script: &RouterScript) -> Option<Value> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let loaded = self.loaded();
        let is_loaded = |model: &str| loaded.models.iter().any(|(id, _)| id == model);
        let asked = query.split('&').find_map(|part| part.strip_prefix("model="));
        Some(match (path, asked) {
            ("/props", None) => json!({"role": "router", "max_instances": script.loaded_max,
                "models_autoload": script.autoloads, "model_alias": "llama-server", "model_path": "none",
                "default_generation_settings": {"params": null, "n_ctx": 0}, "build_info": "b10435-unknown"}),
            ("/props", Some(model)) if is_loaded(model) => json!({"total_slots": 2}),
            ("/slots", Some(model)) if is_loaded(model) => {
                json!([{"id": 0, "is_processing": script.works_elsewhere}])
            }
            ("/v1/models" | "/models", _) => {
                let model = |id: &String| {
                    let port = if is_loaded(id) { "60893" } else { "0" };
                    let mut args = vec!["llama-server".to_owned(), "--port".to_owned(), port.to_owned()];
                    args.extend(["--model".to_owned(), format!("/models/{id}.gguf")]);
                    args.extend(script.slots.iter().flat_map(|it| ["--parallel".to_owned(), it.to_string()]));
                    let value = if is_loaded(id) { "loaded" } else { "unloaded" };
                    let mut model = json!({"id": id, "aliases": [format!("{id}-alias")], "tags": [],
                        "object": "model", "owned_by": "llamacpp", "created": 1_795_527_595,
                        "status": {"value": value, "args": args, "preset": format!("[{id}]\n")}});
                    if is_loaded(id) {
                        model["meta"] = json!({"n_params": 134_515_008});
                    }
                    model
                };
                json!({"object": "list", "data": script.models.iter().map(model).collect::<Vec<_>>()})
            }
            _ => return None,
        })
    }

    /// Every load, in turn.
    pub(super) fn loads(&self) -> Vec<String> {
        self.loaded().loads.clone()
    }

    /// What it was told to unload.
    pub(super) fn unloads(&self) -> Vec<String> {
        self.loaded().unloads.clone()
    }

    /// What it unloaded by its own choice, or under its callers.
    pub(super) fn evictions(&self) -> Vec<String> {
        self.loaded().evictions.clone()
    }
}
