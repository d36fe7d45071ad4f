//! Disk space: a rebuild that can't fit is refused before it starts.

use std::sync::Arc;

use super::Rollouts;
use crate::actor::blocking;
use crate::data_dir::DataDir;
use crate::deployment::Deployment;
use crate::deployments::{Error, with_headroom};
use crate::module::Accepted;
use crate::room::{Room, Use};
use crate::state::catalogue::GenerationStatus;

/// Refuses a rebuild whose state would not fit.
pub(super) async fn check(rollouts: &Rollouts, deployment: &Arc<Deployment>) -> Result<(), Error> {
    let file_bytes = deployment.overview().file_bytes;
    // What rebuilds of other deployments will still take is not in use yet, so the disk does
    // not show it.
    let others: u64 = rollouts
        .deployments
        .all()
        .iter()
        .filter(|other| !Arc::ptr_eq(other, deployment))
        .map(|other| still_to_come(other))
        .sum();
    let needed = with_headroom(file_bytes) + others;
    let room = rollouts.room.clone();
    blocking(move || {
        let what = format!(
            "a rebuild of {file_bytes} bytes of state, together with the running ones, would \
             need about {needed} bytes"
        );
        room.check(Use::Grow, needed).map_err(Error::no_room(what))
    })
    .await
}

/// Stores a module, if active generations still have room with it. Blocking.
pub(super) fn store_module(
    folder: &DataDir,
    room: &Room,
    accepted: &Accepted,
) -> Result<(), Error> {
    let Accepted {
        digest, component, ..
    } = accepted;
    // One that is there already takes no more.
    if !folder.module(digest).exists() {
        let bytes = component.len() as u64;
        room.check(Use::Grow, bytes)
            .map_err(Error::no_room("the module can't be stored"))?;
    }
    Ok(folder.store_module(digest, component)?)
}

/// How much more space the candidate of a deployment is expected to take.
fn still_to_come(deployment: &Deployment) -> u64 {
    let info = deployment.overview();
    // One that is ready has its size already.
    let candidate = info
        .candidate
        .filter(|candidate| candidate.status == GenerationStatus::Building);
    candidate.map_or(0, |candidate| {
        with_headroom(info.file_bytes).saturating_sub(candidate.file_bytes)
    })
}
