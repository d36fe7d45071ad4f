//! CloudEvents 1.0 in binary and structured form, made one form for guests.
//!
//! Sources: <https://github.com/cloudevents/spec>, `cloudevents/spec.md`,
//! `formats/json-format.md`, `bindings/nats-protocol-binding.md` and
//! `extensions/distributed-tracing.md`.
//!
//! In both forms attributes become headers `ce-<name>`; `datacontenttype`
//! becomes `content-type`, and `traceparent` and `tracestate` stand under their
//! own names, unless the message has such a header itself. The data of a
//! structured event is its `data` alone, as the octets that stood there.
//! Nothing here fails: what is no CloudEvent passes unchanged.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use bytes::Bytes;
use bytestring::ByteString;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::event::{Event, Header, Payload};

/// The header that says why an envelope was not understood.
const ERROR_HEADER: &str = "foldstream-cloudevent-error";
/// Content type of the structured form; parameters may follow it.
const STRUCTURED: &str = "application/cloudevents+json";
/// Most attributes of an envelope; far more than any known event has.
const ATTRIBUTES_MAX: usize = 256;

/// Makes an event of a message: recognises CloudEvents, finds the type, sorts the headers.
///
/// Header names are in lower case. Type and data do not depend on whether
/// headers are wanted.
pub(crate) fn into_event(
    sequence: u64,
    time_ns: u64,
    subject: ByteString,
    headers: Vec<Header>,
    data: Bytes,
    wants_headers: bool,
) -> Event {
    if headers.is_empty() {
        let kind = kind_of_subject(&subject);
        return Event { sequence, time_ns, subject, kind, headers, data: Payload::detect(data) };
    }
    let mut parts = Parts { kind: None, headers, data: None };
    if is_structured(&parts.headers) {
        parts = unwrap(parts.headers, &data, wants_headers);
    } else {
        // Before the values are decoded, so that none is decoded twice.
        parts.kind = kind_of_headers(&parts.headers);
        if wants_headers {
            parts.headers.iter_mut().for_each(decode_binary);
            settle_trace(&mut parts.headers);
        }
    }
    let kind = parts.kind.unwrap_or_else(|| kind_of_subject(&subject));
    let mut headers = if wants_headers { parts.headers } else { Vec::new() };
    headers.sort_by(|(one, _), (other, _)| one.cmp(other));
    let data = parts.data.unwrap_or_else(|| Payload::detect(data));
    Event { sequence, time_ns, subject, kind, headers, data }
}

/// Whether headers announce a structured CloudEvent; a batch is not one event.
pub(crate) fn is_structured(headers: &[Header]) -> bool {
    headers.iter().any(|(name, value)| {
        name == "content-type"
            && value.get(..STRUCTURED.len()).is_some_and(|start| start.eq_ignore_ascii_case(STRUCTURED))
            && matches!(value.as_bytes().get(STRUCTURED.len()), None | Some(b';' | b' ' | b'\t'))
    })
}

/// The type that headers name: the CloudEvents `type`, else `Event-Type`.
pub(crate) fn kind_of_headers(headers: &[Header]) -> Option<ByteString> {
    let named = |wanted: &str| headers.iter().find(|(name, value)| name == wanted && !value.is_empty());
    if let Some((_, value)) = named("ce-type") {
        return Some(percent_decode(value).unwrap_or_else(|| value.clone()));
    }
    named("event-type").map(|(_, value)| value.clone())
}

/// The last token of a subject.
fn kind_of_subject(subject: &ByteString) -> ByteString {
    match subject.rfind('.') {
        Some(dot) => subject.slice_ref(&subject[dot + 1..]),
        None => subject.clone(),
    }
}

/// What an envelope or a message gives to its event; no data stands for the message's own.
struct Parts {
    kind: Option<ByteString>,
    headers: Vec<Header>,
    data: Option<Payload>,
}

fn decode_binary((name, value): &mut Header) {
    if name.starts_with("ce-")
        && let Some(decoded) = percent_decode(value)
    {
        *value = decoded;
    }
}

/// Gives `ce-traceparent` and `ce-tracestate` their own names where these are free; the message's own headers belong to
/// the trace in which it was published and win.
fn settle_trace(headers: &mut Vec<Header>) {
    for (from, to) in [("ce-traceparent", "traceparent"), ("ce-tracestate", "tracestate")] {
        if headers.iter().any(|(name, _)| name == to) {
            headers.retain(|(name, _)| name != from);
        } else if let Some((name, _)) = headers.iter_mut().find(|(name, _)| name == from) {
            *name = ByteString::from_static(to);
        }
    }
}

