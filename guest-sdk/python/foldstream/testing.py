"""Tests of projections without Wasm and without a host: plain pytest, or any other runner.

::

    visits = Harness(Visits)
    visits.given(event("visits.home"), event("visits.home"), event("visits.about"))

    assert visits.get("page/home") == 2
    assert visits.query("visits", "about") == 1
    visits.assert_same_for_any_batching()
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .codec import parse
from .events import Event, subject_matches
from .projection import Failed, Instance, Projection
from .time import Timestamp

__all__ = ["GivenEvent", "Harness", "event", "events_from_ndjson"]


@dataclass(frozen=True)
class GivenEvent:
    """An event to apply. `event` makes one; `events_from_ndjson` reads many."""

    subject: str
    data: Any = None
    kind: str | None = None
    time: str | Timestamp | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def event(
    subject: str,
    data: Any = None,
    *,
    kind: str | None = None,
    time: str | Timestamp | None = None,
    headers: Mapping[str, str] | None = None,
) -> GivenEvent:
    """An event with JSON data; a `str` or `bytes` is the data as it is.

    Its type is the last token of the subject unless `kind` says another, its time (RFC 3339) one
    second later than that of the event before. Headers have lower-case names.
    """
    return GivenEvent(subject, {} if data is None else data, kind, time, headers or {})


def events_from_ndjson(text: str) -> list[GivenEvent]:
    """Reads events from lines of JSON, in the format of `foldstream events import`. Raises
    `ValueError` with the number of the first line that is none."""
    events = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            read = json.loads(line)
            events.append(
                GivenEvent(
                    read["subject"],
                    read.get("data"),
                    read.get("type"),
                    read.get("time"),
                    read.get("headers", {}),
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"line {number} is no event: {error!r}") from error
    return events


class Memory:
    """A state in memory, with which a batch either becomes visible or is dropped."""

    def __init__(self, entries: Mapping[str, str] = {}) -> None:
        self.entries = dict(entries)
        self._before = self.entries

    def begin(self) -> None:
        self._before = dict(self.entries)

    def roll_back(self) -> None:
        self.entries = self._before

    def get(self, key: str) -> str | None:
        return self.entries.get(key)

    def put_many(self, entries: list[tuple[str, str | None]]) -> None:
        for key, value in entries:
            if value is None:
                self.entries.pop(key, None)
            else:
                self.entries[key] = value

    def scan(
        self, start: str, end: str | None, after: str | None, backwards: bool, limit: int
    ) -> tuple[list[tuple[str, str | bytes]], bool]:
        def covered(key: str) -> bool:
            beyond = after is None or (key < after if backwards else key > after)
            return beyond and start <= key and (end is None or key < end)

        # Python compares texts as UTF-8 does: by code points.
        keys = sorted(filter(covered, self.entries), reverse=backwards)
        return [(key, self.entries[key]) for key in keys[:limit]], len(keys) > limit


class Harness:
    """A projection over a state in memory."""

    def __init__(self, projection: type[Projection]) -> None:
        self._projection = projection
        self._memory = Memory()
        self._instance: Instance | None = None
        self._applied: list[Event] = []
        self._next_sequence = 1
        self._next_time = Timestamp.parse("2026-01-01T00:00:00Z")
        # Mistakes in declarations are raised here, not by the first event.
        Instance(projection, self._memory)

    def given(self, *events: GivenEvent) -> Harness:
        """Applies events, as one batch; returns itself.

        Like a host, it ignores events that the manifest's subjects do not match. If one fails, it
        drops everything that the batch wrote, applies the events before the failing one again, and
        raises what the projection raised.
        """
        batch = [stored for one in events if (stored := self._store(one)) is not None]
        failed = self._apply(batch)
        kept = batch
        if failed is not None:
            kept = batch[: failed.index]
            again = self._apply(kept)
            assert again is None, f"the events before the failing one fail on their own: {again}"
        self._applied += kept
        if failed is not None:
            raise failed.error
        return self

    def query(self, name: str, arguments: Any = None) -> Any:
        """Runs a query with its arguments as JSON, and returns its answer as parsed JSON.

        Raises what the query raised, and `LookupError` if there is no such query.
        """
        # A fresh instance, as in a host: what is only in memory is not there.
        instance = Instance(self._projection, self._memory)
        given = "" if arguments is None else json.dumps(arguments)
        answer = instance.query(name, given)
        if answer is None:
            raise LookupError(f"the projection has no query {name!r}")
        return json.loads(answer)

    def get(self, key: str) -> Any:
        """The stored value of a key such as `customer/42`, as parsed JSON; none if there is none."""
        text = self._memory.get(key)
        return None if text is None else parse(text)

    def entries(self, prefix: str = "") -> dict[str, Any]:
        """The stored entries whose keys begin with a text, in order."""
        return {key: parse(text) for key, text in sorted(self._memory.entries.items()) if key.startswith(prefix)}

    def restart(self) -> Harness:
        """Drops everything that is not in the state, as a restart does."""
        self._instance = None
        return self

    def assert_same_for_any_batching(self) -> None:
        """Applies all events so far again in batches of other sizes, with and without a restart
        after each, and compares the stored entries."""
        # Small batches, odd ones, one that splits most tests unevenly, and all at once.
        for size in (1, 2, 3, 7, 64, max(1, len(self._applied))):
            for restarts in (False, True):
                other = Harness(self._projection)
                for start in range(0, len(self._applied), size):
                    failed = other._apply(self._applied[start : start + size])
                    if failed is not None:
                        raise AssertionError(f"in batches of {size}: {failed.message}") from failed.error
                    if restarts:
                        other.restart()
                self._compare(other, f"in batches of {size}{', restarted after each' * restarts}")

    def _compare(self, other: Harness, how: str) -> None:
        ours, theirs = self._memory.entries, other._memory.entries
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                raise AssertionError(
                    f"the result depends on the batches: {key} is {ours.get(key, 'nothing')} as given, "
                    f"and {theirs.get(key, 'nothing')} {how}, so some of what the projection needs is "
                    "not in its tables"
                )

    def _store(self, given: GivenEvent) -> Event | None:
        sequence = self._next_sequence
        # Also of events that do not match: their sequences are missing, as in a stream.
        self._next_sequence += 1
        time = given.time
        if time is None:
            time = self._next_time
        elif isinstance(time, str):
            time = Timestamp.parse(time)
        self._next_time = time + 1_000_000_000
        manifest = self._projection.manifest
        if not any(subject_matches(pattern, given.subject) for pattern in manifest.subjects):
            return None
        data = given.data
        if not isinstance(data, (str, bytes)):
            data = json.dumps(data, ensure_ascii=False)
        kind = given.kind or given.subject.rpartition(".")[2]
        headers = dict(sorted(given.headers.items())) if manifest.headers else {}
        return Event(sequence, int(time), given.subject, kind, headers, data)

    def _apply(self, batch: Iterable[Event]) -> Failed | None:
        if self._instance is None:
            self._instance = Instance(self._projection, self._memory)
        self._memory.begin()
        failed = self._instance.apply(list(batch))
        if failed is not None:
            # What the instance holds no longer matches the state.
            self._memory.roll_back()
            self._instance = None
        return failed
