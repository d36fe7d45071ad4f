//! Checks and encodes events to append, on the caller's thread, so that the
//! committing thread only stamps and copies.

use std::ops::Range;
use std::time::Duration;

use bytestring::ByteString;
use sha2::{Digest, Sha256};

use super::chunk::{self, FLAG_HEADERS, FLAG_ID, FLAG_KIND, FLAG_STRUCTURED, ID_HEADER};
use super::{Error, NewEvent, Options};
use crate::cloudevents::message;
use crate::event::Header;
use crate::subject;

/// Most events in one append.
pub const APPEND_EVENTS_MAX: usize = 10_000;
/// Most bytes in one append: subjects, headers and data.
pub const APPEND_BYTES_MAX: usize = 64 << 20;
/// Most headers of an event.
pub const HEADERS_MAX: usize = 64;
/// Longest name of a header, in bytes.
pub const HEADER_NAME_BYTES_MAX: usize = 128;
/// Longest value of a header, in bytes; room for a long `tracestate` and for percent-encoded
/// attributes.
pub const HEADER_VALUE_BYTES_MAX: usize = 8_192;
/// Longest message id, in bytes.
pub const ID_BYTES_MAX: usize = 512;
/// Longest type, in bytes.
pub const KIND_BYTES_MAX: usize = 1_024;

/// A message id, by which duplicates are recognised: 128 bits of SHA-256, so that two ids never
/// collide by chance.
pub(super) type IdKey = [u64; 2];

/// The key of a message id.
pub(super) fn id_key(id: &str) -> IdKey {
    let digest = Sha256::digest(id.as_bytes());
    let word = |at: usize| u64::from_le_bytes(digest[at..at + 8].try_into().expect("eight bytes"));
    [word(0), word(8)]
}

/// A checked and encoded event.
pub(super) struct Encoded {
    pub flags: u8,
    /// Its body, in the request's buffer.
    pub body: Range<usize>,
    /// Its subject, in the request's buffer.
    pub subject: Range<usize>,
    /// Its size as the log counts it.
    pub bytes: u64,
    /// Its requested time.
    pub time_ns: Option<u64>,
    pub id: Option<IdKey>,
}

/// All events of one append.
pub(super) struct Encoding {
    pub buffer: Vec<u8>,
    pub events: Vec<Encoded>,
}

impl Encoding {
    /// Checks and encodes; the error names the first bad event.
    pub(super) fn of(events: &[NewEvent], options: &Options, now_ns: u64) -> Result<Self, Error> {
        let at = |index: usize| move |message: String| Error::Invalid { index, message };
        if events.is_empty() {
            return Err(at(0)("no events; append 1 to 10,000 at once".to_owned()));
        }
        if events.len() > APPEND_EVENTS_MAX {
            let message = format!(
                "{} events in one append; send at most {APPEND_EVENTS_MAX} at once",
                events.len()
            );
            return Err(at(APPEND_EVENTS_MAX)(message));
        }
        let mut encoding = Self {
            buffer: Vec::new(),
            events: Vec::with_capacity(events.len()),
        };
        let mut total = 0;
        for (index, event) in events.iter().enumerate() {
            total += encoding.push(event, options, now_ns).map_err(at(index))?;
            if total > APPEND_BYTES_MAX as u64 {
                return Err(at(index)(format!(
                    "the append is larger than {APPEND_BYTES_MAX} bytes; send less at once"
                )));
            }
        }
        Ok(encoding)
    }

