//! Messages that the client cannot parse.
//!
//! The client drops its connection on a header block or a subject that it
//! cannot parse, without naming the message. So after a connection was lost,
//! the next messages are fetched alone in a form that it can always parse
//! (JSON, headers in base64), and those that it could not parse are returned
//! from here. The consumer then starts after them.

use std::collections::VecDeque;

use bytestring::ByteString;

use super::headers::{self, Block};
use super::link::Link;
use super::open::{Failure, trouble};
use super::wire::{self, Api, Stored};
use crate::cloudevents::message::{self, Message, Reading};
use crate::event::{Event, Headers};
use crate::source::Error;

/// Messages and bytes fetched at once; if the next one cannot be parsed either, the connection is
/// lost once more.
const MESSAGES_MAX: usize = 256;
const BYTES_MAX: usize = 16 << 20;
/// After this many lost connections at one message, it is returned from here in any case.
const DOUBTS_MANY: u32 = 3;

/// A message that was fetched alone.
#[derive(Debug)]
pub(super) enum Rescued {
    /// What the client cannot parse, and why, if known.
    Message {
        stored: Stored,
        fault: Option<String>,
    },
    /// A message that nobody can parse and that is to be skipped.
    Skipped(u64),
}

impl Rescued {
    pub(super) fn sequence(&self) -> u64 {
        match self {
            Self::Message { stored, .. } => stored.sequence,
            Self::Skipped(sequence) => *sequence,
        }
    }
}

/// Why messages are fetched alone, and which ones.
#[derive(Debug)]
pub(super) struct Search<'a> {
    /// The last sequence that was read.
    pub(super) position: u64,
    /// The subjects requested from the server.
    pub(super) filter: &'a str,
    /// How many connections were lost at this position.
    pub(super) doubts: u32,
    /// Sequences to skip, in rising order.
    pub(super) skips: &'a [u64],
}

/// Fetches the messages after the position up to the first one that the client can parse.
pub(super) async fn rescue(
    link: &mut Link,
    api: &Api,
    search: &Search<'_>,
) -> Result<VecDeque<Rescued>, Failure> {
    let mut rescued = VecDeque::new();
    let mut bytes = 0;
    let mut next = search.position + 1;
    // Until one that the client can parse: from there on the consumer delivers.
    while rescued.len() < MESSAGES_MAX && bytes < BYTES_MAX {
        let stored = match link
            .permitted(api.next_message(next, search.filter))
            .await?
        {
            Ok(Some(stored)) => stored,
            // The end of the stream: the connection was lost for another reason.
            Ok(None) => break,
            Err(wire::Error::Unreadable { sequence, reason }) => {
                // With a filter, the next message for us may have a higher sequence than the
                // requested one.
                let sequence = sequence.unwrap_or(next).max(next);
                // A reader may pass it only if an operator has decided so.
                if search.skips.binary_search(&sequence).is_err() {
                    let stream = api.stream.clone();
                    return Err(Failure::Stop(Error::Unreadable {
                        stream,
                        sequence,
                        reason,
                    }));
                }
                rescued.push_back(Rescued::Skipped(sequence));
                next = sequence + 1;
                continue;
            }
            Err(error) => return Err(trouble(&api.stream, &error).into()),
        };
        let fault = fault(&stored);
        // The client stumbles over something that is not recognised here, so it is taken out of its
        // way.
        let is_doubted = rescued.is_empty() && search.doubts >= DOUBTS_MANY;
        if fault.is_none() && !is_doubted {
            break;
        }
        next = stored.sequence + 1;
        bytes += stored.headers.len() + stored.data.len();
        rescued.push_back(Rescued::Message { stored, fault });
    }
    Ok(rescued)
}

/// What the client cannot parse in a message.
pub(super) fn fault(stored: &Stored) -> Option<String> {
    // The server replaces such octets in its answer; the client drops the connection on them.
    if stored.subject.contains(char::REPLACEMENT_CHARACTER) {
        return Some("its subject is not valid UTF-8".to_owned());
    }
    if !stored.headers.is_empty() && stored.subject.contains(char::is_whitespace) {
        return Some("its subject has white space".to_owned());
    }
    Block::read(&stored.headers).fault
}

/// Whether a fetched message belongs to the broker, and is not an event.
pub(super) fn is_bookkeeping(stored: &Stored) -> bool {
    headers::is_bookkeeping(&Block::read(&stored.headers))
}

/// A fetched message, with all its headers.
pub(super) fn message_of(stored: &Stored) -> Message {
    let headers = headers::of_event(&Block::read(&stored.headers), Headers::Wanted);
    let Stored {
        sequence,
        time_ns,
        subject,
        data,
        ..
    } = stored;
    let (subject, data) = (ByteString::from(subject.as_str()), data.clone());
    Message {
        sequence: *sequence,
        time_ns: *time_ns,
        subject,
        headers,
        data,
    }
}

/// Converts a fetched message to an event, whatever it is.
pub(super) fn into_event(stored: &Stored, fault: Option<&str>, reading: Reading) -> Event {
    let block = Block::read(&stored.headers);
    let mut headers = headers::of_event(&block, reading.headers);
    // Without headers there is no place for it; the log has it.
    if let Some(fault) = fault.filter(|_| reading.headers == Headers::Wanted) {
        headers::add_fault(&mut headers, fault);
    }
    let Stored {
        sequence,
        time_ns,
        subject,
        data,
        ..
    } = stored;
    let (subject, data) = (ByteString::from(subject.as_str()), data.clone());
    message::into_event(
        Message {
            sequence: *sequence,
            time_ns: *time_ns,
            subject,
            headers,
            data,
        },
        reading,
    )
}
