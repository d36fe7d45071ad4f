//! What a deploy says about events that fail: whether they are parked, and where they are reported.

use std::sync::Arc;

use super::{Exceptions, failure_events};
use crate::deployment::{Deployment, parked_counts as counts};
use crate::deployments::Error;
use crate::module::{KeyRule, Module};
use crate::state::catalogue::{FailureEvents, OnFailure, ParkingRecord, Strategy};

/// What a deploy says about events that fail.
#[derive(Clone, Debug, Default)]
pub struct FailureRequest {
    /// What happens to events that have used up their attempts; absent: as before, at first stop.
    pub on_failure: Option<OnFailure>,
    /// Where failure events go, as `SUBJECT@SOURCE`; empty: nowhere; absent: as before.
    pub events: Option<String>,
    /// Whether the module retries what an earlier one has parked.
    pub retry_parked: bool,
}

impl Exceptions {
    /// The policy of a new deployment, whose module reads from a source.
    pub(crate) fn first_policy(
        &self,
        request: &FailureRequest,
        module: &Module,
        source: &str,
    ) -> Result<ParkingRecord, Error> {
        let on_failure = request.on_failure.unwrap_or_default();
        check_policy(on_failure, module)?;
        Ok(ParkingRecord {
            on_failure,
            events: failure_events::first(self, request.events.as_deref(), module, source)?,
            ..ParkingRecord::default()
        })
    }

    /// Sets what a deploy says about events that fail; returns what that changed, in words. A new
    /// generation gets its state by the strategy. The caller holds the deployment's lock.
    pub(crate) async fn set_failure_policy(
        self: &Arc<Self>,
        deployment: &Arc<Deployment>,
        strategy: Option<Strategy>,
        module: &Module,
        request: &FailureRequest,
    ) -> Result<Option<String>, Error> {
        let before = deployment.with_record(|record| record.parking.clone());
        let events = request.events.as_deref();
        // Before anything changes: a deploy that is refused leaves everything as it was.
        let record = deployment.record();
        let source = &record.active().source;
        match (events, &record.parking.events) {
            (Some(events), _) => {
                let target = self.failure_target(events, module, source)?;
                // Code that is there until the module takes over counts too.
                for other in std::iter::once(record.active()).chain(record.candidate()) {
                    failure_events::check_generation(target.as_ref(), other)?;
                }
            }
            (None, Some(kept)) => {
                failure_events::check_reader(kept, &module.manifest().subjects, source)?;
            }
            (None, None) => {}
        }
        self.set_on_failure(deployment, strategy, module, request.on_failure)
            .await?;
        self.set_failure_events(deployment, module, events).await?;
        let parking = deployment.with_record(|record| record.parking.clone());
        let mut changed = Vec::new();
        if parking.on_failure != before.on_failure {
            changed.push(format!("on-failure is {}", parking.on_failure.name()));
        }
        let place = |parking: &ParkingRecord| parking.events.as_ref().map(FailureEvents::place);
        if place(&parking) != place(&before) {
            let place = place(&parking).unwrap_or_else(|| "nowhere".to_owned());
            changed.push(format!("failure events go to {place}"));
        }
        Ok((!changed.is_empty()).then(|| changed.join(", ")))
    }

    /// Sets what happens to events that have used up their attempts, if a deploy says so, and
    /// refuses a plan that contradicts what is parked.
    async fn set_on_failure(
        &self,
        deployment: &Arc<Deployment>,
        strategy: Option<Strategy>,
        module: &Module,
        wanted: Option<OnFailure>,
    ) -> Result<(), Error> {
        // Before anything is written: a refused plan must leave the policy as it was.
        check_plan(deployment, strategy, module, wanted)?;
        let mut record = deployment.draft();
        let before = record.parking.on_failure;
        let Some(wanted) = wanted.filter(|wanted| *wanted != before) else {
            return Ok(());
        };
        let detail = format!("{} instead of {}", wanted.name(), before.name());
        record.parking.on_failure = wanted;
        self.deployments
            .commit(deployment, record, "on-failure", detail)
            .await?;
        // Followers park as well, so that a rollback finds the same policy.
        deployment
            .runners()
            .iter()
            .for_each(|runner| runner.set_on_failure(wanted));
        Ok(())
    }
}

/// Refuses a policy that a module can't have.
fn check_policy(on_failure: OnFailure, module: &Module) -> Result<(), Error> {
    let manifest = module.manifest();
    // Without keys no order could be kept: every later event would have to wait.
    if on_failure == OnFailure::Park && manifest.key_rule == KeyRule::None {
        return Err(Error::Refused(format!(
            "{} declares no key rule, so the host cannot know which later events have to wait behind \
             a parked one; declare one in its manifest, or deploy it with --on-failure stop",
            manifest.name
        )));
    }
    Ok(())
}

/// Refuses a plan that would lose what is parked, or the order of its keys.
fn check_plan(
    deployment: &Deployment,
    strategy: Option<Strategy>,
    module: &Module,
    wanted: Option<OnFailure>,
) -> Result<(), Error> {
    let record = deployment.record();
    check_policy(wanted.unwrap_or(record.parking.on_failure), module)?;
    // An unchanged module and a rebuild keep nothing that could be lost.
    let Some(strategy) = strategy else {
        return Ok(());
    };
    let parked = counts(deployment.active().store().as_ref());
    let name = deployment.name();
    if strategy == Strategy::Migrate && parked.events > 0 {
        return Err(Error::Refused(format!(
            "{name} has {} parked events, which a migration would leave behind; retry or drop \
             them first (`foldstream parked list {name}`), or rebuild",
            parked.events
        )));
    }
    let rule = &record.active().module.key_rule;
    let is_of_other_keys = *rule != module.info().key_rule;
    // Also if nothing is parked yet: an event may be parked until the module takes over.
    let may_park = parked.events > 0 || record.parking.on_failure == OnFailure::Park;
    if strategy == Strategy::Inherit && is_of_other_keys && may_park {
        return Err(Error::Refused(format!(
            "cannot inherit: the module has key rule {} instead of {rule}, by which {name} \
             parks events; retry or drop what is parked (`foldstream parked list {name}`) and \
             deploy the current module with --on-failure stop, or rebuild",
            module.info().key_rule
        )));
    }
    Ok(())
}
