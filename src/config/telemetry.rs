//! `telemetry`: where traces go.

use std::collections::HashMap;

use super::bundle;
use super::section::{Field, Section};
use super::value::{self, Read};
use crate::observe::{Collector, Protocol};

/// The port that OTLP has for HTTP; 4317 is gRPC's.
const HTTP_PORT: u16 = 4318;

/// `None`: no traces.
pub(super) fn read(section: &mut Section) -> Option<Collector> {
    let otlp = section.take("otlp");
    let others = ["protocol", "headers", "sample", "service_name", "ca"].map(|key| section.take(key));
    if otlp.is_none() {
        for field in others.iter().flatten() {
            field.fault(
                "there is no collector that it would be used for: name `telemetry.otlp` too, or take it out",
            );
        }
    }
    let [protocol, headers, sample, service, ca] = others;
    let url = otlp.and_then(|field| field.value(value::url(&["http", "https"])));
    let words = [("grpc", Protocol::Grpc), ("http", Protocol::Http)];
    let protocol = protocol.and_then(|field| field.value(value::choice(&words)));
    let headers = headers.map(|field| read_headers(&field)).unwrap_or_default();
    let share = sample.and_then(|field| field.value(share)).unwrap_or(1.0);
    let service =
        service.and_then(|field| field.value(value::name)).unwrap_or_else(|| "ai-gateway".to_owned());
    let ca = ca.and_then(|field| bundle::read(&field)).map(|bundle| bundle.file.clone());
    let url = url?;
    let by_url = match url.port_u16() == Some(HTTP_PORT) || url.path().len() > 1 {
        true => Protocol::Http,
        false => Protocol::Grpc,
    };
    Some(Collector {
        url: url.to_string(),
        protocol: protocol.unwrap_or(by_url),
        headers,
        share,
        service,
        ca,
    })
}

fn read_headers(field: &Field) -> HashMap<String, String> {
    let read = |(name, field): (&str, Field)| {
        if let Err(why) = value::header_name(name) {
            field.fault(why);
        }
        Some((name.to_ascii_lowercase(), field.value(header_value)?))
    };
    field.members().into_iter().filter_map(read).collect()
}

fn header_value(text: &str) -> Read<String> {
    let is_one = http::HeaderValue::from_str(text).is_ok_and(|value| value.to_str().is_ok());
    // What it is may be secret.
    if is_one { Ok(text.to_owned()) } else { Err("expected printable ASCII, as a header has it".to_owned()) }
}

/// Of all: 0 is none, 1 is every one.
fn share(text: &str) -> Read<f64> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => value::expected("a share from 0 to 1, such as `0.1`", text),
    }
}
