//! Missing sequences: those that a stream assigned, and whose messages are gone.
//!
//! If the server does not filter for a reader, the reader sees them itself, as jumps. If it
//! filters, the reader cannot tell them from messages for others, so it asks the server for the
//! deleted sequences.

use std::ops::RangeInclusive;

use super::link::{Link, Trouble};
use super::open::trouble;
use super::wire::{self, Api, StreamConfig, StreamInfo};
use crate::source::Missing;

/// Most deleted sequences that the server is asked to list: it lists all of them in one message.
const LISTED_MAX: u64 = 100_000;

/// Whether the stream leaves out sequences by design: a mirror of some subjects keeps the numbers
/// of its origin.
pub(super) fn has_gaps_by_design(config: &StreamConfig) -> bool {
    config.mirror.as_ref().is_some_and(|mirror| {
        !mirror.filter_subject.is_empty() || !mirror.subject_transforms.is_empty()
    })
}

/// Limits below which a stream may remove a message within moments of storing it.
const MESSAGES_FEW: i64 = 1_000_000;
const BYTES_FEW: i64 = 1 << 30;
const AGE_SHORT_NS: u64 = 2_000_000_000;

/// Whether a stream may remove a message before it has sent it to a consumer that waits for it. The
/// server stores with one task and sends with another: of a burst, it sends what its limits have
/// left by then. Only a consumer of all subjects shows such a loss.
pub(super) fn removes_at_once(config: &StreamConfig) -> bool {
    let is_few = |limit: i64, few: i64| (1..few).contains(&limit);
    // With this policy, the server refuses new messages instead of removing old ones.
    let removes_old = config.discard != "new";
    config.allow_rollup_hdrs
        || is_few(config.max_msgs_per_subject, MESSAGES_FEW)
        || (removes_old && is_few(config.max_msgs, MESSAGES_FEW))
        || (removes_old && is_few(config.max_bytes, BYTES_FEW))
        || (1..AGE_SHORT_NS).contains(&config.max_age)
}

/// The sequences after a position that a stream no longer has.
#[derive(Clone, Debug, Default)]
pub(super) struct Holes {
    /// In rising order; they neither touch nor overlap.
    ranges: Vec<RangeInclusive<u64>>,
    /// Whether too many within the stream are deleted to be listed.
    pub(super) is_unlisted: bool,
    /// The state of the stream, to see whether more were removed since.
    seen: Seen,
}

/// Values that change whenever messages are removed: the first sequence, and the number of deleted
/// ones after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    first: u64,
    deleted: u64,
}

impl Seen {
    pub(super) fn of(info: &StreamInfo) -> Self {
        Self {
            first: info.first(),
            deleted: info.state.num_deleted,
        }
    }
}

impl Holes {
    /// The state of the stream at the lookup.
    pub(super) fn seen(&self) -> Seen {
        self.seen
    }

    /// The part between two sequences, both inclusive.
    pub(super) fn within(&self, from: u64, to: u64) -> impl Iterator<Item = RangeInclusive<u64>> {
        // The ranges rise, so the search needs no look at earlier ones.
        let first = self.ranges.partition_point(|range| *range.end() < from);
        let cut =
            move |range: &RangeInclusive<u64>| *range.start().max(&from)..=*range.end().min(&to);
        self.ranges[first..]
            .iter()
            .take_while(move |range| *range.start() <= to)
            .map(cut)
            .filter(|range| !range.is_empty())
    }

    /// What the description of a stream shows; `state.deleted` is filled in unless there are too
    /// many.
    fn read(info: &StreamInfo, after: u64) -> Self {
        let seen = Seen::of(info);
        let mut holes = Self {
            seen,
            is_unlisted: info.state.num_deleted > LISTED_MAX,
            ..Self::default()
        };
        // What such a mirror lacks belongs to others, and is not listed.
        if has_gaps_by_design(&info.config) {
            holes.is_unlisted = false;
            return holes;
        }
        // Everything before the first message is gone.
        if seen.first > after + 1 {
            holes.ranges.push(after + 1..=seen.first - 1);
        }
        for sequence in info
            .state
            .deleted
            .iter()
            .copied()
            .filter(|sequence| *sequence > after)
        {
            // The list may overlap with what is before the first message.
            match holes.ranges.last_mut() {
                Some(last) if *last.end() >= sequence => {}
                Some(last) if *last.end() + 1 == sequence => *last = *last.start()..=sequence,
                _ => holes.ranges.push(sequence..=sequence),
            }
        }
        holes
    }
}

