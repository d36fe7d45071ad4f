//! What settings are made of: keys with their comments, sizes, secrets, and findings about them.
//!
//! `config` has the settings of a host; each kind of source declares its own next to its code.

mod findings;
mod key;
mod secret;
mod secret_file;
pub(crate) mod size;

pub(crate) use findings::{Findings, Setting};
pub use findings::{Problem, Severity};
pub use key::Key;
pub(crate) use key::{Kind, settings};
pub use secret::{REDACTED, Secret};
pub use secret_file::ReadError;
pub(crate) use secret_file::{read_opened_secret, read_secret};
