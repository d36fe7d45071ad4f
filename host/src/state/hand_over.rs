//! Handing effects over: the rows of one state file pass to another, which becomes their owner.
//!
//! The file that takes over gets the rows first, and says that it is *prepared*. The catalogue then
//! names it as the owner, or does not. Only after that the other file lets go. So whatever a crash
//! leaves behind, the file that the catalogue names has all rows; a file that is prepared, and that
//! the catalogue does not name, is emptied when it is opened.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use redb::WriteTransaction;

use super::file::{FORMAT, FORMAT_OWNED, File, META, guarded, has_timers, storage};
use super::outbox::{Found, MARKS, Marks, OUTBOX, OWNER, Owned, Ownership, Waiting, size};
use super::{Error, Mark, Store};
use crate::effects::{Queue, RowKey, queue_of_key};
use crate::storage;

/// How much is copied in one commit, in bytes.
const COPY_BYTES: u64 = 4 << 20;

/// A part of the rows that was copied.
#[derive(Debug)]
pub struct Copied {
    /// The last row that was looked at; none if that was all of them.
    pub last: Option<RowKey>,
    /// How many rows were added or removed.
    pub changed: usize,
    /// How many bytes were added.
    pub bytes: u64,
    /// Rows that were looked at.
    waiting: Waiting,
}

/// A file that is prepared to be the owner.
#[derive(Debug)]
pub struct Prepared(Found);

/// How two outboxes differ.
#[derive(Default)]
struct Difference {
    /// Rows that only the other has.
    missing: Vec<(RowKey, Vec<u8>)>,
    /// Rows that only this one has.
    gone: Vec<RowKey>,
    /// Rows of the other.
    waiting: Waiting,
    /// The last row that was compared; none if all were.
    last: Option<RowKey>,
}

/// Compares the rows of two files after a key, until about [`COPY_BYTES`] are missing; rows of `sent`
/// count as absent from the other. Equal keys mean equal rows, except in conflict: an operator may
/// have had such a row tried again, and it came back with another reason.
fn difference(
    ours: &File,
    theirs: &File,
    sent: &BTreeSet<RowKey>,
    after: Option<&RowKey>,
) -> Result<Difference, Error> {
    // Both are in the order of their keys, so one walk over both is enough.
    let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(&**key));
    let range: (Bound<&[u8]>, Bound<&[u8]>) = (from, Bound::Unbounded);
    let mut found = Difference::default();
    let mut own = ours.keys(range)?.into_iter().peekable();
    let transaction = theirs.begin_read()?;
    let table = match transaction.open_table(OUTBOX) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => {
            return Ok(Difference {
                gone: own.collect(),
                ..found
            });
        }
        Err(error) => return Err(storage(error)),
    };
    let mut bytes = 0;
    for row in table.range::<&[u8]>(range).map_err(storage)? {
        let (key, value) = row.map_err(storage)?;
        let key: RowKey = key.value().into();
        // A confirmed row is as good as gone: it is stored in its target.
        if sent.contains(&key) {
            continue;
        }
        // Ours were sent or dropped over there since they were copied.
        while let Some(only_ours) = own.next_if(|own| *own < key) {
            found.gone.push(only_ours);
        }
        let value = value.value();
        let row_bytes = size(&key, value);
        found.waiting.add(&key, value);
        let is_ours = own.next_if(|own| *own == key).is_some();
        let may_differ = matches!(queue_of_key(&key), Some((Queue::Conflict, ..)));
        if is_ours && !(may_differ && ours.row(&key)?.as_deref() != Some(value)) {
            continue;
        }
        found.missing.push((key.clone(), value.to_vec()));
        bytes += row_bytes;
        // The rest of ours lies behind this key, and is compared in the next part.
        if bytes >= COPY_BYTES {
            found.last = Some(key);
            return Ok(found);
        }
    }
    // At the end: what is left of ours has no counterpart.
    found.gone.extend(own);
    Ok(found)
}

impl File {
    /// The row of a key, as it is stored.
    fn row(&self, key: &RowKey) -> Result<Option<Vec<u8>>, Error> {
        let transaction = self.begin_read()?;
        let table = match transaction.open_table(OUTBOX) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(storage(error)),
        };
        let row = table.get(&**key).map_err(storage)?;
        Ok(row.map(|value| value.value().to_vec()))
    }

    /// Keys of the rows in a range. Few bytes each, and their number is limited.
    fn keys(&self, range: (Bound<&[u8]>, Bound<&[u8]>)) -> Result<Vec<RowKey>, Error> {
        let transaction = self.begin_read()?;
        let table = match transaction.open_table(OUTBOX) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(storage(error)),
        };
        let rows = table.range::<&[u8]>(range).map_err(storage)?;
        rows.map(|row| row.map(|(key, _)| key.value().into()).map_err(storage))
            .collect()
    }

    /// Changes what concerns effects, in a commit of its own.
    pub(super) fn change_effects(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // redb may panic at damage, and the store has to be reopened then.
        guarded(|| {
            let transaction = self.begin_write()?;
            change(&transaction)?;
            transaction.commit().map_err(storage)
        })
    }
}

