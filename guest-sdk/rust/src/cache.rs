//! The write-back cache of one table.
//!
//! It relies on the contract: between two calls of `apply` on one instance
//! nobody else changes the state, and after a failure the instance is dropped.
//! It never evicts single entries: when it has grown too large it is written
//! out and starts empty, which costs nothing while it is small and little if
//! keys hardly repeat.

use std::cell::RefCell;

use hashbrown::HashTable;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backend::Writes;
use crate::cached_key::{CachedKey, hash_long};
use crate::event::Payload;
use crate::failure::TableError;
use crate::key::{Key, KeyWriter};
use crate::state::{
    CACHED_BYTES_MAX, CACHED_ENTRIES_MAX, Cached, KEY_BYTES_MAX, Shared, Unwritable,
};

/// Most keys that a host looks up in one call.
const KEYS_MAX: usize = 65_536;

/// If a batch has no more misses than this, the next one does not read ahead: looking up keys twice
/// would cost more than these calls of the host.
const FEW_MISSES: usize = 16;

/// The decoded entries of a table.
pub(crate) struct Cache<V> {
    /// The table's name, followed by the key that was encoded last; UTF-8.
    scratch: Vec<u8>,
    name_length: usize,
    /// Places of entries, by the hash of their keys.
    index: HashTable<u32>,
    slots: Vec<Slot<V>>,
    /// Keys that are too long for their slots, one after another.
    long_keys: Vec<u8>,
    /// Places of entries that are to be written.
    dirty: Vec<u32>,
    /// Places of entries that are to be loaded.
    wanted: Vec<u32>,
    /// Keys that were not in the cache in this batch, and in the previous one.
    misses: usize,
    misses_before: usize,
    /// Approximate size of it all, in bytes.
    bytes: usize,
}

/// One entry.
struct Slot<V> {
    key: CachedKey,
    value: Option<V>,
    /// Length of the value as text, when it was read or written last.
    text_length: u32,
    /// Index in its batch of the event that touched it last.
    event: u32,
    loaded: bool,
    dirty: bool,
}

/// A key that was just encoded: its hash, and what a slot would hold if it is short.
struct Sought {
    hash: u64,
    short: Option<CachedKey>,
}

