//! Tools that build modules: where they are, and what to install if they are missing.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::Context as _;
use tokio::process::Command;

use crate::cli::support::exit::{Exit, Failure};

/// A program that a build needs.
pub(super) struct Tool {
    /// Its name as a command.
    pub program: &'static str,
    /// The folder of a project in which its package manager installs it; none if it does not.
    pub folder: Option<&'static str>,
    /// The variable that names the project's environment, if there is one.
    pub environment: Option<&'static str>,
    /// How to install it, in the folder of a project.
    pub install: &'static str,
}

impl Tool {
    /// The program: the project's own, that of the active environment, or the first on PATH.
    pub(super) fn find(&self, project: &Path) -> Result<PathBuf, Failure> {
        let environment = self
            .environment
            .and_then(std::env::var_os)
            .map(|folder| PathBuf::from(folder).join("bin"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = self.folder.map(|folder| project.join(folder));
        own.iter()
            .cloned()
            .chain(environment)
            .chain(std::env::split_paths(&path))
            .map(|folder| folder.join(self.program))
            .find(|program| program.is_file())
            // From the root, as it is started in another folder; links stay, because scripts find
            // their packages by their own place.
            .map(|program| std::path::absolute(&program).unwrap_or(program))
            .ok_or_else(|| {
                let own = own
                    .as_ref()
                    .map(|folder| format!("in {} or ", folder.display()))
                    .unwrap_or_default();
                let message = format!(
                    "cannot find {} {own}on PATH; install it: {}",
                    self.program, self.install
                );
                Failure::new(Exit::Failed, message)
            })
    }
}

/// Runs a program to its end, without input, and returns what it printed. Cancelling ends it.
/// `variables` are set in its environment.
pub(super) async fn run(
    program: &Path,
    arguments: Vec<OsString>,
    folder: &Path,
    variables: &[(&str, &OsStr)],
) -> anyhow::Result<Output> {
    Command::new(program)
        .args(arguments)
        .envs(variables.iter().copied())
        .current_dir(folder)
        // Its own stack traces say nothing about the project.
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {}", program.display()))
}

/// Why a project cannot be built: what its tool said.
pub(super) fn refused(project: &str, told: &str) -> Failure {
    let message = format!("{project} cannot be built:\n{}", told.trim_end());
    Failure::new(Exit::Failed, message)
}
