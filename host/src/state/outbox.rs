//! The outbox of a state: effects that wait to be sent, in a table of their own.
//!
//! Rows become durable in the commit that makes the entries and the checkpoint durable, and are
//! read from the file only, so nothing is sent that a crash could take back. The releaser sends and
//! confirms them; the next commit removes them, or [`Store::remove_confirmed_effects`] if none
//! comes. Scans, copies, comparisons and quotas do not see this table. `hand_over.rs` passes it to
//! another file.
//!
//! A file with an owner has format 3, so that a release that knows no owners refuses it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::file::{ENTRIES, EXCEPTIONS, FORMAT_OWNED, File, META, guarded, storage, unreadable};
use super::{Error, Mark, Options, Store};
use crate::effects::{Lineage, Queue, Row, RowKey, due_keys, keys_of, last_key_of, queue_of_key};
use crate::{atomic_file, storage};

pub(super) const OUTBOX: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("outbox");
/// The key of the owner among the metadata: the JSON of [`Owned`].
pub(super) const OWNER: &str = "owner";
/// The key of the marks among the metadata: a JSON object.
pub(super) const MARKS: &str = "outbox_marks";
/// Confirmed rows that wait for a commit to remove them; more are removed at once.
const CONFIRMED_MANY: usize = 2_000;
/// Memory of a row in addition to key and value, in bytes.
const ROW_OVERHEAD: u64 = 120;

/// Who owns the effects of a state file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// The lineage of the deployment.
    pub lineage: Lineage,
    /// Counts changes of ownership.
    pub epoch: u64,
}

/// The owner as a file names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owned {
    #[serde(flatten)]
    pub(super) owner: Ownership,
    /// The file is prepared to be the owner, and the catalogue decides whether it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_prepared: bool,
}

/// For each target, a place in its stream.
pub(super) type Marks = BTreeMap<String, Mark>;

/// How much waits in an outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Rows.
    pub entries: u64,
    /// Their size, in bytes.
    pub bytes: u64,
    /// Those of them that wait for a time.
    pub delayed: u64,
    /// Those of them whose condition did not hold.
    pub conflicts: u64,
}

impl Waiting {
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.entries += 1;
        self.bytes += size(key, value);
        match queue_of_key(key) {
            Some((Queue::Delayed, ..)) => self.delayed += 1,
            Some((Queue::Conflict, ..)) => self.conflicts += 1,
            // A damaged key is reported when the row is read.
            Some((Queue::Ordered, ..)) | None => {}
        }
    }

    /// Counts the rows of another count as gone.
    fn remove(&mut self, gone: Self) {
        self.entries -= gone.entries;
        self.bytes -= gone.bytes;
        self.delayed -= gone.delayed;
        self.conflicts -= gone.conflicts;
    }
}

impl std::ops::AddAssign for Waiting {
    fn add_assign(&mut self, other: Self) {
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.delayed += other.delayed;
        self.conflicts += other.conflicts;
    }
}

/// Delayed effects of a target.
#[derive(Debug, Default)]
pub struct Delayed {
    /// Those that are due, in the order of their times.
    pub due: Vec<Row>,
    /// When the first one that is not due yet will be, in nanoseconds since the Unix epoch; none if
    /// there is none, or more are due.
    pub next_ns: Option<u64>,
    /// Whether more are due.
    pub has_more: bool,
}

/// The outbox of an open state. No task holds two of its locks at a time.
#[derive(Debug)]
pub(super) struct Outbox {
    owner: Mutex<Option<Owned>>,
    waiting: Mutex<Waiting>,
    pending: Mutex<Pending>,
    /// Whether it has reached a limit, and not a tenth of it has become free since.
    is_full: AtomicBool,
    /// Raised when rows become durable, and when some are removed.
    changes: watch::Sender<u64>,
}

/// What the next commit records of what was sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    /// Rows that were sent and confirmed, and that the file still has.
    pub(super) confirmed: BTreeSet<RowKey>,
    /// Rows that are stored in a target and not confirmed came after its mark.
    pub(super) marks: Marks,
    /// Whether a mark differs from that in the file.
    has_new_marks: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.confirmed.is_empty() && !self.has_new_marks
    }
}

