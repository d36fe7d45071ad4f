//! Appending: one of the waiting callers commits for all of them.
//!
//! A durable commit costs milliseconds whatever is in it, so callers put their
//! requests into a queue. The first one leads: it takes the queued requests,
//! checks and stamps each, commits once, answers all of them, and passes the
//! lead to the oldest request that arrived meanwhile. The others sleep until
//! they have their answer or the lead, so that no lock is handed from one to
//! the next.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use redb::{Database, Table, WriteTransaction};

use super::chunk::{Builder, Stamp};
use super::cursors;
use super::encode::{Encoding, IdKey};
use super::file::{self, CHUNKS, Failure, SUBJECTS};
use super::ids::Ids;
use super::subjects::{COVERED_MAX, Subjects};
use super::{Appended, Error, Expectation, Log, NewEvent, View, now_ns};
use crate::room::{Room, Use};
use crate::storage;

/// Most bytes that wait in the queue; further callers first help to commit.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Most bytes in one commit, so that the first request of a long queue does not wait for the last.
const GROUP_BYTES_MAX: usize = 16 << 20;
/// Size at which a chunk ends: with redb's own header it fits 16 pages, and larger ones replay no
/// faster.
const CHUNK_BYTES_MAX: usize = (64 << 10) - 256;
/// A last chunk up to this size is written again with the next events, so that events that arrive
/// one by one still share a page and replay as fast as those that arrived together.
const CHUNK_CONTINUED_MAX: usize = 3_584;

/// Data that only the committing thread touches.
#[derive(Debug)]
pub(super) struct Writer {
    /// Name of the log.
    pub log: String,
    pub last_sequence: u64,
    pub last_time_ns: u64,
    /// Time of the last append, which also never goes back.
    pub appended_ns: u64,
    /// How far its times may be ahead of the clock; none is any distance.
    pub future_max: Option<Duration>,
    /// Whether it was logged that they are further ahead.
    pub has_warned: bool,
    /// Bytes of all events since sequence 1.
    pub bytes: u64,
    /// The last chunk, as stored; empty if the next event begins a new one.
    pub tail: Builder,
    pub ids: Ids,
    pub subjects: Subjects,
}

/// Requests that wait for a commit, and whether one of them leads. Whenever requests wait, one
/// leads.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<Waiting>,
    /// Tells callers whose request found no room that some was freed.
    room: Condvar,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Arc<Request>>,
    bytes: usize,
    led: bool,
}

/// One append on its way.
struct Request {
    encoding: Encoding,
    expectation: Expectation,
    next: Mutex<NextStep>,
    /// Wakes its caller when that has changed.
    changed: Condvar,
}

/// What the caller of a request should do.
enum NextStep {
    Wait,
    Lead,
    Return(Result<Appended, Error>),
}

impl Log {
    pub(super) fn append_all(
        &self,
        events: &[NewEvent],
        expectation: &Expectation,
    ) -> Result<Appended, Error> {
        let request = Arc::new(Request {
            // On this thread: checks and encoding need no lock.
            encoding: Encoding::of(events, &self.shared.options, now_ns())?,
            expectation: expectation.clone(),
            next: Mutex::new(NextStep::Wait),
            changed: Condvar::new(),
        });
        // After this, some leader answers the request, or gives it the lead.
        self.shared.queue.push(&request);
        loop {
            match request.next_step() {
                NextStep::Return(answer) => return answer,
                NextStep::Lead => self.lead(),
                NextStep::Wait => unreachable!("waiting ends with another step"),
            }
        }
    }

