//! Which server is likely to have the beginning of a prompt in its KV cache: learnt from what was sent where, and
//! corrected by what servers say they reused.

use std::collections::{HashMap, VecDeque};

/// What is remembered for one upstream, in bytes.
const BYTES_MAX: usize = 8 << 20;

/// What a block takes: its hash twice, its servers, and the table's own.
const BLOCK_BYTES: usize = 64;

const BLOCKS_MAX: usize = BYTES_MAX / BLOCK_BYTES;

/// Blocks that wait to be told to other replicas; what is beyond they find out by themselves.
const NEWS_MAX: usize = 4096;

/// Servers of one upstream that are told apart.
const SERVERS_MAX: usize = 64;

/// Blocks of prompts, and who has them.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    blocks: HashMap<u64, Holders>,
    /// In the order in which they are looked at when there are too many.
    order: VecDeque<u64>,
    /// Blocks that each server holds.
    held: Vec<usize>,
    /// What other replicas are to be told. `None`: there are none.
    news: Option<News>,
}

#[derive(Debug, Default)]
struct News {
    sent: VecDeque<Sent>,
    blocks: usize,
}

/// Blocks of prompts that were sent to a server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) server: usize,
    pub(super) blocks: Vec<u64>,
}

/// The servers that hold a block, a bit each.
#[derive(Debug, Default, Clone, Copy)]
struct Holders {
    servers: u64,
    /// Since it was looked at last: such a block stays (the clock algorithm).
    used: bool,
}

impl Prefixes {
    /// How many of a prompt's first blocks a server is likely to hold.
    pub(super) fn held_of(&self, prompt: &[u64], server: usize) -> usize {
        let bit = bit(server);
        let holds = |hash: &&u64| self.blocks.get(*hash).is_some_and(|block| block.servers & bit != 0);
        prompt.iter().take_while(holds).count()
    }

    /// How much a server holds of all that is remembered.
    pub(super) fn held(&self, server: usize) -> usize {
        self.held.get(server).copied().unwrap_or_default()
    }

    /// Takes in that a prompt was sent to a server.
    pub(super) fn learn(&mut self, prompt: &[u64], server: usize) {
        if let Some(news) = &mut self.news {
            let is_new = |hash: &&u64| self.blocks.get(*hash).is_none_or(|it| it.servers & bit(server) == 0);
            let blocks: Vec<_> = prompt.iter().filter(is_new).copied().collect();
            if !blocks.is_empty() && news.blocks + blocks.len() <= NEWS_MAX {
                news.blocks += blocks.len();
                news.sent.push_back(Sent { server, blocks });
            }
        }
        self.be_told(prompt, server);
    }

    /// What other replicas are to be told, at most so many blocks: of what was learnt since this was first asked.
    pub(super) fn news(&mut self, blocks_max: usize) -> Vec<Sent> {
        let news = self.news.get_or_insert_default();
        let (mut told, mut left) = (Vec::new(), blocks_max);
        while let Some(sent) = news.sent.front_mut().filter(|_| left > 0) {
            let blocks: Vec<_> = sent.blocks.drain(..left.min(sent.blocks.len())).collect();
            (left, news.blocks) = (left - blocks.len(), news.blocks - blocks.len());
            told.push(Sent { server: sent.server, blocks });
            if sent.blocks.is_empty() {
                news.sent.pop_front();
            }
        }
        told
    }

    /// Takes in what another replica sent to a server.
    pub(super) fn be_told(&mut self, blocks: &[u64], server: usize) {
        for hash in blocks {
            let known = self.blocks.contains_key(hash);
            let block = self.blocks.entry(*hash).or_default();
            let news = block.servers & bit(server) == 0;
            block.servers |= bit(server);
            block.used = known;
            if !known {
                self.order.push_back(*hash);
            }
            if news {
                self.count(server, 1);
            }
        }
        self.evict();
    }

    /// Takes in that a server had much less than was thought: a tenth of what it was thought to hold is gone, the
    /// oldest of what nobody came back to. It is little, since it may have been this prompt alone; and what many
    /// prompts begin with stays, since without it nothing behind it is found.
    pub(super) fn shed(&mut self, server: usize) {
        let (mut left, mut gone) = (self.held(server).div_ceil(10), 0);
        let is_its = |block: &&mut Holders| block.servers & bit(server) != 0 && !block.used;
        for hash in &self.order {
            let Some(block) = self.blocks.get_mut(hash).filter(is_its) else { continue };
            if left == 0 {
                break;
            }
            block.servers &= !bit(server);
            (left, gone) = (left - 1, gone + 1);
        }
        self.count(server, -gone);
    }

    /// Forgets all that a server held: it has gone, and comes back empty.
    pub(super) fn forget(&mut self, server: usize) {
        self.blocks.values_mut().for_each(|block| block.servers &= !bit(server));
        if let Some(held) = self.held.get_mut(server) {
            *held = 0;
        }
    }

