//! Headers of effects: those that only the host sets, and their values.
//!
//! Effects are CloudEvents in the binary form of the NATS binding. Correlation, causation and trace
//! context continue those of the event that caused the effect.

use sha2::{Digest, Sha256};

use crate::event::{Event, Payload};

/// Longest header of an event that its effects continue, in bytes.
const CONTINUED_MAX: usize = 1_024;

/// Whether only the host or the server sets a header, by a name in any case: servers tell names
/// apart by case, but what reads an event need not.
pub fn reserved(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // `kv-`: the server and its clients steer key-value buckets with such headers.
    let is_ours =
        name.starts_with("nats-") || name.starts_with("foldstream-") || name.starts_with("kv-");
    is_ours
        || matches!(
            name.as_str(),
            "content-type"
                | "event-type"
                | "traceparent"
                | "tracestate"
                | "ce-id"
                | "ce-source"
                | "ce-type"
                | "ce-specversion"
                | "ce-correlationid"
                | "ce-causationid"
        )
}

/// A message of a handler, as far as the host's headers represent it.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// The deployment that publishes it.
    pub deployment: &'a str,
    /// Its id.
    pub id: &'a str,
    /// Its type.
    pub kind: &'a str,
    /// Its data.
    pub data: &'a Payload,
}

/// The host's headers of a message that an event causes.
pub fn outgoing(message: Outgoing<'_>, cause: &Event) -> Vec<(String, String)> {
    let Outgoing {
        deployment,
        id,
        kind,
        data,
    } = message;
    let mut headers = vec![
        ("ce-specversion".to_owned(), "1.0".to_owned()),
        ("ce-id".to_owned(), id.to_owned()),
        ("ce-source".to_owned(), format!("/foldstream/{deployment}")),
        ("ce-type".to_owned(), kind.to_owned()),
        ("content-type".to_owned(), content_type(data).to_owned()),
    ];
    // An event of ours has the first, one of any other publisher perhaps the second.
    let own_id = sound(cause, "ce-id").or_else(|| sound(cause, "nats-msg-id"));
    // Without an id its sequence has to do, within its own stream.
    let causation = own_id.map_or_else(|| cause.sequence.to_string(), str::to_owned);
    let correlation =
        sound(cause, "ce-correlationid").map_or_else(|| causation.clone(), str::to_owned);
    headers.push(("ce-correlationid".to_owned(), correlation));
    headers.push(("ce-causationid".to_owned(), causation));
    if let Some(parent) = cause
        .header("traceparent")
        .and_then(|parent| next_span(parent, id))
    {
        headers.push(("traceparent".to_owned(), parent));
        // The state belongs to the trace, and means nothing without the parent.
        headers.extend(
            sound(cause, "tracestate").map(|state| ("tracestate".to_owned(), state.to_owned())),
        );
    }
    headers
}

/// Headers that represent an event once it is no longer at hand: what its effects would
/// continue, also if a timer causes them later.
pub fn continued(cause: &Event) -> Vec<(String, String)> {
    let own_id = sound(cause, "ce-id").or_else(|| sound(cause, "nats-msg-id"));
    let causation = own_id.map_or_else(|| cause.sequence.to_string(), str::to_owned);
    let correlation =
        sound(cause, "ce-correlationid").map_or_else(|| causation.clone(), str::to_owned);
    let mut headers = vec![
        ("ce-id".to_owned(), causation),
        ("ce-correlationid".to_owned(), correlation),
    ];
    for name in ["traceparent", "tracestate"] {
        headers.extend(sound(cause, name).map(|value| (name.to_owned(), value.to_owned())));
    }
    headers
}

/// Headers of a message that stands for the later turn of what these headers continue: the firing of
/// a timer, for those who read it as an event.
pub fn caused_by(continued: &[(String, String)]) -> Vec<(String, String)> {
    let name = |name: &String| match name.as_str() {
        // It is caused by that event, and has an id of its own.
        "ce-id" => "ce-causationid".to_owned(),
        _ => name.clone(),
    };
    let headers = continued.iter();
    headers
        .map(|(known, value)| (name(known), value.clone()))
        .collect()
}

