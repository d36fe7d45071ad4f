//! Files that commands write for their user: reports, exports.

use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A file that gets its name, and takes the place of an older one, once it is complete. If it is
/// dropped before, nothing of it stays. Two that are written to one name at once have files of their own.
pub(crate) enum WholeFile {
    Unfinished {
        file: NamedTempFile,
        /// The name that it gets.
        complete: PathBuf,
    },
    /// What is no regular file, such as a pipe.
    Device(File),
}

impl WholeFile {
    /// Writes a whole file.
    pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
        let file = Self::create(path)?;
        file.file().write_all(content)?;
        file.complete()
    }

    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        // The file to which a link leads; one that does not exist yet has no links.
        let complete = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let older = match std::fs::metadata(&complete) {
            Ok(older) if !older.is_file() => return Ok(Self::Device(File::create(&complete)?)),
            older => older.ok(),
        };
        let folder = complete
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let name = complete.file_name().unwrap_or_default();
        let file = tempfile::Builder::new()
            .prefix(name)
            .suffix(".unfinished")
            // As for any new file, less what the user's mask takes away.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder.unwrap_or(Path::new(".")))?;
        if let Some(older) = older {
            file.as_file().set_permissions(older.permissions())?;
        }
        Ok(Self::Unfinished { file, complete })
    }

    pub(crate) fn file(&self) -> &File {
        match self {
            Self::Unfinished { file, .. } => file.as_file(),
            Self::Device(file) => file,
        }
    }

    pub(crate) fn complete(self) -> io::Result<()> {
        match self {
            Self::Unfinished { file, complete } => {
                // A crash of the machine must not leave a cut file under the name either.
                file.as_file().sync_all()?;
                file.persist(complete)?;
                Ok(())
            }
            Self::Device(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_once_it_is_complete_and_replaces_an_older_one_only_then() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("events.ndjson");
        let names = || {
            let entries = std::fs::read_dir(folder.path()).expect("our folder");
            let mut names: Vec<_> = entries
                .map(|entry| entry.expect("is there").file_name())
                .collect();
            names.sort();
            names
        };
        let cut = |path: &Path| {
            let target = WholeFile::create(path).expect("is writable");
            target.file().write_all(b"ha").expect("is written");
        };
        cut(&path);
        assert_eq!(names().len(), 0, "an interrupted export leaves nothing");
        std::fs::write(&path, "old").expect("is written");
        cut(&path);
        assert_eq!(std::fs::read_to_string(&path).expect("is there"), "old");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        let target = WholeFile::create(&link).expect("is writable");
        target.file().write_all(b"new").expect("is written");
        target.complete().expect("is renamed");
        assert_eq!(std::fs::read_to_string(&path).expect("is there"), "new");
        assert_eq!(names(), ["events.ndjson", "link"]);
        // Two at once do not write into each other's file, and keep the permissions of the old one.
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("are ours");
        let both = ["one", "two"].map(|text| {
            let target = WholeFile::create(&path).expect("is writable");
            target
                .file()
                .write_all(text.as_bytes())
                .expect("is written");
            target
        });
        for (target, text) in both.into_iter().zip(["one", "two"]) {
            target.complete().expect("is renamed");
            assert_eq!(std::fs::read_to_string(&path).expect("is there"), text);
        }
        let mode = std::fs::metadata(&path).expect("is there").permissions();
        assert_eq!(mode.mode() & 0o777, 0o640);
        // A disk that is full in the midst of it.
        assert!(WholeFile::write(Path::new("/dev/full"), b"cut").is_err());
        let nowhere = WholeFile::create(Path::new("/dev/null")).expect("is writable");
        nowhere.complete().expect("needs no name");
    }
}
