//! Tests of projections without Wasm and without a host: plain `cargo test`.
//!
//! ```
//! use foldstream_sdk::prelude::*;
//! use foldstream_sdk::testing::{Harness, event, json};
//!
//! # struct Visits { pages: Table<String, u64> }
//! # impl Projection for Visits {
//! #     fn manifest() -> Manifest<Self> {
//! #         Manifest::new("visits").subjects(["visits.*"]).query("page", "", |visits: &Self, page: String| {
//! #             visits.pages.get(&page)?.ok_or(QueryError::NotFound)
//! #         })
//! #     }
//! #     fn open(state: &State) -> Self { Self { pages: state.table("page") } }
//! #     fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
//! #         self.pages.update(event.token(2)?, |count| *count += 1)?;
//! #         Ok(())
//! #     }
//! # }
//! let mut visits = Harness::<Visits>::new();
//! visits.given([event("visits.home", json!({})), event("visits.home", json!({})), event("visits.about", json!({}))]);
//!
//! assert_eq!(visits.get("page/home"), Some(json!(2)));
//! assert_eq!(visits.query("page", json!("about")), Ok(json!(1)));
//! visits.assert_same_for_any_batching();
//! ```

mod handler;
mod memory;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;

use serde::Deserialize;
pub use serde_json::{Value, json};

pub use handler::{HandlerHarness, PendingTimer, PublishedMessage};
use memory::Memory;

use crate::event::{Event, Header, Payload};
use crate::failure::{Failure, MigrateError, QueryError};
use crate::manifest::Manifest;
use crate::migrate::{Migrate, NewValue, OldEntry, migrate_all};
use crate::projection::{Instance, Projection};
use crate::state::State;
use crate::time::Timestamp;
use crate::timer::{Fired, Timer};

/// An event to apply. [`event`] creates one; [`events_from_ndjson`] reads many.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GivenEvent {
    subject: String,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    time: Option<Timestamp>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    data: Value,
}

/// A message that another handler published, as the event that it becomes.
impl From<PublishedMessage> for GivenEvent {
    fn from(message: PublishedMessage) -> Self {
        Self {
            subject: message.subject,
            kind: Some(message.kind),
            id: None,
            time: None,
            headers: message.headers,
            data: message.data,
        }
    }
}

/// An event with JSON data. Its type is the last token of the subject, its
/// time one second later than that of the previous event.
pub fn event(subject: &str, data: Value) -> GivenEvent {
    GivenEvent {
        subject: subject.to_owned(),
        kind: None,
        id: None,
        time: None,
        headers: BTreeMap::new(),
        data,
    }
}

impl GivenEvent {
    /// Sets the type.
    pub fn kind(mut self, kind: &str) -> Self {
        self.kind = Some(kind.to_owned());
        self
    }

    /// Sets the time, in RFC 3339.
    ///
    /// # Panics
    /// If the text is not a time.
    pub fn at(mut self, time: &str) -> Self {
        self.time = Some(
            time.parse()
                .unwrap_or_else(|error| panic!("{time}: {error}")),
        );
        self
    }

    /// Adds a header, by lower-case name. The projection sees it if its manifest asks for headers.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.to_owned(), value.to_owned());
        self
    }
}

/// Reads events from lines of JSON, in the format of `foldstream events import`:
/// `{"subject": …, "type": …, "time": …, "data": …}`, all but the subject optional.
///
/// # Panics
/// At the first line that is not an event; the message has its number.
pub fn events_from_ndjson(text: &str) -> Vec<GivenEvent> {
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    let read = |(number, line): (usize, &str)| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("line {}: {error}", number + 1))
    };
    lines.map(read).collect()
}

/// A projection over a state in memory, for tests.
pub struct Harness<P> {
    memory: Memory,
    instance: Option<Instance<P>>,
    manifest: Manifest<P>,
    /// What was stored before the first event; only a migration has any.
    migrated: BTreeMap<String, String>,
    applied: Vec<Stored>,
    next_sequence: u64,
    next_time: Timestamp,
}

/// An event with all that the stream gives it.
#[derive(Clone, Debug)]
struct Stored {
    sequence: u64,
    time: Timestamp,
    kind: String,
    headers: BTreeMap<String, String>,
    /// The subject, and data as text.
    subject: String,
    data: String,
    /// The timer that fires, if it is not an event.
    timer: Option<String>,
}

/// The time of the first event without one: 2026-01-01T00:00:00Z.
const FIRST_TIME: Timestamp = Timestamp::from_seconds(1_767_225_600);

impl<P: Projection> Harness<P> {
    /// A projection that has seen no event.
    pub fn new() -> Self {
        Self::over(BTreeMap::new())
    }

