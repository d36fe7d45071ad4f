//! Publishes events of the host itself to a source: failures that were parked, and what an operator
//! decides about timers.

use super::Error;
use crate::actor::blocking;
use crate::event::Payload;
use crate::log::{Expectation, Log, NewEvent};
use crate::source::Source;
use crate::source::jetstream::{Outgoing, PublishError, Publisher};

/// Where events go.
pub(crate) enum Outlet {
    Embedded(Log),
    JetStream(Box<Publisher>),
}

impl Outlet {
    /// That of a source.
    pub(crate) fn of(source: &Source) -> Result<Self, Error> {
        Ok(match source {
            Source::Embedded(embedded) => {
                let log = embedded.log();
                Self::Embedded(log.map_err(|error| Error::Conflict(error.to_string()))?)
            }
            Source::JetStream(stream) => Self::JetStream(Box::new(stream.publisher())),
        })
    }

    /// Publishes one event; returns its sequence. After an error it may be stored all the same, and
    /// is stored once if it is published again with the same id.
    pub(crate) async fn publish(
        &self,
        subject: &str,
        kind: &str,
        id: String,
        data: String,
    ) -> Result<u64, Error> {
        match self {
            Self::Embedded(log) => {
                let event = NewEvent {
                    subject: subject.to_owned(),
                    kind: Some(kind.to_owned()),
                    id: Some(id),
                    time_ns: None,
                    headers: Vec::new(),
                    data: Payload::from(data),
                };
                let log = log.clone();
                let stored = blocking(move || log.append(&[event], &Expectation::default())).await;
                let stored = stored.map_err(|error| Error::Conflict(error.to_string()))?;
                Ok(stored
                    .sequences
                    .first()
                    .copied()
                    .unwrap_or(stored.last_sequence))
            }
            Self::JetStream(publisher) => {
                let ready = publisher.ready().await;
                ready.map_err(|away| Error::Conflict(away.to_string()))?;
                let message = Outgoing {
                    id,
                    subject: subject.to_owned(),
                    headers: vec![("Event-Type".to_owned(), kind.to_owned())],
                    data: data.into(),
                    ..Outgoing::default()
                };
                let sent = publisher.publish(&message).await;
                let sent =
                    sent.map_err(|error: PublishError| Error::Conflict(error.to_string()))?;
                Ok(sent.sequence)
            }
        }
    }
}
