//! Cut-over: reads move from one generation to another, at one position, in one commit.
//!
//! Both runners are held at one position, with everything durable; the catalogue changes the active
//! generation in one commit; then the handle switches to the other runner, and both continue, the
//! previous one as a follower. A crash before the commit leaves everything unchanged; after a crash
//! after the commit, the new generation is active.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::Rollouts;
use super::candidate::throttled;
use super::hand_over::HandOver;
use super::inherit::Held;
use super::{beginning, hand_over, prune};
use crate::actor::blocking;
use crate::deployment::Deployment;
use crate::deployments::{Aligned, Error, align, crash_points, owners};
use crate::exceptions::parked_rules;
use crate::history::{OnlyCopies, lacking, lacking_in_words, only_copies};
use crate::overview;
use crate::progress::DeploymentState;
use crate::runner::Runner;
use crate::state::Store;
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

/// Two runners that are held, of which the first becomes active in place of the other.
struct Flip<'a> {
    runner: &'a Arc<Runner>,
    serving: &'a Arc<Runner>,
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
    let runner = deployment.runner(next.state_file);
    let runner = runner.ok_or_else(|| not_running(deployment.name(), next))?;
    let serving = deployment.active();
    if let Some(handler) = &record.handler {
        rollouts.handlers.check_grants_of(&handler.grants, next)?;
    }
    let (is_lost, continues_after) = check_certain(deployment, &serving, &runner, next).await?;
    let of_another_history = is_of_another_history(&serving, &runner, continues_after)?;
    // If the stream was deleted and created again, and the candidate was built from the new
    // one, the two positions cannot be compared. The same holds if the active state cannot be
    // opened; no read is answered from it either.
    let can_align = !of_another_history && !is_lost;
    // May wait; nothing is held before both are close.
    if can_align {
        come_together(rollouts, deployment, &serving, &runner, switch).await?;
    }
    let state_file = next.state_file;
    parked_rules::check_switch(deployment, &serving, &runner)?;
    let checked = (can_align && switch == Switch::CutOver).then_some(next);
    let kept = kept_before_hold(rollouts, &record, checked, (&serving, &runner)).await?;
    let mut hand_over = hand_over::begin(
        rollouts,
        deployment,
        &serving,
        &runner,
        (state_file, continues_after),
    )
    .await?;
    let aligned = if can_align {
        Some(hold(rollouts, deployment, &serving, &runner, switch).await?)
    } else {
        None
    };
    // Not one event may be applied between the last one of a mute fold and the first one of the
    // owner.
    let alone = if hand_over.is_some() && !can_align {
        Some(Held::at(&runner).await?)
    } else {
        None
    };
    // Asked again: events may have been parked before the hold.
    parked_rules::check_switch(deployment, &serving, &runner)?;
    if let Some(next) = checked {
        check_only_copies(rollouts, &record, next, (&serving, &runner), kept).await?;
        check_lacking(rollouts, &record, next, &serving, &runner).await?;
    }
    crash_points::reached("cut-over-held");
    let position = aligned
        .as_ref()
        .map_or_else(|| runner.position(), |aligned| aligned.position);
    // In memory until `flip` commits it.
    let from = record.active;
    // Nothing is parked or retried any more, and what the state before has may go with it.
    let parked = parked_rules::remark_of_both(&runner, &serving);
    let mut changed = after_switch(Record::clone(&record), to, switch, position);
    changed.active_mut().reason.push_str(&parked);
    beginning::copy(&runner, state_file, &mut changed);
    if is_lost && let Some(before) = changed.generation_mut(from) {
        before.enter(GenerationStatus::Retired, why_lost(of_another_history));
    }
    if !of_another_history {
        // In the first moments after a restart, readers may have seen a later position than the
        // one at which the two were aligned.
        runner.succeeds(&serving, position);
    }
    let both = Flip {
        runner: &runner,
        serving: &serving,
        switch,
        position,
        hand_over: hand_over.as_mut(),
    };
    flip(rollouts, deployment, changed, both).await?;
    // Read before the release: it is how long applying was held.
    let held = aligned.as_ref().map(Aligned::held).unwrap_or_default();
    // Both runners continue; what follows may take its time.
    drop((aligned, alone));
    crash_points::reached("cut-over-released");
    rollouts
        .metrics
        .cut_over(deployment.name(), switch.action(), Some(held));
    // Only bookkeeping in the two files; the catalogue has decided already.
    if let Some(hand_over) = hand_over {
        hand_over.complete().await;
    }
    after_flip(rollouts, deployment, &runner, &serving).await;
    Ok(done(deployment, (from, to), (position, held), &parked))
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

