//! Converts messages to events: CloudEvents in all their forms become one form for guests.
//!
//! In each form attributes become headers `ce-<name>`; `datacontenttype`
//! becomes `content-type`, and `traceparent` and `tracestate` keep their names,
//! unless the message itself has such a header. The data of a structured event
//! is only its `data`, as written. Nothing here fails: a message that is not a
//! CloudEvent passes unchanged, and an invalid CloudEvent gets a header that
//! says why. `crate::cloudevents` defines CloudEvents.

use std::collections::HashSet;

use bytes::Bytes;
use bytestring::ByteString;

use super::{
    Data, Envelope, Error, Form, HEADER_PREFIX, KAFKA_PREFIX, Outlook, Recognition, check_name,
    check_required, check_text, form, is_ours, percent, recognise,
};
use crate::event::{Event, Header, Headers, Payload};

/// The header that says why an intended CloudEvent is not read as one.
pub(crate) const NOTE_HEADER: &str = "foldstream-cloudevent-error";

/// The data that a source stores under a sequence.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) sequence: u64,
    pub(crate) time_ns: u64,
    pub(crate) subject: ByteString,
    /// Names are in lower case.
    pub(crate) headers: Vec<Header>,
    pub(crate) data: Bytes,
}

/// Options for reading messages. Type and data of an event do not depend on whether headers are
/// wanted.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Which messages are CloudEvents.
    pub recognition: Recognition,
    /// Whether events carry headers.
    pub headers: Headers,
}

/// Converts a message to an event: recognises CloudEvents, determines the type, sorts the headers.
pub(crate) fn into_event(message: Message, reading: Reading) -> Event {
    let Message {
        sequence,
        time_ns,
        subject,
        headers,
        data,
    } = message;
    let parts = match reading.recognition {
        Recognition::Off => Parts {
            kind: header(&headers, "event-type").cloned(),
            headers,
            data: None,
        },
        _ => parts_of(headers, &data, reading),
    };
    // Type and data are needed also if headers are not wanted: see `Reading`.
    let kind = parts.kind.unwrap_or_else(|| kind_of_subject(&subject));
    let mut headers = if reading.headers == Headers::Wanted {
        parts.headers
    } else {
        Vec::new()
    };
    // Stable, so that several headers of one name stay in their order.
    headers.sort_by(|(one, _), (other, _)| one.cmp(other));
    let data = parts.data.unwrap_or_else(|| Payload::detect(data));
    Event {
        sequence,
        time_ns,
        subject,
        kind,
        headers,
        data,
    }
}

