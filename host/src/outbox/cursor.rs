//! Releasing to a JetStream stream with a cursor: exactly once.
//!
//! The cursor is a message of the same stream that names the place of the last effect that is
//! stored. It is stored together with the effects before it or not at all, and only behind the
//! cursor that this owner has read. So effects up to the cursor are stored and those after it are
//! not, whatever the window of the stream has forgotten, and even if another host publishes for the
//! same deployment.
//!
//! A cursor may pass an effect that is not stored: a delayed one, whose place says nothing about when
//! it leaves, one whose condition does not hold, or one of an event that was parked and is retried.
//! So these have a *note*, a message under a subject of their own, which is stored together with them
//! or not at all.
//!
//! A stream takes cursors if it allows atomic batches and has their subject among its own.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

use super::jetstream::{Sending, outgoing};
use super::status::Refusal;
use super::{PASSED, Sent};
use crate::effects::{Lineage, Place, Row};
use crate::source::jetstream::{BatchError, Description, Outgoing, Publisher, Unavailable};

/// Most effects that are stored together. The server takes a thousand messages: each may have a note,
/// and the cursor is one.
const BATCH_MAX: usize = 499;
/// After how many batches in a row that were stored a larger one is tried again.
const GROWS_AFTER: usize = 16;
/// Most delayed effects on their way at once, each in a batch of its own: a server has 50 open ones
/// per stream, for all that publish to it (`max_inflight_per_stream` in
/// <https://docs.nats.io/reference/config/jetstream/limits/batch>).
const DELAYED_IN_FLIGHT: usize = 8;

/// How far a lineage is in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Effects up to this place are stored; none before the first cursor.
    through: Option<Place>,
    /// The sequence of the message that says so; 0 for none.
    sequence: u64,
    /// The subject of that message.
    subject: Arc<str>,
    /// How many effects its stream takes together.
    portion: Portion,
}

/// How many effects a stream takes together, as far as it has shown: a server may have lower limits
/// than others, and one message that is refused is found faster among few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Portion {
    most: usize,
    /// Batches in a row that were stored.
    stored: usize,
}

impl Default for Portion {
    fn default() -> Self {
        Self {
            most: BATCH_MAX,
            stored: 0,
        }
    }
}

impl Portion {
    /// A batch of this many was refused.
    fn refused(&mut self, length: usize) {
        *self = Self {
            most: (length / 2).max(1),
            stored: 0,
        };
    }

    /// A batch was stored.
    fn stored(&mut self) {
        self.stored += 1;
        if self.stored >= GROWS_AFTER {
            *self = Self {
                most: (self.most * 2).min(BATCH_MAX),
                stored: 0,
            };
        }
    }
}

impl Cursor {
    /// The same with what an earlier one has learnt of the stream.
    pub(super) fn following(self, earlier: Option<&Self>) -> Self {
        let portion = earlier.map_or(self.portion, |earlier| earlier.portion);
        Self { portion, ..self }
    }

    /// The sequence of the message that says so, if there is one.
    pub(super) fn sequence(&self) -> Option<u64> {
        self.through.map(|_| self.sequence)
    }

    /// The subject and the sequence of the message that says so.
    fn at(&self) -> (&str, u64) {
        (&self.subject, self.sequence)
    }

    /// The place behind effects. Those that have a turn do not move it, and it never goes back.
    fn behind(&self, rows: &[Row]) -> Place {
        let places = rows.iter().filter(|row| row.turn.is_none());
        let places = places.map(|row| row.place);
        places.chain(self.through).max().unwrap_or_default()
    }

    /// The subject of the note of an effect.
    fn note_subject(&self, place: Place) -> Arc<str> {
        let Place {
            sequence,
            sub,
            index,
        } = place;
        format!("{}.{sequence}.{sub}.{index}", self.subject).into()
    }
}

/// The data of a cursor or note.
#[derive(Serialize, Deserialize)]
struct Data {
    sequence: u64,
    sub: u32,
    index: u32,
}

impl Data {
    fn of(place: Place) -> Bytes {
        let Place {
            sequence,
            sub,
            index,
        } = place;
        let data = serde_json::to_vec(&Self {
            sequence,
            sub,
            index,
        });
        Bytes::from(data.expect("plain data"))
    }
}

