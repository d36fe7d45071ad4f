//! The form of a file of scenarios, and its JSON Schema.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most scenarios in one file.
pub const SCENARIOS_MAX: usize = 10_000;
/// Most times that one action repeats its event.
pub(super) const TIMES_MAX: u32 = 100_000;

/// A file of scenarios, with what they share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Foldstream scenarios")]
pub struct File {
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
pub struct Template {
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

/// What happens, and what is so afterwards.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
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
    /// What happened before. `then` does not show the messages that it caused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given: Vec<Action>,
    /// What happens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Action>,
    /// What is so after it.
    #[serde(default)]
    pub then: Then,
    /// What happens next, and what is so after that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
}

/// A further step of a scenario.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What happens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Action>,
    /// What is so after it.
    #[serde(default)]
    pub then: Then,
}

/// What a deployment does with an event that has used up its attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
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

/// One thing that happens: an event or command (`event` or `subject`), passing time (`pass`), or a
/// query (`query`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Action {
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
    /// When it is stored, in RFC 3339: time passes until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Its headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Its data: JSON, a text, or `{"$bytes": "<base64>"}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
    /// How often the event happens; `${i}` counts from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub times: Option<u32>,
    /// Let this much time pass, such as `15m` or `3s 500ms`. Timers that become due fire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass: Option<String>,
    /// Ask this query; `answers` has what is expected of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// The arguments of the query, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Value>,
}

/// What is so. A part that is left out is not looked at, except failures and parked keys: without
/// `failure` nothing may fail, and without `parked` nothing may be parked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Then {
    /// Entries by key; `null` says that there is none. `${any}` stands for any value. An object with
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

/// A message that is published. What is left out is not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpectedMessage {
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

/// A failure at which a deployment stops. What is left out is not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpectedFailure {
    /// Its kind: `rejected`, `retry`, `trap`, `deadline` or `limit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// A part of its message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The sequence of the event that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<u64>,
}

/// What is wrong in a file of scenarios.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// It is no file of scenarios.
    #[error("{0}")]
    Form(String),
    /// Something in a scenario makes no sense.
    #[error("scenario `{scenario}`: {message}")]
    Scenario {
        /// Its name.
        scenario: String,
        /// What is wrong, and what to do.
        message: String,
    },
}

impl File {
    /// Reads a file of scenarios, in YAML or JSON.
    pub fn parse(text: &str) -> Result<Self, Mistake> {
        let file: Self =
            serde_saphyr::from_str(text).map_err(|error| Mistake::Form(error.to_string()))?;
        if file.scenarios.len() > SCENARIOS_MAX {
            return Err(Mistake::Form(format!(
                "{} scenarios; put at most {SCENARIOS_MAX} into one file",
                file.scenarios.len()
            )));
        }
        let mut names = std::collections::BTreeSet::new();
        for scenario in &file.scenarios {
            let wrong = |message: String| Mistake::Scenario {
                scenario: scenario.name.clone(),
                message,
            };
            if scenario.name.trim().is_empty() {
                return Err(Mistake::Form(
                    "a scenario has no name; give it one".to_owned(),
                ));
            }
            // Reports and filters tell scenarios apart by name.
            if !names.insert(&scenario.name) {
                return Err(wrong("there are two of this name; rename one".to_owned()));
            }
            let steps = scenario.steps.iter().flat_map(|step| &step.when);
            for action in scenario.given.iter().chain(&scenario.when).chain(steps) {
                file.check(action).map_err(&wrong)?;
            }
            if scenario.given.iter().any(|action| action.query.is_some()) {
                return Err(wrong("`given` has a query; ask it in `when`".to_owned()));
            }
        }
        Ok(file)
    }

    /// Checks that an action is one thing, and complete.
    fn check(&self, action: &Action) -> Result<(), String> {
        let is_event = action.event.is_some() || action.subject.is_some();
        let things = [is_event, action.pass.is_some(), action.query.is_some()];
        if things.iter().filter(|is_it| **is_it).count() != 1 {
            return Err(
                "an action is one of: an event (`event` or `subject`), `pass`, `query`".to_owned(),
            );
        }
        let of_event = action.kind.is_some()
            || action.id.is_some()
            || action.at.is_some()
            || action.data.is_some()
            || action.times.is_some()
            || !action.headers.is_empty()
            || !action.with.is_empty();
        if of_event && !is_event {
            return Err("`pass` and `query` have no fields of an event".to_owned());
        }
        if action.args.is_some() && action.query.is_none() {
            return Err("`args` belongs to `query`; data of an event is `data`".to_owned());
        }
        if action
            .times
            .is_some_and(|times| !(1..=TIMES_MAX).contains(&times))
        {
            return Err(format!("`times` is 1 to {TIMES_MAX}"));
        }
        let Some(name) = &action.event else {
            return Ok(());
        };
        let Some(template) = self.events.get(name) else {
            let known: Vec<_> = self.events.keys().map(String::as_str).collect();
            return Err(format!(
                "no event `{name}` under `events`; there are: {}",
                known.join(", ")
            ));
        };
        if action.subject.is_none() && template.subject.is_none() {
            return Err(format!("event `{name}` has no subject; give it one"));
        }
        Ok(())
    }

    /// As YAML.
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(self).expect("a file of scenarios is plain data")
    }
}

/// The JSON Schema of a file of scenarios, for editors.
pub fn schema() -> Value {
    schemars::schema_for!(File).to_value()
}
