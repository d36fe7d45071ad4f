//! Commands that read what a deployment holds.

pub(crate) mod get;
pub(crate) mod query;
pub(crate) mod scan;
pub(crate) mod watch;
