//! Writes events as CloudEvents in JSON.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{
    HEADER_PREFIX, HEADERS_ATTRIBUTE, SUBJECT_ATTRIBUTE, TIME_ATTRIBUTE, attribute, check_name,
    check_text, is_json, is_ours, percent,
};
use crate::event::{Event, Payload, json};
use crate::timestamp;

/// Longest name and value of another header to export, in bytes: the limits of a log.
const HEADER_NAME_BYTES_MAX: usize = 128;
const HEADER_VALUE_BYTES_MAX: usize = 8_192;

/// An event as a CloudEvent. An event that was a CloudEvent keeps its attributes; any other gets
/// them from its stream and its sequence.
pub struct Written<'a> {
    event: &'a Event,
    stream: &'a str,
    is_cloud_event: bool,
}

impl<'a> Written<'a> {
    /// Options for writing an event of a stream.
    pub fn of(event: &'a Event, stream: &'a str) -> Self {
        let is_sound =
            |name: &str, value: &str| check_name(name).is_ok() && check_text(name, value).is_ok();
        let attributes = || {
            event
                .headers
                .iter()
                .filter_map(|(name, value)| Some((name.strip_prefix(HEADER_PREFIX)?, value)))
        };
        // All three are needed to be one again; another event is described by its stream.
        let is_cloud_event = ["ce-specversion", "ce-id", "ce-source"]
            .iter()
            .all(|name| event.header(name).is_some())
            && attributes().all(|(name, value)| is_sound(name, value));
        Self {
            event,
            stream,
            is_cloud_event,
        }
    }

    fn attributes<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        let event = self.event;
        map.serialize_entry("specversion", "1.0")?;
        map.serialize_entry("type", &*plain(&event.kind))?;
        let time = timestamp::format_ns(event.time_ns);
        if self.is_cloud_event {
            // Headers are sorted, so equal names stand next to each other; JSON has each once.
            let mut last = "";
            for (header, value) in &event.headers {
                let Some(name) = header.strip_prefix(HEADER_PREFIX) else {
                    continue;
                };
                // Attributes that mirror another part of the event are written once, below.
                let is_written = matches!(name, "specversion" | "type" | "datacontenttype")
                    || is_ours(name)
                    || matches!(name, "traceparent" | "tracestate") && event.header(name).is_some();
                if !is_written && name != last {
                    map.serialize_entry(name, &**value)?;
                }
                last = name;
            }
            // Written only if it says something else than the event's own `time`.
            let said = event
                .header("ce-time")
                .and_then(|time| timestamp::parse_ns(time).ok());
            if said != Some(event.time_ns) {
                map.serialize_entry(TIME_ATTRIBUTE, &time)?;
            }
        } else {
            map.serialize_entry("id", &event.sequence.to_string())?;
            map.serialize_entry("source", &source_of(self.stream))?;
            map.serialize_entry("subject", &*plain(&event.subject))?;
            map.serialize_entry("time", &time)?;
        }
        // For an import: it finds the subject here and needs no template.
        map.serialize_entry(SUBJECT_ATTRIBUTE, &*plain(&event.subject))?;
        for name in ["traceparent", "tracestate"] {
            if let Some(value) = event
                .header(name)
                .filter(|value| check_text(name, value).is_ok())
            {
                map.serialize_entry(name, value)?;
            }
        }
        // As text in one attribute, because attributes have no structure.
        let mut others = serde_json::Map::new();
        for (name, value) in self.others() {
            // Of headers with the same name the first one, as for attributes.
            others.entry(name).or_insert_with(|| value.into());
        }
        if !others.is_empty() {
            map.serialize_entry(
                HEADERS_ATTRIBUTE,
                &serde_json::Value::Object(others).to_string(),
            )?;
        }
        Ok(())
    }

    /// Headers that no attribute represents.
    fn others(&self) -> impl Iterator<Item = (&str, &str)> {
        self.event
            .headers
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .filter(|(name, value)| {
                let is_own = name.starts_with("nats-")
                    || name.starts_with("foldstream-")
                    || name.starts_with(HEADER_PREFIX);
                let is_attribute = matches!(*name, "content-type" | "traceparent" | "tracestate");
                let fits = name.len() <= HEADER_NAME_BYTES_MAX
                    && value.len() <= HEADER_VALUE_BYTES_MAX
                    && name.bytes().all(|byte| {
                        byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
                    })
                    && check_text(name, value).is_ok();
                !is_own && !is_attribute && fits
            })
    }

    fn data<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        let said = self
            .event
            .header("content-type")
            .filter(|text| check_text("datacontenttype", text).is_ok());
        let content_type = match (said, &self.event.data) {
            (Some(said), _) => Some(said),
            // Nobody has declared the type of its data.
            (None, _) if self.is_cloud_event => None,
            (None, Payload::Text(text)) if text.is_empty() => None,
            (None, Payload::Text(text)) if json(text).is_some() => Some("application/json"),
            (None, Payload::Text(_)) => Some("text/plain"),
            (None, Payload::Bytes(_)) => None,
        };
        if let Some(content_type) = content_type {
            map.serialize_entry("datacontenttype", content_type)?;
        }
        if self.event.data.is_empty() {
            return Ok(());
        }
        match (&self.event.data, content_type) {
            (Payload::Text(text), Some(content_type)) if is_json(content_type) => {
                // White space around a value, and line breaks, are no part of it.
                let whole = json(text)
                    .filter(|raw| raw.get().len() == text.len() && !text.contains(['\n', '\r']));
                match whole {
                    Some(value) => map.serialize_entry("data", value),
                    None => {
                        // Its bytes are exported unchanged, also if it is declared as JSON, and
                        // none.
                        map.serialize_entry("data_base64", &BASE64_STANDARD.encode(text.as_bytes()))
                    }
                }
            }
            (Payload::Text(text), Some(_)) => map.serialize_entry("data", &**text),
            (data, _) => {
                map.serialize_entry("data_base64", &BASE64_STANDARD.encode(data.as_bytes()))
            }
        }
    }
}

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.attributes(&mut map)?;
        self.data(&mut map)?;
        map.end()
    }
}

