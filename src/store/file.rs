//! The file: one SQLite table, one row for each day, key, user and model.
//!
//! A row only ever grows, by `x = x + new` in the database itself: so any number of processes may write, as two do
//! while one upgrades the other, and nothing is counted twice or lost. The journal is a write-ahead log: readers (the
//! command line) and the writer do not wait for each other. Each transaction is on the disk when it ends
//! (`synchronous=FULL`): with the weaker `NORMAL` a power cut takes what came since the last checkpoint, which may be
//! hours of use and not a second's; the price is one sync a flush that has something to write.
//!
//! Nothing here ever deletes or cuts a file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::civil::Date;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, params, types::Type};

use super::books::{Days, add};
use super::used::{Account, Counts, Filter, Row, day};

/// Tells our files from those of other programs ("aigw").
const APPLICATION: i32 = 0x6169_6777;
/// Raised when the table changes; a file of a higher one is left alone.
const SCHEMA: i32 = 1;

/// The longest wait for another process that is writing.
pub(super) const BUSY_WAIT_MAX: Duration = Duration::from_secs(5);

const CREATE: &str = "CREATE TABLE IF NOT EXISTS used (
    day TEXT NOT NULL, key TEXT NOT NULL, user TEXT NOT NULL, model TEXT NOT NULL,
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
    prefill_ms INTEGER NOT NULL, generation_ms INTEGER NOT NULL,
    PRIMARY KEY (day, key, user, model)
) STRICT, WITHOUT ROWID";

/// Sums stop at SQLite's largest integer, as those in memory do at theirs.
const ADD: &str = "INSERT INTO used VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
    ON CONFLICT DO UPDATE SET
        requests = min(requests + excluded.requests, 9223372036854775807),
        prompt_tokens = min(prompt_tokens + excluded.prompt_tokens, 9223372036854775807),
        completion_tokens = min(completion_tokens + excluded.completion_tokens, 9223372036854775807),
        cached_tokens = min(cached_tokens + excluded.cached_tokens, 9223372036854775807),
        prefill_ms = min(prefill_ms + excluded.prefill_ms, 9223372036854775807),
        generation_ms = min(generation_ms + excluded.generation_ms, 9223372036854775807)";

const READ: &str =
    "SELECT * FROM used WHERE day >= ?1 AND (?2 IS NULL OR key = ?2) ORDER BY day, key, user, model";

/// A file, and a connection to it while there is one.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    busy_wait_max: Duration,
    link: Option<Link>,
}

#[derive(Debug)]
struct Link {
    connection: Connection,
    /// What was read through it last: SQLite's mark of what others have written, and from which day on.
    read: Option<(i64, Date)>,
}

