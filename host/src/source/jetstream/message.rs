//! Converts messages of a consumer to events.

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use bytestring::ByteString;

use super::headers;
use crate::cloudevents::message::{self, Message, Reading};
use crate::event::Event;

/// What the reply subject of a delivered message says about the message.
///
/// Source: `$JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.<consumer
/// sequence>.<time>.<pending>`, or with `<domain>.<account hash>` before the
/// stream and possibly a token at the end (ADR-15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) stream_sequence: u64,
    pub(super) consumer_sequence: u64,
    pub(super) time_ns: u64,
    /// Matching events after this one, when it was delivered.
    pub(super) pending: u64,
}

/// Tokens before the numbers, without and with a domain.
const TOKENS_PLAIN: usize = 4;
const TOKENS_DOMAIN: usize = 6;

/// Parses reply subjects. All those of one consumer begin with the same bytes,
/// which are compared instead of parsed.
#[derive(Debug)]
pub(super) struct MetadataReader {
    prefix: Vec<u8>,
    /// The end of the prefix of our own consumer. Others who may publish to our inbox don't know
    /// the name of the consumer.
    own: String,
}

impl MetadataReader {
    /// A reader for one consumer of a stream.
    pub(super) fn new(stream: &str, consumer: &str) -> Self {
        Self {
            prefix: Vec::new(),
            own: format!(".{stream}.{consumer}."),
        }
    }

    /// Parses one; none if it is not such a subject, or belongs to another consumer.
    pub(super) fn read(&mut self, reply: &str) -> Option<Metadata> {
        let bytes = reply.as_bytes();
        // Only the first message, or one of another account, is parsed in full.
        if self.prefix.is_empty() || !bytes.starts_with(&self.prefix) {
            let prefix = prefix_of(bytes)?;
            if !prefix.ends_with(self.own.as_bytes()) {
                return None;
            }
            self.prefix = prefix.to_vec();
        }
        numbers(&bytes[self.prefix.len()..])
    }
}

fn prefix_of(reply: &[u8]) -> Option<&[u8]> {
    // Anybody who may publish to our inbox could send another one.
    if !reply.starts_with(b"$JS.ACK.") {
        return None;
    }
    let dots = || {
        reply
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'.')
            .map(|(index, _)| index)
    };
    // Two more tokens with a domain, and newer servers may add one at the end.
    let tokens = match dots().count() + 1 {
        9 => TOKENS_PLAIN,
        count if count >= 11 => TOKENS_DOMAIN,
        _ => return None,
    };
    dots().nth(tokens - 1).map(|index| &reply[..=index])
}

fn numbers(text: &[u8]) -> Option<Metadata> {
    let mut values = [0_u64; 5];
    let mut index = 0;
    let mut digits = 0;
    for byte in text {
        match byte {
            b'0'..=b'9' => {
                // A number that does not fit is no reply subject.
                values[index] = values[index]
                    .checked_mul(10)?
                    .checked_add(u64::from(byte - b'0'))?;
                digits += 1;
            }
            b'.' if digits > 0 => {
                digits = 0;
                index += 1;
                // Tokens after the fifth number are for routing only.
                if index == values.len() {
                    break;
                }
            }
            _ => return None,
        }
    }
    // The last number may end the text.
    let complete = index == values.len() || (index + 1 == values.len() && digits > 0);
    let [
        _delivered,
        stream_sequence,
        consumer_sequence,
        time_ns,
        pending,
    ] = values;
    complete.then_some(Metadata {
        stream_sequence,
        consumer_sequence,
        time_ns,
        pending,
    })
}

/// What a delivered message has.
pub(super) struct Arrived {
    pub(super) subject: Subject,
    pub(super) headers: Option<HeaderMap>,
    pub(super) data: Bytes,
}

/// Creates an event. Without headers nothing is copied; none means one of the broker's own
/// messages.
pub(super) fn into_event(metadata: &Metadata, arrived: Arrived, reading: Reading) -> Option<Event> {
    let Arrived {
        subject,
        headers,
        data,
    } = arrived;
    let headers = match &headers {
        // Without headers no message is one of the broker's own.
        None => Vec::new(),
        Some(headers) if headers::is_bookkeeping(headers) => return None,
        Some(headers) => headers::of_event(headers, reading.headers),
    };
    // A subject that is the only holder of its memory becomes a string without being copied.
    let subject = ByteString::from(subject.into_string());
    let message = Message {
        sequence: metadata.stream_sequence,
        time_ns: metadata.time_ns,
        subject,
        headers,
        data,
    };
    Some(message::into_event(message, reading))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_read_with_and_without_a_domain() {
        let expected = Some(Metadata {
            stream_sequence: 42,
            consumer_sequence: 7,
            time_ns: 1_700_000_000_123_456_789,
            pending: 99,
        });
        for reply in [
            "$JS.ACK.S.C.1.42.7.1700000000123456789.99",
            "$JS.ACK.hub.abc.S.C.1.42.7.1700000000123456789.99",
            "$JS.ACK.hub.abc.S.C.1.42.7.1700000000123456789.99.random",
        ] {
            let mut reader = MetadataReader::new("S", "C");
            assert_eq!(reader.read(reply), expected, "{reply}");
            assert_eq!(reader.read(reply), expected, "{reply}, again");
        }
    }

    #[test]
    fn reader_follows_a_change_of_prefix_but_not_to_another_consumer() {
        let mut reader = MetadataReader::new("S", "C");
        assert_eq!(
            reader
                .read("$JS.ACK.S.C.1.5.1.9.0")
                .map(|read| read.stream_sequence),
            Some(5)
        );
        assert_eq!(
            reader
                .read("$JS.ACK.hub.abc.S.C.1.6.1.9.0")
                .map(|read| read.stream_sequence),
            Some(6)
        );
        for other in [
            "$JS.ACK.S.D.1.7.1.9.0",
            "$JS.ACK.T.C.1.7.1.9.0",
            "$JS.ACK.S.C.x.y.1.7.1.9.0",
        ] {
            assert_eq!(reader.read(other), None, "{other}");
        }
    }

    #[test]
    fn other_subjects_are_refused() {
        for reply in [
            "",
            "_INBOX.x.y",
            "$JS.ACK.S.C.1.42.7.9",
            "$JS.ACK.S.C.1.x.7.9.0",
            "$JS.ACK.S.C.1..7.9.0",
            "$JS.ACK.S.C.1.42.7.9.",
            "$JS.ACK.S.C.1.99999999999999999999999.7.9.0",
        ] {
            assert_eq!(MetadataReader::new("S", "C").read(reply), None, "{reply}");
        }
    }
}
