//! How a command ends, for scripts.

use std::process::ExitCode;

/// How a command ended, for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed in a way that has no other code.
    Failed = 1,
    /// The command line, the environment or the configuration is wrong.
    Usage = 2,
    /// Something named in the command does not exist.
    NotFound = 3,
    /// The module, the request or an expectation was refused.
    Refused = 4,
    /// The host can't be reached, or is not ready.
    Unreachable = 5,
    /// The time ran out, or the deployment is behind the requested position.
    TimedOut = 6,
    /// Interrupted by Ctrl-C.
    Interrupted = 130,
}

/// Shown at the end of every help.
pub const HELP: &str = "\
Exit codes:
  0    done
  1    failed
  2    usage: the command line, the environment or the configuration is wrong
  3    not found
  4    refused: bad module, conflict, invalid request, missing token, data folder in use
  5    the host cannot be reached, or is not ready
  6    timed out, or behind the requested sequence
  130  interrupted";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}
