//! Reading: runs of events after a sequence, from one snapshot of the file.

use redb::{Database, ReadableDatabase};

use super::chunk::{Corrupt, Cursor, Memory, Record};
use super::file::{self, CHUNKS, Failure};
use super::{Error, Log};
use crate::event::{Event, Headers};
use crate::storage;
use crate::subject::SubjectSet;

/// Most bytes that one run examines: the most that a call costs with a rare subject.
const LOOKED_BYTES_MAX: usize = 64 << 20;
/// A chunk up to this size may be kept alive by any one of its events.
const CHUNK_KEPT_MAX: usize = 8 << 10;

/// What a run should contain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// The sequence after which it begins.
    pub after: u64,
    /// The subjects to read; none means all.
    pub subjects: Option<&'a SubjectSet>,
    /// Most events; this and the next two are at least 1.
    pub events_max: usize,
    /// Most events examined, whether they match or not.
    pub looked_max: usize,
    /// Most bytes, approximately; a single event may exceed it.
    pub bytes_max: usize,
    /// Whether events carry their headers.
    pub headers: Headers,
}

/// A run of events.
#[derive(Debug)]
pub(crate) struct Run {
    /// Matching events in order.
    pub events: Vec<Event>,
    /// The last sequence that was examined.
    pub through: u64,
    /// The first existing sequence. If it is beyond `after + 1`, events are gone and nothing was
    /// read.
    pub first: u64,
    /// The last existing sequence.
    pub head: u64,
}

impl Log {
    /// Reads a run. `place` is where the previous run ended, which avoids reading a chunk twice.
    /// Blocking.
    pub(crate) fn run(
        &self,
        wanted: &Wanted<'_>,
        place: &mut Option<Cursor>,
    ) -> Result<Run, Error> {
        // Before the attempt: if it fails, this tells whether somebody has reopened it since.
        let opened = self.opened();
        match file::guarded(|| self.attempt(wanted, place)) {
            Ok(run) => Ok(run),
            // Reopening a damaged file would only close it for readers of its other parts.
            Err(failure @ (Failure::Corrupt(_) | Failure::Damaged(_))) => Err(failure.into()),
            Err(failure) => {
                self.reopen(opened, &failure)?;
                // Once more, on the new file and without a place in the old one.
                Ok(file::guarded(|| self.attempt(wanted, &mut None))?)
            }
        }
    }

    fn attempt(&self, wanted: &Wanted<'_>, place: &mut Option<Cursor>) -> Result<Run, Failure> {
        // The view comes first: anything that the snapshot has beyond it is newer, and never less.
        let view = self.view();
        let (first, head) = (view.first_sequence, view.last_sequence);
        // Nothing new, or a gap, which the caller has to decide about.
        if head <= wanted.after || first > wanted.after + 1 {
            return Ok(Run {
                events: Vec::new(),
                through: wanted.after,
                first,
                head,
            });
        }
        let mut collector = Collector::new(wanted);
        // A place elsewhere belongs to another position.
        if let Some(mut cursor) = place
            .take()
            .filter(|cursor| cursor.next_sequence() == wanted.after + 1)
        {
            collector.take(&mut cursor)?;
            *place = Some(cursor);
        }
        if !collector.full() && collector.through < head {
            let file = self.shared.file.read();
            let database = file
                .as_ref()
                .ok_or_else(|| storage::Error::failed_before("the embedded log is not open"))?;
            if let Some(first) = collector.collect(database, place)? {
                return Ok(Run {
                    events: Vec::new(),
                    through: wanted.after,
                    first,
                    head,
                });
            }
        }
        // Nothing was found although the view promised something: retention, or damage.
        if collector.through == wanted.after {
            let first = self.view().first_sequence;
            if first <= wanted.after + 1 {
                return Err(Failure::Damaged(format!(
                    "events after {} are missing",
                    wanted.after
                )));
            }
            return Ok(Run {
                events: Vec::new(),
                through: wanted.after,
                first,
                head,
            });
        }
        Ok(Run {
            events: collector.events,
            through: collector.through,
            first,
            // The snapshot may have more than the view.
            head: head.max(collector.through),
        })
    }
}

