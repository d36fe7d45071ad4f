//! Tables: typed collections over the state, decoded once and written once per batch.

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cache::Cache;
use crate::failure::TableError;
use crate::key::Key;
use crate::scan::Scan;
use crate::state::{Cached, Shared};

/// A typed collection: keys of type `K` in order, values of type `V` as JSON.
/// The state stores the entry of a key under the table's name and the key, as
/// [`key`](crate::key) describes: `customer/42`.
/// A table keeps what it reads or writes decoded, across events and batches,
/// up to a limit, and writes changes once at the end of a batch. So a value
/// that many events change is decoded and encoded once.
///
/// Reading takes `&self`, writing takes `&mut self`. A query has the
/// projection behind `&self` and can only read.
///
/// ```
/// use foldstream_sdk::prelude::*;
///
/// #[derive(Clone, Default, Serialize, Deserialize)]
/// struct Totals {
///     orders: u64,
///     total_cents: u64,
/// }
///
/// fn placed(customers: &mut Table<String, Totals>, customer: &str, cents: u64) -> Result<(), Failure> {
///     customers.update(customer, |totals| {
///         totals.orders += 1;
///         totals.total_cents += cents;
///     })?;
///     Ok(())
/// }
/// ```
pub struct Table<K, V> {
    shared: Rc<Shared>,
    cache: Rc<RefCell<Cache<V>>>,
    name: Box<str>,
    key: PhantomData<fn(K) -> K>,
}

