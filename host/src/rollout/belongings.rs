//! Finds the entries of a state that belong to some keys, and the other entries on which a fold of
//! their events depends.

use std::collections::BTreeSet;

use super::key_part::Ownership;
use crate::state::{self, Direction, Key, Noted, SCAN_ENTRIES_MAX, Scan, Selection, Snapshot};

/// Most entries named in a message.
const NAMED_MAX: usize = 10;
/// Most tables of a state in which to look for entries that the fold did not write.
const TABLES_MAX: usize = 1_000;

/// Entries found before the hold, so that the hold is short.
pub(super) struct Ahead {
    /// Tables whose entries were all examined.
    pub(super) tables: BTreeSet<String>,
    pub(super) keys: Vec<Key>,
    /// The position of the state that was examined.
    pub(super) position: u64,
}

/// Examines the tables in which a key's entries are not adjacent. Blocking, and slow if these
/// tables are large.
pub(super) fn look_ahead(
    snapshot: &Snapshot,
    owned: &Ownership,
    limit: &mut dyn FnMut(usize) -> bool,
) -> Result<Ahead, state::Error> {
    let mut ahead = Ahead {
        tables: BTreeSet::new(),
        keys: Vec::new(),
        position: snapshot.position(),
    };
    // In these tables the key is not the first segment, so its entries are scattered over the
    // table.
    for (table, _) in owned.tables().filter(|(_, place)| *place > 1) {
        each(snapshot, Selection::Prefix(format!("{table}/")), |key| {
            if owned.has(&key) {
                ahead.keys.push(key);
            }
            limit(ahead.keys.len())
        })?;
        // Also without a hit: to know that there is none spares the scan during the hold.
        ahead.tables.insert(table.to_owned());
    }
    Ok(ahead)
}

/// All keys of a state that belong to the keys. `known` has those from tables that were examined
/// before, and those that changed since; without it, all tables are examined now.
pub(super) fn find(
    snapshot: &Snapshot,
    owned: &Ownership,
    known: Option<(&Ahead, Vec<Key>)>,
    limit: &mut dyn FnMut(usize) -> bool,
) -> Result<BTreeSet<Key>, state::Error> {
    let mut found: BTreeSet<Key> = BTreeSet::new();
    for (table, place) in owned.tables() {
        if place > 1
            && known
                .as_ref()
                .is_some_and(|(ahead, _)| ahead.tables.contains(table))
        {
            continue;
        }
        for selection in selections(table, place, owned) {
            each(snapshot, selection, |key| {
                if owned.has(&key) {
                    found.insert(key);
                }
                limit(found.len())
            })?;
        }
    }
    if let Some((ahead, changed)) = known {
        // Entries that have changed since `look_ahead` come from `changed`; the rest is as it was.
        let all = ahead.keys.iter().cloned().chain(changed);
        found.extend(all.filter(|key| owned.has(key)));
    }
    Ok(found)
}

/// The ranges of a table in which entries of the keys can be: few ranges if the key follows the
/// table's name, otherwise the whole table.
fn selections(table: &str, place: usize, owned: &Ownership) -> Vec<Selection> {
    if place > 1 {
        return vec![Selection::Prefix(format!("{table}/"))];
    }
    // Of several keys it is only known how their segments begin, so a prefix has to do.
    let beginnings = owned.beginnings().into_iter();
    if !owned.is_of_one() {
        return beginnings
            .map(|beginning| Selection::Prefix(format!("{table}/{beginning}")))
            .collect();
    }
    let of_key = |segment: String| {
        let key = format!("{table}/{segment}");
        // The entry with exactly that name, and the entries below it.
        let alone = Selection::Range {
            start: Some(key.clone()),
            // The zero byte is the smallest suffix, so the range holds this key alone.
            end: Some(format!("{key}\0")),
        };
        [alone, Selection::Prefix(format!("{key}/"))]
    };
    beginnings.flat_map(of_key).collect()
}

