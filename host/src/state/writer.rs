//! The writer: a batch's writes on top of all that was published.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::exceptions::Exception;
use super::scan::{self, Layer};
use super::store::{self, Inner, View};
use super::{Error, KEY_BYTES_MAX, Key, Page, Reads, Scan, snapshot};
use crate::event::Payload;
use crate::position::Checkpoint;

/// Most that one batch may write, in bytes: it is held in memory beside the memtable.
const BATCH_BYTES_MAX: u64 = 256 << 20;

/// A key with its new value, or none where it is deleted.
pub(super) type Write = (Key, Option<Payload>);

/// Entries to be put in the place of others; none removes one.
pub type Patch = std::collections::BTreeMap<Key, Option<Payload>>;

/// The one writer of a store: collects the writes of a batch on top of all that was published.
#[derive(Debug)]
pub struct Writer {
    inner: Arc<Inner>,
    /// The published state. Nobody else publishes, so it is good for a whole batch, and for later
    /// ones until a commit puts another file below; it is taken anew with each batch.
    view: Option<View>,
    batch: HashMap<Key, Option<Payload>, foldhash::fast::RandomState>,
    /// Keys and values in `batch`, in bytes.
    batch_bytes: u64,
    state_bytes_max: u64,
    /// Where reads are noted, if somebody wants to know.
    reads: Option<Arc<Reads>>,
}

