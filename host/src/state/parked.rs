//! Parked events of a state: events that could not be applied, and later events of their keys,
//! which wait behind them.
//!
//! Rows become durable in the commit that moves the position past their events, and hold the events
//! whole, because the stream may lose them. The index in memory has their sizes and the first
//! failure of each key, never their payloads. Scans, copies, comparisons and quotas do not see this
//! table.
//!
//! The first parked event makes a file format 3, so that a release that knows nothing of parked
//! events refuses it instead of applying later events of a parked key. `parked_from` in `meta` is
//! the lowest sequence that was ever parked in this state: from there on, the stream alone does not
//! say what the state has.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata as _, TableDefinition,
    WriteTransaction,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::file::{FORMAT_OWNED, META, storage};
use super::memtable::Memtable;
use super::releases::{RELEASE_KEY_BYTES, RELEASED, Release, place_of};
use super::{Error, Store, Traced};
use crate::event::{Event, Payload};
use crate::failure::FailureClass;
use crate::position::EventMark;
use crate::timers::Firing;

const PARKED: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("parked");
/// The row of `meta` with the lowest sequence that was ever parked.
pub(super) const FROM: &str = "parked_from";
/// The row of `meta` with the number of the last failure. The row of that failure may be gone.
const FAILURES: &str = "parked_failures";
/// Longer keys are named by their digest, in bytes.
const KEY_BYTES_MAX: usize = 1_024;
/// Longest message of a failure, in bytes.
const MESSAGE_BYTES_MAX: usize = 500;
/// About how much is read at once, in bytes; a single event may be larger.
const READ_BYTES_MAX: u64 = 8 << 20;
/// Most bytes of the entries that a failed event has read, as they are kept with it.
const READS_BYTES_MAX: usize = 4 << 10;
/// Longest part of one of their values, in bytes.
const READ_VALUE_BYTES_MAX: usize = 512;

/// Why an event is parked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedFailure {
    /// As in `Failure::kind`.
    pub kind: String,
    /// The name of its class.
    pub class: String,
    /// What happened.
    pub message: String,
    /// Attempts in all.
    pub attempts: u32,
    /// SHA-256 of the module of the last attempt.
    pub module: String,
    /// When it was parked, in RFC 3339.
    pub first_at: String,
    /// When the last attempt failed, in RFC 3339.
    pub last_at: String,
    /// The entries that the last attempt read, as far as there is room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reads: Vec<ReadEntry>,
    /// It read more entries.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reads_are_cut: bool,
    /// Its number among the first failures of the events of this state, from 1 on; 0 until it is
    /// published. Events fail in another order than they have in the stream, so only this says
    /// which failures are new.
    #[serde(default)]
    pub number: u64,
}

/// An entry that a failed event has read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadEntry {
    /// Its key.
    pub key: String,
    /// Its value, or the beginning of it, as text; none if there was no entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

impl ParkedFailure {
    /// A failure now.
    pub fn new(
        (kind, class): (&str, FailureClass),
        message: &str,
        attempts: u32,
        module: &str,
    ) -> Self {
        let now = jiff::Timestamp::now().to_string();
        Self {
            kind: kind.to_owned(),
            class: class.name().to_owned(),
            message: clipped(message),
            attempts,
            module: module.to_owned(),
            first_at: now.clone(),
            last_at: now,
            reads: Vec::new(),
            reads_are_cut: false,
            number: 0,
        }
    }

    /// The same for the index in memory, which is not to grow with what events read.
    fn without_reads(&self) -> Self {
        Self {
            reads: Vec::new(),
            ..self.clone()
        }
    }

    /// The same, with the entries that the last attempt read.
    pub fn with_reads(mut self, traced: &Traced) -> Self {
        let mut bytes = 0;
        self.reads_are_cut = traced.is_cut;
        for (key, value) in &traced.entries {
            let value = value.as_ref().map(|value| {
                let text = String::from_utf8_lossy(value.as_bytes());
                text[..text.floor_char_boundary(READ_VALUE_BYTES_MAX)].to_owned()
            });
            // Counted before it is added: the record never exceeds its limit.
            bytes += key.len() + value.as_ref().map_or(0, String::len);
            if bytes > READS_BYTES_MAX {
                self.reads_are_cut = true;
                break;
            }
            self.reads.push(ReadEntry {
                key: key.to_string(),
                value,
            });
        }
        self
    }
}

