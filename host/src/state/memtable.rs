//! The memtable: recent writes in memory, by hash for those who know a key and in order for scans,
//! with only as many old versions as live snapshots need.
//!
//! Keys are put in order when somebody scans, so a fold that never scans does not pay for it; a commit
//! sorts them once.
//!
//! Versions count published batches. One thread writes; a reader passes the
//! version that it may see and gets the newest value that is not younger. A
//! batch is written under a version that nobody may see yet, a few entries at a
//! time, so that readers wait for a few entries and never for a batch.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::exceptions::Exception;
use super::inbox::{Keep, Recent, Seen};
use super::order;
use super::outbox::{self, Rows};
use super::parked;
use super::places::{Places, Sought, hash};
use super::writes::Write;
use super::{Direction, Key};
use crate::effects::RowKey;
use crate::event::Payload;

/// Overhead of an entry in addition to key and value: slot, index, reference counts, its place in the
/// order.
const ENTRY_OVERHEAD: u64 = 160;
/// Overhead of an older version of a value, in bytes.
const VERSION_OVERHEAD: u64 = 48;
/// Entries written before readers get their turn, which takes some tens of microseconds.
const WRITES_AT_ONCE: usize = 64;
/// Slots of one piece of memory: a table grows without moving what it has.
const SEGMENT: usize = 512;
/// Keys that are copied for the order under one lock.
const KEYS_AT_ONCE: usize = 1_024;
/// New keys are sorted and merged, and not put in order one by one, if there is more than one for so
/// many old ones.
const MERGE_FACTOR: usize = 8;

/// One value of a key; none means deleted.
#[derive(Debug)]
struct Version {
    number: u64,
    value: Option<Payload>,
}

/// All versions of a key that somebody may still read.
#[derive(Debug)]
struct Slot {
    key: Key,
    newest: Version,
    /// Older versions, oldest first: at most one per live snapshot, plus the one that was visible
    /// when it was replaced.
    older: Vec<Version>,
}

impl Slot {
    fn at(&self, version: u64) -> Option<&Option<Payload>> {
        if self.newest.number <= version {
            return Some(&self.newest.value);
        }
        // The newest one that is not younger.
        self.older
            .iter()
            .rev()
            .find(|older| older.number <= version)
            .map(|older| &older.value)
    }
}

/// The slots of a table, in the order in which their keys came; none is ever removed.
#[derive(Debug, Default)]
struct Slots {
    places: Places,
    segments: Vec<Vec<Slot>>,
}

impl Slots {
    fn len(&self) -> usize {
        // All segments but the last are full.
        self.segments
            .last()
            .map_or(0, |last| (self.segments.len() - 1) * SEGMENT + last.len())
    }

    fn at(&self, place: u32) -> &Slot {
        &self.segments[place as usize / SEGMENT][place as usize % SEGMENT]
    }

    fn find(&self, sought: Sought<'_>) -> Option<u32> {
        self.places
            .find(sought.hash, |place| *self.at(place).key == *sought.key)
    }

    fn find_mut(&mut self, sought: Sought<'_>) -> Option<&mut Slot> {
        let place = self.find(sought)? as usize;
        Some(&mut self.segments[place / SEGMENT][place % SEGMENT])
    }

    fn add(&mut self, hash: u32, slot: Slot) {
        self.places.add(hash, self.len() as u32);
        match self.segments.last_mut().filter(|last| last.len() < SEGMENT) {
            Some(last) => last.push(slot),
            None => {
                // A small table takes little; a large one takes whole segments.
                let capacity = if self.segments.is_empty() { 1 } else { SEGMENT };
                let mut segment = Vec::with_capacity(capacity);
                segment.push(slot);
                self.segments.push(segment);
            }
        }
    }

    /// The places in the order of their keys.
    fn sorted(&self) -> Vec<u32> {
        order::sorted(self.len(), |place| &self.at(place).key)
    }
}

