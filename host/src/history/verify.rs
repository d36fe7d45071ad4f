//! Verification: folding the stream again, with other batch boundaries and restarts, must give the
//! same bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{History, SideFold, SideFoldOptions, lacking, lacking_in_words};
use crate::actor::blocking;
use crate::deployment::{Deployment, parked_counts};
use crate::deployments::{
    Error, FILTERED_HOLD_MAX, MissingEvents, align, check_gate, compare, first_other_timer, owners,
    parked_remark, skipped_remark,
};
use crate::module::Module;
use crate::overview::{self, Divergence, Verification, WorkState, missing_remark};
use crate::pipeline::{Ceiling, SINGLES};
use crate::state::Snapshot;
use crate::state::catalogue::{Comparison, Gate, Generation};
use crate::state::exceptions::Skips;

/// How often the second fold is restarted as a whole; its instances are replaced far more often.
const RESTARTS: u64 = 3;
/// Events that may remain when the two are aligned.
const NEAR_EVENTS: u64 = 2_048;
/// Above this many events, the diverging event is not searched for: each step of the search folds
/// the stream twice.
const SEARCH_EVENTS_MAX: u64 = 1_000_000;
/// How often progress is reported.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

impl History {
    /// Starts to verify the active generation, unless a verification is running; returns its
    /// progress.
    ///
    /// If the stream has lost events that were applied, this is refused unless `missing` accepts
    /// that.
    pub async fn verify(
        self: &Arc<Self>,
        name: &str,
        sample: Option<u64>,
        seed: Option<u64>,
        missing: MissingEvents,
    ) -> Result<Verification, Error> {
        let deployment = self.deployments.get(name)?;
        check_owner(&deployment)?;
        self.check_history(&deployment).await?;
        let mut generation = deployment.record().active().clone();
        let advice = "keep the state; use --accept-missing to verify the rest";
        let accepted = self
            .may_refold(&deployment, &generation.source, missing, advice)
            .await?;
        accepted.apply(&mut generation);
        let module = self.runners.module_of(&generation).await?;
        let skips = deployment.skips_as_folded()?;
        // Below 2^53, so that the seed survives JSON numbers.
        let seed = seed.unwrap_or_else(|| fastrand::u64(..1 << 53));
        let gate = Gate {
            sample,
            ..Gate::default()
        };
        check_gate(&gate)?;
        let begun = Verification {
            state: WorkState::Queued,
            generation: generation.number,
            position: 0,
            progress: 0.0,
            rate: 0.0,
            remaining_seconds: None,
            seed,
            restarts: 0,
            equal: None,
            comparison: None,
            divergence: None,
            skipped: Vec::new(),
            missing_events: 0,
            parked: overview::Parked::default(),
            message: "waits for its turn among the rebuilds".to_owned(),
            obstacle: None,
        };
        // One verification per deployment: a second request gets the progress of the first.
        if let Some(running) = deployment.begin_verification(&begun) {
            return Ok(running);
        }
        let lacks = accepted.lacks;
        let restarts = AtomicU64::new(0);
        let work = Verifying {
            history: Arc::clone(self),
            deployment,
            generation,
            module,
            gate,
            seed,
            skips,
            lacks,
            restarts,
        };
        // A verification takes as long as a rebuild, so the request returns at once.
        tokio::spawn(work.run());
        Ok(begun)
    }

    /// The progress of the last verification.
    pub fn verification(&self, name: &str) -> Result<Verification, Error> {
        let deployment = self.deployments.get(name)?;
        deployment.verification().ok_or_else(|| {
            Error::Missing(format!(
                "{name} was not verified since the host started; run `foldstream verify {name}`"
            ))
        })
    }
}

/// Refuses a handler whose state is lost: what is in its place is not what it folded, or nothing.
fn check_owner(deployment: &Deployment) -> Result<(), Error> {
    let (record, active) = deployment.current();
    // One that moves owns its effects; at a hand-over, catalogue and files change one after the
    // other.
    if active.is_running() && active.store().is_some() {
        return Ok(());
    }
    owners::check_owner(&record, &active)
}

struct Verifying {
    history: Arc<History>,
    deployment: Arc<Deployment>,
    generation: Generation,
    module: Arc<Module>,
    gate: Gate,
    seed: u64,
    skips: Skips,
    /// A description of the applied events that the stream has lost.
    lacks: Option<String>,
    restarts: AtomicU64,
}

/// Where the active generation rests, and why: it can be verified up to there.
struct Rest {
    position: u64,
    because: String,
}

