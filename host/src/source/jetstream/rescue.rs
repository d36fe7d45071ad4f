//! Messages that the client cannot read.
//!
//! The client drops its connection on a header block or a subject that it does
//! not understand, without a word about the message. So after a connection was
//! lost, the messages that are next are fetched by themselves in a form that
//! it always understands (JSON, headers in base64), and those that it could not
//! read are handed out from here. The consumer then begins behind them.

use std::collections::VecDeque;

use bytestring::ByteString;

use super::headers::{self, Block};
use super::link::Link;
use super::open::{Failure, trouble};
use super::wire::{self, Api, Stored};
use crate::cloudevents::message::{self, Message, Reading};
use crate::event::Event;
use crate::source::Error;

/// Messages and bytes fetched in one go; if the next one is unreadable too, the connection is lost once more.
const MESSAGES_MAX: usize = 256;
const BYTES_MAX: usize = 16 << 20;
/// After this many lost connections at one message, it is handed out from here whatever we think of it.
const DOUBTS_MANY: u32 = 3;

/// A message that was fetched by itself.
#[derive(Debug)]
pub(super) enum Rescued {
    /// What the client cannot read, and why it cannot if that is known.
    Message { stored: Stored, fault: Option<String> },
    /// A message that nobody can read and that is to be skipped.
    Skipped(u64),
}

impl Rescued {
    /// Its sequence.
    pub(super) fn sequence(&self) -> u64 {
        match self {
            Self::Message { stored, .. } => stored.sequence,
            Self::Skipped(sequence) => *sequence,
        }
    }
}

/// Why messages are fetched by themselves, and which.
#[derive(Debug)]
pub(super) struct Search<'a> {
    /// The last sequence that was read.
    pub(super) position: u64,
    /// The subjects that the server is asked for.
    pub(super) filter: &'a str,
    /// How many connections were lost at this position.
    pub(super) doubts: u32,
    /// Sequences that are to be skipped, in rising order.
    pub(super) skips: &'a [u64],
}

/// Fetches the messages behind the position up to the first one that the client can read.
pub(super) async fn rescue(link: &mut Link, api: &Api, search: &Search<'_>) -> Result<VecDeque<Rescued>, Failure> {
    let mut rescued = VecDeque::new();
    let mut bytes = 0;
    let mut next = search.position + 1;
    while rescued.len() < MESSAGES_MAX && bytes < BYTES_MAX {
        let stored = match link.permitted(api.next_message(next, search.filter)).await? {
            Ok(Some(stored)) => stored,
            Ok(None) => break,
            Err(wire::Error::Unreadable(_)) if search.skips.binary_search(&next).is_ok() => {
                rescued.push_back(Rescued::Skipped(next));
                next += 1;
                continue;
            }
            Err(wire::Error::Unreadable(reason)) => {
                let stream = api.stream.clone();
                return Err(Failure::Stop(Error::Unreadable { stream, sequence: next, reason }));
            }
            Err(error) => return Err(trouble(&api.stream, &error).into()),
        };
        let fault = fault(&stored);
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

/// What the client cannot read in a message.
pub(super) fn fault(stored: &Stored) -> Option<String> {
    if stored.subject.contains(char::REPLACEMENT_CHARACTER) {
        return Some("its subject is not valid UTF-8".to_owned());
    }
    if !stored.headers.is_empty() && stored.subject.contains(char::is_whitespace) {
        return Some("its subject has white space".to_owned());
    }
    Block::read(&stored.headers).fault
}

/// Whether a message that was fetched is the broker's own book-keeping, and no event.
pub(super) fn is_bookkeeping(stored: &Stored) -> bool {
    headers::is_bookkeeping(&Block::read(&stored.headers))
}

/// A message that was fetched, with all of its headers.
pub(super) fn message_of(stored: &Stored) -> Message {
    let headers = headers::of_event(&Block::read(&stored.headers), true);
    let Stored { sequence, time_ns, subject, data, .. } = stored;
    let (subject, data) = (ByteString::from(subject.as_str()), data.clone());
    Message { sequence: *sequence, time_ns: *time_ns, subject, headers, data }
}

/// Makes an event of a message that was fetched, whatever it is.
pub(super) fn into_event(stored: &Stored, fault: Option<&str>, reading: Reading) -> Event {
    let block = Block::read(&stored.headers);
    let mut headers = headers::of_event(&block, reading.wants_headers);
    if let Some(fault) = fault.filter(|_| reading.wants_headers) {
        headers::tell_fault(&mut headers, fault);
    }
    let Stored { sequence, time_ns, subject, data, .. } = stored;
    let (subject, data) = (ByteString::from(subject.as_str()), data.clone());
    message::into_event(Message { sequence: *sequence, time_ns: *time_ns, subject, headers, data }, reading)
}
