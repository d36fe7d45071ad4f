//! Leaves out events that their producer published twice, before the guest is called.
//!
//! Whether an event is a duplicate depends on the events before it that the state has passed:
//! applied, parked or skipped. So each part of a batch that could not be applied is looked at again.

use std::collections::HashMap;

use crate::event::Event;
use crate::module::Inbox;
use crate::state::inbox::{IdHash, Keep, Last, Seen};
use crate::state::{self, Writer};

/// Recognises events by the ids that the state has seen.
pub(super) struct Duplicates {
    inbox: Inbox,
    /// Ids of the events of the batch that are not left out, in order, and not published yet.
    new: Vec<Seen>,
    /// Events of the batch that are left out, in order, and not passed yet.
    left_out: Vec<Event>,
    /// Events that were passed and not reported yet.
    passed: Vec<Event>,
}

/// What a step records of the events up to its end.
pub(super) struct Passed {
    pub(super) ids: Vec<Seen>,
    pub(super) keep: Keep,
    /// Events that were left out.
    pub(super) count: u64,
    /// The last of them.
    pub(super) last: Option<Event>,
}

impl Duplicates {
    pub(super) fn new(inbox: Inbox) -> Self {
        Self {
            inbox,
            new: Vec::new(),
            left_out: Vec::new(),
            passed: Vec::new(),
        }
    }

    /// Looks at the events of a batch, of which `skipped` are not applied as an operator decided;
    /// returns those that are neither skipped nor left out here, unless none is left out here.
    ///
    /// The id of a skipped event is kept like any other: the decision counts for its duplicates
    /// too, which would fail as it did.
    pub(super) fn leave_out(
        &mut self,
        events: &[Event],
        skipped: &[Event],
        writer: &Writer,
    ) -> Result<Option<Vec<Event>>, state::Error> {
        self.new.clear();
        self.left_out.clear();
        let mut last = writer.last_id()?;
        let mut in_batch = HashMap::new();
        for event in events {
            if self.is_known(event, &mut last, &mut in_batch, writer)? && !contains(skipped, event)
            {
                self.left_out.push(event.clone());
            }
        }
        if self.left_out.is_empty() {
            return Ok(None);
        }
        let kept = |event: &&Event| !contains(skipped, event) && !contains(&self.left_out, event);
        Ok(Some(events.iter().filter(kept).cloned().collect()))
    }

    /// Whether the id of an event was seen before it within the window; notes it if not.
    fn is_known(
        &mut self,
        event: &Event,
        last: &mut Last,
        in_batch: &mut HashMap<IdHash, Seen>,
        writer: &Writer,
    ) -> Result<bool, state::Error> {
        let Some(id) = self.inbox.id_of(event) else {
            return Ok(false);
        };
        let earlier = match in_batch.get(&id) {
            Some(seen) => Some(*seen),
            None => writer.find_id(&id)?,
        };
        let keep = self.inbox.keep();
        if earlier.is_some_and(|seen| keep.recognises(&seen, *last, event.time_ns)) {
            return Ok(true);
        }
        let seen = next(*last, id, event);
        *last = seen.last();
        in_batch.insert(id, seen);
        self.new.push(seen);
        Ok(false)
    }

    /// Takes what a step records that ends at a position.
    pub(super) fn pass(&mut self, through: u64) -> Passed {
        let ids = self.new.partition_point(|seen| seen.sequence <= through);
        let left_out = self
            .left_out
            .partition_point(|event| event.sequence <= through);
        let ids = self.new.drain(..ids).collect();
        let passed: Vec<Event> = self.left_out.drain(..left_out).collect();
        let (count, last) = (passed.len() as u64, passed.last().cloned());
        self.passed.extend(passed);
        Passed {
            ids,
            keep: self.inbox.keep(),
            count,
            last,
        }
    }

    /// Takes the events that were left out and passed.
    pub(super) fn take_passed(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.passed)
    }
}

/// Whether events, in the order of their sequences, have this one.
fn contains(events: &[Event], event: &Event) -> bool {
    events
        .binary_search_by_key(&event.sequence, |event| event.sequence)
        .is_ok()
}

fn next(last: Last, id: IdHash, event: &Event) -> Seen {
    Seen {
        number: last.number + 1,
        id,
        time_ns: last.time_ns.max(event.time_ns),
        sequence: event.sequence,
    }
}