/// Names the owner of a file, and sets its marks.
fn write_owner(
    transaction: &WriteTransaction,
    owned: Owned,
    marks: Option<&Marks>,
) -> Result<(), Error> {
    let mut meta = transaction.open_table(META).map_err(storage)?;
    let json = serde_json::to_vec(&owned).expect("an owner is plain data");
    meta.insert(OWNER, json.as_slice()).map_err(storage)?;
    // With an owner the file must not be opened by a release that knows none.
    meta.insert("format", FORMAT_OWNED.to_be_bytes().as_slice())
        .map_err(storage)?;
    if let Some(marks) = marks {
        let json = serde_json::to_vec(marks).expect("marks are plain data");
        meta.insert(MARKS, json.as_slice()).map_err(storage)?;
    }
    Ok(())
}

impl Store {
    /// Makes the next part of the rows in this file equal to those that wait in another, which
    /// keeps them; begins after a row. The file counts as prepared from then on. Blocking. After an
    /// error the store must be reopened.
    pub fn copy_effects(
        &self,
        from: &Self,
        owner: Ownership,
        after: Option<&RowKey>,
    ) -> Result<Copied, Error> {
        if self.has_failed() {
            return Err(Error::Storage(storage::Error::failed_before(
                "an earlier commit failed; the state must be reopened",
            )));
        }
        // Rows and marks of one moment.
        let pending = from.inner.outbox.pending();
        let (ours, theirs) = (&self.inner.file, &from.inner.file);
        let Difference {
            missing,
            gone,
            waiting,
            last,
        } = guarded(|| difference(ours, theirs, &pending.confirmed, after))?;
        let changed = missing.len() + gone.len();
        let bytes = missing.iter().map(|(key, value)| size(key, value)).sum();
        // The owner in each part, so that a crash in between leaves a file that says that it is
        // prepared.
        let written = ours.change_effects(|transaction| {
            write_owner(
                transaction,
                Owned {
                    owner,
                    is_prepared: true,
                },
                Some(&pending.marks),
            )?;
            let mut table = transaction.open_table(OUTBOX).map_err(storage)?;
            for (key, value) in &missing {
                table.insert(&**key, value.as_slice()).map_err(storage)?;
            }
            for key in &gone {
                table.remove(&**key).map_err(storage)?;
            }
            Ok(())
        });
        // What the file has is unknown, so nothing may be committed on top of it.
        written.inspect_err(|_| self.set_failed())?;
        Ok(Copied {
            last,
            changed,
            bytes,
            waiting,
        })
    }

    /// Prepares this file to own effects of which none waits: the file that had them is gone.
    /// Blocking. After an error the store must be reopened.
    pub fn prepare_to_own_nothing(
        &self,
        owner: Ownership,
        marks: BTreeMap<String, Mark>,
    ) -> Result<Prepared, Error> {
        let owned = Owned {
            owner,
            is_prepared: true,
        };
        let written = self.inner.file.change_effects(|transaction| {
            // Of an earlier attempt.
            transaction.delete_table(OUTBOX).map_err(storage)?;
            transaction.open_table(OUTBOX).map_err(storage)?;
            write_owner(transaction, owned, Some(&marks))
        });
        written.inspect_err(|_| self.set_failed())?;
        Ok(Prepared(Found {
            owner: Some(owned),
            waiting: Waiting::default(),
            marks,
        }))
    }

    /// Prepares this file to own exactly what waits in another, of which nothing may be sent or
    /// made meanwhile. Blocking.
    pub fn prepare_to_own(&self, from: &Self, owner: Ownership) -> Result<Prepared, Error> {
        let (mut waiting, mut after) = (Waiting::default(), None);
        loop {
            let copied = self.copy_effects(from, owner, after.as_ref())?;
            waiting += copied.waiting;
            after = copied.last;
            if after.is_none() {
                break;
            }
        }
        // Nothing is sent meanwhile, so the marks still belong to the rows.
        let marks = from.inner.outbox.pending().marks;
        Ok(Prepared(Found {
            owner: Some(Owned {
                owner,
                is_prepared: true,
            }),
            waiting,
            marks,
        }))
    }

    /// Whether both are the same open file.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Owns what it was prepared for, because the catalogue says so. Nothing is written.
    pub fn own(&self, prepared: Prepared) {
        self.inner.outbox.replace(prepared.0);
    }

