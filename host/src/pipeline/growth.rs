//! Limits how much of a disk's last free space one state may use, and how large its file gets.

use super::Run;
use crate::room::{Room, Shortage, Use};

/// How much a state has grown since its disk became short of space.
#[derive(Debug, Default)]
pub(super) struct Growth {
    /// Its size on disk when space became short; none while there is enough.
    since: Option<u64>,
}

/// A state used up its share of the remaining space.
#[derive(Debug, thiserror::Error)]
#[error(
    "disk: this state grew by {bytes} bytes since the disk ran low, {allowed} are allowed, so that \
     other states keep their share; {shortage}"
)]
pub(super) struct Excess {
    bytes: u64,
    allowed: u64,
    shortage: Shortage,
}

impl Growth {
    /// Whether the state may still grow, if this many bytes wait to be committed. `taken` returns
    /// its size on disk in bytes, and is called only if space is short.
    pub(super) fn check(
        &mut self,
        room: &Room,
        waiting: u64,
        taken: impl FnOnce() -> u64,
    ) -> Result<(), Excess> {
        self.judge(room.check(Use::Grow, waiting), || taken() + waiting)
    }

    fn judge(
        &mut self,
        room: Result<(), Shortage>,
        taken: impl FnOnce() -> u64,
    ) -> Result<(), Excess> {
        let Err(shortage) = room else {
            // The next shortage begins from the size of then.
            self.since = None;
            return Ok(());
        };
        let taken = taken();
        let since = self.since.get_or_insert(taken);
        // Space that it releases, it may use again.
        *since = taken.min(*since);
        // The part gets smaller with the space that is left.
        let (bytes, allowed) = (taken - *since, shortage.part_of_one());
        if bytes <= allowed {
            Ok(())
        } else {
            Err(Excess {
                bytes,
                allowed,
                shortage,
            })
        }
    }
}

impl Run {
    /// Whether this state used up its share of the remaining space: it then stops before its
    /// neighbours have to.
    pub(super) fn took_its_part(&mut self) -> bool {
        // Its own limit comes first: it holds however much space the disk has.
        if self.is_file_full() {
            return true;
        }
        let Some((room, _)) = &self.applier.settings.disk else {
            return false;
        };
        let waiting = self.store.uncommitted_bytes();
        let Err(excess) = self
            .growth
            .check(room, waiting, || self.store.allocated_bytes())
        else {
            // Only what this check has reported; a lack of space for commits is reported elsewhere.
            if self.lacks == Some(Use::Grow) {
                self.lacks = None;
                self.applier.progress.note_room();
            }
            return false;
        };
        self.wait_to_grow(&excess.to_string());
        true
    }

    /// Whether the file of this state has all the disk space that it may have, together with what
    /// waits to be committed.
    pub(super) fn is_file_full(&mut self) -> bool {
        let Some(full) = self.store.file_excess() else {
            return false;
        };
        self.wait_to_grow(&full);
        true
    }

    fn wait_to_grow(&mut self, why: &str) {
        self.applier.progress.note_waiting("state", why);
        self.lacks.get_or_insert(Use::Grow);
        self.wait_for_room();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_grows_stops_before_one_that_does_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let shortage = || Room::of(folder.path()).check(Use::Grow, 1 << 60);
        let allowed = shortage().expect_err("no disk is that large").part_of_one();
        let (mut grows, mut rests) = (Growth::default(), Growth::default());
        for _ in 0..3 {
            assert!(rests.judge(shortage(), || allowed * 3).is_ok());
        }
        assert!(grows.judge(shortage(), || 10).is_ok());
        assert!(grows.judge(shortage(), || 10 + allowed).is_ok());
        let excess = grows
            .judge(shortage(), || 11 + allowed)
            .expect_err("it took its part");
        assert!(excess.to_string().starts_with("disk: "), "{excess}");
        assert!(grows.judge(Ok(()), || 0).is_ok());
        assert!(
            grows.judge(shortage(), || 11 + allowed).is_ok(),
            "it begins again once there was room"
        );
    }
}
