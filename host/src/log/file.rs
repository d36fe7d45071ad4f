//! The file of a log: its tables, its format version, and the metadata that is
//! read when it is opened.
//!
//! Tables of format 1:
//!
//! | table | key | value |
//! |---|---|---|
//! | `chunks` | sequence of the first event | a run of events, see `chunk.rs` |
//! | `subjects` | subject | last sequence, as far as `indexed_through` says |
//! | `removed_ids` | sequence | id of an event that retention removed, see `removed_ids.rs` |
//! | `log` | name of a setting | little-endian u64, or text |

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redb::{
    Database, ReadableDatabase, ReadableTable, TableDefinition, TableHandle, WriteTransaction,
};
use tracing::{info, warn};

use super::append::Writer;
use super::chunk::{Builder, Corrupt, Cursor};
use super::encode::id_key;
use super::ids::{IDS_MAX, Ids};
use super::subjects::Subjects;
use super::{Error, Options, View, removed_ids};
use crate::data_path::within;
use crate::position::StreamIdentity;
use crate::{advice, atomic_file, damage, storage};

/// Runs of events by the sequence of their first.
pub(super) const CHUNKS: TableDefinition<'static, u64, &'static [u8]> =
    TableDefinition::new("chunks");
/// Last sequences by subject.
pub(super) const SUBJECTS: TableDefinition<'static, &'static str, u64> =
    TableDefinition::new("subjects");
const SETTINGS: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("log");

/// The format that this build writes, and the only one that it reads.
const FORMAT: u64 = 1;

/// Failures below the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The disk, or the tree.
    #[error("{0}; free space or repair the disk, then try again")]
    Redb(#[source] Box<redb::Error>),
    /// The data in the tree is inconsistent.
    #[error("the file is damaged: {0}; restore it from a backup")]
    Corrupt(#[from] Corrupt),
    /// The data in the tree is inconsistent, as noticed above the chunks.
    #[error("the file is damaged: {0}; restore it from a backup")]
    Damaged(String),
    /// It failed before and is not open.
    #[error(transparent)]
    Closed(#[from] storage::Error),
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::Redb(Box::new(error.into()))
            }
        }
    )*};
}
from_redb!(
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError
);

impl From<Failure> for storage::Error {
    fn from(failure: Failure) -> Self {
        let text = failure.to_string();
        match failure {
            Failure::Redb(error) => Self::because(text, *error),
            Failure::Corrupt(error) => Self::because(text, error),
            Failure::Damaged(_) => Self::new(text),
            Failure::Closed(error) => error,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Storage(failure.into())
    }
}

/// The error of a log that can't be opened; `text` says why.
fn refused(
    path: &Path,
    text: impl std::fmt::Display,
    source: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::Open(storage::Error::because(
        format!("{}: {text}", within(path)),
        source,
    ))
}

fn refused_by_redb(path: &Path, error: redb::DatabaseError) -> Error {
    refused(path, explain(&error), redb::Error::from(error))
}

fn refused_by(path: &Path, failure: Failure) -> Error {
    let failure = storage::Error::from(failure);
    refused(path, failure.to_string(), failure)
}

/// Largest sequence and largest number of bytes: no log ever reaches them, and sums of larger
/// numbers could overflow.
const NUMBER_MAX: u64 = u64::MAX >> 2;

/// Metadata that changes while the log is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trim {
    /// First sequence that still exists.
    pub first_sequence: u64,
    /// Bytes of all events before it.
    pub bytes_before: u64,
    /// Last sequence and time when this was written: used if no events are left.
    pub last_sequence: u64,
    pub last_time_ns: u64,
}

