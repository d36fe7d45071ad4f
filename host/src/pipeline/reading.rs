//! The reading stage of a run, as its applying stage sees it: begun, given up for others, and begun
//! again.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::ahead::{self, Inbox, Outbox};
use super::{Input, Run};
use crate::memory::read_ahead::ReadAhead;
use crate::position::Checkpoint;
use crate::progress::{BatchTurn, Progress};
use crate::source::{Request, Source, StatusSender};

/// What a reader is made of.
pub(super) struct Reading {
    source: Source,
    /// What to read; `resume` is set when it begins.
    request: Request,
    status: StatusSender,
    ahead: ReadAhead,
    progress: Arc<Progress>,
    runtime: Handle,
    /// The task that reads; none while the run has given it up.
    task: Option<AbortOnDrop>,
    /// The end of the queue for the next task, so that the queue stays open.
    outbox: Option<Outbox>,
}

impl Reading {
    /// A stage that does not read yet, and its queue.
    pub(super) fn new(
        source: Source,
        request: Request,
        status: StatusSender,
        rest: (ReadAhead, Arc<Progress>, Handle),
    ) -> (Self, Inbox) {
        let (ahead, progress, runtime) = rest;
        let (outbox, inbox) = ahead.queue();
        let reading = Self {
            source,
            request,
            status,
            ahead,
            progress,
            runtime,
            task: None,
            outbox: Some(outbox),
        };
        (reading, inbox)
    }

    /// Reads from a checkpoint on, unless it does already.
    pub(super) fn begin(&mut self, resume: Option<Checkpoint>) {
        let Some(outbox) = self.outbox.take() else {
            return;
        };
        // Readers of JetStream spawn tasks of their own.
        let _guard = self.runtime.enter();
        let turn = if resume.is_none() {
            BatchTurn::First
        } else {
            BatchTurn::Later
        };
        let request = Request {
            resume,
            ..self.request.clone()
        };
        let reader = self
            .source
            .read_within(request, self.status.clone(), &self.ahead);
        let progress = Arc::clone(&self.progress);
        self.task = Some(AbortOnDrop(
            self.runtime
                .spawn(ahead::read(reader, turn, outbox, progress)),
        ));
    }

    /// Waits until others wait for the memory of a large event that this run has: in its stash, or
    /// in its queue, in which `queued` counts them. Cancel-safe: it only observes.
    pub(super) async fn large_is_wanted(&self, queued: Option<watch::Receiver<usize>>) {
        // One after the other: neither alone is a reason.
        if let Some(mut queued) = queued
            && queued.wait_for(|large| *large > 0).await.is_err()
        {
            std::future::pending::<()>().await;
        }
        self.ahead.large_is_wanted().await;
    }

    /// Whether it was given up.
    pub(super) fn is_given_up(&self) -> bool {
        self.outbox.is_some()
    }

    /// Ends it; what was read and not taken is dropped. Returns the queue for the next time.
    fn give_up(&mut self) -> Inbox {
        let (outbox, inbox) = self.ahead.queue();
        self.outbox = Some(outbox);
        // In this order: a reader that continued would report progress of reading that is over.
        self.task = None;
        self.progress.note_reading_ended();
        inbox
    }

    /// Ends it for good.
    pub(super) fn end(&mut self) {
        self.task = None;
        self.progress.note_reading_ended();
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        // A reader may wait for its stream for hours.
        self.0.abort();
    }
}

impl Run {
    /// Whether what was read may be dropped: a reader reports once what was overlooked, so such a batch
    /// is kept until it is counted.
    pub(super) fn may_give_back(&self) -> bool {
        let has_overlooked =
            |input: &Input| matches!(input, Input::Batch(batch) if batch.overlooked > 0);
        !self.stashed.iter().any(has_overlooked)
    }

    /// Drops what was read and not applied, because others wait for the memory of large events. It is
    /// read again once it can be applied.
    pub(super) fn give_large_back(&mut self) {
        self.stashed.clear();
        // The old queue goes with what is in it.
        self.inbox = self.reading.give_up();
    }
}
