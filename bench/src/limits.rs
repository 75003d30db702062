//! A caller known by its key, and all limits of its request: admitted, its tokens reserved, settled, given back.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ai_gateway::auth::{Key, KeyHash, Keyring};
use ai_gateway::limit::{Account, Allowance, Budget, Gate, Goods, Grant, ModelShare, Span, Spent, Terms};
use jiff::Timestamp;

use crate::{Part, Work, stride};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

pub(crate) fn parts() -> Vec<Part> {
    let sizes = [("1 key", 1), ("100,000 keys", 100_000)];
    let known = sizes.map(|(name, keys)| Part::new(format!("auth/{name}"), 1000, move || known(keys)));
    let limited = sizes.map(|(name, keys)| Part::new(format!("limits/{name}"), 1000, move || limited(keys)));
    known.into_iter().chain(limited).collect()
}

fn text(number: usize) -> String {
    format!("sk-{number:064}")
}

fn known(keys: usize) -> Work {
    let key = |number: usize| Key {
        name: format!("key-{number}"),
        hashes: vec![KeyHash::of(text(number).as_bytes())],
        certificates: Vec::new(),
        models: None,
        expires: None,
        from: Vec::new(),
    };
    let keyring = Keyring::new((0..keys).map(key).collect());
    let mut at = 0;
    // Made ahead, of some: to write a key's text is no part of it.
    let texts: Vec<_> = (0..keys.min(1000)).map(|step| text(step * (keys / keys.min(1000)))).collect();
    Box::new(move || {
        at = stride(at, texts.len());
        let caller = keyring.identify(black_box(texts[at].as_bytes()), HERE, Timestamp::UNIX_EPOCH);
        assert!(black_box(caller).is_some());
    })
}

/// Every scope has every limit, and the key a budget.
fn limited(keys: usize) -> Work {
    let rate = |text: &str| Some(text.parse().expect("a rate"));
    let allowance = Allowance {
        requests: rate("1000000/s"),
        burst: Some(1_000_000),
        tokens: rate("1G/s"),
        concurrent: Some(1000),
    };
    let gate = Gate::new(Terms {
        gateway: allowance,
        models: vec![ModelShare::Own(allowance)],
        patterns: vec!["bench".to_owned()],
        key_places: vec![0],
        ip: None,
    });
    let account = |number: usize| {
        Arc::new(Account::new(Grant {
            key: format!("key-{number}"),
            own: allowance,
            user: allowance,
            models: vec![allowance],
            patterns: vec!["bench".to_owned()],
            budgets: vec![Budget { goods: Goods::Tokens, amount: u64::MAX, per: Span::Day }],
        }))
    };
    let accounts: Vec<_> = (0..keys).map(account).collect();
    // Known already: the first request of each user is another matter.
    accounts.iter().for_each(|account| drop(account.user("ann", Duration::ZERO)));
    let (mut at, mut now) = (0, Duration::from_secs(1));
    Box::new(move || {
        (at, now) = (stride(at, accounts.len()), now + Duration::from_micros(10));
        let account = &accounts[at];
        let mut subjects = gate.subjects(Some(account), Some("ann"), now);
        gate.add_model(&mut subjects, Some(account), Some(0));
        let permit = subjects.admit(now).expect("it is within its limits");
        let spent = |_: &Budget| Spent::default();
        let reservation = subjects.reserve(Some(account), 500, now, spent).expect("it is within its limits");
        reservation.settle(300, now);
        drop(black_box(permit));
    })
}
