//! What a shared reader has read and not all of its followers have taken.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::cursor::Last;
use crate::batch::{Batch, Limits};
use crate::event::Event;
use crate::memory::read_ahead::{ReadAhead, UNIT};
use crate::position::EventMark;

/// Size at which the oldest batches go, even if a follower needs them, in bytes.
///
/// A batch that holds the memory of a large event, or for which there is no memory, stays only until
/// those have taken it that wait for it now. A follower that rests must not keep such a batch.
const RING_BYTES: usize = 4 << 20;
/// It takes at most this share of the memory for what is read ahead: one over this.
const RING_SHARE: u64 = 4;
/// What a batch takes apart from its events, in bytes; a batch without any moves the position.
const ENTRY_BYTES: usize = 256;

/// Batches that follow each other.
#[derive(Debug)]
pub(super) struct Ring {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The position after which it begins: what lies before it is gone.
    start: u64,
    /// Its last sequence.
    end: u64,
    /// The last event of the reader.
    last: Last,
}

/// A batch, as it was read.
#[derive(Debug)]
pub(super) struct Entry {
    batch: Arc<Batch>,
    /// The last event of the reader, after this batch.
    last: Last,
    /// How many of its messages were delivered without their unusable parts.
    repaired: u64,
    /// The memory of its events.
    _memory: Option<OwnedSemaphorePermit>,
    /// The seats that still have to look at it, if it goes when they have.
    awaited: Option<Vec<u64>>,
}

/// A batch that was just read.
#[derive(Debug)]
pub(super) struct NewBatch {
    pub(super) batch: Batch,
    /// As in [`Entry`], both.
    pub(super) last: Last,
    pub(super) repaired: u64,
}

/// What a follower takes at once.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) batch: Batch,
    /// Its last event, as the reader keeps it; none if only a part of a batch is taken.
    pub(super) last: Option<Last>,
    /// As in [`Entry`].
    pub(super) repaired: u64,
}

/// Whether a follower has read the same stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// Both have read the same event.
    Same,
    /// The reader has not come there yet.
    Later,
    /// They have not, or what would show it is gone.
    None,
}

