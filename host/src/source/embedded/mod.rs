//! Readers over the embedded log, with the semantics of a JetStream reader.

mod kind;
mod settings;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::warn;

use super::{
    Error, Info, Lost, Missing, OnMissing, Passed, Request, SourceState, StatusSender, Waiting,
    Whose, lost, report,
};
use crate::batch::Batch;
use crate::event::{Event, Headers};
use crate::log::{self, Cursor, Log, Opening, Run, Wanted};
use crate::position::{Checkpoint, EventMark, Start, StreamIdentity};
use crate::storage;
use crate::subject::SubjectSet;

pub use settings::EmbeddedSettings;

/// How many events to scan per event that a batch can hold. If matches are rare, the reader stops
/// after this many and returns an empty batch that only advances the position.
const LOOKED_PER_EVENT: usize = 16;
/// First and longest pause before a failed log is read again.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The embedded log as a source.
#[derive(Clone, Debug)]
pub struct Embedded {
    opening: Opening,
    on_missing: OnMissing,
}

impl Embedded {
    /// The source over a log.
    pub fn new(log: Log) -> Self {
        Self::over(Opening::done(log))
    }

    /// The source of a log that may still be opening.
    pub fn over(opening: Opening) -> Self {
        Self {
            opening,
            on_missing: OnMissing::Stop,
        }
    }

    /// What to do if events are gone that were not applied.
    #[must_use]
    pub fn on_missing(self, on_missing: OnMissing) -> Self {
        Self { on_missing, ..self }
    }

    /// What it does if events are gone that were not applied.
    pub fn what_is_missing(&self) -> OnMissing {
        self.on_missing
    }

    /// The sequences in a range that the log no longer has: the first ones, because of retention,
    /// and the last ones, if it was restored from an older copy.
    pub fn lost(&self, after: u64, through: u64) -> Result<Option<Lost>, log::Error> {
        let log = self.log()?;
        let (first, last) = (log.first_available(), log.info().last_sequence);
        // Both saturate: a part of the range that is not gone counts nothing.
        let front = first.saturating_sub(1).min(through).saturating_sub(after);
        let tail = through.saturating_sub(last.max(after));
        let count = front + tail;
        let from = if front > 0 { after + 1 } else { last + 1 };
        let to = if tail > 0 { through } else { after + front };
        let missing = Missing {
            from,
            to,
            count: Some(count),
        };
        let lost = Lost {
            stream: log.identity().name,
            missing,
            whose: Whose::Own,
            is_counted: false,
        };
        Ok((count > 0).then_some(lost))
    }

    /// Why it is not the log to which a checkpoint belongs; see [`super::Source::contradiction`].
    /// Blocking.
    pub fn contradiction(&self, checkpoint: &Checkpoint) -> Result<Option<Error>, log::Error> {
        let log = self.log()?;
        // A lost tail contradicts nothing.
        match resume(&log, checkpoint, &log.identity()) {
            Ok(()) | Err(Error::Truncated { .. }) => Ok(None),
            Err(Error::Log(error)) => Err(error),
            Err(error) => Ok(Some(error)),
        }
    }

    /// The log itself, for appends and reads; an error says why it is not open.
    pub fn log(&self) -> Result<Log, log::Error> {
        self.opening.log()
    }

    /// Name of its stream.
    pub fn stream(&self) -> String {
        self.log().map_or_else(
            |_| self.opening.name().to_owned(),
            |log| log.identity().name,
        )
    }

    /// Makes a reader.
    pub fn read(&self, request: Request, status: StatusSender) -> Reader {
        let accepts_through = self.on_missing.accepts_through(&request);
        Reader(Stage::Waiting {
            opening: self.opening.clone(),
            request: Arc::new(request),
            status,
            accepts_through,
        })
    }

