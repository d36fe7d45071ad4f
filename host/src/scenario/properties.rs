//! What must be so of every module, whatever its scenarios claim: each scenario is played again
//! under other conditions, and a difference is named after what it shows.

use serde::Serialize;
use serde_json::{Value, json};

use super::bed::{Conditions, Error, Stage};
use super::compare::{Difference, Differences};
use super::cost::Meter;
use super::observe::{Message, Observation};
use super::play::{Played, Script, play};

/// What a module must not depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Property {
    /// Random numbers.
    Chance,
    /// How many events come in one batch.
    Batches,
    /// What an instance remembers outside the state.
    HiddenState,
    /// Restarts of the host.
    Restarts,
    /// Events that are delivered twice, although it has an inbox.
    Duplicates,
}

impl Property {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chance => "chance",
            Self::Batches => "batches",
            Self::HiddenState => "hidden-state",
            Self::Restarts => "restarts",
            Self::Duplicates => "duplicates",
        }
    }

    /// What a difference means, and what to do.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Chance => {
                "the result depends on chance: another seed of random numbers changes it; take \
                 what varies from the event, and keep no order of a hash map"
            }
            Self::Batches => {
                "the result depends on batches: events one by one give another result than all at \
                 once; decide by the events alone, and not by their place in a batch or the clock"
            }
            Self::HiddenState => {
                "the module has hidden state: a new instance for each batch gives another result; \
                 keep everything in the state, and nothing in memory between calls"
            }
            Self::Restarts => {
                "the result depends on restarts: closing and opening the state after each event \
                 changes it"
            }
            Self::Duplicates => {
                "events that were delivered twice change the result, although the module asks for \
                 an inbox; are they recognised by what identifies them?"
            }
        }
    }
}

/// A property that a module lacks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Which one.
    pub property: Property,
    /// What it means, and what to do.
    pub advice: &'static str,
    /// What differs: `expected` is the usual result.
    pub differences: Vec<Difference>,
}

/// Plays a script again under all conditions. The first finding ends it: others would show the same
/// cause again. Also returns a run that counted host calls.
pub(super) fn look(
    stage: &Stage,
    script: &Script,
    usual: &Played,
) -> Result<(Option<Finding>, Played), Error> {
    let one_by_one = Conditions {
        batch_events: Some(1),
        ..Conditions::default()
    };
    let fresh = Conditions {
        is_fresh: true,
        ..one_by_one
    };
    let counted = play(
        stage,
        script,
        Conditions {
            other_seed: true,
            ..Conditions::default()
        },
        Meter::of_calls(),
        false,
    )?;
    if let Some(finding) = finding(Property::Chance, usual, &counted) {
        return Ok((Some(finding), counted));
    }
    // Each differs from those before it in one thing, which so is the cause.
    let further = [
        (Property::Batches, one_by_one),
        (Property::HiddenState, fresh),
        (
            Property::Restarts,
            Conditions {
                restarts: true,
                ..fresh
            },
        ),
    ];
    for (property, conditions) in further {
        let played = play(stage, script, conditions, Meter::default(), false)?;
        if let Some(finding) = finding(property, usual, &played) {
            return Ok((Some(finding), counted));
        }
    }
    if stage.module.manifest().inbox.is_none() {
        return Ok((None, counted));
    }
    let played = play(stage, script, Conditions::default(), Meter::default(), true)?;
    let repeated = usual.steps.last().zip(played.repeated.as_ref());
    let differences = repeated.map(|(usual, repeated)| {
        let mut all = Differences::of(usual_steps(&played));
        observations(usual, repeated, &mut all);
        all.all()
    });
    let finding = differences
        .filter(|differences| !differences.is_empty())
        .map(|differences| Finding::of(Property::Duplicates, differences));
    Ok((finding, counted))
}

fn usual_steps(played: &Played) -> usize {
    played.steps.len()
}

impl Finding {
    fn of(property: Property, differences: Vec<Difference>) -> Self {
        Self {
            property,
            advice: property.advice(),
            differences,
        }
    }
}

fn finding(property: Property, usual: &Played, other: &Played) -> Option<Finding> {
    for (index, (usual, other)) in usual.steps.iter().zip(&other.steps).enumerate() {
        let mut all = Differences::of(index + 1);
        observations(usual, other, &mut all);
        if usual.position != other.position {
            let (usual, other) = (json!(usual.position), json!(other.position));
            all.values("position", "", Some(&usual), Some(&other));
        }
        let differences = all.all();
        // Later steps differ because of this one.
        if !differences.is_empty() {
            return Some(Finding::of(property, differences));
        }
    }
    None
}

/// The differences of two runs of the same step, without positions.
fn observations(usual: &Observation, other: &Observation, all: &mut Differences) {
    let keys: std::collections::BTreeSet<_> =
        usual.entries.keys().chain(other.entries.keys()).collect();
    for key in keys {
        let (one, two) = (usual.entries.get(key), other.entries.get(key));
        if one != two {
            differ(&format!("entry {key}"), payload(one), payload(two), all);
        }
    }
    for index in 0..usual.published.len().max(other.published.len()) {
        let (one, two) = (usual.published.get(index), other.published.get(index));
        if one != two {
            let what = format!("message {}", index + 1);
            differ(&what, one.map(whole), two.map(whole), all);
        }
    }
    let failure = |seen: &Observation| {
        let failure = seen.failure.as_ref()?;
        Some(json!({ "kind": failure.kind, "event": failure.sequence }))
    };
    let parts: [(&str, [Option<Value>; 2]); 4] = [
        ("failure", [usual, other].map(failure)),
        (
            "timers",
            [usual, other].map(|seen| Some(json!(seen.timers))),
        ),
        (
            "parked keys",
            [usual, other].map(|seen| Some(json!(seen.parked))),
        ),
        ("answers", [usual, other].map(answers)),
    ];
    for (what, [one, two]) in parts {
        if what == "answers" && other.answers.is_empty() {
            // Duplicates are delivered after the last query.
            continue;
        }
        all.values(what, "", one.as_ref(), two.as_ref());
    }
}

fn answers(seen: &Observation) -> Option<Value> {
    let text = |answer: &Result<crate::event::Payload, String>| match answer {
        Ok(answer) => answer.to_json(),
        Err(error) => json!({ "$error": error }),
    };
    Some(seen.answers.iter().map(text).collect())
}

/// Values that are not the same, even if they look alike as JSON.
fn differ(what: &str, usual: Option<Value>, other: Option<Value>, all: &mut Differences) {
    if usual == other {
        // The order of members, or white space: shown as text.
        let text = |value: Option<Value>| value.map(|value| json!(value.to_string()));
        all.values(
            &format!("{what}, byte for byte"),
            "",
            text(usual).map(|text| json!([text])).as_ref(),
            text(other).as_ref(),
        );
    } else {
        all.values(what, "", usual.as_ref(), other.as_ref());
    }
}

fn payload(payload: Option<&crate::event::Payload>) -> Option<Value> {
    payload.map(crate::event::Payload::to_json)
}

/// A message with everything that reaches its target.
fn whole(message: &Message) -> Value {
    json!({
        "subject": message.subject,
        "type": message.kind,
        "key": message.key,
        "headers": message.headers,
        "data": message.data.to_json(),
    })
}
