//! Commands of those who run a host, and about this program itself.

pub mod audit;
pub mod backup;
pub mod check_module;
pub mod compact;
pub mod completions;
pub mod config;
pub mod doctor;
pub mod man;
pub mod serve;
pub mod token;
