//! Commands about generations: how one takes over from another, is built again, checked and
//! removed.

pub(crate) mod abort;
pub(crate) mod generations;
pub(crate) mod promote;
pub(crate) mod prune;
pub(crate) mod rebuild;
pub(crate) mod rebuilds;
pub(crate) mod rollback;
pub(crate) mod throttle;
pub(crate) mod verify;
