//! What keys have used, in Valkey: each replica adds to it what it counted, once, and reads what the others did.
//!
//! A batch has a number, and counts once however often it is told, so one whose answer was lost is told again as it
//! was.
//! Blocks as the file does: nobody who serves waits for it.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use jiff::ToSpan;
use jiff::civil::Date;
use tokio::time::timeout;

use super::OPEN;
use super::books::Days;
use super::used::{Account, Counts, Filter, Open};
use super::valkey::{Link, Script};

/// As SQLite's file would keep it for ever, and a memory not: 400 days.
const KEPT_MS: u64 = 400 * 86_400_000;

const BATCH_ROWS_MAX: usize = 200;
const BATCH_OPEN_MAX: usize = 256;

/// What is read for a report: days, of which some are asked for at once, and counts, six of a row; and how long.
const DAYS_MAX: usize = 401;
const DAYS_AT_ONCE: usize = 16;
const FIELDS_MAX: usize = 1 << 20;
const READ_TIME_MAX: Duration = Duration::from_secs(4);

const AWAY: &str = "Valkey is away";

/// How many keys' changes the script tells at once.
const CHANGES_MAX: usize = 100;

/// Doubles are exact so far, and nobody uses so much in half a second.
const COUNT_MAX: u64 = 1 << 53;

pub(super) struct Far {
    link: Arc<Link>,
    script: Script,
    prefix: String,
    mark: String,
    /// The batch whose answer has not come.
    pending: Option<Batch>,
    number: u64,
    /// What counts there and the ledger has not been told of.
    told: HashMap<Account, Counts>,
    /// The last change that was read, and what each key has used until then.
    seen: u64,
    days: Days,
}

/// What is told at once.
#[derive(Default)]
struct Batch {
    rows: Vec<(Account, Counts)>,
    open: Vec<Open>,
}

/// What the script says.
struct News {
    last: u64,
    /// Of each its name, its change, and its counts by day and place.
    keys: Vec<(String, u64, Vec<Count>)>,
}

type Count = (Date, usize, u64);

impl Far {
    pub(super) fn new(link: Arc<Link>, prefix: &str, replica: &str) -> Self {
        let prefix = format!("{{{prefix}}}");
        Self {
            script: link.script(&format!("#!lua flags=allow-oom\n{OPEN}{}", include_str!("usage.lua"))),
            link,
            mark: format!("{prefix}:usage:replica:{replica}"),
            prefix,
            pending: None,
            number: 0,
            told: HashMap::new(),
            seen: 0,
            days: Days::new(),
        }
    }

    pub(super) fn is_there(&self) -> Result<(), String> {
        if self.link.is_up() { Ok(()) } else { Err(AWAY.to_owned()) }
    }

    /// Adds what is not there yet, and reads what each key has used, unless nothing has changed.
    pub(super) fn exchange(
        &mut self,
        unwritten: &[(Account, Counts)],
        open: &[Open],
        first: Date,
    ) -> Result<Option<Days>, String> {
        let before = self.seen;
        if self.pending.is_some() {
            self.tell(first)?;
        }
        let rest: Vec<(Account, Counts)> = unwritten
            .iter()
            .map(|(account, counts)| {
                (account.clone(), counts.without(self.told.get(account).copied().unwrap_or_default()))
            })
            .filter(|(_, counts)| *counts != Counts::default())
            .collect();
        let mut batches: Vec<Batch> = rest
            .chunks(BATCH_ROWS_MAX)
            .map(|rows| Batch { rows: rows.to_vec(), ..Batch::default() })
            .collect();
        // A share goes with what it was used for, or after that: never before.
        for open in open.chunks(BATCH_OPEN_MAX) {
            match batches.last_mut() {
                Some(last) if last.open.is_empty() => last.open = open.to_vec(),
                _ => batches.push(Batch { open: open.to_vec(), ..Batch::default() }),
            }
        }
        let asks_alone = batches.is_empty();
        for batch in batches {
            self.number += 1;
            self.pending = Some(batch);
            self.tell(first)?;
        }
        if asks_alone {
            self.tell(first)?;
        }
        self.told.clear();
        self.days.retain(|_, days| {
            days.retain(|day, _| *day >= first);
            !days.is_empty()
        });
        Ok((before != self.seen || before == 0).then(|| self.days.clone()))
    }

    pub(super) fn rows(&mut self, of: &Filter) -> Result<Vec<(Account, Counts)>, String> {
        let found = wait(read_days(&self.link, &self.prefix, of.since))??;
        let mut all: HashMap<Account, Counts> = HashMap::new();
        for (field, count) in found {
            let Some((name, place)) = field.rsplit_once('#') else { continue };
            let Ok((day, key, user, model)) = serde_json::from_str(name) else { continue };
            let account = Account { day, key, user, model };
            if of.takes(&account)
                && let Some(slot) =
                    place.parse().ok().and_then(|place| part(all.entry(account).or_default(), place))
            {
                *slot = count;
            }
        }
        Ok(all.into_iter().collect())
    }