/// Refuses a candidate that lacks events of the active generation because the stream has lost
/// them without showing it, unless that is accepted; then they are counted. Both are held.
async fn check_lacking(
    rollouts: &Rollouts,
    record: &Record,
    next: &Generation,
    serving: &Arc<Runner>,
    runner: &Arc<Runner>,
) -> Result<(), Error> {
    let active = record.active();
    let is_comparable = next.source == active.source
        && next.start == active.start
        && active.subjects_from == 0
        && runner.applies_same_events(serving);
    let (Some(ours), Some(theirs)) = (serving.store(), runner.store()) else {
        return Ok(());
    };
    let (ours, theirs) = (ours.snapshot(), theirs.snapshot());
    let lacking = lacking(&ours, &theirs, &record.skips());
    let (Some(lacking @ 1..), Some(source)) = (
        lacking.filter(|_| is_comparable),
        rollouts.sources.get(&active.source),
    ) else {
        return Ok(());
    };
    let lacks = lacking_in_words(lacking, &source.stream());
    if !next.may_lack() && !source.on_missing().is_count() {
        return Err(Error::Lacking {
            events: lacking,
            message: format!(
                "{lacks}, and generation {} lacks them; accept that with `foldstream resume \
                 {name} --candidate --accept-missing`, or keep the existing state with \
                 `foldstream abort {name}`",
                next.number,
                name = record.name
            ),
        });
    }
    tracing::warn!(
        deployment = record.name,
        generation = next.number,
        lacks,
        "a generation takes over without missing events, as accepted"
    );
    let missing = ours.checkpoint().map_or(0, |known| known.missing);
    runner.note_missing(missing + lacking).await?;
    Ok(())
}

/// Parked events of the active state that a candidate has applied or parked as well, for sure.
type Kept = BTreeSet<u64>;

/// Looks before the hold for parked events of which the active state may have the only copy, because
/// each look is an answer of the source, and may take long; none if there is no reason to look.
async fn kept_before_hold(
    rollouts: &Rollouts,
    record: &Record,
    next: Option<&Generation>,
    (serving, runner): (&Runner, &Runner),
) -> Result<Option<Kept>, Error> {
    let (Some(next), Some(ours), Some(theirs)) = (next, serving.store(), runner.store()) else {
        return Ok(None);
    };
    if !may_lack_parked(record, next, &ours, &theirs) {
        return Ok(None);
    }
    let passed = theirs.position();
    let parked = ours.parked_sequences();
    check_copies(rollouts, record, next, (&ours, &theirs), &Kept::new()).await?;
    // What the stream still had when the candidate had passed it, the candidate has met.
    let kept = parked.into_iter().filter(|one| *one <= passed);
    Ok(Some(kept.collect()))
}

/// Refuses a candidate that lacks parked events of the active state because the stream has lost
/// them since it was requested, unless that is accepted: the state before has their only copy.
/// Both are held, so only those are looked for that were not `kept` before.
async fn check_only_copies(
    rollouts: &Rollouts,
    record: &Record,
    next: &Generation,
    (serving, runner): (&Runner, &Runner),
    kept: Option<Kept>,
) -> Result<(), Error> {
    let (Some(ours), Some(theirs)) = (serving.store(), runner.store()) else {
        return Ok(());
    };
    if !may_lack_parked(record, next, &ours, &theirs) {
        return Ok(());
    }
    let Some(kept) = kept else {
        return Err(Error::Conflict(
            "the stream has lost events a moment ago, and whether parked ones are among them is \
             unknown; try again"
                .to_owned(),
        ));
    };
    check_copies(rollouts, record, next, (&ours, &theirs), &kept).await
}

/// Whether a candidate may lack parked events of the active state, and must not.
fn may_lack_parked(record: &Record, next: &Generation, ours: &Store, theirs: &Store) -> bool {
    let missing = |store: &Store| store.published().map_or(0, |known| known.missing);
    // One that has met no more gaps has applied them while the stream had them.
    !next.may_lack()
        && next.source == record.active().source
        && missing(theirs) > missing(ours)
        && ours.parked_counts().keys > 0
}