/// Decodes `%41`; none where there is nothing to decode, or the result would not be text.
fn percent_decode(value: &str) -> Option<ByteString> {
    if !value.contains('%') {
        return None;
    }
    let bytes = value.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digit = |offset: usize| bytes.get(at + offset).and_then(|byte| char::from(*byte).to_digit(16));
        match (bytes[at], digit(1), digit(2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, _, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    ByteString::try_from(decoded).ok()
}

/// Opens a structured CloudEvent; one that is malformed stays a plain event that says why.
fn unwrap(mut headers: Vec<Header>, message: &Bytes, wants_headers: bool) -> Parts {
    match Envelope::parse(message) {
        Ok(envelope) => {
            if wants_headers {
                envelope.merge_into(&mut headers);
                settle_trace(&mut headers);
            }
            Parts { kind: Some(envelope.kind), headers, data: Some(envelope.data) }
        }
        Err(problem) => {
            if wants_headers {
                headers.push((ByteString::from_static(ERROR_HEADER), ByteString::from(problem)));
            }
            Parts { kind: kind_of_headers(&headers), headers, data: None }
        }
    }
}

/// A structured CloudEvent, taken apart.
struct Envelope {
    kind: ByteString,
    content_type: Option<ByteString>,
    /// Attributes but `datacontenttype`, by the name of their header.
    attributes: Vec<Header>,
    data: Payload,
}

impl Envelope {
    fn parse(message: &Bytes) -> Result<Self, String> {
        let members: Members<'_> =
            serde_json::from_slice(message).map_err(|error| format!("envelope is not a JSON object: {error}"))?;
        let (mut data, mut data_base64, mut attributes) = (None, None, Vec::with_capacity(members.0.len()));
        for (name, value) in &members.0 {
            match &**name {
                "data" => data = Some(*value),
                "data_base64" => data_base64 = Some(*value),
                name => {
                    if let Some(text) = attribute(name, value)? {
                        attributes.push((name, text));
                    }
                }
            }
        }
        let required = |wanted: &str| {
            let found = attributes.iter().find(|(name, text)| *name == wanted && !text.is_empty());
            found.map(|(_, text)| &**text).ok_or_else(|| format!("attribute {wanted} is missing or empty"))
        };
        required("id")?;
        required("source")?;
        let version = required("specversion")?;
        if !version.starts_with("1.") {
            return Err(format!("specversion {version:.16} is not supported; send 1.0"));
        }
        let kind = share(message, required("type")?);
        let content_type = attributes.iter().find(|(name, _)| *name == "datacontenttype").map(|(_, text)| &**text);
        let implied = data.is_some().then_some("application/json");
        let data = match (data, data_base64) {
            (Some(_), Some(_)) => return Err("data and data_base64 are both present".to_owned()),
            (Some(data), None) => data_of_json(message, data, content_type)?,
            (None, Some(encoded)) => data_of_base64(encoded)?,
            (None, None) => Payload::Text(ByteString::new()),
        };
        let content_type = content_type.or(implied).map(|text| share(message, text));
        let attributes = attributes
            .iter()
            .filter(|(name, _)| *name != "datacontenttype")
            .map(|(name, text)| (ByteString::from(format!("ce-{name}")), share(message, text)))
            .collect();
        Ok(Self { kind, content_type, attributes, data })
    }

    /// Puts the attributes in the place of headers of the same names, and of the envelope's content type.
    fn merge_into(&self, headers: &mut Vec<Header>) {
        headers.retain(|(name, _)| {
            name != "content-type" && !self.attributes.iter().any(|(attribute, _)| attribute == name)
        });
        headers.extend(self.attributes.iter().cloned());
        if let Some(content_type) = &self.content_type {
            headers.push((ByteString::from_static("content-type"), content_type.clone()));
        }
    }
}

/// The text of an attribute; none for `null`, which stands for absent.
fn attribute<'a>(name: &str, value: &'a RawValue) -> Result<Option<Cow<'a, str>>, String> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
        return Err(format!("attribute {name:.64?} has a name that is not of lower-case letters and digits"));
    }
    match value.get().as_bytes().first() {
        Some(b'"') => text(value).map(Some),
        Some(b'{' | b'[') | None => Err(format!("attribute {name:.64} is not a string, number or boolean")),
        Some(b'n') => Ok(None),
        Some(_) => Ok(Some(Cow::Borrowed(value.get()))),
    }
}