    /// Commits a group, of which the leader's own request is the first.
    fn lead(&self) {
        // Locked before the group is taken: a long wait for the lock makes a larger group.
        let mut slot = self.shared.writer.lock();
        let group = Group {
            queue: &self.shared.queue,
            requests: self.shared.queue.take_group(),
        };
        // Refused before anything has begun, so that the file stays open and readable.
        if let Err(displaced) = self.shared.held.check() {
            // Unlocked before the answers, so that the next leader can begin.
            drop(slot);
            for request in &group.requests {
                request.give(NextStep::Return(Err(displaced.clone().into())));
            }
            return;
        }
        let bytes: usize = group
            .requests
            .iter()
            .map(|request| request.encoding.buffer.len())
            .sum();
        let room = self
            .shared
            .options
            .room
            .clone()
            .unwrap_or_else(|| Room::of(&self.shared.path));
        // Of the whole group: what does not fit together may fit in part, but the disk is full
        // anyway.
        if let Err(shortage) = room.check(Use::Write, bytes as u64) {
            drop(slot);
            for request in &group.requests {
                request.give(NextStep::Return(Err(Error::Full(shortage.clone()))));
            }
            return;
        }
        match self.with_writer(&mut slot, |database, writer| {
            commit(database, writer, &self.view(), &group.requests)
        }) {
            Ok((answers, view)) => {
                // Published before it is answered: a caller that reads at once finds its events.
                self.publish(view);
                drop(slot);
                for (request, answer) in group.requests.iter().zip(answers) {
                    request.give(NextStep::Return(answer));
                }
            }
            Err(failure) => {
                drop(slot);
                let failure = storage::Error::from(failure);
                for request in &group.requests {
                    request.give(NextStep::Return(Err(Error::Storage(failure.clone()))));
                }
            }
        }
    }
}

impl Request {
    /// Waits until the caller of this request has something to do.
    fn next_step(&self) -> NextStep {
        let mut next = self.next.lock();
        while matches!(*next, NextStep::Wait) {
            self.changed.wait(&mut next);
        }
        // Taken once; the next one has to be given.
        std::mem::replace(&mut *next, NextStep::Wait)
    }

    fn give(&self, next: NextStep) {
        *self.next.lock() = next;
        self.changed.notify_one();
    }
}

impl Queue {
    /// Queues a request once there is room; gives it the lead if nobody has it.
    fn push(&self, request: &Arc<Request>) {
        let bytes = request.encoding.buffer.len();
        let mut waiting = self.state.lock();
        // A request that is larger than the queue goes in alone.
        while !waiting.requests.is_empty() && waiting.bytes + bytes > QUEUE_BYTES_MAX {
            self.room.wait(&mut waiting);
        }
        waiting.bytes += bytes;
        waiting.requests.push_back(Arc::clone(request));
        if !waiting.led {
            // It commits at least its own request, which is in the queue.
            waiting.led = true;
            request.give(NextStep::Lead);
        }
    }

    /// The oldest requests, as many as fit one commit, and at least one if there is any.
    fn take_group(&self) -> Vec<Arc<Request>> {
        let mut waiting = self.state.lock();
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some(request) = waiting.requests.front() {
            let more = request.encoding.buffer.len();
            if !group.is_empty() && bytes + more > GROUP_BYTES_MAX {
                break;
            }
            bytes += more;
            group.extend(waiting.requests.pop_front());
        }
        waiting.bytes -= bytes;
        // All of them, because requests differ in size.
        self.room.notify_all();
        group
    }

    /// Gives the lead to the oldest request, if there is one.
    fn pass_lead(&self) {
        let mut waiting = self.state.lock();
        match waiting.requests.front() {
            Some(request) => request.give(NextStep::Lead),
            // The next request takes it.
            None => waiting.led = false,
        }
    }
}

/// The requests of one commit. However it ends, even by a panic, each is answered and the lead is
/// passed on.
struct Group<'a> {
    queue: &'a Queue,
    requests: Vec<Arc<Request>>,
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Those that have an answer already do not look at another one.
            for request in &self.requests {
                let broken = "an append was interrupted; the next one reopens the log";
                let broken = storage::Error::failed_before(broken);
                request.give(NextStep::Return(Err(Error::Storage(broken))));
            }
        }
        self.queue.pass_lead();
    }
}

type Answers = Vec<Result<Appended, Error>>;

