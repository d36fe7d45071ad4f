//! Cut-over: reads move from one generation to another, at one position, in one commit.
//!
//! Both runners are held at one position, with everything durable; the catalogue changes the active
//! generation in one commit; then the handle switches to the other runner, and both continue, the
//! previous one as a follower. A crash before the commit leaves everything unchanged; after a crash
//! after the commit, the new generation is active.

use std::sync::Arc;
use std::time::Duration;

use super::Rollouts;
use super::candidate::throttled;
use super::hand_over::{HandOver, Heir};
use super::inherit::Held;
use super::lacks::Checked;
use super::{beginning, hand_over, prune};
use crate::actor::blocking;
use crate::deployment::Deployment;
use crate::deployments::{Aligned, Error, align, crash_points, owners};
use crate::exceptions::{failure_events, parked_rules};
use crate::overview;
use crate::progress::DeploymentState;
use crate::runner::Runner;
use crate::state::catalogue::{Generation, GenerationStatus, Record};

/// How long a cut-over waits for a newly started host to learn which position it has shown.
const CERTAIN_MAX: Duration = Duration::from_secs(3);
/// Shortest time to wait for a runner to come close.
const NEAR_MAX: Duration = Duration::from_secs(1);

/// How a generation becomes active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Switch {
    /// A candidate takes over.
    CutOver,
    /// The previous generation becomes active again.
    Rollback,
}

impl Switch {
    pub(super) fn action(self) -> &'static str {
        match self {
            Self::CutOver => "cut-over",
            Self::Rollback => "rollback",
        }
    }
}

/// What a promotion or a rollback did.
#[derive(Clone, Debug)]
pub struct CutOver {
    /// The updated deployment.
    pub deployment: overview::Deployment,
    /// The generation that was active before.
    pub from: u64,
    /// The generation that is active now, or that has to be built first.
    pub to: u64,
    /// The position of the cut-over; none if it is yet to come.
    pub position: Option<u64>,
    /// How long applying was held.
    pub held: Duration,
    /// What was done.
    pub message: String,
}

/// The active generation of a deployment, and the one that takes over: a candidate, or the previous
/// generation at a rollback.
#[derive(Clone, Copy)]
struct Pair<'a> {
    deployment: &'a Arc<Deployment>,
    active: &'a Arc<Runner>,
    candidate: &'a Arc<Runner>,
}

/// What is known of a pair before anything is held.
struct Outset {
    /// The active state is lost, so that only a candidate that has caught up may replace it.
    is_lost: bool,
    /// The position after which the candidate publishes in place of a lost owner.
    continues_after: Option<u64>,
    /// The candidate was built from another history than the active state.
    of_another_history: bool,
}

impl Outset {
    /// If the stream was deleted and created again, and the candidate was built from the new one,
    /// the two positions cannot be compared. The same holds if the active state cannot be opened;
    /// no read is answered from it either.
    fn can_align(&self) -> bool {
        !self.of_another_history && !self.is_lost
    }

    /// Why an owner that is gone is replaced.
    fn why_lost(&self) -> &'static str {
        if self.of_another_history {
            "its stream was made again"
        } else {
            "its state could not be opened, or did not own its effects"
        }
    }
}

/// A switch at a position at which both runners are held.
struct Flip<'a> {
    pair: Pair<'a>,
    switch: Switch,
    position: u64,
    /// How the effects of a handler change hands.
    hand_over: Option<&'a mut HandOver>,
}