/// How a message is read.
pub(crate) enum ReadAs {
    /// Words that follow "read as".
    Kind(&'static str),
    /// As a plain event, though it was meant to be a CloudEvent: why it is none.
    Plain(String),
}

/// Says how a message is read.
pub(crate) fn describe(message: Message, recognition: Recognition) -> ReadAs {
    let has_any = |names: &[&str]| {
        names
            .iter()
            .any(|name| header(&message.headers, name).is_some())
    };
    let (has_form, has_type) = (
        form_of(&message.headers).is_some(),
        has_any(&["ce-type", "ce_type"]),
    );
    let has_kind = has_any(&["event-type"]);
    // Before the message is moved; what it is read as may be less than what it looks like.
    let looks_like = matches!(recognise(&message.data), Outlook::Event(_));
    let event = into_event(
        message,
        Reading {
            recognition,
            headers: Headers::Wanted,
        },
    );
    if let Some(note) = event.header(NOTE_HEADER) {
        return ReadAs::Plain(note.to_owned());
    }
    let is_cloud_event = recognition != Recognition::Off && event.header("ce-id").is_some();
    ReadAs::Kind(match recognition {
        _ if is_cloud_event && has_form => "CloudEvents in JSON",
        _ if is_cloud_event && has_type => "CloudEvents with their attributes in headers",
        _ if is_cloud_event => "CloudEvents in JSON, recognised by their attributes",
        Recognition::Off if has_form || has_type || looks_like => {
            "plain events, although they look like CloudEvents, because `cloudevents` of the \
             source is `off`"
        }
        Recognition::Headers if looks_like => {
            "plain events, although their JSON looks like CloudEvents, because `cloudevents` of \
             the source is `headers`"
        }
        _ if has_kind => "plain events, whose type is their header Event-Type",
        _ => "plain events, whose type is the last token of their subject",
    })
}

/// Whether the type and data of an event with these headers can be determined from its data alone.
pub(crate) fn is_announced(headers: &[Header]) -> bool {
    matches!(form_of(headers), Some(Form::Structured | Form::Unknown))
}

/// The type in the headers: the CloudEvents `type`, otherwise `Event-Type`.
pub(crate) fn kind_of_headers(headers: &[Header]) -> Option<ByteString> {
    if let Some(value) = header(headers, "ce-type") {
        return Some(
            // A type that decodes to nothing, or to no text, is taken as it was written.
            percent::decode(value)
                .filter(|text| !text.is_empty())
                .map_or_else(|| value.clone(), |text| same(value, &text)),
        );
    }
    header(headers, "ce_type")
        .or_else(|| header(headers, "event-type"))
        .cloned()
}

/// The parts of an event from a message or an envelope; without data, the message's own data is
/// used.
struct Parts {
    kind: Option<ByteString>,
    headers: Vec<Header>,
    data: Option<Payload>,
}

fn parts_of(headers: Vec<Header>, data: &Bytes, reading: Reading) -> Parts {
    // Attributes in headers make it binary: its data is data, whatever it looks like.
    let is_binary = || {
        header(&headers, "ce-type")
            .or_else(|| header(&headers, "ce_type"))
            .is_some()
    };
    let outlook = match form_of(&headers) {
        Some(Form::Structured) => {
            Envelope::parse(data).map_or_else(Outlook::Malformed, Outlook::Event)
        }
        Some(Form::Batch) => Outlook::Malformed(Error::Json(
            "a stream treats a message with a batch as one event; publish each event in a \
             separate message"
                .to_owned(),
        )),
        Some(Form::Unknown) => match recognise(data) {
            Outlook::Plain => Outlook::Malformed(Error::Json(
                "its content type names a format that this host does not support; publish \
                 application/cloudevents+json"
                    .to_owned(),
            )),
            outlook => outlook,
        },
        None if reading.recognition == Recognition::Auto && !is_binary() => recognise(data),
        None => Outlook::Plain,
    };
    match outlook {
        Outlook::Event(envelope) => opened(headers, &envelope, data, reading),
        // Read as what it is without a CloudEvent, so that nothing is lost, with a note that says
        // why.
        Outlook::Malformed(error) => {
            let mut parts = binary(headers, reading);
            if reading.headers == Headers::Wanted {
                note(&mut parts.headers, &error);
            }
            parts
        }
        Outlook::Plain => binary(headers, reading),
    }
}

/// An envelope as the parts of an event. Its attributes replace headers of the same names.
fn opened(
    mut headers: Vec<Header>,
    envelope: &Envelope<'_>,
    message: &Bytes,
    reading: Reading,
) -> Parts {
    let data = match &envelope.data {
        Data::None => Payload::Text(ByteString::new()),
        Data::Json(value) => Payload::Text(share(message, value.get())),
        Data::Text(text) => Payload::Text(share(message, text)),
        Data::Bytes(bytes) => Payload::detect(Bytes::copy_from_slice(bytes)),
    };
    let kind = Some(share(message, envelope.required("type")));
    if reading.headers == Headers::Wanted {
        let attributes: Vec<Header> = envelope
            .attributes()
            .filter(|(name, _)| *name != "datacontenttype" && !is_ours(name))
            .map(|(name, text)| {
                (
                    ByteString::from(format!("{HEADER_PREFIX}{name}")),
                    share(message, text),
                )
            })
            .collect();
        // Attributes win: the envelope is the event, the message only its transport.
        let names: HashSet<&str> = attributes.iter().map(|(name, _)| &**name).collect();
        headers.retain(|(name, _)| name != "content-type" && !names.contains(&**name));
        drop(names);
        headers.extend(attributes);
        if let Some(content_type) = envelope.content_type() {
            headers.push((
                ByteString::from_static("content-type"),
                share(message, content_type),
            ));
        }
        settle_trace(&mut headers);
    }
    Parts {
        kind,
        headers,
        data: Some(data),
    }
}

/// A message whose attributes are its headers, if it has any.
fn binary(mut headers: Vec<Header>, reading: Reading) -> Parts {
    // Before the values are decoded, so that none is decoded twice.
    let kind = kind_of_headers(&headers);
    if reading.headers == Headers::Wanted
        && let Err(error) = settle_binary(&mut headers)
    {
        note(&mut headers, &error);
    }
    Parts {
        kind,
        headers,
        data: None,
    }
}

/// Collects names and values of attributes; the error is the first one that makes the CloudEvent
/// invalid.
fn settle_binary(headers: &mut Vec<Header>) -> Result<(), Error> {
    let has_any = |prefix: &str| headers.iter().any(|(name, _)| name.starts_with(prefix));
    if has_any(KAFKA_PREFIX) {
        settle_kafka(headers);
    } else if !has_any(HEADER_PREFIX) {
        return Ok(());
    }
    let mut result = Ok(());
    for (header, value) in headers.iter_mut() {
        let Some(name) = header.strip_prefix(HEADER_PREFIX) else {
            continue;
        };
        let decoded = percent::decode(value);
        let checked = match &decoded {
            None => Err(Error::Attribute {
                name: format!("attribute {name:.64}"),
                reason: "is not UTF-8 once it is percent-decoded".to_owned(),
            }),
            Some(text) => check_name(name).and_then(|()| check_text(name, text)),
        };
        // The first error is kept; the other values are decoded all the same.
        result = result.and(checked);
        if let Some(text) = decoded {
            *value = same(value, &text);
        }
    }
    result = result.and(check_required(|wanted| {
        let named = |name: &ByteString| name.strip_prefix(HEADER_PREFIX) == Some(wanted);
        headers
            .iter()
            .find(|(name, _)| named(name))
            .map(|(_, value)| &**value)
    }));
    // The same thing under its usual name; the attribute is more exact than a header of the
    // transport.
    if let Some(at) = headers
        .iter()
        .position(|(name, _)| name == "ce-datacontenttype")
    {
        let (_, content_type) = headers.swap_remove(at);
        headers.retain(|(name, _)| name != "content-type" && name != "ce-datacontenttype");
        headers.push((ByteString::from_static("content-type"), content_type));
    }
    headers.retain(|(name, _)| {
        name.strip_prefix(HEADER_PREFIX)
            .is_none_or(|name| !is_ours(name))
    });
    settle_trace(headers);
    result
}

/// Renames attributes with the prefix of Kafka to that of NATS and HTTP, unless they also exist
/// under that. Kafka does not percent-encode, so their values are encoded here for the code that
/// decodes all of them.
fn settle_kafka(headers: &mut Vec<Header>) {
    let known: HashSet<String> = headers
        .iter()
        .filter_map(|(name, _)| name.strip_prefix(HEADER_PREFIX))
        .map(str::to_owned)
        .collect();
    headers.retain(|(name, _)| {
        name.strip_prefix(KAFKA_PREFIX)
            .is_none_or(|name| !known.contains(name))
    });
    for (name, value) in headers {
        if let Some(attribute) = name.strip_prefix(KAFKA_PREFIX) {
            *value = same(value, &percent::encode(value));
            *name = ByteString::from(format!("{HEADER_PREFIX}{attribute}"));
        }
    }
}

/// Renames `ce-traceparent` and `ce-tracestate` if the shorter names are free; the message's own
/// headers belong to the trace in which it was published, and win.
fn settle_trace(headers: &mut Vec<Header>) {
    for (from, to) in [
        ("ce-traceparent", "traceparent"),
        ("ce-tracestate", "tracestate"),
    ] {
        if headers.iter().any(|(name, _)| name == to) {
            headers.retain(|(name, _)| name != from);
        } else if let Some((name, _)) = headers.iter_mut().find(|(name, _)| name == from) {
            *name = ByteString::from_static(to);
        }
    }
}

fn note(headers: &mut Vec<Header>, error: &Error) {
    headers.retain(|(name, _)| name != NOTE_HEADER);
    headers.push((
        ByteString::from_static(NOTE_HEADER),
        ByteString::from(error.to_string()),
    ));
}

fn form_of(headers: &[Header]) -> Option<Form> {
    header(headers, "content-type").and_then(|value| form(value))
}

/// The value of the first header of a name that has one.
fn header<'a>(headers: &'a [Header], wanted: &str) -> Option<&'a ByteString> {
    headers
        .iter()
        .find(|(name, value)| name == wanted && !value.is_empty())
        .map(|(_, value)| value)
}

