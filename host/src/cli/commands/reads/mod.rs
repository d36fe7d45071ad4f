//! Commands that read what a deployment holds.

pub(crate) mod get;
pub(crate) mod query;
mod reading;
pub(crate) mod scan;
pub(crate) mod value;
pub(crate) mod watch;
