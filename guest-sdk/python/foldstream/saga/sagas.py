"""The instances of a saga, in the state of a handler."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .. import log
from ..codec import codec
from ..effects import Effects
from ..errors import Reject
from ..events import Event
from ..keys import escape_text, key_type
from ..tables import SINGLE, Part, State, Table
from ..time import Timestamp
from ..timers import Fired
from .definition import Saga, matches_any
from .instance import FORMAT, Instance, Status, instance_codec
from .listing import Counts, Ignored, Listing, Place
from .transition import Transition

D = TypeVar("D")

_KEY_BYTES_MAX = 400
"""Longest correlation key as it is stored, in bytes: names of timers and keys of entries have it."""
_ESCAPED = re.compile(r"[\x00-\x1f%\x7f-\x9f]")
"""What names of timers escape: control characters, which they can't have, and what escapes them."""
_OCTET = re.compile(rb"%([0-9A-Fa-f]{2})")


@dataclass(frozen=True)
class Handled:
    """What an event or a timer meant to a saga."""

    what: str
    """`unrelated`: it is not about this saga; `changed`: it changed its instance; `removed`: its
    instance had ended long enough ago, and is removed; `ignored`: it changed nothing."""
    status: Status | None = None
    """The status of an instance that it changed."""
    ignored: Ignored | None = None
    """Why it changed nothing."""


class Sagas(Part, Generic[D]):
    """Runs the instances of a saga, one for each correlation key: publishes commands, takes answers,
    and sets timers. Declare it in a handler, like a table::

        class Orders(Handler):
            manifest = HandlerManifest(
                "orders",
                orders.subjects,
                publishes=["payment.*.charge", "payment.*.refund", "shipping.*.send"],
                timers=True,
                key=KeyRule.subject_token(2),
            )
            sagas = Sagas(orders)

            def handle(self, event: Event, effects: Effects) -> None:
                self.sagas.handle(event, effects)

            def on_timer(self, timer: Fired, effects: Effects) -> None:
                self.sagas.on_timer(timer, effects)
    """

    def __init__(self, saga: Saga[D]) -> None:
        self.saga = saga
        self._sets_timers = saga.sets_timers
        # `saga/<saga>/<key>`
        self._instances: Table[str, Instance[D]] = Table("saga", saga.name)
        # `saga-index/<saga>/<status>/<step>/<since>/<key>`
        self._index: Table[tuple[str, str, Timestamp, str], None] = Table("saga-index", saga.name)
        # `saga-count/<saga>`
        self._counts: Table[Any, Counts] = Table("saga-count", saga.name)

    @property
    def _names(self) -> list[str]:
        return [table.name for table in (self._instances, self._index, self._counts)]

    def _declared(self) -> Any:
        try:
            return (
                (key_type(str), instance_codec(self.saga.data)),
                (key_type(tuple[str, str, Timestamp, str]), codec(None)),
                (SINGLE, codec(Counts)),
            )
        except TypeError as error:
            raise TypeError(f"saga {self.saga.name}: {error}") from None

    def _open(self, state: State, types: Any) -> Sagas[D]:
        """The same sagas over a state."""
        opened = type(self)(self.saga)
        opened._instances = self._instances._open(state, types[0])
        opened._listing = Listing(self._index._open(state, types[1]), self._counts._open(state, types[2]))
        return opened

    _listing: Listing

    def handle(self, event: Event, effects: Effects) -> Handled:
        """Starts an instance or lets one continue, if the event is about this saga.

        Events that come twice, late or early change nothing but a count. Raises `Reject` if the event
        has no sound correlation key, and what a function of the saga raises.
        """
        saga = self.saga
        if not saga._concerns(event):
            return Handled("unrelated")
        key = saga._key_of(event)
        timer = timer_name(saga.name, key)
        instance = self._read(key)
        if instance is not None:
            return self._meet(event, Transition(saga, key, timer, event.time, instance, effects))
        if not matches_any(saga.starts, event):
            return self._ignore(Ignored.UNKNOWN, event.subject)
        started = Instance.begun(saga._start(event), event.time)
        Transition(saga, key, timer, event.time, started, effects).start(event)
        return self._write(key, None, started)

    def on_timer(self, timer: Fired, effects: Effects) -> Handled:
        """Lets an instance continue, if the timer is one of this saga."""
        key = key_of_timer(self.saga.name, timer.name)
        if key is None:
            return Handled("unrelated")
        instance = self._read(key)
        # To the microsecond: JavaScript sets and meets timers no more exactly.
        if instance is None or instance.due is None or abs(int(instance.due) - int(timer.at)) > 1_000:
            return self._ignore(Ignored.STALE_TIMER, timer.name)
        before = Place.of(instance, key)
        if instance.status.has_ended:
            self._listing.moved(before, None)
            self._instances.delete(key)
            return Handled("removed")
        Transition(self.saga, key, timer.name, timer.time, instance, effects).fire()
        return self._write(key, before, instance)

    def get(self, key: str) -> Instance[D] | None:
        """The instance of a correlation key."""
        return self._instances.get(key)

    def scan(self, **narrow: Any) -> Iterator[tuple[str, Instance[D]]]:
        """Instances in the order of their keys; see `Table.scan`."""
        return self._instances.scan(**narrow)

    def _read(self, key: str) -> Instance[D] | None:
        instance = self._instances.get(key)
        if instance is not None and instance.format > FORMAT:
            raise Reject(
                f"saga {self.saga.name} of {key} was written in format {instance.format}, and this version of "
                f"the module knows {FORMAT}; deploy the newer one again"
            )
        return instance

    def _meet(self, event: Event, transition: Transition[D]) -> Handled:
        key, instance = transition.key, transition.instance
        before = Place.of(instance, key)
        is_lost = instance.status is not Status.STUCK and not transition.is_known
        if is_lost:
            transition.lost_step()
        # Met as by any other stuck instance: a cancellation, or an answer to another step, must not be
        # lost because it came first.
        ignored = transition.meet(event)
        if ignored is None or is_lost:
            return self._write(key, before, instance)
        return self._ignore(ignored, event.subject)

    def _write(self, key: str, before: Place | None, instance: Instance[D]) -> Handled:
        self._listing.moved(before, Place.of(instance, key))
        self._instances[key] = instance
        return Handled("changed", status=instance.status)

    def _ignore(self, why: Ignored, by: str) -> Handled:
        log.debug(f"saga {self.saga.name} ignores {by}: {why.value}")
        self._listing.ignored(why)
        return Handled("ignored", ignored=why)

    def __repr__(self) -> str:
        return f"Sagas({self.saga.name!r})"


def timer_name(saga: str, key: str) -> str:
    """The name of the timer of an instance: `saga/<saga>/<key>`."""
    stored = escape_text(key)
    name = f"saga/{saga}/" + _ESCAPED.sub(_escape, key)
    if not key or max(len(stored.encode()), len(name.encode())) > _KEY_BYTES_MAX:
        raise Reject(
            f"a correlation key of saga {saga} has {len(key.encode())} bytes; use 1 to about {_KEY_BYTES_MAX}: "
            f"{key[:64]!r}"
        )
    return name


def key_of_timer(saga: str, name: str) -> str | None:
    """The correlation key in the name of a timer; none if the timer is not one of this saga."""
    start = f"saga/{saga}/"
    if not name.startswith(start):
        return None
    try:
        return _OCTET.sub(lambda match: bytes([int(match[1], 16)]), name[len(start) :].encode()).decode()
    except UnicodeDecodeError:
        return None


def _escape(match: re.Match[str]) -> str:
    return "".join(f"%{octet:02X}" for octet in match[0].encode())
