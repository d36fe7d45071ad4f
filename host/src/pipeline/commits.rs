//! When a run commits, and what it does at its end.

use std::time::Instant;

use super::{Ended, Obstacle, ROOM_LOOK, Run};
use crate::batch::Batch;
use crate::memory::memtables::Share;
use crate::progress::Cause;
use crate::room::Use;
use crate::state::{self, Store};

/// Whether a state has to commit before it applies more: because of its own limit in bytes, or of
/// the budget of the host, which all states share.
pub(super) fn is_large(share: &mut Share, store: &Store, limit: u64) -> bool {
    share.set(store.memory_bytes());
    let active = store.active_bytes();
    active >= limit || share.must_yield(active)
}

impl Run {
    pub(super) fn join_commit(&mut self) -> Result<(), state::Error> {
        let Some(commit) = self.commit.take() else {
            return Ok(());
        };
        // On the thread of the runner, which is outside the runtime, so it may block.
        let joined = self.runtime.block_on(commit);
        // What is committed is no longer in memory, which the host's budget has to know.
        self.share.set(self.store.memory_bytes());
        let committed = state::joined(joined);
        if committed.is_ok() {
            self.applier.progress.note_durable();
        }
        committed
    }

    /// Makes durable where a new state begins, and in which stream, before anybody sees anything of
    /// it: after a crash the stream is then recognised, or is another one. A state that answers no
    /// reads needs no such record.
    pub(super) fn note_beginning(&mut self, batch: &Batch) -> Result<(), Ended> {
        if self.has_noted_beginning {
            return Ok(());
        }
        let published = self.store.published();
        // The first batches may have no messages, and say nothing about the stream.
        let has_seen = published
            .as_ref()
            .is_some_and(|checkpoint| checkpoint.marks().next().is_some());
        self.has_noted_beginning = has_seen;
        if has_seen || !self.applier.progress.serves() {
            return Ok(());
        }
        let disk = self.applier.settings.disk.as_ref();
        // Without room nothing is durable, and nothing keeps events from being applied in memory.
        let has_room = disk.is_none_or(|(room, _)| room.check(Use::Write, 0).is_ok());
        let Some(checkpoint) = batch.beginning(published.as_ref()).filter(|_| has_room) else {
            return Ok(());
        };
        self.applier.writer().publish(checkpoint);
        self.store.flush().map_err(Ended::State)
    }

    /// Counts what turned out to be missing after the state had passed it. Durable at once, as far as
    /// there is room: no later event brings it back.
    pub(super) fn note_overlooked(&mut self, batch: &mut Batch) -> Result<(), Ended> {
        let overlooked = std::mem::take(&mut batch.overlooked);
        let Some(checkpoint) = self.store.published().filter(|_| overlooked > 0) else {
            return Ok(());
        };
        let missing = checkpoint.missing.saturating_add(overlooked);
        self.applier.writer().note_missing(missing);
        let disk = self.applier.settings.disk.as_ref();
        if disk.is_some_and(|(room, _)| room.check(Use::Write, 0).is_err()) {
            return Ok(());
        }
        self.join_commit().map_err(Ended::State)?;
        self.store.flush().map_err(Ended::State)
    }

    /// Commits early if memory requires it, and waits for a commit if there is no memory to
    /// continue.
    pub(super) fn commit_if_large(&mut self) -> Result<(), Ended> {
        let limit = self.applier.settings.memtable_bytes;
        if !is_large(&mut self.share, &self.store, limit) {
            return Ok(());
        }
        // One commit at a time: the frozen memtable is still there.
        if self.commit.is_some() {
            self.join_commit().map_err(Ended::State)?;
        }
        self.begin_commit();
        // It could not begin, for lack of disk space: memory must not grow any more.
        if self.commit.is_none() && !self.store.is_durable() {
            self.wait_for_room();
        }
        Ok(())
    }

    pub(super) fn begin_commit(&mut self) {
        if self.commit.is_some() {
            return;
        }
        // Set again by the next batch.
        self.flush_at = None;
        if !self.store.is_durable() && !self.has_room(Use::Write) {
            self.flush_at = Some(Instant::now() + ROOM_LOOK);
            return;
        }
        // Nothing to commit.
        if !self.store.freeze() {
            return;
        }
        let (store, seconds) = (self.store.clone(), self.metrics.commit_seconds.clone());
        let commit = move || {
            let started = Instant::now();
            let committed = store.commit();
            seconds.observe(started.elapsed().as_secs_f64());
            committed
        };
        // On a thread of the runtime: a thread started here would inherit the low priority, and
        // later serve reads with it.
        self.commit = Some(
            self.runtime
                .spawn(async move { state::joined(tokio::task::spawn_blocking(commit).await) }),
        );
    }

    /// Makes everything applied durable, whatever ended the run, and only then reports that it
    /// can't continue: what readers saw next to a failure must not be lost, least of all if the
    /// stream that could restore it is gone.
    pub(super) fn finish(&mut self, ended: Ended) -> Ended {
        // The writes of a batch that was interrupted.
        if let Some(writer) = &mut self.applier.writer {
            writer.discard();
        }
        // Without disk space a flush would fail, and what can be read in memory would be lost.
        let disk = self.applier.settings.disk.as_ref();
        let has_room = disk.is_none_or(|(room, _)| {
            self.store.is_durable()
                || room
                    .check(Use::Write, self.store.uncommitted_bytes())
                    .is_ok()
        });
        // The commit first: a flush freezes the memtable once more.
        let flushed = self
            .join_commit()
            .and_then(|()| if has_room { self.store.flush() } else { Ok(()) });
        self.share.set(self.store.memory_bytes());
        if let Some(Obstacle {
            kind,
            class,
            message,
            sequence,
        }) = self.applier.obstacle.take()
        {
            self.applier.progress.note_stopped_by(&Cause {
                kind,
                class,
                message: &message,
                sequence,
            });
        }
        match (ended, flushed) {
            (Ended::State(error), _) | (_, Err(error)) => Ended::State(error),
            (ended, Ok(())) => ended,
        }
    }

    /// Whether nothing may be applied because too many effects wait; reports when that begins and
    /// when it ends.
    pub(super) fn is_clogged(&mut self) -> bool {
        // Before the question, so that no change is missed after it.
        self.outbox.borrow_and_update();
        let was = self.is_clogged;
        self.is_clogged = self.store.is_outbox_full();
        if self.is_clogged {
            let state::Waiting {
                entries,
                bytes,
                delayed,
                conflicts,
            } = self.store.waiting_effects();
            let message = format!(
                "outbox: {entries} messages of {bytes} bytes wait to be published ({delayed} of \
                 them for their time, {conflicts} in conflict), as many as \
                 state.outbox_entries_max and state.outbox_bytes_max allow; the deployment \
                 continues when a tenth is confirmed; `foldstream show` says what keeps them"
            );
            // Each time, because some may have left or been dropped meanwhile.
            self.applier
                .progress
                .note_waiting(crate::failure::OUTBOX, &message);
        } else if was && self.applier.ladder.attempts() == 0 {
            // An event that fails is still failing.
            self.applier.progress.note_recovered();
        }
        self.is_clogged
    }
}
