//! The failure of a deployment: the first error of a streak stays until the streak is over.

use std::time::{Duration, SystemTime};

use super::{DeploymentState, Figures, Now, Progress};
use crate::event::Event;
use crate::failure::{self, Failure, FailureClass};

/// Kinds of failures that are caused by the host, and pass.
const OF_HOST: [&str; 3] = ["busy", failure::HOST, failure::STATE];

/// What failed.
#[derive(Clone, Copy, Debug)]
pub struct Cause<'a> {
    /// As in `Failure::kind`.
    pub kind: &'a str,
    /// As in `Failure::class`.
    pub class: Option<FailureClass>,
    /// What happened, and what to do next.
    pub message: &'a str,
    /// The event, if one failed.
    pub sequence: Option<u64>,
}

/// When the host tries again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextAttempt {
    /// After this pause, counted from the report.
    pub pause: Duration,
    /// The breaker is open: the pause is longer than usual.
    pub breaker_open: bool,
}

impl<'a> Cause<'a> {
    /// A failure that is not one of applying events.
    fn other(kind: &'a str, message: &'a str, sequence: Option<u64>) -> Self {
        Self {
            kind,
            class: None,
            message,
            sequence,
        }
    }
}

impl Progress {
    /// An event failed, and will be tried again after a pause. The first error of a streak stays.
    pub fn note_retry(&self, cause: &Cause<'_>, attempts: u32, next: NextAttempt) {
        let mut inner = self.change();
        inner.now.state = DeploymentState::Retrying;
        inner.note(cause, attempts, Some(next));
    }

    /// The host lacks what it takes to apply. No attempt counts, and no event is blamed.
    pub fn note_lack(&self, kind: &str, message: &str) {
        self.wait_for(&Cause {
            class: Some(FailureClass::Busy),
            ..Cause::other(kind, message, None)
        });
    }

    /// It waits for something else that passes. No attempt counts, and no event is blamed.
    pub fn note_waiting(&self, kind: &str, message: &str) {
        self.wait_for(&Cause::other(kind, message, None));
    }

    fn wait_for(&self, cause: &Cause<'_>) {
        let mut inner = self.change();
        inner.now.state = DeploymentState::Retrying;
        // Kept: how often an event failed says nothing about a disk or a source, nor the other way
        // round.
        let attempts = inner
            .now
            .failure
            .as_ref()
            .map_or(0, |failure| failure.attempts);
        inner.note(cause, attempts, None);
    }

    /// A single event failed.
    pub fn note_failing(&self, event: &Event) {
        // A large one would stay in memory for as long as an operator takes. It can be read again.
        self.inner.lock().failing = (!event.is_large()).then(|| event.clone());
    }

    /// The single event that fails, if there is one.
    pub fn failing_event(&self) -> Option<Event> {
        self.inner.lock().failing.clone()
    }

    /// It can't continue without an operator, for another reason than a failure to apply events.
    pub fn note_stopped(&self, kind: &str, message: &str, sequence: Option<u64>) {
        self.note_stopped_by(&Cause::other(kind, message, sequence));
    }

    /// It can't continue without an operator.
    pub fn note_stopped_by(&self, cause: &Cause<'_>) {
        let mut inner = self.change();
        // This is one failure more, also if it is the first.
        let attempts = inner
            .now
            .failure
            .as_ref()
            .map_or(1, |failure| failure.attempts + 1);
        inner.now.state = DeploymentState::Failed;
        inner.note(cause, attempts, None);
    }

    /// The disk has room again: a failure that said otherwise is over.
    pub fn note_room(&self) {
        // Also with nothing to write: what waits for room cannot show it by a commit.
        self.note_durable();
        if self
            .inner
            .lock()
            .now
            .failure
            .as_ref()
            .is_some_and(Failure::is_of_state)
        {
            self.note_recovered();
        }
    }

    /// The state could not be read or written, for example because the disk is full. It is reopened
    /// until that succeeds; the count is the number of failures in a row.
    pub fn note_state_failed(&self, message: &str) -> u32 {
        let inner = &mut *self.change();
        let attempts = inner
            .state_failure
            .as_ref()
            .map_or(0, |failure| failure.attempts)
            + 1;
        // Its own failure takes the place of any other: without a state nothing else matters.
        inner.now.failure = inner.state_failure.take();
        note(
            &mut inner.now,
            &Cause::other(failure::STATE, message, None),
            attempts,
            None,
        );
        inner.state_failure.clone_from(&inner.now.failure);
        inner.now.state = DeploymentState::Retrying;
        attempts
    }

