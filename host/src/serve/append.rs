//! The forms in which events arrive: JSON, NDJSON, CloudEvents.
//! Source of the last: <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md>.

use std::borrow::Cow;
use std::collections::BTreeMap;

use axum::http::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::extract;
use super::json;
use super::problem::Problem;
use crate::api;
use crate::event::Payload;
use crate::log::{Expectation, NewEvent};
use crate::subject::Pattern;

/// Most events in one request.
const EVENTS_MAX: usize = 10_000;

/// The form of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// [`api::Append`].
    Json,
    /// One [`api::NewEvent`] a line.
    Lines,
    /// One CloudEvent, with the subject to put it under.
    CloudEvent(Option<String>),
    /// A list of CloudEvents, with the subject to put them under.
    CloudEvents(Option<String>),
}

/// [`api::NewEvent`], its data as it was written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Incoming {
    subject: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    id: Option<String>,
    time: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    data: Option<Box<RawValue>>,
}

/// [`api::Append`], the data of its events as they were written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IncomingAppend {
    events: Vec<Incoming>,
    expected_last_sequence: Option<u64>,
    expected_last_subject_sequence: Option<u64>,
    expected_subject: Option<String>,
}

impl Form {
    /// The form that a content type announces.
    pub(super) fn of(headers: &HeaderMap, subject: Option<String>) -> Result<Self, Problem> {
        let form = match extract::content_type(headers).as_deref() {
            Some("application/json") => Self::Json,
            Some("application/x-ndjson" | "application/ndjson" | "application/jsonl") => Self::Lines,
            Some("application/cloudevents+json") => return Ok(Self::CloudEvent(subject)),
            Some("application/cloudevents-batch+json") => return Ok(Self::CloudEvents(subject)),
            found => {
                let wanted = "events as application/json, application/x-ndjson, application/cloudevents+json or \
                              application/cloudevents-batch+json";
                return Err(extract::unsupported(found, wanted));
            }
        };
        if subject.is_some() {
            return Err(Problem::invalid("subject is for CloudEvents; these events carry their own, leave it out"));
        }
        Ok(form)
    }

    /// The events of a body, and what they expect of the log.
    pub(super) fn read(&self, body: &[u8]) -> Result<(Vec<NewEvent>, Expectation), Problem> {
        let (events, expectation) = match self {
            Self::Json => read_json(body)?,
            Self::Lines => (read_lines(body)?, Expectation::default()),
            Self::CloudEvent(subject) => {
                let text = serde_json::from_slice(body).map_err(|error| unreadable("a CloudEvent", &error))?;
                (vec![cloud_event(text, subject.as_deref()).map_err(|text| at(0, &text))?], Expectation::default())
            }
            Self::CloudEvents(subject) => (read_batch(body, subject.as_deref())?, Expectation::default()),
        };
        if events.is_empty() || events.len() > EVENTS_MAX {
            let found = events.len();
            return Err(Problem::invalid(format!("the request has {found} events; send 1 to {EVENTS_MAX} at once")));
        }
        Ok((events, expectation))
    }
}

fn unreadable(what: &str, error: &serde_json::Error) -> Problem {
    Problem::invalid(format!("the body is not {what}: {error}"))
}

fn at(index: usize, text: &str) -> Problem {
    Problem::invalid(format!("event {index} is refused: {text}"))
}

fn read_batch(body: &[u8], subject: Option<&str>) -> Result<Vec<NewEvent>, Problem> {
    let batch: Vec<&RawValue> =
        serde_json::from_slice(body).map_err(|error| unreadable("a batch of CloudEvents", &error))?;
    let events = batch.into_iter().enumerate();
    events.map(|(index, text)| cloud_event(text, subject).map_err(|text| at(index, &text))).collect()
}

fn read_json(body: &[u8]) -> Result<(Vec<NewEvent>, Expectation), Problem> {
    let append: IncomingAppend =
        serde_json::from_slice(body).map_err(|error| unreadable("a request to append", &error))?;
    let last_subject_sequence = match (append.expected_last_subject_sequence, append.expected_subject) {
        (None, None) => None,
        (None, Some(_)) => {
            return Err(Problem::invalid("expected_subject stands without expected_last_subject_sequence; add it"));
        }
        (Some(sequence), subject) => {
            let first = append.events.first().map(|event| event.subject.clone());
            let subject = subject.or(first).unwrap_or_default();
            Some((Pattern::parse(&subject)?, sequence))
        }
    };
    let expectation = Expectation { last_sequence: append.expected_last_sequence, last_subject_sequence };
    let events = append.events.into_iter().enumerate();
    let events =
        events.map(|(index, event)| convert(event).map_err(|text| at(index, &text))).collect::<Result<_, _>>()?;
    Ok((events, expectation))
}

