"""How an instance proceeds: what an answer, a time-out or an operator changes, and which commands and
timers follow. It knows no tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from enum import Enum
from typing import Generic, TypeVar

from ..effects import Effects
from ..events import Event
from ..time import Timestamp
from .definition import Call, Publish, Saga, Step, _Action, matches_any
from .instance import EarlyFailure, Fate, Instance, Status, Wait, shortened
from .listing import Ignored

D = TypeVar("D")

_LAST = Timestamp(2**64 - 1)
"""The last time that there is."""


class _Answer(Enum):
    """What an event says about an action."""

    SUCCESS = 0
    FAILURE = 1
    TRANSIENT = 2

    @classmethod
    def of(cls, action: _Action[D], event: Event) -> _Answer | None:
        if matches_any(action.succeeds, event):
            return cls.SUCCESS
        if matches_any(action.fails, event):
            return cls.FAILURE
        return cls.TRANSIENT if matches_any(action.retries, event) else None


class Transition(Generic[D]):
    """One instance that meets one event, or one timer."""

    def __init__(
        self, saga: Saga[D], key: str, timer: str, time: Timestamp, instance: Instance[D], effects: Effects
    ) -> None:
        """`timer` is the name of its timer."""
        self.saga, self.key, self.timer = saga, key, timer
        self.instance, self.effects = instance, effects
        instance.updated = max(instance.updated, time)
        self.now = instance.updated

    def start(self, event: Event) -> None:
        """Begins the first step."""
        self._note(f"started by {event.kind}")
        self._proceed()

    def meet(self, event: Event) -> Ignored | None:
        """Takes an event that concerns the saga. Returns why it changed nothing, if it did not."""
        saga, instance = self.saga, self.instance
        ended = instance.status.has_ended
        action = None if ended else self._action
        answer = None if action is None else _Answer.of(action, event)
        if answer is not None:
            self._free()
            return self._answered(answer, event)
        if instance.status is Status.STUCK and matches_any(saga.resumes, event):
            self._free()
            self._resume()
            return None
        if instance.status is Status.STUCK and matches_any(saga.skips, event):
            self._free()
            self._skip()
            return None
        has_turned = any(step.pivot and instance.fate(step.name) is not None for step in saga.steps)
        can_cancel = not instance.undoing and not ended and not has_turned
        if can_cancel and matches_any(saga.cancels, event):
            self._free()
            self._cancel(event)
            return None
        return self._other(event)

    def fire(self) -> None:
        """Its timer fires."""
        instance = self.instance
        instance.due = None
        action = self._action
        if action is None:
            self.lost_step()
        elif instance.wait is Wait.ANSWER:
            self._attempt_failed(f"no answer within {_shown(action.timeout or timedelta(0))}", True)
        elif instance.wait is Wait.RETRY:
            instance.attempt += 1
            self._send(action)

    @property
    def is_known(self) -> bool:
        """The current step is known, or none is current."""
        return self.instance.step is None or self._action is not None

    def lost_step(self) -> None:
        """The current step is not in this version of the saga."""
        self._stuck(f"step {self._step} or its compensation is not in this version of the saga")

    def _answered(self, answer: _Answer, event: Event) -> Ignored | None:
        instance, step = self.instance, self._step
        if answer is _Answer.SUCCESS and instance.undoing:
            self._note(f"{step}: undone ({event.kind})")
            instance.set_fate(step, Fate.UNDONE)
            self._compensate()
        elif answer is _Answer.SUCCESS:
            self._take(step, event)
            self._note(f"{step}: done ({event.kind})")
            instance.set_fate(step, Fate.DONE)
            self._proceed()
        elif answer is _Answer.TRANSIENT:
            if instance.wait is not Wait.ANSWER:
                # The next attempt is due already: the same answer again.
                return Ignored.DUPLICATE
            self._attempt_failed(event.kind, False)
        else:
            if instance.wait is Wait.NOTHING:
                return Ignored.LATE
            self._step_failed(event.kind, False)
        return None

    def _attempt_failed(self, why: str, is_in_doubt: bool) -> None:
        """An attempt of the current action failed, or timed out."""
        instance, step, action = self.instance, self._step, self._action
        if action is None:
            return self.lost_step()
        attempt, attempts = instance.attempt, action.retry.attempts
        self._note(f"{step}: {'undoing it' if instance.undoing else 'attempt'} {attempt} failed: {why}")
        if attempts is None or attempt < attempts:
            instance.wait = Wait.RETRY
            self._set_timer(action.retry._pause_after(attempt))
        elif instance.undoing:
            self._stuck(f"{step} could not be undone: {why}")
        else:
            self._step_failed(why, is_in_doubt)

    def _step_failed(self, why: str, is_in_doubt: bool) -> None:
        """The current step is given up."""
        step = self._step
        self._note(f"{step}: failed: {why}")
        # An answer may be to an earlier attempt, and say nothing about a later one.
        self._give_up(step, is_in_doubt or self.instance.attempt > 1)
        self.instance.reason = shortened(f"{step}: {why}")
        self._compensate()

    def _give_up(self, step: str, is_in_doubt: bool) -> None:
        """Notes what became of a step that was not answered. Without a command nobody was asked, and
        nothing is in doubt."""
        known = self.saga._find(step)
        has_command = known is None or known._action.command is not None
        self.instance.set_fate(step, Fate.IN_DOUBT if is_in_doubt and has_command else Fate.FAILED)

    def _cancel(self, event: Event) -> None:
        self._note(f"cancelled ({event.kind})")
        self._give_up(self._step, True)
        self.instance.reason = shortened(f"cancelled: {event.kind}")
        self._compensate()

    def _resume(self) -> None:
        """An operator wants the current action tried again."""
        action = self._action
        if action is None:
            return self.lost_step()
        self._note("resumed by an operator")
        self._enter(self.instance.status, self._step)
        self._send(action)
        if not action.waits:
            self._skip()

    def _skip(self) -> None:
        """The current action counts as carried out."""
        step = self._step
        self._note(f"{step}: counts as dealt with")
        if self.instance.undoing:
            self.instance.set_fate(step, Fate.UNDONE)
            self._compensate()
        else:
            self.instance.set_fate(step, Fate.DONE)
            self._proceed()

    def _other(self, event: Event) -> Ignored | None:
        """An event that is not about the current action."""
        saga, instance = self.saga, self.instance
        ended = instance.status.has_ended
        for step in saga.steps:
            answer = _Answer.of(step._action, event)
            if answer is not None:
                return self._answer_of_other(step, answer, event)
            if step._undo is not None and _Answer.of(step._undo, event) is not None:
                if ended:
                    return Ignored.ENDED
                is_undone = instance.fate(step.name) is Fate.UNDONE
                return Ignored.DUPLICATE if is_undone else Ignored.EARLY
        if ended:
            return Ignored.ENDED
        # Otherwise an operator's event for an instance that is not stuck, or a second cancellation.
        return Ignored.DUPLICATE if matches_any(saga.starts, event) else Ignored.LATE

    def _answer_of_other(self, step: Step[D], answer: _Answer, event: Event) -> Ignored | None:
        instance, name = self.instance, step.name
        is_success = answer is _Answer.SUCCESS
        ended = instance.status.has_ended
        gives_up = instance.undoing or instance.status is Status.COMPENSATED
        fate = instance.fate(name)
        nobody_asked = fate is None and step._action.command is None
        counts_as_failed = fate is Fate.FAILED or (nobody_asked and gives_up)
        if is_success and counts_as_failed and step._undo is not None:
            # It was done although it was given up: what nobody undoes would be lost.
            self._done_after_all(step, event)
            return None
        if is_success and fate is Fate.IN_DOUBT and not ended:
            # Its compensation may need what the answer says.
            self._take(name, event)
            self._note(f"{name}: done after all ({event.kind})")
            instance.set_fate(name, Fate.DONE)
            return None
        if ended:
            return Ignored.ENDED
        if nobody_asked and not gives_up and answer is not _Answer.TRANSIENT:
            return self._answered_early(name, answer, event)
        if fate is None:
            return Ignored.EARLY
        same = Fate.DONE if is_success else Fate.FAILED
        return Ignored.DUPLICATE if fate is same else Ignored.LATE

    def _answered_early(self, name: str, answer: _Answer, event: Event) -> Ignored | None:
        """A step without a command ends before its turn. Nobody says it again, so that it is kept until
        then. A success counts, whatever else was said."""
        instance, failures = self.instance, self.instance.early_failures
        if name in instance.early:
            return Ignored.DUPLICATE if answer is _Answer.SUCCESS else Ignored.LATE
        others = [failure for failure in failures if failure.step != name]
        if answer is _Answer.SUCCESS:
            instance.early_failures = others
            self._take(name, event)
            self._note(f"{name}: done before its turn ({event.kind})")
            instance.early.append(name)
            return None
        if len(others) < len(failures):
            return Ignored.DUPLICATE
        failures.append(EarlyFailure(name, shortened(event.kind)))
        self._note(f"{name}: failed before its turn ({event.kind})")
        return None

    def _done_after_all(self, step: Step[D], event: Event) -> None:
        """A step that had failed was done: it is undone as well, by an operator if all else has ended."""
        instance, name = self.instance, step.name
        self._take(name, event)
        self._note(f"{name}: done although it had failed ({event.kind})")
        instance.set_fate(name, Fate.DONE)
        if instance.status.has_ended:
            instance.undoing, instance.step = True, name
            self._stuck(f"{name} was done after the saga had ended")

    def _proceed(self) -> None:
        """Begins the next step, and all after it that wait for nothing."""
        instance = self.instance
        while (step := self._next_step()) is not None:
            name, action = step.name, step._action
            instance.set_fate(name, Fate.WAITING)
            self._enter(Status.RUNNING, name)
            failure = next((early for early in instance.early_failures if early.step == name), None)
            if name in instance.early:
                instance.early.remove(name)
            elif failure is not None:
                instance.early_failures.remove(failure)
                return self._step_failed(failure.why, False)
            else:
                self._send(action)
                if action.waits:
                    return
            instance.set_fate(name, Fate.DONE)
        self._end(Status.COMPLETED, self.saga.on_completed)

    def _next_step(self) -> Step[D] | None:
        """The step after the furthest one that was begun. Steps that a newer version inserted before
        that are left out."""
        begun = {record.step for record in self.instance.steps}
        steps: Sequence[Step[D]] = self.saga.steps
        furthest = max((place for place, step in enumerate(steps) if step.name in begun), default=-1)
        return steps[furthest + 1] if furthest + 1 < len(steps) else None

    def _compensate(self) -> None:
        """Undoes the last step that is not undone, and all before it that need no answer."""
        instance = self.instance
        instance.undoing = True
        for step in instance.early:
            instance.set_fate(step, Fate.DONE)
        instance.early = []
        for failure in instance.early_failures:
            instance.set_fate(failure.step, Fate.FAILED)
        instance.early_failures = []
        while (name := self._next_to_undo()) is not None:
            self._enter(Status.COMPENSATING, name)
            known = self.saga._find(name)
            if known is None or known._undo is None:
                return self.lost_step()
            self._send(known._undo)
            if known._undo.waits:
                return
            self._note(f"{name}: undone")
            instance.set_fate(name, Fate.UNDONE)
        self._end(Status.COMPENSATED, self.saga.on_compensated)

    def _next_to_undo(self) -> str | None:
        """The last step to undo; without its definition, nobody knows how. Steps that have no
        compensation are passed over."""
        for record in reversed(self.instance.steps):
            step = self.saga._find(record.step)
            can_stay = step is not None and step._undo is None
            if record.fate in (Fate.DONE, Fate.IN_DOUBT) and not can_stay:
                return record.step
        return None

    def _end(self, status: Status, message: Publish[D] | None) -> None:
        instance = self.instance
        instance.status, instance.step, instance.since = status, None, self.now
        instance.undoing, instance.wait, instance.attempt = False, Wait.NOTHING, 0
        self._note(status.value)
        self._publish(message)
        if self.saga.keep_ended is None:
            self._clear_timer()
        else:
            self._set_timer(self.saga.keep_ended)

    def _free(self) -> None:
        """It is stuck no more, whatever comes next."""
        instance = self.instance
        if instance.status is Status.STUCK:
            instance.reason, instance.reason_before = instance.reason_before, ""
            instance.status = Status.COMPENSATING if instance.undoing else Status.RUNNING

    def _stuck(self, why: str) -> None:
        instance = self.instance
        if instance.status is not Status.STUCK:
            instance.reason_before = instance.reason
        instance.status, instance.since, instance.wait = Status.STUCK, self.now, Wait.NOTHING
        instance.reason = shortened(why)
        self._clear_timer()
        self._note(f"stuck: {why}")
        self._publish(self.saga.on_stuck)

    def _enter(self, status: Status, step: str) -> None:
        """Begins an action, with its first attempt."""
        instance = self.instance
        instance.status, instance.step, instance.since, instance.attempt = status, step, self.now, 1

    def _send(self, action: _Action[D]) -> None:
        """Publishes the command of the current attempt."""
        self._publish(action.command)
        self.instance.wait = Wait.ANSWER
        if action.timeout is not None and action.waits:
            self._set_timer(action.timeout)
        else:
            self._clear_timer()

    def _publish(self, message: Publish[D] | None) -> None:
        if message is None:
            return
        instance, step = self.instance, self._step
        id = f"{self.saga.name}/{self.key}/{int(instance.started)}/{step}"
        made = message(
            Call(self.key, step, instance.attempt, id, instance.reason, self.now, instance.data)
        )
        self.effects.publish(
            made.subject,
            made.data,
            kind=made.kind,
            headers=made.headers,
            # A compensation must not overtake the command that it undoes.
            key=self.key if made.key is None else made.key,
            not_before=made.not_before,
            time_to_live=made.time_to_live,
            expected_last=made.expected_last,
        )

    def _set_timer(self, span: timedelta) -> None:
        nanoseconds = span // timedelta(microseconds=1) * 1_000
        due = Timestamp(min(int(self.now) + nanoseconds, _LAST))
        self.instance.due = due
        self.effects.set_timer(self.timer, due, key=self.key)

    def _clear_timer(self) -> None:
        if self.instance.due is not None:
            self.instance.due = None
            self.effects.cancel_timer(self.timer)

    def _take(self, step: str, event: Event) -> None:
        known = self.saga._find(step)
        if known is not None and known._take is not None:
            taken = known._take(self.instance.data, event)
            if taken is not None:
                self.instance.data = taken

    @property
    def _action(self) -> _Action[D] | None:
        """The current action; none if nothing is current, or this version of the saga has no such step."""
        step = self.saga._find(self.instance.step)
        if step is None:
            return None
        return step._undo if self.instance.undoing else step._action

    @property
    def _step(self) -> str:
        return self.instance.step or ""

    def _note(self, what: str) -> None:
        self.instance.note(self.now, what)


def _shown(span: timedelta) -> str:
    """A span of time for people, as SDKs of all languages note it: `3s`, `1.5s`, `500ms`."""
    microseconds = span // timedelta(microseconds=1)
    for unit, digits, name in ((1_000_000, 6, "s"), (1_000, 3, "ms"), (1, 0, "µs")):
        if microseconds >= unit:
            whole, rest = divmod(microseconds, unit)
            fraction = f".{rest:0{digits}}".rstrip("0") if rest else ""
            return f"{whole}{fraction}{name}"
    return "0ns"
