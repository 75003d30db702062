//! A ledger against a plain sum: whatever happens to its file, each use counts once.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use jiff::ToSpan;
use proptest::prelude::*;
use rusqlite::Connection;

use super::*;
use crate::store::{OTHER, read};

const SHORT: Duration = Duration::from_millis(20);

/// A folder that is removed with its content.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("ai-gateway-store-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn store(&self) -> PathBuf {
        self.0.join("usage.db")
    }

    fn open(&self) -> Result<Ledger, String> {
        Ledger::open_and_wait(&self.store(), at(0), SHORT)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// So many hours after some noon.
fn at(hours: i64) -> Timestamp {
    "2026-03-01T12:00:00Z".parse::<Timestamp>().unwrap() + hours.hours()
}

fn used<'a>(key: &'a str, user: &'a str, tokens: u64) -> Use<'a> {
    let counts = Counts {
        requests: 1,
        prompt_tokens: tokens,
        completion_tokens: 2 * tokens,
        cached_tokens: tokens / 2,
        prefill_ms: 3 * tokens,
        generation_ms: 4 * tokens,
    };
    Use { key, user, model: "tiny", counts, open: None }
}

fn all(path: &Path) -> Vec<Row> {
    read(path, &Filter::default()).unwrap()
}

fn requests(rows: &[Row]) -> u64 {
    rows.iter().map(|row| row.counts.requests).sum()
}

#[test]
fn it_is_there_after_a_restart_and_others_read_it_meanwhile() {
    let folder = Folder::new();
    let ledger = folder.open().unwrap();
    assert!(all(&folder.store()).is_empty(), "a store without use is one");
    ledger.note(&used("alice", "", 7), at(0));
    ledger.note(&used("alice", "", 5), at(0));
    assert_eq!(requests(&all(&folder.store())), 0, "not flushed yet");
    ledger.flush(at(0)).unwrap();
    assert_eq!(requests(&all(&folder.store())), 2);
    ledger.note(&used("bob", "eve", 1), at(24));
    ledger.close(at(24)).unwrap();
    let files: Vec<_> = std::fs::read_dir(&folder.0).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["usage.db"], "all is in one file");

    let again = folder.open().unwrap();
    assert_eq!(again.spent("alice", Period::Day, at(0)).tokens(), 36);
    assert_eq!(again.spent("alice", Period::Day, at(24)), Counts::default());
    again.note(&used("alice", "", 1), at(24));
    assert_eq!(
        again.spent("alice", Period::Month, at(24)).tokens(),
        39,
        "what is not written counts at once"
    );
    let rows = again.report(&Filter::default()).unwrap();
    let rows: Vec<_> = rows
        .iter()
        .map(|row| (row.day.day(), row.key.as_str(), row.user.as_str(), row.counts.tokens()))
        .collect();
    assert_eq!(rows, [(1, "alice", "", 36), (2, "alice", "", 3), (2, "bob", "eve", 3)]);
    let of = |key: Option<&str>, since| Filter { key: key.map(str::to_owned), since };
    let second = Some(jiff::civil::date(2026, 3, 2));
    for (filter, found) in [(of(Some("alice"), None), 2), (of(None, second), 2), (of(Some("carol"), None), 0)]
    {
        assert_eq!(again.report(&filter).unwrap().len(), found, "{filter:?}");
    }
}

#[test]
fn a_lock_of_another_costs_nothing_but_time() {
    let folder = Folder::new();
    let ledger = folder.open().unwrap();
    ledger.note(&used("alice", "", 1), at(0));
    ledger.flush(at(0)).unwrap();
    let other = Connection::open(folder.store()).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    for hours in 0..3 {
        ledger.note(&used("alice", "", 1), at(hours));
        let why = ledger.flush(at(hours)).unwrap_err();
        assert!(why.contains("usage.db is locked"), "{why}");
    }
    assert!(ledger.close(at(3)).is_err());
    assert_eq!(ledger.spent("alice", Period::Day, at(0)).requests, 4);
    let late = folder.open().unwrap_err();
    assert!(late.contains("locked by another program"), "{late}");
    other.execute_batch("COMMIT").unwrap();
    ledger.flush(at(3)).unwrap();
    ledger.flush(at(3)).unwrap();
    assert_eq!(requests(&all(&folder.store())), 4);
    assert_eq!(ledger.spent("alice", Period::Day, at(0)).requests, 4);
}

