//! The state file: one redb file with entries, checkpoint and format version.
//!
//! Entries are keyed by their UTF-8 keys. A value is one byte that tells text
//! (1) from bytes (2), followed by its octets. The table `meta` holds `format`,
//! `checkpoint` (JSON of [`Checkpoint`]), `bytes` (the sum of all keys and
//! values, 8 bytes big endian), and `settled` (a position, 8 bytes big endian:
//! readers saw nothing beyond it; absent if they may have). The table
//! `exceptions` records what happened to events that were not folded: a
//! sequence, and the JSON of an [`Exception`].
//!
//! Format 1 has no exceptions, and its checkpoint does not record what was last seen, where the
//! state began and what was missing. Opening a file makes it format 2. Format 3 adds the owner of
//! effects and their table (`outbox.rs`), timers (`timers.rs`), and parked events (`parked.rs`);
//! only files with one of them have it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use redb::{
    Database, ReadOnlyTable, ReadableDatabase, ReadableTable, ReadableTableMetadata as _,
    TableDefinition,
};

use super::exceptions::Exception;
use super::inbox;
use super::known::Known;
use super::memtable::Memtable;
use super::opening::{check_format, open_database};
use super::outbox::{self, Found, Pending, Waiting};
use super::parked;
use super::places::Sought;
use super::tables::Frozen;
use super::{Error, Key, Options, timers};
use crate::data_path::within;
use crate::event::Payload;
use crate::memory::Reservation;
use crate::position::Checkpoint;
use crate::{damage, storage};

/// The format of files without an owner of effects, timers and parked events.
pub const FORMAT: u32 = 2;
/// The format of files with one of them, and the newest that this build reads.
pub const FORMAT_OWNED: u32 = 3;

pub(super) const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
pub(super) const EXCEPTIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("exceptions");

/// The row of `meta` that says beyond which position readers saw nothing.
pub const SETTLED: &str = "settled";

const TEXT: u8 = 1;
const BYTES: u8 = 2;

/// From this size on, a commit also writes data with which an unclean stop can be repaired without
/// reading the whole file; below it, reading everything is faster than writing more at every
/// commit.
const QUICK_REPAIR_BYTES: u64 = 128 << 20;

/// A consistent view of the file.
pub(super) type Base = Arc<Committed>;

/// The tables of the file as of a commit.
#[derive(Debug)]
pub(super) struct Committed {
    entries: ReadOnlyTable<&'static str, &'static [u8]>,
    /// The keys that it may have; none if nothing is known of them.
    known: Option<Arc<Known>>,
    inbox: Option<inbox::Tables>,
}

impl std::ops::Deref for Committed {
    type Target = ReadOnlyTable<&'static str, &'static [u8]>;

    fn deref(&self) -> &Self::Target {
        &self.entries
    }
}

impl Committed {
    pub(super) fn of(entries: ReadOnlyTable<&'static str, &'static [u8]>) -> Self {
        Self {
            entries,
            known: None,
            inbox: None,
        }
    }

    /// Ids of events, if the state ever had an inbox.
    pub(super) fn inbox(&self) -> Option<&inbox::Tables> {
        self.inbox.as_ref()
    }
}

/// An open state file.
#[derive(Debug)]
pub(super) struct File {
    database: damage::Open<Database>,
    path: Box<Path>,
    /// The keys that it may have.
    known: Arc<Known>,
}

/// The metadata read when a file was opened.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) base: Base,
    /// Its timers; none if it has never had any.
    pub(super) timers: Option<Base>,
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) bytes: u64,
    /// The position beyond which readers saw nothing, if known.
    pub(super) settled: Option<u64>,
    pub(super) exceptions: BTreeMap<u64, Exception>,
    /// Its owner, and the effects that wait.
    pub(super) outbox: Found,
    pub(super) parked: parked::Index,
    /// It was last written by an earlier release, which made everything durable at each pause.
    pub(super) is_of_format_1: bool,
}

/// Metadata of a file.
#[derive(Default)]
struct Noted {
    checkpoint: Option<Checkpoint>,
    bytes: u64,
    settled: Option<u64>,
    is_of_format_1: bool,
    /// It was created by this call, and has no entries.
    is_new: bool,
}