impl Writer {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        let state_bytes_max = inner.options.state_bytes_max;
        Self { inner, view: None, batch: HashMap::default(), batch_bytes: 0, state_bytes_max, reads: None }
    }

    /// Gets ready for a batch. The view would go stale, and hold on to memory, if it were kept while nothing is applied.
    pub fn begin(&mut self) {
        self.view = Some(self.inner.view.read().clone());
    }

    fn view(&self) -> View {
        self.view.clone().unwrap_or_else(|| self.inner.view.read().clone())
    }

    /// The value of a key, as the batch so far left it.
    pub fn get(&self, key: &str) -> Result<Option<Payload>, Error> {
        if let Some(value) = self.batch.get(key) {
            return Ok(value.clone());
        }
        if let Some(reads) = &self.reads {
            reads.key(key);
        }
        match &self.view {
            Some(view) => snapshot::get(view, key),
            None => snapshot::get(&self.view(), key),
        }
    }

    /// Sets a key, or deletes it.
    pub fn put(&mut self, key: &str, value: Option<Payload>) -> Result<(), Error> {
        check_key(key)?;
        let length = value.as_ref().map_or(0, Payload::len);
        check_value(key, length, self.inner.options.value_bytes_max)?;
        if let Some(reads) = &self.reads {
            reads.write(key);
        }
        self.batch_bytes += (key.len() + length) as u64;
        if let Some(slot) = self.batch.get_mut(key) {
            self.batch_bytes -= (key.len() + slot.as_ref().map_or(0, Payload::len)) as u64;
            *slot = value;
        } else {
            self.batch.insert(Key::from(key), value);
        }
        if self.batch_bytes > BATCH_BYTES_MAX {
            let message =
                format!("one batch writes more than {BATCH_BYTES_MAX} bytes; ask for smaller batches in the manifest");
            return Err(Error::Limit { limit: "batch-bytes", message });
        }
        Ok(())
    }

    /// Whether the state stays within its limit once the batch is published.
    pub fn check_size(&self) -> Result<(), Error> {
        let running = self.inner.state_bytes() + self.batch_bytes;
        if running <= self.state_bytes_max {
            return Ok(());
        }
        // The running sum takes every key in memory for a new one: look closer before refusing.
        let exact = (store::exact_bytes(&self.inner)? + self.batch_bytes).saturating_sub(self.batch_replaces()?);
        check_state(exact, self.state_bytes_max)
    }

    /// Published keys and values that the batch replaces, in bytes.
    fn batch_replaces(&self) -> Result<u64, Error> {
        let view = self.view();
        self.batch.keys().try_fold(0, |sum, key| {
            let replaced = snapshot::get(&view, key)?.map_or(0, |value| (key.len() + value.len()) as u64);
            Ok(sum + replaced)
        })
    }

    /// A page of entries, as the batch so far left them.
    pub fn scan(&self, scan: &Scan) -> Result<Page, Error> {
        if let Some(reads) = &self.reads {
            reads.scan(&scan.selection);
        }
        let view = self.view();
        let mut layers =
            vec![Layer::batch(self.batch.iter().map(|(key, value)| (Key::clone(key), value.clone())), scan)];
        layers.extend(snapshot::layers(&view, scan)?);
        scan::page(layers, scan)
    }

    /// Notes from now on what is read and written; none ends it.
    pub fn note_reads(&mut self, reads: Option<Arc<Reads>>) {
        self.reads = reads;
    }

    /// Lowers the largest sum of keys and values below that of the options.
    pub fn limit_state_bytes(&mut self, bytes: u64) {
        self.state_bytes_max = self.inner.options.state_bytes_max.min(bytes);
    }

    /// Drops the batch's writes.
    pub fn discard(&mut self) {
        self.batch.clear();
        self.batch_bytes = 0;
        self.view = None;
    }

    /// Puts entries in the place of others at the position that was published last, visible as one step; none removes
    /// one. Watchers read everything again, as they can't be told by a position.
    pub fn patch(&mut self, patch: &Patch) -> Result<(), Error> {
        let checkpoint = self.inner.view.read().checkpoint.clone();
        let Some(checkpoint) = checkpoint else { return Ok(()) };
        self.begin();
        let written = patch.iter().try_for_each(|(key, value)| self.put(key, value.clone()));
        if let Err(error) = written.and_then(|()| self.check_size()) {
            self.discard();
            return Err(error);
        }
        let position = checkpoint.position;
        self.publish(checkpoint);
        self.inner.changes.lock().forget(position);
        Ok(())
    }

    /// Notes that nothing up to a position would have changed anything.
    pub fn advance(&mut self, position: u64) {
        let checkpoint = self.inner.view.read().checkpoint.clone();
        if let Some(checkpoint) = checkpoint.filter(|checkpoint| checkpoint.position < position) {
            self.publish(Checkpoint { position, ..checkpoint });
        }
    }

    /// Makes the batch's writes visible as one step.
    pub fn publish(&mut self, checkpoint: Checkpoint) {
        self.publish_with(checkpoint, BTreeMap::new());
    }

    /// The same with what became of events up to the checkpoint that were not folded: durable with it, or not at all.
    pub fn publish_with(&mut self, checkpoint: Checkpoint, exceptions: BTreeMap<u64, Exception>) {
        self.view = None;
        self.batch_bytes = 0;
        self.inner.publish(self.batch.drain().collect(), checkpoint, exceptions);
    }
}

pub(super) fn check_key(key: &str) -> Result<(), Error> {
    if (1..=KEY_BYTES_MAX).contains(&key.len()) {
        return Ok(());
    }
    let message = format!(
        "a key has {} bytes, 1 to {KEY_BYTES_MAX} are allowed; shorten it, or store what it says in the value",
        key.len()
    );
    Err(Error::Limit { limit: "key-bytes", message })
}

pub(super) fn check_value(key: &str, length: usize, allowed: usize) -> Result<(), Error> {
    if length <= allowed {
        return Ok(());
    }
    let message = format!("the value of {key} has {length} bytes, {allowed} are allowed; split it over several keys");
    Err(Error::Limit { limit: "value-bytes", message })
}

pub(super) fn check_state(bytes: u64, allowed: u64) -> Result<(), Error> {
    if bytes <= allowed {
        return Ok(());
    }
    let message = format!(
        "the state would grow to {bytes} bytes, {allowed} are allowed; delete what is no longer needed, or raise \
         state.state_bytes_max"
    );
    Err(Error::Limit { limit: "state-bytes", message })
}
