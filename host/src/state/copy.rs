//! Creates state files from another state.

use std::io;
use std::path::Path;

use super::file::{self, EntryWriter, Passed};
use super::inbox;
use super::writer::{check_key, check_state, check_value};
use super::{Error, Key, Options, SCAN_ENTRIES_MAX, Snapshot, timers};
use crate::event::Payload;
use crate::{atomic_file, storage};

/// Converts a page of old entries to new ones; later entries of one key win.
pub(super) type Map<'a> =
    &'a mut dyn FnMut(&[(Key, Payload)]) -> Result<Vec<(String, Payload)>, Error>;

/// How the entries of a state are converted.
pub struct Conversion<'a> {
    /// Most entries of a page.
    pub page_entries: usize,
    /// Converts a page.
    pub map: Map<'a>,
}

/// Writes a snapshot, with its checkpoint, to a new state file. The file appears complete or not at
/// all. Blocking, and slow for a large state; the state itself continues meanwhile.
pub fn copy(snapshot: &Snapshot, path: &Path) -> Result<(), Error> {
    write(snapshot, path, SCAN_ENTRIES_MAX, &mut |page, writer| {
        page.iter()
            .try_for_each(|(key, value)| writer.write(key, Some(value)))
    })
}

/// The same with converted entries, page by page, within the limits of `options`.
pub fn map(
    snapshot: &Snapshot,
    path: &Path,
    options: &Options,
    conversion: Conversion<'_>,
) -> Result<(), Error> {
    let Conversion { page_entries, map } = conversion;
    write(snapshot, path, page_entries, &mut |page, writer| {
        // What a migration returns is as little trusted as what a fold writes.
        let entries = map(page)?;
        for (key, value) in &entries {
            check_key(key)?;
            check_value(key, value.len(), options.value_bytes_max)?;
            writer.write(key, Some(value))?;
        }
        check_state(writer.bytes(), options.state_bytes_max)
    })
}

type WritePage<'a> =
    &'a mut dyn FnMut(&[(Key, Payload)], &mut EntryWriter<'_>) -> Result<(), Error>;

fn write(
    snapshot: &Snapshot,
    path: &Path,
    page_entries: usize,
    page: WritePage<'_>,
) -> Result<(), Error> {
    // The function takes errors of files only, so the real one is carried around it.
    let mut failure = None;
    let made = atomic_file::create(path, |path| {
        make(snapshot, path, page_entries, page).map_err(|error| {
            let text = error.to_string();
            failure = Some(error);
            io::Error::other(text)
        })
    });
    match (made, failure) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(error)) => Err(error),
        (Err(error), None) => Err(Error::Storage(storage::Error::of_file(path, error))),
    }
}

fn make(
    snapshot: &Snapshot,
    path: &Path,
    page_entries: usize,
    write_page: WritePage<'_>,
) -> Result<(), Error> {
    let Some(checkpoint) = snapshot.checkpoint() else {
        // Without a checkpoint a fold of the copy would not know where to continue.
        return Err(Error::Storage(storage::Error::new(
            "the state is still empty, so there is nothing to copy",
        )));
    };
    file::make(
        path,
        Passed {
            checkpoint,
            exceptions: &snapshot.exceptions(),
        },
        |writer| {
            let mut pages = snapshot.pages(page_entries);
            pages.try_for_each(|page| write_page(&page?, writer))
        },
        // In the same commit: entries and timers of one position.
        |transaction| {
            timers::copy(snapshot, transaction)?;
            inbox::copy(snapshot, transaction)
        },
    )
}
