//! Disk space of the data folder: what stops growing, and when.
//!
//! Builds and copies stop first: they leave the floor of [`Use::Grow`] to active generations. Those
//! also stop writing before nothing is left, because a write that fails half-way costs more than
//! one that waits. Everything continues on its own when there is room again.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Size of a block in the system's count, in bytes, whatever the block size of the disk.
const BLOCK_BYTES: u64 = 512;
/// Deepest nesting of folders to visit: more than a data folder has.
pub(crate) const DEPTH_MAX: usize = 4;
/// How often a folder with a limit is measured, and how many times longer the pause is than the
/// measurement.
const LOOK: Duration = Duration::from_millis(50);
const LOOK_FACTOR: u32 = 50;

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

/// The disk has too little room, or the data folder is at its limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{bound}, of which {floor} are reserved for others, and {wanted} bytes wait to be written; {}",
    .bound.advice()
)]
pub struct Shortage {
    bound: Bound,
    floor: u64,
    wanted: u64,
}

/// What has too little room, with the bytes that are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Bound {
    #[error("the disk of the data folder has {0} bytes free")]
    Disk(u64),
    #[error("limits.disk_bytes leaves {0} bytes to the data folder")]
    Limit(u64),
}

impl Bound {
    fn advice(self) -> &'static str {
        match self {
            Self::Disk(_) => "free some space to let it continue",
            Self::Limit(_) => {
                "raise it, or `foldstream prune` generations that are no longer needed, to let it \
                 continue"
            }
        }
    }
}

impl Shortage {
    /// How much of the remaining space one state may use, in bytes.
    pub fn part_of_one(&self) -> u64 {
        self.floor / 4
    }
}

/// The disk of a folder, and the limit of the folder itself. Checking it takes microseconds, except
/// that a folder with a limit is measured now and then.
#[derive(Clone, Debug)]
pub struct Room {
    folder: PathBuf,
    limit: Option<Arc<Limit>>,
}

/// Most disk space for a folder.
#[derive(Debug)]
struct Limit {
    bytes: u64,
    used: AtomicU64,
    /// When to measure again.
    look_at: Mutex<Instant>,
}

impl Limit {
    fn left(&self, folder: &Path) -> u64 {
        // While one thread measures, the others use the previous figure.
        if let Some(mut look_at) = self.look_at.try_lock()
            && Instant::now() >= *look_at
        {
            let begun = Instant::now();
            // Relaxed: the figure is some milliseconds old in any case.
            self.used
                .store(allocated(folder, DEPTH_MAX), Ordering::Relaxed);
            // A large folder takes long to walk: at most a fiftieth of the time is spent on it.
            *look_at = Instant::now() + LOOK.max(begun.elapsed() * LOOK_FACTOR);
        }
        self.bytes.saturating_sub(self.used.load(Ordering::Relaxed))
    }
}

impl Room {
    /// The disk space of a folder, or of the folder of a file.
    pub fn of(path: &Path) -> Self {
        let folder = if path.is_dir() {
            Some(path)
        } else {
            path.parent()
        };
        let folder = folder
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        Self {
            folder: folder.to_owned(),
            limit: None,
        }
    }

    /// The same if the folder may take this many bytes, as if its disk had this size; 0 is no
    /// limit. Clones share what they measure.
    pub fn within(self, bytes: u64) -> Self {
        let limit = || Limit {
            bytes,
            used: AtomicU64::new(0),
            look_at: Mutex::new(Instant::now()),
        };
        Self {
            limit: (bytes > 0).then(|| Arc::new(limit())),
            ..self
        }
    }

    /// Free bytes, if known.
    pub fn free_bytes(&self) -> Option<u64> {
        self.look().map(|(free, _)| free)
    }

    /// Free bytes and total bytes of the disk.
    pub(crate) fn look(&self) -> Option<(u64, u64)> {
        let stat = rustix::fs::statvfs(&self.folder).ok()?;
        Some((
            stat.f_bavail.saturating_mul(stat.f_frsize),
            stat.f_blocks.saturating_mul(stat.f_frsize),
        ))
    }

