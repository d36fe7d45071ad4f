//! SideFold runners: they fold the stream of a deployment into a temporary file, for an as-of read,
//! a verification or a partial rebuild.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::History;
use crate::actor::blocking;
use crate::deployments::{Error, Role};
use crate::module::Module;
use crate::pipeline::{Ceiling, NO_LEASH, Throttle, WhenFull};
use crate::progress::DeploymentState;
use crate::room::{Room, Use};
use crate::runner::{Part, Runner};
use crate::state::catalogue::{Generation, Record};
use crate::state::exceptions::Skips;

/// How long a caller waits for the end of an obstacle that keeps a side fold from folding.
const STUCK_MAX: Duration = Duration::from_secs(5);

/// A side fold, whose file is removed with it.
#[derive(Debug)]
pub(crate) struct SideFold {
    pub(crate) runner: Arc<Runner>,
    path: PathBuf,
}

impl Drop for SideFold {
    fn drop(&mut self) {
        self.runner.ask_to_stop();
        // An open file exists until its last user has closed it.
        let _ = std::fs::remove_file(&self.path);
        // The runner may be about to create it, so remove it once more after the runner has ended.
        let (runner, path) = (Arc::clone(&self.runner), self.path.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || {
                runner.join();
                let _ = std::fs::remove_file(path);
            });
        }
    }
}

/// How a side fold folds.
#[derive(Clone, Default)]
pub(crate) struct SideFoldOptions {
    /// How far it folds.
    pub(crate) ceiling: Ceiling,
    /// How fast it folds.
    pub(crate) throttle: Throttle,
    /// Seed of its batch boundaries.
    pub(crate) shuffle: Option<u64>,
    /// The part that it folds.
    pub(crate) part: Option<Arc<dyn Part>>,
    /// A state file to start from.
    pub(crate) from: Option<PathBuf>,
    /// The events that it skips: those that the state which it should equal skipped.
    pub(crate) skips: Skips,
}

