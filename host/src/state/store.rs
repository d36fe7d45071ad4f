//! The store: which layers readers see, and how a memtable becomes durable.
//!
//! A view is the published state: the active memtable, the frozen one that is
//! being committed, and the file as of the last commit. Publishing, freezing
//! and the end of a commit each replace a part of the view under one short
//! write lock, so that every snapshot is consistent. Nothing whose duration
//! grows with a batch or a memtable happens under that lock.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::changes::{self, Changes};
use super::exceptions::Exception;
use super::file::{self, Base, File};
use super::inbox::{Keep, Seen};
use super::memtable::Memtable;
use super::outbox::{Added, Outbox};
use super::parked;
use super::tables::Frozen;
use super::writes::Write;
use super::{Error, Key, Options, Sizes, Snapshot, Writer, timers};
use crate::effects::RowKey;
use crate::memory::Purpose;
use crate::position::Checkpoint;
use crate::storage;

#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) active: Arc<Memtable>,
    /// The memtable that is being committed, with its checkpoint.
    pub(super) frozen: Option<(Arc<Memtable>, Checkpoint)>,
    pub(super) base: Base,
    /// The timers in the file; none if it has never had any.
    pub(super) timers: Option<Base>,
    /// Number of the last published batch.
    pub(super) version: u64,
    /// The checkpoint of the last published batch.
    pub(super) checkpoint: Option<Checkpoint>,
}

impl View {
    pub(super) fn position(&self) -> u64 {
        self.checkpoint
            .as_ref()
            .map_or(0, |checkpoint| checkpoint.position)
    }
}

/// The locks are taken in this order: `writing`, `view`, and then one of the others at a time.
/// Nobody waits for the disk under `view`, because every read takes it.
#[derive(Debug)]
pub(super) struct StoreState {
    pub(super) options: Options,
    pub(super) view: RwLock<View>,
    /// Held while a batch is written or the active memtable is frozen: half a batch must never be
    /// committed.
    writing: Mutex<()>,
    /// Versions that snapshots hold, and by how many. A snapshot registers while it holds `view`,
    /// so that its version is still the newest, which writers always treat as in use.
    pub(super) live: Mutex<BTreeMap<u64, usize>>,
    pub(super) changes: Mutex<Changes>,
    /// Memtables that are already in the file, and that snapshots may still hold.
    retired: Mutex<Vec<Arc<Memtable>>>,
    pub(super) file: File,
    /// Effects that wait to be sent.
    pub(super) outbox: Outbox,
    /// Timers that are pending.
    pub(super) timers: timers::Count,
    durable: watch::Sender<Option<Checkpoint>>,
    /// The position beyond which readers saw nothing, according to the file.
    settled: Mutex<Option<u64>>,
    /// When it was opened, it was as an earlier release had left it.
    is_of_format_1: bool,
    /// Sum of keys and values in the file, in bytes.
    pub(super) durable_bytes: AtomicU64,
    /// A commit failed: the contents of the file are unknown, so nothing more is committed.
    failed: AtomicBool,
    positions: watch::Sender<u64>,
    /// The exceptions, durable or not.
    exceptions: Mutex<BTreeMap<u64, Exception>>,
    /// What is parked, durable or not.
    pub(super) parked: Mutex<parked::Index>,
}

impl StoreState {
    /// The exceptions up to a position.
    pub(super) fn exceptions_through(&self, position: u64) -> BTreeMap<u64, Exception> {
        let exceptions = self.exceptions.lock();
        exceptions
            .range(..=position)
            .map(|(sequence, exception)| (*sequence, exception.clone()))
            .collect()
    }

    /// Whether any of these sequences has one.
    pub(super) fn has_exception(&self, sequences: &[u64]) -> bool {
        let exceptions = self.exceptions.lock();
        sequences
            .iter()
            .any(|sequence| exceptions.contains_key(sequence))
    }

    /// The number of exceptions.
    pub(super) fn exceptions_count_through(&self, position: u64) -> u64 {
        self.exceptions.lock().range(..=position).count() as u64
    }

    /// The keys under a prefix that changed between two positions.
    pub(super) fn changed_between(
        &self,
        position: u64,
        through: u64,
        prefix: &str,
    ) -> Option<Vec<Key>> {
        let batches = self.changes.lock().between(position, through)?;
        Some(changes::under(&batches, prefix))
    }

    /// The versions that somebody may see before `newest` is replaced, in order.
    fn live_versions(&self, newest: u64) -> Vec<u64> {
        let live = self.live.lock();
        live.keys()
            .copied()
            .take_while(|version| *version < newest)
            .chain([newest])
            .collect()
    }

