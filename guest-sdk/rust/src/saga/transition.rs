//! How an instance proceeds: what an answer, a time-out or an operator changes, and which commands
//! and timers follow. It knows no tables.

use super::definition::{Action, Call, Pattern, Publish, Saga, Step};
use super::instance::{EarlyFailure, Fate, Instance, Status, Wait, shortened};
use super::{Handled, Ignored};
use crate::effects::Effects;
use crate::event::Event;
use crate::failure::Failure;
use crate::time::Timestamp;
use crate::timer::Timer;

/// One instance that meets one event, or one timer.
pub(super) struct Transition<'a, D> {
    pub(super) saga: &'a Saga<D>,
    pub(super) key: &'a str,
    /// The name of its timer.
    pub(super) timer: &'a str,
    pub(super) now: Timestamp,
    pub(super) instance: &'a mut Instance<D>,
    pub(super) effects: &'a mut Effects,
}

/// What an event says about an action.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Success,
    Failure,
    Transient,
}

impl Answer {
    fn of<D>(action: &Action<D>, event: &Event<'_>) -> Option<Self> {
        if Pattern::any(&action.succeeds, event) {
            Some(Self::Success)
        } else if Pattern::any(&action.fails, event) {
            Some(Self::Failure)
        } else if Pattern::any(&action.retries, event) {
            Some(Self::Transient)
        } else {
            None
        }
    }
}

impl<'a, D> Transition<'a, D> {
    /// Begins the first step.
    pub(super) fn start(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        self.note(&format!("started by {}", event.kind()));
        self.proceed()
    }

    /// Takes an event that concerns the saga.
    pub(super) fn meet(&mut self, event: &Event<'_>) -> Result<Handled, Failure> {
        let answer = self
            .action()
            .filter(|_| !self.instance.status.has_ended())
            .and_then(|action| Answer::of(action, event));
        if let Some(answer) = answer {
            self.free();
            return self.answered(answer, event);
        }
        let saga = self.saga;
        let is_stuck = self.instance.status == Status::Stuck;
        if is_stuck && Pattern::any(&saga.resumes, event) {
            self.free();
            return self.resume().map(|()| self.changed());
        }
        if is_stuck && Pattern::any(&saga.skips, event) {
            self.free();
            return self.skip().map(|()| self.changed());
        }
        let mut pivots = saga.steps.iter().filter(|step| step.is_pivot);
        let has_turned = pivots.any(|step| self.instance.fate(step.name).is_some());
        let has_ended = self.instance.status.has_ended();
        let can_cancel = !self.instance.undoing && !has_ended && !has_turned;
        if can_cancel && Pattern::any(&saga.cancels, event) {
            self.free();
            return self.cancel(event).map(|()| self.changed());
        }
        self.other(event)
    }

    /// Its timer fires.
    pub(super) fn fire(&mut self) -> Result<(), Failure> {
        self.instance.due = None;
        let Some(action) = self.action() else {
            return self.lost_step();
        };
        match self.instance.wait {
            Wait::Answer => {
                let span = action.timeout.unwrap_or_default();
                self.attempt_failed(&format!("no answer within {}", shown(span)), Fate::InDoubt)
            }
            Wait::Retry => {
                self.instance.attempt = self.instance.attempt.saturating_add(1);
                self.send(action)
            }
            Wait::Nothing => Ok(()),
        }
    }

    /// The current step is known, or none is current.
    pub(super) fn is_known(&self) -> bool {
        self.instance.step.is_none() || self.action().is_some()
    }

    /// The current step is not in this version of the saga.
    pub(super) fn lost_step(&mut self) -> Result<(), Failure> {
        let step = self.step_name();
        self.stuck(&format!(
            "step {step} or its compensation is not in this version of the saga"
        ))
    }

    fn answered(&mut self, answer: Answer, event: &Event<'_>) -> Result<Handled, Failure> {
        let step = self.step_name();
        match answer {
            Answer::Success if self.instance.undoing => {
                self.note(&format!("{step}: undone ({})", event.kind()));
                self.instance.set_fate(&step, Fate::Undone);
                self.compensate()?;
            }
            Answer::Success => {
                self.take(&step, event)?;
                self.note(&format!("{step}: done ({})", event.kind()));
                self.instance.set_fate(&step, Fate::Done);
                self.proceed()?;
            }
            // The next attempt is due already: the same answer again.
            Answer::Transient if self.instance.wait != Wait::Answer => {
                return Ok(Handled::Ignored(Ignored::Duplicate));
            }
            Answer::Failure if self.instance.wait == Wait::Nothing => {
                return Ok(Handled::Ignored(Ignored::Late));
            }
            Answer::Transient => self.attempt_failed(event.kind(), Fate::Failed)?,
            Answer::Failure => self.step_failed(event.kind(), Fate::Failed)?,
        }
        Ok(self.changed())
    }