    /// Time of the next event after a position with a matching subject, in nanoseconds since the
    /// Unix epoch. Blocking.
    pub fn time_behind(&self, position: u64, subjects: &SubjectSet) -> Waiting {
        let wanted = Wanted {
            after: position,
            subjects: Some(subjects),
            events_max: 1,
            // As many as a scan for a rare subject may take; beyond that the age stays unknown.
            looked_max: LOOKED_PER_EVENT * 1_000,
            bytes_max: usize::MAX,
            headers: Headers::Left,
        };
        let Ok(log) = self.log() else {
            return Waiting::Unknown;
        };
        // Asked first: what is appended meanwhile may be for it.
        let last = log.info().last_sequence;
        match log.run(&wanted, &mut None) {
            Ok(run) => match run.events.first() {
                Some(event) => Waiting::Since(event.time_ns),
                None if run.through >= last => Waiting::Nothing,
                None => Waiting::Unknown,
            },
            Err(_) => Waiting::Unknown,
        }
    }

    /// One event; if it does not exist, the last sequence of the log. Blocking.
    pub fn event(&self, sequence: u64) -> Result<Result<Event, u64>, log::Error> {
        let log = self.log()?;
        // The one after the sequence before it, if it has exactly this sequence.
        let (events, _) = log.read(sequence.saturating_sub(1), None, 1, usize::MAX)?;
        let found = events.into_iter().find(|event| event.sequence == sequence);
        Ok(found.ok_or_else(|| log.info().last_sequence))
    }

    /// A page of events. Blocking.
    pub fn page(&self, wanted: &super::Wanted) -> Result<super::Page, log::Error> {
        let super::Wanted {
            after,
            subjects,
            limit,
            bytes_max,
        } = wanted;
        let log = self.log()?;
        let (events, through) = log.read(*after, subjects.as_ref(), *limit, *bytes_max)?;
        let head = *log.head().borrow();
        Ok(super::Page {
            events,
            through,
            head,
        })
    }

    /// The current state of the log.
    pub fn info(&self) -> Info {
        let log = match self.log() {
            Ok(log) => log,
            Err(error) => return self.not_open(&error),
        };
        let info = log.info();
        Info {
            name: log.options().name.clone(),
            kind: "embedded",
            stream: log.identity().name,
            reachable: true,
            state: None,
            message: None,
            obstacle: None,
            first_sequence: Some(info.first_sequence),
            is_complete: Some(log.first_available() <= 1),
            last_sequence: Some(info.last_sequence),
            events: Some(info.events),
            bytes: Some(info.bytes),
            first_events: None,
            warnings: log.warnings(),
        }
    }

    /// The state of a log that is not open.
    fn not_open(&self, error: &log::Error) -> Info {
        Info {
            name: self.opening.name().to_owned(),
            kind: "embedded",
            stream: self.stream(),
            reachable: false,
            state: Some(SourceState::Connecting),
            message: Some(error.to_string()),
            obstacle: None,
            first_sequence: None,
            is_complete: None,
            last_sequence: None,
            events: None,
            bytes: None,
            first_events: None,
            warnings: Vec::new(),
        }
    }
}

/// A reader of the embedded log.
#[derive(Debug)]
pub struct Reader(Stage);

/// The stage of a reader.
#[derive(Debug)]
enum Stage {
    /// It waits until the log is open.
    Waiting {
        opening: Opening,
        request: Arc<Request>,
        status: StatusSender,
        accepts_through: u64,
    },
    Reading(Box<Reading>),
}

impl Reader {
    /// See [`super::Reader::next`].
    pub async fn next(&mut self) -> Result<Batch, Error> {
        loop {
            match &mut self.0 {
                Stage::Reading(reading) => return reading.next().await,
                Stage::Waiting {
                    opening,
                    request,
                    status,
                    accepts_through,
                } => {
                    // Cancel-safe: it only observes.
                    let log = opening
                        .opened(|why| report(status, SourceState::Connecting, Some(why)))
                        .await;
                    let reading =
                        Reading::new(log, Arc::clone(request), status.clone(), *accepts_through);
                    self.0 = Stage::Reading(Box::new(reading));
                }
            }
        }
    }
}