/// A text as the value of an attribute: characters that attributes must not contain are
/// percent-encoded.
fn plain(text: &str) -> std::borrow::Cow<'_, str> {
    percent::encode_where(text, attribute::is_disallowed)
}

/// The source of events without one: their stream.
fn source_of(stream: &str) -> String {
    let is_plain = |character: char| {
        character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.' | '~')
    };
    format!(
        "/foldstream/{}",
        percent::encode_where(stream, |character| !is_plain(character))
    )
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::super::{Data, Envelope};
    use super::*;

    fn event(headers: &[(&str, &str)], data: Payload) -> Event {
        Event {
            sequence: 17,
            time_ns: 1_522_949_460_000_000_000,
            subject: "orders.42.placed".into(),
            kind: "placed".into(),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            data,
        }
    }

    fn written(event: &Event) -> Value {
        let text = serde_json::to_string(&Written::of(event, "ORDERS 1")).expect("plain data");
        Envelope::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
        serde_json::from_str(&text).expect("JSON")
    }

    #[test]
    fn an_event_that_was_none_gets_its_attributes_from_its_stream() {
        let found = written(&event(
            &[("nats-msg-id", "7"), ("x-two", "2"), ("x-two", "3")],
            Payload::from("{\"a\":1.10}"),
        ));
        assert_eq!(
            found,
            json!({
                "specversion": "1.0", "type": "placed", "id": "17", "source": "/foldstream/ORDERS%201",
                "subject": "orders.42.placed", "time": "2018-04-05T17:31:00.000000000Z",
                "foldstreamsubject": "orders.42.placed", "foldstreamheaders": "{\"x-two\":\"2\"}",
                "datacontenttype": "application/json", "data": { "a": 1.10 }
            })
        );
        assert_eq!(
            written(&event(&[], Payload::from("text")))["datacontenttype"],
            "text/plain"
        );
        let octets = written(&event(&[], Payload::Bytes(Bytes::from_static(b"\xff\0"))));
        assert_eq!(
            (&octets["data_base64"], &octets["datacontenttype"]),
            (&json!("/wA="), &Value::Null)
        );
    }

    #[test]
    fn a_cloud_event_is_written_as_it_came() {
        let headers = [
            ("ce-id", "1"),
            ("ce-partition", "3"),
            ("ce-source", "/shop"),
            ("ce-specversion", "1.0"),
            ("ce-time", "2018-04-05T19:31:00+02:00"),
            ("ce-type", "placed"),
            ("traceparent", "00-1-2-00"),
        ];
        assert_eq!(
            written(&event(&headers, Payload::from("{}"))),
            json!({
                "specversion": "1.0", "type": "placed", "id": "1", "source": "/shop", "partition": "3",
                "time": "2018-04-05T19:31:00+02:00", "traceparent": "00-1-2-00",
                "foldstreamsubject": "orders.42.placed", "data_base64": "e30="
            })
        );
        let mut later = event(&headers, Payload::from(""));
        later.time_ns += 1;
        assert_eq!(
            written(&later)["foldstreamtime"],
            "2018-04-05T17:31:00.000000001Z"
        );
        assert_eq!(written(&later).get("data"), None);
    }

    #[test]
    fn events_that_were_once_exported_wrongly_are_valid() {
        let headers = [
            ("ce-datacontenttype", "text/plain"),
            ("ce-foldstreamsubject", "b"),
            ("ce-foldstreamtime", "1970-01-01T00:00:00Z"),
            ("ce-id", "1"),
            ("ce-source", "/s"),
            ("ce-specversion", "1.0"),
            ("ce-traceparent", "00-1-2-00"),
            ("content-type", "text/plain"),
            ("traceparent", "00-3-4-00"),
        ];
        let found = written(&event(&headers, Payload::from("text")));
        assert_eq!(
            (&found["foldstreamsubject"], &found["traceparent"]),
            (&json!("orders.42.placed"), &json!("00-3-4-00"))
        );
        let mut odd = event(&[], Payload::from(r#"{"a":"\ud800"}"#));
        (odd.kind, odd.subject) = ("r\u{fdd0}".into(), "a.r\u{fdd0}".into());
        let found = written(&odd);
        assert_eq!(
            (&found["type"], &found["subject"]),
            (&json!("r%EF%B7%90"), &json!("a.r%EF%B7%90"))
        );
        assert_eq!(
            (&found["datacontenttype"], &found["data"]),
            (&json!("text/plain"), &json!(r#"{"a":"\ud800"}"#))
        );
    }

    #[test]
    fn one_that_is_malformed_is_written_like_any_other_event() {
        let headers = [
            ("ce-id", "1"),
            ("ce-source", "/s"),
            ("ce-specversion", "1.0"),
            ("ce-time", "noon"),
            ("ce-type", "placed"),
        ];
        assert_eq!(written(&event(&headers, Payload::from("1")))["id"], "17");
    }

    #[test]
    fn data_come_back_as_they_were() {
        for (content_type, data) in [
            (
                "application/json",
                Payload::from("{ \"z\": 1.10, \"a\": 12345678901234567890123 }"),
            ),
            ("application/json", Payload::from("\"text\"")),
            ("application/json", Payload::from("broken {")),
            ("application/json", Payload::from(" {\"a\": 1}\n")),
            ("application/json", Payload::from("{\n\"a\": 1}")),
            ("application/json", Payload::from("{\"$bytes\":\"zz\"}")),
            ("text/plain", Payload::from("123")),
            ("text/plain", Payload::from("\"quoted\"")),
            ("image/png", Payload::Bytes(Bytes::from_static(b"\xff\0"))),
        ] {
            let headers = [
                ("ce-id", "1"),
                ("ce-source", "/s"),
                ("ce-specversion", "1.0"),
                ("content-type", content_type),
            ];
            let given = event(&headers, data.clone());
            let text = serde_json::to_string(&Written::of(&given, "ORDERS")).expect("plain data");
            let octets = match Envelope::parse(text.as_bytes()).expect("sound").data {
                Data::Json(value) => value.get().as_bytes().to_vec(),
                Data::Text(text) => text.as_bytes().to_vec(),
                Data::Bytes(bytes) => bytes,
                Data::None => Vec::new(),
            };
            assert_eq!(octets, data.as_bytes(), "{text}");
        }
    }
}
