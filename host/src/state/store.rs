//! The store: who sees which layer, and how a memtable becomes durable.
//!
//! A view is the published state: the active memtable, the frozen one that is
//! being committed, and the file as of the last commit. Publishing, freezing
//! and the end of a commit each replace a part of the view under one short
//! write lock, so that every snapshot is one state of the whole. Nothing whose
//! time grows with a batch or a memtable happens under that lock.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::changes::{self, Changes};
use super::exceptions::Exception;
use super::file::{self, Base, File};
use super::memtable::Memtable;
use super::{Error, Key, Options, Sizes, Snapshot, Writer};
use crate::position::Checkpoint;

/// What readers see.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) active: Arc<Memtable>,
    /// The memtable that is being committed, with its checkpoint.
    pub(super) frozen: Option<(Arc<Memtable>, Checkpoint)>,
    pub(super) base: Base,
    /// Number of the last published batch.
    pub(super) version: u64,
    /// What the last published batch brought the state to.
    pub(super) checkpoint: Option<Checkpoint>,
}

impl View {
    pub(super) fn position(&self) -> u64 {
        self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.position)
    }
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) options: Options,
    pub(super) view: RwLock<View>,
    /// Held while a batch is written or the active memtable is set aside: half a batch must never be committed.
    writing: Mutex<()>,
    /// Versions that snapshots hold, with how many hold each. A snapshot registers while it holds `view`, so that its
    /// version is still the newest one then, which every writer takes for one in use.
    pub(super) live: Mutex<BTreeMap<u64, usize>>,
    pub(super) changes: Mutex<Changes>,
    /// Memtables that are in the file by now, and that snapshots may still hold.
    retired: Mutex<Vec<Arc<Memtable>>>,
    file: File,
    durable: Mutex<Option<Checkpoint>>,
    /// What the file says about the position beyond which readers saw nothing.
    settled: Mutex<Option<u64>>,
    /// When it was opened, it was as an earlier release had left it.
    is_of_format_1: bool,
    /// Sum of keys and values in the file, in bytes.
    pub(super) durable_bytes: AtomicU64,
    /// A commit failed: what the file holds is no longer known, so nothing more is committed.
    failed: AtomicBool,
    positions: watch::Sender<u64>,
    /// What became of events that were not folded, durable or not.
    exceptions: Mutex<BTreeMap<u64, Exception>>,
}

impl Inner {
    /// What became of events up to a position that were not folded.
    pub(super) fn exceptions_through(&self, position: u64) -> BTreeMap<u64, Exception> {
        let exceptions = self.exceptions.lock();
        exceptions.range(..=position).map(|(sequence, exception)| (*sequence, exception.clone())).collect()
    }

    /// How many of them there are.
    pub(super) fn exceptions_count_through(&self, position: u64) -> u64 {
        self.exceptions.lock().range(..=position).count() as u64
    }

    /// The keys under a prefix that changed after a position and not after another.
    pub(super) fn changed_between(&self, position: u64, through: u64, prefix: &str) -> Option<Vec<Key>> {
        let batches = self.changes.lock().between(position, through)?;
        Some(changes::under(&batches, prefix))
    }

    /// The versions that somebody may see before `newest` is followed by another, in order.
    fn live_versions(&self, newest: u64) -> Vec<u64> {
        let live = self.live.lock();
        live.keys().copied().take_while(|version| *version < newest).chain([newest]).collect()
    }

    /// Keys and values, in bytes; too high by what the keys in memory replace in the file.
    pub(super) fn state_bytes(&self) -> u64 {
        let view = self.view.read();
        let frozen = view.frozen.as_ref().map_or(0, |(table, _)| table.payload_bytes());
        self.durable_bytes.load(Ordering::Relaxed) + view.active.payload_bytes() + frozen
    }

