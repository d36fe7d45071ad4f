//! Commands about generations: how one takes over from another, is built again, checked and
//! removed.

pub mod abort;
pub mod generations;
pub mod promote;
pub mod prune;
pub mod rebuild;
pub mod rebuilds;
pub mod rollback;
pub mod throttle;
pub mod verify;
