//! Jumps that a live filtered reader took for messages of others, because the settings of the
//! stream keep a message for longer than it takes to send it.
//!
//! Somebody may change these settings at any time. So the jumps are kept until a later look at the
//! stream shows settings like before. If it shows others, what the stream lacks of the jumps may
//! have been for us, and is missing.

use std::ops::RangeInclusive;

use super::missing::{self, Holes};
use crate::source::Missing;

/// Most jumps to remember one by one.
const TRUSTED_MAX: usize = 10_000;

/// The first and last sequences of the jumps, in rising order.
#[derive(Clone, Debug, Default)]
pub(super) struct Trusted(Vec<(u64, u64)>);

/// What a stream lacks of them.
pub(super) enum Doubted {
    /// These sequences, in rising order.
    Listed(Vec<RangeInclusive<u64>>),
    /// It lacks too many to be listed: perhaps some in this range.
    Unlisted(Missing),
}

impl Trusted {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first sequence.
    pub(super) fn first(&self) -> Option<u64> {
        self.0.first().map(|(from, _)| *from)
    }

    /// Remembers a jump, which comes after the others.
    pub(super) fn add(&mut self, from: u64, to: u64) {
        if self.0.len() < TRUSTED_MAX {
            self.0.push((from, to));
        } else if let Some(last) = self.0.last_mut() {
            last.1 = to;
        }
    }

    /// The settings were still the same when jumps through this sequence had been made.
    pub(super) fn confirm(&mut self, through: u64) {
        self.0.retain(|(_, to)| *to > through);
    }

    /// All of them are confirmed.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Forgets those after a sequence, which are going to be read again.
    pub(super) fn cut(&mut self, through: u64) {
        self.0.retain(|(from, _)| *from <= through);
        if let Some(last) = self.0.last_mut() {
            last.1 = last.1.min(through);
        }
    }

    /// Adds later ones of another reader of the stream.
    pub(super) fn extend(&mut self, later: Self) {
        let known = self.0.last().map_or(0, |(_, to)| *to);
        for (from, to) in later.0.into_iter().filter(|(_, to)| *to > known) {
            self.add(from.max(known + 1), to);
        }
    }

    /// What the stream lacks of them, without what is skipped.
    pub(super) fn doubted(&self, holes: &Holes, skips: &[u64]) -> Doubted {
        if let (true, [(from, _), ..], [.., (_, to)]) = (holes.is_unlisted, &*self.0, &*self.0) {
            return Doubted::Unlisted(Missing {
                from: *from,
                to: *to,
                count: None,
            });
        }
        let gone = self
            .0
            .iter()
            .flat_map(|(from, to)| holes.within(*from, *to));
        Doubted::Listed(missing::undelivered(gone, skips.iter().copied()))
    }
}

impl Doubted {
    /// All of it; none if the stream lacks nothing.
    pub(super) fn missing(&self) -> Option<Missing> {
        match self {
            Self::Listed(ranges) => missing::refused(ranges.iter().cloned(), 0),
            Self::Unlisted(missing) => Some(*missing),
        }
    }

    /// Those at or before a sequence; none if they are not listed.
    pub(super) fn up_to(&self, through: u64) -> impl Iterator<Item = RangeInclusive<u64>> {
        let ranges: &[_] = match self {
            Self::Listed(ranges) => ranges,
            Self::Unlisted(_) => &[],
        };
        let cut = move |range: &RangeInclusive<u64>| *range.start()..=*range.end().min(&through);
        ranges.iter().map(cut).filter(|range| !range.is_empty())
    }
}
