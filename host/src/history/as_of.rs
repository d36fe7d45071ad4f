//! As-of reads: what a deployment would have answered at an earlier sequence or time.
//!
//! The stream is folded up to that point in a separate runner, starting from the nearest snapshot.
//! The result is kept for a while, because a second as-of read often follows the first. The number
//! of results and their disk space are limited.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::lost::Origin;
use super::{History, SideFold, SideFoldOptions, snapshots};
use crate::deployment::{Deployment, View};
use crate::deployments::{Error, MissingEvents};
use crate::pipeline::Ceiling;
use crate::progress::DeploymentState;
use crate::room::Use;
use crate::runner::ReadError;
use crate::state::Snapshot;
use crate::state::catalogue::Generation;

/// A moment in the past of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Right after this sequence.
    Sequence(u64),
    /// Right after the last event that was stored at or before this time, in nanoseconds since the
    /// Unix epoch.
    Time(u64),
}

impl Moment {
    fn ceiling(self) -> Ceiling {
        match self {
            Self::Sequence(sequence) => Ceiling::Position(sequence),
            Self::Time(time_ns) => Ceiling::Time(time_ns),
        }
    }
}

/// A state of the past.
#[derive(Debug)]
struct PastState {
    deployment: String,
    generation: u64,
    moment: Moment,
    /// Whether events that were applied may be missing from it.
    missing: MissingEvents,
    /// With what it started.
    origin: Origin,
    /// How many events it lacks, at most, without having noticed it; none as long as that is
    /// unknown.
    unseen: Option<u64>,
    /// The position of the deployment when it began.
    head: u64,
    fold: Arc<SideFold>,
    used_at: Instant,
}

impl PastState {
    /// Whether it is still the state as of its moment, if the deployment is at `head` now. What
    /// comes last in a stream says that no earlier time follows only if it is later than the
    /// moment.
    fn is_current(&self, head: u64) -> bool {
        let position = self.fold.runner.position();
        match self.moment {
            Moment::Sequence(_) => true,
            // It stopped before events of a later time, or nothing has come since.
            Moment::Time(_) => {
                !self.fold.runner.is_held() || position < self.head || head <= position
            }
        }
    }

    fn found(&self) -> Past {
        Past {
            fold: Arc::clone(&self.fold),
            origin: self.origin,
            unseen: self.unseen,
        }
    }
}

/// A state of the past for one request; see [`PastState`].
struct Past {
    fold: Arc<SideFold>,
    origin: Origin,
    unseen: Option<u64>,
}

/// The past states that are kept.
#[derive(Debug, Default)]
pub(crate) struct PastStates {
    kept: Mutex<Vec<PastState>>,
    /// Only one is started at a time, so that there are never more than allowed.
    beginning: tokio::sync::Mutex<()>,
}

/// The progress of a past state.
#[derive(Debug, thiserror::Error)]
#[error(
    "the past state is still being built: at {position} of {target}, {rate:.0} events/s{waits}; \
     try again later, the build continues", waits = waits(.obstacle)
)]
pub struct Preparing {
    /// The position that it has reached.
    pub position: u64,
    /// The highest position that it may have to reach.
    pub target: u64,
    /// Events per second.
    pub rate: f64,
    /// What keeps it from getting on just now, in words.
    pub obstacle: Option<String>,
}

/// An error if a moment is in the future of a state at `head`.
fn check_past(moment: Moment, head: u64, deployment: &str) -> Result<(), Error> {
    // `unwrap_or` is for years after 2554, where nanoseconds no longer fit 64 bits.
    let now_ns = u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(u64::MAX);
    match moment {
        Moment::Sequence(sequence) if sequence > head => Err(Error::Refused(format!(
            "sequence {sequence} is in the future: {deployment} is at {head}; use at-least to wait \
             for it"
        ))),
        Moment::Time(time_ns) if time_ns > now_ns => Err(Error::Refused(
            "that time is in the future; use a time in the past".to_owned(),
        )),
        _ => Ok(()),
    }
}

fn not_ready(why: &str) -> AsOfError {
    let why = format!("it is unknown which events the stream has lost ({why}); try again");
    AsOfError::Read(ReadError::NotReady(why))
}