fn read_lines(body: &[u8]) -> Result<Vec<NewEvent>, Problem> {
    let mut events = Vec::new();
    for (index, line) in body.split(|byte| *byte == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        if events.len() == EVENTS_MAX {
            return Err(Problem::invalid(format!(
                "there are more than {EVENTS_MAX} lines; send them in several requests"
            )));
        }
        let event = serde_json::from_slice(line).map_err(|error| error.to_string());
        let event = event.and_then(convert);
        events.push(event.map_err(|text| Problem::invalid(format!("line {} is refused: {text}", index + 1)))?);
    }
    Ok(events)
}

fn convert(incoming: Incoming) -> Result<NewEvent, String> {
    let Incoming { subject, kind, id, time, headers, data } = incoming;
    let event = api::NewEvent { subject, kind, id, time, headers, data: serde_json::Value::Null };
    let mut event = NewEvent::try_from(event).map_err(|error| error.to_string())?;
    if let Some(data) = data {
        event.data = json::payload(&data)?;
    }
    Ok(event)
}

/// A CloudEvent goes into the log as it is, in structured form; reading the log takes it apart, for guests and for the
/// API, as it does for one from JetStream. What could not be taken apart is refused here.
fn cloud_event(text: &RawValue, subject: Option<&str>) -> Result<NewEvent, String> {
    let attributes: BTreeMap<Cow<'_, str>, &RawValue> =
        serde_json::from_str(text.get()).map_err(|error| format!("it is no JSON object: {error}"))?;
    let version = required(&attributes, "specversion")?;
    if !version.starts_with("1.") {
        return Err(format!("its specversion is {version:.16}; this host reads CloudEvents 1.x"));
    }
    let id = required(&attributes, "id")?;
    let source = required(&attributes, "source")?;
    let kind = required(&attributes, "type")?;
    for (name, value) in &attributes {
        check_member(name, value)?;
    }
    if attributes.contains_key("data") && attributes.contains_key("data_base64") {
        return Err("it has both data and data_base64; leave one out".to_owned());
    }
    Ok(NewEvent {
        subject: subject.map_or(kind, str::to_owned),
        kind: None,
        // An id is unique within its source only.
        id: Some(format!("{source}/{id}")),
        time_ns: None,
        headers: vec![("content-type".to_owned(), "application/cloudevents+json".to_owned())],
        data: Payload::from(text.get()),
    })
}

fn required(attributes: &BTreeMap<Cow<'_, str>, &RawValue>, name: &str) -> Result<String, String> {
    let text = attributes.get(name).and_then(|value| serde_json::from_str::<String>(value.get()).ok());
    let missing = || format!("its {name} is missing or no text, and every CloudEvent needs it");
    text.filter(|text| !text.is_empty()).ok_or_else(missing)
}

