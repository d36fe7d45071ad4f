//! Snapshots: consistent views of a state, for as long as somebody uses them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::exceptions::Exception;
use super::memtable::Found;
use super::places::Sought;
use super::scan::{self, Layer};
use super::store::{StoreState, View};
use super::{Direction, Error, Key, Page, Scan, Selection, file};
use crate::event::Payload;
use crate::position::Checkpoint;

/// A consistent, read-only view. Cloning shares it; holding one keeps old versions in memory.
#[derive(Clone, Debug)]
pub struct Snapshot {
    held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    inner: Arc<StoreState>,
    view: View,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut live = self.inner.live.lock();
        let holders = live
            .get_mut(&self.view.version)
            .expect("a snapshot registers its version");
        *holders -= 1;
        if *holders == 0 {
            live.remove(&self.view.version);
        }
    }
}

impl Snapshot {
    pub(super) fn new(inner: &Arc<StoreState>) -> Self {
        // The version is registered before the lock is released, so that no batch published in
        // between drops what this snapshot sees.
        let guard = inner.view.read();
        let view = guard.clone();
        *inner.live.lock().entry(view.version).or_insert(0) += 1;
        drop(guard);
        Self {
            held: Arc::new(Held {
                inner: Arc::clone(inner),
                view,
            }),
        }
    }

    pub(super) fn view(&self) -> &View {
        &self.held.view
    }

    /// The position that it reflects.
    pub fn position(&self) -> u64 {
        self.held.view.position()
    }

    /// Its checkpoint; none before the first batch.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.held.view.checkpoint.as_ref()
    }

    /// How many events it lacks, at most, because they were gone, which was accepted.
    pub fn missing_count(&self) -> u64 {
        self.checkpoint().map_or(0, Checkpoint::missing_in_all)
    }

    /// Time of the last event that it reflects, in nanoseconds since the Unix epoch; 0 if none.
    pub fn time_ns(&self) -> u64 {
        let checkpoint = self.held.view.checkpoint.as_ref();
        checkpoint
            .and_then(|checkpoint| checkpoint.last_event.as_ref())
            .map_or(0, |event| event.time_ns)
    }

    /// The exceptions up to its position.
    pub fn exceptions(&self) -> BTreeMap<u64, Exception> {
        self.held.inner.exceptions_through(self.position())
    }

    /// The number of exceptions.
    pub fn exceptions_count(&self) -> u64 {
        self.held.inner.exceptions_count_through(self.position())
    }

    /// Whether it skipped any of these events.
    pub fn has_skipped(&self, sequences: &[u64]) -> bool {
        self.held.inner.has_exception(sequences)
    }

    /// Whether any of these events is parked now.
    pub fn has_parked(&self, sequences: &[u64]) -> bool {
        self.held.inner.parked.lock().has_any(sequences)
    }

    /// How many events are parked now.
    pub fn parked_count(&self) -> u64 {
        self.held.inner.parked.lock().counts().events
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Result<Option<Payload>, Error> {
        get(&self.held.view, Sought::new(key))
    }

    /// The value of a key if it was written recently and is in memory; the inner value is none if
    /// it was deleted. Never waits for the disk.
    pub fn get_recent(&self, key: &str) -> Option<Option<Payload>> {
        recent(&self.held.view, Sought::new(key))
    }

    /// All entries in the order of their keys, in pages of at most `page_entries`. Memory use does
    /// not grow with the state. Blocking.
    pub fn pages(&self, page_entries: usize) -> Pages<'_> {
        Pages {
            snapshot: self,
            page_entries,
            after: None,
            more: true,
        }
    }

    /// The keys under a prefix that changed after a position, newest last, without duplicates; none
    /// if no longer known.
    pub fn changed_since(&self, position: u64, prefix: &str) -> Option<Vec<Key>> {
        self.held
            .inner
            .changed_between(position, self.position(), prefix)
    }

    /// About how many entries it has, without reading them: exact if everything is durable,
    /// otherwise usually too few.
    pub fn entries_about(&self) -> Result<u64, Error> {
        let View {
            active,
            frozen,
            base,
            ..
        } = &self.held.view;
        // Recent writes may be new entries or replace others.
        let recent = active
            .keys()
            .max(frozen.as_ref().map_or(0, |(frozen, _)| frozen.keys()));
        Ok(file::entries(base)?.max(recent))
    }

    /// A page of entries.
    pub fn scan(&self, scan: &Scan) -> Result<Page, Error> {
        scan::page(layers(&self.held.view, scan)?, scan, None)
    }

    /// The same, with a deadline.
    pub fn scan_until(&self, scan: &Scan, until: Instant) -> Result<Page, Error> {
        scan::page(layers(&self.held.view, scan)?, scan, Some(until))
    }
}

/// See [`Snapshot::pages`].
#[derive(Debug)]
pub struct Pages<'a> {
    snapshot: &'a Snapshot,
    page_entries: usize,
    /// The last key so far.
    after: Option<String>,
    more: bool,
}

impl Iterator for Pages<'_> {
    type Item = Result<Vec<(Key, Payload)>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.more {
            return None;
        }
        let page = self.snapshot.scan(&Scan {
            selection: Selection::Prefix(String::new()),
            after: self.after.clone(),
            direction: Direction::Forwards,
            limit: self.page_entries,
        });
        // After an error there is nothing more.
        self.more = page.as_ref().is_ok_and(|page| page.more);
        Some(page.map(|page| {
            // A page may be empty and still not be the last one: it also ends by size.
            if let Some((last, _)) = page.entries.last() {
                self.after = Some(last.to_string());
            }
            page.entries
        }))
    }
}

/// The value of a key in a view.
pub(super) fn get(view: &View, sought: Sought<'_>) -> Result<Option<Payload>, Error> {
    match recent(view, sought) {
        Some(value) => Ok(value),
        None => file::get(&view.base, sought),
    }
}

/// The value of a key in the memtables; none if only the file knows.
fn recent(view: &View, sought: Sought<'_>) -> Option<Option<Payload>> {
    // Newest first, and the first layer that knows the key decides.
    if let Found::Here(value) = view.active.get(sought, view.version) {
        return Some(value);
    }
    match view.frozen.as_ref()?.0.get(sought, view.version) {
        Found::Here(value) => Some(value),
        Found::Below => None,
    }
}

/// The layers of a view, newest first.
pub(super) fn layers<'a>(view: &'a View, scan: &Scan) -> Result<Vec<Layer<'a>>, Error> {
    let mut layers = vec![Layer::memtable(&view.active, view.version, scan)];
    layers.extend(
        view.frozen
            .as_ref()
            .map(|(frozen, _)| Layer::memtable(frozen, view.version, scan)),
    );
    layers.extend(Layer::file(&view.base, scan)?);
    Ok(layers)
}
