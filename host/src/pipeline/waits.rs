//! What the applying thread waits for, and whether it may apply the next batch.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::ahead::has_large;
use super::applier::Living;
use super::{Input, ROOM_LOOK, Run};
use crate::room::Use;
use crate::state;

/// How many times less often a state is committed that answers no reads, or is far behind its stream:
/// a commit writes every page it touches once, and a crash costs only a little more folding.
const UNREAD_FLUSH_FACTOR: u32 = 10;
/// How many times less often a checkpoint is committed that only moved over events of others.
const IDLE_FLUSH_FACTOR: u32 = 30;

/// Why the applying thread woke up.
pub(super) enum Wake {
    Control,
    Paced,
    /// A pause of the throttle is over.
    Rested,
    /// Another fold needs an instance, or this one had no work for long.
    Spare,
    /// Others wait for the memory of a large event that this one only keeps.
    LargeWanted,
    Input(Input),
    FlushDue,
    Committed(Result<(), state::Error>),
}

impl Run {
    /// Whether the disk has room; reports when the room ends and when it returns.
    pub(super) fn has_room(&mut self, purpose: Use) -> bool {
        let Some((room, _)) = &self.applier.settings.disk else {
            return true;
        };
        // A large commit must not take what smaller ones need.
        let bytes = if purpose == Use::Write {
            self.store.uncommitted_bytes()
        } else {
            0
        };
        match room.check(purpose, bytes) {
            Ok(()) => {
                if self.lacks == Some(purpose) {
                    self.lacks = None;
                    self.applier.progress.note_room();
                }
                true
            }
            Err(shortage) => {
                self.applier
                    .progress
                    .note_waiting("state", &format!("disk: {shortage}"));
                // The first lack stays: it ends when that very kind of room is back.
                self.lacks.get_or_insert(purpose);
                false
            }
        }
    }

    /// Whether timers were set that may be due before a commit that comes after this time: they
    /// fire when they are durable.
    fn has_timers_before(&self, wait: Duration) -> bool {
        let until = jiff::Timestamp::now().as_nanosecond() + wait.as_nanos() as i128;
        self.applier.progress.serves()
            && self
                .store
                .takes_new_timers(u64::try_from(until).unwrap_or(u64::MAX))
    }

    /// Sets when the state is committed, after a batch of this many events that began at a time.
    pub(super) fn plan_flush(&mut self, begun: Instant, events: usize) {
        let wait = self.applier.settings.flush_interval * self.flush_factor(events);
        // Effects leave when they are durable, so they wait for no more than the commit that runs.
        let due = if self.store.has_new_effects() || self.has_timers_before(wait) {
            begun
        } else {
            Instant::now() + wait
        };
        // The earliest time wins: a later batch must not delay what an earlier one is due.
        self.flush_at = Some(self.flush_at.map_or(due, |earlier| earlier.min(due)));
    }

    fn flush_factor(&self, events: usize) -> u32 {
        // A checkpoint without events costs a little reading after a crash, and nothing else.
        match events {
            0 => IDLE_FLUSH_FACTOR,
            _ if self.applier.progress.serves() && !self.applier.progress.is_far_behind() => 1,
            _ => UNREAD_FLUSH_FACTOR,
        }
    }

    /// Applies nothing more, and checks again later.
    pub(super) fn wait_for_room(&mut self) {
        self.is_full = true;
        self.flush_at = Some(Instant::now() + ROOM_LOOK);
    }

    /// Whether the next batch may be applied.
    pub(super) fn may_apply(&mut self) -> bool {
        let is_resting = self
            .rests_until()
            .is_some_and(|until| until > Instant::now());
        // Asked before the outbox, which reports when it is full.
        let is_at_leash = self.leash.is_at_end(self.store.position());
        !self.is_full
            && !is_resting
            && !self.applier.lacks()
            && !is_at_leash
            && !self.pacing.is_standing
            && !self.is_clogged()
    }

