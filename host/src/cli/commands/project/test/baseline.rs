//! Baselines: what events cost before.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::report::Report;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::pretty;
use crate::scenario::Cost;
use crate::small_file;

/// The cost of an event of each scenario, by name.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Baseline {
    scenarios: BTreeMap<String, Cost>,
}

impl Baseline {
    /// That of a run.
    pub(super) fn of(report: &Report) -> Self {
        let costs = report.tested.iter();
        Self {
            scenarios: costs
                .map(|tested| (tested.name.clone(), tested.cost))
                .collect(),
        }
    }

    /// Reads one.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = small_file::read_text(path).map_err(|error| {
            let message =
                format!("cannot read {shown}: {error}; write it with `--save-baseline {shown}`");
            Failure::new(Exit::NotFound, message)
        })?;
        let baseline = serde_json::from_str(&text).map_err(|error| {
            Failure::new(Exit::Usage, format!("{shown} is no baseline: {error}"))
        })?;
        Ok(baseline)
    }

    /// Writes it.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, pretty(self) + "\n")
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The cost of a scenario; none if it is new.
    pub(super) fn cost(&self, scenario: &str) -> Option<&Cost> {
        self.scenarios.get(scenario)
    }
}
