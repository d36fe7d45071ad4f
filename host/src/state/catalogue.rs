//! The catalogue: which modules there are, which deployments, and what was done to them.
//!
//! One redb file, `catalog.redb`. Rows are JSON, so that people can look
//! inside; every change is one durable commit together with its audit entry.

use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use super::Error;
use super::file::{FORMAT, check_format, open_database, storage};
use crate::api::{ModuleInfo, Start};

const DEPLOYMENTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("deployments");
const AUDIT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("audit");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Audit entries that are kept; older ones are dropped.
const AUDIT_MAX: u64 = 10_000;

/// A deployment as the catalogue remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// Number of the generation that serves.
    pub generation: u64,
    /// Its module.
    pub module: ModuleInfo,
    /// Name of the source.
    pub source: String,
    /// Where a new state begins.
    pub start: Start,
    /// Whether an operator paused it.
    pub paused: bool,
    /// When it was deployed, in RFC 3339.
    pub deployed_at: String,
    /// Position that the predecessor had reached: reads wait for it, so that they never go back.
    pub answers_from: u64,
}

/// Something that was done, for the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// When, in RFC 3339.
    pub at: String,
    /// What: `deploy`, `pause`, `resume`, `delete`.
    pub action: String,
    /// To which deployment.
    pub deployment: String,
    /// More, in words.
    pub detail: String,
}

/// The open catalogue.
#[derive(Debug)]
pub struct Catalogue {
    database: Database,
}

impl Catalogue {
    /// Opens or creates the catalogue. Blocking.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let database = open_database(path, 1 << 20, |_| ())?;
        let transaction = database.begin_write().map_err(storage)?;
        {
            transaction.open_table(DEPLOYMENTS).map_err(storage)?;
            transaction.open_table(AUDIT).map_err(storage)?;
            let mut meta = transaction.open_table(META).map_err(storage)?;
            let format = meta.get("format").map_err(storage)?.map(|value| value.value().to_vec());
            check_format(path, format.as_deref())?;
            meta.insert("format", FORMAT.to_be_bytes().as_slice()).map_err(storage)?;
        }
        transaction.commit().map_err(storage)?;
        Ok(Self { database })
    }

    /// All deployments, by name.
    pub fn deployments(&self) -> Result<Vec<Record>, Error> {
        let transaction = self.database.begin_read().map_err(storage)?;
        let table = transaction.open_table(DEPLOYMENTS).map_err(storage)?;
        table.iter().map_err(storage)?.map(|row| parse(row.map_err(storage)?.1.value())).collect()
    }

    /// Writes a deployment and an audit entry, as one.
    pub fn put(&self, record: &Record, audit: &Audit) -> Result<(), Error> {
        self.change(audit, |table| {
            let row = serde_json::to_vec(record).expect("a record is plain data");
            table.insert(record.name.as_str(), row.as_slice()).map(|_| ())
        })
    }

    /// Removes a deployment and writes an audit entry, as one.
    pub fn remove(&self, name: &str, audit: &Audit) -> Result<(), Error> {
        self.change(audit, |table| table.remove(name).map(|_| ()))
    }

    fn change(
        &self,
        audit: &Audit,
        change: impl FnOnce(&mut redb::Table<'_, &str, &[u8]>) -> Result<(), redb::StorageError>,
    ) -> Result<(), Error> {
        let transaction = self.database.begin_write().map_err(storage)?;
        {
            let mut table = transaction.open_table(DEPLOYMENTS).map_err(storage)?;
            change(&mut table).map_err(storage)?;
            let mut log = transaction.open_table(AUDIT).map_err(storage)?;
            let number = log.last().map_err(storage)?.map_or(1, |(number, _)| number.value() + 1);
            let row = serde_json::to_vec(audit).expect("an audit entry is plain data");
            log.insert(number, row.as_slice()).map_err(storage)?;
            log.retain_in(..number.saturating_sub(AUDIT_MAX - 1), |_, _| false).map_err(storage)?;
        }
        transaction.commit().map_err(storage)
    }

    /// The last audit entries, newest first.
    pub fn audit(&self, limit: usize) -> Result<Vec<Audit>, Error> {
        let transaction = self.database.begin_read().map_err(storage)?;
        let table = transaction.open_table(AUDIT).map_err(storage)?;
        table.iter().map_err(storage)?.rev().take(limit).map(|row| parse(row.map_err(storage)?.1.value())).collect()
    }
}

fn parse<T: for<'a> Deserialize<'a>>(row: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(row).map_err(|error| {
        Error::Open(format!("catalogue: a row is unreadable: {error}; restore catalog.redb from a backup"))
    })
}