fn waits(obstacle: &Option<String>) -> String {
    obstacle
        .as_ref()
        .map(|obstacle| format!(", trying again ({obstacle})"))
        .unwrap_or_default()
}

/// Why there is no view of the past.
#[derive(Debug, thiserror::Error)]
pub enum AsOfError {
    /// It cannot be built.
    #[error(transparent)]
    Host(#[from] Error),
    /// The maximum number is already being built.
    #[error(
        "{0} past states are already being built, as many as rollout.as_of_max allows; try again \
         later"
    )]
    Busy(usize),
    /// The deployment can't be read at the moment.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It is not ready yet.
    #[error(transparent)]
    Preparing(#[from] Preparing),
}

impl History {
    /// A view of a deployment as of a moment; waits at most `timeout` for it.
    ///
    /// If the stream has lost events that were applied, the view is refused unless `missing`
    /// accepts that.
    pub async fn view_as_of(
        &self,
        deployment: &Arc<Deployment>,
        moment: Moment,
        missing: MissingEvents,
        timeout: Duration,
    ) -> Result<View, AsOfError> {
        // If the present can't be read, the past can't be told from the future.
        let head = deployment.view(None, timeout).await?.snapshot.position();
        let record = deployment.record();
        let generation = record.active();
        check_past(moment, head, deployment.name())?;
        let Past {
            fold,
            origin,
            unseen,
        } = self
            .past(deployment, generation, (moment, head), missing)
            .await?;
        // `arrives(0)` waits for the ceiling of the fold, which is the moment itself.
        match tokio::time::timeout(timeout, fold.arrives(0)).await {
            Ok(arrived) => arrived?,
            Err(_) => {
                let (now, position) = (fold.runner.now(), fold.runner.position());
                // The sequence of a time is known only when the fold gets there; the head bounds
                // it.
                let target = if let Moment::Sequence(sequence) = moment {
                    sequence
                } else {
                    head
                };
                return Err(Preparing {
                    position,
                    target,
                    rate: now.rate,
                    obstacle: fold.obstacle(),
                }
                .into());
            }
        };
        let unseen = match unseen {
            Some(unseen) => unseen,
            // The stream could not be asked before, or it would not show what it has lost since; and
            // the fold has read it.
            None => {
                let looked = self.may_look_back(deployment, moment, origin, missing);
                let looked = looked.await?;
                if let Some(why) = looked.unknown {
                    return Err(not_ready(&why));
                }
                self.past_states.note_unseen(&fold, looked.unseen);
                looked.unseen
            }
        };
        let snapshot = self.counted(&fold, unseen).await?;
        Ok(View::of(Arc::clone(&fold.runner), snapshot))
    }

    /// A snapshot of a past state that counts events which it lacks without having noticed it.
    async fn counted(&self, fold: &SideFold, unseen: u64) -> Result<Snapshot, Error> {
        let gone = || Error::NotOpen("the past state was closed; try again".to_owned());
        let snapshot = fold.runner.store().ok_or_else(gone)?.snapshot();
        if snapshot.missing_count() >= unseen {
            return Ok(snapshot);
        }
        // One at a time: of two requests that note it at once, one would be told that it can't.
        let _noting = self.past_states.beginning.lock().await;
        fold.runner.note_missing(unseen).await?;
        Ok(fold.runner.store().ok_or_else(gone)?.snapshot())
    }

