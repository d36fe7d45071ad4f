//! The state of a projection: opens its tables, and writes them at the end of a batch.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backend::{Backend, Writes};
use crate::failure::{Failure, TableError};
use crate::key::Key;
use crate::table::{Table, Value};

/// Longest key that a host accepts, in bytes.
pub(crate) const KEY_BYTES_MAX: usize = 1_024;

/// Entries that one table keeps decoded. Beyond it the table is written out and starts empty.
pub(crate) const CACHED_ENTRIES_MAX: usize = 65_536;

/// Size of what one table keeps decoded, and all tables between two batches,
/// in bytes: an eighth of the memory that an instance has unless its manifest
/// asks for more.
pub(crate) const CACHED_BYTES_MAX: usize = 8 << 20;

/// The state of a projection. [`Projection::open`](crate::Projection::open) takes its tables from
/// it.
#[derive(Clone)]
pub struct State {
    pub(crate) shared: Rc<Shared>,
}

/// What all tables of a projection share.
pub(crate) struct Shared {
    pub(crate) backend: Box<dyn Backend>,
    tables: RefCell<Vec<Opened>>,
    /// Index in its batch of the event that is being applied.
    pub(crate) event: Cell<u32>,
    /// Whether a table has something to write.
    pub(crate) dirty: Cell<bool>,
    writes: RefCell<Writes>,
}

struct Opened {
    name: String,
    table: Rc<dyn Cached>,
}

/// What `Shared` requires of a table of any type.
pub(crate) trait Cached {
    /// Passes on all changes, and counts them as written.
    fn collect(&self, writes: &mut Writes) -> Result<(), Unwritable>;

    /// Ends a batch, and returns the approximate size of its cache, in bytes.
    fn end_batch(&self) -> usize;

    /// Drops its cache, which was written before.
    fn clear(&self);
}

/// A value cannot be encoded.
pub(crate) struct Unwritable {
    /// Index in the batch of the event that touched it last.
    pub(crate) event: u32,
    pub(crate) error: TableError,
}

impl State {
    pub(crate) fn new(backend: Box<dyn Backend>) -> Self {
        Self {
            shared: Rc::new(Shared {
                backend,
                tables: RefCell::default(),
                event: Cell::new(0),
                dirty: Cell::new(false),
                writes: RefCell::default(),
            }),
        }
    }

    /// A table: its keys begin with `name` and a slash.
    ///
    /// # Panics
    /// If the name is taken, or has characters other than lower-case letters,
    /// digits and hyphens. The host opens every projection once when it is
    /// deployed, so this is noticed at once.
    pub fn table<K, V>(&self, name: &str) -> Table<K, V>
    where
        K: Key,
        V: Serialize + DeserializeOwned + 'static,
    {
        let (table, cached) = Table::open(name, &self.shared);
        self.register(name, cached);
        table
    }

    /// A single value, under the key `name`.
    ///
    /// # Panics
    /// Like [`State::table`].
    pub fn value<V>(&self, name: &str) -> Value<V>
    where
        V: Serialize + DeserializeOwned + 'static,
    {
        Value::new(self.table(name))
    }

    /// A part of a table that the SDK keeps for several owners: its keys begin with `name`, a slash,
    /// `owner` and a slash.
    pub(crate) fn part<K, V>(&self, name: &str, owner: &str) -> Table<K, V>
    where
        K: Key,
        V: Serialize + DeserializeOwned + 'static,
    {
        check_table_name(owner);
        let name = format!("{name}/{owner}");
        let (table, cached) = Table::open(&name, &self.shared);
        self.add(&name, cached);
        table
    }

    fn register(&self, name: &str, table: Rc<dyn Cached>) {
        check_table_name(name);
        self.add(name, table);
    }

    fn add(&self, name: &str, table: Rc<dyn Cached>) {
        let mut tables = self.shared.tables.borrow_mut();
        // A part of a table is not in another table.
        let clashes = |other: &str| {
            let (long, short) = if other.len() < name.len() {
                (name, other)
            } else {
                (other, name)
            };
            long.strip_prefix(short)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        assert!(
            tables.iter().all(|opened| !clashes(&opened.name)),
            "two tables are named {name:?}; rename one"
        );
        tables.push(Opened {
            name: name.to_owned(),
            table,
        });
    }

    /// Writes what has changed, at the end of a batch.
    pub(crate) fn finish_batch(&self) -> Result<(), (u32, Failure)> {
        self.shared
            .flush()
            .map_err(|unwritable| (unwritable.event, unwritable.error.into()))?;
        let tables = self.shared.tables.borrow();
        // A table alone writes itself out when it is too large; this is the limit for all together.
        if tables
            .iter()
            .map(|opened| opened.table.end_batch())
            .sum::<usize>()
            > CACHED_BYTES_MAX
        {
            // They were flushed above, so nothing is lost.
            tables.iter().for_each(|opened| opened.table.clear());
        }
        Ok(())
    }
}

/// Panics if the name is not valid for a table.
pub(crate) fn check_table_name(name: &str) {
    // No slash, which ends the name in a key, and nothing that would have to be escaped.
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    assert!(
        !name.is_empty() && name.len() <= 64 && name.bytes().all(plain),
        "table name {name:?}: use 1 to 64 lower-case letters, digits and hyphens"
    );
}

impl Shared {
    /// Writes what has changed in any table.
    pub(crate) fn flush(&self) -> Result<(), Unwritable> {
        if !self.dirty.get() {
            return Ok(());
        }
        let mut writes = self.writes.borrow_mut();
        writes.clear();
        // Together in one call of the host, however many tables there are.
        for opened in self.tables.borrow().iter() {
            opened.table.collect(&mut writes)?;
        }
        self.backend.put_many(&writes);
        // After success: what failed is dropped with the instance.
        self.dirty.set(false);
        Ok(())
    }
}

impl fmt::Debug for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = self.shared.tables.borrow();
        formatter
            .debug_list()
            .entries(tables.iter().map(|opened| &opened.name))
            .finish()
    }
}