    fn push(&mut self, event: &NewEvent, options: &Options, now_ns: u64) -> Result<u64, String> {
        // Everything is checked before anything is written to the buffer.
        subject::validate(&event.subject).map_err(|error| error.to_string())?;
        let headers = headers_of(event)?;
        let bytes = size_of(event, &headers, options)?;
        if let (Some(time_ns), Some(max)) = (event.time_ns, options.future_max)
            && Duration::from_nanos(time_ns.saturating_sub(now_ns)) > max
        {
            return Err(format!(
                "its time is more than {} minutes ahead of this machine's clock, and every later \
                 event would get it, because the times of a log never go back; check both clocks, \
                 or leave the time out",
                max.as_secs() / 60
            ));
        }
        let kind = kind_of(event, &headers)?;
        let id = headers
            .iter()
            .find(|(name, _)| name == ID_HEADER)
            .map(|(_, id)| id_key(id));

        let start = self.buffer.len();
        chunk::put_bytes(&mut self.buffer, event.subject.as_bytes());
        // Behind its length, which has just been written.
        let subject = self.buffer.len() - event.subject.len()..self.buffer.len();
        let mut flags = 0;
        if id.is_some() {
            flags |= FLAG_ID;
        }
        if let Some(kind) = kind {
            flags |= FLAG_KIND;
            chunk::put_bytes(&mut self.buffer, kind.as_bytes());
        }
        if !headers.is_empty() {
            flags |= FLAG_HEADERS;
            // Reading it needs its headers, whatever the module wants.
            if message::is_announced(&headers) {
                flags |= FLAG_STRUCTURED;
            }
            // Of its own, because its length comes first.
            let mut part = Vec::new();
            for (name, value) in &headers {
                chunk::put_bytes(&mut part, name.as_bytes());
                chunk::put_bytes(&mut part, value.as_bytes());
            }
            chunk::put_bytes(&mut self.buffer, &part);
        }
        chunk::put_bytes(&mut self.buffer, event.data.as_bytes());
        // Everything but flags and time, which the committing thread adds.
        let body = start..self.buffer.len();
        self.events.push(Encoded {
            flags,
            body,
            subject,
            bytes,
            time_ns: event.time_ns,
            id,
        });
        Ok(bytes)
    }
}

/// The headers as stored: lower-case names, including the message id.
fn headers_of(event: &NewEvent) -> Result<Vec<Header>, String> {
    if event.headers.len() > HEADERS_MAX {
        return Err(format!(
            "{} headers; send at most {HEADERS_MAX}",
            event.headers.len()
        ));
    }
    let mut id = event.id.clone();
    let mut headers = Vec::with_capacity(event.headers.len() + usize::from(id.is_some()));
    for (name, value) in &event.headers {
        let name = header_name(name)?;
        if value.len() > HEADER_VALUE_BYTES_MAX
            || value.chars().any(|one| one.is_control() && one != '\t')
        {
            return Err(format!(
                "header {name} has a value with control characters or longer than \
                 {HEADER_VALUE_BYTES_MAX} bytes; put it into the data"
            ));
        }
        if name == ID_HEADER {
            // Both name the id; which of them counts must not be a guess.
            if id.as_ref().is_some_and(|other| other != value) {
                return Err("its id and its header Nats-Msg-Id differ; send one of them".to_owned());
            }
            id = Some(value.clone());
        } else if name.starts_with("nats-") {
            return Err(format!(
                "header {name} is reserved for the NATS server; only Nats-Msg-Id may be sent"
            ));
        } else {
            headers.push((ByteString::from(name), ByteString::from(value.as_str())));
        }
    }
    if let Some(id) = id {
        if id.is_empty() || id.len() > ID_BYTES_MAX || id.chars().any(char::is_control) {
            return Err(format!(
                "its id is empty, longer than {ID_BYTES_MAX} bytes or has control characters"
            ));
        }
        // Last, and once: readers find it under one name.
        headers.push((ByteString::from_static(ID_HEADER), ByteString::from(id)));
    }
    Ok(headers)
}

/// A header's name in lower case; the characters are those of a token in RFC 9110.
fn header_name(name: &str) -> Result<String, String> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > HEADER_NAME_BYTES_MAX || !name.bytes().all(token) {
        // Debug output of a string ignores the precision, and an error must not be as long as the
        // name.
        let shown: String = name.chars().take(64).collect();
        return Err(format!(
            "header {shown:?} has a name that is empty, longer than {HEADER_NAME_BYTES_MAX} bytes \
             or has characters other than letters, digits and -._"
        ));
    }
    Ok(name.to_ascii_lowercase())
}

/// The size of the event as the log counts it, if it is small enough.
fn size_of(event: &NewEvent, headers: &[Header], options: &Options) -> Result<u64, String> {
    let headers: usize = headers
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    let bytes = event.subject.len() + headers + event.data.len();
    if bytes > options.event_bytes_max {
        let max = options.event_bytes_max;
        return Err(format!(
            "it has {bytes} bytes, and the log accepts {max}; store large data elsewhere and refer \
             to it"
        ));
    }
    if let Some(max) = options.max_bytes.filter(|max| bytes as u64 > *max) {
        return Err(format!(
            "it has {bytes} bytes, and the whole log keeps {max}; raise max_bytes"
        ));
    }
    Ok(bytes as u64)
}

