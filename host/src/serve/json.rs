//! Payloads in JSON without parsing them into a tree: JSON text is copied as it
//! is, so that numbers keep their digits and objects their order.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Place;
use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use bytestring::ByteString;
use jiff::Timestamp;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::event::{self, Event, Header, Payload};

/// The content type of a payload that is a whole body.
pub(super) fn content_type(payload: &Payload) -> &'static str {
    match payload {
        Payload::Text(text) if event::json(text).is_some() => "application/json",
        Payload::Text(_) => "text/plain; charset=utf-8",
        Payload::Bytes(_) => "application/octet-stream",
    }
}

/// The bytes of a payload, shared.
pub(super) fn octets(payload: Payload) -> Bytes {
    match payload {
        Payload::Text(text) => text.into_bytes(),
        Payload::Bytes(bytes) => bytes,
    }
}

/// Strings by name. Each name may occur only once, because with two values nobody could tell which
/// one was intended.
#[derive(Debug, Default)]
pub(super) struct Texts(pub(super) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TextsVisitor)
    }
}

struct TextsVisitor;

impl<'de> Visitor<'de> for TextsVisitor {
    type Value = Texts;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object whose values are strings")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut members: M) -> Result<Texts, M::Error> {
        let mut texts = BTreeMap::new();
        while let Some((name, text)) = members.next_entry::<String, String>()? {
            // Before the next one is kept: each takes memory of its own.
            if texts.len() == TEXTS_MAX {
                return Err(M::Error::custom(format!(
                    "there are more than {TEXTS_MAX} members"
                )));
            }
            match texts.entry(name) {
                Place::Vacant(vacant) => vacant.insert(text),
                Place::Occupied(there) => {
                    return Err(M::Error::custom(format!(
                        "`{:.64}` occurs twice",
                        there.key().as_str()
                    )));
                }
            };
        }
        Ok(Texts(texts))
    }
}

/// Most members of such an object: more than any message may have headers.
const TEXTS_MAX: usize = 1_024;

/// A payload as a JSON value: JSON text as it is, other text as a string, bytes as `{"$bytes":
/// "<base64>"}`.
pub(super) struct Value<'a>(pub(super) &'a Payload);

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Payload::Text(text) => match event::json(text) {
                Some(raw) => raw.serialize(serializer),
                None => serializer.serialize_str(text),
            },
            Payload::Bytes(bytes) => write_base64(bytes, serializer),
        }
    }
}

/// An object with the one member `$bytes`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Base64<'a> {
    #[serde(rename = "$bytes", borrow)]
    bytes: &'a RawValue,
}

/// A JSON value represents no payload.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoPayload {
    /// Its text can't be read.
    #[error(transparent)]
    Text(#[from] serde_json::Error),
    /// The member `$bytes` has another type.
    #[error("its $bytes is not a string")]
    NoString,
    /// The text of `$bytes` is not base64.
    #[error("its data is not base64: {0}")]
    Base64(#[from] base64::DecodeError),
}

/// The payload that a JSON value represents; the reverse of [`Value`].
pub(super) fn payload(value: &RawValue) -> Result<Payload, NoPayload> {
    let text = value.get();
    if text.starts_with('"') {
        return Ok(Payload::from(serde_json::from_str::<String>(text)?));
    }
    if text.starts_with('{')
        // An object with other members is an object, and not bytes.
        && let Ok(Base64 { bytes }) = serde_json::from_str(text)
    {
        let encoded: String = serde_json::from_str(bytes.get()).map_err(|_| NoPayload::NoString)?;
        return Ok(Payload::Bytes(Bytes::from(
            BASE64_STANDARD.decode(encoded)?,
        )));
    }
    Ok(Payload::Text(ByteString::from(text)))
}

/// A time in RFC 3339, in UTC, with nanoseconds.
pub(super) fn time(time_ns: u64) -> String {
    let time = Timestamp::from_nanosecond(i128::from(time_ns))
        .expect("2^64 nanoseconds end in the year 2554");
    format!("{time:.9}")
}

/// [`crate::api::Entry`], borrowed.
#[derive(Serialize)]
pub(super) struct Entry<'a> {
    pub(super) key: &'a str,
    pub(super) value: Value<'a>,
}

