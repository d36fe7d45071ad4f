//! Scans: the entries of a table in the order of their keys.

use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::vec;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backend::{ScanRequest, Selection};
use crate::cache::{decode, undecodable};
use crate::event::Payload;
use crate::failure::TableError;
use crate::key::{self, Compound, Compound3, Key, encode_behind as encode};
use crate::table::Table;

/// Most entries to request at once.
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
    /// What the first part behind the prefix begins with, in the form of a key.
    beginning: String,
    range: Option<(String, String)>,
    after: Option<String>,
    backwards: bool,
    remaining: usize,
}

impl<'t, K: Key, V: Serialize + DeserializeOwned + 'static> Scan<'t, K, V> {
    pub(crate) fn new(table: &'t Table<K, V>, name: &'t str) -> Self {
        let prefix = format!("{name}/");
        Self {
            table,
            name,
            prefix,
            beginning: String::new(),
            range: None,
            after: None,
            backwards: false,
            remaining: usize::MAX,
        }
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
    pub fn under_both<'k>(
        mut self,
        first: <K::First as Key>::Ref<'k>,
        second: <K::Second as Key>::Ref<'k>,
    ) -> Self
    where
        K: Compound3,
    {
        self.prefix = encode::<(K::First, K::Second)>(self.name, (first, second));
        self.prefix.push('/');
        self
    }

    /// Only keys whose first part begins with this text; after `under` the second part, after
    /// `under_both` the third.
    ///
    /// This finds `red wagon` by `red`, which a range over keys of several parts does not: there a
    /// text sorts as if it ended with a slash, and a space comes before the slash. Parts that are
    /// not text match by their text in the key: `2026-11` covers the dates of a month.
    ///
    /// ```
    /// use foldstream_sdk::prelude::*;
    ///
    /// /// Stock by name and article.
    /// fn named(stock: &Table<(String, u32), u64>, beginning: &str) -> Result<Vec<((String, u32), u64)>, TableError> {
    ///     stock.scan().starting_with(beginning).take(20).entries()
    /// }
    ///
    /// /// The days of a month of one customer.
    /// fn november(days: &Table<(String, Date), u64>, customer: &str) -> Result<usize, TableError> {
    ///     Ok(days.scan().under(customer).starting_with("2026-11").entries()?.len())
    /// }
    /// ```
    pub fn starting_with(mut self, text: &str) -> Self {
        // A part is written after a slash, which the prefix already has.
        self.beginning = key::encode::<String>(text).split_off(1);
        self
    }

    /// Only keys within a range. Combined with `under` or `starting_with`, both apply.
    /// Do not search for the beginning of a text with a range: see [`Scan::starting_with`].
    pub fn range<'k>(mut self, range: impl RangeBounds<K::Ref<'k>>) -> Self {
        self.range = Some(bounds::<K>(self.name, &range));
        self
    }

    /// Only keys whose first part is this one, and whose further parts are within a range.
    ///
    /// ```
    /// use foldstream_sdk::prelude::*;
    ///
    /// /// The seven days up to this one.
    /// fn week(days: &Table<(String, Date), u64>, customer: &str, last: Date) -> Result<u64, TableError> {
    ///     let days = days.scan().range_under(customer, last - 6..=last).entries()?;
    ///     Ok(days.iter().map(|(_, cents)| cents).sum())
    /// }
    /// ```
    pub fn range_under<'k>(
        mut self,
        first: <K::First as Key>::Ref<'k>,
        range: impl RangeBounds<<K::Rest as Key>::Ref<'k>>,
    ) -> Self
    where
        K: Compound,
    {
        let stem = encode::<K::First>(self.name, first);
        self.range = Some(bounds::<K::Rest>(&stem, &range));
        self
    }

    /// Starts after a key, in the direction of the scan: where the previous page ended.
    pub fn after(mut self, key: K::Ref<'_>) -> Self {
        self.after = Some(encode::<K>(self.name, key));
        self
    }

    /// From the largest key down.
    pub fn backwards(mut self) -> Self {
        self.backwards = true;
        self
    }

    /// At most this many entries.
    pub fn take(mut self, count: usize) -> Self {
        self.remaining = count;
        self
    }

    /// Reads all entries; [`Scan::take`] bounds them.
    pub fn entries(self) -> Result<Vec<(K, V)>, TableError> {
        self.into_iter().collect()
    }

    /// Reads the entries one after another, requesting one page at a time.
    pub fn iter(self) -> Entries<'t, K, V> {
        Entries {
            scan: self,
            page: Vec::new().into_iter(),
            more: true,
        }
    }

    fn next_page(&mut self) -> Result<(Vec<(K, V)>, bool), TableError> {
        let name = self.name;
        self.page(&mut |key, payload| {
            let read = read_key(key, name)?;
            Ok((
                read,
                decode(payload).map_err(|cause| undecodable(key, &cause))?,
            ))
        })
    }

    /// The keys of the next page as the state spells them, and whether there are more.
    pub(crate) fn next_keys(&mut self) -> Result<(Vec<String>, bool), TableError> {
        let (keys, more) = self.page(&mut |key, _| Ok(key.to_owned()))?;
        // It cannot underflow: a page has at most as many entries as remain.
        self.remaining -= keys.len();
        let more = more && !keys.is_empty() && self.remaining > 0;
        Ok((keys, more))
    }

    /// Reads the next page, and whether there is more behind it.
    fn page<T>(
        &mut self,
        read: &mut dyn FnMut(&str, Payload<'_>) -> Result<T, TableError>,
    ) -> Result<(Vec<T>, bool), TableError> {
        let shared = self.table.shared();
        // The host scans what it has, so the writes of this batch have to be there first.
        shared.flush().map_err(|unwritable| unwritable.error)?;
        let limit = self.remaining.min(PAGE_ENTRIES_MAX);
        let prefix = format!("{}{}", self.prefix, self.beginning);
        let range = self
            .range
            .as_ref()
            .map(|range| range_within(range, &prefix));
        // The range lies outside the prefix: nothing can be in it.
        if range.as_ref().is_some_and(|(start, end)| start >= end) {
            return Ok((Vec::new(), false));
        }
        let request = ScanRequest {
            selection: match &range {
                Some((start, end)) => Selection::Range(start, end),
                None => Selection::Prefix(&prefix),
            },
            after: self.after.as_deref(),
            backwards: self.backwards,
            limit: limit as u32,
        };
        let (mut page, mut last, mut error) = (Vec::new(), None, None);
        let more = shared.backend.scan(&request, &mut |key, payload| {
            match read(key, payload) {
                Ok(entry) => page.push(entry),
                // The first error stays; the host has to come to the end of the page anyway.
                Err(cause) => error = error.take().or(Some(cause)),
            }
            // Only the last key of a page is needed to continue.
            let last: &mut String = last.get_or_insert_default();
            last.clear();
            last.push_str(key);
        });
        // A page without entries leaves the place where it was.
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

/// The range of keys after a stem, as texts: from the first (inclusive) to the second (exclusive).
fn bounds<'k, K: Key>(stem: &str, range: &impl RangeBounds<K::Ref<'k>>) -> (String, String) {
    // The text after a key is the key with the lowest character appended.
    let behind = |key: K::Ref<'k>| encode::<K>(stem, key) + "\0";
    let start = match range.start_bound() {
        Bound::Included(key) => encode::<K>(stem, *key),
        Bound::Excluded(key) => behind(*key),
        Bound::Unbounded => format!("{stem}/"),
    };
    let end = match range.end_bound() {
        Bound::Included(key) => behind(*key),
        Bound::Excluded(key) => encode::<K>(stem, *key),
        // Zero follows the slash.
        Bound::Unbounded => format!("{stem}0"),
    };
    (start, end)
}

/// The part of a range that begins with a prefix.
fn range_within((start, end): &(String, String), prefix: &str) -> (String, String) {
    // Both begin with the name of the table, so they compare as the keys do.
    let start = start.as_str().max(prefix).to_owned();
    let end = match behind_all(prefix) {
        Some(behind) if behind < *end => behind,
        _ => end.clone(),
    };
    (start, end)
}

/// The lowest text after all texts with this prefix.
fn behind_all(prefix: &str) -> Option<String> {
    let mut text = prefix.to_owned();
    while let Some(last) = text.pop() {
        // The next character, not the next octet: the result must be text. Surrogates are skipped.
        if let Some(next) = (last..=char::MAX).nth(1) {
            text.push(next);
            return Some(text);
        }
    }
    // Every character was the last one there is: no text comes after all of them.
    None
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
            .field("beginning", &self.beginning)
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
