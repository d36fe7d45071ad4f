//! The timers of a state: pending ones, in tables of their own.
//!
//! `timers` has them by name, in the envelope of an entry. `due` has them by time: its key is the
//! time as 8 bytes big endian and the name, its value the timer's depth as 4. Both change in the commit that makes the entries and
//! the checkpoint durable. In memory, timers are in a memtable of their own, so that a snapshot has
//! those of its position. Scans, comparisons and quotas of entries do not see them; copies have
//! them, because a fold that continues from a copy needs them.
//!
//! A file that has ever had a timer has format 3, so that a release that knows none refuses it.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;
use redb::{ReadableTableMetadata, TableDefinition, WriteTransaction};

use super::file::{self, Base, Committed, File, META, guarded, storage};
use super::memtable::{Found, Memtable};
use super::places::Sought;
use super::scan::{self, Layer};
use super::store::View;
use super::{Error, Key, Page, Parked, Scan, Snapshot, Store, Writer};
use crate::event::Payload;
use crate::timers::{Firing, Timer, What};

const TIMERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("timers");
const DUE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("due");
/// The row of `meta` that says that the file has the tables of timers.
pub(super) const HAS_TIMERS: &str = "timers";
/// Length of a time in a key of `due`.
const TIME_BYTES: usize = 8;
/// Most firings whose lateness waits to be reported.
const FIRED_MAX: usize = 10_000;

/// What a store knows of its timers, besides the tables.
#[derive(Debug)]
pub(super) struct Count {
    /// How many are pending, published or durable.
    pending: AtomicI64,
    /// How late timers fired since somebody asked, in nanoseconds.
    fired: Mutex<Vec<u64>>,
    /// The earliest time of those that were set since somebody asked.
    soonest: AtomicU64,
}

/// What a batch does to timers.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Timers by name; none is no longer pending.
    pub(super) writes: std::collections::BTreeMap<Key, Option<Payload>>,
    /// By how many there are more.
    pub(super) more: i64,
    /// How late timers fired, in nanoseconds.
    pub(super) fired: Vec<u64>,
    /// The earliest time of those that were set; none if none was.
    pub(super) soonest: Option<u64>,
}

impl Count {
    pub(super) fn new(pending: u64) -> Self {
        Self {
            pending: AtomicI64::new(i64::try_from(pending).unwrap_or(i64::MAX)),
            fired: Mutex::default(),
            soonest: AtomicU64::new(u64::MAX),
        }
    }

    pub(super) fn published(&self, changes: &Changes) {
        self.pending.fetch_add(changes.more, Ordering::AcqRel);
        // The pipeline asks for this: it commits earlier for timers that are due soon.
        if let Some(soonest) = changes.soonest {
            self.soonest.fetch_min(soonest, Ordering::AcqRel);
        }
        if !changes.fired.is_empty() {
            let mut all = self.fired.lock();
            // Nobody may ask, for example while no metrics are read.
            let room = FIRED_MAX.saturating_sub(all.len());
            all.extend(changes.fired.iter().take(room));
        }
    }

    pub(super) fn set_pending(&self, pending: u64) {
        let pending = i64::try_from(pending).unwrap_or(i64::MAX);
        self.pending.store(pending, Ordering::Release);
    }

    fn pending(&self) -> u64 {
        u64::try_from(self.pending.load(Ordering::Acquire)).unwrap_or(0)
    }
}

fn due_key(at_ns: u64, name: &str) -> Vec<u8> {
    [&at_ns.to_be_bytes()[..], name.as_bytes()].concat()
}

fn damaged() -> Error {
    Error::damaged("a stored timer is damaged; check the disk, restore a backup, or rebuild")
}

fn read(value: &Payload) -> Result<Timer, Error> {
    value
        .as_str()
        .and_then(Timer::from_text)
        .ok_or_else(damaged)
}

/// Sets and removes timers in a transaction, in both tables.
pub(super) struct TimerWriter<'t> {
    timers: redb::Table<'t, &'static str, &'static [u8]>,
    due: redb::Table<'t, &'static [u8], &'static [u8]>,
    envelope: Vec<u8>,
}

