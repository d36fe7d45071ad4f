//! The target folder of a backup. It gets its name once it is complete, and never before.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::Error;
use crate::data_dir::create_private;

/// A folder that is being filled under another name. Dropping it removes what is in it.
#[derive(Debug)]
pub(crate) struct Target {
    wanted: PathBuf,
    unfinished: PathBuf,
    /// Locked, so that nobody else fills it. A killed process leaves an unlocked folder.
    _lock: File,
    is_whole: bool,
}

impl Target {
    /// Starts a backup with this name: that of a new or an empty folder. An incomplete earlier one
    /// is removed.
    pub(crate) fn claim(folder: &Path) -> Result<Self, Error> {
        // Absolute, because the name's parent is needed for the rename, and `backups` has none.
        let wanted = std::path::absolute(folder).map_err(Error::io(folder))?;
        refuse_if_taken(&wanted)?;
        let (Some(name), Some(parent)) = (wanted.file_name(), wanted.parent()) else {
            return Err(Error::Target(format!(
                "{} is no name for a new folder",
                folder.display()
            )));
        };
        if !parent.is_dir() {
            return Err(Error::Target(format!(
                "there is no folder {}; make it first",
                parent.display()
            )));
        }
        // Next to it and not elsewhere: a rename works only within one file system. The dot hides
        // it.
        let unfinished = parent.join(format!(".{}.unfinished", name.to_string_lossy()));
        create_private(&unfinished).map_err(Error::io(&unfinished))?;
        let lock = File::open(&unfinished).map_err(Error::io(&unfinished))?;
        // The kernel ends the lock with the process, so a folder without one was left by a killed
        // command.
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Error::Target(format!(
                "another backup to {} is running; wait for it, or choose another folder",
                wanted.display()
            ))
        })?;
        let target = Self {
            wanted,
            unfinished,
            _lock: lock,
            is_whole: false,
        };
        // What such a command left: files of another backup must not be mixed with these.
        for entry in fs::read_dir(&target.unfinished).map_err(Error::io(&target.unfinished))? {
            let path = entry.map_err(Error::io(&target.unfinished))?.path();
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(Error::io(&path))?;
        }
        Ok(target)
    }

    /// The folder to fill.
    pub(crate) fn folder(&self) -> &Path {
        &self.unfinished
    }

    /// Gives it its name, durably.
    pub(crate) fn finish(mut self) -> Result<PathBuf, Error> {
        // Again: it may have come into being while the copy was made, which takes minutes.
        refuse_if_taken(&self.wanted)?;
        fs::rename(&self.unfinished, &self.wanted).map_err(Error::io(&self.wanted))?;
        // Before the folder is synced: from the rename on, dropping must not remove anything.
        self.is_whole = true;
        let parent = self.wanted.parent().unwrap_or(Path::new("/"));
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(Error::io(parent))?;
        Ok(self.wanted.clone())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.is_whole {
            // If it can't be removed, its name at least shows that it is not a backup.
            let _ = fs::remove_dir_all(&self.unfinished);
        }
    }
}

fn refuse_if_taken(wanted: &Path) -> Result<(), Error> {
    let is_taken = match fs::read_dir(wanted) {
        Ok(mut entries) => entries.next().is_some(),
        // It is no folder, or cannot be read; whatever it is, it has the name.
        Err(_) => wanted.symlink_metadata().is_ok(),
    };
    if is_taken {
        return Err(Error::Target(format!(
            "{} is there already; name a new folder for each backup",
            wanted.display()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("it is there").flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn it_has_its_name_when_it_is_whole_and_leaves_nothing_when_it_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let wanted = folder.path().join("monday");
        let target = Target::claim(&wanted).expect("it is new");
        fs::write(target.folder().join("catalog.redb"), "half").expect("written");
        assert!(!wanted.exists());
        drop(target);
        assert!(names(folder.path()).is_empty());
        let target = Target::claim(&wanted).expect("it is new");
        fs::write(target.folder().join("catalog.redb"), "whole").expect("written");
        target.finish().expect("it is whole");
        assert_eq!(names(folder.path()), ["monday"]);
        let refused = Target::claim(&wanted).expect_err("it is there");
        assert!(
            refused.to_string().contains("is there already"),
            "{refused}"
        );
    }

    #[test]
    fn what_a_killed_one_left_is_replaced_and_one_that_runs_is_left_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let wanted = folder.path().join("monday");
        let left = folder.path().join(".monday.unfinished/state/totals");
        fs::create_dir_all(&left).expect("made");
        fs::write(left.join("1.redb.new"), "half").expect("written");
        let target = Target::claim(&wanted).expect("nobody has it");
        assert!(names(target.folder()).is_empty());
        let refused = Target::claim(&wanted).expect_err("somebody has it");
        assert!(refused.to_string().contains("is running"), "{refused}");
        assert!(target.folder().is_dir(), "the other one is not hurt");
    }
}
