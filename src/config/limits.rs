//! `limits`, of the gateway and of one key. A limit that is not named does not exist.

use super::section::Section;
use super::settings::Limits;
use super::value;
use crate::limit::Allowance;

pub(super) fn read(limits: &mut Section) -> Limits {
    Limits {
        gateway: limits.section("gateway", allowance),
        key: limits.section("key", allowance),
        user: limits.section("user", allowance),
        model: limits.section("model", allowance),
        key_model: limits.section("key_model", allowance),
        ip: limits.section("ip", |ip| ip.value("requests", value::rate)),
    }
}

pub(super) fn allowance(limits: &mut Section) -> Allowance {
    let requests = limits.take("requests");
    let burst = limits.take("burst");
    if let (None, Some(burst)) = (&requests, &burst) {
        burst.fault("a burst needs the rate that fills it again: write `requests` beside it, such as `5/s`");
    }
    Allowance {
        requests: requests.and_then(|field| field.value(value::rate)),
        burst: burst.and_then(|field| field.value(value::count)),
        tokens: limits.value("tokens", value::rate),
        concurrent: limits.value("concurrent", value::small_count),
    }
}