/// The entries and scans on which the fold of the keys' events depended, and that other events may
/// have written; `serving` is the complete state.
pub(super) fn foreign(
    noted: &Noted,
    owned: &Ownership,
    serving: &Snapshot,
) -> Result<Vec<String>, state::Error> {
    let mut found = Vec::new();
    for key in noted
        .keys
        .iter()
        .filter(|key| !noted.written.contains(*key))
    {
        // An entry that exists and that the keys' events never write: other events wrote it.
        // An entry of an unknown table that names the key may be its own, as long as nothing is
        // there.
        let may_be_own = owned.has(key) || (!owned.knows(key) && owned.names(key));
        if !may_be_own || serving.get(key)?.is_some() {
            found.push(format!("`{key}`"));
        }
    }
    for selection in &noted.scans {
        let prefix = match selection {
            Selection::Prefix(prefix) => prefix.clone(),
            // A range is judged by its common prefix: too wide at worst, and then the rebuild is
            // refused.
            Selection::Range { start, end } => common(start.as_deref(), end.as_deref()),
        };
        let is_own = owned.has_all(&prefix);
        let may_be_own = is_own || (!owned.knows(&prefix) && names_complete(owned, &prefix));
        if !may_be_own || (!is_own && !is_empty(serving, selection)?) {
            found.push(format!("all of `{prefix}…`"));
        }
    }
    found.sort();
    found.truncate(NAMED_MAX);
    Ok(found)
}

fn names_complete(owned: &Ownership, prefix: &str) -> bool {
    // What follows the last slash may be the beginning of a segment, and proves nothing.
    prefix
        .rsplit_once('/')
        .is_some_and(|(complete, _)| owned.names(complete))
}

/// The common prefix of all keys in a range.
fn common(start: Option<&str>, end: Option<&str>) -> String {
    let (Some(start), Some(end)) = (start, end) else {
        return String::new();
    };
    start
        .chars()
        .zip(end.chars())
        .take_while(|(one, other)| one == other)
        .map(|(one, _)| one)
        .collect()
}

fn is_empty(snapshot: &Snapshot, selection: &Selection) -> Result<bool, state::Error> {
    let scan = Scan {
        selection: selection.clone(),
        after: None,
        direction: Direction::Forwards,
        limit: 1,
    };
    Ok(snapshot.scan(&scan)?.entries.is_empty())
}

/// Entries that name the key in tables that its events did not write. They may be leftovers of the
/// key or entries of others.
pub(super) fn unclear(snapshot: &Snapshot, owned: &Ownership) -> Result<Vec<String>, state::Error> {
    let mut found = Vec::new();
    let mut start = String::new();
    // One step per table: read its first entry, then jump behind the table.
    for _ in 0..TABLES_MAX {
        let selection = Selection::Range {
            start: Some(start),
            end: None,
        };
        let page = snapshot.scan(&Scan {
            selection,
            after: None,
            direction: Direction::Forwards,
            limit: 1,
        })?;
        let Some((key, _)) = page.entries.into_iter().next() else {
            return Ok(found);
        };
        // An entry outside any table; continue right behind it.
        let Some((table, _)) = key.split_once('/') else {
            start = format!("{key}\0");
            continue;
        };
        // The first text after all texts that begin with the name and a slash.
        start = format!("{table}0");
        if owned.knows(&key) {
            continue;
        }
        for selection in selections(table, 1, owned) {
            each(snapshot, selection, |key| {
                if owned.names(&key) {
                    found.push(key.to_string());
                }
                found.len() < NAMED_MAX
            })?;
        }
        if found.len() >= NAMED_MAX {
            break;
        }
    }
    Ok(found)
}

/// Visits keys in order until the end, or until `visit` says stop.
fn each(
    snapshot: &Snapshot,
    selection: Selection,
    mut visit: impl FnMut(Key) -> bool,
) -> Result<(), state::Error> {
    let mut after = None;
    loop {
        let scan = Scan {
            selection: selection.clone(),
            after,
            direction: Direction::Forwards,
            limit: SCAN_ENTRIES_MAX,
        };
        let page = snapshot.scan(&scan)?;
        // Kept even if `visit` stops the walk; the next page starts behind the last key of this
        // one.
        after = page.entries.last().map(|(key, _)| key.to_string());
        for (key, _) in page.entries {
            if !visit(key) {
                return Ok(());
            }
        }
        if !page.more {
            return Ok(());
        }
    }
}
