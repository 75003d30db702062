//! Uses in memory: what is not written yet, and what each key has used a day.
//!
//! Both are bounded. Of accounts there are `ACCOUNTS_MAX`; past that, users are no longer told apart, and what remains
//! are the keys and models that the operator named. Of days there are those of this month and the last.

use std::collections::{BTreeMap, HashMap};

use foldhash::quality::RandomState;
use jiff::ToSpan;
use jiff::civil::Date;

use super::used::{Account, Counts, OTHER, Open, Period};

/// Accounts that are told apart by user, about 16 MiB of them. With a file they are those of one day, so that this
/// bounds what a day adds to it.
const ACCOUNTS_MAX: usize = 64 << 10;

/// Shares of budgets that are let go when they are told; those beyond it end by themselves.
const OPEN_MAX: usize = 64 << 10;

/// What each key has used, by day.
pub(super) type Days = HashMap<String, BTreeMap<Date, Counts>>;

#[derive(Debug, Default)]
pub(super) struct Books {
    /// What is not in the file yet; without a file, all there is. Accounts of today stay when they are written.
    accounts: HashMap<Account, Counts, RandomState>,
    /// Whose shares of budgets are let go when that is told.
    open: Vec<Open>,
    /// What is in the file and what is not, together.
    days: Days,
    /// The first day that was kept when days were last forgotten.
    since: Option<Date>,
}

/// The first day that is remembered: of the month before.
pub(super) fn first_kept(today: Date) -> Date {
    today.first_of_month().saturating_sub(1.month())
}

/// Adds to a day of a key.
pub(super) fn add(days: &mut Days, key: &str, day: Date, counts: Counts) {
    let days = match days.get_mut(key) {
        Some(days) => days,
        None => days.entry(key.to_owned()).or_default(),
    };
    *days.entry(day).or_default() += counts;
}

impl Books {
    pub(super) fn with(days: Days) -> Self {
        Self { days, ..Self::default() }
    }

    pub(super) fn note(&mut self, mut account: Account, counts: Counts) {
        add(&mut self.days, &account.key, account.day, counts);
        if self.accounts.len() >= ACCOUNTS_MAX && !self.accounts.contains_key(&account) {
            OTHER.clone_into(&mut account.user);
        }
        *self.accounts.entry(account).or_default() += counts;
    }

    /// A share that is let go when what was noted until now is told.
    pub(super) fn note_open(&mut self, open: Open) {
        if self.open.len() < OPEN_MAX {
            self.open.push(open);
        }
    }

    pub(super) fn spent(&self, key: &str, period: Period, today: Date) -> Counts {
        let (first, last) = match period {
            Period::Day => (today, today),
            Period::Month => (today.first_of_month(), today.last_of_month()),
        };
        let mut sum = Counts::default();
        for counts in self.days.get(key).into_iter().flat_map(|days| days.range(first..=last)) {
            sum += *counts.1;
        }
        sum
    }

    /// The shares that are let go with it.
    pub(super) fn open(&self) -> &[Open] {
        &self.open
    }

    /// What is to be written.
    pub(super) fn unwritten(&self) -> impl Iterator<Item = (&Account, Counts)> {
        let some = |(_, counts): &(_, &Counts)| **counts != Counts::default();
        self.accounts.iter().filter(some).map(|(account, counts)| (account, *counts))
    }

    /// Takes in that `written` is in the file, the first so many shares let go, and what else is there, if that was
    /// read.
    pub(super) fn written(
        &mut self,
        (written, open): (&[(Account, Counts)], usize),
        read: Option<Days>,
        today: Date,
    ) {
        self.open.drain(..open.min(self.open.len()));
        for (account, counts) in written {
            if let Some(unwritten) = self.accounts.get_mut(account) {
                *unwritten = unwritten.without(*counts);
            }
        }
        self.accounts.retain(|account, counts| account.day == today || *counts != Counts::default());
        if let Some(mut days) = read {
            for (account, counts) in self.unwritten() {
                add(&mut days, &account.key, account.day, counts);
            }
            self.days = days;
        }
    }

