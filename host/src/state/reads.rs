//! What a fold read and wrote, noted for whoever has to know whether it depended on entries of others.

use std::collections::{BTreeSet, HashSet};

use parking_lot::Mutex;

use super::{Key, Selection};

/// Most keys that were read, keys that were written, and scans that are noted of each.
const NOTED_MAX: usize = 100_000;

/// The keys that were looked up and the scans that were made. Shared by the writers that note them.
#[derive(Debug, Default)]
pub struct Reads(Mutex<Noted>);

/// What was noted.
#[derive(Clone, Debug, Default)]
pub struct Noted {
    /// Keys that were looked up, whether or not there was an entry.
    pub keys: BTreeSet<Key>,
    /// Keys that were written or deleted.
    pub written: BTreeSet<Key>,
    /// What was scanned.
    pub scans: HashSet<Selection>,
    /// There was more than could be noted.
    pub is_cut: bool,
}

impl Reads {
    pub(super) fn key(&self, key: &str) {
        let noted = &mut *self.0.lock();
        noted.is_cut |= !insert(&mut noted.keys, key);
    }

    pub(super) fn write(&self, key: &str) {
        let noted = &mut *self.0.lock();
        noted.is_cut |= !insert(&mut noted.written, key);
    }

    pub(super) fn scan(&self, selection: &Selection) {
        let mut noted = self.0.lock();
        if noted.scans.len() >= NOTED_MAX {
            noted.is_cut = true;
            return;
        }
        noted.scans.insert(selection.clone());
    }

    /// All that was noted so far.
    pub fn noted(&self) -> Noted {
        self.0.lock().clone()
    }
}

/// Notes a key; whether it is noted then.
fn insert(keys: &mut BTreeSet<Key>, key: &str) -> bool {
    keys.contains(key) || (keys.len() < NOTED_MAX && keys.insert(Key::from(key)))
}
