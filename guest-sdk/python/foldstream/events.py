"""Events, and how a projection says which of them it handles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

from .codec import codec, parse
from .errors import Mismatch, Reject
from .time import Timestamp

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., None])


class Event:
    """An immutable fact."""

    __slots__ = ("sequence", "time_ns", "subject", "kind", "headers", "data")

    sequence: int
    """Its sequence in the stream, counted from 1. Strictly increasing, with gaps for events that do
    not match the module's subjects."""
    time_ns: int
    """When the stream stored it, in nanoseconds since the Unix epoch."""
    subject: str
    """The subject under which it was published, such as `orders.42.placed`."""
    kind: str
    """Its type: the CloudEvents `type`, otherwise the `Event-Type` header, otherwise the last token
    of the subject."""
    headers: dict[str, str]
    """Headers by lower-case name; empty unless the manifest asks for them."""
    data: str | bytes
    """What happened: text if it is valid UTF-8, otherwise bytes."""

    def __init__(
        self,
        sequence: int,
        time_ns: int,
        subject: str,
        kind: str,
        headers: dict[str, str],
        data: str | bytes,
    ) -> None:
        self.sequence = sequence
        self.time_ns = time_ns
        self.subject = subject
        self.kind = kind
        self.headers = headers
        self.data = data

    @property
    def time(self) -> Timestamp:
        """When the stream stored it.

        On JetStream the server sets it, and no publisher can: put the time at which something
        happened into the data.
        """
        return Timestamp(self.time_ns)

    def token(self, number: int) -> str:
        """One token of the subject, counted from 1: the second of `orders.42.placed` is `42`."""
        tokens = self.subject.split(".")
        if not 1 <= number <= len(tokens):
            raise Reject(f"subject {self.subject} has no token {number}")
        return tokens[number - 1]

    def is_under(self, pattern: str) -> bool:
        """Whether its subject is one of these: `orders.*.placed`, where `*` matches any token, or
        `orders.>`, where `>` at the end matches one token or more."""
        return subject_matches(pattern, self.subject)

    @overload
    def json(self) -> Any: ...
    @overload
    def json(self, type: type[T]) -> T: ...
    def json(self, type: Any = Any) -> Any:
        """The data as JSON, checked against a type; see `foldstream.codec` for the types.

        Raises `Reject` if it does not match.
        """
        try:
            return codec(type).decode(parse(self.data))
        except Mismatch as error:
            raise Reject(f"event {self.sequence} ({self.subject}): {error}") from None

    def __repr__(self) -> str:
        return f"Event({self.sequence}, {self.subject!r}, kind={self.kind!r}, data={self.data!r})"


def subject_matches(pattern: str, subject: str) -> bool:
    """Whether a subject matches a pattern with the wildcards `*` and `>`."""
    tokens = subject.split(".")
    wanted = pattern.split(".")
    for place, want in enumerate(wanted):
        if place >= len(tokens):
            return False
        if want == ">":
            return True
        if want != "*" and want != tokens[place]:
            return False
    return len(tokens) == len(wanted)


def on(*kinds: str, upcasts: Sequence[Callable[[Any], Any]] = ()) -> Callable[[F], F]:
    """Says which events a method handles, by their types (`Event.kind`).

    The method takes the event, and if it has a second parameter with a type, the data as that
    type::

        @on("placed", "amended")
        def placed(self, event: Event, order: Placed) -> None:
            ...

    Data that does not match the type rejects the event. Events of other types are ignored.

    With `upcasts` it handles old versions of the event as well, which these functions convert to the
    type of the data; see `upcast`.
    """
    if not kinds or not all(isinstance(kind, str) for kind in kinds):
        raise TypeError('on() takes the types of events: @on("placed")')

    def mark(method: F) -> F:
        method.__foldstream_on__ = kinds  # type: ignore[attr-defined]
        method.__foldstream_upcasts__ = tuple(upcasts)  # type: ignore[attr-defined]
        return method

    return mark
