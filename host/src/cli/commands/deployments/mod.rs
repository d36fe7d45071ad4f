//! Commands about deployments: what runs on a host, and in which state.

pub(crate) mod delete;
pub(crate) mod deploy;
pub(crate) mod list;
pub(crate) mod outbox;
pub(crate) mod pause;
pub(crate) mod resume;
pub(crate) mod sagas;
pub(crate) mod show;
pub(crate) mod skips;
pub(crate) mod timers;