    /// Until when nothing is applied: the throttle and a pause after a failure both have to be
    /// over.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.pacing.rests_until.max(self.applier.rests_until())
    }

    pub(super) fn wait(&mut self) -> Wake {
        // Everything taken is applied, so its memory goes back to the budget.
        if self.stashed.is_empty() {
            self.inbox.applied();
        }
        // Looked at here and not only in `wait_long`, so that a long replay is interrupted as well.
        if *self.control.borrow() != self.wanted {
            return Wake::Control;
        }
        if self.pacing.receiver.has_changed().unwrap_or(false) {
            return Wake::Paced;
        }
        if self.commit.as_ref().is_some_and(JoinHandle::is_finished) {
            return Wake::Committed(self.join_commit());
        }
        // Before taking more work: a replay that always has more would delay it without end.
        if self.flush_is_due() {
            return Wake::FlushDue;
        }
        let may_apply = self.may_apply();
        // Stashed ones are older than those in the inbox.
        if may_apply && self.reading.is_given_up() {
            self.reading.begin(self.store.published());
        }
        if may_apply && let Some(input) = self.stashed.pop_front() {
            return Wake::Input(input);
        }
        if may_apply && let Some(input) = self.inbox.take() {
            return Wake::Input(input);
        }
        self.wait_long()
    }

    /// When the instance is dropped if no event comes.
    fn spare_at(&self) -> Option<Instant> {
        let idle_after = self.applier.settings.idle_after;
        let living = self
            .applier
            .fold
            .as_ref()
            .filter(|_| !idle_after.is_zero())?;
        living.used_at().checked_add(idle_after)
    }

    pub(super) fn flush_is_due(&self) -> bool {
        self.commit.is_none() && self.flush_at.is_some_and(|at| at <= Instant::now())
    }

    /// Every arm is cancel-safe: an interrupted receive takes nothing, and a commit continues on
    /// its own.
    fn wait_long(&mut self) -> Wake {
        let may_apply = self.may_apply();
        // Offered only while idle: an instance at work is not taken away.
        let wanted_elsewhere = self.applier.fold.as_ref().and_then(Living::wanted);
        let spare_at = self.spare_at();
        let is_at_leash = self.leash.is_at_end(self.store.position());
        let (is_full, is_clogged, rests_until) =
            (self.is_full, self.is_clogged, self.rests_until());
        let lack = self.applier.lack.clone();
        let may_give_back = !may_apply && self.may_give_back();
        let keeps_large = self.stashed.iter().any(has_large);
        let queued = (!keeps_large).then(|| self.inbox.large());
        let Self {
            control,
            inbox,
            commit,
            flush_at,
            wanted,
            runtime,
            pacing,
            leash,
            outbox,
            reading,
            ..
        } = self;
        let committing = commit.is_some();
        let is_kept = pacing.is_standing || is_full || is_clogged || is_at_leash;
        // If something else keeps it from applying, the end of the pause changes nothing.
        let may_rest = !may_apply && !is_kept && (rests_until.is_some() || lack.is_some());
        let woken = runtime.block_on(async {
            let flush = async {
                match *flush_at {
                    Some(at) if !committing => tokio::time::sleep_until(at.into()).await,
                    _ => std::future::pending().await,
                }
            };
            let committed = async {
                match commit {
                    Some(commit) => commit.await,
                    None => std::future::pending().await,
                }
            };
            // First the pause: a lack that is over within it may be back at its end.
            let rested = async {
                if let Some(until) = rests_until {
                    tokio::time::sleep_until(until.into()).await;
                }
                if let Some(lack) = &lack {
                    lack.over().await;
                }
            };
            let needed = async {
                match wanted_elsewhere {
                    Some(mut wanted) => drop(wanted.changed().await),
                    None => std::future::pending().await,
                }
            };
            let idle = async {
                match spare_at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let freed = async {
                // Only a full outbox is waited for.
                if !is_clogged || outbox.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                biased;
                _ = control.wait_for(|desired| *desired != *wanted) => Some(Wake::Control),
                Ok(()) = pacing.receiver.changed() => Some(Wake::Paced),
                joined = committed => Some(Wake::Committed(state::joined(joined))),
                input = inbox.next(), if may_apply => input.map(Wake::Input),
                () = flush => Some(Wake::FlushDue),
                () = rested, if may_rest => Some(Wake::Rested),
                () = freed => Some(Wake::Rested),
                () = reading.large_is_wanted(queued), if may_give_back => Some(Wake::LargeWanted),
                () = leash.moved(), if !may_apply => Some(Wake::Rested),
                () = needed => Some(Wake::Spare),
                () = idle => Some(Wake::Spare),
            }
        });
        // Polled to its end here, so it must not be joined again.
        if let Some(Wake::Committed(result)) = &woken {
            self.commit = None;
            if result.is_ok() {
                self.applier.progress.note_durable();
            }
            self.share.set(self.store.memory_bytes());
        }
        // The reading task sends its error before it ends, so an empty, closed inbox means that the
        // runtime is shutting down.
        woken.unwrap_or(Wake::Control)
    }
}
