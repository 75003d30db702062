//! Purges of all replicas: a table of their numbers in Valkey, which each replica looks at several times a second.
//!
//! A purge is in force where it was asked for at once, and told to Valkey as soon as that is there. Numbers are times,
//! so that they rise though Valkey may lose its table: who knows more than the table puts it back. Until a replica has
//! read the table over the connection that it has, it finds no answers in Valkey.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::cache::purge::{NAMES_MAX, Purge, Purges};
use crate::store::{Link, Script};

/// How often a replica looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The same before it has seen anything.
const LOOK_FIRST_EVERY: Duration = Duration::from_millis(10);

/// After so long all that reach Valkey have looked.
const KNOWN_AFTER: Duration = Duration::from_millis(300);

/// The longest that whoever purges waits until Valkey knows.
const TOLD_TIME_MAX: Duration = Duration::from_secs(1);

pub(super) struct Marks {
    link: Arc<Link>,
    look: Script,
    tell: Script,
    /// The table, and its highest number.
    keys: [String; 2],
    untold: Mutex<Vec<(Purge, u64)>>,
    /// Rings when all is told.
    told: watch::Sender<()>,
    /// One more than the connections that were lost before that over which the table was read.
    known_by: AtomicU64,
}

impl Marks {
    pub(super) fn new(link: Arc<Link>, prefix: &str) -> Self {
        let (look, tell) = (link.script(include_str!("look.lua")), link.script(include_str!("tell.lua")));
        let keys = ["table", "last"].map(|name| format!("{{{prefix}:purges}}:{name}"));
        let (untold, told, known_by) = Default::default();
        Self { link, look, tell, keys, untold, told, known_by }
    }

    pub(super) fn are_known(&self) -> bool {
        self.known_by.load(Ordering::Acquire) == self.link.breaks() + 1
    }

    fn untold(&self) -> MutexGuard<'_, Vec<(Purge, u64)>> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tell(&self, purge: Purge, number: u64) {
        let mut untold = self.untold();
        if purge == Purge::default() || untold.len() >= NAMES_MAX {
            *untold = vec![(Purge::default(), number)];
        } else {
            untold.push((purge, number));
        }
    }

    /// Whether all replicas that reach Valkey know of the purges so far.
    pub(super) async fn told(&self) -> bool {
        let mut told = self.told.subscribe();
        let all = async { while !self.untold().is_empty() && told.changed().await.is_ok() {} };
        let is_told = timeout(TOLD_TIME_MAX, all).await.is_ok();
        if is_told {
            sleep(KNOWN_AFTER).await;
        }
        is_told
    }

    /// Tells and looks, as long as it is polled.
    pub(super) async fn keep(&self, purges: &Purges, all_purged: impl Fn()) {
        let mut read: u64 = 0;
        loop {
            if self.link.is_up() {
                self.round(purges, &mut read, &all_purged).await;
            }
            sleep(if self.are_known() { LOOK_EVERY } else { LOOK_FIRST_EVERY }).await;
        }
    }

    /// `None`: Valkey did not answer.
    async fn round(&self, purges: &Purges, read: &mut u64, all_purged: &impl Fn()) -> Option<()> {
        let breaks = self.link.breaks();
        let untold = self.untold().clone();
        self.put(purges, &untold, "next").await?;
        self.untold().retain(|purge| !untold.contains(purge));
        self.told.send_replace(());
        let since = [read.to_string()];
        let said: Result<Vec<String>, _> = self.link.run_at_leisure(&self.look, &self.keys, &since).await;
        let said = said.ok()?;
        let (last, table) = said.split_first()?;
        let last: u64 = last.parse().ok()?;
        for row in table.chunks_exact(2) {
            // What another version may write there is not understood, and left alone.
            if let (Ok(purge), Ok(number)) = (serde_json::from_str::<Purge>(&row[0]), row[1].parse())
                && purges.learn(purge.clone(), number)
                && purge == Purge::default()
            {
                all_purged();
            }
        }
        *read = last;
        let (known, all, named) = purges.numbers();
        if last < known && self.untold().is_empty() {
            let all = Some((Purge::default(), all)).filter(|(_, number)| *number > 0);
            let mine: Vec<_> = named.into_iter().chain(all).collect();
            self.put(purges, &mine, "same").await?;
        }
        self.known_by.store(breaks + 1, Ordering::Release);
        Some(())
    }

    /// `how`: `next` where the purge is new, so that its number is the highest.
    async fn put(&self, purges: &Purges, rows: &[(Purge, u64)], how: &str) -> Option<()> {
        for (purge, number) in rows {
            let name = serde_json::to_string(purge).ok()?;
            let all = serde_json::to_string(&Purge::default()).ok()?;
            let arguments = [how.to_owned(), name, number.to_string(), all, NAMES_MAX.to_string()];
            let number: Result<u64, _> = self.link.run_at_leisure(&self.tell, &self.keys, &arguments).await;
            purges.learn(purge.clone(), number.ok()?);
        }
        Some(())
    }
}
