//! The writer: the writes of a batch on top of everything published.

mod branch;
mod touched;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;

use super::exceptions::Exception;
use super::inbox::{Keep, Seen};
use super::parked::{self, Parked};
use super::places::Sought;
use super::scan::{self, Layer};
use super::store::{self, Step, StoreState, View};
use super::trace::Origin;
use super::writes::Writes;
use super::{Error, KEY_BYTES_MAX, Key, Page, Reads, Release, Scan, Trace, snapshot, timers};
use crate::effects::{Place, Returns, Role, Row, RowKey};
use crate::event::Payload;
use crate::memory::{Purpose, Reservation};
use crate::position::Checkpoint;
use crate::timers::Timer;
pub(crate) use branch::Notes;
use touched::Touched;

/// Most memory for the writes of one batch, in bytes, in addition to the memtable.
const BATCH_BYTES_MAX: u64 = 128 << 20;
/// Most entries that one batch may write. Even a small entry costs time in many places.
const BATCH_ENTRIES_MAX: usize = 500_000;
/// Overhead of an entry of a batch in addition to key and value, in bytes: its place in the map and
/// in the order, reference counts, and, once published, its place in the memtable.
const ENTRY_OVERHEAD: u64 = 160;
/// Memory of the host is reserved in pieces of this size, in bytes.
const PIECE: u64 = 1 << 20;

/// Entries to replace; none removes an entry.
pub type Patch = std::collections::BTreeMap<Key, Option<Payload>>;

/// The only writer of a store: collects the writes of a batch on top of everything published.
#[derive(Debug)]
pub struct Writer {
    pub(super) inner: Arc<StoreState>,
    /// The published state. Nobody else publishes, so it is valid for a whole batch, and for later
    /// ones until a commit replaces the file below; it is taken again with each batch.
    view: Option<View>,
    batch: Writes,
    /// The keys of `batch` in order, since the first scan.
    order: OnceLock<BTreeSet<Key>>,
    /// Keys and values in `batch`, in bytes.
    batch_bytes: u64,
    /// The memory of the host reserved for `batch`.
    memory: Reservation,
    state_bytes_max: u64,
    size: Size,
    /// Records reads, if somebody wants to know.
    reads: Option<Arc<Reads>>,
    /// Records values and calls, if somebody wants to reproduce them.
    trace: Option<Arc<Trace>>,
    /// Whether effects are kept. Mute until the pipeline says otherwise.
    role: Role,
    /// The first lineage of the deployment, which firings may name; none if nobody said so.
    pub(super) lineage: Option<u64>,
    /// Events that came back through other handlers. Not in an instance: the next one, which tries
    /// a failed batch again, must not count from 0.
    returns: Returns,
    /// Effects of the batch.
    effects: Vec<(RowKey, Bytes)>,
    /// Ids of the events of the batch.
    ids: Option<(Vec<Seen>, Keep)>,
    /// What the batch parks, and no longer parks.
    parked: Vec<parked::Change>,
    /// The release of parked events that the batch applies.
    release: Option<Release>,
    /// What the batch does to timers.
    pub(super) timers: timers::Changes,
    /// Notes what is read and written; only of a branch.
    touched: Option<RefCell<Touched>>,
}

impl Writer {
    pub(super) fn new(inner: Arc<StoreState>) -> Self {
        let state_bytes_max = inner.options.state_bytes_max;
        let memory = inner.options.memory.reservation(Purpose::Fold);
        Self {
            inner,
            view: None,
            batch: Writes::default(),
            order: OnceLock::new(),
            batch_bytes: 0,
            memory,
            state_bytes_max,
            size: Size::default(),
            reads: None,
            trace: None,
            role: Role::Mute,
            lineage: None,
            returns: Returns::default(),
            effects: Vec::new(),
            ids: None,
            parked: Vec::new(),
            release: None,
            timers: timers::Changes::default(),
            touched: None,
        }
    }

    /// Prepares for a batch. A view that was kept while nothing is applied would become stale, and
    /// hold memory.
    pub fn begin(&mut self) {
        // A batch reads from one view, whatever is committed meanwhile.
        self.view = Some(self.inner.view.read().clone());
    }

    pub(super) fn view(&self) -> View {
        self.view
            .clone()
            .unwrap_or_else(|| self.inner.view.read().clone())
    }

    /// What is published, without the batch.
    pub(super) fn published_view(&self) -> View {
        self.inner.view.read().clone()
    }

