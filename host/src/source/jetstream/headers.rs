//! Parses stored header blocks leniently.
//!
//! The server accepts any octets as a header block. The client drops the whole connection on one
//! that it cannot parse, so such a message is fetched alone (`rescue`) and its block is parsed
//! here: usable parts are kept, the rest is left out or replaced, and the first fault is reported.
//! A block has a fault if and only if the client cannot parse it. Source:
//! <https://docs.nats.io/reference/reference-protocols/nats-protocol#hpub>.

use std::borrow::Cow;
use std::str::FromStr;

use async_nats::{HeaderMap, HeaderName, StatusCode};
use bytestring::ByteString;

use crate::event::{self, Header};

const VERSION: &str = "NATS/1.0";

/// The header that says which part of a message's headers was not valid.
const ERROR_HEADER: &str = "foldstream-header-error";

/// A header block that was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Block {
    /// Names and values in their order.
    pub(super) headers: Vec<(String, String)>,
    /// The first part that the client cannot parse.
    pub(super) fault: Option<String>,
}

impl Block {
    /// Parses a block; an empty one has no headers.
    pub(super) fn read(block: &[u8]) -> Self {
        let mut result = Self::default();
        // A message without headers, which is sound.
        if block.is_empty() {
            return result;
        }
        let text = String::from_utf8_lossy(block);
        // Replacement characters were put in, so something was not UTF-8.
        if matches!(text, Cow::Owned(_)) {
            result.note("is not valid UTF-8");
        }
        let mut lines = text.lines().peekable();
        if let Some(first) = lines.peek()
            // A first line with a colon, and without the version, is a header already.
            && (first.starts_with("NATS/") || !first.contains(':'))
        {
            result.version(first);
            lines.next();
        } else {
            result.note("does not begin with `NATS/1.0`");
        }
        while let Some(line) = lines.next() {
            if line.is_empty() {
                // An empty line ends the block; what follows is read all the same.
                continue;
            }
            let Some((name, value)) = line.split_once(':') else {
                result.note("has a line without a colon");
                continue;
            };
            let mut value = value.trim_start().to_owned();
            // A value may continue on lines that begin with white space.
            while let Some(more) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
                value.push_str(more);
            }
            value.truncate(value.trim_end().len());
            result.header(name, value);
        }
        result
    }

    fn version(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix(VERSION).map(str::trim) else {
            return self.note("does not begin with `NATS/1.0`");
        };
        let status = rest
            .split_once(' ')
            .map_or(rest, |(status, _)| status.trim());
        if !status.is_empty() && StatusCode::from_str(status).is_err() {
            self.note("has an unknown status in its first line");
        }
    }

    fn header(&mut self, name: &str, mut value: String) {
        if HeaderName::from_str(name).is_err() {
            return self
                .note("has a name with a space or another character that names cannot have");
        }
        if value.contains('\r') {
            // The client would end the line there.
            self.note("has a value with a lone carriage return");
            value = value.replace('\r', " ");
        }
        // The client accepts an empty name, which means nothing.
        if !name.is_empty() {
            self.headers.push((name.to_owned(), value));
        }
    }

    fn note(&mut self, fault: &str) {
        // Only the first fault is reported: it is what the client stops at.
        self.fault
            .get_or_insert_with(|| format!("its header block {fault}"));
    }
}

/// Header names and values, parsed by the client or by us.
pub(super) trait Headers {
    /// Names, in any case, and values.
    fn each(&self) -> impl Iterator<Item = (&str, &str)>;
}

impl Headers for HeaderMap {
    fn each(&self) -> impl Iterator<Item = (&str, &str)> {
        self.iter().flat_map(|(name, values)| {
            values
                .iter()
                .map(move |value| (name.as_ref(), value.as_str()))
        })
    }
}

