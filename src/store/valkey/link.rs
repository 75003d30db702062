//! The way to Valkey: questions that wait so long and no longer, and a circuit that opens when there is no answer.
//!
//! A question waits as long as others are answered, and once none is for the link's patience ([`PATIENCE`]), whoever
//! asked goes on without: a Valkey that is dead holds nobody up longer, and one that has much to do may take its time.
//! The answer may come later ([`Late`]) and says then whether it counted there. While nothing is answered in time for
//! [`SILENCE_MAX`], or once the connection breaks, the circuit is open: nobody asks, so nobody waits. [`Link::keep`]
//! asks for itself now and then, so that this is found where nobody else asks, connects again, and closes the circuit
//! once it is answered.
//!
//! To ask something new of Valkey: make a [`Script`] of it with [`Link::script`], and [`Link::run`] that; by
//! [`Link::run_within`] where nobody waits for the answer. All keys of one script must begin with the same `{…}`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, ServerErrorKind, ToRedisArgs};
use tokio::time::{sleep, timeout};

use super::dial::{Dial, Wire};
use super::line::{Answer, Line, NEVER, WAIT_MAX};

/// The longest that a silent Valkey holds up whoever asks, where that may go on without an answer: with a timer that
/// counts whole milliseconds, less than five.
pub const PATIENCE: Duration = Duration::from_millis(4);

/// The same where nothing may go on without: as long as a busy machine may take for it.
pub const PATIENCE_REQUIRED: Duration = Duration::from_millis(100);

/// Longer than the client itself waits.
const AT_LEISURE: Duration = Duration::from_secs(2);

/// Valkey does nothing else meanwhile: a part of a millisecond.
const FIELDS_AT_ONCE: usize = 500;

/// After so long without one answer in time it is away.
const SILENCE_MAX: Duration = Duration::from_millis(250);

/// How often a link is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The same while it is in doubt.
const LOOK_AGAIN_EVERY: Duration = Duration::from_millis(25);

/// Between two tries to connect; longer after each time that it broke soon.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_millis(400);

/// After so long a connection has held.
const HOLDS_AFTER: Duration = Duration::from_secs(5);

/// No answer, or none yet.
#[derive(Debug)]
pub enum Unanswered<T> {
    /// It was not asked, or what it did with the question will never be known.
    Away,
    /// It is there and says no: it is full, say. Nothing was done.
    No,
    /// It was asked, and has not answered in time.
    Late(Late<T>),
}

/// An answer that may still come.
pub struct Late<T>(Answer<T>);

impl<T> Late<T> {
    /// Waits for it, a second in all at most. `None`: what was done with the question will never be known.
    pub async fn answer(self) -> Option<T> {
        self.0.await.ok()
    }
}

impl<T> std::fmt::Debug for Late<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Late")
    }
}

/// A script that Valkey runs as one step; it keeps it by its hash.
#[derive(Clone)]
pub struct Script(Arc<Text>);

struct Text {
    text: String,
    hash: String,
}

/// The way to Valkey.
pub struct Link {
    dial: Dial,
    patience: Duration,
    /// What a look writes.
    mark: String,
    /// Loaded with each connection.
    scripts: Mutex<Vec<Script>>,
    /// `None`: the circuit is open.
    line: ArcSwapOption<Line>,
    /// Whether it was said that it is away, or that it says no.
    said_away: AtomicBool,
    said_no: AtomicBool,
    breaks: AtomicU64,
    lates: AtomicU64,
}

impl Link {
    /// `mark`: a key of its own that it may write.
    pub fn new(dial: Dial, mark: String, patience: Duration) -> Self {
        Self {
            dial,
            patience,
            mark,
            scripts: Mutex::default(),
            line: ArcSwapOption::empty(),
            said_away: AtomicBool::new(false),
            said_no: AtomicBool::new(false),
            breaks: AtomicU64::new(0),
            lates: AtomicU64::new(0),
        }
    }

    /// Whether questions are asked at all.
    pub fn is_up(&self) -> bool {
        self.line.load().is_some()
    }

    /// Whether an answer was late since one was in time.
    pub fn is_in_doubt(&self) -> bool {
        self.line.load().as_ref().is_some_and(|line| line.late_since.load(Ordering::Relaxed) != NEVER)
    }

    /// How often the circuit has opened.
    pub fn breaks(&self) -> u64 {
        self.breaks.load(Ordering::Relaxed)
    }