    /// Data was made durable: a streak of state failures is over.
    pub fn note_durable(&self) {
        let inner = &mut *self.change();
        if inner.state_failure.take().is_none() {
            return;
        }
        if inner.now.failure.as_ref().is_some_and(Failure::is_of_state) {
            inner.now.failure = None;
            if inner.now.state == DeploymentState::Retrying {
                let is_behind = inner.now.pending > 0;
                inner.now.state = if is_behind {
                    DeploymentState::CatchingUp
                } else {
                    DeploymentState::Live
                };
            }
        }
    }

    /// The streak of failures is over.
    pub fn note_recovered(&self) {
        let Figures {
            now, state_failure, ..
        } = &mut *self.change();
        now.failure.clone_from(state_failure);
        if now.state == DeploymentState::Retrying && state_failure.is_none() {
            let is_done = now.pending == 0 && now.stream.is_some() && !now.awaits_start;
            now.state = if is_done {
                DeploymentState::Live
            } else {
                DeploymentState::CatchingUp
            };
        }
    }

    /// Whether it stopped at an event that its module can't pass, so that readers saw nothing
    /// beyond it. Code that inherited a state may stop at an event that the previous code, or the
    /// code before the process started, did pass.
    pub fn stopped_at_event(&self) -> bool {
        let Figures {
            now,
            first_generation,
            ..
        } = &*self.inner.lock();
        // A later one follows code that may have passed the event, and shown what came after it.
        if *first_generation != Some(now.generation) {
            return false;
        }
        // Any other failure says nothing about what readers have seen.
        let is_final = |failure: &Failure| {
            failure.sequence.is_some()
                && matches!(
                    failure.kind.as_str(),
                    "invalid" | "rejected" | "retry" | "trap"
                )
        };
        let failed =
            now.state == DeploymentState::Failed && now.failure.as_ref().is_some_and(is_final);
        failed && !self.is_on_probation()
    }
}

fn note(now: &mut Now, cause: &Cause<'_>, attempts: u32, next: Option<NextAttempt>) {
    let Cause {
        kind,
        class,
        message,
        sequence,
    } = *cause;
    // The kind is a separate field.
    let message = message
        .strip_prefix(kind)
        .and_then(|rest| rest.strip_prefix(": "))
        .unwrap_or(message);
    match &mut now.failure {
        // A temporary lack of host resources is not a failure of an event or a stream.
        // The first error of a streak explains it; later ones often only follow from it.
        Some(first) if first.kind == kind || !OF_HOST.contains(&first.kind.as_str()) => {
            first.attempts = attempts;
            // How many messages wait changes all the time.
            if first.kind == kind && kind == failure::OUTBOX {
                message.clone_into(&mut first.message);
            }
        }
        none => {
            let first_at = jiff::Timestamp::now().to_string();
            *none = Some(Failure {
                kind: kind.to_owned(),
                class,
                message: message.to_owned(),
                sequence,
                first_at,
                attempts,
                next_attempt_at: None,
                breaker_open: false,
            });
        }
    }
    if let Some(failure) = &mut now.failure {
        failure.next_attempt_at = next.and_then(|next| time_after(next.pause));
        failure.breaker_open = next.is_some_and(|next| next.breaker_open);
    }
}

/// The time after a pause that begins now, in RFC 3339.
fn time_after(pause: Duration) -> Option<String> {
    let at = SystemTime::now().checked_add(pause)?;
    jiff::Timestamp::try_from(at).ok().map(|at| at.to_string())
}

impl Figures {
    /// Records a failure. A failure at the same event as before the last start has lasted since
    /// then.
    fn note(&mut self, cause: &Cause<'_>, attempts: u32, next: Option<NextAttempt>) {
        // Looked at before: only a failure that was not there yet can continue an earlier one.
        let is_new = self.now.failure.is_none();
        note(&mut self.now, cause, attempts, next);
        let Cause { kind, sequence, .. } = *cause;
        let is_same = |before: &&Failure| {
            before.kind == kind && before.sequence == sequence && sequence.is_some()
        };
        if let Some(before) = self
            .failed_before
            .as_ref()
            .filter(|before| is_new && is_same(before))
            && let Some(failure) = &mut self.now.failure
        {
            failure.first_at.clone_from(&before.first_at);
        }
    }
}
