//! What was read and not handed out yet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::batch::{Batch, Limits};
use crate::event::Event;
use crate::position::{Checkpoint, EventMark, StreamIdentity};

/// How often a position may move without events. Each such batch costs a turn
/// of the whole pipeline, and a stream may hold any number of events for others.
const EMPTY_INTERVAL: Duration = Duration::from_millis(100);

/// The place up to which a reader has read, with the events between it and what it handed out.
#[derive(Debug)]
pub(super) struct Cursor {
    /// The stream, once it was seen.
    pub(super) stream: Option<Arc<StreamIdentity>>,
    /// The last sequence that was read, or proved to hold nothing for us.
    pub(super) through: u64,
    /// The last sequence of the stream, as far as known.
    pub(super) head: u64,
    /// Events behind `through` that may match.
    pub(super) pending: u64,
    /// What was met that is no sound event.
    pub(super) oddities: Oddities,
    events: Vec<Event>,
    bytes: usize,
    /// An event that did not fit into the batch; it begins the next one.
    held: Option<Event>,
    /// How many events the next batch may well have.
    expected: usize,
    /// `through` of the last batch, and when that was.
    handed: u64,
    handed_at: Instant,
    /// Whether the stream was opened since the reader was made: what is known before that comes from the checkpoint alone.
    is_placed: bool,
    /// Whether the caller was told where the stream stands.
    is_told: bool,
    /// Whether the position is one that was read, not just where a stream begins.
    is_settled: bool,
    last: Last,
    limits: Limits,
}

/// Messages that were not handed out as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Oddities {
    /// The broker's own book-keeping, which is no event.
    pub(super) passed_over: u64,
    /// Messages that the client could not read, handed out without what is unusable.
    pub(super) repaired: u64,
    /// The last sequence that is counted; what is read again is not counted again.
    through: u64,
}

/// The last event that left us.
#[derive(Debug)]
enum Last {
    None,
    /// Marked by a checkpoint.
    Mark(EventMark),
    /// Handed out; marked only when somebody asks, as digests cost more than events.
    Event(Event),
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
            bytes: 0,
            held: None,
            expected: 0,
            handed: resume.map_or(0, |checkpoint| checkpoint.position),
            handed_at: Instant::now(),
            is_placed: false,
            is_told: false,
            is_settled: resume.is_some(),
            last: resume.and_then(|checkpoint| checkpoint.last_event.clone()).map_or(Last::None, Last::Mark),
            limits: Limits { events: limits.events.max(1), bytes: limits.bytes },
        }
    }

    /// The position to open the stream at; none while it is open where to begin.
    pub(super) fn position(&self) -> Option<u64> {
        self.is_settled.then_some(self.through)
    }

    /// The mark of the last event that left us. What is still here is read again from a stream that was proved.
    pub(super) fn mark(&self) -> Option<EventMark> {
        match &self.last {
            Last::None => None,
            Last::Mark(mark) => Some(mark.clone()),
            Last::Event(event) => Some(EventMark::of(event)),
        }
    }

    /// Places it where a stream was opened.
    pub(super) fn place(&mut self, stream: Arc<StreamIdentity>, through: u64, head: u64, pending: u64) {
        if !self.is_settled {
            self.handed = through;
        }
        self.is_placed = true;
        self.stream = Some(stream);
        self.through = through;
        self.head = self.head.max(head);
        self.pending = pending;
    }

    /// Most events in a batch.
    pub(super) fn events_max(&self) -> usize {
        self.limits.events
    }

    /// How many events wait to be handed out.
    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether another event needs another batch.
    pub(super) fn is_full(&self) -> bool {
        self.held.is_some() || self.events.len() >= self.limits.events
    }

    /// Adds an event.
    pub(super) fn push(&mut self, event: Event) {
        let size = event.size();
        if !self.events.is_empty() && self.bytes + size > self.limits.bytes {
            self.held = Some(event);
            return;
        }
        if self.events.capacity() == 0 {
            self.events.reserve(self.expected);
        }
        self.bytes += size;
        self.events.push(event);
    }

    /// Counts a message that is no event.
    pub(super) fn pass_over(&mut self, sequence: u64) {
        if sequence > self.oddities.through {
            self.oddities.through = sequence;
            self.oddities.passed_over += 1;
        }
    }

    /// Counts and tells a message that the client could not read. A stream may be full of them: after the first few
    /// only ever rarer ones are told.
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
                "a message cannot be read as it is: {fault}; it was handed on without what is unusable; correct its \
                 publisher"
            );
        }
    }

    /// Forgets all behind the first `count` events; `through` is the last sequence before what is forgotten.
    pub(super) fn roll_back(&mut self, count: usize, through: u64) {
        self.held = None;
        self.events.truncate(count);
        self.bytes = self.events.iter().map(Event::size).sum();
        self.through = through;
    }

    /// Whether there is something to hand out now: events, or a position that moved without any.
    pub(super) fn is_ready(&self) -> bool {
        !self.events.is_empty() || self.empty_at().is_some_and(|time| time <= Instant::now())
    }

    /// When a batch without events may be handed out.
    pub(super) fn empty_at(&self) -> Option<Instant> {
        // The first batch tells the caller where the stream ends, and so whether it has caught up. A checkpoint can't tell.
        if !self.is_told {
            return self.is_placed.then_some(self.handed_at);
        }
        (self.through > self.handed).then(|| self.handed_at + EMPTY_INTERVAL)
    }

    /// Hands out what is there.
    pub(super) fn take(&mut self) -> Option<Batch> {
        let stream = Arc::clone(self.stream.as_ref()?);
        let events = std::mem::take(&mut self.events);
        self.expected = events.len();
        self.bytes = 0;
        self.is_told = true;
        self.is_settled |= !events.is_empty() || self.through > self.handed;
        let through = self.held.as_ref().map_or(self.through, |held| held.sequence - 1);
        let after = self.handed;
        if let Some(last) = events.last() {
            self.last = Last::Event(last.clone());
        }
        if let Some(held) = self.held.take() {
            self.push(held);
        }
        self.handed = through;
        self.handed_at = Instant::now();
        let pending = self.pending + self.events.len() as u64;
        Some(Batch {
            events,
            after,
            through,
            head: self.head.max(through),
            pending,
            stream,
            last_seen: None,
            missing: Vec::new(),
        })
    }
}
