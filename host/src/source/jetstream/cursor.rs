//! What was read and not returned yet.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Subject;
use bytes::Bytes;
use tracing::{debug, warn};

use crate::batch::{Batch, Limits};
use crate::event::Event;
use crate::position::{Checkpoint, EarlierMarks, EventMark, StreamIdentity};

/// How often a position may move without events. Each such batch costs a turn
/// of the whole pipeline, and a stream may have any number of events for
/// others.
const EMPTY_INTERVAL: Duration = Duration::from_millis(100);
/// A larger last event, in bytes, is marked at once instead of kept.
const LAST_EVENT_MAX: usize = 64 << 10;

/// The position of a reader, with the events that it has not returned yet.
#[derive(Debug)]
pub(super) struct Cursor {
    /// The stream, once it was seen.
    pub(super) stream: Option<Arc<StreamIdentity>>,
    /// The last sequence that was read, or proved to have no events for us.
    pub(super) through: u64,
    /// The last sequence of the stream, as far as known.
    pub(super) head: u64,
    /// Events after `through` that may match.
    pub(super) pending: u64,
    /// Messages that are not valid events.
    pub(super) oddities: Oddities,
    events: Vec<Event>,
    bytes: usize,
    /// An event that did not fit into the batch; it starts the next one.
    held: Option<Event>,
    /// How many events to expect in the next batch.
    expected: usize,
    /// `through` of the last batch, and when that was.
    handed: u64,
    handed_at: Instant,
    /// Whether the stream was opened since the reader was created: earlier knowledge comes from the
    /// checkpoint only.
    is_placed: bool,
    /// Whether a batch was returned, so that the caller knows the head of the stream.
    has_returned: bool,
    /// Whether the position was read, and is not just the beginning of a stream.
    is_settled: bool,
    last: Last,
    /// Events before the last returned one.
    earlier: EarlierMarks,
    /// The last message that was read and is not an event for us.
    seen: Option<Seen>,
    /// The mark of the last such message before the returned events.
    handed_seen: Option<EventMark>,
    /// Sequences that the stream no longer has, and that may be passed over, in rising order.
    missing: Vec<RangeInclusive<u64>>,
    /// How many events were passed that turned out to be missing.
    overlooked: u64,
    /// Sequences of messages that are not events, in rising order.
    passed_over: Vec<u64>,
    limits: Limits,
}

/// A message that was seen.
#[derive(Debug)]
enum Seen {
    Mark(EventMark),
    /// Marked only when a batch is returned.
    Message {
        sequence: u64,
        time_ns: u64,
        subject: Subject,
        data: Bytes,
    },
}

impl Seen {
    fn sequence(&self) -> u64 {
        match self {
            Self::Mark(mark) => mark.sequence,
            Self::Message { sequence, .. } => *sequence,
        }
    }

    fn mark(self) -> EventMark {
        match self {
            Self::Mark(mark) => mark,
            Self::Message {
                sequence,
                time_ns,
                subject,
                data,
            } => EventMark::of_message(sequence, time_ns, subject.as_bytes(), &data),
        }
    }
}

/// Messages that were not returned unchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Oddities {
    /// The broker's own messages, which are not events.
    pub(super) passed_over: u64,
    /// Messages that the client could not parse, returned without their unusable parts.
    pub(super) repaired: u64,
    /// The last sequence that is counted; messages that are read again are not counted again.
    through: u64,
}

/// The last returned event.
#[derive(Clone, Debug)]
pub(super) enum Last {
    None,
    /// Marked by a checkpoint.
    Mark(EventMark),
    /// Returned; marked only on request, because digests cost more than events.
    Event(Event),
}

impl Last {
    /// Its sequence.
    pub(super) fn sequence(&self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Mark(mark) => Some(mark.sequence),
            Self::Event(event) => Some(event.sequence),
        }
    }

    /// Its mark.
    pub(super) fn mark(&self) -> Option<EventMark> {
        match self {
            Self::None => None,
            Self::Mark(mark) => Some(mark.clone()),
            Self::Event(event) => Some(EventMark::of(event)),
        }
    }

    fn of(event: &Event) -> Self {
        // An idle reader would keep a large event in memory.
        if event.size() > LAST_EVENT_MAX {
            Self::Mark(EventMark::of(event))
        } else {
            Self::Event(event.clone())
        }
    }
}

