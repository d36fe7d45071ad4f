//! Parking: an event that has used up its attempts is set aside with its key, and other keys
//! continue.
//!
//! The event, and later events of its key, become rows of the state file in the commit that moves
//! the position past them. Nothing is dropped: a limit stops the pipeline. A parked key is retried,
//! or an event of it dropped, only on request (`parked_work.rs`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::applier::{Applier, Latest, PublishedStep};
use super::{Ended, Run};
use crate::batch::Batch;
use crate::bundle::Keeper;
use crate::event::Event;
use crate::failure::FailureClass;
use crate::module::KeyRule;
use crate::state::{self, Parked, ParkedCounts, ParkedFailure, Store};
use crate::timers::Firing;

/// Outcomes of events by which a module that fails everywhere is recognised.
const OUTCOMES: usize = 20;
/// Failed events among them with which parking ends.
const OUTCOMES_FAILED: usize = 5;

/// Limits of what one state parks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParkingLimits {
    /// Most keys.
    pub keys: u64,
    /// Most events.
    pub events: u64,
    /// Most bytes of them.
    pub bytes: u64,
}

impl Default for ParkingLimits {
    fn default() -> Self {
        Self {
            keys: 10_000,
            events: 100_000,
            bytes: 256 << 20,
        }
    }
}

/// What a pipeline needs to park events.
#[derive(Clone, Debug)]
pub struct Parking {
    /// Name of the deployment, for the log.
    pub deployment: String,
    /// How the key of an event is found.
    pub rule: KeyRule,
    /// The subject of firings, if the module sets timers.
    pub firings: Option<String>,
    /// Number of the generation.
    pub generation: u64,
    /// Events after this sequence are checked, for bundles.
    pub checks_events_after: Option<u64>,
    /// SHA-256 of the module.
    pub module: String,
    /// Keeps bundles of first errors; none of a fold that nobody reads.
    pub keeper: Option<Keeper>,
    /// Whether events are parked. Events of parked keys wait behind them in any case.
    pub parks: Arc<AtomicBool>,
    /// The limits.
    pub limits: ParkingLimits,
}

impl Parking {
    /// That of a deployment whose events are never parked.
    pub fn never(deployment: &str) -> Self {
        Self {
            deployment: deployment.to_owned(),
            rule: KeyRule::None,
            firings: None,
            generation: 0,
            checks_events_after: None,
            module: String::new(),
            keeper: None,
            parks: Arc::default(),
            limits: ParkingLimits::default(),
        }
    }
}

/// The outcome of an event that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Applied,
    Failed,
}

/// The outcomes of the last events that were tried.
#[derive(Debug, Default)]
pub(super) struct Outcomes(VecDeque<Outcome>);

impl Outcomes {
    /// Events were applied.
    pub(super) fn applied(&mut self, count: usize) {
        // More than `OUTCOMES` would only push each other out.
        (0..count.min(OUTCOMES)).for_each(|_| self.push(Outcome::Applied));
    }

    /// Whether another failed event may be parked: not if more than half of the last ones failed,
    /// and at least five. Then the module, and not its events, is to blame.
    fn allow_another(&self) -> bool {
        // The one that is asked about has failed, but is not in the list yet.
        let failed = 1 + self.0.iter().filter(|one| **one == Outcome::Failed).count();
        // Fewer than five failures say nothing about the module.
        failed < OUTCOMES_FAILED || failed * 2 <= self.0.len()
    }

    fn push(&mut self, outcome: Outcome) {
        if self.0.len() == OUTCOMES {
            self.0.pop_front();
        }
        self.0.push_back(outcome);
    }
}

/// Events of a batch that are not applied.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    /// They are skipped, as an operator decided.
    pub(super) skipped: Vec<Event>,
    /// They wait behind a parked event of their key.
    pub(super) queued: Vec<Parked>,
}

impl LeftOut {
    /// Those that wait, of a step from `after` (exclusive) through `through`.
    pub(super) fn queued_between(&self, after: u64, through: u64) -> impl Iterator<Item = &Parked> {
        self.queued
            .iter()
            .filter(move |parked| (after + 1..=through).contains(&parked.event.sequence))
    }

    /// All of them.
    pub(super) fn events(&self) -> Vec<Event> {
        self.skipped
            .iter()
            .chain(self.queued.iter().map(|parked| &parked.event))
            .cloned()
            .collect()
    }
}