impl<'t> TimerWriter<'t> {
    /// Opens the tables, and notes that the file has them.
    pub(super) fn new(transaction: &'t WriteTransaction) -> Result<Self, Error> {
        let mut meta = transaction.open_table(META).map_err(storage)?;
        // With the first timer, and for good: older releases would lose them.
        meta.insert(HAS_TIMERS, [1].as_slice()).map_err(storage)?;
        meta.insert("format", file::FORMAT_OWNED.to_be_bytes().as_slice())
            .map_err(storage)?;
        Ok(Self {
            timers: transaction.open_table(TIMERS).map_err(storage)?,
            due: transaction.open_table(DUE).map_err(storage)?,
            envelope: Vec::new(),
        })
    }

    pub(super) fn write(&mut self, name: &str, value: Option<&Payload>) -> Result<(), Error> {
        let before = match value {
            Some(value) => {
                file::wrap(value, &mut self.envelope);
                self.timers.insert(name, self.envelope.as_slice())
            }
            None => self.timers.remove(name),
        };
        let before = before
            .map_err(storage)?
            .map(|value| file::unwrap(value.value()))
            .transpose()?;
        // The old place has to go, or the timer would be due twice.
        if let Some(before) = before {
            let key = due_key(read(&before)?.at_ns, name);
            self.due.remove(key.as_slice()).map_err(storage)?;
        }
        if let Some(value) = value {
            let Timer { at_ns, depth, .. } = read(value)?;
            let key = due_key(at_ns, name);
            self.due
                .insert(key.as_slice(), depth.to_be_bytes().as_slice())
                .map_err(storage)?;
        }
        Ok(())
    }
}

/// Writes the timers of a memtable.
pub(super) fn write(transaction: &WriteTransaction, table: &Memtable) -> Result<(), Error> {
    let Some(timers) = table.timers().filter(|timers| !timers.is_empty()) else {
        return Ok(());
    };
    let mut writer = TimerWriter::new(transaction)?;
    timers.for_each(|name, value| writer.write(name, value.as_ref()))
}

/// Copies the timers of a snapshot into a new file.
pub(super) fn copy(snapshot: &Snapshot, transaction: &WriteTransaction) -> Result<(), Error> {
    let mut scan = Scan {
        selection: super::Selection::Prefix(String::new()),
        after: None,
        direction: super::Direction::Forwards,
        limit: super::SCAN_ENTRIES_MAX,
    };
    let mut writer = None;
    loop {
        let page = snapshot.scan_timers(&scan)?;
        for (name, value) in &page.entries {
            // A state without timers stays in the older format.
            let writer = match &mut writer {
                Some(writer) => writer,
                None => writer.insert(TimerWriter::new(transaction)?),
            };
            writer.write(name, Some(value))?;
        }
        scan.after = page.entries.last().map(|(name, _)| name.to_string());
        if !page.more {
            return Ok(());
        }
    }
}

impl File {
    /// A view of the timers as of the last commit; none if the file has never had any.
    pub(super) fn timers(&self) -> Result<Option<Base>, Error> {
        guarded(|| {
            let transaction = self.begin_read()?;
            match transaction.open_table(TIMERS) {
                Ok(table) => Ok(Some(Arc::new(Committed::of(table)))),
                Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
                Err(error) => Err(storage(error)),
            }
        })
    }

    /// The first durable timers by time, after a place and before the first one that is not wanted.
    fn due(
        &self,
        from: Bound<&[u8]>,
        mut is_wanted: impl FnMut(&Due) -> bool,
    ) -> Result<Vec<Due>, Error> {
        guarded(|| {
            let transaction = self.begin_read()?;
            let table = match transaction.open_table(DUE) {
                Ok(table) => table,
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(error) => return Err(storage(error)),
            };
            let mut found = Vec::new();
            for row in table
                .range::<&[u8]>((from, Bound::Unbounded))
                .map_err(storage)?
            {
                let (key, depth) = row.map_err(storage)?;
                let due = Due::of(key.value(), depth.value()).ok_or_else(damaged)?;
                if !is_wanted(&due) {
                    break;
                }
                found.push(due);
            }
            Ok(found)
        })
    }
}

/// Says no after a number of timers.
fn at_most(max: usize) -> impl FnMut() -> bool {
    let mut left = max;
    move || {
        let has_room = left > 0;
        left = left.saturating_sub(1);
        has_room
    }
}