impl Cursor {
    pub(super) fn new(resume: Option<&Checkpoint>, limits: Limits) -> Self {
        Self {
            stream: resume.map(|checkpoint| Arc::new(checkpoint.stream.clone())),
            through: resume.map_or(0, |checkpoint| checkpoint.position),
            head: 0,
            pending: 0,
            oddities: Oddities::default(),
            events: Vec::new(),
            // A batch with none could never become full.
            bytes: 0,
            held: None,
            expected: 0,
            handed: resume.map_or(0, |checkpoint| checkpoint.position),
            handed_at: Instant::now(),
            is_placed: false,
            has_returned: false,
            is_settled: resume.is_some(),
            seen: None,
            handed_seen: resume.and_then(|checkpoint| checkpoint.last_seen.clone()),
            missing: Vec::new(),
            overlooked: 0,
            passed_over: Vec::new(),
            earlier: resume.map_or_else(EarlierMarks::default, |checkpoint| {
                checkpoint.earlier.clone()
            }),
            last: resume
                .and_then(|checkpoint| checkpoint.last_event.clone())
                .map_or(Last::None, Last::Mark),
            limits: Limits {
                events: limits.events.max(1),
                bytes: limits.bytes,
            },
        }
    }

    /// The position at which to open the stream; none while the starting point is undecided.
    pub(super) fn position(&self) -> Option<u64> {
        self.is_settled.then_some(self.through)
    }

    /// The mark of the last returned event. Events that are still here are read again from a proved
    /// stream.
    pub(super) fn mark(&self) -> Option<EventMark> {
        self.last.mark()
    }

    /// The last returned event.
    pub(super) fn last(&self) -> &Last {
        &self.last
    }

    /// Whether everything that was read is returned.
    pub(super) fn is_drained(&self) -> bool {
        self.events.is_empty() && self.held.is_none() && self.through == self.handed
    }

    /// Another one at the same position; this one is drained.
    pub(super) fn at_same_position(&self, limits: Limits) -> Self {
        debug_assert!(self.is_drained(), "what was read is returned once");
        let mut cursor = Self::new(None, limits);
        cursor.stream.clone_from(&self.stream);
        cursor.through = self.through;
        cursor.head = self.head;
        cursor.pending = self.pending;
        cursor.oddities = self.oddities;
        cursor.handed = self.handed;
        cursor.is_placed = self.is_placed;
        cursor.has_returned = self.has_returned;
        cursor.is_settled = self.is_settled;
        cursor.last = self.last.clone();
        cursor.earlier = self.earlier.clone();
        cursor.handed_seen.clone_from(&self.handed_seen);
        cursor
    }

    /// Moves over a batch that another reader of the stream has read: it follows the position.
    /// `last` is its last event, if that is known; `repaired` is how many of its messages were
    /// delivered without their unusable parts.
    pub(super) fn follow(&mut self, batch: &Batch, last: Option<&Last>, repaired: u64) {
        debug_assert_eq!(self.handed, batch.after, "batches follow each other");
        self.stream = Some(Arc::clone(&batch.stream));
        self.through = batch.through;
        self.head = self.head.max(batch.head);
        self.pending = batch.pending;
        self.is_settled = true;
        self.has_returned = true;
        if let Some(first) = batch
            .events
            .first()
            .filter(|first| self.earlier.is_due(first.sequence))
        {
            self.earlier.add(EventMark::of(first));
        }
        if let Some(event) = batch.events.last() {
            // The digest of a large event was made once.
            self.last = last.cloned().unwrap_or_else(|| Last::of(event));
        }
        if batch.last_seen.is_some() || !batch.events.is_empty() {
            self.handed_seen.clone_from(&batch.last_seen);
        }
        let counted = self.oddities.through;
        let new = batch
            .passed_over
            .iter()
            .filter(|sequence| **sequence > counted);
        self.oddities.passed_over += new.count() as u64;
        self.oddities.repaired += repaired;
        self.oddities.through = counted.max(batch.through);
        self.handed = batch.through;
        self.handed_at = Instant::now();
    }

    /// Marks before that one.
    pub(super) fn earlier(&self) -> &EarlierMarks {
        &self.earlier
    }

    /// The mark of the last message that is not an event for us, before the returned events.
    pub(super) fn seen(&self) -> Option<&EventMark> {
        self.handed_seen.as_ref()
    }

