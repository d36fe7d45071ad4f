//! What a guest may publish: limits, subjects and headers. These checks are part of the fold, so a
//! mute fold makes them too; only grants are the owner's.

use super::headers::reserved;
use super::reply::is_reply;
use crate::event::Payload;
use crate::subject;

/// Most effects of one event.
pub const EFFECTS_PER_EVENT_MAX: u32 = 10_000;
/// Largest message, in bytes: subject, type, key, headers and data. With the host's headers it
/// stays below the 1 MiB that NATS servers accept by default.
pub const MESSAGE_BYTES_MAX: usize = 768 << 10;
/// Most headers of a guest.
const HEADERS_MAX: usize = 32;
/// Longest name of a header, in bytes.
const HEADER_NAME_BYTES_MAX: usize = 128;
/// Longest value of a header, in bytes.
const HEADER_VALUE_BYTES_MAX: usize = 8_192;
/// Longest type, in bytes.
const KIND_BYTES_MAX: usize = 1_024;
/// Longest key of a message, in bytes.
const KEY_BYTES_MAX: usize = 1_024;

/// Why a message is refused; the name of the limit comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Name of the limit.
    pub limit: &'static str,
    /// What happened, and what to do.
    pub message: String,
}

impl Refused {
    pub(super) fn of(limit: &'static str, message: String) -> Self {
        Self { limit, message }
    }
}

/// A message as the guest passed it.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    /// Its subject.
    pub subject: &'a str,
    /// Its type, if the guest gave one.
    pub kind: Option<&'a str>,
    /// Its key, if the guest gave one.
    pub key: Option<&'a str>,
    /// Its headers.
    pub headers: &'a [(String, String)],
    /// Its data.
    pub data: &'a Payload,
}

/// Checks a message as the guest passed it. The subject is checked against the manifest elsewhere.
pub fn check(draft: Draft<'_>) -> Result<(), Refused> {
    let Draft {
        subject,
        kind,
        key,
        headers,
        data,
    } = draft;
    let subject_bytes = subject.len();
    subject::validate(subject).map_err(|error| Refused::of("outbox-subject", error.to_string()))?;
    // `$` is the server's own, `_` the prefix of inboxes and of firings.
    if subject.starts_with(['$', '_']) && !is_reply(subject) {
        let message = format!(
            "subject `{subject}` belongs to the server or the host; use another first token"
        );
        return Err(Refused::of("outbox-subject", message));
    }
    let sound = |kind: &str| {
        (1..=KIND_BYTES_MAX).contains(&kind.len()) && !kind.chars().any(char::is_control)
    };
    if kind.is_some_and(|kind| !sound(kind)) {
        let message = format!(
            "a type is empty, longer than {KIND_BYTES_MAX} bytes or has control characters"
        );
        return Err(Refused::of("outbox-type", message));
    }
    if let Some(length) = key.map(str::len).filter(|length| *length > KEY_BYTES_MAX) {
        let message =
            format!("a key has {length} bytes, {KEY_BYTES_MAX} are allowed; use a shorter one");
        return Err(Refused::of("outbox-key", message));
    }
    // Before the sum, whose numbers it bounds.
    check_headers(headers)?;
    let header_bytes: usize = headers
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    let words = kind.map_or(0, str::len) + key.map_or(0, str::len);
    let bytes = subject_bytes + words + header_bytes + data.len();
    if bytes > MESSAGE_BYTES_MAX {
        let message = format!(
            "a message to {subject} has {bytes} bytes, {MESSAGE_BYTES_MAX} are allowed; store \
             large data elsewhere and refer to it"
        );
        return Err(Refused::of("outbox-message-bytes", message));
    }
    Ok(())
}