    /// How many questions somebody went on without an answer to.
    pub fn lates(&self) -> u64 {
        self.lates.load(Ordering::Relaxed)
    }

    /// A script to [run](Self::run).
    pub fn script(&self, text: &str) -> Script {
        let hash = redis::Script::new(text).get_hash().to_owned();
        let script = Script(Arc::new(Text { text: text.to_owned(), hash }));
        self.scripts.lock().unwrap_or_else(PoisonError::into_inner).push(script.clone());
        script
    }

    /// Runs a script.
    pub async fn run<T: FromRedisValue + Send + 'static>(
        &self,
        script: &Script,
        keys: &[String],
        arguments: &[impl ToRedisArgs + Sync],
    ) -> Result<T, Unanswered<T>> {
        self.run_within(self.patience, script, keys, arguments).await
    }

    /// The same for whoever holds nobody up: within a second, or not at all.
    pub async fn run_at_leisure<T: FromRedisValue + Send + 'static>(
        &self,
        script: &Script,
        keys: &[String],
        arguments: &[impl ToRedisArgs + Sync],
    ) -> Result<T, Unanswered<T>> {
        self.run_within(AT_LEISURE, script, keys, arguments).await
    }

    async fn run_within<T: FromRedisValue + Send + 'static>(
        &self,
        patience: Duration,
        script: &Script,
        keys: &[String],
        arguments: &[impl ToRedisArgs + Sync],
    ) -> Result<T, Unanswered<T>> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&script.0.hash).arg(keys.len()).arg(keys).arg(arguments);
        self.ask(command, Some(script.clone()), patience).await
    }

    /// The members of a set, at leisure.
    pub async fn members(&self, key: &str) -> Option<Vec<String>> {
        self.ask(redis::cmd("SMEMBERS").arg(key).to_owned(), None, AT_LEISURE).await.ok()
    }

    /// The fields of a hash, and their counts, at leisure: some from `cursor` on, and where the next begin; 0 is where
    /// they begin, and end. A few may come twice.
    pub async fn fields(&self, key: &str, cursor: u64) -> Option<(u64, Vec<(String, u64)>)> {
        let some = redis::cmd("HSCAN").arg(key).arg(cursor).arg("COUNT").arg(FIELDS_AT_ONCE).to_owned();
        self.ask(some, None, AT_LEISURE).await.ok()
    }

    /// Asks, unless the circuit is open; waits until it is answered, its time is over, or the circuit opens.
    async fn ask<T: FromRedisValue + Send + 'static>(
        &self,
        command: Cmd,
        script: Option<Script>,
        patience: Duration,
    ) -> Result<T, Unanswered<T>> {
        let Some(line) = self.line.load_full() else { return Err(Unanswered::Away) };
        let mut broken = line.broken.subscribe();
        let (wire, answers) = (line.wire.clone(), Arc::clone(&line.answers));
        let asked_at = line.begun.elapsed();
        let mut answer: Answer<T> = Box::pin(async move {
            let answer = wire.ask(&command, script.as_ref()).await;
            answers.fetch_add(1, Ordering::Relaxed);
            answer
        });
        let answered = tokio::select! {
            biased;
            answered = line.within(patience, &mut answer) => answered,
            _ = broken.wait_for(|broken| *broken) => return Err(Unanswered::Late(Late(answer))),
        };
        match answered {
            Some(Ok(answer)) => {
                // Of those at leisure, this says nothing.
                if line.begun.elapsed() - asked_at <= WAIT_MAX {
                    line.late_since.store(NEVER, Ordering::Relaxed);
                }
                Ok(answer)
            }
            Some(Err(error)) if is_no(&error) => {
                if !self.said_no.swap(true, Ordering::AcqRel) {
                    log::warn!(
                        "Valkey at {} says no: {error}; this process goes on by itself",
                        self.dial.address
                    );
                }
                Err(Unanswered::No)
            }
            Some(Err(error)) => {
                self.break_off(&line, &error.to_string());
                Err(Unanswered::Away)
            }
            None => {
                self.lates.fetch_add(1, Ordering::Relaxed);
                self.doubt(&line, asked_at);
                Err(Unanswered::Late(Late(answer)))
            }
        }
    }

    /// A question that was asked then has no answer in time.
    fn doubt(&self, line: &Arc<Line>, asked_at: Duration) {
        let asked_at = u64::try_from(asked_at.as_micros()).unwrap_or(NEVER);
        let since = line.late_since.fetch_min(asked_at, Ordering::Relaxed).min(asked_at);
        if line.begun.elapsed().saturating_sub(Duration::from_micros(since)) >= SILENCE_MAX {
            self.break_off(line, &format!("no answer within {} ms", self.patience.as_millis()));
        }
    }

    fn break_off(&self, line: &Arc<Line>, why: &str) {
        // Only the first says so.
        if !line.broken.send_replace(true) {
            self.breaks.fetch_add(1, Ordering::Relaxed);
            self.line.store(None);
            self.say_away(why);
        }
    }

    fn say_away(&self, why: &str) {
        if !self.said_away.swap(true, Ordering::AcqRel) {
            log::warn!("Valkey at {} is away: {why}; this process goes on by itself", self.dial.address);
        }
    }

    /// Connects, and again when it breaks, as long as it is polled.
    pub async fn keep(&self) {
        let mut pause = PAUSE_MIN;
        loop {
            match self.connect().await {
                Ok(line) => {
                    tokio::select! {
                        () = self.look_after(&line) => {}
                        () = line.tick() => {}
                    }
                    let held = line.begun.elapsed() >= HOLDS_AFTER;
                    pause = if held { PAUSE_MIN } else { (2 * pause).min(PAUSE_MAX) };
                }
                Err(why) => self.say_away(&why),
            }
            sleep(pause).await;
        }
    }

    async fn connect(&self) -> Result<Arc<Line>, String> {
        let wire = self.dial.connect().await?;
        let scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for script in scripts {
            wire.clone().load(&script).await.map_err(|error| error.to_string())?;
        }
        let looked = timeout(self.patience, wire.clone().ask::<i64>(&self.look(), None)).await;
        looked.map_err(|_| self.late())?.map_err(|error| error.to_string())?;
        let line = Arc::new(Line::new(wire));
        self.line.store(Some(Arc::clone(&line)));
        self.said_no.store(false, Ordering::Release);
        if self.said_away.swap(false, Ordering::AcqRel) {
            log::info!("Valkey at {} is back", self.dial.address);
        }
        Ok(line)
    }

    /// Writes something, which a server that only reads refuses.
    fn look(&self) -> Cmd {
        redis::cmd("PEXPIRE").arg(&self.mark).arg(1).to_owned()
    }

    fn late(&self) -> String {
        format!("no answer within {} ms", self.patience.as_millis())
    }

    /// Until it breaks.
    async fn look_after(&self, line: &Arc<Line>) {
        let mut broken = line.broken.subscribe();
        loop {
            let in_doubt = line.late_since.load(Ordering::Relaxed) != NEVER;
            let pause = if in_doubt { LOOK_AGAIN_EVERY } else { LOOK_EVERY };
            tokio::select! {
                _ = broken.wait_for(|broken| *broken) => return,
                () = sleep(pause) => {}
            }
            // Whether it is answered is seen by the wait above.
            let _: Result<i64, _> = self.ask(self.look(), None, self.patience).await;
        }
    }
}

impl Wire {
    async fn ask<T: FromRedisValue>(self, command: &Cmd, script: Option<&Script>) -> Result<T, RedisError> {
        let answer = self.clone().query(command).await;
        let Err(error) = answer else { return answer };
        match script {
            Some(script) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.clone().load(script).await?;
                self.query(command).await
            }
            _ => Err(error),
        }
    }

    async fn load(self, script: &Script) -> Result<String, RedisError> {
        self.query(redis::cmd("SCRIPT").arg("LOAD").arg(&script.0.text)).await
    }

    async fn query<T: FromRedisValue>(self, command: &Cmd) -> Result<T, RedisError> {
        match self {
            Self::One(mut wire) => command.query_async(&mut wire).await,
            Self::Cluster(mut wire) => command.query_async(&mut wire).await,
        }
    }
}

/// Whether it was answered, by a server that is well: with another question it may do.
fn is_no(error: &RedisError) -> bool {
    let own = matches!(error.code(), Some("OOM" | "ERR" | "WRONGTYPE" | "NOPERM"));
    own || matches!(error.kind(), ErrorKind::UnexpectedReturnType | ErrorKind::Parse)
}

#[cfg(test)]
mod tests;
