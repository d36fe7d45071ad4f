//! Descriptors of open files: how many this process may have, and how some of them are kept for
//! work that must continue.
//!
//! Without any, nobody could be let in to ask what is wrong, and no module could be checked.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As many as anything here takes. Some systems allow a thousand times as many, which only costs.
const WANTED_MAX: u64 = 1 << 20;
/// Of those allowed, this share is kept free of states and streams, and at most this many. The
/// process that checks a module takes eight for a moment.
const SPARE_SHARE: u64 = 4;
const SPARE_MAX: u64 = 32;

/// Takes as many as the system lets this process have: the soft limit is meant for programs that
/// know no better.
pub(crate) fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // Some systems allow any number; then what we want is enough.
    let wanted = maximum.unwrap_or(WANTED_MAX).min(WANTED_MAX);
    // Never lowered: somebody may have raised it further.
    if current.is_some_and(|current| current < wanted)
        && let Err(error) = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(wanted),
                maximum,
            },
        )
    {
        tracing::debug!(%error, "the limit of open files stays as it was");
    }
}

/// Fails as the system would if there were none left, while there are still some for those who come
/// to look.
pub(crate) fn check_spare() -> io::Result<()> {
    // The system hands out the lowest number that is free.
    let lowest = File::open("/")?;
    if is_within(lowest.as_raw_fd(), spare()) {
        Err(rustix::io::Errno::MFILE.into())
    } else {
        Ok(())
    }
}

/// Whether a connection has one of the last descriptors, so that what the host itself opens would
/// find none.
pub(crate) fn is_among_the_last(descriptor: RawFd) -> bool {
    is_within(descriptor, spare() / 2)
}

fn spare() -> u64 {
    // Of a small limit a part, so that most of it can be used.
    limit().map_or(0, |limit| (limit / SPARE_SHARE).min(SPARE_MAX))
}

fn is_within(descriptor: RawFd, last: u64) -> bool {
    let number = u64::try_from(descriptor).unwrap_or(0);
    // Without a limit no descriptor is among the last.
    limit().is_some_and(|limit| number.saturating_add(last) >= limit)
}

fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}