/// Makes another generation active whose runner follows the stream. The caller holds the
/// deployment's lock.
pub(super) async fn switch(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    to: u64,
    switch: Switch,
) -> Result<CutOver, Error> {
    let record = deployment.record();
    let next = record
        .generation(to)
        .expect("the caller took it from the record");
    let candidate = deployment
        .runner(next.state_file)
        .ok_or_else(|| not_running(deployment.name(), next))?;
    let active = deployment.active();
    let pair = Pair {
        deployment,
        active: &active,
        candidate: &candidate,
    };
    failure_events::check_generation(record.parking.events.as_ref(), next)?;
    if let Some(handler) = &record.handler {
        rollouts.handlers.check_grants_of(&handler.grants, next)?;
    }
    let outset = outset(pair, next).await?;
    // May wait; nothing is held before both are close.
    if outset.can_align() {
        prepare_to_align(rollouts, pair, switch).await?;
    }
    parked_rules::check_switch(deployment, &active, &candidate)?;
    let checked = (outset.can_align() && switch == Switch::CutOver).then_some(Checked {
        rollouts,
        record: &record,
        next,
        active: &active,
        candidate: &candidate,
    });
    let kept = match &checked {
        Some(checked) => checked.kept_before_hold().await?,
        None => None,
    };
    let mut holding = Holding::begin(rollouts, pair, &outset, (switch, next.state_file)).await?;
    // Asked again: events may have been parked before the hold.
    parked_rules::check_switch(deployment, &active, &candidate)?;
    if let Some(checked) = checked {
        checked.check_only_copies(kept).await?;
        checked.check_lacking().await?;
    }
    crash_points::reached("cut-over-held");
    let position = holding.position(&candidate);
    // Nothing is parked or retried any more, and what the state before has may go with it.
    let parked = parked_rules::remark_of_both(&candidate, &active);
    let mut changed = after_switch(Record::clone(&record), to, switch, position);
    changed.active_mut().reason.push_str(&parked);
    settle(pair, &outset, &mut changed, position);
    let ready = Flip {
        pair,
        switch,
        position,
        hand_over: holding.hand_over.as_mut(),
    };
    flip(rollouts, changed, ready).await?;
    let held = holding.release(rollouts, pair, switch).await;
    Ok(done(
        deployment,
        (record.active, to),
        (position, held),
        &parked,
    ))
}

/// What is held during a switch. If it is dropped before the commit, both runners continue as they
/// were.
struct Holding {
    /// The candidate alone, if the two cannot be aligned.
    alone: Option<Held>,
    aligned: Option<Aligned>,
    /// How the effects of a handler change hands.
    hand_over: Option<HandOver>,
}

impl Holding {
    async fn begin(
        rollouts: &Rollouts,
        pair: Pair<'_>,
        outset: &Outset,
        (switch, state_file): (Switch, u64),
    ) -> Result<Self, Error> {
        let candidate = pair.candidate;
        let heir = Heir {
            from: pair.active,
            to: candidate,
            state_file,
        };
        let hand_over =
            hand_over::begin(rollouts, pair.deployment, heir, outset.continues_after).await?;
        let (aligned, alone) = match (outset.can_align(), &hand_over) {
            (true, _) => (Some(hold(rollouts, pair, switch).await?), None),
            // Not one event may be applied between the last one of a mute fold and the first one
            // of the owner.
            (false, Some(_)) => (None, Some(Held::at(candidate).await?)),
            (false, None) => (None, None),
        };
        Ok(Self {
            alone,
            aligned,
            hand_over,
        })
    }

    /// The position of the switch.
    fn position(&self, candidate: &Runner) -> u64 {
        let aligned = self.aligned.as_ref();
        aligned.map_or_else(|| candidate.position(), |aligned| aligned.position)
    }

    /// Lets both continue after the commit; returns how long applying was held.
    async fn release(self, rollouts: &Rollouts, pair: Pair<'_>, switch: Switch) -> Duration {
        // Read before the release.
        let held = self.aligned.as_ref().map(Aligned::held).unwrap_or_default();
        // Both runners continue; what follows may take its time.
        drop((self.aligned, self.alone));
        crash_points::reached("cut-over-released");
        rollouts
            .metrics
            .cut_over(pair.deployment.name(), switch.action(), Some(held));
        // Only bookkeeping in the two files; the catalogue has decided already.
        if let Some(hand_over) = self.hand_over {
            hand_over.complete().await;
        }
        after_flip(rollouts, pair).await;
        held
    }
}