impl<K: Key, V: Serialize + DeserializeOwned + 'static> Table<K, V> {
    pub(crate) fn open(name: &str, shared: &Rc<Shared>) -> (Self, Rc<dyn Cached>) {
        let cache = Rc::new(RefCell::new(Cache::new(name)));
        let table = Self {
            shared: Rc::clone(shared),
            cache: Rc::clone(&cache),
            name: name.into(),
            key: PhantomData,
        };
        (table, cache)
    }

    /// The value of a key.
    pub fn get(&self, key: K::Ref<'_>) -> Result<Option<V>, TableError>
    where
        V: Clone,
    {
        self.read(key, |value| value.cloned())
    }

    /// The value of a key, or the type's default.
    pub fn get_or_default(&self, key: K::Ref<'_>) -> Result<V, TableError>
    where
        V: Clone + Default,
    {
        self.read(key, |value| value.cloned().unwrap_or_default())
    }

    /// Whether there is a value for a key.
    pub fn contains(&self, key: K::Ref<'_>) -> Result<bool, TableError> {
        self.read(key, |value| value.is_some())
    }

    /// Reads the value of a key without copying it. The closure must not use the same table.
    #[inline]
    pub fn read<T>(
        &self,
        key: K::Ref<'_>,
        look: impl FnOnce(Option<&V>) -> T,
    ) -> Result<T, TableError> {
        let mut cache = self.cache.borrow_mut();
        let place = cache.place::<K>(key, &self.shared)?;
        Ok(look(cache.value(place)))
    }

    /// Sets the value of a key.
    pub fn put(&mut self, key: K::Ref<'_>, value: V) -> Result<(), TableError> {
        self.edit(key, |entry| *entry = Some(value))
    }

    /// Changes the value of a key in place. If there is none, begins with the type's default.
    #[inline]
    pub fn update<T>(
        &mut self,
        key: K::Ref<'_>,
        change: impl FnOnce(&mut V) -> T,
    ) -> Result<T, TableError>
    where
        V: Default,
    {
        self.edit(key, |entry| change(entry.get_or_insert_default()))
    }

    /// Changes the entry of a key in place: creates, changes or removes its value.
    #[inline]
    pub fn edit<T>(
        &mut self,
        key: K::Ref<'_>,
        change: impl FnOnce(&mut Option<V>) -> T,
    ) -> Result<T, TableError> {
        let mut cache = self.cache.borrow_mut();
        let place = cache.place::<K>(key, &self.shared)?;
        Ok(change(cache.value_mut(place, &self.shared)))
    }

    /// Removes the entry of a key; does nothing if it does not exist.
    pub fn delete(&mut self, key: K::Ref<'_>) -> Result<(), TableError> {
        self.edit(key, |entry| *entry = None)
    }

    /// Removes all entries that a scan covers, and says how many. Nothing is decoded, so this also
    /// removes values that no longer fit their type.
    ///
    /// It takes as long as there are entries: in a fold that removes what is old, remove little and
    /// often.
    ///
    /// ```
    /// use foldstream_sdk::prelude::*;
    ///
    /// /// Keeps ninety days of each customer.
    /// fn expire(days: &mut Table<(String, Date), u64>, customer: &str, today: Date) -> Result<(), TableError> {
    ///     days.delete_scan(|scan| scan.range_under(customer, ..today - 90))?;
    ///     Ok(())
    /// }
    /// ```
    pub fn delete_scan(
        &mut self,
        narrow: impl for<'s> FnOnce(Scan<'s, K, V>) -> Scan<'s, K, V>,
    ) -> Result<u64, TableError> {
        let mut scan = narrow(self.scan());
        let mut count = 0;
        loop {
            let (keys, more) = scan.next_keys()?;
            // After the page was read: reading flushes the tables, and borrows each of them for
            // that.
            let mut cache = self.cache.borrow_mut();
            for key in &keys {
                cache.remove(key, &self.shared)?;
            }
            count += keys.len() as u64;
            if !more {
                return Ok(count);
            }
        }
    }

    /// Reads many keys at once, so that the events that need them do not each call the host.
    /// See [`Projection::prefetch`](crate::Projection::prefetch). If the
    /// previous batch found nearly all keys in memory, this does nothing. A key
    /// that cannot be read fails in the event that needs it.
    pub fn prefetch<'k>(&self, keys: impl IntoIterator<Item = K::Ref<'k>>) {
        let mut cache = self.cache.borrow_mut();
        if cache.expects_misses() {
            for key in keys {
                cache.want::<K>(key);
            }
            cache.load_wanted(&self.shared);
        }
    }

    /// All entries in the order of their keys, or a part of them: see [`Scan`].
    pub fn scan(&self) -> Scan<'_, K, V> {
        Scan::new(self, &self.name)
    }

    /// The first entries in the order of their keys.
    pub fn first(&self, count: usize) -> Result<Vec<(K, V)>, TableError> {
        self.scan().take(count).entries()
    }

    /// The last entries in the order of their keys, the last one first.
    pub fn last(&self, count: usize) -> Result<Vec<(K, V)>, TableError> {
        self.scan().backwards().take(count).entries()
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl<K, V> fmt::Debug for Table<K, V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Table({})", self.name)
    }
}

/// A single value under a name of its own, such as a grand total.
pub struct Value<V> {
    table: Table<(), V>,
}

impl<V: Serialize + DeserializeOwned + 'static> Value<V> {
    pub(crate) fn new(table: Table<(), V>) -> Self {
        Self { table }
    }

    /// The value, if there is one.
    pub fn get(&self) -> Result<Option<V>, TableError>
    where
        V: Clone,
    {
        self.table.get(())
    }

    /// The value, or the type's default.
    pub fn get_or_default(&self) -> Result<V, TableError>
    where
        V: Clone + Default,
    {
        self.table.get_or_default(())
    }

    /// Sets the value.
    pub fn put(&mut self, value: V) -> Result<(), TableError> {
        self.table.put((), value)
    }

    /// Changes the value in place. If there is none, begins with the type's default.
    #[inline]
    pub fn update<T>(&mut self, change: impl FnOnce(&mut V) -> T) -> Result<T, TableError>
    where
        V: Default,
    {
        self.table.update((), change)
    }

    /// Removes the value.
    pub fn delete(&mut self) -> Result<(), TableError> {
        self.table.delete(())
    }
}

impl<V> fmt::Debug for Value<V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Value({})", self.table.name)
    }
}
