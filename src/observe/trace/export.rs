//! Spans on their way to the collector, by the SDK's own thread and queue, and the connection that they take.
//!
//! The SDK's thread knows no asynchronous runtime, and the exporter's connection needs one: a runtime of one thread,
//! which is there only where a collector is named. A collector that is away costs spans, which are counted, a line when
//! it begins and one when it is over.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hyper_rustls::HttpsConnectorBuilder;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanExporter as Export, SpanProcessor,
};
use prometheus::IntCounter;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::runtime::{Builder, Runtime};

use super::super::families::Family;
use super::{Collector, Protocol, SPANS_QUEUED_MAX};

/// Spans are at the collector a second after they ended, or two.
const SEND_EVERY: Duration = Duration::from_secs(1);

/// Spans in one message.
const BATCH_SPANS_MAX: usize = 512;

/// A batch is given up after so long.
const SEND_TIME_MAX: Duration = Duration::from_secs(10);

/// Starts to send. An error says why that cannot be.
pub(super) fn start(
    collector: &Collector,
    queued: Arc<AtomicUsize>,
    spans: Family<IntCounter>,
) -> Result<BatchSpanProcessor, String> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("traces")
        .enable_all()
        .build()
        .map_err(|error| format!("their thread did not start: {error}"))?;
    let runtime = Owned(Some(runtime));
    let exporter = {
        let _within = runtime.0.as_ref().map(Runtime::enter);
        match collector.protocol {
            Protocol::Grpc => by_grpc(collector)?,
            Protocol::Http => by_http(collector)?,
        }
    };
    let way = Way {
        exporter: Arc::new(exporter),
        runtime,
        url: collector.url.clone(),
        failing: AtomicBool::new(false),
        queued,
        spans,
    };
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(SPANS_QUEUED_MAX)
        .with_max_export_batch_size(BATCH_SPANS_MAX)
        .with_scheduled_delay(SEND_EVERY)
        .build();
    let mut processor = BatchSpanProcessor::builder(way).with_batch_config(batches).build();
    processor.set_resource(&Resource::builder().with_service_name(collector.service.clone()).build());
    Ok(processor)
}

fn by_grpc(collector: &Collector) -> Result<SpanExporter, String> {
    let mut headers = http::HeaderMap::new();
    for (name, value) in &collector.headers {
        let name: http::HeaderName = name.parse().map_err(|_| format!("`{name}` is no header's name"))?;
        let mut value: http::HeaderValue =
            value.parse().map_err(|_| format!("the value of header `{name}` cannot be sent"))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    let mut builder = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&collector.url)
        .with_timeout(SEND_TIME_MAX)
        .with_metadata(MetadataMap::from_headers(headers));
    if collector.url.starts_with("https:") {
        let tls = match &collector.ca {
            Some(ca) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        builder = builder.with_tls_config(tls);
    }
    builder.build().map_err(|error| error.to_string())
}

fn by_http(collector: &Collector) -> Result<SpanExporter, String> {
    let ring = || Arc::new(rustls::crypto::ring::default_provider());
    let builder = match &collector.ca {
        Some(ca) => {
            let mut roots = rustls::RootCertStore::empty();
            let pem = read(ca)?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let added = certificate
                    .map_err(|error| error.to_string())
                    .and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
                added.map_err(|why| format!("{}: {why}", ca.display()))?;
            }
            let config = rustls::ClientConfig::builder_with_provider(ring())
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .with_root_certificates(roots)
                .with_no_client_auth();
            HttpsConnectorBuilder::new().with_tls_config(config)
        }
        None => HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
            .map_err(|error| format!("the system's roots cannot be read: {error}"))?,
    };
    let connector = builder.https_or_http().enable_http1().build();
    SpanExporter::builder()
        .with_http()
        .with_http_client(HyperClient::new(connector, SEND_TIME_MAX, None))
        .with_endpoint(traces_url(&collector.url))
        .with_headers(collector.headers.clone())
        .with_timeout(SEND_TIME_MAX)
        .build()
        .map_err(|error| error.to_string())
}

/// A base URL stands for the path that OTLP gives traces.
pub(super) fn traces_url(url: &str) -> String {
    let path = url.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, path)| path);
    if path.is_empty() { format!("{}/v1/traces", url.trim_end_matches('/')) } else { url.to_owned() }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The exporter, on the runtime that its connection needs.
#[derive(Debug)]
struct Way {
    exporter: Arc<SpanExporter>,
    runtime: Owned,
    url: String,
    failing: AtomicBool,
    queued: Arc<AtomicUsize>,
    spans: Family<IntCounter>,
}

impl Export for Way {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let exporter = Arc::clone(&self.exporter);
        let Some(runtime) = &self.runtime.0 else { return Err(OTelSdkError::AlreadyShutdown) };
        let sent = runtime.spawn(async move { exporter.export(batch).await }).await;
        let sent = sent.unwrap_or_else(|error| Err(OTelSdkError::InternalFailure(error.to_string())));
        self.queued.fetch_sub(count, Ordering::AcqRel);
        let result = if sent.is_ok() { "sent" } else { "failed" };
        self.spans.with(&[result]).inc_by(count as u64);
        if self.failing.swap(sent.is_err(), Ordering::AcqRel) != sent.is_err() {
            match &sent {
                Err(why) => log::warn!(
                    "traces do not reach {}: {why}; requests go on, spans are dropped and counted",
                    self.url
                ),
                Ok(()) => log::info!("traces reach {} again", self.url),
            }
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        if let Some(exporter) = Arc::get_mut(&mut self.exporter) {
            exporter.set_resource(resource);
        }
    }
}

/// A runtime that may be dropped where blocking is forbidden. It is there until then.
#[derive(Debug)]
struct Owned(Option<Runtime>);

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