#[test]
fn a_file_that_cannot_be_one_says_why_and_stays_as_it_is() {
    let folder = Folder::new();
    let ledger = folder.open().unwrap();
    for user in 0..2000 {
        ledger.note(&used("alice", &user.to_string(), 1), at(0));
    }
    ledger.close(at(0)).unwrap();
    let whole = std::fs::read(folder.store()).unwrap();
    let foreign = {
        let folder = Folder::new();
        let other = Connection::open(folder.store()).unwrap();
        other.execute_batch("CREATE TABLE used (x); PRAGMA user_version = 1").unwrap();
        std::fs::read(folder.store()).unwrap()
    };
    let later = {
        let folder = Folder::new();
        folder.open().unwrap();
        Connection::open(folder.store()).unwrap().pragma_update(None, "user_version", 2).unwrap();
        std::fs::read(folder.store()).unwrap()
    };
    let mut scribbled = whole.clone();
    scribbled[20_000..60_000].fill(7);
    for (content, why) in [
        (&b"usage: {path: usage.db}\n".repeat(100)[..], "is no SQLite database"),
        (&whole[..whole.len() / 2], "is damaged"),
        (&whole[..whole.len() - 4096], "is damaged"),
        (&whole[..1000], "is damaged"),
        (&scribbled, "is damaged"),
        (&foreign, "another program's"),
        (&later, "a later version"),
    ] {
        std::fs::write(folder.store(), content).unwrap();
        let said = folder.open().expect_err(why);
        assert!(said.contains("usage.db") && said.contains(why), "{said}");
        assert!(std::fs::read(folder.store()).unwrap() == content, "{why}: it was changed");
        // The command line may still read what is there of a damaged one, but never panics.
        drop(read(&folder.store(), &Filter::default()));
    }
    std::fs::write(folder.store(), whole).unwrap();
    assert_eq!(folder.open().unwrap().spent("alice", Period::Day, at(0)).requests, 2000);
}

#[test]
fn a_path_that_cannot_be_one_says_why() {
    let folder = Folder::new();
    for (path, why) in [
        (folder.0.join("missing/usage.db"), "needs the folder"),
        (folder.0.clone(), "is a folder"),
        (PathBuf::from("/proc/usage.db"), "cannot be opened"),
    ] {
        let said = Ledger::open(&path, at(0)).expect_err(why);
        assert!(said.contains(path.to_str().unwrap()) && said.contains(why), "{said}");
    }
    let said = read(&folder.store(), &Filter::default()).unwrap_err();
    assert!(said.contains("there is no usage store"), "{said}");
}

/// Root writes what nobody may, so this says nothing there.
#[test]
fn a_file_that_may_only_be_read_says_so() {
    let folder = Folder::new();
    folder.open().unwrap();
    let permit = |writable: bool| {
        for path in [&folder.store(), &folder.0] {
            let mut permissions = std::fs::metadata(path).unwrap().permissions();
            permissions.set_readonly(!writable);
            std::fs::set_permissions(path, permissions).unwrap();
        }
    };
    permit(false);
    if std::fs::OpenOptions::new().append(true).open(folder.store()).is_err() {
        let said = folder.open().unwrap_err();
        assert!(said.contains("let this user write"), "{said}");
    }
    permit(true);
}

#[test]
fn two_may_make_the_file_at_once_and_write_at_once() {
    let folder = Folder::new();
    std::thread::scope(|threads| {
        for name in ["old", "new", "third"] {
            let store = folder.store();
            threads.spawn(move || {
                let ledger = Ledger::open(&store, at(0)).unwrap();
                for _ in 0..50 {
                    ledger.note(&used("alice", name, 1), at(0));
                    ledger.note(&used("alice", "", 1), at(0));
                    ledger.flush(at(0)).unwrap();
                }
                ledger.close(at(0)).unwrap();
            });
        }
    });
    assert_eq!(requests(&all(&folder.store())), 300);
    let of: Vec<_> = all(&folder.store()).into_iter().map(|row| (row.user, row.counts.requests)).collect();
    let expected = [("", 150), ("new", 50), ("old", 50), ("third", 50)];
    assert_eq!(of, expected.map(|(user, requests)| (user.to_owned(), requests)));
}

