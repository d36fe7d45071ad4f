//! Migration: converts the entries of an older version to those of this version.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::event::Payload;
use crate::failure::MigrateError;
use crate::json;
use crate::key::{self, Key};
#[cfg(doc)]
use crate::projection::Projection;
use crate::state::{KEY_BYTES_MAX, check_table_name};

/// Converts the state of an older version of a projection or a handler, so that it need not
/// be rebuilt from the beginning of the stream.
///
/// Implement it in addition to [`Projection`] or [`Handler`](crate::Handler), raise the state
/// version in the manifest, and add it to the macro: `projection!(Orders, migrate);` or
/// `handler!(Shipping, migrate);`. The result must equal a fold of the stream with this version;
/// [`Harness::migrated`](crate::testing::Harness::migrated) helps to test that.
///
/// ```
/// use foldstream_sdk::prelude::*;
/// use foldstream_sdk::testing::{Harness, json};
///
/// struct Visits {
///     pages: Table<String, u64>,
/// }
/// # impl Projection for Visits {
/// #     fn manifest() -> Manifest<Self> { Manifest::new("visits").subjects(["visits.*"]).state_version(2) }
/// #     fn open(state: &State) -> Self { Self { pages: state.table("page") } }
/// #     fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
/// #         self.pages.update(event.token(2)?, |count| *count += 1)?;
/// #         Ok(())
/// #     }
/// # }
///
/// /// What version 1 stored under `visits`.
/// #[derive(Deserialize)]
/// struct Counter {
///     count: u64,
/// }
///
/// impl Migrate for Visits {
///     fn migrate(from_version: u32, old: &OldEntry<'_>, new: &mut NewEntries) -> Result<(), MigrateError> {
///         if from_version != 1 {
///             return Err(MigrateError::unknown_version(from_version));
///         }
///         if let Some((page, counter)) = old.of_table::<String, Counter>("visits")? {
///             new.put::<String>("page", &page, &counter.count)?;
///         }
///         Ok(())
///     }
/// }
///
/// projection!(Visits, migrate);
///
/// let visits = Harness::<Visits>::migrated(1, [("visits/home", json!({"count": 2}))]).expect("version 1 is known");
/// assert_eq!(visits.entries(""), [("page/home".to_owned(), json!(2))]);
/// ```
pub trait Migrate {
    /// Converts one entry of version `from_version` to the entries that replace it.
    ///
    /// Called once for every old entry, in the order of the keys. Only what is
    /// put into `new` is stored; if a key is put more than once, the last value
    /// wins. The state cannot be read, and one entry knows nothing of the
    /// others.
    ///
    /// An error ends the migration, and the old state stays unchanged.
    fn migrate(
        from_version: u32,
        old: &OldEntry<'_>,
        new: &mut NewEntries,
    ) -> Result<(), MigrateError>;
}

/// An entry of an older version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldEntry<'a> {
    key: &'a str,
    value: Payload<'a>,
}

impl<'a> OldEntry<'a> {
    pub(crate) fn new(key: &'a str, value: Payload<'a>) -> Self {
        Self { key, value }
    }

    /// Its whole key, such as `customer/42`.
    pub fn key(&self) -> &'a str {
        self.key
    }

    /// Its value as stored.
    pub fn value(&self) -> Payload<'a> {
        self.value
    }

    /// Whether it belongs to a table, or is the single value of that name.
    pub fn is_in(&self, name: &str) -> bool {
        self.behind(name).is_some()
    }

    /// Decodes its value from JSON.
    pub fn json<V: Deserialize<'a>>(&self) -> Result<V, MigrateError> {
        self.value.json().map_err(|error| {
            MigrateError::new(format_args!(
                "the value of {} does not match its old type: {error}",
                self.key
            ))
        })
    }

    /// Its key and value in the format of a table of that name, if it belongs to one.
    pub fn of_table<K: Key, V: DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<(K, V)>, MigrateError> {
        let Some(text) = self.behind(name) else {
            return Ok(None);
        };
        let key = key::decode(text).map_err(|error| {
            let expected = error.expectation();
            MigrateError::new(format_args!(
                "the key {} does not match its old type: expected {expected}",
                self.key
            ))
        })?;
        Ok(Some((key, self.json()?)))
    }

    /// Its value, if it is the single value of that name.
    pub fn of_value<V: DeserializeOwned>(&self, name: &str) -> Result<Option<V>, MigrateError> {
        if self.key == name {
            self.json().map(Some)
        } else {
            Ok(None)
        }
    }

    /// The part of the key after the name of a table.
    fn behind(&self, name: &str) -> Option<&'a str> {
        self.key
            .strip_prefix(name)
            .filter(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// The entries to store in place of old ones.
#[derive(Default)]
pub struct NewEntries {
    entries: Vec<NewEntry>,
}

pub(crate) struct NewEntry {
    pub(crate) key: String,
    pub(crate) value: NewValue,
}

pub(crate) enum NewValue {
    Text(String),
    Bytes(Vec<u8>),
}

impl NewValue {
    pub(crate) fn payload(&self) -> Payload<'_> {
        match self {
            Self::Text(text) => Payload::Text(text),
            Self::Bytes(bytes) => Payload::Bytes(bytes),
        }
    }
}

impl NewEntries {
    /// Stores an entry as the table of that name would.
    ///
    /// # Panics
    ///
    /// If the name is not valid for a table; see [`State::table`](crate::State::table).
    pub fn put<K: Key>(
        &mut self,
        table: &str,
        key: K::Ref<'_>,
        value: &impl Serialize,
    ) -> Result<(), MigrateError> {
        // As in `State::table`, so that a migration cannot make what no table could read.
        check_table_name(table);
        let key = key::encode_behind::<K>(table, key);
        let length = key.len();
        // Here, where the table is known; the host would only say that a key is too long.
        if length > KEY_BYTES_MAX {
            return Err(MigrateError::new(format_args!(
                "a new key of table {table} has {length} bytes; at most {KEY_BYTES_MAX} are allowed"
            )));
        }
        let value = json::text(value).map_err(|error| {
            MigrateError::new(format_args!(
                "the new value of {key} cannot be encoded as JSON: {error}"
            ))
        })?;
        self.entries.push(NewEntry {
            key,
            value: NewValue::Text(value),
        });
        Ok(())
    }

    /// Stores a value as the single value of that name would.
    ///
    /// # Panics
    ///
    /// Like [`NewEntries::put`].
    pub fn put_value(&mut self, name: &str, value: &impl Serialize) -> Result<(), MigrateError> {
        self.put::<()>(name, (), value)
    }

    /// Stores an old entry unchanged.
    pub fn keep(&mut self, old: &OldEntry<'_>) {
        let value = match old.value {
            Payload::Text(text) => NewValue::Text(text.to_owned()),
            Payload::Bytes(bytes) => NewValue::Bytes(bytes.to_owned()),
        };
        self.entries.push(NewEntry {
            key: old.key.to_owned(),
            value,
        });
    }
}

impl fmt::Debug for NewEntries {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_map()
            .entries(
                self.entries
                    .iter()
                    .map(|entry| (&entry.key, entry.value.payload())),
            )
            .finish()
    }
}

/// Migrates a page of old entries.
pub(crate) fn migrate_all<'a, P: Migrate>(
    from_version: u32,
    old: impl Iterator<Item = OldEntry<'a>>,
) -> Result<Vec<NewEntry>, MigrateError> {
    // One list for the page: the host takes the last of several entries of one key.
    let mut new = NewEntries::default();
    for entry in old {
        P::migrate(from_version, &entry, &mut new)?;
    }
    Ok(new.entries)
}
