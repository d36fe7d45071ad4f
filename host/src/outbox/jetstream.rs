//! Releasing to a JetStream stream: at least once, and once within the window in which the stream
//! recognises ids.
//!
//! If the stream keeps its messages, it is not the window that decides. After a start, and whenever
//! an answer stayed out, the host first reads what the stream has stored since the last moment at
//! which nothing was in doubt (the mark), and sends the rest. Only a message that is still on its
//! way meanwhile, over a connection that has just been lost, leans on the window.
//!
//! A condition that does not hold is a conflict: the effect is set aside, and the next one follows.
//!
//! Effects of one key leave one after the other, each once the one before it is confirmed;
//! different keys leave side by side. So the order of a key holds even if one message is refused.
//! Delayed effects begin in the order of their times, and one that is refused holds none back.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::watch;

use super::Sent;
use super::ahead::{self, Ahead};
use super::status::since_ns;
use crate::effects::{self, Grants, Lineage, Place, Promise, Row};
use crate::event::Payload;
use crate::source::jetstream::{
    CONFIRMATION_MAX, Description, Outgoing, PublishError, Publisher, Unavailable,
};
use crate::state::{self, Mark, Store};
use crate::subject::{self, Pattern, SubjectSet};

/// Most messages on their way at once.
const IN_FLIGHT: usize = 64;

/// What is known about the stream before effects are sent.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) promise: Promise,
    /// The stream was looked at, so it has nothing else up to where it ended.
    pub(super) is_read: bool,
    /// Waiting effects that are stored.
    pub(super) stored: Vec<Row>,
    /// Effects that are stored, and that the handler makes again: its state is older.
    pub(super) ahead: Ahead,
}

