//! Integrity: checks the files of a data folder that no host uses, and says what to do about
//! damaged ones.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::usage::allocated;
use crate::{advice as system_advice, damage, log, state, storage};

/// Why a data folder can't be checked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It does not exist.
    #[error(
        "{} has no catalog.redb, so it is not a data folder; give the folder in `data_dir`",
        folder.display()
    )]
    NoFolder { folder: PathBuf },
    /// Its files cannot be written.
    #[error(
        "{} cannot be written: {error}; nothing was done, because files that were not closed cleanly \
         are repaired first; try again with a copy in a folder that can be written",
        folder.display()
    )]
    NotWritable {
        folder: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// A host uses it.
    #[error("{} is in use; stop the host, and try again: {error}", folder.display())]
    InUse {
        folder: PathBuf,
        /// The error that showed it.
        #[source]
        error: storage::Error,
    },
}

/// The purpose of a file, which decides what its loss means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Catalogue,
    State,
    Log,
}

/// The condition of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Every page and every checksum is as written.
    Sound,
    /// It was damaged and went back to an intact older commit; what to do about it.
    Repaired(String),
    /// It can't be used; why, and what to do.
    Damaged(String),
    /// It can't be read or written, so nobody knows; why, and what to do.
    Unknown(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Its path within the data folder.
    pub file: String,
    /// Its size, in bytes.
    pub bytes: u64,
    pub condition: Condition,
}

/// Checks the catalogue, all states and all embedded logs in a data folder. Blocking; takes as long
/// as reading all of it.
///
/// A file that was not closed cleanly is repaired, as a host does when it opens the file.
pub(crate) fn check_folder(folder: &Path) -> Result<Vec<Checked>, Error> {
    let catalogue = folder.join("catalog.redb");
    if !catalogue.is_file() {
        return Err(Error::NoFolder {
            folder: folder.to_owned(),
        });
    }
    refuse_unless_writable(folder, &catalogue)?;
    // A running host always has its catalogue open, so this covers all files.
    let found = guarded(|| state::check(&catalogue));
    // Other errors are what this check is for: they are judged below.
    if let Ok(Err(state::Error::InUse(error))) = found {
        return Err(Error::InUse {
            folder: folder.to_owned(),
            error,
        });
    }
    let mut checked = vec![judge(folder, &catalogue, Kind::Catalogue, flat(found))];
    // Each file by itself: one that is damaged says nothing about the others.
    for states in entries(&folder.join("state")) {
        for file in files(&states) {
            checked.push(judge(
                folder,
                &file,
                Kind::State,
                flat(guarded(|| state::check(&file))),
            ));
        }
    }
    for file in files(&folder.join("log")) {
        checked.push(judge(
            folder,
            &file,
            Kind::Log,
            flat(guarded(|| log::check(&file))),
        ));
    }
    Ok(checked)
}

/// A file that was compacted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Compacted {
    /// Its path within the data folder.
    pub file: String,
    /// Its allocated disk space before, in bytes.
    pub before_bytes: u64,
    /// Its allocated disk space now, in bytes.
    pub after_bytes: u64,
    /// Why it could not be compacted; it is then unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Returns unused space in the catalogue, all states and all embedded logs of a data folder to the
