//! Explores a module: plays events that were drawn from the examples in a file, and reduces what
//! fails to the smallest scenario.
//!
//! Nothing is known of what should be so, except what must be so of every module: it has its
//! properties, and it neither traps nor exceeds its limits. A module may reject what was drawn.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::time::Duration;

use proptest::prelude::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use proptest::{collection, option, prop_oneof};
use serde::Serialize;
use serde_json::{Value, json};

use super::document::{Document, Mistake};
use super::file::{Action, FailureKind, File, Scenario};
use super::in_order::in_order;
use super::literal::{literal, texts};
use super::play::{Act, Script};
use super::properties::{Finding, look};
use super::suite::{Failed, Suite};
use crate::event::Payload;
use crate::log::NewEvent;

/// How many events are drawn at once.
const DRAWN: RangeInclusive<usize> = 1..=24;
/// Most examples of a file: more say nothing new.
const EXAMPLES_MAX: usize = 500;
/// Most attempts to make a failing scenario smaller.
const SMALLER_MAX: u32 = 500;
/// Failures that no event may cause.
const FAULTS: [FailureKind; 3] = [FailureKind::Trap, FailureKind::Deadline, FailureKind::Limit];
/// How many scenarios are drawn from one seed: further ones are drawn from others, so that several
/// threads can play them.
const PART: u32 = 20;
/// Length of a text that is longer than expected, in bytes.
const LONG_BYTES: usize = 1_000;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Exploration {
    /// How many scenarios to draw.
    pub scenarios: u32,
    /// The same seed draws the same scenarios.
    pub seed: u64,
    /// How many are played at the same time. It changes nothing but how long that takes.
    pub jobs: usize,
}

/// The smallest scenario that fails.
#[derive(Clone, Debug)]
pub(crate) struct Explored {
    pub fault: Fault,
    /// A file with the scenario.
    pub file: File,
}

/// What is wrong with a module, whatever a scenario claims.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    /// It lacks a property.
    Property(Finding),
    /// It fails, and does not reject the event.
    Failure {
        /// As in [`crate::failure::Failure`].
        kind: String,
        message: String,
    },
}

impl Fault {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Property(finding) => finding.property.name(),
            Self::Failure { kind, .. } => kind,
        }
    }
}

impl Suite {
    /// Whether a file has events to draw from.
    pub(crate) fn has_examples(document: &Document) -> Result<bool, Mistake> {
        Ok(!Examples::of(document)?.events.is_empty())
    }

    /// Plays scenarios that are drawn from the examples in a file; returns the smallest one that
    /// fails. None if all pass, or if the file has no examples. Blocking.
    pub(crate) fn explore(
        &self,
        document: &Document,
        exploration: Exploration,
    ) -> Result<Option<Explored>, Failed> {
        let examples = Examples::of(document)?;
        if examples.events.is_empty() {
            return Ok(None);
        }
        let parts = exploration.scenarios.div_ceil(PART) as usize;
        let explore = |part: usize| {
            let part = u32::try_from(part).expect("it is a part of 32 bits");
            let scenarios = PART.min(exploration.scenarios - part * PART);
            self.explore_part(&examples, seed(exploration.seed, part), scenarios)
        };
        let is_sound = |explored: &Result<_, _>| matches!(explored, Ok(None));
        let explored = in_order(parts, exploration.jobs, explore, |explored| {
            !is_sound(explored)
        });
        let found = explored.into_iter().find(|explored| !is_sound(explored));
        found.unwrap_or(Ok(None))
    }