    /// Keys and values, in bytes; too high by the values that keys in memory replace in the file.
    pub(super) fn state_bytes(&self) -> u64 {
        let view = self.view.read();
        let frozen = view
            .frozen
            .as_ref()
            .map_or(0, |(table, _)| table.payload_bytes());
        // Relaxed: the lock of the view orders it, under which a commit stores it.
        self.durable_bytes.load(Ordering::Relaxed) + view.active.payload_bytes() + frozen
    }

    /// Makes a batch visible in one step.
    ///
    /// Its writes go into the active memtable under a number that no snapshot has, while readers
    /// come and go; the lock of the view is taken only to raise the number. This is correct
    /// because:
    ///
    /// - There is one [`Writer`], so until the number is raised all new snapshots have the previous
    ///   number, and ignore newer values. The values that they see instead are kept, because that
    ///   number counts as in use from the beginning.
    /// - Older snapshots are registered before the number that they hold is raised (see `live`), so
    ///   the writer knows all of them. Snapshots that end meanwhile only make it keep too much.
    /// - A reader that sees the raised number through the view's lock also sees everything written
    ///   before that lock was taken: the lock orders memory, and the memtable's own lock orders
    ///   each entry.
    /// - `writing` keeps the active memtable in place until the number is raised, so that a commit
    ///   has whole batches.
    /// - If a writer panics half-way, its thread closes the store and reopens it from the file,
    ///   which cannot contain any of the batch.
    pub(super) fn publish(&self, step: Step) {
        let Step {
            writes,
            checkpoint,
            exceptions,
            effects,
            ids,
            parked,
            mut timers,
        } = step;
        let position = checkpoint.position;
        // From here on no commit can freeze the memtable.
        let _writing = self.writing.lock();
        // Released at once: readers come and go while the batch is written.
        let (active, version) = {
            let view = self.view.read();
            debug_assert!(position >= view.position(), "positions never go back");
            (Arc::clone(&view.active), view.version)
        };
        if !writes.is_empty() {
            // Watchers ask for changes up to a position that they saw, so they don't take these for
            // visible.
            let keys: Box<[Key]> = writes.iter().map(|write| Key::clone(&write.key)).collect();
            active.write(
                writes.into_iter(),
                version + 1,
                &self.live_versions(version),
            );
            self.changes.lock().push(position, keys);
        }
        if !timers.writes.is_empty() {
            let writes = std::mem::take(&mut timers.writes);
            let live = self.live_versions(version);
            let writes = writes
                .into_iter()
                .map(|(name, value)| Write::new(name, value));
            active.write_timers(writes, version + 1, &live);
            self.timers.published(&timers);
        }
        if !effects.is_empty() {
            // Counted here, so that the outbox is full before its rows are durable.
            self.outbox.published(&effects);
            active.add_rows(effects);
        }
        if let Some((ids, keep)) = ids {
            active.add_ids(&ids, keep);
        }
        if !parked.is_empty() {
            active.add_parked(parked::published(&mut self.parked.lock(), &parked));
        }
        if !exceptions.is_empty() {
            // For exceptions after the position of every snapshot.
            active.except(&exceptions);
            self.exceptions.lock().extend(exceptions);
        }
        {
            // This is the step: before it no reader sees anything of the batch.
            let mut view = self.view.write();
            view.version = version + 1;
            view.checkpoint = Some(checkpoint);
        }
        // After the lock: those that wait for a position find it in the view.
        self.positions.send_replace(position);
        // Once per batch is often enough.
        self.let_go();
    }

    #[cfg(test)]
    pub(super) fn is_writing(&self) -> bool {
        self.writing.is_locked()
    }

    /// Frees memtables that nobody holds any more: here, and not in the thread of the last reader.
    fn let_go(&self) {
        let free: Vec<_> = {
            let mut retired = self.retired.lock();
            // One reference is the list's own.
            let (free, held) = std::mem::take(&mut *retired)
                .into_iter()
                .partition(|table| Arc::strong_count(table) == 1);
            *retired = held;
            free
        };
        drop(free);
    }

    /// Memory of memtables that are already in the file and held by snapshots, in bytes.
    fn pinned_bytes(&self) -> u64 {
        self.retired.lock().iter().map(|table| table.bytes()).sum()
    }
}

/// What one step makes visible at once.
pub(super) struct Step {
    pub(super) writes: Vec<Write>,
    pub(super) checkpoint: Checkpoint,
    pub(super) exceptions: BTreeMap<u64, Exception>,
    pub(super) effects: Vec<(RowKey, Bytes)>,
    /// Ids of events that were passed, and how long they are kept; none without an inbox.
    pub(super) ids: Option<(Vec<Seen>, Keep)>,
    pub(super) parked: Vec<parked::Change>,
    pub(super) timers: timers::Changes,
}

