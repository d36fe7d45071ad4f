//! Migration: converts the entries of an older version to those of this version.
//!
//! It never touches a state: the caller reads the pages, and writes the results.

use std::fmt;

use wasmtime::Store;
use wasmtime::component::{Func, TypedFunc};

use super::bindings::{EntryCopy, EntryRef};
use super::instance::message;
use super::places::Permit;
use super::sandbox::{Access, Host};
use super::{ApplyError, MIGRATED_ENTRIES_MAX, MIGRATION_ENTRIES_MAX, MigrateError};
use crate::event::Payload;
use crate::memory::Reservation;
use crate::state;

type MigrateResult = Result<Vec<EntryCopy>, String>;
type Migrate<'a> = TypedFunc<(u32, &'a [EntryRef<'a>]), (MigrateResult,)>;

/// Checks whether a function is `migrate`, as the contract defines it.
pub(super) fn typed<'a>(migrate: &Func, store: &Store<Host>) -> wasmtime::Result<Migrate<'a>> {
    migrate.typed(store)
}

/// How pages are converted.
pub(super) struct Conversion {
    pub(super) migrate: Func,
    /// The version of the old state.
    pub(super) from_version: u32,
    pub(super) deadline_ticks: u64,
}

/// One migration: an instance that gets the old state page by page.
pub struct Migration {
    store: Store<Host>,
    conversion: Conversion,
    /// A page failed: the instance may be in an inconsistent state.
    spent: bool,
    /// The memory of one page that comes back.
    _room: Reservation,
    /// After the store, as that of an instance.
    _permit: Permit,
}

impl fmt::Debug for Migration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Migration");
        shown
            .field("host", self.store.data())
            .field("from_version", &self.conversion.from_version)
            .finish_non_exhaustive()
    }
}

impl Migration {
    pub(super) fn new(
        store: Store<Host>,
        conversion: Conversion,
        room: Reservation,
        permit: Permit,
    ) -> Self {
        Self {
            store,
            conversion,
            spent: false,
            _room: room,
            _permit: permit,
        }
    }

    /// Converts one page of old entries.
    ///
    /// Pages come in the order of the keys and contain every old entry once, at most
    /// [`MIGRATION_ENTRIES_MAX`] of them and about 1 MiB each: a page of a scan of the old state.
    /// If a key was given before, the later entry wins. Keys and values are as the guest made them:
    /// the state checks them when they are written. After an error the migration is not used again.
    pub fn page(
        &mut self,
        entries: &[(state::Key, Payload)],
    ) -> Result<Vec<(String, Payload)>, MigrateError> {
        debug_assert!(
            entries.len() <= MIGRATION_ENTRIES_MAX,
            "the contract promises smaller pages to the guest"
        );
        if self.spent {
            let error =
                "the migration failed before and was used again; start another one".to_owned();
            return Err(MigrateError::Failed(ApplyError::Trap(error)));
        }
        let result = self.call(entries);
        // It had no state, so there is nothing to take back.
        self.store.data_mut().end_call();
        let result = match result {
            Ok(Ok(entries)) => checked(entries),
            Ok(Err(reason)) => Err(MigrateError::Refused(message(&reason))),
            Err(error) => Err(MigrateError::Failed(self.store.data().explain(error))),
        };
        // After any error, also a refusal: what the guest keeps in memory may not match what was
        // written.
        self.spent = result.is_err();
        result
    }

    fn call(&mut self, entries: &[(state::Key, Payload)]) -> wasmtime::Result<MigrateResult> {
        let entries: Vec<_> = entries
            .iter()
            .map(|(key, value)| EntryRef {
                key,
                value: value.into(),
            })
            .collect();
        let migrate = typed(&self.conversion.migrate, &self.store)?;
        // Each page has the whole deadline: how long a migration takes depends on the size of the
        // state.
        self.store
            .set_epoch_deadline(self.conversion.deadline_ticks);
        self.store.data_mut().begin_call(Access::None);
        let (result,) = migrate.call(&mut self.store, (self.conversion.from_version, &entries))?;
        Ok(result)
    }
}

fn checked(entries: Vec<EntryCopy>) -> Result<Vec<(String, Payload)>, MigrateError> {
    if entries.len() > MIGRATED_ENTRIES_MAX {
        return Err(MigrateError::Failed(ApplyError::Limit {
            limit: "migrated-entries",
            message: format!(
                "the module returned {} entries for one page, {MIGRATED_ENTRIES_MAX} are allowed; \
                 return fewer per entry",
                entries.len()
            ),
        }));
    }
    Ok(entries
        .into_iter()
        .map(|entry| (entry.key, entry.value.into()))
        .collect())
}
