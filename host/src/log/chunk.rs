//! Chunks: the stored form of a run of consecutive events.
//!
//! A chunk is one row of the file, so that replaying costs one tree access for
//! hundreds of events. All integers are little-endian; a `varint` is unsigned
//! LEB128. Version 1:
//!
//! ```text
//! header   version u8 = 1, flags u8, reserved u16 = 0, count u32,
//!          bytes before this chunk since sequence 1 u64, time of the first event u64, last append u64
//! event    flags u8, varint time since the event before, [varint time of its append]  (with FLAG_ID)
//!          varint length, subject
//!          [varint length, type]                                                     (with FLAG_KIND)
//!          [varint length, headers: (varint length, name, varint length, value)*]    (with FLAG_HEADERS)
//!          varint length, data
//! ```
//!
//! Times are nanoseconds since the Unix epoch. The row's key is the sequence of
//! the first event; the others follow without gaps. Nothing here touches the
//! file.

use std::ops::Range;

use bytes::Bytes;
use bytestring::ByteString;

use crate::cloudevents::Recognition;
use crate::cloudevents::message::{self, Message, Reading};
use crate::event::{Event, Header, Headers};

/// Version of the layout above.
const VERSION: u8 = 1;
/// Length of a chunk's header.
const HEADER_LEN: usize = 32;
/// Chunk flag: some event has a message id.
const CHUNK_HAS_IDS: u8 = 1;

/// The event has a message id, as header `nats-msg-id`.
pub(super) const FLAG_ID: u8 = 1;
/// The event has its own type.
pub(super) const FLAG_KIND: u8 = 2;
/// The event has headers.
pub(super) const FLAG_HEADERS: u8 = 4;
/// The event is a structured CloudEvent, so reading it needs its headers.
pub(super) const FLAG_STRUCTURED: u8 = 8;

/// The header that carries the message id.
pub(super) const ID_HEADER: &str = "nats-msg-id";

/// What is wrong with a chunk.
#[derive(Debug, thiserror::Error)]
#[error("chunk at sequence {first}: {problem}")]
pub(super) struct Corrupt {
    first: u64,
    problem: &'static str,
}

/// Appends an unsigned LEB128 integer.
pub(super) fn put_varint(buffer: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        buffer.push((value as u8) | 0x80);
        value >>= 7;
    }
    buffer.push(value as u8);
}

/// Appends bytes, preceded by their length.
pub(super) fn put_bytes(buffer: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(buffer, bytes.len() as u64);
    buffer.extend_from_slice(bytes);
}

fn take_varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0_u64;
    // Ten groups of seven bits hold 64 bits; more is damage.
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take_range(bytes: &[u8], at: &mut usize) -> Option<Range<usize>> {
    let length = usize::try_from(take_varint(bytes, at)?).ok()?;
    let start = *at;
    let end = start
        .checked_add(length)
        .filter(|end| *end <= bytes.len())?;
    *at = end;
    Some(start..end)
}

/// The writer's metadata of an event, in addition to its encoded body.
pub(super) struct Stamp {
    /// Flags of the event.
    pub flags: u8,
    /// Its time, not earlier than that of the previous event.
    pub time_ns: u64,
    /// When it was appended.
    pub appended_ns: u64,
    /// Bytes of all events before it, including removed ones.
    pub bytes_before: u64,
}

/// A chunk that is being written.
#[derive(Debug)]
pub(super) struct Builder {
    first: u64,
    count: u32,
    last_time_ns: u64,
    buffer: Vec<u8>,
}

impl Builder {
    /// An empty chunk whose first event will have this sequence.
    pub(super) fn new(first: u64) -> Self {
        Self {
            first,
            count: 0,
            last_time_ns: 0,
            buffer: Vec::new(),
        }
    }

    /// Continues a stored chunk whose last event has this time.
    pub(super) fn resume(first: u64, count: u32, last_time_ns: u64, bytes: &[u8]) -> Self {
        Self {
            first,
            count,
            last_time_ns,
            buffer: bytes.to_vec(),
        }
    }

