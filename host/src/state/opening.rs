//! Opens the redb files of states and of the catalogue, and says what to do if that fails.

use std::io;
use std::path::Path;

use redb::Database;

use super::Error;
use super::file::FORMAT_OWNED;
use crate::data_path::within;
use crate::{advice, atomic_file, damage, descriptors, storage};

/// The name of the file of the catalogue, and of the folder of embedded logs.
const CATALOGUE: &str = "catalog.redb";
const LOGS: &str = "log";

/// What to do with a file if no other advice helps. Only a state can be built again.
fn replacement(path: &Path) -> &'static str {
    let is_log = || {
        path.parent()
            .is_some_and(|folder| folder.file_name() == Some(LOGS.as_ref()))
    };
    if path.file_name() == Some(CATALOGUE.as_ref()) {
        "restore its newest copy, or a whole backup: nothing else names the deployments, and their states are removed \
         without it"
    } else if is_log() {
        "restore it from a backup: its events are nowhere else"
    } else {
        "restore the file from a backup, or remove it to build the state again from the stream; a handler then \
         has lost what waited in it, and needs `foldstream rebuild NAME --accept-lost-effects`"
    }
}
/// What to do if the system refused something and no other advice helps.
const MAY_BE_SOUND: &str = "the file itself may be sound: correct that, and it can be opened again";

/// Whether the system refused to read or write, which says nothing against the file: no room, too
/// many open files, no permission.
fn is_refused_by_system(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    !matches!(error.kind(), InvalidData | UnexpectedEof)
}

/// Opens or creates a redb file, and reports the progress of a repair in percent.
pub(super) fn open_database(
    path: &Path,
    cache_bytes: usize,
    progress: impl Fn(f64) + 'static,
) -> Result<damage::Open<Database>, Error> {
    let refused = |error: redb::DatabaseError| {
        let advice = match &error {
            redb::DatabaseError::Storage(redb::StorageError::Io(error)) => {
                let otherwise = if is_refused_by_system(error) {
                    MAY_BE_SOUND
                } else {
                    replacement(path)
                };
                advice::of_file(error).unwrap_or(otherwise)
            }
            redb::DatabaseError::DatabaseAlreadyOpen => {
                "another foldstream uses it; stop that one, or choose another data folder"
            }
            redb::DatabaseError::UpgradeRequired(_) => {
                "it was written by another version of redb; use the foldstream that wrote it"
            }
            _ => replacement(path),
        };
        let message = format!("{}: {error}; {advice}", within(path));
        let error = redb::Error::from(error);
        let is_in_use = matches!(error, redb::Error::DatabaseAlreadyOpen);
        let error = storage::Error::because(message, error);
        if is_in_use {
            Error::InUse(error)
        } else {
            Error::Open(error)
        }
    };
    let mut builder = Database::builder();
    builder
        .set_cache_size(cache_bytes)
        .set_repair_callback(move |session| progress(session.progress() * 100.0));
    // An empty database first, under a temporary name: a crash leaves no half of one.
    let make = |path: &Path| builder.create(path).map(drop).map_err(not_made);
    let refused_by_system = |error: io::Error| refused(redb::StorageError::Io(error).into());
    // Before the file is opened: a descriptor that is missing later stops more than this one.
    descriptors::check_spare().map_err(refused_by_system)?;
    atomic_file::create(path, make).map_err(refused_by_system)?;
    let opened =
        damage::guarded(|| builder.create(path)).unwrap_or_else(|error| Err(inconsistent(error)));
    let database = damage::Open::new(opened.map_err(refused)?);
    // Many are opened at once at a start, and all of them may have found some left.
    descriptors::check_spare().map_err(refused_by_system)?;
    Ok(database)
}

fn inconsistent(error: damage::Inconsistent) -> redb::DatabaseError {
    redb::StorageError::Corrupted(error.to_string()).into()
}

/// The system's error if a database file could not be created; otherwise the database's own.
fn not_made(error: redb::DatabaseError) -> io::Error {
    match error {
        redb::DatabaseError::Storage(redb::StorageError::Io(error)) => error,
        error => io::Error::other(error),
    }
}

/// Checks the format in a table of bytes, and writes it into a new file.
pub(super) fn check_format(path: &Path, found: Option<&[u8]>) -> Result<(), Error> {
    let Some(found) = found else { return Ok(()) };
    let format = found.try_into().map(u32::from_be_bytes).unwrap_or(u32::MAX);
    if (1..=FORMAT_OWNED).contains(&format) {
        return Ok(());
    }
    let message = format!(
        "{}: file was written by format {format}, this build reads 1 to {FORMAT_OWNED}; upgrade \
         foldstream, or {}",
        within(path),
        replacement(path)
    );
    Err(Error::Open(storage::Error::new(message)))
}