/// A reader of an open log.
///
/// While a batch is applied, the next one is read on a blocking thread.
#[derive(Debug)]
struct Reading {
    log: Log,
    stream: Arc<StreamIdentity>,
    head: watch::Receiver<u64>,
    request: Arc<Request>,
    status: StatusSender,
    /// The sequence up to which events may be missing.
    accepts_through: u64,
    /// The last sequence of the returned batches; none before the first.
    handed: Option<u64>,
    /// The last sequence that it has read, or passed over as missing; none before the first read.
    position: Option<u64>,
    /// What is missing since the last batch.
    missing: Vec<RangeInclusive<u64>>,
    passed: Passed,
    /// The running read. It stays here while it is awaited, so that a cancelled call loses nothing.
    fetch: Option<JoinHandle<Fetched>>,
    /// Where the last run ended in its chunk.
    place: Option<Cursor>,
    /// Before the next attempt to read a failed log.
    pause: Duration,
}

/// The result of a read.
#[derive(Debug)]
struct Fetched {
    after: u64,
    run: Result<Run, Error>,
    /// The last event that was scanned, if it did not match.
    last_seen: Option<EventMark>,
    place: Option<Cursor>,
    /// Whether it failed in a way that passes once the log is open again.
    passes: bool,
}

impl Reading {
    fn new(log: Log, request: Arc<Request>, status: StatusSender, accepts_through: u64) -> Self {
        Self {
            stream: Arc::new(log.identity()),
            head: log.head(),
            log,
            accepts_through,
            request,
            status,
            handed: None,
            position: None,
            missing: Vec::new(),
            passed: Passed::default(),
            fetch: None,
            place: None,
            pause: RETRY_PAUSE.0,
        }
    }

    async fn next(&mut self) -> Result<Batch, Error> {
        loop {
            if self.fetch.is_none() {
                // The first read also proves the checkpoint, so it happens even if nothing is new.
                self.wait_for_more().await;
                self.start_fetch();
            }
            let fetch = self.fetch.as_mut().expect("it was just started");
            // Cancel-safe: the handle stays in place until it has a result.
            let outcome = fetch.await;
            self.fetch = None;
            let fetched = match outcome {
                Ok(fetched) => fetched,
                // A panic, or the end of the runtime.
                Err(error) => {
                    let text = format!("reading was interrupted: {error}");
                    let error = storage::Error::because(text, error);
                    return Err(log::Error::Storage(error).into());
                }
            };
            self.place = fetched.place;
            match fetched.run {
                Ok(run) => {
                    if let Some(batch) = self.accept(fetched.after, run, fetched.last_seen)? {
                        self.passed.note(&self.stream.name, &batch);
                        return Ok(batch);
                    }
                }
                Err(error) if fetched.passes => {
                    self.report(SourceState::Reconnecting, Some(error.to_string()));
                    // Cancel-safe: a new call waits again, and reads the same.
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(RETRY_PAUSE.1);
                }
                Err(error) => return Err(self.stop(error)),
            }
        }
    }

    /// Waits until there is something after the position. It does not wait for the first batch,
    /// which proves that the log can be continued.
    async fn wait_for_more(&mut self) {
        // Missing sequences still have to be reported.
        let Some(position) = self
            .position
            .filter(|position| self.handed == Some(*position))
        else {
            return;
        };
        // Cancel-safe: checks the value itself, not whether it was seen.
        let more = self
            .head
            .wait_for(|head| *head > position)
            .await
            .map(|_| ());
        more.expect("the log, which this reader holds, keeps the sender");
    }

    fn start_fetch(&mut self) {
        let (log, request, stream) = (
            self.log.clone(),
            Arc::clone(&self.request),
            Arc::clone(&self.stream),
        );
        // The place in a chunk saves decoding it again; it is given back with the result.
        let (position, place, accepts) = (self.position, self.place.take(), self.accepts_through);
        self.fetch = Some(tokio::task::spawn_blocking(move || {
            let after = match position {
                Some(position) => Ok(position),
                None => begin(&log, &request, &stream, accepts),
            };
            fetch(&log, &request, after, place)
        }));
    }