impl History {
    /// A path for a file that nobody else uses.
    fn new_path(&self) -> PathBuf {
        // The folder is emptied at each start, so numbers need to be unique in this process only.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        self.deployments
            .folder
            .scratch()
            .join(format!("{}.redb", NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// Starts a side fold with a generation's module.
    pub(crate) async fn start_side_fold(
        &self,
        record: &Record,
        generation: &Generation,
        module: Arc<Module>,
        options: SideFoldOptions,
    ) -> Result<SideFold, Error> {
        let path = self.new_path();
        // The copy is its own file: the snapshot stays for others.
        if let Some(from) = options.from {
            let (to, room) = (path.clone(), self.room.clone());
            blocking(move || copy(&from, &to, &room)).await?;
        }
        let mut parts = self
            .runners
            .options(record, generation, Ok(module), Role::Build);
        parts.path.clone_from(&path);
        // Nobody has seen a side fold, so it answers from any position.
        parts.catches_up_to = Some(0);
        parts.pace = (options.ceiling, options.throttle);
        parts.settings.shuffle = options.shuffle;
        // What fails in a side fold is no failure of the deployment, so it makes no bundle.
        parts.settings.keeper = None;
        // A side fold that waits for disk space would hold a request; it fails instead.
        parts.settings.disk = parts
            .settings
            .disk
            .map(|(room, _)| (room, WhenFull::GiveUp));
        parts.program.part = options.part;
        parts.program.skips = options.skips;
        // Serial: what it compares, or shows of the past, does not rest on what lanes promise.
        parts.program.lanes = 1;
        // It has passed everything that the active generation has, and gets usual attempts.
        parts.program.on_probation = false;
        // It can never own effects, so it may go where it likes.
        parts.program.ownership = None;
        parts.outlets = Arc::default();
        parts.leash = NO_LEASH;
        parts.paused = false;
        parts.metrics = parts.metrics.without_events();
        let runner = Runner::start(parts);
        runner.stop_serving();
        Ok(SideFold { runner, path })
    }
}

/// Copies a snapshot to start from. A partial copy is removed.
fn copy(from: &Path, to: &Path, room: &Room) -> Result<(), Error> {
    let bytes = std::fs::metadata(from).map_or(0, |metadata| metadata.len());
    room.check(Use::Grow, bytes)
        .map_err(Error::no_room("cannot copy a snapshot"))?;
    std::fs::copy(from, to).map(drop).map_err(|error| {
        // Half a copy would be opened as a damaged state.
        let _ = std::fs::remove_file(to);
        Error::Files {
            what: "cannot copy a snapshot",
            source: error,
        }
    })
}

impl SideFold {
    /// Waits until it reaches its ceiling; an error says why it can't.
    pub(crate) async fn arrives(&self, change: u64) -> Result<u64, Error> {
        // A failed runner does not move either, so check for a failure first and last.
        tokio::select! {
            biased;
            () = self.runner.wait_until_stopped() => {}
            position = self.runner.held_at(change) => {
                if self.runner.now().state != DeploymentState::Failed {
                    return Ok(position);
                }
            }
        }
        let failure = self
            .runner
            .now()
            .failure
            .map(|failure| format!("{}: {}", failure.kind, failure.message));
        Err(Error::Conflict(format!(
            "folding the stream again failed: {}",
            failure.unwrap_or_default()
        )))
    }

    /// Waits until it is close to the end of the stream.
    pub(crate) async fn comes_near(&self, within: u64) -> Result<(), Error> {
        let is_near = |runner: &Runner| {
            let now = runner.now();
            match now.state {
                // `Live` may be over in a moment, so one look at it is enough.
                DeploymentState::Live => Some(true),
                DeploymentState::CatchingUp if now.applied > 0 && now.pending <= within => {
                    Some(true)
                }
                DeploymentState::Failed => Some(false),
                _ => None,
            }
        };
        if self.runner.until_figures(is_near).await {
            Ok(())
        } else {
            self.arrives(0).await.map(drop)
        }
    }

    /// What keeps it from getting on just now, in words, if anything does.
    pub(crate) fn obstacle(&self) -> Option<String> {
        let now = self.runner.now();
        if let Some(failure) = now
            .failure
            .filter(|_| now.state == DeploymentState::Retrying)
        {
            return Some(format!("{}: {}", failure.kind, failure.message));
        }
        let source = self.runner.source_status();
        let state = || "the source can't be read".to_owned();
        source
            .is_trouble()
            .then(|| source.message.clone().unwrap_or_else(state))
    }

    /// Waits for a result of it; an error if an obstacle keeps it from folding for longer than a
    /// moment, so that the caller gets an answer.
    pub(crate) async fn unless_stuck<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let stuck = async {
            // A short trouble, such as a reconnect, is waited for.
            loop {
                let obstacle = self.runner.until(|_| self.obstacle()).await;
                let passed = self
                    .runner
                    .until(|_| self.obstacle().is_none().then_some(()));
                if tokio::time::timeout(STUCK_MAX, passed).await.is_err() {
                    return self.obstacle().unwrap_or(obstacle);
                }
            }
        };
        // The work first: it may be done in the same moment.
        tokio::select! {
            biased;
            done = work => done,
            obstacle = stuck => Err(Error::NotOpen(format!(
                "the stream can't be folded just now ({obstacle}); try again later"
            ))),
        }
    }

    /// Ends it, with everything durable, and leaves its file to the next runner that starts from
    /// it.
    pub(crate) async fn close(&self) {
        self.runner.ask_to_stop();
        // Its file is durable when the thread has ended.
        let runner = Arc::clone(&self.runner);
        blocking(move || runner.join()).await;
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::tests::paused;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_that_is_made_after_its_fold_was_dropped_goes_at_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for number in 0..20 {
            let path = folder.path().join(format!("{number}.redb"));
            let runner = Runner::start(paused(path.clone()));
            let is_used = Arc::downgrade(&runner);
            drop(SideFold { runner, path });
            let gone = async {
                while is_used.strong_count() > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), gone)
                .await
                .expect("it ends");
        }
        let mut left = std::fs::read_dir(folder.path()).expect("it is there");
        assert!(left.next().is_none(), "{left:?}");
    }
}