impl Trim {
    fn load(settings: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Self, Failure> {
        let trim = Self {
            first_sequence: number(settings, "first_sequence")?,
            bytes_before: number(settings, "bytes_before")?,
            last_sequence: number(settings, "last_sequence")?,
            last_time_ns: number(settings, "last_time_ns")?,
        };
        // Before they are computed with: sums of damaged numbers could overflow.
        trim.check()?;
        Ok(trim)
    }

    /// Writes it, in the transaction that removes the events.
    pub(super) fn store(&self, transaction: &WriteTransaction) -> Result<(), Failure> {
        let mut settings = transaction.open_table(SETTINGS)?;
        for (name, value) in [
            ("first_sequence", self.first_sequence),
            ("bytes_before", self.bytes_before),
            ("last_sequence", self.last_sequence),
            ("last_time_ns", self.last_time_ns),
        ] {
            settings.insert(name, value.to_le_bytes().as_slice())?;
        }
        Ok(())
    }

    /// Checks that the numbers are possible, for any content of the log.
    fn check(&self) -> Result<(), Failure> {
        let is_small = [self.first_sequence, self.last_sequence, self.bytes_before]
            .iter()
            .all(|it| *it <= NUMBER_MAX);
        if is_small && (1..=self.last_sequence.saturating_add(1)).contains(&self.first_sequence) {
            return Ok(());
        }
        Err(Failure::Damaged(
            "its settings contradict each other".to_owned(),
        ))
    }
}

/// From this size on, a commit also writes data with which an unclean stop can be repaired without
/// reading the whole file; below it, reading everything is faster than writing more at every
/// commit.
const QUICK_REPAIR_BYTES: u64 = 128 << 20;

/// Begins a transaction that changes a log in the state of a view.
pub(super) fn begin_write(database: &Database, view: &View) -> Result<WriteTransaction, Failure> {
    let mut transaction = database.begin_write()?;
    // Of the events that exist: about the size of the file.
    if view.bytes - view.bytes_before > QUICK_REPAIR_BYTES {
        transaction.set_quick_repair(true);
    }
    Ok(transaction)
}

/// Records how far the table of subjects is complete.
pub(super) fn store_indexed_through(
    transaction: &WriteTransaction,
    sequence: u64,
) -> Result<(), Failure> {
    let mut settings = transaction.open_table(SETTINGS)?;
    settings.insert("indexed_through", sequence.to_le_bytes().as_slice())?;
    Ok(())
}

/// An open file, and its metadata.
pub(super) struct Opened {
    pub database: damage::Open<Database>,
    pub identity: StreamIdentity,
    pub trim: Trim,
    pub writer: Writer,
}

/// Opens or creates the file.
pub(super) fn open(path: &Path, options: &Options, now_ns: u64) -> Result<Opened, Error> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        // Its parents too: a first start begins with an empty data folder.
        fs::create_dir_all(folder)
            .map_err(|error| refused(path, format!("cannot create its folder: {error}"), error))?;
    }
    let database = open_database(path, options).map_err(|error| refused_by_redb(path, error))?;
    guarded(|| initialise(&database, options, now_ns))
        .map_err(|failure| refused_by(path, failure))?;
    if let Some(folder) = folder {
        // A new file is durable only once its folder is.
        fs::File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| refused(path, format!("cannot sync its folder: {error}"), error))?;
    }
    let mut opened =
        guarded(|| load(database, options, now_ns)).map_err(|failure| refused_by(path, failure))?;
    opened.writer.warn_if_ahead(now_ns);
    Ok(opened)
}

/// Runs work on the file. A panic of redb at damage is a failure like any other damage.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    damage::guarded(work).unwrap_or_else(|error| Err(Failure::Damaged(error.to_string())))
}

fn open_database(
    path: &Path,
    options: &Options,
) -> Result<damage::Open<Database>, redb::DatabaseError> {
    let (name, repair) = (options.name.clone(), Arc::clone(&options.repair));
    let mut builder = redb::Builder::new();
    builder
        .set_cache_size(options.cache_bytes)
        .set_repair_callback(move |session| {
            let percent = (session.progress() * 100.0) as u8;
            if repair.set(Some(percent)) {
                info!(
                    log = name,
                    percent, "repairing the embedded log after an unclean stop"
                );
            }
        });
    // A file that redb was killed while creating could never be opened again, so a new one gets its
    // name only when it is complete.
    let make = |path: &Path| builder.create(path).map(drop).map_err(not_made);
    atomic_file::create(path, make).map_err(redb::StorageError::Io)?;
    let opened = damage::guarded(|| builder.create(path));
    let opened =
        opened.unwrap_or_else(|error| Err(redb::StorageError::Corrupted(error.to_string()).into()));
    options.repair.set(None);
    opened.map(damage::Open::new)
}

