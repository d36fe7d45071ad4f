//! How scenarios ended, for people and programs.

use std::path::Path;

use serde::Serialize;

use super::baseline::Baseline;
use super::found::Found;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::{bytes, compact, counted, grouped, printable};
use crate::scenario::{Cost, Difference, Document, Fault, Finding, Growth, Outcome, Place};

/// How a run ended.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Name of the module.
    module: String,
    /// How long all scenarios took, in seconds.
    pub(super) seconds: f64,
    #[serde(rename = "scenarios")]
    pub(super) tested: Vec<Tested>,
    #[serde(rename = "explored", skip_serializing_if = "Vec::is_empty")]
    pub(super) explorations: Vec<Exploration>,
}

/// How the exploration from the examples of a file ended.
#[derive(Debug, Serialize)]
pub(super) struct Exploration {
    pub(super) file: String,
    /// How many scenarios were to be drawn.
    pub(super) scenarios: u32,
    pub(super) passed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<Fault>,
    /// The file that shows the fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<String>,
}

impl Exploration {
    /// Why it failed, line by line.
    pub(super) fn reasons(&self) -> Vec<String> {
        let mut lines = Vec::new();
        match &self.fault {
            None => {}
            Some(Fault::Property(finding)) => found(finding, None, &mut lines),
            Some(Fault::Failure { kind, message }) => {
                lines.push(printable(&format!("{kind}: {message}")));
            }
        }
        lines.extend(
            self.written
                .iter()
                .map(|file| printable(&format!("the smallest scenario that shows it: {file}"))),
        );
        lines
    }
}

/// How a scenario ended.
#[derive(Debug, Serialize)]
pub(super) struct Tested {
    pub(super) file: String,
    /// Where it begins in the file, if that is known.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) place: Option<Place>,
    pub(super) name: String,
    pub(super) passed: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) differences: Vec<Difference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) finding: Option<Finding>,
    /// Subjects of events that the module does not read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unread: Vec<String>,
    pub(super) cost: Cost,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) grown: Vec<Growth>,
    pub(super) seconds: f64,
    #[serde(skip)]
    has_steps: bool,
}

impl Tested {
    pub(super) fn of(path: &Path, document: &Document, index: usize, outcome: Outcome) -> Self {
        let scenario = &document.scenarios()[index];
        Self {
            file: path.display().to_string(),
            place: document.place_of(index),
            name: scenario.name.clone(),
            passed: outcome.is_passed(),
            differences: outcome.differences,
            finding: outcome.finding,
            unread: outcome.unread,
            cost: outcome.cost,
            grown: Vec::new(),
            seconds: outcome.took.as_secs_f64(),
            has_steps: !scenario.steps.is_empty(),
        }
    }

    /// The same, compared with a baseline. A scenario that fails is not compared: it may have
    /// stopped early.
    pub(super) fn compared(mut self, baseline: Option<&Baseline>) -> Self {
        let before = baseline.and_then(|baseline| baseline.cost(&self.file, &self.name));
        if let Some(before) = before.filter(|_| self.passed) {
            self.grown = self.cost.grown(before);
            self.passed = self.grown.is_empty();
        }
        self
    }

    /// What its author may not know: that the module does not read some of its events.
    fn note(&self) -> Option<String> {
        let (first, others) = self.unread.split_first()?;
        let more = match others.len() {
            0 => String::new(),
            others => format!(" and {}", counted(others as u64, "other subject")),
        };
        let note = format!("note: the module does not read {first}{more}");
        Some(printable(&note))
    }

    /// Why it failed, line by line.
    pub(super) fn reasons(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for difference in &self.differences {
            shown(difference, Some(self), ["expected", "found"], &mut lines);
        }
        if let Some(finding) = &self.finding {
            found(finding, Some(self), &mut lines);
        }
        for Growth {
            figure,
            before,
            now,
        } in &self.grown
        {
            lines.push(format!(
                "{figure} of an event has grown from {before} to {now}"
            ));
        }
        lines.extend(self.note());
        lines
    }
}

/// A place in a file, as editors and terminals understand it.
pub(super) fn at(file: &str, place: Option<Place>) -> String {
    match place {
        Some(Place { line, column }) => format!("{file}:{line}:{column}"),
        None => file.to_owned(),
    }
}

