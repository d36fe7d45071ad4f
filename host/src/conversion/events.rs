//! Events of the log and of the API.

use std::collections::BTreeMap;

use crate::api;
use crate::event::{Event, Payload, PayloadError};
use crate::log::NewEvent;
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
