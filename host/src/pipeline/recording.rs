//! Applies events for the record: what they read and do, without keeping anything.

use std::sync::Arc;

use super::applier::{Applier, Fault};
use super::ladder::Attempt;
use crate::bundle::{Bundle, Failed, Fate, Origin};
use crate::event::Event;
use crate::module::ApplyError;
use crate::room::Use;
use crate::state::{self, Replaced, Store, Trace, Traced, Writer};

/// What came of applying events without keeping anything.
pub(super) struct TriedOut {
    pub(super) result: Result<(), Fault>,
    pub(super) traced: Traced,
    pub(super) changes: Vec<Replaced>,
    pub(super) effects: u64,
}

/// A fault in words, and the index of the event that the guest named.
pub(super) fn describe_fault(fault: &Fault) -> (String, Option<usize>) {
    match fault {
        Fault::NoInstance(error) => (error.to_string(), None),
        Fault::Call { error, .. } => match error {
            ApplyError::Retry { index, .. }
            | ApplyError::Rejected { index, .. }
            | ApplyError::Invalid { index, .. } => (error.to_string(), Some(*index)),
            _ => (error.to_string(), None),
        },
    }
}

impl Applier {
    /// The writer of the state.
    pub(super) fn writer(&mut self) -> &mut Writer {
        self.writer
            .as_mut()
            .expect("the writer comes back from every call")
    }

    /// Applies events on a fresh instance, records what they read and do, and drops their writes.
    pub(super) fn try_out(&mut self, events: &[Event]) -> Result<TriedOut, state::Error> {
        let trace = Arc::new(Trace::default());
        // A fresh one, so that memory of earlier events is not part of the record.
        self.fold = None;
        self.writer().trace(Some(Arc::clone(&trace)));
        let result = self.apply(events);
        // It has applied what is dropped now.
        self.fold = None;
        let writer = self.writer();
        // Before anything else is applied with this writer.
        writer.trace(None);
        // Read before the discard, which forgets them.
        let changes = writer.changes();
        let effects = writer.effects_count() as u64;
        writer.discard();
        Ok(TriedOut {
            result: result.map(drop),
            traced: trace.traced(),
            changes: changes?,
            effects,
        })
    }

    /// Records what the failing event reads, and keeps a bundle if it is a first error. Applies the
    /// event once more for that, alone and on a fresh instance.
    pub(super) fn record_failure(
        &mut self,
        event: Option<&Event>,
        attempt: Attempt<'_>,
        fate: Fate,
        store: &Store,
    ) -> Traced {
        let keeper = self.parking.keeper.clone();
        let keeper = keeper.filter(|keeper| keeper.wants(&self.parking.module, fate));
        // Nobody would see the record, and to try the event once more costs a call.
        let Some(event) = event.filter(|_| fate == Fate::Parked || keeper.is_some()) else {
            return Traced::default();
        };
        let tried = match self.try_out(std::slice::from_ref(event)) {
            Ok(tried) => tried,
            Err(error) => {
                tracing::warn!(
                    deployment = self.parking.deployment,
                    %error,
                    "what a failed event read could not be recorded"
                );
                return Traced::default();
            }
        };
        if let Some(keeper) = keeper {
            let failure = Failed {
                sequence: event.sequence,
                kind: attempt.kind.to_owned(),
                class: attempt.class.map(|class| class.name().to_owned()),
                message: attempt.message.to_owned(),
                first_at: Some(self.progress.first_failed_at(attempt.kind, event.sequence)),
            };
            let events = std::slice::from_ref(event);
            let mut bundle = self.bundle(Some(failure), events, &tried.traced, store);
            if tried.result.is_ok() {
                bundle.notes.push(
                    "the event did not fail again when it was applied alone by a new instance"
                        .to_owned(),
                );
            }
            let disk = self.settings.disk.as_ref();
            let has_room =
                |bytes| disk.is_none_or(|(room, _)| room.check(Use::Grow, bytes).is_ok());
            if let Some(path) = keeper.keep(&bundle, fate, has_room) {
                tracing::warn!(
                    deployment = self.parking.deployment,
                    sequence = event.sequence,
                    path = %path.display(),
                    "a failure bundle was written; `foldstream parked export {}` fetches the last \
                     one, and `foldstream replay` reproduces its failure",
                    self.parking.deployment
                );
            }
        }
        tried.traced
    }

    /// A bundle without its module.
    pub(super) fn bundle(
        &mut self,
        failure: Option<Failed>,
        events: &[Event],
        traced: &Traced,
        store: &Store,
    ) -> Bundle {
        let role = self.writer().role();
        let owner = role.owner();
        let grants = owner.map(|owner| owner.grants.texts());
        let logs = owner.map(|owner| owner.logs.as_ref().clone());
        let origin = Origin {
            deployment: &self.parking.deployment,
            generation: self.parking.generation,
            checks_events_after: self.parking.checks_events_after,
            position: store.position(),
            module: &self.parking.module,
            grants,
            logs: logs.unwrap_or_default(),
        };
        Bundle::new(origin, failure, events, traced)
    }
}