    /// Sequence of the first event.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Length so far, in bytes.
    pub(super) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether it has no events yet.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn push(&mut self, stamp: &Stamp, body: &[u8]) {
        if self.count == 0 {
            // Version, flags, two reserved bytes, and the count, which is set below.
            self.buffer
                .extend_from_slice(&[VERSION, 0, 0, 0, 0, 0, 0, 0]);
            self.buffer
                .extend_from_slice(&stamp.bytes_before.to_le_bytes());
            self.buffer.extend_from_slice(&stamp.time_ns.to_le_bytes());
            self.buffer
                .extend_from_slice(&stamp.appended_ns.to_le_bytes());
            self.last_time_ns = stamp.time_ns;
        }
        self.count += 1;
        // Written again with each event: the chunk is valid at any length.
        self.buffer[4..8].copy_from_slice(&self.count.to_le_bytes());
        self.buffer[24..32].copy_from_slice(&stamp.appended_ns.to_le_bytes());
        self.buffer.push(stamp.flags);
        // The difference to the event before; the first one has 0.
        put_varint(&mut self.buffer, stamp.time_ns - self.last_time_ns);
        if stamp.flags & FLAG_ID != 0 {
            self.buffer[1] |= CHUNK_HAS_IDS;
            put_varint(&mut self.buffer, stamp.appended_ns);
        }
        self.buffer.extend_from_slice(body);
        self.last_time_ns = stamp.time_ns;
    }

    /// The chunk as stored.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer
    }
}

/// A cursor in a stored chunk, which reads its events in order.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    bytes: Bytes,
    at: usize,
    first: u64,
    next: u64,
    end: u64,
    time_ns: u64,
    /// Offset and time of the last event that was read.
    before: (usize, u64),
}

/// One event in a chunk, as offsets into its bytes.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub sequence: u64,
    pub time_ns: u64,
    pub appended_ns: u64,
    pub flags: u8,
    pub subject: Range<usize>,
    kind: Range<usize>,
    headers: Range<usize>,
    data: Range<usize>,
}

impl Cursor {
    /// The beginning of a chunk.
    pub(super) fn new(first: u64, bytes: Bytes) -> Result<Self, Corrupt> {
        let corrupt = |problem| Corrupt { first, problem };
        if bytes.len() < HEADER_LEN {
            return Err(corrupt("is shorter than its header"));
        }
        if bytes[0] != VERSION {
            return Err(corrupt(
                "was written by a newer version; upgrade foldstream",
            ));
        }
        let count = u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes"));
        let time_ns = long(&bytes, 16);
        // A damaged count must not overflow; the events are checked as they are read.
        let end = first.saturating_add(u64::from(count));
        Ok(Self {
            bytes,
            at: HEADER_LEN,
            first,
            next: first,
            end,
            time_ns,
            before: (HEADER_LEN, time_ns),
        })
    }

    /// The sequence of the next event.
    pub(super) fn next_sequence(&self) -> u64 {
        self.next
    }

    /// The sequence after the last event.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The chunk as stored.
    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Bytes of all events before this chunk.
    pub(super) fn bytes_before(&self) -> u64 {
        long(&self.bytes, 8)
    }

    /// When the last event was appended.
    pub(super) fn appended_ns(&self) -> u64 {
        long(&self.bytes, 24)
    }

    /// Whether any event has a message id.
    pub(super) fn has_ids(&self) -> bool {
        self.bytes[1] & CHUNK_HAS_IDS != 0
    }

    /// The next event; none at the end.
    pub(super) fn next(&mut self) -> Result<Option<Record>, Corrupt> {
        if self.next == self.end {
            return Ok(None);
        }
        // Kept for `step_back`.
        let before = (self.at, self.time_ns);
        let record = self.parse().ok_or(Corrupt {
            first: self.first,
            problem: "ends within an event",
        })?;
        self.before = before;
        self.next += 1;
        self.time_ns = record.time_ns;
        Ok(Some(record))
    }

    /// Goes back by one event; only once in a row.
    pub(super) fn step_back(&mut self) {
        debug_assert!(self.at > self.before.0, "an event was read");
        (self.at, self.time_ns) = self.before;
        self.next -= 1;
    }

    fn parse(&mut self) -> Option<Record> {
        let bytes: &[u8] = &self.bytes;
        let mut at = self.at;
        let flags = *bytes.get(at)?;
        at += 1;
        let time_ns = self.time_ns.checked_add(take_varint(bytes, &mut at)?)?;
        let appended_ns = if flags & FLAG_ID != 0 {
            take_varint(bytes, &mut at)?
        } else {
            0
        };
        let subject = take_range(bytes, &mut at)?;
        let kind = if flags & FLAG_KIND != 0 {
            take_range(bytes, &mut at)?
        } else {
            0..0
        };
        let headers = if flags & FLAG_HEADERS != 0 {
            take_range(bytes, &mut at)?
        } else {
            0..0
        };
        let data = take_range(bytes, &mut at)?;
        // Only after all of it was read: a damaged event moves nothing.
        self.at = at;
        Some(Record {
            sequence: self.next,
            time_ns,
            appended_ns,
            flags,
            subject,
            kind,
            headers,
            data,
        })
    }

