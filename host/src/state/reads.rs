//! Records what a fold reads and writes, to find out whether it depended on entries of others.

use std::collections::{BTreeSet, HashSet};

use parking_lot::Mutex;

use super::{Key, Selection};

/// Most entries recorded of each kind: read keys, written keys, scans.
const NOTED_MAX: usize = 100_000;

/// The recorded keys and scans. The writers that record them share it.
#[derive(Debug, Default)]
pub struct Reads(Mutex<Noted>);

/// The record.
#[derive(Clone, Debug, Default)]
pub struct Noted {
    /// Keys that were looked up, whether or not they existed.
    pub keys: BTreeSet<Key>,
    /// Keys that were written or deleted.
    pub written: BTreeSet<Key>,
    /// What was scanned.
    pub scans: HashSet<Selection>,
    /// There was more than could be recorded.
    pub is_cut: bool,
}

impl Reads {
    pub(super) fn key(&self, key: &str) {
        // A limit that is hit is remembered: a record with gaps proves nothing.
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

    /// Everything recorded so far.
    pub fn noted(&self) -> Noted {
        self.0.lock().clone()
    }
}

/// Records a key; returns whether there was room.
fn insert(keys: &mut BTreeSet<Key>, key: &str) -> bool {
    // Known keys cost nothing, even if there is no room for others.
    keys.contains(key) || (keys.len() < NOTED_MAX && keys.insert(Key::from(key)))
}
