//! Files that are complete or absent, whenever the process is killed, and that stay where they are
//! while it runs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::data_path::within;

/// Suffix of the name of an unfinished file.
const UNFINISHED: &str = "redb.new";

/// The temporary path of a file.
pub(crate) fn unfinished(path: &Path) -> PathBuf {
    path.with_extension(UNFINISHED)
}

/// Whether a file is unfinished; it may also just be in creation.
pub(crate) fn is_unfinished(path: &Path) -> bool {
    path.to_string_lossy().ends_with(UNFINISHED)
}

/// Creates a file under a temporary name and then renames it, unless it exists. If that fails, the
/// unfinished file is removed: it may take most of a full disk.
pub(crate) fn create(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let new = Unfinished(unfinished(path));
    // Left by a process that was killed: its content may be of any age.
    if new.0.exists() {
        fs::remove_file(&new.0)?;
    }
    // Only this user may read people's events and states. `make` opens the existing file.
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new.0)?;
    make(&new.0)?;
    // `make` has made the content durable; a rename is one step for every reader.
    fs::rename(&new.0, path)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// A file that is removed unless it was renamed, also if its creation panics.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It is absent if everything went well.
        let _ = fs::remove_file(&self.0);
    }
}

/// A file that is in use. One that is moved, removed or replaced under a running host still takes
/// what is written to it, but the next start would not find that.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    path: PathBuf,
    /// Device and number.
    file: (u64, u64),
}

/// The file of this path was moved, removed or replaced while it was in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{path} was moved, removed or replaced while the host has it open, so nothing more is written \
     to it; put it back, or stop the host and restore the file from a backup",
    path = within(.0)
)]
pub struct Displaced(PathBuf);

impl Held {
    /// The file that a path leads to now.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: number(path)?,
        })
    }

    /// Whether the path still leads to that file. Takes microseconds.
    pub(crate) fn check(&self) -> Result<(), Displaced> {
        match number(&self.path) {
            // A path that leads to another file is displaced; that it cannot be looked at proves
            // nothing.
            Ok(file) if file == self.file => Ok(()),
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(())
            }
            _ => Err(Displaced(self.path.clone())),
        }
    }
}

fn number(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_could_not_be_made_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("1-2-3.redb");
        let failed = create(&path, |new| {
            fs::write(new, "half")?;
            Err(io::Error::other("the disk is full"))
        });
        assert!(failed.is_err());
        let panicked = std::panic::catch_unwind(|| {
            create(&path, |new| {
                fs::write(new, "half")?;
                panic!("on purpose");
            })
        });
        assert!(panicked.is_err());
        assert_eq!(fs::read_dir(folder.path()).expect("there").count(), 0);
        create(&path, |new| fs::write(new, "whole")).expect("made");
        assert_eq!(fs::read_to_string(&path).expect("there"), "whole");
        assert_eq!(fs::read_dir(folder.path()).expect("there").count(), 1);
        assert!(is_unfinished(&unfinished(&path)) && !is_unfinished(&path));
    }

    #[test]
    fn a_file_is_held_as_long_as_its_path_leads_to_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (path, aside) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&path, "one").expect("written");
        let held = Held::of(&path).expect("there");
        assert_eq!(held.check(), Ok(()));
        fs::rename(&path, &aside).expect("moved");
        assert_eq!(held.check(), Err(Displaced(path.clone())));
        fs::copy(&aside, &path).expect("copied");
        assert_eq!(
            held.check(),
            Err(Displaced(path.clone())),
            "a copy is another file"
        );
        fs::rename(&aside, &path).expect("moved back");
        assert_eq!(held.check(), Ok(()));
    }
}