/// What an outbox has when its file is opened.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) owner: Option<Owned>,
    pub(super) waiting: Waiting,
    pub(super) marks: Marks,
}

/// Rows of one memtable.
pub(super) type Rows = BTreeMap<RowKey, Bytes>;

/// Size of a row, in bytes.
pub(super) fn size(key: &[u8], value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64
}

/// Memory that rows take, in bytes.
pub(super) fn memory_of(rows: &[(RowKey, Bytes)]) -> u64 {
    rows.iter()
        .map(|(key, value)| size(key, value) + ROW_OVERHEAD)
        .sum()
}

/// Whether a commit added rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    Some,
    None,
}

impl Outbox {
    pub(super) fn new(found: Found) -> Self {
        Self {
            owner: Mutex::new(found.owner),
            waiting: Mutex::new(found.waiting),
            pending: Mutex::new(Pending {
                marks: found.marks,
                ..Pending::default()
            }),
            is_full: AtomicBool::new(false),
            changes: watch::Sender::new(0),
        }
    }

    /// Counts rows that were published.
    pub(super) fn published(&self, rows: &[(RowKey, Bytes)]) {
        let mut waiting = self.waiting.lock();
        for (key, value) in rows {
            waiting.add(key, value);
        }
    }

    /// What the next commit removes and records. Both as of one moment: a mark is never ahead of a
    /// row that it says is confirmed.
    pub(super) fn pending(&self) -> Pending {
        self.pending.lock().clone()
    }

    /// A commit added rows, or none, and removed others.
    pub(super) fn committed(&self, added: Added, asked: &Pending, removed: Waiting) {
        // Both under one lock, as `pending` reads them.
        {
            let mut pending = self.pending.lock();
            pending
                .confirmed
                .retain(|key| !asked.confirmed.contains(key));
            // A mark that moved during the commit is still new.
            pending.has_new_marks &= pending.marks != asked.marks;
        }
        self.waiting.lock().remove(removed);
        // Wakes the releaser, and a pipeline that waits for room.
        if added == Added::Some || removed.entries > 0 {
            self.changes.send_modify(|number| *number += 1);
        }
    }

    /// A commit put rows in the place of others.
    fn replaced(&self, added: Waiting, removed: Waiting) {
        {
            let mut waiting = self.waiting.lock();
            *waiting += added;
            waiting.remove(removed);
        }
        self.changes.send_modify(|number| *number += 1);
    }

    /// Who owns the effects, as the file says.
    pub(super) fn owned(&self) -> Option<Owned> {
        *self.owner.lock()
    }

    /// Has another owner from now on, whose rows and marks these are.
    pub(super) fn replace(
        &self,
        Found {
            owner,
            waiting,
            marks,
        }: Found,
    ) {
        *self.owner.lock() = owner;
        *self.pending.lock() = Pending {
            marks,
            ..Pending::default()
        };
        *self.waiting.lock() = waiting;
        self.changes.send_modify(|number| *number += 1);
    }

    /// The file says that it is the owner, and no longer that it is prepared for that.
    pub(super) fn confirmed(&self) {
        if let Some(owned) = &mut *self.owner.lock() {
            owned.is_prepared = false;
        }
    }

    fn waiting(&self) -> Waiting {
        *self.waiting.lock()
    }
}

/// Adds and removes rows in a transaction, and records marks; returns what was removed.
pub(super) fn write(
    transaction: &WriteTransaction,
    rows: &Rows,
    pending: &Pending,
) -> Result<Waiting, Error> {
    let mut removed = Waiting::default();
    if rows.is_empty() && pending.is_empty() {
        return Ok(removed);
    }
    // Marks and the rows that they are about, in one commit.
    if pending.has_new_marks {
        let mut meta = transaction.open_table(META).map_err(storage)?;
        let json = serde_json::to_vec(&pending.marks).expect("marks are plain data");
        meta.insert(MARKS, json.as_slice()).map_err(storage)?;
    }
    let mut table = transaction.open_table(OUTBOX).map_err(storage)?;
    for (key, value) in rows {
        table.insert(&**key, &**value).map_err(storage)?;
    }
    for key in &pending.confirmed {
        // A commit that ran at the same time may have removed it already.
        if let Some(value) = table.remove(&**key).map_err(storage)? {
            removed.add(key, value.value());
        }
    }
    Ok(removed)
}

