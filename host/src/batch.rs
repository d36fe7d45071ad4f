//! Batches: runs of events that pass through the pipeline as one step.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::event::Event;
use crate::position::{Checkpoint, EarlierMarks, EventMark, StreamIdentity};

/// Most ranges of messages passed over that a checkpoint remembers; each costs some 20 bytes in
/// every commit.
const PASSED_OVER_MAX: usize = 1_000;

/// Events in order, and the position of the state after they are applied.
///
/// A batch without events still moves the position: the events up to `through`
/// were read, or reported by the server, and none of them matched.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Matching events, in rising order of sequence.
    pub events: Vec<Event>,
    /// The sequence after which this batch begins.
    pub after: u64,
    /// The last sequence that this batch covers; not lower than that of its last event.
    pub through: u64,
    /// The last sequence in the stream, as far as the source knows.
    pub head: u64,
    /// How many events that may match still follow in the stream.
    pub pending: u64,
    /// The stream that the events came from.
    pub stream: Arc<StreamIdentity>,
    /// The last message that was read, if it came after the last event and did not match.
    pub last_seen: Option<EventMark>,
    /// Sequences that the stream no longer has, that may have matched, and that may be passed over;
    /// in rising order.
    pub missing: Vec<RangeInclusive<u64>>,
    /// How many events before this batch, which earlier ones passed, turned out to be missing.
    pub overlooked: u64,
    /// Sequences of messages that matched but are not events, such as schedules and delete markers;
    /// in rising order.
    pub passed_over: Vec<u64>,
    /// Sequences of its events that are no longer in `events`, because they are not applied; in
    /// rising order. Sources leave it empty.
    pub left_out: Vec<u64>,
}

impl Batch {
    /// The same batch, of whose events only these are applied; they are a part of its events, in
    /// order.
    pub fn with_only(&self, events: Vec<Event>) -> Batch {
        let mut kept = events.iter().map(|event| event.sequence).peekable();
        let left_out = self
            .events
            .iter()
            .map(|event| event.sequence)
            .filter(|sequence| kept.next_if_eq(sequence).is_none())
            .collect();
        drop(kept);
        Batch {
            events,
            left_out,
            missing: self.missing.clone(),
            passed_over: self.passed_over.clone(),
            stream: Arc::clone(&self.stream),
            last_seen: self.last_seen.clone(),
            ..*self
        }
    }

    /// The checkpoint of a state to which nothing was applied yet: its position, with the first
    /// message of this batch, so that the stream can be recognised. None if it has no message.
    pub fn beginning(&self, before: Option<&Checkpoint>) -> Option<Checkpoint> {
        let first = self.events.first().map(EventMark::of);
        let mark = first.or_else(|| self.last_seen.clone())?;
        let begun = before.cloned().unwrap_or_else(|| Checkpoint {
            begins_after: Some(self.after),
            events: Some(0),
            ..Checkpoint::at(self.after, (*self.stream).clone())
        });
        Some(Checkpoint {
            last_seen: Some(mark),
            ..begun
        })
    }

    /// How many of its events lie after `after` and up to `through`, whether they are applied or
    /// not.
    fn events_between(&self, after: u64, through: u64) -> u64 {
        let until = |sequence| {
            self.events
                .partition_point(|event| event.sequence <= sequence)
                + self
                    .left_out
                    .partition_point(|left_out| *left_out <= sequence)
        };
        until(through).saturating_sub(until(after)) as u64
    }

