//! Runs the scenarios of files against one module.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::bed::{Conditions, Error, Folders, Stage};
use super::compare::{Difference, compare};
use super::contracts::violations;
use super::cost::{Cost, Meter};
use super::document::{Document, Mistake};
use super::play::{Act, Played, Script, play};
use super::properties::{Finding, look};
use crate::module::{self, Module};
use crate::schemas::Checks;

/// How often each scenario is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runs {
    Once,
    /// Again under other conditions, to look at the properties of the module.
    AllConditions,
}

/// Runs scenarios against one module.
pub(crate) struct Suite {
    pub(super) stage: Stage,
    /// The schemas that the module carries.
    checks: Checks,
    runs: Runs,
}

/// Why a scenario has no outcome.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    /// The file has a mistake.
    #[error(transparent)]
    Mistake(#[from] Mistake),
    /// It could not be played.
    #[error(transparent)]
    Error(#[from] Error),
}

/// How a scenario ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    /// What is not as expected.
    pub differences: Vec<Difference>,
    /// The property that the module lacks, if one was found.
    pub finding: Option<Finding>,
    /// Subjects of its events that the module does not read.
    pub unread: Vec<String>,
    /// What its events cost. Host calls are counted only when properties are looked at.
    pub cost: Cost,
    /// How long it took, with all its runs.
    pub took: Duration,
}

impl Outcome {
    /// Whether everything is as expected.
    pub(crate) fn is_passed(&self) -> bool {
        self.differences.is_empty() && self.finding.is_none()
    }
}

impl std::fmt::Debug for Suite {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Suite")
            .field("module", &self.stage.module.manifest().name)
            .finish_non_exhaustive()
    }
}

impl Suite {
    /// Prepares runs of a module. `stops` ends the work. Must be called on a
    /// thread for blocking work of a runtime, as all other functions.
    pub(crate) fn new(
        module: Arc<Module>,
        folders: Folders,
        runs: Runs,
        stops: watch::Receiver<bool>,
    ) -> Result<Self, Error> {
        let checks = Checks::new(module.schemas()).map_err(|error| {
            // They were checked with the module.
            Error::Module(module::Error::Refused(error.to_string()))
        })?;
        Ok(Self {
            checks,
            stage: Stage::new(module, folders, stops)?,
            runs,
        })
    }

    /// Plays the scenario at an index of a file. Blocking.
    pub(crate) fn run(&self, document: &Document, index: usize) -> Result<Outcome, Failed> {
        let begun = Instant::now();
        let script = Script::of(document, index)?;
        let usual = self.play(&script)?;
        let steps = script.steps.iter().zip(&usual.steps).enumerate();
        let mut differences: Vec<_> = steps
            .flat_map(|(index, (step, seen))| compare(index + 1, &step.then, seen))
            .collect();
        for difference in &mut differences {
            difference.place = script.place(document, difference.step, &difference.claim);
        }
        differences.extend(violations(&self.checks, document, &script, &usual));
        // A module that does something else is corrected first.
        let looks = self.runs == Runs::AllConditions && differences.is_empty();
        let (finding, counted) = if looks {
            let (finding, counted) = look(&self.stage, &script, &usual)?;
            (finding, Some(counted))
        } else {
            (None, None)
        };
        Ok(Outcome {
            differences,
            finding,
            unread: self.unread(&script),
            cost: cost(&usual, counted.as_ref()),
            took: begun.elapsed(),
        })
    }

    /// The subjects of a script that the module does not read, each once.
    fn unread(&self, script: &Script) -> Vec<String> {
        let read = &self.stage.module.manifest().subjects;
        let steps = script.steps.iter().flat_map(|step| &step.acts);
        let events = script.given.iter().chain(steps).flat_map(|act| match act {
            Act::Events(events) => events.as_slice(),
            _ => &[],
        });
        let unread: BTreeSet<_> = events
            .map(|event| &event.subject)
            .filter(|subject| !read.matches(subject))
            .collect();
        unread.into_iter().cloned().collect()
    }

    /// Plays a script as a host would.
    pub(super) fn play(&self, script: &Script) -> Result<Played, Error> {
        play(&self.stage, script, Conditions::default(), Meter::default())
    }
}

/// Times come from the usual run, calls from one that counts them.
fn cost(usual: &Played, counted: Option<&Played>) -> Cost {
    let figures = usual.figures;
    let per_event = |sum: f64| match figures.events {
        0 => 0.0,
        // Two digits are enough, and do not change from run to run.
        events => (sum / events as f64 * 100.0).round() / 100.0,
    };
    let state_bytes = usual.steps.last().map_or(0, |last| last.state_bytes);
    Cost {
        events: figures.events,
        time_us: per_event(figures.time.as_secs_f64() * 1e6),
        fuel: per_event(figures.fuel as f64),
        host_calls: counted.map(|counted| per_event(counted.figures.calls as f64)),
        state_bytes: per_event(state_bytes as f64),
        memory_bytes: figures.memory_bytes,
    }
}