/// Reads the owner, and counts what waits. The outbox is limited, so this takes a moment at most.
pub(super) fn found(database: &Database) -> Result<Found, Error> {
    let transaction = database.begin_read().map_err(storage)?;
    let meta = transaction.open_table(META).map_err(storage)?;
    let owner = meta
        .get(OWNER)
        .map_err(storage)?
        .map(|json| serde_json::from_slice(json.value()))
        .transpose();
    let owner = owner.map_err(|error| {
        let text = format!("its owner is unreadable: {error}; restore a backup");
        unreadable(text, error)
    })?;
    let marks = meta
        .get(MARKS)
        .map_err(storage)?
        .map(|json| serde_json::from_slice(json.value()))
        .transpose();
    let marks = marks.map_err(|error| {
        let text = format!("its marks are unreadable: {error}; restore a backup");
        unreadable(text, error)
    })?;
    let marks: Marks = marks.unwrap_or_default();
    let mut waiting = Waiting::default();
    let table = match transaction.open_table(OUTBOX) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => {
            return Ok(Found {
                owner,
                waiting,
                marks,
            });
        }
        Err(error) => return Err(storage(error)),
    };
    for row in table.iter().map_err(storage)? {
        let (key, value) = row.map_err(storage)?;
        waiting.add(key.value(), value.value());
    }
    Ok(Found {
        owner,
        waiting,
        marks,
    })
}

/// Creates an empty state file with an owner. The file appears complete or not at all. Blocking.
pub fn create_owned(path: &Path, owner: Ownership) -> Result<(), Error> {
    let make = |path: &Path| {
        let made = || {
            let database = Database::builder().create(path).map_err(storage)?;
            let transaction = database.begin_write().map_err(storage)?;
            {
                transaction.open_table(ENTRIES).map_err(storage)?;
                transaction.open_table(EXCEPTIONS).map_err(storage)?;
                transaction.open_table(OUTBOX).map_err(storage)?;
                let mut meta = transaction.open_table(META).map_err(storage)?;
                let json = serde_json::to_vec(&owner).expect("an owner is plain data");
                meta.insert(OWNER, json.as_slice()).map_err(storage)?;
                meta.insert("format", FORMAT_OWNED.to_be_bytes().as_slice())
                    .map_err(storage)?;
            }
            transaction.commit().map_err(storage)
        };
        made().map_err(|error: Error| std::io::Error::other(error))
    };
    atomic_file::create(path, make)
        .map_err(|error| Error::Storage(storage::Error::of_file(path, error)))
}

impl File {
    /// Removes rows in a commit of their own.
    fn remove_rows(&self, pending: &Pending) -> Result<Waiting, Error> {
        let transaction = self.begin_write()?;
        let removed = write(&transaction, &Rows::new(), pending)?;
        transaction.commit().map_err(storage)?;
        Ok(removed)
    }

    /// Puts other rows in the place of some; returns what was added and removed.
    fn replace_rows(&self, rows: &[(RowKey, Row)]) -> Result<(Waiting, Waiting), Error> {
        let (mut added, mut removed) = (Waiting::default(), Waiting::default());
        let transaction = self.begin_write()?;
        {
            let mut table = transaction.open_table(OUTBOX).map_err(storage)?;
            for (old, row) in rows {
                let Some(value) = table.remove(&**old).map_err(storage)? else {
                    continue;
                };
                removed.add(old, value.value());
                drop(value);
                let (key, value) = (row.key(), row.value());
                table.insert(&*key, &*value).map_err(storage)?;
                added.add(&key, &value);
            }
        }
        transaction.commit().map_err(storage)?;
        Ok((added, removed))
    }