/// What the system said when a file could not be made; else that it could not be made.
fn not_made(error: redb::DatabaseError) -> std::io::Error {
    match error {
        redb::DatabaseError::Storage(redb::StorageError::Io(error)) => error,
        error => std::io::Error::other(error),
    }
}

fn explain(error: &redb::DatabaseError) -> String {
    match error {
        redb::DatabaseError::DatabaseAlreadyOpen => {
            "another process has it open; stop that one, or choose another data folder".to_owned()
        }
        redb::DatabaseError::UpgradeRequired(version) => {
            format!(
                "its file format {version} is older than any that foldstream wrote; it is another \
                 program's file"
            )
        }
        redb::DatabaseError::Storage(redb::StorageError::Io(error))
            if advice::of_file(error).is_some() =>
        {
            format!("{error}; {}", advice::of_file(error).unwrap_or_default())
        }
        other => format!("{other}; check that it is a foldstream log, and the disk"),
    }
}

/// Writes the settings of a new log, and checks the format of an old one.
fn initialise(database: &Database, options: &Options, now_ns: u64) -> Result<(), Failure> {
    let transaction = database.begin_write()?;
    let tables: Vec<String> = transaction
        .list_tables()?
        .map(|table| table.name().to_owned())
        .collect();
    // A log gets all of its tables in one commit, so a file without any is new.
    if tables.is_empty() {
        let mut settings = transaction.open_table(SETTINGS)?;
        settings.insert("format", FORMAT.to_le_bytes().as_slice())?;
        settings.insert("name", options.name.as_bytes())?;
        settings.insert("created_ns", now_ns.to_le_bytes().as_slice())?;
        drop(settings);
        transaction.open_table(CHUNKS)?;
        transaction.open_table(SUBJECTS)?;
        Trim {
            first_sequence: 1,
            ..Trim::default()
        }
        .store(&transaction)?;
        store_indexed_through(&transaction, 0)?;
        transaction.commit()?;
        return Ok(());
    }
    if !tables.iter().any(|table| table == SETTINGS.name()) {
        return Err(Failure::Damaged("it is not a foldstream log".to_owned()));
    }
    let format = number(&transaction.open_table(SETTINGS)?, "format")?;
    // Nothing was changed; a format that is not ours must stay as it is.
    transaction.abort()?;
    if format != FORMAT {
        return Err(storage::Error::new(format!(
            "file was written by format {format}, this build reads {FORMAT}; upgrade foldstream, \
             or choose another data folder"
        ))
        .into());
    }
    Ok(())
}

fn number<T>(settings: &T, name: &str) -> Result<u64, Failure>
where
    T: ReadableTable<&'static str, &'static [u8]>,
{
    let value = settings
        .get(name)?
        .and_then(|value| value.value().try_into().ok());
    value
        .map(u64::from_le_bytes)
        .ok_or_else(|| Failure::Damaged(format!("its setting {name} is missing")))
}

