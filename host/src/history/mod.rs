//! The past of a deployment: its stream is folded again, into a file of its own.
//!
//! Side folds (`side_fold`) answer as-of reads (`as_of`), starting from the nearest snapshot
//! (`snapshots`), and verify a state (`verify`). What a fold from the beginning would lack, because
//! the stream has lost it since, is found out first (`lost`), and so are parked events of which a
//! state has the only copy (`only_copies`). Nothing here changes a generation.

mod as_of;
mod lost;
mod only_copies;
mod side_fold;
mod snapshots;
mod verify;

use std::sync::Arc;

pub(crate) use as_of::{AsOfError, Moment};
pub(crate) use lost::{Accepted, lacking, lacking_in_words};
pub(crate) use only_copies::{OnlyCopies, only_copies};
pub(crate) use side_fold::{SideFold, SideFoldOptions};

use self::as_of::PastStates;
use self::snapshots::Snapshots;
use crate::actor::blocking;
use crate::config::Config;
use crate::deployments::{Deployments, Queue, Runners};
use crate::room::Room;
use crate::source::Sources;

/// Reads and checks the past of deployments.
#[derive(Debug)]
pub struct History {
    deployments: Arc<Deployments>,
    /// Side folds are runners.
    runners: Arc<Runners>,
    /// Asked for what they have lost.
    sources: Sources,
    /// How many past states and snapshots there may be.
    config: Arc<Config>,
    /// Where side folds and snapshots get their space.
    room: Room,
    /// A verification costs as much as a rebuild, and waits for its turn like one.
    rebuilds: Queue,
    past_states: PastStates,
    snapshots: Snapshots,
}

impl History {
    /// The past of these deployments.
    pub(crate) fn new(
        deployments: Arc<Deployments>,
        runners: Arc<Runners>,
        rebuilds: Queue,
    ) -> Self {
        Self {
            deployments,
            sources: runners.sources.clone(),
            config: Arc::clone(&runners.config),
            room: runners.room.clone(),
            runners,
            rebuilds,
            past_states: PastStates::default(),
            snapshots: Snapshots::default(),
        }
    }

    /// The turns that it shares with rebuilds.
    pub(crate) fn rebuilds(&self) -> Queue {
        self.rebuilds.clone()
    }

    /// Removes past states that were not used for long enough.
    pub(crate) fn expire(&self) {
        self.past_states
            .expire(self.config.rollout.as_of_unused_max);
    }

    /// Forgets the past states of a deployment, which show entries that are no longer right for
    /// their position.
    pub(crate) fn forget(&self, deployment: &str) {
        self.past_states.forget(deployment);
    }

    /// The same for its snapshots of a state file as well.
    pub(crate) async fn forget_all_of(&self, deployment: &str, state_file: u64) {
        self.forget(deployment);
        let folder = self.deployments.folder.snapshots(deployment);
        blocking(move || snapshots::remove_all_of(&folder, state_file)).await;
    }
}
