//! The data folder: where each file lives, and how it comes and goes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::state::catalogue::Record;

use crate::supervisor::Error;
use crate::whole::{self, unfinished};

/// A data folder.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Makes the folder and its parts, where they are missing.
    pub fn create(root: &Path) -> Result<Self, Error> {
        let folder = Self { root: root.to_owned() };
        for part in ["modules", "state", "log", "cache", "scratch", "snapshots"] {
            fs::create_dir_all(root.join(part)).map_err(|error| folder.refused(&error))?;
        }
        Ok(folder)
    }

    /// Removes what ended with the process that made it: states that were folded aside, and files that were never
    /// finished. Only for who holds the catalogue, before anything else is opened: what can't be removed is left for the
    /// next time.
    pub fn sweep(&self) {
        let mut left = entries(&self.scratch());
        for part in ["state", "snapshots"] {
            left.extend(entries(&self.root.join(part)).iter().flat_map(|folder| unfinished_in(folder)));
        }
        left.extend(unfinished_in(&self.root.join("log")));
        for path in left {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove what an earlier process left");
            }
        }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn refused(&self, error: &std::io::Error) -> Error {
        let message = format!("{error}; make it writable, free some space, or choose another with --data-dir");
        Error::DataFolder { folder: self.root.display().to_string(), message }
    }

    /// The catalogue.
    pub fn catalogue(&self) -> PathBuf {
        self.root.join("catalog.redb")
    }

    /// Compiled modules.
    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// States that are folded aside, for as long as they are looked at.
    pub fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    /// Snapshots of a deployment's states.
    pub fn snapshots(&self, deployment: &str) -> PathBuf {
        self.root.join("snapshots").join(deployment)
    }

    /// The embedded log of a source.
    pub fn log(&self, source: &str) -> PathBuf {
        self.root.join("log").join(format!("{source}.redb"))
    }

    /// A module, by digest.
    pub fn module(&self, digest: &str) -> PathBuf {
        self.root.join("modules").join(format!("{digest}.wasm"))
    }

    /// The state of a generation.
    pub fn state(&self, deployment: &str, generation: u64) -> PathBuf {
        self.root.join("state").join(deployment).join(format!("{generation}.redb"))
    }

    /// Writes a module so that after a crash it is there whole or not at all.
    pub fn store_module(&self, digest: &str, component: &[u8]) -> Result<(), Error> {
        let write = || {
            let folder = self.root.join("modules");
            let mut file = tempfile::NamedTempFile::new_in(&folder)?;
            file.write_all(component)?;
            file.as_file().sync_all()?;
            file.persist(self.module(digest)).map_err(|error| error.error)?;
            sync(&folder)
        };
        write().map_err(|error| self.refused(&error))
    }

    /// Makes the folder for the states of a deployment.
    pub fn prepare_state(&self, deployment: &str) -> Result<(), Error> {
        let states = self.root.join("state");
        fs::create_dir_all(states.join(deployment)).and_then(|()| sync(&states)).map_err(|error| self.refused(&error))
    }

    /// Removes snapshots of states that no record uses: their names begin with the number of the state file.
    fn keep_only_snapshots(&self, records: &[Record]) {
        let name_of =
            |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        for folder in entries(&self.root.join("snapshots")) {
            let name = name_of(&folder);
            let record = records.iter().find(|record| record.name == name);
            for path in entries(&folder) {
                let state_file = name_of(&path).split('-').next().and_then(|number| number.parse().ok());
                let is_used = record.zip(state_file).is_some_and(|(record, state_file)| record.uses_file(state_file));
                if !is_used && let Err(error) = fs::remove_file(&path) {
                    tracing::warn!(path = %path.display(), %error, "cannot remove an unused snapshot");
                }
            }
            if record.is_none() {
                // Not empty is left for the next time.
                let _ = fs::remove_dir(&folder);
            }
        }
    }

    /// Removes modules and states that no record uses. What can't be removed is left for the next time.
    pub fn keep_only(&self, records: &[Record]) {
        self.keep_only_snapshots(records);
        let mut used: BTreeSet<PathBuf> = BTreeSet::new();
        for record in records {
            for generation in &record.generations {
                used.insert(self.module(&generation.module.digest));
                if generation.has_file() {
                    let state = self.state(&record.name, generation.state_file);
                    // It may just be being made.
                    used.extend([unfinished(&state), state]);
                }
            }
        }
        let names: BTreeSet<PathBuf> =
            records.iter().map(|record| self.root.join("state").join(&record.name)).collect();
        let mut folders = vec![self.root.join("modules")];
        folders.extend(entries(&self.root.join("state")));
        for folder in folders {
            let unused: Vec<_> = entries(&folder).into_iter().filter(|path| !used.contains(path)).collect();
            for path in &unused {
                if let Err(error) = fs::remove_file(path) {
                    tracing::warn!(path = %path.display(), %error, "cannot remove an unused file");
                }
            }
            if !unused.is_empty()
                && let Err(error) = sync(&folder)
            {
                tracing::warn!(path = %folder.display(), %error, "cannot sync a folder");
            }
            if folder.parent() == Some(&self.root.join("state")) && !names.contains(&folder) {
                // Not empty is left for the next time.
                let _ = fs::remove_dir(&folder);
            }
        }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

fn unfinished_in(folder: &Path) -> Vec<PathBuf> {
    entries(folder).into_iter().filter(|path| whole::is_unfinished(path)).collect()
}

fn sync(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}