/// disk, and reports each file. Blocking; takes as long as reading and writing all of it.
pub(crate) fn compact_folder(
    folder: &Path,
    mut show: impl FnMut(&Compacted),
) -> Result<Vec<Compacted>, Error> {
    let catalogue = folder.join("catalog.redb");
    if !catalogue.is_file() {
        return Err(Error::NoFolder {
            folder: folder.to_owned(),
        });
    }
    refuse_unless_writable(folder, &catalogue)?;
    let states = entries(&folder.join("state"))
        .into_iter()
        .flat_map(|states| files(&states));
    let all: Vec<PathBuf> = std::iter::once(catalogue.clone())
        .chain(states)
        .chain(files(&folder.join("log")))
        .collect();
    let mut compacted = Vec::new();
    for path in all {
        // Disk space as allocated, because compacting makes holes that the length does not show.
        let before_bytes = allocated(&path, 0);
        let found = guarded(|| state::compact(&path));
        if let Ok(Err(state::Error::InUse(error))) = found {
            return Err(Error::InUse {
                folder: folder.to_owned(),
                error,
            });
        }
        let done = Compacted {
            file: path
                .strip_prefix(folder)
                .unwrap_or(&path)
                .display()
                .to_string(),
            // Measured again also after an error: a part of the work may be done.
            before_bytes,
            after_bytes: allocated(&path, 0),
            error: found
                .and_then(|found| found.map_err(|error| error.to_string()))
                .err(),
        };
        show(&done);
        compacted.push(done);
    }
    Ok(compacted)
}

/// Damage may violate what the storage assumes; it then panics instead of returning an error.
/// Closing a damaged file may panic too.
fn guarded<T>(check: impl FnOnce() -> T) -> Result<T, String> {
    damage::guarded(check).map_err(|error| error.to_string())
}

fn flat<E: std::fmt::Display>(found: Result<Result<bool, E>, String>) -> Result<bool, String> {
    found.and_then(|found| found.map_err(|error| error.to_string()))
}

fn judge(folder: &Path, file: &Path, kind: Kind, found: Result<bool, String>) -> Checked {
    let condition = match (found, access(file)) {
        // Whatever the check said: a file that cannot be opened is not damaged by that.
        (Err(_), Err(error)) => {
            let help = system_advice::of_file(&error);
            Condition::Unknown(format!(
                "not checked: {error}; {}",
                help.unwrap_or("let the user of this process read and write it")
            ))
        }
        (Ok(true), _) => Condition::Sound,
        (Ok(false), _) => Condition::Repaired(format!(
            "went back to an older commit: {}",
            advice_repaired(kind)
        )),
        (Err(error), Ok(())) => Condition::Damaged(format!("{error}; {}", advice(kind))),
    };
    let name = file
        .strip_prefix(folder)
        .unwrap_or(file)
        .display()
        .to_string();
    Checked {
        file: name,
        bytes: fs::metadata(file).map_or(0, |metadata| metadata.len()),
        condition,
    }
}

/// Whether this process may read and write a file.
fn access(file: &Path) -> io::Result<()> {
    use rustix::fs::Access;

    Ok(rustix::fs::access(
        file,
        Access::READ_OK | Access::WRITE_OK,
    )?)
}

/// Refuses a folder on a file system that cannot be written: every file in it would look damaged.
fn refuse_unless_writable(folder: &Path, catalogue: &Path) -> Result<(), Error> {
    access(catalogue).map_err(|error| Error::NotWritable {
        folder: folder.to_owned(),
        error,
    })
}

/// What to do about a lost file.
fn advice(kind: Kind) -> &'static str {
    match kind {
        Kind::Catalogue => "check the disk, and restore it from a backup: it lists the deployments",
        Kind::State => {
            "check the disk, and remove the file: the host rebuilds the state from the stream; events \
             that it had parked are lost if the stream no longer has them"
        }
        Kind::Log => "check the disk, and restore it from a backup: its events exist nowhere else",
    }
}

/// What to do about a file that lost its last commit.
fn advice_repaired(kind: Kind) -> &'static str {
    match kind {
        Kind::Catalogue => {
            "check the disk, and check in `foldstream list` that the last change is still there"
        }
        Kind::State => "check the disk; the stream brings back the rest",
        Kind::Log => "check the disk, and append the latest events again",
    }
}

/// The redb files of a folder, by name.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = entries(folder);
    files.retain(|path| {
        path.is_file()
            && path
                .extension()
                .is_some_and(|extension| extension == "redb")
    });
    files
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let read =
        fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()).collect());
    let mut entries: Vec<PathBuf> = read.unwrap_or_default();
    entries.sort();
    entries
}