    /// Makes a batch visible as one step.
    ///
    /// Its writes go into the active memtable under a number that no snapshot has, while readers come and go; the view's
    /// lock is taken only to raise the number. This is right because:
    ///
    /// - There is one [`Writer`], so until the number is raised all new snapshots have the number before it, and look past
    ///   what is newer. What they see instead is kept, as that number counts as one in use from the beginning.
    /// - Older snapshots are registered before the number that they hold is raised (see `live`), so the writer knows of all.
    ///   Those that end meanwhile only make it keep too much.
    /// - Whoever reads the raised number out of the view's lock also sees everything that was written before that lock was
    ///   taken: the lock orders memory, and the memtable's own lock orders each entry.
    /// - `writing` keeps the active memtable where it is until the number is raised, so that a commit has whole batches.
    /// - A writer that panics half-way takes the store with it: its thread closes the store and opens it again from the
    ///   file, in which nothing of the batch can be.
    pub(super) fn publish(
        &self,
        writes: Vec<super::writer::Write>,
        checkpoint: Checkpoint,
        exceptions: BTreeMap<u64, Exception>,
    ) {
        let position = checkpoint.position;
        let _writing = self.writing.lock();
        let (active, version) = {
            let view = self.view.read();
            debug_assert!(position >= view.position(), "positions never go back");
            (Arc::clone(&view.active), view.version)
        };
        if !writes.is_empty() {
            // Watchers ask for changes up to a position that they saw, so they don't take these for visible.
            let keys: Box<[Key]> = writes.iter().map(|(key, _)| Key::clone(key)).collect();
            active.write(writes.into_iter(), version + 1, &self.live_versions(version));
            self.changes.lock().push(position, keys);
        }
        if !exceptions.is_empty() {
            // Of events behind the position of every snapshot there is.
            active.except(&exceptions);
            self.exceptions.lock().extend(exceptions);
        }
        {
            let mut view = self.view.write();
            view.version = version + 1;
            view.checkpoint = Some(checkpoint);
        }
        self.positions.send_replace(position);
        self.let_go();
    }

    #[cfg(test)]
    pub(super) fn is_writing(&self) -> bool {
        self.writing.is_locked()
    }

    /// Frees memtables that nobody holds any more: here, rather than in the thread of the reader that was the last.
    fn let_go(&self) {
        let free: Vec<_> = {
            let mut retired = self.retired.lock();
            let (free, held) =
                std::mem::take(&mut *retired).into_iter().partition(|table| Arc::strong_count(table) == 1);
            *retired = held;
            free
        };
        drop(free);
    }

    /// Memory of memtables that are in the file by now and held by snapshots, in bytes.
    fn pinned_bytes(&self) -> u64 {
        self.retired.lock().iter().map(|table| table.bytes()).sum()
    }
}

/// The state of one generation. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) inner: Arc<Inner>,
}