/// Runs work on the file. A panic of redb at damage is an error like any other damage.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let damaged = |error: damage::Inconsistent| {
        let text = format!("{error}; check the disk, and rebuild");
        Error::Damaged(storage::Error::because(text, error))
    };
    damage::guarded(work).unwrap_or_else(|error| Err(damaged(error)))
}

/// The error of a state for one of the database below it.
pub(super) fn storage(error: impl Into<redb::Error>) -> Error {
    let error = error.into();
    let is_damage = matches!(error, redb::Error::Corrupted(_));
    let error = storage::Error::of(error);
    if is_damage {
        Error::Damaged(error)
    } else {
        Error::Storage(error)
    }
}

/// The error of a file with a row that is not the JSON that it should be.
pub(super) fn unreadable(text: String, error: serde_json::Error) -> Error {
    Error::Open(storage::Error::because(text, error))
}

impl File {
    /// Opens or creates the file; `memory` is for what is known of its keys.
    pub(super) fn open(
        path: &Path,
        cache_bytes: usize,
        memory: Reservation,
        progress: impl Fn(f64) + 'static,
    ) -> Result<Opened, Error> {
        let database = open_database(path, cache_bytes, progress)?;
        let mut file = Self {
            database,
            path: path.into(),
            known: Arc::new(Known::unknown()),
        };
        let noted = guarded(|| file.prepare())?;
        if noted.is_new {
            file.known = Arc::new(Known::nothing(memory));
        }
        let Noted {
            checkpoint,
            bytes,
            settled,
            is_of_format_1,
            ..
        } = noted;
        let (base, exceptions) = (file.base()?, guarded(|| file.exceptions())?);
        let outbox = guarded(|| outbox::found(&file.database))?;
        let parked = guarded(|| parked::found(&file.database))?;
        let timers = file.timers()?;
        Ok(Opened {
            file,
            base,
            timers,
            checkpoint,
            bytes,
            settled,
            exceptions,
            outbox,
            parked,
            is_of_format_1,
        })
    }

    /// Reads the metadata of the file. Writes only to a new one: a state on a full disk can be
    /// opened and read.
    fn prepare(&self) -> Result<Noted, Error> {
        let transaction = self.database.begin_read().map_err(storage)?;
        // No table at all: the file was created a moment ago, or a crash came right after that.
        if transaction.list_tables().map_err(storage)?.next().is_none() {
            self.begin()?;
            return Ok(Noted {
                is_new: true,
                ..Noted::default()
            });
        }
        let meta = transaction.open_table(META).map_err(storage)?;
        let read = |name: &str| {
            meta.get(name)
                .map(|value| value.map(|value| value.value().to_vec()))
                .map_err(storage)
        };
        let format = read("format")?;
        check_format(&self.path, format.as_deref())?;
        let is_of_format_1 = format.is_some_and(|format| format == 1_u32.to_be_bytes());
        let checkpoint = read("checkpoint")?
            .map(|json| serde_json::from_slice(&json))
            .transpose()
            .map_err(|error| {
                let text = format!(
                    "{}: checkpoint is unreadable: {error}; remove the file to rebuild the state",
                    within(&self.path)
                );
                unreadable(text, error)
            })?;
        let number = |bytes: Option<Vec<u8>>| {
            bytes
                .and_then(|bytes| bytes.try_into().ok())
                .map(u64::from_be_bytes)
        };
        let (bytes, settled) = (number(read("bytes")?).unwrap_or(0), number(read(SETTLED)?));
        Ok(Noted {
            checkpoint,
            bytes,
            settled,
            is_of_format_1,
            is_new: false,
        })
    }

    /// Creates the tables of a new file.
    fn begin(&self) -> Result<(), Error> {
        let transaction = self.database.begin_write().map_err(storage)?;
        {
            transaction.open_table(ENTRIES).map_err(storage)?;
            transaction.open_table(EXCEPTIONS).map_err(storage)?;
            let mut meta = transaction.open_table(META).map_err(storage)?;
            meta.insert("format", FORMAT.to_be_bytes().as_slice())
                .map_err(storage)?;
        }
        transaction.commit().map_err(storage)
    }

    /// Records durably that readers saw nothing beyond a position; none removes the record.
    pub(super) fn note_settled(&self, position: Option<u64>) -> Result<(), Error> {
        guarded(|| self.note_settled_now(position))
    }

