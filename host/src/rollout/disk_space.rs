//! Disk space: a rebuild that can't fit is refused before it starts.

use std::sync::Arc;

use super::rollouts::Shared;
use super::{Error, Rollouts};
use crate::actor::blocking;
use crate::api::GenerationStatus;
use crate::deployment::Deployment;
use crate::module::Accepted;
use crate::room::Use;

/// How much more space a new state is expected to need than the existing one, in percent: files
/// grow in steps, and versions of a module differ.
const HEADROOM_PERCENT: u64 = 25;

impl Rollouts {
    /// Refuses a rebuild whose state would not fit.
    pub(super) async fn check_room(&self, deployment: &Arc<Deployment>) -> Result<(), Error> {
        let file_bytes = deployment.info().file_bytes;
        // What rebuilds of other deployments will still take is not in use yet, so the disk does
        // not show it.
        let others: u64 = self
            .deployments()
            .iter()
            .filter(|other| !Arc::ptr_eq(other, deployment))
            .map(|other| still_to_come(other))
            .sum();
        let needed = with_headroom(file_bytes) + others;
        let room = self.inner.room.clone();
        blocking(move || {
            let what = format!(
                "a rebuild of {file_bytes} bytes of state, together with the running ones, would \
                 need about {needed} bytes"
            );
            room.check(Use::Grow, needed).map_err(Error::no_room(what))
        })
        .await
    }
}

impl Shared {
    /// Stores a module, if active generations still have room with it.
    pub(super) fn store_module(&self, accepted: &Accepted) -> Result<(), Error> {
        let Accepted {
            digest, component, ..
        } = accepted;
        // One that is there already takes no more.
        if !self.folder.module(digest).exists() {
            let bytes = component.len() as u64;
            self.room
                .check(Use::Grow, bytes)
                .map_err(Error::no_room("the module can't be stored"))?;
        }
        Ok(self.folder.store_module(digest, component)?)
    }
}

/// How much more space the candidate of a deployment is expected to take.
fn still_to_come(deployment: &Deployment) -> u64 {
    let info = deployment.info();
    // One that is ready has its size already.
    let candidate = info
        .candidate
        .filter(|candidate| candidate.status == GenerationStatus::Building);
    candidate.map_or(0, |candidate| {
        with_headroom(info.file_bytes).saturating_sub(candidate.file_bytes)
    })
}

/// How much space a copy or a new state of this many bytes may take.
pub(super) fn with_headroom(bytes: u64) -> u64 {
    bytes + bytes * HEADROOM_PERCENT / 100
}
