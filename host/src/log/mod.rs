//! The embedded log: an append-only stream of events in one redb file.
//!
//! Events are stored in chunks (`chunk.rs`), appended by one caller for all
//! waiting callers (`append.rs`), read from snapshots (`read.rs`) and removed
//! only from the front (`retention.rs`), so that sequences never have gaps.
//! After a disk failure the file is closed and reopened; acknowledged events
//! are durable before the acknowledgement.

mod append;
mod chunk;
mod cursors;
mod encode;
mod file;
mod ids;
mod opening;
mod read;
mod removed_ids;
mod retention;
mod subjects;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Mutex, RwLock};
use redb::{Database, ReadableDatabase as _};
use tokio::sync::watch;
use tracing::{error, info};

pub(crate) use self::chunk::Cursor;
pub use self::cursors::CursorMove;
pub use self::encode::{
    APPEND_BYTES_MAX, APPEND_EVENTS_MAX, HEADER_NAME_BYTES_MAX, HEADER_VALUE_BYTES_MAX,
    HEADERS_MAX, ID_BYTES_MAX, KIND_BYTES_MAX,
};
pub use self::opening::Opening;
pub(crate) use self::read::{Run, Wanted};
use crate::atomic_file::{Displaced, Held};
use crate::event::{Event, Headers, Payload};
use crate::newest::Newest;
use crate::position::StreamIdentity;
use crate::room::{self, Room};
use crate::subject::{Pattern, SubjectSet};
use crate::{damage, storage, timestamp};

/// How far clocks of machines differ. Because times never go back, every event after one with a
/// later time gets that time, until the clock has reached it.
const FUTURE_MAX: Duration = Duration::from_secs(5 * 60);

/// Options of a log.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the stream.
    pub name: String,
    /// Events older than this are removed; none keeps all.
    pub max_age: Option<Duration>,
    /// The oldest events are removed while keys and values exceed this; none keeps all.
    pub max_bytes: Option<u64>,
    /// How long message ids are remembered; zero stores each event, also one that one append has
    /// twice.
    pub duplicate_window: Duration,
    /// How far the time of an event may be ahead of this machine's clock; none is any distance.
    pub future_max: Option<Duration>,
    /// Largest event, in bytes.
    pub event_bytes_max: usize,
    /// Cache of the file, in bytes.
    pub cache_bytes: usize,
    /// How much of the file is repaired, in percent, during a repair after an unclean stop.
    pub repair: Arc<Repair>,
    /// The disk space that the log shares with others; none is the disk of its file.
    pub room: Option<Room>,
}

/// The progress of the repair of a file; `None` if there is none.
#[derive(Debug, Default)]
pub struct Repair(watch::Sender<Option<u8>>);

impl Repair {
    /// The percentage.
    pub fn percent(&self) -> Option<u8> {
        *self.0.borrow()
    }

    /// The percentage, as it changes.
    pub(crate) fn follow(&self) -> watch::Receiver<Option<u8>> {
        self.0.subscribe()
    }

    /// Sets the percentage; returns whether it changed.
    pub(crate) fn set(&self, percent: Option<u8>) -> bool {
        self.0
            .send_if_modified(|known| std::mem::replace(known, percent) != percent)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "events".to_owned(),
            max_age: None,
            max_bytes: None,
            duplicate_window: Duration::from_secs(120),
            future_max: Some(FUTURE_MAX),
            event_bytes_max: 8 << 20,
            cache_bytes: 32 << 20,
            repair: Arc::default(),
            room: None,
        }
    }
}

/// An event to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// Subject without wildcards.
    pub subject: String,
    /// Type; none uses that of the headers or the subject, as for any source.
    pub kind: Option<String>,
    /// Message id for de-duplication.
    pub id: Option<String>,
    /// Time in nanoseconds since the Unix epoch; none is now. A time earlier than that of the
    /// previous event is raised to that.
    pub time_ns: Option<u64>,
    /// Headers, by any name; stored by lower-case name.
    pub headers: Vec<(String, String)>,
    /// Data.
    pub data: Payload,
}