/// How many timers a view of the file has, which the file knows.
pub(super) fn count(timers: Option<&Base>) -> Result<u64, Error> {
    timers.map_or(Ok(0), |table| table.len().map_err(storage))
}

/// When a timer is due.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due {
    /// Its time, in nanoseconds since the Unix epoch.
    pub at_ns: u64,
    /// Its name.
    pub name: String,
    /// Its depth; see `Timer`.
    pub depth: u32,
}

impl Due {
    fn of(key: &[u8], depth: &[u8]) -> Option<Self> {
        // Big endian, so that the order of keys is that of times.
        let (at, name) = key.split_first_chunk::<TIME_BYTES>()?;
        Some(Self {
            at_ns: u64::from_be_bytes(*at),
            name: std::str::from_utf8(name).ok()?.to_owned(),
            depth: u32::from_be_bytes(depth.try_into().ok()?),
        })
    }
}

/// The timer of a name in a view.
fn get(view: &View, name: &str) -> Result<Option<Payload>, Error> {
    let layers = [
        Some(&view.active),
        view.frozen.as_ref().map(|(table, _)| table),
    ];
    let sought = Sought::new(name);
    for table in layers.into_iter().flatten() {
        // The active one is newer than the frozen one, and the file is the oldest.
        if let Some(timers) = table.timers()
            && let Found::Here(value) = timers.get(sought, view.version)
        {
            return Ok(value);
        }
    }
    match &view.timers {
        Some(base) => file::get(base, sought),
        None => Ok(None),
    }
}

impl Snapshot {
    /// A page of its timers, by name.
    pub(super) fn scan_timers(&self, scan: &Scan) -> Result<Page, Error> {
        let view = self.view();
        let tables = [
            Some(&view.active),
            view.frozen.as_ref().map(|(table, _)| table),
        ];
        let mut layers: Vec<Layer<'_>> = tables
            .into_iter()
            .flatten()
            .filter_map(|table| table.timers())
            .map(|timers| Layer::memtable(timers, view.version, scan))
            .collect();
        if let Some(base) = &view.timers {
            layers.extend(Layer::file(base, scan)?);
        }
        scan::page(layers, scan, None)
    }

    /// The timers that it has, by name, from the one after a name on.
    pub fn timers(&self, after: Option<&str>, limit: usize) -> Result<Vec<(String, Timer)>, Error> {
        let page = self.scan_timers(&Scan {
            selection: super::Selection::Prefix(String::new()),
            after: after.map(str::to_owned),
            direction: super::Direction::Forwards,
            limit,
        })?;
        page.entries
            .iter()
            .map(|(name, value)| Ok((name.to_string(), read(value)?)))
            .collect()
    }

    /// The timer of a name.
    pub fn timer(&self, name: &str) -> Result<Option<Timer>, Error> {
        get(self.view(), name)?.as_ref().map(read).transpose()
    }
}

impl Store {
    /// How many timers are pending, durable or not.
    pub fn pending_timers(&self) -> u64 {
        self.inner.timers.pending()
    }

    /// From how many timers in a row on they are a loop, if each set the next for at once.
    pub fn timers_in_a_row_max(&self) -> u32 {
        self.inner.options.timers_in_a_row_max
    }

    /// The first durable timers by time, up to a time, without reading the others. Blocking.
    pub fn due_timers(&self, until_ns: u64, max: usize) -> Result<Vec<Due>, Error> {
        let mut has_room = at_most(max);
        // In order of time, so nothing behind the first later one is due.
        let is_wanted = |due: &Due| due.at_ns <= until_ns && has_room();
        self.inner.file.due(Bound::Unbounded, is_wanted)
    }

    /// A page of durable timers by time, after one. Blocking.
    pub fn timers_after(&self, after: Option<&Due>, max: usize) -> Result<Vec<Due>, Error> {
        let mut has_room = at_most(max);
        self.due_after(after, |_| has_room())
    }

    /// The same until there are `max` timers in no loop, or `loops_max` timers of loops, which may wait
    /// in front of all others. Blocking.
    pub fn timers_among_loops(
        &self,
        after: Option<&Due>,
        max: usize,
        loops_max: usize,
    ) -> Result<Vec<Due>, Error> {
        let loop_depth = self.timers_in_a_row_max();
        let (mut others, mut loops) = (0, 0);
        self.due_after(after, |due| {
            if others == max || loops == loops_max {
                return false;
            }
            let count = if due.depth < loop_depth {
                &mut others
            } else {
                &mut loops
            };
            *count += 1;
            true
        })
    }

