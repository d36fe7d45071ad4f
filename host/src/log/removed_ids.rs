//! The ids of events that retention removed within the duplicate window: the events no longer carry
//! them, so a producer that repeats one after a restart would store it twice.

use std::ops::Range;

use redb::{ReadTransaction, TableDefinition, WriteTransaction};

use super::file::Failure;
use super::ids::Ids;
use super::now_ns;

/// Time of the append and id, by sequence: three little-endian u64.
const REMOVED_IDS: TableDefinition<'static, u64, &'static [u8]> =
    TableDefinition::new("removed_ids");

/// Most rows that one commit removes: more than it adds, so that old ones go in any case.
const FORGOTTEN_MAX: usize = 20_000;

/// Writes the ids of events that this transaction removes, and removes some of those that are no
/// longer remembered.
pub(super) fn keep(
    transaction: &WriteTransaction,
    ids: &Ids,
    removed: Range<u64>,
) -> Result<(), Failure> {
    if !ids.has_window() {
        return Ok(());
    }
    let mut table = transaction.open_table(REMOVED_IDS)?;
    let oldest = ids.oldest().unwrap_or(removed.end);
    let forgotten = table.extract_from_if(..oldest, |_, _| true)?;
    for row in forgotten.take(FORGOTTEN_MAX) {
        row?;
    }
    let (passed_ns, now_ns) = (ids.now_ns(), now_ns());
    for known in ids.of(removed) {
        // By the clock, like the times of events: the next process has no other time.
        let appended_ns = now_ns.saturating_sub(passed_ns.saturating_sub(known.appended_ns));
        let mut row = [0; 24];
        let words = [appended_ns, known.id[0], known.id[1]];
        for (bytes, word) in row.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        table.insert(known.sequence, row.as_slice())?;
    }
    Ok(())
}

/// Remembers the ids of removed events with sequences before one.
pub(super) fn recall(
    transaction: &ReadTransaction,
    ids: &mut Ids,
    before: u64,
    now_ns: u64,
) -> Result<(), Failure> {
    let table = match transaction.open_table(REMOVED_IDS) {
        Ok(table) => table,
        // No event with an id has been removed yet.
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let horizon = ids.horizon_ns(now_ns);
    for row in table.range(..before)? {
        let (sequence, row) = row?;
        let Ok(row) = <[u8; 24]>::try_from(row.value()) else {
            let damaged = format!("the id of event {} has another length", sequence.value());
            return Err(Failure::Damaged(damaged));
        };
        let word = |at: usize| u64::from_le_bytes(row[at..at + 8].try_into().expect("eight bytes"));
        // A time ahead of the clock is from a time when the clock was wrong.
        let appended_ns = word(0).min(now_ns);
        if appended_ns >= horizon {
            ids.insert([word(8), word(16)], sequence.value(), appended_ns);
        }
    }
    Ok(())
}