    /// Tells the batch that is pending, or nothing; reads all changes.
    fn tell(&mut self, first: Date) -> Result<(), String> {
        loop {
            let arguments = self.arguments(first);
            let (link, script, mark) = (&self.link, &self.script, &self.mark);
            let answer: Vec<String> = wait(async {
                link.run_at_leisure(script, std::slice::from_ref(mark), &arguments).await.ok()
            })?;
            let news = read(&answer).ok_or("Valkey answers what the script does not say")?;
            for (account, counts) in self.pending.take().unwrap_or_default().rows {
                *self.told.entry(account).or_default() += counts;
            }
            if news.last < self.seen {
                // It has lost what it had: all that there is now is new.
                (self.seen, self.days) = (0, Days::new());
                continue;
            }
            let full = news.keys.len() >= CHANGES_MAX;
            for (key, change, fields) in news.keys {
                let mut days = std::collections::BTreeMap::<Date, Counts>::new();
                for (day, place, count) in fields {
                    if let Some(slot) = part(days.entry(day).or_default(), place) {
                        *slot = count;
                    }
                }
                self.days.insert(key, days);
                self.seen = self.seen.max(change);
            }
            if !full {
                return Ok(());
            }
        }
    }

    fn arguments(&self, first: Date) -> Vec<String> {
        let month = |day: Date| format!("{:04}-{:02}", day.year(), day.month());
        let mut arguments = vec![
            self.number.to_string(),
            self.seen.to_string(),
            self.prefix.clone(),
            month(first),
            month(first.saturating_add(1.month())),
            KEPT_MS.to_string(),
        ];
        let (rows, open) = self.pending.as_ref().map_or((&[][..], &[][..]), |it| (&it.rows, &it.open));
        arguments.push(open.len().to_string());
        arguments.extend(open.iter().flat_map(|open| [open.key.clone(), open.place.clone()]));
        for (account, counts) in rows {
            let Account { day, key, user, model } = account;
            let name = serde_json::to_string(&(day, key, user, model)).unwrap_or_default();
            arguments.extend([day.to_string(), key.clone(), name]);
            let mut counts = *counts;
            arguments.extend((0..6).filter_map(|place| {
                part(&mut counts, place).map(|count| (*count).min(COUNT_MAX).to_string())
            }));
        }
        arguments
    }
}

/// A count by its place.
fn part(counts: &mut Counts, place: usize) -> Option<&mut u64> {
    let Counts { requests, prompt_tokens, completion_tokens, cached_tokens, prefill_ms, generation_ms } =
        counts;
    [requests, prompt_tokens, completion_tokens, cached_tokens, prefill_ms, generation_ms]
        .into_iter()
        .nth(place)
}

/// The fields of all days from `since` on, several days at once. `None`: Valkey is away; an error: it is too much.
async fn read_days(
    link: &Link,
    prefix: &str,
    since: Option<Date>,
) -> Option<Result<Vec<(String, u64)>, String>> {
    let days = link.members(&format!("{prefix}:usage:days")).await?;
    let mut days: Vec<Date> = days.iter().filter_map(|day| day.parse().ok()).collect();
    days.retain(|day| since.is_none_or(|since| since <= *day));
    days.sort_unstable();
    // What is older is gone; its day may still be named.
    days.drain(..days.len().saturating_sub(DAYS_MAX));
    let count = AtomicUsize::new(0);
    let read_day = async |day: Date| {
        let (key, mut fields, mut cursor) = (format!("{prefix}:usage:rows:{day}"), Vec::new(), 0);
        loop {
            let (next, some) = link.fields(&key, cursor).await?;
            if count.fetch_add(some.len(), Ordering::Relaxed) + some.len() > FIELDS_MAX {
                return Some(Err(format!("more than {FIELDS_MAX} counts; ask for fewer days with `since`")));
            }
            fields.extend(some);
            cursor = next;
            if cursor == 0 {
                return Some(Ok(fields));
            }
        }
    };
    let all = async {
        let mut found = Vec::new();
        for days in days.chunks(DAYS_AT_ONCE) {
            for read in join_all(days.iter().copied().map(read_day)).await {
                match read? {
                    Ok(fields) => found.extend(fields),
                    too_many => return Some(too_many),
                }
            }
        }
        Some(Ok(found))
    };
    // Nothing is told meanwhile.
    timeout(READ_TIME_MAX, all)
        .await
        .unwrap_or_else(|_| Some(Err("it takes too long; ask for fewer days with `since`".to_owned())))
}

fn read(answer: &[String]) -> Option<News> {
    let (last, mut rest) = answer.split_first()?;
    let mut keys = Vec::new();
    while let [key, change, count, more @ ..] = rest {
        let (fields, after) = more.split_at_checked(2 * count.parse::<usize>().ok()?)?;
        let field = |pair: &[String]| {
            let (day, place) = pair[0].rsplit_once('#')?;
            Some((day.parse().ok()?, place.parse().ok()?, pair[1].parse().ok()?))
        };
        keys.push((key.clone(), change.parse().ok()?, fields.chunks(2).filter_map(field).collect()));
        rest = after;
    }
    Some(News { last: last.parse().ok()?, keys })
}

/// Waits for an answer, on a thread of its own: it may be asked for anywhere.
fn wait<T: Send>(answer: impl Future<Output = Option<T>> + Send) -> Result<T, String> {
    let wait = || -> Result<T, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        runtime.block_on(answer).ok_or_else(|| AWAY.to_owned())
    };
    std::thread::scope(|scope| scope.spawn(wait).join()).unwrap_or_else(|_| Err("it went wrong".to_owned()))
}

impl std::fmt::Debug for Far {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Far({})", self.mark)
    }
}