/// Why nobody knows for now which effects are stored.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookError {
    /// The stream can't be read.
    #[error(transparent)]
    Stream(#[from] Unavailable),
    /// The mark could not be made durable.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The thread that writes it panicked.
    #[error(transparent)]
    Ended(#[from] tokio::task::JoinError),
    /// The grants have subjects that nobody can read.
    #[error(transparent)]
    Subjects(#[from] subject::Error),
}

/// Whose effects a stream may have, and under which subjects.
#[derive(Clone, Copy)]
pub(super) struct Looked<'a> {
    /// Whose effects they are.
    pub(super) lineage: Lineage,
    /// What may be published now.
    pub(super) grants: &'a Grants,
    /// What the module declares to publish, if it matters: a grant may have been withdrawn, or not be
    /// given again since the state is from a backup.
    pub(super) publishes: &'a [String],
    /// Learns how many messages of how many were passed.
    pub(super) passed: &'a (dyn Fn(u64, u64) + Send + Sync),
}

/// Finds out which of all effects that wait are stored, since it is in doubt; with the sequence of a
/// cursor, which of those that may have been sent without one since.
pub(super) async fn look(
    (publisher, description): (&Publisher, Description),
    (store, target): (&Store, &str),
    looked: Looked<'_>,
    cursor: Option<u64>,
) -> Result<Known, LookError> {
    let lineage = looked.lineage;
    let window = Known {
        promise: Promise::Window,
        is_read: false,
        stored: Vec::new(),
        ahead: Ahead::default(),
    };
    // It may have removed what it stored, or have it under another subject, so only its window can
    // recognise an id.
    if !description.keeps || description.transforms {
        return Ok(window);
    }
    let read_back = Known {
        promise: Promise::ReadBack,
        is_read: true,
        ..window
    };
    let created_ns = description.created_ns;
    let end = Mark::at(description.last, created_ns);
    let mark = store.effect_mark(target);
    let known = mark.filter(|mark| mark.is_within(created_ns));
    let mark = mark.map(|mark| mark.within(created_ns));
    if mark.is_none() && cursor.is_none() {
        ahead::begin_mark(store, target, end).await?;
        return Ok(read_back);
    }
    let patterns = patterns(store, target, looked).await?;
    if patterns.is_empty() {
        // Replies are all that it sends, and no stream has them.
        return Ok(read_back);
    }
    let patterns = found_under(patterns, known)?;
    let ids = ids_behind(
        (publisher, &description),
        [mark, cursor],
        (&patterns, &format!("fs.{lineage}.")),
        looked.passed,
    )
    .await?;
    match ids {
        Some(ids) => {
            // Before the rows are read, so that none is in neither.
            let position = store.durable_position();
            let places = ids.iter().filter_map(|id| Place::of_id(id, lineage));
            let places = places.collect();
            let (stored, ahead) = Ahead::sort(store, target, places, position).await?;
            let lacks_some = match (mark, cursor) {
                (Some(mark), None) => lacks_some(publisher, (&description, target), mark).await?,
                _ => false,
            };
            let promise = if lacks_some {
                Promise::Window
            } else {
                Promise::ReadBack
            };
            Ok(Known {
                promise,
                stored,
                ahead,
                ..read_back
            })
        }
        None => {
            if cursor.is_none() {
                tracing::warn!(
                    target,
                    mark,
                    first = description.first,
                    last = description.last,
                    "the stream no longer shows what it has stored; messages in doubt are sent \
                     again, and its duplicate window decides"
                );
            }
            // What came before can't be looked up any more, so doubts begin here.
            store.set_effect_mark(target, end);
            Ok(Known {
                promise: Promise::Window,
                is_read: false,
                ..read_back
            })
        }
    }
}

/// The ids with a prefix behind a mark or a cursor, under the first of some patterns that has not too
/// many messages; none if nobody knows all of them.
async fn ids_behind(
    (publisher, description): (&Publisher, &Description),
    from: [Option<u64>; 2],
    (patterns, prefix): (&[Pattern], &str),
    passed: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<Option<HashSet<String>>, Unavailable> {
    // The mark first: a later cursor may hide what left before it without one.
    for from in from.into_iter().flatten() {
        // Otherwise messages after it are gone, or the stream is another one than before.
        let is_whole = description.first <= from + 1 && from <= description.last;
        for pattern in patterns.iter().filter(|_| is_whole) {
            let of = description.last - from;
            let range = (from, description.last);
            let passed = |count: u64| passed(count, of);
            let under = (pattern.as_str(), prefix);
            let ids = publisher.ids_after(range, under, &passed).await?;
            if ids.is_some() {
                return Ok(ids);
            }
        }
    }
    Ok(None)
}

/// Whether single messages are gone from a stream behind a mark, which the log says.
async fn lacks_some(
    publisher: &Publisher,
    (description, target): (&Description, &str),
    mark: u64,
) -> Result<bool, Unavailable> {
    let lacks = publisher.lacks_after(mark, description).await?;
    if lacks {
        tracing::warn!(
            target,
            mark,
            last = description.last,
            "single messages are gone from the stream since the last one that was in no doubt; if \
             they are messages in doubt, these are sent again, and the stream's duplicate window \
             decides"
        );
    }
    Ok(lacks)
}

/// The patterns under which a stream may have what was sent under these. An account may map subjects,
/// and then no message has the one to which it was sent.
fn found_under(
    mut sent: Vec<Pattern>,
    known: Option<Mark>,
) -> Result<Vec<Pattern>, subject::Error> {
    match known.and_then(|mark| mark.keeps_subjects) {
        Some(true) => {}
        None => sent.insert(0, Pattern::parse(">")?),
        Some(false) => sent = vec![Pattern::parse(">")?],
    }
    Ok(sent)
}

/// The patterns under which effects are looked for, the widest one first: the others count if there
/// are too many messages under it.
async fn patterns(
    store: &Store,
    target: &str,
    looked: Looked<'_>,
) -> Result<Vec<Pattern>, LookError> {
    let grants = looked.grants;
    let mut narrow = None;
    for grant in grants.iter().filter(|grant| grant.source == target) {
        narrow = widened(narrow, grant.subjects.as_str())?;
    }
    let is_granted = |wanted: &Pattern| {
        let mut grants = grants.iter().filter(|grant| grant.source == target);
        grants.any(|grant| grant.subjects.covers(wanted))
    };
    let (store, name, known) = (store.clone(), target.to_owned(), grants.clone());
    // A grant may have been withdrawn since an effect was sent.
    let found = tokio::task::spawn_blocking(move || {
        let mut narrow = Ok(narrow);
        store.for_each_effect(&name, |row| {
            let subject = &row.effect.subject;
            if !known.allow(subject, &name) {
                let before = std::mem::replace(&mut narrow, Ok(None));
                narrow = before.and_then(|before| widened(before, subject));
            }
        })?;
        Ok::<_, state::Error>(narrow)
    });
    let narrow = found.await???;
    let mut wide = narrow.clone();
    for subjects in looked.publishes {
        if !is_granted(&Pattern::parse(subjects)?) {
            wide = widened(wide, subjects)?;
        }
    }
    let mut patterns: Vec<Pattern> = [wide, narrow].into_iter().flatten().collect();
    patterns.dedup();
    Ok(patterns)
}

/// The narrowest pattern that covers another and more subjects; no stream has replies.
fn widened(pattern: Option<Pattern>, subjects: &str) -> Result<Option<Pattern>, subject::Error> {
    if effects::is_reply(subjects) {
        return Ok(pattern);
    }
    match pattern {
        None => Pattern::parse(subjects).map(Some),
        Some(pattern) => {
            let both = SubjectSet::parse(&[pattern.as_str(), subjects])?;
            Ok(Some(both.covering()))
        }
    }
}

/// How effects are sent to a stream, and what is asked before each.
pub(super) struct Sending<'a> {
    pub(super) publisher: &'a Publisher,
    /// Whose effects they are.
    pub(super) lineage: Lineage,
    /// Whether the deployment stops.
    pub(super) stopped: &'a watch::Receiver<bool>,
    /// Why a message may not be sent now, if so: connecting may take long, and a grant may be
    /// withdrawn meanwhile; or the stream would ignore what the message asks of its delivery.
    pub(super) denied: &'a (dyn Fn(&Row) -> Option<String> + Send + Sync),
    /// Learns of each message that the stream has stored, before all are sent.
    pub(super) stored: &'a (dyn Fn(&Row) + Send + Sync),
    /// The stream did not answer to a message: each other one would wait as long for the same, and be
    /// in doubt as well.
    pub(super) is_silent: AtomicBool,
}

impl Sending<'_> {
    /// Whether nothing more is sent. What is left waits in the outbox.
    fn is_over(&self) -> bool {
        *self.stopped.borrow() || self.is_silent.load(Ordering::Relaxed)
    }

    /// What became of a message that was sent at a time is unknown.
    fn note_unknown(&self, sent: Instant) {
        // An answer that says too little comes at once.
        if sent.elapsed() >= CONFIRMATION_MAX {
            self.is_silent.store(true, Ordering::Relaxed);
        }
    }
}

