//! Snapshots: copies of a state at some positions, made while it continues, so that an as-of read
//! need not start at the first event.
//!
//! A snapshot is a state file named `<state file>-<position>-<time of its last event in ns>.redb`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::History;
use super::as_of::Moment;
use crate::actor::blocking;
use crate::data_dir::create_private;
use crate::deployment::Deployment;
use crate::deployments::with_headroom;
use crate::room::Use;
use crate::{state, storage};

/// Snapshots made at once.
const AT_ONCE: usize = 2;
/// Pause after a failed snapshot; it doubles up to the maximum.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));

/// The state of snapshot making.
#[derive(Debug)]
pub(crate) struct Snapshots {
    turns: tokio::sync::Semaphore,
    /// When the next attempt is due, and the pause before it, by deployment, after a failure.
    failed: Mutex<BTreeMap<String, (Instant, Duration)>>,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self {
            turns: tokio::sync::Semaphore::new(AT_ONCE),
            failed: Mutex::default(),
        }
    }
}

impl Snapshots {
    /// Whether the pause after a failure is over.
    fn may_try(&self, deployment: &str) -> bool {
        self.failed
            .lock()
            .get(deployment)
            .is_none_or(|(due, _)| *due <= Instant::now())
    }

    fn succeeded(&self, deployment: &str) {
        self.failed.lock().remove(deployment);
    }

    /// Records a failure; returns how long to wait.
    fn failed(&self, deployment: &str) -> Duration {
        let mut failed = self.failed.lock();
        let pause = failed
            .get(deployment)
            .map_or(RETRY_PAUSE.0, |(_, pause)| (*pause * 2).min(RETRY_PAUSE.1));
        failed.insert(deployment.to_owned(), (Instant::now() + pause, pause));
        pause
    }
}

/// The parts of a snapshot's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    state_file: u64,
    position: u64,
    time_ns: u64,
    path: PathBuf,
}

impl Named {
    fn parse(path: PathBuf) -> Option<Self> {
        // Only our names have three numbers; other files in the folder are left alone.
        let name = path.file_name()?.to_str()?.strip_suffix(".redb")?;
        let mut numbers = name.split('-').map(|number| number.parse().ok());
        let mut next = || numbers.next().flatten();
        let (state_file, position, time_ns) = (next()?, next()?, next()?);
        Some(Self {
            state_file,
            position,
            time_ns,
            path,
        })
    }
}

/// All snapshots in a folder, by state file and position.
fn list(folder: &Path) -> Vec<Named> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<Named> = entries
        .flatten()
        .filter_map(|entry| Named::parse(entry.path()))
        .collect();
    // By state file, then by position: the fields are in this order.
    found.sort();
    found
}

/// The last snapshot of a state at or before a moment.
pub(crate) fn nearest(
    folder: &Path,
    state_file: u64,
    moment: Moment,
    below: Option<u64>,
) -> Option<PathBuf> {
    let is_before = |named: &Named| match moment {
        Moment::Sequence(sequence) => named.position <= sequence,
        Moment::Time(time_ns) => named.time_ns <= time_ns,
    };
    // Times may go back: a snapshot after one with a later time may reflect events after the
    // moment.
    let of_state = list(folder)
        .into_iter()
        .filter(|named| named.state_file == state_file)
        .filter(|named| below.is_none_or(|below| named.position < below));
    // The list is in order of position, so the last one before the moment is the nearest.
    of_state
        .take_while(is_before)
        .last()
        .map(|named| named.path)
}

impl History {
    /// Makes the snapshots that are due, and removes those that are no longer kept.
    pub(crate) fn make_snapshots(self: &Arc<Self>) {
        let rollout = &self.config.rollout;
        // Both off: no copies are made.
        if rollout.snapshot_events == 0 && rollout.snapshot_interval.is_zero() {
            return;
        }
        for deployment in self.deployments.all() {
            if !self.snapshots.may_try(deployment.name()) {
                // The chore looks at everything again; this only spares a task.
                continue;
            }
            let (history, name) = (Arc::clone(self), deployment.name().to_owned());
            self.deployments.chore("snapshot", &name, async move {
                let name = deployment.name();
                match history.snapshot_if_due(&deployment).await {
                    Ok(()) => history.snapshots.succeeded(name),
                    Err(error) => {
                        let pause = history.snapshots.failed(name).as_secs();
                        tracing::warn!(
                            deployment = name,
                            %error,
                            "a snapshot could not be made; next try in {pause} s"
                        );
                    }
                }
            });
        }
    }

