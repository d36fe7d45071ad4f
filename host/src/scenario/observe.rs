//! What a run shows from outside: everything durable that a scenario can claim something about.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::bed::{Bed, Error};
use crate::effects::{Condition, Delivery};
use crate::event::Payload;
use crate::failure::Failure;
use crate::timestamp;

/// Entries and rows per read.
const PAGE: usize = 1_000;

/// A message that was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) subject: String,
    pub(super) kind: String,
    pub(super) key: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) data: Payload,
    pub(super) delivery: Delivery,
}

impl Message {
    /// As a scenario writes it.
    pub(super) fn to_json(&self) -> Value {
        let mut message = json!({ "subject": self.subject, "data": self.data.to_json() });
        if !self.subject.ends_with(&format!(".{}", self.kind)) {
            message["type"] = json!(self.kind);
        }
        let Delivery {
            not_before_ns,
            time_to_live_s,
            condition,
            ..
        } = &self.delivery;
        if let Some(time_ns) = not_before_ns {
            message["not_before"] = json!(timestamp::format_ns(*time_ns));
        }
        if let Some(seconds) = time_to_live_s {
            message["time_to_live_seconds"] = json!(seconds);
        }
        if let Some(Condition { subjects, sequence }) = condition {
            message["expected_last"] = json!({ "subject": subjects, "sequence": sequence });
        }
        message
    }
}

/// The actual state after a step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Observation {
    pub(super) entries: BTreeMap<String, Payload>,
    /// The messages of the step.
    pub(super) published: Vec<Message>,
    /// When timers are due, by name, in nanoseconds since the Unix epoch.
    pub(super) timers: BTreeMap<String, u64>,
    pub(super) failure: Option<Failure>,
    /// The parked keys, and how many events each has.
    pub(super) parked: BTreeMap<String, u64>,
    pub(super) position: u64,
    /// Answers of queries, or errors.
    pub(super) answers: Vec<Result<Payload, String>>,
    pub(super) now_ns: u64,
    /// Size of keys and values, in bytes.
    pub(super) state_bytes: u64,
}

impl Observation {
    /// Looks at a run. `published` is how many messages were there before the step.
    pub(super) fn of(bed: &Bed<'_>, published: usize, now_ns: u64) -> Result<Self, Error> {
        let store = bed.store();
        let entries = entries(bed)?;
        let bytes = |(key, value): (&String, &Payload)| (key.len() + value.len()) as u64;
        let timers = store.timers_after(None, usize::MAX)?;
        Ok(Self {
            state_bytes: entries.iter().map(bytes).sum(),
            entries,
            published: messages(bed)?.split_off(published),
            timers: timers
                .into_iter()
                .map(|due| (due.name, due.at_ns))
                .collect(),
            failure: bed.failure(),
            parked: store
                .parked_keys()
                .into_iter()
                .map(|(key, parked)| (key, parked.events()))
                .collect(),
            position: store.position(),
            answers: Vec::new(),
            now_ns,
        })
    }
}

fn entries(bed: &Bed<'_>) -> Result<BTreeMap<String, Payload>, Error> {
    let snapshot = bed.store().snapshot();
    let mut entries = BTreeMap::new();
    for page in snapshot.pages(PAGE) {
        let page = page?.into_iter();
        entries.extend(page.map(|(key, value)| (key.to_string(), value)));
    }
    Ok(entries)
}

/// All messages so far, in the order of their places. Nobody sends them, so none is gone.
pub(super) fn messages(bed: &Bed<'_>) -> Result<Vec<Message>, Error> {
    let (mut rows, mut after) = (Vec::new(), None);
    loop {
        let (page, more) = bed.store().waiting_rows(after.as_ref(), PAGE, usize::MAX)?;
        after = page.last().map(|row| row.key());
        rows.extend(page);
        if !more {
            break;
        }
    }
    // The rows come target by target.
    rows.sort_by_key(|row| row.place);
    Ok(rows
        .into_iter()
        .map(|row| Message {
            subject: row.effect.subject,
            kind: row.effect.kind,
            key: row.effect.key,
            headers: row.effect.headers.into_iter().collect(),
            data: row.effect.data,
            delivery: row.effect.delivery,
        })
        .collect())
}