/// Why a file cannot be used.
enum Fault {
    Sqlite(rusqlite::Error),
    /// In words.
    Other(String),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// Reads a file, while a gateway has it open or not. Fails with what is wrong with it and what to do.
pub fn read(path: &Path, of: &Filter) -> Result<Vec<Row>, String> {
    if !path.exists() {
        return Err(format!("there is no usage store {} yet: a gateway makes it at start", path.display()));
    }
    let read = || -> Result<Vec<Row>, Fault> {
        let mut rows = Vec::new();
        if let Some(connection) = look(path, BUSY_WAIT_MAX)? {
            each(&connection, of, |account, counts| rows.push(account.row(counts)))?;
        }
        Ok(rows)
    };
    read().map_err(|fault| explain(path, &fault))
}

impl File {
    /// Looks through all of a file, if there is one. It is made when it is first read or written.
    pub(super) fn open(path: &Path, busy_wait_max: Duration) -> Result<Self, String> {
        // A daemon changes its folder.
        let path = std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))?;
        if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
            let (path, folder) = (path.display(), folder.display());
            return Err(format!(
                "the usage store {path} needs the folder {folder}: make it, or name another"
            ));
        }
        let check = || -> Result<(), Fault> {
            let Some(connection) = look(&path, busy_wait_max)? else { return Ok(()) };
            let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
            match found.as_str() {
                "ok" => Ok(()),
                wrong => Err(Fault::Other(format!("is damaged ({wrong}): {RESCUE}"))),
            }
        };
        if path.exists() {
            check().map_err(|fault| explain(&path, &fault))?;
        }
        Ok(Self { path, busy_wait_max, link: None })
    }

    /// Adds to the file; then reads what each key has used from day `first` on, unless that is known: nobody else has
    /// written since, and `first` is as it was.
    pub(super) fn exchange(
        &mut self,
        unwritten: &[(Account, Counts)],
        first: Date,
    ) -> Result<Option<Days>, String> {
        self.attempt(|link| {
            let known = link.read;
            if unwritten.is_empty() && known == Some((version(&link.connection)?, first)) {
                return Ok(None);
            }
            let behavior = match unwritten {
                [] => TransactionBehavior::Deferred,
                _ => TransactionBehavior::Immediate,
            };
            let transaction = link.connection.transaction_with_behavior(behavior)?;
            let found = Some((version(&transaction)?, first));
            write(&transaction, unwritten)?;
            let days = if known == found { None } else { Some(days(&transaction, first)?) };
            transaction.commit()?;
            link.read = found;
            Ok(days)
        })
    }

    pub(super) fn rows(&mut self, of: &Filter) -> Result<Vec<(Account, Counts)>, String> {
        self.attempt(|link| {
            let mut rows = Vec::new();
            each(&link.connection, of, |account, counts| rows.push((account, counts)))?;
            Ok(rows)
        })
    }

    pub(super) fn close(&mut self) {
        self.link = None;
    }

    /// Does something over a connection, a new one if there is none. After a fault the next attempt begins anew.
    fn attempt<T>(&mut self, act: impl FnOnce(&mut Link) -> Result<T, Fault>) -> Result<T, String> {
        let done = match &mut self.link {
            Some(link) => act(link),
            None => connect(&self.path, self.busy_wait_max)
                .and_then(|connection| act(self.link.insert(Link { connection, read: None }))),
        };
        done.map_err(|fault| {
            self.link = None;
            explain(&self.path, &fault)
        })
    }
}

/// Opens a file to read it; `None` where there is nothing in it yet.
fn look(path: &Path, busy_wait_max: Duration) -> Result<Option<Connection>, Fault> {
    if path.is_dir() {
        return Err(Fault::Other("is a folder: name a file in it".to_owned()));
    }
    // SQLite would wait for whoever writes into a pipe.
    if path.metadata().is_ok_and(|it| !it.is_file()) {
        return Err(Fault::Other("is a pipe, a socket or a device: name a file".to_owned()));
    }
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(busy_wait_max)?;
    Ok(if is_new(&connection)? { None } else { Some(connection) })
}

/// Opens a file and makes the table if there is none. A file that is not ours is not changed.
fn connect(path: &Path, busy_wait_max: Duration) -> Result<Connection, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(busy_wait_max)?;
    is_new(&connection)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // Written each time: a file that cannot be written is found now, not when there is use to lose.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(CREATE)?;
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    transaction.commit()?;
    Ok(connection)
}

/// Whether there is nothing in the file yet. Fails where it is another program's, or a later version's.
fn is_new(connection: &Connection) -> Result<bool, Fault> {
    // All at one moment: another process may be making the file.
    let snapshot = connection.unchecked_transaction()?;
    let number = |pragma: &str| snapshot.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    let (application, schema) = (number("application_id")?, number("user_version")?);
    let tables: i64 = snapshot.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    drop(snapshot);
    match (application, schema) {
        (APPLICATION, SCHEMA) => Ok(false),
        (APPLICATION, later) => Err(Fault::Other(format!(
            "was written by a later version (its schema is {later}, this version's is {SCHEMA}): run that one"
        ))),
        (0, 0) if tables == 0 => Ok(true),
        _ => Err(Fault::Other("is another program's database: name another `usage.path`".to_owned())),
    }
}