/// Refuses a candidate if the active state has the only copy of parked events.
async fn check_copies(
    rollouts: &Rollouts,
    record: &Record,
    next: &Generation,
    (ours, theirs): (&Store, &Store),
    kept: &Kept,
) -> Result<(), Error> {
    let active = record.active();
    let Some(source) = rollouts.sources.get(&active.source) else {
        return Ok(());
    };
    let parked_there = theirs.parked_sequences();
    let has_copy = |one| kept.contains(&one) || parked_there.contains(&one);
    let copies = only_copies(source, active, ours, has_copy).await;
    let copies = copies.map_err(|error| {
        Error::Conflict(format!(
            "events are parked, and whether the stream still has them is unknown: {error}"
        ))
    })?;
    let Some(copies) = copies else {
        return Ok(());
    };
    Err(Error::Lacking {
        events: copies.count,
        message: format!(
            "{}; {}, and rebuild again, or accept that generation {} lacks them with `foldstream \
             resume {name} --candidate --accept-missing`",
            copies.explain(&source.stream()),
            OnlyCopies::way_out(&record.name),
            next.number,
            name = record.name
        ),
    })
}

/// Waits until it is known which position the active generation has shown; returns whether its
/// state is lost, so that only a candidate that has caught up may replace it, and the position
/// after which that candidate publishes in place of a lost owner.
async fn check_certain(
    deployment: &Deployment,
    serving: &Arc<Runner>,
    runner: &Arc<Runner>,
    next: &Generation,
) -> Result<(bool, Option<u64>), Error> {
    // Right after a start this takes as long as it takes to reach the source.
    let is_known = |serving: &Runner| (!serving.is_uncertain() || serving.is_lost()).then_some(());
    let _ = tokio::time::timeout(CERTAIN_MAX, serving.until(is_known)).await;
    let record = deployment.record();
    let continues_after = owners::continues_after(&record, serving, next);
    // What a file that is another one answered from is as unknown as what it published.
    let is_lost = serving.is_lost() || continues_after.is_some();
    if is_lost {
        owners::refuse_lost(&record, next)?;
        check_caught_up(deployment, runner, next)?;
    } else if serving.is_uncertain() {
        return Err(Error::Conflict(format!(
            "{} has just started and does not know yet which position it has shown; try again",
            deployment.name()
        )));
    }
    Ok((is_lost, continues_after))
}

/// Waits until the two are so close that aligning them is quick; an error if they are not.
async fn come_together(
    rollouts: &Rollouts,
    deployment: &Deployment,
    serving: &Arc<Runner>,
    runner: &Arc<Runner>,
    switch: Switch,
) -> Result<(), Error> {
    // A rollback goes back to a state that may have stopped behind; it is checked next.
    if switch == Switch::CutOver {
        super::candidate::check_ahead(serving, runner)?;
    }
    let now = runner.now();
    if !runner.is_running() && runner.position() < serving.position() {
        let failure = now
            .failure
            .map(|failure| format!(": {}", failure.message))
            .unwrap_or_default();
        return Err(Error::Conflict(format!(
            "generation {} does not progress at {}, behind {} at {} ({}{failure}); resume it, \
             or deploy a corrected module",
            runner.program().generation,
            runner.position(),
            deployment.name(),
            serving.position(),
            now.state.name()
        )));
    }
    if !come_near(rollouts, serving, runner).await {
        let record = deployment.record();
        let throttled = record
            .generation(runner.program().generation)
            .map(|next| throttled(deployment.name(), next))
            .unwrap_or_default();
        return Err(Error::Conflict(format!(
            "generation {} is at {} and can't reach {} at {} quickly{throttled}; nothing was \
             held, try again when it has caught up",
            runner.program().generation,
            runner.position(),
            deployment.name(),
            serving.position()
        )));
    }
    Ok(())
}

