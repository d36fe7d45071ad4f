//! Commands that read what a deployment holds.

pub mod get;
pub mod query;
pub mod scan;
pub mod watch;