/// Appends the requests of a group in one transaction.
fn commit(
    database: &Database,
    writer: &mut Writer,
    view: &View,
    group: &[Arc<Request>],
) -> Result<(Answers, View), Failure> {
    let before = writer.last_sequence;
    // Times never go back, even if the clock does.
    writer.appended_ns = writer.appended_ns.max(now_ns());
    writer.ids.expire(writer.ids.now_ns());
    // Written again only while it is small.
    if writer.tail.len() > CHUNK_CONTINUED_MAX {
        writer.tail = Builder::new(before + 1);
    }
    let transaction = file::begin_write(database, view)?;
    let mut answers = Vec::with_capacity(group.len());
    {
        let mut chunks = transaction.open_table(CHUNKS)?;
        for request in group {
            answers.push(writer.append(&transaction, &mut chunks, view.first_sequence, request)?);
        }
        // The last chunk, under the sequence of its first event: a row that is there is replaced.
        if writer.last_sequence > before {
            chunks.insert(writer.tail.first(), writer.tail.bytes())?;
        }
    }
    if writer.last_sequence == before {
        // All were refused or known: nothing has to be durable.
        transaction.abort()?;
        return Ok((answers, *view));
    }
    // Now and then: the table is only an index, and is completed when the log is opened.
    if writer.subjects.is_due(writer.last_sequence) {
        let events = usize::try_from(writer.last_sequence - before).unwrap_or(usize::MAX / 8);
        let known = writer.subjects.drain(
            &mut transaction.open_table(SUBJECTS)?,
            events,
            writer.last_sequence,
        )?;
        if let Some(sequence) = known {
            file::store_indexed_through(&transaction, sequence)?;
        }
    }
    transaction.commit()?;
    writer.warn_if_ahead(now_ns());
    Ok((
        answers,
        View {
            last_sequence: writer.last_sequence,
            bytes: writer.bytes,
            ..*view
        },
    ))
}

impl Writer {
    /// By how much the last event is ahead of the clock, if clocks don't differ by that much: the
    /// clock is wrong, or was when it was appended.
    pub(super) fn ahead(&self, now_ns: u64) -> Option<String> {
        let ahead = Duration::from_nanos(self.last_time_ns.saturating_sub(now_ns));
        let seconds = Duration::from_secs(ahead.as_secs());
        self.future_max.filter(|max| ahead > *max).map(|_| {
            format!(
                "the time of the last event is {} ahead of this machine's clock, and new events \
                 get that time until the clock has passed it: timers and delayed messages are late \
                 by as much; correct the clock if it is wrong now",
                humantime::format_duration(seconds)
            )
        })
    }

    /// Logs that once.
    pub(super) fn warn_if_ahead(&mut self, now_ns: u64) {
        if !self.has_warned
            && let Some(ahead) = self.ahead(now_ns)
        {
            self.has_warned = true;
            tracing::warn!(log = self.log, "{ahead}");
        }
    }

    /// Appends one request, or refuses it without a trace. The outer error is an error of the file.
    fn append(
        &mut self,
        transaction: &WriteTransaction,
        chunks: &mut Table<'_, u64, &'static [u8]>,
        first: u64,
        request: &Request,
    ) -> Result<Result<Appended, Error>, Failure> {
        let (sequences, duplicates) = self.place(&request.encoding);
        // First: what is stored already may itself be why an expectation no longer holds.
        for cursor in &request.expectation.cursors {
            if let Err(error) = cursors::check(transaction, cursor)? {
                return Ok(Err(error));
            }
        }
        // A repeated request gets the same answer as the first one, even though its expectation no
        // longer holds.
        if duplicates < sequences.len() as u64
            && let Err(error) = self.check(transaction, first, &request.expectation)?
        {
            return Ok(Err(error));
        }
        // Only new events count: those that are known keep their times.
        if request.expectation.times_rise
            && let Err(error) = self.check_times(&request.encoding, &sequences)
        {
            return Ok(Err(error));
        }
        let mut times_raised = 0;
        // Not the time of the append: that follows the clock.
        let ids_ns = self.ids.now_ns();
        let mut next = self.last_sequence + 1;
        for (event, sequence) in request.encoding.events.iter().zip(&sequences) {
            // A duplicate has an earlier sequence.
            if *sequence != next {
                continue;
            }
            next += 1;
            let body = &request.encoding.buffer[event.body.clone()];
            if !self.tail.is_empty() && self.tail.len() + body.len() > CHUNK_BYTES_MAX {
                chunks.insert(self.tail.first(), self.tail.bytes())?;
                self.tail = Builder::new(*sequence);
            }
            // Such an event gets the time of the one before it, because times never go back.
            times_raised += u64::from(event.time_ns.is_some_and(|asked| asked < self.last_time_ns));
            self.last_time_ns = self
                .last_time_ns
                .max(event.time_ns.unwrap_or(self.appended_ns));
            let stamp = Stamp {
                flags: event.flags,
                time_ns: self.last_time_ns,
                appended_ns: self.appended_ns,
                bytes_before: self.bytes,
            };
            self.tail.push(&stamp, body);
            self.bytes += event.bytes;
            if let Some(id) = event.id {
                self.ids.insert(id, *sequence, ids_ns);
            }
            let subject = std::str::from_utf8(&request.encoding.buffer[event.subject.clone()]);
            self.subjects
                .insert(subject.expect("a subject is encoded from text"), *sequence);
        }
        self.last_sequence = next - 1;
        for cursor in &request.expectation.cursors {
            cursors::store(transaction, cursor)?;
        }
        Ok(Ok(Appended {
            sequences,
            duplicates,
            times_raised,
            last_sequence: self.last_sequence,
        }))
    }

