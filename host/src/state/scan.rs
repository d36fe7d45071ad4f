//! Scans: one ordered walk over several layers, the newest of which wins.

use std::collections::VecDeque;
use std::collections::btree_set::{BTreeSet, Range as Keys};
use std::ops::Bound;
use std::time::Instant;

use super::file::{self, Base};
use super::memtable::Memtable;
use super::places::Sought;
use super::writes::Writes;
use super::{Direction, Error, Key, Page, SCAN_BYTES_MAX, SCAN_ENTRIES_MAX, Scan, Selection};
use crate::event::Payload;

/// Keys taken from a memtable under one lock: enough to pay for the lock, few enough not to delay
/// the applying thread.
const CHUNK: usize = 256;
/// Keys between two checks of the time.
const KEYS_PER_LOOK: usize = 256;

type Written = (Key, Option<Payload>);

/// The bounds of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    start: Bound<String>,
    end: Bound<String>,
}

impl Range {
    fn of(scan: &Scan) -> Self {
        let (mut start, mut end) = match &scan.selection {
            Selection::Prefix(prefix) => (Bound::Included(prefix.clone()), prefix_end(prefix)),
            Selection::Range { start, end } => (
                start.clone().map_or(Bound::Unbounded, Bound::Included),
                end.clone().map_or(Bound::Unbounded, Bound::Excluded),
            ),
        };
        // The narrower of both: `after` may lie outside the selection.
        if let Some(after) = &scan.after {
            match scan.direction {
                Direction::Forwards if is_before(&start, after) => {
                    start = Bound::Excluded(after.clone());
                }
                Direction::Backwards if is_behind(&end, after) => {
                    end = Bound::Excluded(after.clone());
                }
                _ => {}
            }
        }
        Self { start, end }
    }

    fn is_empty(&self) -> bool {
        // An unbounded end cannot be passed.
        let (Bound::Included(start) | Bound::Excluded(start)) = &self.start else {
            return false;
        };
        let Bound::Excluded(end) = &self.end else {
            return false;
        };
        start >= end
    }

    fn as_ref(&self) -> (Bound<&str>, Bound<&str>) {
        (
            self.start.as_ref().map(String::as_str),
            self.end.as_ref().map(String::as_str),
        )
    }

    /// What remains after a key.
    fn after(&mut self, key: &str, direction: Direction) {
        match direction {
            Direction::Forwards => self.start = Bound::Excluded(key.to_owned()),
            Direction::Backwards => self.end = Bound::Excluded(key.to_owned()),
        }
    }
}

/// The bounds of a selection: its beginning, and its end (exclusive; none is unbounded). None if no
/// key can be in it.
pub(super) fn bounds(selection: &Selection) -> Option<(String, Option<String>)> {
    let (start, end) = match selection {
        Selection::Prefix(prefix) => {
            let end = match prefix_end(prefix) {
                Bound::Included(end) | Bound::Excluded(end) => Some(end),
                Bound::Unbounded => None,
            };
            (prefix.clone(), end)
        }
        Selection::Range { start, end } => (start.clone().unwrap_or_default(), end.clone()),
    };
    end.as_ref()
        .is_none_or(|end| start < *end)
        .then_some((start, end))
}

fn is_before(start: &Bound<String>, key: &str) -> bool {
    match start {
        Bound::Unbounded => true,
        Bound::Included(start) | Bound::Excluded(start) => start.as_str() <= key,
    }
}

fn is_behind(end: &Bound<String>, key: &str) -> bool {
    match end {
        Bound::Unbounded => true,
        Bound::Included(end) | Bound::Excluded(end) => end.as_str() > key,
    }
}

/// The first text after all texts that begin with a prefix.
fn prefix_end(prefix: &str) -> Bound<String> {
    let mut characters: Vec<char> = prefix.chars().collect();
    // If the last character has no successor, the one before it is raised.
    while let Some(last) = characters.pop() {
        // The code point after the last one, skipping the gap of the surrogates.
        let next = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32);
        if let Some(next) = next {
            characters.push(next);
            return Bound::Excluded(characters.into_iter().collect());
        }
    }
    Bound::Unbounded
}