    /// The state as of a moment, found or started; `head` is the position of the deployment.
    async fn past(
        &self,
        deployment: &Arc<Deployment>,
        generation: &Generation,
        (moment, head): (Moment, u64),
        missing: MissingEvents,
    ) -> Result<Past, AsOfError> {
        // Held until the state is in the list: a second request for the same moment then finds it,
        // and two requests together cannot exceed `as_of_max`.
        let _beginning = self.past_states.beginning.lock().await;
        let wanted = (deployment.name(), generation.number, moment, missing);
        if let Some(known) = self.past_states.find(wanted, head) {
            return Ok(known);
        }
        let rollout = &self.config.rollout;
        let most = rollout.as_of_max.max(1);
        if !self.past_states.make_room(most, rollout.as_of_bytes_max) {
            return Err(AsOfError::Busy(most));
        }
        let shortage = self.room.check(Use::Grow, 0);
        // Nothing is reserved: how large the past state will be is unknown, so this only keeps the
        // floor.
        shortage.map_err(Error::no_room("a past state can't be built"))?;
        let module = self.runners.module_of(generation).await?;
        let folder = self.deployments.folder.snapshots(deployment.name());
        let skips = deployment.skips_as_folded()?;
        // Snapshots have no parked events, so a fold that parks some begins before the first.
        let below = skips.past().parked.first().copied();
        let from = snapshots::nearest(&folder, generation.state_file, moment, below);
        let mut generation = generation.clone();
        // With a snapshot, only what is gone after it matters.
        let origin = if from.is_some() {
            Origin::Snapshot
        } else {
            Origin::Start
        };
        let accepted = self
            .may_look_back(deployment, moment, origin, missing)
            .await?;
        // Events may go between this look and the fold, which then does not notice it.
        let hides_losses = match self.sources.get(&generation.source) {
            // If that is unknown, so is what is gone.
            Some(source) => source.hides_losses().await.unwrap_or(true),
            None => false,
        };
        accepted.apply(&mut generation);
        let options = SideFoldOptions {
            ceiling: moment.ceiling(),
            from,
            skips,
            ..SideFoldOptions::default()
        };
        let fold = Arc::new(
            self.start_side_fold(&deployment.record(), &generation, module, options)
                .await?,
        );
        let past = PastState {
            deployment: deployment.name().to_owned(),
            generation: generation.number,
            moment,
            missing,
            origin,
            unseen: (accepted.unknown.is_none() && !hides_losses).then_some(accepted.unseen),
            head,
            fold,
            used_at: Instant::now(),
        };
        Ok(self.past_states.add(past))
    }
}

impl PastStates {
    /// Notes how many events a past state lacks without having noticed it.
    fn note_unseen(&self, fold: &Arc<SideFold>, unseen: u64) {
        let mut kept = self.kept.lock();
        let noted = kept.iter_mut().find(|past| Arc::ptr_eq(&past.fold, fold));
        if let Some(past) = noted {
            past.unseen = Some(unseen);
        }
    }

    fn find(&self, wanted: (&str, u64, Moment, MissingEvents), head: u64) -> Option<Past> {
        let mut kept = self.kept.lock();
        // A failed one is started from scratch, and so is one whose moment has got more events.
        kept.retain(|past| past.fold.runner.now().state != DeploymentState::Failed);
        kept.retain(|past| past.deployment != wanted.0 || past.is_current(head));
        let is_wanted = |past: &&mut PastState| {
            (
                past.deployment.as_str(),
                past.generation,
                past.moment,
                past.missing,
            ) == wanted
        };
        let past = kept.iter_mut().find(is_wanted)?;
        past.used_at = Instant::now();
        Some(past.found())
    }

    /// Removes the least recently used states until there is room for one more; returns whether
    /// there is. States that are still being built stay, because somebody waits for them.
    fn make_room(&self, most: usize, bytes_max: u64) -> bool {
        let mut kept = self.kept.lock();
        // Least recently used first.
        kept.sort_by_key(|past| past.used_at);
        let bytes = |past: &PastState| {
            std::fs::metadata(past.fold.path()).map_or(0, |metadata| metadata.len())
        };
        while kept.len() >= most
            || (!kept.is_empty() && kept.iter().map(bytes).sum::<u64>() > bytes_max)
        {
            // One that is held has arrived at its moment. Readers that still use it have their own
            // `Arc`, so its file stays until they are done.
            let Some(done) = kept.iter().position(|past| past.fold.runner.is_held()) else {
                return false;
            };
            kept.remove(done);
        }
        true
    }

    fn add(&self, past: PastState) -> Past {
        let added = past.found();
        self.kept.lock().push(past);
        added
    }

    /// Removes all past states of a deployment.
    pub(crate) fn forget(&self, deployment: &str) {
        self.kept
            .lock()
            .retain(|past| past.deployment != deployment);
    }

    /// Removes past states that were not used for this long.
    pub(crate) fn expire(&self, unused: Duration) {
        // A failed one is useless and takes up room.
        let is_kept = |past: &PastState| {
            past.used_at.elapsed() < unused
                && past.fold.runner.now().state != DeploymentState::Failed
        };
        self.kept.lock().retain(is_kept);
    }
}
