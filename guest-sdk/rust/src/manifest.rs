//! A projection's description of itself: its name, its subjects, its queries.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::event::Payload;
use crate::failure::QueryError;
use crate::json;

/// A projection's description of itself.
///
/// Only name and subjects are required.
///
/// ```
/// use foldstream_sdk::prelude::*;
/// # struct Orders;
/// # #[derive(Deserialize)]
/// # struct CustomerArgs { customer: String }
/// # impl Orders {
/// #     fn customer(&self, _: CustomerArgs) -> Result<u64, QueryError> { Ok(0) }
/// #     fn manifest() -> Manifest<Self> {
/// Manifest::new("order-totals")
///     .description("What each customer ordered")
///     .subjects(["orders.>"])
///     .state_version(2)
///     .key(KeyRule::SubjectToken(2))
///     .query("customer", "The totals of one customer: {\"customer\": \"42\"}", Self::customer)
/// #     }
/// # }
/// ```
pub struct Manifest<P> {
    pub(crate) name: &'static str,
    pub(crate) description: &'static str,
    pub(crate) subjects: Vec<String>,
    pub(crate) publishes: Vec<String>,
    pub(crate) timers: bool,
    pub(crate) wants_headers: bool,
    pub(crate) key_rule: KeyRule,
    pub(crate) state_version: u32,
    pub(crate) attempts: Option<u32>,
    pub(crate) initial_backoff_ms: Option<u32>,
    pub(crate) max_backoff_ms: Option<u32>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) deadline_ms: Option<u32>,
    pub(crate) batch_events: Option<u32>,
    pub(crate) state_bytes: Option<u64>,
    pub(crate) queries: Vec<Query<P>>,
    pub(crate) inbox: Option<Inbox>,
}

/// What two events with one subject have in common if they are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventId {
    /// The id of the message: `ce-id` with `ce-source` of a CloudEvent, otherwise `Nats-Msg-Id`.
    Message,
    /// The value of a header, by lower-case name.
    Header(String),
    /// A value inside JSON data, as a JSON pointer (RFC 6901).
    DataPointer(String),
}

/// How the host recognises events that were published twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inbox {
    pub(crate) id: EventId,
    pub(crate) window_ms: u64,
    pub(crate) ids_max: u32,
}

/// Most ids that an inbox keeps unless it asks for another number.
const IDS_MAX: u32 = 1_000_000;

/// How the host finds the key of an event. Events with one key are applied in
/// order, and can be rebuilt without the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRule {
    /// Events have no key: only the whole state can be rebuilt.
    None,
    /// The whole subject.
    Subject,
    /// One token of the subject, counted from 1.
    SubjectToken(u32),
    /// The value of a header, by lower-case name.
    Header(String),
    /// A value inside JSON data, as a JSON pointer (RFC 6901).
    DataPointer(String),
}

/// A query and its implementation.
pub(crate) struct Query<P> {
    pub(crate) name: &'static str,
    pub(crate) description: &'static str,
    pub(crate) answer: Answer<P>,
}

