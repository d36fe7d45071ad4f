//! Baselines: what events cost before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::report::Report;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::pretty;
use crate::cli::support::whole_file::WholeFile;
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

    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        // As a whole: a cut baseline would fail every run after this one.
        WholeFile::write(path, (pretty(self) + "\n").as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// How many scenarios that passed it does not have.
    pub(super) fn lacks(&self, report: &Report) -> usize {
        let tested = report.tested.iter().filter(|tested| tested.passed);
        tested
            .filter(|tested| self.cost(&tested.file, &tested.name).is_none())
            .count()
    }

    /// The cost of a scenario of a file; none if it is new.
    pub(super) fn cost(&self, file: &str, scenario: &str) -> Option<&Cost> {
        self.files.get(&name_of(file))?.get(scenario)
    }
}

/// Refuses files of one name: a baseline could not tell them apart.
pub(super) fn check_names(files: &[PathBuf]) -> Result<(), Failure> {
    let mut known = BTreeMap::new();
    for file in files {
        let file = file.display().to_string();
        match known.insert(name_of(&file), file.clone()) {
            Some(other) if other != file => {
                let message = format!(
                    "{other} and {file} have one name, and a baseline tells files apart by name; \
                     rename one"
                );
                return Err(Failure::new(Exit::Usage, message));
            }
            _ => {}
        }
    }
    Ok(())
}

fn name_of(file: &str) -> String {
    let name = Path::new(file).file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
