"""What hosts list of sagas: an index by status, step and time, and counts. Its form is described in
`docs/sagas.md`, so that hosts and SDKs of other languages agree about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ..keys import u32, u64
from ..tables import Table
from ..time import Timestamp
from .instance import FORMAT, Instance, Status

_NO_STEP = "-"
"""In place of a step, for instances that have none."""


class Ignored(Enum):
    """Why an event changed nothing."""

    DUPLICATE = "duplicate"
    """It was there before."""
    LATE = "late"
    """It answers a step that was given up or undone."""
    EARLY = "early"
    """It answers a step that was not begun."""
    UNKNOWN = "unknown"
    """There is no instance with its key: it never started, or was removed after its end."""
    ENDED = "ended"
    """Its instance has ended."""
    STALE_TIMER = "stale-timer"
    """A timer that its instance does not wait for any more."""


@dataclass(frozen=True)
class Place:
    """Where an instance is listed, so that those that have waited longest for a step come first."""

    status: Status
    step: str
    since: Timestamp
    key: str

    @classmethod
    def of(cls, instance: Instance[Any], key: str) -> Place:
        return cls(instance.status, instance.step or _NO_STEP, instance.since, key)

    @property
    def index(self) -> tuple[str, str, Timestamp, str]:
        return self.status.value, self.step, self.since, self.key

    @property
    def group(self) -> str:
        """Under which it is counted."""
        return f"{self.status.value}/{self.step}"


@dataclass
class Counts:
    """How many instances there are, and what was ignored."""

    format: u32 = FORMAT
    now: dict[str, u64] = field(default_factory=dict)
    """Instances by `<status>/<step>`."""
    ended: dict[str, u64] = field(default_factory=dict)
    """Instances that ended, by status, with those that are not kept any more."""
    ignored: dict[str, u64] = field(default_factory=dict)
    """Events that changed nothing, by what they were."""


class Listing:
    """The index and the counts of a saga."""

    def __init__(
        self, index: Table[tuple[str, str, Timestamp, str], None], counts: Table[Any, Counts]
    ) -> None:
        self._index = index
        self._counts = counts

    def moved(self, before: Place | None, after: Place | None) -> None:
        """An instance moves from one place to another, is new, or is removed."""
        if before == after:
            return
        counts = self._counts.edit(())
        if before is not None:
            self._index.delete(before.index)
            _add(counts.now, before.group, -1)
        if after is not None:
            self._index[after.index] = None
            _add(counts.now, after.group, 1)
        had_ended = before is not None and before.status.has_ended
        if after is not None and after.status.has_ended and not had_ended:
            _add(counts.ended, after.status.value, 1)
        elif before is not None and after is not None and had_ended and not after.status.has_ended:
            # An operator must deal with it after all.
            counts.ended[before.status.value] = max(counts.ended.get(before.status.value, 0) - 1, 0)
        counts.now, counts.ended = _sorted(counts.now), _sorted(counts.ended)

    def ignored(self, why: Ignored) -> None:
        """An event changed nothing."""
        counts = self._counts.edit(())
        _add(counts.ignored, why.value, 1)
        counts.ignored = _sorted(counts.ignored)


def _add(counts: dict[str, int], name: str, by: int) -> None:
    """Changes a count; one that reaches zero is left out."""
    count = counts.pop(name, 0) + by
    if count > 0:
        counts[name] = count


def _sorted(counts: dict[str, int]) -> dict[str, int]:
    """In the order of their names, as all SDKs store them."""
    return dict(sorted(counts.items()))