#[test]
fn notes_race_flushes_and_reports() {
    let folder = Folder::new();
    let ledger = folder.open().unwrap();
    ledger.note(&used("alice", "", 1), at(0));
    std::thread::scope(|threads| {
        let notes = threads.spawn(|| {
            for _ in 0..20_000 {
                ledger.note(&used("alice", "", 1), at(0));
            }
        });
        threads.spawn(|| {
            while !notes_over(&ledger) {
                ledger.flush(at(0)).unwrap()
            }
        });
        let mut last = 0;
        while !notes.is_finished() {
            let told = requests(&ledger.report(&Filter::default()).unwrap());
            let spent = ledger.spent("alice", Period::Day, at(0)).requests;
            assert!(last <= told && told <= spent, "{last} <= {told} <= {spent}");
            last = told;
        }
    });
    ledger.flush(at(0)).unwrap();
    assert_eq!(requests(&all(&folder.store())), 20_001);
}

fn notes_over(ledger: &Ledger) -> bool {
    ledger.spent("alice", Period::Day, at(0)).requests > 20_000
}

#[test]
fn absurd_numbers_do_not_stop_it() {
    let folder = Folder::new();
    let ledger = folder.open().unwrap();
    for tokens in [u64::MAX / 4, u64::MAX / 4, 1] {
        let user = "u".repeat(10_000);
        let mut used = used("alice", &user, tokens);
        used.counts.prompt_tokens = u64::MAX;
        ledger.note(&used, at(0));
        ledger.flush(at(0)).unwrap();
    }
    let rows = all(&folder.store());
    assert_eq!((rows.len(), rows[0].user.as_str(), rows[0].counts.requests), (1, OTHER, 3));
    assert_eq!(rows[0].counts.prompt_tokens, i64::MAX as u64);
}

#[test]
fn a_month_that_ends_is_read_again_when_the_clock_goes_back() {
    let folder = Folder::new();
    let ledger = folder.open().unwrap();
    ledger.note(&used("alice", "", 1), at(0));
    let months_later = at(24 * 100);
    ledger.flush(months_later).unwrap();
    assert_eq!(ledger.spent("alice", Period::Month, months_later).requests, 0);
    ledger.flush(at(0)).unwrap();
    assert_eq!(ledger.spent("alice", Period::Month, at(0)).requests, 1);
}

/// What happens to two ledgers on one file.
#[derive(Debug, Clone)]
enum Step {
    Note {
        who: usize,
        key: usize,
        user: usize,
        tokens: u64,
    },
    Flush {
        who: usize,
    },
    Restart {
        who: usize,
    },
    /// While another has it locked.
    FailToFlush {
        who: usize,
    },
    /// The clock goes on or back; hours.
    Clock(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = 0..2usize;
    let step = prop_oneof![
        8 => (who.clone(), 0..3usize, 0..3usize, 0..100u64)
            .prop_map(|(who, key, user, tokens)| Step::Note { who, key, user, tokens }),
        3 => who.clone().prop_map(|who| Step::Flush { who }),
        1 => who.clone().prop_map(|who| Step::Restart { who }),
        1 => who.prop_map(|who| Step::FailToFlush { who }),
        2 => (-50..80i64).prop_map(Step::Clock),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn two_on_one_file_are_one_sum(steps in steps()) {
        let folder = Folder::new();
        let mut pair = [folder.open().unwrap(), folder.open().unwrap()];
        let (sum, mut hours) = (Ledger::in_memory(), 0);
        for step in steps {
            match step {
                Step::Note { who, key, user, tokens } => {
                    let used = used(["alice", "bob", "carol"][key], ["", "eve", "mallory"][user], tokens);
                    pair[who].note(&used, at(hours));
                    sum.note(&used, at(hours));
                }
                Step::Flush { who } => pair[who].flush(at(hours)).unwrap(),
                Step::Restart { who } => {
                    pair[who].close(at(hours)).unwrap();
                    pair[who] = folder.open().unwrap();
                }
                Step::FailToFlush { who } => {
                    let other = Connection::open(folder.store()).unwrap();
                    other.execute_batch("BEGIN IMMEDIATE").unwrap();
                    // It has nothing to write, or it fails.
                    drop(pair[who].flush(at(hours)));
                }
                Step::Clock(by) => hours += by,
            }
        }
        let expected = sum.report(&Filter::default()).unwrap();
        for who in [0, 1, 0] {
            pair[who].flush(at(hours)).unwrap();
        }
        prop_assert_eq!(&all(&folder.store()), &expected);
        for ledger in &pair {
            prop_assert_eq!(&ledger.report(&Filter::default()).unwrap(), &expected);
            for key in ["alice", "bob", "carol"] {
                for period in [Period::Day, Period::Month] {
                    let spent = ledger.spent(key, period, at(hours));
                    prop_assert_eq!(spent, sum.spent(key, period, at(hours)), "{} {:?}", key, period);
                }
            }
        }
    }
}