impl NewEvent {
    /// Whether a log with the default options stores it; an error is [`Error::Invalid`]. Its time
    /// is not looked at.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let options = Options {
            future_max: None,
            ..Options::default()
        };
        encode::Encoding::of(std::slice::from_ref(self), &options, 0).map(drop)
    }
}

/// Expectations of an append.
#[derive(Clone, Debug, Default)]
pub struct Expectation {
    /// The log's last sequence.
    pub last_sequence: Option<u64>,
    /// The last sequence under a pattern.
    pub last_subject_sequence: Option<(Pattern, u64)>,
    /// That no event has a time earlier than that of the previous event.
    pub times_rise: bool,
    /// Where cursors are, and where they move to in the same commit.
    pub cursors: Vec<CursorMove>,
}

/// The result of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// One per event: its sequence, or that of the event with the same id.
    pub sequences: Vec<u64>,
    /// How many were duplicates.
    pub duplicates: u64,
    /// How many got a later time than requested: that of the previous event, because times never go
    /// back.
    pub times_raised: u64,
    /// Last sequence now.
    pub last_sequence: u64,
}

/// Figures of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// First sequence that still exists; 0 if empty. `last_sequence` keeps its value even after
    /// retention has removed everything.
    pub first_sequence: u64,
    /// Last sequence ever assigned.
    pub last_sequence: u64,
    /// Number of events.
    pub events: u64,
    /// Bytes of subjects, headers and data.
    pub bytes: u64,
}