/// Looks up what a stream lacks after a sequence; `info` is up to date.
pub(super) async fn look_up(
    api: &Api,
    info: &StreamInfo,
    after: u64,
) -> Result<Holes, wire::Error> {
    let is_listed =
        (1..=LISTED_MAX).contains(&info.state.num_deleted) && info.state.last_seq > after;
    if !is_listed || has_gaps_by_design(&info.config) {
        return Ok(Holes::read(info, after));
    }
    Ok(Holes::read(&api.stream_info_with_deleted().await?, after))
}

/// The same while a stream is opened.
pub(super) async fn look_up_now(
    link: &mut Link,
    api: &Api,
    info: &StreamInfo,
    after: u64,
) -> Result<Holes, Trouble> {
    link.permitted(look_up(api, info, after))
        .await?
        .map_err(|error| trouble(&api.stream, &error))
}

/// The part of some ranges that is not accepted, if any.
pub(super) fn refused(
    ranges: impl Iterator<Item = RangeInclusive<u64>>,
    accepted_through: u64,
) -> Option<Missing> {
    let beyond =
        ranges.map(|range| (*range.start()).max(accepted_through.saturating_add(1))..=*range.end());
    beyond
        .filter(|range| !range.is_empty())
        .fold(None, |sum: Option<Missing>, range| {
            let (from, to) = range.into_inner();
            let sum = sum.unwrap_or(Missing {
                from,
                to,
                count: Some(0),
            });
            Some(Missing {
                to,
                count: sum.count.map(|count| count + (to - from + 1)),
                ..sum
            })
        })
}

/// What a stream lacks in a range, including its lost tail, but without the messages that were
/// passed over because they are not events.
pub(super) fn lost(
    info: &StreamInfo,
    holes: &Holes,
    (after, through): (u64, u64),
    passed_over: &[(u64, u64)],
) -> Option<Missing> {
    // A stream never had sequences before its first one.
    let after = after.max(info.config.first_seq.saturating_sub(1));
    let last = info.state.last_seq;
    if holes.is_unlisted && after < through {
        return Some(Missing {
            from: after + 1,
            to: through,
            count: None,
        });
    }
    // A stream that was restored from an older copy ends before the position.
    let tail = (through > last && after < through).then(|| after.max(last) + 1..=through);
    let gone = holes.within(after + 1, through.min(last)).chain(tail);
    let passed_over = passed_over.iter().flat_map(|(from, to)| *from..=*to);
    refused(undelivered(gone, passed_over).into_iter(), 0)
}

