//! Cursors: how far producers of effects have come, each under a name.
//!
//! A cursor moves in the commit of the append that it belongs to, so a producer that repeats an
//! append after a crash or a lost answer finds out whether it was stored. Cursors are not events
//! and take no part in retention.

use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::file::Failure;
use super::{Error, Log};
use crate::storage;

const CURSORS: TableDefinition<'static, &'static str, &'static [u8]> =
    TableDefinition::new("cursors");

/// The value of a cursor.
pub(super) type Cursor = [u8; 16];

/// An expected move of a cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CursorMove {
    /// Its name.
    pub name: String,
    /// Its value before; none if it does not exist.
    pub from: Option<Cursor>,
    /// Its value once the events are stored.
    pub to: Cursor,
}

/// Whether a cursor is where it is expected; otherwise where it is.
pub(super) fn check(
    transaction: &WriteTransaction,
    wanted: &CursorMove,
) -> Result<Result<(), Error>, Failure> {
    let found = read(&transaction.open_table(CURSORS)?, &wanted.name)?;
    // Equal, not at most: two owners must not append side by side.
    Ok(if found == wanted.from {
        Ok(())
    } else {
        Err(Error::CursorMoved(wanted.name.clone()))
    })
}

pub(super) fn store(transaction: &WriteTransaction, moved: &CursorMove) -> Result<(), Failure> {
    transaction
        .open_table(CURSORS)?
        .insert(moved.name.as_str(), moved.to.as_slice())?;
    Ok(())
}

fn read(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<Option<Cursor>, Failure> {
    let Some(value) = table.get(name)? else {
        return Ok(None);
    };
    let damaged = |_| Failure::Damaged(format!("its cursor {name} has another length"));
    value.value().try_into().map(Some).map_err(damaged)
}

impl Log {
    /// The value of a cursor. Blocking.
    pub fn cursor(&self, name: &str) -> Result<Option<Cursor>, Error> {
        let file = self.shared.file.read();
        let Some(database) = file.as_ref() else {
            return Err(Error::Storage(storage::Error::failed_before(
                "it failed and is not open; the next append reopens it",
            )));
        };
        let look = || {
            let transaction = database.begin_read()?;
            match transaction.open_table(CURSORS) {
                Ok(table) => read(&table, name),
                Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        look().map_err(Error::from)
    }
}