/// A run that grows.
struct Collector<'a> {
    wanted: &'a Wanted<'a>,
    events: Vec<Event>,
    through: u64,
    looked: usize,
    looked_bytes: usize,
    bytes: usize,
    complete: bool,
    matched: Vec<Record>,
}

impl<'a> Collector<'a> {
    fn new(wanted: &'a Wanted<'a>) -> Self {
        Self {
            wanted,
            events: Vec::new(),
            through: wanted.after,
            looked: 0,
            looked_bytes: 0,
            bytes: 0,
            complete: false,
            matched: Vec::new(),
        }
    }

    fn full(&self) -> bool {
        self.complete
            || self.events.len() + self.matched.len() >= self.wanted.events_max
            || self.looked >= self.wanted.looked_max
            || self.looked_bytes >= LOOKED_BYTES_MAX
            || self.bytes >= self.wanted.bytes_max
    }

    /// Takes events from the file until the run is full or the snapshot ends; returns the first
    /// existing sequence if it is beyond the next one to read.
    fn collect(
        &mut self,
        database: &Database,
        place: &mut Option<Cursor>,
    ) -> Result<Option<u64>, Failure> {
        let chunks = database.begin_read()?.open_table(CHUNKS)?;
        let next = self.through + 1;
        // The chunk that has the next event may begin before it.
        let start = chunks
            .range(..=next)?
            .next_back()
            .transpose()?
            .map_or(next, |(first, _)| first.value());
        for row in chunks.range(start..)? {
            let mut cursor = file::cursor(&row?)?;
            let next = self.through + 1;
            // It ends before what is wanted.
            if cursor.end() <= next {
                continue;
            }
            if cursor.next_sequence() > next {
                // Retention removed the beginning since the view was read; after that, chunks are
                // contiguous.
                return match self.through == self.wanted.after {
                    true => Ok(Some(cursor.next_sequence())),
                    false => Err(Failure::Damaged(format!(
                        "events {next} and following are missing"
                    ))),
                };
            }
            self.take(&mut cursor)?;
            if self.full() {
                *place = Some(cursor);
                break;
            }
        }
        Ok(None)
    }

    /// Takes events from a chunk until the run is full or the chunk ends.
    fn take(&mut self, cursor: &mut Cursor) -> Result<(), Corrupt> {
        let mut kept = 0;
        while !self.full() {
            let Some(record) = cursor.next()? else { break };
            if record.sequence <= self.through {
                continue;
            }
            let matches = match self.wanted.subjects {
                Some(subjects) => subjects.matches(cursor.subject(&record)?),
                None => true,
            };
            let length = record.len();
            if matches {
                let size = record.size(self.wanted.headers);
                let any = !self.events.is_empty() || !self.matched.is_empty();
                if any && self.bytes + size > self.wanted.bytes_max {
                    cursor.step_back();
                    self.complete = true;
                    break;
                }
                self.bytes += size;
                kept += length;
            }
            self.through = record.sequence;
            self.looked += 1;
            self.looked_bytes += length;
            if matches {
                self.matched.push(record);
            }
        }
        // A few events must not keep a whole chunk alive; otherwise a batch of a rare subject takes
        // many times its size.
        let chunk = cursor.bytes().len();
        let memory = if chunk > CHUNK_KEPT_MAX && kept * 4 < chunk {
            Memory::Own
        } else {
            Memory::Shared
        };
        self.events.reserve(self.matched.len());
        for record in self.matched.drain(..) {
            self.events
                .push(cursor.event(&record, self.wanted.headers, memory)?);
        }
        Ok(())
    }
}
