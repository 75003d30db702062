//! Tables: what is written, and what it means.

use super::*;

const HOUR: u64 = 3600;

#[test]
fn durations() {
    for (text, seconds) in [("30s", 30), ("5m", 300), ("2h", 2 * HOUR), ("1d", 24 * HOUR), ("0s", 0)] {
        assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
    }
    assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
    for text in
        ["", "30", "s", "-1s", "1.5s", "5min", "5M", "none", "9999999999d", "99999999999999999999s", "3651d"]
    {
        assert!(duration(text).is_err(), "{text}");
    }
    assert_eq!(time_limit("none"), Ok(None));
    assert_eq!(time_limit("5m"), Ok(Some(Duration::from_secs(300))));
    assert!(time_limit("0s").is_err());
    assert!(time_limit("never").unwrap_err().contains("or `none`"));
    assert!(period("0ms").is_err());
}

#[test]
fn sizes() {
    for (text, bytes) in [
        ("64KiB", 64 << 10),
        ("256MiB", 256 << 20),
        ("256 MiB", 256 << 20),
        ("1GiB", 1 << 30),
        ("1KB", 1_000),
        ("2MB", 2_000_000),
        ("3GB", 3_000_000_000),
        ("0B", 0),
        ("4096", 4096),
    ] {
        assert_eq!(size(text), Ok(bytes), "{text}");
    }
    for text in ["", "KiB", "64K", "64kib", "-1B", "1.5MiB", "99999999999GiB"] {
        assert!(size(text).is_err(), "{text}");
    }
    assert!(size_above_zero("0").is_err());
}

#[test]
fn counts_and_numbers() {
    for (text, value) in [("1", 1), ("100k", 100_000), ("2M", 2_000_000)] {
        assert_eq!(count(text), Ok(value), "{text}");
    }
    for text in ["", "0", "-1", "1.5", "k", "two"] {
        assert!(count(text).is_err(), "{text}");
    }
    assert!(small_count("5G").is_err());
    assert_eq!(number(0..=16_u32)("16"), Ok(16));
    assert_eq!(number(0..=16)("17"), Err("expected a whole number from 0 to 16, found `17`".to_owned()));
    assert_eq!(switch("yes"), Err("expected `true` or `false`, found `yes`".to_owned()));
}

#[test]
fn addresses_and_networks() {
    for text in ["127.0.0.1:9001", "0.0.0.0:1", "[::]:9001"] {
        assert_eq!(address(text).unwrap().to_string(), text);
    }
    assert_eq!(address("localhost:9001").unwrap().to_string(), "127.0.0.1:9001");
    for text in
        ["", "9001", ":9001", "127.0.0.1", "127.0.0.1:0", "localhost:0", "127.0.0.1:65536", "gateway:9001"]
    {
        assert!(address(text).is_err(), "{text}");
    }
    for (text, network_text) in
        [("10.0.0.0/8", "10.0.0.0/8"), ("10.1.2.3", "10.1.2.3/32"), ("::1", "::1/128")]
    {
        assert_eq!(network(text).unwrap().to_string(), network_text);
    }
    for text in ["", "10.0.0.0/33", "10.0.0", "localnet"] {
        assert!(network(text).is_err(), "{text}");
    }
}

#[test]
fn timestamps() {
    for (text, utc) in [
        ("2027-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ("2027-01-01T02:00:00+02:00", "2027-01-01T00:00:00Z"),
        ("2027-01-01", "2027-01-01T00:00:00Z"),
    ] {
        assert_eq!(timestamp(text).unwrap().to_string(), utc, "{text}");
    }
    for text in ["", "2027", "2027-13-01", "2027-01-01T00:00:00", "tomorrow", "1.1.2027xx"] {
        assert!(timestamp(text).is_err(), "{text}");
    }
}

#[test]
fn names_urls_and_origins() {
    assert!(name("alice").is_ok() && name("Überraschung 1").is_ok());
    assert!(
        name("").is_err() && name(" a").is_err() && name("a\nb").is_err() && name(&"a".repeat(129)).is_err()
    );
    assert!(url(&["redis", "rediss"])("redis://host:6379").is_ok());
    assert!(url(&["redis"])("http://host").is_err() && url(&["redis"])("host:6379").is_err());
    assert!(url_path("/health").is_ok() && url_path("health").is_err() && url_path("/a b").is_err());
    assert!(header_name("x-openwebui-user-id").is_ok() && header_name("x user").is_err());
    assert_eq!(origin("https://App.example.com:8443"), Ok("https://app.example.com:8443".to_owned()));
    for text in ["", "app.example.com", "https://app.example.com/", "https://a.b/c", "https://a.b?c"] {
        assert!(origin(text).is_err(), "{text}");
    }
}

#[test]
fn what_was_found_is_cut_where_it_is_long() {
    assert_eq!(
        switch(&"ä".repeat(90)),
        Err(format!("expected `true` or `false`, found `{}…`", "ä".repeat(60)))
    );
    assert_eq!(switch(""), Err("expected `true` or `false`, found an empty text".to_owned()));
}