/// The state of one generation. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) inner: Arc<StoreState>,
}

impl Store {
    /// Opens or creates the state file. Blocking; slow after an unclean stop of
    /// a large file, when `progress` gets percentages.
    pub fn open(
        path: &Path,
        options: Options,
        progress: impl Fn(f64) + Send + 'static,
    ) -> Result<(Self, Writer), Error> {
        let memory = options.memory.reservation(Purpose::Fold);
        let opened = File::open(path, options.cache_bytes, memory, progress)?;
        let position = opened
            .checkpoint
            .as_ref()
            .map_or(0, |checkpoint| checkpoint.position);
        let view = View {
            active: Arc::default(),
            frozen: None,
            base: opened.base,
            timers: opened.timers,
            version: 0,
            checkpoint: opened.checkpoint.clone(),
        };
        let pending = timers::count(view.timers.as_ref())?;
        let watched = options.memory.reservation(Purpose::Watch);
        let inner = Arc::new(StoreState {
            options,
            view: RwLock::new(view),
            writing: Mutex::new(()),
            live: Mutex::default(),
            retired: Mutex::default(),
            changes: Mutex::new(Changes::new(position, watched)),
            file: opened.file,
            outbox: Outbox::new(opened.outbox),
            timers: timers::Count::new(pending),
            durable: watch::Sender::new(opened.checkpoint),
            settled: Mutex::new(opened.settled),
            is_of_format_1: opened.is_of_format_1,
            durable_bytes: AtomicU64::new(opened.bytes),
            failed: AtomicBool::new(false),
            positions: watch::Sender::new(position),
            exceptions: Mutex::new(opened.exceptions),
            parked: Mutex::new(opened.parked),
        });
        Ok((
            Self {
                inner: Arc::clone(&inner),
            },
            Writer::new(inner),
        ))
    }

    /// Lets everybody wait who looks up a key in the file, as on a disk that hangs, until the result
    /// is dropped.
    #[cfg(test)]
    pub(crate) fn hang(&self) -> std::sync::mpsc::Sender<()> {
        self.inner.file.hang()
    }