    fn note_settled_now(&self, position: Option<u64>) -> Result<(), Error> {
        let transaction = self.begin_write()?;
        {
            let mut meta = transaction.open_table(META).map_err(storage)?;
            match position {
                Some(position) => drop(
                    meta.insert(SETTLED, position.to_be_bytes().as_slice())
                        .map_err(storage)?,
                ),
                None => drop(meta.remove(SETTLED).map_err(storage)?),
            }
        }
        transaction.commit().map_err(storage)
    }

    /// A view of the last commit.
    pub(super) fn base(&self) -> Result<Base, Error> {
        guarded(|| {
            let transaction = self.database.begin_read().map_err(storage)?;
            Ok(Arc::new(Committed {
                entries: transaction.open_table(ENTRIES).map_err(storage)?,
                known: Some(Arc::clone(&self.known)),
                inbox: inbox::Tables::of(&transaction)?,
            }))
        })
    }

    #[cfg(test)]
    pub(super) fn hang(&self) -> std::sync::mpsc::Sender<()> {
        self.known.hang()
    }

    /// Everything as of the last commit.
    pub(super) fn frozen(&self) -> Result<Frozen, Error> {
        Ok(Frozen::of(self.database.begin_read().map_err(storage)?))
    }

    fn exceptions(&self) -> Result<BTreeMap<u64, Exception>, Error> {
        let transaction = self.database.begin_read().map_err(storage)?;
        let table = match transaction.open_table(EXCEPTIONS) {
            Ok(table) => table,
            // Format 1 has no such table; a file gets it with the first exception.
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(BTreeMap::new()),
            Err(error) => return Err(storage(error)),
        };
        let rows = table.iter().map_err(storage)?.map(|row| {
            let (sequence, json) = row.map_err(storage)?;
            let exception = serde_json::from_slice(json.value()).map_err(|error| {
                let text = format!(
                    "{}: the exception of event {} is unreadable: {error}; upgrade foldstream, or \
                     remove the file to rebuild the state",
                    within(&self.path),
                    sequence.value()
                );
                unreadable(text, error)
            })?;
            Ok((sequence.value(), exception))
        });
        rows.collect()
    }

    /// Begins a durable transaction.
    pub(super) fn begin_write(&self) -> Result<redb::WriteTransaction, Error> {
        // The default of redb is a commit that is durable when it returns.
        let mut transaction = self.database.begin_write().map_err(storage)?;
        if self.bytes() > QUICK_REPAIR_BYTES {
            transaction.set_quick_repair(true);
        }
        Ok(transaction)
    }

    /// Reads as of the last commit.
    pub(super) fn begin_read(&self) -> Result<redb::ReadTransaction, Error> {
        self.database.begin_read().map_err(storage)
    }

    /// Commits a memtable and its checkpoint durably, and removes confirmed effects; returns the
    /// sum of keys and values, and what was removed.
    pub(super) fn commit(
        &self,
        table: &Memtable,
        checkpoint: &Checkpoint,
        bytes_before: u64,
        sent: &Pending,
    ) -> Result<(u64, Waiting), Error> {
        guarded(|| self.commit_now(table, checkpoint, bytes_before, sent))
    }

    fn commit_now(
        &self,
        table: &Memtable,
        checkpoint: &Checkpoint,
        bytes_before: u64,
        sent: &Pending,
    ) -> Result<(u64, Waiting), Error> {
        let transaction = self.begin_write()?;
        // Entries, checkpoint, exceptions, timers, effects and parked events: one transaction.
        let mut writer = EntryWriter::new(&transaction, bytes_before)?;
        self.note_keys(table);
        writer.write_all(table)?;
        let bytes = writer.finish(&transaction, checkpoint)?;
        write_exceptions(&transaction, &table.exceptions())?;
        table.with_ids(|ids| ids.write(&transaction))?;
        timers::write(&transaction, table)?;
        let removed = outbox::write(&transaction, &table.rows(), sent)?;
        parked::write(&transaction, &table.parked_rows())?;
        transaction.commit().map_err(storage)?;
        Ok((bytes, removed))
    }

    /// Notes the keys of a memtable, so that they are not taken for absent once it is committed.
    fn note_keys(&self, table: &Memtable) {
        table.each_hash(|hashes| self.known.add(hashes));
    }

