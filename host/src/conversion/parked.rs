//! Parked events: lists of them, which ones a request means, and what a change did.

use crate::api;
use crate::deployments::DryRun;
use crate::event::Payload;
use crate::exceptions::{Extent, ParkedChange, ParkedList, ParkedSelection};
use crate::pipeline::ParkedOutcome;
use crate::state::catalogue::FailureEvents;
use crate::state::{Parked, ParkedFailure, ParkedKey, ReadEntry, Replaced};

impl From<api::ParkedSelection> for ParkedSelection {
    fn from(selection: api::ParkedSelection) -> Self {
        let api::ParkedSelection {
            keys,
            all,
            class,
            reason,
            whole_keys,
            // A request asks for it, and not a selection.
            dry_run: _,
        } = selection;
        let extent = if whole_keys {
            Extent::WholeKey
        } else {
            Extent::FirstEvent
        };
        Self {
            keys,
            all,
            class,
            reason,
            extent,
        }
    }
}

impl From<ParkedList> for api::ParkedList {
    fn from(list: ParkedList) -> Self {
        let ParkedList {
            policy,
            counts,
            keys,
            next,
        } = list;
        let keys = keys.iter().map(|(key, parked)| key_shown(key, parked));
        Self {
            on_failure: policy.on_failure,
            failure_events: policy.events.as_ref().map(FailureEvents::place),
            counts: counts.into(),
            keys: keys.collect(),
            next,
        }
    }
}

impl From<&Parked> for api::ParkedEvent {
    fn from(parked: &Parked) -> Self {
        let event = &parked.event;
        let time = jiff::Timestamp::from_nanosecond(i128::from(event.time_ns))
            .unwrap_or(jiff::Timestamp::MAX);
        Self {
            sequence: event.sequence,
            subject: event.subject.to_string(),
            kind: event.kind.to_string(),
            time: time.to_string(),
            data: event.data.to_raw().into(),
            digest: parked.digest(),
            failure: parked.failure.as_ref().map(failure_shown),
        }
    }
}

impl From<ParkedChange> for api::ParkedOutcome {
    fn from(change: ParkedChange) -> Self {
        let ParkedChange {
            outcome,
            left,
            dry_run,
            has_resumed,
        } = change;
        let ParkedOutcome {
            events,
            keys,
            failed,
            unfinished,
            changes,
            more_changes,
            effects,
            // For a bundle.
            recorded: _,
        } = outcome;
        let failed = failed.into_iter();
        Self {
            events,
            keys,
            failed: failed
                .map(|(key, error)| api::ParkedAgain { key, error })
                .collect(),
            unfinished,
            left: left.into(),
            dry_run: dry_run == DryRun::Yes,
            changes: changes.iter().map(change_shown).collect(),
            more_changes,
            messages: effects,
            resumed: has_resumed,
        }
    }
}

fn failure_shown(failure: &ParkedFailure) -> api::ParkedFailure {
    let ParkedFailure {
        kind,
        class,
        message,
        attempts,
        module,
        first_at,
        last_at,
        reads,
        reads_are_cut,
        number: _,
    } = failure.clone();
    let reads = reads.into_iter();
    api::ParkedFailure {
        kind,
        class,
        message,
        attempts,
        module,
        first_at,
        last_at,
        reads: reads
            .map(|ReadEntry { key, value }| api::ParkedRead { key, value })
            .collect(),
        reads_are_cut,
    }
}

fn key_shown(key: &str, parked: &ParkedKey) -> api::ParkedKey {
    api::ParkedKey {
        key: key.to_owned(),
        events: parked.events(),
        bytes: parked.bytes(),
        first_sequence: parked.sequences().next().unwrap_or(0),
        failure: parked.failure.as_ref().map(failure_shown),
    }
}

fn change_shown((key, before, after): &Replaced) -> api::ParkedChange {
    let shown = |value: &Option<Payload>| value.as_ref().map(|value| value.to_raw().into());
    api::ParkedChange {
        key: key.to_string(),
        before: shown(before),
        after: shown(after),
    }
}