    /// The same of servers that stand elsewhere now, each at the place here that its old one names, or nowhere.
    pub(super) fn moved(mut self, places: &[Option<usize>]) -> Self {
        if places.iter().enumerate().all(|(old, new)| *new == Some(old)) {
            return self;
        }
        self.held = Vec::new();
        self.news = self.news.map(|_| News::default());
        let blocks = std::mem::take(&mut self.blocks);
        for (hash, Holders { servers, used }) in blocks {
            let there = places.iter().enumerate().filter(|(old, _)| servers & bit(*old) != 0);
            let holders = there.filter_map(|(_, new)| *new).fold(0, |holders, new| holders | bit(new));
            if holders != 0 {
                (0..SERVERS_MAX)
                    .filter(|place| holders & bit(*place) != 0)
                    .for_each(|place| self.count(place, 1));
                self.blocks.insert(hash, Holders { servers: holders, used });
            }
        }
        self.order.retain(|hash| self.blocks.contains_key(hash));
        self
    }

    fn evict(&mut self) {
        while self.blocks.len() > BLOCKS_MAX {
            let Some(hash) = self.order.pop_front() else { return };
            match self.blocks.get_mut(&hash) {
                Some(block) if block.used => {
                    block.used = false;
                    self.order.push_back(hash);
                }
                _ => {
                    let servers = self.blocks.remove(&hash).unwrap_or_default().servers;
                    (0..SERVERS_MAX).filter(|server| servers & bit(*server) != 0).for_each(|server| {
                        self.count(server, -1);
                    });
                }
            }
        }
    }

    fn count(&mut self, server: usize, change: isize) {
        let place = server % SERVERS_MAX;
        if self.held.len() <= place {
            self.held.resize(place + 1, 0);
        }
        self.held[place] = self.held[place].saturating_add_signed(change);
    }
}

fn bit(server: usize) -> u64 {
    1 << (server % SERVERS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_held_until_the_server_says_otherwise() {
        let mut prefixes = Prefixes::default();
        prefixes.learn(&[1, 2, 3], 0);
        prefixes.learn(&[1, 2, 9], 1);
        assert_eq!((prefixes.held_of(&[1, 2, 3, 4], 0), prefixes.held_of(&[1, 2, 3, 4], 1)), (3, 2));
        assert_eq!((prefixes.held(0), prefixes.held(1), prefixes.held(2)), (3, 3, 0));
        prefixes.learn(&[1, 2, 5], 0);
        prefixes.shed(0);
        let left = [&[1, 2, 3], &[1, 2, 5]].map(|prompt| prefixes.held_of(prompt, 0));
        assert_eq!(
            (left, prefixes.held(0)),
            ([2, 3], 3),
            "the oldest end, and nothing that others begin with"
        );
        assert_eq!(prefixes.held_of(&[1, 2], 1), 2, "another server's are its own");
        prefixes.forget(1);
        assert_eq!((prefixes.held_of(&[1, 2], 1), prefixes.held(1)), (0, 0));
    }

    #[test]
    fn what_is_new_is_told_once_and_in_parts() {
        let sent = |server, blocks: &[u64]| Sent { server, blocks: blocks.to_vec() };
        let mut prefixes = Prefixes::default();
        prefixes.learn(&[1, 2], 0);
        assert_eq!(prefixes.news(9), [], "nobody had asked");
        prefixes.learn(&[1, 2, 3, 4], 0);
        prefixes.learn(&[1, 2], 1);
        prefixes.be_told(&[8, 9], 0);
        prefixes.learn(&[8, 9], 0);
        assert_eq!(prefixes.news(3), [sent(0, &[3, 4]), sent(1, &[1])]);
        assert_eq!((prefixes.news(3), prefixes.news(3)), (vec![sent(1, &[2])], vec![]));
        for prompt in 10..2 * NEWS_MAX as u64 {
            prefixes.learn(&[prompt], 0);
        }
        assert_eq!(prefixes.news(usize::MAX).len(), NEWS_MAX);
        let mut other = Prefixes::default();
        other.be_told(&[1, 2, 3, 4], 0);
        assert_eq!((other.held_of(&[1, 2, 3, 4, 5], 0), other.held(0)), (4, 4));
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let mut prefixes = Prefixes::default();
        let system = [1, 2, 3];
        for prompt in 0..3 * BLOCKS_MAX as u64 / 4 {
            prefixes.learn(&system, 0);
            prefixes.learn(&[1000 + 4 * prompt, 1001 + 4 * prompt, 1002 + 4 * prompt], 1);
        }
        assert!(prefixes.blocks.len() <= BLOCKS_MAX && prefixes.order.len() <= BLOCKS_MAX);
        assert_eq!(prefixes.held_of(&system, 0), 3);
        assert_eq!(prefixes.held(0) + prefixes.held(1), prefixes.blocks.len());
    }

    #[test]
    fn what_servers_hold_moves_with_them() {
        let mut prefixes = Prefixes::default();
        prefixes.learn(&[1, 2, 3], 0);
        prefixes.learn(&[1, 2], 1);
        prefixes.learn(&[4], 2);
        let held = |prefixes: &Prefixes| [0, 1, 2].map(|server| prefixes.held(server));
        let same = prefixes.moved(&[Some(0), Some(1), Some(2)]);
        assert_eq!((held(&same), same.held_of(&[1, 2, 3], 0)), ([3, 2, 1], 3));
        // The first is gone, the others have changed places.
        let moved = same.moved(&[None, Some(1), Some(0)]);
        assert_eq!(held(&moved), [1, 2, 0]);
        assert_eq!((moved.held_of(&[1, 2, 3], 1), moved.held_of(&[4], 0)), (2, 1));
        assert_eq!((moved.blocks.len(), moved.order.len()), (3, 3), "what nobody holds is forgotten");
    }
}
