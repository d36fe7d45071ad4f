//! Converts events of the log to and from those of the API.

use std::collections::BTreeMap;

use super::{Error, Expectation, NewEvent};
use crate::api;
use crate::event::{Event, Payload, PayloadError};
use crate::subject::Pattern;
use crate::timestamp::{self, format_ns};

/// Why an event of the API cannot be stored.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The time is not valid.
    #[error("time {0:?} {1}")]
    Time(String, timestamp::Error),
    /// The data is not valid.
    #[error(transparent)]
    Data(#[from] PayloadError),
}

/// Splits a request of the API into events and expectations.
pub fn request(append: api::Append) -> Result<(Vec<NewEvent>, Expectation), Error> {
    // Without a subject of its own the expectation is about that of the first event.
    let subject = append
        .expected_subject
        .or_else(|| append.events.first().map(|event| event.subject.clone()));
    let last_subject_sequence = match (append.expected_last_subject_sequence, subject) {
        (Some(sequence), Some(subject)) => {
            let pattern = Pattern::parse(&subject).map_err(|error| Error::Invalid {
                index: 0,
                message: format!("expected_subject: {error}"),
            })?;
            Some((pattern, sequence))
        }
        _ => None,
    };
    let mut events = Vec::with_capacity(append.events.len());
    for (index, event) in append.events.into_iter().enumerate() {
        // The first event that is not valid is named.
        let event = NewEvent::try_from(event).map_err(|error| Error::Invalid {
            index,
            message: error.to_string(),
        })?;
        events.push(event);
    }
    Ok((
        events,
        Expectation {
            last_sequence: append.expected_last_sequence,
            last_subject_sequence,
            times_rise: false,
            cursors: Vec::new(),
        },
    ))
}

impl TryFrom<api::NewEvent> for NewEvent {
    type Error = ConvertError;

    fn try_from(event: api::NewEvent) -> Result<Self, ConvertError> {
        Ok(Self {
            subject: event.subject,
            kind: event.kind,
            id: event.id,
            time_ns: event.time.as_deref().map(parse_time).transpose()?,
            headers: event.headers.into_iter().collect(),
            data: Payload::from_json(event.data)?,
        })
    }
}

impl From<NewEvent> for api::NewEvent {
    /// Of headers with the same name, the first is shown.
    fn from(event: NewEvent) -> Self {
        let mut headers = BTreeMap::new();
        for (name, value) in event.headers {
            headers.entry(name).or_insert(value);
        }
        Self {
            subject: event.subject,
            kind: event.kind,
            id: event.id,
            time: event.time_ns.map(format_ns),
            headers,
            data: event.data.to_json(),
        }
    }
}

impl From<&Event> for api::StoredEvent {
    /// Of headers with the same name, the first is shown.
    fn from(event: &Event) -> Self {
        let mut headers = BTreeMap::new();
        for (name, value) in &event.headers {
            headers
                .entry(name.to_string())
                .or_insert_with(|| value.to_string());
        }
        Self {
            sequence: event.sequence,
            time: format_ns(event.time_ns),
            subject: event.subject.to_string(),
            kind: event.kind.to_string(),
            headers,
            data: event.data.to_json(),
        }
    }
}

fn parse_time(text: &str) -> Result<u64, ConvertError> {
    timestamp::parse_ns(text)
        .map_err(|error| ConvertError::Time(text.chars().take(64).collect(), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn append(value: serde_json::Value) -> Result<(Vec<NewEvent>, Expectation), Error> {
        request(serde_json::from_value(value).expect("has the API's shape"))
    }

    #[test]
    fn expectation_is_about_the_first_subject_unless_said() {
        let event = json!({"subject": "a.1.b", "data": {"x": 1}});
        let (events, expectation) = append(json!({
            "events": [event], "expected_last_subject_sequence": 3, "expected_last_sequence": 9
        }))
        .expect("sound");
        assert_eq!(events[0].data.as_str(), Some(r#"{"x":1}"#));
        assert_eq!(expectation.last_sequence, Some(9));
        assert_eq!(
            expectation.last_subject_sequence,
            Some((Pattern::parse("a.1.b").expect("sound"), 3))
        );

        let (_, expectation) = append(json!({
            "events": [event], "expected_last_subject_sequence": 3, "expected_subject": "a.1.>"
        }))
        .expect("sound");
        assert_eq!(
            expectation.last_subject_sequence,
            Some((Pattern::parse("a.1.>").expect("sound"), 3))
        );
        let bad = append(
            json!({"events": [event], "expected_last_subject_sequence": 3, "expected_subject": "a..b"}),
        );
        assert!(matches!(bad, Err(Error::Invalid { index: 0, .. })));
    }

    #[test]
    fn bad_event_is_named_by_its_index() {
        let bad = append(
            json!({"events": [{"subject": "a"}, {"subject": "a", "data": {"$bytes": "?"}}]}),
        );
        assert!(matches!(bad, Err(Error::Invalid { index: 1, .. })));
        let bad = append(json!({"events": [{"subject": "a", "time": "soon"}]}));
        assert!(matches!(bad, Err(Error::Invalid { index: 0, .. })));
    }
}
