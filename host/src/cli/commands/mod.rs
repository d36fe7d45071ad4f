//! The commands, by what they are about: one file for each, named as the user types it.

pub mod deployments;
pub mod events;
pub mod host;
pub mod outbox;
pub mod project;
pub mod reads;
pub mod rollouts;