/// [`crate::api::EntryPage`], borrowed.
#[derive(Serialize)]
pub(super) struct EntryPage<'a> {
    pub(super) entries: Vec<Entry<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<&'a str>,
    pub(super) position: u64,
    pub(super) generation: u64,
}

/// [`crate::api::Change`], borrowed.
#[derive(Serialize)]
pub(super) struct Change<'a> {
    pub(super) key: &'a str,
    pub(super) value: Option<Value<'a>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) deleted: bool,
    pub(super) position: u64,
}

/// How the data of events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As [`Value`], for people: a JSON text that is a string looks like plain text.
    Shown,
    /// So that each payload can be told, byte for byte: as bytes what a [`Value`] cannot restore.
    Exact,
}

/// Data of an event in a form.
struct Data<'a>(&'a Payload, Form);

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(payload, form) = self;
        if *form == Form::Exact && !payload.is_shown_exactly() {
            return write_base64(payload.as_bytes(), serializer);
        }
        Value(payload).serialize(serializer)
    }
}

fn write_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry("$bytes", &BASE64_STANDARD.encode(bytes))?;
    map.end()
}

struct Headers<'a>(&'a [Header]);

impl Serialize for Headers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // They are sorted by name, so headers with one name are adjacent; only the first of them is
        // shown.
        let mut shown: Option<&str> = None;
        let first_of_name = self
            .0
            .iter()
            .filter(|(name, _)| shown.replace(name) != Some(name));
        serializer.collect_map(first_of_name.map(|(name, value)| (&**name, &**value)))
    }
}

impl Headers<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// [`crate::api::StoredEvent`], borrowed.
#[derive(Serialize)]
pub(super) struct StoredEvent<'a> {
    sequence: u64,
    time: String,
    subject: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(skip_serializing_if = "Headers::is_empty")]
    headers: Headers<'a>,
    data: Data<'a>,
}

impl<'a> StoredEvent<'a> {
    pub(super) fn of(event: &'a Event, form: Form) -> Self {
        Self {
            sequence: event.sequence,
            time: time(event.time_ns),
            subject: &event.subject,
            kind: &event.kind,
            headers: Headers(&event.headers),
            data: Data(&event.data, form),
        }
    }
}