    /// Records a message that was read and is not an event for us.
    pub(super) fn pass(&mut self, sequence: u64, time_ns: u64, subject: Subject, data: Bytes) {
        self.seen = Some(Seen::Message {
            sequence,
            time_ns,
            subject,
            data,
        });
    }

    /// Records a message of the stream that was fetched alone.
    pub(super) fn pass_marked(&mut self, mark: EventMark) {
        self.seen = Some(Seen::Mark(mark));
    }

    /// Records sequences that the stream no longer has and that may be passed over.
    pub(super) fn miss(&mut self, range: RangeInclusive<u64>) {
        // In rising order, so that a batch can split them by its end.
        debug_assert!(
            self.missing
                .last()
                .is_none_or(|last| last.end() < range.start()),
            "ranges rise"
        );
        self.missing.push(range);
    }

    /// Records sequences up to the position that turned out to be missing, in rising order. Batches
    /// that were returned passed over some of them; the rest is missing in the next ones.
    pub(super) fn overlook(&mut self, ranges: impl Iterator<Item = RangeInclusive<u64>>) {
        let handed = self.handed;
        for range in ranges {
            let (from, to) = range.into_inner();
            if from <= handed {
                self.overlooked += to.min(handed) - from + 1;
            }
            if to > handed {
                self.missing.push(from.max(handed + 1)..=to);
            }
        }
        // What was known to be missing before may come after them.
        self.missing.sort_unstable_by_key(|range| *range.start());
    }

    /// Records that this many events before the position, which were all passed, turned out to be
    /// missing.
    pub(super) fn overlook_passed(&mut self, count: u64) {
        self.overlooked += count;
    }

    /// The sequences of the events that wait to be returned.
    pub(super) fn sequences(&self) -> impl Iterator<Item = u64> {
        self.events
            .iter()
            .chain(&self.held)
            .map(|event| event.sequence)
    }

    /// Places it at the position at which a stream was opened.
    pub(super) fn place(
        &mut self,
        stream: Arc<StreamIdentity>,
        through: u64,
        head: u64,
        pending: u64,
    ) {
        // The position is only the beginning of the stream: what was read before was never
        // returned.
        if !self.is_settled {
            self.handed = through;
            // It is read again from there.
            self.missing.clear();
            self.passed_over.clear();
            self.seen = None;
        }
        self.is_placed = true;
        self.stream = Some(stream);
        self.through = through;
        // The end of a stream never comes nearer; an answer of a replica may be older.
        self.head = self.head.max(head);
        self.pending = pending;
    }

    /// Most events in a batch.
    pub(super) fn events_max(&self) -> usize {
        self.limits.events
    }

    /// Whether the batch is full.
    pub(super) fn is_full(&self) -> bool {
        self.held.is_some() || self.events.len() >= self.limits.events
    }

    /// Adds an event.
    pub(super) fn push(&mut self, event: Event) {
        let size = event.size();
        // A single event is taken whatever its size.
        if !self.events.is_empty() && self.bytes + size > self.limits.bytes {
            self.held = Some(event);
            return;
        }
        // Reserved once, by what the last batch had.
        if self.events.capacity() == 0 {
            self.events.reserve(self.expected);
        }
        self.bytes += size;
        self.events.push(event);
    }

    /// Records and counts a message that is not an event.
    pub(super) fn pass_over(&mut self, sequence: u64) {
        self.passed_over.push(sequence);
        // A stream that is read again has the same messages again.
        if sequence > self.oddities.through {
            self.oddities.through = sequence;
            self.oddities.passed_over += 1;
        }
    }

    /// Counts and logs a message that the client could not parse. A stream may be full of them:
    /// after the first few, they are logged less and less often.
    pub(super) fn note_fault(&mut self, sequence: u64, fault: &str, stream: &str) {
        if sequence <= self.oddities.through {
            return;
        }
        self.oddities.through = sequence;
        self.oddities.repaired += 1;
        let count = self.oddities.repaired;
        if count <= 10 || count.is_power_of_two() {
            warn!(
                stream,
                sequence,
                count,
                "a message is not valid: {fault}; it was delivered without the unusable parts; \
                 correct its publisher"
            );
        } else {
            debug!(stream, sequence, count, "a message is not valid: {fault}");
        }
    }

    /// Drops what was not returned yet of everything after a sequence.
    pub(super) fn roll_back_unreturned(&mut self, through: u64) {
        self.roll_back(through.max(self.handed));
    }

