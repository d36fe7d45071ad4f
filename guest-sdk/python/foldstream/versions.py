"""Old versions of events: read as the current one (*upcasting*)."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .codec import codec, parse
from .errors import Mismatch, Reject, is_deliberate
from .events import Event
from .waiting import refuse_unfinished, refuse_waiting

U = TypeVar("U", bound=Callable[[Any], Any])

Read = Callable[[Event], Any]
"""Reads the data of an event of one version, and converts it to the current one."""


def upcast(*kinds: str) -> Callable[[U], U]:
    """Makes a function convert the data of old events, by their types (`Event.kind`), to the next version::

        @upcast("placed")
        def from_v1(old: PlacedV1) -> PlacedV2:
            return PlacedV2(old.order, old.total_cents, "EUR")

        @upcast("placed.v2")
        def from_v2(old: PlacedV2) -> Placed:
            return Placed(old.order, Total(old.total_cents, old.currency))

        class Orders(Projection):
            @on("placed.v3", upcasts=[from_v1, from_v2])
            def placed(self, event: Event, placed: Placed) -> None: ...

    Functions follow each other by the types that they take and return. They must be pure: each rebuild
    repeats them. Raise `Reject` if an old event has no form in the next version. Several modules may
    share them.
    """
    if not kinds or not all(isinstance(kind, str) for kind in kinds):
        raise TypeError('upcast() takes the types of old events: @upcast("placed")')

    def mark(function: U) -> U:
        function.__foldstream_upcast__ = kinds  # type: ignore[attr-defined]
        return function

    return mark


@dataclass(frozen=True)
class _Step:
    """A conversion to the next version."""

    name: str
    kinds: tuple[str, ...]
    convert: Callable[[Any], Any]
    old: Any
    new: Any


def reading(decode: Callable[[Any], Any]) -> Read:
    """Reads the data of an event by its type."""

    def read(event: Event) -> Any:
        try:
            return decode(parse(event.data))
        except Mismatch as error:
            raise Mismatch(f"event {event.sequence} ({event.subject}): {error}") from None

    return read


def old_versions(shown: str, current: Any, upcasts: Sequence[Callable[[Any], Any]]) -> dict[str, Read]:
    """How events of old types are read as the current one. Raises `TypeError` with the mistake."""
    steps = [_step(shown, function) for function in upcasts]
    found: dict[str, Read] = {}
    for step in steps:
        chain = _chain(shown, step, current, steps)
        for kind in step.kinds:
            if kind in found:
                raise TypeError(f"{shown}: two upcasts read events of type {kind!r}")
            found[kind] = _read(shown, chain)
    return found


def _step(shown: str, function: Any) -> _Step:
    kinds = getattr(function, "__foldstream_upcast__", None)
    name = getattr(function, "__name__", repr(function))
    if kinds is None:
        raise TypeError(f'{shown}: {name} is no upcast; mark it with @upcast("type of old events")')
    refuse_waiting(shown, name, function)
    parameters = list(inspect.signature(function).parameters)
    hints = typing.get_type_hints(function, include_extras=True)
    if len(parameters) != 1 or parameters[0] not in hints or "return" not in hints:
        raise TypeError(f"{shown}: {name} takes the old data and returns the new, both with a type")
    return _Step(name, kinds, function, hints[parameters[0]], hints["return"])


def _chain(shown: str, first: _Step, current: Any, steps: Sequence[_Step]) -> list[_Step]:
    """The conversions from an old version to the current one."""
    chain = [first]
    while chain[-1].new != current:
        following = [step for step in steps if step.old == chain[-1].new]
        last = chain[-1]
        if not following:
            raise TypeError(f"{shown}: {last.name} returns {last.new!r}, which no upcast makes the current version")
        if len(following) > 1 or following[0] in chain:
            raise TypeError(f"{shown}: after {last.name} it is not clear which upcast is next")
        chain.append(following[0])
    return chain


def _read(shown: str, chain: Sequence[_Step]) -> Read:
    try:
        decode = codec(chain[0].old).decode
    except TypeError as error:
        raise TypeError(f"{shown}: {chain[0].name}: {error}") from None

    read_old = reading(decode)

    def read(event: Event) -> Any:
        data = read_old(event)
        for step in chain:
            try:
                data = step.convert(data)
            except Exception as error:
                # Anything else is a mistake in the function, which its own class and line show best.
                if not is_deliberate(error):
                    raise
                # Also of `Retry`: the same data never converts in another way.
                raise Reject(
                    f"event {event.sequence} ({event.subject}) of type {event.kind} does not become the "
                    f"current version: {str(error) or type(error).__name__}"
                ) from None
            refuse_unfinished(step.name, data)
        return data

    return read