    /// Forgets what is older than the last month, where there is no file to read it from again.
    pub(super) fn forget(&mut self, today: Date) {
        let first = first_kept(today);
        if self.since.replace(first) == Some(first) {
            return;
        }
        self.accounts.retain(|account, _| account.day >= first);
        self.days.retain(|_, days| {
            days.retain(|day, _| *day >= first);
            !days.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    fn account(day: Date, user: &str) -> Account {
        Account { day, key: "alice".to_owned(), user: user.to_owned(), model: "tiny".to_owned() }
    }

    fn requests(requests: u64) -> Counts {
        Counts { requests, ..Counts::default() }
    }

    #[test]
    fn days_and_months_are_those_of_the_calendar() {
        let mut books = Books::default();
        // The clock goes back and forth: each use counts on the day that the clock said.
        for day in
            [date(2026, 2, 28), date(2026, 3, 1), date(2026, 2, 28), date(2026, 3, 31), date(2025, 3, 1)]
        {
            books.note(account(day, ""), requests(1));
        }
        for (today, day, month) in [
            (date(2026, 2, 28), 2, 2),
            (date(2026, 3, 1), 1, 2),
            (date(2026, 3, 15), 0, 2),
            (date(2026, 4, 1), 0, 0),
            (date(2025, 3, 31), 0, 1),
        ] {
            assert_eq!(books.spent("alice", Period::Day, today), requests(day), "{today}");
            assert_eq!(books.spent("alice", Period::Month, today), requests(month), "{today}");
            assert_eq!(books.spent("bob", Period::Month, today), requests(0), "{today}");
        }
        for extreme in [Date::MIN, Date::MAX] {
            books.note(account(extreme, ""), requests(1));
            assert_eq!(books.spent("alice", Period::Month, extreme), requests(1));
            first_kept(extreme);
        }
    }

    #[test]
    fn users_past_the_bound_are_not_told_apart() {
        let today = date(2026, 3, 1);
        let mut books = Books::default();
        for user in 0..ACCOUNTS_MAX + 100 {
            books.note(account(today, &user.to_string()), requests(1));
        }
        books.note(account(today, "0"), requests(1));
        assert_eq!(books.accounts.len(), ACCOUNTS_MAX + 1);
        assert_eq!(books.accounts[&account(today, OTHER)], requests(100));
        assert_eq!(books.accounts[&account(today, "0")], requests(2), "who is known already stays so");
        // Nor are they after they were written: a day adds no more than that to the file.
        let written: Vec<_> = books.unwritten().map(|(account, counts)| (account.clone(), counts)).collect();
        books.written((&written, 0), None, today);
        assert_eq!(books.unwritten().count(), 0);
        books.note(account(today, "late"), requests(1));
        assert_eq!(books.accounts[&account(today, OTHER)], requests(1));
        let tomorrow = date(2026, 3, 2);
        books.written((&[], 0), None, tomorrow);
        books.note(account(tomorrow, "early"), requests(1));
        assert_eq!(books.accounts[&account(tomorrow, "early")], requests(1));
        assert_eq!(books.spent("alice", Period::Month, today).requests, ACCOUNTS_MAX as u64 + 103);
    }

    #[test]
    fn what_came_meanwhile_stays_unwritten() {
        let today = date(2026, 3, 1);
        let mut books = Books::default();
        books.note(account(today, ""), requests(2));
        let written = [(account(today, ""), requests(2))];
        books.note(account(today, ""), requests(5));
        let elsewhere = Days::from([("alice".to_owned(), BTreeMap::from([(today, requests(10))]))]);
        books.written((&written, 0), Some(elsewhere), today);
        let left: Vec<_> = books.unwritten().collect();
        assert_eq!(left, [(&account(today, ""), requests(5))]);
        assert_eq!(books.spent("alice", Period::Day, today), requests(15));
    }

    #[test]
    fn without_a_file_two_months_are_kept() {
        let mut books = Books::default();
        for day in [date(2026, 1, 31), date(2026, 2, 1), date(2026, 3, 1), date(2027, 1, 1)] {
            books.note(account(day, ""), requests(1));
        }
        books.forget(date(2026, 3, 31));
        let mut kept: Vec<_> = books.accounts.keys().map(|account| account.day).collect();
        kept.sort_unstable();
        assert_eq!(kept, [date(2026, 2, 1), date(2026, 3, 1), date(2027, 1, 1)]);
        assert_eq!(books.days["alice"].len(), 3);
        books.forget(date(2028, 1, 1));
        assert!(books.accounts.is_empty() && books.days.is_empty());
    }
}
