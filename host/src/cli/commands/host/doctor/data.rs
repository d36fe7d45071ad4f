//! Checks of the data folder of a stopped host.

use std::path::Path;

use super::Check;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::bytes;
use crate::integrity::{self, Checked, Condition};

/// One check per file; refused while a host uses the folder.
pub(super) async fn checks(folder: &Path) -> anyhow::Result<Vec<Check>> {
    let owned = folder.to_owned();
    // On a separate thread, so that Ctrl-C ends it at once: reading large files takes long.
    let checked = tokio::task::spawn_blocking(move || integrity::check_folder(&owned)).await?;
    let checked = checked.map_err(|error| {
        let exit = match error {
            integrity::Error::NoFolder { .. } => Exit::NotFound,
            integrity::Error::InUse { .. } | integrity::Error::NotWritable { .. } => Exit::Failed,
        };
        Failure::new(exit, error.to_string())
    })?;
    Ok(checked.into_iter().map(check).collect())
}

fn check(checked: Checked) -> Check {
    match checked.condition {
        Condition::Sound => Check::ok(checked.file, format!("intact, {}", bytes(checked.bytes))),
        Condition::Repaired(finding) => Check::warn(checked.file, finding),
        Condition::Damaged(finding) | Condition::Unknown(finding) => {
            Check::fail(checked.file, finding)
        }
    }
}