/// A header of an event, if every target takes it: what a stranger published must not make an
/// effect impossible to send.
fn sound<'a>(cause: &'a Event, name: &str) -> Option<&'a str> {
    let is_sound = |value: &&str| {
        !value.is_empty() && value.len() <= CONTINUED_MAX && !value.chars().any(char::is_control)
    };
    cause.header(name).filter(is_sound)
}

/// Text that begins like a JSON object or array is declared as JSON.
fn content_type(data: &Payload) -> &'static str {
    match data.as_str() {
        Some(text) if text.trim_ascii_start().starts_with(['{', '[']) => "application/json",
        Some(_) => "text/plain; charset=utf-8",
        None => "application/octet-stream",
    }
}

/// The same trace with a span of its own, which depends on the effect alone; none if the parent is
/// not a trace parent of version 0 (<https://www.w3.org/TR/trace-context/>).
fn next_span(parent: &str, id: &str) -> Option<String> {
    let parts: Vec<&str> = parent.split('-').collect();
    let [version, trace, span, flags] = parts[..] else {
        return None;
    };
    let is_hex = |text: &str, length: usize| {
        text.len() == length
            && text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let is_sound = version == "00" && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2);
    if !is_sound {
        return None;
    }
    // Eight bytes of a digest: the same effect has the same span, however often it is sent.
    let digest = Sha256::digest(id.as_bytes());
    let own: String = digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Some(format!("00-{trace}-{own}-{flags}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::{Lineage, Place};

    fn cause(headers: &[(&str, &str)]) -> Event {
        Event {
            sequence: 7,
            time_ns: 1,
            subject: "orders.1.placed".into(),
            kind: "placed".into(),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            data: Payload::from("{}"),
        }
    }

    fn header(cause: &Event, name: &str) -> Option<String> {
        let place = Place {
            sequence: 7,
            sub: 0,
            index: 0,
        };
        let message = Outgoing {
            deployment: "ship",
            id: &place.id(Lineage(1)),
            kind: "ship",
            data: &Payload::from("{}"),
        };
        let headers = outgoing(message, cause);
        headers
            .into_iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value)
    }

    #[test]
    fn correlation_and_causation_continue_those_of_the_cause() {
        let plain = cause(&[]);
        assert_eq!(header(&plain, "ce-causationid").as_deref(), Some("7"));
        let known = cause(&[("ce-id", "e-1"), ("ce-correlationid", "c-1")]);
        assert_eq!(header(&known, "ce-causationid").as_deref(), Some("e-1"));
        assert_eq!(header(&known, "ce-correlationid").as_deref(), Some("c-1"));
        assert_eq!(
            header(&known, "ce-id").as_deref(),
            Some("fs.0000000000000001.7.0.0")
        );
        assert_eq!(
            header(&known, "content-type").as_deref(),
            Some("application/json")
        );
    }

    #[test]
    fn hostile_headers_of_the_cause_are_not_continued() {
        let long = "x".repeat(2_000);
        for value in ["a\u{1}b", "", long.as_str()] {
            let hostile = cause(&[("ce-id", value), ("ce-correlationid", value)]);
            assert_eq!(header(&hostile, "ce-causationid").as_deref(), Some("7"));
            assert_eq!(header(&hostile, "ce-correlationid").as_deref(), Some("7"));
        }
    }

    #[test]
    fn trace_continues_with_a_span_of_its_own() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let found =
            header(&cause(&[("traceparent", parent)]), "traceparent").expect("it continues");
        assert!(
            found.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && found.ends_with("-01"),
            "{found}"
        );
        assert_ne!(found, parent);
        assert_eq!(
            header(&cause(&[("traceparent", "nonsense")]), "traceparent"),
            None
        );
    }
}
