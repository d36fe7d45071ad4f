//! One lane: an instance, and the branch of the writer through which it reads and writes.

use tokio::sync::watch;

use super::MakeLane;
use crate::event::Event;
use crate::pipeline::Fold;
use crate::state::Writer;

/// What became of a lane's part of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has no part.
    Idle,
    /// It applied its part.
    Applied,
    /// An event failed, or there was no instance.
    Failed,
}

/// A lane.
pub(super) struct Lane {
    /// None before the first event, and after the notes of its branch were renewed.
    fold: Option<Box<dyn Fold>>,
    /// Present except during a call.
    writer: Option<Writer>,
    outcome: Outcome,
}

impl Lane {
    /// A lane that writes to a branch.
    pub(super) fn new(branch: Writer) -> Self {
        Self {
            fold: None,
            writer: Some(branch),
            outcome: Outcome::Idle,
        }
    }

    /// Applies the events whose place is this lane.
    pub(super) fn apply(
        &mut self,
        events: &[Event],
        places: &[u8],
        number: usize,
        make: &MakeLane,
    ) {
        let picked: Vec<u32> = (0..)
            .zip(places)
            .filter(|(_, place)| usize::from(**place) == number)
            .map(|(index, _)| index)
            .collect();
        self.outcome = if picked.is_empty() {
            Outcome::Idle
        } else {
            self.apply_picked(events, &picked, make)
        };
    }

    fn apply_picked(&mut self, events: &[Event], picked: &[u32], make: &MakeLane) -> Outcome {
        let fold = match &mut self.fold {
            Some(fold) => fold,
            // What is wrong shows when the batch is folded serially.
            None => match make() {
                Ok(fold) => self.fold.insert(fold),
                Err(_) => return Outcome::Failed,
            },
        };
        let writer = self.writer.take().expect("it comes back from every call");
        let (writer, result) = fold.apply_picked(events, picked, writer);
        self.writer = Some(writer);
        match result {
            Ok(()) => Outcome::Applied,
            Err(_) => Outcome::Failed,
        }
    }

    /// What became of its part of the last batch.
    pub(super) fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Its branch.
    pub(super) fn writer(&self) -> &Writer {
        self.writer.as_ref().expect("it comes back from every call")
    }

    /// The same, to change it.
    pub(super) fn writer_mut(&mut self) -> &mut Writer {
        self.writer.as_mut().expect("it comes back from every call")
    }

    /// Drops the instance with all that it may remember, and the notes of that.
    pub(super) fn renew(&mut self) {
        self.fold = None;
        self.writer_mut().renew_branch();
    }

    /// Memory of its instance, in bytes.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.fold.as_ref().map_or(0, |fold| fold.memory_bytes())
    }

    /// Changes whenever another fold needs an instance.
    pub(super) fn wanted(&self) -> Option<watch::Receiver<()>> {
        self.fold.as_ref()?.wanted()
    }
}
