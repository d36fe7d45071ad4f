//! The inbox of a state: ids of events that it has passed, so that an event is recognised if its
//! producer published it twice.
//!
//! Ids are numbered as they come. An id counts while it is younger than the window, and among the
//! latest `ids_max`; both follow from the events alone: the time of an id is that of its event in
//! the stream, or of the latest event before it. So a fold decides the same for each event wherever
//! batches end and whenever rows are removed. Rows become durable in the commit that makes the
//! position durable; copies have those up to their position. Scans, comparisons and quotas do not
//! see these tables.

use std::collections::HashMap;

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use super::file::{guarded, storage};
use super::store::View;
use super::{Error, Snapshot, Store, Writer};

/// Numbers and times by id.
const INBOX: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("inbox");
/// Ids, times and sequences by number.
const ORDER: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("inbox_order");
/// Memory of a row, in bytes.
const ROW_MEMORY: u64 = 160;
/// Rows that a commit removes at most, in addition to twice as many as it adds.
const REMOVED_MIN: usize = 1_000;

/// An id, hashed.
pub type IdHash = [u8; 16];

/// How long ids are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Time between two events, in nanoseconds.
    pub window_ns: u64,
    /// Most ids.
    pub ids_max: u64,
}

/// An id that a state has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Counts ids, from 1.
    pub number: u64,
    /// The id.
    pub id: IdHash,
    /// Time of its event, or of the latest one before it, in nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// Sequence of its event.
    pub sequence: u64,
}

/// The last id of a state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Last {
    /// Its number: how many there were.
    pub number: u64,
    /// Its time.
    pub time_ns: u64,
}

impl Keep {
    /// Whether an event of this time, after the last id, is one with an earlier id again.
    pub fn recognises(self, earlier: &Seen, last: Last, time_ns: u64) -> bool {
        let age = last.time_ns.max(time_ns).saturating_sub(earlier.time_ns);
        age <= self.window_ns && self.is_among_latest(earlier.number, last)
    }

    fn is_among_latest(self, number: u64, last: Last) -> bool {
        number.saturating_add(self.ids_max) > last.number
    }

    /// Whether no later event can be recognised by it.
    fn forgets(self, earlier: &Seen, last: Last) -> bool {
        !self.recognises(earlier, last, 0)
    }
}

impl Seen {
    /// It as the last id of a state.
    pub fn last(&self) -> Last {
        Last {
            number: self.number,
            time_ns: self.time_ns,
        }
    }

    fn by_number(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&self.id);
        bytes[16..24].copy_from_slice(&self.time_ns.to_be_bytes());
        bytes[24..].copy_from_slice(&self.sequence.to_be_bytes());
        bytes
    }

    fn by_id(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        let numbers = [self.number, self.time_ns, self.sequence];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        bytes
    }

    fn of_number(number: &[u8], row: &[u8]) -> Result<Self, Error> {
        let (id, numbers) = row.split_at_checked(16).ok_or_else(damaged)?;
        let [time_ns, sequence] = words(numbers)?;
        let [number] = words(number)?;
        let id = id.try_into().map_err(|_| damaged())?;
        Ok(Self {
            number,
            id,
            time_ns,
            sequence,
        })
    }

    fn of_id(id: IdHash, row: &[u8]) -> Result<Self, Error> {
        let [number, time_ns, sequence] = words(row)?;
        Ok(Self {
            number,
            id,
            time_ns,
            sequence,
        })
    }
}

/// Numbers of 8 bytes, big endian.
fn words<const COUNT: usize>(bytes: &[u8]) -> Result<[u64; COUNT], Error> {
    if bytes.len() != COUNT * 8 {
        return Err(damaged());
    }
    let mut numbers = [0; COUNT];
    for (number, word) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
        *number = u64::from_be_bytes(word.try_into().expect("eight bytes"));
    }
    Ok(numbers)
}

