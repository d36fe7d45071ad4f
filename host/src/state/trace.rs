//! Records what a fold reads of a state and what it does with it, so that a failure can be
//! reproduced without the state.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Direction, Key, Page, Scan, Selection};
use crate::effects::Row;
use crate::event::Payload;
use crate::timers::Timer;

/// Most keys and values of a record, in bytes.
const ENTRIES_BYTES_MAX: usize = 8 << 20;
/// Most calls and scans of a record.
const CALLS_MAX: usize = 10_000;

/// A record that is being made. The writer fills it.
#[derive(Debug, Default)]
pub struct Trace(Mutex<Traced>);

/// What a fold read and did.
#[derive(Clone, Debug, Default)]
pub struct Traced {
    /// The entries that it read, as they were before; none if there was none.
    pub entries: BTreeMap<Key, Option<Payload>>,
    /// What it scanned.
    pub scans: Vec<Scanned>,
    /// The timers that it looked up, as they were before; none if none was pending.
    pub timers: BTreeMap<String, Option<Timer>>,
    /// The timers that it set or removed.
    pub changed_timers: BTreeSet<String>,
    /// Its calls, in order.
    pub calls: Vec<Call>,
    /// There was more than could be recorded.
    pub is_cut: bool,
    bytes: usize,
}

/// A scan, and how far its page went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scanned {
    /// Keys with this prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Keys from this one on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// Keys before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// It began behind this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// From the largest key down.
    #[serde(default)]
    pub backwards: bool,
    /// The last key that it returned, if there were more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<String>,
}

impl Scanned {
    fn of(scan: &Scan, page: &Page) -> Self {
        let (prefix, start, end) = match &scan.selection {
            Selection::Prefix(prefix) => (Some(prefix.clone()), None, None),
            Selection::Range { start, end } => (None, start.clone(), end.clone()),
        };
        let last = page.entries.last().map(|(key, _)| key.to_string());
        Self {
            prefix,
            start,
            end,
            after: scan.after.clone(),
            backwards: scan.direction == Direction::Backwards,
            // An empty page with more behind it covers nothing.
            through: page
                .more
                .then(|| last.or_else(|| scan.after.clone()))
                .flatten(),
        }
    }

    /// Whether the scan saw everything that there was about a key.
    pub fn covers(&self, key: &str) -> bool {
        let is_selected = self
            .prefix
            .as_ref()
            .is_none_or(|prefix| key.starts_with(prefix.as_str()))
            && self
                .start
                .as_ref()
                .is_none_or(|start| key >= start.as_str())
            && self.end.as_ref().is_none_or(|end| key < end.as_str());
        let is_behind = |bound: &str| {
            if self.backwards {
                key < bound
            } else {
                key > bound
            }
        };
        is_selected
            // The scan says something about keys between its begin and its end.
            && self.after.as_ref().is_none_or(|after| is_behind(after))
            && self
                .through
                .as_ref()
                .is_none_or(|through| !is_behind(through))
    }

    /// Whether another scan of the same keys began at or before the same place, and went as far.
    fn includes(&self, other: &Self) -> bool {
        let is_of_same_keys = (&self.prefix, &self.start, &self.end, self.backwards)
            == (&other.prefix, &other.start, &other.end, other.backwards);
        let is_behind = |one: &str, other: &str| {
            if self.backwards {
                one < other
            } else {
                one > other
            }
        };
        let begins = match (&self.after, &other.after) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(ours), Some(theirs)) => !is_behind(ours, theirs),
        };
        let ends = match (&self.through, &other.through) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(ours), Some(theirs)) => !is_behind(theirs, ours),
        };
        is_of_same_keys && begins && ends
    }
}

/// A call of a fold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub enum Call {
    /// It read an entry.
    Get {
        /// The key.
        key: String,
        /// Size of the value, in bytes; none if there was none.
        bytes: Option<usize>,
    },
    /// It wrote an entry.
    Put {
        /// The key.
        key: String,
        /// Size of the value, in bytes.
        bytes: usize,
    },
    /// It removed an entry.
    Delete {
        /// The key.
        key: String,
    },
    /// It read a page of entries.
    Scan {
        /// Which keys.
        keys: Scanned,
        /// How many it got.
        entries: usize,
        /// Whether there were more.
        more: bool,
    },
    /// It published a message.
    Publish {
        /// Its subject.
        subject: String,
        /// Its type.
        #[serde(rename = "type")]
        kind: String,
        /// Size of its data, in bytes.
        bytes: usize,
    },
}

impl Traced {
    /// A record that was kept elsewhere.
    pub fn new(
        entries: BTreeMap<Key, Option<Payload>>,
        scans: Vec<Scanned>,
        timers: BTreeMap<String, Option<Timer>>,
    ) -> Self {
        Self {
            entries,
            scans,
            timers,
            ..Self::default()
        }
    }

    fn call(&mut self, call: Call) {
        if self.calls.len() < CALLS_MAX {
            self.calls.push(call);
        } else {
            self.is_cut = true;
        }
    }