    /// Drops everything after a sequence, which was not returned yet.
    pub(super) fn roll_back(&mut self, through: u64) {
        if self.through <= through {
            return;
        }
        self.held = self.held.take().filter(|held| held.sequence <= through);
        self.events.truncate(
            self.events
                .partition_point(|event| event.sequence <= through),
        );
        self.bytes = self.events.iter().map(Event::size).sum();
        self.through = through;
        self.seen = self.seen.take().filter(|seen| seen.sequence() <= through);
        self.missing.retain(|range| *range.end() <= through);
        self.passed_over.retain(|sequence| *sequence <= through);
    }

    /// Whether there is something to return now: events, or a position that moved without events.
    pub(super) fn is_ready(&self) -> bool {
        !self.events.is_empty()
            || self.overlooked > 0
            || self.empty_at().is_some_and(|time| time <= Instant::now())
    }

    /// When a batch without events may be returned.
    pub(super) fn empty_at(&self) -> Option<Instant> {
        // The first batch shows the caller where the stream ends, and so whether it has caught up.
        // A checkpoint can't show that.
        // At once, even without an event.
        if !self.has_returned {
            return self.is_placed.then_some(self.handed_at);
        }
        // Only if it has moved, and not more often than that.
        (self.through > self.handed).then(|| self.handed_at + EMPTY_INTERVAL)
    }

    /// Returns the next batch.
    pub(super) fn take(&mut self) -> Option<Batch> {
        let stream = Arc::clone(self.stream.as_ref()?);
        let events = std::mem::take(&mut self.events);
        // The next batch is probably as large as this one.
        self.expected = events.len();
        self.bytes = 0;
        self.has_returned = true;
        // From now on a stream is opened at this position, and not at its beginning.
        self.is_settled |= !events.is_empty() || self.through > self.handed;
        let through = self
            .held
            .as_ref()
            .map_or(self.through, |held| held.sequence - 1);
        let after = self.handed;
        if let Some(first) = events
            .first()
            .filter(|first| self.earlier.is_due(first.sequence))
        {
            self.earlier.add(EventMark::of(first));
        }
        if let Some(last) = events.last() {
            self.last = Last::of(last);
        }
        if let Some(held) = self.held.take() {
            // There is room now; alone it always fits.
            self.push(held);
        }
        self.handed = through;
        self.handed_at = Instant::now();
        let applied = events.last().map_or(0, |event| event.sequence);
        let last_seen = self
            .seen
            .take()
            .filter(|seen| seen.sequence() > applied)
            .map(Seen::mark);
        if last_seen.is_some() || applied > 0 {
            self.handed_seen.clone_from(&last_seen);
        }
        // Only what lies before the end of this batch; the rest goes with a later one.
        let rest = self
            .missing
            .partition_point(|range| *range.start() <= through);
        let later = self.missing.split_off(rest);
        let missing = std::mem::replace(&mut self.missing, later);
        let later = self.passed_over.split_off(
            self.passed_over
                .partition_point(|sequence| *sequence <= through),
        );
        let passed_over = std::mem::replace(&mut self.passed_over, later);
        // Those that are here already are not applied either.
        let pending = self.pending + self.events.len() as u64;
        let head = self.head.max(through);
        Some(Batch {
            events,
            after,
            through,
            head,
            pending,
            stream,
            last_seen,
            missing,
            overlooked: std::mem::take(&mut self.overlooked),
            passed_over,
            left_out: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Payload;

    #[test]
    fn a_large_event_that_was_returned_is_not_kept_and_its_mark_is() {
        let mut cursor = Cursor::new(
            None,
            Limits {
                events: 10,
                bytes: 1 << 20,
            },
        );
        let stream = StreamIdentity {
            name: "s".to_owned(),
            created_ns: 1,
        };
        cursor.place(Arc::new(stream), 0, 1, 1);
        let data = Bytes::from(vec![0; 2 * LAST_EVENT_MAX]);
        cursor.push(Event {
            sequence: 1,
            time_ns: 1,
            subject: "s".into(),
            kind: "".into(),
            headers: Vec::new(),
            data: Payload::Bytes(data.clone()),
        });
        cursor.through = 1;
        let batch = cursor.take().expect("the stream was opened");
        assert_eq!(cursor.mark(), Some(EventMark::of(&batch.events[0])));
        drop(batch);
        assert!(data.is_unique(), "the reader still keeps the event");
    }
}