    /// Delayed rows of a target that are due, in the order of their times and after a key, without
    /// those of `leave_out`, and when the next one is due.
    fn delayed(
        &self,
        target: &str,
        leave_out: &BTreeSet<RowKey>,
        (after, until_ns): (Option<&RowKey>, u64),
        (entries_max, bytes_max): (usize, usize),
    ) -> Result<Delayed, Error> {
        let (first, last) = due_keys(target, until_ns).into_inner();
        let begin = match after {
            Some(after) if **after > *last => return Ok(Delayed::default()),
            Some(after) => Bound::Excluded(&**after),
            None => Bound::Included(&*first),
        };
        let (due, has_more) = self.rows_in(
            (begin, Bound::Included(&*last)),
            |key| !leave_out.contains(key),
            (entries_max, bytes_max),
        )?;
        // Those that are left out are read once these have left.
        if has_more {
            return Ok(Delayed {
                due,
                next_ns: None,
                has_more,
            });
        }
        let (_, end) = keys_of(target, Queue::Delayed).into_inner();
        let (next, _) = self.rows_in(
            (Bound::Excluded(&*last), Bound::Included(&*end)),
            |key| !leave_out.contains(key),
            (1, usize::MAX),
        )?;
        let next_ns = next.first().map(Row::ready_ns);
        Ok(Delayed {
            due,
            next_ns,
            has_more,
        })
    }

    /// Names of the targets that rows wait for.
    fn targets(&self) -> Result<Vec<String>, Error> {
        let transaction = self.begin_read()?;
        let table = match transaction.open_table(OUTBOX) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(storage(error)),
        };
        let mut targets: Vec<String> = Vec::new();
        loop {
            let from = targets
                .last()
                .map_or_else(|| vec![0].into(), |target| last_key_of(target));
            let Some(row) = table
                .range::<&[u8]>((Bound::Excluded(&*from), Bound::Unbounded))
                .map_err(storage)?
                .next()
            else {
                return Ok(targets);
            };
            let (key, value) = row.map_err(storage)?;
            let Some(row) = Row::read(key.value(), Bytes::copy_from_slice(value.value())) else {
                return Err(Error::damaged(
                    "a waiting effect is damaged; check the disk, restore a backup",
                ));
            };
            targets.push(row.target);
        }
    }
}

impl Store {
    /// Who owns the effects of this file; none if nobody does.
    pub fn ownership(&self) -> Option<Ownership> {
        self.inner.outbox.owned().map(|owned| owned.owner)
    }

    /// Whether the file is prepared to become the owner, or was when it was opened.
    pub fn is_prepared_to_own(&self) -> bool {
        self.inner
            .outbox
            .owned()
            .is_some_and(|owned| owned.is_prepared)
    }

    /// How much waits, durable or not.
    pub fn waiting_effects(&self) -> Waiting {
        self.inner.outbox.waiting()
    }

    /// Whether effects were published that no commit has begun to make durable.
    pub fn has_new_effects(&self) -> bool {
        self.inner.view.read().active.has_rows()
    }

    /// Whether the outbox has reached one of its limits; once it has, a tenth must be free before
    /// it has not.
    pub fn is_outbox_full(&self) -> bool {
        let Options {
            outbox_entries_max,
            outbox_bytes_max,
            ..
        } = self.inner.options;
        // A tenth, so that a pipeline does not start and stop with every single row.
        let was_full = self.inner.outbox.is_full.load(Ordering::Relaxed);
        let most = |most: u64| if was_full { most - most / 10 } else { most };
        let Waiting { entries, bytes, .. } = self.inner.outbox.waiting();
        // At least 1: a limit of 0 would never let anything through.
        let is_full =
            entries >= most(outbox_entries_max).max(1) || bytes >= most(outbox_bytes_max).max(1);
        self.inner.outbox.is_full.store(is_full, Ordering::Relaxed);
        is_full
    }

    /// Changes when rows become durable, and when some are removed.
    pub fn outbox_changes(&self) -> watch::Receiver<u64> {
        self.inner.outbox.changes.subscribe()
    }

