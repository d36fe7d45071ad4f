"""A module's description of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class KeyRule:
    """How the host finds the key of an event. Events with one key are applied in order, and can be
    rebuilt without the others."""

    case: str = "none"
    value: str | int | None = None

    @classmethod
    def subject(cls) -> KeyRule:
        """The whole subject."""
        return cls("subject")

    @classmethod
    def subject_token(cls, number: int) -> KeyRule:
        """One token of the subject, counted from 1."""
        return cls("subject-token", number)

    @classmethod
    def header(cls, name: str) -> KeyRule:
        """The value of a header, by lower-case name."""
        return cls("header", name)

    @classmethod
    def data_pointer(cls, pointer: str) -> KeyRule:
        """A value inside JSON data, as a JSON pointer (RFC 6901)."""
        return cls("data-pointer", pointer)


@dataclass(frozen=True)
class EventId:
    """What two events with one subject have in common if they are the same: by default the id of
    the message, `ce-id` with `ce-source` of a CloudEvent, otherwise `Nats-Msg-Id`."""

    case: str = "message-id"
    value: str | None = None

    @classmethod
    def header(cls, name: str) -> EventId:
        """The value of a header, by lower-case name."""
        return cls("header", name)

    @classmethod
    def data_pointer(cls, pointer: str) -> EventId:
        """A value inside JSON data, as a JSON pointer (RFC 6901)."""
        return cls("data-pointer", pointer)


@dataclass(frozen=True)
class Inbox:
    """Leaves out events that their producer published again within a window."""

    window: timedelta
    """How much later than the first one an event is recognised."""
    id: EventId = EventId()
    """What identifies an event."""
    ids_max: int = 1_000_000
    """How many ids the host keeps; the oldest are forgotten first."""


@dataclass(frozen=True)
class Manifest:
    """What a module is and needs. Only name and subjects are required."""

    name: str
    """Its name, and the default name of its deployment: 1 to 63 lower-case letters, digits and
    hyphens, a letter first."""
    subjects: Sequence[str]
    """The subjects that it reads, with the wildcards `*` (one token) and `>` (the rest)."""
    description: str = ""
    """For people: its purpose. By default the class's own documentation."""
    key: KeyRule = KeyRule()
    """How the host finds the key of an event."""
    headers: bool = False
    """Whether events carry their headers, which cost about as much as the rest of an event."""
    state_version: int = 1
    """Version of the stored entries. Raise it if the code changes the meaning of old keys or
    values: the host then rebuilds the state."""
    inbox: Inbox | None = None
    """How to recognise events that a producer published twice."""
    attempts: int | None = None
    """How often the host tries a failing batch, including the first attempt."""
    backoff: tuple[timedelta, timedelta] | None = None
    """The pause before the second attempt, which doubles each time, and the longest pause."""
    memory_limit: int | None = None
    """The linear memory that one instance needs, in bytes; Python itself takes about 12 MiB."""
    deadline: timedelta | None = None
    """The longest time that one call may need."""
    batch_limit: int | None = None
    """The most events that one batch may have."""
    state_limit: int | None = None
    """The largest total size of all keys and values, in bytes."""

    def __post_init__(self) -> None:
        if isinstance(self.subjects, str) or not self.subjects:
            raise TypeError('subjects are a list of patterns, such as ["orders.>"]')

    def _publishes(self) -> list[str]:
        return []

    def _wants_headers(self) -> bool:
        return self.headers

    def _sets_timers(self) -> bool:
        return False


@dataclass(frozen=True)
class HandlerManifest(Manifest):
    """What a handler is and needs."""

    publishes: Sequence[str] = ()
    """The subjects that it publishes to, with the wildcards `*` and `>`. This grants nothing: who
    deploys it decides, with `--allow-publish`, which of them it may publish to."""
    replies: bool = False
    """Whether it replies to the publishers of events with `effects.reply`. Events then carry their
    headers. Who deploys it decides whether it may, with `--allow-publish '_INBOX.>@SOURCE'`."""
    timers: bool = False
    """Whether it sets timers, with `effects.set_timer`. The host records their firings in the stream
    that the handler reads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.publishes, str):
            raise TypeError('publishes is a list of patterns, such as ["shipping.*.send"]')

    def _publishes(self) -> list[str]:
        return [*self.publishes, "_INBOX.>"] if self.replies else list(self.publishes)

    def _wants_headers(self) -> bool:
        return self.headers or self.replies

    def _sets_timers(self) -> bool:
        return self.timers