/// The places of keys in order, as far as somebody has asked for them.
#[derive(Debug, Default)]
struct Order {
    keys: BTreeMap<Key, u32>,
    /// How many slots it has.
    slots: usize,
}

impl Order {
    /// Adds the keys that came since.
    fn catch_up(&mut self, slots: &RwLock<Slots>) {
        let end = slots.read().len();
        let mut new = Vec::with_capacity(end - self.slots);
        while self.slots < end {
            // A few at once, so that the applying thread never waits for all of them.
            let slots = slots.read();
            let next = end.min(self.slots + KEYS_AT_ONCE);
            new.extend((self.slots..next).map(|place| {
                let place = place as u32;
                (Key::clone(&slots.at(place).key), place)
            }));
            self.slots = next;
        }
        if new.len() * MERGE_FACTOR <= self.keys.len() {
            self.keys.extend(new);
        } else {
            let sorted = order::sorted(new.len(), |index| &new[index as usize].0);
            let sorted = sorted
                .into_iter()
                .map(|index| (Key::clone(&new[index as usize].0), new[index as usize].1));
            self.keys.append(&mut sorted.collect());
        }
    }
}

/// The result of a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The key was written here: its value, or that it was deleted.
    Here(Option<Payload>),
    /// The key is not here; an older layer decides.
    Below,
}

/// Recent writes of one store.
#[derive(Debug, Default)]
pub(super) struct Memtable {
    slots: RwLock<Slots>,
    /// For scans. Taken before `slots`, and never by the writer, which must not wait for a sort.
    order: RwLock<Order>,
    /// Exceptions to commit with the rest.
    exceptions: RwLock<BTreeMap<u64, Exception>>,
    /// Effects to commit with the rest. Nobody reads them here.
    rows: RwLock<Rows>,
    /// Ids of events to commit with the rest.
    ids: RwLock<Recent>,
    /// Changes of parked events to commit with the rest.
    parked: RwLock<parked::Rows>,
    /// Timers, by name, once there are any.
    timers: OnceLock<Box<Memtable>>,
    /// Keys, all versions of their values, and overhead, in bytes.
    bytes: AtomicU64,
    /// Keys and values of the newest versions that are not deletions, in bytes.
    payload_bytes: AtomicU64,
}