impl<V: Serialize + DeserializeOwned> Cache<V> {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            scratch: name.as_bytes().to_vec(),
            name_length: name.len(),
            index: HashTable::new(),
            slots: Vec::new(),
            long_keys: Vec::new(),
            dirty: Vec::new(),
            wanted: Vec::new(),
            misses: 0,
            misses_before: usize::MAX,
            bytes: 0,
        }
    }

    /// Where the entry of a key is, read from the state if it is not here.
    #[inline]
    pub(crate) fn place<K: Key>(
        &mut self,
        key: K::Ref<'_>,
        shared: &Shared,
    ) -> Result<usize, TableError> {
        let sought = self.encode::<K>(key);
        match self.find(&sought) {
            Some(place) if self.slots[place].loaded => Ok(place),
            Some(place) => self.load(place, shared),
            None => self.add_and_load(&sought, shared),
        }
    }

    /// The value at a place.
    #[inline]
    pub(crate) fn value(&self, place: usize) -> Option<&V> {
        self.slots[place].value.as_ref()
    }

    /// The value at a place, to be changed and written.
    #[inline]
    pub(crate) fn value_mut(&mut self, place: usize, shared: &Shared) -> &mut Option<V> {
        let slot = &mut self.slots[place];
        // The event that changed it last is blamed if the value cannot be encoded.
        slot.event = shared.event.get();
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push(place as u32);
            shared.dirty.set(true);
        }
        &mut slot.value
    }

    /// Removes the entry of a key, given as the state spells it, without reading it.
    pub(crate) fn remove(&mut self, key: &str, shared: &Shared) -> Result<(), TableError> {
        // The name is in front already: only the rest of the key replaces the previous one.
        self.scratch.truncate(self.name_length);
        self.scratch
            .extend_from_slice(&key.as_bytes()[self.name_length..]);
        let sought = self.seek();
        let place = match self.find(&sought) {
            Some(place) => place,
            None => {
                // A table that is full is written out first, as if the key were read.
                self.make_room(shared)?;
                self.add(&sought)
            }
        };
        *self.value_mut(place, shared) = None;
        // Absent for certain, so nothing has to be read to know it.
        self.slots[place].loaded = true;
        Ok(())
    }

    /// Whether looking up keys before their events is likely to find missing ones.
    pub(crate) fn expects_misses(&self) -> bool {
        self.misses_before > FEW_MISSES
    }

    /// Records that a key will be needed.
    pub(crate) fn want<K: Key>(&mut self, key: K::Ref<'_>) {
        let sought = self.encode::<K>(key);
        if self.find(&sought).is_none()
            // A longer key is left to the event, which reports it.
            && self.scratch.len() <= KEY_BYTES_MAX
            && self.wanted.len() < KEYS_MAX
        {
            let place = self.add(&sought);
            self.wanted.push(place as u32);
        }
    }

    /// Reads the needed keys. A value that cannot be decoded stays unloaded, and fails when it is
    /// used.
    pub(crate) fn load_wanted(&mut self, shared: &Shared) {
        let wanted = std::mem::take(&mut self.wanted);
        let keys: Vec<String> = wanted
            .iter()
            .map(|place| self.key_text(*place as usize))
            .collect();
        if !keys.is_empty() {
            // Borrowed apart, because the closure changes both while the keys are borrowed as well.
            let (slots, bytes) = (&mut self.slots, &mut self.bytes);
            shared.backend.get_many(&keys, &mut |index, payload| {
                let slot = &mut slots[wanted[index] as usize];
                if slot.fill(payload).is_ok() {
                    *bytes += slot.text_length as usize;
                }
            });
        }
    }

    /// Encodes a key into `scratch`, and hashes it.
    #[inline]
    fn encode<K: Key>(&mut self, key: K::Ref<'_>) -> Sought {
        self.scratch.truncate(self.name_length);
        K::write(key, &mut KeyWriter::new(&mut self.scratch));
        self.seek()
    }

    /// Hashes the key in `scratch`.
    #[inline]
    fn seek(&mut self) -> Sought {
        let short = CachedKey::short(&mut self.scratch, self.name_length);
        Sought {
            hash: short.map_or_else(
                || hash_long(&self.scratch[self.name_length..]),
                CachedKey::hash,
            ),
            short,
        }
    }

    #[inline]
    fn find(&self, sought: &Sought) -> Option<usize> {
        let found = match sought.short {
            Some(key) => self
                .index
                .find(sought.hash, |place| self.slots[*place as usize].key == key),
            None => self.find_long(sought.hash),
        };
        found.map(|place| *place as usize)
    }

    #[inline(never)]
    fn find_long(&self, hash: u64) -> Option<&u32> {
        let key = &self.scratch[self.name_length..];
        self.index.find(hash, |place| {
            self.slots[*place as usize]
                .key
                .is_long(hash, key, &self.long_keys)
        })
    }

    #[inline(never)]
    fn add_and_load(&mut self, sought: &Sought, shared: &Shared) -> Result<usize, TableError> {
        // Refused here with a message that names the limit; the host would end the call.
        if self.scratch.len() > KEY_BYTES_MAX {
            let length = self.scratch.len();
            return Err(TableError::new(format_args!(
                "a key has {length} bytes; at most {KEY_BYTES_MAX} are allowed"
            )));
        }
        self.make_room(shared)?;
        let place = self.add(sought);
        self.load(place, shared)
    }

    #[inline]
    fn make_room(&mut self, shared: &Shared) -> Result<(), TableError> {
        // Before the entry is added, because its place would not survive.
        if self.slots.len() >= CACHED_ENTRIES_MAX || self.bytes > CACHED_BYTES_MAX {
            self.write_out(shared)?;
        }
        Ok(())
    }

    /// Adds an entry that is not loaded yet for the key in `scratch`.
    fn add(&mut self, sought: &Sought) -> usize {
        let key = sought.short.unwrap_or_else(|| {
            let (key, start) = (&self.scratch[self.name_length..], self.long_keys.len());
            self.long_keys.extend_from_slice(key);
            CachedKey::long(key, start)
        });
        let place = self.slots.len();
        self.slots.push(Slot {
            key,
            value: None,
            text_length: 0,
            event: 0,
            loaded: false,
            dirty: false,
        });
        let slots = &self.slots;
        self.index
            .insert_unique(sought.hash, place as u32, |place| {
                slots[*place as usize].key.hash()
            });
        // With an entry of the index: this decides when the cache is written out, not what it
        // stores.
        self.bytes += size_of::<Slot<V>>() + 8 + self.scratch.len();
        self.misses += 1;
        place
    }

    fn load(&mut self, place: usize, shared: &Shared) -> Result<usize, TableError> {
        let key = self.key_text(place);
        let slot = &mut self.slots[place];
        let mut outcome = Ok(());
        shared
            .backend
            .get(&key, &mut |payload| outcome = slot.fill(payload));
        // It stays unloaded, so that every later use gets the same error.
        outcome.map_err(|error| undecodable(&key, &error))?;
        self.bytes += slot.text_length as usize;
        Ok(place)
    }

    /// The key of an entry as in the state.
    fn key_text(&self, place: usize) -> String {
        let mut buffer = [0; 24];
        let key = self.slots[place].key.octets(&self.long_keys, &mut buffer);
        String::from_utf8([&self.scratch[..self.name_length], key].concat())
            .expect("keys are UTF-8")
    }

    /// Writes only the changes of this table, and drops all entries.
    #[cold]
    fn write_out(&mut self, shared: &Shared) -> Result<(), TableError> {
        // The key to look up follows the name.
        let mut writes = Writes::default();
        self.collect_into(&mut writes)
            .map_err(|unwritable| unwritable.error)?;
        if !writes.is_empty() {
            shared.backend.put_many(&writes);
        }
        self.clear();
        Ok(())
    }

    fn collect_into(&mut self, writes: &mut Writes) -> Result<(), Unwritable> {
        // Taken, so that entries can be changed while their places are walked; returned with its
        // memory.
        let mut dirty = std::mem::take(&mut self.dirty);
        for place in dirty.drain(..) {
            let slot = &mut self.slots[place as usize];
            let mut buffer = [0; 24];
            let key = slot.key.octets(&self.long_keys, &mut buffer);
            let name = &self.scratch[..self.name_length];
            let text_length = writes
                .push(name, key, slot.value.as_ref())
                .map_err(|error| {
                    let key = String::from_utf8_lossy(key);
                    Unwritable {
                        event: slot.event,
                        error: TableError::new(format_args!(
                            "a value under {key} cannot be encoded as JSON: {error}"
                        )),
                    }
                })?;
            // The difference only: the old length is in the sum already.
            self.bytes =
                (self.bytes + text_length as usize).saturating_sub(slot.text_length as usize);
            slot.text_length = text_length;
            slot.dirty = false;
        }
        self.dirty = dirty;
        Ok(())
    }

    fn clear(&mut self) {
        self.index.clear();
        self.slots.clear();
        self.long_keys.clear();
        self.bytes = 0;
    }
}