fn clipped(message: &str) -> String {
    message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)].to_owned()
}

/// A parked event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Its key, or the digest of a long one.
    pub key: String,
    /// The event.
    pub event: Event,
    /// Why; none if it waits behind an earlier event of its key.
    pub failure: Option<ParkedFailure>,
}

/// What a row has besides the data of the event.
#[derive(Serialize, Deserialize)]
struct Head {
    key: String,
    sequence: u64,
    time_ns: u64,
    subject: String,
    kind: String,
    headers: Vec<(String, String)>,
    /// The data is text.
    is_text: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failure: Option<ParkedFailure>,
}

/// The key of a row: a digest of the key, and the sequence.
pub(super) type RowKey = Box<[u8]>;

/// Rows of one memtable; none removes a row.
pub(super) type Rows = BTreeMap<RowKey, Option<Bytes>>;

fn row_key(key: &str, sequence: u64) -> RowKey {
    let digest = Sha256::digest(key.as_bytes());
    // Half of the digest is enough to tell keys apart, and keeps rows of a key together.
    digest[..16]
        .iter()
        .copied()
        .chain(sequence.to_be_bytes())
        .collect()
}

/// The sequence of the event of a row, by its key.
fn sequence_of(key: &[u8]) -> Option<u64> {
    let sequence = key.last_chunk::<8>()?;
    Some(u64::from_be_bytes(*sequence))
}

impl Parked {
    /// The name under which a key is parked. Events without a key share one.
    pub fn name_of(key: Option<String>) -> String {
        let key = key.unwrap_or_default();
        // Long keys would make each of their rows as long.
        if key.len() <= KEY_BYTES_MAX {
            return key;
        }
        let digest = Sha256::digest(key.as_bytes());
        let hexadecimal: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hexadecimal}")
    }

    /// The digest of its event, in hexadecimal.
    pub fn digest(&self) -> String {
        EventMark::of(&self.event)
            .digest
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// Its place in the table.
    fn row_key(&self) -> RowKey {
        row_key(&self.key, self.event.sequence)
    }

    /// The length of its head, its head as JSON, the data of the event.
    fn row(&self) -> Bytes {
        let Self {
            key,
            event,
            failure,
        } = self;
        let head = Head {
            key: key.clone(),
            sequence: event.sequence,
            time_ns: event.time_ns,
            subject: event.subject.to_string(),
            kind: event.kind.to_string(),
            headers: event
                .headers
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
            is_text: event.data.as_str().is_some(),
            failure: failure.clone(),
        };
        let json = serde_json::to_vec(&head).expect("a head is plain data");
        // Lengths first, so that the data needs no escaping.
        let length = u32::try_from(json.len()).expect("events are limited");
        let mut row = Vec::with_capacity(4 + json.len() + event.data.len());
        row.extend_from_slice(&length.to_be_bytes());
        row.extend_from_slice(&json);
        row.extend_from_slice(event.data.as_bytes());
        row.into()
    }

    fn read(row: &[u8]) -> Option<Self> {
        let (head, data) = split(row)?;
        let data = Bytes::copy_from_slice(data);
        let data = if head.is_text {
            Payload::detect(data)
        } else {
            Payload::Bytes(data)
        };
        let headers = head
            .headers
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        let event = Event {
            sequence: head.sequence,
            time_ns: head.time_ns,
            subject: head.subject.into(),
            kind: head.kind.into(),
            headers,
            data,
        };
        Some(Self {
            key: head.key,
            event,
            failure: head.failure,
        })
    }
}

fn split(row: &[u8]) -> Option<(Head, &[u8])> {
    let (length, rest) = row.split_first_chunk::<4>()?;
    let (json, data) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    Some((serde_json::from_slice(json).ok()?, data))
}