/// Changes whenever another connection has written.
fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "data_version", |row| row.get(0))
}

fn write(transaction: &Transaction<'_>, unwritten: &[(Account, Counts)]) -> rusqlite::Result<()> {
    let mut add = transaction.prepare(ADD)?;
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    for (account, counts) in unwritten {
        add.execute(params![
            account.day.to_string(),
            account.key,
            account.user,
            account.model,
            number(counts.requests),
            number(counts.prompt_tokens),
            number(counts.completion_tokens),
            number(counts.cached_tokens),
            number(counts.prefill_ms),
            number(counts.generation_ms),
        ])?;
    }
    Ok(())
}

fn days(connection: &Connection, first: Date) -> rusqlite::Result<Days> {
    let mut days = Days::new();
    let since = Filter { key: None, since: Some(first) };
    each(connection, &since, |account, counts| add(&mut days, &account.key, account.day, counts))?;
    Ok(days)
}

/// Goes through rows, in their order.
fn each(connection: &Connection, of: &Filter, mut take: impl FnMut(Account, Counts)) -> rusqlite::Result<()> {
    let since = of.since.map(|day| day.to_string()).unwrap_or_default();
    let mut read = connection.prepare(READ)?;
    let mut rows = read.query(params![since, of.key])?;
    while let Some(row) = rows.next()? {
        let count = |at: usize| row.get::<_, i64>(at).map(|count| u64::try_from(count).unwrap_or_default());
        let text: String = row.get(0)?;
        let day = day(&text);
        let day = day.map_err(|why| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, why.into()))?;
        let account = Account { day, key: row.get(1)?, user: row.get(2)?, model: row.get(3)? };
        let counts = Counts {
            requests: count(4)?,
            prompt_tokens: count(5)?,
            completion_tokens: count(6)?,
            cached_tokens: count(7)?,
            prefill_ms: count(8)?,
            generation_ms: count(9)?,
        };
        take(account, counts);
    }
    Ok(())
}

const RESCUE: &str = "put a copy back, or move it away (`sqlite3 FILE .recover` saves what can be read)";

/// What is wrong and what to do, in a sentence for the operator.
fn explain(path: &Path, fault: &Fault) -> String {
    let what = match fault {
        Fault::Other(what) => what.clone(),
        Fault::Sqlite(error) => {
            let advice = match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                    "is locked by another program: end that".to_owned()
                }
                Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
                    "cannot be opened or written: let this user write the file and its folder".to_owned()
                }
                Some(ErrorCode::DiskFull) => "has no room left: free some on its disk".to_owned(),
                Some(ErrorCode::SystemIoFailure) => {
                    "cannot be read or written: look at its disk, its room and its limits".to_owned()
                }
                Some(ErrorCode::NotADatabase) => {
                    "is no SQLite database: move it away, or name another `usage.path`".to_owned()
                }
                Some(ErrorCode::DatabaseCorrupt) => format!("is damaged: {RESCUE}"),
                _ => "cannot be used".to_owned(),
            };
            format!("{advice} ({error})")
        }
    };
    format!("the usage store {} {what}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No test cuts the power: what outlives that is what SQLite is told.
    #[test]
    fn each_transaction_is_on_the_disk_when_it_ends() {
        let folder = tempfile::tempdir().expect("a folder");
        let Ok(connection) = connect(&folder.path().join("usage.db"), BUSY_WAIT_MAX) else {
            panic!("a new file can be written")
        };
        let told = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get(0));
        assert_eq!(told("synchronous"), Ok(rusqlite::types::Value::Integer(2)), "FULL");
        assert_eq!(told("journal_mode"), Ok(rusqlite::types::Value::Text("wal".to_owned())));
    }
}
