//! The form of a file of scenarios, and its JSON Schema.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Most scenarios in one file.
pub(crate) const SCENARIOS_MAX: usize = 10_000;
/// Most times that one action repeats its event.
pub(super) const TIMES_MAX: u32 = 100_000;

/// A file of scenarios, with what they share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Foldstream scenarios")]
pub(crate) struct File {
    /// Variables of all scenarios. `${name}` in a text stands for the value of a variable; a text
    /// that is nothing else becomes the value itself, such as a number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vars: BTreeMap<String, Value>,
    /// Templates for events, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub events: BTreeMap<String, Template>,
    /// The scenarios. Each begins with an empty stream and an empty state.
    pub scenarios: Vec<Scenario>,
}

/// An event that scenarios repeat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Template {
    /// Its subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Its type; without one, the last token of the subject.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its message id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Its data: JSON, a text, or `{"$bytes": "<base64>"}`.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub data: Option<Value>,
}

/// What happens, and what is expected then.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// Its name, as a claim: `a cancelled order does not count`.
    pub name: String,
    /// Variables of this scenario.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vars: BTreeMap<String, Value>,
    /// The time of the first event, in RFC 3339; `2026-01-01T00:00:00Z` without one. Time passes
    /// only by `pass` and `at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// What the deployment does with an event that has used up its attempts.
    #[serde(default, skip_serializing_if = "OnFailure::is_stop")]
    pub on_failure: OnFailure,
    /// When timers fire.
    #[serde(default, skip_serializing_if = "TimersFire::is_when_due")]
    pub timers_fire: TimersFire,
    /// Events of this scenario need not fit the schemas that the module carries: it shows what the
    /// module does with invalid ones.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub invalid_events: bool,
    /// Events and messages are checked against the schemas that the module carries, as by a deployment
    /// with `--check-events on`: one that does not fit fails.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub check_events: bool,
    /// What happened before. `then` does not show the messages that it caused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given: Vec<Action>,
    /// What happens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Action>,
    /// What is expected after it.
    #[serde(default)]
    pub then: Then,
    /// What happens next, and what is expected then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
}

/// A further step of a scenario.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    /// What happens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Action>,
    /// What is expected after it.
    #[serde(default)]
    pub then: Then,
}

/// What a deployment does with an event that has used up its attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnFailure {
    /// It stops at the event.
    #[default]
    Stop,
    /// It sets the event and later ones of its key aside.
    Park,
}

impl OnFailure {
    fn is_stop(&self) -> bool {
        *self == Self::Stop
    }
}

/// When timers fire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TimersFire {
    /// As soon as time has passed until they are due.
    #[default]
    WhenDue,
    /// Only by `fire`: in a stream, a firing comes a little later than it is due, and other events
    /// may come between.
    ByAction,
}

impl TimersFire {
    fn is_when_due(&self) -> bool {
        *self == Self::WhenDue
    }
}

/// One thing that happens: an event or command (`event` or `subject`), passing time (`pass`), a
/// query (`query`), a timer that fires (`fire`), or events that the module does not read
/// (`others`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Action {
    /// The name of a template. Other fields replace those of the template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// Variables of this event.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub with: BTreeMap<String, Value>,
    /// The subject of the event or command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Its type; without one, the last token of the subject.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its message id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// When the event is stored, or the timer fires, in RFC 3339: time passes until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Its headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Its data: JSON, a text, or `{"$bytes": "<base64>"}`.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub data: Option<Value>,
    /// How often the event happens; `${i}` counts from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub times: Option<u32>,
    /// Let this much time pass, such as `15m` or `3s 500ms`. Timers that become due fire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass: Option<String>,
    /// Fire the timer of this name at this place, if it is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fire: Option<String>,
    /// This many events happen that the module does not read; they only take up sequences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub others: Option<u32>,
    /// Ask this query; `answers` has what is expected of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// The arguments of the query, as JSON.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub args: Option<Value>,
}

/// What is expected. What is left out is not compared, except failures and parked keys: without
/// `failure` nothing may fail, and without `parked` nothing may be parked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Then {
    /// Entries by key; `null` says that there is none. A text stands for the value that is this
    /// text, so `"null"` is an entry with the JSON value null. `${any}` stands for any value. An object with
    /// the member `"..."` may have members that are not named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub entries: BTreeMap<String, Value>,
    /// There are no other entries than those in `entries`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_other_entries: bool,
    /// The answers of the queries in this step, in order. `{"$error": "not found"}` is an error
    /// whose text has this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<Vec<Value>>,
    /// All messages that this step published, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<Vec<ExpectedMessage>>,
    /// All timers that are pending, by name: when they are due, in RFC 3339, or how long from now,
    /// such as `3s`, or `${any}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timers: Option<BTreeMap<String, String>>,
    /// The failure at which the deployment has stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<ExpectedFailure>,
    /// All keys that are parked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<Vec<String>>,
    /// The sequence up to which the state reflects the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
}

/// A message that is published. What is left out is not compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExpectedMessage {
    /// Its subject.
    pub subject: String,
    /// Its type.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Some of its headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Its data.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub data: Option<Value>,
    /// The time before which it is not sent, in RFC 3339, or how long from now, such as `1h`, or
    /// `${any}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// For how long its stream keeps it, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_to_live_seconds: Option<u32>,
    /// On what condition it is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_last: Option<ExpectedLast>,
}

/// The last sequence that a subject or pattern must have in the target of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExpectedLast {
    /// The subject or pattern; without it, that of the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The sequence; 0 if there must not be any message.
    pub sequence: u64,
}

/// A failure at which a deployment stops. What is left out is not compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExpectedFailure {
    /// Its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<FailureKind>,
    /// A part of its message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The sequence of the event that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<u64>,
}

/// Why an event was not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FailureKind {
    /// It does not fit its schema, in a scenario with `check_events: true`.
    Invalid,
    /// The module rejects it.
    Rejected,
    /// The module wants to see it again.
    Retry,
    /// The module trapped.
    Trap,
    /// A call took too long.
    Deadline,
    /// A call needed more than it may have, such as memory.
    Limit,
}

impl FailureKind {
    /// As in [`crate::failure::Failure`].
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Rejected => "rejected",
            Self::Retry => "retry",
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Limit => "limit",
        }
    }
}

impl File {
    /// As YAML.
    pub(crate) fn to_yaml(&self) -> String {
        serde_saphyr::to_string(self).expect("a file of scenarios is plain data")
    }
}

/// A value that is given, also if it is `null`.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// The JSON Schema of a file of scenarios, for editors.
pub(crate) fn schema() -> Value {
    schemars::schema_for!(File).to_value()
}
