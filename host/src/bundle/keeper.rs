//! Keeps the bundles of first errors as files.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{BUNDLE_BYTES_MAX, Bundle, Failed};
use crate::data_dir::DataDir;
use crate::small_file::read_regular;

/// Most bundles of a deployment. Parked events of a module beyond that are not first failures.
const KEPT_MAX: usize = 10;
/// Largest bundle that is kept, in bytes.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// What becomes of an event that failed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is set aside, with what it read.
    Parked,
    /// The deployment stops at it.
    Stops,
}

/// The folder with the bundles of one deployment.
#[derive(Clone, Debug)]
pub struct Keeper {
    folder: DataDir,
    deployment: String,
}

impl Keeper {
    /// The keeper of a deployment. The folder appears with the first bundle.
    pub(crate) fn new(folder: DataDir, deployment: &str) -> Self {
        Self {
            folder,
            deployment: deployment.to_owned(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.failures(&self.deployment)
    }

    /// Whether a bundle of another failure of a module would be kept.
    pub fn wants(&self, module: &str, fate: Fate) -> bool {
        let of_module = |path: &&PathBuf| is_of(path, module);
        match fate {
            Fate::Parked => listed(&self.path()).iter().filter(of_module).count() < KEPT_MAX,
            // It tells after a restart of the host since when the deployment has failed.
            Fate::Stops => true,
        }
    }

    /// Writes a bundle, and removes the oldest ones beyond the limit, those of other modules first.
    /// Blocking. Returns the path; none if there is no room. The failure itself is reported
    /// elsewhere, so an error here is only logged.
    ///
    /// The module is left out: the host has it once, and adds it to what it exports.
    pub fn keep(
        &self,
        bundle: &Bundle,
        fate: Fate,
        has_room: impl Fn(u64) -> bool,
    ) -> Option<PathBuf> {
        match self.write(bundle, fate, has_room) {
            Ok(path) => path,
            Err(error) => {
                tracing::warn!(
                    deployment = self.deployment,
                    %error,
                    "a failure bundle could not be written"
                );
                None
            }
        }
    }

    fn write(
        &self,
        bundle: &Bundle,
        fate: Fate,
        has_room: impl Fn(u64) -> bool,
    ) -> io::Result<Option<PathBuf>> {
        let bytes = bundle.to_bytes();
        if bytes.len() > KEPT_BYTES_MAX || !has_room(bytes.len() as u64) {
            tracing::warn!(
                deployment = self.deployment,
                bytes = bytes.len(),
                "there is no room for a failure bundle; `foldstream parked export` makes one of an \
                 event that is parked"
            );
            return Ok(None);
        }
        let folder = self.path();
        crate::data_dir::create_private(&folder)?;
        let module = bundle.module.get(..12).unwrap_or(&bundle.module);
        let sequence = bundle.failure.as_ref().map_or(0, |failed| failed.sequence);
        // Padded, so that the order of names is the order of events.
        let name = match fate {
            Fate::Parked => format!("{sequence:020}-{module}.json"),
            // A rebuild that stops at the same event leaves that of the active generation.
            Fate::Stops => format!("{sequence:020}-g{}-{module}.json", bundle.generation),
        };
        let path = folder.join(name);
        let mut file = tempfile::Builder::new()
            .prefix(".foldstream-bundle-")
            .tempfile_in(&folder)?;
        io::Write::write_all(&mut file, &bytes)?;
        file.persist(&path).map_err(|error| error.error)?;
        let mut others = listed(&folder);
        others.retain(|other| *other != path);
        let beyond = (others.len() + 1).saturating_sub(KEPT_MAX);
        // Stable, so that the oldest are first among those of a kind.
        others.sort_by_key(|other| (is_of(other, module), is_of_stop(other)));
        for old in &others[..beyond] {
            fs::remove_file(old)?;
        }
        Ok(Some(path))
    }

    /// The bundle with its module, if the host still has it.
    pub fn completed(&self, mut bundle: Bundle) -> Bundle {
        match self.folder.read_module(&bundle.module) {
            Ok(component) => bundle.with_component(&component),
            Err(error) => {
                bundle.notes.push(format!(
                    "the host could not read the module {}: {error}; replay it with --module",
                    bundle.module
                ));
                bundle
            }
        }
    }

    /// Removes the bundles of events that were dropped, because their data may be the reason.
    /// Blocking.
    pub fn forget(&self, sequences: impl Iterator<Item = u64>) {
        let names: BTreeSet<String> = sequences
            .map(|sequence| format!("{sequence:020}-"))
            .collect();
        if names.is_empty() {
            return;
        }
        let is_of_event = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.and_then(|name| name.get(..21))
                .is_some_and(|begin| names.contains(begin))
        };
        for path in listed(&self.path()).into_iter().filter(is_of_event) {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(
                    deployment = self.deployment,
                    %error,
                    path = %path.display(),
                    "the failure bundle of a dropped event could not be removed; remove it"
                );
            }
        }
    }

