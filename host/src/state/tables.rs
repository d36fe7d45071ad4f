//! Whole files, row by row: how a backup reads one that is open, and makes a copy of it.
//!
//! A copy has the last commit of the file, whatever is written meanwhile. Rows are bytes here: the
//! code that copies them does not interpret them, so a copy has every table of the file, in the
//! same format.

use std::path::Path;

use redb::{
    Database, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition,
    TableHandle as _,
};

use super::Error;
use super::file::storage;
use crate::storage;

/// Cache while a copy is made or read, in bytes.
const CACHE_BYTES: usize = 16 << 20;
/// How much of a copy is written in one commit, in bytes.
const COMMIT_BYTES: usize = 32 << 20;

/// The types of the keys and values of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    TextBytes,
    NumberBytes,
    TextNumber,
    BytesBytes,
}

/// All tables of state files, embedded logs and the catalogue, by name: no two of them differ in
/// their shapes.
const TABLES: [(&str, Shape); 17] = [
    ("entries", Shape::TextBytes),
    ("meta", Shape::TextBytes),
    ("exceptions", Shape::NumberBytes),
    ("parked", Shape::BytesBytes),
    ("released", Shape::BytesBytes),
    ("deployments", Shape::TextBytes),
    ("audit", Shape::NumberBytes),
    ("chunks", Shape::NumberBytes),
    ("subjects", Shape::TextNumber),
    ("log", Shape::TextBytes),
    ("removed_ids", Shape::NumberBytes),
    ("cursors", Shape::TextBytes),
    ("outbox", Shape::BytesBytes),
    ("inbox", Shape::BytesBytes),
    ("inbox_order", Shape::BytesBytes),
    ("timers", Shape::TextBytes),
    ("due", Shape::BytesBytes),
];

fn shape(table: &str) -> Result<Shape, Error> {
    let found = TABLES.iter().find(|(name, _)| *name == table);
    found.map(|(_, shape)| *shape).ok_or_else(|| {
        // A copy without that table would look complete, and is not.
        Error::Open(storage::Error::new(format!(
            "the file has a table `{table}` that this build does not know; use the foldstream that \
             wrote it"
        )))
    })
}

/// A key and its value. Numbers are 8 bytes, big endian.
pub type Row = (Vec<u8>, Vec<u8>);

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A table begins.
    Table(&'a str),
    /// A row of it, in the order of the keys.
    Row(&'a [u8], &'a [u8]),
}

/// A file as of its last commit. While this lives, the file keeps the pages of that commit.
pub struct Frozen {
    transaction: ReadTransaction,
    /// Of a file that nobody else has open.
    _database: Option<ReadOnlyDatabase>,
}

impl std::fmt::Debug for Frozen {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Frozen").finish_non_exhaustive()
    }
}

impl Frozen {
    /// What a transaction sees.
    pub fn of(transaction: ReadTransaction) -> Self {
        Self {
            transaction,
            _database: None,
        }
    }