    /// Its allocated disk space, in bytes.
    pub(super) fn allocated_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        // Blocks of 512 bytes, whatever the block size of the file system is (`stat(2)`).
        std::fs::metadata(&self.path).map_or(0, |metadata| metadata.blocks() * 512)
    }

    /// Size on disk, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len())
    }
}

fn write_exceptions(
    transaction: &redb::WriteTransaction,
    exceptions: &BTreeMap<u64, Exception>,
) -> Result<(), Error> {
    if exceptions.is_empty() {
        return Ok(());
    }
    let mut table = transaction.open_table(EXCEPTIONS).map_err(storage)?;
    for (sequence, exception) in exceptions {
        let json = serde_json::to_vec(exception).expect("an exception is plain data");
        table.insert(*sequence, json.as_slice()).map_err(storage)?;
    }
    Ok(())
}

/// What a state has passed.
pub(super) struct Passed<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) exceptions: &'a BTreeMap<u64, Exception>,
}

/// Creates a complete new file: `fill` writes its entries, and `fill_others` its timers and the ids
/// of its events.
pub(super) fn make(
    path: &Path,
    passed: Passed<'_>,
    fill: impl FnOnce(&mut EntryWriter<'_>) -> Result<(), Error>,
    fill_others: impl FnOnce(&redb::WriteTransaction) -> Result<(), Error>,
) -> Result<(), Error> {
    let database = Database::builder()
        .set_cache_size(Options::default().cache_bytes)
        .create(path)
        .map_err(storage)?;
    let transaction = database.begin_write().map_err(storage)?;
    let mut writer = EntryWriter::new(&transaction, 0)?;
    fill(&mut writer)?;
    writer.finish(&transaction, passed.checkpoint)?;
    write_exceptions(&transaction, passed.exceptions)?;
    fill_others(&transaction)?;
    transaction.commit().map_err(storage)
}

/// Writes entries in a transaction, and tracks their size.
pub(super) struct EntryWriter<'t> {
    entries: redb::Table<'t, &'static str, &'static [u8]>,
    envelope: Vec<u8>,
    bytes: u64,
}

impl<'t> EntryWriter<'t> {
    fn new(transaction: &'t redb::WriteTransaction, bytes: u64) -> Result<Self, Error> {
        Ok(Self {
            entries: transaction.open_table(ENTRIES).map_err(storage)?,
            envelope: Vec::new(),
            bytes,
        })
    }

    /// The sum of keys and values, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sets a key, or deletes it.
    pub(super) fn write(&mut self, key: &str, value: Option<&Payload>) -> Result<(), Error> {
        let replaced = match value {
            Some(value) => {
                self.bytes += (key.len() + value.len()) as u64;
                wrap(value, &mut self.envelope);
                self.entries.insert(key, self.envelope.as_slice())
            }
            None => self.entries.remove(key),
        };
        let replaced = replaced
            .map_err(storage)?
            .map_or(0, |old| (key.len() + old.value().len()).saturating_sub(1));
        self.bytes = self.bytes.saturating_sub(replaced as u64);
        Ok(())
    }

    /// Writes what a memtable has.
    fn write_all(&mut self, table: &Memtable) -> Result<(), Error> {
        if self.entries.is_empty().map_err(storage)? {
            self.fill(table)
        } else {
            table.for_each(|key, value| self.write(key, value.as_ref()))
        }
    }

    /// Writes the entries of a memtable into an empty file: in order, page by page.
    fn fill(&mut self, table: &Memtable) -> Result<(), Error> {
        let end = self.entries.upper_bound_mut(Bound::<&str>::Unbounded);
        let mut end = end.map_err(storage)?;
        table.for_each(|key, value| {
            // There is nothing to delete.
            let Some(value) = value else { return Ok(()) };
            self.bytes += (key.len() + value.len()) as u64;
            wrap(value, &mut self.envelope);
            end.insert_before(&**key, self.envelope.as_slice())
                .map_err(storage)
        })?;
        // Not by a drop, which would hide an error.
        end.close().map_err(storage)
    }