/// The type to store: the given one, or that of the headers, so that a reader that needs no headers
/// does not parse them.
fn kind_of(event: &NewEvent, headers: &[Header]) -> Result<Option<ByteString>, String> {
    let kind = match &event.kind {
        Some(kind) => Some(ByteString::from(kind.as_str())),
        // A structured event has its type in its data.
        None if message::is_announced(headers) => None,
        None => message::kind_of_headers(headers),
    };
    let sound = |kind: &ByteString| {
        !kind.is_empty() && kind.len() <= KIND_BYTES_MAX && !kind.chars().any(char::is_control)
    };
    match kind {
        Some(kind) if !sound(&kind) => Err(format!(
            "its type is empty, longer than {KIND_BYTES_MAX} bytes or has control characters"
        )),
        kind => Ok(kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Payload;

    fn event() -> NewEvent {
        NewEvent {
            subject: "orders.1.placed".to_owned(),
            kind: None,
            id: None,
            time_ns: None,
            headers: Vec::new(),
            data: Payload::from("{}"),
        }
    }

    fn refusal(change: impl FnOnce(&mut NewEvent)) -> String {
        let mut bad = event();
        change(&mut bad);
        match Encoding::of(
            &[event(), bad],
            &Options {
                max_bytes: Some(1 << 20),
                ..Options::default()
            },
            1_000,
        ) {
            Err(Error::Invalid { index: 1, message }) => message,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("was accepted"),
        }
    }

    fn header(name: &str, value: &str) -> Vec<(String, String)> {
        vec![(name.to_owned(), value.to_owned())]
    }

    #[test]
    fn bad_events_are_refused_with_their_index() {
        assert!(refusal(|event| event.subject = "a.*".to_owned()).contains("wildcard"));
        assert!(refusal(|event| event.kind = Some(String::new())).contains("type"));
        assert!(refusal(|event| event.id = Some("x".repeat(600))).contains("id"));
        assert!(refusal(|event| event.time_ns = Some(u64::MAX)).contains("clock"));
        assert!(refusal(|event| event.headers = header("a b", "1")).contains("name"));
        assert!(refusal(|event| event.headers = header("", "1")).contains("name"));
        assert!(refusal(|event| event.headers = header(&"x".repeat(100_000), "1")).len() < 400);
        assert!(refusal(|event| event.headers = header("a", "x\r\ny: z")).contains("control"));
        assert!(
            refusal(|event| event.headers = header("a", &"x".repeat(9_000))).contains("longer")
        );
        assert!(
            refusal(|event| event.headers = vec![("a".to_owned(), String::new()); 65])
                .contains("65 headers")
        );
        assert!(
            refusal(|event| event.headers = header("Nats-Expected-Last-Msg-Id", "1"))
                .contains("NATS server")
        );
        assert!(
            refusal(|event| event.data = Payload::from("x".repeat(9 << 20))).contains("accepts")
        );
        assert!(
            refusal(|event| event.data = Payload::from("x".repeat(2 << 20))).contains("max_bytes")
        );
        assert!(
            refusal(|event| {
                event.id = Some("1".to_owned());
                event.headers = header("NATS-Msg-Id", "2");
            })
            .contains("differ")
        );
    }

    #[test]
    fn too_many_or_no_events_are_refused() {
        let options = Options::default();
        assert!(matches!(
            Encoding::of(&[], &options, 0),
            Err(Error::Invalid { index: 0, .. })
        ));
        let many = vec![event(); APPEND_EVENTS_MAX + 1];
        assert!(matches!(
            Encoding::of(&many, &options, 0),
            Err(Error::Invalid { .. })
        ));
        assert!(Encoding::of(&many[1..], &options, 0).is_ok());
        let mut large = event();
        large.data = Payload::from("x".repeat(8 << 20 >> 1));
        assert!(matches!(
            Encoding::of(&vec![large; 20], &options, 0),
            Err(Error::Invalid { index: 15, .. })
        ));
    }

    #[test]
    fn message_id_is_the_same_as_field_and_as_header() {
        let mut field = event();
        field.id = Some("7".to_owned());
        let mut as_header = event();
        as_header.headers = header("Nats-Msg-Id", "7");
        let encoding = Encoding::of(&[field, as_header], &Options::default(), 0).expect("sound");
        let body = |index: usize| &encoding.buffer[encoding.events[index].body.clone()];
        assert_eq!(body(0), body(1));
        assert_eq!(encoding.events[0].id, encoding.events[1].id);
        assert!(encoding.events[0].id.is_some());
    }
}