    /// The value of a key, including the batch so far.
    pub fn get(&self, key: &str) -> Result<Option<Payload>, Error> {
        let sought = Sought::new(key);
        // The batch sees its own writes.
        if let Some(value) = self.batch.get(sought) {
            if let Some(trace) = &self.trace {
                trace.get(key, value.as_ref(), Origin::Batch);
            }
            return Ok(value.clone());
        }
        if let Some(reads) = &self.reads {
            reads.key(key);
        }
        if let Some(touched) = &self.touched {
            touched.borrow_mut().read(key);
        }
        let found = match &self.view {
            // Outside a batch, what is published now.
            Some(view) => snapshot::get(view, sought),
            None => snapshot::get(&self.view(), sought),
        }?;
        if let Some(trace) = &self.trace {
            trace.get(key, found.as_ref(), Origin::BeforeBatch);
        }
        Ok(found)
    }

    /// Whether a value of this length may be put under a key, to know before it is copied.
    pub fn check_put(&self, key: &str, length: usize) -> Result<(), Error> {
        check_value(key, length, self.inner.options.value_bytes_max)
    }

    /// Sets a key, or deletes it.
    pub fn put(&mut self, key: &str, value: Option<Payload>) -> Result<(), Error> {
        check_key(key)?;
        let length = value.as_ref().map_or(0, Payload::len);
        check_value(key, length, self.inner.options.value_bytes_max)?;
        // Checked before anything is kept: a refused write leaves the batch as it was.
        if let Some(reads) = &self.reads {
            reads.write(key);
        }
        if let Some(trace) = &self.trace {
            trace.put(key, value.as_ref());
        }
        self.batch_bytes += (key.len() + length) as u64;
        match self.batch.put(Sought::new(key), value) {
            // A key that is written twice counts once.
            Some(replaced) => {
                let length = replaced.as_ref().map_or(0, Payload::len);
                self.batch_bytes -= (key.len() + length) as u64;
            }
            None => {
                if let (Some(order), Some(key)) = (self.order.get_mut(), self.batch.last_key()) {
                    order.insert(Key::clone(key));
                }
                if let Some(touched) = &mut self.touched {
                    touched.get_mut().write(key);
                }
            }
        }
        self.check_memory()
    }

    /// Whether the batch may use this much memory.
    fn check_memory(&mut self) -> Result<(), Error> {
        let entries = self.batch.len() + self.effects.len() + self.timers.writes.len();
        if entries > BATCH_ENTRIES_MAX {
            let message = format!(
                "one batch writes more than {BATCH_ENTRIES_MAX} entries; ask for smaller batches \
                 in the manifest"
            );
            return Err(Error::Limit {
                limit: "batch-entries",
                message,
            });
        }
        let bytes = self.batch_bytes + entries as u64 * ENTRY_OVERHEAD;
        if bytes <= self.memory.bytes() {
            return Ok(());
        }
        // The maximum of a batch does not depend on what others use at the moment; otherwise the
        // limit would not be its own.
        let most = BATCH_BYTES_MAX.min(self.inner.options.memory.most_of_one() / 2);
        if bytes > most {
            let message = format!(
                "the writes of one batch take more than {most} bytes of memory, {ENTRY_OVERHEAD} \
                 of them for each entry; ask for smaller batches in the manifest"
            );
            return Err(Error::Limit {
                limit: "batch-bytes",
                message,
            });
        }
        let wanted = bytes.next_multiple_of(PIECE).min(most);
        self.memory.grow_to(wanted).map_err(Error::Busy)
    }

    /// Whether the state stays within its limit after the batch is published.
    pub fn check_size(&mut self) -> Result<(), Error> {
        self.size.change = None;
        // With the effects of the batch, which do not count: too high, and computed exactly below.
        if self.inner.state_bytes() + self.batch_bytes <= self.state_bytes_max
            && self.size.published.is_none()
        {
            return Ok(());
        }
        // The running sum counts every key in memory as new: compute it exactly before refusing.
        // Keys in memory are looked up once; after that, only keys that each batch replaces.
        let published = match self.size.published {
            Some(published) => published,
            None => store::exact_bytes(&self.inner)?,
        };
        let replaced = self.batch_replaces()?;
        let stored = self
            .batch
            .iter()
            .filter_map(|write| Some((write.key.len() + write.value.as_ref()?.len()) as u64));
        let exact = (published + stored.sum::<u64>()).saturating_sub(replaced);
        // Far below the limit the running sum is good enough again.
        self.size = Size {
            published: (exact > self.state_bytes_max / 2).then_some(published),
            change: Some(exact),
        };
        let of_host = self.inner.options.state_bytes_max;
        if self.state_bytes_max < of_host && exact <= of_host {
            return check_state_of_module(exact, self.state_bytes_max);
        }
        check_state(exact, of_host)
    }

