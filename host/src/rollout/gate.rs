//! The gate: compares a candidate with the active generation at one position, and lets it pass or
//! holds it back.

use std::sync::Arc;

use super::{Rollouts, cut_over};
use crate::actor::blocking;
use crate::deployment::{Deployment, parked_counts};
use crate::deployments::{Error, align, compare, parked_remark};
use crate::state::Snapshot;
use crate::state::catalogue::{Comparison, Gate, GenerationStatus, Promotion};

/// Compares a candidate with the active generation, and records the result; an error if its
/// gate does not allow the differences. The deployment's lock is held only at the beginning and
/// at the end, because comparing a large state takes long.
pub(super) async fn pass(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    number: u64,
) -> Result<(), Error> {
    let (ours, theirs, gate, against) = take_snapshots(rollouts, deployment, number).await?;
    // Snapshots stay as they are, so applying and other changes continue meanwhile.
    let comparison = blocking(move || compare(&ours, &theirs, &gate)).await?;
    let comparison = Comparison {
        against,
        ..comparison
    };
    let _changing = rollouts.deployments.lock(deployment).await?;
    let mut record = deployment.draft();
    let active = record.active;
    let candidate = record
        .generation_mut(number)
        .filter(|candidate| candidate.status.is_candidate());
    // A comparison with a generation that is no longer active proves nothing.
    let Some(generation) = candidate.filter(|_| active == against) else {
        return Err(Error::Conflict(format!(
            "{} changed while it was compared; try again",
            deployment.name()
        )));
    };
    let passed = comparison.refused == 0;
    let verdict = if passed {
        "passed the gate"
    } else {
        "held back by its gate"
    };
    let parked = parked_counts(deployment.active().store().as_ref());
    let parked = parked_remark(&parked);
    let reason = format!("{verdict}: {}{parked}", comparison.conclusion);
    // It would try again at each new event, and fail again; an operator decides instead.
    if !passed {
        generation.build.promote = Promotion::Manual;
    }
    generation.comparison = Some(comparison);
    generation.enter(GenerationStatus::Ready, reason.clone());
    rollouts
        .deployments
        .commit(
            deployment,
            record,
            "compare",
            format!("generation {number} {reason}"),
        )
        .await?;
    if passed {
        return Ok(());
    }
    Err(Error::Conflict(format!(
        "generation {number} is {reason}; inspect it with `foldstream generations {name}` and \
         `foldstream scan {name} --generation {number}`, promote it with `foldstream promote \
         {name} --force`, or `foldstream abort {name}`",
        name = deployment.name()
    )))
}

/// Both states at one position, with the gate and the number of the active generation. Applying
/// is held only until the snapshots are taken.
async fn take_snapshots(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    number: u64,
) -> Result<(Snapshot, Snapshot, Gate, u64), Error> {
    let _changing = rollouts.deployments.lock(deployment).await?;
    let record = deployment.record();
    let gone = || Error::Conflict(format!("generation {number} does not run"));
    let generation = record.generation(number).ok_or_else(gone)?;
    let gate = generation.build.gate.clone().unwrap_or_default();
    let (serving, runner) = (
        deployment.active(),
        deployment.runner(generation.state_file).ok_or_else(gone)?,
    );
    if !runner.is_of_same_stream(&serving) {
        return Err(Error::Conflict(
            "cannot compare: the stream was deleted and created again since the active \
             generation was built; promote with --force"
                .to_owned(),
        ));
    }
    // The result does not matter: aligning reports what keeps the two apart.
    cut_over::wait_until_close(rollouts, &serving, &runner).await;
    let aligned = align(&serving, &runner, rollouts.config.rollout.hold_max)
        .await
        .map_err(|missed| Error::Conflict(format!("cannot compare: {missed}; try again")))?;
    // `aligned` is dropped on return, and both continue while the snapshots are compared.
    let (ours, theirs) = aligned.snapshots(&serving, &runner)?;
    Ok((ours, theirs, gate, record.active))
}
