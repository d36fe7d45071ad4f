//! Releasing to a JetStream stream with a cursor: exactly once.
//!
//! The cursor is a message of the same stream that names the place of the last effect that is
//! stored. It is stored together with the effects before it or not at all, and only behind the
//! cursor that this owner has read. So effects up to the cursor are stored and those after it are
//! not, whatever the window of the stream has forgotten, and even if another host publishes for the
//! same deployment.
//!
//! A stream takes cursors if it allows atomic batches and has their subject among its own.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Sent;
use super::jetstream::{Conditions, outgoing};
use crate::effects::{Lineage, Place, Row};
use crate::source::jetstream::{BatchError, Outgoing, Publisher, Unavailable};

/// Most effects that are stored together. The server takes a thousand messages.
const BATCH_MAX: usize = 500;

/// How far a lineage is in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Effects up to this place are stored; none before the first cursor.
    pub(super) through: Option<Place>,
    /// The sequence of the message that says so; 0 for none.
    sequence: u64,
    /// The subject of that message.
    subject: Arc<str>,
}

/// The data of a cursor.
#[derive(Serialize, Deserialize)]
struct Data {
    sequence: u64,
    sub: u32,
    index: u32,
}

/// Why the cursor is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum CursorError {
    /// The stream can't be read.
    #[error(transparent)]
    Stream(#[from] Unavailable),
    /// Somebody else has written under its subject.
    #[error(
        "message {sequence} under {subject} is no cursor of a host, so nobody knows what is \
         stored; delete that message"
    )]
    Foreign {
        /// The subject.
        subject: Arc<str>,
        /// The sequence of the message.
        sequence: u64,
    },
}

/// The subject of the cursor of a lineage. Two sources may have one stream, and effects for one of
/// them say nothing about those for the other.
fn subject(lineage: Lineage, target: &str) -> Arc<str> {
    format!("_fs.cursors.{lineage}.{target}").into()
}

/// Reads the cursor; none if the stream takes none.
pub(super) async fn find(
    publisher: &Publisher,
    lineage: Lineage,
    target: &str,
) -> Result<Option<Cursor>, CursorError> {
    let (subject, description) = (subject(lineage, target), publisher.describe().await?);
    // A stream that removes messages may remove the cursor.
    let is_able = description.is_atomic && description.keeps;
    if !is_able || !publisher.stores(&subject).await? {
        return Ok(None);
    }
    let Some((sequence, data)) = publisher.last_of(&subject).await? else {
        return Ok(Some(Cursor {
            through: None,
            sequence: 0,
            subject,
        }));
    };
    match serde_json::from_slice(&data) {
        Ok(Data {
            sequence: event,
            sub,
            index,
        }) => Ok(Some(Cursor {
            through: Some(Place {
                sequence: event,
                sub,
                index,
            }),
            sequence,
            subject,
        })),
        Err(_) => Err(CursorError::Foreign { subject, sequence }),
    }
}

/// Sends effects in the order of their places, and moves the cursor with them. Those that it has
/// passed are stored.
pub(super) async fn send(
    publisher: &Publisher,
    lineage: Lineage,
    cursor: &mut Cursor,
    rows: Vec<Row>,
    conditions: &Conditions<'_>,
) -> Sent {
    let through = cursor.through;
    let is_stored = |row: &Row| through.is_some_and(|through| row.place <= through);
    let (confirmed, mut rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(is_stored);
    let mut sent = Sent {
        again: confirmed.len() as u64,
        confirmed,
        ..Sent::default()
    };
    let mut count = BATCH_MAX;
    while !rows.is_empty() && !*conditions.stopped.borrow() {
        // A grant may be withdrawn meanwhile; later ones wait, as their order is that of places.
        if let Some(denied) = (conditions.denied)(&rows[0]) {
            sent.trouble = Some(denied);
            break;
        }
        let portion = &rows[..count.min(rows.len())];
        let granted = portion
            .iter()
            .take_while(|row| (conditions.denied)(row).is_none());
        let portion = &portion[..granted.count()];
        let length = portion.len();
        let Err(error) = store(publisher, lineage, cursor, portion).await else {
            sent.sequence = cursor.sequence;
            sent.confirmed.extend(rows.drain(..length));
            count = BATCH_MAX;
            continue;
        };
        let is_refused = matches!(error, BatchError::NotStored(_) | BatchError::Known(_));
        if is_refused && length > 1 {
            // One of them: those before it are stored without it.
            count = length / 2;
            continue;
        }
        // It is there from before the first cursor, which passes it.
        if matches!(error, BatchError::Known(_))
            && advance(publisher, cursor, &[], rows[0].place).await.is_ok()
        {
            sent.again += 1;
            sent.confirmed.push(rows.remove(0));
            continue;
        }
        // Refused for sure is no doubt: the stream does not have it, and the cursor is where it was.
        sent.is_in_doubt = !is_refused;
        // About a batch the stream says only that it is incomplete.
        let why = if is_refused {
            publisher.refusal(&outgoing(&rows[0], lineage)).await
        } else {
            None
        };
        sent.trouble = Some(why.unwrap_or_else(|| error.to_string()));
        break;
    }
    sent
}

/// Stores effects behind the cursor, and moves it.
async fn store(
    publisher: &Publisher,
    lineage: Lineage,
    cursor: &mut Cursor,
    rows: &[Row],
) -> Result<(), BatchError> {
    let Some(last) = rows.last() else {
        return Ok(());
    };
    let messages: Vec<_> = rows.iter().map(|row| outgoing(row, lineage)).collect();
    advance(publisher, cursor, &messages, last.place).await
}

/// Stores messages, and the cursor at a place behind them.
async fn advance(
    publisher: &Publisher,
    cursor: &mut Cursor,
    messages: &[Outgoing],
    place: Place,
) -> Result<(), BatchError> {
    let Place {
        sequence,
        sub,
        index,
    } = place;
    let data = serde_json::to_vec(&Data {
        sequence,
        sub,
        index,
    });
    let data = Bytes::from(data.expect("plain data"));
    cursor.sequence = publisher
        .publish_batch(messages, (&cursor.subject, data), cursor.sequence)
        .await?;
    cursor.through = Some(place);
    Ok(())
}