    /// The subject of an event of this chunk.
    pub(super) fn subject<'a>(&'a self, record: &Record) -> Result<&'a str, Corrupt> {
        std::str::from_utf8(&self.bytes[record.subject.clone()]).map_err(|_| Corrupt {
            first: self.first,
            problem: "has a subject that is not text",
        })
    }

    /// The message id of an event of this chunk.
    pub(super) fn id(&self, record: &Record) -> Result<Option<ByteString>, Corrupt> {
        if record.flags & FLAG_ID == 0 {
            return Ok(None);
        }
        let headers = self.headers(&self.bytes, record)?;
        Ok(headers
            .into_iter()
            .find(|(name, _)| name == ID_HEADER)
            .map(|(_, value)| value))
    }

    /// Builds the event; `shared` says whether it may keep the chunk's memory.
    pub(super) fn event(
        &self,
        record: &Record,
        headers: Headers,
        memory: Memory,
    ) -> Result<Event, Corrupt> {
        match memory {
            Memory::Shared => self.build(&self.bytes, record, headers),
            Memory::Own => {
                // A copy of this event alone, so that its chunk can be freed.
                let (start, end) = (record.subject.start, record.data.end);
                let shift = |range: &Range<usize>| match range.is_empty() {
                    // Empty ranges have no place in the copy.
                    true => 0..0,
                    false => range.start - start..range.end - start,
                };
                let moved = Record {
                    subject: shift(&record.subject),
                    kind: shift(&record.kind),
                    headers: shift(&record.headers),
                    data: shift(&record.data),
                    ..record.clone()
                };
                self.build(
                    &Bytes::copy_from_slice(&self.bytes[start..end]),
                    &moved,
                    headers,
                )
            }
        }
    }

    fn build(&self, bytes: &Bytes, record: &Record, wanted: Headers) -> Result<Event, Corrupt> {
        let subject = self.text(bytes, &record.subject)?;
        // If headers are not wanted, those of a plain event are skipped: its type was determined
        // when it was appended.
        let needed = wanted == Headers::Wanted || record.flags & FLAG_STRUCTURED != 0;
        let headers = if needed {
            self.headers(bytes, record)?
        } else {
            Vec::new()
        };
        let data = bytes.slice(record.data.clone());
        let message = Message {
            sequence: record.sequence,
            time_ns: record.time_ns,
            subject,
            headers,
            data,
        };
        // Events in a log were classified when they were appended.
        let reading = Reading {
            recognition: Recognition::Headers,
            headers: wanted,
        };
        let mut event = message::into_event(message, reading);
        // The type of the writer counts more than what headers say.
        if record.flags & FLAG_KIND != 0 {
            event.kind = self.text(bytes, &record.kind)?;
        }
        Ok(event)
    }

    fn text(&self, bytes: &Bytes, range: &Range<usize>) -> Result<ByteString, Corrupt> {
        ByteString::try_from(bytes.slice(range.clone())).map_err(|_| Corrupt {
            first: self.first,
            problem: "has a name that is not text",
        })
    }

    fn headers(&self, bytes: &Bytes, record: &Record) -> Result<Vec<Header>, Corrupt> {
        let corrupt = Corrupt {
            first: self.first,
            problem: "has a header that ends too early",
        };
        let (mut at, end) = (record.headers.start, record.headers.end);
        // Nothing beyond the headers of this event may be taken for one.
        let part = &bytes[..end];
        let mut headers = Vec::new();
        while at < end {
            let (Some(name), Some(value)) = (take_range(part, &mut at), take_range(part, &mut at))
            else {
                return Err(corrupt);
            };
            headers.push((self.text(bytes, &name)?, self.text(bytes, &value)?));
        }
        Ok(headers)
    }
}

impl Record {
    /// Length of subject, type, headers and data in the chunk.
    pub(super) fn len(&self) -> usize {
        self.data.end - self.subject.start
    }