    /// Whether there is room for this many bytes more.
    pub fn check(&self, purpose: Use, bytes: u64) -> Result<(), Shortage> {
        // A disk with unknown space is written to until a write fails.
        if let Some((free, total)) = self.look() {
            enough(Bound::Disk(free), free, floor(purpose, total), bytes)?;
        }
        if let Some(limit) = &self.limit {
            // Both bounds hold; the disk comes first, because it is the one that cannot be raised.
            let left = limit.left(&self.folder);
            enough(Bound::Limit(left), left, floor(purpose, limit.bytes), bytes)?;
        }
        Ok(())
    }
}

fn enough(bound: Bound, left: u64, floor: u64, wanted: u64) -> Result<(), Shortage> {
    if left >= floor.saturating_add(wanted) {
        Ok(())
    } else {
        Err(Shortage {
            bound,
            floor,
            wanted,
        })
    }
}

/// Allocated bytes of a file, or of a folder with everything in it. Links are not followed.
pub fn allocated(path: &Path, depth: usize) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else {
        // It was removed while the folder was read, so it takes nothing.
        return 0;
    };
    let own = metadata.blocks().saturating_mul(BLOCK_BYTES);
    if !metadata.is_dir() || depth == 0 {
        return own;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    own + entries
        .map(|entry| allocated(&entry.path(), depth - 1))
        .sum::<u64>()
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
            assert!(
                floor(Use::Grow, total) > floor(Use::Write, total),
                "{total}"
            );
            assert!(floor(Use::Grow, total) <= total / 20);
        }
        assert_eq!(floor(Use::Grow, 1 << 40), 1 << 30);
    }

    #[test]
    fn what_waits_to_be_written_makes_nobodys_part_larger() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let room = Room::of(folder.path()).within(64 << 20);
        let shortage = |wanted| room.check(Use::Grow, wanted).expect_err("it is too much");
        let (little, much) = (shortage(64 << 20), shortage(1 << 60));
        assert_eq!(little.part_of_one(), floor(Use::Grow, 64 << 20) / 4);
        assert!(little.part_of_one() <= much.part_of_one());
        assert!(much.part_of_one() <= GROW_FLOOR.1 / 4, "{much}");
        let said = format!(
            "of which {} are reserved for others, and {} bytes wait to be written",
            floor(Use::Grow, 64 << 20),
            64 << 20
        );
        assert!(little.to_string().contains(&said), "{little}");
    }

    #[test]
    fn a_disk_has_room_for_a_byte_and_not_for_all_there_could_be() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let room = Room::of(&folder.path().join("state.redb"));
        assert!(room.free_bytes().is_some());
        let shortage = room
            .check(Use::Write, u64::MAX / 2)
            .expect_err("no disk is that large");
        assert!(
            shortage.to_string().contains("free some space"),
            "{shortage}"
        );
    }

    #[test]
    fn a_folder_with_a_limit_has_as_much_room_as_is_not_allocated() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // A file of a great length in which almost nothing is.
        fs::File::create(folder.path().join("1.redb"))
            .and_then(|file| file.set_len(1 << 30))
            .expect("is created");
        let room = Room::of(folder.path()).within(64 << 20);
        assert!(room.check(Use::Grow, 32 << 20).is_ok());
        let shortage = room
            .check(Use::Write, 64 << 20)
            .expect_err("that is all there may be");
        assert!(
            shortage
                .to_string()
                .starts_with("limits.disk_bytes leaves "),
            "{shortage}"
        );
        fs::write(folder.path().join("2.redb"), vec![1; 62 << 20]).expect("is written");
        let room = Room::of(folder.path()).within(64 << 20);
        assert!(room.check(Use::Grow, 0).is_err(), "builds stop");
        assert!(
            room.check(Use::Write, 0).is_ok(),
            "before active generations"
        );
        assert!(
            Room::of(folder.path())
                .within(0)
                .check(Use::Grow, 0)
                .is_ok(),
            "none is no limit"
        );
    }
}