impl Headers for Block {
    fn each(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// The headers of an event; if none are wanted, only those on which type and data depend.
pub(super) fn of_event(headers: &impl Headers, wanted: event::Headers) -> Vec<Header> {
    headers
        .each()
        // The client accepts an empty name, which means nothing.
        .filter(|(name, _)| {
            !name.is_empty() && (wanted == event::Headers::Wanted || names_the_type(name))
        })
        .map(|(name, value)| {
            (
                ByteString::from(name.to_ascii_lowercase()),
                ByteString::from(value),
            )
        })
        .collect()
}

/// Whether a message belongs to the broker and is not an event: a delete marker of the server, a
/// tombstone of a key-value bucket, or a schedule, which is a message to be published later.
///
/// Sources: ADR-43, ADR-8 and ADR-51 of <https://github.com/nats-io/nats-architecture-and-design>;
/// names are case-sensitive.
pub(super) fn is_bookkeeping(headers: &impl Headers) -> bool {
    headers.each().any(|(name, value)| match name {
        "Nats-Marker-Reason" | "Nats-Schedule" => true,
        "KV-Operation" => matches!(value, "DEL" | "PURGE"),
        _ => false,
    })
}

/// Adds the header that reports a fault.
pub(super) fn add_fault(headers: &mut Vec<Header>, fault: &str) {
    headers.push((
        ByteString::from_static(ERROR_HEADER),
        ByteString::from(fault),
    ));
}

/// Whether type or data depend on a header: those that `cloudevents` checks if headers are not
/// wanted.
fn names_the_type(name: &str) -> bool {
    ["content-type", "ce-type", "ce_type", "event-type"]
        .iter()
        .any(|wanted| name.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(block: &[u8]) -> (Vec<(String, String)>, Option<String>) {
        let Block { headers, fault } = Block::read(block);
        (headers, fault)
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn sound_block_has_no_fault() {
        for (block, expected) in [
            (&b""[..], &[][..]),
            (b"NATS/1.0\r\n\r\n", &[]),
            (
                b"NATS/1.0\r\nA: 1\r\nB:2 \r\nA: 3\r\n\r\n",
                &[("A", "1"), ("B", "2"), ("A", "3")],
            ),
            (b"NATS/1.0\r\nA: 1\r\n  2\r\n\r\n", &[("A", "1  2")]),
            (b"NATS/1.0 503 No Responders\r\n\r\n", &[]),
        ] {
            assert_eq!(
                read(block),
                (pairs(expected), None),
                "{}",
                String::from_utf8_lossy(block)
            );
        }
    }

    #[test]
    fn bookkeeping_of_the_broker_is_distinguished_from_events() {
        for (block, expected) in [
            (&b"NATS/1.0\r\nNats-Marker-Reason: MaxAge\r\n\r\n"[..], true),
            (b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n", true),
            (
                b"NATS/1.0\r\nKV-Operation: PURGE\r\nNats-Rollup: sub\r\n\r\n",
                true,
            ),
            (
                b"NATS/1.0\r\nNats-Schedule: @at 2030-01-01T00:00:00Z\r\n\r\n",
                true,
            ),
            (b"NATS/1.0\r\nKV-Operation: PUT\r\n\r\n", false),
            (
                b"NATS/1.0\r\nNats-Scheduler: orders.later\r\nNats-Schedule-Next: purge\r\n\r\n",
                false,
            ),
            (b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n", false),
        ] {
            assert_eq!(
                is_bookkeeping(&Block::read(block)),
                expected,
                "{}",
                String::from_utf8_lossy(block)
            );
        }
    }

    #[test]
    fn what_is_usable_is_kept_and_the_fault_is_named() {
        for (block, expected, fault) in [
            (
                &b"NATS/1.0\r\nUser: Jos\xe9\r\nA: 1\r\n\r\n"[..],
                &[("User", "Jos\u{fffd}"), ("A", "1")][..],
                "UTF-8",
            ),
            (
                b"NATS/1.0\r\nUs\xe9r: x\r\nA: 1\r\n\r\n",
                &[("A", "1")],
                "UTF-8",
            ),
            (
                b"NATS/1.0\r\nA: x\ry\r\nB: 2\r\n\r\n",
                &[("A", "x y"), ("B", "2")],
                "carriage return",
            ),
            (
                b"NATS/1.0\r\nmy key: x\r\nB: 2\r\n\r\n",
                &[("B", "2")],
                "name",
            ),
            (
                b"NATS/1.0\r\nno colon\r\nB: 2\r\n\r\n",
                &[("B", "2")],
                "colon",
            ),
            (
                b"NATS/1.0 wrong status\r\nB: 2\r\n\r\n",
                &[("B", "2")],
                "status",
            ),
            (b"NATS/2.0\r\nB: 2\r\n\r\n", &[("B", "2")], "NATS/1.0"),
            (b"B: 2\r\n\r\n", &[("B", "2")], "NATS/1.0"),
            (b"garbage", &[], "NATS/1.0"),
        ] {
            let (headers, found) = read(block);
            assert_eq!(
                headers,
                pairs(expected),
                "{}",
                String::from_utf8_lossy(block)
            );
            assert!(
                found.as_ref().is_some_and(|found| found.contains(fault)),
                "{fault}: {found:?}"
            );
        }
    }
}
