//! Promotes a candidate as an operator asks, with or without its gate.

use super::candidate::throttled;
use super::cut_over::{CutOver, Switch};
use super::{Rollouts, cut_over, gate, rebuilds};
use crate::deployments::{Error, candidate_of};
use crate::state::catalogue::{Generation, GenerationStatus, Promotion};

/// What a promotion requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// The gate, if there is one.
    Gate,
    /// Nothing: the operator has looked at the differences, and accepts them.
    Force,
}

/// How fast a candidate is built that an operator promotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildSpeed {
    /// As it was requested.
    Unchanged,
    /// As fast as it can be, from now on.
    Unthrottled,
}

impl Rollouts {
    /// Makes the candidate active now.
    pub async fn promote(
        &self,
        name: &str,
        demand: Demand,
        speed: BuildSpeed,
    ) -> Result<CutOver, Error> {
        let deployment = self.deployments.get(name)?;
        // Before the wait below, which would be in vain.
        check_unpaused(name, candidate_of(&deployment.record())?)?;
        // Without the lock: it waits until the candidate is ready.
        if speed == BuildSpeed::Unthrottled {
            rebuilds::lift_throttle(self, name).await?;
        }
        let changing = self.deployments.lock(&deployment).await?;
        let candidate = candidate_of(&deployment.record())?.clone();
        check_unpaused(name, &candidate)?;
        let info = deployment.generation_overview(&candidate);
        if candidate.status != GenerationStatus::Ready {
            return Err(Error::Conflict(format!(
                "generation {} is still being built: {}, {}{}; it {}",
                candidate.number,
                info.progress
                    .map_or("progress unknown".to_owned(), |part| format!(
                        "{:.0} % done",
                        part * 100.0
                    )),
                info.lag_events.map_or(
                    "because its source can't be reached".to_owned(),
                    |lag| format!("{lag} events to go")
                ),
                throttled(name, &candidate),
                if candidate.build.promote == Promotion::Auto {
                    "takes over on its own when it has caught up"
                } else {
                    "can be promoted when it is ready"
                }
            )));
        }
        // `gate::pass` takes the lock itself, and compares without it.
        drop(changing);
        if demand == Demand::Gate && candidate.build.gate.is_some() {
            gate::pass(self, &deployment, candidate.number).await?;
        }
        // Looked up again: during the comparison, another deploy may have replaced the candidate.
        let _changing = self.deployments.lock(&deployment).await?;
        match deployment.record().candidate() {
            Some(still) if still.number == candidate.number => {}
            _ => {
                return Err(Error::Conflict(format!(
                    "generation {} was replaced",
                    candidate.number
                )));
            }
        }
        cut_over::switch(self, &deployment, candidate.number, Switch::CutOver).await
    }
}

/// Refuses a candidate that is paused before it is ready: it does not get there on its own.
fn check_unpaused(name: &str, candidate: &Generation) -> Result<(), Error> {
    if !candidate.paused || candidate.status == GenerationStatus::Ready {
        return Ok(());
    }
    Err(Error::Conflict(format!(
        "generation {} is still being built, and is paused; continue with `foldstream resume \
         {name} --candidate`, and promote it when it is ready",
        candidate.number
    )))
}
