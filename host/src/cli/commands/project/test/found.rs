//! Writes what an exploration found.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::cli::support::exit::{Exit, Failure};
use crate::scenario::{Explored, Fault};

/// Most files that were found next to one file of scenarios.
const FILES_MAX: u32 = 1_000;

/// A fault, and the file that shows it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) fault: Fault,
    pub(super) file: PathBuf,
}

/// Writes the scenario next to the file whose examples it comes from. No file is written over: its
/// user may have changed it.
pub(super) fn write(scenarios: &Path, explored: Explored) -> anyhow::Result<Found> {
    let Explored { fault, file } = explored;
    let text = format!(
        "# {}: what is wrong shows when `foldstream test` plays this.\n{}",
        fault.name(),
        file.to_yaml()
    );
    for number in 1..=FILES_MAX {
        let path = scenarios.with_extension(format!("found-{number}.yaml"));
        let created = OpenOptions::new().write(true).create_new(true).open(&path);
        let mut file = match created {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot write {}", path.display()));
            }
        };
        file.write_all(text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        return Ok(Found { fault, file: path });
    }
    let message = format!(
        "there are {FILES_MAX} files found next to {}; remove those that are done",
        scenarios.display()
    );
    Err(Failure::new(Exit::Refused, message).into())
}