/// A JSON string, borrowed where nothing in it is escaped.
fn text(value: &RawValue) -> Result<Cow<'_, str>, String> {
    let raw = value.get();
    let inner = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    if let Some(inner) = inner
        && !inner.contains('\\')
    {
        return Ok(Cow::Borrowed(inner));
    }
    serde_json::from_str(raw).map(Cow::Owned).map_err(|error| format!("a string is malformed: {error}"))
}

fn data_of_json(message: &Bytes, data: &RawValue, content_type: Option<&str>) -> Result<Payload, String> {
    if content_type.is_none_or(is_json) || !data.get().starts_with('"') {
        return Ok(Payload::Text(share(message, data.get())));
    }
    Ok(Payload::Text(share(message, &text(data)?)))
}

fn data_of_base64(encoded: &RawValue) -> Result<Payload, String> {
    let decoded = serde_json::from_str::<Cow<'_, str>>(encoded.get())
        .map_err(|_| "data_base64 is not a string".to_owned())
        .and_then(|text| {
            base64::engine::general_purpose::STANDARD
                .decode(&*text)
                .map_err(|error| format!("data_base64 is not base64: {error}"))
        })?;
    Ok(Payload::detect(Bytes::from(decoded)))
}

/// Whether a media type is JSON: a subtype `json`, or one with the suffix `+json`.
fn is_json(content_type: &str) -> bool {
    let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media.split('/').nth(1).is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}

/// The text as a part of the message's memory where it stands there, or as a copy.
fn share(message: &Bytes, text: &str) -> ByteString {
    let memory = message.as_ptr_range();
    let part = text.as_bytes().as_ptr_range();
    if text.is_empty() || part.start < memory.start || part.end > memory.end {
        return ByteString::from(text);
    }
    ByteString::try_from(message.slice_ref(text.as_bytes())).expect("it was text before")
}

/// The members of a JSON object, in order, values as they stand.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::with_capacity(12);
        while let Some(name) = map.next_key::<Name<'de>>()? {
            let value = map.next_value()?;
            if members.len() == ATTRIBUTES_MAX {
                return Err(serde::de::Error::custom(format_args!("more than {ATTRIBUTES_MAX} members")));
            }
            if members.iter().any(|(other, _)| *other == name.0) {
                return Err(serde::de::Error::custom(format_args!("member {:.64} stands twice", name.0)));
            }
            members.push((name.0, value));
        }
        Ok(Members(members))
    }
}