    /// A file that nobody has open, and that was closed cleanly. Nothing is written to it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .open_read_only(path);
        let database = database.map_err(|error| Error::Open(of_file(path, error)))?;
        let transaction = database.begin_read().map_err(storage)?;
        Ok(Self {
            transaction,
            _database: Some(database),
        })
    }

    /// Calls `visit` with every table and row. Blocking, for as long as it takes to read all of it.
    pub fn each<E: From<Error>>(
        &self,
        visit: &mut dyn FnMut(Item<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let tables = self.transaction.list_tables().map_err(storage)?;
        let mut names: Vec<String> = tables.map(|table| table.name().to_owned()).collect();
        // In one order, so that two copies of one file are equal.
        names.sort();
        for name in &names {
            visit(Item::Table(name))?;
            match shape(name)? {
                Shape::TextBytes => {
                    let table = self
                        .transaction
                        .open_table(TableDefinition::<&str, &[u8]>::new(name));
                    for row in table.map_err(storage)?.iter().map_err(storage)? {
                        let (key, value) = row.map_err(storage)?;
                        visit(Item::Row(key.value().as_bytes(), value.value()))?;
                    }
                }
                Shape::NumberBytes => {
                    let table = self
                        .transaction
                        .open_table(TableDefinition::<u64, &[u8]>::new(name));
                    for row in table.map_err(storage)?.iter().map_err(storage)? {
                        let (key, value) = row.map_err(storage)?;
                        visit(Item::Row(&key.value().to_be_bytes(), value.value()))?;
                    }
                }
                Shape::TextNumber => {
                    let table = self
                        .transaction
                        .open_table(TableDefinition::<&str, u64>::new(name));
                    for row in table.map_err(storage)?.iter().map_err(storage)? {
                        let (key, value) = row.map_err(storage)?;
                        visit(Item::Row(
                            key.value().as_bytes(),
                            &value.value().to_be_bytes(),
                        ))?;
                    }
                }
                Shape::BytesBytes => {
                    let table = self
                        .transaction
                        .open_table(TableDefinition::<&[u8], &[u8]>::new(name));
                    for row in table.map_err(storage)?.iter().map_err(storage)? {
                        let (key, value) = row.map_err(storage)?;
                        visit(Item::Row(key.value(), value.value()))?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// A file that is written from the rows of another.
pub struct Copy {
    database: Database,
}

impl std::fmt::Debug for Copy {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Copy").finish_non_exhaustive()
    }
}

impl Copy {
    /// Starts; the file is empty or absent.
    pub fn begin(path: &Path) -> Result<Self, Error> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path);
        Ok(Self {
            database: database.map_err(|error| Error::Storage(of_file(path, error)))?,
        })
    }

    /// Writes a table with all rows that `next` returns. Durable when it returns.
    pub fn table<E: From<Error>>(
        &self,
        name: &str,
        next: &mut dyn FnMut() -> Result<Option<Row>, E>,
    ) -> Result<(), E> {
        match shape(name)? {
            Shape::TextBytes => self.fill(next, |transaction, next| {
                let mut table = transaction
                    .open_table(TableDefinition::<&str, &[u8]>::new(name))
                    .map_err(storage)?;
                part(next, |key, value| {
                    table.insert(text(key)?, value).map(drop).map_err(storage)
                })
            }),
            Shape::NumberBytes => self.fill(next, |transaction, next| {
                let mut table = transaction
                    .open_table(TableDefinition::<u64, &[u8]>::new(name))
                    .map_err(storage)?;
                part(next, |key, value| {
                    table.insert(number(key)?, value).map(drop).map_err(storage)
                })
            }),
            Shape::TextNumber => self.fill(next, |transaction, next| {
                let mut table = transaction
                    .open_table(TableDefinition::<&str, u64>::new(name))
                    .map_err(storage)?;
                part(next, |key, value| {
                    table
                        .insert(text(key)?, number(value)?)
                        .map(drop)
                        .map_err(storage)
                })
            }),
            Shape::BytesBytes => self.fill(next, |transaction, next| {
                let mut table = transaction
                    .open_table(TableDefinition::<&[u8], &[u8]>::new(name))
                    .map_err(storage)?;
                part(next, |key, value| {
                    table.insert(key, value).map(drop).map_err(storage)
                })
            }),
        }
    }

    /// Commits part by part, so that uncommitted rows never take much memory.
    fn fill<E: From<Error>>(
        &self,
        next: &mut dyn FnMut() -> Result<Option<Row>, E>,
        write: impl Fn(
            &redb::WriteTransaction,
            &mut dyn FnMut() -> Result<Option<Row>, E>,
        ) -> Result<bool, E>,
    ) -> Result<(), E> {
        loop {
            // A new transaction for each part; a copy that breaks off is removed by its caller.
            let transaction = self.database.begin_write().map_err(storage)?;
            let has_more = write(&transaction, next)?;
            transaction.commit().map_err(storage)?;
            if !has_more {
                return Ok(());
            }
        }
    }
}

/// Writes the rows of about one commit; returns whether there may be more.
fn part<E: From<Error>>(
    next: &mut dyn FnMut() -> Result<Option<Row>, E>,
    mut insert: impl FnMut(&[u8], &[u8]) -> Result<(), Error>,
) -> Result<bool, E> {
    let mut bytes = 0;
    while bytes < COMMIT_BYTES {
        let Some((key, value)) = next()? else {
            return Ok(false);
        };
        insert(&key, &value)?;
        bytes += key.len() + value.len();
    }
    Ok(true)
}

fn text(octets: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(octets).map_err(|_| Error::damaged("a key that has to be text is none"))
}

fn of_file(path: &Path, error: redb::DatabaseError) -> storage::Error {
    storage::Error::of_file(path, redb::Error::from(error))
}

fn number(octets: &[u8]) -> Result<u64, Error> {
    let octets = octets
        .try_into()
        .map_err(|_| Error::damaged("a number has other than 8 bytes"))?;
    Ok(u64::from_be_bytes(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All items of a file.
    fn items(frozen: &Frozen) -> Vec<(String, Vec<u8>, Vec<u8>)> {
        let (mut found, mut table) = (Vec::new(), String::new());
        frozen
            .each(&mut |item| {
                match item {
                    Item::Table(name) => name.clone_into(&mut table),
                    Item::Row(key, value) => {
                        found.push((table.clone(), key.to_vec(), value.to_vec()));
                    }
                }
                Ok::<_, Error>(())
            })
            .expect("it can be read");
        found
    }

    fn copy(rows: &[(&str, Row)], path: &Path) {
        let copy = Copy::begin(path).expect("a new file");
        for name in ["entries", "chunks", "subjects", "outbox"] {
            let mut rows = rows
                .iter()
                .filter(|(table, _)| *table == name)
                .map(|(_, row)| row.clone());
            copy.table(name, &mut || Ok::<_, Error>(rows.next()))
                .expect("rows of that shape");
        }
    }

    #[test]
    fn a_copy_has_every_row_of_every_shape_and_of_every_commit() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("1.redb");
        let number = |number: u64| number.to_be_bytes().to_vec();
        let mut rows: Vec<(&str, Row)> = (0..40)
            .map(|key| ("chunks", (number(key), vec![7; 2 << 20])))
            .collect();
        rows.push(("entries", (b"key".to_vec(), b"\x01value".to_vec())));
        rows.push(("outbox", (b"orders\0\xff".to_vec(), b"\x01effect".to_vec())));
        rows.push(("subjects", (b"orders.1".to_vec(), number(9))));
        copy(&rows, &path);
        let wanted: Vec<_> = rows
            .into_iter()
            .map(|(table, (key, value))| (table.to_owned(), key, value))
            .collect();
        let frozen = Frozen::open(&path).expect("it was closed");
        assert!(items(&frozen) == wanted, "all rows, table by table");
    }

    #[test]
    fn what_is_written_meanwhile_is_not_seen() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("1.redb");
        let copy = Copy::begin(&path).expect("a new file");
        let write = |key: &str| {
            let mut row = Some((key.as_bytes().to_vec(), vec![1]));
            copy.table("entries", &mut || Ok::<_, Error>(row.take()))
                .expect("it is written");
        };
        write("before");
        let frozen = Frozen::of(copy.database.begin_read().expect("it is open"));
        write("after");
        let keys: Vec<_> = items(&frozen).into_iter().map(|(_, key, _)| key).collect();
        assert_eq!(keys, [b"before".to_vec()]);
    }

    #[test]
    fn rows_of_another_shape_and_unknown_tables_are_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let copy = Copy::begin(&folder.path().join("1.redb")).expect("a new file");
        let mut row = Some((vec![0xff, 0xfe], vec![1]));
        let refused = copy
            .table("entries", &mut || Ok::<_, Error>(row.take()))
            .expect_err("it is no text");
        assert!(matches!(refused, Error::Damaged(_)), "{refused}");
        let refused = copy
            .table("later", &mut || Ok::<_, Error>(None))
            .expect_err("it is unknown");
        assert!(refused.to_string().contains("later"), "{refused}");
    }
}