    /// The approximate size of the event in memory, according to [`Event::size`]: its type counts
    /// like its subject, and each byte of its headers twice.
    pub(super) fn size(&self, headers: Headers) -> usize {
        let headers = if headers == Headers::Wanted {
            2 * self.headers.len()
        } else {
            0
        };
        64 + self.subject.len()
            + self.subject.len().max(self.kind.len())
            + headers
            + self.data.len()
    }

    /// The size of the event as the log counts it: subject, headers and data.
    pub(super) fn bytes(&self, cursor: &Cursor) -> Result<u64, Corrupt> {
        let plain = self.subject.len() + self.data.len();
        if self.headers.is_empty() {
            return Ok(plain as u64);
        }
        let headers: usize = cursor
            .headers(&cursor.bytes, self)?
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        Ok((plain + headers) as u64)
    }
}

/// Which memory holds the bytes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    /// In its chunk, which lives as long as any of its events.
    Shared,
    /// In a separate copy.
    Own,
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(
        bytes[at..at + 8]
            .try_into()
            .expect("eight bytes, as the header was checked"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(subject: &str, headers: &[(&str, &str)], data: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        put_bytes(&mut body, subject.as_bytes());
        if !headers.is_empty() {
            let mut part = Vec::new();
            for (name, value) in headers {
                put_bytes(&mut part, name.as_bytes());
                put_bytes(&mut part, value.as_bytes());
            }
            put_bytes(&mut body, &part);
        }
        put_bytes(&mut body, data);
        body
    }

    fn stamp(flags: u8, time_ns: u64) -> Stamp {
        Stamp {
            flags,
            time_ns,
            appended_ns: 7,
            bytes_before: 40,
        }
    }

    #[test]
    fn varints_come_back() {
        for shift in 0..64 {
            for value in [1_u64 << shift, (1_u64 << shift) - 1, u64::MAX >> shift] {
                let mut buffer = Vec::new();
                put_varint(&mut buffer, value);
                let mut at = 0;
                assert_eq!(take_varint(&buffer, &mut at), Some(value));
                assert_eq!(at, buffer.len());
            }
        }
    }

    #[test]
    fn events_come_back_from_shared_and_own_memory() {
        let mut builder = Builder::new(9);
        builder.push(&stamp(0, 100), &body("a.b", &[], b"{}"));
        builder.push(
            &stamp(FLAG_HEADERS, 100),
            &body("a.c", &[("x", "1")], b"\xff\x00"),
        );
        builder.push(&stamp(0, 250), &body("a.d", &[], b""));

        for memory in [Memory::Shared, Memory::Own] {
            let mut cursor =
                Cursor::new(9, Bytes::copy_from_slice(builder.bytes())).expect("sound");
            assert_eq!(
                (cursor.end(), cursor.bytes_before(), cursor.appended_ns()),
                (12, 40, 7)
            );
            let mut events = Vec::new();
            while let Some(record) = cursor.next().expect("sound") {
                events.push(
                    cursor
                        .event(&record, Headers::Wanted, memory)
                        .expect("sound"),
                );
            }
            let seen: Vec<_> = events
                .iter()
                .map(|one| (one.sequence, one.time_ns, &*one.subject, &*one.kind))
                .collect();
            assert_eq!(
                seen,
                [
                    (9, 100, "a.b", "b"),
                    (10, 100, "a.c", "c"),
                    (11, 250, "a.d", "d")
                ]
            );
            assert_eq!(events[1].header("x"), Some("1"));
            assert_eq!(events[1].data.as_bytes(), b"\xff\x00");
            assert!(events[2].data.is_empty());
        }
    }

    #[test]
    fn damaged_chunks_are_errors_and_never_panics() {
        let mut builder = Builder::new(1);
        for time in 0..20 {
            builder.push(
                &stamp(FLAG_HEADERS | FLAG_ID, time),
                &body("a.b", &[("nats-msg-id", "7")], b"data"),
            );
        }
        let mut random = fastrand::Rng::with_seed(11);
        for _ in 0..20_000 {
            let mut bytes = builder.bytes().to_vec();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            bytes.truncate(random.usize(..=bytes.len()));
            let Ok(mut cursor) = Cursor::new(1, Bytes::from(bytes)) else {
                continue;
            };
            while let Ok(Some(record)) = cursor.next() {
                let _ = cursor.event(&record, Headers::Wanted, Memory::Own);
                let _ = cursor.id(&record);
                let _ = record.bytes(&cursor);
            }
        }
    }
}