fn damaged() -> Error {
    Error::damaged("an id of the inbox is damaged; check the disk, and rebuild")
}

/// Ids of one memtable, in order.
#[derive(Debug, Default)]
pub(super) struct Recent {
    rows: Vec<Seen>,
    /// Places in `rows`.
    places: HashMap<IdHash, usize>,
    keep: Option<Keep>,
}

impl Recent {
    /// Adds ids that follow the last one; returns the memory that they take, in bytes.
    pub(super) fn add(&mut self, rows: &[Seen], keep: Keep) -> u64 {
        for row in rows {
            self.places.insert(row.id, self.rows.len());
            self.rows.push(*row);
        }
        self.keep = Some(keep);
        rows.len() as u64 * ROW_MEMORY
    }

    fn find(&self, id: &IdHash) -> Option<Seen> {
        self.places.get(id).map(|place| self.rows[*place])
    }

    /// Writes them in a transaction, and removes rows that nothing can be recognised by.
    pub(super) fn write(&self, transaction: &WriteTransaction) -> Result<(), Error> {
        let (Some(keep), Some(last)) = (self.keep, self.rows.last().map(Seen::last)) else {
            return Ok(());
        };
        write(transaction, self.rows.iter().copied().map(Ok))?;
        let mut ids = transaction.open_table(INBOX).map_err(storage)?;
        let mut order = transaction.open_table(ORDER).map_err(storage)?;
        for _ in 0..self.rows.len() * 2 + REMOVED_MIN {
            let Some(first) = first(&order)? else {
                return Ok(());
            };
            if !keep.forgets(&first, last) {
                return Ok(());
            }
            order
                .remove(first.number.to_be_bytes().as_slice())
                .map_err(storage)?;
            // Unless the same id came again after the window.
            let is_latest = ids
                .get(first.id.as_slice())
                .map_err(storage)?
                .is_some_and(|row| row.value() == first.by_id());
            if is_latest {
                ids.remove(first.id.as_slice()).map_err(storage)?;
            }
        }
        Ok(())
    }
}

fn first(order: &impl ReadableTable<&'static [u8], &'static [u8]>) -> Result<Option<Seen>, Error> {
    let first = order.first().map_err(storage)?;
    first
        .map(|(number, row)| Seen::of_number(number.value(), row.value()))
        .transpose()
}

/// Writes rows in the order of their numbers.
fn write(
    transaction: &WriteTransaction,
    rows: impl Iterator<Item = Result<Seen, Error>>,
) -> Result<(), Error> {
    let mut ids = transaction.open_table(INBOX).map_err(storage)?;
    let mut order = transaction.open_table(ORDER).map_err(storage)?;
    for row in rows {
        let row = row?;
        ids.insert(row.id.as_slice(), row.by_id().as_slice())
            .map_err(storage)?;
        order
            .insert(
                row.number.to_be_bytes().as_slice(),
                row.by_number().as_slice(),
            )
            .map_err(storage)?;
    }
    Ok(())
}

/// The tables of a file as of a commit.
#[derive(Debug)]
pub(super) struct Tables {
    ids: ReadOnlyTable<&'static [u8], &'static [u8]>,
    order: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl Tables {
    /// None of a state that never had an inbox.
    pub(super) fn of(transaction: &ReadTransaction) -> Result<Option<Self>, Error> {
        let table = |definition| match transaction.open_table(definition) {
            Ok(table) => Ok(Some(table)),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(storage(error)),
        };
        let (ids, order) = (table(INBOX)?, table(ORDER)?);
        Ok(ids.zip(order).map(|(ids, order)| Self { ids, order }))
    }

    fn find(&self, id: &IdHash) -> Result<Option<Seen>, Error> {
        let row = guarded(|| self.ids.get(id.as_slice()).map_err(storage))?;
        row.map(|row| Seen::of_id(*id, row.value())).transpose()
    }

    fn last(&self) -> Result<Option<Last>, Error> {
        let last = guarded(|| self.order.last().map_err(storage))?;
        last.map(|(number, row)| Ok(Seen::of_number(number.value(), row.value())?.last()))
            .transpose()
    }

    fn len(&self) -> Result<u64, Error> {
        use redb::ReadableTableMetadata;
        guarded(|| self.order.len().map_err(storage))
    }
}

impl Writer {
    /// The last id of everything published.
    pub fn last_id(&self) -> Result<Last, Error> {
        let view = self.published_view();
        let recent = [
            Some(&view.active),
            view.frozen.as_ref().map(|(table, _)| table),
        ];
        for table in recent.into_iter().flatten() {
            if let Some(last) = table.with_ids(|recent| recent.rows.last().map(Seen::last)) {
                return Ok(last);
            }
        }
        let last = view.base.inbox().map(Tables::last).transpose()?;
        Ok(last.flatten().unwrap_or_default())
    }