impl Rest {
    /// None while it moves.
    fn of(deployment: &Deployment) -> Option<Self> {
        let (runner, name) = (deployment.active(), deployment.name());
        // One that moves gets aligned instead.
        if runner.is_running() || !runner.is_held() {
            return None;
        }
        let (now, position) = (runner.now(), runner.position());
        let because = match now.failure {
            Some(failure) => {
                let at = failure
                    .sequence
                    .map(|sequence| format!(" at event {sequence}"))
                    .unwrap_or_default();
                format!(
                    "{name} is stopped at position {position}{at}: {}: {}",
                    failure.kind, failure.message
                )
            }
            None => format!("{name} is paused at position {position}"),
        };
        Some(Self { position, because })
    }
}

impl Verifying {
    async fn run(self) {
        // It costs as much as a rebuild, and takes part in their queue.
        let ticket = self.history.rebuilds.enter();
        ticket.turn(|_| ()).await;
        self.deployment.update_verification(|verification| {
            verification.state = WorkState::Running;
            "folding the stream again".clone_into(&mut verification.message);
        });
        let outcome = self.verify().await;
        self.deployment.update_verification(|verification| {
            verification.obstacle = None;
            match outcome {
                Ok(()) => {
                    verification.state = WorkState::Done;
                    verification.progress = 1.0;
                }
                Err(error) => {
                    verification.state = WorkState::Failed;
                    verification.message = error.to_string();
                }
            }
        });
    }

    async fn verify(&self) -> Result<(), Error> {
        // Decided once, before the fold: a deployment that starts to move later is noticed below.
        let rests = Rest::of(&self.deployment);
        let fold = self.refold(rests.as_ref()).await?;
        let (ours, theirs) = self.take_snapshots(&fold, rests.as_ref()).await?;
        let position = ours.position();
        let skipped: Vec<u64> = ours.exceptions().into_keys().collect();
        let missing = ours.missing_count();
        let parked = parked_counts(self.deployment.active().store().as_ref());
        let gate = self.gate.clone();
        let lacks = self.lacking(&ours, &theirs);
        let (comparison, timer) = blocking(move || {
            let comparison = compare(&ours, &theirs, &gate)?;
            Ok::<_, Error>((comparison, first_other_timer(&ours, &theirs)?))
        })
        .await?;
        let equal = comparison.refused == 0 && timer.is_none();
        let divergence = match comparison
            .examples
            .first()
            .filter(|_| comparison.refused > 0 && lacks.is_none())
        {
            Some(first) => Some(self.search(&first.key, position).await?),
            None => None,
        };
        let mut message = match &divergence {
            None if comparison.refused == 0 && !equal => format!(
                "both folds give the same entries, and other pending timers, first `{}`: other code set them (inherited), or \
                 the module depends on something other than its events",
                timer.unwrap_or_default()
            ),
            None if !equal => unequal(lacks.as_deref().unwrap_or("events"), &comparison),
            // `SINGLES` restarts are those of the first events, which the text names apart.
            None => {
                let further = self
                    .restarts
                    .load(Ordering::Relaxed)
                    .saturating_sub(SINGLES);
                let until = rests
                    .as_ref()
                    .map(|rest| format!("; {}", rest.because))
                    .unwrap_or_default();
                format!(
                    "the second fold gives the same result: {}; the first {} events were applied \
                     one by one, each by a new instance, and later ones in random batches with \
                     {further} more restarts; a module that keeps state between batches is \
                     detected only if it changes the result here{until}",
                    comparison.conclusion,
                    SINGLES.min(position)
                )
            }
            Some(Divergence {
                key,
                sequence: Some(sequence),
            }) => format!(
                "not deterministic: two folds of the same events differ in `{key}` from event \
                 {sequence} on; the module depends on batch boundaries, on restarts, or on \
                 something other than its events"
            ),
            Some(Divergence {
                key,
                sequence: None,
            }) => format!(
                "the active state differs from a new fold, first in `{key}`, but new folds agree \
                 with each other: other code built a part of it (inherited or migrated), the stream \
                 has lost events without a trace (a mirror with a filter), or the state was \
                 damaged; if the stream still has all its events, rebuild it"
            ),
        };
        if let Some(lacks) = lacks.filter(|_| equal) {
            message.push_str(&format!(
                "; {lacks}: they made no difference, or no entry has them"
            ));
        }
        message.push_str(&skipped_remark(&skipped));
        message.push_str(&missing_remark(missing));
        message.push_str(&parked_remark(&parked));
        self.deployment.update_verification(|verification| {
            verification.skipped = skipped;
            verification.missing_events = missing;
            verification.parked = parked;
            verification.position = position;
            verification.equal = Some(equal);
            verification.comparison = Some(comparison);
            verification.divergence = divergence;
            verification.message = message;
        });
        Ok(())
    }

