//! The catalogue: modules, deployments, and the audit log.
//!
//! One redb file, `catalog.redb`. Rows are JSON, so that people can read them;
//! every change is one durable commit together with its audit entry.

mod build;
mod failure;
mod module;
mod records;
#[cfg(test)]
mod rows;
mod words;

use std::path::Path;

use parking_lot::{RwLock, RwLockWriteGuard};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

pub use build::{BuildSettings, Comparison, ComparisonExample, DifferingPart, Gate, Rule};
pub use failure::FailureRecord;
pub use module::{
    ErrorPolicy, EventVersion, InboxSettings, ModuleInfo, ModuleLimits, QueryDescription,
};
pub use records::{FailureEvents, Generation, HandlerRecord, ParkingRecord, Record};
pub use words::{
    Difference, EventChecks, GenerationStatus, ModuleKind, OnFailure, Promotion, Strategy,
};

use super::Error;
use super::file::{FORMAT, guarded, storage, unreadable};
use super::opening::{check_format, open_database};
use super::reserve::Reserve;
use super::tables::Frozen;
use crate::atomic_file::{Displaced, Held};
use crate::newest::Newest;
use crate::room::{Room, Use};
use crate::{damage, storage};

const DEPLOYMENTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("deployments");
const AUDIT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("audit");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// The row of `meta` that counts the changes.
const CHANGES: &str = "changes";

/// Number of audit entries to keep; older ones are dropped.
const AUDIT_MAX: u64 = 10_000;

/// An entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// When, in RFC 3339.
    pub at: String,
    /// The action: `deploy`, `cut-over`, `rollback`, `abort`, `prune`, `pause`, `resume`, `delete`,
    /// ….
    pub action: String,
    /// The deployment.
    pub deployment: String,
    /// Details.
    pub detail: String,
    /// Name of the token that requested it.
    // Rows of earlier versions lack this field and the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// Address that requested it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
}

/// The open catalogue.
#[derive(Debug)]
pub struct Catalogue {
    path: Box<Path>,
    held: Held,
    newest: Newest,
    /// For a deletion on a full disk.
    reserve: Reserve,
    /// None after a disk failure, until it is reopened.
    database: RwLock<Option<damage::Open<Database>>>,
}

