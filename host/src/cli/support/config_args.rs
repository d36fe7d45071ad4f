//! Options for commands that read the configuration of a host.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::exit::{Exit, Failure};
use crate::cli::Context;
use crate::config::{self, Config, FILE_DEFAULT, Origins, Override, Severity};

/// What the user typed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Settings {
    /// Configuration file; default: ./foldstream.toml, if it exists.
    #[arg(long, env = "FOLDSTREAM_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A setting that overrides file and environment, such as `serve.wait_max=10s`; may be
    /// repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Settings {
    /// The file to read, if any.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        let usual = Path::new(FILE_DEFAULT);
        self.config
            .clone()
            .or_else(|| usual.is_file().then(|| usual.to_owned()))
    }

    /// Reads the configuration. `flags` are settings that have their own options, and override
    /// `--set`.
    pub(crate) fn load(&self, flags: Vec<Override>) -> anyhow::Result<Config> {
        let mut overrides = Vec::new();
        for setting in &self.set {
            let Some((key, value)) = setting.split_once('=') else {
                let message = format!(
                    "--set `{setting}` lacks a value; write --set KEY=VALUE, such as --set \
                     serve.wait_max=10s"
                );
                return Err(Failure::new(Exit::Usage, message).into());
            };
            let flag = format!("--set {}", key.trim());
            overrides.push(Override {
                flag,
                key: key.trim().to_owned(),
                value: value.to_owned(),
            });
        }
        overrides.extend(flags);
        Ok(config::load(&Origins {
            file: self.file(),
            environment: environment()?,
            overrides,
        })?)
    }

    /// Reads the configuration and refuses an invalid one.
    pub(crate) fn load_sound(
        &self,
        flags: Vec<Override>,
        context: &Context,
    ) -> anyhow::Result<Config> {
        let config = self.load(flags)?;
        check(&config, |warning| context.output.warning(warning))?;
        Ok(config)
    }
}

/// The environment, as far as it is text; our own variables have to be.
fn environment() -> anyhow::Result<Vec<(String, String)>> {
    let mut texts = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else {
            continue;
        };
        match value.into_string() {
            Ok(value) => texts.push((name, value)),
            Err(_) if name.starts_with("FOLDSTREAM_") => {
                let message =
                    format!("{name} in the environment is no UTF-8; give it a value that is");
                return Err(Failure::new(Exit::Usage, message).into());
            }
            Err(_) => {}
        }
    }
    Ok(texts)
}

/// A configuration file that commands find on their own.
pub(crate) struct Nearby {
    pub(crate) file: PathBuf,
    /// Whether FOLDSTREAM_CONFIG names it; else it is in the current folder.
    pub(crate) is_named: bool,
    pub(crate) config: anyhow::Result<Config>,
}

/// The configuration file that commands find on their own; none if there is none.
pub(crate) fn nearby() -> Option<Nearby> {
    let named = std::env::var_os("FOLDSTREAM_CONFIG")
        .filter(|name| !name.is_empty())
        .map(PathBuf::from);
    let is_named = named.is_some();
    let settings = Settings {
        config: named,
        set: Vec::new(),
    };
    Some(Nearby {
        file: settings.file()?,
        is_named,
        config: settings.load(Vec::new()),
    })
}

/// Refuses an invalid configuration, and warns about doubtful settings.
pub(crate) fn check(config: &Config, warn: impl Fn(&str)) -> anyhow::Result<()> {
    let mut errors = Vec::new();
    for problem in crate::preflight::problems(config) {
        match problem.severity {
            Severity::Warning => warn(&problem.to_string()),
            Severity::Error => errors.push(problem.to_string()),
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, errors.join("\n")).into())
}

/// A flag that sets a key.
pub(crate) fn flag(name: &str, key: &str, value: &impl ToString) -> Override {
    Override {
        flag: name.to_owned(),
        key: key.to_owned(),
        value: value.to_string(),
    }
}

/// A temporary folder that is removed with its owner.
pub(crate) fn temporary_folder() -> anyhow::Result<tempfile::TempDir> {
    temporary_folder_in(&std::env::temp_dir())
        .context("cannot create a temporary folder; is the disk full?")
}

/// The same, in a folder.
pub(crate) fn temporary_folder_in(folder: &Path) -> std::io::Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("foldstream-")
        // The data of a host is for its user only.
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(folder)
}