/// How a batch is separated.
pub(super) enum Separated {
    /// All its events are applied.
    None,
    /// These events are applied, and others are not.
    Some(Vec<Event>, LeftOut),
    /// Nothing is applied now: events would have to be parked, and a limit allows no more.
    Full,
}

impl Applier {
    /// The key under which an event is parked, or waits. Events without a key share one, and wait
    /// for each other. A firing has the key of its timer.
    fn parking_key(&mut self, event: &Event) -> Result<String, state::Error> {
        let is_firing = self.parking.firings.as_deref() == Some(&*event.subject);
        match Firing::of(event).filter(|_| is_firing) {
            None => Ok(Parked::name_of(self.parking.rule.key_of(event))),
            Some(Firing { key: Some(key), .. }) => Ok(key),
            // Of an earlier release: the timer that it would fire has the key.
            Some(firing) => {
                let timer = self.writer().timer(&firing.name)?;
                Ok(Parked::name_of(timer.and_then(|timer| timer.key)))
            }
        }
    }

    /// Whether an event is what an operator decided about a timer of another deployment of this name.
    fn is_of_another(&mut self, event: &Event) -> bool {
        let is_firing = self.parking.firings.as_deref() == Some(&*event.subject);
        let firing = Firing::of(event).filter(|_| is_firing);
        firing.is_some_and(|firing| !self.writer().is_concerned(&firing))
    }

    /// Why a failed event stops the deployment instead of being parked; none if it is parked.
    pub(super) fn refuses_to_park(
        &self,
        class: Option<FailureClass>,
        event: Option<&Event>,
        store: &Store,
    ) -> Option<String> {
        let is_charged_to_event = matches!(
            class,
            Some(
                FailureClass::Retry
                    | FailureClass::Rejected
                    | FailureClass::Trap
                    | FailureClass::Memory
                    | FailureClass::Refused
            )
        );
        let parks =
            self.parking.parks.load(Ordering::Relaxed) && self.parking.rule != KeyRule::None;
        // A state that follows has to get past what it would park if it were active, or nobody could
        // roll back to it.
        let is_live =
            (self.progress.serves() || self.progress.follows()) && !self.progress.is_on_probation();
        let event = event.filter(|_| is_charged_to_event && parks && is_live);
        let Some(event) = event else {
            return Some(String::new());
        };
        if !self.outcomes.allow_another() {
            return Some(
                "; it is not parked, because more than half of the last events failed: the module \
                 seems to be at fault"
                    .to_owned(),
            );
        }
        // Bytes of one event are bounded; the limit may be passed by one.
        let more = ParkedCounts {
            keys: 1,
            events: 1,
            bytes: event.size() as u64,
        };
        self.parking_limit(store, more)
            .map(|limit| format!("; it is not parked, because {limit}"))
    }

    /// The limit that this many more would exceed, in words.
    fn parking_limit(&self, store: &Store, more: ParkedCounts) -> Option<String> {
        let (counts, limits) = (store.parked_counts(), self.parking.limits);
        let exceeded = [
            (
                counts.keys + more.keys,
                limits.keys,
                "keys",
                "state.parked_keys_max",
            ),
            (
                counts.events + more.events,
                limits.events,
                "events",
                "state.parked_events_max",
            ),
            (
                counts.bytes + more.bytes,
                limits.bytes,
                "bytes",
                "state.parked_bytes_max",
            ),
        ];
        let (wanted, limit, what, setting) = exceeded
            .into_iter()
            .find(|(wanted, limit, ..)| wanted > limit)?;
        Some(format!(
            "that would be {wanted} parked {what}, and {limit} are allowed; correct the module, then `foldstream parked retry \
             {}`, or raise {setting}",
            self.parking.deployment
        ))
    }

    /// Parks a failed event, which is one step.
    pub(super) fn park(
        &mut self,
        step: &PublishedStep<'_>,
        event: &Event,
        failure: ParkedFailure,
        store: &Store,
    ) -> Result<(), Ended> {
        let key = self.parking_key(event).map_err(Ended::State)?;
        tracing::warn!(
            deployment = self.parking.deployment,
            key,
            sequence = event.sequence,
            class = failure.class,
            error = failure.message,
            "an event is parked; later events of its key wait behind it"
        );
        let writer = self.writer();
        writer.begin();
        writer.park(Parked {
            key,
            event: event.clone(),
            failure: Some(failure),
        });
        // Before the publish, which ends the step.
        self.outcomes.push(Outcome::Failed);
        self.publish(step, Some(Latest::Parked(event)), store);
        self.metrics.events_parked.inc();
        // It is no longer to come, like a skipped one.
        self.progress
            .note_left_out(std::slice::from_ref(event), step.through);
        if self.ladder.passed() {
            self.progress.note_recovered();
        }
        Ok(())
    }
}

