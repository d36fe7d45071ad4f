//! What must be so of every module, whatever its scenarios claim: each scenario is played again
//! under other conditions, and a difference is named after what it shows.

use serde::Serialize;
use serde_json::{Value, json};

use super::bed::{Conditions, Error, Stage};
use super::compare::{Difference, Differences, Subject};
use super::cost::Meter;
use super::observe::{Message, Observation};
use super::play::{Played, Script, play};
use crate::event::Payload;

/// What a module must not depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Property {
    /// Random numbers.
    Chance,
    /// The time at which the module runs.
    Time,
    /// How many events come in one batch.
    Batches,
    /// What an instance remembers outside the state.
    HiddenState,
    /// Restarts of the host.
    Restarts,
    /// Events that are delivered twice, although it has an inbox.
    Duplicates,
    /// Several of these at once, and none of them alone.
    Together,
}

impl Property {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Chance => "chance",
            Self::Time => "time",
            Self::Batches => "batches",
            Self::HiddenState => "hidden-state",
            Self::Restarts => "restarts",
            Self::Duplicates => "duplicates",
            Self::Together => "together",
        }
    }

    /// What a difference means, and what to do.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::Chance => {
                "the result depends on chance: another seed of random numbers changes it; take \
                 what varies from the event, and keep no order of a hash map"
            }
            Self::Time => {
                "the result depends on the time at which the module runs: another clock changes it; \
                 take times from the event"
            }
            Self::Batches => {
                "the result depends on batches: events one by one give another result than all at \
                 once; decide by the events alone, and not by their place in a batch"
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
            Self::Together => {
                "the result depends on several things at once, and on none alone: chance, time, \
                 batches, memory of an instance, restarts"
            }
        }
    }
}

/// A property that a module lacks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Finding {
    pub property: Property,
    /// What it means, and what to do.
    pub advice: &'static str,
    /// What differs: `expected` is the usual result.
    pub differences: Vec<Difference>,
}

/// Plays a script again under all conditions. Also returns a run that counted host calls.
pub(super) fn look(
    stage: &Stage,
    script: &Script,
    usual: &Played,
) -> Result<(Option<Finding>, Played), Error> {
    let all = Conditions {
        other_seed: true,
        other_clock: true,
        batch_events: Some(1),
        is_fresh: true,
        restarts: true,
        repeats: false,
    };
    // All at once, which nearly always shows that there is nothing to find.
    let counted = play(stage, script, all, Meter::of_calls())?;
    let finding = match differences(usual, &counted) {
        None => duplicates(stage, script, usual)?,
        Some(differences) => {
            let cause = cause(stage, script, usual)?;
            Some(cause.unwrap_or_else(|| Finding::of(Property::Together, differences)))
        }
    };
    Ok((finding, counted))
}

/// Plays a script under one condition after the other. The first difference ends it: others would
/// show the same cause again.
fn cause(stage: &Stage, script: &Script, usual: &Played) -> Result<Option<Finding>, Error> {
    let one_by_one = Conditions {
        batch_events: Some(1),
        ..Conditions::default()
    };
    let fresh = Conditions {
        is_fresh: true,
        ..one_by_one
    };
    // Each differs from one of those before it in one thing, which so is the cause.
    let conditions = [
        (
            Property::Chance,
            Conditions {
                other_seed: true,
                ..Conditions::default()
            },
        ),
        (
            Property::Time,
            Conditions {
                other_clock: true,
                ..Conditions::default()
            },
        ),
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
    for (property, conditions) in conditions {
        let played = play(stage, script, conditions, Meter::default())?;
        if let Some(differences) = differences(usual, &played) {
            return Ok(Some(Finding::of(property, differences)));
        }
    }
    Ok(None)
}

/// Delivers events twice to a module that recognises them.
fn duplicates(stage: &Stage, script: &Script, usual: &Played) -> Result<Option<Finding>, Error> {
    if stage.module.manifest().inbox.is_none() {
        return Ok(None);
    }
    let twice = Conditions {
        repeats: true,
        ..Conditions::default()
    };
    let played = play(stage, script, twice, Meter::default())?;
    let repeated = usual.steps.last().zip(played.repeated.as_ref());
    let differences = repeated.map_or_else(Vec::new, |(usual, repeated)| {
        let mut all = Differences::of(played.steps.len());
        observations(usual, repeated, &mut all);
        all.all()
    });
    Ok((!differences.is_empty()).then(|| Finding::of(Property::Duplicates, differences)))
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

/// The differences of the first step in which two runs differ; later ones differ because of it.
fn differences(usual: &Played, other: &Played) -> Option<Vec<Difference>> {
    for (index, (usual, other)) in usual.steps.iter().zip(&other.steps).enumerate() {
        let mut all = Differences::of(index + 1);
        observations(usual, other, &mut all);
        let positions = [usual, other].map(|seen| json!(seen.position));
        all.values(
            &Subject::of("position"),
            Some(&positions[0]),
            Some(&positions[1]),
        );
        let differences = all.all();
        if !differences.is_empty() {
            return Some(differences);
        }
    }
    None
}

/// The differences of two runs of the same step, without positions.
fn observations(usual: &Observation, other: &Observation, all: &mut Differences) {
    let keys: std::collections::BTreeSet<_> =
        usual.entries.keys().chain(other.entries.keys()).collect();
    for key in keys {
        let found = [usual, other].map(|seen| seen.entries.get(key));
        differ(&format!("entry {key}"), found.map(payload), found, all);
    }
    for index in 0..usual.published.len().max(other.published.len()) {
        let found = [usual, other].map(|seen| seen.published.get(index));
        let data = found.map(|message| message.map(|message| &message.data));
        let what = format!("message {}", index + 1);
        differ(&what, found.map(|message| message.map(whole)), data, all);
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
        all.values(&Subject::of(what), one.as_ref(), two.as_ref());
    }
}

fn answers(seen: &Observation) -> Option<Value> {
    let text = |answer: &Result<Payload, String>| match answer {
        Ok(answer) => answer.to_json(),
        Err(error) => json!({ "$error": error }),
    };
    Some(seen.answers.iter().map(text).collect())
}

/// Compares values, and the octets of what they show: these may differ in white space or in the
/// order of members, where the values are the same.
fn differ(
    what: &str,
    [one, two]: [Option<Value>; 2],
    octets: [Option<&Payload>; 2],
    all: &mut Differences,
) {
    if one != two {
        all.values(&Subject::of(what), one.as_ref(), two.as_ref());
    } else if octets[0] != octets[1] {
        let [one, two] = octets.map(|octets| octets.and_then(Payload::as_str).map(Value::from));
        let subject = Subject::of(format!("text of {what}"));
        all.values(&subject, one.as_ref(), two.as_ref());
    }
}

fn payload(payload: Option<&Payload>) -> Option<Value> {
    payload.map(Payload::to_json)
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
