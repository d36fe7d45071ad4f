//! The files of exported bundles: written whole, and never over another file.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use tempfile::NamedTempFile;

use crate::bundle::{BUNDLE_BYTES_MAX, Bundle, Failed};
use crate::small_file;

/// Prefix of a file that is not complete.
const UNFINISHED: &str = ".foldstream-export-";

/// What became of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It has a new file.
    New,
    /// The file was there, with the same failure.
    AlreadyThere,
}

/// Writes a new file that only its owner can read: it has people's data. A file that exists stays
/// as it is; that is an error unless it has a bundle of the same failure.
pub(super) fn write(file: &Path, content: &[u8], bundle: &Bundle) -> io::Result<Written> {
    let mut unfinished = begin(folder_of(file))?;
    unfinished.write_all(content)?;
    unfinished.as_file().sync_all()?;
    match unfinished.persist_noclobber(file) {
        Ok(_) => Ok(Written::New),
        Err(error) if is_of_same_failure(file, bundle) => {
            // The new one is dropped, and with it its file.
            drop(error);
            Ok(Written::AlreadyThere)
        }
        Err(error) => Err(error.error),
    }
}

/// Removes what exports into the folder of a file left when they were killed.
pub(super) fn sweep(file: &Path) {
    // A folder that there is not yet has no leftovers.
    let entries = fs::read_dir(folder_of(file)).into_iter().flatten();
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(UNFINISHED);
        if !is_ours || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let path = entry.path();
        // Another export that runs holds its file.
        let is_left = File::open(&path)
            .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
        if is_left {
            // If it fails, the file only stays for longer.
            let _ = fs::remove_file(path);
        }
    }
}

/// A new file that no other export takes for a leftover.
fn begin(folder: &Path) -> io::Result<NamedTempFile> {
    loop {
        let file = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempfile_in(folder)?;
        // Some network file systems have no locks. There it can't be swept either.
        let _ = flock(&file, FlockOperation::LockExclusive);
        // A sweep may have removed it before it was locked.
        if file.path().exists() {
            return Ok(file);
        }
    }
}

fn folder_of(file: &Path) -> &Path {
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// Whether a file has a bundle of the same failure of the same event with the same module.
fn is_of_same_failure(file: &Path, bundle: &Bundle) -> bool {
    let content = small_file::read_regular(file, BUNDLE_BYTES_MAX).ok();
    let found = content.and_then(|content| Bundle::from_bytes(&content).ok());
    let what = |bundle: &Bundle| {
        (
            bundle.deployment.clone(),
            bundle.module.clone(),
            // The times at which it was seen may differ.
            bundle.failure.clone().map(|failure| Failed {
                first_at: None,
                ..failure
            }),
            bundle.events.first().cloned(),
        )
    };
    found.is_some_and(|found| what(&found) == what(bundle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_removed_and_files_of_running_exports_are_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = folder.path().join("a.bundle.json");
        let running = begin(folder.path()).expect("is writable");
        let killed = begin(folder.path()).expect("is writable");
        // A process that is killed drops its locks, and leaves its files.
        let (_, killed) = killed.keep().expect("stays");
        for name in ["other", ".hidden"] {
            fs::write(folder.path().join(name), "x").expect("is written");
        }
        sweep(&place);
        assert!(running.path().exists());
        assert!(!killed.exists());
        assert_eq!(fs::read_dir(folder.path()).expect("is there").count(), 3);
        sweep(&folder.path().join("absent/a.bundle.json"));
    }
}
