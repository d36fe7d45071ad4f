//! The data folder: the place of each file, and how files are created and removed.
//!
//! Only files with names that a host gives are ever removed: a folder that was configured by
//! mistake may contain anything.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::state::catalogue::Record;

use crate::atomic_file::{self, unfinished};
use crate::{advice, names, small_file};

const CATALOGUE: &str = "catalog.redb";
/// Prefix of the name of a module while it is written.
const MODULE_UNFINISHED: &str = ".foldstream-module-";
/// Longest module that is read, in bytes: more than any upload, and less than a device has.
const MODULE_BYTES_MAX: u64 = 1 << 30;
/// The token that a host made for itself.
const TOKEN: &str = "token";
/// How its name begins while it is written.
pub(crate) const TOKEN_UNFINISHED: &str = ".foldstream-token-";
/// The folders in a data folder.
const PARTS: [&str; 7] = [
    "modules",
    "state",
    "log",
    "cache",
    "scratch",
    "snapshots",
    "failures",
];

/// Why the data folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is in use, can't be written, or holds what is not ours.
    #[error("data folder {folder}: {message}")]
    Unusable {
        folder: String,
        /// What is wrong, and what to do next.
        message: String,
    },
    /// Its disk, a quota or a limit of the process is exhausted.
    #[error("the data folder {folder} has no more room: {error}; free some space and try again")]
    NoRoom {
        folder: String,
        /// What the system said.
        error: String,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// Creates the folder if it is missing, and refuses one that contains other files than a
    /// host's. It changes nothing in an existing folder, because another host may be using it: only
    /// the holder of the catalogue may continue.
    pub(crate) fn claim(root: &Path) -> Result<Self, Error> {
        let folder = Self {
            root: root.to_owned(),
        };
        create_private(root).map_err(|error| folder.refused(&error))?;
        // With a catalogue it is ours; whether another host uses it shows when the catalogue is
        // opened.
        if folder.catalogue().exists() {
            return Ok(folder);
        }
        match folder.stranger().map_err(|error| folder.refused(&error))? {
            None => Ok(folder),
            Some(name) => {
                let message = format!(
                    "it contains {name} but no {CATALOGUE}, so it may not be a data folder of \
                     foldstream; choose an empty or new folder with --data (data_dir), or restore \
                     {CATALOGUE} from a backup if it was lost"
                );
                Err(Error::Unusable {
                    folder: root.display().to_string(),
                    message,
                })
            }
        }
    }

    /// A file in a folder without a catalogue that was not left by a host killed at its first
    /// start.
    fn stranger(&self) -> io::Result<Option<String>> {
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let (path, name) = (
                entry.path(),
                entry.file_name().to_string_lossy().into_owned(),
            );
            let is_empty_part = || PARTS.contains(&name.as_str()) && is_empty_folder(&path);
            // File systems have a folder for the results of their repair.
            let is_token = name == TOKEN || name.starts_with(TOKEN_UNFINISHED);
            let is_harmless = name == "lost+found"
                || is_token
                // A host that was killed while it made its first catalogue.
                || path == unfinished(&self.catalogue())
                || is_empty_part();
            if !is_harmless {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Creates missing parts. Only for the holder of the catalogue.
    pub(crate) fn complete(&self) -> Result<(), Error> {
        let make = |part: &str| create_private(&self.root.join(part));
        PARTS
            .into_iter()
            .try_for_each(make)
            .map_err(|error| self.refused(&error))
    }

    /// Removes files that ended with the process that made them: files of side folds, and unfinished
    /// files. Only for the holder of the catalogue, before anything else is opened. What can't be
    /// removed is left for the next time.
    pub(crate) fn sweep(&self) {
        // Whatever is in there: side folds end with their process.
        let mut left = entries(&self.scratch());
        left.retain(|path| is_ours(path, is_state_file));
        for (part, is_name) in [
            ("state", is_state_file as fn(&str) -> bool),
            ("snapshots", is_snapshot),
        ] {
            let unfinished = self
                .of_deployments(part)
                .into_iter()
                .flat_map(|folder| unfinished_in(&folder));
            left.extend(unfinished.filter(|path| is_ours(path, is_name)));
        }
        // Logs have names that people choose, so the suffix alone decides.
        left.extend(unfinished_in(&self.root.join("log")));
        for path in left {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(
                    path = %path.display(),
                    %error,
                    "cannot remove a file of an earlier process"
                );
            }
        }
    }

    /// The folders in a part that are named like a deployment. Links lead elsewhere and are
    /// ignored.
    fn of_deployments(&self, part: &str) -> Vec<PathBuf> {
        let mut folders = entries(&self.root.join(part));
        folders.retain(|path| is_ours(path, |name| names::check(name).is_ok()));
        folders.retain(|path| {
            path.symlink_metadata()
                .is_ok_and(|metadata| metadata.is_dir())
        });
        folders
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn refused(&self, error: &std::io::Error) -> Error {
        // The folder is fine: the disk, a quota or a limit of the process has no room.
        if advice::is_out_of_room(error) {
            return Error::NoRoom {
                folder: self.root.display().to_string(),
                error: error.to_string(),
            };
        }
        let advice = advice::of_file(error).unwrap_or("make it writable");
        let message = format!("{error}; {advice}, or choose another with --data (data_dir)");
        Error::Unusable {
            folder: self.root.display().to_string(),
            message,
        }
    }

    pub(crate) fn catalogue(&self) -> PathBuf {
        self.root.join(CATALOGUE)
    }

    /// The token that the host made for itself.
    pub(crate) fn token(&self) -> PathBuf {
        Self::token_in(&self.root)
    }

    /// The same for a folder of which nothing else is known.
    pub(crate) fn token_in(root: &Path) -> PathBuf {
        root.join(TOKEN)
    }

    /// Compiled modules.
    pub(crate) fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// Files of side folds. The folder keeps its name on disk: earlier versions empty it as well.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    /// Snapshots of a deployment's states.
    pub(crate) fn snapshots(&self, deployment: &str) -> PathBuf {
        self.root.join("snapshots").join(deployment)
    }

    /// Bundles of the first failures of a deployment.
    pub(crate) fn failures(&self, deployment: &str) -> PathBuf {
        self.root.join("failures").join(deployment)
    }

    /// The embedded log of a source.
    pub(crate) fn log(&self, source: &str) -> PathBuf {
        self.root.join("log").join(format!("{source}.redb"))
    }

    /// A module, by digest.
    pub(crate) fn module(&self, digest: &str) -> PathBuf {
        self.root.join("modules").join(format!("{digest}.wasm"))
    }

    /// Reads a module. Blocking.
    pub(crate) fn read_module(&self, digest: &str) -> io::Result<Vec<u8>> {
        small_file::read_regular(&self.module(digest), MODULE_BYTES_MAX)
    }

    /// The state of a generation.
    pub(crate) fn state(&self, deployment: &str, generation: u64) -> PathBuf {
        self.root
            .join("state")
            .join(deployment)
            .join(format!("{generation}.redb"))
    }

    /// Writes a module so that it is complete or absent after a crash.
    pub(crate) fn store_module(&self, digest: &str, component: &[u8]) -> Result<(), Error> {
        let write = || {
            let folder = self.root.join("modules");
            let mut file = tempfile::Builder::new()
                .prefix(MODULE_UNFINISHED)
                .tempfile_in(&folder)?;
            file.write_all(component)?;
            file.as_file().sync_all()?;
            file.persist(self.module(digest))
                .map_err(|error| error.error)?;
            // The name, too: the catalogue is about to name the module.
            sync(&folder)
        };
        write().map_err(|error| self.refused(&error))
    }

    /// Creates the folder for the states of a deployment.
    pub(crate) fn prepare_state(&self, deployment: &str) -> Result<(), Error> {
        let states = self.root.join("state");
        create_private(&states.join(deployment))
            .and_then(|()| sync(&states))
            .map_err(|error| self.refused(&error))
    }

    /// Removes snapshots of states that no record uses: their names begin with the number of the
    /// state file.
    fn keep_only_snapshots(&self, records: &[Record]) {
        for folder in self.of_deployments("snapshots") {
            let name = name_of(&folder);
            let record = records.iter().find(|record| record.name == name);
            for path in entries(&folder) {
                let state_file = name_of(&path)
                    .split('-')
                    .next()
                    .and_then(|number| number.parse().ok());
                let is_used = record
                    .zip(state_file)
                    .is_some_and(|(record, state_file)| record.uses_file(state_file));
                if !is_used
                    && is_ours(&path, is_snapshot)
                    && let Err(error) = fs::remove_file(&path)
                {
                    tracing::warn!(
                        path = %path.display(),
                        %error,
                        "cannot remove an unused snapshot"
                    );
                }
            }
            if record.is_none() {
                // A folder that is not empty is left for the next time.
                let _ = fs::remove_dir(&folder);
            }
        }
    }

    /// Removes failure bundles of deployments that no record has.
    fn keep_only_failures(&self, records: &[Record]) {
        for folder in self.of_deployments("failures") {
            let name = name_of(&folder);
            if records.iter().any(|record| record.name == name) {
                continue;
            }
            for path in entries(&folder) {
                if is_ours(&path, is_bundle)
                    && let Err(error) = fs::remove_file(&path)
                {
                    tracing::warn!(
                        path = %path.display(),
                        %error,
                        "cannot remove an unused failure bundle"
                    );
                }
            }
            // A folder that is not empty is left for the next time.
            let _ = fs::remove_dir(&folder);
        }
    }

    /// Removes modules and states that no record uses. What can't be removed is left for the next
    /// time.
    pub(crate) fn keep_only(&self, records: &[Record]) {
        self.keep_only_snapshots(records);
        self.keep_only_failures(records);
        // Built first, from all records: deployments may share a module.
        let mut used: BTreeSet<PathBuf> = BTreeSet::new();
        for record in records {
            for generation in &record.generations {
                used.insert(self.module(&generation.module.digest));
                if generation.has_file() {
                    let state = self.state(&record.name, generation.state_file);
                    // It may just be in creation.
                    used.extend([unfinished(&state), state]);
                }
            }
        }
        let names: BTreeSet<PathBuf> = records
            .iter()
            .map(|record| self.root.join("state").join(&record.name))
            .collect();
        let mut folders = vec![self.root.join("modules")];
        folders.extend(self.of_deployments("state"));
        for folder in folders {
            let is_name: fn(&str) -> bool = if folder == self.root.join("modules") {
                is_module
            } else {
                is_state_file
            };
            let unused = |path: &PathBuf| !used.contains(path) && is_ours(path, is_name);
            let unused: Vec<_> = entries(&folder).into_iter().filter(unused).collect();
            for path in &unused {
                if let Err(error) = fs::remove_file(path) {
                    tracing::warn!(path = %path.display(), %error, "cannot remove an unused file");
                }
            }
            // So that what was removed does not come back after a crash.
            if !unused.is_empty()
                && let Err(error) = sync(&folder)
            {
                tracing::warn!(path = %folder.display(), %error, "cannot sync a folder");
            }
            if folder.parent() == Some(&self.root.join("state")) && !names.contains(&folder) {
                // A folder that is not empty is left for the next time.
                let _ = fs::remove_dir(&folder);
            }
        }
    }
}

/// Creates a folder that only this user may enter, unless it exists.
pub(crate) fn create_private(folder: &Path) -> io::Result<()> {
    if let Some(parent) = folder
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        // Its parents may be shared.
        fs::create_dir_all(parent)?;
    }
    // Another process may have created it meanwhile; a file of that name is an error.
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        made => made,
    }
}

