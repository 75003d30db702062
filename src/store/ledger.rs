//! What each key has used: counted in memory at once, written to a file when told to.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;

use super::books::{Books, Days, first_kept};
use super::far::Far;
use super::file::{BUSY_WAIT_MAX, File};
use super::used::{Account, Counts, Filter, Open, Period, Row, Use, today};
use super::valkey::Link;

/// Uses of keys. Requests only ever wait for the lock of `books`, which nobody holds over I/O.
#[derive(Debug)]
pub struct Ledger {
    books: Mutex<Books>,
    /// `None`: in memory alone. Held from before the books are read to be written until they are told of it, so that
    /// who holds it finds each use either there or in the file.
    file: Option<Mutex<Keeper>>,
}

/// What outlives the process.
#[derive(Debug)]
enum Keeper {
    File(File),
    /// Shared by replicas.
    Valkey(Far),
}

impl Ledger {
    /// Keeps this month and the last, for as long as the process lives.
    pub fn in_memory() -> Self {
        Self { books: Mutex::default(), file: None }
    }

    /// Opens a file, or makes it. Fails with what is wrong with the file and what to do, and has then not changed it.
    /// The file is closed again until the first flush, since a connection must not live through a daemon's fork.
    pub fn open(path: &Path, now: Timestamp) -> Result<Self, String> {
        Self::open_and_wait(path, now, BUSY_WAIT_MAX)
    }

    /// Keeps it in Valkey, for all who share that. `replica`: no other process's, ever.
    pub fn shared(link: Arc<Link>, prefix: &str, replica: &str) -> Self {
        let far = Far::new(link, prefix, replica);
        Self { books: Mutex::default(), file: Some(Mutex::new(Keeper::Valkey(far))) }
    }

    fn open_and_wait(path: &Path, now: Timestamp, busy_wait_max: Duration) -> Result<Self, String> {
        let mut file = File::open(path, busy_wait_max)?;
        let read = file.exchange(&[], first_kept(today(now)))?;
        file.close();
        Ok(Self {
            books: Mutex::new(Books::with(read.unwrap_or_default())),
            file: Some(Mutex::new(Keeper::File(file))),
        })
    }

    /// Counts a use on the day that the clock says. Does no I/O.
    pub fn note(&self, used: &Use<'_>, now: Timestamp) {
        let account = Account::of(used, today(now));
        let mut books = self.books();
        books.note(account, used.counts);
        if let Some(place) = used.open {
            books.note_open(Open { key: used.key.to_owned(), place: place.to_owned() });
        }
    }

    /// Whether it is kept where other processes read it too.
    pub fn is_kept(&self) -> bool {
        self.file.is_some()
    }

    /// Counts what another process counted, on its day. Does no I/O.
    pub fn take_over(&self, row: Row) {
        let (account, counts) = Account::of_row(row);
        self.books().note(account, counts);
    }

    /// What a key has used in the day or month of `now`: what this process noted, and what others wrote until the last
    /// flush. Does no I/O.
    pub fn spent(&self, key: &str, period: Period, now: Timestamp) -> Counts {
        self.books().spent(key, period, today(now))
    }

    /// Writes what is not written yet, in one transaction, and reads what others have written. If that fails nothing
    /// is lost or counted twice: a later flush writes it. Blocks, for `BUSY_WAIT_MAX` where another process writes.
    pub fn flush(&self, now: Timestamp) -> Result<(), String> {
        let today = today(now);
        let Some(file) = &self.file else {
            self.books().forget(today);
            return Ok(());
        };
        let mut file = lock(file);
        file.is_there()?;
        let (unwritten, open) = {
            let books = self.books();
            let rows = books.unwritten().map(|(account, counts)| (account.clone(), counts));
            (rows.collect::<Vec<_>>(), books.open().to_vec())
        };
        let read = file.exchange(&unwritten, &open, first_kept(today))?;
        self.books().written((&unwritten, open.len()), read, today);
        Ok(())
    }

    /// Flushes and closes the file, which then holds all by itself. A later flush opens it again.
    pub fn close(&self, now: Timestamp) -> Result<(), String> {
        let flushed = self.flush(now);
        if let Some(file) = &self.file
            && let Keeper::File(file) = &mut *lock(file)
        {
            file.close();
        }
        flushed
    }

    /// All that is known, written or not, by day, key, user and model. Blocks as [`Ledger::flush`] does.
    pub fn report(&self, of: &Filter) -> Result<Vec<Row>, String> {
        let mut file = self.file.as_ref().map(lock);
        let rows = file.as_mut().map_or(Ok(Vec::new()), |file| file.rows(of))?;
        let mut all: BTreeMap<Account, Counts> = rows.into_iter().collect();
        for (account, counts) in self.books().unwritten().filter(|(account, _)| of.takes(account)) {
            *all.entry(account.clone()).or_default() += counts;
        }
        Ok(all.into_iter().map(|(account, counts)| account.row(counts)).collect())
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        lock(&self.books)
    }
}

impl Keeper {
    /// Fails where nobody would answer, before anything is made ready for that.
    fn is_there(&self) -> Result<(), String> {
        match self {
            Self::File(_) => Ok(()),
            Self::Valkey(far) => far.is_there(),
        }
    }

    fn exchange(
        &mut self,
        unwritten: &[(Account, Counts)],
        open: &[Open],
        first: Date,
    ) -> Result<Option<Days>, String> {
        match self {
            Self::File(file) => file.exchange(unwritten, first),
            Self::Valkey(far) => far.exchange(unwritten, open, first),
        }
    }

    fn rows(&mut self, of: &Filter) -> Result<Vec<(Account, Counts)>, String> {
        match self {
            Self::File(file) => file.rows(of),
            Self::Valkey(far) => far.rows(of),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
