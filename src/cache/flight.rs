//! Answers that are being made: who asks for one meanwhile joins it.
//!
//! A flight has the bytes of one answer on its tape, and gives them to any number of followers, each at its own pace.
//! Its first caller, the leader, may leave while others follow; when the last one has, the flight is closed and nobody
//! can join it any more. Whether an answer is kept, being made or to be made is one question, asked under one lock
//! (Varnish's `HSH_Lookup`): so two never make the same answer.
//!
//! Locks: the map of flights first, then a flight's state.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use foldhash::fast::RandomState;
use http::StatusCode;
use tokio::sync::{OnceCell, watch};

use super::depot::Lease;
use super::form::Form;
use super::key::Key;
use super::tape::Tape;

type Map<E> = Arc<Mutex<HashMap<Key, Arc<Flight<E>>, RandomState>>>;

/// All answers that are being made. `E` is why one cannot be.
pub struct Flights<E>(Map<E>);

/// What there is for a key.
pub enum Boarding<E, T> {
    /// The answer, kept.
    Fresh(T),
    /// Somebody is making it.
    Busy(Follower<E>),
    /// Nobody is: the caller makes it.
    Lead(Leader<E>),
}

/// How an answer's making ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Landing<E> {
    Whole,
    /// It could not be made, or broke off.
    Broken(E),
    /// Its leader is no more, or it is too large to be shared.
    Lost,
    /// Its leader may not make it, or left before it had begun: another may. With the tokens of the prompt, if the
    /// leader had them counted.
    Declined(Option<u64>),
}

/// What an answer begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub status: StatusCode,
    pub content_type: Bytes,
    /// The model and the upstream that answer, where they are others than were asked for.
    pub instead: Option<(Option<String>, Option<String>)>,
}

/// One answer in the making.
pub struct Flight<E> {
    key: Key,
    /// In which the leader asked for it.
    form: Form,
    map: Map<E>,
    state: Mutex<State<E>>,
    /// What was made of it. It is looked at under the state's lock, which its landing is set under, too.
    tape: Tape,
    /// Made for the first who follows: few answers are followed.
    company: OnceLock<Box<Company>>,
}

/// What the followers of a flight share.
#[derive(Default)]
struct Company {
    /// Rings whenever the state changes.
    bell: watch::Sender<()>,
    /// The whole of it in one piece, for all who want it so.
    whole: OnceLock<Bytes>,
    /// The same in the other forms, by their places: each is made once.
    renderings: [OnceCell<Option<Bytes>>; Form::COUNT],
}

struct State<E> {
    head: Option<Head>,
    landing: Option<Landing<E>>,
    followers: usize,
    leader_gone: bool,
}

impl<E: Clone> Default for Flights<E> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<E: Clone> Flights<E> {
    /// Boards the flight of this key, unless `look_up` finds the answer, or begins one in this form.
    pub fn board<T>(&self, key: Key, form: Form, look_up: impl FnOnce() -> Option<T>) -> Boarding<E, T> {
        let mut map = lock(&self.0);
        if let Some(flight) = map.get(&key) {
            let flight = Arc::clone(flight);
            flight.state().followers += 1;
            let bell = flight.company().bell.subscribe();
            return Boarding::Busy(Follower { flight, bell, seen: Seen::default() });
        }
        // An answer is kept before its flight is taken from the map, so between the two it cannot be missed.
        if let Some(found) = look_up() {
            return Boarding::Fresh(found);
        }
        let state = State { head: None, landing: None, followers: 0, leader_gone: false };
        let flight = Arc::new(Flight {
            key,
            form,
            map: Arc::clone(&self.0),
            state: Mutex::new(state),
            tape: Tape::default(),
            company: OnceLock::new(),
        });
        map.insert(key, Arc::clone(&flight));
        Boarding::Lead(Leader { flight, lease: None })
    }
}

