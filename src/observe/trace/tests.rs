//! A trace as it is begun, gone on with and told.

use super::*;
use crate::observe::{Labels, Metrics};

fn traces(share: f64) -> Traces {
    let metrics = Metrics::new(&Labels::default()).expect("the table names nothing twice");
    let collector = Collector {
        url: "http://127.0.0.1:9".to_owned(),
        protocol: Protocol::Grpc,
        headers: HashMap::new(),
        share,
        service: "test".to_owned(),
        ca: None,
    };
    Traces::new(collector, &metrics)
}

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";

#[test]
fn the_callers_trace_goes_on_as_the_caller_decided() {
    let traces = traces(0.0);
    for (flags, sampled) in [("01", true), ("00", false), ("03", true)] {
        let trace = traces.begin(Some(&format!("{PARENT}-{flags}")), Some("vendor=a,other=b"));
        assert_eq!(trace.id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(trace.parent.to_string(), "00f067aa0ba902b7");
        assert_eq!((trace.sampled, trace.tracestate().as_deref()), (sampled, Some("vendor=a,other=b")));
        let told = trace.traceparent();
        let (begin, end) = (&told[..36], &told[told.len() - 2..]);
        assert_eq!((begin, end), (&PARENT[..36], if sampled { "01" } else { "00" }), "{told}");
        assert!(!told.contains("00f067aa0ba902b7"), "the server's parent is not the caller's: {told}");
    }
}

#[test]
fn what_is_no_trace_begins_one() {
    let long = format!("a={}", "x".repeat(600));
    for parent in
        [None, Some(""), Some("00-x-y-z"), Some("00-00000000000000000000000000000000-00f067aa0ba902b7-01")]
    {
        let trace = traces(1.0).begin(parent, Some(&long));
        assert!(
            trace.sampled && trace.parent == SpanId::INVALID && trace.id != TraceId::INVALID,
            "{parent:?}"
        );
        assert_eq!(trace.tracestate(), None);
    }
    let trace = traces(1.0).begin(Some(&format!("{PARENT}-01")), Some(&long));
    assert_eq!(trace.tracestate(), None, "a state that is too long is left out");
}

#[test]
fn a_share_of_the_traces_is_sampled() {
    for (share, expected) in [(0.0, 0..=0), (0.1, 800..=1200), (1.0, 10_000..=10_000)] {
        let traces = traces(share);
        let sampled = (0..10_000).filter(|_| traces.begin(None, None).sampled).count();
        assert!(expected.contains(&sampled), "{share}: {sampled}");
    }
}

#[test]
fn the_server_is_told_the_try_and_steps_are_bounded() {
    let attempt = |number| Attempt {
        number,
        upstream: "local".to_owned(),
        server: "gpu1".to_owned(),
        host: "10.0.0.1".to_owned(),
        port: 8080,
        model: None,
        provider: "llama_cpp",
    };
    let mut trace = traces(1.0).begin(None, None);
    let own = trace.traceparent();
    let second = Duration::from_secs;
    trace.tries(second(1), || attempt(1));
    let first = trace.traceparent();
    trace.tries(second(2), || attempt(2));
    assert!(first != own && trace.traceparent() != first);
    assert_eq!(trace.steps[0].ended, Some(second(2)), "the try before has ended");
    trace.try_ended(second(3), Some(200), None);
    assert_eq!(trace.traceparent(), own);
    for number in 3..100 {
        trace.tries(second(4), || attempt(number));
    }
    assert_eq!(trace.steps.len(), STEPS_MAX);
}

#[test]
fn a_base_url_stands_for_the_path_of_traces() {
    for (url, expected) in [
        ("http://a:4318", "http://a:4318/v1/traces"),
        ("http://a:4318/", "http://a:4318/v1/traces"),
        ("https://a/api/otel/v1/traces", "https://a/api/otel/v1/traces"),
    ] {
        assert_eq!(export::traces_url(url), expected);
    }
}
