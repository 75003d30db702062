//! The shared buckets rule as the local ones do: both get the same random sequence, and every ruling, wait and level is
//! compared. It takes a real server, which the test starts on a port of its own.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::outbox::Batch;
use super::reserve::Budgeted;
use super::*;
use crate::limit::{Account, Allowance, Budget, Gate, Grant, Reservation, Spent, Terms};
use crate::store::{Address, Dial};

mod budgets;

type NoBudgets = Option<Budgeted<'static, fn(&Budget) -> Spent>>;
const NO_BUDGETS: NoBudgets = None;

/// A server of its own, killed on drop.
struct Server(Child, u16);

impl Server {
    fn start() -> Self {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = free.local_addr().expect("it is bound").port();
        drop(free);
        let started = ["valkey-server", "redis-server"].iter().find_map(|name| {
            let mut server = Command::new(name);
            server.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir", "/tmp"]);
            server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
        });
        Self(started.expect("valkey-server or redis-server is installed (scripts/needs.sh)"), port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A process that lets its places for so long.
fn of(link: Arc<Link>, name: &str, lent: Duration) -> Shared {
    let shared = Shared::new(Arc::clone(&link), "test", name.to_owned(), false);
    let outbox = Outbox::new(link, Arc::clone(&shared.ahead), format!("{{test}}:replica:{name}"), lent);
    Shared { lent, outbox, ..shared }
}

/// Two processes that share, without the tasks that deliver: the test does that.
async fn replicas(server: &Server) -> [Arc<Shared>; 2] {
    let address = Address::parse(&format!("redis://127.0.0.1:{}", server.1)).expect("an address");
    let replica = |name: &str| {
        let dial = Dial { address: address.clone(), ca: None };
        let link = Arc::new(Link::new(dial, "{test}:look".to_owned(), Duration::from_secs(1)));
        let lent = Duration::from_secs(100 * 365 * 86_400);
        Arc::new(of(link, name, lent))
    };
    let both = [replica("one"), replica("two")];
    for shared in &both {
        let link = Arc::clone(&shared.link);
        tokio::spawn(async move { link.keep().await });
        while !shared.link.is_up() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    both
}

/// The limits of one key and one gateway, as two sets that never meet: for the local and the shared form.
fn subjects(name: &str, seed: &mut fastrand::Rng) -> [Subjects; 2] {
    let rates = ["5/s", "7/s", "60/min", "1000/h", "7/h", "2M/day", "100000/min", "99991/day", "3/s"];
    let mut rate = || seed.choice(rates).and_then(|rate| rate.parse().ok());
    let mut allowance = || Allowance { requests: rate(), burst: None, tokens: rate(), concurrent: Some(3) };
    let (gateway, own) = (allowance(), allowance());
    let burst = Some(seed.u64(1..20));
    [(); 2].map(|()| {
        let gateway = Allowance { burst, ..gateway };
        let gate = Gate::new(Terms { gateway, ..Terms::default() });
        let account = Account::new(Grant { key: name.to_owned(), own, ..Grant::default() });
        let mut subjects = Subjects::default();
        // One gateway for each round, so that each begins full.
        subjects
            .add(Scope::Gateway, Arc::new(Quota::new(format!("gateway {name}"), *gate.own().allowance())));
        subjects.add(Scope::Key, Arc::clone(account.own()));
        subjects
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_buckets_rule_as_local_ones_do() {
    let server = Server::start();
    let both = replicas(&server).await;
    let mut seed = fastrand::Rng::with_seed(20_261_129);
    let mut admitted = [0; 4];
    for round in 0..40 {
        let [local, far] = subjects(&format!("key {round}"), &mut seed);
        let mut now = Duration::from_micros(1_790_000_000_000_000 + seed.u64(0..1_000_000));
        let (mut permits, mut loans) = (Vec::new(), Vec::new());
        for _ in 0..60 {
            let shared = &both[seed.usize(0..2)];
            let step = [0, 1, 1000, 200_000, 1_000_000, 60_000_000, 3_600_000_000][seed.usize(0..7)];
            now += Duration::from_micros(seed.u64(0..=step));
            // Requests that race come in another order than they read the clock.
            let at = now.saturating_sub(Duration::from_micros(seed.u64(0..3) * seed.u64(0..5000)));
            match seed.u8(0..6) {
                0 | 1 => {
                    let one = local.admit(at);
                    let other = shared.admit_at(&far, Permit::default(), true, at, Some(at)).await;
                    let other = other.expect("there is an answer");
                    let told = |ruled: &Result<Permit, Refused>| match ruled {
                        Ok(permit) => Ok(permit.level),
                        Err(refused) => Err(*refused),
                    };
                    assert_eq!(told(&one), told(&other), "round {round}, {at:?}");
                    admitted[usize::from(one.is_err())] += 1;
                    permits.extend(one.ok().zip(other.ok()));
                }
                2 if !permits.is_empty() => {
                    drop(permits.swap_remove(seed.usize(0..permits.len())));
                }
                3 | 4 => {
                    let tokens = seed.u64(0..10) * seed.u64(0..10_000) + seed.u64(0..9);
                    let one = local.reserve(None, tokens, at, |_| unreachable!("no budgets"));
                    let other = shared.reserve_at(&far, NO_BUDGETS, tokens, at, Some(at)).await;
                    let other = other.expect("there is an answer");
                    let told = |ruled: &Result<Reservation, Refused>| match ruled {
                        Ok(reservation) => Ok(reservation.level),
                        Err(refused) => Err(*refused),
                    };
                    assert_eq!(told(&one), told(&other), "round {round}, {tokens} tokens, {at:?}");
                    admitted[2 + usize::from(one.is_err())] += 1;
                    loans.extend(one.ok().zip(other.ok()));
                }
                _ if !loans.is_empty() => {
                    let (one, other) = loans.swap_remove(seed.usize(0..loans.len()));
                    let most = one.tokens() + one.tokens() / 4 + 2;
                    let used = seed.u64(0..most);
                    one.settle(used, at);
                    other.settle(used, at);
                }
                _ => {}
            }
            for shared in &both {
                assert!(shared.outbox.deliver(Some(at)).await, "there is an answer");
            }
        }
        for (one, other) in loans {
            one.settle(0, now);
            other.settle(0, now);
        }
        drop(permits);
        for shared in &both {
            assert!(shared.outbox.deliver(Some(now)).await, "there is an answer");
        }
    }
    assert!(admitted.iter().all(|count| *count > 100), "both rulings of both kinds: {admitted:?}");
}

async fn reserve(
    shared: &Arc<Shared>,
    subjects: &Subjects,
    tokens: u64,
    at: Duration,
) -> Result<Reservation, Refused> {
    shared.reserve_at(subjects, NO_BUDGETS, tokens, at, Some(at)).await.expect("there is an answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_twice_counts_once() {
    let server = Server::start();
    let [one, _] = replicas(&server).await;
    let mut subjects = Subjects::default();
    let tokens = Allowance { tokens: "1000/day".parse().ok(), ..Allowance::default() };
    subjects.add(Scope::Key, Arc::new(Quota::new("key:twice", tokens)));
    let at = Duration::from_secs(1_790_000_000);
    let loan = reserve(&one, &subjects, 900, at).await.expect("enough");
    loan.settle(1000, at);
    // The answer to the first is lost: the batch stands, and is told again.
    let Batch { keys, arguments, .. } = one.outbox.batch(Some(at)).expect("there is something to tell");
    let post = one.link.script(&wire::post());
    assert_eq!(one.link.run_at_leisure(&post, &keys, &arguments).await.ok(), Some(1));
    assert!(one.outbox.deliver(Some(at)).await);
    let refused = reserve(&one, &subjects, 1, at).await.expect_err("all is used");
    assert_eq!(refused.wait, Some(Duration::from_micros(86_400_000)), "one token's time, and no more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_deliver_neither_clears_what_the_other_tells() {
    let server = Server::start();
    let [one, _] = replicas(&server).await;
    let mut subjects = Subjects::default();
    let tokens = Allowance { tokens: "1000/day".parse().ok(), ..Allowance::default() };
    subjects.add(Scope::Key, Arc::new(Quota::new("key:deliver", tokens)));
    let at = Duration::from_secs(1_790_000_000);
    let use_up = async |used| reserve(&one, &subjects, 100, at).await.expect("enough").settle(used, at);
    use_up(101).await;
    let first = one.outbox.batch(Some(at)).expect("there is something to tell");
    // Meanwhile another tells it too, and something after it, which is not answered.
    assert!(one.outbox.deliver(Some(at)).await);
    use_up(102).await;
    let second = one.outbox.batch(Some(at)).expect("there is something to tell");
    one.outbox.delivered(first.number);
    let again = one.outbox.batch(Some(at)).expect("it is still to be told");
    assert_eq!((again.number, again.arguments), (second.number, second.arguments));
    assert!(one.outbox.deliver(Some(at)).await && one.outbox.batch(Some(at)).is_none());
    let refused = reserve(&one, &subjects, 798, at).await.expect_err("203 are used");
    assert_eq!(refused.wait, Some(Duration::from_micros(86_400_000)), "one token's time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_has_jumped_costs_one_question() {
    let server = Server::start();
    let [one, _] = replicas(&server).await;
    let [_, far] = subjects("key", &mut fastrand::Rng::with_seed(20_261_129));
    let now = Duration::from_secs(1000);
    // As if Valkey's clock had stood at the beginning of time when it was seen last.
    one.ahead.saw(0);
    assert!(one.admit_at(&far, Permit::default(), true, now, None).await.is_err(), "it comes too late");
    let ruled = one.admit_at(&far, Permit::default(), true, now, None).await;
    assert!(ruled.expect("there is an answer").is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_are_held_however_much_there_is_to_tell() {
    let server = Server::start();
    let [one, two] = replicas(&server).await;
    let lent = Duration::from_millis(600);
    let short = Arc::new(of(Arc::clone(&one.link), "short", lent));
    let keeps = Arc::clone(&short);
    tokio::spawn(async move { keeps.outbox.keep().await });
    let own = Allowance { concurrent: Some(3), ..Allowance::default() };
    let account = Account::new(Grant { key: "key".to_owned(), own, ..Grant::default() });
    let mut far = Subjects::default();
    far.add(Scope::Key, Arc::clone(account.own()));
    let now = Duration::from_secs(1000);
    let mut held = Vec::new();
    for _ in 0..3 {
        let ruled = short.admit_at(&far, Permit::default(), true, now, None).await;
        held.push(ruled.expect("there is an answer").expect("there is room"));
    }
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < 3 * lent {
        // A request that is refused rings too.
        let ruled = short.admit_at(&far, Permit::default(), true, now, None).await;
        assert!(ruled.expect("there is an answer").is_err(), "after {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop((held, two));
}
