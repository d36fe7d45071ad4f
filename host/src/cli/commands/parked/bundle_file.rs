//! The files of exported bundles: written whole, and never over a file that has anything else.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use tempfile::NamedTempFile;

use crate::bundle::{BUNDLE_BYTES_MAX, Bundle, EventRow, Failed};
use crate::small_file;

/// Prefix of a file that is not complete.
const UNFINISHED: &str = ".foldstream-export-";

/// What became of a bundle.
#[derive(Debug)]
pub(super) enum Written {
    /// It has a new file.
    New,
    /// It replaced a file that has the same failure, and fewer events.
    Replaced,
    /// The file was there, with the same failure and all events. Its bundle may have more of them.
    AlreadyThere(Box<Bundle>),
}

/// Writes a file that only its owner can read: it has people's data. A file that exists is replaced
/// only by more events of the same failure. One that has anything else is an error.
pub(super) fn write(file: &Path, content: &[u8], bundle: &Bundle) -> io::Result<Written> {
    let mut unfinished = begin(folder_of(file))?;
    unfinished.write_all(content)?;
    unfinished.as_file().sync_all()?;
    let error = match unfinished.persist_noclobber(file) {
        Ok(_) => return Ok(Written::New),
        Err(error) => error,
    };
    let Some(found) = read(file).filter(|found| has_same_failure(found, bundle)) else {
        return Err(error.error);
    };
    if has_all(&found.events, &bundle.events) {
        // The new one is dropped, and with it its file.
        return Ok(Written::AlreadyThere(Box::new(found)));
    }
    // Events that only the file has may have been dropped by the host since.
    if !has_all(&bundle.events, &found.events) {
        return Err(error.error);
    }
    error.file.persist(file).map_err(|error| error.error)?;
    Ok(Written::Replaced)
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
        let Ok(file) = File::open(&path) else {
            continue;
        };
        // Another export that runs holds its file. One that has not locked it yet waits until this
        // lock ends with `file`, and then finds that its file is gone.
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
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

/// The bundle of a file, if it has one.
fn read(file: &Path) -> Option<Bundle> {
    let content = small_file::read_regular(file, BUNDLE_BYTES_MAX).ok()?;
    Bundle::from_bytes(&content).ok()
}

/// Whether two bundles have the same failure of the same event with the same module.
fn has_same_failure(one: &Bundle, other: &Bundle) -> bool {
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
    what(one) == what(other)
}

/// Whether some events are all among others. Both are in order.
fn has_all(events: &[EventRow], wanted: &[EventRow]) -> bool {
    let mut events = events.iter();
    wanted
        .iter()
        .all(|wanted| events.any(|event| event == wanted))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

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
    #[test]
    fn a_sweep_takes_no_file_from_an_export_that_begins() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = folder.path().join("a.bundle.json");
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        sweep(&place);
                    }
                });
            }
            let lost = (0..3_000)
                .filter(|_| {
                    let begun = begin(folder.path()).expect("is writable");
                    begun.persist(&place).is_err()
                })
                .count();
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(lost, 0);
        });
    }
}
