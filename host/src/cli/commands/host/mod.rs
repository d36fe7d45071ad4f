//! Commands of those who run a host, and about this program itself.

pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod check_module;
pub(crate) mod compact;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod man;
pub(crate) mod serve;
pub(crate) mod token;