/// Reads the data that a writer needs.
fn load(
    database: damage::Open<Database>,
    options: &Options,
    now_ns: u64,
) -> Result<Opened, Failure> {
    let transaction = database.begin_read()?;
    let settings = transaction.open_table(SETTINGS)?;
    let name = settings
        .get("name")?
        .and_then(|name| String::from_utf8(name.value().to_vec()).ok());
    let name = name.ok_or_else(|| Failure::Damaged("its setting name is missing".to_owned()))?;
    if name != options.name {
        warn!(
            stored = name,
            configured = options.name,
            "the embedded log keeps the name that it was created with"
        );
    }
    let identity = StreamIdentity {
        name,
        created_ns: number(&settings, "created_ns")?,
    };
    let trim = Trim::load(&settings)?;
    let chunks = transaction.open_table(CHUNKS)?;
    let mut writer = Writer {
        log: identity.name.clone(),
        last_sequence: trim.last_sequence,
        last_time_ns: trim.last_time_ns,
        appended_ns: now_ns,
        future_max: options.future_max,
        has_warned: false,
        bytes: trim.bytes_before,
        tail: Builder::new(trim.last_sequence + 1),
        ids: Ids::new(options.duplicate_window, IDS_MAX, now_ns),
        subjects: Subjects::new(number(&settings, "indexed_through")?),
    };
    if let Some(row) = chunks.last()? {
        continue_tail(&mut writer, &cursor(&row)?)?;
    }
    // The settings say how far the log was when events were last removed from its beginning. One
    // that ends before that has lost events at its end.
    if writer.last_sequence < trim.last_sequence || writer.bytes < trim.bytes_before {
        return Err(Failure::Damaged(
            "it lacks events that its settings mention".to_owned(),
        ));
    }
    // The first chunk may have lost events at its beginning; it still carries their ids.
    let first_chunk = chunks.first()?.map_or(u64::MAX, |(first, _)| first.value());
    removed_ids::recall(&transaction, &mut writer.ids, first_chunk, now_ns)?;
    recall_ids(&mut writer.ids, &chunks, now_ns)?;
    let indexed_through = number(&settings, "indexed_through")?;
    if indexed_through > writer.last_sequence {
        return Err(Failure::Damaged(
            "it lacks events that its table of subjects mentions".to_owned(),
        ));
    }
    recall_subjects(
        &mut writer,
        &chunks,
        indexed_through.max(trim.first_sequence - 1),
    )?;
    drop((chunks, settings, transaction));
    Ok(Opened {
        database,
        identity,
        trim,
        writer,
    })
}

type Row<'a> = (
    redb::AccessGuard<'a, u64>,
    redb::AccessGuard<'a, &'static [u8]>,
);

/// The events of a row.
pub(super) fn cursor(row: &Row<'_>) -> Result<Cursor, Corrupt> {
    Cursor::new(row.0.value(), Bytes::copy_from_slice(row.1.value()))
}

/// Reads everything in a log that nobody has open: every page with its checksum, and every event.
/// False if the file was damaged and went back to an intact older commit.
pub(super) fn check(path: &Path) -> Result<bool, Error> {
    let mut database =
        open_database(path, &Options::default()).map_err(|error| refused_by_redb(path, error))?;
    let is_sound = damage::guarded(|| database.check_integrity());
    let is_sound = is_sound
        .unwrap_or_else(|error| Err(redb::StorageError::Corrupted(error.to_string()).into()));
    let is_sound = is_sound.map_err(|error| refused_by_redb(path, error))?;
    let read_all = || {
        let transaction = database.begin_read()?;
        for row in transaction.open_table(CHUNKS)?.iter()? {
            let mut events = cursor(&row?)?;
            while events.next()?.is_some() {}
        }
        Ok::<_, Failure>(())
    };
    guarded(read_all).map_err(|failure| refused_by(path, failure))?;
    Ok(is_sound)
}

/// Where appending continues.
fn continue_tail(writer: &mut Writer, tail: &Cursor) -> Result<(), Failure> {
    if tail.next_sequence() == 0 || tail.end() > NUMBER_MAX || tail.bytes_before() > NUMBER_MAX {
        return Err(Failure::Damaged(format!(
            "its last events cannot begin at {}",
            tail.next_sequence()
        )));
    }
    // Read to its end: time and size of the last events are not in the header.
    let mut events = tail.clone();
    writer.bytes = tail.bytes_before();
    while let Some(event) = events.next()? {
        writer.last_time_ns = event.time_ns;
        writer.bytes += event.bytes(tail)?;
    }
    writer.last_sequence = tail.end() - 1;
    writer.appended_ns = writer.appended_ns.max(tail.appended_ns());
    let count = u32::try_from(tail.end() - tail.next_sequence())
        .expect("a chunk counts its events in 32 bits");
    writer.tail = Builder::resume(
        tail.next_sequence(),
        count,
        writer.last_time_ns,
        tail.bytes(),
    );
    Ok(())
}