/// Completes the record of a switch, which is in memory until `flip` commits it, and what the
/// candidate knows of positions that readers have seen.
fn settle(pair: Pair<'_>, outset: &Outset, changed: &mut Record, position: u64) {
    let state_file = changed.active().state_file;
    beginning::copy(pair.candidate, state_file, changed);
    // The deployment still has the record before the switch.
    let before = pair.deployment.with_record(|record| record.active);
    if outset.is_lost
        && let Some(before) = changed.generation_mut(before)
    {
        before.enter(GenerationStatus::Retired, outset.why_lost());
    }
    if !outset.of_another_history {
        // In the first moments after a restart, readers may have seen a later position than the
        // one at which the two were aligned.
        pair.candidate
            .inherit_shown_positions(pair.active, position);
    }
}

fn not_running(name: &str, generation: &Generation) -> Error {
    let number = generation.number;
    Error::Conflict(if generation.paused && generation.status.is_candidate() {
        format!(
            "generation {number} is paused; continue with `foldstream resume {name} --candidate`, \
             and promote it then"
        )
    } else {
        format!("generation {number} does not run; deploy its module again")
    })
}

/// Waits until it is known which position the active generation has shown, and returns what is known
/// of the pair; an error if they cannot be switched.
async fn outset(pair: Pair<'_>, next: &Generation) -> Result<Outset, Error> {
    let Pair {
        deployment,
        active,
        candidate,
    } = pair;
    // Right after a start this takes as long as it takes to reach the source.
    let is_known = |active: &Runner| (!active.is_uncertain() || active.is_lost()).then_some(());
    let _ = tokio::time::timeout(CERTAIN_MAX, active.until(is_known)).await;
    let record = deployment.record();
    let continues_after = owners::continues_after(&record, active, next);
    // What a file that is another one answered from is as unknown as what it published.
    owners::refuse_lost(&record, active, next)?;
    let is_lost = active.is_lost() || continues_after.is_some();
    if is_lost {
        check_caught_up(deployment, candidate, next)?;
    } else if active.is_uncertain() {
        return Err(Error::NotOpen(format!(
            "{} has just started and does not know yet which position it has shown; try again",
            deployment.name()
        )));
    }
    Ok(Outset {
        is_lost,
        continues_after,
        of_another_history: is_of_another_history(active, candidate, continues_after)?,
    })
}

/// Waits until the two are so close that aligning them is quick; an error if they are not.
async fn prepare_to_align(
    rollouts: &Rollouts,
    pair: Pair<'_>,
    switch: Switch,
) -> Result<(), Error> {
    let Pair {
        deployment,
        active,
        candidate,
    } = pair;
    // A rollback goes back to a state that may have stopped behind; it is checked next.
    if switch == Switch::CutOver {
        super::candidate::check_ahead(active, candidate)?;
    }
    let now = candidate.now();
    if !candidate.is_running() && candidate.position() < active.position() {
        let failure = now
            .failure
            .map(|failure| format!(": {}", failure.message))
            .unwrap_or_default();
        return Err(Error::Conflict(format!(
            "generation {} does not progress at {}, behind {} at {} ({}{failure}); resume it, \
             or deploy a corrected module",
            candidate.program().generation,
            candidate.position(),
            deployment.name(),
            active.position(),
            now.state.name()
        )));
    }
    if !wait_until_close(rollouts, active, candidate).await {
        let record = deployment.record();
        let throttled = record
            .generation(candidate.program().generation)
            .map(|next| throttled(deployment.name(), next))
            .unwrap_or_default();
        return Err(Error::Conflict(format!(
            "generation {} is at {} and can't reach {} at {} quickly{throttled}; nothing was \
             held, try again when it has caught up",
            candidate.program().generation,
            candidate.position(),
            deployment.name(),
            active.position()
        )));
    }
    Ok(())
}

