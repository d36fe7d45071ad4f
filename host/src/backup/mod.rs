//! Backups: a copy of a data folder, made while its host runs.
//!
//! The host freezes the catalogue, then every state, then every log, each as of its last commit,
//! and sends them row by row (`make.rs`, `wire.rs`). So no state is ahead of its log, as after a
//! crash, and a host that starts on the copy continues as it does after one. The command makes a
//! data folder of the rows (`unpack.rs`) under another name (`target.rs`), reads it again,
//! compares, and only then gives it its name.

pub(crate) mod make;
mod target;
mod unpack;
mod wire;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::state;

pub(crate) use target::Target;
pub(crate) use unpack::{Progress, check, unpack};

/// The media type of a backup in transit.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.foldstream.backup";
/// The file in a backup that lists its contents.
pub(crate) const MANIFEST: &str = "backup.json";
/// The format that this build writes, and the newest that it reads.
const FORMAT: u32 = 1;

/// The contents of a backup, as in `backup.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Format of the backup.
    pub format: u32,
    /// Version of the host that was backed up.
    pub version: String,
    /// When its files were frozen, in RFC 3339.
    pub created_at: String,
    pub files: Vec<FileEntry>,
    /// Files that could not be copied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

/// A file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    /// Its path within the data folder.
    pub file: String,
    /// The position of a state, or the last sequence of a log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// Rows of its tables; absent for a module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Bytes of its content: keys and values, or a module.
    pub bytes: u64,
    /// SHA-256 of its content, in lower-case hexadecimal: of rows as they are stored, or of the
    /// module.
    pub sha256: String,
}

/// A file that could not be copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeftOut {
    /// Its path within the data folder.
    pub file: String,
    /// Why, and what that means.
    pub reason: String,
}

/// Why a backup was not made, or has changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or made.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The disk failed, or is full.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The target can't be used.
    #[error("{0}")]
    Target(String),
    /// The input is not a backup that this build can read.
    #[error("{0}")]
    Format(String),
    /// The host could not finish.
    #[error("the host could not finish the backup: {0}")]
    Host(String),
    /// The connection ended too early.
    #[error("the backup broke off before its end; try again")]
    BrokeOff,
    /// The copy differs from what its manifest says.
    #[error(
        "{file} has changed since the backup was made: {found}; do not rely on this copy, take \
         another"
    )]
    Differs {
        /// Its path within the folder.
        file: String,
        /// How.
        found: String,
    },
    /// The caller cancelled it.
    #[error("the request was cancelled")]
    Unwanted,
}

impl Error {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::Io { path, error }
    }
}