    fn over(entries: BTreeMap<String, String>) -> Self {
        Self {
            memory: Memory::over(entries.clone()),
            instance: None,
            manifest: P::manifest(),
            migrated: entries,
            applied: Vec::new(),
            next_sequence: 1,
            next_time: FIRST_TIME,
        }
    }

    /// Applies events, as one batch.
    ///
    /// # Panics
    /// If one cannot be applied; see [`Harness::apply`].
    pub fn given(&mut self, events: impl IntoIterator<Item = GivenEvent>) -> &mut Self {
        if let Err(refused) = self.apply(events) {
            panic!("{refused}");
        }
        self
    }

    /// Applies events, as one batch. Like a host, it ignores those that the
    /// manifest's subjects do not match, and if one fails it drops everything
    /// that the batch wrote and applies the events before it again.
    pub fn apply(&mut self, events: impl IntoIterator<Item = GivenEvent>) -> Result<(), Refused> {
        let batch: Vec<Stored> = events
            .into_iter()
            .filter_map(|event| self.store(event))
            .collect();
        let outcome = self.apply_batch(&batch);
        let kept = match &outcome {
            Ok(()) => batch.len(),
            Err((index, _)) => *index,
        };
        // As a host does: the batch is rolled back, and the events before the failing one are kept.
        if kept < batch.len() {
            self.apply_batch(&batch[..kept])
                .map_err(|(index, failure)| refused(&batch[index], failure))?;
        }
        self.applied.extend_from_slice(&batch[..kept]);
        outcome.map_err(|(index, failure)| refused(&batch[index], failure))
    }

    fn store(&mut self, event: GivenEvent) -> Option<Stored> {
        let sequence = self.next_sequence;
        // Also of events that do not match: their sequences are missing, as in a stream.
        self.next_sequence += 1;
        let time = event.time.unwrap_or(self.next_time);
        self.next_time = Timestamp::from_nanoseconds(time.nanoseconds() + 1_000_000_000);
        let kind = event.kind.unwrap_or_else(|| {
            event
                .subject
                .rsplit('.')
                .next()
                .unwrap_or_default()
                .to_owned()
        });
        // A host passes none unless the manifest asks for them.
        let headers = if self.manifest.wants_headers {
            event.headers
        } else {
            BTreeMap::new()
        };
        let wanted = self
            .manifest
            .subjects
            .iter()
            .any(|pattern| matches(pattern, &event.subject));
        let data = match event.data {
            Value::String(text) => text,
            json => json.to_string(),
        };
        wanted.then_some(Stored {
            sequence,
            time,
            kind,
            headers,
            subject: event.subject,
            data,
            timer: None,
        })
    }

    fn apply_batch(&mut self, batch: &[Stored]) -> Result<(), (usize, Failure)> {
        let memory = &self.memory;
        let instance = self
            .instance
            .get_or_insert_with(|| Instance::open(State::new(Box::new(memory.clone()))));
        memory.begin();
        let mut outcome = Ok(());
        let mut done = 0;
        while outcome.is_ok() && done < batch.len() {
            let rest = &batch[done..];
            // Firings go one by one, and events up to the next firing in one batch.
            let count = rest
                .iter()
                .take_while(|event| event.timer.is_none())
                .count();
            outcome = match &rest[0].timer {
                Some(name) => memory
                    .take_timer(name, rest[0].time)
                    .map_or(Ok(()), |timer| {
                        let Timer { name, at, key } = &timer;
                        instance.fire([Fired {
                            name,
                            at: *at,
                            time: rest[0].time,
                            sequence: rest[0].sequence,
                            key: key.as_deref(),
                        }])
                    }),
                None => with_events(&rest[..count], |events| instance.apply(events)),
            };
            outcome = outcome.map_err(|(index, failure)| (index + done as u32, failure));
            done += count.max(1);
        }
        outcome.map_err(|(index, failure)| {
            // What the instance holds no longer matches the state.
            memory.roll_back();
            self.instance = None;
            (index as usize, failure)
        })
    }

    /// Drops everything that is not in the state, as a restart does.
    pub fn restart(&mut self) -> &mut Self {
        self.instance = None;
        self
    }