    fn due_after(
        &self,
        after: Option<&Due>,
        is_wanted: impl FnMut(&Due) -> bool,
    ) -> Result<Vec<Due>, Error> {
        let key = after.map(|due| due_key(due.at_ns, &due.name));
        let from = key.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.inner.file.due(from, is_wanted)
    }

    /// Durable timers; none for one that is not pending at that time any more, even if no commit says
    /// so yet: a firing of it would do nothing, but might wait with a parked key. Blocking.
    pub fn still_pending(&self, timers: &[Due]) -> Result<Vec<Option<Timer>>, Error> {
        let Some(base) = self.inner.file.timers()? else {
            return Ok(vec![None; timers.len()]);
        };
        let now = self.snapshot();
        let find = |due: &Due| -> Result<Option<Timer>, Error> {
            let timer = file::get(&base, Sought::new(&due.name))?
                .as_ref()
                .map(read)
                .transpose()?;
            let timer = timer.filter(|timer| timer.at_ns == due.at_ns);
            Ok(match now.timer(&due.name)? {
                Some(latest) if latest.at_ns == due.at_ns => timer,
                _ => None,
            })
        };
        timers.iter().map(find).collect()
    }

    /// How late timers fired since the last call, in nanoseconds.
    pub fn take_fired(&self) -> Vec<u64> {
        std::mem::take(&mut *self.inner.timers.fired.lock())
    }

    /// Whether timers up to a time were published since somebody asked.
    pub fn takes_new_timers(&self, until_ns: u64) -> bool {
        let soonest = &self.inner.timers.soonest;
        // A load first: most calls find nothing, and a swap would write to memory that others read.
        soonest.load(Ordering::Acquire) <= until_ns
            && soonest.swap(u64::MAX, Ordering::AcqRel) <= until_ns
    }
}

impl Writer {
    /// The pending timer of a name, including the batch so far.
    pub fn timer(&self, name: &str) -> Result<Option<Timer>, Error> {
        let timer = self.pending_timer(name)?;
        // What the batch set itself comes from its events, and is no input.
        if !self.timers.writes.contains_key(name) {
            self.trace_timer(name, timer.as_ref());
        }
        Ok(timer)
    }

    /// The same for a change, whose record does not need what was there before.
    fn pending_timer(&self, name: &str) -> Result<Option<Timer>, Error> {
        if let Some(value) = self.timers.writes.get(name) {
            return value.as_ref().map(read).transpose();
        }
        get(&self.view(), name)?.as_ref().map(read).transpose()
    }

    /// Sets a timer; one that is pending under the same name is replaced.
    pub fn set_timer(&mut self, name: &str, timer: &Timer) -> Result<(), Error> {
        // Replacing one adds none, so it is allowed at the limit.
        if self.pending_timer(name)?.is_none() {
            let (allowed, pending) = (self.inner.options.timers_pending_max, self.pending_timers());
            if pending >= allowed {
                return Err(Error::Limit {
                    limit: "timers-pending",
                    message: format!(
                        "{pending} timers are pending, {allowed} are allowed; cancel timers that are not needed, or raise \
                         state.timers_pending_max"
                    ),
                });
            }
            self.timers.more += 1;
        }
        // Reported even if a later change of the batch removes it: the next look finds nothing.
        let soonest = &mut self.timers.soonest;
        *soonest = Some(soonest.map_or(timer.at_ns, |known| known.min(timer.at_ns)));
        self.change_timer(name, Some(Payload::from(timer.to_text())))
    }

    /// Removes a timer; returns the one that was pending.
    pub fn remove_timer(&mut self, name: &str) -> Result<Option<Timer>, Error> {
        let found = self.pending_timer(name)?;
        if found.is_some() {
            self.timers.more -= 1;
            self.change_timer(name, None)?;
        }
        Ok(found)
    }