/// The last token of a subject.
fn kind_of_subject(subject: &ByteString) -> ByteString {
    match subject.rfind('.') {
        Some(dot) => subject.slice_ref(&subject[dot + 1..]),
        None => subject.clone(),
    }
}

/// A text that may be the value itself, which is then not copied.
fn same(value: &ByteString, text: &str) -> ByteString {
    if text == &**value {
        value.clone()
    } else {
        ByteString::from(text)
    }
}

/// The text as a slice of the message's memory if possible, otherwise as a copy.
fn share(message: &Bytes, text: &str) -> ByteString {
    // A text with escapes was decoded into memory of its own, outside of the message.
    let memory = message.as_ptr_range();
    let part = text.as_bytes().as_ptr_range();
    if text.is_empty() || part.start < memory.start || part.end > memory.end {
        return ByteString::from(text);
    }
    ByteString::try_from(message.slice_ref(text.as_bytes())).expect("it was text before")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Vec<Header> {
        pairs
            .iter()
            .map(|(name, value)| (ByteString::from(*name), ByteString::from(*value)))
            .collect()
    }

    fn message(pairs: &[(&str, &str)], data: &str) -> Message {
        let data = Bytes::copy_from_slice(data.as_bytes());
        let subject = ByteString::from_static("orders.42.placed");
        Message {
            sequence: 7,
            time_ns: 9,
            subject,
            headers: headers(pairs),
            data,
        }
    }

    fn event(pairs: &[(&str, &str)], data: &str, headers: Headers) -> Event {
        into_event(
            message(pairs, data),
            Reading {
                recognition: Recognition::Auto,
                headers,
            },
        )
    }

    fn read(recognition: Recognition, pairs: &[(&str, &str)], data: &str) -> Event {
        into_event(
            message(pairs, data),
            Reading {
                recognition,
                headers: Headers::Wanted,
            },
        )
    }

    fn structured(envelope: &str) -> Event {
        event(
            &[(
                "content-type",
                "application/cloudevents+json; charset=UTF-8",
            )],
            envelope,
            Headers::Wanted,
        )
    }

    #[test]
    fn both_forms_give_the_same_event() {
        let binary = event(
            &[
                ("ce-specversion", "1.0"),
                ("ce-type", "placed"),
                ("ce-id", "a%20b"),
                ("ce-source", "/shop/%C3%A4"),
                ("ce-subject", "42"),
                ("ce-time", "2026-11-20T10:00:00Z"),
                ("ce-correlationid", "c1"),
                ("ce-causationid", "c0"),
                ("ce-partition", "3"),
                ("ce-traceparent", "00-4bf9-00"),
                ("tracestate", "x=1"),
                ("content-type", "application/json"),
                ("correlation-id", "plain"),
            ],
            r#"{ "total": 1.10 }"#,
            Headers::Wanted,
        );
        let structured = event(
            &[
                ("correlation-id", "plain"),
                ("content-type", "application/cloudevents+json"),
            ],
            r#"{"specversion":"1.0","type":"placed","id":"a b","source":"/shop/\u00e4","subject":"42",
                "time":"2026-11-20T10:00:00Z","correlationid":"c1","causationid":"c0","partition":3,
                "traceparent":"00-4bf9-00","tracestate":"x=1","ignored":null,"data": { "total": 1.10 } }"#,
            Headers::Wanted,
        );
        assert_eq!(binary, structured);
        assert_eq!(binary.kind, "placed");
        assert_eq!(binary.header("ce-id"), Some("a b"));
        assert_eq!(binary.header("traceparent"), Some("00-4bf9-00"));
        assert_eq!(binary.data.as_str(), Some(r#"{ "total": 1.10 }"#));
        assert!(binary.headers.is_sorted());
    }

    #[test]
    fn time_that_the_host_cannot_compute_with_is_a_time() {
        let envelope = r#"{"specversion":"1.0","type":"placed","id":"1","source":"/s","time":"9999-12-31T23:59:59Z"}"#;
        let event = event(
            &[("content-type", "application/cloudevents+json")],
            envelope,
            Headers::Wanted,
        );
        assert_eq!(event.kind, "placed");
        assert_eq!(event.header("ce-time"), Some("9999-12-31T23:59:59Z"));
    }

    #[test]
    fn type_and_data_do_not_depend_on_wanted_headers() {
        let envelope = r#"{"specversion":"1.0","type":"placed","id":"1","source":"/s","data":[1]}"#;
        for pairs in [
            vec![("content-type", "application/cloudevents+json")],
            vec![("ce-type", "pl%61ced"), ("ce-id", "1")],
            vec![("event-type", "shipped")],
            vec![("x", "1")],
        ] {
            let (with, without) = (
                event(&pairs, envelope, Headers::Wanted),
                event(&pairs, envelope, Headers::Left),
            );
            assert_eq!((&with.kind, &with.data), (&without.kind, &without.data));
            assert!(without.headers.is_empty() && !with.headers.is_empty());
        }
    }

    #[test]
    fn type_comes_from_cloudevent_then_header_then_subject() {
        assert_eq!(
            event(&[("event-type", "b"), ("ce-type", "a")], "", Headers::Left).kind,
            "a"
        );
        assert_eq!(event(&[("event-type", "b")], "", Headers::Left).kind, "b");
        assert_eq!(event(&[("ce-type", "")], "", Headers::Left).kind, "placed");
        assert_eq!(event(&[], "", Headers::Left).kind, "placed");
    }

    #[test]
    fn data_follows_its_content_type() {
        let envelope = |rest: &str| {
            format!(r#"{{"specversion":"1.0","type":"t","id":"1","source":"/s"{rest}}}"#)
        };
        let data = |rest: &str| structured(&envelope(rest)).data;
        assert_eq!(
            data(r#","datacontenttype":"text/plain","data":"a\nb""#),
            Payload::from("a\nb")
        );
        assert_eq!(
            data(r#","datacontenttype":"text/xml","data":"<a/>""#),
            Payload::from("<a/>")
        );
        assert_eq!(data(r#","data":"text""#), Payload::from("\"text\""));
        assert_eq!(
            data(r#","datacontenttype":"application/vnd.x+json","data":"t""#),
            Payload::from("\"t\"")
        );
        assert_eq!(data(r#","data":null"#), Payload::from("null"));
        assert_eq!(
            data(r#","data_base64":"/wA=""#),
            Payload::Bytes(Bytes::from_static(b"\xff\0"))
        );
        assert_eq!(data(r#","data_base64":"YWJj""#), Payload::from("abc"));
        assert_eq!(data(""), Payload::from(""));
        assert_eq!(structured(&envelope("")).header("content-type"), None);
    }

    #[test]
    fn malformed_envelopes_stay_plain_events_that_say_why() {
        for (envelope, why) in [
            ("[]", "not a JSON object"),
            ("{", "not a JSON object"),
            (
                r#"{"specversion":"1.0","type":"t","id":"1"}"#,
                "source is missing",
            ),
            (
                r#"{"specversion":"0.3","type":"t","id":"1","source":"/s"}"#,
                "specversion is 0.3",
            ),
            (
                r#"{"specversion":"1.0","type":"t","id":"1","source":"/s","time":"noon"}"#,
                "attribute time is noon",
            ),
            (
                r#"{"specversion":"1.0","type":"t","id":"1","source":"/s","x":{}}"#,
                "attribute x is not",
            ),
            (
                r#"{"specversion":"1.0","type":"t","id":"1","source":"/s","Xy":1}"#,
                "lower-case",
            ),
            (
                r#"{"specversion":"1.0","type":"t","id":"1","id":"2","source":"/s"}"#,
                "occurs twice",
            ),
            (
                r#"{"specversion":"1.0","type":"t","id":"1","source":"/s","data":1,"data_base64":""}"#,
                "both",
            ),
            (
                r#"{"specversion":"1.0","type":"t","id":"1","source":"/s","data_base64":"%"}"#,
                "not base64",
            ),
        ] {
            let event = structured(envelope);
            assert_eq!(event.data.as_str(), Some(envelope));
            assert_eq!(event.kind, "placed");
            let said = event.header(NOTE_HEADER).expect("says why");
            assert!(said.contains(why), "{envelope}: {said}");
        }
    }

    #[test]
    fn lookalikes_are_plain_events_and_forms_that_are_not_read_say_so() {
        for (content_type, note) in [
            (
                "application/cloudevents-batch+json",
                Some("publish each event in a separate message"),
            ),
            ("application/cloudevents+avro", Some("does not support")),
            ("application/cloudevents+jsonx", Some("does not support")),
            ("application/json", None),
            ("application/cloudeventsx", None),
        ] {
            let event = event(
                &[("content-type", content_type)],
                r#"{"type":"x"}"#,
                Headers::Wanted,
            );
            assert_eq!(
                (event.kind.as_ref(), event.data.as_str()),
                ("placed", Some(r#"{"type":"x"}"#))
            );
            let said = event.header(NOTE_HEADER);
            assert_eq!(said.is_some(), note.is_some(), "{content_type}: {said:?}");
            assert!(
                said.unwrap_or_default().contains(note.unwrap_or_default()),
                "{content_type}: {said:?}"
            );
        }
    }

    #[test]
    fn an_envelope_that_nothing_announces_is_recognised_unless_the_source_says_otherwise() {
        let envelope =
            r#"{"data":{"a":1},"specversion":"1.0","type":"made","id":"1","source":"/s"}"#;
        for pairs in [
            vec![],
            vec![("nats-msg-id", "1")],
            vec![("content-type", "application/json")],
            vec![("event-type", "x")],
        ] {
            let found = read(Recognition::Auto, &pairs, envelope);
            assert_eq!(
                (found.kind.as_ref(), found.data.as_str()),
                ("made", Some(r#"{"a":1}"#)),
                "{pairs:?}"
            );
            assert_eq!(found.header("ce-id"), Some("1"));
            let found = read(Recognition::Headers, &pairs, envelope);
            assert_eq!(
                (found.data.as_str(), found.header("ce-id")),
                (Some(envelope), None),
                "{pairs:?}"
            );
        }
        let announced = [
            ("content-type", "application/cloudevents+json"),
            ("ce-type", "other"),
        ];
        assert_eq!(
            read(Recognition::Headers, &announced, envelope).kind,
            "made"
        );
        let off = read(Recognition::Off, &announced, envelope);
        assert_eq!(
            (off.kind.as_ref(), off.data.as_str(), off.header("ce-type")),
            ("placed", Some(envelope), Some("other"))
        );
        let wrapped = read(
            Recognition::Auto,
            &[("ce-type", "outer"), ("ce-id", "1")],
            envelope,
        );
        assert_eq!(
            (wrapped.kind.as_ref(), wrapped.data.as_str()),
            ("outer", Some(envelope)),
            "the data of a binary event"
        );
        let malformed = envelope.replace("1.0", "0.3");
        let found = read(Recognition::Auto, &[], &malformed);
        assert_eq!(
            (found.kind.as_ref(), found.data.as_str()),
            ("placed", Some(&*malformed))
        );
        assert!(
            found
                .header(NOTE_HEADER)
                .is_some_and(|said| said.contains("attribute specversion is 0.3"))
        );
    }

    #[test]
    fn headers_of_kafka_are_those_of_nats_without_percent_encoding() {
        let kafka = [
            ("ce_specversion", "1.0"),
            ("ce_id", "a%20b"),
            ("ce_type", "made"),
            ("ce_source", "/s"),
            ("ce-id", "7"),
        ];
        let found = event(&kafka, "{}", Headers::Wanted);
        assert_eq!(
            (
                found.kind.as_ref(),
                found.header("ce-id"),
                found.header("ce_id")
            ),
            ("made", Some("7"), None)
        );
        let found = event(&kafka[..4], "{}", Headers::Wanted);
        assert_eq!(
            (found.header("ce-id"), found.header(NOTE_HEADER)),
            (Some("a%20b"), None)
        );
        assert_eq!(event(&kafka, "{}", Headers::Left).kind, "made");
    }

    #[test]
    fn content_type_of_the_data_is_said_by_its_attribute_in_a_header() {
        let pairs = [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-type", "made"),
            ("ce-source", "/s"),
            ("ce-datacontenttype", "text/plain"),
            ("content-type", "application/octet-stream"),
        ];
        let found = event(&pairs, "{}", Headers::Wanted);
        assert_eq!(
            (
                found.header("content-type"),
                found.header("ce-datacontenttype")
            ),
            (Some("text/plain"), None)
        );
    }

    #[test]
    fn attributes_of_our_own_are_no_headers() {
        let found = structured(
            r#"{"specversion":"1.0","type":"t","id":"1","source":"/s","foldstreamsubject":"a","foldstreamtime":"x","foldstreamheaders":"{}"}"#,
        );
        assert!(
            found
                .headers
                .iter()
                .all(|(name, _)| !name.contains("foldstream")),
            "{:?}",
            found.headers
        );
        let binary = [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-type", "made"),
            ("ce-source", "/s"),
            ("ce-foldstreamsubject", "a"),
        ];
        let found = event(&binary, "{}", Headers::Wanted);
        assert!(
            found
                .headers
                .iter()
                .all(|(name, _)| !name.contains("foldstream")),
            "{:?}",
            found.headers
        );
    }

    #[test]
    fn very_many_headers_cost_no_more_than_their_number() {
        let names: Vec<String> = (0..100_000).map(|number| format!("x-{number}")).collect();
        let mut pairs: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
        pairs.push(("content-type", "application/cloudevents+json"));
        let more: String = (0..200)
            .map(|number| format!(",\"x{number}\":\"1\""))
            .collect();
        let envelope =
            format!(r#"{{"specversion":"1.0","type":"t","id":"1","source":"/s"{more}}}"#);
        let begun = std::time::Instant::now();
        assert_eq!(
            event(&pairs, &envelope, Headers::Wanted).headers.len(),
            100_204
        );
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(5),
            "{:?}",
            begun.elapsed()
        );
    }

    #[test]
    fn broken_percent_signs_stay() {
        let event = event(
            &[("ce-id", "100%"), ("ce-source", "%ff")],
            "",
            Headers::Wanted,
        );
        assert_eq!(event.header("ce-id"), Some("100%"));
        assert_eq!(event.header("ce-source"), Some("%ff"));
        assert!(
            event
                .header(NOTE_HEADER)
                .is_some_and(|said| said.contains("attribute source is not UTF-8"))
        );
    }

    #[test]
    fn plain_events_share_the_memory_of_their_message() {
        let message = Bytes::from_static(b"orders.42.placed{}");
        let subject = ByteString::try_from(message.slice(..16)).expect("text");
        let (headers, data) = (Vec::new(), message.slice(16..));
        let plain = Message {
            sequence: 1,
            time_ns: 1,
            subject: subject.clone(),
            headers,
            data,
        };
        let event = into_event(
            plain,
            Reading {
                recognition: Recognition::Auto,
                headers: Headers::Left,
            },
        );
        assert_eq!(event.kind.as_bytes().as_ptr(), subject[10..].as_ptr());
        assert_eq!(event.data.as_bytes().as_ptr(), message[16..].as_ptr());
    }
}
