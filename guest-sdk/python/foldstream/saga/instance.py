"""What is stored of an instance of a saga. Its form is described in `docs/sagas.md`, so that hosts and
SDKs of other languages agree about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Generic, TypeVar

from ..codec import Codec, codec, to_json
from ..errors import Mismatch
from ..keys import u32, u64
from ..time import Timestamp

D = TypeVar("D")

FORMAT = 1
"""The version of the stored form."""
_NOTES_MAX = 32
"""Most notes in the history of an instance; older ones are dropped and counted."""
_TEXT_CHARACTERS_MAX = 200
"""Longest text of a note or a reason, in characters."""


class Status(Enum):
    """How far an instance of a saga is."""

    RUNNING = "running"
    """Its steps are being carried out."""
    COMPENSATING = "compensating"
    """What was done is being undone, the last step first."""
    STUCK = "stuck"
    """It cannot continue without an operator."""
    COMPLETED = "completed"
    """All steps are done."""
    COMPENSATED = "compensated"
    """All that was done is undone."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens."""
        return self in (Status.COMPLETED, Status.COMPENSATED)


class Wait(Enum):
    """What an instance waits for."""

    ANSWER = "answer"
    """The answer to its command."""
    RETRY = "retry"
    """The next attempt."""
    NOTHING = "nothing"
    """An operator, or its removal."""


class Fate(Enum):
    """What became of a step."""

    WAITING = "waiting"
    """It is the current step."""
    DONE = "done"
    """It was done."""
    IN_DOUBT = "in-doubt"
    """It may have been done, and is undone like one that was."""
    FAILED = "failed"
    """It was not done."""
    UNDONE = "undone"
    """It was done, or perhaps, and is undone."""


@dataclass(frozen=True)
class Record:
    """A step that was begun."""

    step: str
    fate: Fate


@dataclass(frozen=True)
class EarlyFailure:
    """A step without a command that failed before its turn."""

    step: str
    why: str


@dataclass(frozen=True)
class Note:
    """A note in the history."""

    at: Timestamp
    what: str


@dataclass
class _Fields:
    """The fields of an instance, in the order in which they are stored."""

    format: u32
    status: Status
    step: str | None = field(default=None, kw_only=True)
    """The step that it carries out or undoes, or at which it is stuck; none after its end."""
    since: Timestamp
    """Since when it has had this status in this step."""
    started: Timestamp
    updated: Timestamp
    """The latest time that it met, because streams may have times that go back."""
    attempt: u32 = field(default=0, kw_only=True)
    """Which attempt of the current command it is, counted from 1."""
    wait: Wait
    undoing: bool = False
    """Whether the current step is being undone."""
    due: Timestamp | None = None
    """When its timer fires."""
    reason: str = ""
    """Why it compensates or is stuck."""
    reason_before: str = ""
    """The reason before it got stuck."""
    steps: list[Record] = field(default_factory=list)
    """The steps that were begun, in order."""
    early: list[str] = field(default_factory=list)
    """Steps without a command whose event came before their turn."""
    early_failures: list[EarlyFailure] = field(default_factory=list)
    """Steps without a command whose failure came before their turn."""
    history: list[Note] = field(default_factory=list)
    history_dropped: u64 = 0


@dataclass
class Instance(_Fields, Generic[D]):
    """An instance of a saga."""

    data: D = field(kw_only=True)
    """What it keeps."""

    @classmethod
    def begun(cls, data: D, now: Timestamp) -> Instance[D]:
        """One that has done nothing yet."""
        return cls(FORMAT, Status.RUNNING, now, now, now, Wait.NOTHING, data=data)

    def fate(self, step: str) -> Fate | None:
        """What became of a step; none if it was not begun."""
        return next((record.fate for record in self.steps if record.step == step), None)

    def set_fate(self, step: str, fate: Fate) -> None:
        for place, record in enumerate(self.steps):
            if record.step == step:
                self.steps[place] = Record(step, fate)
                return
        self.steps.append(Record(step, fate))

    def note(self, now: Timestamp, what: str) -> None:
        """Adds to the history."""
        if len(self.history) >= _NOTES_MAX:
            # The first one says how it began, and is worth keeping.
            del self.history[1]
            self.history_dropped += 1
        self.history.append(Note(now, shortened(what)))


def shortened(text: str) -> str:
    """A text of limited length."""
    return text[:_TEXT_CHARACTERS_MAX]


_EMPTY: dict[str, Any] = {
    "step": None,
    "undoing": False,
    "due": None,
    "reason": "",
    "reason_before": "",
    "early": [],
    "early_failures": [],
    "history_dropped": 0,
}
"""Fields that are left out if they have these values."""


def instance_codec(data: Any) -> Codec:
    """How instances are stored, with their data of this type last."""
    own, fields = codec(data), codec(_Fields)
    copy_own: Callable[[Any], Any] = own.copy or (lambda value: value)

    def decode(value: Any) -> Instance[Any]:
        read = fields.decode(value)
        if "data" not in value:
            raise Mismatch("missing field `data`")
        try:
            return Instance(**vars(read), data=own.decode(value["data"]))
        except Mismatch as error:
            raise error.within("data") from None

    def encode(instance: Instance[Any]) -> str:
        own_text = _within_data(own.encode, instance.data)
        stored = {name: value for name, value in vars(instance).items() if name != "data"}
        stored = {name: stored[name] for name in _ORDER if name not in _EMPTY or stored[name] != _EMPTY[name]}
        return f'{to_json(stored)[:-1]},"data":{own_text}}}'

    def copy(instance: Instance[Any]) -> Instance[Any]:
        lists = {name: list(getattr(instance, name)) for name in ("steps", "early", "early_failures", "history")}
        return replace(instance, **lists, data=copy_own(instance.data))

    return Codec(decode, encode, copy, None)


_ORDER = tuple(_Fields.__dataclass_fields__)


def _within_data(encode: Callable[[Any], str], data: Any) -> str:
    try:
        return encode(data)
    except Mismatch as error:
        raise error.within("data") from None