    /// Durable effects of a target that wait for a time, if that is not after `until_ns`, and that
    /// come after a key, up to a number and about a size. Blocking.
    pub fn delayed_effects(
        &self,
        target: &str,
        after: Option<&RowKey>,
        until_ns: u64,
        (entries_max, bytes_max): (usize, usize),
    ) -> Result<Delayed, Error> {
        // Most outboxes have none, and need not be read.
        if self.inner.outbox.waiting().delayed == 0 {
            return Ok(Delayed::default());
        }
        let confirmed = self.inner.outbox.pending.lock().confirmed.clone();
        let limits = (entries_max, bytes_max);
        self.inner
            .file
            .delayed(target, &confirmed, (after, until_ns), limits)
    }

    /// Puts other rows in the place of some, in a commit of its own. What is not there any more is
    /// left out. Blocking. After an error the store must be reopened.
    pub fn replace_effects(&self, rows: &[(RowKey, Row)]) -> Result<(), Error> {
        self.check_usable()?;
        match guarded(|| self.inner.file.replace_rows(rows)) {
            Ok((added, removed)) => {
                self.inner.outbox.replaced(added, removed);
                Ok(())
            }
            Err(error) => {
                self.set_failed();
                Err(error)
            }
        }
    }

    /// Names of the targets that durable effects wait for. Blocking.
    pub fn effect_targets(&self) -> Result<Vec<String>, Error> {
        self.inner.file.targets()
    }

    /// Records that effects are stored in their target; a commit removes them later. Returns
    /// whether many wait for that.
    pub fn confirm_effects(&self, keys: impl IntoIterator<Item = RowKey>) -> bool {
        let mut pending = self.inner.outbox.pending.lock();
        pending.confirmed.extend(keys);
        pending.confirmed.len() >= CONFIRMED_MANY
    }

    /// The mark of a target: effects that its stream has and that are not confirmed came after this
    /// sequence. None if nothing was ever sent to it.
    pub fn effect_mark(&self, target: &str) -> Option<Mark> {
        self.inner.outbox.pending.lock().marks.get(target).copied()
    }

    /// Sets the mark of a target, which keeps what it knows of the same stream; a commit records it
    /// later.
    pub fn set_effect_mark(&self, target: &str, mark: Mark) {
        let mut pending = self.inner.outbox.pending.lock();
        let mark = mark.following(pending.marks.get(target).copied());
        if pending.marks.insert(target.to_owned(), mark) != Some(mark) {
            pending.has_new_marks = true;
        }
    }

    /// Sets the mark of a target whose stream has lost its end, so that what it had confirmed says
    /// nothing about what comes. A commit records it later.
    pub fn set_lost(&self, target: &str, mark: Mark) {
        let mut pending = self.inner.outbox.pending.lock();
        let before = pending.marks.get(target);
        let mark = Mark {
            has_lost: true,
            longest_wait_s: before.map_or(0, |before| before.longest_wait_s),
            ..mark
        };
        pending.marks.insert(target.to_owned(), mark);
        pending.has_new_marks = true;
    }

    /// Notes how long a message waited for its confirmation by a target that has a mark, if none waited
    /// longer. A commit records it later.
    pub fn note_effect_wait(&self, target: &str, waited_s: u64) {
        let mut pending = self.inner.outbox.pending.lock();
        let mark = pending.marks.get_mut(target);
        let Some(mark) = mark.filter(|mark| mark.longest_wait_s < waited_s) else {
            return;
        };
        mark.longest_wait_s = waited_s;
        pending.has_new_marks = true;
    }

    /// Records that what streams have lost is accepted; returns in which targets. Blocking. After an
    /// error the store must be reopened.
    pub fn accept_lost(&self) -> Result<Vec<String>, Error> {
        self.check_usable()?;
        let mut accepted = Vec::new();
        {
            let mut pending = self.inner.outbox.pending.lock();
            for (target, mark) in &mut pending.marks {
                if std::mem::take(&mut mark.has_lost) {
                    accepted.push(target.clone());
                }
            }
            pending.has_new_marks |= !accepted.is_empty();
        }
        self.remove_confirmed_effects()?;
        Ok(accepted)
    }

    /// Whether confirmed effects, or marks, are not recorded in the file yet.
    pub fn has_confirmed_effects(&self) -> bool {
        !self.inner.outbox.pending.lock().is_empty()
    }