    fn entry(&mut self, key: &str, value: Option<&Payload>) {
        // The first value is the one from before the batch.
        if self.entries.contains_key(key) {
            return;
        }
        let bytes = key.len() + value.map_or(0, Payload::len);
        // Left out as a whole: half a value would replay something else.
        if self.bytes + bytes > ENTRIES_BYTES_MAX {
            self.is_cut = true;
            return;
        }
        self.bytes += bytes;
        self.entries.insert(Key::from(key), value.cloned());
    }

    /// Whether the record says what there was, or was not, under a key.
    pub fn knows(&self, key: &str) -> bool {
        self.entries.contains_key(key) || self.scans.iter().any(|scan| scan.covers(key))
    }

    /// Whether the record says everything that a scan saw.
    pub fn knows_scan(&self, scan: &Scanned) -> bool {
        self.scans.iter().any(|known| known.includes(scan))
    }

    /// Adds another record of the same state.
    pub fn extend(&mut self, other: Self) {
        for (key, value) in &other.entries {
            self.entry(key, value.as_ref());
        }
        self.scans.extend(other.scans);
        for (name, timer) in other.timers {
            self.timers.entry(name).or_insert(timer);
        }
        self.changed_timers.extend(other.changed_timers);
        self.is_cut |= other.is_cut;
        other.calls.into_iter().for_each(|call| self.call(call));
    }
}

/// Where the value of a key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The batch wrote it.
    Batch,
    /// It was there before the batch, or was not there.
    BeforeBatch,
}

impl Trace {
    /// A key was looked up, and found in an entry of this origin.
    pub(super) fn get(&self, key: &str, value: Option<&Payload>, origin: Origin) {
        let mut traced = self.0.lock();
        // What the batch wrote itself comes from its events, and is no input.
        if origin == Origin::BeforeBatch {
            traced.entry(key, value);
        }
        traced.call(Call::Get {
            key: key.to_owned(),
            bytes: value.map(Payload::len),
        });
    }

    pub(super) fn put(&self, key: &str, value: Option<&Payload>) {
        let key = key.to_owned();
        self.0.lock().call(match value {
            Some(value) => Call::Put {
                key,
                bytes: value.len(),
            },
            None => Call::Delete { key },
        });
    }

    /// A page was read; `is_of_batch` says which of its entries the batch wrote.
    pub(super) fn scan(&self, scan: &Scan, page: &Page, is_of_batch: impl Fn(&Key) -> bool) {
        let mut traced = self.0.lock();
        for (key, value) in page.entries.iter().filter(|(key, _)| !is_of_batch(key)) {
            traced.entry(key, Some(value));
        }
        let keys = Scanned::of(scan, page);
        if traced.scans.len() < CALLS_MAX {
            traced.scans.push(keys.clone());
        }
        traced.call(Call::Scan {
            keys,
            entries: page.entries.len(),
            more: page.more,
        });
    }

    /// A timer was looked up that the batch has not changed.
    pub(super) fn timer(&self, name: &str, timer: Option<&Timer>) {
        let mut traced = self.0.lock();
        if traced.timers.len() < CALLS_MAX {
            traced.timers.insert(name.to_owned(), timer.cloned());
        } else {
            traced.is_cut = true;
        }
    }

    /// A timer was set or removed.
    pub(super) fn change_timer(&self, name: &str) {
        self.0.lock().changed_timers.insert(name.to_owned());
    }

    pub(super) fn emit(&self, row: &Row) {
        self.0.lock().call(Call::Publish {
            subject: row.effect.subject.clone(),
            kind: row.effect.kind.clone(),
            bytes: row.effect.data.len(),
        });
    }

    /// The record so far.
    pub fn traced(&self) -> Traced {
        self.0.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanned(after: Option<&str>, through: Option<&str>) -> Scanned {
        Scanned {
            prefix: Some("a/".to_owned()),
            start: None,
            end: None,
            after: after.map(str::to_owned),
            backwards: false,
            through: through.map(str::to_owned),
        }
    }

    #[test]
    fn a_scan_covers_the_keys_that_it_passed_and_no_others() {
        let page = scanned(Some("a/2"), Some("a/5"));
        let covered = |scan: &Scanned| -> Vec<u32> {
            (0..10)
                .filter(|number| scan.covers(&format!("a/{number}")))
                .collect()
        };
        assert_eq!(covered(&page), [3, 4, 5]);
        let backwards = Scanned {
            backwards: true,
            ..scanned(Some("a/5"), Some("a/2"))
        };
        assert_eq!(covered(&backwards), [2, 3, 4]);
        assert_eq!(covered(&scanned(Some("a/7"), None)), [8, 9]);
        assert!(!page.covers("b/3"));
        assert!(scanned(None, None).includes(&page));
        assert!(page.includes(&scanned(Some("a/3"), Some("a/4"))));
        assert!(!page.includes(&scanned(Some("a/3"), None)));
        assert!(!page.includes(&scanned(None, Some("a/4"))));
    }
}
