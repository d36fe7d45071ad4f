//! Scans: the entries of a table in the order of their keys.

use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::vec;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backend::{ScanRequest, Selection};
use crate::cache::{decode, undecodable};
use crate::failure::TableError;
use crate::key::{self, Compound, Compound3, Key, encode_behind as encode};
use crate::table::Table;

/// Most entries that are asked for at once.
const PAGE_ENTRIES_MAX: usize = 1_000;

/// A scan of a table, to be narrowed and then read.
///
/// ```
/// use foldstream_sdk::prelude::*;
///
/// /// What a customer spent on the last seven days on which there was an order.
/// fn last_week(days: &Table<(String, Date), u64>, customer: &str) -> Result<u64, TableError> {
///     let days = days.scan().under(customer).backwards().take(7).entries()?;
///     Ok(days.iter().map(|(_, cents)| cents).sum())
/// }
/// ```
#[must_use = "a scan does nothing until its entries are read"]
pub struct Scan<'t, K, V> {
    table: &'t Table<K, V>,
    name: &'t str,
    /// The keys below which it stays; ends with a slash.
    prefix: String,
    range: Option<(String, String)>,
    after: Option<String>,
    backwards: bool,
    remaining: usize,
}

impl<'t, K: Key, V: Serialize + DeserializeOwned + 'static> Scan<'t, K, V> {
    pub(crate) fn new(table: &'t Table<K, V>, name: &'t str) -> Self {
        let prefix = format!("{name}/");
        Self { table, name, prefix, range: None, after: None, backwards: false, remaining: usize::MAX }
    }

    /// Only keys whose first part is this one.
    pub fn under(mut self, first: <K::First as Key>::Ref<'_>) -> Self
    where
        K: Compound,
    {
        self.prefix = encode::<K::First>(self.name, first);
        self.prefix.push('/');
        self
    }

    /// Only keys whose first two parts are these.
    pub fn under_both<'k>(mut self, first: <K::First as Key>::Ref<'k>, second: <K::Second as Key>::Ref<'k>) -> Self
    where
        K: Compound3,
    {
        self.prefix = encode::<(K::First, K::Second)>(self.name, (first, second));
        self.prefix.push('/');
        self
    }

    /// Only keys within a range; it takes the place of `under`.
    pub fn range<'k>(mut self, range: impl RangeBounds<K::Ref<'k>>) -> Self {
        // The text behind a key is the key with the lowest character behind it.
        let behind = |key: K::Ref<'_>| encode::<K>(self.name, key) + "\0";
        let start = match range.start_bound() {
            Bound::Included(key) => encode::<K>(self.name, *key),
            Bound::Excluded(key) => behind(*key),
            Bound::Unbounded => format!("{}/", self.name),
        };
        let end = match range.end_bound() {
            Bound::Included(key) => behind(*key),
            Bound::Excluded(key) => encode::<K>(self.name, *key),
            // Zero follows the slash.
            Bound::Unbounded => format!("{}0", self.name),
        };
        self.range = Some((start, end));
        self
    }

    /// Begins behind a key, in the direction of the scan: where the page before ended.
    pub fn after(mut self, key: K::Ref<'_>) -> Self {
        self.after = Some(encode::<K>(self.name, key));
        self
    }

    /// From the largest key down.
    pub fn backwards(mut self) -> Self {
        self.backwards = true;
        self
    }

    /// At most so many entries.
    pub fn take(mut self, count: usize) -> Self {
        self.remaining = count;
        self
    }

    /// Reads all entries; [`Scan::take`] bounds them.
    pub fn entries(self) -> Result<Vec<(K, V)>, TableError> {
        self.into_iter().collect()
    }

    /// Reads the entries one after the other, asking the host for a page at a time.
    pub fn iter(self) -> Entries<'t, K, V> {
        Entries { scan: self, page: Vec::new().into_iter(), more: true }
    }

    fn next_page(&mut self) -> Result<(Vec<(K, V)>, bool), TableError> {
        let shared = self.table.shared();
        shared.flush().map_err(|unwritable| unwritable.error)?;
        let limit = self.remaining.min(PAGE_ENTRIES_MAX);
        let request = ScanRequest {
            selection: match &self.range {
                Some((start, end)) => Selection::Range(start, end),
                None => Selection::Prefix(&self.prefix),
            },
            after: self.after.as_deref(),
            backwards: self.backwards,
            limit: limit as u32,
        };
        let (mut page, mut last, mut error) = (Vec::new(), None, None);
        let more = shared.backend.scan(&request, &mut |key, payload| {
            let entry = read_key(key, self.name)
                .and_then(|read| Ok((read, decode(payload).map_err(|cause| undecodable(key, &cause))?)));
            match entry {
                Ok(entry) => page.push(entry),
                Err(cause) => error = error.take().or(Some(cause)),
            }
            // Only the last key of a page is needed to go on.
            let last: &mut String = last.get_or_insert_default();
            last.clear();
            last.push_str(key);
        });
        self.after = last.or(self.after.take());
        match error {
            Some(error) => Err(error),
            None => Ok((page, more)),
        }
    }
}

impl<'t, K: Key, V: Serialize + DeserializeOwned + 'static> IntoIterator for Scan<'t, K, V> {
    type Item = Result<(K, V), TableError>;
    type IntoIter = Entries<'t, K, V>;

    fn into_iter(self) -> Entries<'t, K, V> {
        self.iter()
    }
}

/// The entries of a scan. After an error there are no more.
pub struct Entries<'t, K, V> {
    scan: Scan<'t, K, V>,
    page: vec::IntoIter<(K, V)>,
    more: bool,
}

impl<K: Key, V: Serialize + DeserializeOwned + 'static> Iterator for Entries<'_, K, V> {
    type Item = Result<(K, V), TableError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.scan.remaining == 0 {
                return None;
            }
            if let Some(entry) = self.page.next() {
                self.scan.remaining -= 1;
                return Some(Ok(entry));
            }
            if !self.more {
                return None;
            }
            match self.scan.next_page() {
                Ok((page, more)) => {
                    // An empty page cannot be continued, whatever the host says.
                    self.more = more && !page.is_empty();
                    self.page = page.into_iter();
                }
                Err(error) => {
                    self.more = false;
                    return Some(Err(error));
                }
            }
        }
    }
}

fn read_key<K: Key>(text: &str, name: &str) -> Result<K, TableError> {
    let key = key::decode(text.strip_prefix(name).unwrap_or_default());
    key.map_err(|error| TableError::new(format_args!("key {text}: {error}")))
}

impl<K, V> fmt::Debug for Scan<'_, K, V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Scan")
            .field("prefix", &self.prefix)
            .field("range", &self.range)
            .field("after", &self.after)
            .field("backwards", &self.backwards)
            .finish()
    }
}

impl<K, V> fmt::Debug for Entries<'_, K, V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.scan.fmt(formatter)
    }
}