/// Rebuilds the duplicate window from the last chunks.
fn recall_ids(
    ids: &mut Ids,
    chunks: &impl ReadableTable<u64, &'static [u8]>,
    now_ns: u64,
) -> Result<(), Failure> {
    let horizon = ids.horizon_ns(now_ns);
    let mut recent = Vec::new();
    let mut count = 0_u64;
    // Backwards, because only the newest matter; what is found is then read forwards, so that ids
    // are in the order in which they were appended.
    // A few ids of chunks that are too old do no harm; they are left out below.
    for row in chunks.iter()?.rev() {
        let events = cursor(&row?)?;
        if events.appended_ns() < horizon || count >= IDS_MAX as u64 {
            break;
        }
        if events.has_ids() {
            count += events.end() - events.next_sequence();
            recent.push(events.next_sequence());
        }
    }
    for first in recent.into_iter().rev() {
        let Some(value) = chunks.get(first)? else {
            continue;
        };
        let mut events = Cursor::new(first, Bytes::copy_from_slice(value.value()))?;
        while let Some(event) = events.next()? {
            if let Some(id) = events.id(&event)?.filter(|_| event.appended_ns >= horizon) {
                // A time ahead of the clock is from a time when the clock was wrong.
                let appended_ns = event.appended_ns.min(now_ns);
                ids.insert(id_key(&id), event.sequence, appended_ns);
            }
        }
    }
    Ok(())
}

/// Reads the subjects again that were not in their table yet.
fn recall_subjects(
    writer: &mut Writer,
    chunks: &impl ReadableTable<u64, &'static [u8]>,
    after: u64,
) -> Result<(), Failure> {
    // The chunk with the first event to read may begin before it.
    let start = chunks
        .range(..=after + 1)?
        .next_back()
        .transpose()?
        .map_or(0, |(first, _)| first.value());
    for row in chunks.range(start..)? {
        let mut events = cursor(&row?)?;
        while let Some(event) = events.next()? {
            if event.sequence > after {
                writer
                    .subjects
                    .insert(events.subject(&event)?, event.sequence);
            }
        }
    }
    Ok(())
}

/// How long a failed log waits before it is reopened, so that callers on a full disk do not repair
/// it in a loop.
pub(super) const REOPEN_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_format_is_refused_with_a_way_out() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("events.redb");
        drop(open(&path, &Options::default(), 1).expect("the log opens"));
        set(&path, "format", 2);
        let error = open(&path, &Options::default(), 1)
            .err()
            .expect("is refused")
            .to_string();
        assert!(
            error.contains("format 2, this build reads 1; upgrade foldstream"),
            "{error}"
        );
    }

    /// Changes the value of a setting.
    fn set(path: &Path, name: &str, value: u64) {
        let database = Database::open(path).expect("the file opens");
        let transaction = database.begin_write().expect("begins");
        let mut settings = transaction.open_table(SETTINGS).expect("opens");
        settings
            .insert(name, value.to_le_bytes().as_slice())
            .expect("inserts");
        drop(settings);
        transaction.commit().expect("commits");
    }

    #[test]
    fn settings_that_no_log_can_have_are_refused() {
        for (name, value) in [
            ("first_sequence", 0),
            ("first_sequence", 2),
            ("first_sequence", u64::MAX),
            ("last_sequence", u64::MAX),
            ("last_sequence", 1 << 62),
            ("bytes_before", u64::MAX),
            ("indexed_through", 1),
            ("indexed_through", u64::MAX),
        ] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let path = folder.path().join("events.redb");
            drop(open(&path, &Options::default(), 1).expect("the log opens"));
            set(&path, name, value);
            let error = open(&path, &Options::default(), 1)
                .err()
                .expect(name)
                .to_string();
            assert!(
                error.contains("the file is damaged") && error.contains("backup"),
                "{name} {value}: {error}"
            );
        }
    }

    #[test]
    fn database_of_another_program_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("other.redb");
        let database = Database::create(&path).expect("creates");
        let transaction = database.begin_write().expect("begins");
        transaction
            .open_table(TableDefinition::<u64, u64>::new("numbers"))
            .expect("opens");
        transaction.commit().expect("commits");
        drop(database);

        let error = open(&path, &Options::default(), 1)
            .err()
            .expect("is refused")
            .to_string();
        assert!(error.contains("not a foldstream log"), "{error}");
    }
}
