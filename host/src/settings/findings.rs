//! What is wrong with settings. Every finding names its key and says what to do.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::small_file::open_regular;

/// Permission to read for users who are neither the owner nor in the group.
const OTHERS_READ: u32 = 0o004;
/// The same, to write.
const OTHERS_WRITE: u32 = 0o002;

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It works, but probably not as intended.
    Warning,
    /// The host refuses to start with it.
    Error,
}

/// A finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its severity.
    pub severity: Severity,
    /// The key, with its section.
    pub key: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.key, self.message)
    }
}

#[derive(Default)]
pub(crate) struct Findings(Vec<Problem>);

/// A key, and whether it is set.
#[derive(Clone, Copy)]
pub(crate) struct Setting<'a> {
    pub(crate) key: &'a str,
    pub(crate) is_set: bool,
}

impl<'a> Setting<'a> {
    pub(crate) fn of<T>(key: &'a str, value: &Option<T>) -> Self {
        let is_set = value.is_some();
        Self { key, is_set }
    }
}

impl Findings {
    /// Adds what keeps a host from starting.
    pub(crate) fn error(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem {
            severity: Severity::Error,
            key: key.into(),
            message: message.into(),
        });
    }

    /// Adds what is probably not intended.
    pub(crate) fn warning(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem {
            severity: Severity::Warning,
            key: key.into(),
            message: message.into(),
        });
    }

    /// All of them, in the order in which they were found.
    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.0
    }

    /// Whether a key has a finding.
    #[cfg(test)]
    pub(crate) fn concerns(&self, key: &str) -> bool {
        self.0.iter().any(|found| found.key == key)
    }

    /// Checks that a file can be read, and by whom.
    pub(crate) fn file(&mut self, key: &str, path: Option<&Path>) {
        let Some(path) = path else { return };
        // Opened and not only looked at: permissions of the folders above count as well.
        match open_regular(path).and_then(|file| file.metadata()) {
            Ok(metadata) => self.private(key, path, &metadata),
            Err(_) if path.exists() && !path.is_file() => self.error(
                key,
                format!(
                    "{} is not a regular file; give the file itself",
                    path.display()
                ),
            ),
            Err(error) => {
                self.error(
                    key,
                    format!(
                        "cannot read {}: {error}; give a file that this user may read",
                        path.display()
                    ),
                );
            }
        }
    }

    /// Warns if other users of this machine may read a secret, or change a file.
    fn private(&mut self, key: &str, path: &Path, metadata: &Metadata) {
        let name = key.rsplit('.').next().unwrap_or(key);
        let mode = metadata.permissions().mode() & 0o777;
        // Certificates are public; only that nobody may change them matters.
        let is_public = matches!(name, "tls_cert" | "tls_ca");
        let what = match () {
            () if !is_public && mode & OTHERS_READ != 0 => "can be read",
            () if mode & OTHERS_WRITE != 0 => "can be changed",
            () => return,
        };
        let advice = if is_public { "go-w" } else { "go-w,o=" };
        let path = path.display();
        self.warning(
            key,
            format!(
                "{path} {what} by every user of this machine (mode {mode:03o}); chmod {advice} \
                     {path}"
            ),
        );
    }

    /// Refuses zero.
    pub(crate) fn positive<T: Default + PartialEq>(&mut self, key: &str, value: T) {
        if value == T::default() {
            self.error(key, "must be more than zero");
        }
    }

    /// Refuses two keys that set the same thing.
    pub(crate) fn either(&mut self, one: Setting<'_>, other: Setting<'_>) {
        if one.is_set && other.is_set {
            self.error(
                one.key,
                format!("contradicts {}; set one of them", other.key),
            );
        }
    }

    /// Requires both or neither of two keys that need each other.
    pub(crate) fn together(&mut self, one: Setting<'_>, other: Setting<'_>) {
        match (one.is_set, other.is_set) {
            (true, false) => self.error(one.key, format!("needs {} as well", other.key)),
            (false, true) => self.error(other.key, format!("needs {} as well", one.key)),
            _ => {}
        }
    }

    /// Refuses a lower limit above an upper one.
    pub(crate) fn ordered<T: PartialOrd + Copy>(&mut self, lower: (&str, T), upper: (&str, T)) {
        if lower.1 > upper.1 {
            self.error(
                lower.0,
                format!("is more than {}; lower it, or raise the other", upper.0),
            );
        }
    }
}