/// What the index knows of a parked event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    /// Size of its row, in bytes.
    bytes: u64,
    /// Of a firing.
    firing: Option<FiringHash>,
}

/// Identifies a timer.
type FiringHash = [u8; 16];

fn firing_hash(subject: &str, name: &str) -> FiringHash {
    let mut hash = Sha256::new();
    hash.update((subject.len() as u64).to_be_bytes());
    hash.update(subject);
    hash.update(name);
    let hash: [u8; 32] = hash.finalize().into();
    // Half of it is enough to tell timers apart, and there may be many.
    let (half, _) = hash.split_first_chunk().expect("it has 32 bytes");
    *half
}

/// A key with parked events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedKey {
    /// The rows of its events, by sequence.
    rows: BTreeMap<u64, Row>,
    /// When the stream stored its first event, in nanoseconds since the Unix epoch.
    first_ns: u64,
    /// The failure of its first event, without what it read; none if that was dropped, and the next
    /// was not tried yet.
    pub failure: Option<ParkedFailure>,
}

impl ParkedKey {
    /// The sequences of its events, in rising order.
    pub fn sequences(&self) -> impl Iterator<Item = u64> {
        self.rows.keys().copied()
    }

    /// How many events it has.
    pub fn events(&self) -> u64 {
        self.rows.len() as u64
    }

    /// Their size, in bytes.
    pub fn bytes(&self) -> u64 {
        self.rows.values().map(|row| row.bytes).sum()
    }
}

/// How much is parked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParkedCounts {
    /// Keys.
    pub keys: u64,
    /// Events of them.
    pub events: u64,
    /// Their size, in bytes.
    pub bytes: u64,
}

/// What is parked, durable or not.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) keys: BTreeMap<String, ParkedKey>,
    counts: ParkedCounts,
    /// How many firings of each timer are parked.
    firings: HashMap<FiringHash, u32>,
    /// The lowest sequence that was ever parked.
    pub(super) from: Option<u64>,
    /// The number of the last failure, and of the last durable one.
    failures: u64,
    durable_failures: u64,
    /// How many events have left durably since the file was opened.
    left: u64,
    /// Position and number of the last release.
    pub(super) last_release: Option<(u64, u32)>,
    /// How many releases there were.
    pub(super) releases: u64,
}

impl Index {
    /// How much there is.
    pub(super) fn counts(&self) -> ParkedCounts {
        self.counts
    }

    /// Whether any of these events is parked.
    pub(super) fn has_any(&self, sequences: &[u64]) -> bool {
        self.keys.values().any(|key| {
            sequences
                .iter()
                .any(|sequence| key.rows.contains_key(sequence))
        })
    }

    /// Adds the row of an event, or replaces it.
    fn add(&mut self, row: &[u8]) -> Option<()> {
        let (head, data) = split(row)?;
        let firing = Firing::parse(&head.subject, data);
        let firing = firing.map(|firing| firing_hash(&head.subject, &firing.name));
        let bytes = row.len() as u64;

        let key = self.keys.entry(head.key.clone()).or_insert_with(|| {
            self.counts.keys += 1;
            ParkedKey {
                rows: BTreeMap::new(),
                first_ns: head.time_ns,
                failure: None,
            }
        });
        // The same sequence again replaces its row: it failed once more.
        match key.rows.insert(head.sequence, Row { bytes, firing }) {
            Some(before) => self.counts.bytes -= before.bytes,
            None => {
                self.counts.events += 1;
                if let Some(firing) = firing {
                    *self.firings.entry(firing).or_default() += 1;
                }
            }
        }
        self.counts.bytes += bytes;
        if let Some(failure) = &head.failure {
            self.failures = self.failures.max(failure.number);
        }
        // Only the first event of a key has failed; the others have not been tried.
        if key
            .rows
            .first_key_value()
            .is_some_and(|(first, _)| *first == head.sequence)
        {
            key.failure = head.failure.as_ref().map(ParkedFailure::without_reads);
        }
        self.from = Some(
            self.from
                .map_or(head.sequence, |from| from.min(head.sequence)),
        );
        Some(())
    }

