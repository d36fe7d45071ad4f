//! Notes next to a file how far it had come, so that a file that lost its newest commits, or was
//! replaced by an older copy, does not pass for the newest one.
//!
//! The note `<file>.newest` is one decimal number that only rises. It is written after what it
//! counts is durable, and is not durable itself: it may lag behind the file, never the other way
//! round.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::data_path::within;
use crate::small_file;

/// More than a number has, in bytes.
const NOTE_BYTES_MAX: u64 = 64;

/// The note of a file.
#[derive(Clone, Debug)]
pub(crate) struct Newest {
    file: PathBuf,
    note: PathBuf,
}

/// A file is older than it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} ends at {unit} {found}, but had come to {noted}: it lost its newest commits, or an older \
     copy replaced it; restore the newest copy, or accept the loss by removing {}",
    within(file),
    within(note)
)]
pub(crate) struct FellBack {
    file: PathBuf,
    note: PathBuf,
    unit: &'static str,
    found: u64,
    noted: u64,
}

impl Newest {
    /// The note of a file.
    pub(crate) fn of(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            note: file.with_extension("newest"),
        }
    }

    /// Whether the file has come at least as far as its note says. A note that is missing or
    /// unreadable says nothing.
    pub(crate) fn check(&self, unit: &'static str, found: u64) -> Result<(), FellBack> {
        // Another kind of file in its place must not be read into memory whole.
        let noted = small_file::read_within(&self.note, NOTE_BYTES_MAX).ok();
        let noted =
            noted.and_then(|text| std::str::from_utf8(&text).ok()?.trim().parse::<u64>().ok());
        match noted {
            Some(noted) if noted > found => {
                let (file, note) = (self.file.clone(), self.note.clone());
                Err(FellBack {
                    file,
                    note,
                    unit,
                    found,
                    noted,
                })
            }
            _ => Ok(()),
        }
    }

    /// Notes how far the file has come. If that fails, as on a full disk, the previous note stays.
    pub(crate) fn note(&self, number: u64) {
        let write = || -> io::Result<()> {
            let note = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&self.note)?;
            // Always of the same length, so that it replaces the previous one in one step.
            note.write_all_at(format!("{number:020}\n").as_bytes(), 0)
        };
        if let Err(error) = write() {
            tracing::debug!(
                note = %self.note.display(),
                %error,
                "cannot note how far a file has come"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_that_is_behind_its_note_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let newest = Newest::of(&folder.path().join("events.redb"));
        assert_eq!(newest.check("event", 0), Ok(()), "there is no note yet");
        newest.note(1_000);
        newest.note(12);
        assert_eq!(
            (newest.check("event", 12), newest.check("event", 13)),
            (Ok(()), Ok(()))
        );
        let told = newest
            .check("event", 11)
            .expect_err("it had come to 12")
            .to_string();
        assert!(
            told.contains("events.redb ends at event 11, but had come to 12")
                && told.contains("events.newest")
        );
        for unreadable in ["", "none", "-1", "99999999999999999999999"] {
            std::fs::write(folder.path().join("events.newest"), unreadable).expect("written");
            assert_eq!(newest.check("event", 0), Ok(()), "{unreadable}");
        }
    }
}