impl Store {
    /// Opens or creates the state file. Blocking; long after an unclean stop of
    /// a large file, when `progress` is told percentages.
    pub fn open(
        path: &Path,
        options: Options,
        progress: impl Fn(f64) + Send + 'static,
    ) -> Result<(Self, Writer), Error> {
        let opened = File::open(path, options.cache_bytes, progress)?;
        let position = opened.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.position);
        let view = View {
            active: Arc::default(),
            frozen: None,
            base: opened.base,
            version: 0,
            checkpoint: opened.checkpoint.clone(),
        };
        let inner = Arc::new(Inner {
            options,
            view: RwLock::new(view),
            writing: Mutex::new(()),
            live: Mutex::default(),
            retired: Mutex::default(),
            changes: Mutex::new(Changes::new(position)),
            file: opened.file,
            durable: Mutex::new(opened.checkpoint),
            settled: Mutex::new(opened.settled),
            is_of_format_1: opened.is_of_format_1,
            durable_bytes: AtomicU64::new(opened.bytes),
            failed: AtomicBool::new(false),
            positions: watch::Sender::new(position),
            exceptions: Mutex::new(opened.exceptions),
        });
        Ok((Self { inner: Arc::clone(&inner) }, Writer::new(inner)))
    }

    /// The last durable checkpoint.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        self.inner.durable.lock().clone()
    }

    /// What the last published batch brought the state to.
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

    /// The keys that changed after a position and not after another, newest last, without duplicates; none when that is no
    /// longer known.
    pub fn changed_between(&self, position: u64, through: u64, prefix: &str) -> Option<Vec<Key>> {
        self.inner.changed_between(position, through, prefix)
    }

    /// What became of events that were not folded.
    pub fn exceptions(&self) -> BTreeMap<u64, Exception> {
        self.inner.exceptions_through(u64::MAX)
    }

    /// How many events were not folded.
    pub fn exceptions_count(&self) -> u64 {
        self.inner.exceptions.lock().len() as u64
    }

    /// Sizes now.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            state_bytes: self.inner.state_bytes(),
            memtable_bytes: self.memtable_bytes(),
            pinned_bytes: self.pinned_bytes(),
            file_bytes: self.inner.file.bytes(),
        }
    }

    /// What is allocated for the file on the disk, in bytes.
    pub fn allocated_bytes(&self) -> u64 {
        self.inner.file.allocated_bytes()
    }

    /// Memory of what is not durable yet, in bytes.
    pub fn memtable_bytes(&self) -> u64 {
        let view = self.inner.view.read();
        view.active.bytes() + view.frozen.as_ref().map_or(0, |(table, _)| table.bytes())
    }

    /// Memory of what is durable, and is held only because somebody still looks at an older state, in bytes.
    pub fn pinned_bytes(&self) -> u64 {
        self.inner.let_go();
        self.inner.pinned_bytes()
    }

    /// Memory that counts against the budget of the host: what is not durable yet, and what readers hold, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memtable_bytes() + self.pinned_bytes()
    }

    /// Memory of what has not even been set aside for a commit, in bytes.
    pub fn active_bytes(&self) -> u64 {
        self.inner.view.read().active.bytes()
    }

    /// Whether there is something published that is not durable, and not on its way.
    pub fn is_dirty(&self) -> bool {
        let view = self.inner.view.read();
        let on_its_way = view.frozen.as_ref().map(|(_, checkpoint)| checkpoint.position);
        let durable = self.inner.durable.lock().as_ref().map(|checkpoint| checkpoint.position);
        view.checkpoint.as_ref().map(|checkpoint| checkpoint.position) > on_its_way.max(durable)
    }

    /// Whether all that was published is in the file.
    pub fn is_durable(&self) -> bool {
        let view = self.inner.view.read();
        view.frozen.is_none() && view.active.is_empty() && *self.inner.durable.lock() == view.checkpoint
    }

    /// Sets the active memtable aside for [`Store::commit`], and begins a new one. Does nothing while
    /// one is set aside already, or when there is nothing new; returns whether there is one to commit.
    pub fn freeze(&self) -> bool {
        let _writing = self.inner.writing.lock();
        let mut view = self.inner.view.write();
        if view.frozen.is_some() {
            return true;
        }
        let Some(checkpoint) = view.checkpoint.clone() else { return false };
        if view.active.is_empty() && self.inner.durable.lock().as_ref() == Some(&checkpoint) {
            return false;
        }
        let active = std::mem::take(&mut view.active);
        view.frozen = Some((active, checkpoint));
        true
    }

    /// Commits what [`Store::freeze`] set aside, durably. Blocking. After an error the store can still be
    /// read but no longer committed: it must be opened again, which goes back to the last durable checkpoint.
    pub fn commit(&self) -> Result<(), Error> {
        if self.inner.failed.load(Ordering::Acquire) {
            return Err(Error::Storage("an earlier commit failed; the state must be opened again".to_owned()));
        }
        let Some((table, checkpoint)) = self.inner.view.read().frozen.clone() else { return Ok(()) };
        let committed = self.commit_table(&table, &checkpoint);
        if committed.is_err() {
            self.inner.failed.store(true, Ordering::Release);
        }
        let (bytes, base) = committed?;
        // What the view lets go of is freed after its lock: a memtable takes milliseconds, and the last reader of a file
        // may free its pages.
        let let_go = {
            let mut view = self.inner.view.write();
            let old = (std::mem::replace(&mut view.base, base), view.frozen.take());
            self.inner.durable_bytes.store(bytes, Ordering::Relaxed);
            *self.inner.durable.lock() = Some(checkpoint);
            old
        };
        drop(let_go);
        self.inner.retired.lock().push(table);
        self.inner.let_go();
        Ok(())
    }

    fn commit_table(&self, table: &Memtable, checkpoint: &Checkpoint) -> Result<(u64, Base), Error> {
        let before = self.inner.durable_bytes.load(Ordering::Relaxed);
        let bytes = self.inner.file.commit(table, checkpoint, before)?;
        Ok((bytes, self.inner.file.base()?))
    }

    /// Whether the file says that readers saw nothing beyond its checkpoint: it was closed, or came to rest, in good order.
    pub fn is_settled(&self) -> bool {
        let durable = self.inner.durable.lock().as_ref().map_or(0, |checkpoint| checkpoint.position);
        *self.inner.settled.lock() == Some(durable)
    }

    /// Whether it was opened as an earlier release had left it, which noted nothing of this and made all durable at a pause.
    pub fn is_of_format_1(&self) -> bool {
        self.inner.is_of_format_1
    }

    /// Notes in the file that readers saw nothing beyond its checkpoint, unless something is published that is not durable.
    /// Blocking.
    pub fn settle(&self) -> Result<(), Error> {
        if self.is_settled() || self.is_dirty() || self.inner.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let durable = self.inner.durable.lock().as_ref().map_or(0, |checkpoint| checkpoint.position);
        self.note_settled(Some(durable))
    }

    /// Whether the file says of any position that readers saw nothing beyond it.
    pub fn is_noted_settled(&self) -> bool {
        self.inner.settled.lock().is_some()
    }

    /// Takes that back, before anything beyond the checkpoint is shown. Blocking.
    pub fn unsettle(&self) -> Result<(), Error> {
        if self.inner.settled.lock().is_none() { Ok(()) } else { self.note_settled(None) }
    }

    fn note_settled(&self, position: Option<u64>) -> Result<(), Error> {
        self.inner.file.note_settled(position)?;
        *self.inner.settled.lock() = position;
        Ok(())
    }

    /// Makes all that was published durable. Blocking.
    pub fn flush(&self) -> Result<(), Error> {
        self.commit()?;
        if self.freeze() { self.commit() } else { Ok(()) }
    }
}

/// The sum of keys and values to the byte, where the running figure may be too high because it takes
/// every key in memory for a new one. Slow: it looks up each of them in the file.
pub(super) fn exact_bytes(inner: &Inner) -> Result<u64, Error> {
    // Under one lock: a commit in between would count what it commits twice.
    let (view, mut bytes) = {
        let view = inner.view.read();
        (view.clone(), inner.durable_bytes.load(Ordering::Relaxed))
    };
    let mut layers: Vec<&Memtable> = vec![&view.active];
    layers.extend(view.frozen.as_ref().map(|(table, _)| &**table));
    let mut seen = std::collections::HashSet::new();
    for table in layers {
        table.for_each(|key, value| {
            if seen.insert(Key::clone(key)) {
                bytes += value.as_ref().map_or(0, |value| (key.len() + value.len()) as u64);
                bytes = bytes.saturating_sub(file::size_of(&view.base, key)?);
            }
            Ok::<_, Error>(())
        })?;
    }
    Ok(bytes)
}
