//! Shared budgets rule as local ones do: both get the same random sequence, over the ends of days and of a month, with
//! uses that are told at any time, and every ruling is compared with all that it says.

use jiff::Timestamp;

use super::super::reserve::Budgeted;
use super::*;
use crate::limit::{Budget, Goods, Span, Spent};
use crate::store::{Counts, Ledger, Period, Use, today};

/// The last day of a November, so long ago that Valkey's own clock is past it.
const BEGINNING: Duration = Duration::from_secs(1_701_352_800);

fn wall(at: Duration) -> Timestamp {
    let micros = i64::try_from(at.as_micros()).expect("a time of this century");
    Timestamp::from_microsecond(micros).expect("a time of this century")
}

fn budgets(seed: &mut fastrand::Rng) -> Vec<Budget> {
    let mut all = vec![
        Budget { goods: Goods::Tokens, amount: seed.u64(20_000..100_000), per: Span::Day },
        Budget { goods: Goods::Tokens, amount: seed.u64(50_000..200_000), per: Span::Month },
        Budget { goods: Goods::Requests, amount: seed.u64(5..15), per: Span::Day },
        Budget { goods: Goods::Requests, amount: seed.u64(10..30), per: Span::Month },
    ];
    seed.shuffle(&mut all);
    all.truncate(seed.usize(1..4));
    all
}

fn ends_in(budget: &Budget) -> Duration {
    Duration::from_secs(if budget.per == Span::Day { 40 } else { 9000 })
}

/// What a key has spent, as one ledger knows it.
fn spent(ledger: &Ledger, key: &str, budget: &Budget, at: Duration) -> Spent {
    let period = if budget.per == Span::Day { Period::Day } else { Period::Month };
    let counts = ledger.spent(key, period, wall(at));
    Spent { requests: counts.requests, tokens: counts.tokens(), ends_in: ends_in(budget) }
}

fn note(ledger: &Ledger, key: &str, tokens: u64, open: Option<&str>, at: Duration) {
    let counts = Counts {
        requests: 1,
        prompt_tokens: tokens / 3,
        completion_tokens: tokens - tokens / 3,
        ..Counts::default()
    };
    ledger.note(&Use { key, user: "", model: "tiny", counts, open }, wall(at));
}