    fn check_usable(&self) -> Result<(), Error> {
        if self.has_failed() {
            return Err(Error::Storage(storage::Error::failed_before(
                "an earlier commit failed; try again when the file is open again",
            )));
        }
        Ok(())
    }

    /// Removes effects that must not leave, in a commit of their own; an error says that they may
    /// still be there. Blocking. After an error the store must be reopened.
    pub fn drop_effects(&self, keys: Vec<RowKey>) -> Result<(), Error> {
        self.check_usable()?;
        // Confirmed first, so that a commit which runs meanwhile may remove them as well.
        self.confirm_effects(keys);
        self.remove_confirmed_effects()
    }

    /// Removes confirmed effects and records marks in a commit of their own. Blocking. After an
    /// error the store must be reopened.
    pub fn remove_confirmed_effects(&self) -> Result<(), Error> {
        let pending = self.inner.outbox.pending();
        // After a failure the handle is not used; the reopened file still has the rows.
        if pending.is_empty() || self.has_failed() {
            return Ok(());
        }
        match self.inner.file.remove_rows(&pending) {
            Ok(removed) => {
                self.inner.outbox.committed(Added::None, &pending, removed);
                Ok(())
            }
            Err(error) => {
                self.set_failed();
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::effects::{Delivery, Effect, Grants, Owner, Place, Role};
    use crate::event::Payload;
    use crate::position::{Checkpoint, StreamIdentity};
    use crate::state::RefusedKeys;
    use crate::state::{FORMAT, Writer, copy};

    const OWNERSHIP: Ownership = Ownership {
        lineage: Lineage(7),
        epoch: 1,
    };

    fn open(path: &Path) -> (Store, Writer) {
        let options = Options {
            outbox_entries_max: 10,
            ..Options::default()
        };
        let (store, mut writer) = Store::open(path, options, |_| ()).expect("the state opens");
        writer.set_role(Role::Owner(Arc::new(Owner {
            deployment: "test".to_owned(),
            lineage: OWNERSHIP.lineage,
            epoch: 1,
            effects_after: 0,
            timers_after: 0,
            grants: Grants::default(),
            publishes: Arc::default(),
            logs: Arc::default(),
        })));
        (store, writer)
    }

    fn owned() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("state.redb");
        create_owned(&path, OWNERSHIP).expect("is created");
        (folder, path)
    }

    fn row(target: &str, sequence: u64) -> Row {
        let effect = Effect {
            subject: "out".to_owned(),
            kind: "out".to_owned(),
            headers: Vec::new(),
            data: Payload::from("{}"),
            key: String::new(),
            delivery: Delivery::default(),
        };
        Row {
            target: target.to_owned(),
            place: Place {
                sequence,
                sub: 0,
                index: 0,
            },
            turn: None,
            made_ns: 1,
            effect,
        }
    }

    /// One batch: an entry, and an effect for each target.
    fn step(writer: &mut Writer, position: u64, targets: &[&str]) {
        writer.begin();
        writer
            .put("last", Some(Payload::from(position.to_string())))
            .expect("within limits");
        for target in targets {
            writer.emit(&row(target, position)).expect("within limits");
        }
        let stream = StreamIdentity {
            name: "s".to_owned(),
            created_ns: 1,
        };
        writer.publish(Checkpoint::at(position, stream));
    }

    fn sequences(store: &Store, target: &str) -> Vec<u64> {
        let none = RefusedKeys::default();
        let (rows, _) = store
            .effects(target, None, &none, (100, usize::MAX))
            .expect("reads");
        rows.into_iter().map(|row| row.place.sequence).collect()
    }

    #[test]
    fn effects_are_durable_with_their_entries_or_not_at_all() {
        let (_folder, path) = owned();
        let (store, mut writer) = open(&path);
        step(&mut writer, 1, &["a", "b"]);
        store.flush().expect("commits");
        step(&mut writer, 2, &["a"]);
        assert!(store.has_new_effects());
        assert_eq!(
            sequences(&store, "a"),
            [1],
            "what is not durable is not there to be sent"
        );
        assert_eq!(store.waiting_effects().entries, 3);
        drop((store, writer));
        // A crash: the second step is gone, whole.
        let (store, _writer) = open(&path);
        assert_eq!(
            (
                store.position(),
                sequences(&store, "a"),
                sequences(&store, "b")
            ),
            (1, vec![1], vec![1])
        );
        assert_eq!(
            (store.waiting_effects().entries, store.ownership()),
            (2, Some(OWNERSHIP))
        );
        assert_eq!(store.effect_targets().expect("reads"), ["a", "b"]);
    }

    #[test]
    fn confirmed_effects_are_read_no_more_and_go_with_the_next_commit() {
        let (_folder, path) = owned();
        let (store, mut writer) = open(&path);
        for position in 1..=10 {
            step(&mut writer, position, &["a"]);
        }
        store.flush().expect("commits");
        assert!(store.is_outbox_full());
        store.confirm_effects([row("a", 1).key()]);
        store.remove_confirmed_effects().expect("commits");
        assert!(store.is_outbox_full(), "no more than a tenth is free again");
        store.confirm_effects([row("a", 2).key()]);
        let mark = Mark::at(99, Some(5));
        store.set_effect_mark("a", mark);
        assert_eq!(sequences(&store, "a"), (3..=10).collect::<Vec<_>>());
        store.remove_confirmed_effects().expect("commits");
        assert!(!store.is_outbox_full(), "more than a tenth is free again");
        step(&mut writer, 11, &["a"]);
        store.confirm_effects([row("a", 3).key()]);
        store.flush().expect("commits");
        assert!(!store.has_confirmed_effects());
        drop((store, writer));
        let (store, _writer) = open(&path);
        assert_eq!(sequences(&store, "a"), (4..=11).collect::<Vec<_>>());
        assert_eq!(
            (store.waiting_effects().entries, store.effect_mark("a")),
            (8, Some(mark))
        );
    }

    #[test]
    fn dropped_batch_has_no_effects_and_copies_have_none_and_no_owner() {
        let (folder, path) = owned();
        let (store, mut writer) = open(&path);
        writer.begin();
        writer.emit(&row("a", 1)).expect("within limits");
        writer.discard();
        step(&mut writer, 2, &["a"]);
        store.flush().expect("commits");
        assert_eq!(sequences(&store, "a"), [2]);
        let copied = folder.path().join("copy.redb");
        copy(&store.snapshot(), &copied).expect("copies");
        let (copied, _writer) = Store::open(&copied, Options::default(), |_| ()).expect("opens");
        assert_eq!(
            (copied.ownership(), copied.waiting_effects().entries),
            (None, 0)
        );
        assert_eq!(
            copied.snapshot().get("last").expect("reads"),
            Some(Payload::from("2"))
        );
    }

    #[test]
    fn delayed_effect_waits_for_its_time_across_a_restart_and_is_counted() {
        let (_folder, path) = owned();
        let (store, mut writer) = open(&path);
        writer.begin();
        for (sequence, time_ns) in [(1, 30), (2, 10), (3, 20)] {
            let mut row = row("a", sequence);
            row.effect.delivery.not_before_ns = Some(time_ns);
            writer.emit(&row).expect("within limits");
        }
        writer.emit(&row("a", 4)).expect("within limits");
        let stream = StreamIdentity {
            name: "s".to_owned(),
            created_ns: 1,
        };
        writer.publish(Checkpoint::at(4, stream));
        store.flush().expect("commits");
        let due = |store: &Store, until_ns| {
            let found = store.delayed_effects("a", None, until_ns, (100, usize::MAX));
            let Delayed { due, next_ns, .. } = found.expect("reads");
            let due: Vec<u64> = due.iter().map(|row| row.place.sequence).collect();
            (due, next_ns)
        };
        assert_eq!(sequences(&store, "a"), [4], "nothing waits behind them");
        assert_eq!(due(&store, 9), (vec![], Some(10)));
        assert_eq!(due(&store, 20), (vec![2, 3], Some(30)));
        drop((store, writer));
        let (store, _writer) = open(&path);
        assert_eq!(due(&store, 30), (vec![2, 3, 1], None));
        let part = |after: Option<&RowKey>| {
            let found = store.delayed_effects("a", after, 30, (2, usize::MAX));
            found.expect("reads")
        };
        let first = part(None);
        assert!(first.has_more && first.due.len() == 2);
        let second = part(first.due.last().map(Row::key).as_ref());
        assert!(!second.has_more && second.due.len() == 1);
        let none = part(second.due.last().map(Row::key).as_ref());
        assert!(none.due.is_empty());
        let waiting = store.waiting_effects();
        assert_eq!((waiting.entries, waiting.delayed), (4, 3));
        assert_eq!(store.effect_targets().expect("reads"), ["a"]);
    }

    #[test]
    fn conflict_is_set_aside_durably_and_holds_nothing_back() {
        let (_folder, path) = owned();
        let (store, mut writer) = open(&path);
        for position in 1..=3 {
            step(&mut writer, position, &["a"]);
        }
        store.flush().expect("commits");
        let mut aside = row("a", 2);
        aside.effect.delivery.conflict = Some("it has 4".to_owned());
        let (old, gone) = (row("a", 2).key(), row("a", 9).key());
        let changes = [(old, aside.clone()), (gone, row("a", 10))];
        store.replace_effects(&changes).expect("commits");
        assert_eq!(sequences(&store, "a"), [1, 3]);
        drop((store, writer));
        let (store, _writer) = open(&path);
        let waiting = store.waiting_effects();
        assert_eq!(
            (waiting.entries, waiting.conflicts, waiting.delayed),
            (3, 1, 0)
        );
        let places = BTreeSet::from([aside.place]);
        assert_eq!(store.rows_at(&places).expect("reads"), [aside]);
    }

    #[test]
    fn only_a_file_with_an_owner_has_the_format_that_older_releases_refuse() {
        let format = |path: &Path| {
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
        };
        let (folder, path) = owned();
        let (store, mut writer) = open(&path);
        step(&mut writer, 1, &["a"]);
        store.flush().expect("commits");
        drop((store, writer));
        assert_eq!(format(&path), FORMAT_OWNED);
        let plain = folder.path().join("plain.redb");
        let (store, mut writer) = Store::open(&plain, Options::default(), |_| ()).expect("opens");
        step(&mut writer, 1, &[]);
        store.flush().expect("commits");
        drop((store, writer));
        assert_eq!(format(&plain), FORMAT);
    }

    #[test]
    fn refused_keys_take_no_more_than_half_of_what_is_read() {
        let (_folder, path) = owned();
        let (store, mut writer) = open(&path);
        for sequence in 1..=9 {
            let mut row = row("a", sequence);
            row.effect.key = ["x", "y", "z"][sequence as usize / 4].to_owned();
            writer.begin();
            writer.emit(&row).expect("within limits");
            let stream = StreamIdentity {
                name: "s".to_owned(),
                created_ns: 1,
            };
            writer.publish(Checkpoint::at(sequence, stream));
        }
        store.flush().expect("commits");
        let read = |refused: &[&str], after, entries_max| {
            let refused = RefusedKeys {
                keys: refused.iter().map(|key| (*key).to_owned()).collect(),
                after,
            };
            let read = store.effects("a", None, &refused, (entries_max, usize::MAX));
            let (rows, after) = read.expect("reads");
            let places: Vec<u64> = rows.iter().map(|row| row.place.sequence).collect();
            (places, after)
        };
        let at = |sequence| Some(row("a", sequence).place);
        assert_eq!(read(&[], None, 100), ((1..=9).collect(), None));
        assert_eq!(read(&["x"], None, 100), (vec![1, 4, 5, 6, 7, 8, 9], None));
        assert_eq!(read(&["x", "y"], None, 100), (vec![1, 4, 8, 9], None));
        // One place is for others, and the refused ones take turns.
        assert_eq!(read(&["x", "y"], None, 2), (vec![1, 8], at(1)));
        assert_eq!(read(&["x", "y"], at(1), 2), (vec![4, 8], at(4)));
        assert_eq!(read(&["x", "y", "z"], at(4), 2), (vec![8], None));
    }
}