    /// The last durable checkpoint.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        self.inner.durable.borrow().clone()
    }

    /// The last durable checkpoint, as it changes.
    pub fn checkpoints(&self) -> watch::Receiver<Option<Checkpoint>> {
        self.inner.durable.subscribe()
    }

    /// The checkpoint of the last published batch.
    pub fn published(&self) -> Option<Checkpoint> {
        self.inner.view.read().checkpoint.clone()
    }

    /// A consistent view of the last published batch.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(&self.inner)
    }

    /// The position of the last published batch.
    pub fn position(&self) -> u64 {
        *self.inner.positions.borrow()
    }

    /// The position, as it rises.
    pub fn positions(&self) -> watch::Receiver<u64> {
        self.inner.positions.subscribe()
    }

    /// The keys that changed between two positions, newest last, without duplicates; none if no
    /// longer known.
    pub fn changed_between(&self, position: u64, through: u64, prefix: &str) -> Option<Vec<Key>> {
        self.inner.changed_between(position, through, prefix)
    }

    /// The exceptions.
    pub fn exceptions(&self) -> BTreeMap<u64, Exception> {
        self.inner.exceptions_through(u64::MAX)
    }

    /// The number of exceptions.
    pub fn exceptions_count(&self) -> u64 {
        self.inner.exceptions.lock().len() as u64
    }

    /// Current sizes.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            state_bytes: self.inner.state_bytes(),
            memtable_bytes: self.memtable_bytes(),
            pinned_bytes: self.pinned_bytes(),
            file_bytes: self.inner.file.allocated_bytes(),
        }
    }

    /// Allocated disk space of the file, in bytes.
    pub fn allocated_bytes(&self) -> u64 {
        self.inner.file.allocated_bytes()
    }

    /// Why the file may not grow, if it is as large as it may be with what is not durable yet.
    pub fn file_excess(&self) -> Option<String> {
        let allowed = self.inner.options.file_bytes_max;
        // Asking the file system is worth it only if there is a limit.
        let bytes = if allowed < u64::MAX {
            self.allocated_bytes() + self.uncommitted_bytes()
        } else {
            0
        };
        (bytes >= allowed).then(|| {
            format!(
                "disk: the state file has {bytes} bytes with what waits to be committed, {allowed} \
                 are allowed (state.file_bytes_max); raise the limit, or rebuild the deployment, \
                 which compacts its file"
            )
        })
    }

    /// What the writes that are not durable yet may add to the file, in bytes: redb gives a large
    /// value a page of up to twice its size.
    pub fn uncommitted_bytes(&self) -> u64 {
        self.memtable_bytes().saturating_mul(2)
    }

    /// Memory of writes that are not durable yet, in bytes.
    pub fn memtable_bytes(&self) -> u64 {
        let view = self.inner.view.read();
        view.active.bytes() + view.frozen.as_ref().map_or(0, |(table, _)| table.bytes())
    }

    /// Memory of durable writes held only because somebody still uses an older state, in bytes.
    pub fn pinned_bytes(&self) -> u64 {
        // So that memory which its last reader has just released does not count.
        self.inner.let_go();
        self.inner.pinned_bytes()
    }

    /// Memory that counts against the budget of the host: writes that are not durable yet, and
    /// memory held by readers, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memtable_bytes() + self.pinned_bytes()
    }

    /// Memory of writes that are not frozen yet, in bytes.
    pub fn active_bytes(&self) -> u64 {
        self.inner.view.read().active.bytes()
    }

    /// Whether something published is neither durable nor being committed.
    pub fn is_dirty(&self) -> bool {
        let view = self.inner.view.read();
        let on_its_way = view
            .frozen
            .as_ref()
            .map(|(_, checkpoint)| checkpoint.position);
        let durable = self
            .inner
            .durable
            .borrow()
            .as_ref()
            .map(|checkpoint| checkpoint.position);
        view.checkpoint
            .as_ref()
            .map(|checkpoint| checkpoint.position)
            > on_its_way.max(durable)
    }

    /// Whether everything published is in the file.
    pub fn is_durable(&self) -> bool {
        let view = self.inner.view.read();
        view.frozen.is_none()
            && view.active.is_empty()
            && *self.inner.durable.borrow() == view.checkpoint
    }

    /// Freezes the active memtable for [`Store::commit`], and starts a new one. Does nothing if one
    /// is already frozen, or if there is nothing new; returns whether there is one to commit.
    pub fn freeze(&self) -> bool {
        let _writing = self.inner.writing.lock();
        let mut view = self.inner.view.write();
        // One at a time: its commit has not ended.
        if view.frozen.is_some() {
            return true;
        }
        let Some(checkpoint) = view.checkpoint.clone() else {
            return false;
        };
        // A checkpoint alone is worth a commit as well.
        if view.active.is_empty() && self.inner.durable.borrow().as_ref() == Some(&checkpoint) {
            return false;
        }
        // Under both locks, so no batch and no reader sees the gap.
        let active = std::mem::take(&mut view.active);
        view.frozen = Some((active, checkpoint));
        true
    }

    /// Commits the frozen memtable durably. Blocking. After an error the store can still be read
    /// but not committed: it must be reopened, which goes back to the last durable checkpoint.
    pub fn commit(&self) -> Result<(), Error> {
        if self.inner.failed.load(Ordering::Acquire) {
            return Err(Error::Storage(storage::Error::failed_before(
                "an earlier commit failed; the state must be reopened",
            )));
        }
        // A clone: the commit takes long, and the view must stay readable.
        let Some((table, checkpoint)) = self.inner.view.read().frozen.clone() else {
            return Ok(());
        };
        let committed = self.commit_table(&table, &checkpoint);
        // Before the error is returned: no other call may use the handle after it.
        if committed.is_err() {
            self.inner.failed.store(true, Ordering::Release);
        }
        let (bytes, base, timers) = committed?;
        // Memory that the view releases is freed after its lock: a memtable takes milliseconds, and
        // the last reader of a file may free its pages.
        let let_go = {
            // In one step: the base has what the frozen memtable had, so no reader sees it twice or
            // not at all.
            let mut view = self.inner.view.write();
            let old = (
                std::mem::replace(&mut view.base, base),
                std::mem::replace(&mut view.timers, timers),
                view.frozen.take(),
            );
            self.inner.durable_bytes.store(bytes, Ordering::Relaxed);
            self.inner.durable.send_replace(Some(checkpoint));
            old
        };
        drop(let_go);
        // Snapshots may still read it; it is freed when the last one is gone.
        self.inner.retired.lock().push(table);
        self.inner.let_go();
        Ok(())
    }

    /// Shows the timers that the file has, because they were changed there. Nothing that is published
    /// waits for its commit.
    pub(super) fn show_timers_of_file(&self) -> Result<(), Error> {
        let timers = self.inner.file.timers()?;
        self.inner
            .timers
            .set_pending(timers::count(timers.as_ref())?);
        let before = {
            let _writing = self.inner.writing.lock();
            std::mem::replace(&mut self.inner.view.write().timers, timers)
        };
        // After the locks, as in a commit.
        drop(before);
        Ok(())
    }

    /// The position of the last commit; 0 before the first one.
    pub fn durable_position(&self) -> u64 {
        let durable = self.inner.durable.borrow();
        durable.as_ref().map_or(0, |checkpoint| checkpoint.position)
    }

    /// Whether a commit failed, so that the store must be reopened.
    pub fn has_failed(&self) -> bool {
        self.inner.failed.load(Ordering::Acquire)
    }

    pub(super) fn set_failed(&self) {
        self.inner.failed.store(true, Ordering::Release);
    }

    fn commit_table(
        &self,
        table: &Memtable,
        checkpoint: &Checkpoint,
    ) -> Result<(u64, Base, Option<Base>), Error> {
        let before = self.inner.durable_bytes.load(Ordering::Relaxed);
        // Confirmations that come during the commit are left for the next one.
        let sent = self.inner.outbox.pending();
        let (bytes, removed) = self.inner.file.commit(table, checkpoint, before, &sent)?;
        parked::committed(&mut self.inner.parked.lock(), &table.parked_rows());
        let added = if table.has_rows() {
            Added::Some
        } else {
            Added::None
        };
        self.inner.outbox.committed(added, &sent, removed);
        Ok((bytes, self.inner.file.base()?, self.inner.file.timers()?))
    }

    /// The file as of its last commit.
    pub fn frozen(&self) -> Result<Frozen, Error> {
        self.inner.file.frozen()
    }

    /// Whether the file says that readers saw nothing beyond its checkpoint: it was closed, or came
    /// to rest, cleanly.
    pub fn is_settled(&self) -> bool {
        let durable = self
            .inner
            .durable
            .borrow()
            .as_ref()
            .map_or(0, |checkpoint| checkpoint.position);
        *self.inner.settled.lock() == Some(durable)
    }

    /// Whether it was opened as an earlier release had left it, which did not record this and made
    /// everything durable at a pause.
    pub fn is_of_format_1(&self) -> bool {
        self.inner.is_of_format_1
    }

    /// Records in the file that readers saw nothing beyond its checkpoint, unless something
    /// published is not durable. Blocking.
    pub fn settle(&self) -> Result<(), Error> {
        // A record that is there already is not written again.
        if self.is_settled() || self.is_dirty() || self.inner.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let durable = self
            .inner
            .durable
            .borrow()
            .as_ref()
            .map_or(0, |checkpoint| checkpoint.position);
        self.note_settled(Some(durable))
    }

    /// Whether the file records a position beyond which readers saw nothing.
    pub fn is_noted_settled(&self) -> bool {
        self.inner.settled.lock().is_some()
    }

    /// Withdraws that record, before anything beyond the checkpoint is shown. Blocking.
    pub fn unsettle(&self) -> Result<(), Error> {
        if self.inner.settled.lock().is_none() {
            Ok(())
        } else {
            self.note_settled(None)
        }
    }

    fn note_settled(&self, position: Option<u64>) -> Result<(), Error> {
        // The file first: memory must not claim what a crash would take back.
        self.inner.file.note_settled(position)?;
        *self.inner.settled.lock() = position;
        Ok(())
    }

    /// Makes everything published durable. Blocking.
    pub fn flush(&self) -> Result<(), Error> {
        // What is frozen already, and then what has come since.
        self.commit()?;
        if self.freeze() { self.commit() } else { Ok(()) }
    }
}

/// The exact sum of keys and values; the running figure may be too high because it counts every key
/// in memory as new. Slow: it looks up each of them in the file.
pub(super) fn exact_bytes(inner: &StoreState) -> Result<u64, Error> {
    // Under one lock, because a commit in between would count its entries twice.
    let (view, mut bytes) = {
        let view = inner.view.read();
        (view.clone(), inner.durable_bytes.load(Ordering::Relaxed))
    };
    // Newest first: the first layer that has a key decides what it adds.
    let mut layers: Vec<&Memtable> = vec![&view.active];
    layers.extend(view.frozen.as_ref().map(|(table, _)| &**table));
    let mut seen = std::collections::HashSet::new();
    for table in layers {
        table.for_each(|key, value| {
            if seen.insert(Key::clone(key)) {
                bytes += value
                    .as_ref()
                    .map_or(0, |value| (key.len() + value.len()) as u64);
                // Whatever the file has under that key is replaced.
                bytes = bytes.saturating_sub(file::size_of(&view.base, key)?);
            }
            Ok::<_, Error>(())
        })?;
    }
    Ok(bytes)
}
