//! `DELETE /cache`: all answers, or those of a model, of a key, or of a model to a key.

use http::{Method, Response, StatusCode};
use pingora::http::RequestHeader;
use serde_json::{Value, json};

use crate::cache::{Purge, Scope};
use crate::proxy::Gateway;

use super::{REQUEST, method_not_allowed, query, refusal, site};

/// Status, code, type and message of a refusal.
type No = (u16, &'static str, &'static str, String);

/// What to purge, as the query says.
struct Asked {
    model: Option<String>,
    key: Option<String>,
}

pub(super) async fn answer(gateway: &Gateway, head: &RequestHeader) -> Response<Vec<u8>> {
    if head.method != Method::DELETE {
        return method_not_allowed("DELETE");
    }
    if let Some(refusal) = site::refuse_others(gateway, head) {
        return refusal;
    }
    let asked = match query::read(head.uri.query().unwrap_or_default(), ["model", "key"]) {
        Ok([model, key]) => Asked { model, key },
        Err(message) => return refusal(400, "invalid_request", REQUEST, &message),
    };
    match purge(gateway, &asked) {
        Ok(()) => {
            log::info!("purged {}", told(&asked));
            let mut json = json!({"purged": told(&asked)});
            if let Some(depot) = &gateway.depot {
                json["everywhere"] = depot.purges_are_known().await.into();
            }
            let json = json.to_string();
            super::answer(StatusCode::OK, "application/json; charset=utf-8", json.into_bytes())
        }
        Err((status, code, kind, message)) => refusal(status, code, kind, &message),
    }
}

fn purge(gateway: &Gateway, asked: &Asked) -> Result<(), No> {
    let unknown = |code, what: &str, name: &str| {
        let message = format!("No {what} is called `{name}`; nothing was purged.");
        (404, code, "not_found_error", message)
    };
    if let Some(key) = &asked.key {
        if gateway.settings.cache.scope == Scope::Gateway {
            let message = "With `cache.scope: gateway` answers belong to no key; nothing was purged.";
            return Err((400, "invalid_request", REQUEST, message.to_owned()));
        }
        if !gateway.roster().is_some_and(|roster| roster.has(key)) {
            return Err(unknown("key_not_found", "key", key));
        }
    }
    let model = match &asked.model {
        None => None,
        Some(name) => {
            let resolved = gateway.fleet.resolve(Some(name));
            let known = resolved.as_ref().and_then(|resolved| {
                let model = gateway.fleet.known_model(resolved)?;
                Some((resolved.upstream.spec.name.clone(), model.to_owned()))
            });
            Some(known.ok_or_else(|| unknown("model_not_found", "model", name))?)
        }
    };
    let everything = model.is_none() && asked.key.is_none();
    let purge = Purge { model, key: asked.key.clone() };
    match &gateway.depot {
        None => drop(gateway.purges.purge(purge, 0)),
        Some(depot) => {
            // Numbers of replicas are times, so that they rise whoever gives them.
            let time = u64::try_from(gateway.clock.wall().as_microsecond()).unwrap_or_default();
            let number = gateway.purges.purge(purge.clone(), time);
            depot.purge(purge, number);
        }
    }
    if everything {
        // What a narrower purge leaves behind is never found and goes with its time.
        gateway.store.clear();
    }
    Ok(())
}

fn told(asked: &Asked) -> Value {
    match (&asked.model, &asked.key) {
        (None, None) => json!("all"),
        (Some(model), None) => json!({"model": model}),
        (None, Some(key)) => json!({"key": key}),
        (Some(model), Some(key)) => json!({"model": model, "key": key}),
    }
}