    /// The failure at which a generation stopped behind a position, if there is a bundle of it: it has
    /// lasted since then. Blocking.
    pub fn failure_behind(
        &self,
        position: u64,
        (generation, module): (u64, &str),
    ) -> Option<Failed> {
        // A state that stopped there has not passed it, and has no bundle of a later event.
        let is_behind = |path: &PathBuf| sequence_of(path).is_some_and(|at| at > position);
        listed(&self.path())
            .into_iter()
            .rev()
            .filter(|path| is_of(path, module) && is_behind(path))
            // Other generations of the module may have met other events.
            .filter_map(|path| {
                Bundle::from_bytes(&read_regular(&path, BUNDLE_BYTES_MAX).ok()?).ok()
            })
            .find(|bundle| bundle.generation == generation)?
            .failure
    }

    /// The newest bundle, with its module if the host still has it. Blocking.
    pub fn newest(&self) -> io::Result<Option<Bundle>> {
        let modified = |path: &PathBuf| {
            fs::metadata(path)
                .and_then(|metadata| metadata.modified())
                .ok()
        };
        // By time: the newest is not the one with the highest sequence after a rebuild.
        match listed(&self.path()).into_iter().max_by_key(modified) {
            Some(path) => {
                let bundle = Bundle::from_bytes(&read_regular(&path, BUNDLE_BYTES_MAX)?)
                    .map_err(io::Error::other)?;
                Ok(Some(self.completed(bundle)))
            }
            None => Ok(None),
        }
    }
}

/// Whether a file has a bundle of a module.
fn is_of(path: &Path, module: &str) -> bool {
    let module = module.get(..12).unwrap_or(module);
    path.file_stem()
        .is_some_and(|name| name.to_string_lossy().ends_with(module))
}

/// Whether a file has a bundle of an event at which a generation stopped.
fn is_of_stop(path: &Path) -> bool {
    path.file_stem()
        .is_some_and(|name| name.to_string_lossy().contains("-g"))
}

/// The event of a bundle.
fn sequence_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.get(..20)?.parse().ok()
}

/// The bundles of a folder, in the order of their events.
fn listed(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{Failed, Origin};
    use crate::state::Traced;

    fn bundle(module: &str, sequence: u64) -> Bundle {
        bundle_of(1, module, sequence)
    }

    fn bundle_of(generation: u64, module: &str, sequence: u64) -> Bundle {
        let origin = Origin {
            deployment: "totals",
            generation,
            checks_events_after: None,
            position: 0,
            module,
            grants: None,
            logs: std::collections::BTreeSet::new(),
        };
        let failure = Failed {
            sequence,
            kind: "trap".to_owned(),
            class: None,
            message: String::new(),
            first_at: None,
        };
        Bundle::new(origin, Some(failure), &[], &Traced::default())
    }

    #[test]
    fn the_first_failures_of_each_module_are_kept() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = DataDir::claim(folder.path()).expect("an empty folder");
        data.complete().expect("makes its parts");
        let keeper = Keeper::new(data.clone(), "totals");
        assert!(keeper.newest().expect("reads").is_none());
        let modules = ["a".repeat(64), "b".repeat(64)];
        for module in &modules {
            for sequence in 1..20 {
                if keeper.wants(module, Fate::Parked) {
                    keeper
                        .keep(&bundle(module, sequence), Fate::Parked, |_| true)
                        .expect("is written");
                }
            }
        }
        let kept = listed(&data.failures("totals"));
        assert_eq!(kept.len(), KEPT_MAX);
        assert!(kept.iter().all(|path| is_of(path, &modules[1])), "{kept:?}");
        let none = keeper.keep(&bundle(&modules[0], 30), Fate::Parked, |_| false);
        assert!(none.is_none());
        assert_eq!(listed(&data.failures("totals")), kept, "without room");
        let newest = keeper.newest().expect("reads").expect("there are some");
        assert!(newest.notes[0].contains("--module"), "{:?}", newest.notes);
        let first = listed(&data.failures("totals")).len();
        keeper.forget([1, 2, 100].into_iter());
        assert_eq!(listed(&data.failures("totals")).len(), first - 2);
    }

    #[test]
    fn what_stops_each_generation_is_kept_however_many_events_are_parked() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = DataDir::claim(folder.path()).expect("an empty folder");
        data.complete().expect("makes its parts");
        let keeper = Keeper::new(data.clone(), "totals");
        let module = "a".repeat(64);
        let keep = |bundle: Bundle, fate| keeper.keep(&bundle, fate, |_| true).expect("is written");
        for sequence in 1..=10 {
            keep(bundle(&module, sequence), Fate::Parked);
        }
        assert!(!keeper.wants(&module, Fate::Parked));
        assert!(keeper.wants(&module, Fate::Stops));
        keep(bundle(&module, 12), Fate::Stops);
        // Rebuilds of the same module stop at the same event, and at an earlier and a later one.
        for (generation, sequence) in [(2, 12), (3, 2), (4, 20)] {
            keep(bundle_of(generation, &module, sequence), Fate::Stops);
        }
        assert_eq!(listed(&data.failures("totals")).len(), KEPT_MAX);
        let behind = |position, generation| {
            let failed = keeper.failure_behind(position, (generation, &module));
            failed.map(|failed| failed.sequence)
        };
        assert_eq!(behind(11, 1), Some(12));
        assert_eq!(behind(11, 2), Some(12));
        assert_eq!(behind(1, 3), Some(2));
        assert_eq!(behind(19, 4), Some(20));
        assert_eq!((behind(12, 1), behind(0, 5)), (None, None));
        keeper.forget([12].into_iter());
        assert_eq!((behind(11, 1), behind(11, 2)), (None, None));
    }
}