    /// An attempt of the current action failed, or timed out: it was not done, or that is in doubt.
    fn attempt_failed(&mut self, why: &str, fate: Fate) -> Result<(), Failure> {
        let step = self.step_name();
        let Some(action) = self.action() else {
            return self.lost_step();
        };
        let attempt = self.instance.attempt;
        let verb = if self.instance.undoing {
            "undoing it"
        } else {
            "attempt"
        };
        self.note(&format!("{step}: {verb} {attempt} failed: {why}"));
        if attempt < action.retry.attempts {
            self.instance.wait = Wait::Retry;
            self.set_timer(self.now + action.retry.pause_after(attempt));
            return Ok(());
        }
        if self.instance.undoing {
            return self.stuck(&format!("{step} could not be undone: {why}"));
        }
        self.step_failed(why, fate)
    }

    /// The current step is given up.
    fn step_failed(&mut self, why: &str, fate: Fate) -> Result<(), Failure> {
        let step = self.step_name();
        self.note(&format!("{step}: failed: {why}"));
        // An answer may be to an earlier attempt, and say nothing about a later one.
        let fate = if self.instance.attempt > 1 {
            Fate::InDoubt
        } else {
            fate
        };
        self.give_up(&step, fate);
        self.instance.reason = shortened(&format!("{step}: {why}"));
        self.compensate()
    }

    /// Notes what became of a step that was not answered. Without a command nobody was asked, and
    /// nothing is in doubt.
    fn give_up(&mut self, step: &str, fate: Fate) {
        let has_command = self
            .saga
            .find(step)
            .is_none_or(|step| step.action.command.is_some());
        let fate = if has_command { fate } else { Fate::Failed };
        self.instance.set_fate(step, fate);
    }

    fn cancel(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        let step = self.step_name();
        self.note(&format!("cancelled ({})", event.kind()));
        self.give_up(&step, Fate::InDoubt);
        self.instance.reason = shortened(&format!("cancelled: {}", event.kind()));
        self.compensate()
    }

    /// An operator wants the current action tried again.
    fn resume(&mut self) -> Result<(), Failure> {
        let Some(action) = self.action() else {
            return self.lost_step();
        };
        self.note("resumed by an operator");
        let status = self.instance.status;
        let step = self.step_name();
        self.enter(status, &step);
        self.send(action)?;
        if action.waits() { Ok(()) } else { self.skip() }
    }

    /// The current action counts as carried out.
    fn skip(&mut self) -> Result<(), Failure> {
        let step = self.step_name();
        self.note(&format!("{step}: counts as dealt with"));
        if self.instance.undoing {
            self.instance.set_fate(&step, Fate::Undone);
            self.compensate()
        } else {
            self.instance.set_fate(&step, Fate::Done);
            self.proceed()
        }
    }

    /// An event that is not about the current action.
    fn other(&mut self, event: &Event<'_>) -> Result<Handled, Failure> {
        let saga = self.saga;
        for step in &saga.steps {
            if let Some(answer) = Answer::of(&step.action, event) {
                return self.answer_of_other(step, answer, event);
            }
            let undo = step.compensation.as_ref();
            if undo.is_some_and(|undo| Answer::of(&undo.action, event).is_some()) {
                return Ok(Handled::Ignored(match self.instance.fate(step.name) {
                    _ if self.instance.status.has_ended() => Ignored::Ended,
                    Some(Fate::Undone) => Ignored::Duplicate,
                    _ => Ignored::Early,
                }));
            }
        }
        let is_start = saga
            .starts
            .iter()
            .any(|(pattern, _)| pattern.matches(event));
        Ok(Handled::Ignored(if self.instance.status.has_ended() {
            Ignored::Ended
        } else if is_start {
            Ignored::Duplicate
        } else {
            // An operator's event for an instance that is not stuck, or a second cancellation.
            Ignored::Late
        }))
    }

    fn answer_of_other(
        &mut self,
        step: &'a Step<D>,
        answer: Answer,
        event: &Event<'_>,
    ) -> Result<Handled, Failure> {
        let is_success = answer == Answer::Success;
        let has_ended = self.instance.status.has_ended();
        let gives_up = self.instance.undoing || self.instance.status == Status::Compensated;
        let fate = self.instance.fate(step.name);
        let nobody_asked = fate.is_none() && step.action.command.is_none();
        let counts_as_failed = fate == Some(Fate::Failed) || nobody_asked && gives_up;
        let ignored = match fate {
            // It was done although it was given up: what nobody undoes would be lost.
            _ if is_success && counts_as_failed && step.compensation.is_some() => {
                return self.done_after_all(step, event).map(|()| self.changed());
            }
            // Its compensation may need what the answer says.
            Some(Fate::InDoubt) if is_success && !has_ended => {
                self.take(step.name, event)?;
                self.note(&format!("{}: done after all ({})", step.name, event.kind()));
                self.instance.set_fate(step.name, Fate::Done);
                return Ok(self.changed());
            }
            _ if has_ended => Ignored::Ended,
            None if nobody_asked && !gives_up && answer != Answer::Transient => {
                return self.answered_early(step, answer, event);
            }
            None => Ignored::Early,
            Some(Fate::Done) if is_success => Ignored::Duplicate,
            Some(Fate::Failed) if !is_success => Ignored::Duplicate,
            Some(_) => Ignored::Late,
        };
        Ok(Handled::Ignored(ignored))
    }