impl Run {
    /// Separates the events of a batch that are not applied: skipped ones, and those that wait
    /// behind a parked event. Duplicates are in no part: whatever became of the first event with
    /// their id, it was not lost.
    pub(super) fn set_aside(&mut self, batch: &Batch) -> Result<Separated, Ended> {
        let found = self.applier.skips.leave_out(&batch.events);
        let (kept, skipped) =
            found.map_or((None, Vec::new()), |(kept, skipped)| (Some(kept), skipped));
        let once = self.applier.leave_out_duplicates(&batch.events, &skipped)?;
        self.set_aside_parked(batch, once.or(kept), skipped)
            .map_err(Ended::State)
    }

    /// The same among the events that are left: `kept`, or all of them.
    fn set_aside_parked(
        &mut self,
        batch: &Batch,
        kept: Option<Vec<Event>>,
        skipped: Vec<Event>,
    ) -> Result<Separated, state::Error> {
        let past = Arc::clone(self.applier.skips.past());
        // While nothing is parked, no key is looked for.
        if self.store.parked_counts().keys == 0 && past.parked.is_empty() {
            self.parking_has_room();
            return Ok(match kept {
                Some(kept) => Separated::Some(
                    kept,
                    LeftOut {
                        skipped,
                        queued: Vec::new(),
                    },
                ),
                None => Separated::None,
            });
        }
        let all = kept.as_deref().unwrap_or(&batch.events);
        let (mut applied, mut queued) = (Vec::new(), Vec::new());
        for event in all {
            // It does nothing here, and whatever is parked under its key is none of its business.
            if self.applier.is_of_another(event) {
                applied.push(event.clone());
                continue;
            }
            let key = self.applier.parking_key(event)?;
            // Up to the position of the state that this one should equal, exactly what it parked.
            let waits = if event.sequence <= past.position {
                past.parked.contains(&event.sequence)
            } else {
                self.store.is_parked(&key)
            };
            if waits {
                queued.push(Parked {
                    key,
                    event: event.clone(),
                    failure: None,
                });
            } else {
                applied.push(event.clone());
            }
        }
        // Bytes of the queue only: the failing event was counted when it was parked.
        let bytes = queued.iter().map(|parked| parked.event.size() as u64).sum();
        let more = ParkedCounts {
            keys: 0,
            events: queued.len() as u64,
            bytes,
        };
        // A fold that repeats another state is bound by what that one parked.
        let limit = if queued.is_empty() || past.position > 0 {
            None
        } else {
            self.applier.parking_limit(&self.store, more)
        };
        if let Some(limit) = limit {
            let first = queued[0].event.sequence;
            let message =
                format!("event {first} has to wait behind a parked event of its key, and {limit}");
            self.applier.progress.note_waiting("parked", &message);
            self.is_parking_full = true;
            return Ok(Separated::Full);
        }
        self.parking_has_room();
        Ok(Separated::Some(applied, LeftOut { skipped, queued }))
    }

    /// Reports that no limit keeps it from parking any more, if one did.
    fn parking_has_room(&mut self) {
        if std::mem::take(&mut self.is_parking_full) {
            self.applier.progress.note_recovered();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parking_ends_if_half_of_the_last_events_failed() {
        let mut outcomes = Outcomes::default();
        let mut parked = 0;
        while outcomes.allow_another() {
            outcomes.push(Outcome::Failed);
            parked += 1;
        }
        assert_eq!(parked, OUTCOMES_FAILED - 1, "nothing else was applied");
        outcomes.applied(1_000);
        let mut parked = 0;
        while outcomes.allow_another() {
            outcomes.push(Outcome::Failed);
            parked += 1;
        }
        assert_eq!(parked, OUTCOMES / 2);
        outcomes.applied(1_000);
        for _ in 0..1_000 {
            outcomes.applied(2);
            assert!(outcomes.allow_another(), "a third of the events fails");
            outcomes.push(Outcome::Failed);
        }
    }
}
