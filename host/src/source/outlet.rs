//! Publishes to the stream of a source.

use super::embedded::Embedded;
use super::jetstream::{Outgoing, PublishError, Publisher, Unavailable};
use crate::log::{self, Expectation, NewEvent};

/// What publishes to the stream of a source. Its owner says what it does with either, so that the
/// compiler lists every place to visit.
pub(crate) enum Outlet {
    /// Appends to a log of this host.
    Log(Embedded),
    /// Publishes to a stream of a server.
    Stream(Box<Publisher>),
}

/// Why an event is not published, or is not known to be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotPublished {
    /// The log refuses it, or is not open.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// The server can't be reached.
    #[error(transparent)]
    Away(#[from] Unavailable),
    /// The stream refuses it, or has not answered.
    #[error(transparent)]
    Stream(#[from] PublishError),
    /// The work ended early, because of a defect or because the host stops.
    #[error(transparent)]
    Interrupted(#[from] tokio::task::JoinError),
}

impl NotPublished {
    /// Whether it is this event that the target does not take: others may be.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Log(log::Error::Invalid { .. }) | Self::Stream(PublishError::NotStored(_))
        )
    }
}

impl Outlet {
    /// Publishes one event; returns its sequence. After an error it may be stored all the same, and
    /// is stored once if it is published again with the same id.
    pub(crate) async fn publish(&self, event: NewEvent) -> Result<u64, NotPublished> {
        match self {
            Self::Log(embedded) => {
                let log = embedded.log()?;
                let append = move || log.append(&[event], &Expectation::default());
                let stored = tokio::task::spawn_blocking(append).await??;
                Ok(stored
                    .sequences
                    .first()
                    .copied()
                    .unwrap_or(stored.last_sequence))
            }
            Self::Stream(publisher) => {
                publisher.ready().await?;
                let kind = event.kind.map(|kind| ("Event-Type".to_owned(), kind));
                let message = Outgoing {
                    id: event.id.unwrap_or_default(),
                    subject: event.subject,
                    headers: kind.into_iter().chain(event.headers).collect(),
                    data: bytes::Bytes::copy_from_slice(event.data.as_bytes()),
                    ..Outgoing::default()
                };
                Ok(publisher.publish(&message).await?.sequence)
            }
        }
    }

    /// The time of the clock that gives events their times, in nanoseconds since the Unix epoch;
    /// none if it can't be asked at the moment.
    pub(crate) async fn time_ns(&self) -> Option<u64> {
        match self {
            Self::Log(_) => None,
            Self::Stream(publisher) => publisher.describe().await.ok()?.time_ns,
        }
    }

    /// Whether that clock is another one than that of this machine.
    pub(crate) fn has_other_clock(&self) -> bool {
        match self {
            Self::Log(_) => false,
            Self::Stream(_) => true,
        }
    }
}
