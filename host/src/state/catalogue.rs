//! The catalogue: modules, deployments, and the audit log.
//!
//! One redb file, `catalog.redb`. Rows are JSON, so that people can read them;
//! every change is one durable commit together with its audit entry.

use std::path::Path;

use parking_lot::{RwLock, RwLockWriteGuard};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use super::Error;
use super::exceptions::{Skip, Skips};
use super::file::{FORMAT, check_format, guarded, open_database, storage, unreadable};
use super::reserve::Reserve;
use super::tables::Frozen;
use crate::api::{
    BuildSettings, Comparison, Failure, GenerationStatus, ModuleInfo, OnFailure, Start, Strategy,
};
use crate::atomic_file::{Displaced, Held};
use crate::effects::{Grants, Lineage};
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

/// A deployment in the catalogue: one row, so that a cut-over is one commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// Number of the active generation.
    pub active: u64,
    /// Number of the next generation; numbers are never reused.
    pub next: u64,
    /// Its generations, by rising number. Files of generations that are not listed are leftovers.
    pub generations: Vec<Generation>,
    /// Raised before and after each partial rebuild: earlier reads then no longer match their
    /// position.
    #[serde(default)]
    pub repairs: u64,
    /// The skipped events, by rising sequence. They apply to every state that has not passed them.
    #[serde(default)]
    pub skips: Vec<Skip>,
    /// What happens to events that have used up their attempts.
    #[serde(default)]
    pub parking: ParkingRecord,
    /// Who owns the effects of a handler, and what it may publish; none for a projection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handler: Option<HandlerRecord>,
}

/// The effects of a handler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandlerRecord {
    /// Its ids begin with this.
    pub lineage: Lineage,
    /// Number of the state file that owns them.
    pub state_file: u64,
    /// Counts changes of the owner.
    pub epoch: u64,
    /// Effects of events up to this sequence are dropped: they were there before the first deploy.
    pub effects_after: u64,
    /// The position at which the state file took over the effects of another one, which decided
    /// about all events up to there; 0 for the first owner.
    #[serde(default)]
    pub owned_after: u64,
    /// What it may publish.
    pub grants: Grants,
}

/// Generations without a file that a deployment keeps as history.
const HISTORY_MAX: usize = 100;

/// What a deployment does with events that have used up their attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkingRecord {
    /// Whether they stop it.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// The generation that still has to retry what an earlier one has parked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_by: Option<u64>,
    /// Where error events go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<FailureEvents>,
}

/// Where error events go, and how far they are published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureEvents {
    /// The subject.
    pub subject: String,
    /// Name of the source.
    pub source: String,
    /// The state whose failures were published last.
    pub state_file: u64,
    /// The number of the last one of them in that state.
    pub through: u64,
}

impl FailureEvents {
    /// As an operator writes it.
    pub fn place(&self) -> String {
        format!("{}@{}", self.subject, self.source)
    }
}

impl Record {
    /// Checks that a row is consistent, because all users of it rely on that.
    fn check(&self, name: &str) -> Result<(), Error> {
        let numbers = || self.generations.iter().map(|generation| generation.number);
        if self.name == name
            && numbers().any(|number| number == self.active)
            && numbers().all(|it| it < self.next)
        {
            return Ok(());
        }
        Err(Error::Open(storage::Error::new(format!(
            "catalogue: the row of deployment {name} is inconsistent; restore catalog.redb from a \
             backup"
        ))))
    }

    /// A generation, by number.
    pub fn generation(&self, number: u64) -> Option<&Generation> {
        self.generations
            .iter()
            .find(|generation| generation.number == number)
    }

    /// A generation to change, by number.
    pub fn generation_mut(&mut self, number: u64) -> Option<&mut Generation> {
        self.generations
            .iter_mut()
            .find(|generation| generation.number == number)
    }

    /// The active generation.
    pub fn active(&self) -> &Generation {
        self.generation(self.active)
            .expect("the active generation is one of the record's")
    }

    /// The same, to change it.
    pub fn active_mut(&mut self) -> &mut Generation {
        let active = self.active;
        self.generation_mut(active)
            .expect("the active generation is one of the record's")
    }

    /// The candidate; there is at most one.
    pub fn candidate(&self) -> Option<&Generation> {
        self.generations
            .iter()
            .find(|generation| generation.status.is_candidate())
    }

    /// The previous generation, while it is kept.
    pub fn previous(&self) -> Option<&Generation> {
        self.last_kept(|_| true)
    }

    /// The latest previous generation that is kept and meets a condition.
    fn last_kept(&self, fits: impl Fn(&Generation) -> bool) -> Option<&Generation> {
        let kept = self
            .generations
            .iter()
            .filter(|generation| generation.status == GenerationStatus::Previous);
        kept.filter(|generation| fits(generation))
            .max_by_key(|generation| (&generation.status_since, generation.number))
    }

    /// The generation whose code would be restored if the active one failed on the state that it
    /// inherited.
    pub fn to_put_back(&self) -> Option<&Generation> {
        let active = self.active();
        let shared = |generation: &Generation| generation.state_file == active.state_file;
        if active.on_probation {
            self.last_kept(shared)
        } else {
            None
        }
    }

    /// The generation whose code follows the stream in an inactive state file: the latest active
    /// one of those that share the file.
    pub fn follower(&self, state_file: u64) -> Option<&Generation> {
        self.last_kept(|generation| generation.state_file == state_file)
    }

    /// The events that a state skips which has not passed them.
    pub fn skips(&self) -> Skips {
        Skips::new(self.skips.iter().cloned())
    }