    /// Records that it owns its effects, and not only is prepared to. Blocking.
    pub fn confirm_ownership(&self) -> Result<(), Error> {
        let Some(owned) = self.inner.outbox.owned().filter(|owned| owned.is_prepared) else {
            return Ok(());
        };
        let confirmed = Owned {
            is_prepared: false,
            ..owned
        };
        let written = self
            .inner
            .file
            .change_effects(|transaction| write_owner(transaction, confirmed, None));
        written.inspect_err(|_| self.set_failed())?;
        // In memory after the commit: nobody acts on an ownership that a crash takes back.
        self.inner.outbox.confirmed();
        Ok(())
    }

    /// Owns no effects and has none, from now on and without a record of it: its effects belong to
    /// another file.
    pub fn disown(&self) {
        self.inner.outbox.replace(Found::default());
    }

    /// The same, durably. Blocking.
    pub fn let_go(&self) -> Result<(), Error> {
        // In memory first: nothing may be sent from here while the rows are deleted.
        self.disown();
        let written = self.inner.file.change_effects(|transaction| {
            transaction.delete_table(OUTBOX).map_err(storage)?;
            let mut meta = transaction.open_table(META).map_err(storage)?;
            meta.remove(OWNER).map_err(storage)?;
            meta.remove(MARKS).map_err(storage)?;
            // Timers keep the newer format; without either an older release may read the file
            // again.
            let format = if has_timers(&meta)? {
                FORMAT_OWNED
            } else {
                FORMAT
            };
            meta.insert("format", format.to_be_bytes().as_slice())
                .map_err(storage)?;
            Ok(())
        });
        written.inspect_err(|_| self.set_failed())
    }

    /// Whether the file has effects or an owner.
    pub fn has_effects(&self) -> bool {
        self.ownership().is_some() || self.waiting_effects().entries > 0
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::effects::{Delivery, Effect, Grants, Lineage, Owner, Place, Role, Row};
    use crate::event::Payload;
    use crate::position::{Checkpoint, StreamIdentity};
    use crate::state::{Options, RefusedKeys, Writer, create_owned};

    const FIRST: Ownership = Ownership {
        lineage: Lineage(7),
        epoch: 1,
    };
    const SECOND: Ownership = Ownership {
        lineage: Lineage(7),
        epoch: 2,
    };

    fn open(path: &Path) -> (Store, Writer) {
        let (store, mut writer) =
            Store::open(path, Options::default(), |_| ()).expect("the state opens");
        writer.set_role(Role::Owner(Arc::new(Owner {
            deployment: "test".to_owned(),
            lineage: FIRST.lineage,
            epoch: 1,
            effects_after: 0,
            timers_after: 0,
            grants: Grants::default(),
            publishes: Arc::default(),
            logs: Arc::default(),
        })));
        (store, writer)
    }

    /// A file with an owner, and one that is to take over.
    fn two() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (one, other) = (folder.path().join("1.redb"), folder.path().join("2.redb"));
        create_owned(&one, FIRST).expect("is created");
        (folder, one, other)
    }