    /// An id among those published, if it is known.
    pub fn find_id(&self, id: &IdHash) -> Result<Option<Seen>, Error> {
        let view = self.published_view();
        let recent = [
            Some(&view.active),
            view.frozen.as_ref().map(|(table, _)| table),
        ];
        for table in recent.into_iter().flatten() {
            if let Some(found) = table.with_ids(|recent| recent.find(id)) {
                return Ok(Some(found));
            }
        }
        let found = view.base.inbox().map(|inbox| inbox.find(id)).transpose()?;
        Ok(found.flatten())
    }
}

impl Store {
    /// How many ids its inbox has.
    pub fn inbox_ids(&self) -> u64 {
        let view = self.inner.view.read().clone();
        let recent =
            |table: &super::memtable::Memtable| table.with_ids(|recent| recent.rows.len() as u64);
        let in_file = view
            .base
            .inbox()
            .map_or(0, |inbox| inbox.len().unwrap_or(0));
        in_file + recent(&view.active) + view.frozen.as_ref().map_or(0, |(table, _)| recent(table))
    }
}

/// Writes the ids of a snapshot in a transaction of another file.
pub(super) fn copy(snapshot: &Snapshot, transaction: &WriteTransaction) -> Result<(), Error> {
    let view: &View = snapshot.view();
    if let Some(inbox) = view.base.inbox() {
        let rows = inbox.order.iter().map_err(storage)?;
        let rows = rows.map(|row| {
            let (number, row) = row.map_err(storage)?;
            Seen::of_number(number.value(), row.value())
        });
        write(transaction, rows)?;
    }
    let position = view.position();
    for table in [
        view.frozen.as_ref().map(|(table, _)| table),
        Some(&view.active),
    ] {
        // Later ones were published after the snapshot.
        let rows: Vec<Seen> = table.map_or_else(Vec::new, |table| {
            table.with_ids(|recent| {
                let rows = recent.rows.iter();
                rows.take_while(|row| row.sequence <= position)
                    .copied()
                    .collect()
            })
        });
        if !rows.is_empty() {
            write(transaction, rows.into_iter().map(Ok))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::position::{Checkpoint, StreamIdentity};
    use crate::state::{Options, copy as copy_state};

    const KEEP: Keep = Keep {
        window_ns: 100,
        ids_max: 5_000,
    };

    fn open(path: &Path) -> (Store, Writer) {
        Store::open(path, Options::default(), |_| ()).expect("the state opens")
    }

    fn id(number: u64) -> IdHash {
        let mut id = [0; 16];
        id[8..].copy_from_slice(&number.to_be_bytes());
        id
    }

    /// Publishes an event with an id.
    fn see(writer: &mut Writer, sequence: u64, number: u64, keep: Keep) {
        let last = writer.last_id().expect("reads");
        let row = Seen {
            number: last.number + 1,
            id: id(number),
            time_ns: last.time_ns.max(sequence),
            sequence,
        };
        writer.begin();
        let stream = StreamIdentity {
            name: "s".to_owned(),
            created_ns: 1,
        };
        writer.see(vec![row], keep);
        writer.publish(Checkpoint::at(sequence, stream));
    }

    fn known(writer: &Writer, number: u64) -> Option<u64> {
        let found = writer.find_id(&id(number)).expect("reads");
        found.map(|found| found.sequence)
    }

    #[test]
    fn ids_are_found_in_memory_and_in_the_file_and_are_gone_after_a_crash_with_their_step() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("state.redb");
        let (store, mut writer) = open(&path);
        see(&mut writer, 1, 7, KEEP);
        assert_eq!(known(&writer, 7), Some(1));
        store.flush().expect("commits");
        see(&mut writer, 2, 8, KEEP);
        assert_eq!((known(&writer, 7), known(&writer, 8)), (Some(1), Some(2)));
        assert_eq!(store.inbox_ids(), 2);
        drop((store, writer));
        let (store, writer) = open(&path);
        assert_eq!((known(&writer, 7), known(&writer, 8)), (Some(1), None));
        let last = Last {
            number: 1,
            time_ns: 1,
        };
        assert_eq!(
            (writer.last_id().expect("reads"), store.inbox_ids()),
            (last, 1)
        );
    }

    #[test]
    fn rows_are_removed_once_nothing_can_be_recognised_by_them() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (store, mut writer) = open(&folder.path().join("state.redb"));
        // The same id comes again after its window, so it is kept when the first is removed.
        for sequence in 1..=300 {
            see(&mut writer, sequence, sequence % 150, KEEP);
        }
        store.flush().expect("commits");
        see(&mut writer, 301, 1_000, KEEP);
        store.flush().expect("commits");
        assert_eq!(store.inbox_ids(), 101);
        assert_eq!((known(&writer, 50), known(&writer, 51)), (None, Some(201)));
        let few = Keep {
            ids_max: 10,
            ..KEEP
        };
        see(&mut writer, 302, 1_001, few);
        store.flush().expect("commits");
        assert_eq!(store.inbox_ids(), 10);
    }

    #[test]
    fn copy_has_the_ids_up_to_its_position() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (store, mut writer) = open(&folder.path().join("state.redb"));
        for sequence in 1..=10 {
            see(&mut writer, sequence, sequence, KEEP);
        }
        store.flush().expect("commits");
        see(&mut writer, 11, 11, KEEP);
        let snapshot = store.snapshot();
        // What is removed and added meanwhile changes nothing.
        see(&mut writer, 500, 12, KEEP);
        store.flush().expect("commits");
        see(&mut writer, 501, 1, KEEP);
        assert_eq!(store.inbox_ids(), 2);
        let copied = folder.path().join("copy.redb");
        copy_state(&snapshot, &copied).expect("copies");
        let (copied, writer) = open(&copied);
        assert_eq!(copied.inbox_ids(), 11);
        assert_eq!(
            (known(&writer, 1), known(&writer, 11), known(&writer, 12)),
            (Some(1), Some(11), None)
        );
    }

    #[test]
    fn id_counts_within_its_window_and_among_the_latest_ones() {
        let seen = Seen {
            number: 3,
            id: id(1),
            time_ns: 50,
            sequence: 9,
        };
        let keep = Keep {
            window_ns: 100,
            ids_max: 4,
        };
        let last = |number, time_ns| Last { number, time_ns };
        assert!(keep.recognises(&seen, last(3, 50), 150));
        assert!(!keep.recognises(&seen, last(3, 50), 151));
        assert!(
            !keep.recognises(&seen, last(3, 151), 60),
            "clocks go back, time does not"
        );
        assert!(keep.recognises(&seen, last(6, 50), 50));
        assert!(!keep.recognises(&seen, last(7, 50), 50));
        assert!(
            keep.recognises(&seen, last(3, 50), 1),
            "an earlier time is no great age"
        );
    }
}
