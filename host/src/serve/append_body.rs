//! The formats in which a client sends events: JSON, NDJSON, and CloudEvents in each of their
//! modes.

use axum::http::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::append_cloudevents::{self, AppendOptions, Attributes};
use super::extract;
use super::json;
use super::problem::Problem;
use crate::api::{self, Times};
use crate::cloudevents;
use crate::log::{Expectation, NewEvent};
use crate::subject::Pattern;

/// Most events in one request.
const EVENTS_MAX: usize = 10_000;

/// The format of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// [`api::Append`].
    Json,
    /// One [`api::NewEvent`] or CloudEvent per line.
    Lines,
    CloudEvent,
    /// A list of CloudEvents.
    CloudEvents,
    /// The data of a CloudEvent whose attributes are in the headers of the request.
    Binary(Attributes),
}

/// [`api::NewEvent`], with data as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Incoming {
    subject: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    id: Option<String>,
    time: Option<String>,
    #[serde(default)]
    headers: json::Texts,
    data: Option<Box<RawValue>>,
}

/// [`api::Append`], with the data of its events as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IncomingAppend {
    events: Vec<Incoming>,
    expected_last_sequence: Option<u64>,
    expected_last_subject_sequence: Option<u64>,
    expected_subject: Option<String>,
}

impl Form {
    /// The format that the headers announce.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let found = extract::content_type(headers);
        match found.as_deref().and_then(cloudevents::form) {
            Some(form @ (cloudevents::Form::Structured | cloudevents::Form::Batch)) => {
                append_cloudevents::check_charset(headers)?;
                return Ok(if form == cloudevents::Form::Batch {
                    Self::CloudEvents
                } else {
                    Self::CloudEvent
                });
            }
            Some(cloudevents::Form::Unknown) => {
                let wanted = "CloudEvents as application/cloudevents+json, \
                              application/cloudevents-batch+json, or in binary mode with ce- \
                              headers; this host reads no other format of them";
                return Err(extract::unsupported(found.as_deref(), wanted));
            }
            None => {}
        }
        // Only now: a structured event may have such headers as well, which then mean nothing.
        if let Some(attributes) = append_cloudevents::attributes(headers)? {
            return Ok(Self::Binary(attributes));
        }
        match found.as_deref() {
            Some("application/json") => Ok(Self::Json),
            Some("application/x-ndjson" | "application/ndjson" | "application/jsonl") => {
                Ok(Self::Lines)
            }
            found => {
                let wanted = "events as application/json, application/x-ndjson, \
                              application/cloudevents+json or application/cloudevents-batch+json, \
                              or a CloudEvent of any type with ce- headers";
                Err(extract::unsupported(found, wanted))
            }
        }
    }

    /// The events of a body, and the expectations about the log.
    pub(super) fn read(
        &self,
        body: &[u8],
        options: &AppendOptions,
    ) -> Result<(Vec<NewEvent>, Expectation), Problem> {
        let (mut events, mut expectation) = match self {
            Self::Json if options.template.is_some() => {
                return Err(Problem::invalid(
                    "subject is for CloudEvents; these events have their own, remove it",
                ));
            }
            Self::Json => read_json(body)?,
            Self::Lines => (read_lines(body, options)?, Expectation::default()),
            Self::CloudEvent => {
                let text = serde_json::from_slice(body)
                    .map_err(|error| unreadable("a CloudEvent", &error))?;
                (
                    vec![cloud_event(text, options).map_err(|text| at(0, &text))?],
                    Expectation::default(),
                )
            }
            Self::CloudEvents => (read_batch(body, options)?, Expectation::default()),
            Self::Binary(attributes) => {
                let event = append_cloudevents::of_binary(attributes, body, options)
                    .map_err(|error| at(0, &error.to_string()))?;
                (vec![event], Expectation::default())
            }
        };
        // A batch of CloudEvents may be empty; any other empty request is an error.
        let is_empty = events.is_empty() && *self != Self::CloudEvents;
        if is_empty || events.len() > EVENTS_MAX {
            let found = events.len();
            return Err(Problem::invalid(format!(
                "the request has {found} events; send 1 to {EVENTS_MAX} at once"
            )));
        }
        // For the log, which knows the times of what it has.
        expectation.times_rise = options.times == Times::Refuse;
        if options.times == Times::Ignore {
            events.iter_mut().for_each(|event| event.time_ns = None);
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

fn read_batch(body: &[u8], options: &AppendOptions) -> Result<Vec<NewEvent>, Problem> {
    let batch: Vec<&RawValue> = serde_json::from_slice(body)
        .map_err(|error| unreadable("a batch of CloudEvents", &error))?;
    let events = batch.into_iter().enumerate();
    events
        .map(|(index, text)| cloud_event(text, options).map_err(|text| at(index, &text)))
        .collect()
}

fn read_json(body: &[u8]) -> Result<(Vec<NewEvent>, Expectation), Problem> {
    let append: IncomingAppend =
        serde_json::from_slice(body).map_err(|error| unreadable("a request to append", &error))?;
    let last_subject_sequence = match (
        append.expected_last_subject_sequence,
        append.expected_subject,
    ) {
        (None, None) => None,
        (None, Some(_)) => {
            return Err(Problem::invalid(
                "expected_subject needs expected_last_subject_sequence; add it",
            ));
        }
        (Some(sequence), subject) => {
            let first = append.events.first().map(|event| event.subject.clone());
            // Without one it is about the first event; an empty text is refused as a pattern.
            let subject = subject.or(first).unwrap_or_default();
            Some((Pattern::parse(&subject)?, sequence))
        }
    };
    let last_sequence = append.expected_last_sequence;
    let expectation = Expectation {
        last_sequence,
        last_subject_sequence,
        times_rise: false,
        cursors: Vec::new(),
    };
    let events = append.events.into_iter().enumerate();
    let events = events
        .map(|(index, event)| convert(event).map_err(|text| at(index, &text)))
        .collect::<Result<_, _>>()?;
    Ok((events, expectation))
}

fn read_lines(body: &[u8], options: &AppendOptions) -> Result<Vec<NewEvent>, Problem> {
    let mut events = Vec::new();
    for (index, line) in body.split(|byte| *byte == b'\n').enumerate() {
        // A file often ends with an empty line.
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        // Before it is parsed, so that a body of tiny lines costs little.
        if events.len() == EVENTS_MAX {
            return Err(Problem::invalid(format!(
                "there are more than {EVENTS_MAX} lines; send them in several requests"
            )));
        }
        let event = match cloudevents::parse_with_specversion(line) {
            Some(envelope) => envelope
                .and_then(|envelope| append_cloudevents::of_envelope(&envelope, line, options))
                .map_err(|error| error.to_string()),
            None => serde_json::from_slice(line)
                .map_err(|error| error.to_string())
                .and_then(convert),
        };
        events.push(
            event.map_err(|text| {
                Problem::invalid(format!("line {} is refused: {text}", index + 1))
            })?,
        );
    }
    Ok(events)
}

fn convert(incoming: Incoming) -> Result<NewEvent, String> {
    let Incoming {
        subject,
        kind,
        id,
        time,
        headers,
        data,
    } = incoming;
    let event = api::NewEvent {
        subject,
        kind,
        id,
        time,
        headers: headers.0,
        // Replaced below by the text as it was written, so that numbers keep their digits.
        data: serde_json::Value::Null,
    };
    let mut event = NewEvent::try_from(event).map_err(|error| error.to_string())?;
    if let Some(data) = data {
        event.data = json::payload(&data).map_err(|error| error.to_string())?;
    }
    Ok(event)
}

fn cloud_event(text: &RawValue, options: &AppendOptions) -> Result<NewEvent, String> {
    let text = text.get().as_bytes();
    let envelope = cloudevents::Envelope::parse(text);
    envelope
        .and_then(|envelope| append_cloudevents::of_envelope(&envelope, text, options))
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::event::Payload;
    use crate::serve::problem::Kind;

    fn read(form: &Form, body: &str) -> Result<Vec<NewEvent>, Problem> {
        form.read(body.as_bytes(), &AppendOptions::default())
            .map(|(events, _)| events)
    }

    fn refused(form: &Form, body: &str) -> String {
        let problem = read(form, body).expect_err(body);
        assert_eq!(problem.kind(), Kind::Invalid, "{body}");
        problem.detail().to_owned()
    }

    fn structured() -> Value {
        json!({ "specversion": "1.0", "id": "e-1", "type": "com.example.made", "source": "/shop", "data": { "n": 1 },
            "time": "2018-04-05T17:31:00Z" })
    }

    #[test]
    fn form_follows_the_content_type() {
        let form = |kind: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("content-type", kind.parse().expect("a value"));
            Form::of(&headers)
        };
        for (kind, expected) in [
            ("application/json; charset=utf-8", Form::Json),
            ("application/x-ndjson", Form::Lines),
            (
                "Application/CloudEvents+JSON; charset=UTF-8",
                Form::CloudEvent,
            ),
            (
                "application/cloudevents-batch+json;charset=\"utf-8\"",
                Form::CloudEvents,
            ),
        ] {
            assert_eq!(form(kind).expect(kind), expected);
        }
        for kind in [
            "text/plain",
            "application/cloudevents",
            "application/cloudevents+avro",
            "application/cloudevents-batch+xml",
            "application/cloudevents+protobuf",
            "application/cloudevents+json; charset=utf-16",
        ] {
            let problem = form(kind).expect_err("unknown");
            assert_eq!(problem.kind(), Kind::UnsupportedMediaType, "{kind}");
            assert!(
                problem.detail().contains("application/cloudevents+json"),
                "{kind}: {}",
                problem.detail()
            );
        }
    }

    #[test]
    fn a_subject_is_for_cloud_events() {
        let template = cloudevents::SubjectTemplate::parse("a.b").expect("a template");
        let options = AppendOptions {
            template: Some(template),
            times: Times::Raise,
        };
        let problem = Form::Json
            .read(br#"{"events":[{"subject":"a"}]}"#, &options)
            .expect_err("has its own");
        assert_eq!(problem.kind(), Kind::Invalid);
        let lines = format!("{{\"subject\":\"own\"}}\n{}\n", structured());
        let (events, _) = Form::Lines.read(lines.as_bytes(), &options).expect("sound");
        let subjects: Vec<&str> = events.iter().map(|event| event.subject.as_str()).collect();
        assert_eq!(subjects, ["own", "a.b"]);
    }

    #[test]
    fn data_of_events_is_kept_as_it_was_written() {
        let data = r#"{"z": 1.10, "a": 12345678901234567890123}"#;
        let events = read(
            &Form::Lines,
            &format!("{{\"subject\":\"a.b\",\"data\":{data}}}\n\n"),
        )
        .expect("sound");
        assert_eq!(events[0].data, Payload::from(data));
        let events = read(
            &Form::Json,
            r#"{"events":[{"subject":"a"},{"subject":"a","data":"x"}]}"#,
        )
        .expect("sound");
        assert_eq!(
            (&events[0].data, &events[1].data),
            (&Payload::from("null"), &Payload::from("x"))
        );
    }

    #[test]
    fn expectation_of_a_subject_is_about_the_first_event_unless_said() {
        let expected = |more: &str| {
            let body = format!(
                r#"{{"events":[{{"subject":"a.b"}}],"expected_last_subject_sequence":3{more}}}"#
            );
            let (_, expectation) = Form::Json
                .read(body.as_bytes(), &AppendOptions::default())
                .expect("sound");
            expectation
                .last_subject_sequence
                .map(|(pattern, sequence)| (pattern.to_string(), sequence))
        };
        assert_eq!(expected(""), Some(("a.b".to_owned(), 3)));
        assert_eq!(
            expected(r#","expected_subject":"a.>""#),
            Some(("a.>".to_owned(), 3))
        );
    }

    #[test]
    fn refusal_names_the_event() {
        assert!(
            refused(&Form::Lines, "{\"subject\":\"a\"}\nnot json").starts_with("line 2 is refused")
        );
        let time = r#"{"events":[{"subject":"a"},{"subject":"a","time":"now"}]}"#;
        assert!(refused(&Form::Json, time).starts_with("event 1 is refused: time"));
        let bytes = r#"{"events":[{"subject":"a","data":{"$bytes":"?"}}]}"#;
        assert!(refused(&Form::Json, bytes).starts_with("event 0 is refused"));
        assert!(
            refused(&Form::Json, r#"{"events":[{"subject":"a","subjekt":1}]}"#).contains("subjekt")
        );
        let twice = r#"{"events":[{"subject":"a","headers":{"x":"1","x":"2"}}]}"#;
        assert!(
            refused(&Form::Json, twice).contains("`x` occurs twice"),
            "{}",
            refused(&Form::Json, twice)
        );
    }

    #[test]
    fn number_of_events_is_limited() {
        assert!(refused(&Form::Json, r#"{"events":[]}"#).contains("send 1 to 10000"));
        assert!(
            refused(
                &Form::Lines,
                &"{\"subject\":\"a\"}\n".repeat(EVENTS_MAX + 1)
            )
            .contains("more than 10000")
        );
    }

    #[test]
    fn cloud_event_goes_under_its_type_as_it_was_written() {
        let text = structured().to_string();
        for (form, text) in [
            (Form::CloudEvent, text.clone()),
            (Form::Lines, format!("\n {text} \n")),
        ] {
            let events = read(&form, &text).expect("sound");
            assert_eq!(
                (events[0].subject.as_str(), events[0].id.as_deref()),
                ("com.example.made", Some("/shop e-1"))
            );
            assert_eq!(events[0].data, Payload::from(text.trim()));
            assert_eq!(events[0].time_ns, Some(1_522_949_460_000_000_000));
        }
        let batch = json!([structured(), structured()]).to_string();
        assert_eq!(read(&Form::CloudEvents, &batch).expect("sound").len(), 2);
        assert_eq!(
            read(&Form::CloudEvents, "[]")
                .expect("an empty batch is one")
                .len(),
            0
        );
    }

    #[test]
    fn malformed_cloud_events_are_refused_by_attribute() {
        let mut event = structured();
        event["time"] = json!("lunchtime");
        for (form, text) in [
            (Form::CloudEvent, event.to_string()),
            (Form::CloudEvents, format!("[{event}]")),
            (Form::Lines, event.to_string()),
        ] {
            assert!(
                refused(&form, &text).contains("attribute time is lunchtime"),
                "{}",
                refused(&form, &text)
            );
        }
        assert!(refused(&Form::CloudEvent, "[]").contains("not a JSON object"));
        assert!(refused(&Form::CloudEvents, "{}").contains("batch"));
        let second = format!("[{}, \"not an object\"]", structured());
        assert!(refused(&Form::CloudEvents, &second).starts_with("event 1 is refused"));
        assert!(
            refused(&Form::Lines, r#"{"source":"/s","id":"1","type":"t"}"#)
                .contains("unknown field `source`")
        );
    }

    #[test]
    fn times_are_kept_raised_or_ignored_as_wished() {
        let outcome = |times| {
            let options = AppendOptions {
                template: None,
                times,
            };
            let (events, expectation) = Form::CloudEvent
                .read(structured().to_string().as_bytes(), &options)
                .expect("sound");
            (events[0].time_ns.is_some(), expectation.times_rise)
        };
        assert_eq!(outcome(Times::Raise), (true, false));
        assert_eq!(outcome(Times::Refuse), (true, true));
        assert_eq!(outcome(Times::Ignore), (false, false));
    }
}
