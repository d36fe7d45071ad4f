//! Commands about deployments: what runs on a host, and how it fares.

pub mod delete;
pub mod deploy;
pub mod list;
pub mod outbox;
pub mod pause;
pub mod resume;
pub mod show;
pub mod skips;
