//! The start of a host: all deployments of the catalogue continue in their last state.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Rollouts;
use super::{beginning, build, inherit};
use crate::actor::blocking;
use crate::deployments::{Error, Role};
use crate::state::catalogue::Record;

impl Rollouts {
    /// Starts all deployments of the catalogue in their last state. A module that can't be loaded
    /// does not keep the others from starting.
    pub(crate) async fn resume_deployments(self: &Arc<Self>) -> Result<(), Error> {
        let deployments = Arc::clone(&self.deployments);
        let records = blocking(move || {
            // Before any runner starts: a file that no record names could be in the way.
            deployments.keep_only_named_files();
            deployments.catalogue.deployments()
        })
        .await?;
        for record in records {
            resume_deployment(self, record);
        }
        Ok(())
    }
}

fn resume_deployment(rollouts: &Arc<Rollouts>, record: Record) {
    let active = record.active().clone();
    beginning::warn_of_lost_file(rollouts, &record, &active);
    // What readers saw before the restart is unknown here; the state or the stream will say.
    let serve = rollouts.runners.start(
        &record,
        &active,
        Role::Serve {
            catches_up_to: None,
        },
    );
    let deployment = rollouts.deployments.add(record, serve);
    let record = deployment.record();
    let files: BTreeSet<u64> = record
        .generations
        .iter()
        .map(|generation| generation.state_file)
        .collect();
    // Generations share a file if one inherited the state of the other; one runner serves both.
    for state_file in files
        .into_iter()
        .filter(|state_file| *state_file != active.state_file)
    {
        if let Some(follower) = record.follower(state_file) {
            let runner = rollouts.runners.start(&record, follower, Role::Follow);
            deployment.add_runner(state_file, runner);
        }
    }
    if active.on_probation {
        // All of this runs in tasks, so that one deployment does not delay the start of the
        // others.
        inherit::watch_probation(rollouts, &deployment, active.number);
    }
    if let Some(candidate) = record.candidate() {
        build::drive(rollouts, &deployment, candidate.number);
    }
    rollouts.exceptions.publish_failures(&deployment);
    beginning::note_beginning(rollouts, &deployment);
    if record.parking.retry_by.is_some() {
        rollouts.exceptions.retry_what_is_parked(&deployment);
    }
}