/// [`crate::api::EventPage`], borrowed.
#[derive(Serialize)]
pub(super) struct EventPage<'a> {
    pub(super) events: Vec<StoredEvent<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<u64>,
    pub(super) last_sequence: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(payload: &Payload) -> String {
        serde_json::to_string(&Value(payload)).expect("plain data")
    }

    fn read(text: &str) -> Payload {
        payload(&RawValue::from_string(text.to_owned()).expect("JSON")).expect("sound")
    }

    #[test]
    fn json_text_keeps_its_digits_and_order() {
        let text = r#"{"z":1.10,"a":12345678901234567890123}"#;
        assert_eq!(written(&Payload::from(text)), text);
        assert_eq!(read(text), Payload::from(text));
    }

    #[test]
    fn json_that_lies_too_deep_is_passed_on_as_text() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let within = Payload::from(nested(120));
        assert_eq!(
            (written(&within), content_type(&within)),
            (nested(120), "application/json")
        );
        let beyond = Payload::from(nested(121));
        assert_eq!(written(&beyond), format!("\"{}\"", nested(121)));
        assert_eq!(content_type(&beyond), "text/plain; charset=utf-8");
        assert_eq!(read(&written(&beyond)), beyond, "and comes back as it was");
        let quoted = Payload::from(format!("{{\"a\":\"{}\\\"[\"}}", "[".repeat(1_000)));
        assert_eq!(
            content_type(&quoted),
            "application/json",
            "brackets in a string are text"
        );
    }

    #[test]
    fn name_that_is_there_twice_is_refused() {
        let read = |text: &str| serde_json::from_str::<Texts>(text);
        assert_eq!(read(r#"{"a":"1","b":"2"}"#).expect("sound").0.len(), 2);
        assert!(
            read(r#"{"a":"1","a":"2"}"#)
                .expect_err("twice")
                .to_string()
                .contains("`a` occurs twice")
        );
        let many: Vec<_> = (0..=TEXTS_MAX)
            .map(|name| format!("\"{name}\":\"\""))
            .collect();
        assert!(read(&format!("{{{}}}", many.join(","))).is_err());
    }

    #[test]
    fn every_payload_survives_the_way_there_and_back() {
        let bytes = Payload::Bytes(Bytes::from_static(&[0, 255, 128]));
        assert_eq!(written(&bytes), r#"{"$bytes":"AP+A"}"#);
        for payload in [
            bytes,
            Payload::from("plain text"),
            Payload::from("{broken"),
            Payload::from("[1, 2]"),
        ] {
            assert_eq!(read(&written(&payload)), payload);
        }
    }

    #[test]
    fn exact_form_restores_every_byte() {
        for octets in [
            &b"hello"[..],
            b"\"hello\"",
            b"1",
            b"\"1\"",
            b"null",
            b"\"\"",
            b"",
            b"{\"$bytes\":\"AAEC\"}",
            b"{\"$bytes\":\"zz\"}",
            b" {\"a\": 1} ",
            b"[]\n",
            b"{\n\"a\":12345678901234567890123}",
            b"\"\\ud800\"",
            b"1e400",
            b"\t",
            b"\xff\0",
        ] {
            let given = Payload::detect(Bytes::from_static(octets));
            let text = serde_json::to_string(&Data(&given, Form::Exact)).expect("plain data");
            assert!(!text.contains('\n'), "{text}");
            assert_eq!(read(&text).as_bytes(), octets, "{text}");
        }
        let shown = Payload::from("\"hello\"");
        let text = serde_json::to_string(&Data(&shown, Form::Shown)).expect("plain data");
        assert_eq!(text, "\"hello\"");
    }

    #[test]
    fn bytes_that_are_no_base64_are_refused() {
        for text in [r#"{"$bytes":"?"}"#, r#"{"$bytes":1}"#] {
            assert!(
                payload(&RawValue::from_string(text.to_owned()).expect("JSON")).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn both_ways_agree_with_those_of_the_payload_itself() {
        for text in [
            "1",
            "null",
            "\"text\"",
            "{\"a\":[true]}",
            "{\"$bytes\":\"AP8B\"}",
            "\"\"",
            "[]",
        ] {
            let read = read(text);
            let value: serde_json::Value = serde_json::from_str(text).expect("JSON");
            assert_eq!(read, Payload::from_json(value).expect("sound"), "{text}");
            assert_eq!(
                serde_json::to_value(Value(&read)).expect("plain data"),
                read.to_json(),
                "{text}"
            );
        }
    }

    #[test]
    fn headers_of_one_name_are_shown_once() {
        let header = |name: &'static str, value: &'static str| (name.into(), value.into());
        let headers = [header("a", "1"), header("a", "2"), header("b", "3")];
        assert_eq!(
            serde_json::to_string(&Headers(&headers)).expect("plain data"),
            r#"{"a":"1","b":"3"}"#
        );
    }

    #[test]
    fn object_that_only_mentions_bytes_is_json() {
        let text = r#"{"$bytes":"AP+A","more":1}"#;
        assert_eq!(read(text), Payload::from(text));
    }

    #[test]
    fn content_type_follows_the_payload() {
        assert_eq!(
            content_type(&Payload::from("{\"a\":1}")),
            "application/json"
        );
        assert_eq!(
            content_type(&Payload::from("hello")),
            "text/plain; charset=utf-8"
        );
        assert_eq!(
            content_type(&Payload::from("")),
            "text/plain; charset=utf-8"
        );
        assert_eq!(
            content_type(&Payload::Bytes(Bytes::from_static(&[255]))),
            "application/octet-stream"
        );
    }

    #[test]
    fn times_have_nanoseconds() {
        assert_eq!(
            time(1_500_000_000_000_000_001),
            "2017-07-14T02:40:00.000000001Z"
        );
        assert_eq!(time(0), "1970-01-01T00:00:00.000000000Z");
        assert!(time(u64::MAX).starts_with("2554-"));
    }
}