/// Ranges without the sequences that were delivered, which rise.
pub(super) fn undelivered(
    ranges: impl Iterator<Item = RangeInclusive<u64>>,
    delivered: impl Iterator<Item = u64>,
) -> Vec<RangeInclusive<u64>> {
    let mut delivered = delivered.peekable();
    let mut rest = Vec::new();
    for range in ranges {
        let (mut from, to) = range.into_inner();
        // Delivered ones before the range concern an earlier one.
        while delivered.next_if(|sequence| *sequence < from).is_some() {}
        while let Some(sequence) = delivered.next_if(|sequence| *sequence <= to) {
            // What lies between the last delivered one and this.
            if sequence > from {
                rest.push(from..=sequence - 1);
            }
            from = sequence + 1;
        }
        if from <= to {
            rest.push(from..=to);
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(first: u64, last: u64, deleted: &[u64]) -> StreamInfo {
        let count = deleted.len() as u64;
        serde_json::from_value(serde_json::json!({
            "config": {}, "created": "2026-11-23T06:00:00Z",
            "state": { "messages": last + 1 - first - count, "bytes": 10, "first_seq": first, "last_seq": last,
                "num_deleted": count, "deleted": deleted },
        }))
        .expect("the description is sound")
    }

    #[test]
    fn what_is_gone_after_a_position_is_listed_as_ranges() {
        let holes = Holes::read(&stream(4, 20, &[5, 6, 9, 20]), 1);
        let found = |from, to| holes.within(from, to).collect::<Vec<_>>();
        assert_eq!(found(0, 100), [2..=3, 5..=6, 9..=9, 20..=20]);
        assert_eq!(found(3, 5), [3..=3, 5..=5]);
        assert_eq!(
            Holes::read(&stream(1, 20, &[5, 6, 9, 20]), 6)
                .within(0, 100)
                .collect::<Vec<_>>(),
            [9..=9, 20..=20]
        );
        assert_eq!(holes.seen(), Seen::of(&stream(4, 30, &[5, 6, 9, 20])));
        assert_ne!(holes.seen(), Seen::of(&stream(4, 30, &[5, 6, 9, 20, 21])));
    }

    #[test]
    fn streams_that_may_remove_what_they_have_just_stored_are_known_by_their_limits() {
        let is = |settings: serde_json::Value| {
            removes_at_once(&serde_json::from_value(settings).expect("settings are sound"))
        };
        for settings in [
            serde_json::json!({ "max_msgs": 10, "discard": "old" }),
            serde_json::json!({ "max_bytes": 1 << 20, "discard": "old" }),
            serde_json::json!({ "max_msgs_per_subject": 1, "discard": "new" }),
            serde_json::json!({ "allow_rollup_hdrs": true }),
            serde_json::json!({ "max_age": 1_000_000_000 }),
        ] {
            assert!(is(settings.clone()), "{settings}");
        }
        for settings in [
            serde_json::json!({ "max_msgs": -1, "max_bytes": -1, "max_msgs_per_subject": -1 }),
            serde_json::json!({ "max_msgs": 10, "max_bytes": 10, "discard": "new" }),
            serde_json::json!({ "max_msgs": 10_000_000, "max_bytes": 10_u64 << 30 }),
            serde_json::json!({ "max_age": 86_400_000_000_000_u64 }),
        ] {
            assert!(!is(settings.clone()), "{settings}");
        }
    }

    #[test]
    fn what_was_no_event_is_not_lost() {
        let info = stream(2, 20, &[5, 6, 9, 20]);
        let holes = Holes::read(&info, 0);
        let found = |passed_over: &[(u64, u64)]| lost(&info, &holes, (0, 22), passed_over);
        assert_eq!(
            found(&[]),
            Some(Missing {
                from: 1,
                to: 22,
                count: Some(7)
            })
        );
        assert_eq!(
            found(&[(1, 1), (3, 3), (6, 9)]),
            Some(Missing {
                from: 5,
                to: 22,
                count: Some(4)
            })
        );
        assert_eq!(found(&[(1, 22)]), None);
    }

    #[test]
    fn what_is_beyond_the_accepted_is_refused() {
        let ranges = || [2..=3, 5..=6, 9..=9].into_iter();
        assert_eq!(
            refused(ranges(), 0),
            Some(Missing {
                from: 2,
                to: 9,
                count: Some(5)
            })
        );
        assert_eq!(
            refused(ranges(), 5),
            Some(Missing {
                from: 6,
                to: 9,
                count: Some(2)
            })
        );
        assert_eq!(refused(ranges(), 9), None);
        assert_eq!(refused(ranges(), u64::MAX), None);
    }

    #[test]
    fn what_was_delivered_before_it_went_is_not_missing() {
        let rest =
            |delivered: &[u64]| undelivered([2..=6, 9..=9].into_iter(), delivered.iter().copied());
        assert_eq!(rest(&[]), [2..=6, 9..=9]);
        assert_eq!(rest(&[1, 4, 7, 9, 12]), [2..=3, 5..=6]);
        assert_eq!(rest(&[2, 3, 4, 5, 6, 8]), [9..=9]);
    }
}