    /// Removes the timer that a firing of this time fires or drops; none if it concerns none.
    pub fn fire_timer(&mut self, firing: &Firing, fired_ns: u64) -> Result<Option<Timer>, Error> {
        let fires = |timer: Timer| {
            // A firing is ordered by its own key, so it must not fire a timer of another one.
            let is_of_key = |key: &String| *key == Parked::name_of(timer.key.clone());
            let is_meant = match firing.what {
                What::Due => timer.at_ns <= fired_ns,
                // Nobody decided about a timer that was set again since.
                What::Now | What::Drop => timer.at_ns == firing.at_ns,
            };
            is_meant && firing.key.as_ref().is_none_or(is_of_key)
        };
        if !self.is_concerned(firing) || !self.timer(&firing.name)?.is_some_and(fires) {
            return Ok(None);
        }
        let timer = self.remove_timer(&firing.name)?;
        // By the stream's clock, like the timer itself.
        let late = timer.as_ref().filter(|_| firing.what == What::Due);
        let late = late.map(|timer| fired_ns - timer.at_ns);
        self.timers.fired.extend(late);
        Ok(timer)
    }

    /// Whether a firing is one of this deployment, and not what an operator decided for another one
    /// of its name.
    pub fn is_concerned(&self, firing: &Firing) -> bool {
        firing.concerns(self.lineage)
    }