    /// Sets the checkpoint; returns the sum of keys and values.
    fn finish(
        self,
        transaction: &redb::WriteTransaction,
        checkpoint: &Checkpoint,
    ) -> Result<u64, Error> {
        let mut meta = transaction.open_table(META).map_err(storage)?;
        let json = serde_json::to_vec(checkpoint).expect("a checkpoint is plain data");
        meta.insert("checkpoint", json.as_slice())
            .map_err(storage)?;
        // An older file gets this format with the first data that only this format has, and not
        // before: opening writes nothing.
        let has_owner = meta.get(outbox::OWNER).map_err(storage)?.is_some();
        let has_parked = meta.get(parked::FROM).map_err(storage)?.is_some();
        let format = if has_owner || has_parked || has_timers(&meta)? {
            FORMAT_OWNED
        } else {
            FORMAT
        };
        meta.insert("format", format.to_be_bytes().as_slice())
            .map_err(storage)?;
        meta.insert("bytes", self.bytes.to_be_bytes().as_slice())
            .map_err(storage)?;
        Ok(self.bytes)
    }
}

/// Whether a file has had timers, by its metadata.
pub(super) fn has_timers(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<bool, Error> {
    Ok(meta.get(timers::HAS_TIMERS).map_err(storage)?.is_some())
}

pub(super) fn wrap(value: &Payload, envelope: &mut Vec<u8>) {
    envelope.clear();
    envelope.push(if value.as_str().is_some() {
        TEXT
    } else {
        BYTES
    });
    envelope.extend_from_slice(value.as_bytes());
}

pub(super) fn unwrap(envelope: &[u8]) -> Result<Payload, Error> {
    let damaged = || Error::damaged("a stored value is damaged; check the disk, and rebuild");
    match envelope.split_first() {
        Some((&TEXT, text)) => ByteString::try_from(Bytes::copy_from_slice(text))
            .map(Payload::Text)
            .map_err(|_| damaged()),
        Some((&BYTES, bytes)) => Ok(Payload::Bytes(Bytes::copy_from_slice(bytes))),
        _ => Err(damaged()),
    }
}

#[cfg(test)]
thread_local! {
    /// How often this thread has looked up a key in a file.
    pub(super) static LOOKS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// The value of a key in the file.
pub(super) fn get(base: &Base, sought: Sought<'_>) -> Result<Option<Payload>, Error> {
    let may_have = |known: &Arc<Known>| known.may_have(sought.hash);
    if !base.known.as_ref().is_none_or(may_have) {
        return Ok(None);
    }
    #[cfg(test)]
    LOOKS.set(LOOKS.get() + 1);
    guarded(|| {
        base.get(sought.key)
            .map_err(storage)?
            .map(|value| unwrap(value.value()))
            .transpose()
    })
}

/// The stored size of a key and its value; 0 if absent.
pub(super) fn size_of(base: &Base, key: &str) -> Result<u64, Error> {
    let stored = |value: redb::AccessGuard<'_, &[u8]>| {
        (key.len() + value.value().len()).saturating_sub(1) as u64
    };
    #[cfg(test)]
    LOOKS.set(LOOKS.get() + 1);
    guarded(|| Ok(base.get(key).map_err(storage)?.map_or(0, stored)))
}

/// The number of entries in the file, which it keeps.
pub(super) fn entries(base: &Base) -> Result<u64, Error> {
    base.len().map_err(storage)
}

/// One entry of the file.
pub(super) fn entry(
    (key, value): (
        redb::AccessGuard<'_, &'static str>,
        redb::AccessGuard<'_, &'static [u8]>,
    ),
) -> Result<(Key, Payload), Error> {
    Ok((Key::from(key.value()), unwrap(value.value())?))
}

/// Checks a state file or the catalogue: reads every page and verifies every checksum. A damaged
/// file that has an intact older commit goes back to that. Blocking, and slow for a large file.
pub fn check(path: &Path) -> Result<bool, Error> {
    let mut database = open_database(path, 16 << 20, |_| ())?;
    guarded(|| database.check_integrity().map_err(storage))
}

/// Gives back to the disk what a state file, an embedded log or the catalogue does not use.
/// Blocking and long on a large file. Each step is a commit, so that it may be interrupted.
pub fn compact(path: &Path) -> Result<(), Error> {
    let mut database = open_database(path, 16 << 20, |_| ())?;
    guarded(|| {
        // Each round moves pages to the front, until one finds nothing to move.
        while database.compact().map_err(storage)? {}
        Ok(())
    })
}