/// One layer of a scan, newest first in [`page`].
pub(super) enum Layer<'a> {
    /// The unpublished writes of a batch, and its remaining keys.
    Batch {
        keys: Keys<'a, Key>,
        writes: &'a Writes,
        next: Option<Written>,
    },
    /// A version of a memtable, read in chunks.
    Memtable {
        table: &'a Memtable,
        version: u64,
        rest: Option<RestOf>,
        chunk: usize,
        ready: VecDeque<Written>,
    },
    File {
        entries: Box<redb::Range<'static, &'static str, &'static [u8]>>,
        next: Option<Written>,
    },
}

/// The unread part of a chunked layer.
pub(super) struct RestOf(Range);

impl<'a> Layer<'a> {
    pub(super) fn batch(order: &'a BTreeSet<Key>, writes: &'a Writes, scan: &Scan) -> Option<Self> {
        let range = Range::of(scan);
        (!range.is_empty()).then(|| Self::Batch {
            keys: order.range::<str, _>(range.as_ref()),
            writes,
            next: None,
        })
    }

    pub(super) fn memtable(table: &'a Memtable, version: u64, scan: &Scan) -> Self {
        let range = Range::of(scan);
        let rest = (!range.is_empty()).then_some(RestOf(range));
        // One more than requested shows whether there is more.
        let chunk = scan.limit.saturating_add(1).min(CHUNK);
        Self::Memtable {
            table,
            version,
            rest,
            chunk,
            ready: VecDeque::new(),
        }
    }

    pub(super) fn file(base: &Base, scan: &Scan) -> Result<Option<Self>, Error> {
        let range = Range::of(scan);
        if range.is_empty() {
            return Ok(None);
        }
        let entries = file::guarded(|| base.range::<&str>(range.as_ref()).map_err(file::storage))?;
        Ok(Some(Self::File {
            entries: Box::new(entries),
            next: None,
        }))
    }

    /// The next entry, without taking it.
    fn peek(&mut self, direction: Direction) -> Result<Option<&Key>, Error> {
        match self {
            Self::Batch { keys, writes, next } => {
                if next.is_none() {
                    let key = match direction {
                        Direction::Forwards => keys.next(),
                        Direction::Backwards => keys.next_back(),
                    };
                    // A deleted key comes with no value, and hides the layers below.
                    *next = key.map(|key| {
                        let value = writes.get(Sought::new(key)).cloned().flatten();
                        (Key::clone(key), value)
                    });
                }
            }
            Self::Memtable {
                table,
                version,
                rest,
                chunk,
                ready,
            } => {
                if ready.is_empty()
                    && let Some(RestOf(mut range)) = rest.take()
                {
                    let (entries, more) = table.chunk(range.as_ref(), direction, *version, *chunk);
                    // Larger each time: a scan that asks for one entry should not copy hundreds.
                    // A chunk may consist of deleted entries only.
                    *chunk = (*chunk * 2).min(CHUNK);
                    // The lock was released in between, but versions of this snapshot stay.
                    if let Some((last, _)) = entries.last().filter(|_| more) {
                        range.after(last, direction);
                        *rest = (!range.is_empty()).then_some(RestOf(range));
                    }
                    *ready = entries.into();
                }
            }
            Self::File { entries, next } => {
                if next.is_none() {
                    let found = file::guarded(|| {
                        let found = match direction {
                            Direction::Forwards => entries.next(),
                            Direction::Backwards => entries.next_back(),
                        };
                        found
                            .transpose()
                            .map_err(file::storage)?
                            .map(file::entry)
                            .transpose()
                    })?;
                    *next = found.map(|(key, value)| (key, Some(value)));
                }
            }
        }
        Ok(match self {
            Self::Memtable { ready, .. } => ready.front().map(|(key, _)| key),
            Self::Batch { next, .. } | Self::File { next, .. } => next.as_ref().map(|(key, _)| key),
        })
    }