impl Catalogue {
    /// Opens or creates the catalogue; refuses one that is older than the last one that was open
    /// here. Writes only to a new one, so that a host on a full disk can start. Blocking.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let newest = Newest::of(path);
        let database = Self::open_file(path, &newest)?;
        // Held after it was opened, because opening creates a file that is missing.
        let held = Held::of(path).map_err(storage)?;
        let reserve = Reserve::of(path);
        reserve.keep();
        Ok(Self {
            path: path.into(),
            held,
            newest,
            reserve,
            database: RwLock::new(Some(database)),
        })
    }

    /// Whether the file is still where it was opened: what is written to one that is not is lost
    /// with the process.
    pub fn check_place(&self) -> Result<(), Displaced> {
        self.held.check()
    }

    fn open_file(path: &Path, newest: &Newest) -> Result<damage::Open<Database>, Error> {
        let database = open_database(path, 1 << 20, |_| ())?;
        guarded(|| Self::prepare(path, &database))?;
        let changes = guarded(|| Self::read_changes(&database))?;
        // Before anything is read by others: an older copy would have files removed as leftovers.
        newest.check("change", changes).map_err(|fell_back| {
            let text = format!(
                "{fell_back}; states and modules that this catalogue does not name are then removed"
            );
            Error::Open(storage::Error::because(text, fell_back))
        })?;
        newest.note(changes);
        Ok(database)
    }

    /// How many changes were made to it. Earlier versions did not count.
    fn read_changes(database: &Database) -> Result<u64, Error> {
        let transaction = database.begin_read().map_err(storage)?;
        let meta = transaction.open_table(META).map_err(storage)?;
        let changes = meta.get(CHANGES).map_err(storage)?;
        Ok(changes.map_or(0, |value| count(value.value())))
    }

    /// Checks the format of an existing file, and creates the tables of a new one.
    fn prepare(path: &Path, database: &Database) -> Result<(), Error> {
        let is_new = {
            // Read first: a file on a full disk must open without a write.
            let transaction = database.begin_read().map_err(storage)?;
            let tables = transaction.list_tables().map_err(storage)?.count();
            if tables > 0 {
                let meta = transaction.open_table(META).map_err(storage)?;
                let format = meta
                    .get("format")
                    .map_err(storage)?
                    .map(|value| value.value().to_vec());
                check_format(path, format.as_deref())?;
            }
            tables == 0
        };
        if is_new {
            let transaction = database.begin_write().map_err(storage)?;
            {
                transaction.open_table(DEPLOYMENTS).map_err(storage)?;
                transaction.open_table(AUDIT).map_err(storage)?;
                let mut meta = transaction.open_table(META).map_err(storage)?;
                meta.insert("format", FORMAT.to_be_bytes().as_slice())
                    .map_err(storage)?;
            }
            transaction.commit().map_err(storage)?;
        }
        Ok(())
    }

    /// Works on the open file. After a disk failure the next call reopens it: the failed change is
    /// not in it.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, Error>) -> Result<T, Error> {
        // Readers share the lock: redb has its own for writers.
        let mut open = self.database.read();
        if open.is_none() {
            drop(open);
            let mut closed = self.database.write();
            // Another caller may have reopened it while this one waited for the lock.
            if closed.is_none() {
                // If the file is gone, opening it would create it again.
                self.held.check()?;
                *closed = Some(Self::open_file(&self.path, &self.newest)?);
            }
            // Downgraded, so that nobody closes it in between.
            open = RwLockWriteGuard::downgrade(closed);
        }
        let database = open.as_ref().expect("it was just opened");
        let done = guarded(|| work(database));
        // Released before the write lock is taken, or this would wait for itself.
        drop(open);
        // A handle is not used again after a failure of the disk.
        if matches!(done, Err(Error::Storage(_) | Error::Damaged(_))) {
            *self.database.write() = None;
        }
        done
    }

    /// The file as of its last commit.
    pub fn frozen(&self) -> Result<Frozen, Error> {
        self.with(|database| Ok(Frozen::of(database.begin_read().map_err(storage)?)))
    }

    /// All deployments, by name.
    pub fn deployments(&self) -> Result<Vec<Record>, Error> {
        self.with(Self::read_deployments)
    }

    fn read_deployments(database: &Database) -> Result<Vec<Record>, Error> {
        let transaction = database.begin_read().map_err(storage)?;
        let table = transaction.open_table(DEPLOYMENTS).map_err(storage)?;
        let rows = table.iter().map_err(storage)?.map(|row| {
            let (name, row) = row.map_err(storage)?;
            let record: Record = parse(row.value())?;
            record.check(name.value())?;
            Ok(record)
        });
        rows.collect()
    }

    /// Writes a deployment and an audit entry in one commit.
    pub fn put(&self, record: &Record, audit: &Audit) -> Result<(), Error> {
        self.check_room()?;
        self.change(audit, |table| {
            let row = serde_json::to_vec(record).expect("a record is plain data");
            table
                .insert(record.name.as_str(), row.as_slice())
                .map(|_| ())
        })
    }

    /// Removes a deployment and writes an audit entry in one commit. On a full disk it takes the
    /// reserve, because what is deleted makes room.
    pub fn remove(&self, name: &str, audit: &Audit) -> Result<(), Error> {
        if let Err(full) = self.check_room()
            && !self.reserve.give_up()
        {
            return Err(full);
        }
        self.change(audit, |table| table.remove(name).map(|_| ()))
    }

    /// Writes an audit entry alone.
    pub fn note(&self, audit: &Audit) -> Result<(), Error> {
        self.check_room()?;
        self.change(audit, |_| Ok(()))
    }

    /// A full disk refuses changes before it has no room for them.
    fn check_room(&self) -> Result<(), Error> {
        Room::of(&self.path)
            .check(Use::Write, 0)
            .map_err(Error::Full)
    }

    fn change(
        &self,
        audit: &Audit,
        change: impl FnOnce(&mut redb::Table<'_, &str, &[u8]>) -> Result<(), redb::StorageError>,
    ) -> Result<(), Error> {
        // Refused before anything has begun, so that the file stays open and readable.
        self.held.check()?;
        let changes = self.with(|database| Self::write(database, audit, change))?;
        // It may have been given up, or there was no room for it before.
        self.reserve.keep();
        // After the commit: a note ahead of the catalogue would make the next start refuse it.
        self.newest.note(changes);
        // Without the detail, which may contain a customer's subjects.
        let Audit {
            action,
            deployment,
            actor,
            peer,
            ..
        } = audit;
        tracing::info!(action, deployment, actor, peer, "deployment changed");
        Ok(())
    }

    fn write(
        database: &Database,
        audit: &Audit,
        change: impl FnOnce(&mut redb::Table<'_, &str, &[u8]>) -> Result<(), redb::StorageError>,
    ) -> Result<u64, Error> {
        let transaction = database.begin_write().map_err(storage)?;
        let changes = {
            let mut meta = transaction.open_table(META).map_err(storage)?;
            let changes = meta
                .get(CHANGES)
                .map_err(storage)?
                .map_or(0, |value| count(value.value()))
                // Numbers every change, so that an older copy of the file can be recognised.
                + 1;
            meta.insert(CHANGES, changes.to_be_bytes().as_slice())
                .map_err(storage)?;
            let mut table = transaction.open_table(DEPLOYMENTS).map_err(storage)?;
            change(&mut table).map_err(storage)?;
            let mut log = transaction.open_table(AUDIT).map_err(storage)?;
            // Numbers rise without gaps, so the oldest ones can be found by number.
            let number = log
                .last()
                .map_err(storage)?
                .map_or(1, |(number, _)| number.value() + 1);
            let row = serde_json::to_vec(audit).expect("an audit entry is plain data");
            log.insert(number, row.as_slice()).map_err(storage)?;
            log.retain_in(..number.saturating_sub(AUDIT_MAX - 1), |_, _| false)
                .map_err(storage)?;
            changes
        };
        transaction.commit().map_err(storage)?;
        Ok(changes)
    }

    /// The last audit entries, newest first; for one deployment if given.
    pub fn audit(&self, limit: usize, deployment: Option<&str>) -> Result<Vec<Audit>, Error> {
        self.with(|database| Self::read_audit(database, limit, deployment))
    }

    fn read_audit(
        database: &Database,
        limit: usize,
        deployment: Option<&str>,
    ) -> Result<Vec<Audit>, Error> {
        let transaction = database.begin_read().map_err(storage)?;
        let table = transaction.open_table(AUDIT).map_err(storage)?;
        let entries = table.iter().map_err(storage)?.rev();
        let entries = entries.map(|row| parse::<Audit>(row.map_err(storage)?.1.value()));
        // An entry that cannot be read is an error for the reader, whatever was asked for.
        let is_wanted = |entry: &Result<Audit, Error>| match (entry, deployment) {
            (Ok(entry), Some(name)) => entry.deployment == name,
            _ => true,
        };
        entries.filter(is_wanted).take(limit).collect()
    }
}

/// A number in a row of `meta`.
fn count(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_be_bytes)
}

fn parse<T: for<'a> Deserialize<'a>>(row: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(row).map_err(|error| {
        let text =
            format!("catalogue: a row is unreadable: {error}; restore catalog.redb from a backup");
        unreadable(text, error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inconsistent_row_is_refused_with_advice() {
        for row in [
            r#"{"name":"orders","active":3,"next":4,"generations":[]}"#,
            r#"{"name":"other","active":1,"next":2,"generations":[]}"#,
        ] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let path = folder.path().join("catalog.redb");
            drop(Catalogue::open(&path).expect("it is new"));
            let database = Database::open(&path).expect("the file opens");
            let transaction = database.begin_write().expect("begins");
            let mut table = transaction.open_table(DEPLOYMENTS).expect("opens");
            table.insert("orders", row.as_bytes()).expect("inserts");
            drop(table);
            transaction.commit().expect("commits");
            drop(database);
            let error = Catalogue::open(&path)
                .expect("opens")
                .deployments()
                .expect_err(row)
                .to_string();
            assert!(
                error.contains("orders is inconsistent") && error.contains("backup"),
                "{error}"
            );
        }
    }
}