    /// Which applied events the stream has lost, as it showed before the fold, or as the fold shows.
    fn lacking(&self, ours: &Snapshot, theirs: &Snapshot) -> Option<String> {
        let by_count = || {
            let count = lacking(ours, theirs, &self.skips)
                .filter(|count| *count > 0 && self.generation.subjects_from == 0)?;
            let source = self.history.sources.get(&self.generation.source)?;
            Some(lacking_in_words(count, &source.stream()))
        };
        self.lacks.clone().or_else(by_count)
    }

    fn check_active(&self) -> Result<(), Error> {
        if self.deployment.record().active == self.generation.number {
            return Ok(());
        }
        Err(Error::Conflict(
            "another generation became active during the verification; verify again".to_owned(),
        ))
    }

    /// Both states at one position.
    async fn take_snapshots(
        &self,
        fold: &SideFold,
        rests: Option<&Rest>,
    ) -> Result<(Snapshot, Snapshot), Error> {
        let serving = self.deployment.active();
        let at_most = self.history.config.rollout.hold_max.max(FILTERED_HOLD_MAX);
        // So that no deploy, rollback or repair comes between the check and the snapshots.
        let _changing = self.history.deployments.lock(&self.deployment).await?;
        self.check_active()?;
        // A release changes entries at a position that the fold has passed.
        let now = serving.store().map(|store| store.releases_count());
        if now != Some(self.skips.past().releases.len() as u64) {
            return Err(Error::Conflict(
                "parked events were retried during the verification; verify again".to_owned(),
            ));
        }
        let Some(rest) = rests else {
            let aligned = align(&serving, &fold.runner, at_most).await;
            let aligned = aligned.map_err(|missed| {
                let now = Rest::of(&self.deployment)
                    .map(|rest| format!(": {}", rest.because))
                    .unwrap_or_default();
                Error::Conflict(format!("{missed}{now}; verify again"))
            })?;
            return aligned.snapshots(&serving, &fold.runner);
        };
        // Neither moves: the active one rests, and the other one is at its ceiling.
        let closed = || Error::NotOpen("a state is still opening; verify again".to_owned());
        let ours = serving.store().ok_or_else(closed)?.snapshot();
        let theirs = fold.runner.store().ok_or_else(closed)?.snapshot();
        if ours.position() != rest.position || theirs.position() != rest.position {
            return Err(Error::Conflict(format!(
                "the active generation continued from {} to {} during the verification; verify again",
                rest.position,
                ours.position()
            )));
        }
        Ok((ours, theirs))
    }

    /// Folds the stream in side folds up to near its end, or to where the active generation
    /// rests, restarted on the way, each time with other boundaries.
    async fn refold(&self, rests: Option<&Rest>) -> Result<SideFold, Error> {
        // One seed gives all choices, so that a run can be repeated.
        let mut random = fastrand::Rng::with_seed(self.seed);
        let end = self.deployment.active().position();
        // There is nowhere to stop before the beginning of the state.
        let published = self
            .deployment
            .active()
            .store()
            .and_then(|store| store.published());
        let begun = published
            .and_then(|checkpoint| checkpoint.begins_after)
            .unwrap_or(0)
            .min(end);
        // The stops may be equal, or at the end: any of them must give the same result.
        let mut stops: Vec<u64> = (0..RESTARTS).map(|_| random.u64(begun..=end)).collect();
        stops.sort_unstable();
        let mut from: Option<SideFold> = None;
        for stop in stops {
            let fold = self
                .start(random.u64(..), Ceiling::Position(stop), from.as_ref())
                .await?;
            // 0 is the ceiling that it started with.
            self.reported(&fold, end, fold.arrives(0)).await?;
            // Everything is durable and the file is closed before the next one copies it.
            fold.close().await;
            self.count_restarts(&fold, 1);
            // Kept until the next one has copied its file; dropping it removes the file.
            from = Some(fold);
        }
        let ceiling = rests.map_or(Ceiling::None, |rest| Ceiling::Position(rest.position));
        let fold = self.start(random.u64(..), ceiling, from.as_ref()).await?;
        match rests {
            Some(_) => {
                self.reported(&fold, end, fold.arrives(0)).await?;
            }
            None => {
                self.reported(&fold, end, fold.comes_near(NEAR_EVENTS))
                    .await?;
                self.repeat_releases(&fold, end).await?;
            }
        }
        self.count_restarts(&fold, 0);
        Ok(fold)
    }

