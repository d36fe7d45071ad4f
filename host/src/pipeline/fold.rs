//! Who folds events into state.

use tokio::sync::watch;

use crate::event::Event;
use crate::module::{self, ApplyError};
use crate::state::Writer;

/// Whoever folds events into state. A module's instance does; so does the benchmark's native baseline.
pub trait Fold: Send {
    /// Applies events to the state behind `writer`, and gives the writer back. After an error it is not used again.
    fn apply(&mut self, events: &[Event], writer: Writer) -> (Writer, Result<(), ApplyError>);

    /// Memory that it holds, in bytes.
    fn memory_bytes(&self) -> u64 {
        0
    }

    /// Changes whenever another fold lacks what this one holds while it has nothing to do.
    fn wanted(&self) -> Option<watch::Receiver<u64>> {
        None
    }
}

impl Fold for module::Instance {
    fn apply(&mut self, events: &[Event], writer: Writer) -> (Writer, Result<(), ApplyError>) {
        module::Instance::apply(self, events, writer)
    }

    fn memory_bytes(&self) -> u64 {
        module::Instance::memory_bytes(self)
    }

    fn wanted(&self) -> Option<watch::Receiver<u64>> {
        Some(module::Instance::wanted(self))
    }
}

/// Makes a fold, at the start and after each failure.
pub type MakeFold = Box<dyn Fn() -> Result<Box<dyn Fold>, module::Error> + Send + Sync>;