    async fn snapshot_if_due(&self, deployment: &Arc<Deployment>) -> Result<(), state::Error> {
        let rollout = &self.config.rollout;
        let state_file = deployment.record().active().state_file;
        let Some(store) = deployment.active().store() else {
            return Ok(());
        };
        let folder = self.deployments.folder.snapshots(deployment.name());
        let looked_in = folder.clone();
        let known = blocking(move || list(&looked_in)).await;
        let last = known
            .iter()
            .rev()
            .find(|named| named.state_file == state_file);
        // A state without a snapshot counts from its first event.
        let last_position = last.map_or(0, |named| named.position);
        let behind = store.position().saturating_sub(last_position);
        let by_events = rollout.snapshot_events > 0 && behind >= rollout.snapshot_events;
        // A clock that was set back makes the age unknown, which counts as old.
        let age = last.and_then(|named| {
            std::fs::metadata(&named.path)
                .ok()?
                .modified()
                .ok()?
                .elapsed()
                .ok()
        });
        let is_old = age.is_none_or(|age| age >= rollout.snapshot_interval);
        let by_age = !rollout.snapshot_interval.is_zero() && behind > 0 && is_old;
        if !(by_events || by_age) {
            return Ok(());
        }
        // The semaphore is never closed, so this always succeeds.
        let Ok(_turn) = self.snapshots.turns.acquire().await else {
            return Ok(());
        };
        // The copy is about as large as the state.
        let needed = with_headroom(store.sizes().file_bytes);
        let shortage = self.room.check(Use::Grow, needed);
        shortage.map_err(state::Error::Full)?;
        let snapshot = store.snapshot();
        // With 0 each copy would be removed as soon as it is made.
        let keep = rollout.snapshots_keep.max(1);
        let record = deployment.record();
        let begun = Instant::now();
        let position = snapshot.position();
        blocking(move || {
            create_private(&folder)
                .map_err(|error| state::Error::Storage(storage::Error::of_file(&folder, error)))?;
            let name = format!("{state_file}-{position}-{}.redb", snapshot.time_ns());
            state::copy(&snapshot, &folder.join(name))?;
            remove_surplus(&folder, keep, |state_file| record.uses_file(state_file));
            Ok::<_, state::Error>(())
        })
        .await?;
        // The deployment may have been deleted meanwhile.
        if !self
            .deployments
            .get(deployment.name())
            .is_ok_and(|known| Arc::ptr_eq(&known, deployment))
        {
            self.deployments.remove_leftovers().await;
        }
        let seconds = begun.elapsed().as_secs_f64();
        tracing::info!(
            deployment = deployment.name(),
            position,
            seconds,
            "made a snapshot"
        );
        Ok(())
    }
}

/// Removes all snapshots of a state. Blocking.
pub(crate) fn remove_all_of(folder: &Path, state_file: u64) {
    remove_surplus(folder, usize::MAX, |other| other != state_file);
}

/// Keeps only the newest snapshots of each state in use.
fn remove_surplus(folder: &Path, keep: usize, is_used: impl Fn(u64) -> bool) {
    let all = list(folder);
    for named in &all {
        // A few snapshots per state, so the square of their number does not matter.
        let newer = all.iter().filter(|other| {
            other.state_file == named.state_file && other.position > named.position
        });
        if (newer.count() >= keep || !is_used(named.state_file))
            && let Err(error) = std::fs::remove_file(&named.path)
        {
            tracing::warn!(path = %named.path.display(), %error, "cannot remove an old snapshot");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        names
            .iter()
            .for_each(|name| std::fs::write(folder.path().join(name), "").expect("written"));
        folder
    }

    fn names(folder: &Path) -> Vec<String> {
        list(folder)
            .iter()
            .map(|named| {
                named
                    .path
                    .file_name()
                    .expect("it has one")
                    .to_string_lossy()
                    .into_owned()
            })
            .collect()
    }

    #[test]
    fn the_nearest_snapshot_is_the_last_one_before_the_moment() {
        let folder = folder(&[
            "1-10-100.redb",
            "1-20-200.redb",
            "1-9-90.redb",
            "2-15-150.redb",
            "1-30.redb",
            "x",
        ]);
        let found = |moment| {
            let path = nearest(folder.path(), 1, moment, None)?;
            path.file_name()
                .map(|name| name.to_string_lossy().into_owned())
        };
        assert_eq!(
            found(Moment::Sequence(19)).as_deref(),
            Some("1-10-100.redb")
        );
        assert_eq!(
            found(Moment::Sequence(20)).as_deref(),
            Some("1-20-200.redb")
        );
        assert_eq!(found(Moment::Sequence(8)), None);
        assert_eq!(found(Moment::Time(99)).as_deref(), Some("1-9-90.redb"));
        let back = self::folder(&["1-10-100.redb", "1-20-300.redb", "1-30-200.redb"]);
        let nearest =
            nearest(back.path(), 1, Moment::Time(250), None).expect("there is one before");
        assert!(
            nearest.ends_with("1-10-100.redb"),
            "what is behind a younger one may reflect that: {nearest:?}"
        );
    }

    #[test]
    fn only_this_many_of_each_state_in_use_are_kept() {
        let folder = folder(&[
            "1-10-1.redb",
            "1-20-2.redb",
            "1-30-3.redb",
            "2-5-1.redb",
            "3-1-1.redb",
        ]);
        remove_surplus(folder.path(), 2, |state_file| state_file != 3);
        assert_eq!(
            names(folder.path()),
            ["1-20-2.redb", "1-30-3.redb", "2-5-1.redb"]
        );
    }
}
