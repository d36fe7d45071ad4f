//! Disk usage of the data folder: allocated blocks, whatever the lengths of files say.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub use crate::room::allocated;
use crate::room::{DEPTH_MAX, Room};

/// How long a result is good, at least and as a multiple of the time that it took: a folder of many
/// files on a slow disk is visited less often.
const GOOD_FOR: Duration = Duration::from_secs(5);
const GOOD_FOR_LOOKS: u32 = 20;

/// Used and free space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes for the states of each deployment: all its generations and snapshots.
    pub deployments: BTreeMap<String, u64>,
    /// Bytes of the data folder.
    pub folder_bytes: u64,
    /// Free bytes on its disk; none if unknown.
    pub free_bytes: Option<u64>,
    /// Size of the disk in bytes; none if unknown.
    pub disk_bytes: Option<u64>,
}

impl Usage {
    /// Measures a data folder. Blocking; a file that disappears meanwhile counts as nothing.
    pub fn of(folder: &Path) -> Self {
        // First, so that it is from the same moment as what follows, or a little older.
        let (free_bytes, disk_bytes) = Room::of(folder).look().unzip();
        let mut deployments = BTreeMap::new();
        for part in ["state", "snapshots"] {
            for entry in fs::read_dir(folder.join(part))
                .into_iter()
                .flatten()
                .flatten()
            {
                let name = entry.file_name().to_string_lossy().into_owned();
                *deployments.entry(name).or_default() += allocated(&entry.path(), DEPTH_MAX);
            }
        }
        Self {
            deployments,
            folder_bytes: allocated(folder, DEPTH_MAX),
            free_bytes,
            disk_bytes,
        }
    }
}

/// The last result, so that frequent requests cost little.
#[derive(Debug, Default)]
pub struct Recent(Mutex<Option<Found>>);

#[derive(Debug)]
struct Found {
    usage: Usage,
    good_until: Instant,
}

impl Recent {
    /// The usage of a data folder as of a few seconds ago, or longer ago if it takes long to
    /// measure; with the free space as of now. Blocking: one caller measures, and the others wait
    /// for its result.
    pub fn of(&self, folder: &Path) -> Usage {
        let mut recent = self.0.lock();
        if let Some(found) = recent
            .as_ref()
            .filter(|found| Instant::now() < found.good_until)
        {
            // Free space costs one call, so it is never old.
            let (free_bytes, disk_bytes) = Room::of(folder).look().unzip();
            return Usage {
                free_bytes,
                disk_bytes,
                ..found.usage.clone()
            };
        }
        // The lock is held while it measures: a second walk through the folder would say the same.
        let begun = Instant::now();
        let usage = Usage::of(folder);
        let good_until = Instant::now() + (begun.elapsed() * GOOD_FOR_LOOKS).max(GOOD_FOR);
        *recent = Some(Found {
            usage: usage.clone(),
            good_until,
        });
        usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_not_looked_at_each_time() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let recent = Recent::default();
        let before = recent.of(folder.path());
        fs::write(folder.path().join("new"), vec![1; 100_000]).expect("is written");
        let after = recent.of(folder.path());
        assert_eq!(
            after.folder_bytes, before.folder_bytes,
            "it is good for a while"
        );
        assert!(
            after.free_bytes.is_some(),
            "what is free is looked at each time"
        );
        recent
            .0
            .lock()
            .as_mut()
            .expect("it was looked at")
            .good_until = Instant::now();
        assert!(recent.of(folder.path()).folder_bytes >= before.folder_bytes + 100_000);
    }

    #[test]
    fn files_of_all_generations_count_with_what_is_allocated_for_them() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (state, snapshots) = (
            folder.path().join("state/totals"),
            folder.path().join("snapshots/totals"),
        );
        fs::create_dir_all(&state).expect("is created");
        fs::create_dir_all(&snapshots).expect("is created");
        fs::write(state.join("1.redb"), vec![1; 100_000]).expect("is written");
        fs::write(snapshots.join("7.redb"), vec![1; 50_000]).expect("is written");
        // A file of a great length in which almost nothing is.
        fs::File::create(state.join("2.redb"))
            .and_then(|file| file.set_len(1 << 30))
            .expect("is created");
        let usage = Usage::of(folder.path());
        let bytes = usage.deployments["totals"];
        assert!((150_000..10_000_000).contains(&bytes), "{bytes}");
        assert!(
            usage.folder_bytes >= bytes && usage.free_bytes <= usage.disk_bytes,
            "{usage:?}"
        );
    }
}