    /// The same; a first failure gets its number.
    fn numbered<'a>(&self, parked: &'a Parked) -> Cow<'a, Parked> {
        let is_first = |failure: &ParkedFailure| failure.number == 0;
        if !parked.failure.as_ref().is_some_and(is_first) {
            return Cow::Borrowed(parked);
        }
        let mut parked = parked.clone();
        if let Some(failure) = &mut parked.failure {
            failure.number = self.failures + 1;
        }
        Cow::Owned(parked)
    }

    fn remove(&mut self, key: &str, sequence: u64) {
        let Some(found) = self.keys.get_mut(key) else {
            return;
        };
        // What follows has not been tried yet.
        if found
            .rows
            .first_key_value()
            .is_some_and(|(first, _)| *first == sequence)
        {
            found.failure = None;
        }
        if let Some(Row { bytes, firing }) = found.rows.remove(&sequence) {
            self.counts.events -= 1;
            self.counts.bytes -= bytes;
            if let Some(hash) = firing
                && let Some(count) = self.firings.get_mut(&hash)
            {
                *count -= 1;
                if *count == 0 {
                    self.firings.remove(&hash);
                }
            }
        }
        if found.rows.is_empty() {
            self.keys.remove(key);
            self.counts.keys -= 1;
        }
    }
}

/// A change to what is parked, published with a step.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Park(Box<Parked>),
    Unpark(String, u64),
    Release(Release),
}

/// Applies changes to the index; returns the rows to commit.
pub(super) fn published(index: &mut Index, changes: &[Change]) -> Rows {
    let mut rows = Rows::new();
    for change in changes {
        match change {
            Change::Park(parked) => {
                let parked = index.numbered(parked);
                let row = parked.row();
                // Read back from the row, so that the index has exactly what a restart would read.
                index.add(&row).expect("it was just made");
                rows.insert(parked.row_key(), Some(row));
            }
            Change::Unpark(key, sequence) => {
                index.remove(key, *sequence);
                rows.insert(row_key(key, *sequence), None);
            }
            Change::Release(release) => {
                index.releases += 1;
                index.last_release = Some((release.position, release.number));
                rows.insert(release.row_key(), Some(release.row()));
            }
        }
    }
    rows
}

pub(super) fn committed(index: &mut Index, rows: &Rows) {
    let failures = rows
        .values()
        .flatten()
        .filter_map(|row| split(row)?.0.failure);
    let durable = failures.map(|failure| failure.number).max().unwrap_or(0);
    index.durable_failures = index.durable_failures.max(durable);
    index.left += rows.values().filter(|row| row.is_none()).count() as u64;
}

/// Memory that rows take, in bytes.
pub(super) fn memory_of(rows: &Rows) -> u64 {
    rows.iter()
        .map(|(key, row)| (key.len() + row.as_ref().map_or(0, Bytes::len)) as u64 + 120)
        .sum()
}

/// Adds and removes rows in a transaction.
pub(super) fn write(transaction: &WriteTransaction, rows: &Rows) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut table = transaction.open_table(PARKED).map_err(storage)?;
    let (mut lowest, mut failures): (Option<u64>, u64) = (None, 0);
    for (key, row) in rows {
        match row {
            // Releases share the list of changes with parked events, and are told apart by length.
            Some(row) if key.len() == RELEASE_KEY_BYTES => {
                let mut table = transaction.open_table(RELEASED).map_err(storage)?;
                table.insert(&**key, &**row).map_err(storage)?;
            }
            Some(row) => {
                table.insert(&**key, &**row).map_err(storage)?;
                let sequence = sequence_of(key).unwrap_or(0);
                lowest = Some(lowest.map_or(sequence, |lowest| lowest.min(sequence)));
                let (head, _) = split(row).ok_or_else(damaged)?;
                failures = failures.max(head.failure.map_or(0, |failure| failure.number));
            }
            None => drop(table.remove(&**key).map_err(storage)?),
        }
    }
    let Some(lowest) = lowest else { return Ok(()) };
    let mut meta = transaction.open_table(META).map_err(storage)?;
    let from = number(&meta, FROM)?.map_or(lowest, |before| before.min(lowest));
    meta.insert(FROM, from.to_be_bytes().as_slice())
        .map_err(storage)?;
    let failures = number(&meta, FAILURES)?.map_or(failures, |before| before.max(failures));
    meta.insert(FAILURES, failures.to_be_bytes().as_slice())
        .map_err(storage)?;
    meta.insert("format", FORMAT_OWNED.to_be_bytes().as_slice())
        .map_err(storage)?;
    Ok(())
}