/// Why the cursor is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum CursorError {
    /// The stream can't be read.
    #[error(transparent)]
    Stream(#[from] Unavailable),
    /// Somebody else has written under its subject.
    #[error(
        "message {sequence} under {subject} is no cursor of a host, so it is unknown what is \
         stored; delete that message"
    )]
    Foreign {
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
    description: &Description,
    lineage: Lineage,
    target: &str,
) -> Result<Option<Cursor>, CursorError> {
    let subject = subject(lineage, target);
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
            portion: Portion::default(),
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
            portion: Portion::default(),
        })),
        Err(_) => Err(CursorError::Foreign { subject, sequence }),
    }
}

/// The number of effects from the first one on that may be stored together. One with a condition is
/// stored alone, because a batch is refused as a whole.
fn portion(rows: &[Row], most: usize) -> usize {
    let plain = rows.iter().take_while(|row| !row.effect.has_condition());
    plain.count().max(1).min(most)
}

/// Sorts effects that the cursor has passed by whether they are stored.
async fn confirm_passed(
    publisher: &Publisher,
    cursor: &Cursor,
    passed: Vec<Row>,
    sent: &mut Sent,
) -> Result<(), Unavailable> {
    for row in passed {
        let has_note = row.effect.has_condition();
        if has_note && !is_noted(publisher, &cursor.note_subject(row.place)).await? {
            sent.conflicts.push((row, PASSED.to_owned()));
            continue;
        }
        sent.again += 1;
        sent.confirmed.push(row);
    }
    Ok(())
}

async fn is_noted(publisher: &Publisher, subject: &str) -> Result<bool, Unavailable> {
    Ok(publisher.last_of(subject).await?.is_some())
}

/// The notes of effects that a cursor may pass. None may be there before.
fn notes(cursor: &Cursor, rows: &[Row]) -> Vec<Outgoing> {
    let noted = rows.iter().filter(|row| row.has_note());
    let note = |row: &Row| {
        let subject = cursor.note_subject(row.place).to_string();
        Outgoing {
            condition: Some((subject.clone(), 0)),
            subject,
            data: Data::of(row.place),
            ..Outgoing::default()
        }
    };
    noted.map(note).collect()
}