impl<E> Flight<E> {
    fn state(&self) -> MutexGuard<'_, State<E>> {
        lock(&self.state)
    }

    fn company(&self) -> &Company {
        self.company.get_or_init(Box::default)
    }

    /// In which its followers expect it to be made.
    pub fn form(&self) -> Form {
        self.form
    }

    pub fn followers(&self) -> usize {
        self.state().followers
    }

    pub fn leader_is_gone(&self) -> bool {
        self.state().leader_gone
    }

    /// The leader's caller leaves. True: there are others, for whom the making goes on. False: the flight is closed.
    pub fn leader_leaves(&self) -> bool {
        let mut map = lock(&self.map);
        let mut state = self.state();
        state.leader_gone = true;
        if state.followers == 0 {
            self.close(&mut map);
        }
        state.followers > 0
    }

    /// Says that the state has changed, where anybody listens: to wake nobody takes as long as to wake many. Whoever
    /// comes to listen looks at the state afterwards, under its lock, so nothing is missed.
    fn ring(&self) {
        if let Some(company) = self.company.get()
            && company.bell.receiver_count() > 0
        {
            company.bell.send_replace(());
        }
    }

    /// Waits until the last follower has left.
    pub async fn abandoned(&self) {
        let mut bell = self.company().bell.subscribe();
        while self.followers() > 0 {
            if bell.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes it from the map, so that nobody joins any more. It may have a successor there already.
    fn close(&self, map: &mut HashMap<Key, Arc<Self>, RandomState>) {
        if map.get(&self.key).is_some_and(|flight| std::ptr::eq(flight.as_ref(), self)) {
            map.remove(&self.key);
        }
    }

    fn land(&self, landing: Landing<E>) {
        let mut map = lock(&self.map);
        let mut state = self.state();
        if state.landing.is_none() {
            state.landing = Some(landing);
            self.close(&mut map);
        }
        drop((state, map));
        self.ring();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who makes the answer. Dropped without a landing, the flight is lost, or declined if it has not begun.
pub struct Leader<E> {
    flight: Arc<Flight<E>>,
    /// It makes the answer for other replicas too.
    lease: Option<Lease>,
}

impl<E: Clone> Leader<E> {
    pub fn flight(&self) -> &Arc<Flight<E>> {
        &self.flight
    }

    /// A follower of its own flight.
    pub fn follow(&self) -> Follower<E> {
        self.flight.state().followers += 1;
        let bell = self.flight.company().bell.subscribe();
        Follower { flight: Arc::clone(&self.flight), bell, seen: Seen::default() }
    }

    /// Makes it for other replicas too.
    pub fn hold(&mut self, lease: Lease) {
        self.lease = Some(lease);
    }

    /// What says that it makes the answer of this key for other replicas, if it does: to be given back when that is
    /// there.
    pub fn hand_over(&mut self, key: &Key) -> Option<Lease> {
        self.lease.take_if(|lease| lease.is_of(key))
    }

    pub fn head(&self, head: Head) {
        self.flight.state().head = Some(head);
        self.flight.ring();
    }

    /// Where the bytes of the answer go.
    pub fn tape(&self) -> &Tape {
        &self.flight.tape
    }

    /// Says that more is on the tape.
    pub fn taped(&self) {
        if self.flight.tape.is_lost() {
            self.flight.land(Landing::Lost);
        }
        self.flight.ring();
    }

    /// Puts more on the tape.
    pub fn push(&self, chunk: &Bytes) {
        self.flight.tape.push(chunk);
        self.taped();
    }

    /// The answer has ended. Keep it before, if it is to be kept.
    pub fn land(mut self, landing: Landing<E>) {
        if let (Landing::Whole, Some(lease)) = (&landing, &mut self.lease) {
            lease.set_barren();
        }
        self.flight.land(landing);
    }
}

impl<E> Drop for Leader<E> {
    fn drop(&mut self) {
        let begun = self.flight.state().head.is_some();
        self.flight.land(if begun { Landing::Lost } else { Landing::Declined(None) });
    }
}

/// Who joined it.
pub struct Follower<E> {
    flight: Arc<Flight<E>>,
    bell: watch::Receiver<()>,
    seen: Seen,
}

/// How far a follower has come.
#[derive(Debug, Default)]
struct Seen {
    head: bool,
    chunks: usize,
}

/// What has happened since a follower last asked, in this order.
#[derive(Debug, PartialEq, Eq)]
pub struct News<E> {
    pub head: Option<Head>,
    pub chunks: Vec<Bytes>,
    pub landing: Option<Landing<E>>,
}

impl<E: Clone> Follower<E> {
    /// In which the answer is being made.
    pub fn form(&self) -> Form {
        self.flight.form()
    }

    /// All that was made, in one piece: of use once it has landed whole.
    pub fn whole(&self) -> Bytes {
        self.flight.company().whole.get_or_init(|| self.flight.tape.body().unwrap_or_default()).clone()
    }

    /// Where its rendering in another form goes, made by the first who wants it.
    pub fn rendering(&self, form: Form) -> &OnceCell<Option<Bytes>> {
        &self.flight.company().renderings[form.index()]
    }

    /// Waits for news. After a landing there are none. May be dropped at any moment: nothing is missed.
    pub async fn next(&mut self) -> News<E> {
        loop {
            self.bell.borrow_and_update();
            if let Some(news) = self.news() {
                return news;
            }
            if self.bell.changed().await.is_err() {
                return News { head: None, chunks: Vec::new(), landing: Some(Landing::Lost) };
            }
        }
    }

    fn news(&mut self) -> Option<News<E>> {
        let state = self.flight.state();
        let head = state.head.clone().filter(|_| !self.seen.head);
        let chunks = self.flight.tape.news(&mut self.seen.chunks);
        let landing = if self.flight.tape.is_lost() { Some(Landing::Lost) } else { state.landing.clone() };
        drop(state);
        self.seen.head |= head.is_some();
        let any = head.is_some() || !chunks.is_empty() || landing.is_some();
        any.then_some(News { head, chunks, landing })
    }
}

impl<E> Drop for Follower<E> {
    fn drop(&mut self) {
        let mut map = lock(&self.flight.map);
        let mut state = self.flight.state();
        state.followers -= 1;
        let closes = state.followers == 0 && state.leader_gone && state.landing.is_none();
        drop(state);
        if closes {
            self.flight.close(&mut map);
        }
        drop(map);
        self.flight.ring();
    }
}

#[cfg(test)]
mod tests;
