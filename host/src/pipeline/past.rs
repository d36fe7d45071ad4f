//! A fold that should equal another state repeats what that one did with parked events: it parks
//! the same, and applies them at the same positions.

use std::collections::BTreeMap;

use super::applier::{Fault, Obstacle};
use super::recording::describe_fault;
use super::{Ended, Input, Run, firings};
use crate::batch::Batch;
use crate::event::Event;
use crate::module::ApplyError;
use crate::state::{Parked, Release};

impl Run {
    /// Applies the releases that the state which this one should equal has applied at this
    /// position. Most states are not to equal another one.
    pub(super) fn release_as_before(&mut self) -> Result<(), Ended> {
        let position = self.store.position();
        let is_due = |release: &&Release| release.position <= position;
        // Several may be due at one position, in the order in which they were made.
        while let Some(release) = self.next_release().filter(is_due).cloned() {
            self.release_again(&release)?;
        }
        Ok(())
    }

    /// Splits off the part of a batch behind the next release.
    pub(super) fn cut_at_release(&mut self, mut batch: Batch) -> Batch {
        let next = self.next_release().map(|release| release.position);
        // At exactly the position of the release, because later events see what it wrote.
        if let Some(position) = next.filter(|position| *position < batch.through) {
            let rest = batch.split_behind(position);
            self.stashed.push_front(Input::Batch(rest));
        }
        batch
    }

    fn next_release(&self) -> Option<&Release> {
        let past = self.applier.skips.past();
        if past.releases.is_empty() {
            return None;
        }
        // Each one that was applied is recorded, also by a generation before this one.
        let done = usize::try_from(self.store.releases_count()).unwrap_or(usize::MAX);
        past.releases.get(done)
    }

    fn release_again(&mut self, release: &Release) -> Result<(), Ended> {
        let Release {
            key,
            sequences,
            is_drop,
            ..
        } = release;
        // What the stream has lost is missing here as well, and was accepted as missing.
        let parked = self.store.parked_of(key, sequences).map_err(Ended::State)?;
        if *is_drop {
            self.drop_again(key, sequences, &parked);
            return Ok(());
        }
        let events: Vec<Event> = parked.into_iter().map(|parked| parked.event).collect();
        let mut done = 0;
        let mut count = events.len();
        while done < events.len() {
            let portion = &events[done..(done + count).min(events.len())];
            match self.applier.apply(portion) {
                Ok(_) => {
                    done += portion.len();
                    let portion = portion.to_vec();
                    // Recorded with the last portion: a crash before that repeats the rest.
                    if done == events.len() {
                        self.applier.writer().release(key, sequences.clone());
                    }
                    self.released(key, &portion);
                }
                Err(Fault::Call {
                    error: ApplyError::State(error),
                    ..
                }) => return Err(Ended::State(error)),
                // A smaller portion succeeds if the limit of one call was the reason.
                Err(_) if portion.len() > 1 => count = portion.len() / 2,
                Err(fault) => {
                    let (message, _) = describe_fault(&fault);
                    let sequence = portion.first().map(|event| event.sequence);
                    self.applier.obstacle = Some(Obstacle {
                        kind: "parked",
                        class: None,
                        message: format!(
                            "an event that was parked and later applied fails now: {message}"
                        ),
                        sequence,
                    });
                    return Err(Ended::Failed);
                }
            }
        }
        // The release still counts, or the next one would be taken for it.
        if events.is_empty() {
            let writer = self.applier.writer();
            writer.begin();
            writer.release(key, sequences.clone());
            writer.publish_in_place(BTreeMap::new());
        }
        Ok(())
    }

    /// Leaves out firings where the other state did: events before them may have set their timers.
    fn drop_again(&mut self, key: &str, sequences: &[u64], parked: &[Parked]) {
        // A state that has dropped an event has an exception for it, and so a decision.
        let skips = &self.applier.skips;
        let events = parked.iter().map(|parked| &parked.event);
        let skipped: Vec<_> = events
            .map(|event| (event.clone(), skips.exception(event)))
            .collect();
        let writer = self.applier.writer();
        writer.begin();
        let mut exceptions = BTreeMap::new();
        for (event, skipped) in skipped {
            exceptions.extend(skipped.map(|skipped| (event.sequence, skipped)));
            writer.unpark(key, event.sequence);
            firings::leave_out(writer, &event);
        }
        // As in the other state, or the next release would be taken for this one.
        writer.drop_firings(key, sequences.to_vec());
        writer.publish_in_place(exceptions);
        // The instance may remember timers.
        self.applier.fold = None;
    }
}
