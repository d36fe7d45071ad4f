//! A reserve of disk space: on a full disk it is given up for a deletion, which makes room.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::room::{Room, Use};

/// Its size: more than a change of the catalogue takes, even if its file has to grow.
const BYTES: usize = 1 << 20;

/// The file `catalog.reserve` next to the catalogue.
#[derive(Debug)]
pub(super) struct Reserve(PathBuf);

impl Reserve {
    /// That of a catalogue.
    pub(super) fn of(catalogue: &Path) -> Self {
        Self(catalogue.with_extension("reserve"))
    }

    /// Keeps it, if it is not there and there is room to spare. Best effort: without it nothing is
    /// lost, but on a full disk nothing can be deleted.
    pub(super) fn keep(&self) {
        if self.0.exists() || Room::of(&self.0).check(Use::Grow, BYTES as u64).is_err() {
            return;
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.0);
        // Written, because a file of holes takes no space.
        if file.is_ok_and(|mut file| file.write_all(&vec![0; BYTES]).is_err()) {
            self.give_up();
        }
    }

    /// Gives it up; returns whether there was one.
    pub(super) fn give_up(&self) -> bool {
        std::fs::remove_file(&self.0).is_ok()
    }
}