/// A number in `meta`.
fn number(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<Option<u64>, Error> {
    let bytes = meta.get(name).map_err(storage)?;
    let bytes = bytes.and_then(|bytes| bytes.value().try_into().ok());
    Ok(bytes.map(u64::from_be_bytes))
}

/// Reads what is parked in a file. It is limited, so this takes a moment at most.
pub(super) fn found(database: &Database) -> Result<Index, Error> {
    let transaction = database.begin_read().map_err(storage)?;
    let meta = transaction.open_table(META).map_err(storage)?;
    let mut index = Index {
        from: number(&meta, FROM)?,
        failures: number(&meta, FAILURES)?.unwrap_or(0),
        ..Index::default()
    };
    if let Some(table) = opened(transaction.open_table(RELEASED))? {
        index.releases = table.len().map_err(storage)?;
        let last = table.last().map_err(storage)?;
        index.last_release = last.and_then(|(key, _)| place_of(key.value()));
    }
    if let Some(table) = opened(transaction.open_table(PARKED))? {
        for row in table.iter().map_err(storage)? {
            let (_, row) = row.map_err(storage)?;
            index.add(row.value()).ok_or_else(damaged)?;
        }
    }
    index.durable_failures = index.failures;
    Ok(index)
}

/// A table, if the file has it.
pub(super) fn opened<T>(table: Result<T, redb::TableError>) -> Result<Option<T>, Error> {
    match table {
        Ok(table) => Ok(Some(table)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(storage(error)),
    }
}

pub(super) fn damaged() -> Error {
    Error::damaged("a parked event is damaged; check the disk, restore a backup")
}

impl Store {
    /// How much is parked.
    pub fn parked_counts(&self) -> ParkedCounts {
        self.inner.parked.lock().counts
    }

    /// Whether a key has parked events.
    pub fn is_parked(&self, key: &str) -> bool {
        self.inner.parked.lock().keys.contains_key(key)
    }

    /// How many events of a key are parked.
    pub fn parked_events_of(&self, key: &str) -> u64 {
        let index = self.inner.parked.lock();
        index.keys.get(key).map_or(0, ParkedKey::events)
    }

    /// Of how many timers a firing is parked.
    pub fn parked_firings(&self) -> usize {
        self.inner.parked.lock().firings.len()
    }

    /// Whether a firing of a timer is parked that has this subject.
    pub fn is_parked_firing(&self, subject: &str, timer: &str) -> bool {
        let index = self.inner.parked.lock();
        // Nearly always, and a hash costs.
        !index.firings.is_empty() && index.firings.contains_key(&firing_hash(subject, timer))
    }

    /// The keys with parked events, in order.
    pub fn parked_keys(&self) -> BTreeMap<String, ParkedKey> {
        self.inner.parked.lock().keys.clone()
    }

    /// The sequences of all parked events, in rising order.
    pub fn parked_sequences(&self) -> BTreeSet<u64> {
        let index = self.inner.parked.lock();
        let keys = index.keys.values();
        keys.flat_map(ParkedKey::sequences).collect()
    }

    /// When the oldest failure was parked, in RFC 3339; none if nothing is parked. A key whose failed
    /// event was dropped waits since the stream stored its first event.
    pub fn parked_since(&self) -> Option<String> {
        let index = self.inner.parked.lock();
        let since = |key: &ParkedKey| match &key.failure {
            Some(failure) => failure.first_at.parse().ok(),
            None => jiff::Timestamp::from_nanosecond(i128::from(key.first_ns)).ok(),
        };
        let oldest: Option<jiff::Timestamp> = index.keys.values().filter_map(since).min();
        oldest.map(|oldest| oldest.to_string())
    }

    /// The number of the last durable failure ([`ParkedFailure::number`]); 0 if there was none. A
    /// crash would give the number of a later one to another failure.
    pub fn parked_failures(&self) -> u64 {
        self.inner.parked.lock().durable_failures
    }

    /// How many events are durably parked no more since the file was opened, because they were
    /// retried or dropped.
    pub fn parked_left(&self) -> u64 {
        self.inner.parked.lock().left
    }

    /// The lowest sequence that was ever parked in this state: from there on, a fold of the stream
    /// may differ from it.
    pub fn parked_from(&self) -> Option<u64> {
        self.inner.parked.lock().from
    }

    /// The first events of a parked key, in order, up to a number and about 8 MiB. Blocking.
    pub fn parked_events(&self, key: &str, limit: usize) -> Result<Vec<Parked>, Error> {
        let sequences: Vec<u64> = {
            let index = self.inner.parked.lock();
            let rows = index.keys.get(key).into_iter().flat_map(|key| &key.rows);
            let mut bytes = 0;
            rows.take(limit)
                .take_while(|(_, row)| {
                    // At least the first one.
                    let fits = bytes < READ_BYTES_MAX;
                    bytes += row.bytes;
                    fits
                })
                .map(|(sequence, _)| *sequence)
                .collect()
        };
        self.parked_of(key, &sequences)
    }

    /// Which of these sequences are parked durably. Blocking.
    pub fn parked_among(&self, sequences: &BTreeSet<u64>) -> Result<BTreeSet<u64>, Error> {
        let mut found = BTreeSet::new();
        if sequences.is_empty() {
            return Ok(found);
        }
        let transaction = self.inner.file.begin_read()?;
        let Some(table) = opened(transaction.open_table(PARKED))? else {
            return Ok(found);
        };
        for row in table.iter().map_err(storage)? {
            let (key, _) = row.map_err(storage)?;
            let sequence = sequence_of(key.value());
            found.extend(sequence.filter(|sequence| sequences.contains(sequence)));
        }
        Ok(found)
    }

    /// These events of a parked key, as far as they are parked. Blocking.
    pub fn parked_of(&self, key: &str, sequences: &[u64]) -> Result<Vec<Parked>, Error> {
        // Taken before the file is read: what a commit moves into the file meanwhile is in the file
        // that is read then.
        let view = self.inner.view.read().clone();
        let frozen = view.frozen.as_ref().map(|(table, _)| &**table);
        // The active memtable first, as it has the newest change.
        let tables: Vec<&Memtable> = std::iter::once(&*view.active).chain(frozen).collect();
        let transaction = self.inner.file.begin_read()?;
        let file = opened(transaction.open_table(PARKED))?;
        let mut events = Vec::new();
        for sequence in sequences {
            let place = row_key(key, *sequence);
            let row = match tables.iter().find_map(|table| table.parked(&place)) {
                Some(row) => row,
                None => match &file {
                    Some(file) => file
                        .get(&*place)
                        .map_err(storage)?
                        .map(|row| Bytes::copy_from_slice(row.value())),
                    None => None,
                },
            };
            // A row that is not there, or was removed meanwhile, is not missed.
            if let Some(row) = row {
                events.push(Parked::read(&row).ok_or_else(damaged)?);
            }
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::position::{Checkpoint, StreamIdentity};
    use crate::state::tables::{Copy, Item};
    use crate::state::{FORMAT, Options, Writer, copy};

    fn open(path: &Path) -> (Store, Writer) {
        Store::open(path, Options::default(), |_| ()).expect("the state opens")
    }

    fn parked(key: &str, sequence: u64) -> Parked {
        let event = Event {
            sequence,
            time_ns: 7,
            subject: "orders.ada".into(),
            kind: "placed".into(),
            headers: vec![("trace".into(), "1".into())],
            data: Payload::Bytes(Bytes::from_static(b"{\xff}")),
        };
        let failure = ParkedFailure::new(("trap", FailureClass::Trap), &"ä".repeat(400), 3, "ab");
        Parked {
            key: key.to_owned(),
            event,
            failure: Some(failure),
        }
    }

    /// One step: an entry, and parked events.
    fn step(writer: &mut Writer, position: u64, parks: &[Parked]) {
        writer.begin();
        writer
            .put("last", Some(Payload::from(position.to_string())))
            .expect("within limits");
        parks.iter().for_each(|parked| writer.park(parked.clone()));
        writer.publish(Checkpoint::at(
            position,
            StreamIdentity {
                name: "s".to_owned(),
                created_ns: 1,
            },
        ));
    }

    fn sequences(store: &Store, key: &str) -> Vec<u64> {
        let events = store.parked_events(key, 10).expect("reads");
        events.iter().map(|parked| parked.event.sequence).collect()
    }

    fn format(path: &Path) -> u32 {
        let database = Database::open(path).expect("opens");
        let meta = database
            .begin_read()
            .expect("begins")
            .open_table(META)
            .expect("is there");
        let format = meta
            .get("format")
            .expect("reads")
            .expect("is there")
            .value()
            .to_vec();
        u32::from_be_bytes(format.try_into().expect("four bytes"))
    }

    /// If it fails, a field of the row has changed: files that exist have the text below.
    #[test]
    fn a_row_is_read_and_written_as_it_is_stored() {
        let head = concat!(
            r#"{"key":"a","sequence":5,"time_ns":7,"subject":"orders.ada","kind":"placed","#,
            r#""headers":[["trace","1"]],"is_text":true,"failure":{"kind":"limit","#,
            r#""class":"memory","message":"full","attempts":3,"module":"ab","#,
            r#""first_at":"2026-01-01T00:00:00Z","last_at":"2026-01-01T00:00:01Z","#,
            r#""reads":[{"key":"last","value":"4"}],"reads_are_cut":true,"number":2}}"#,
        );
        let length = u32::try_from(head.len()).expect("it is short");
        let row = [&length.to_be_bytes()[..], head.as_bytes(), b"{}"].concat();
        let parked = Parked::read(&row).expect("the row is readable");
        assert_eq!(parked.event.data.as_str(), Some("{}"));
        assert_eq!(parked.row(), row);
    }

    #[test]
    fn parked_events_are_durable_with_their_position_and_whole() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("state.redb");
        let (store, mut writer) = open(&path);
        step(&mut writer, 1, &[]);
        step(&mut writer, 2, &[parked("ada", 2)]);
        assert_eq!(
            sequences(&store, "ada"),
            [2],
            "also while it is only in memory"
        );
        store.flush().expect("commits");
        step(&mut writer, 3, &[parked("ada", 3), parked("bob", 1)]);
        assert_eq!(
            (sequences(&store, "ada"), store.parked_counts().events),
            (vec![2, 3], 3)
        );
        drop((store, writer));
        // A crash: the third step is gone, whole.
        let (store, _writer) = open(&path);
        assert_eq!(
            (
                store.position(),
                sequences(&store, "ada"),
                store.is_parked("bob")
            ),
            (2, vec![2], false)
        );
        let found = store.parked_events("ada", 1).expect("reads").remove(0);
        let wanted = parked("ada", 2);
        assert_eq!(
            (&found.key, &found.event, found.digest()),
            (&wanted.key, &wanted.event, wanted.digest())
        );
        let failure = found.failure.expect("it failed");
        assert!(
            failure.message.len() <= MESSAGE_BYTES_MAX && failure.message.ends_with('ä'),
            "{failure:?}"
        );
    }

    #[test]
    fn what_is_removed_stays_removed_and_the_lowest_sequence_stays_known() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("state.redb");
        let (store, mut writer) = open(&path);
        step(&mut writer, 9, &[parked("ada", 8), parked("ada", 9)]);
        store.flush().expect("commits");
        writer.begin();
        writer.unpark("ada", 8);
        writer.publish_in_place(BTreeMap::new());
        assert_eq!((sequences(&store, "ada"), store.position()), (vec![9], 9));
        store.flush().expect("commits");
        drop((store, writer));
        let (store, mut writer) = open(&path);
        assert_eq!(sequences(&store, "ada"), [9]);
        writer.begin();
        writer.unpark("ada", 9);
        writer.publish_in_place(BTreeMap::new());
        store.flush().expect("commits");
        drop((store, writer));
        let (store, _writer) = open(&path);
        assert_eq!(
            (store.parked_counts(), store.parked_from()),
            (ParkedCounts::default(), Some(8))
        );
    }

    #[test]
    fn failures_are_numbered_in_the_order_in_which_they_happen_for_good() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("state.redb");
        let number_of = |store: &Store, key: &str| {
            let event = store.parked_events(key, 1).expect("reads").remove(0);
            event.failure.expect("it failed").number
        };
        let (store, mut writer) = open(&path);
        step(&mut writer, 9, &[parked("ada", 9)]);
        step(&mut writer, 10, &[parked("bob", 8)]);
        assert_eq!((number_of(&store, "ada"), number_of(&store, "bob")), (1, 2));
        // Another attempt at the same event is no other failure.
        let again = store.parked_events("ada", 1).expect("reads");
        step(&mut writer, 11, &again);
        assert_eq!((number_of(&store, "ada"), store.parked_failures()), (1, 0));
        store.flush().expect("commits");
        assert_eq!(store.parked_failures(), 2, "they are durable now");
        writer.begin();
        writer.unpark("bob", 8);
        writer.publish_in_place(BTreeMap::new());
        store.flush().expect("commits");
        drop((store, writer));
        let (store, mut writer) = open(&path);
        assert_eq!(store.parked_failures(), 2, "although its row is gone");
        step(&mut writer, 12, &[parked("bob", 7)]);
        assert_eq!(number_of(&store, "bob"), 3);
    }

    #[test]
    fn only_a_file_that_parked_has_the_format_that_older_releases_refuse() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, parks, wanted) in [
            ("1.redb", vec![], FORMAT),
            ("2.redb", vec![parked("ada", 1)], FORMAT_OWNED),
        ] {
            let path = folder.path().join(name);
            let (store, mut writer) = open(&path);
            step(&mut writer, 1, &parks);
            store.flush().expect("commits");
            // Also after a commit that parks nothing.
            step(&mut writer, 2, &[]);
            store.flush().expect("commits");
            drop((store, writer));
            assert_eq!(format(&path), wanted);
        }
    }

    #[test]
    fn backups_have_parked_events_and_copies_for_reads_have_none() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (store, mut writer) = open(&folder.path().join("state.redb"));
        step(&mut writer, 1, &[parked("ada", 1)]);
        store.flush().expect("commits");
        let (mut tables, mut current) = (
            BTreeMap::<String, Vec<(Vec<u8>, Vec<u8>)>>::new(),
            String::new(),
        );
        let frozen = store.frozen().expect("reads");
        frozen
            .each(&mut |item| {
                match item {
                    Item::Table(name) => name.clone_into(&mut current),
                    Item::Row(key, value) => tables
                        .entry(current.clone())
                        .or_default()
                        .push((key.into(), value.into())),
                }
                Ok::<_, Error>(())
            })
            .expect("every table is known");
        let restored = folder.path().join("restored.redb");
        let made = Copy::begin(&restored).expect("a new file");
        for (name, rows) in &tables {
            let mut rows = rows.iter().cloned();
            made.table(name, &mut || Ok::<_, Error>(rows.next()))
                .expect("writes");
        }
        drop(made);
        assert_eq!(sequences(&open(&restored).0, "ada"), [1]);
        let copied = folder.path().join("copy.redb");
        copy(&store.snapshot(), &copied).expect("copies");
        assert_eq!(open(&copied).0.parked_counts(), ParkedCounts::default());
    }

    #[test]
    fn keys_that_are_too_long_are_named_by_their_digest() {
        assert_eq!(Parked::name_of(None), "");
        assert_eq!(Parked::name_of(Some("k".repeat(1_024))).len(), 1_024);
        let name = Parked::name_of(Some("k".repeat(1_025)));
        assert!(name.starts_with("sha256:") && name.len() == 71, "{name}");
    }
}
