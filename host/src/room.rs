//! Disk space of the data folder: what stops growing, and when.
//!
//! Builds and copies stop first: they leave the floor of [`Use::Grow`] to active generations. Those also stop writing
//! before nothing is left, because a write that fails half-way costs more than one that waits. Everything continues on
//! its own when there is room again.

use std::path::{Path, PathBuf};

/// What builds and copies leave free: this fraction of the disk, and at most this many bytes.
const GROW_FLOOR: (u64, u64) = (20, 1 << 30);
/// What active generations leave free: this fraction of the disk, and at most this many bytes.
const WRITE_FLOOR: (u64, u64) = (64, 16 << 20);

/// The purpose of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A build, a copy, a snapshot or a past state: it can wait.
    Grow,
    /// Active generations: their commits, and those of the catalogue and the logs.
    Write,
}

/// The disk has too little room.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the disk of the data folder has {free} bytes free, of which {floor} are reserved for others; free some space to let it continue"
)]
pub struct Shortage {
    free: u64,
    floor: u64,
}

impl Shortage {
    /// How much of the remaining space one state may use, in bytes.
    pub fn part_of_one(&self) -> u64 {
        self.floor / 4
    }
}

/// The disk of a folder. Checking it takes microseconds.
#[derive(Clone, Debug)]
pub struct Room {
    folder: PathBuf,
}

impl Room {
    /// The disk space of a folder, or of the folder of a file.
    pub fn of(path: &Path) -> Self {
        let folder = if path.is_dir() { Some(path) } else { path.parent() };
        let folder = folder.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self { folder: folder.to_owned() }
    }

    /// Free bytes, if known.
    pub fn free_bytes(&self) -> Option<u64> {
        self.look().map(|(free, _)| free)
    }

    /// Free bytes and total bytes of the disk.
    pub(crate) fn look(&self) -> Option<(u64, u64)> {
        let stat = rustix::fs::statvfs(&self.folder).ok()?;
        Some((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
    }

    /// Whether there is room for this many bytes more.
    pub fn check(&self, purpose: Use, bytes: u64) -> Result<(), Shortage> {
        // A disk with unknown space is written to until a write fails.
        let Some((free, total)) = self.look() else { return Ok(()) };
        let floor = floor(purpose, total);
        if free >= floor.saturating_add(bytes) {
            return Ok(());
        }
        Err(Shortage { free, floor: floor.saturating_add(bytes) })
    }
}

fn floor(purpose: Use, total: u64) -> u64 {
    let (part, most) = match purpose {
        Use::Grow => GROW_FLOOR,
        Use::Write => WRITE_FLOOR,
    };
    (total / part).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_grow_stop_before_those_that_serve() {
        for total in [8 << 20, 64 << 20, 1 << 30, 1 << 40] {
            assert!(floor(Use::Grow, total) > floor(Use::Write, total), "{total}");
            assert!(floor(Use::Grow, total) <= total / 20);
        }
        assert_eq!(floor(Use::Grow, 1 << 40), 1 << 30);
    }

    #[test]
    fn a_disk_has_room_for_a_byte_and_not_for_all_there_could_be() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let room = Room::of(&folder.path().join("state.redb"));
        assert!(room.free_bytes().is_some());
        let shortage = room.check(Use::Write, u64::MAX / 2).expect_err("no disk is that large");
        assert!(shortage.to_string().contains("free some space"), "{shortage}");
    }
}