/// The lines of a finding.
fn found(finding: &Finding, tested: Option<&Tested>, lines: &mut Vec<String>) {
    lines.push(format!("{}: {}", finding.property.name(), finding.advice));
    for difference in &finding.differences {
        shown(difference, tested, ["usually", "here"], lines);
    }
}

/// The lines of a difference; `sides` are the names of what is expected and found.
fn shown(
    difference: &Difference,
    tested: Option<&Tested>,
    sides: [&str; 2],
    lines: &mut Vec<String>,
) {
    let Difference {
        step,
        place,
        what,
        path,
        expected,
        found,
        ..
    } = difference;
    let mut title = String::new();
    if let Some((tested, place)) = tested.zip(*place) {
        title.push_str(&format!("{}: ", at(&tested.file, Some(place))));
    }
    if tested.is_some_and(|tested| tested.has_steps) {
        title.push_str(&format!("step {step}: "));
    }
    title.push_str(what);
    if !path.is_empty() {
        title.push_str(&format!(" at {path}"));
    }
    lines.push(printable(&title));
    let width = sides.map(str::len).into_iter().max().unwrap_or(0);
    for (side, value) in sides.into_iter().zip([expected, found]) {
        let value = value.as_ref().map_or_else(|| "nothing".to_owned(), compact);
        lines.push(printable(&format!("  {side:width$}  {value}")));
    }
}

impl Report {
    pub(super) fn of(module: String) -> Self {
        Self {
            module,
            seconds: 0.0,
            tested: Vec::new(),
            explorations: Vec::new(),
        }
    }

    /// Adds an exploration from the examples of a file.
    pub(super) fn explored(&mut self, path: &Path, scenarios: u32, found: Option<Found>) {
        let (fault, written) = found
            .map(|found| (found.fault, found.file.display().to_string()))
            .unzip();
        self.explorations.push(Exploration {
            file: path.display().to_string(),
            scenarios,
            passed: fault.is_none(),
            fault,
            written,
        });
    }

    pub(super) fn is_passed(&self) -> bool {
        self.failed() == 0 && self.explorations.iter().all(|explored| explored.passed)
    }

    pub(super) fn module(&self) -> &str {
        &self.module
    }

    fn failed(&self) -> usize {
        self.tested.iter().filter(|tested| !tested.passed).count()
    }

    /// One line per scenario, and why those failed that did.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for tested in &self.tested {
            let name = printable(&tested.name);
            if tested.passed {
                text.push_str(&format!("ok    {name}  ({})\n", costs(&tested.cost)));
                if let Some(note) = tested.note() {
                    text.push_str(&format!("        {note}\n"));
                }
                continue;
            }
            let at = printable(&at(&tested.file, tested.place));
            text.push_str(&format!("FAIL  {name}  ({at})\n"));
            for line in tested.reasons() {
                text.push_str(&format!("        {line}\n"));
            }
        }
        for explored in &self.explorations {
            let mark = if explored.passed { "ok  " } else { "FAIL" };
            let (file, scenarios) = (printable(&explored.file), explored.scenarios);
            text.push_str(&format!(
                "{mark}  up to {scenarios} scenarios drawn from {file}\n"
            ));
            for line in explored.reasons() {
                text.push_str(&format!("        {line}\n"));
            }
        }
        text.push_str(&format!(
            "{}: {} passed, {} failed, in {:.2} s",
            counted(self.tested.len() as u64, "scenario"),
            self.tested.len() - self.failed(),
            self.failed(),
            self.seconds
        ));
        text
    }

    /// An error if something failed.
    pub(super) fn verdict(&self) -> anyhow::Result<()> {
        if self.is_passed() {
            return Ok(());
        }
        let message = match self.failed() as u64 {
            0 => "the module does not have what every module must have".to_owned(),
            failed => format!("{} failed", counted(failed, "scenario")),
        };
        Err(Failure::new(Exit::Failed, message).into())
    }
}

/// What an event costs, in words.
fn costs(cost: &Cost) -> String {
    let Cost {
        events,
        time_us,
        fuel,
        host_calls,
        state_bytes,
        memory_bytes,
    } = cost;
    let calls = host_calls.map_or_else(String::new, |calls| format!("{calls:.1} host calls, "));
    format!(
        "{}; each {time_us:.0} µs, {} instructions, {calls}{state_bytes:.0} bytes of state; {} of \
         memory",
        counted(*events, "event"),
        grouped(fuel.round() as u64),
        bytes(*memory_bytes),
    )
}