    fn take(&mut self) -> Option<Written> {
        match self {
            Self::Memtable { ready, .. } => ready.pop_front(),
            Self::Batch { next, .. } | Self::File { next, .. } => next.take(),
        }
    }
}

fn in_order(one: &str, other: &str, direction: Direction) -> std::cmp::Ordering {
    match direction {
        Direction::Forwards => one.cmp(other),
        Direction::Backwards => other.cmp(one),
    }
}

/// Merges layers, newest first, into a page.
///
/// Deleted entries do not count for the page, however many there are, so the time is checked
/// regularly.
pub(super) fn page(
    mut layers: Vec<Layer<'_>>,
    scan: &Scan,
    until: Option<Instant>,
) -> Result<Page, Error> {
    let limit = scan.limit.min(SCAN_ENTRIES_MAX);
    let mut page = Page::default();
    let mut bytes = 0;
    let mut looked_at = 0;
    while let Some((key, value)) = next(&mut layers, scan.direction)? {
        looked_at += 1;
        // Not for each key: reading the clock costs more than a key.
        if looked_at % KEYS_PER_LOOK == 0 && until.is_some_and(|until| Instant::now() >= until) {
            return Err(Error::Late);
        }
        let Some(value) = value else { continue };
        // Looked at with one more entry in hand, so `more` is exact.
        if page.entries.len() >= limit || bytes >= SCAN_BYTES_MAX {
            page.more = true;
            break;
        }
        bytes += key.len() + value.len();
        page.entries.push((key, value));
    }
    Ok(page)
}

/// The next key of all layers with its newest value; a deleted key comes without a value.
fn next(layers: &mut [Layer<'_>], direction: Direction) -> Result<Option<Written>, Error> {
    let mut first: Option<Key> = None;
    // The layers are few, so a comparison of all of them is cheap.
    for layer in layers.iter_mut() {
        if let Some(key) = layer.peek(direction)?
            && first
                .as_ref()
                .is_none_or(|first| in_order(key, first, direction).is_lt())
        {
            first = Some(Key::clone(key));
        }
    }
    let Some(first) = first else { return Ok(None) };
    let mut newest = None;
    for layer in layers.iter_mut() {
        // All layers give up their version of the key; the first, newest one counts.
        if layer.peek(direction)?.is_some_and(|key| *key == first) {
            let written = layer.take();
            newest = newest.or(written);
        }
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_behind_the_last_key_that_begins_with_it() {
        assert_eq!(
            prefix_end("customer/"),
            Bound::Excluded("customer0".to_owned())
        );
        assert_eq!(
            prefix_end("a\u{D7FF}"),
            Bound::Excluded("a\u{E000}".to_owned())
        );
        assert_eq!(
            prefix_end(&format!("a{}", char::MAX)),
            Bound::Excluded("b".to_owned())
        );
        assert_eq!(prefix_end(""), Bound::Unbounded);
    }

    #[test]
    fn a_cursor_outside_of_the_selection_changes_nothing_or_ends_the_scan() {
        let scan = |after: &str, direction| Scan {
            selection: Selection::Prefix("b".to_owned()),
            after: Some(after.to_owned()),
            direction,
            limit: 10,
        };
        assert_eq!(
            Range::of(&scan("a", Direction::Forwards)).start,
            Bound::Included("b".to_owned())
        );
        assert!(Range::of(&scan("c", Direction::Forwards)).is_empty());
        assert_eq!(
            Range::of(&scan("d", Direction::Backwards)).end,
            Bound::Excluded("c".to_owned())
        );
        assert!(Range::of(&scan("a", Direction::Backwards)).is_empty());
    }
}