    /// A step without a command ends before its turn. Nobody says it again, so that it is kept until
    /// then. A success counts, whatever else was said.
    fn answered_early(
        &mut self,
        step: &Step<D>,
        answer: Answer,
        event: &Event<'_>,
    ) -> Result<Handled, Failure> {
        let (name, instance) = (step.name, &mut *self.instance);
        let is_done = instance.early.iter().any(|early| early == name);
        let failure = instance
            .early_failures
            .iter()
            .position(|early| early.step == name);
        let ignored = match (answer, is_done, failure) {
            (Answer::Success, true, _) => Ignored::Duplicate,
            (Answer::Success, false, _) => {
                if let Some(place) = failure {
                    instance.early_failures.remove(place);
                }
                self.take(name, event)?;
                self.note(&format!("{name}: done before its turn ({})", event.kind()));
                self.instance.early.push(name.to_owned());
                return Ok(self.changed());
            }
            (_, true, _) => Ignored::Late,
            (_, false, Some(_)) => Ignored::Duplicate,
            (_, false, None) => {
                instance.early_failures.push(EarlyFailure {
                    step: name.to_owned(),
                    why: shortened(event.kind()),
                });
                self.note(&format!(
                    "{name}: failed before its turn ({})",
                    event.kind()
                ));
                return Ok(self.changed());
            }
        };
        Ok(Handled::Ignored(ignored))
    }

    /// A step that had failed was done: it is undone as well, by an operator if all else has ended.
    fn done_after_all(&mut self, step: &Step<D>, event: &Event<'_>) -> Result<(), Failure> {
        self.take(step.name, event)?;
        self.note(&format!(
            "{}: done although it had failed ({})",
            step.name,
            event.kind()
        ));
        self.instance.set_fate(step.name, Fate::Done);
        if !self.instance.status.has_ended() {
            return Ok(());
        }
        self.instance.undoing = true;
        self.instance.step = Some(step.name.to_owned());
        self.stuck(&format!("{} was done after the saga had ended", step.name))
    }

    /// Begins the next step, and all after it that wait for nothing.
    fn proceed(&mut self) -> Result<(), Failure> {
        while let Some(step) = self.next_step() {
            self.instance.set_fate(step.name, Fate::Waiting);
            self.enter(Status::Running, step.name);
            let early = &mut self.instance.early;
            let failures = &mut self.instance.early_failures;
            if let Some(place) = early.iter().position(|early| early == step.name) {
                early.remove(place);
            } else if let Some(place) = failures.iter().position(|early| early.step == step.name) {
                let failure = failures.remove(place);
                return self.step_failed(&failure.why, Fate::Failed);
            } else {
                self.send(&step.action)?;
                if step.action.waits() {
                    return Ok(());
                }
            }
            self.instance.set_fate(step.name, Fate::Done);
        }
        let saga = self.saga;
        self.end(Status::Completed, saga.on_completed.as_ref())
    }

