"""Tests of projections and handlers without Wasm and without a host: plain pytest, or any other runner.

::

    visits = Harness(Visits)
    visits.given(event("visits.home"), event("visits.home"), event("visits.about"))

    assert visits.get("page/home") == 2
    assert visits.query("visits", "about") == 1
    visits.assert_same_for_any_batching()

    shipping = Harness(Shipping)
    shipping.given(event("orders.7.paid"))

    assert shipping.published() == [Published("shipping.7.send", "send", {"order": "7"})]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from .codec import parse, to_json
from .effects import Cancelled, Message
from .errors import Mismatch
from .events import Event, subject_matches
from .instance import Failed, Instance
from .manifest import Manifest
from .module import Module, describe
from .time import Timestamp
from .timers import Fired, Timer

__all__ = ["GivenEvent", "Harness", "Published", "event", "events_from_ndjson"]

_FIRINGS_MAX = 100_000
"""Most timers that fire while a test lets time pass."""


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


@dataclass(frozen=True)
class Published:
    """A message that a handler published, with what it was given."""

    subject: str
    kind: str
    """The given one, or the last token of the subject."""
    data: Any
    """As JSON; other text as a `str`, bytes as they are."""
    headers: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    not_before: Timestamp | None = None
    time_to_live: timedelta | None = None
    expected_last: tuple[str, int] | None = None


class Memory:
    """A state, timers and messages in memory, with which a batch either becomes visible or is dropped."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.entries: dict[str, str] = {}
        self.timers: dict[str, Timer] = {}
        self.messages: list[Message] = []
        self.begin()

    def begin(self) -> None:
        self._before = (dict(self.entries), dict(self.timers), list(self.messages))

    def roll_back(self) -> None:
        self.entries, self.timers, self.messages = self._before

    def publish(self, cause: int, messages: Sequence[Message]) -> None:
        """Refuses what a host would refuse."""
        declared = self.manifest._publishes()
        for message in messages:
            subject = message.subject
            if not any(subject_matches(pattern, subject) for pattern in declared):
                raise ValueError(
                    f"it publishes to {subject}, which its manifest does not declare; add it to publishes"
                )
            covered = message.expected_last[0] if message.expected_last else None
            if covered is not None and not subject_matches(covered, subject):
                raise ValueError(
                    f"a message to {subject} expects the last sequence of {covered}, which does not cover it"
                )
        self.messages += messages

    def change_timers(self, cause: int, changes: Sequence[Timer | Cancelled]) -> None:
        for change in changes:
            if isinstance(change, Cancelled):
                self.timers.pop(change.name, None)
                continue
            if not self.manifest._sets_timers():
                raise ValueError("it sets timers, which its manifest does not declare; add timers=True")
            self.timers[change.name] = change

    def pending(self) -> list[Timer]:
        """The pending timers, in the order in which they fire."""
        return sorted(self.timers.values(), key=lambda timer: (timer.at, timer.name))

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
    """A projection or handler over a state in memory."""

    def __init__(self, module: type[Module], entries: Mapping[str, str] | None = None) -> None:
        """With entries that it begins with, as after a migration."""
        # Mistakes in declarations are raised here, not by the first event.
        describe(module)
        self._module = module
        self._begun = dict(entries or {})
        self._memory = Memory(module.manifest)
        self._memory.entries = dict(self._begun)
        self._instance: Instance | None = None
        self._applied: list[Event | Fired] = []
        self._next_sequence = 1
        self._next_time = Timestamp.parse("2026-01-01T00:00:00Z")

    @classmethod
    def migrated(cls, module: type[Module], from_version: int, old: Mapping[str, Any]) -> Harness:
        """A module over the state that it migrates from version `from_version`, before any further
        event. The old entries may come from a harness of the older version, with `entries()`. Raises
        what `migrate` raised."""
        # A host hands them over in the order of the keys.
        page = [(key, to_json(value)) for key, value in sorted(old.items())]
        memory = Memory(module.manifest)
        made = Instance(module, memory, memory).migrate(from_version, page)
        return cls(module, {key: value for key, value in made if isinstance(value, str)})

    def given(self, *events: GivenEvent) -> Harness:
        """Applies events, as one batch; returns itself.

        Like a host, it ignores events that the manifest's subjects do not match. If one fails, it
        drops everything that the batch wrote and published, applies the events before the failing one
        again, and raises what the module raised.
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
        instance = self._open()
        given = "" if arguments is None else json.dumps(arguments)
        answer = instance.query(name, given)
        if answer is None:
            raise LookupError(f"the module has no query {name!r}")
        return json.loads(answer)

    def get(self, key: str) -> Any:
        """The stored value of a key such as `customer/42`, as parsed JSON; none if there is none."""
        text = self._memory.get(key)
        return None if text is None else parse(text)

    def entries(self, prefix: str = "") -> dict[str, Any]:
        """The stored entries whose keys begin with a text, in order."""
        return {key: parse(text) for key, text in sorted(self._memory.entries.items()) if key.startswith(prefix)}

    def published(self) -> list[Published]:
        """What the handler has published so far, in order."""
        return [_shown(message) for message in self._memory.messages]

    def timers(self) -> list[Timer]:
        """The pending timers, in the order in which they fire."""
        return self._memory.pending()

    def after(self, span: timedelta) -> Harness:
        """Lets time pass after the last event, and fires the timers that are due meanwhile, in order,
        each at its time; returns itself.

        If one fails it stays pending, like those after it; everything that it did is dropped, and what
        the handler raised is raised.
        """
        until = self._next_time + span
        for _ in range(_FIRINGS_MAX):
            due = self._memory.pending()[:1]
            if not due or due[0].at > until:
                self._next_time = until
                return self
            timer = due[0]
            # Never before an event that came already: time does not go back in a stream.
            time = max(timer.at, self._next_time)
            firing = Fired(timer.name, timer.at, time, self._next_sequence, timer.key)
            # Firings are stored in the stream, so they have sequences like events.
            self._next_sequence += 1
            self._next_time = time
            failed = self._apply([firing])
            if failed is not None:
                raise failed.error
            self._applied.append(firing)
        raise AssertionError(f"more than {_FIRINGS_MAX} timers fired: timers set each other without end")

    def restart(self) -> Harness:
        """Drops everything that is not in the state, as a restart does."""
        self._instance = None
        return self

    def assert_same_for_any_batching(self) -> None:
        """Applies all events so far again in batches of other sizes, with and without a restart
        after each, and compares the stored entries, the messages and the pending timers."""
        # Small batches, odd ones, one that splits most tests unevenly, and all at once.
        for size in (1, 2, 3, 7, 64, max(1, len(self._applied))):
            for restarts in (False, True):
                other = Harness(self._module, self._begun)
                for start in range(0, len(self._applied), size):
                    failed = other._apply(self._applied[start : start + size])
                    if failed is not None:
                        raise AssertionError(f"in batches of {size}: {failed.message}") from failed.error
                    if restarts:
                        other.restart()
                self._compare(other, f"in batches of {size}{', restarted after each' * restarts}")

    def _compare(self, other: Harness, how: str) -> None:
        ours, theirs = self._results(), other._results()
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                raise AssertionError(
                    f"the result depends on the batches: {key} is {ours.get(key, 'nothing')} as given, "
                    f"and {theirs.get(key, 'nothing')} {how}, so some of what the module needs is "
                    "not in its tables"
                )

    def _results(self) -> dict[str, Any]:
        messages = {f"message {place}": message for place, message in enumerate(self.published())}
        timers = {f"timer {timer.name}": timer for timer in self.timers()}
        return {**self._memory.entries, **messages, **timers}

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
        manifest = self._module.manifest
        if not any(subject_matches(pattern, given.subject) for pattern in manifest.subjects):
            return None
        data = given.data
        if not isinstance(data, (str, bytes)):
            data = json.dumps(data, ensure_ascii=False)
        kind = given.kind or given.subject.rpartition(".")[2]
        headers = dict(sorted(given.headers.items())) if manifest._wants_headers() else {}
        return Event(sequence, int(time), given.subject, kind, headers, data)

    def _open(self) -> Instance:
        return Instance(self._module, self._memory, self._memory)

    def _apply(self, batch: Sequence[Event | Fired]) -> Failed | None:
        if self._instance is None:
            self._instance = self._open()
        self._memory.begin()
        done = 0
        while done < len(batch):
            # Firings go one by one, and events up to the next firing in one batch.
            count, failed = self._call(self._instance, batch[done:])
            if failed is not None:
                # What the instance holds no longer matches the state.
                self._memory.roll_back()
                self._instance = None
                return replace(failed, index=failed.index + done)
            done += count
        return None

    def _call(self, instance: Instance, rest: Sequence[Event | Fired]) -> tuple[int, Failed | None]:
        """One call of the module with what comes next, and how much that was."""
        first = rest[0]
        if isinstance(first, Fired):
            # It is pending no more, and may be set again under its name.
            timer = self._memory.timers.pop(first.name, None)
            return 1, None if timer is None else instance.fire([first])
        events: list[Event] = []
        for item in rest:
            if isinstance(item, Fired):
                break
            events.append(item)
        return len(events), instance.apply(events)


def _shown(message: Message) -> Published:
    last = message.expected_last
    return Published(
        message.subject,
        message.kind or message.subject.rpartition(".")[2],
        _parsed(message.data),
        dict(message.headers),
        message.key,
        message.not_before,
        None if message.time_to_live is None else timedelta(seconds=message.time_to_live),
        None if last is None else (last[0] or message.subject, last[1]),
    )


def _parsed(data: str | bytes) -> Any:
    if isinstance(data, bytes):
        return data
    try:
        return parse(data)
    except Mismatch:
        return data
