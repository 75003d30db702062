//! Where a key that stands in the wrong section belongs, by the schema of the file.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::Value;

/// A fault names no more places than this.
const PLACES_MAX: usize = 3;

/// Where a key of this name is known, the outermost first: `limits`, `models.*.limits`. Empty: nowhere.
pub(super) fn of(key: &str) -> &'static [String] {
    static PLACES: OnceLock<HashMap<String, Vec<String>>> = OnceLock::new();
    let places = PLACES.get_or_init(|| {
        let schema: Value = serde_json::from_str(super::SCHEMA).unwrap_or_default();
        let mut places = HashMap::new();
        collect(&schema, &schema, "", &mut places);
        for places in places.values_mut() {
            places.sort_by_key(|place: &String| place.matches('.').count());
            places.truncate(PLACES_MAX);
        }
        places
    });
    places.get(key).map_or(&[], Vec::as_slice)
}

fn collect(root: &Value, schema: &Value, path: &str, places: &mut HashMap<String, Vec<String>>) {
    let reference = schema["$ref"].as_str().and_then(|name| root.pointer(name.strip_prefix('#')?));
    if let Some(schema) = reference {
        return collect(root, schema, path, places);
    }
    // `{file: …}` may stand anywhere, and is no place.
    if schema["properties"].as_object().is_some_and(|keys| !keys.contains_key("file")) {
        for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            places.entry(key.clone()).or_default().push(path.clone());
            collect(root, schema, &path, places);
        }
    }
    for schema in schema["anyOf"].as_array().into_iter().flatten() {
        collect(root, schema, path, places);
    }
    collect_if_object(root, &schema["items"], &format!("{path}[]"), places);
    collect_if_object(root, &schema["additionalProperties"], &format!("{path}.*"), places);
}

fn collect_if_object(root: &Value, schema: &Value, path: &str, places: &mut HashMap<String, Vec<String>>) {
    if schema.is_object() {
        collect(root, schema, path, places);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_key_is_found_where_it_belongs() {
        assert_eq!(super::of("ttl"), ["cache.ttl"]);
        assert_eq!(super::of("limits"), ["limits", "auth.keys[].limits", "models.*.limits"]);
        assert_eq!(super::of("keys"), ["auth.keys"]);
        assert_eq!(super::of("url"), ["upstreams.*.servers[].url"]);
        assert!(super::of("file").is_empty() && super::of("nonsense").is_empty());
    }
}
