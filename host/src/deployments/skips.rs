//! The events that a deployment skips or has parked: what a fold must repeat, and what is shown.

use std::collections::BTreeMap;

use super::Error;
use crate::deployment::Deployment;
use crate::overview::{self, SkipState};
use crate::state;
use crate::state::exceptions::{Exception, Skip, Skips};

/// Decisions that the deployment itself shows; a separate list has all of them.
const SHOWN_MAX: usize = 20;
/// Sequences that a message lists.
const NAMED_MAX: usize = 10;

/// Text to add to a message about a state that skipped events.
pub(crate) fn skipped_remark(skipped: &[u64]) -> String {
    if skipped.is_empty() {
        return String::new();
    }
    let named: Vec<String> = skipped.iter().take(NAMED_MAX).map(u64::to_string).collect();
    let more = if skipped.len() > NAMED_MAX {
        ", …"
    } else {
        ""
    };
    format!(
        "; without {} skipped: {}{more}",
        events(skipped.len()),
        named.join(", ")
    )
}

fn events(count: usize) -> String {
    if count == 1 {
        "1 event that was".to_owned()
    } else {
        format!("{count} events that were")
    }
}

/// Text to add to a message about a state with parked events.
pub(crate) fn parked_remark(parked: &overview::Parked) -> String {
    match parked.events {
        0 => String::new(),
        1 => "; without 1 event that is parked".to_owned(),
        events => format!("; without {events} events that are parked"),
    }
}

impl Deployment {
    /// The events that a fold must skip to reproduce the active state, and what it did with parked
    /// ones.
    pub(crate) fn skips_as_folded(&self) -> Result<Skips, Error> {
        // Skips and past are read from one state; what it did later is not yet to be repeated.
        let store = self.open_store()?;
        let snapshot = store.snapshot();
        let skips = self
            .record()
            .skips()
            .as_folded(&snapshot.exceptions(), snapshot.position());
        Ok(skips.with_past(store.past()?))
    }

    /// The skipped events, by rising sequence.
    pub fn skips(&self) -> Vec<overview::Skip> {
        let store = self.active().store();
        let position = store.as_ref().map_or(0, state::Store::position);
        // What has been done comes from the state, what is decided from the record.
        let exceptions = store.map(|store| store.exceptions()).unwrap_or_default();
        listed(&self.record().skips, &exceptions, position)
    }

    /// The last of them.
    pub(crate) fn latest_skips(&self) -> Vec<overview::Skip> {
        let mut skips = self.skips();
        skips.drain(..skips.len().saturating_sub(SHOWN_MAX));
        skips
    }
}

fn listed(
    decided: &[Skip],
    exceptions: &BTreeMap<u64, Exception>,
    position: u64,
) -> Vec<overview::Skip> {
    let mut listed: BTreeMap<u64, overview::Skip> = BTreeMap::new();
    // A decision that is not in the record any more, but was carried out, was withdrawn since.
    let mut behind: BTreeMap<u64, u64> = BTreeMap::new();
    for (sequence, exception) in exceptions {
        match exception {
            Exception::Skipped(skipped) => {
                let done = Skip::carried_out(*sequence, skipped);
                listed.insert(*sequence, shown(&done, SkipState::Withdrawn));
            }
            Exception::DroppedBehind { first, .. } => *behind.entry(*first).or_default() += 1,
        }
    }
    for skip in decided {
        let state = match (
            listed.contains_key(&skip.sequence),
            skip.sequence > position,
        ) {
            (true, _) => SkipState::Skipped,
            (false, true) => SkipState::Ahead,
            (false, false) => SkipState::Folded,
        };
        listed.insert(skip.sequence, shown(skip, state));
    }
    // What a state has left out counts, whatever was decided since.
    for (first, later) in behind {
        if let Some(skip) = listed.get_mut(&first) {
            skip.later = skip.later.max(later);
        }
    }
    listed.into_values().collect()
}

fn shown(decision: &Skip, state: SkipState) -> overview::Skip {
    overview::Skip {
        later: decision.behind.len() as u64,
        decision: decision.clone(),
        state,
    }
}
