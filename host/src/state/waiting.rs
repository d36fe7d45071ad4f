//! What waits in an outbox, for people: pages of rows, and rows by their place.

use std::collections::{BTreeSet, HashSet};
use std::ops::Bound;

use bytes::Bytes;

use super::file::{File, guarded, storage};
use super::outbox::OUTBOX;
use super::{Error, Store};
use crate::effects::{Place, Queue, Row, RowKey, keys_of, queue_of_key};

/// Most rows, and about the most bytes, that are in memory while all are looked at.
const PAGE: (usize, usize) = (1_000, 4 << 20);

/// Keys of which a target refuses an effect.
#[derive(Debug, Default)]
pub struct RefusedKeys {
    /// The keys.
    pub keys: HashSet<String>,
    /// Those whose first effect is up to here in the order are left out.
    pub after: Option<Place>,
}

impl File {
    /// Durable rows of a target in order and after a key, without those of `leave_out` and of refused
    /// keys, up to a number and about a size; see [`Store::effects`].
    fn rows(
        &self,
        target: &str,
        (after, leave_out): (Option<RowKey>, &BTreeSet<RowKey>),
        refused: &RefusedKeys,
        (entries_max, bytes_max): (usize, usize),
    ) -> Result<(Vec<Row>, Option<Place>), Error> {
        let (first, last) = keys_of(target, Queue::Ordered).into_inner();
        let (mut rows, mut bytes) = (Vec::new(), 0);
        // Refused keys that were met, and what was taken of them.
        let (mut met, mut heads, mut heads_bytes) = (HashSet::new(), 0, 0);
        let (mut last_head, mut is_cut) = (None, false);
        let mut from = after.map_or(Bound::Included(first), Bound::Excluded);
        loop {
            let (page, has_more) = self.rows_in(
                (from.as_ref().map(|key| &**key), Bound::Included(&*last)),
                // Such a row is confirmed, but a commit has yet to remove it.
                |key| !leave_out.contains(key),
                (entries_max, bytes_max),
            )?;
            from = match page.last() {
                Some(row) if has_more => Bound::Excluded(row.key()),
                _ => Bound::Unbounded,
            };
            for row in page {
                let (key, row_bytes) = (&row.effect.key, row.effect.data.len());
                if refused.keys.contains(key) {
                    let is_first = met.insert(key.clone());
                    if !is_first || refused.after.is_some_and(|after| row.order() <= after) {
                        continue;
                    }
                    // Half of it is for others.
                    if heads >= entries_max / 2 || heads_bytes >= bytes_max / 2 {
                        is_cut = true;
                        continue;
                    }
                    (heads, heads_bytes) = (heads + 1, heads_bytes + row_bytes);
                    last_head = Some(row.order());
                }
                bytes += row_bytes;
                rows.push(row);
                if rows.len() >= entries_max || bytes >= bytes_max {
                    return Ok((rows, last_head.or(refused.after)));
                }
            }
            if matches!(from, Bound::Unbounded) {
                return Ok((rows, last_head.filter(|_| is_cut)));
            }
        }
    }

    /// Rows in a range for which a check holds, up to a number and about a size, and whether a
    /// limit ended the search.
    pub(super) fn rows_in(
        &self,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        is_wanted: impl Fn(&[u8]) -> bool,
        (entries_max, bytes_max): (usize, usize),
    ) -> Result<(Vec<Row>, bool), Error> {
        let transaction = self.begin_read()?;
        let table = match transaction.open_table(OUTBOX) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok((Vec::new(), false)),
            Err(error) => return Err(storage(error)),
        };
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for row in table.range::<&[u8]>(range).map_err(storage)? {
            let (key, value) = row.map_err(storage)?;
            if !is_wanted(key.value()) {
                continue;
            }
            bytes += key.value().len() + value.value().len();
            let read = Row::read(key.value(), Bytes::copy_from_slice(value.value()));
            let damaged =
                || Error::damaged("a waiting effect is damaged; check the disk, restore a backup");
            rows.push(read.ok_or_else(damaged)?);
            // After the row: at least one is returned, whatever its size.
            if rows.len() >= entries_max || bytes >= bytes_max {
                return Ok((rows, true));
            }
        }
        Ok((rows, false))
    }
}

impl Store {
    /// Durable effects of a target in order and after a row, without confirmed ones, up to a number
    /// and about a size; of each refused key at most the first one. Also after which of these to read
    /// on. Blocking.
    pub fn effects(
        &self,
        target: &str,
        after: Option<RowKey>,
        refused: &RefusedKeys,
        limits: (usize, usize),
    ) -> Result<(Vec<Row>, Option<Place>), Error> {
        // A copy: the lock is not held while the file is read.
        let confirmed = self.inner.outbox.pending().confirmed;
        self.inner
            .file
            .rows(target, (after, &confirmed), refused, limits)
    }

    /// Durable effects after a row, in the order in which they leave, target by target, without
    /// confirmed ones; and whether there may be more. Blocking.
    pub fn waiting_rows(
        &self,
        after: Option<&RowKey>,
        entries_max: usize,
        bytes_max: usize,
    ) -> Result<(Vec<Row>, bool), Error> {
        // Confirmed rows have left, and only wait for a commit to be removed.
        let confirmed = self.inner.outbox.pending().confirmed;
        let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(&**key));
        let is_wanted = |key: &[u8]| !confirmed.contains(key);
        guarded(|| {
            self.inner.file.rows_in(
                (from, Bound::Unbounded),
                is_wanted,
                (entries_max, bytes_max),
            )
        })
    }

    /// Looks at all durable effects of a target, without confirmed ones. Blocking.
    pub fn for_each_effect(&self, target: &str, mut look: impl FnMut(&Row)) -> Result<(), Error> {
        for queue in [Queue::Ordered, Queue::Delayed, Queue::Conflict] {
            let (first, last) = keys_of(target, queue).into_inner();
            let mut from = Bound::Included(first);
            loop {
                let confirmed = self.inner.outbox.pending().confirmed;
                let range = (from.as_ref().map(|key| &**key), Bound::Included(&*last));
                let (rows, has_more) = guarded(|| {
                    let is_waiting = |key: &[u8]| !confirmed.contains(key);
                    self.inner.file.rows_in(range, is_waiting, PAGE)
                })?;
                rows.iter().for_each(&mut look);
                let Some(row) = rows.last().filter(|_| has_more) else {
                    break;
                };
                from = Bound::Excluded(row.key());
            }
        }
        Ok(())
    }

    /// Durable effects at some places, without confirmed ones. Blocking.
    pub fn rows_at(&self, places: &BTreeSet<Place>) -> Result<Vec<Row>, Error> {
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let confirmed = self.inner.outbox.pending().confirmed;
        // A place names neither target nor time nor turn, so all keys are walked through; there are
        // not many.
        let is_wanted = |key: &[u8]| {
            let place = queue_of_key(key).map(|(_, place)| place);
            place.is_some_and(|place| places.contains(&place)) && !confirmed.contains(key)
        };
        let limits = (places.len(), usize::MAX);
        let everything = (Bound::Unbounded, Bound::Unbounded);
        let found = guarded(|| self.inner.file.rows_in(everything, is_wanted, limits));
        found.map(|(rows, _)| rows)
    }
}