/// Holds both at one position.
async fn hold(rollouts: &Rollouts, pair: Pair<'_>, switch: Switch) -> Result<Aligned, Error> {
    let Pair {
        deployment,
        active,
        candidate,
    } = pair;
    // `hold_max` bounds how long readers see no new events.
    align(active, candidate, rollouts.config.rollout.hold_max)
        .await
        .map_err(|missed| {
            rollouts
                .metrics
                .cut_over(deployment.name(), switch.action(), None);
            let record = deployment.record();
            match record
                .generation(candidate.program().generation)
                .map(|next| throttled(deployment.name(), next))
                .filter(|text| !text.is_empty())
            {
                Some(throttled) => Error::Conflict(format!("{missed}{throttled}")),
                None => Error::Conflict(format!("{missed}; try again, or raise rollout.hold_max")),
            }
        })
}

/// Waits until a candidate is close to the active one, so that the hold is short; returns whether
/// it is.
pub(super) async fn wait_until_close(
    rollouts: &Rollouts,
    active: &Arc<Runner>,
    candidate: &Arc<Runner>,
) -> bool {
    // The rest of one batch can be applied within a hold.
    let batch = rollouts.config.pipeline.batch_events as u64;
    let at_most = rollouts.config.rollout.hold_max.max(NEAR_MAX);
    let is_near = |candidate: &Runner| {
        let now = candidate.now();
        // One on a leash gets no closer before the active one is durable, which aligning begins
        // with.
        let is_near = (candidate.is_on_leash() && candidate.is_as_far_as(active))
            || candidate.position().saturating_add(batch) >= active.position()
            || (now.pending <= batch && now.applied > 0)
            || candidate.last_event() >= active.last_event();
        is_near.then_some(())
    };
    tokio::time::timeout(at_most, candidate.until_figures(is_near))
        .await
        .is_ok()
}

/// The commit, and the switch of the handle.
async fn flip(rollouts: &Rollouts, mut record: Record, flip: Flip<'_>) -> Result<(), Error> {
    let Flip {
        pair: Pair {
            deployment,
            active,
            candidate,
        },
        switch,
        position,
        mut hand_over,
    } = flip;
    // The new owner's file is prepared before the commit, so that a crash after it finds a
    // whole outbox there.
    if let Some(hand_over) = &mut hand_over {
        hand_over.prepare(position).await?;
        hand_over.name_owner(&mut record);
    }
    // Not through `commit`: the record is set together with the runner, in `flip` below.
    let (catalogue, noted) = (Arc::clone(&rollouts.deployments.catalogue), record.clone());
    let detail = format!("generation {} at position {position}", record.active);
    let audit = crate::audit::entry(switch.action(), deployment.name(), detail);
    match (
        blocking(move || catalogue.put(&noted, &audit)).await,
        &hand_over,
    ) {
        // An error of the commit does not say whether it is durable; for effects that has to be
        // known.
        (Ok(()), _) => {}
        (Err(error), None) => return Err(error.into()),
        (Err(error), Some(hand_over)) => {
            hand_over
                .look_up(Arc::clone(&rollouts.deployments.catalogue), error)
                .await?;
        }
    }
    crash_points::reached("cut-over-recorded");
    if let Some(hand_over) = &mut hand_over {
        hand_over.pass(&record, position);
    }
    // `start_serving` and `stop_serving` change how failures are retried. Reads follow the
    // handle, which moves between the two.
    candidate.start_serving();
    deployment.flip(record, Arc::clone(candidate));
    active.follow();
    Ok(())
}