fn check_member(name: &str, value: &RawValue) -> Result<(), String> {
    match name {
        "data" => return Ok(()),
        "data_base64" => {
            let encoded: String =
                serde_json::from_str(value.get()).map_err(|_| "its data_base64 is no text".to_owned())?;
            return json::base64(&encoded).map(drop);
        }
        _ => {}
    }
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
        return Err(format!("attribute {name:.64?} has a name that is not of lower-case letters and digits"));
    }
    if value.get().starts_with(['{', '[']) {
        return Err(format!("attribute {name:.64} is no text, number or truth value; put structures into data"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::serve::problem::Kind;

    fn read(form: &Form, body: &str) -> Result<Vec<NewEvent>, Problem> {
        form.read(body.as_bytes()).map(|(events, _)| events)
    }

    fn refused(form: &Form, body: &str) -> String {
        let problem = read(form, body).expect_err(body);
        assert_eq!(problem.kind(), Kind::Invalid, "{body}");
        problem.detail().to_owned()
    }

    fn structured() -> Value {
        json!({ "specversion": "1.0", "id": "e-1", "type": "com.example.made", "source": "/shop", "data": { "n": 1 } })
    }

    #[test]
    fn form_follows_the_content_type() {
        let form = |kind: &'static str, subject: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert("content-type", kind.parse().expect("a value"));
            Form::of(&headers, subject.map(str::to_owned))
        };
        assert_eq!(form("application/json; charset=utf-8", None).expect("known"), Form::Json);
        assert_eq!(form("application/x-ndjson", None).expect("known"), Form::Lines);
        let wanted = Form::CloudEvents(Some("a.b".to_owned()));
        assert_eq!(form("application/cloudevents-batch+json", Some("a.b")).expect("known"), wanted);
        assert_eq!(form("text/plain", None).expect_err("unknown").kind(), Kind::UnsupportedMediaType);
        assert_eq!(form("application/json", Some("a.b")).expect_err("its own").kind(), Kind::Invalid);
    }

    #[test]
    fn data_of_events_is_kept_as_it_was_written() {
        let data = r#"{"z": 1.10, "a": 12345678901234567890123}"#;
        let events = read(&Form::Lines, &format!("{{\"subject\":\"a.b\",\"data\":{data}}}\n\n")).expect("sound");
        assert_eq!(events[0].data, Payload::from(data));
        let events = read(&Form::Json, r#"{"events":[{"subject":"a"},{"subject":"a","data":"x"}]}"#).expect("sound");
        assert_eq!((&events[0].data, &events[1].data), (&Payload::from("null"), &Payload::from("x")));
    }

    #[test]
    fn expectation_of_a_subject_is_about_the_first_event_unless_said() {
        let expected = |more: &str| {
            let body = format!(r#"{{"events":[{{"subject":"a.b"}}],"expected_last_subject_sequence":3{more}}}"#);
            let (_, expectation) = Form::Json.read(body.as_bytes()).expect("sound");
            expectation.last_subject_sequence.map(|(pattern, sequence)| (pattern.to_string(), sequence))
        };
        assert_eq!(expected(""), Some(("a.b".to_owned(), 3)));
        assert_eq!(expected(r#","expected_subject":"a.>""#), Some(("a.>".to_owned(), 3)));
    }

    #[test]
    fn refusal_names_the_event() {
        assert!(refused(&Form::Lines, "{\"subject\":\"a\"}\nnot json").starts_with("line 2 is refused"));
        let time = r#"{"events":[{"subject":"a"},{"subject":"a","time":"now"}]}"#;
        assert!(refused(&Form::Json, time).starts_with("event 1 is refused: time"));
        let bytes = r#"{"events":[{"subject":"a","data":{"$bytes":"?"}}]}"#;
        assert!(refused(&Form::Json, bytes).starts_with("event 0 is refused"));
        assert!(refused(&Form::Json, r#"{"events":[{"subject":"a","subjekt":1}]}"#).contains("subjekt"));
    }

    #[test]
    fn number_of_events_is_limited() {
        assert!(refused(&Form::Json, r#"{"events":[]}"#).contains("send 1 to 10000"));
        assert!(refused(&Form::Lines, &"{\"subject\":\"a\"}\n".repeat(EVENTS_MAX + 1)).contains("more than 10000"));
    }

    #[test]
    fn cloud_event_goes_under_its_type_or_the_subject_given() {
        let text = structured().to_string();
        let events = read(&Form::CloudEvent(None), &text).expect("sound");
        assert_eq!((events[0].subject.as_str(), events[0].id.as_deref()), ("com.example.made", Some("/shop/e-1")));
        assert_eq!(events[0].data, Payload::from(text.as_str()));
        let batch = json!([structured(), structured()]).to_string();
        let events = read(&Form::CloudEvents(Some("a.b".to_owned())), &batch).expect("sound");
        assert_eq!((events.len(), events[1].subject.as_str()), (2, "a.b"));
    }

    #[test]
    fn malformed_cloud_events_are_refused() {
        let changed = |name: &str, value: Value| {
            let mut event = structured();
            event[name] = value;
            refused(&Form::CloudEvent(None), &event.to_string())
        };
        for name in ["specversion", "id", "source", "type"] {
            assert!(changed(name, Value::Null).contains(name));
            assert!(changed(name, json!("")).contains(name));
        }
        assert!(changed("specversion", json!("0.3")).contains("1.x"));
        assert!(changed("data_base64", json!("AA==")).contains("both"));
        assert!(changed("extra", json!({})).contains("extra"));
        assert!(changed("Extra", json!(1)).contains("lower-case"));
        assert!(refused(&Form::CloudEvent(None), "[]").contains("no JSON object"));
    }
}