/// Takes arguments, and returns JSON text.
pub(crate) type Answer<P> = Box<dyn Fn(&P, Payload<'_>) -> Result<String, QueryError>>;

impl<P> Manifest<P> {
    /// The name: lower-case letters, digits and hyphens, 1 to 63 of them, a
    /// letter first. A deployment takes it unless it is given another.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            description: "",
            subjects: Vec::new(),
            publishes: Vec::new(),
            timers: false,
            wants_headers: false,
            key_rule: KeyRule::None,
            state_version: 1,
            attempts: None,
            initial_backoff_ms: None,
            max_backoff_ms: None,
            memory_bytes: None,
            deadline_ms: None,
            batch_events: None,
            state_bytes: None,
            queries: Vec::new(),
            inbox: None,
        }
    }

    /// For people: the purpose of the projection.
    pub fn description(mut self, description: &'static str) -> Self {
        self.description = description;
        self
    }

    /// The subjects that it wants, with the wildcards `*` (one token) and `>`
    /// (the rest); at least one, at most 64.
    pub fn subjects<S: Into<String>>(mut self, subjects: impl IntoIterator<Item = S>) -> Self {
        self.subjects.extend(subjects.into_iter().map(Into::into));
        self
    }

    /// The subjects that a handler publishes to, with the wildcards `*` and `>`; at most 64.
    /// The operator who deploys it decides which of them it may publish to. A projection publishes
    /// nothing.
    pub fn publishes<S: Into<String>>(mut self, subjects: impl IntoIterator<Item = S>) -> Self {
        self.publishes.extend(subjects.into_iter().map(Into::into));
        self
    }

    /// Declares that a handler replies to the publisher of an event
    /// ([`Effects::reply`](crate::Effects::reply)), and asks for headers. The operator who deploys it
    /// decides whether it may, with `--allow-publish '_INBOX.>@SOURCE'`.
    pub fn replies(self) -> Self {
        self.publishes(["_INBOX.>"]).headers()
    }

    /// Says that a handler sets timers, with [`Effects::set_timer`](crate::Effects::set_timer). The
    /// host records their firings in the stream that the handler reads.
    pub fn timers(mut self) -> Self {
        self.timers = true;
        self
    }

    /// Adds the subjects and the timers of a saga, which [`Sagas`](crate::saga::Sagas) runs.
    pub fn saga<D>(mut self, saga: &crate::saga::Saga<D>) -> Self {
        for subject in saga.subjects() {
            if !self.subjects.contains(&subject) {
                self.subjects.push(subject);
            }
        }
        self.timers |= saga.sets_timers();
        self
    }

    /// Version of the stored entries, from 1. Raise it if the code changes the
    /// meaning of old keys and values, so that the state is rebuilt from
    /// scratch.
    pub fn state_version(mut self, version: u32) -> Self {
        self.state_version = version;
        self
    }

    /// How the host finds the key of an event.
    pub fn key(mut self, rule: KeyRule) -> Self {
        self.key_rule = rule;
        self
    }

    /// Asks for headers, which cost about as much as the rest of an event.
    pub fn headers(mut self) -> Self {
        self.wants_headers = true;
        self
    }

    /// Adds a query: a name of lower-case letters, digits and hyphens, a
    /// description of what it returns and which arguments it takes, and a
    /// method that takes them.
    ///
    /// Arguments are decoded from JSON, and the answer is encoded as JSON. A
    /// query without arguments takes `()`; if all fields have defaults, or the
    /// type is an `Option`, callers may leave the arguments out.
    pub fn query<A, T>(
        mut self,
        name: &'static str,
        description: &'static str,
        answer: impl Fn(&P, A) -> Result<T, QueryError> + 'static,
    ) -> Self
    where
        A: DeserializeOwned,
        T: Serialize,
    {
        let answer: Answer<P> = Box::new(move |projection, arguments| {
            let answer = answer(projection, read_arguments(arguments)?)?;
            Ok(json::text(&answer)?)
        });
        self.queries.push(Query {
            name,
            description,
            answer,
        });
        self
    }

    /// How often the host tries a failing batch before the deployment stops, including the first
    /// attempt.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = Some(attempts);
        self
    }

    /// The pause before the second attempt, which doubles each time, and the longest pause.
    pub fn backoff(mut self, initial: Duration, longest: Duration) -> Self {
        self.initial_backoff_ms = Some(milliseconds(initial));
        self.max_backoff_ms = Some(milliseconds(longest));
        self
    }

    /// The linear memory that one instance needs, in bytes.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_bytes = Some(bytes);
        self
    }

    /// The longest time that one call may need.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline_ms = Some(milliseconds(deadline));
        self
    }

    /// The most events that one batch may have.
    pub fn batch_limit(mut self, events: u32) -> Self {
        self.batch_events = Some(events);
        self
    }

    /// The largest total size of all keys and values, in bytes.
    pub fn state_limit(mut self, bytes: u64) -> Self {
        self.state_bytes = Some(bytes);
        self
    }

    /// Leaves out events that their producer published again within a window after the first time,
    /// recognised by their message id and subject.
    ///
    /// ```
    /// # use foldstream_sdk::prelude::*;
    /// # use std::time::Duration;
    /// # struct Orders;
    /// # let _: Manifest<Orders> =
    /// Manifest::new("order-totals")
    ///     .subjects(["orders.>"])
    ///     .inbox(Duration::from_secs(24 * 60 * 60))
    /// # ;
    /// ```
    ///
    /// The window counts the time between the two events in their stream, so a rebuild decides the
    /// same. The host keeps the ids, at most a million, on disk with the state.
    pub fn inbox(self, window: Duration) -> Self {
        self.inbox_by(EventId::Message, window)
    }

    /// The same with another id, such as a header or a field of the data.
    pub fn inbox_by(mut self, id: EventId, window: Duration) -> Self {
        self.inbox = Some(Inbox {
            id,
            window_ms: u64::try_from(window.as_millis()).unwrap_or(u64::MAX),
            ids_max: self.inbox.map_or(IDS_MAX, |inbox| inbox.ids_max),
        });
        self
    }

    /// The most ids that the inbox keeps, if a million are too few for the window or too many for
    /// the disk. The oldest are forgotten first. It follows [`inbox`](Self::inbox), and does
    /// nothing without it.
    pub fn inbox_limit(mut self, ids: u32) -> Self {
        if let Some(inbox) = &mut self.inbox {
            inbox.ids_max = ids;
        }
        self
    }

    pub(crate) fn answer(
        &self,
        projection: &P,
        name: &str,
        arguments: Payload<'_>,
    ) -> Result<String, QueryError> {
        let query = self
            .queries
            .iter()
            .find(|query| query.name == name)
            .ok_or(QueryError::UnknownQuery)?;
        (query.answer)(projection, arguments)
    }
}

fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn read_arguments<A: DeserializeOwned>(arguments: Payload<'_>) -> Result<A, QueryError> {
    let given = arguments.json();
    let read = if arguments.as_bytes().trim_ascii().is_empty() {
        // No arguments were given: null for `()` and `Option`, an object without fields for other
        // types.
        // What has both forms, such as an `Option` of a structure, is absent.
        Payload::Text("null")
            .json()
            .or_else(|_| Payload::Text("{}").json())
    } else {
        given
    };
    read.map_err(|error: serde_json::Error| QueryError::InvalidArguments(error.to_string()))
}

impl<P> fmt::Debug for Manifest<P> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Manifest")
            .field("name", &self.name)
            .field("subjects", &self.subjects)
            .field(
                "queries",
                &self
                    .queries
                    .iter()
                    .map(|query| (query.name, query.description))
                    .collect::<Vec<_>>(),
            )
            .finish_non_exhaustive()
    }
}