/// Sends effects in the order of their places, and moves the cursor with them.
pub(super) async fn send(sending: &Sending<'_>, cursor: &mut Cursor, rows: Vec<Row>) -> Sent {
    let (publisher, lineage) = (sending.publisher, sending.lineage);
    let through = cursor.through;
    // It says nothing about an effect that has a turn.
    let is_passed =
        |row: &Row| row.turn.is_none() && through.is_some_and(|through| row.place <= through);
    let (passed, mut rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(is_passed);
    let mut sent = Sent::default();
    if let Err(away) = confirm_passed(publisher, cursor, passed, &mut sent).await {
        sent.is_in_doubt = true;
        sent.trouble = Some(away.to_string());
        return sent;
    }
    while !rows.is_empty() && !*sending.stopped.borrow() {
        // A grant may be withdrawn meanwhile; later ones wait, as their order is that of places.
        if let Some(denied) = (sending.denied)(&rows[0]) {
            sent.refuse(&rows[0], denied);
            break;
        }
        let most = portion(&rows, cursor.portion.most).min(rows.len());
        let granted = rows[..most]
            .iter()
            .take_while(|row| (sending.denied)(row).is_none());
        let length = granted.count();
        let Err(error) = store(publisher, lineage, cursor, &rows[..length]).await else {
            sent.sequence = cursor.sequence;
            rows[..length].iter().for_each(sending.stored);
            sent.confirmed.extend(rows.drain(..length));
            cursor.portion.stored();
            continue;
        };
        // A note that is there already makes it seem that the cursor has moved.
        let is_refused = match &error {
            BatchError::NotStored(_) | BatchError::Known(_) => true,
            BatchError::Moved(_) => rows[..length].iter().any(Row::has_note),
            BatchError::Unknown(_) => false,
        };
        if is_refused && length > 1 {
            // One of them, whose predecessors are stored without it, or all of them together.
            cursor.portion.refused(length);
            continue;
        }
        let message = outgoing(&rows[0], lineage);
        let note = rows[0]
            .has_note()
            .then(|| cursor.note_subject(rows[0].place));
        let found = judge(publisher, &message, &error, (cursor.at(), note.as_deref())).await;
        let (notes, place) = (notes(cursor, &rows[..1]), cursor.behind(&rows[..1]));
        match found {
            // An operator had it sent, or it was retried, and the state is from before that.
            Found::Noted => {
                sent.again += 1;
                sent.confirmed.push(rows.remove(0));
                continue;
            }
            // It is there from before the first cursor, which passes it.
            Found::Stored if advance(publisher, cursor, &notes, place).await.is_ok() => {
                sent.again += 1;
                sent.confirmed.push(rows.remove(0));
                continue;
            }
            // Set aside before the cursor passes it, so not in this round.
            Found::Conflict(why) => sent.conflicts.push((rows.remove(0), why)),
            // Refused for sure is no doubt: the stream does not have it, and the cursor is where it
            // was.
            Found::Refused(words) => {
                let why = refusal(publisher, &message, words).await;
                sent.refuse(&rows[0], why);
            }
            Found::Stored | Found::Unknown => {
                sent.is_in_doubt = true;
                sent.trouble = Some(words(&error));
            }
        }
        break;
    }
    sent
}

/// Why nobody knows what is stored.
fn words(error: &BatchError) -> String {
    match error {
        BatchError::Moved(text) => format!("{text}; another host publishes for this deployment"),
        other => other.to_string(),
    }
}

/// What became of an effect that was not stored together with its cursor.
enum Found {
    /// The stream has it and its note.
    Noted,
    /// The stream has it all the same.
    Stored,
    /// Its condition does not hold.
    Conflict(String),
    /// The stream does not take it.
    Refused(String),
    /// Nobody knows.
    Unknown,
}

/// Why a message is refused; about a batch the stream says only that it is incomplete.
async fn refusal(publisher: &Publisher, message: &Outgoing, words: String) -> String {
    publisher.refusal(message).await.unwrap_or(words)
}

/// Finds out what became of a message that was refused, alone or as the first of several; `cursor` is
/// where the cursor should be, and `note` the subject of the message's note, if it may have one.
async fn judge(
    publisher: &Publisher,
    message: &Outgoing,
    error: &BatchError,
    ((cursor, sequence), note): ((&str, u64), Option<&str>),
) -> Found {
    match (error, note) {
        (BatchError::Known(_), None) => Found::Stored,
        (BatchError::Known(_), Some(note)) => match is_noted(publisher, note).await {
            Ok(true) => Found::Noted,
            Ok(false) => Found::Stored,
            Err(_) => Found::Unknown,
        },
        (BatchError::NotStored(words), _) => Found::Refused(words.clone()),
        (BatchError::Moved(why), Some(note)) => {
            let Ok(last) = publisher.last_of(cursor).await else {
                return Found::Unknown;
            };
            // Somebody has moved the cursor; its condition may hold or not.
            if last.map_or(0, |(found, _)| found) != sequence {
                return Found::Unknown;
            }
            match is_noted(publisher, note).await {
                Ok(true) => return Found::Noted,
                Ok(false) => {}
                Err(_) => return Found::Unknown,
            }
            match publisher.own_sequence(message).await {
                Ok(Some(_)) => Found::Stored,
                Ok(None) if message.condition.is_some() => Found::Conflict(why.clone()),
                Ok(None) | Err(_) => Found::Unknown,
            }
        }
        (BatchError::Moved(_) | BatchError::Unknown(_), _) => Found::Unknown,
    }
}

/// Sends delayed effects, a few at a time, each together with its note.
pub(super) async fn send_delayed(sending: &Sending<'_>, cursor: &Cursor, rows: Vec<Row>) -> Sent {
    let send = |row| send_one_delayed(sending, cursor, row);
    let outcomes = futures_util::stream::iter(rows.into_iter().map(send));
    let mut outcomes = outcomes.buffer_unordered(DELAYED_IN_FLIGHT);
    let (mut all, mut refusals) = (Sent::default(), Vec::new());
    while let Some((sent, refused)) = outcomes.next().await {
        all.add(sent);
        refusals.extend(refused);
        // A server that does not answer would not answer to the others either.
        if all.is_in_doubt {
            break;
        }
    }
    // Before anything is asked: a future that is not polled meanwhile might hold the connection.
    drop(outcomes);
    for (number, (place, message, words)) in refusals.into_iter().enumerate() {
        // Each question leaves a batch open for a while, of which a stream has few.
        let why = if number > 0 {
            words
        } else {
            refusal(sending.publisher, &message, words).await
        };
        all.trouble.get_or_insert_with(|| why.clone());
        let subject = message.subject;
        all.refused.push((place, Refusal { subject, why }));
        all.leaves_refused = true;
    }
    all
}

/// Sends one of them; also returns its place, the message and what the client says if the stream
/// refuses it.
async fn send_one_delayed(
    sending: &Sending<'_>,
    cursor: &Cursor,
    row: Row,
) -> (Sent, Option<(Place, Outgoing, String)>) {
    let (publisher, lineage) = (sending.publisher, sending.lineage);
    let mut sent = Sent::default();
    if *sending.stopped.borrow() {
        return (sent, None);
    }
    // Before each: without a connection every one of them would try to connect.
    if let Err(error) = publisher.ready().await {
        sent.is_in_doubt = true;
        sent.trouble = Some(error.to_string());
        return (sent, None);
    }
    if let Some(denied) = (sending.denied)(&row) {
        // They have no order, so it holds nothing back.
        sent.refuse(&row, denied);
        sent.leaves_refused = true;
        return (sent, None);
    }
    let mut note = Cursor {
        through: None,
        sequence: 0,
        subject: cursor.note_subject(row.place),
        portion: Portion::default(),
    };
    let message = outgoing(&row, lineage);
    let messages = std::slice::from_ref(&message);
    let Err(error) = advance(publisher, &mut note, messages, row.place).await else {
        sent.sequence = note.sequence;
        (sending.stored)(&row);
        sent.confirmed.push(row);
        return (sent, None);
    };
    // Its note is there, and so is it.
    let is_stored = matches!(error, BatchError::Moved(_))
        && matches!(is_noted(publisher, &note.subject).await, Ok(true));
    if is_stored {
        sent.again = 1;
        sent.confirmed.push(row);
        return (sent, None);
    }
    let subject = Some(&*note.subject);
    match judge(publisher, &message, &error, (note.at(), subject)).await {
        Found::Noted => {
            sent.again = 1;
            sent.confirmed.push(row);
        }
        // From before the stream took cursors.
        Found::Stored if advance(publisher, &mut note, &[], row.place).await.is_ok() => {
            sent.again = 1;
            sent.confirmed.push(row);
        }
        Found::Conflict(why) => sent.conflicts.push((row, why)),
        Found::Refused(words) => return (sent, Some((row.place, message, words))),
        Found::Stored | Found::Unknown => {
            sent.is_in_doubt = true;
            sent.trouble = Some(error.to_string());
        }
    }
    (sent, None)
}

/// Stores effects behind the cursor, and moves it.
async fn store(
    publisher: &Publisher,
    lineage: Lineage,
    cursor: &mut Cursor,
    rows: &[Row],
) -> Result<(), BatchError> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut messages: Vec<_> = rows.iter().map(|row| outgoing(row, lineage)).collect();
    messages.extend(notes(cursor, rows));
    let place = cursor.behind(rows);
    advance(publisher, cursor, &messages, place).await
}

/// Stores messages, and the cursor at a place behind them.
async fn advance(
    publisher: &Publisher,
    cursor: &mut Cursor,
    messages: &[Outgoing],
    place: Place,
) -> Result<(), BatchError> {
    let data = Data::of(place);
    cursor.sequence = publisher
        .publish_batch(messages, (&cursor.subject, data), cursor.sequence)
        .await?;
    cursor.through = Some(place);
    Ok(())
}