async fn told(ledger: &Arc<Ledger>, at: Duration) {
    let ledger = Arc::clone(ledger);
    let told = tokio::task::spawn_blocking(move || ledger.flush(wall(at))).await;
    assert_eq!(told.expect("it does not panic"), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_budgets_rule_as_local_ones_do() {
    let server = Server::start();
    let both = replicas(&server).await;
    let books = ["one", "two"].map(|name| Arc::new(Ledger::shared(Arc::clone(&both[0].link), "test", name)));
    while books[0].flush(wall(BEGINNING)).is_err() {}
    let mut seed = fastrand::Rng::with_seed(20_261_129);
    let (mut admitted, mut by_budget) = ([0; 2], 0);
    for round in 0..40 {
        let (key, budgets) = (format!("key {round}"), budgets(&mut seed));
        let own = Allowance { tokens: "7M/day".parse().ok(), ..Allowance::default() };
        let grant = Grant { key: key.clone(), own, budgets, ..Grant::default() };
        let accounts = [(); 2].map(|()| Arc::new(Account::new(grant.clone())));
        let [local, far] = [0, 1].map(|which| {
            let mut subjects = Subjects::default();
            subjects.add(Scope::Key, Arc::clone(accounts[which].own()));
            subjects
        });
        let ledger = Ledger::in_memory();
        let mut now = BEGINNING + Duration::from_secs(seed.u64(0..40_000));
        let mut open = Vec::new();
        for _ in 0..60 {
            let which = seed.usize(0..2);
            let shared = &both[which];
            let step = [0, 1000, 1_000_000, 60_000_000, 3_600_000_000][seed.usize(0..5)];
            now += Duration::from_micros(seed.u64(0..=step));
            let at = now.saturating_sub(Duration::from_micros(seed.u64(0..3) * seed.u64(0..5000)));
            match seed.u8(0..7) {
                0..=2 => {
                    let tokens = seed.u64(0..10) * seed.u64(0..2000) + seed.u64(0..9);
                    let known = |budget: &Budget| spent(&ledger, &key, budget, at);
                    let one = local.reserve(Some(&accounts[0]), tokens, at, known);
                    let share = shared.share(&accounts[1], tokens).expect("there are budgets");
                    let known = |budget: &Budget| Spent { ends_in: ends_in(budget), ..Spent::default() };
                    let of = Budgeted { account: &accounts[1], share, today: today(wall(at)), spent: known };
                    let other = shared.reserve_at(&far, Some(of), tokens, at, Some(at)).await;
                    let other = other.expect("there is an answer");
                    let told = |ruled: &Result<Reservation, Refused>| match ruled {
                        Ok(reservation) => Ok(reservation.level),
                        Err(refused) => Err(*refused),
                    };
                    assert_eq!(told(&one), told(&other), "round {round}, {tokens} tokens, {at:?}");
                    admitted[usize::from(one.is_err())] += 1;
                    by_budget += usize::from(one.as_ref().is_err_and(|it| it.limit == Limit::BUDGET));
                    open.extend(one.ok().zip(other.ok()).map(|(one, other)| (one, other, which)));
                }
                3 | 4 if !open.is_empty() => {
                    let (one, mut other, which) = open.swap_remove(seed.usize(0..open.len()));
                    let mut used = seed.u64(0..one.tokens() + one.tokens() / 4 + 2);
                    // Every fifth fails, and has used nothing.
                    if seed.u8(0..5) == 0 {
                        used = 0;
                    } else {
                        let share = other.take_share().expect("there are budgets");
                        note(&ledger, &key, used, None, at);
                        note(&books[which], &key, used, Some(share.place()), at);
                        share.settle(used, today(wall(at)));
                    }
                    one.settle(used, at);
                    other.settle(used, at);
                }
                5 => {
                    let share = shared.share_anyway(&accounts[1]).expect("there are budgets");
                    note(&ledger, &key, 0, None, at);
                    note(&books[which], &key, 0, Some(share.place()), at);
                    share.settle(0, today(wall(at)));
                }
                _ => {}
            }
            // The ledger may be before what it tells of, or long after.
            if seed.u8(0..4) == 0 {
                told(&books[which], at).await;
            }
            for shared in &both {
                if seed.u8(0..4) == 0 {
                    shared.outbox.renew();
                }
                assert!(shared.outbox.deliver(Some(at)).await, "there is an answer");
            }
        }
    }
    assert!(admitted.iter().all(|count| *count > 100) && by_budget > 100, "{admitted:?}, {by_budget}");
}

/// Asks within a budget of 1000 tokens a day.
async fn ask(shared: &Arc<Shared>, tokens: u64, at: Duration) -> Result<Reservation, Refused> {
    let budgets = vec![Budget { goods: Goods::Tokens, amount: 1000, per: Span::Day }];
    let account = Account::new(Grant { key: "key".to_owned(), budgets, ..Grant::default() });
    let share = shared.share(&account, tokens).expect("there is a budget");
    let of =
        Budgeted { account: &account, share, today: today(wall(at)), spent: |_: &Budget| Spent::default() };
    let ruled = shared.reserve_at(&Subjects::default(), Some(of), tokens, at, Some(at)).await;
    // What it holds borrows from what it was asked with.
    ruled.expect("there is an answer")
}

/// What a killed replica had reserved comes back when its time is over; what it had told stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_replica_has_reserved_lapses() {
    let server = Server::start();
    let [one, two] = replicas(&server).await;
    let lent = Duration::from_secs(10);
    let short = Arc::new(of(Arc::clone(&one.link), "short", lent));
    std::mem::forget(ask(&short, 600, BEGINNING).await.expect("there is enough"));
    ask(&two, 600, BEGINNING).await.expect_err("600 are reserved");
    ask(&two, 600, BEGINNING + lent - Duration::from_micros(1)).await.expect_err("and still are");
    ask(&two, 600, BEGINNING + lent).await.expect("they have lapsed");
}

/// Valkey was away, and heard of the ledger what was used long before it hears of the share's end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_ledger_has_told_long_ago_does_not_count_again() {
    let server = Server::start();
    let [one, two] = replicas(&server).await;
    let mut late = of(Arc::clone(&one.link), "late", Duration::from_secs(10));
    late.outbox.share_time_max = Duration::ZERO;
    let late = Arc::new(late);
    let now = u64::try_from(jiff::Timestamp::now().as_second()).map(Duration::from_secs).expect("after 1970");
    let books = Arc::new(Ledger::shared(Arc::clone(&one.link), "test", "late"));
    let mut reserved = ask(&late, 600, now).await.expect("there is enough");
    let share = reserved.take_share().expect("there is a budget");
    note(&books, "key", 600, Some(share.place()), now);
    share.settle(600, today(wall(now)));
    told(&books, now).await;
    // Long enough for Valkey to have forgotten what was told.
    let later = now + Duration::from_secs(11);
    drop(ask(&two, 1, later).await.expect("there is enough"));
    assert!(two.outbox.deliver(Some(later)).await && late.outbox.deliver(Some(later)).await);
    ask(&two, 401, later).await.expect_err("600 are used");
    ask(&two, 400, later).await.expect("and no more");
}