    /// Runs a query, with its arguments as JSON.
    pub fn query(&self, name: &str, arguments: Value) -> Result<Value, QueryError> {
        // A fresh instance, as in a host: what is only in memory is not there.
        let instance = Instance::<P>::open(State::new(Box::new(self.memory.clone())));
        let arguments = if arguments.is_null() {
            String::new()
        } else {
            arguments.to_string()
        };
        self.memory.begin();
        let answer = instance.query(name, Payload::Text(&arguments))?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// The value of a key, such as `customer/42`.
    pub fn get(&self, key: &str) -> Option<Value> {
        self.memory
            .entries
            .borrow()
            .get(key)
            .map(|value| read_value(value))
    }

    /// The entries whose keys begin with a text, in order; the empty text covers all.
    pub fn entries(&self, prefix: &str) -> Vec<(String, Value)> {
        let entries = self.memory.entries.borrow();
        let from = entries.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        // Keys with one prefix lie next to each other.
        from.take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.clone(), read_value(value)))
            .collect()
    }

    /// Applies all events so far again in batches of other sizes, with and
    /// without a restart after each, and compares the stored entries.
    ///
    /// # Panics
    /// If they differ; the message has the first entry that differs.
    pub fn assert_same_for_any_batching(&self) -> &Self {
        // Small batches, odd ones, one that splits most tests unevenly, and all at once.
        for size in [1, 2, 3, 7, 64, self.applied.len().max(1)] {
            for restarts in [false, true] {
                // A migrated state begins with what the migration made.
                let mut other = Self::over(self.migrated.clone());
                for batch in self.applied.chunks(size) {
                    if let Err((index, failure)) = other.apply_batch(batch) {
                        panic!("in batches of {size}: {}", refused(&batch[index], failure));
                    }
                    if restarts {
                        other.restart();
                    }
                }
                self.compare(
                    &other,
                    size,
                    if restarts {
                        ", restarted after each,"
                    } else {
                        ""
                    },
                );
            }
        }
        self
    }

    fn compare(&self, other: &Self, size: usize, restarts: &str) {
        assert_eq!(
            self.memory.timers.borrow().pending,
            other.memory.timers.borrow().pending,
            "the pending timers depend on the batches: in batches of {size}{restarts} they are others"
        );
        let (ours, theirs) = (self.memory.entries.borrow(), other.memory.entries.borrow());
        let key = ours
            .keys()
            .chain(theirs.keys())
            .find(|key| ours.get(*key) != theirs.get(*key));
        if let Some(key) = key {
            let show = |entries: &BTreeMap<String, String>| {
                entries.get(key).cloned().unwrap_or("nothing".to_owned())
            };
            panic!(
                "the result depends on the batches: {key} is {} as given, and {} in batches of \
                 {size}{restarts} so some of what the projection needs is not in its tables",
                show(&ours),
                show(&theirs)
            );
        }
    }
}

impl<P: Projection + Migrate> Harness<P> {
    /// A projection over the state that it migrates from version `from_version`, before any further
    /// event.
    ///
    /// The old entries may come from a harness of the older version, with [`Harness::entries`] of
    /// the empty prefix.
    pub fn migrated<K: Into<String>>(
        from_version: u32,
        old: impl IntoIterator<Item = (K, Value)>,
    ) -> Result<Self, MigrateError> {
        // A host hands them over in the order of the keys.
        let old: BTreeMap<String, String> = old
            .into_iter()
            .map(|(key, value)| (key.into(), value.to_string()))
            .collect();
        let entries = old
            .iter()
            .map(|(key, value)| OldEntry::new(key, Payload::Text(value)));
        let new = migrate_all::<P>(from_version, entries)?;
        let text = |value| match value {
            NewValue::Text(text) => text,
            NewValue::Bytes(_) => {
                unreachable!("tables write text, and the old entries are text too")
            }
        };
        Ok(Self::over(
            new.into_iter()
                .map(|entry| (entry.key, text(entry.value)))
                .collect(),
        ))
    }
}

impl<P: Projection> Default for Harness<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P> fmt::Debug for Harness<P> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_map()
            .entries(self.memory.entries.borrow().iter())
            .finish()
    }
}

/// An event could not be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its sequence.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// Why.
    pub failure: Failure,
}

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "event {} ({}) was not applied: {}",
            self.sequence, self.subject, self.failure
        )
    }
}

impl std::error::Error for Refused {}

fn refused(event: &Stored, failure: Failure) -> Refused {
    Refused {
        sequence: event.sequence,
        subject: event.subject.clone(),
        failure,
    }
}

fn read_value(text: &str) -> Value {
    serde_json::from_str(text).expect("tables write JSON")
}

/// Lends the events in the form in which a projection takes them.
fn with_events<T>(stored: &[Stored], body: impl FnOnce(&[Event<'_>]) -> T) -> T {
    let headers: Vec<Vec<Header<'_>>> = stored
        .iter()
        .map(|event| {
            event
                .headers
                .iter()
                .map(|(name, value)| Header::new(name, value))
                .collect()
        })
        .collect();
    let events: Vec<Event<'_>> = stored
        .iter()
        .zip(&headers)
        .map(|(event, headers)| {
            Event::new(event.sequence, event.time, &event.subject, &event.kind)
                .with(headers, Payload::Text(&event.data))
        })
        .collect();
    body(&events)
}

/// Whether a subject matches a pattern with the wildcards `*` and `>`.
fn matches(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some(wanted), Some(token)) if wanted == "*" || wanted == token => {}
            _ => return false,
        }
    }
}