    /// How many timers are pending, with the batch so far.
    fn pending_timers(&self) -> u64 {
        let pending = i64::try_from(self.inner.timers.pending()).unwrap_or(i64::MAX);
        u64::try_from(pending.saturating_add(self.timers.more)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::position::{Checkpoint, StreamIdentity};
    use crate::state::{FORMAT, FORMAT_OWNED, Options};

    fn open(path: &Path) -> (Store, Writer) {
        let options = Options {
            timers_pending_max: 20,
            ..Options::default()
        };
        Store::open(path, options, |_| ()).expect("the state opens")
    }

    fn folder() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("state.redb");
        (folder, path)
    }

    fn timer(at_ns: u64) -> Timer {
        Timer {
            at_ns,
            set_by: 1,
            ..Timer::default()
        }
    }

    fn firing(name: &str, key: Option<&str>) -> Firing {
        Firing {
            name: name.to_owned(),
            at_ns: 0,
            key: key.map(str::to_owned),
            what: What::Due,
            lineage: None,
        }
    }

    fn publish(writer: &mut Writer, position: u64) {
        let stream = StreamIdentity {
            name: "s".to_owned(),
            created_ns: 1,
        };
        writer.publish(Checkpoint::at(position, stream));
    }

    fn set(writer: &mut Writer, name: &str, at_ns: u64) {
        writer
            .set_timer(name, &timer(at_ns))
            .expect("within limits");
    }

    fn names(store: &Store) -> Vec<(u64, String)> {
        let due = store.timers_after(None, 1_000).expect("reads");
        due.into_iter().map(|due| (due.at_ns, due.name)).collect()
    }

    fn shown(snapshot: &Snapshot) -> BTreeMap<String, u64> {
        let timers = snapshot.timers(None, 1_000).expect("reads");
        timers
            .into_iter()
            .map(|(name, timer)| (name, timer.at_ns))
            .collect()
    }

    #[test]
    fn timers_are_durable_with_their_entries_or_not_at_all() {
        let (_folder, path) = folder();
        let (store, mut writer) = open(&path);
        writer.begin();
        set(&mut writer, "b", 5);
        set(&mut writer, "a", 9);
        publish(&mut writer, 1);
        assert_eq!(names(&store), [], "what is not durable does not fire");
        store.flush().expect("commits");
        writer.begin();
        set(&mut writer, "a", 3);
        assert!(writer.remove_timer("b").expect("reads").is_some());
        publish(&mut writer, 2);
        assert_eq!(store.pending_timers(), 1);
        drop((store, writer));
        // A crash: the second step is gone, whole.
        let (store, mut writer) = open(&path);
        assert_eq!(
            names(&store),
            [(5, "b".to_owned()), (9, "a".to_owned())],
            "in the order of their times"
        );
        assert_eq!(store.pending_timers(), 2);
        writer.begin();
        set(&mut writer, "a", 3);
        publish(&mut writer, 2);
        store.flush().expect("commits");
        assert_eq!(names(&store), [(3, "a".to_owned()), (5, "b".to_owned())]);
        assert_eq!(
            store.due_timers(4, 10).expect("reads"),
            [Due {
                at_ns: 3,
                name: "a".to_owned(),
                depth: 0
            }]
        );
    }

    #[test]
    fn snapshot_and_copy_have_the_timers_of_their_position() {
        let (folder, path) = folder();
        let (store, mut writer) = open(&path);
        writer.begin();
        set(&mut writer, "a", 1);
        set(&mut writer, "b", 2);
        publish(&mut writer, 1);
        store.flush().expect("commits");
        writer.begin();
        set(&mut writer, "c", 3);
        writer.remove_timer("a").expect("reads");
        publish(&mut writer, 2);
        let snapshot = store.snapshot();
        writer.begin();
        set(&mut writer, "b", 7);
        publish(&mut writer, 3);
        let wanted = BTreeMap::from([("b".to_owned(), 2), ("c".to_owned(), 3)]);
        assert_eq!(shown(&snapshot), wanted);
        let copied = folder.path().join("copy.redb");
        super::super::copy(&snapshot, &copied).expect("copies");
        store.flush().expect("commits");
        assert_eq!(shown(&snapshot), wanted, "a commit does not change it");
        let (copied, _writer) = open(&copied);
        assert_eq!(shown(&copied.snapshot()), wanted);
        assert_eq!(names(&copied), [(2, "b".to_owned()), (3, "c".to_owned())]);
        assert_eq!(copied.pending_timers(), 2);
    }

    #[test]
    fn dropped_batch_changes_no_timer_and_a_firing_takes_only_what_is_due() {
        let (_folder, path) = folder();
        let (store, mut writer) = open(&path);
        writer.begin();
        set(&mut writer, "a", 10);
        publish(&mut writer, 1);
        writer.begin();
        assert!(
            writer
                .fire_timer(&firing("a", None), 10)
                .expect("reads")
                .is_some()
        );
        assert!(
            writer
                .fire_timer(&firing("a", None), 10)
                .expect("reads")
                .is_none(),
            "a second firing finds none"
        );
        writer.discard();
        writer.begin();
        assert!(
            writer
                .fire_timer(&firing("a", None), 9)
                .expect("reads")
                .is_none(),
            "too early"
        );
        assert_eq!(writer.timer("a").expect("reads"), Some(timer(10)));
        assert!(
            writer
                .fire_timer(&firing("a", None), 12)
                .expect("reads")
                .is_some()
        );
        publish(&mut writer, 2);
        assert_eq!((store.pending_timers(), store.take_fired()), (0, vec![2]));
    }

    #[test]
    fn a_firing_fires_no_timer_of_another_key() {
        let (_folder, path) = folder();
        let (store, mut writer) = open(&path);
        let ada = Timer {
            key: Some("ada".to_owned()),
            ..timer(5)
        };
        writer.begin();
        writer.set_timer("a", &ada).expect("within limits");
        set(&mut writer, "b", 5);
        publish(&mut writer, 1);
        store.flush().expect("commits");
        let due = store.due_timers(5, 10).expect("reads");
        let found = store.still_pending(&due).expect("reads");
        let keys: Vec<_> = found.into_iter().flatten().map(|timer| timer.key).collect();
        assert_eq!(keys, [Some("ada".to_owned()), None]);
        let moved = Due {
            at_ns: 4,
            ..due[0].clone()
        };
        assert_eq!(store.still_pending(&[moved]).expect("reads"), [None]);
        writer.begin();
        let mut fires = |name, key| {
            let fired = writer.fire_timer(&firing(name, key), 9).expect("reads");
            fired.is_some()
        };
        assert!(!fires("a", Some("bob")) && fires("a", Some("ada")));
        assert!(!fires("b", Some("ada")) && fires("b", Some("")));
    }

    #[test]
    fn an_operator_decides_about_the_timer_that_was_seen_and_no_other() {
        let (_folder, path) = folder();
        let (store, mut writer) = open(&path);
        writer.begin();
        set(&mut writer, "a", 50);
        let mut decide = |what, at_ns| {
            let decided = Firing {
                at_ns,
                what,
                ..firing("a", Some(""))
            };
            let found = writer.fire_timer(&decided, 9).expect("reads");
            found.map(|timer| timer.at_ns)
        };
        assert_eq!(decide(What::Now, 40), None, "it was set again since");
        assert_eq!(decide(What::Drop, 60), None);
        assert_eq!(decide(What::Due, 50), None, "too early");
        assert_eq!(decide(What::Now, 50), Some(50), "before its time");
        assert_eq!(decide(What::Drop, 50), None, "it is pending no more");
        set(&mut writer, "a", 50);
        let drop = Firing {
            at_ns: 50,
            what: What::Drop,
            ..firing("a", None)
        };
        assert!(writer.fire_timer(&drop, 9).expect("reads").is_some());
        publish(&mut writer, 1);
        assert_eq!((store.pending_timers(), store.take_fired()), (0, vec![]));
    }

    #[test]
    fn one_more_than_allowed_is_refused_by_name_and_a_replacement_is_not() {
        let (_folder, path) = folder();
        let (_store, mut writer) = open(&path);
        writer.begin();
        (0..20).for_each(|number| set(&mut writer, &format!("t{number}"), 1));
        set(&mut writer, "t7", 2);
        let refused = writer.set_timer("t20", &timer(1)).expect_err("too many");
        assert!(
            refused.to_string().starts_with("timers-pending"),
            "{refused}"
        );
        writer.remove_timer("t0").expect("reads");
        set(&mut writer, "t20", 1);
    }

    #[test]
    fn only_a_file_that_had_timers_has_the_format_that_older_releases_refuse() {
        let format = |path: &Path| {
            let database = redb::Database::open(path).expect("opens");
            let transaction = redb::ReadableDatabase::begin_read(&database).expect("begins");
            let meta = transaction.open_table(META).expect("is there");
            let format = meta.get("format").expect("reads").expect("is there");
            u32::from_be_bytes(format.value().try_into().expect("four bytes"))
        };
        let (_folder, path) = folder();
        let (store, mut writer) = open(&path);
        writer.begin();
        publish(&mut writer, 1);
        store.flush().expect("commits");
        drop((store, writer));
        assert_eq!(format(&path), FORMAT);
        let (store, mut writer) = open(&path);
        writer.begin();
        set(&mut writer, "a", 1);
        publish(&mut writer, 2);
        store.flush().expect("commits");
        writer.begin();
        writer.remove_timer("a").expect("reads");
        publish(&mut writer, 3);
        store.flush().expect("commits");
        drop((store, writer));
        assert_eq!(format(&path), FORMAT_OWNED);
    }

    /// Random changes, commits, crashes and reopenings against a map.
    #[test]
    fn timers_equal_a_map_whatever_is_committed_and_lost() {
        for seed in 0..30 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (_folder, path) = folder();
            let (mut store, mut writer) = open(&path);
            let (mut published, mut durable) = (BTreeMap::new(), BTreeMap::new());
            let mut position = 0;
            for _ in 0..120 {
                match random.u8(0..10) {
                    0 => {
                        store.flush().expect("commits");
                        durable = published.clone();
                    }
                    1 => {
                        drop((store, writer));
                        (store, writer) = open(&path);
                        published = durable.clone();
                        position = store.position();
                    }
                    _ => {
                        writer.begin();
                        let mut changed = published.clone();
                        for _ in 0..random.usize(1..6) {
                            let name = format!("t{}", random.u8(0..12));
                            if random.bool() {
                                let at_ns = random.u64(0..50);
                                set(&mut writer, &name, at_ns);
                                changed.insert(name, at_ns);
                            } else {
                                let removed = writer.remove_timer(&name).expect("reads");
                                assert_eq!(removed.map(|timer| timer.at_ns), changed.remove(&name));
                            }
                        }
                        if random.u8(0..4) == 0 {
                            writer.discard();
                        } else {
                            position += 1;
                            publish(&mut writer, position);
                            published = changed;
                        }
                    }
                }
                assert_eq!(shown(&store.snapshot()), published, "seed {seed}");
                assert_eq!(store.pending_timers(), published.len() as u64);
                let mut due: Vec<(u64, String)> = durable
                    .iter()
                    .map(|(name, at)| (*at, String::clone(name)))
                    .collect();
                due.sort();
                assert_eq!(names(&store), due, "seed {seed}");
            }
        }
    }
}
