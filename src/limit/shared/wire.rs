//! What is said to the script that admits, and what it says.

use std::time::Duration;

use super::super::bucket::{SharedShape, Told};

/// `allow-oom`: limits are small and end by themselves, so a Valkey that is full of answers still counts.
pub(super) const ADMIT: &str =
    concat!("#!lua flags=allow-oom\n", include_str!("bucket.lua"), include_str!("admit.lua"));
pub(super) const POST: &str =
    concat!("#!lua flags=allow-oom\n", include_str!("bucket.lua"), include_str!("post.lua"));

/// Of each bucket in the answer.
const FIELDS: usize = 5;

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
        Self { at: None, valid: None, takes: false, lent: Duration::ZERO, place: "", sets: Vec::new() }
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
        (keys, arguments, shapes)
    }
}

/// A moment as scripts read it; `None`: 0.
pub(super) fn time(at: Option<Duration>) -> String {
    at.map_or_else(|| "0".to_owned(), |at| at.as_micros().to_string())
}

/// Its time, its verdict, and the buckets; `None`: it is no answer of the script.
pub(super) fn read(
    answer: &[i64],
    keys: &[String],
    shapes: &[SharedShape],
) -> Option<(Duration, i64, Vec<Part>)> {
    let (head, rest) = answer.split_first_chunk::<2>()?;
    if rest.len() != FIELDS * shapes.len() {
        return None;
    }
    let natural = |value: i64| u64::try_from(value).ok();
    let part = |((key, shape), fields): ((&String, &SharedShape), &[i64])| {
        let &[micros, parts, seen, epoch, taken] = fields else { return None };
        let told = Told { micros: natural(micros)?, parts: natural(parts)?, seen: natural(seen)? };
        Some(Part { key: key.clone(), shape: *shape, told, epoch: natural(epoch)?, taken: natural(taken)? })
    };
    let parts: Option<Vec<Part>> = keys.iter().zip(shapes).zip(rest.chunks(FIELDS)).map(part).collect();
    Some((Duration::from_micros(natural(head[0])?), head[1], parts?))
}
