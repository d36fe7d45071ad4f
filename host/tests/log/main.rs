//! The embedded log on real files, and its readers.
//!
//! - `append`: order, atomicity, duplicates, expectations, times, opening
//! - `retention`: by age and by bytes
//! - `readers`: resume, gap, divergence, tail, headers, CloudEvents
//! - `crash`: a killed process, a full disk

mod append;
mod crash;
mod readers;
mod retention;

use std::time::{Duration, Instant, SystemTime};

use foldstream::event::{Event, Payload};
use foldstream::log::{Appended, Error, Expectation, Log, NewEvent, Options};
use foldstream::subject::Pattern;
use tempfile::TempDir;

/// How long anything may take before a test gives up.
const DEADLINE: Duration = Duration::from_secs(60);

/// Applies retention as of now; returns how many events were removed.
fn trim(log: &Log) -> Result<u64, Error> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970");
    log.enforce_retention(u64::try_from(now.as_nanos()).ok())
}

/// A log in a folder of its own.
struct Place {
    folder: TempDir,
    options: Options,
}

impl Place {
    fn new() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            options,
        }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("events.redb")
    }

    fn open(&self) -> Log {
        Log::open(&self.path(), self.options.clone()).expect("the log opens")
    }
}

/// A new log, and its folder for as long.
struct Fresh {
    log: Log,
    _place: Place,
}

impl std::ops::Deref for Fresh {
    type Target = Log;

    fn deref(&self) -> &Log {
        &self.log
    }
}

fn fresh() -> Fresh {
    let place = Place::new();
    Fresh {
        log: place.open(),
        _place: place,
    }
}

fn event(subject: &str, data: &str) -> NewEvent {
    NewEvent {
        subject: subject.to_owned(),
        kind: None,
        id: None,
        time_ns: None,
        headers: Vec::new(),
        data: Payload::from(data),
    }
}

fn with_id(id: &str) -> NewEvent {
    NewEvent {
        id: Some(id.to_owned()),
        ..event("orders.1.placed", id)
    }
}

fn append(log: &Log, events: &[NewEvent]) -> Appended {
    log.append(events, &Expectation::default())
        .expect("the append succeeds")
}

/// Appends `count` events, whose data is the sequence that they get.
fn append_numbered(log: &Log, count: u64) {
    let next = log.info().last_sequence + 1;
    let events: Vec<_> = (next..next + count)
        .map(|number| event("numbers.all", &number.to_string()))
        .collect();
    append(log, &events);
}

fn expecting(pattern: &str, sequence: u64) -> Expectation {
    Expectation {
        last_subject_sequence: Some((parse(pattern), sequence)),
        ..Expectation::default()
    }
}

fn parse(pattern: &str) -> Pattern {
    Pattern::parse(pattern).expect("the pattern is sound")
}

/// All events that are there.
fn read_all(log: &Log) -> Vec<Event> {
    let (mut events, mut after) = (Vec::new(), 0);
    while after < log.info().last_sequence {
        let (mut page, through) = log
            .read(after, None, 1_000, 1 << 20)
            .expect("the log reads");
        assert!(through > after, "reading moves on");
        events.append(&mut page);
        after = through;
    }
    events
}

fn texts(events: &[Event]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event.data.as_str().expect("data is text"))
        .collect()
}

/// Tries again until it holds.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < DEADLINE, "{what} did not happen in time");
        std::thread::yield_now();
    }
}

fn is_conflict(outcome: &Result<Appended, Error>, wanted: u64) -> bool {
    matches!(outcome, Err(Error::Conflict { found, .. }) if *found == wanted)
}