    /// Approximate size of its events in memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.events.iter().map(Event::size).sum()
    }

    /// Whether it is within the limits.
    pub(crate) fn fits(&self, limits: Limits) -> bool {
        let count = self.events.len();
        // A single event may have any size.
        count <= limits.events.max(1) && (count < 2 || self.bytes() <= limits.bytes)
    }

    /// A copy of what lies after a sequence within it, up to the limits: at least one event, if
    /// there is any. The copy shares the memory of the events.
    pub(crate) fn portion(&self, after: u64, limits: Limits) -> Batch {
        debug_assert!(after < self.through, "something lies after it");
        let after = after.max(self.after);
        let first = self.events.partition_point(|event| event.sequence <= after);
        let events = &self.events[first..];
        let mut bytes = 0;
        let fitting = events
            .iter()
            .take(limits.events.max(1))
            .take_while(|event| {
                bytes += event.size();
                bytes <= limits.bytes
            });
        let count = fitting.count().max(1).min(events.len());
        let (events, rest) = events.split_at(count);
        // Up to the event before: what lies between them was read, and did not match.
        let through = rest.first().map_or(self.through, |next| next.sequence - 1);
        let is_first = after == self.after;
        Batch {
            events: events.to_vec(),
            after,
            through,
            head: self.head,
            pending: self.pending + rest.len() as u64,
            stream: Arc::clone(&self.stream),
            last_seen: self.last_seen.clone().filter(|_| rest.is_empty()),
            missing: self
                .missing
                .iter()
                .filter_map(|range| clamp(range, after + 1, through))
                .collect(),
            // Told with the first part.
            overlooked: if is_first { self.overlooked } else { 0 },
            passed_over: self.passed_over_between(after, through).collect(),
            left_out: Vec::new(),
        }
    }

    /// Appends a later batch of the same stream.
    pub fn append(&mut self, mut later: Batch) {
        debug_assert!(later.through >= self.through, "batches arrive in order");
        self.events.append(&mut later.events);
        self.through = later.through;
        self.head = later.head;
        self.pending = later.pending;
        self.stream = later.stream;
        // One that is older than the last event is dropped by `checkpoint`.
        self.last_seen = later.last_seen.or(self.last_seen.take());
        self.missing.append(&mut later.missing);
        self.overlooked += later.overlooked;
        self.passed_over.append(&mut later.passed_over);
        self.left_out.append(&mut later.left_out);
    }

    /// How many sequences are missing after `after` and up to `through`.
    pub fn missing_between(&self, after: u64, through: u64) -> u64 {
        let within = self
            .missing
            .iter()
            .filter_map(|range| clamp(range, after + 1, through));
        within.map(|range| range.end() - range.start() + 1).sum()
    }

    /// The messages after `after` and up to `through` that are not events.
    pub fn passed_over_between(&self, after: u64, through: u64) -> impl Iterator<Item = u64> {
        self.passed_over
            .iter()
            .copied()
            .filter(move |sequence| (after + 1..=through).contains(sequence))
    }

    /// The checkpoint after a part of this batch that ends at `through`, whose last event is
    /// `last`.
    pub fn checkpoint(
        &self,
        before: Option<&Checkpoint>,
        last: Option<&Event>,
        through: u64,
    ) -> Checkpoint {
        // A part without events leaves the last one as it was.
        let last_event = last
            .map(EventMark::of)
            .or_else(|| before.and_then(|before| before.last_event.clone()));
        let earlier = before.and_then(|before| before.last_seen.as_ref());
        let seen = self
            .last_seen
            .as_ref()
            .filter(|seen| seen.sequence <= through)
            .or(earlier);
        let applied = last_event.as_ref().map_or(0, |event| event.sequence);
        // Only the first checkpoint of a state says where it began.
        let begins_after = before.map_or(Some(self.after), |before| before.begins_after);
        let passed = before.map_or(self.after, |before| before.position);
        Checkpoint {
            position: through,
            stream: (*self.stream).clone(),
            // A mark is only needed if nothing later was applied.
            last_seen: seen.filter(|seen| seen.sequence > applied).cloned(),
            earlier: self.earlier(before, (passed, through), last_event.as_ref()),
            last_event,
            begins_after,
            missing: before.map_or(0, |before| before.missing)
                + self.missing_between(passed, through),
            passed_over: passed_over(before, self.passed_over_between(passed, through)),
            duplicates: before.map_or(0, |before| before.duplicates),
            events: before
                .map_or(Some(0), |before| before.events)
                .map(|events| events + self.events_between(passed, through)),
            missing_in_parts: before.map_or(0, |before| before.missing_in_parts),
        }
    }

    /// The marks before the last applied event, after a part of this batch.
    fn earlier(
        &self,
        before: Option<&Checkpoint>,
        (after, through): (u64, u64),
        last: Option<&EventMark>,
    ) -> EarlierMarks {
        let mut marks = before.map_or_else(EarlierMarks::default, |before| before.earlier.clone());
        let is_earlier = |sequence: u64| last.is_some_and(|last| sequence < last.sequence);
        let before_last = before.and_then(|before| before.last_event.as_ref());
        if let Some(mark) = before_last.filter(|mark| is_earlier(mark.sequence)) {
            marks.add(mark.clone());
        }
        // A batch may be applied in many parts.
        let first = self.events.partition_point(|event| event.sequence <= after);
        let first = self.events.get(first);
        if let Some(first) = first.filter(|first| {
            first.sequence <= through && is_earlier(first.sequence) && marks.is_due(first.sequence)
        }) {
            marks.add(EventMark::of(first));
        }
        marks
    }

    /// The rest of this batch after its first part, which ends at `through` and keeps its events.
    fn rest(&mut self, events: Vec<Event>, through: u64) -> Batch {
        let later = Batch {
            events,
            after: through,
            through: self.through,
            head: self.head,
            pending: self.pending,
            stream: Arc::clone(&self.stream),
            last_seen: self.last_seen.take(),
            missing: self
                .missing
                .iter()
                .filter_map(|range| clamp(range, through + 1, u64::MAX))
                .collect(),
            // Told with the first part.
            overlooked: 0,
            passed_over: self.passed_over.split_off(
                self.passed_over
                    .partition_point(|sequence| *sequence <= through),
            ),
            left_out: self.left_out.split_off(
                self.left_out
                    .partition_point(|sequence| *sequence <= through),
            ),
        };
        self.missing = self
            .missing
            .iter()
            .filter_map(|range| clamp(range, 0, through))
            .collect();
        // For the first part, what follows is still to come.
        self.pending += later.events.len() as u64;
        self.through = through;
        later
    }

    /// Splits off the events after the first `count`, as a following batch; there must be at least
    /// one.
    pub fn split_off(&mut self, count: usize) -> Batch {
        let rest = self.events.split_off(count);
        // Up to the event before: what lies between them was read, and did not match.
        let through = rest.first().expect("something is split off").sequence - 1;
        self.rest(rest, through)
    }

    /// Splits off everything after a sequence before the end of this batch, as a following batch.
    pub fn split_behind(&mut self, sequence: u64) -> Batch {
        debug_assert!(sequence < self.through, "something is split off");
        let count = self
            .events
            .partition_point(|event| event.sequence <= sequence);
        let rest = self.events.split_off(count);
        self.rest(rest, sequence)
    }
}