impl Memtable {
    /// Approximate memory in use, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        // Relaxed: a size, which orders nothing.
        self.bytes.load(Ordering::Relaxed) + self.timers().map_or(0, Self::bytes)
    }

    /// Keys and values that would be stored if all of them were new, in bytes.
    pub(super) fn payload_bytes(&self) -> u64 {
        self.payload_bytes.load(Ordering::Relaxed)
    }

    /// Whether nothing was written.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.read().len() == 0
            && self.rows.read().is_empty()
            && self.parked.read().is_empty()
            && self.timers().is_none_or(Self::is_empty)
    }

    /// The number of keys that were written.
    pub(super) fn keys(&self) -> u64 {
        self.slots.read().len() as u64
    }

    pub(super) fn except(&self, exceptions: &BTreeMap<u64, Exception>) {
        let cloned = exceptions
            .iter()
            .map(|(sequence, exception)| (*sequence, exception.clone()));
        self.exceptions.write().extend(cloned);
    }

    pub(super) fn add_rows(&self, rows: Vec<(RowKey, Bytes)>) {
        self.bytes
            .fetch_add(outbox::memory_of(&rows), Ordering::Relaxed);
        self.rows.write().extend(rows);
    }

    /// Adds ids of events.
    pub(super) fn add_ids(&self, ids: &[Seen], keep: Keep) {
        let bytes = self.ids.write().add(ids, keep);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Looks at the ids of events.
    pub(super) fn with_ids<T>(&self, look: impl FnOnce(&Recent) -> T) -> T {
        look(&self.ids.read())
    }

    /// Adds changes of parked events.
    pub(super) fn add_parked(&self, rows: parked::Rows) {
        self.bytes
            .fetch_add(parked::memory_of(&rows), Ordering::Relaxed);
        self.parked.write().extend(rows);
    }

    /// The change of a parked event, if there is one: its row, or none if it was removed.
    pub(super) fn parked(&self, key: &parked::RowKey) -> Option<Option<Bytes>> {
        self.parked.read().get(key).cloned()
    }

    /// Its changes of parked events.
    pub(super) fn parked_rows(&self) -> parked::Rows {
        self.parked.read().clone()
    }

    /// Whether it has effects.
    pub(super) fn has_rows(&self) -> bool {
        !self.rows.read().is_empty()
    }

    pub(super) fn rows(&self) -> Rows {
        self.rows.read().clone()
    }

    /// Its timers, if it has any.
    pub(super) fn timers(&self) -> Option<&Self> {
        self.timers.get().map(|timers| &**timers)
    }

    /// Writes timers of a batch as one version, as [`Memtable::write`] does.
    pub(super) fn write_timers(
        &self,
        writes: impl Iterator<Item = Write>,
        number: u64,
        live: &[u64],
    ) {
        self.timers
            .get_or_init(Box::default)
            .write(writes, number, live);
    }

    pub(super) fn exceptions(&self) -> BTreeMap<u64, Exception> {
        self.exceptions.read().clone()
    }

    /// The value of a key at a version.
    pub(super) fn get(&self, sought: Sought<'_>, version: u64) -> Found {
        let slots = self.slots.read();
        let found = slots
            .find(sought)
            .and_then(|place| slots.at(place).at(version));
        found.map_or(Found::Below, |value| Found::Here(value.clone()))
    }

    /// Writes a batch as one version. `live` are the versions that may be seen until it is done, in
    /// order; values that none of them sees are dropped. Readers interleave, so `number` must be
    /// one that none of them asks for yet.
    pub(super) fn write(&self, writes: impl Iterator<Item = Write>, number: u64, live: &[u64]) {
        debug_assert!(
            live.last().is_none_or(|newest| *newest < number),
            "nobody sees what is being written"
        );
        let mut slots = self.slots.write();
        let (mut bytes, mut payload_bytes) =
            (self.bytes.load(Ordering::Relaxed), self.payload_bytes());
        for (index, write) in writes.enumerate() {
            if index % WRITES_AT_ONCE == WRITES_AT_ONCE - 1 {
                // Hands the lock to waiting readers, if there are any.
                RwLockWriteGuard::bump(&mut slots);
            }
            let found = slots.find_mut(write.sought());
            let Write { hash, key, value } = write;
            let key_bytes = key.len() as u64;
            payload_bytes += value
                .as_ref()
                .map_or(0, |value| key_bytes + value.len() as u64);
            bytes += value_bytes(&value);
            let version = Version { number, value };
            let Some(slot) = found else {
                bytes += key_bytes + ENTRY_OVERHEAD;
                let slot = Slot {
                    key,
                    newest: version,
                    older: Vec::new(),
                };
                slots.add(hash, slot);
                continue;
            };
            let replaced = std::mem::replace(&mut slot.newest, version);
            payload_bytes -= replaced
                .value
                .as_ref()
                .map_or(0, |value| key_bytes + value.len() as u64);
            // The replaced version takes this now; what nobody sees any more is subtracted below.
            bytes += VERSION_OVERHEAD;
            bytes -= set_aside(&mut slot.older, replaced, number, live);
        }
        // Relaxed: readers of these sizes decide when to commit and what to show, not what they read.
        self.bytes.store(bytes, Ordering::Relaxed);
        self.payload_bytes.store(payload_bytes, Ordering::Relaxed);
    }

    /// The order of all keys that are visible now.
    fn in_order(&self) -> RwLockReadGuard<'_, Order> {
        let order = self.order.read();
        // What comes after this look belongs to versions that the caller does not see.
        if order.slots >= self.slots.read().len() {
            return order;
        }
        drop(order);
        let mut order = self.order.write();
        order.catch_up(&self.slots);
        RwLockWriteGuard::downgrade(order)
    }

    /// Up to `limit` keys written at or before a version, in the direction of
    /// the scan, within bounds; the flag says whether the table may have more.
    pub(super) fn chunk(
        &self,
        bounds: (Bound<&str>, Bound<&str>),
        direction: Direction,
        version: u64,
        limit: usize,
    ) -> (Vec<(Key, Option<Payload>)>, bool) {
        let order = self.in_order();
        let slots = self.slots.read();
        let visible = |(key, place): (&Key, &u32)| {
            slots
                .at(*place)
                .at(version)
                .map(|value| (Key::clone(key), value.clone()))
        };
        let range = order.keys.range::<str, _>(bounds);
        let entries: Vec<_> = match direction {
            Direction::Forwards => range.filter_map(visible).take(limit).collect(),
            Direction::Backwards => range.rev().filter_map(visible).take(limit).collect(),
        };
        // A full page may have a successor; the caller asks again.
        let more = entries.len() == limit;
        (entries, more)
    }

    /// Calls `visit` with the hashes of the keys, some at a time.
    pub(super) fn each_hash(&self, mut visit: impl FnMut(&[u32])) {
        let slots = self.slots.read();
        for segment in &slots.segments {
            let hashes: Vec<u32> = segment.iter().map(|slot| hash(&slot.key)).collect();
            visit(&hashes);
        }
    }

    /// Calls `visit` with the newest version of each key, in key order.
    pub(super) fn for_each<E>(
        &self,
        mut visit: impl FnMut(&Key, &Option<Payload>) -> Result<(), E>,
    ) -> Result<(), E> {
        // All versions but the newest are for snapshots only, and do not go into the file.
        let slots = self.slots.read();
        slots.sorted().into_iter().try_for_each(|place| {
            let slot = slots.at(place);
            visit(&slot.key, &slot.newest.value)
        })
    }
}

