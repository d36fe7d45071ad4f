"""What a saga is: its steps, their answers, and what undoes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

from ..errors import Reject
from ..events import Event
from ..manifest import KeyRule
from ..time import Timestamp

D = TypeVar("D")

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)
"""What names of sagas and steps look like."""
_STEPS_MAX = 32
"""Most steps of a saga."""


@dataclass(frozen=True)
class Pattern:
    """Which events are meant: by subject, by type, or by both. In its place, a text is a pattern of
    subjects: `payments.*.charged`."""

    subject: str | None = None
    kind: str | None = None

    def matches(self, event: Event) -> bool:
        """Whether an event is meant."""
        return (self.subject is None or event.is_under(self.subject)) and self.kind in (None, event.kind)


Patterns = str | Pattern | Sequence[str | Pattern]
"""One pattern, or several: events that match one of them are meant."""


@dataclass(frozen=True)
class SagaMessage:
    """A message of a saga, with what `Effects.publish` takes. Its key is the correlation key unless
    it has one of its own."""

    subject: str
    data: Any = ""
    kind: str | None = None
    headers: Mapping[str, str] | None = None
    key: str | None = None
    not_before: Timestamp | None = None
    time_to_live: timedelta | None = None
    expected_last: int | tuple[str, int] | None = None


def _span(name: str, span: timedelta) -> timedelta:
    if not isinstance(span, timedelta) or span < timedelta(0):
        raise ValueError(f"{name}: {span!r} is no span of time; use a timedelta from 0")
    return span


@dataclass(frozen=True)
class RetryPolicy:
    """How often something is attempted, and the pauses in between."""

    attempts: int | None
    """How often, the first attempt included; none for ever."""
    first: timedelta = timedelta(seconds=1)
    """The pause before the second attempt, which doubles each time."""
    longest: timedelta = timedelta(minutes=5)
    """The longest pause."""

    def __post_init__(self) -> None:
        if self.attempts is not None and self.attempts < 1:
            raise ValueError(f"{self.attempts} attempts; use a number from 1, or None for ever")
        _span("first", self.first)
        _span("longest", self.longest)

    @classmethod
    def forever(cls, first: timedelta = first, longest: timedelta = longest) -> RetryPolicy:
        """Attempts without end."""
        return cls(None, first, longest)

    def _pause_after(self, attempt: int) -> timedelta:
        """The pause after an attempt, counted from 1."""
        doublings = min(max(attempt, 1) - 1, 31)
        # Divided first: a product may be longer than any span.
        return self.longest if self.first > self.longest / 2**doublings else self.first * 2**doublings


@dataclass(frozen=True)
class Call(Generic[D]):
    """What a command or a message of a saga is made from."""

    key: str
    """The correlation key of the instance."""
    step: str
    """The name of the step; empty in messages about the end of a saga."""
    attempt: int
    """Which attempt of this command it is, counted from 1."""
    id: str
    """A text that is the same for all attempts of a step and for its compensation, and different for
    all others, also of a later instance with the same key: participants recognise by it what they did
    before."""
    reason: str
    """Why the saga compensates or is stuck; empty while it runs."""
    time: Timestamp
    """The time of the event or timer that causes this."""
    data: D
    """What the instance keeps."""


Publish = Callable[[Call[D]], SagaMessage]
"""Makes a message from an instance."""


class _Action(Generic[D]):
    """A command and its answers: of a step, or of its compensation."""

    def __init__(
        self,
        command: Publish[D] | None,
        succeeds: Patterns,
        fails: Patterns,
        retries: Patterns,
        timeout: timedelta | None,
        retry: RetryPolicy,
    ) -> None:
        self.command = command
        self.succeeds, self.fails, self.retries = _listed(succeeds), _listed(fails), _listed(retries)
        self.timeout = timeout if timeout is None else _span("timeout", timeout)
        self.retry = retry

    @property
    def waits(self) -> bool:
        """Whether it waits for an answer."""
        return bool(self.succeeds)

    @property
    def is_sound(self) -> bool:
        """Whatever ends it, something says that it succeeded."""
        can_fail = bool(self.fails or self.retries) or self.timeout is not None
        return self.waits or (not can_fail and self.command is not None)

    @property
    def sets_timers(self) -> bool:
        return self.timeout is not None or (self.retry.attempts != 1 and bool(self.retries))


class Compensation(Generic[D]):
    """What undoes a step: a command, and the event that confirms it.

    A participant that never carried out the step, or undid it before, must confirm all the same.
    """

    def __init__(
        self,
        command: Publish[D],
        *,
        succeeds_on: Patterns = (),
        fails_on: Patterns = (),
        timeout: timedelta | None = None,
        retry: RetryPolicy = RetryPolicy(10),
    ) -> None:
        """
        - `succeeds_on`: an answer that the step is undone. Without one, it is undone once its command
          is published.
        - `fails_on`: an answer that it could not be undone: the retry policy decides.
        - `timeout`: how long each attempt waits for its answer.
        - `retry`: how often it is attempted before the instance is stuck.
        """
        self._action = _Action(command, succeeds_on, (), fails_on, timeout, retry)


class Step(Generic[D]):
    """A step of a saga: a command to a participant, its answers, and what undoes it.

    Without a command it waits for an event that others cause; without an event to wait for it is done
    once its command is published.
    """

    def __init__(
        self,
        name: str,
        command: Publish[D] | None = None,
        *,
        succeeds_on: Patterns = (),
        fails_on: Patterns = (),
        retries_on: Patterns = (),
        on_success: Callable[[D, Event], D | None] | None = None,
        timeout: timedelta | None = None,
        retry: RetryPolicy = RetryPolicy(1),
        pivot: bool = False,
        compensation: Compensation[D] | None = None,
    ) -> None:
        """
        - `command`: the command to the participant, made for each attempt. A participant may get
          several for one step, and must do the work of `call.id` once.
        - `succeeds_on`: an answer that the step is done.
        - `fails_on`: an answer that the step was not done and will not be: the saga compensates.
        - `retries_on`: an answer that an attempt failed and another may succeed: the retry policy
          decides.
        - `on_success`: keeps something of the answer, such as the number of a payment: changes the
          data in place, or returns what takes its place.
        - `timeout`: how long each attempt waits for its answer. An attempt that times out may have
          been carried out, so the step is undone if the saga gives up.
        - `retry`: how often the step is attempted.
        - `pivot`: makes it the point of no return: once it was begun, the saga can't be cancelled any
          more. Answers still decide: it may fail, and then what was done is undone.
        - `compensation`: what undoes the step.
        """
        _check_name(name)
        self.name = name
        self.pivot = pivot
        self._action = _Action(command, succeeds_on, fails_on, retries_on, timeout, retry)
        self._take = on_success
        self._undo = None if compensation is None else compensation._action
        if not all(action.is_sound for action in self._actions()):
            raise ValueError(
                f"step {name} or its compensation has a time-out or a failing answer, and no answer that "
                "it is done; add succeeds_on"
            )

    def _actions(self) -> Iterator[_Action[D]]:
        yield self._action
        if self._undo is not None:
            yield self._undo


class Saga(Generic[D]):
    """A saga: a process of several steps, each of which can be undone::

        orders = Saga(
            "orders",
            Order,
            starts_on="orders.*.placed",
            steps=[
                Step(
                    "payment",
                    lambda call: SagaMessage(f"payment.{call.key}.charge", {"id": call.id, "cents": call.data.cents}),
                    succeeds_on="payment.*.charged",
                    fails_on="payment.*.declined",
                    timeout=timedelta(minutes=30),
                    retry=RetryPolicy(3),
                    compensation=Compensation(
                        lambda call: SagaMessage(f"payment.{call.key}.refund", {"id": call.id}),
                        succeeds_on="payment.*.refunded",
                    ),
                ),
                Step(
                    "shipping",
                    lambda call: SagaMessage(f"shipping.{call.key}.send", {"id": call.id}),
                    succeeds_on="shipping.*.sent",
                    fails_on="shipping.*.refused",
                ),
            ],
        )

    `Sagas` runs its instances in a handler.
    """

    def __init__(
        self,
        name: str,
        data: type[D],
        *,
        starts_on: Patterns,
        steps: Sequence[Step[D]],
        start: Callable[[Event], D] | None = None,
        correlate_by: KeyRule | Callable[[Event], str] = KeyRule.subject_token(2),
        cancels_on: Patterns = (),
        resumes_on: Patterns = (),
        skips_on: Patterns = (),
        keep_ended: timedelta | None = timedelta(days=1),
        on_completed: Publish[D] | None = None,
        on_compensated: Publish[D] | None = None,
        on_stuck: Publish[D] | None = None,
    ) -> None:
        """
        - `data`: the type of what each instance keeps of its own, such as the order.
        - `starts_on`: an event starts an instance, unless there is one with its key.
        - `start`: what a new instance keeps; by default the data of the event.
        - `correlate_by`: how the instance of an event is found: events with one key belong to one
          instance. Use the same rule as in the manifest.
        - `cancels_on`: an event cancels a running instance: what was done is undone.
        - `resumes_on`: an event lets a stuck instance try its step again, with all attempts.
        - `skips_on`: an event tells a stuck instance that its step was dealt with by hand, so that it
          continues with the next.
        - `keep_ended`: how long an instance is kept after its end, so that events that come late are
          recognised; none keeps all. An event that starts an instance of a key whose instance is gone
          starts a new one.
        - `on_completed`, `on_compensated`, `on_stuck`: publish a message when an instance completes,
          has undone what it did, or gets stuck; `call.reason` says why.
        """
        _check_name(name)
        self.name = name
        self.data = data
        self.starts, self.cancels = _listed(starts_on), _listed(cancels_on)
        self.resumes, self.skips = _listed(resumes_on), _listed(skips_on)
        self.steps = tuple(steps)
        self.keep_ended = keep_ended if keep_ended is None else _span("keep_ended", keep_ended)
        self.on_completed, self.on_compensated, self.on_stuck = on_completed, on_compensated, on_stuck
        self._start: Callable[[Event], D] = start or (lambda event: event.json(data))
        self._correlate = correlate_by
        self._by_name = {step.name: step for step in self.steps}
        if len(self._by_name) < len(self.steps):
            raise ValueError(f"saga {name}: two steps have one name; rename one")
        if len(self.steps) > _STEPS_MAX:
            raise ValueError(f"saga {name}: it has more than {_STEPS_MAX} steps")
        if isinstance(correlate_by, KeyRule) and correlate_by.case == "none":
            raise ValueError(f"saga {name}: events need a key")
        actions = [action for step in self.steps for action in step._actions()]
        self._patterns = (
            *self.starts,
            *self.cancels,
            *self.resumes,
            *self.skips,
            *(pattern for one in actions for pattern in (*one.succeeds, *one.fails, *one.retries)),
        )
        self.sets_timers = keep_ended is not None or any(action.sets_timers for action in actions)
        """Whether it sets timers: the manifest must then say `timers=True`."""

    @property
    def subjects(self) -> list[str]:
        """The subjects of all its patterns, each once, for the manifest."""
        subjects = [pattern.subject for pattern in self._patterns if pattern.subject is not None]
        return list(dict.fromkeys(subjects))

    def _find(self, step: str | None) -> Step[D] | None:
        return None if step is None else self._by_name.get(step)

    def _concerns(self, event: Event) -> bool:
        return matches_any(self._patterns, event)

    def _key_of(self, event: Event) -> str:
        rule = self._correlate
        return _key_by(rule, event) if isinstance(rule, KeyRule) else rule(event)

    def __repr__(self) -> str:
        return f"Saga({self.name!r}, steps={list(self._by_name)})"


def matches_any(patterns: Sequence[Pattern], event: Event) -> bool:
    """Whether an event matches one of some patterns."""
    return any(pattern.matches(event) for pattern in patterns)


def _listed(patterns: Patterns) -> tuple[Pattern, ...]:
    several = (patterns,) if isinstance(patterns, (str, Pattern)) else patterns
    return tuple(Pattern(one) if isinstance(one, str) else one for one in several)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"name {name!r} of a saga or step: use 1 to 32 lower-case letters, digits and hyphens, a letter first"
        )


def _key_by(rule: KeyRule, event: Event) -> str:
    """The key of an event by a rule."""

    def missing(what: str) -> Reject:
        return Reject(f"event {event.sequence} ({event.subject}) has no {what}, so it belongs to no saga")

    value: Any = rule.value
    if rule.case == "subject":
        return event.subject
    if rule.case == "subject-token":
        return event.token(value)
    if rule.case == "header":
        if value not in event.headers:
            raise missing(f"header {value}")
        return event.headers[value]
    found = _at(event.json(), value)
    if type(found) is str:
        return found
    if type(found) is int:
        return str(found)
    raise missing(f"text or whole number at {value}")


def _at(value: Any, pointer: str) -> Any:
    """The value at a JSON pointer (RFC 6901); none if there is none."""
    start, *steps = pointer.split("/")
    if start:
        return None
    for step in steps:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and re.fullmatch(r"0|[1-9]\d*", name, re.ASCII) and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value
