//! Readers over the embedded log, with the semantics of a JetStream reader.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Error, Request, StatusSender, lost, tell};
use crate::api::{SourceInfo, SourceState, Start};
use crate::batch::Batch;
use crate::event::Event;
use crate::log::{self, Cursor, Headers, Log, Run, Wanted};
use crate::position::{Checkpoint, EventMark, StreamIdentity};
use crate::subject::SubjectSet;

/// Events looked at for each that a batch may hold: with a rare subject, so many are passed before a batch without
/// events moves the position.
const LOOKED_PER_EVENT: usize = 16;
/// First and longest pause before a failed log is read again.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The embedded log as a source.
#[derive(Clone, Debug)]
pub struct Embedded {
    log: Log,
}

impl Embedded {
    /// The source over a log.
    pub fn new(log: Log) -> Self {
        Self { log }
    }

    /// The log itself, to append to and to read from.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Makes a reader.
    pub fn read(&self, request: Request, status: StatusSender) -> Reader {
        Reader {
            stream: Arc::new(self.log.identity()),
            head: self.log.head(),
            log: self.log.clone(),
            request: Arc::new(request),
            status,
            position: None,
            fetch: None,
            place: None,
            pause: RETRY_PAUSE.0,
        }
    }

    /// Time of the next event behind a position that subjects match, in nanoseconds since the Unix epoch. Blocking.
    pub fn time_behind(&self, position: u64, subjects: &SubjectSet) -> Option<u64> {
        let wanted = Wanted {
            after: position,
            subjects: Some(subjects),
            events_max: 1,
            looked_max: LOOKED_PER_EVENT * 1_000,
            bytes_max: usize::MAX,
            headers: Headers::Left,
        };
        let run = self.log.run(&wanted, &mut None).ok()?;
        run.events.first().map(|event| event.time_ns)
    }

    /// One event; where there is none, the last sequence of the log. Blocking.
    pub fn event(&self, sequence: u64) -> Result<Result<Event, u64>, log::Error> {
        let (events, _) = self.log.read(sequence.saturating_sub(1), None, 1, usize::MAX)?;
        let found = events.into_iter().find(|event| event.sequence == sequence);
        Ok(found.ok_or_else(|| self.log.info().last_sequence))
    }

    /// A page of events. Blocking.
    pub fn page(&self, wanted: &super::Wanted) -> Result<super::Page, log::Error> {
        let super::Wanted { after, subjects, limit, bytes_max } = wanted;
        let (events, through) = self.log.read(*after, subjects.as_ref(), *limit, *bytes_max)?;
        let head = *self.log.head().borrow();
        Ok(super::Page { events, through, head })
    }

    /// What the log is like just now.
    pub fn info(&self) -> SourceInfo {
        let info = self.log.info();
        SourceInfo {
            name: self.log.options().name.clone(),
            kind: "embedded".to_owned(),
            stream: self.log.identity().name,
            reachable: true,
            state: None,
            message: None,
            first_sequence: Some(info.first_sequence),
            is_complete: Some(self.log.first_available() <= 1),
            last_sequence: Some(info.last_sequence),
            events: Some(info.events),
            bytes: Some(info.bytes),
            warnings: self.log.warnings(),
        }
    }
}

/// A reader of the embedded log.
///
/// While a batch is applied, the next one is read on a blocking thread.
#[derive(Debug)]
pub struct Reader {
    log: Log,
    stream: Arc<StreamIdentity>,
    head: watch::Receiver<u64>,
    request: Arc<Request>,
    status: StatusSender,
    /// Through which sequence batches were handed out; none before the first.
    position: Option<u64>,
    /// The read under way. It stays here while it is awaited, so that a cancelled call loses nothing.
    fetch: Option<JoinHandle<Fetched>>,
    /// Where the last run ended in its chunk.
    place: Option<Cursor>,
    /// Before the next attempt to read a failed log.
    pause: Duration,
}

/// What a read brought.
#[derive(Debug)]
struct Fetched {
    after: u64,
    run: Result<Run, Error>,
    place: Option<Cursor>,
    /// Whether it failed in a way that passes once the log is open again.
    passes: bool,
}

impl Reader {
    /// See [`super::Reader::next`].
    pub async fn next(&mut self) -> Result<Batch, Error> {
        loop {
            if self.fetch.is_none() {
                self.wait_for_more().await;
                self.start_fetch();
            }
            let fetch = self.fetch.as_mut().expect("it was just started");
            // Cancel-safe: the handle stays in place until it has an outcome.
            let outcome = fetch.await;
            self.fetch = None;
            let fetched = match outcome {
                Ok(fetched) => fetched,
                Err(error) => return Err(log::Error::Storage(format!("reading broke off: {error}")).into()),
            };
            self.place = fetched.place;
            match fetched.run {
                Ok(run) => {
                    if let Some(batch) = self.accept(fetched.after, run)? {
                        return Ok(batch);
                    }
                }
                Err(error) if fetched.passes => {
                    self.tell(SourceState::Reconnecting, Some(error.to_string()));
                    // Cancel-safe: a call that begins anew waits anew, and reads the same.
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(RETRY_PAUSE.1);
                }
                Err(error) => return Err(self.stop(error)),
            }
        }
    }