/// Work that need not be done during the hold. The switch is done: a failure here is made up
/// for later.
async fn after_flip(rollouts: &Rollouts, pair: Pair<'_>) {
    let Pair {
        deployment,
        active: before,
        candidate,
    } = pair;
    // Limits of a rebuild do not apply to an active generation.
    candidate.set_throttle(crate::pipeline::Throttle::default());
    // A paused generation follows from now on, like any previous generation.
    if before.now().state == DeploymentState::Paused {
        before.resume();
    }
    let mut record = deployment.draft();
    if prune::limit_previous(rollouts, &mut record) {
        let detail = "beyond rollout.keep_previous_generations".to_owned();
        if let Err(error) = rollouts
            .deployments
            .commit(deployment, record, "retire", detail)
            .await
        {
            tracing::error!(
                deployment = deployment.name(),
                %error,
                "could not retire a generation"
            );
        }
        crash_points::reached("retire-recorded");
    }
    prune::end_unused(rollouts, deployment).await;
}

/// Logs a cut-over that is done, and returns the answer to the request.
fn done(
    deployment: &Deployment,
    (from, to): (u64, u64),
    (position, held): (u64, Duration),
    parked: &str,
) -> CutOver {
    let hold_ms = held.as_secs_f64() * 1e3;
    let message = format!(
        "generation {to} took over from generation {from} at position {position}; applying was \
         held for {hold_ms:.1} ms{parked}"
    );
    tracing::info!(
        deployment = deployment.name(),
        from,
        to,
        position,
        hold_ms,
        "cut over"
    );
    CutOver {
        deployment: deployment.info(),
        from,
        to,
        position: Some(position),
        held,
        message,
    }
}

/// Whether a candidate was built from another history than the active generation, which its own
/// reader has noticed. Nothing less may let positions go back: views of a stream may differ for a
/// moment, for example if one of the two was not connected yet.
fn is_of_another_history(
    active: &Runner,
    candidate: &Runner,
    continues_after: Option<u64>,
) -> Result<bool, Error> {
    // One that publishes from the beginning of a new stream has read nothing of it yet.
    if continues_after.is_some() && active.has_diverged() {
        return Ok(true);
    }
    if candidate.is_of_same_stream(active) {
        return Ok(false);
    }
    // Only the reader of the active generation can tell a new stream from a view that lags.
    if active.now().state == DeploymentState::Failed && active.has_diverged() {
        return Ok(true);
    }
    Err(Error::Conflict(format!(
        "generation {} was built from another stream, or from one that was created again, and the \
         active generation has not noticed; resume it, so that it looks, and try again",
        candidate.program().generation
    )))
}

/// Whether a candidate has read all events: it replaces a state that cannot be opened, whose
/// position is unknown.
fn check_caught_up(
    deployment: &Deployment,
    candidate: &Runner,
    next: &Generation,
) -> Result<(), Error> {
    let now = candidate.now();
    // It must not go further before it owns the effects.
    let is_at_end = |after| candidate.is_on_leash() && candidate.position() >= after;
    if next.lost_effects_after.is_some_and(is_at_end) || (now.begun && now.pending == 0) {
        return Ok(());
    }
    Err(Error::Conflict(format!(
        "the state of {} cannot be opened, and the candidate at {} has not caught up yet; try \
         again when it has",
        deployment.name(),
        candidate.position()
    )))
}

/// The record after another generation has become active.
fn after_switch(mut record: Record, to: u64, switch: Switch, position: u64) -> Record {
    let from = record.active;
    let before = record.active_mut();
    before.on_probation = false;
    before.paused = false;
    let reason = match switch {
        Switch::CutOver => format!("generation {to} took over at position {position}"),
        Switch::Rollback => format!("rolled back to generation {to} at position {position}"),
    };
    before.enter(GenerationStatus::Previous, reason);
    record.active = to;
    let active = record.active_mut();
    active.serves_from = position.max(1);
    active.lacks_events = 0;
    active.enter(
        GenerationStatus::Active,
        match switch {
            Switch::CutOver => format!("took over from generation {from} at position {position}"),
            Switch::Rollback => {
                format!("rolled back from generation {from} at position {position}")
            }
        },
    );
    record
}
