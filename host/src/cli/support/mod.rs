//! What commands share: the client of the API, output, exit codes, options and waiting.

pub(crate) mod candidate;
pub mod client;
pub(crate) mod config_args;
pub mod exit;
pub mod exit_code;
pub(crate) mod failed;
pub(crate) mod gate;
pub(crate) mod json;
pub(crate) mod local_host;
pub(crate) mod log_writer;
pub(crate) mod nearby;
pub mod output;
pub(crate) mod pages;
pub(crate) mod progress;
pub(crate) mod received;
pub(crate) mod sse;
pub(crate) mod wait_for_cut_over;
pub(crate) mod wait_until_live;
pub(crate) mod watched;
pub(crate) mod whole_file;