    /// The latest candidate that an event stopped, while its state is kept: without that event it
    /// can continue.
    pub fn stopped_candidate(&self) -> Option<&Generation> {
        let stopped = self
            .generations
            .iter()
            .rev()
            .find(|generation| generation.is_stopped_candidate());
        stopped.filter(|_| self.candidate().is_none())
    }

    /// Adds a generation, which must have the next number.
    pub fn add(&mut self, generation: Generation) {
        debug_assert_eq!(generation.number, self.next, "numbers only rise");
        self.next = generation.number + 1;
        self.generations.push(generation);
    }

    /// Drops the oldest history beyond the limit.
    pub fn trim(&mut self) {
        let history = self
            .generations
            .iter()
            .filter(|generation| !generation.has_file())
            .count();
        // The newest history is worth the most, and the list is in order.
        let mut surplus = history.saturating_sub(HISTORY_MAX);
        self.generations.retain(|generation| {
            let goes = surplus > 0 && !generation.has_file();
            surplus -= usize::from(goes);
            !goes
        });
    }

    /// Numbers of the state files that its generations keep.
    pub fn files(&self) -> usize {
        let kept = self
            .generations
            .iter()
            .filter(|generation| generation.has_file());
        kept.map(|generation| generation.state_file)
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    }

    /// Whether a generation that is not retired uses a state file.
    pub fn uses_file(&self, state_file: u64) -> bool {
        self.generations
            .iter()
            .any(|generation| generation.has_file() && generation.state_file == state_file)
    }
}

/// One module and one state file under a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Its number; numbers only rise.
    pub number: u64,
    /// Its module.
    pub module: ModuleInfo,
    /// Name of the source.
    pub source: String,
    /// Where a new state begins.
    pub start: Start,
    /// Number in the name of its state file: its own, or that of the generation whose state it
    /// inherited.
    pub state_file: u64,
    /// How its state was created.
    pub strategy: Strategy,
    /// Its status.
    pub status: GenerationStatus,
    /// Why it has this status.
    pub reason: String,
    /// When it was deployed, in RFC 3339.
    pub created_at: String,
    /// When it got its status, in RFC 3339.
    pub status_since: String,
    /// Whether an operator paused it.
    pub paused: bool,
    /// Position from which it answers reads: earlier positions belonged to another generation.
    pub serves_from: u64,
    /// Whether it ever answered reads.
    pub has_served: bool,
    /// It inherited a state file and is on probation: if it fails, the previous code is restored.
    pub on_probation: bool,
    /// The event that its code could not apply, if it failed or was replaced because of that. It is
    /// never restored automatically after that event.
    #[serde(default)]
    pub failed_at: Option<u64>,
    /// Position from which its state has the events of all its subjects; not 0 if it inherited a
    /// state that was built from other subjects.
    #[serde(default)]
    pub subjects_from: u64,
    /// How many releases of parked events its state had when it took over.
    #[serde(default)]
    pub releases_before: u64,
    /// The options with which it was built.
    pub build: BuildSettings,
    /// The result of the last comparison with the active generation.
    pub comparison: Option<Comparison>,
    /// Events up to this sequence may be missing from the stream, as an operator accepted; 0
    /// accepts none.
    // Format 1 has no such field.
    #[serde(default)]
    pub accepts_missing_through: u64,
    /// The sequence after which its state begins, if it repeats a state that began at the first
    /// event that its stream had then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begins_after: Option<u64>,
    /// The failure, if it failed while it was built.
    #[serde(default)]
    pub failure: Option<Failure>,
    /// The position at which it takes over from an owner of effects that is gone, as an operator
    /// accepted: it publishes for the events after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_effects_after: Option<u64>,
}

impl Generation {
    /// Gives it another status.
    pub fn enter(&mut self, status: GenerationStatus, reason: impl Into<String>) {
        // Once true it stays: a generation that has served may be named for a rollback later.
        self.has_served |= status == GenerationStatus::Active;
        self.status = status;
        self.reason = reason.into();
        self.status_since = jiff::Timestamp::now().to_string();
    }

    /// The same module as a new generation, to be folded from the beginning of the stream.
    pub fn to_rebuild(&self, number: u64, build: BuildSettings, reason: impl Into<String>) -> Self {
        let mut rebuilt = Self {
            number,
            module: self.module.clone(),
            source: self.source.clone(),
            start: self.start,
            state_file: number,
            strategy: Strategy::Rebuild,
            status: GenerationStatus::Building,
            reason: String::new(),
            created_at: jiff::Timestamp::now().to_string(),
            status_since: String::new(),
            paused: false,
            serves_from: 0,
            has_served: false,
            on_probation: false,
            failed_at: None,
            subjects_from: 0,
            releases_before: 0,
            build,
            comparison: None,
            // What was accepted for one fold of this stream is accepted for the next.
            accepts_missing_through: self.accepts_missing_through,
            begins_after: None,
            failure: None,
            lost_effects_after: None,
        };
        rebuilt.enter(GenerationStatus::Building, reason);
        rebuilt
    }

    /// Whether an event stopped it while it was built: without that event it can continue from its
    /// state.
    pub fn is_stopped_candidate(&self) -> bool {
        // Its file is its own, or that of a candidate that it continued; a generation that
        // inherited has the file of another.
        self.status == GenerationStatus::Failed
            && self.strategy != Strategy::Inherit
            && self.failed_at.is_some()
    }

    /// Whether its state file is kept for it: not for history, and not for a failed generation
    /// unless an event stopped it, because nothing reads or continues it.
    pub fn has_file(&self) -> bool {
        match self.status {
            GenerationStatus::Retired => false,
            GenerationStatus::Failed => self.is_stopped_candidate(),
            _ => true,
        }
    }
}

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