    /// The step after the furthest one that was begun. Steps that a newer version inserted before
    /// that are left out.
    fn next_step(&self) -> Option<&'a Step<D>> {
        let begun = |step: &Step<D>| self.instance.fate(step.name).is_some();
        let next = self.saga.steps.iter().rposition(begun);
        self.saga.steps.get(next.map_or(0, |furthest| furthest + 1))
    }

    /// Undoes the last step that is not undone, and all before it that need no answer.
    fn compensate(&mut self) -> Result<(), Failure> {
        self.instance.undoing = true;
        for step in std::mem::take(&mut self.instance.early) {
            self.instance.set_fate(&step, Fate::Done);
        }
        for failure in std::mem::take(&mut self.instance.early_failures) {
            self.instance.set_fate(&failure.step, Fate::Failed);
        }
        while let Some((name, step)) = self.next_to_undo() {
            self.enter(Status::Compensating, &name);
            let Some(undo) = step.and_then(|step| step.compensation.as_ref()) else {
                return self.lost_step();
            };
            self.send(&undo.action)?;
            if undo.action.waits() {
                return Ok(());
            }
            self.note(&format!("{name}: undone"));
            self.instance.set_fate(&name, Fate::Undone);
        }
        let saga = self.saga;
        self.end(Status::Compensated, saga.on_compensated.as_ref())
    }

    /// The last step to undo, with its definition; without one, nobody knows how. Steps that have no
    /// compensation are passed over.
    fn next_to_undo(&self) -> Option<(String, Option<&'a Step<D>>)> {
        self.instance.steps.iter().rev().find_map(|record| {
            let is_done = matches!(record.fate, Fate::Done | Fate::InDoubt);
            let step = self.saga.find(&record.step);
            let can_stay = step.is_some_and(|step| step.compensation.is_none());
            (is_done && !can_stay).then(|| (record.step.clone(), step))
        })
    }

    fn end(&mut self, status: Status, message: Option<&Publish<D>>) -> Result<(), Failure> {
        let instance = &mut self.instance;
        (instance.status, instance.step, instance.since) = (status, None, self.now);
        (instance.undoing, instance.wait, instance.attempt) = (false, Wait::Nothing, 0);
        self.note(status.name());
        self.publish(message)?;
        match self.saga.keep_ended {
            Some(span) => self.set_timer(self.now + span),
            None => self.clear_timer(),
        }
        Ok(())
    }

    /// It is stuck no more, whatever comes next.
    fn free(&mut self) {
        let instance = &mut *self.instance;
        if instance.status == Status::Stuck {
            instance.reason = std::mem::take(&mut instance.reason_before);
            instance.status = if instance.undoing {
                Status::Compensating
            } else {
                Status::Running
            };
        }
    }

    fn stuck(&mut self, why: &str) -> Result<(), Failure> {
        if self.instance.status != Status::Stuck {
            self.instance.reason_before = std::mem::take(&mut self.instance.reason);
        }
        self.instance.status = Status::Stuck;
        self.instance.since = self.now;
        self.instance.wait = Wait::Nothing;
        self.instance.reason = shortened(why);
        self.clear_timer();
        self.note(&format!("stuck: {why}"));
        let saga = self.saga;
        self.publish(saga.on_stuck.as_ref())
    }

    /// Begins an action, with its first attempt.
    fn enter(&mut self, status: Status, step: &str) {
        self.instance.status = status;
        self.instance.step = Some(step.to_owned());
        self.instance.since = self.now;
        self.instance.attempt = 1;
    }

    /// Publishes the command of the current attempt.
    fn send(&mut self, action: &Action<D>) -> Result<(), Failure> {
        self.publish(action.command.as_ref())?;
        self.instance.wait = Wait::Answer;
        match action.timeout {
            Some(span) if action.waits() => self.set_timer(self.now + span),
            _ => self.clear_timer(),
        }
        Ok(())
    }

    fn publish(&mut self, message: Option<&Publish<D>>) -> Result<(), Failure> {
        let Some(message) = message else {
            return Ok(());
        };
        let instance = &*self.instance;
        let mut message = message(&Call {
            saga: self.saga.name,
            key: self.key,
            step: instance.step.as_deref().unwrap_or_default(),
            started: instance.started,
            attempt: instance.attempt,
            reason: &instance.reason,
            time: self.now,
            data: &instance.data,
        })?;
        // A compensation must not overtake the command that it undoes.
        message.key.get_or_insert_with(|| self.key.to_owned());
        self.effects.publish(message);
        Ok(())
    }

    fn set_timer(&mut self, at: Timestamp) {
        self.instance.due = Some(at);
        self.effects
            .set_timer(Timer::at(at, self.timer).key(self.key));
    }

    fn clear_timer(&mut self) {
        if self.instance.due.take().is_some() {
            self.effects.cancel_timer(self.timer);
        }
    }

    fn take(&mut self, step: &str, event: &Event<'_>) -> Result<(), Failure> {
        let take = self.saga.find(step).and_then(|step| step.take.as_ref());
        take.map_or(Ok(()), |take| take(&mut self.instance.data, event))
    }

    /// The current action; none if nothing is current, or this version of the saga has no such step.
    fn action(&self) -> Option<&'a Action<D>> {
        let step = self.saga.find(self.instance.step.as_deref()?)?;
        if self.instance.undoing {
            step.compensation.as_ref().map(|undo| &undo.action)
        } else {
            Some(&step.action)
        }
    }

    fn step_name(&self) -> String {
        self.instance.step.clone().unwrap_or_default()
    }

    fn note(&mut self, what: &str) {
        self.instance.note(self.now, what);
    }

    fn changed(&self) -> Handled {
        Handled::Changed(self.instance.status)
    }
}

/// A span of time, for people.
fn shown(span: std::time::Duration) -> String {
    format!("{span:?}")
}
