//! What a bucket promises: its burst, then its rate, exactly; loans that are settled; other shapes and processes.

use super::*;

fn bucket(rate: &str, burst: Option<u64>) -> Bucket {
    Bucket::full(Shape::new(rate.parse().expect("a rate"), burst))
}

fn ask(bucket: &mut Bucket, now: Duration) -> Ruling {
    let ruling = bucket.ruling(1, now);
    if ruling == Ruling::Admit {
        bucket.take(1, now);
    }
    ruling
}

#[test]
fn a_burst_at_once_then_one_each_period_exactly() {
    let mut bucket = bucket("5/s", Some(10));
    let start = Duration::from_secs(1000);
    for _ in 0..10 {
        assert_eq!(ask(&mut bucket, start), Ruling::Admit);
    }
    assert_eq!(ask(&mut bucket, start), Ruling::Wait(Duration::from_millis(200)));
    let almost = start + Duration::from_nanos(199_999_999);
    assert_eq!(ask(&mut bucket, almost), Ruling::Wait(Duration::from_nanos(1)));
    assert_eq!(ask(&mut bucket, start + Duration::from_millis(200)), Ruling::Admit);
    assert_eq!(
        ask(&mut bucket, start + Duration::from_millis(200)),
        Ruling::Wait(Duration::from_millis(200))
    );
}

#[test]
fn requests_that_come_in_another_order_than_their_times_get_all_that_there_is() {
    let mut bucket = bucket("1/h", Some(50));
    let times = (0..100).map(|n| Duration::from_secs(1000) + Duration::from_micros(99 - n * 37 % 100));
    assert_eq!(times.filter(|now| ask(&mut bucket, *now) == Ruling::Admit).count(), 50);
}

#[test]
fn without_a_burst_it_holds_what_the_rate_names() {
    let mut bucket = bucket("60/min", None);
    let admitted = (0..100).filter(|_| ask(&mut bucket, Duration::ZERO) == Ruling::Admit).count();
    assert_eq!(admitted, 60);
}

#[test]
fn a_rate_that_divides_badly_does_not_drift() {
    let mut bucket = bucket("7/s", Some(1));
    let hour = 3600;
    let step = Duration::from_millis(1);
    let mut now = Duration::ZERO;
    let mut admitted = 0;
    while now < Duration::from_secs(hour) {
        admitted += u64::from(ask(&mut bucket, now) == Ruling::Admit);
        now += match bucket.ruling(1, now) {
            Ruling::Admit => step,
            Ruling::Wait(wait) => wait,
            Ruling::Never => panic!("one fits"),
        };
    }
    assert_eq!(admitted, 7 * hour);
}

#[test]
fn the_level_counts_what_is_left() {
    let mut bucket = bucket("5/s", Some(10));
    let now = Duration::from_secs(9);
    assert_eq!(bucket.level(now), Level { limit: 10, remaining: 10, reset: Duration::ZERO });
    bucket.take(1, now);
    assert_eq!(bucket.level(now), Level { limit: 10, remaining: 9, reset: Duration::from_millis(200) });
    assert_eq!(bucket.level(now + Duration::from_millis(100)).remaining, 9);
    assert_eq!(bucket.level(now + Duration::from_millis(200)).remaining, 10);
}

#[test]
fn what_is_lent_is_settled_by_what_was_used() {
    let mut bucket = bucket("1000/min", None);
    let now = Duration::from_secs(60);
    assert_eq!(bucket.ruling(1001, now), Ruling::Never);
    assert_eq!(bucket.ruling(1000, now), Ruling::Admit);
    let loan = bucket.lend(600, now);
    assert_eq!(bucket.ruling(500, now), Ruling::Wait(Duration::from_secs(6)));
    bucket.settle(loan, 50, now);
    assert_eq!(bucket.level(now).remaining, 950);
    let loan = bucket.lend(10, now);
    bucket.settle(loan, 2000, now);
    assert_eq!((bucket.level(now).remaining, bucket.level(now).reset), (0, Duration::from_secs(123)));
    assert_eq!(bucket.ruling(1, now), Ruling::Wait(Duration::from_millis(63_060)));
}

#[test]
fn loans_come_back_in_any_order() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut bucket = bucket("1000/min", None);
        let now = Duration::from_secs(60);
        let loans = [500, 300, 200].map(|amount| bucket.lend(amount, now));
        for (nth, at) in order.into_iter().enumerate() {
            bucket.settle(loans[at], 10, now);
            let out: u64 = order[nth + 1..].iter().map(|at| loans[*at].amount).sum();
            assert_eq!(bucket.level(now).remaining, 1000 - out - 10 * (nth as u64 + 1), "{order:?}");
        }
    }
}

#[test]
fn what_has_been_filled_up_is_not_put_back() {
    let mut bucket = bucket("60/min", None);
    let at = Duration::from_secs;
    let (first, second) = (bucket.lend(30, at(0)), bucket.lend(30, at(0)));
    // After 40 s the first is filled up, and a third of the second.
    assert_eq!(bucket.level(at(40)).remaining, 40);
    let third = bucket.lend(40, at(40));
    bucket.settle(first, 0, at(40));
    assert_eq!(bucket.level(at(40)).remaining, 0, "others had it");
    bucket.settle(second, 5, at(40));
    assert_eq!(bucket.level(at(40)).remaining, 20);
    bucket.settle(third, 39, at(40));
    assert_eq!(bucket.level(at(40)).remaining, 21);
    // What was put back did not have to be filled up.
    assert_eq!(bucket.level(at(79)).remaining, 60);
}

/// Whatever is lent and put back whenever: what was used within any time is no more than the bucket holds and what
/// fills it up in that time; and what is not used comes back while the bucket is never full.
#[test]
fn no_more_is_out_than_the_bucket_holds() {
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        let mut bucket = bucket("100/s", None);
        let (mut now, mut out, mut charged) = (Duration::ZERO, Vec::new(), Vec::new());
        for _ in 0..400 {
            now += Duration::from_millis(random.u64(0..400));
            let amount = random.u64(1..=100);
            if bucket.ruling(amount, now) == Ruling::Admit {
                out.push((bucket.lend(amount, now), now));
            }
            if !out.is_empty() && random.bool() {
                let (loan, lent_at) = out.swap_remove(random.usize(0..out.len()));
                let used = random.u64(0..=loan.amount);
                bucket.settle(loan, used, now);
                charged.push((lent_at, used));
            }
        }
        charged.sort_unstable();
        for (nth, (from, _)) in charged.iter().enumerate() {
            let mut sum = 0;
            for (at, used) in &charged[nth..] {
                sum += u128::from(*used);
                let most = 100 + (*at - *from).as_millis() / 10 + 1;
                assert!(sum <= most, "{sum} used of {most}");
            }
        }
    }
}

#[test]
fn a_new_shape_keeps_what_was_used() {
    let mut old = bucket("60/min", None);
    let now = Duration::from_secs(7);
    old.take(25, now);
    let mut new = old.clone();
    new.reshape(Shape::new("100/h".parse().expect("a rate"), None), now);
    assert_eq!((new.level(now).limit, new.level(now).remaining), (100, 75));
    old.reshape(Shape::new("10/min".parse().expect("a rate"), None), now);
    assert_eq!(old.ruling(1, now), Ruling::Wait(Duration::from_secs(96)), "into debt");
}