    /// The same for a part of the scenarios.
    fn explore_part(
        &self,
        examples: &Examples,
        seed: [u8; 32],
        scenarios: u32,
    ) -> Result<Option<Explored>, Failed> {
        let config = Config {
            cases: scenarios,
            max_shrink_iters: SMALLER_MAX,
            failure_persistence: None,
            ..Config::default()
        };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        // The first fault: a smaller scenario must have the same. An error of ours ends it all.
        let (first, failed) = (RefCell::new(None), RefCell::new(None));
        let result = TestRunner::new_with_rng(config, rng).run(&examples.draws(), |draws| {
            if failed.borrow().is_some() {
                return Ok(());
            }
            let fault = match self.fault(&examples.file(&draws)) {
                Ok(fault) => fault,
                Err(error) => {
                    *failed.borrow_mut() = Some(error);
                    return Ok(());
                }
            };
            let name = fault.map(|fault| fault.name().to_owned());
            match name {
                Some(name) if *first.borrow_mut().get_or_insert(name.clone()) == name => {
                    Err(TestCaseError::fail(name))
                }
                _ => Ok(()),
            }
        });
        if let Some(error) = failed.into_inner() {
            return Err(error);
        }
        let Err(TestError::Fail(_, draws)) = result else {
            return Ok(None);
        };
        let file = examples.file(&draws);
        // Played once more: what it shows belongs to the smallest one.
        let fault = self.fault(&file)?;
        Ok(fault.map(|fault| Explored { fault, file }))
    }

    /// What is wrong in the only scenario of a file.
    fn fault(&self, file: &File) -> Result<Option<Fault>, Failed> {
        let document = Document::of(file.clone())?;
        let script = Script::of(&document, 0)?;
        let usual = self.play(&script)?;
        let failures = usual.steps.iter().filter_map(|step| step.failure.as_ref());
        for failure in failures {
            if FAULTS.iter().any(|fault| fault.name() == failure.kind) {
                return Ok(Some(Fault::Failure {
                    kind: failure.kind.clone(),
                    message: failure.message.clone(),
                }));
            }
        }
        let (finding, _) = look(&self.stage, &script, &usual)?;
        Ok(finding.map(Fault::Property))
    }
}

/// The seed of a part.
fn seed(seed: u64, part: u32) -> [u8; 32] {
    let mut whole = [0; 32];
    whole[..8].copy_from_slice(&seed.to_le_bytes());
    whole[8..12].copy_from_slice(&part.to_le_bytes());
    whole
}

/// One thing that was drawn.
#[derive(Clone, Debug)]
enum Draw {
    /// An example, perhaps with another value somewhere: where, and which.
    Event(usize, Option<(usize, usize)>),
    /// The event before it once more.
    Again,
    Pass(usize),
    /// A query of the file.
    Ask(usize),
}

/// What a file gives as examples.
struct Examples {
    scenario: Scenario,
    events: Vec<NewEvent>,
    passes: Vec<Duration>,
    queries: Vec<(String, Payload)>,
}

impl Examples {
    fn of(document: &Document) -> Result<Self, Mistake> {
        let mut examples = Self {
            scenario: Scenario::default(),
            events: Vec::new(),
            passes: vec![Duration::from_secs(1), Duration::from_secs(86_400)],
            queries: Vec::new(),
        };
        for index in 0..document.scenarios().len() {
            let script = Script::of(document, index)?;
            let steps = script.steps.into_iter().flat_map(|step| step.acts);
            for act in script.given.into_iter().chain(steps) {
                examples.add(act);
            }
        }
        Ok(examples)
    }

    fn add(&mut self, act: Act) {
        match act {
            Act::Events(events) => {
                for event in events {
                    add_once(&mut self.events, event);
                }
            }
            Act::Pass(time) => add_once(&mut self.passes, time),
            Act::Ask(query, args) => add_once(&mut self.queries, (query, args)),
            Act::Until(_) | Act::Fire(_) | Act::Others(_) => {}
        }
    }

    fn draws(&self) -> impl Strategy<Value = Vec<Draw>> + use<> {
        // An index of none is left out when the scenario is made.
        let any = |count: usize| 0..count.max(1);
        let change = option::weighted(0.15, (0..64_usize, 0..VALUES));
        let draw = prop_oneof![
            10 => (any(self.events.len()), change)
                .prop_map(|(event, change)| Draw::Event(event, change)),
            1 => proptest::strategy::Just(Draw::Again),
            2 => any(self.passes.len()).prop_map(Draw::Pass),
            1 => any(self.queries.len()).prop_map(Draw::Ask),
        ];
        collection::vec(draw, DRAWN)
    }

