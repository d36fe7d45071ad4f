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

/// The cost of an event of each scenario, by the names of file and scenario. Not by the path of the
/// file, which is another one on each machine.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Baseline {
    files: BTreeMap<String, BTreeMap<String, Cost>>,
}

impl Baseline {
    /// That of a run. A scenario that failed has no cost: it may have stopped early.
    pub(super) fn of(report: &Report) -> Self {
        let mut files: BTreeMap<String, BTreeMap<String, Cost>> = BTreeMap::new();
        for tested in report.tested.iter().filter(|tested| tested.passed) {
            files
                .entry(name_of(&tested.file))
                .or_default()
                .insert(tested.name.clone(), tested.cost);
        }
        Self { files }
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

    /// The cost of a scenario of a file; none if it is new.
    pub(super) fn cost(&self, file: &str, scenario: &str) -> Option<&Cost> {
        self.files.get(&name_of(file))?.get(scenario)
    }
}

fn name_of(file: &str) -> String {
    let name = Path::new(file).file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