/// What was passed over before, and what is passed over now, as ranges.
fn passed_over(before: Option<&Checkpoint>, now: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut ranges = before.map_or_else(Vec::new, |before| before.passed_over.clone());
    for sequence in now {
        match ranges.last_mut() {
            // Neighbours become one range: schedules often come in rows.
            Some((_, last)) if *last + 1 == sequence => *last = sequence,
            _ => ranges.push((sequence, sequence)),
        }
    }
    // The oldest are forgotten first.
    ranges.drain(..ranges.len().saturating_sub(PASSED_OVER_MAX));
    ranges
}

/// What of a range between two bounds, both inclusive.
fn clamp(range: &RangeInclusive<u64>, from: u64, to: u64) -> Option<RangeInclusive<u64>> {
    let within = *range.start().max(&from)..=*range.end().min(&to);
    (!within.is_empty()).then_some(within)
}

/// The largest size of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most events.
    pub events: usize,
    /// Most bytes, by [`Event::size`]; a single event may exceed it.
    pub bytes: usize,
}

impl Default for Limits {
    /// Larger batches cost less per event up to about 1,000 events: measured with a Rust guest, a
    /// single event takes 3.0 µs, each of 100 takes 1.8 and each of 1,000 takes 1.2. Larger ones
    /// still save state traffic on hot keys.
    fn default() -> Self {
        Self {
            events: 2_048,
            bytes: 4 << 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Payload;

    fn event(sequence: u64) -> Event {
        Event {
            sequence,
            time_ns: sequence,
            subject: "s".into(),
            kind: "s".into(),
            headers: Vec::new(),
            data: Payload::from("{}"),
        }
    }

    /// Events 3, 7 and 8 of a batch after 1 and up to 12; 2, 4 to 6 and 9 are gone, 12 is of
    /// others.
    fn batch() -> Batch {
        Batch {
            events: [3, 7, 8].map(event).to_vec(),
            after: 1,
            through: 12,
            head: 12,
            pending: 0,
            stream: Arc::new(StreamIdentity {
                name: "S".to_owned(),
                created_ns: 1,
            }),
            last_seen: Some(EventMark::of(&event(12))),
            missing: vec![2..=2, 4..=6, 9..=9],
            overlooked: 0,
            passed_over: vec![10, 11],
            left_out: Vec::new(),
        }
    }

    #[test]
    fn each_event_is_counted_once_wherever_a_batch_is_cut_and_whatever_becomes_of_it() {
        for kept in 0..8_u8 {
            for cut in 1..12 {
                let mut first = batch();
                let second = first.split_behind(cut);
                let only = |batch: &Batch| {
                    let events = batch.events.iter().filter(|event| {
                        let place = [3, 7, 8].iter().position(|it| *it == event.sequence);
                        kept & (1 << place.expect("it is one of them")) != 0
                    });
                    batch.with_only(events.cloned().collect())
                };
                let (first, second) = (only(&first), only(&second));
                let one = first.checkpoint(None, None, first.through);
                let two = second.checkpoint(Some(&one), None, second.through);
                let of_first = [3, 7, 8].iter().filter(|it| **it <= cut).count() as u64;
                assert_eq!(
                    (one.events, two.events),
                    (Some(of_first), Some(3)),
                    "cut at {cut}, kept {kept:b}"
                );
                // In two steps of one batch, as if an event of it had failed at first.
                let whole = only(&batch());
                let half = whole.checkpoint(None, None, cut);
                let rest = whole.checkpoint(Some(&half), None, 12);
                assert_eq!(rest.events, Some(3), "cut at {cut}, kept {kept:b}");
            }
        }
        let unknown = Checkpoint {
            events: None,
            ..batch().checkpoint(None, None, 2)
        };
        let later = batch().checkpoint(Some(&unknown), None, 12);
        assert_eq!(later.events, None, "of an earlier release it stays unknown");
    }

    #[test]
    fn what_is_missing_is_counted_once_wherever_a_batch_is_cut() {
        for cut in 1..12 {
            let mut first = batch();
            let second = first.split_behind(cut);
            assert_eq!(
                (first.after, first.through, second.after, second.through),
                (1, cut, cut, 12)
            );
            let one = first.checkpoint(None, first.events.last(), first.through);
            let two = second.checkpoint(Some(&one), second.events.last(), second.through);
            assert_eq!(
                (two.position, two.missing, two.begins_after),
                (12, 5, Some(1)),
                "cut at {cut}"
            );
            assert_eq!(two.passed_over, [(10, 11)], "cut at {cut}");
            assert_eq!(two.last_event.as_ref().map(|mark| mark.sequence), Some(8));
            assert_eq!(two.last_seen, Some(EventMark::of(&event(12))));
            assert!(
                one.marks().all(|mark| mark.sequence <= cut),
                "nothing beyond {cut} was applied"
            );
        }
        let mut first = batch();
        let second = first.split_off(1);
        assert_eq!(
            (
                first.through,
                second.events.len(),
                first.missing_between(1, 6)
                    + first.missing_between(6, 12)
                    + second.missing_between(7, 12)
            ),
            (6, 2, 5)
        );
    }

    #[test]
    fn portions_of_a_batch_are_together_the_whole_of_it() {
        for events in 1..4 {
            for begin in 1..12 {
                let limits = Limits {
                    events,
                    bytes: 1 << 20,
                };
                let whole = batch().portion(begin, Limits::default());
                let mut parts = batch().portion(begin, limits);
                while parts.through < whole.through {
                    let next = batch().portion(parts.through, limits);
                    assert!(next.events.len() <= events && next.after == parts.through);
                    assert_eq!(
                        next.pending,
                        [3, 7, 8].iter().filter(|it| **it > next.through).count() as u64
                    );
                    parts.append(next);
                }
                let told = |batch: &Batch| format!("{batch:?}");
                let gone = |batch: &Batch| batch.missing_between(0, 20);
                assert_eq!(gone(&parts), gone(&whole), "{begin}, {events}");
                parts.missing.clone_from(&whole.missing);
                assert_eq!(told(&parts), told(&whole), "{begin}, {events}");
            }
        }
        let small = Limits {
            events: 9,
            bytes: 1,
        };
        let first = batch().portion(1, small);
        assert_eq!(first.events.len(), 1, "one is returned whatever its size");
        assert!(first.fits(small) && !batch().fits(small) && batch().fits(Limits::default()));
    }

    #[test]
    fn a_merged_batch_keeps_what_was_seen_last() {
        let mut whole = batch();
        let mut rest = whole.split_behind(8);
        rest.last_seen = None;
        whole.last_seen = Some(EventMark::of(&event(6)));
        whole.append(rest);
        let checkpoint = whole.checkpoint(None, whole.events.last(), 12);
        assert_eq!(
            (checkpoint.last_seen, checkpoint.missing),
            (None, 5),
            "an event was applied after it"
        );
    }
}
