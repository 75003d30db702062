//! A budget of further tries: a share of the requests of the last seconds, and a few beyond. When every request fails,
//! an upstream so gets little more than what it is asked for, and not a multiple.

use std::time::Duration;

/// How far back requests and tries count, in seconds.
const WINDOW_SECONDS: usize = 10;

/// Tries are at most this part of the requests …
const SHARE: u32 = 5;

/// … and so many more, for an upstream that is asked little.
const FLOOR: u32 = 10;

/// Whether another try may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    Given,
    /// `first`: the first that is not given in a while.
    Spent {
        first: bool,
    },
}

/// What was asked and tried again, second by second.
#[derive(Debug, Default)]
pub(super) struct RetryBudget {
    seconds: [Second; WINDOW_SECONDS],
    /// Of the clock.
    spent_at: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Second {
    /// Of the clock.
    at: u64,
    requests: u32,
    retries: u32,
}

impl RetryBudget {
    fn second(&mut self, now: Duration) -> &mut Second {
        let at = now.as_secs();
        let second = &mut self.seconds[at as usize % WINDOW_SECONDS];
        if second.at != at {
            *second = Second { at, ..Second::default() };
        }
        second
    }

    /// Takes in a request, whatever comes of it.
    pub(super) fn note_request(&mut self, now: Duration) {
        let second = self.second(now);
        second.requests = second.requests.saturating_add(1);
    }

    /// Takes one try from it.
    pub(super) fn take(&mut self, now: Duration) -> Grant {
        let begin = now.as_secs().saturating_sub(WINDOW_SECONDS as u64 - 1);
        let window = self.seconds.iter().filter(|second| second.at >= begin);
        let (requests, retries) = window.fold((0_u32, 0_u32), |(requests, retries), second| {
            (requests.saturating_add(second.requests), retries.saturating_add(second.retries))
        });
        if retries >= FLOOR.saturating_add(requests / SHARE) {
            let first = self.spent_at.is_none_or(|at| at < begin);
            self.spent_at = Some(now.as_secs());
            return Grant::Spent { first };
        }
        self.second(now).retries += 1;
        Grant::Given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn tries_are_a_share_of_requests_and_a_few_more() {
        let mut budget = RetryBudget::default();
        let given = |budget: &mut RetryBudget, now| {
            (0..1000).take_while(|_| budget.take(now) == Grant::Given).count()
        };
        assert_eq!(given(&mut budget, at(0)), 10, "the floor");
        for second in 1..=5 {
            (0..20).for_each(|_| budget.note_request(at(second)));
        }
        assert_eq!(given(&mut budget, at(5)), 20, "a fifth of a hundred");
        assert_eq!(given(&mut budget, at(9)), 0);
        assert_eq!(given(&mut budget, at(10)), 10, "the first second is out of the window");
        assert_eq!(given(&mut budget, at(100)), 10);
    }

    #[test]
    fn it_is_told_once_that_it_is_spent() {
        let mut budget = RetryBudget::default();
        let mut refused = |now| (0..100).map(|_| budget.take(now)).find(|grant| *grant != Grant::Given);
        assert_eq!(refused(at(0)), Some(Grant::Spent { first: true }));
        assert_eq!(refused(at(3)), Some(Grant::Spent { first: false }));
        assert_eq!(refused(at(50)), Some(Grant::Spent { first: true }));
    }
}
