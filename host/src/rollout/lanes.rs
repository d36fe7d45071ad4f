//! In how many lanes a deployment is folded, as a deploy says.

use std::sync::Arc;

use super::Rollouts;
use crate::deployment::Deployment;
use crate::deployments::Error;
use crate::lanes::Lanes;
use crate::module::{KeyRule, Module, ModuleKind};

/// The number of lanes of a new deployment, if a deploy names one that the module can have.
pub(super) fn checked(wanted: Option<Lanes>, module: &Module) -> Result<Option<Lanes>, Error> {
    let manifest = module.manifest();
    // `auto` takes one lane if more are not possible.
    if !matches!(wanted, Some(Lanes::Count(2..))) {
        return Ok(wanted);
    }
    if module.kind() == ModuleKind::Handler {
        return Err(Error::Refused(format!(
            "{} is a handler, whose messages and timers have an order over all keys, so it is folded \
             in one lane; deploy it without --lanes",
            manifest.name
        )));
    }
    if manifest.key_rule == KeyRule::None {
        return Err(Error::Refused(format!(
            "{} declares no key rule, so nobody knows which events may be folded at once; declare one \
             in its manifest, or deploy it without --lanes",
            manifest.name
        )));
    }
    Ok(wanted)
}

/// Sets the number of lanes, which was checked, if a deploy names another one than before; returns what that changed, in
/// words. The caller holds the deployment's lock.
pub(super) async fn set(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    wanted: Option<Lanes>,
) -> Result<Option<String>, Error> {
    let mut record = deployment.draft();
    let Some(wanted) = wanted.filter(|wanted| record.lanes != Some(*wanted)) else {
        return Ok(None);
    };
    let changed = format!("lanes: {wanted}");
    record.lanes = Some(wanted);
    rollouts
        .deployments
        .commit(deployment, record, "lanes", wanted.to_string())
        .await?;
    for runner in deployment.runners() {
        runner.set_lanes(wanted.count());
    }
    Ok(Some(changed))
}