    /// Waits until there is something behind the position. Before the first batch it does not wait: that one proves that
    /// the log can be continued.
    async fn wait_for_more(&mut self) {
        let Some(position) = self.position else { return };
        // Cancel-safe: looks at the value itself, not at whether it was seen.
        let more = self.head.wait_for(|head| *head > position).await.map(|_| ());
        more.expect("the log, which this reader holds, keeps the sender");
    }

    fn start_fetch(&mut self) {
        let (log, request, stream) = (self.log.clone(), Arc::clone(&self.request), Arc::clone(&self.stream));
        let (position, place) = (self.position, self.place.take());
        self.fetch = Some(tokio::task::spawn_blocking(move || fetch(&log, &request, &stream, position, place)));
    }

    /// Makes a batch of a run, if it brought anything, and starts reading the next one.
    fn accept(&mut self, after: u64, run: Run) -> Result<Option<Batch>, Error> {
        if run.first > after + 1 {
            let chosen_freely = self.position.is_none() && self.request.resume.is_none();
            if chosen_freely && self.request.start == Start::FirstAvailable {
                // Retention was faster than the first read, which goes to the new beginning now.
                return Ok(None);
            }
            let gap = Error::Gap { stream: self.stream.name.clone(), from: after + 1, to: run.first - 1 };
            return Err(self.stop(gap));
        }
        self.pause = RETRY_PAUSE.0;
        self.tell(SourceState::Reading, None);
        let after = self.position.unwrap_or(after);
        if self.position == Some(run.through) {
            return Ok(None);
        }
        self.position = Some(run.through);
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
            last_seen: None,
            missing: Vec::new(),
        }))
    }

    fn stop(&self, error: Error) -> Error {
        self.tell(SourceState::Stopped, Some(error.to_string()));
        error
    }

    fn tell(&self, state: SourceState, message: Option<String>) {
        if state == SourceState::Reconnecting && self.status.borrow().state != state {
            lost(&self.status);
        }
        tell(&self.status, state, message);
    }
}

/// Reads the run behind a position; the first time, finds the position and proves that the log is the one it counts in.
fn fetch(
    log: &Log,
    request: &Request,
    stream: &StreamIdentity,
    position: Option<u64>,
    mut place: Option<Cursor>,
) -> Fetched {
    let after = match position {
        Some(position) => Ok(position),
        None => begin(log, request, stream),
    };
    let (after, run) = match after {
        Ok(after) => {
            let wanted = Wanted {
                after,
                subjects: Some(&request.subjects),
                events_max: request.limits.events.max(1),
                looked_max: request.limits.events.max(1).saturating_mul(LOOKED_PER_EVENT),
                bytes_max: request.limits.bytes.max(1),
                headers: if request.wants_headers { Headers::Wanted } else { Headers::Left },
            };
            (after, log.run(&wanted, &mut place).map_err(Error::from))
        }
        Err(error) => (0, Err(error)),
    };
    let passes = matches!(run, Err(Error::Log(log::Error::Storage(_)))) && log.is_failed();
    Fetched { after, run, place, passes }
}

/// The position behind which reading begins.
fn begin(log: &Log, request: &Request, stream: &StreamIdentity) -> Result<u64, Error> {
    if let Some(checkpoint) = &request.resume {
        resume(log, checkpoint, stream)?;
        return Ok(checkpoint.position);
    }
    let first = log.first_available();
    match request.start {
        Start::Beginning if first > 1 => Err(Error::Incomplete { stream: stream.name.clone(), first }),
        Start::Beginning => Ok(0),
        Start::FirstAvailable => Ok(first - 1),
    }
}

/// Proves that a checkpoint counts in this log, as far as the log still can.
fn resume(log: &Log, checkpoint: &Checkpoint, stream: &StreamIdentity) -> Result<(), Error> {
    if checkpoint.stream != *stream {
        return Err(Error::Diverged(format!(
            "the state was built from stream {} created at {} ns, and this is {} created at {} ns; bring the right log back, or delete and deploy again",
            checkpoint.stream.name, checkpoint.stream.created_ns, stream.name, stream.created_ns
        )));
    }
    let last = log.info().last_sequence;
    if last < checkpoint.position {
        return Err(Error::Truncated { stream: stream.name.clone(), last, position: checkpoint.position });
    }
    let Some(mark) = &checkpoint.last_event else { return Ok(()) };
    if mark.sequence == 0 {
        return Ok(());
    }
    let wanted = Wanted {
        after: mark.sequence - 1,
        subjects: None,
        events_max: 1,
        looked_max: 1,
        bytes_max: usize::MAX,
        headers: Headers::Left,
    };
    // Where retention removed the event, nothing is left to compare; the gap check still holds.
    let found = log.run(&wanted, &mut None)?.events.into_iter().next();
    match found.filter(|event| event.sequence == mark.sequence) {
        Some(event) if EventMark::of(&event) != *mark => Err(Error::Diverged(format!(
            "event {} of stream {} is not the one that the state was built from: the log was restored from another history; bring the right log back, or delete and deploy again",
            mark.sequence, stream.name
        ))),
        _ => Ok(()),
    }
}