impl<V: DeserializeOwned> Slot<V> {
    fn fill(&mut self, payload: Option<Payload<'_>>) -> Result<(), serde_json::Error> {
        // Without a payload the state has no entry, which is known from now on, too.
        if let Some(payload) = payload {
            self.value = Some(decode(payload)?);
            self.text_length = payload.as_bytes().len() as u32;
        }
        self.loaded = true;
        Ok(())
    }
}

/// Decodes a stored value, always into the same function.
#[inline(never)]
pub(crate) fn decode<V: DeserializeOwned>(payload: Payload<'_>) -> Result<V, serde_json::Error> {
    payload.json()
}

#[cold]
pub(crate) fn undecodable(key: &str, error: &serde_json::Error) -> TableError {
    TableError::new(format_args!(
        "the value of {key} does not match its type: {error}; raise the state version if values \
         change their format"
    ))
}

impl<V: Serialize + DeserializeOwned> Cached for RefCell<Cache<V>> {
    fn collect(&self, writes: &mut Writes) -> Result<(), Unwritable> {
        self.borrow_mut().collect_into(writes)
    }

    fn end_batch(&self) -> usize {
        let mut cache = self.borrow_mut();
        cache.misses_before = std::mem::take(&mut cache.misses);
        cache.bytes
    }

    fn clear(&self) {
        self.borrow_mut().clear();
    }
}
