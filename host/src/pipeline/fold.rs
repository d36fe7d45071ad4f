//! The interface to code that folds events into state.

use tokio::sync::watch;

use crate::event::Event;
use crate::module::{self, ApplyError};
use crate::state::Writer;

/// Folds events into state. A module's instance implements it, and so does the benchmark's native
/// baseline.
pub trait Fold: Send {
    /// Applies events to the state behind `writer`, and returns the writer. After an error the fold
    /// is not used again.
    fn apply(&mut self, events: &[Event], writer: Writer) -> (Writer, Result<(), ApplyError>);

    /// Applies the events with these indices, in order.
    fn apply_picked(
        &mut self,
        events: &[Event],
        picked: &[u32],
        writer: Writer,
    ) -> (Writer, Result<(), ApplyError>) {
        let picked: Vec<Event> = picked
            .iter()
            .map(|index| events[*index as usize].clone())
            .collect();
        self.apply(&picked, writer)
    }

    /// Memory that it holds, in bytes.
    fn memory_bytes(&self) -> u64 {
        0
    }

    /// Changes whenever another fold needs the instance that this one holds while it is idle.
    fn wanted(&self) -> Option<watch::Receiver<()>> {
        None
    }
}

impl Fold for module::Instance {
    fn apply(&mut self, events: &[Event], writer: Writer) -> (Writer, Result<(), ApplyError>) {
        module::Instance::apply(self, events, writer)
    }

    fn apply_picked(
        &mut self,
        events: &[Event],
        picked: &[u32],
        writer: Writer,
    ) -> (Writer, Result<(), ApplyError>) {
        module::Instance::apply_picked(self, events, picked, writer)
    }

    fn memory_bytes(&self) -> u64 {
        module::Instance::memory_bytes(self)
    }

    fn wanted(&self) -> Option<watch::Receiver<()>> {
        Some(module::Instance::wanted(self))
    }
}

/// Creates a fold, at the start and after each failure.
pub type MakeFold = Box<dyn Fn() -> Result<Box<dyn Fold>, module::Error> + Send + Sync>;