    /// Published keys and values that the batch replaces, in bytes.
    fn batch_replaces(&self) -> Result<u64, Error> {
        let view = self.view();
        self.batch.iter().try_fold(0, |sum, write| {
            let replaced = snapshot::get(&view, write.sought())?
                .map_or(0, |value| (write.key.len() + value.len()) as u64);
            Ok(sum + replaced)
        })
    }

    /// A page of entries, including the batch so far.
    pub fn scan(&self, scan: &Scan) -> Result<Page, Error> {
        self.scan_while(scan, None)
    }

    /// The same, with a deadline.
    pub fn scan_until(&self, scan: &Scan, until: Instant) -> Result<Page, Error> {
        self.scan_while(scan, Some(until))
    }

    fn scan_while(&self, scan: &Scan, until: Option<Instant>) -> Result<Page, Error> {
        if let Some(reads) = &self.reads {
            reads.scan(&scan.selection);
        }
        if let Some(touched) = &self.touched {
            touched.borrow_mut().scan(&scan.selection);
        }
        let view = self.view();
        let order = self.order.get_or_init(|| {
            self.batch
                .iter()
                .map(|write| Key::clone(&write.key))
                .collect()
        });
        let mut layers = Vec::from_iter(Layer::batch(order, &self.batch, scan));
        layers.extend(snapshot::layers(&view, scan)?);
        let page = scan::page(layers, scan, until)?;
        if let Some(trace) = &self.trace {
            trace.scan(scan, &page, |key| {
                self.batch.get(Sought::new(key)).is_some()
            });
        }
        Ok(page)
    }

    /// Records reads and writes from now on; none stops that.
    pub fn note_reads(&mut self, reads: Option<Arc<Reads>>) {
        self.reads = reads;
    }

    /// Records values and calls from now on; none stops that.
    pub fn trace(&mut self, trace: Option<Arc<Trace>>) {
        self.trace = trace;
    }

    /// The writes of the batch so far, and the entries that they replace.
    pub fn changes(&self) -> Result<Vec<Replaced>, Error> {
        let view = self.view();
        let mut changes = Vec::with_capacity(self.batch.len());
        for write in self.batch.iter() {
            let before = snapshot::get(&view, write.sought())?;
            changes.push((Key::clone(&write.key), before, write.value.clone()));
        }
        changes.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(changes)
    }

    /// How many effects the batch has so far.
    pub fn effects_count(&self) -> usize {
        self.effects.len()
    }

    /// Lowers the largest sum of keys and values below that of the options.
    pub fn limit_state_bytes(&mut self, bytes: u64) {
        self.state_bytes_max = self.inner.options.state_bytes_max.min(bytes);
    }

    /// Sets whether effects are kept.
    pub fn set_role(&mut self, role: Role) {
        self.role = role;
    }

    /// Sets the first lineage of the deployment, whose operators' decisions about timers count.
    pub fn set_lineage(&mut self, lineage: Option<u64>) {
        self.lineage = lineage;
    }

    /// Whether effects are kept.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// Keeps an effect with the writes of the batch.
    pub fn emit(&mut self, row: &Row) -> Result<(), Error> {
        debug_assert!(self.role.owner().is_some(), "a mute fold keeps no effects");
        // For the record only; the effect is kept all the same.
        if let Some(trace) = &self.trace {
            trace.emit(row);
        }
        let (key, value) = (row.key(), row.value());
        self.batch_bytes += (key.len() + value.len()) as u64;
        self.effects.push((key, value));
        self.check_memory()
    }

    /// Keeps the ids of events with the writes of the batch; they follow the last id.
    pub fn see(&mut self, ids: Vec<Seen>, keep: Keep) {
        self.ids = Some((ids, keep)).filter(|(ids, _)| !ids.is_empty());
    }

    /// Records that a timer was looked up.
    pub(super) fn trace_timer(&self, name: &str, timer: Option<&Timer>) {
        if let Some(trace) = &self.trace {
            trace.timer(name, timer);
        }
    }