    /// Builds a batch from a run, if it has anything, and starts the next read.
    fn accept(
        &mut self,
        after: u64,
        run: Run,
        last_seen: Option<EventMark>,
    ) -> Result<Option<Batch>, Error> {
        // Retention was faster than the reader.
        if run.first > after + 1 {
            return self.pass_gap(after + 1..=run.first - 1).map(|()| None);
        }
        self.pause = RETRY_PAUSE.0;
        self.report(SourceState::Reading, None);
        // The position has not moved, so there is no batch to return.
        if self.handed == Some(run.through) {
            return Ok(None);
        }
        self.position = Some(run.through);
        let missing = std::mem::take(&mut self.missing);
        // The first batch begins before what was missing, so that its count has a range.
        let after = self
            .handed
            .unwrap_or_else(|| missing.first().map_or(after, |range| range.start() - 1));
        self.handed = self.position;
        // While the caller applies this batch.
        if run.through < run.head {
            self.start_fetch();
        }
        Ok(Some(Batch {
            events: run.events,
            after,
            through: run.through,
            head: run.head,
            pending: run.head - run.through,
            stream: Arc::clone(&self.stream),
            last_seen,
            missing,
            overlooked: 0,
            passed_over: Vec::new(),
            left_out: Vec::new(),
        }))
    }

    /// Passes over what retention removed before it was read; an error unless that is accepted.
    fn pass_gap(&mut self, gone: RangeInclusive<u64>) -> Result<(), Error> {
        let chosen_freely = self.position.is_none()
            && self.request.resume.is_none()
            && self.request.begins_after.is_none();
        if chosen_freely && self.request.start == Start::FirstAvailable {
            // Retention was faster than the first read, which now starts at the new beginning.
            return Ok(());
        }
        let (from, to) = (
            (*gone.start()).max(self.accepts_through.saturating_add(1)),
            *gone.end(),
        );
        if from <= to {
            let missing = Missing {
                from,
                to,
                count: Some(to - from + 1),
            };
            return Err(self.stop(Error::Gap {
                stream: self.stream.name.clone(),
                missing,
                whose: (!self.request.subjects.takes_everything()).into(),
            }));
        }
        self.position = Some(to);
        // The next read begins behind the gap, and its batch reports it.
        self.missing.push(gone);
        Ok(())
    }

    fn stop(&self, error: Error) -> Error {
        self.report(
            SourceState::Stopped,
            Some(format!("{}: {error}", error.kind())),
        );
        error
    }

    fn report(&self, state: SourceState, message: Option<String>) {
        // Once for each trouble, not for each attempt.
        if state == SourceState::Reconnecting && self.status.borrow().state != state {
            lost(&self.status);
        }
        report(&self.status, state, message);
    }
}

/// Reads the run after a position.
fn fetch(
    log: &Log,
    request: &Request,
    after: Result<u64, Error>,
    mut place: Option<Cursor>,
) -> Fetched {
    let mut last_seen = None;
    let (after, run) = match after {
        Ok(after) => {
            let wanted = Wanted {
                after,
                subjects: Some(&request.subjects),
                events_max: request.limits.events.max(1),
                looked_max: request
                    .limits
                    .events
                    .max(1)
                    .saturating_mul(LOOKED_PER_EVENT),
                bytes_max: request.limits.bytes.max(1),
                headers: if request.wants_headers {
                    Headers::Wanted
                } else {
                    Headers::Left
                },
            };
            let run = log.run(&wanted, &mut place).and_then(|run| {
                let applied = run.events.last().map_or(after, |event| event.sequence);
                // What was scanned behind the last match is the later proof.
                if run.through > applied {
                    last_seen = mark(log, run.through)?;
                }
                Ok(run)
            });
            (after, run.map_err(Error::from))
        }
        Err(error) => (0, Err(error)),
    };
    // The log reopens itself; damage and other errors do not pass.
    let passes = matches!(run, Err(Error::Log(log::Error::Storage(_)))) && log.is_failed();
    Fetched {
        after,
        run,
        last_seen,
        place,
        passes,
    }
}

