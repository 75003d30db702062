//! The protocols that llama-server speaks: endpoints, bodies, streams, error envelopes.

/// Whether llama-server answers POST requests at this path.
pub fn is_endpoint_path(_path: &str) -> bool {
    false
}