fn is_empty_folder(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether a file's name follows a host's naming: only such files may be removed, and only in
/// folders that a host created.
fn is_ours(path: &Path, is_name: impl Fn(&str) -> bool) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(is_name)
}

/// `<64 hexadecimal digits>.wasm`, and the remains of an interrupted write of one.
fn is_module(name: &str) -> bool {
    let digest = name.strip_suffix(".wasm").unwrap_or_default();
    let is_digest = digest.len() == 64
        && digest
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_digest || name.starts_with(MODULE_UNFINISHED)
}

/// `<number>.redb`, finished or not.
fn is_state_file(name: &str) -> bool {
    numbered(name).is_some_and(is_number)
}

/// `<sequence>-<begin of a digest>.json`.
fn is_bundle(name: &str) -> bool {
    let parts = name
        .strip_suffix(".json")
        .and_then(|name| name.split_once('-'));
    parts.is_some_and(|(sequence, module)| {
        is_number(sequence) && module.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// `<state file>-<position>-<time>.redb`, finished or not.
fn is_snapshot(name: &str) -> bool {
    numbered(name)
        .is_some_and(|stem| stem.split('-').count() == 3 && stem.split('-').all(is_number))
}

fn numbered(name: &str) -> Option<&str> {
    name.strip_suffix(".redb")
        .or_else(|| name.strip_suffix(".redb.new"))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}

fn unfinished_in(folder: &Path) -> Vec<PathBuf> {
    entries(folder)
        .into_iter()
        .filter(|path| atomic_file::is_unfinished(path))
        .collect()
}

fn sync(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}
