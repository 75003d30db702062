//! Purges: each has a number, and the number of the last one that concerns an answer is part of the answer's key.
//!
//! So nothing has to be found to be purged, and what is being made while a purge comes is not found afterwards. The
//! numbers only rise: an answer that was purged once never comes back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// Names that are remembered; at one more, all answers are purged and the names forgotten.
pub(super) const NAMES_MAX: usize = 4096;

/// The purges so far.
#[derive(Debug, Default)]
pub struct Purges {
    /// None at all is the rule: then nobody takes the lock.
    last: AtomicU64,
    marks: Mutex<Marks>,
}

#[derive(Debug, Default)]
struct Marks {
    all: u64,
    named: HashMap<Purge, u64>,
}

/// What is purged: the answers that match every part there is. The model is the upstream's name for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Purge {
    pub model: Option<(String, String)>,
    pub key: Option<String>,
}

impl Purges {
    /// Its number: at least that, and higher than any before.
    pub fn purge(&self, purge: Purge, number: u64) -> u64 {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let number = number.max(self.last.load(Ordering::Relaxed) + 1);
        let is_new = !marks.named.contains_key(&purge);
        if purge == Purge::default() || (is_new && marks.named.len() >= NAMES_MAX) {
            marks.named.clear();
            marks.all = number;
        } else {
            marks.named.insert(purge, number);
        }
        self.last.store(number, Ordering::Release);
        number
    }

    /// Takes in another replica's. Whether it is news.
    pub fn learn(&self, purge: Purge, number: u64) -> bool {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !marks.named.contains_key(&purge);
        let of_all = purge == Purge::default() || (is_new && marks.named.len() >= NAMES_MAX);
        let named = marks.named.get(&purge).copied().filter(|_| !of_all).unwrap_or_default();
        if number <= named.max(marks.all) {
            return false;
        }
        if of_all {
            marks.all = number;
            marks.named.retain(|_, named| *named > number);
        } else {
            marks.named.insert(purge, number);
        }
        self.last.fetch_max(number, Ordering::Release);
        true
    }

    /// The numbers so far, for another process to take over: of the last, of the last of all answers, and by name.
    pub fn numbers(&self) -> (u64, u64, Vec<(Purge, u64)>) {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let named = marks.named.iter().map(|(purge, number)| (purge.clone(), *number)).collect();
        (self.last.load(Ordering::Relaxed), marks.all, named)
    }

    /// Takes them over, before it has purged anything itself.
    pub fn assume(&self, (last, all, named): (u64, u64, Vec<(Purge, u64)>)) {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.all = all;
        marks.named = named.into_iter().take(NAMES_MAX).collect();
        self.last.store(last, Ordering::Release);
    }

    /// The number of the last purge that concerns the answers of this model to this key. `model`: `None` where the
    /// request does not say which of the upstream's it is, so that a purge of any of them concerns it.
    pub fn mark(&self, upstream: &str, model: Option<&str>, key: Option<&str>) -> u64 {
        if self.last.load(Ordering::Acquire) == 0 {
            return 0;
        }
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let concerns = |purge: &Purge| {
            let of_model = |(there, name): &(String, String)| {
                there == upstream && model.is_none_or(|model| model == name.as_str())
            };
            purge.model.as_ref().is_none_or(of_model)
                && purge.key.as_deref().is_none_or(|purged| key == Some(purged))
        };
        let named = marks.named.iter().filter(|(purge, _)| concerns(purge)).map(|(_, number)| *number);
        named.max().unwrap_or_default().max(marks.all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purge(model: Option<&str>, key: Option<&str>) -> Purge {
        Purge {
            model: model.map(|model| ("local".to_owned(), model.to_owned())),
            key: key.map(str::to_owned),
        }
    }

    #[test]
    fn a_purge_concerns_what_matches_all_of_it() {
        let purges = Purges::default();
        let marks = || {
            let mark = |model, key| purges.mark("local", model, Some(key));
            [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")].map(|(model, key)| mark(Some(model), key))
        };
        purges.purge(purge(Some("a"), Some("x")), 0);
        assert_eq!(marks(), [1, 0, 0, 0]);
        purges.purge(purge(Some("b"), None), 0);
        assert_eq!(marks(), [1, 0, 2, 2]);
        purges.purge(purge(None, Some("y")), 0);
        assert_eq!(marks(), [1, 3, 2, 3]);
        assert_eq!(purges.mark("local", None, Some("x")), 2, "which model is not said");
        assert_eq!(purges.mark("other", Some("a"), Some("x")), 0);
        purges.purge(Purge::default(), 0);
        assert_eq!(marks(), [4; 4]);
    }

    #[test]
    fn those_of_replicas_come_to_the_same_in_any_order() {
        let told = [
            (purge(Some("a"), None), 5),
            (purge(None, Some("x")), 9),
            (Purge::default(), 7),
            (purge(Some("a"), None), 3),
        ];
        let marks = |purges: &Purges| {
            let mark = |model, key| purges.mark("local", Some(model), Some(key));
            [mark("a", "x"), mark("a", "y"), mark("b", "y")]
        };
        for first in 0..told.len() {
            let purges = Purges::default();
            for place in 0..told.len() {
                let (purge, number) = told[(first + place) % told.len()].clone();
                purges.learn(purge, number);
            }
            assert_eq!(marks(&purges), [9, 7, 7], "from {first}");
            assert!(told.iter().all(|(purge, number)| !purges.learn(purge.clone(), *number)));
            assert_eq!(purges.purge(Purge::default(), 4), 10, "numbers rise");
        }
    }

    #[test]
    fn names_are_bounded_and_no_mark_goes_back() {
        let purges = Purges::default();
        for number in 0..2 * NAMES_MAX {
            purges.purge(purge(Some(&number.to_string()), None), 0);
            assert!(purges.marks.lock().expect("not poisoned").named.len() <= NAMES_MAX);
            assert!(purges.mark("local", Some("0"), None) >= 1);
        }
        assert!(purges.mark("local", Some("0"), None) > 1);
    }
}