impl Ring {
    /// An empty one at the position of a reader, with the last event of that.
    pub(super) fn new(position: u64, last: Last) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            start: position,
            end: position,
            last,
        }
    }

    /// The position after which it begins.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Its last sequence.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Adds a batch, and charges it to the memory for what is read ahead. If there is none, the
    /// oldest batches go. `waiting` are the seats that wait for it.
    pub(super) fn push(
        &mut self,
        read: NewBatch,
        ahead: Option<&ReadAhead>,
        waiting: impl Iterator<Item = u64>,
    ) {
        let NewBatch {
            batch,
            last,
            repaired,
        } = read;
        let bytes = batch.bytes() + ENTRY_BYTES;
        let memory = ahead.and_then(|ahead| self.charge(bytes, ahead));
        let is_short =
            ahead.is_some() && (memory.is_none() || batch.events.iter().any(Event::is_large));
        self.end = batch.through;
        self.last = last.clone();
        self.bytes += bytes;
        self.entries.push_back(Entry {
            batch: Arc::new(batch),
            last,
            repaired,
            _memory: memory,
            awaited: is_short.then(|| waiting.collect()),
        });
        // Small hosts have little memory for what is read ahead.
        let most = ahead.map_or(RING_BYTES, |ahead| {
            let all = u64::from(ahead.total) * UNIT;
            RING_BYTES.min(usize::try_from(all / RING_SHARE).unwrap_or(RING_BYTES))
        });
        while self.bytes > most && self.entries.len() > 1 && self.shed() {}
    }

    /// A seat has looked for what follows its position, and taken it if it could, or was left.
    pub(super) fn looked(&mut self, seat: u64) {
        let mut done = 0;
        for (index, entry) in self.entries.iter_mut().enumerate() {
            if let Some(awaited) = &mut entry.awaited {
                awaited.retain(|other| *other != seat);
                if awaited.is_empty() {
                    done = index + 1;
                }
            }
        }
        // With those before it, which nobody could take any more without it.
        for _ in 0..done {
            self.shed();
        }
    }

    /// Memory for a batch, at the cost of older ones; none if there is too little even so.
    fn charge(&mut self, bytes: usize, ahead: &ReadAhead) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes as u64 / UNIT).unwrap_or(u32::MAX);
        let units = units.min(ahead.total);
        loop {
            let memory = Arc::clone(&ahead.units).try_acquire_many_owned(units).ok();
            if memory.is_some() || !self.shed() {
                return memory;
            }
        }
    }

    /// Moves over a batch that its only follower has taken.
    pub(super) fn pass(&mut self, through: u64, last: Last) {
        self.trim(u64::MAX);
        (self.start, self.end, self.last) = (through, through, last);
    }

    /// Drops what lies before a position, which all followers have reached.
    pub(super) fn trim(&mut self, position: u64) {
        let has_passed = |entry: &Entry| entry.batch.through <= position;
        while self.entries.front().is_some_and(has_passed) && self.shed() {}
    }

    /// Drops the oldest batch, if there is one.
    fn shed(&mut self) -> bool {
        let Some(oldest) = self.entries.pop_front() else {
            return false;
        };
        self.bytes -= oldest.batch.bytes() + ENTRY_BYTES;
        self.start = oldest.batch.through;
        true
    }

    /// Whether a reader with this last event has read the same stream, as far as both can tell.
    pub(super) fn prove(&self, mark: Option<&EventMark>) -> Proof {
        let is_same = |is_same| if is_same { Proof::Same } else { Proof::None };
        let last = self.last.sequence();
        match mark {
            None => is_same(last.is_none()),
            Some(mark) if mark.sequence > self.end => Proof::Later,
            Some(mark) if last == Some(mark.sequence) => {
                is_same(self.last.mark().as_ref() == Some(mark))
            }
            Some(mark) => {
                let event = self.event(mark.sequence);
                is_same(event.is_some_and(|event| EventMark::of(event) == *mark))
            }
        }
    }

    fn event(&self, sequence: u64) -> Option<&Event> {
        let events = &self.after(sequence.checked_sub(1)?)?.batch.events;
        let at = events
            .binary_search_by_key(&sequence, |event| event.sequence)
            .ok()?;
        events.get(at)
    }

    /// The batch with what follows a position.
    fn after(&self, position: u64) -> Option<&Entry> {
        let at = self.index_after(position);
        self.entries
            .get(at)
            .filter(|entry| entry.batch.after <= position)
    }

    fn index_after(&self, position: u64) -> usize {
        self.entries
            .partition_point(|entry| entry.batch.through <= position)
    }

    /// What follows a position, up to the limits, if there is anything.
    pub(super) fn take(&self, position: u64, limits: Limits) -> Option<Taken> {
        let entry = self.after(position)?;
        let mut batch = entry.batch.portion(position, limits);
        let is_whole = batch.through == entry.batch.through;
        // As far as the reader knows the stream by now.
        let later = self.entries.range(self.index_after(position) + 1..);
        let following: usize = later.map(|entry| entry.batch.events.len()).sum();
        let newest = &self.entries.back()?.batch;
        batch.head = newest.head;
        // What the portion leaves of its batch, and what lies behind that batch by now.
        let left = batch.pending.saturating_sub(entry.batch.pending);
        batch.pending = left + newest.pending + following as u64;
        Some(Taken {
            last: is_whole.then(|| entry.last.clone()),
            repaired: if is_whole { entry.repaired } else { 0 },
            batch,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{LARGE_MIN, Payload};
    use crate::position::StreamIdentity;

    /// A batch of one event of this size, with this sequence.
    fn read(sequence: u64, bytes: usize) -> NewBatch {
        let event = Event {
            sequence,
            time_ns: 1,
            subject: "s".into(),
            kind: "".into(),
            headers: Vec::new(),
            data: Payload::Bytes(vec![0; bytes].into()),
        };
        let stream = StreamIdentity {
            name: "S".to_owned(),
            created_ns: 1,
        };
        let batch = Batch {
            events: vec![event],
            after: sequence - 1,
            through: sequence,
            head: sequence,
            pending: 0,
            stream: Arc::new(stream),
            last_seen: None,
            missing: Vec::new(),
            overlooked: 0,
            passed_over: Vec::new(),
            left_out: Vec::new(),
        };
        NewBatch {
            batch,
            last: Last::None,
            repaired: 0,
        }
    }

    #[test]
    fn a_large_event_stays_only_until_those_have_it_that_wait_for_it() {
        let ahead = ReadAhead::new(24 << 20);
        let mut ring = Ring::new(0, Last::None);
        let has = |ring: &Ring, after| ring.take(after, Limits::default()).is_some();
        ring.push(read(1, 100), Some(&ahead), [1, 2].into_iter());
        ring.looked(1);
        ring.looked(2);
        assert!(has(&ring, 0), "a small one stays for who comes later");
        ring.push(read(2, LARGE_MIN), Some(&ahead), [1, 2].into_iter());
        // A third one rests, so nobody knows when it looks.
        ring.looked(3);
        ring.looked(1);
        assert!(has(&ring, 1), "the second one did not have it yet");
        ring.looked(2);
        assert!(!has(&ring, 1) && !has(&ring, 0));
        assert_eq!((ring.start(), ring.end(), ahead.used()), (2, 2, 0));
    }

    #[test]
    fn a_batch_without_memory_stays_only_until_those_have_it_that_wait_for_it() {
        let ahead = ReadAhead::new(24 << 20);
        let mut ring = Ring::new(0, Last::None);
        let others = Arc::clone(&ahead.units).try_acquire_many_owned(ahead.total);
        ring.push(read(1, 100 << 10), Some(&ahead), [1].into_iter());
        assert!(ring.take(0, Limits::default()).is_some());
        ring.looked(1);
        assert!(ring.take(0, Limits::default()).is_none());
        drop(others);
        ring.push(read(2, 100 << 10), Some(&ahead), [1].into_iter());
        ring.looked(1);
        assert!(ring.take(1, Limits::default()).is_some());
    }
}
