//! Retention: removes the oldest events, a limited number per commit, so that
//! appends get their turn.

use std::collections::BTreeSet;

use redb::{Database, ReadableTable};

use super::append::Writer;
use super::chunk::Builder;
use super::file::{self, CHUNKS, Failure, SUBJECTS, Trim};
use super::{Error, Log, Options, View, removed_ids};

/// Most events removed per commit: some 50 ms of work.
const TRIM_EVENTS_MAX: u64 = 10_000;

impl Log {
    pub(super) fn trim_all(&self, now_ns: Option<u64>) -> Result<u64, Error> {
        let options = &self.shared.options;
        let limits = Limits::of(options, now_ns);
        if limits.remove_nothing() {
            return Ok(0);
        }
        let before = self.view().first_sequence;
        // The lock is released after each commit, so appends get in between.
        loop {
            let mut slot = self.shared.writer.lock();
            let view = self.view();
            let trimmed = self.with_writer(&mut slot, |database, writer| {
                trim(database, writer, &view, &limits)
            })?;
            let Some(view) = trimmed else {
                return Ok(view.first_sequence - before);
            };
            self.publish(view);
        }
    }
}

/// What may stay.
struct Limits {
    /// Events from before this time go, in nanoseconds since the Unix epoch.
    oldest_ns: u64,
    /// What the events may take.
    bytes: u64,
}

impl Limits {
    /// Without a time, nothing is too old.
    fn of(options: &Options, now_ns: Option<u64>) -> Self {
        let oldest_ns = options.max_age.zip(now_ns).map_or(0, |(age, now_ns)| {
            now_ns.saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX))
        });
        Self {
            oldest_ns,
            bytes: options.max_bytes.unwrap_or(u64::MAX),
        }
    }

    fn remove_nothing(&self) -> bool {
        self.oldest_ns == 0 && self.bytes == u64::MAX
    }
}

/// The events to remove.
struct Expired {
    /// The first sequence to keep.
    first: u64,
    bytes: u64,
    chunks: Vec<u64>,
    subjects: BTreeSet<Box<str>>,
}

/// Removes expired events, up to the limit; none if there are none.
fn trim(
    database: &Database,
    writer: &mut Writer,
    view: &View,
    limits: &Limits,
) -> Result<Option<View>, Failure> {
    let transaction = file::begin_write(database, view)?;
    let mut chunks = transaction.open_table(CHUNKS)?;
    let expired = find(&chunks, view, limits)?;
    // The oldest event is still to be kept.
    if expired.first == view.first_sequence {
        drop(chunks);
        transaction.abort()?;
        return Ok(None);
    }
    for first in &expired.chunks {
        chunks.remove(first)?;
    }
    drop(chunks);
    // A producer may still repeat one of these events.
    writer.ids.expire(writer.ids.now_ns());
    removed_ids::keep(
        &transaction,
        &writer.ids,
        view.first_sequence..expired.first,
    )?;
    // A subject whose last event goes has none: an append that expects none may follow.
    let mut tree = transaction.open_table(SUBJECTS)?;
    for subject in &expired.subjects {
        writer.subjects.forget(subject, expired.first, &mut tree)?;
    }
    drop(tree);
    // Written although events remain: without any, it alone says where the log ends.
    let trim = Trim {
        first_sequence: expired.first,
        bytes_before: view.bytes_before + expired.bytes,
        last_sequence: writer.last_sequence,
        last_time_ns: writer.last_time_ns,
    };
    trim.store(&transaction)?;
    transaction.commit()?;
    // The last chunk is gone as well; the next event begins a new one.
    if expired.chunks.contains(&writer.tail.first()) {
        writer.tail = Builder::new(writer.last_sequence + 1);
    }
    Ok(Some(View {
        first_sequence: trim.first_sequence,
        bytes_before: trim.bytes_before,
        ..*view
    }))
}

/// Finds events from the front that are too old, or with which the log is too large.
fn find(
    chunks: &impl ReadableTable<u64, &'static [u8]>,
    view: &View,
    limits: &Limits,
) -> Result<Expired, Failure> {
    let mut expired = Expired {
        first: view.first_sequence,
        bytes: 0,
        chunks: Vec::new(),
        subjects: BTreeSet::new(),
    };
    for row in chunks.iter()? {
        let mut events = file::cursor(&row?)?;
        let chunk = events.next_sequence();
        while let Some(event) = events.next()? {
            // A chunk may have been removed in part: its row stays until its last event goes.
            if event.sequence < expired.first {
                continue;
            }
            // What the log would have without the events found so far.
            let left = view.bytes - view.bytes_before - expired.bytes;
            let enough = expired.first - view.first_sequence == TRIM_EVENTS_MAX;
            if enough || (event.time_ns >= limits.oldest_ns && left <= limits.bytes) {
                return Ok(expired);
            }
            expired.bytes += event.bytes(&events)?;
            expired.first = event.sequence + 1;
            let subject = events.subject(&event)?;
            // Looked up before it is copied: most events repeat a subject.
            if !expired.subjects.contains(subject) {
                expired.subjects.insert(subject.into());
            }
        }
        // All of its events are too old, so its row can go.
        expired.chunks.push(chunk);
    }
    Ok(expired)
}