/// Aligns the two.
async fn hold(
    rollouts: &Rollouts,
    deployment: &Deployment,
    serving: &Arc<Runner>,
    runner: &Arc<Runner>,
    switch: Switch,
) -> Result<Aligned, Error> {
    // `hold_max` bounds how long readers see no new events.
    align(serving, runner, rollouts.config.rollout.hold_max)
        .await
        .map_err(|missed| {
            rollouts
                .metrics
                .cut_over(deployment.name(), switch.action(), None);
            let record = deployment.record();
            match record
                .generation(runner.program().generation)
                .map(|next| throttled(deployment.name(), next))
                .filter(|text| !text.is_empty())
            {
                Some(throttled) => Error::Conflict(format!("{missed}{throttled}")),
                None => Error::Conflict(format!("{missed}; try again, or raise rollout.hold_max")),
            }
        })
}

/// Waits until a runner is close to the active one, so that the hold is short; returns whether
/// it is.
pub(super) async fn come_near(
    rollouts: &Rollouts,
    serving: &Arc<Runner>,
    runner: &Arc<Runner>,
) -> bool {
    // The rest of one batch can be applied within a hold.
    let batch = rollouts.config.pipeline.batch_events as u64;
    let at_most = rollouts.config.rollout.hold_max.max(NEAR_MAX);
    let is_near = |runner: &Runner| {
        let now = runner.now();
        // One on a leash gets no closer before the active one is durable, which aligning begins
        // with.
        let is_near = (runner.is_on_leash() && runner.is_as_far_as(serving))
            || runner.position().saturating_add(batch) >= serving.position()
            || (now.pending <= batch && now.applied > 0)
            || runner.last_event() >= serving.last_event();
        is_near.then_some(())
    };
    tokio::time::timeout(at_most, runner.until_figures(is_near))
        .await
        .is_ok()
}

/// The commit, and the switch of the handle.
async fn flip(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    mut record: Record,
    flip: Flip<'_>,
) -> Result<(), Error> {
    let Flip {
        runner,
        serving,
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
    runner.start_serving();
    deployment.flip(record, Arc::clone(runner));
    serving.follow();
    Ok(())
}

/// Work that need not be done during the hold. The switch is done: a failure here is made up
/// for later.
async fn after_flip(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    runner: &Arc<Runner>,
    before: &Arc<Runner>,
) {
    // Limits of a rebuild do not apply to an active generation.
    runner.set_throttle(crate::pipeline::Throttle::default());
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

/// Why an owner that is gone is replaced.
fn why_lost(of_another_history: bool) -> &'static str {
    if of_another_history {
        "its stream was made again"
    } else {
        "its state could not be opened, or did not own its effects"
    }
}

/// Whether a candidate was built from another history than the active generation, which its own
/// reader has noticed. Nothing less may let positions go back: views of a stream may differ for a
/// moment, for example if one of the two was not connected yet.
fn is_of_another_history(
    serving: &Runner,
    runner: &Runner,
    continues_after: Option<u64>,
) -> Result<bool, Error> {
    // One that publishes from the beginning of a new stream has read nothing of it yet.
    if continues_after.is_some() && serving.has_diverged() {
        return Ok(true);
    }
    if runner.is_of_same_stream(serving) {
        return Ok(false);
    }
    // Only the reader of the active generation can tell a new stream from a view that lags.
    if serving.now().state == DeploymentState::Failed && serving.has_diverged() {
        return Ok(true);
    }
    Err(Error::Conflict(format!(
        "generation {} was built from another stream, or from one that was created again, and the \
         active generation has not noticed; resume it, so that it looks, and try again",
        runner.program().generation
    )))
}

/// Whether a candidate has read all events: it replaces a state that cannot be opened, whose
/// position is unknown.
fn check_caught_up(
    deployment: &Deployment,
    runner: &Runner,
    next: &Generation,
) -> Result<(), Error> {
    let now = runner.now();
    // It must not go further before it owns the effects.
    let is_at_end = |after| runner.is_on_leash() && runner.position() >= after;
    if next.lost_effects_after.is_some_and(is_at_end) || (now.begun && now.pending == 0) {
        return Ok(());
    }
    Err(Error::Conflict(format!(
        "the state of {} cannot be opened, and the candidate at {} has not caught up yet; try \
         again when it has",
        deployment.name(),
        runner.position()
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
    let serving = record.active_mut();
    serving.serves_from = position.max(1);
    serving.lacks_events = 0;
    serving.enter(
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
