//! The commands, by what they are about: one file for each, named as the user types it.

pub(super) mod contract;
pub(super) mod deployments;
pub(super) mod events;
pub(super) mod host;
pub(super) mod outbox;
pub(super) mod parked;
pub(super) mod project;
pub(super) mod reads;
pub(super) mod rollouts;
pub(super) mod sagas;
pub(super) mod timers;