/// What an effect that is refused does to later ones of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// They wait for it.
    HoldsBack,
    /// They leave without it.
    Passed,
}

/// Sends effects, in order within each key; ends early once it is asked to stop.
pub(super) async fn send(sending: &Sending<'_>, rows: Vec<Row>, refused: Refused) -> Sent {
    // One chain for each key; effects without a key share one.
    let mut chains: HashMap<String, Vec<Row>> = HashMap::new();
    for row in rows {
        chains.entry(row.effect.key.clone()).or_default().push(row);
    }
    // Oldest first, so that one key cannot keep the others waiting for long.
    let mut chains: Vec<Vec<Row>> = chains.into_values().collect();
    chains.sort_by_key(|chain| chain[0].order());
    let send = |chain| send_chain(sending, chain, refused);
    let sent = futures_util::stream::iter(chains.into_iter().map(send));
    let mut all = Sent::default();
    let mut sent = sent.buffer_unordered(IN_FLIGHT);
    while let Some(sent) = sent.next().await {
        all.add(sent);
    }
    all
}

/// Sends the effects of one key until one is not confirmed, or holds back the others.
async fn send_chain(sending: &Sending<'_>, rows: Vec<Row>, refused: Refused) -> Sent {
    let (publisher, lineage) = (sending.publisher, sending.lineage);
    let mut sent = Sent::default();
    for row in rows {
        // Asked between messages.
        if sending.is_over() {
            return sent;
        }
        let is_reply = effects::is_reply(&row.effect.subject);
        if is_reply && is_late(&row) {
            // Nobody waits for it any more.
            sent.confirmed.push(row);
            continue;
        }
        // Before the grants are asked, because connecting may take long.
        if let Err(error) = publisher.ready().await {
            sent.trouble = Some(error.to_string());
            return sent;
        }
        if let Some(denied) = (sending.denied)(&row) {
            sent.refuse(&row, denied);
            match refused {
                Refused::HoldsBack => return sent,
                Refused::Passed => sent.leaves_refused = true,
            }
            continue;
        }
        if is_reply {
            match publisher.send(&outgoing(&row, lineage)).await {
                Ok(()) => sent.confirmed.push(row),
                Err(error) => {
                    sent.trouble = Some(error.to_string());
                    return sent;
                }
            }
            continue;
        }
        let begun = Instant::now();
        let message = outgoing(&row, lineage);
        match publisher.publish(&message).await {
            Ok(confirmed) => {
                sent.example.get_or_insert((confirmed.sequence, message));
                sent.note(confirmed);
                (sending.stored)(&row);
                sent.confirmed.push(row);
            }
            // It leaves the order of its key, so the next one may follow.
            Err(PublishError::Conflict(why)) => sent.conflicts.push((row, why)),
            // Refused for sure is no doubt: the stream does not have it.
            Err(PublishError::NotStored(why)) => {
                sent.refuse(&row, why);
                match refused {
                    Refused::HoldsBack => return sent,
                    Refused::Passed => sent.leaves_refused = true,
                }
            }
            Err(PublishError::Unknown(why)) => {
                sending.note_unknown(begun);
                sent.is_in_doubt = true;
                sent.trouble = Some(why);
                return sent;
            }
        }
    }
    sent
}

/// Whether nobody waits for a reply any more.
pub(super) fn is_late(row: &Row) -> bool {
    since_ns(row.made_ns) > effects::REPLY_AGE_MAX
}

/// An effect as a message.
pub(super) fn outgoing(row: &Row, lineage: Lineage) -> Outgoing {
    let effect = &row.effect;
    let data = match &effect.data {
        Payload::Bytes(bytes) => bytes.clone(),
        text @ Payload::Text(_) => Bytes::copy_from_slice(text.as_bytes()),
    };
    Outgoing {
        id: row.place.id(lineage),
        subject: effect.subject.clone(),
        headers: effect.headers.clone(),
        data,
        time_to_live_s: effect.delivery.time_to_live_s,
        condition: effect
            .delivery
            .condition
            .as_ref()
            .map(|condition| (condition.subjects.clone(), condition.sequence)),
    }
}