    /// Changes a timer with the writes of the batch.
    pub(super) fn change_timer(&mut self, name: &str, value: Option<Payload>) -> Result<(), Error> {
        if let Some(trace) = &self.trace {
            trace.change_timer(name);
        }
        self.batch_bytes += (name.len() + value.as_ref().map_or(0, Payload::len)) as u64;
        self.timers.writes.insert(Key::from(name), value);
        self.check_memory()
    }

    /// Drops the batch's writes.
    pub fn discard(&mut self) {
        self.batch.clear();
        self.end_batch();
    }

    /// Releases the memory of a batch.
    fn end_batch(&mut self) {
        self.order = OnceLock::new();
        self.batch_bytes = 0;
        self.effects = Vec::new();
        self.ids = None;
        self.parked = Vec::new();
        self.release = None;
        self.timers = timers::Changes::default();
        // The memory returns to the host at once; the next batch asks again.
        self.memory.shrink_to(0);
        self.size.change = None;
        if let Some(touched) = &mut self.touched {
            touched.get_mut().end_batch();
        }
        // A view keeps old versions and a transaction of the file.
        self.view = None;
    }

    /// Replaces entries at the last published position, visible in one step; none removes an entry.
    /// The new ones may lack `missing` events. Watchers read everything again, because the position
    /// does not show them the change.
    pub fn patch(&mut self, patch: &Patch, missing: u64) -> Result<(), Error> {
        let checkpoint = self.inner.view.read().checkpoint.clone();
        let Some(checkpoint) = checkpoint else {
            return Ok(());
        };
        self.begin();
        let written = patch
            .iter()
            .try_for_each(|(key, value)| self.put(key, value.clone()));
        // All or nothing: the position would not show a half.
        if let Err(error) = written.and_then(|()| self.check_size()) {
            self.discard();
            return Err(error);
        }
        let position = checkpoint.position;
        self.publish(Checkpoint {
            // Of several parts, the one that lacks most: which events these are is not known.
            missing_in_parts: checkpoint.missing_in_parts.max(missing),
            ..checkpoint
        });
        self.inner.changes.lock().forget(position);
        Ok(())
    }

    /// Records that the state lacks at least this many events.
    pub fn note_missing(&mut self, missing: u64) {
        let checkpoint = self.inner.view.read().checkpoint.clone();
        // Never fewer than were counted one by one.
        if let Some(checkpoint) = checkpoint.filter(|checkpoint| checkpoint.missing < missing) {
            self.publish(Checkpoint {
                missing,
                ..checkpoint
            });
        }
    }

    /// Records that nothing up to a position would have changed anything.
    pub fn advance(&mut self, position: u64) {
        let checkpoint = self.inner.view.read().checkpoint.clone();
        // It never goes back; a state that is further needs no record.
        if let Some(checkpoint) = checkpoint.filter(|checkpoint| checkpoint.position < position) {
            self.publish(Checkpoint {
                position,
                ..checkpoint
            });
        }
    }

    /// Parks an event with the next step, or replaces what is known of one.
    pub fn park(&mut self, parked: Parked) {
        self.parked.push(parked::Change::Park(Box::new(parked)));
    }

    /// Removes a parked event with the next step.
    pub fn unpark(&mut self, key: &str, sequence: u64) {
        self.parked
            .push(parked::Change::Unpark(key.to_owned(), sequence));
    }

    /// Applies parked events with the next step, which does not move the position. Their effects
    /// have their turn behind all that the state had before.
    pub fn release(&mut self, key: &str, sequences: Vec<u64>) {
        self.release = Some(self.inner.next_release(key, sequences));
    }

    /// Notes with the next step which firings of a parked key are left out.
    pub fn drop_firings(&mut self, key: &str, sequences: Vec<u64>) {
        self.release = Some(Release {
            is_drop: true,
            ..self.inner.next_release(key, sequences)
        });
    }

    /// The count of events that came back.
    pub(crate) fn returns_mut(&mut self) -> &mut Returns {
        &mut self.returns
    }

    /// The turn of the effect at a place, if its event is released.
    pub fn turn_of(&self, place: Place) -> Option<Place> {
        let release = self.release.as_ref();
        release.map(|release| release.turn_of(place))
    }