fn value_bytes(value: &Option<Payload>) -> u64 {
    value.as_ref().map_or(0, |value| value.len() as u64)
}

/// Keeps a replaced version, and drops those that no live version sees any more; returns the bytes
/// that they took.
fn set_aside(older: &mut Vec<Version>, replaced: Version, replaced_by: u64, live: &[u64]) -> u64 {
    // A version was visible until the next one replaced it, and is kept if some live version lies in
    // that range.
    let is_seen = |from: u64, until: u64| {
        let first = live.partition_point(|version| *version < from);
        live.get(first).is_some_and(|version| *version < until)
    };
    let (mut kept, mut forgotten) = (0, 0);
    for index in 0..older.len() {
        let until = older
            .get(index + 1)
            .map_or(replaced.number, |next| next.number);
        if is_seen(older[index].number, until) {
            older.swap(kept, index);
            kept += 1;
        }
    }
    let bytes_of = |version: &Version| value_bytes(&version.value) + VERSION_OVERHEAD;
    forgotten += older
        .drain(kept..)
        .map(|version| bytes_of(&version))
        .sum::<u64>();
    if is_seen(replaced.number, replaced_by) {
        // Most keys have one older version: the four slots that a vector allocates by default would
        // cost more than the value.
        if older.is_empty() {
            older.reserve_exact(1);
        }
        older.push(replaced);
    } else {
        forgotten += bytes_of(&replaced);
    }
    forgotten
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many older versions of a key there are.
    fn older(table: &Memtable, key: &str) -> usize {
        let slots = table.slots.read();
        let place = slots.find(Sought::new(key)).expect("it was written");
        slots.at(place).older.len()
    }

    fn write(table: &Memtable, number: u64, entry: (&str, Option<&str>), live: &[u64]) {
        let (key, value) = entry;
        table.write(
            std::iter::once(Write::new(Key::from(key), value.map(Payload::from))),
            number,
            live,
        );
    }

    fn here(value: Option<&str>) -> Found {
        Found::Here(value.map(Payload::from))
    }

    #[test]
    fn snapshots_keep_the_versions_that_they_see_and_no_others() {
        let table = Memtable::default();
        write(&table, 1, ("a", Some("one")), &[0]);
        write(&table, 2, ("a", Some("two")), &[1]);
        write(&table, 3, ("a", None), &[1, 2]);
        assert_eq!(table.get(Sought::new("a"), 0), Found::Below);
        assert_eq!(table.get(Sought::new("a"), 1), here(Some("one")));
        assert_eq!(table.get(Sought::new("a"), 2), here(Some("two")));
        assert_eq!(table.get(Sought::new("a"), 3), here(None));
        write(&table, 4, ("a", Some("four")), &[3]);
        assert_eq!(table.get(Sought::new("a"), 3), here(None));
        assert_eq!(older(&table, "a"), 1, "versions 1 and 2 are out of reach");
        for number in 5..100 {
            write(&table, number, ("a", Some("more")), &[3, number - 1]);
        }
        assert_eq!(table.get(Sought::new("a"), 3), here(None));
        assert_eq!(
            older(&table, "a"),
            2,
            "an old snapshot does not keep what came after it"
        );
    }

    #[test]
    fn sizes_count_every_version_and_payload_the_newest() {
        let table = Memtable::default();
        write(&table, 1, ("key", Some("12345")), &[0]);
        assert_eq!(
            (table.payload_bytes(), table.bytes()),
            (8, 8 + ENTRY_OVERHEAD)
        );
        write(&table, 2, ("key", Some("1")), &[1]);
        assert_eq!(
            (table.payload_bytes(), table.bytes()),
            (4, 9 + ENTRY_OVERHEAD + VERSION_OVERHEAD)
        );
        write(&table, 3, ("key", None), &[2]);
        assert_eq!(
            (table.payload_bytes(), table.bytes()),
            (0, 4 + ENTRY_OVERHEAD + VERSION_OVERHEAD)
        );
        write(&table, 4, ("key", None), &[2, 3]);
        assert_eq!(table.bytes(), 4 + ENTRY_OVERHEAD + 2 * VERSION_OVERHEAD);
        write(&table, 5, ("key", None), &[]);
        assert_eq!(table.bytes(), 3 + ENTRY_OVERHEAD);
    }

    #[test]
    fn chunks_come_in_the_order_of_the_scan() {
        let table = Memtable::default();
        for key in ["a", "b", "c", "d"] {
            write(&table, 1, (key, Some(key)), &[]);
        }
        let keys = |direction, limit| {
            let bounds = (Bound::Included("b"), Bound::Unbounded);
            let (entries, more) = table.chunk(bounds, direction, 1, limit);
            (
                entries
                    .into_iter()
                    .map(|(key, _)| key.to_string())
                    .collect::<String>(),
                more,
            )
        };
        assert_eq!(keys(Direction::Forwards, 2), ("bc".to_owned(), true));
        assert_eq!(keys(Direction::Backwards, 10), ("dcb".to_owned(), false));
    }

    #[test]
    fn reader_gets_its_turn_before_a_batch_is_over() {
        let table = std::sync::Arc::new(Memtable::default());
        write(&table, 1, ("key", Some("before")), &[0]);
        let (sender, answers) = std::sync::mpsc::channel();
        let reader = std::thread::spawn({
            let table = std::sync::Arc::clone(&table);
            move || sender.send(table.get(Sought::new("key"), 1))
        });
        let mut answered = None;
        let batch = (0..5_000_000).map_while(|index| {
            answered = answers.try_recv().ok();
            let key = if index == 0 {
                "key".to_owned()
            } else {
                (index % 1_000).to_string()
            };
            answered
                .is_none()
                .then(|| Write::new(Key::from(key), Some(Payload::from("after"))))
        });
        table.write(batch, 2, &[1]);
        assert_eq!(answered, Some(here(Some("before"))));
        reader
            .join()
            .expect("it does not panic")
            .expect("the answer is waited for");
    }
}