    /// Waits until a fold has applied again what was parked and retried. They may be many events at
    /// one position, and the hold in which both are compared is short.
    async fn repeat_releases(&self, fold: &SideFold, end: u64) -> Result<(), Error> {
        let releases = &self.skips.past().releases;
        let Some(last) = releases.iter().map(|release| release.position).max() else {
            return Ok(());
        };
        // It is held once it has done all that is due up to there.
        let change = fold.runner.set_ceiling(Ceiling::Position(last));
        self.reported(fold, end, fold.arrives(change)).await?;
        // The deployment has moved on meanwhile. A fold at its ceiling does not know how far, so it
        // first comes to a known place.
        let end = self.deployment.active().position();
        // After the look: a position in another stream may be one that the fold never reaches.
        self.check_active()?;
        let change = fold.runner.set_ceiling(Ceiling::Position(end));
        self.reported(fold, end, fold.arrives(change)).await?;
        fold.runner.set_ceiling(Ceiling::None);
        self.reported(fold, end, fold.comes_near(NEAR_EVENTS)).await
    }

    /// Adds the restarts of a runner, and those between two runners.
    fn count_restarts(&self, fold: &SideFold, between: u64) {
        let restarts = fold.runner.now().restarts + between;
        self.restarts.fetch_add(restarts, Ordering::Relaxed);
        self.deployment
            .update_verification(|verification| verification.restarts += restarts);
    }

    async fn start(
        &self,
        seed: u64,
        ceiling: Ceiling,
        from: Option<&SideFold>,
    ) -> Result<SideFold, Error> {
        let from = from.map(|from| from.path().to_owned());
        let options = SideFoldOptions {
            ceiling,
            shuffle: Some(seed),
            from,
            skips: self.skips.clone(),
            ..SideFoldOptions::default()
        };
        self.history
            .start_side_fold(
                &self.deployment.record(),
                &self.generation,
                Arc::clone(&self.module),
                options,
            )
            .await
    }

    /// Reports the progress of a fold until `work` is done.
    async fn reported<T>(
        &self,
        fold: &SideFold,
        end: u64,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let report = async {
            loop {
                let (now, position) = (fold.runner.now(), fold.runner.position());
                let obstacle = fold.obstacle();
                self.deployment.update_verification(|verification| {
                    verification.obstacle = obstacle;
                    // `end` may be 0, and the stream may have grown past it.
                    verification.progress = (position as f64 / end.max(1) as f64).min(1.0);
                    verification.rate = now.rate;
                    verification.remaining_seconds =
                        (now.rate > 0.0).then(|| end.saturating_sub(position) as f64 / now.rate);
                });
                tokio::time::sleep(REPORT_INTERVAL).await;
            }
        };
        // The report ends with the work, wherever it is: it only shows figures.
        tokio::select! {
            done = work => done,
            () = report => unreachable!("the report never ends"),
        }
    }

    /// Finds the first event after which two folds, one with random boundaries and one with ours,
    /// differ in a key. Each step halves the range.
    async fn search(&self, key: &str, position: u64) -> Result<Divergence, Error> {
        let unknown = Divergence {
            key: key.to_owned(),
            sequence: None,
        };
        if position > SEARCH_EVENTS_MAX {
            return Ok(unknown);
        }
        self.deployment.update_verification(|verification| {
            verification.message =
                format!("they differ; looking for the event after which `{key}` does");
        });
        // Two new folds that agree mean that the active state is what differs.
        if !self.differs(key, position).await? {
            return Ok(unknown);
        }
        // Nothing is folded at 0, so both are the same there.
        let (mut same, mut differs) = (0, position);
        while differs - same > 1 {
            let middle = same + (differs - same) / 2;
            if self.differs(key, middle).await? {
                differs = middle;
            } else {
                same = middle;
            }
        }
        Ok(Divergence {
            key: key.to_owned(),
            sequence: Some(differs),
        })
    }

    async fn differs(&self, key: &str, position: u64) -> Result<bool, Error> {
        let one = self.folded_to(Some(self.seed), position).await?;
        let other = self.folded_to(None, position).await?;
        let key = key.to_owned();
        // Only this key: the first difference of the whole state was found before.
        blocking(move || Ok(one.get(&key)? != other.get(&key)?)).await
    }

    async fn folded_to(&self, shuffle: Option<u64>, position: u64) -> Result<Snapshot, Error> {
        let skips = self.skips.clone();
        let options = SideFoldOptions {
            ceiling: Ceiling::Position(position),
            shuffle,
            skips,
            ..SideFoldOptions::default()
        };
        let fold = self
            .history
            .start_side_fold(
                &self.deployment.record(),
                &self.generation,
                Arc::clone(&self.module),
                options,
            )
            .await?;
        // The file is removed with `fold`, but the snapshot keeps what it needs open.
        fold.arrives(0).await?;
        let closed = || Error::NotOpen("a side fold was closed; verify again".to_owned());
        Ok(fold.runner.store().ok_or_else(closed)?.snapshot())
    }
}

/// What a verification reports about a state that it can't compare.
fn unequal(lacks: &str, comparison: &Comparison) -> String {
    format!(
        "{lacks}, so the new fold cannot be the same: {}; the active state has them, keep it",
        comparison.conclusion
    )
}