    /// Publishes a step that does not move the position. What watchers remember of changes up to it
    /// no longer holds.
    pub fn publish_in_place(&mut self, exceptions: BTreeMap<u64, Exception>) {
        // A state without a checkpoint has nothing parked and nothing released.
        let checkpoint = self.inner.view.read().checkpoint.clone();
        let Some(checkpoint) = checkpoint else {
            return self.discard();
        };
        let position = checkpoint.position;
        self.publish_with(checkpoint, exceptions);
        // After the publish: a watch that asks in between gets the changes, and then starts again.
        self.inner.changes.lock().forget(position);
    }

    /// Makes the batch's writes visible in one step.
    pub fn publish(&mut self, checkpoint: Checkpoint) {
        self.publish_with(checkpoint, BTreeMap::new());
    }

    /// The same, with exceptions up to the checkpoint: durable together with it, or not at all.
    pub fn publish_with(&mut self, checkpoint: Checkpoint, exceptions: BTreeMap<u64, Exception>) {
        if !self.batch.is_empty() && self.size.published.is_some() {
            // Keys that nobody looked up changed the size by an unknown amount.
            self.size.published = self.size.change;
        }
        let effects = std::mem::take(&mut self.effects);
        let mut parked = std::mem::take(&mut self.parked);
        // Last: it is about the rows before it.
        parked.extend(self.release.take().map(parked::Change::Release));
        self.inner.publish(Step {
            writes: self.batch.take(),
            checkpoint,
            exceptions,
            effects,
            ids: self.ids.take(),
            parked,
            timers: std::mem::take(&mut self.timers),
        });
        self.end_batch();
    }
}

/// A key with its value before and after a batch.
pub type Replaced = (Key, Option<Payload>, Option<Payload>);

/// The exact size of the state, known while it is near its limit.
#[derive(Debug, Default)]
struct Size {
    /// Keys and values of everything published, in bytes.
    published: Option<u64>,
    /// The same once the running batch is published.
    change: Option<u64>,
}

pub(super) fn check_key(key: &str) -> Result<(), Error> {
    if (1..=KEY_BYTES_MAX).contains(&key.len()) {
        return Ok(());
    }
    let message = format!(
        "a key has {} bytes, 1 to {KEY_BYTES_MAX} are allowed; shorten it, or move its contents \
         into the value",
        key.len()
    );
    Err(Error::Limit {
        limit: "key-bytes",
        message,
    })
}

pub(super) fn check_value(key: &str, length: usize, allowed: usize) -> Result<(), Error> {
    if length <= allowed {
        return Ok(());
    }
    let message = format!(
        "the value of {key} has {length} bytes, {allowed} are allowed; split it over several keys"
    );
    Err(Error::Limit {
        limit: "value-bytes",
        message,
    })
}

/// The limit of the host.
pub(super) fn check_state(bytes: u64, allowed: u64) -> Result<(), Error> {
    if bytes <= allowed {
        return Ok(());
    }
    Err(state_limit(format!(
        "the state would grow to {bytes} bytes, {allowed} are allowed; delete old entries, or \
         raise state.state_bytes_max"
    )))
}

/// The limit that the module sets itself, which no setting of the host raises.
fn check_state_of_module(bytes: u64, allowed: u64) -> Result<(), Error> {
    if bytes <= allowed {
        return Ok(());
    }
    Err(state_limit(format!(
        "the state would grow to {bytes} bytes, the module's manifest allows {allowed}; deploy a \
         module that deletes old entries, or with a higher limit in its manifest"
    )))
}

fn state_limit(message: String) -> Error {
    Error::Limit {
        limit: "state-bytes",
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Direction, Options, Selection, Store};

    #[test]
    fn scans_of_a_batch_sort_its_keys_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let opened = Store::open(
            &folder.path().join("state.redb"),
            Options::default(),
            |_| (),
        );
        let (_store, mut writer) = opened.expect("the state opens");
        let put = |writer: &mut Writer, key: &str| {
            writer
                .put(key, Some(Payload::from("1")))
                .expect("within limits");
        };
        writer.begin();
        (0..100).for_each(|number| put(&mut writer, &format!("a/{number}")));
        let scan = Scan {
            selection: Selection::Prefix("a/".to_owned()),
            after: None,
            direction: Direction::Forwards,
            limit: 1_000,
        };
        for number in 0..10 {
            assert_eq!(
                writer.scan(&scan).expect("readable").entries.len(),
                100 + number
            );
            // A write between two scans is added to the order, which is not made again.
            put(&mut writer, &format!("a/new/{number}"));
            assert_eq!(writer.order.get().map(BTreeSet::len), Some(101 + number));
        }
    }
}