    fn row(sequence: u64, bytes: usize) -> Row {
        let effect = Effect {
            subject: "out".to_owned(),
            kind: "out".to_owned(),
            headers: Vec::new(),
            data: Payload::from("x".repeat(bytes)),
            key: String::new(),
            delivery: Delivery::default(),
        };
        Row {
            target: "a".to_owned(),
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

    fn step(writer: &mut Writer, position: u64, bytes: usize) {
        writer.begin();
        writer.emit(&row(position, bytes)).expect("within limits");
        let stream = StreamIdentity {
            name: "s".to_owned(),
            created_ns: 1,
        };
        writer.publish(Checkpoint::at(position, stream));
    }

    fn sequences(store: &Store) -> Vec<u64> {
        let (rows, _) = store
            .effects("a", None, &RefusedKeys::default(), (10_000, usize::MAX))
            .expect("reads");
        rows.into_iter().map(|row| row.place.sequence).collect()
    }

    #[test]
    fn row_that_is_in_conflict_again_is_copied_with_its_new_reason() {
        let (_folder, one, other) = two();
        let ((from, mut writer), (to, _writer)) = (open(&one), open(&other));
        step(&mut writer, 1, 10);
        from.flush().expect("commits");
        let aside = |why: &str| {
            let mut aside = row(1, 10);
            aside.effect.delivery.conflict = Some(why.to_owned());
            aside
        };
        let first = aside("it has 4");
        from.replace_effects(&[(row(1, 10).key(), first.clone())])
            .expect("commits");
        assert_eq!(to.copy_effects(&from, SECOND, None).expect("ok").changed, 1);
        assert_eq!(to.copy_effects(&from, SECOND, None).expect("ok").changed, 0);
        let again = aside("it has 5, and the message is still not the next one");
        from.replace_effects(&[(first.key(), again.clone())])
            .expect("commits");
        assert_eq!(to.copy_effects(&from, SECOND, None).expect("ok").changed, 1);
        to.own(to.prepare_to_own(&from, SECOND).expect("prepares"));
        assert_eq!(to.waiting_effects(), from.waiting_effects());
        let places = BTreeSet::from([again.place]);
        assert_eq!(to.rows_at(&places).expect("reads"), [again]);
    }

    #[test]
    fn prepared_file_has_exactly_what_waits_and_marks_and_the_other_keeps_it_until_it_lets_go() {
        let (_folder, one, other) = two();
        let ((from, mut writer), (to, _writer)) = (open(&one), open(&other));
        for position in 1..=5 {
            step(&mut writer, position, 2 << 20);
        }
        from.flush().expect("commits");
        // Copied in parts, while some are sent and others come.
        let copied = to.copy_effects(&from, SECOND, None).expect("copies");
        assert_eq!(
            copied.last,
            Some(row(2, 0).key()),
            "4 MiB are enough for one commit"
        );
        let copied = to
            .copy_effects(&from, SECOND, copied.last.as_ref())
            .expect("copies");
        assert_eq!(copied.changed, 2);
        from.confirm_effects([row(1, 0).key(), row(4, 0).key()]);
        let mark = Mark::at(9, None);
        from.set_effect_mark("a", mark);
        step(&mut writer, 6, 10);
        from.flush().expect("commits");
        from.confirm_effects([row(2, 0).key()]);
        let prepared = to.prepare_to_own(&from, SECOND).expect("prepares");
        assert_eq!(
            (to.waiting_effects().entries, to.ownership()),
            (0, None),
            "it does not own them yet"
        );
        to.own(prepared);
        assert_eq!(
            (sequences(&to), to.effect_mark("a")),
            (vec![3, 5, 6], Some(mark))
        );
        assert_eq!(
            (to.waiting_effects().entries, to.ownership()),
            (3, Some(SECOND))
        );
        assert!(to.waiting_effects().bytes > 4 << 20 && to.is_prepared_to_own());
        assert_eq!(
            (sequences(&from), from.ownership()),
            (vec![3, 5, 6], Some(FIRST))
        );
        to.confirm_ownership().expect("commits");
        from.let_go().expect("commits");
        assert!(!from.has_effects() && sequences(&from).is_empty());
        drop((from, writer, to, _writer));
        let ((from, _w), (to, _writer)) = (open(&one), open(&other));
        assert!(!from.has_effects());
        assert_eq!(
            (sequences(&to), to.ownership(), to.is_prepared_to_own()),
            (vec![3, 5, 6], Some(SECOND), false)
        );
        assert_eq!(to.waiting_effects().entries, 3);
    }

    #[test]
    fn file_that_was_only_prepared_says_so_after_a_crash_and_is_emptied_for_the_next_time() {
        let (_folder, one, other) = two();
        let ((from, mut writer), (to, _writer)) = (open(&one), open(&other));
        step(&mut writer, 1, 10);
        from.flush().expect("commits");
        drop(to.prepare_to_own(&from, SECOND).expect("prepares"));
        drop((to, _writer));
        let (to, _writer) = open(&other);
        assert!(to.is_prepared_to_own() && to.has_effects());
        to.let_go().expect("commits");
        assert!(!to.has_effects() && sequences(&to).is_empty());
        // What was sent meanwhile does not come back with the next attempt.
        step(&mut writer, 2, 10);
        from.flush().expect("commits");
        from.confirm_effects([row(1, 0).key()]);
        from.remove_confirmed_effects().expect("commits");
        to.own(to.prepare_to_own(&from, SECOND).expect("prepares"));
        assert_eq!(sequences(&to), [2]);
    }

    #[test]
    fn what_an_earlier_attempt_left_behind_is_replaced() {
        let (_folder, one, other) = two();
        let ((from, mut writer), (to, _writer)) = (open(&one), open(&other));
        for position in 1..=3 {
            step(&mut writer, position, 10);
        }
        from.flush().expect("commits");
        drop(to.prepare_to_own(&from, SECOND).expect("prepares"));
        from.confirm_effects((1..=3).map(|sequence| row(sequence, 0).key()));
        from.remove_confirmed_effects().expect("commits");
        step(&mut writer, 4, 10);
        from.flush().expect("commits");
        to.own(to.prepare_to_own(&from, SECOND).expect("prepares"));
        assert_eq!((sequences(&to), to.waiting_effects().entries), (vec![4], 1));
    }
}