/// The mark of an event, if it exists.
fn mark(log: &Log, sequence: u64) -> Result<Option<EventMark>, log::Error> {
    let wanted = Wanted {
        after: sequence - 1,
        subjects: None,
        events_max: 1,
        looked_max: 1,
        bytes_max: usize::MAX,
        headers: Headers::Left,
    };
    let found = log.run(&wanted, &mut None)?.events.into_iter().next();
    Ok(found
        .filter(|event| event.sequence == sequence)
        .as_ref()
        .map(EventMark::of))
}

/// The position after which to read, with the proof that it belongs to this log.
fn begin(
    log: &Log,
    request: &Request,
    stream: &StreamIdentity,
    accepts_through: u64,
) -> Result<u64, Error> {
    if let Some(checkpoint) = &request.resume {
        resume(log, checkpoint, stream)?;
        return Ok(checkpoint.position);
    }
    let first = log.first_available();
    let begins_after = match request.start {
        Start::Beginning => Some(0),
        Start::FirstAvailable => request.begins_after,
    };
    match begins_after {
        // The beginning is gone, so a new state would lack it.
        Some(after) if first > after + 1 && accepts_through < first - 1 => {
            let from = accepts_through.max(after) + 1;
            let missing = Missing {
                from,
                to: first - 1,
                count: Some(first - from),
            };
            Err(Error::Incomplete {
                stream: stream.name.clone(),
                missing,
                whose: (!request.subjects.takes_everything()).into(),
            })
        }
        // The log was replaced by a shorter one.
        Some(position) if position > log.info().last_sequence => Err(Error::Truncated {
            stream: stream.name.clone(),
            last: log.info().last_sequence,
            position,
        }),
        Some(after) => Ok(after),
        None => Ok(first - 1),
    }
}

/// Proves that a checkpoint belongs to this log, as far as the log still can.
fn resume(log: &Log, checkpoint: &Checkpoint, stream: &StreamIdentity) -> Result<(), Error> {
    // A state to which nothing was applied, and that has seen nothing, belongs to no history yet.
    if checkpoint.position == 0 && checkpoint.marks().next().is_none() {
        return Ok(());
    }
    let mut is_proved = false;
    for expected in checkpoint.marks().filter(|mark| mark.sequence > 0) {
        // Events that are still there must be the ones that were read.
        // If retention removed the event, there is nothing to compare; the gap check still applies.
        match mark(log, expected.sequence)? {
            Some(found) if found == *expected => is_proved = true,
            Some(_) => {
                return Err(Error::Diverged(format!(
                    "event {} of stream {} is not the one that was read before: the log was \
                     restored from another history; restore the right log, or delete and deploy \
                     again",
                    expected.sequence, stream.name
                )));
            }
            None => {}
        }
    }
    if checkpoint.stream != *stream {
        if !is_proved {
            return Err(Error::Diverged(format!(
                "the state was built from stream {} created at {} ns, this is {} created at {} ns, \
                 and nothing that was read is in it; restore the right log, or delete and deploy \
                 again",
                checkpoint.stream.name,
                checkpoint.stream.created_ns,
                stream.name,
                stream.created_ns
            )));
        }
        warn!(
            stream = stream.name,
            before = checkpoint.stream.name,
            position = checkpoint.position,
            "the log has another name or creation time than before, but still has what was read \
             from it, so it is the same log"
        );
    }
    let last = log.info().last_sequence;
    if last < checkpoint.position {
        return Err(Error::Truncated {
            stream: stream.name.clone(),
            last,
            position: checkpoint.position,
        });
    }
    Ok(())
}