    /// Whether no new event has a time earlier than that of the event before it.
    fn check_times(&self, encoding: &Encoding, sequences: &[u64]) -> Result<(), Error> {
        let mut last_ns = self.last_time_ns;
        let mut next = self.last_sequence + 1;
        for (index, (event, sequence)) in encoding.events.iter().zip(sequences).enumerate() {
            if *sequence != next {
                continue;
            }
            next += 1;
            match event.time_ns {
                Some(asked_ns) if asked_ns < last_ns => {
                    return Err(Error::Time {
                        index,
                        asked_ns,
                        last_ns,
                    });
                }
                asked => last_ns = last_ns.max(asked.unwrap_or(self.appended_ns)),
            }
        }
        Ok(())
    }

    /// The sequence of each event, and how many are already stored.
    fn place(&self, encoding: &Encoding) -> (Vec<u64>, u64) {
        // Ids may also repeat within one request.
        let mut within: HashMap<IdKey, u64> = HashMap::new();
        let mut next = self.last_sequence + 1;
        let mut duplicates = 0;
        let mut sequences = Vec::with_capacity(encoding.events.len());
        for event in &encoding.events {
            // Without a window a repetition is an event of its own, also within one request.
            let id = event.id.filter(|_| self.ids.has_window());
            let known = id.and_then(|id| self.ids.get(&id).or_else(|| within.get(&id).copied()));
            if let Some(sequence) = known {
                duplicates += 1;
                sequences.push(sequence);
                continue;
            }
            if let Some(id) = id {
                within.insert(id, next);
            }
            sequences.push(next);
            next += 1;
        }
        (sequences, duplicates)
    }

    /// Whether the log meets the expectations of the request.
    fn check(
        &self,
        transaction: &WriteTransaction,
        first: u64,
        expectation: &Expectation,
    ) -> Result<Result<(), Error>, Failure> {
        if let Some(expected) = expectation.last_sequence
            && expected != self.last_sequence
        {
            return Ok(Err(Error::Conflict {
                expected,
                found: self.last_sequence,
            }));
        }
        let Some((pattern, expected)) = &expectation.last_subject_sequence else {
            return Ok(Ok(()));
        };
        let Ok(found) = self
            .subjects
            .last(pattern, first, &transaction.open_table(SUBJECTS)?)?
        else {
            let message = format!(
                "the expected subject {pattern} covers more than {COVERED_MAX} subjects; start it \
                 with more tokens, or expect the last sequence of the log"
            );
            return Ok(Err(Error::Invalid { index: 0, message }));
        };
        if found != *expected {
            return Ok(Err(Error::Conflict {
                expected: *expected,
                found,
            }));
        }
        Ok(Ok(()))
    }
}
