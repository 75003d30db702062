//! What is said to the script that admits, and what it says.

use std::time::Duration;

use jiff::civil::Date;

use crate::store::OPEN;

use super::super::bucket::{SharedShape, Told};
use super::super::budget::{Budget, Goods, Span};

/// `allow-oom`: limits are small and end by themselves, so a Valkey that is full of answers still counts.
fn script(text: &str) -> String {
    format!("#!lua flags=allow-oom\n{OPEN}{}{text}", include_str!("bucket.lua"))
}

pub(super) fn admit() -> String {
    script(include_str!("admit.lua"))
}

pub(super) fn post() -> String {
    script(include_str!("post.lua"))
}

/// Of each bucket in the answer.
const FIELDS: usize = 5;

/// Doubles are exact so far: more counts as that.
const COUNT_MAX: u64 = 1 << 50;

/// What is asked beside the buckets.
pub(super) struct Call<'a> {
    pub(super) at: Option<Duration>,
    /// Later than that nothing is ruled.
    pub(super) valid: Option<Duration>,
    pub(super) takes: bool,
    pub(super) lent: Duration,
    pub(super) place: &'a str,
    /// With how many may be there.
    pub(super) sets: Vec<(&'a str, u32)>,
    pub(super) purse: Option<Purse<'a>>,
}

/// The budgets of a key.
pub(super) struct Purse<'a> {
    /// Under it stands what requests have of them, and under the other what was used in the month.
    pub(super) open: String,
    pub(super) month: String,
    pub(super) day: Date,
    pub(super) budgets: &'a [Budget],
}

/// What is gone of a key's budgets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gone {
    /// Requests and tokens.
    pub(super) day: (u64, u64),
    pub(super) month: (u64, u64),
    pub(super) reserved: (u64, u64),
}

/// A bucket as it stands.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) key: String,
    pub(super) shape: SharedShape,
    pub(super) told: Told,
    /// When it was made.
    pub(super) epoch: u64,
    /// All that was ever taken.
    pub(super) taken: u64,
}

impl<'a> Call<'a> {
    /// Takes nothing.
    pub(super) fn look() -> Self {
        Self {
            at: None,
            valid: None,
            takes: false,
            lent: Duration::ZERO,
            place: "",
            sets: Vec::new(),
            purse: None,
        }
    }

    /// The script's keys and arguments, and the buckets' shapes.
    pub(super) fn told(
        self,
        buckets: Vec<(String, SharedShape)>,
        amount: u64,
    ) -> (Vec<String>, Vec<String>, Vec<SharedShape>) {
        let mut arguments = vec![
            time(self.at),
            time(self.valid),
            u8::from(self.takes).to_string(),
            self.lent.as_micros().to_string(),
            self.place.to_owned(),
            buckets.len().to_string(),
            self.purse.as_ref().map_or_else(String::new, |purse| purse.day.to_string()),
            self.purse.as_ref().map_or(0, |purse| purse.budgets.len()).to_string(),
            count(amount),
        ];
        for (_, shape) in &buckets {
            let (cost, holds) = (shape.cost(amount), shape.holds());
            let numbers = [shape.count, amount, cost.0, cost.1, holds.0, holds.1].map(|it| it.to_string());
            arguments.extend([numbers[0].clone(), shape.per.to_string()]);
            arguments.extend_from_slice(&numbers[1..]);
        }
        arguments.extend(self.sets.iter().map(|(_, most)| most.to_string()));
        let (mut keys, shapes): (Vec<_>, Vec<_>) = buckets.into_iter().unzip();
        keys.extend(self.sets.iter().map(|(name, _)| (*name).to_owned()));
        if let Some(Purse { open, month, budgets, .. }) = self.purse {
            for budget in budgets {
                let goods = if budget.goods == Goods::Requests { "r" } else { "t" };
                let span = if budget.per == Span::Day { "d" } else { "m" };
                arguments.extend([goods.to_owned(), span.to_owned(), count(budget.amount)]);
            }
            keys.extend([open, month]);
        }
        (keys, arguments, shapes)
    }
}

/// A count as scripts read it.
pub(super) fn count(count: u64) -> String {
    count.min(COUNT_MAX).to_string()
}

/// A moment as scripts read it; `None`: 0.
pub(super) fn time(at: Option<Duration>) -> String {
    at.map_or_else(|| "0".to_owned(), |at| at.as_micros().to_string())
}

/// Its time, its verdict, the buckets, and what is gone of the budgets where they were asked for; `None`: it is no
/// answer of the script.
pub(super) fn read(
    answer: &[i64],
    keys: &[String],
    shapes: &[SharedShape],
) -> Option<(Duration, i64, Vec<Part>, Option<Gone>)> {
    let (head, rest) = answer.split_first_chunk::<2>()?;
    let (rest, gone) = rest.split_at_checked(FIELDS * shapes.len())?;
    let natural = |value: i64| u64::try_from(value).ok();
    let part = |((key, shape), fields): ((&String, &SharedShape), &[i64])| {
        let &[micros, parts, seen, epoch, taken] = fields else { return None };
        let told = Told { micros: natural(micros)?, parts: natural(parts)?, seen: natural(seen)? };
        Some(Part { key: key.clone(), shape: *shape, told, epoch: natural(epoch)?, taken: natural(taken)? })
    };
    let parts: Option<Vec<Part>> = keys.iter().zip(shapes).zip(rest.chunks(FIELDS)).map(part).collect();
    let two = |one, other| Some((natural(one)?, natural(other)?));
    let gone = match *gone {
        [] => None,
        [a, b, c, d, e, f] => Some(Gone { day: two(a, b)?, month: two(c, d)?, reserved: two(e, f)? }),
        _ => return None,
    };
    Some((Duration::from_micros(natural(head[0])?), head[1], parts?, gone))
}