/// Why the log refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be opened.
    #[error("cannot open the embedded log: {0}")]
    Open(#[source] storage::Error),
    /// The file is still being opened.
    #[error("{0}")]
    NotOpen(String),
    /// An expected sequence did not hold.
    #[error(
        "expected last sequence {expected}, found {found}; read the log, decide again and append \
         again"
    )]
    Conflict {
        /// What the caller expected.
        expected: u64,
        /// What the log has.
        found: u64,
    },
    /// A cursor is not where it was expected.
    #[error("cursor {0} is not where it was expected; read it again")]
    CursorMoved(String),
    /// An event has a time earlier than that of the previous event, and times were expected to
    /// rise.
    #[error(
        "event {index} is refused: its time {} is before {}, the time of the event before it, and \
         the times of a log never go back; append it with times=raise to store it with the later \
         time, or with times=ignore to store all under the time of the append",
        timestamp::format_ns(*asked_ns), timestamp::format_ns(*last_ns)
    )]
    Time {
        /// Its index in the request.
        index: usize,
        /// Its time, in nanoseconds since the Unix epoch.
        asked_ns: u64,
        /// The time of the previous event.
        last_ns: u64,
    },
    /// An event is not valid.
    #[error("event {index} is refused: {message}")]
    Invalid {
        /// Its index in the request.
        index: usize,
        /// Why, and what to do.
        message: String,
    },
    /// The disk has too little room: nothing was appended, and the log can still be read.
    #[error("the embedded log accepts no events: {0}")]
    Full(#[source] room::Shortage),
    /// The file is no longer in its place: nothing was appended, and the log can be read as before.
    #[error(transparent)]
    Displaced(#[from] Displaced),
    /// The disk or the file failed; the log must be reopened.
    #[error("embedded log failed: {0}")]
    Storage(#[source] storage::Error),
}

/// Checks the log in a file by reading all of it. A damaged file that has an intact older commit
/// goes back to that. Blocking, and slow for a large file.
pub fn check(path: &Path) -> Result<bool, Error> {
    file::check(path)
}

/// An embedded log. Cloning shares it.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    held: Held,
    newest: Newest,
    /// The last sequence that was noted for the next start.
    noted: AtomicU64,
    options: Options,
    identity: StreamIdentity,
    /// Readers share it for the length of a read; reopening takes it exclusively, because redb
    /// opens a file only once. None if the file can't be opened.
    file: RwLock<Option<damage::Open<Database>>>,
    /// How often the file was opened, so that a reader does not close a file that another has just
    /// reopened.
    opened: AtomicU64,
    /// Serialises commits, retention and reopening. Taken before `file`, never while `view` is
    /// held.
    writer: Mutex<Slot>,
    queue: append::Queue,
    /// The durable state; held only to copy it.
    view: Mutex<View>,
    head: watch::Sender<u64>,
}

/// The writer, unless the log has failed.
struct Slot {
    writer: Option<append::Writer>,
    failed: Option<(Instant, storage::Error)>,
}

/// The durable state of a log.
#[derive(Clone, Copy, Debug)]
struct View {
    first_sequence: u64,
    last_sequence: u64,
    /// Bytes of all events since sequence 1.
    bytes: u64,
    /// Bytes of those before `first_sequence`.
    bytes_before: u64,
}

impl Log {
    /// Opens or creates the log at `path`; refuses one that ends before an event that it was known
    /// to have. Blocking.
    pub fn open(path: &Path, options: Options) -> Result<Self, Error> {
        Self::open_at(path, options, now_ns())
    }

    fn open_at(path: &Path, options: Options, now_ns: u64) -> Result<Self, Error> {
        let opened = file::open(path, &options, now_ns)?;
        let view = View::of(&opened);
        let newest = Newest::of(path);
        newest
            .check("event", view.last_sequence)
            .map_err(|fell_back| Error::Open(storage::Error::of(fell_back)))?;
        newest.note(view.last_sequence);
        let shared = Shared {
            path: path.to_owned(),
            newest,
            noted: AtomicU64::new(view.last_sequence),
            options,
            identity: opened.identity,
            held: Held::of(path)
                .map_err(|error| Error::Open(storage::Error::of_file(path, error)))?,
            file: RwLock::new(Some(opened.database)),
            opened: AtomicU64::new(1),
            writer: Mutex::new(Slot {
                writer: Some(opened.writer),
                failed: None,
            }),
            queue: append::Queue::default(),
            view: Mutex::new(view),
            head: watch::Sender::new(view.last_sequence),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The identity of its history.
    pub fn identity(&self) -> StreamIdentity {
        self.shared.identity.clone()
    }

    /// The options with which it was opened.
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// Appends all events or none, durably. Blocking; concurrent callers share commits.
    ///
    /// An event with the message id of one appended within the duplicate window is not stored
    /// again. A request whose events are all duplicates succeeds whatever it expects, because it
    /// counts as a repetition. After [`Error::Storage`] the events may be stored or not; ids make
    /// it safe to append them again.
    pub fn append(
        &self,
        events: &[NewEvent],
        expectation: &Expectation,
    ) -> Result<Appended, Error> {
        self.append_all(events, expectation)
    }

    /// Up to `limit` matching events (all without a pattern) and about `bytes_max` bytes after a
    /// sequence, with the last sequence that was examined. Blocking; examines at most 16 × `limit`
    /// events. Continues after events that retention removed.
    pub fn read(
        &self,
        after: u64,
        subjects: Option<&SubjectSet>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<(Vec<Event>, u64), Error> {
        let events_max = limit.max(1);
        let looked_max = events_max.saturating_mul(16);
        let bytes_max = bytes_max.max(1);
        let mut wanted = Wanted {
            after,
            subjects,
            events_max,
            looked_max,
            bytes_max,
            headers: Headers::Wanted,
        };
        // Retention may remove the beginning while this reads; then it continues behind that.
        loop {
            let run = self.run(&wanted, &mut None)?;
            if run.first <= wanted.after.saturating_add(1) {
                return Ok((run.events, run.through));
            }
            wanted.after = run.first - 1;
        }
    }

    /// The figures of the log.
    pub fn info(&self) -> Info {
        let view = self.view();
        let events = view.last_sequence + 1 - view.first_sequence;
        Info {
            // An empty log has no first sequence.
            first_sequence: if events == 0 { 0 } else { view.first_sequence },
            last_sequence: view.last_sequence,
            events,
            bytes: view.bytes - view.bytes_before,
        }
    }

    /// Why the log cannot do everything that its options promise, for operators.
    pub fn warnings(&self) -> Vec<String> {
        // Not waited for: a commit may take long, and this is asked for often.
        let Some(slot) = self.shared.writer.try_lock() else {
            return Vec::new();
        };
        let mut warnings: Vec<String> = self
            .shared
            .held
            .check()
            .err()
            .iter()
            .map(ToString::to_string)
            .collect();
        if let Some((_, message)) = &slot.failed {
            warnings.push(format!(
                "the embedded log failed and will be reopened by the next append: {message}"
            ));
        }
        let writer = slot.writer.as_ref();
        warnings.extend(writer.and_then(|writer| writer.ahead(now_ns())));
        if let Some(window) = writer.and_then(|writer| writer.ids.shortened()) {
            warnings.push(format!(
                "message ids are remembered for only {} s of the duplicate window of {} s, because \
                 there are more than {}; shorten the window",
                window.as_secs(),
                self.shared.options.duplicate_window.as_secs(),
                ids::IDS_MAX
            ));
        }
        warnings
    }

    /// The last sequence, as it rises.
    pub fn head(&self) -> watch::Receiver<u64> {
        self.shared.head.subscribe()
    }

    /// Notes how far the log has come, for the next start. Called by a timer of the host, and at
    /// its end: events that were appended after the last note are missed only by readers. Blocking.
    pub fn note_newest(&self) {
        let last = self.view().last_sequence;
        // Once for each value, if several callers come at once.
        if self.shared.noted.swap(last, Ordering::AcqRel) != last {
            self.shared.newest.note(last);
        }
    }

    /// Applies retention; returns how many events were removed. `now_ns` is the time of the clock,
    /// in nanoseconds since the Unix epoch; without it, nothing is removed by age. Called by a timer
    /// of the host. Blocking.
    pub fn enforce_retention(&self, now_ns: Option<u64>) -> Result<u64, Error> {
        self.trim_all(now_ns)
    }

    /// A view of the whole file as of its last commit, for a copy of it.
    pub fn frozen(&self) -> Result<redb::ReadTransaction, Error> {
        let file = self.shared.file.read();
        let database = file
            .as_ref()
            .ok_or_else(|| storage::Error::failed_before("it failed and is not open again yet"))
            .map_err(Error::Storage)?;
        database
            .begin_read()
            .map_err(|error| Error::from(file::Failure::from(error)))
    }

    /// The sequence of the first event, or of the next one if there is none.
    pub(crate) fn first_available(&self) -> u64 {
        self.view().first_sequence
    }

    /// Whether the file has failed and was not reopened yet.
    pub(crate) fn is_failed(&self) -> bool {
        self.shared.writer.lock().writer.is_none()
    }

    fn view(&self) -> View {
        *self.shared.view.lock()
    }

    /// Publishes what became durable.
    fn publish(&self, view: View) {
        // The view first: a reader that the head wakes looks at it.
        *self.shared.view.lock() = view;
        self.shared.head.send_if_modified(|head| {
            std::mem::replace(head, view.last_sequence) != view.last_sequence
        });
        // The timer comes too late if a new log loses its whole file within its first seconds.
        if self.shared.noted.load(Ordering::Acquire) == 0 {
            self.note_newest();
        }
    }

    fn opened(&self) -> u64 {
        self.shared.opened.load(Ordering::Acquire)
    }

    /// Works on the open file. A failure or a panic leaves no writer: the next call reopens the
    /// file and reads what is there.
    fn with_writer<T>(
        &self,
        slot: &mut Slot,
        work: impl FnOnce(&Database, &mut append::Writer) -> Result<T, file::Failure>,
    ) -> Result<T, file::Failure> {
        // A log that has failed before is opened again here.
        self.recover(slot)?;
        // Taken out: if the work fails or panics, no writer is left.
        let mut writer = slot.writer.take().expect("a recovered slot has a writer");
        let file = self.shared.file.read();
        let database = file
            .as_ref()
            .expect("where there is a writer, the file is open");
        match file::guarded(|| work(database, &mut writer)) {
            Ok(result) => {
                slot.writer = Some(writer);
                Ok(result)
            }
            Err(failure) => {
                error!(
                    log = self.shared.identity.name,
                    %failure,
                    "embedded log failed; reopening it"
                );
                let failure = storage::Error::from(failure);
                slot.failed = Some((Instant::now(), failure.clone()));
                Err(failure.into())
            }
        }
    }

    /// Reopens the file if it has failed, at most once per [`file::REOPEN_PAUSE`].
    fn recover(&self, slot: &mut Slot) -> Result<(), file::Failure> {
        if slot.writer.is_some() {
            return Ok(());
        }
        // Not more often: on a full disk each opening would repair the file.
        if let Some((at, failure)) = &slot.failed
            && at.elapsed() < file::REOPEN_PAUSE
        {
            let text = format!("it failed a moment ago: {failure}");
            return Err(storage::Error::because(text, failure.clone()).into());
        }
        // If the file is gone, opening it would create it again.
        self.shared.held.check().map_err(storage::Error::of)?;
        // Waits for all readers, as redb opens a file only once.
        let mut file = self.shared.file.write();
        *file = None;
        match file::open(&self.shared.path, &self.shared.options, now_ns()) {
            Ok(opened)
                if opened.identity == self.shared.identity && !self.view().is_ahead_of(&opened) =>
            {
                info!(
                    log = self.shared.identity.name,
                    "embedded log is open again"
                );
                self.publish(View::of(&opened));
                *file = Some(opened.database);
                // After the file is in place: a reader that failed on the old one has the old number,
                // and does not close this one.
                self.shared.opened.fetch_add(1, Ordering::Release);
                *slot = Slot {
                    writer: Some(opened.writer),
                    failed: None,
                };
                Ok(())
            }
            // The file is closed and stays so until the next attempt.
            outcome => {
                let failure = outcome.map_or_else(storage::Error::of, |_| {
                    storage::Error::new(
                        "its file lost events that were durable, or is another one; restore it \
                         and restart",
                    )
                });
                slot.failed = Some((Instant::now(), failure.clone()));
                Err(failure.into())
            }
        }
    }

    /// Reopens the file after a failed read, unless somebody did since `opened` was read.
    fn reopen(&self, opened: u64, failure: &file::Failure) -> Result<(), file::Failure> {
        let mut slot = self.shared.writer.lock();
        // Another reader may have reopened it meanwhile.
        if self.opened() == opened && slot.writer.take().is_some() {
            error!(
                log = self.shared.identity.name,
                %failure,
                "cannot read the embedded log; reopening it"
            );
        }
        self.recover(&mut slot)
    }
}

impl View {
    fn of(opened: &file::Opened) -> Self {
        Self {
            first_sequence: opened.trim.first_sequence,
            last_sequence: opened.writer.last_sequence,
            bytes: opened.writer.bytes,
            bytes_before: opened.trim.bytes_before,
        }
    }

    /// Whether an opened file lacks data that was durable.
    fn is_ahead_of(&self, opened: &file::Opened) -> bool {
        self.last_sequence > opened.writer.last_sequence
            || self.first_sequence > opened.trim.first_sequence
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Log")
            .field("path", &self.shared.path)
            .field("view", &self.view())
            .finish()
    }
}

/// The wall clock, in nanoseconds since the Unix epoch.
fn now_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_is_no_longer_after_the_clock_steps_back() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = Options {
            duplicate_window: Duration::from_millis(30),
            ..Options::default()
        };
        // Opened while the clock is an hour ahead; then it is corrected.
        let ahead = now_ns() + 3_600_000_000_000;
        let path = folder.path().join("events.redb");
        let log = Log::open_at(&path, options.clone(), ahead).expect("opens");
        let event = NewEvent {
            subject: "orders.a".to_owned(),
            kind: None,
            id: Some("a".to_owned()),
            time_ns: None,
            headers: Vec::new(),
            data: Payload::from("{}"),
        };
        let mut is_stored = |log: &Log| {
            let appended = log.append(std::slice::from_ref(&event), &Expectation::default());
            appended.expect("it is appended").duplicates == 0
        };
        let eventually_stored = |log: Log, is_stored: &mut dyn FnMut(&Log) -> bool| {
            let until = Instant::now() + Duration::from_secs(20);
            while !is_stored(&log) {
                assert!(Instant::now() < until, "the id is remembered for too long");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        assert!(is_stored(&log));
        eventually_stored(log, &mut is_stored);
        // Its append was ahead of the clock as well.
        let log = Log::open(&path, options).expect("opens");
        eventually_stored(log, &mut is_stored);
    }
}