fn check_headers(headers: &[(String, String)]) -> Result<(), Refused> {
    let refused = |message: String| Err(Refused::of("outbox-headers", message));
    if headers.len() > HEADERS_MAX {
        return refused(format!(
            "{} headers; use at most {HEADERS_MAX}",
            headers.len()
        ));
    }
    // The characters of a token in RFC 9110, which every target takes.
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    for (index, (name, value)) in headers.iter().enumerate() {
        let shown: String = name.chars().take(64).collect();
        if name.is_empty() || name.len() > HEADER_NAME_BYTES_MAX || !name.bytes().all(token) {
            return refused(format!(
                "header {shown:?} has a name that is empty, longer than {HEADER_NAME_BYTES_MAX} \
                 bytes or has characters other than letters, digits and -._"
            ));
        }
        if reserved(name) {
            return refused(format!(
                "header {shown} is set by the host or steers the server; leave it out"
            ));
        }
        if value.len() > HEADER_VALUE_BYTES_MAX || value.chars().any(char::is_control) {
            return refused(format!(
                "header {shown} has a value with control characters or longer than \
                 {HEADER_VALUE_BYTES_MAX} bytes; put it into the data"
            ));
        }
        // Few headers, so the square of their number does not matter.
        if headers[..index]
            .iter()
            .any(|(other, _)| other.eq_ignore_ascii_case(name))
        {
            return refused(format!("header {shown} is there twice; send it once"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft<'a>(subject: &'a str, data: &'a Payload) -> Draft<'a> {
        Draft {
            subject,
            kind: None,
            key: None,
            headers: &[],
            data,
        }
    }

    fn limit(subject: &str, headers: &[(&str, &str)]) -> Option<&'static str> {
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let data = Payload::from("{}");
        let draft = Draft {
            headers: &headers,
            ..draft(subject, &data)
        };
        check(draft).err().map(|refused| refused.limit)
    }

    #[test]
    fn headers_that_steer_the_server_are_refused_whatever_their_case() {
        assert_eq!(limit("a.b", &[("X-Note", "1"), ("ce-priority", "2")]), None);
        for name in [
            "Nats-Msg-Id",
            "nats-expected-last-msg-id",
            "NATS-ROLLUP",
            "Nats-TTL",
            "Nats-Schedule",
            "Foldstream-Path",
            "Content-Type",
            "Ce-Id",
            "ce-causationid",
            "TraceParent",
            "KV-Operation",
        ] {
            assert_eq!(
                limit("a.b", &[(name, "1")]),
                Some("outbox-headers"),
                "{name}"
            );
        }
        assert_eq!(
            limit("a.b", &[("a", "x\r\nNats-Rollup: all")]),
            Some("outbox-headers")
        );
        assert_eq!(limit("a.b", &[("a b", "1")]), Some("outbox-headers"));
        assert_eq!(
            limit("a.b", &[("a", "1"), ("A", "2")]),
            Some("outbox-headers")
        );
        assert_eq!(limit("a.b", &vec![("a", "1"); 33]), Some("outbox-headers"));
    }

    #[test]
    fn subjects_of_the_server_and_the_host_are_refused() {
        for subject in [
            "",
            "a..b",
            "a.*",
            ">",
            "$JS.API.STREAM.DELETE.A",
            "_INBOX.*",
            "_INBOX.",
            "_INBOX",
            "_fs.timers.a",
            "a b",
        ] {
            assert_eq!(limit(subject, &[]), Some("outbox-subject"), "{subject}");
        }
    }

    #[test]
    fn large_messages_are_refused_by_name() {
        let data = Payload::from("x".repeat(MESSAGE_BYTES_MAX));
        let refused = check(draft("a", &data)).expect_err("is refused");
        assert_eq!(refused.limit, "outbox-message-bytes");
        let empty = Payload::from("");
        let without_type = Draft {
            kind: Some(""),
            ..draft("a", &empty)
        };
        let refused = check(without_type).expect_err("is refused");
        assert_eq!(refused.limit, "outbox-type");
        let with_long_key = Draft {
            key: Some(&"k".repeat(2_000)),
            ..draft("a", &empty)
        };
        let refused = check(with_long_key).expect_err("is refused");
        assert_eq!(refused.limit, "outbox-key");
    }
}