    /// A file with the scenario of what was drawn.
    fn file(&self, draws: &[Draw]) -> File {
        let mut when: Vec<Action> = Vec::new();
        for draw in draws {
            match draw {
                Draw::Event(index, change) => {
                    let mut event = self.events[*index].clone();
                    if let Some((place, value)) = change {
                        change_data(&mut event, *place, *value);
                    }
                    when.push(Action::literal(event));
                }
                Draw::Again => when.extend(when.last().cloned()),
                Draw::Pass(index) => when.push(Action {
                    pass: Some(humantime::format_duration(self.passes[*index]).to_string()),
                    ..Action::default()
                }),
                Draw::Ask(index) => when.extend(self.queries.get(*index).map(|(query, args)| {
                    let args = (!args.is_empty()).then(|| args.to_json());
                    Action {
                        query: Some(literal(query.clone())),
                        args: args.map(|args| texts(args, &literal)),
                        ..Action::default()
                    }
                })),
            }
        }
        File {
            scenarios: vec![Scenario {
                name: "found by --explore".to_owned(),
                when,
                ..self.scenario.clone()
            }],
            ..File::default()
        }
    }
}

fn add_once<T: PartialEq>(list: &mut Vec<T>, thing: T) {
    if list.len() < EXAMPLES_MAX && !list.contains(&thing) {
        list.push(thing);
    }
}

/// How many values there are for a place in data.
const VALUES: usize = 12;

/// Puts another value at a place in the data of an event.
fn change_data(event: &mut NewEvent, place: usize, value: usize) {
    let mut data = event.data.to_json();
    let mut places = Vec::new();
    leaves(&data, &mut String::new(), &mut places);
    let pointer = &places[place % places.len()];
    let values = [
        Value::Null,
        json!(""),
        json!("a"),
        json!(0),
        json!(-1),
        json!(1),
        json!(i64::MAX),
        json!(0.1),
        json!(true),
        json!([]),
        json!({}),
        json!("é".repeat(LONG_BYTES / 2)),
    ];
    const { assert!(VALUES == 12) };
    if let Some(there) = data.pointer_mut(pointer) {
        *there = values[value % VALUES].clone();
    }
    if let Ok(changed) = Payload::from_json(data) {
        event.data = changed;
    }
}

/// The JSON pointers of all values that have no parts.
fn leaves(value: &Value, path: &mut String, places: &mut Vec<String>) {
    let parts: Vec<(String, &Value)> = match value {
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| (name.replace('~', "~0").replace('/', "~1"), value))
            .collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(index, value)| (index.to_string(), value))
            .collect(),
        _ => Vec::new(),
    };
    if parts.is_empty() {
        places.push(path.clone());
    }
    for (name, value) in parts {
        let length = path.len();
        path.push('/');
        path.push_str(&name);
        leaves(value, path, places);
        path.truncate(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_of_data_can_be_changed() {
        let mut event = NewEvent {
            subject: "a.b".to_owned(),
            kind: None,
            id: None,
            time_ns: None,
            headers: Vec::new(),
            data: Payload::from(r#"{"a/b":{"c":[1,2]},"d":"x"}"#),
        };
        let mut places = Vec::new();
        leaves(&event.data.to_json(), &mut String::new(), &mut places);
        assert_eq!(places, ["/a~1b/c/0", "/a~1b/c/1", "/d"]);
        change_data(&mut event, 1, 4);
        assert_eq!(event.data.as_str(), Some(r#"{"a/b":{"c":[1,-1]},"d":"x"}"#));
        // The whole, if it has no parts.
        event.data = Payload::from("x");
        change_data(&mut event, 7, 1);
        assert_eq!(event.data.as_str(), Some(""));
    }
}
