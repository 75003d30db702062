//! What is known of the gateway: what it told, within the bounds of the page, and whether it still tells.

use super::text::Text;
use super::told::{Access, News, Request, Server, Step, Totals};

const STEPS_MAX: usize = 360;
const REQUESTS_MAX: usize = 100;
const SERVERS_MAX: usize = 1000;
const KEYS_MAX: usize = 200;

/// Whether what is shown is how things stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Link {
    /// It has been asked and has said nothing yet.
    #[default]
    Asked,
    Live,
    Lost(Lost),
}

/// Why it tells nothing, and what to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) why: Text,
    pub(super) advice: String,
    /// Whether it wants a token that it has not got.
    pub(super) wants_token: bool,
    /// It is asked again in so many seconds.
    pub(super) again_seconds: u64,
}

/// Everything that is shown.
#[derive(Debug, Clone, Default)]
pub(super) struct Board {
    pub(super) link: Link,
    /// Whether it has ever told something.
    pub(super) told: bool,
    pub(super) ready: bool,
    pub(super) well: bool,
    pub(super) totals: Totals,
    pub(super) minute: Step,
    pub(super) servers: Vec<Server>,
    /// The oldest first.
    pub(super) steps: Vec<Step>,
    /// The newest first.
    pub(super) requests: Vec<Request>,
    pub(super) access: Access,
}

impl Board {
    /// Takes an event in. `first`: of its connection, so it has all that is kept.
    pub(super) fn take(&mut self, news: News, first: bool) {
        if first {
            self.steps.clear();
            self.requests.clear();
        }
        self.link = Link::Live;
        self.told = true;
        (self.ready, self.well) = (news.ready, news.well);
        (self.totals, self.minute, self.servers) = (news.totals, news.minute, news.servers);
        self.servers.truncate(SERVERS_MAX);
        self.steps.extend(news.steps);
        self.steps.drain(..self.steps.len().saturating_sub(STEPS_MAX));
        self.requests.splice(..0, news.requests.into_iter().rev());
        self.requests.truncate(REQUESTS_MAX);
        if let Some(access) = news.access {
            self.access = access;
            self.access.keys.truncate(KEYS_MAX);
        }
    }

    /// Each server once, in how many upstreams it may stand.
    pub(super) fn servers_once(&self) -> Vec<&Server> {
        let mut once: Vec<&Server> = Vec::new();
        for server in &self.servers {
            if !once.iter().any(|it| *it.url == *server.url) {
                once.push(server);
            }
        }
        once
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(number: u64) -> Request {
        Request { number, ..Request::default() }
    }

    #[test]
    fn it_keeps_what_the_page_keeps_and_begins_anew_with_a_connection() {
        let mut board = Board::default();
        for number in 0..1000 {
            let steps = vec![Step { requests: number, ..Step::default() }];
            board.take(News { steps, requests: vec![request(number)], ..News::default() }, number == 0);
        }
        assert_eq!((board.steps.len(), board.steps[0].requests), (STEPS_MAX, 640));
        assert_eq!((board.requests.len(), board.requests[0].number), (REQUESTS_MAX, 999));
        board.take(News { requests: vec![request(7), request(8)], ..News::default() }, true);
        let numbers: Vec<_> = board.requests.iter().map(|it| it.number).collect();
        assert_eq!((numbers, board.steps.len()), (vec![8, 7], 0));
    }
}
