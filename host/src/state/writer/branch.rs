//! Branches of a writer: each lane of a fold writes its part of a batch to one, and the writer
//! publishes all parts as one step.
//!
//! A branch notes what was read and written through it, so that the fold sees whether lanes touched
//! each other's entries. It never publishes.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use super::super::writes::Writes;
use super::super::{Error, Key};
use super::Writer;
use super::touched::Touched;

/// The notes of a branch.
pub(crate) struct Notes<'a> {
    touched: &'a Touched,
    batch: &'a Writes,
}

impl Notes<'_> {
    /// A key that another branch writes in this batch, and that was read, scanned or written through
    /// this one.
    pub(crate) fn met_by(&self, other: &Self) -> Option<Key> {
        let mut written = other.touched.written().iter().zip(other.batch.iter());
        written
            .find(|(fingerprint, write)| self.touched.has(**fingerprint, &write.key))
            .map(|(_, write)| Key::clone(&write.key))
    }

    /// Whether more was touched than could be noted, so that the notes prove nothing.
    pub(crate) fn is_cut(&self) -> bool {
        self.touched.is_cut()
    }
}

impl Writer {
    /// Whether the batch may be written in branches: so far it is empty, and nobody records what is
    /// read or keeps more of it than entries.
    pub(crate) fn can_branch(&self) -> bool {
        self.batch.is_empty()
            && self.reads.is_none()
            && self.trace.is_none()
            && self.release.is_none()
            && self.parked.is_empty()
            && self.role.owner().is_none()
    }

    /// A writer for a part of each batch.
    pub(crate) fn branch(&self) -> Self {
        let mut branch = Self::new(Arc::clone(&self.inner));
        branch.state_bytes_max = self.state_bytes_max;
        branch.touched = Some(RefCell::new(Touched::new(&self.inner.options.memory)));
        branch
    }

    /// Prepares a branch for the batch of this writer: both see the same published state.
    pub(crate) fn begin_branch(&self, branch: &mut Self) {
        branch.view = Some(self.view());
    }

    /// What was touched through this branch since it was [renewed](Self::renew_branch), and what it
    /// writes in this batch; none if it is no branch.
    pub(crate) fn branch_notes(&mut self) -> Option<Notes<'_>> {
        Some(Notes {
            touched: self.touched.as_mut()?.get_mut(),
            batch: &self.batch,
        })
    }

    /// Whether the notes have become so large that they should be renewed.
    pub(crate) fn is_branch_large(&self) -> bool {
        self.touched
            .as_ref()
            .is_some_and(|touched| touched.borrow().is_large())
    }

    /// Forgets what was touched. Right only if what had touched it is gone as well.
    pub(crate) fn renew_branch(&mut self) {
        self.discard();
        if let Some(touched) = &mut self.touched {
            touched.get_mut().renew();
        }
    }

    /// Takes over the writes of a branch, whose keys no other branch has written.
    pub(crate) fn absorb(&mut self, branch: &mut Self) -> Result<(), Error> {
        self.batch_bytes += branch.batch_bytes;
        self.batch.append(&mut branch.batch);
        // Made before these writes, it would lack them.
        self.order = OnceLock::new();
        // First, because this writer asks for the same memory.
        branch.discard();
        self.check_memory()
    }

    /// Drops what was taken over from branches.
    pub(crate) fn drop_absorbed(&mut self) {
        self.batch.clear();
        self.order = OnceLock::new();
        self.batch_bytes = 0;
        self.memory.shrink_to(0);
    }
}