/// A member's name, borrowed where it can be.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Vec<Header> {
        pairs.iter().map(|(name, value)| (ByteString::from(*name), ByteString::from(*value))).collect()
    }

    fn event(pairs: &[(&str, &str)], data: &str, wants_headers: bool) -> Event {
        let data = Bytes::copy_from_slice(data.as_bytes());
        into_event(7, 9, ByteString::from_static("orders.42.placed"), headers(pairs), data, wants_headers)
    }

    fn structured(envelope: &str) -> Event {
        event(&[("content-type", "application/cloudevents+json; charset=UTF-8")], envelope, true)
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
            true,
        );
        let structured = event(
            &[("correlation-id", "plain"), ("content-type", "application/cloudevents+json")],
            r#"{"specversion":"1.0","type":"placed","id":"a b","source":"/shop/\u00e4","subject":"42",
                "time":"2026-11-20T10:00:00Z","correlationid":"c1","causationid":"c0","partition":3,
                "traceparent":"00-4bf9-00","tracestate":"x=1","ignored":null,"data": { "total": 1.10 } }"#,
            true,
        );
        assert_eq!(binary, structured);
        assert_eq!(binary.kind, "placed");
        assert_eq!(binary.header("ce-id"), Some("a b"));
        assert_eq!(binary.header("traceparent"), Some("00-4bf9-00"));
        assert_eq!(binary.data.as_str(), Some(r#"{ "total": 1.10 }"#));
        assert!(binary.headers.is_sorted());
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
            let (with, without) = (event(&pairs, envelope, true), event(&pairs, envelope, false));
            assert_eq!((&with.kind, &with.data), (&without.kind, &without.data));
            assert!(without.headers.is_empty() && !with.headers.is_empty());
        }
    }

    #[test]
    fn type_comes_from_cloudevent_then_header_then_subject() {
        assert_eq!(event(&[("event-type", "b"), ("ce-type", "a")], "", false).kind, "a");
        assert_eq!(event(&[("event-type", "b")], "", false).kind, "b");
        assert_eq!(event(&[("ce-type", "")], "", false).kind, "placed");
        assert_eq!(event(&[], "", false).kind, "placed");
    }

    #[test]
    fn data_follows_its_content_type() {
        let envelope = |rest: &str| format!(r#"{{"specversion":"1.0","type":"t","id":"1","source":"/s"{rest}}}"#);
        let data = |rest: &str| structured(&envelope(rest)).data;
        assert_eq!(data(r#","datacontenttype":"text/plain","data":"a\nb""#), Payload::from("a\nb"));
        assert_eq!(data(r#","datacontenttype":"text/xml","data":"<a/>""#), Payload::from("<a/>"));
        assert_eq!(data(r#","data":"text""#), Payload::from("\"text\""));
        assert_eq!(data(r#","datacontenttype":"application/vnd.x+json","data":"t""#), Payload::from("\"t\""));
        assert_eq!(data(r#","data":null"#), Payload::from("null"));
        assert_eq!(data(r#","data_base64":"/wA=""#), Payload::Bytes(Bytes::from_static(b"\xff\0")));
        assert_eq!(data(r#","data_base64":"YWJj""#), Payload::from("abc"));
        assert_eq!(data(""), Payload::from(""));
        assert_eq!(structured(&envelope("")).header("content-type"), None);
    }

    #[test]
    fn malformed_envelopes_stay_plain_events_that_say_why() {
        for (envelope, why) in [
            ("[]", "not a JSON object"),
            ("{", "not a JSON object"),
            (r#"{"specversion":"1.0","type":"t","id":"1"}"#, "source is missing"),
            (r#"{"specversion":"0.3","type":"t","id":"1","source":"/s"}"#, "0.3 is not supported"),
            (r#"{"specversion":"1.0","type":"t","id":"1","source":"/s","x":{}}"#, "attribute x is not"),
            (r#"{"specversion":"1.0","type":"t","id":"1","source":"/s","Xy":1}"#, "lower-case"),
            (r#"{"specversion":"1.0","type":"t","id":"1","id":"2","source":"/s"}"#, "stands twice"),
            (r#"{"specversion":"1.0","type":"t","id":"1","source":"/s","data":1,"data_base64":""}"#, "both"),
            (r#"{"specversion":"1.0","type":"t","id":"1","source":"/s","data_base64":"%"}"#, "not base64"),
        ] {
            let event = structured(envelope);
            assert_eq!(event.data.as_str(), Some(envelope));
            assert_eq!(event.kind, "placed");
            let said = event.header(ERROR_HEADER).expect("says why");
            assert!(said.contains(why), "{envelope}: {said}");
        }
    }

    #[test]
    fn batches_and_lookalikes_are_plain_events() {
        for content_type in ["application/cloudevents-batch+json", "application/cloudevents+jsonx", "application/json"]
        {
            let event = event(&[("content-type", content_type)], r#"{"type":"x"}"#, true);
            assert_eq!(event.kind, "placed");
            assert_eq!(event.header(ERROR_HEADER), None);
        }
    }

    #[test]
    fn broken_percent_signs_stay() {
        let event = event(&[("ce-id", "100%"), ("ce-source", "%ff")], "", true);
        assert_eq!(event.header("ce-id"), Some("100%"));
        assert_eq!(event.header("ce-source"), Some("%ff"));
    }

    #[test]
    fn plain_events_share_the_memory_of_their_message() {
        let message = Bytes::from_static(b"orders.42.placed{}");
        let subject = ByteString::try_from(message.slice(..16)).expect("text");
        let event = into_event(1, 1, subject.clone(), Vec::new(), message.slice(16..), false);
        assert_eq!(event.kind.as_bytes().as_ptr(), subject[10..].as_ptr());
        assert_eq!(event.data.as_bytes().as_ptr(), message[16..].as_ptr());
    }
}
