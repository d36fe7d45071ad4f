//! The writes of a batch: one for each key, in the order in which the keys came.

use super::Key;
use super::places::{Part, Sought, hash};
use crate::event::Payload;

/// Entries for which a list keeps its memory; a larger one is released.
const ENTRIES_KEPT: usize = 65_536;

/// A key with its new value, or none if it is deleted.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) hash: u32,
    pub(super) key: Key,
    pub(super) value: Option<Payload>,
}

impl Write {
    pub(super) fn new(key: Key, value: Option<Payload>) -> Self {
        Self {
            hash: hash(&key),
            key,
            value,
        }
    }

    pub(super) fn sought(&self) -> Sought<'_> {
        Sought {
            key: &self.key,
            hash: self.hash,
        }
    }
}

/// The writes of a batch.
#[derive(Debug, Default)]
pub(super) struct Writes {
    places: Part,
    list: Vec<Write>,
}

impl Writes {
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What is written under a key.
    pub(super) fn get(&self, sought: Sought<'_>) -> Option<&Option<Payload>> {
        let place = self.find(sought)?;
        Some(&self.list[place as usize].value)
    }

    fn find(&self, sought: Sought<'_>) -> Option<u32> {
        self.places.find(sought.hash, |place| {
            *self.list[place as usize].key == *sought.key
        })
    }

    /// Sets what is written under a key; returns what was to be written before, if the key is not
    /// new.
    pub(super) fn put(
        &mut self,
        sought: Sought<'_>,
        value: Option<Payload>,
    ) -> Option<Option<Payload>> {
        if let Some(place) = self.find(sought) {
            return Some(std::mem::replace(
                &mut self.list[place as usize].value,
                value,
            ));
        }
        self.places.add(sought.hash, self.list.len() as u32);
        self.list.push(Write {
            hash: sought.hash,
            key: Key::from(sought.key),
            value,
        });
        None
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Write> {
        self.list.iter()
    }

    /// The key that was added last.
    pub(super) fn last_key(&self) -> Option<&Key> {
        self.list.last().map(|write| &write.key)
    }

    /// Takes over the writes of others, whose keys are new here.
    pub(super) fn append(&mut self, others: &mut Self) {
        self.list.reserve(others.list.len());
        for write in others.list.drain(..) {
            debug_assert!(self.find(write.sought()).is_none(), "its keys are new");
            self.places.add(write.hash, self.list.len() as u32);
            self.list.push(write);
        }
        others.clear();
    }

    /// Takes all of them.
    pub(super) fn take(&mut self) -> Vec<Write> {
        // The next batch of a replay has about as many.
        let next = Vec::with_capacity(self.list.len().min(ENTRIES_KEPT));
        let taken = std::mem::replace(&mut self.list, next);
        self.clear();
        taken
    }

    pub(super) fn clear(&mut self) {
        // One large batch would leave its memory for ever.
        if self.list.len() > ENTRIES_KEPT {
            *self = Self::default();
        } else {
            self.list.clear();
            self.places.clear();
        }
    }
}
