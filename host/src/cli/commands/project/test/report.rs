//! How scenarios ended, for people and programs.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::baseline::Baseline;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::{compact, counted, printable};
use crate::scenario::{Cost, Difference, Finding, Growth, Outcome, Scenario};

/// How a run ended.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Name of the module.
    module: String,
    /// How long all scenarios took, in seconds.
    pub(super) seconds: f64,
    /// Each scenario.
    #[serde(rename = "scenarios")]
    pub(super) tested: Vec<Tested>,
}

/// How a scenario ended.
#[derive(Debug, Serialize)]
pub(super) struct Tested {
    pub(super) file: String,
    pub(super) name: String,
    pub(super) passed: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) differences: Vec<Difference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) finding: Option<Finding>,
    pub(super) cost: Cost,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) grown: Vec<Growth>,
    pub(super) seconds: f64,
    #[serde(skip)]
    has_steps: bool,
}

impl Tested {
    pub(super) fn of(
        path: &Path,
        scenario: &Scenario,
        outcome: Outcome,
        baseline: Option<&Baseline>,
    ) -> Self {
        let before = baseline.and_then(|baseline| baseline.cost(&scenario.name));
        let grown = before.map_or_else(Vec::new, |before| outcome.cost.grown(before));
        Self {
            file: path.display().to_string(),
            name: scenario.name.clone(),
            passed: outcome.is_passed() && grown.is_empty(),
            differences: outcome.differences,
            finding: outcome.finding,
            cost: outcome.cost,
            grown,
            seconds: outcome.took.as_secs_f64(),
            has_steps: !scenario.steps.is_empty(),
        }
    }

    /// Why it failed, line by line.
    pub(super) fn reasons(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for difference in &self.differences {
            self.difference(difference, "expected", "found", &mut lines);
        }
        if let Some(finding) = &self.finding {
            lines.push(format!("{}: {}", finding.property.name(), finding.advice));
            for difference in &finding.differences {
                self.difference(difference, "usually", "here", &mut lines);
            }
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
        lines
    }

    fn difference(&self, difference: &Difference, one: &str, other: &str, lines: &mut Vec<String>) {
        let Difference {
            step,
            what,
            path,
            expected,
            found,
        } = difference;
        let step = if self.has_steps {
            format!("step {step}: ")
        } else {
            String::new()
        };
        let place = if path.is_empty() {
            String::new()
        } else {
            format!(" at {path}")
        };
        let value = |value: &Option<Value>| match value {
            Some(value) => compact(value),
            None => "nothing".to_owned(),
        };
        let width = one.len().max(other.len());
        lines.push(printable(&format!("{step}{what}{place}")));
        lines.push(printable(&format!("  {one:width$}  {}", value(expected))));
        lines.push(printable(&format!("  {other:width$}  {}", value(found))));
    }
}

impl Report {
    pub(super) fn of(module: String) -> Self {
        Self {
            module,
            seconds: 0.0,
            tested: Vec::new(),
        }
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
                let Cost {
                    events,
                    time_us,
                    host_calls,
                    state_bytes,
                    ..
                } = tested.cost;
                let calls =
                    host_calls.map_or_else(String::new, |calls| format!("{calls:.1} host calls, "));
                text.push_str(&format!(
                    "ok    {name}  ({}; each {time_us:.0} µs, {calls}\
                     {state_bytes:.0} bytes of state)\n",
                    counted(events, "event")
                ));
                continue;
            }
            text.push_str(&format!("FAIL  {name}  ({})\n", tested.file));
            for line in tested.reasons() {
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

    /// An error if a scenario failed.
    pub(super) fn verdict(&self) -> anyhow::Result<()> {
        match self.failed() {
            0 => Ok(()),
            failed => {
                let failed = counted(failed as u64, "scenario");
                Err(Failure::new(Exit::Failed, format!("{failed} failed")).into())
            }
        }
    }
}
