"""What a handler publishes, and the timers that it sets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from .codec import codec, to_json
from .errors import Mismatch
from .events import Event
from .keys import u32, u64
from .time import Timestamp
from .timers import Timer


@dataclass(frozen=True)
class Message:
    """A message, checked."""

    subject: str
    kind: str | None
    headers: tuple[tuple[str, str], ...]
    data: str | bytes
    key: str | None
    not_before: Timestamp | None
    time_to_live: int | None
    """In seconds."""
    expected_last: tuple[str | None, int] | None
    """Without a subject it is that of the message."""


@dataclass(frozen=True)
class Cancelled:
    """A timer is to be cancelled."""

    name: str


class Outbox(Protocol):
    """Where effects go: to a host, or to memory in tests. `cause` is the index of the event or timer
    in its batch."""

    def publish(self, cause: int, messages: Sequence[Message]) -> None: ...
    def change_timers(self, cause: int, changes: Sequence[Timer | Cancelled]) -> None: ...


class Effects:
    """What one event, or one timer, causes: messages in order, and changes to timers.

    The host stores them together with what the handler writes into its tables, and sends the
    messages after that. If the handler raises, nothing is sent, set or cancelled.
    """

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._changes: list[Timer | Cancelled] = []
        self._is_closed = False

    def _refuse_late(self) -> None:
        if self._is_closed:
            raise Mismatch("these are the effects of an earlier event: they can't change any more")

    def publish(
        self,
        subject: str,
        data: Any = "",
        *,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
        not_before: Timestamp | None = None,
        time_to_live: timedelta | None = None,
        expected_last: int | tuple[str, int] | None = None,
    ) -> None:
        """Publishes a message. Its data is written as JSON; a `str` or `bytes` is the data as it is.

        - `kind`: its type; by default the last token of the subject.
        - `headers`: further headers. The host refuses those that it sets itself, and those that steer
          the server.
        - `key`: messages with one key are stored in order; by default the key of the event or timer.
        - `not_before`: it is not sent before this time. Until then it waits in the outbox, through
          restarts and new code, and holds back no other message of its key. A timer decides when its
          time has come; this decides now.
        - `time_to_live`: for how long the stream keeps it, in whole seconds, at least 1. The stream
          must allow that; an embedded log can't, and the host refuses the message.
        - `expected_last`: it is stored only if the last message of its subject, or of a pattern that
          covers it, has this sequence in the stream that it goes to; 0 if there must not be any. The
          state is committed by then, and is not undone: a message whose condition does not hold is
          set aside as a conflict, for an operator to send or drop, and later messages continue.
        """
        self._refuse_late()
        place = f"a message to {subject}"
        self._messages.append(
            Message(
                _string("the subject of a message", subject),
                kind if kind is None else _string(f"{place}: kind", kind),
                _headers(f"{place}: headers", headers or {}),
                data if isinstance(data, bytes) else _text(f"{place}: data", data),
                key if key is None else _string(f"{place}: key", key),
                not_before if not_before is None else _timestamp(f"{place}: not_before", not_before),
                time_to_live if time_to_live is None else _seconds(f"{place}: time_to_live", time_to_live),
                expected_last if expected_last is None else _last(f"{place}: expected_last", expected_last),
            )
        )

    def set_timer(self, name: str, at: Timestamp, *, key: str | None = None) -> None:
        """Sets a timer: `event.time + timedelta(minutes=30)`. A time in the past fires at once. A timer
        that is pending under the same name is replaced. Its key is that of messages that it causes; by
        default that of the event.

        The manifest must say `timers=True`.
        """
        self._refuse_late()
        timer = Timer(
            _string("the name of a timer", name),
            _timestamp(f"timer {name}", at),
            key if key is None else _string(f"timer {name}: key", key),
        )
        self._changes.append(timer)

    def cancel_timer(self, name: str) -> None:
        """Cancels a timer: it does not fire, whatever its time. Does nothing if none is pending under
        that name."""
        self._refuse_late()
        self._changes.append(Cancelled(_string("the name of a timer", name)))

    def reply(self, event: Event, data: Any) -> None:
        """Replies to the publisher of the event, if it named its inbox in its header
        `foldstream-reply-to`. Otherwise, and if the operator has granted no replies, it does nothing.
        The manifest must say `replies=True`.

        A reply leaves after the commit of what the event changed, over plain NATS. Nobody confirms it:
        it may be lost, and come twice after a crash.
        """
        inbox = event.headers.get(_REPLY_TO, "")
        if len(inbox) <= _INBOX_BYTES_MAX and _INBOX.fullmatch(inbox):
            self.publish(inbox, data, kind="reply")

    def _pass_on(self, cause: int, outbox: Outbox) -> None:
        if self._messages:
            outbox.publish(cause, self._messages)
        if self._changes:
            outbox.change_timers(cause, self._changes)


_REPLY_TO = "foldstream-reply-to"
"""The header of an event that names the inbox of its requester."""

_INBOX = re.compile(r"_INBOX(?:\.[!-)+,\-/-=?-~]+)+")
"""What a subject of an inbox must be for the host to send a reply: a stranger wrote it."""

_INBOX_BYTES_MAX = 256


def _checked(place: str, declared: Any, value: Any) -> Any:
    """A value of a type. A value of another type must not reach the host: the call would end without
    saying which value it was."""
    try:
        return codec(declared).decode(value)
    except Mismatch as error:
        raise error.within(place) from None


def _string(place: str, value: Any) -> str:
    text: str = _checked(place, str, value)
    try:
        # Most are, and need no copy.
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        raise Mismatch(f"{place}: half of a pair of surrogates is no text") from None
    return text


def _headers(place: str, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((_string(place, name), _string(f"{place}: {name}", value)) for name, value in headers.items())


def _text(place: str, data: Any) -> str:
    if isinstance(data, str):
        return _string(place, data)
    try:
        return to_json(data)
    except Mismatch as error:
        raise error.within(place) from None


def _timestamp(place: str, value: Any) -> Timestamp:
    # A number alone could be seconds.
    if not isinstance(value, Timestamp):
        raise Mismatch(f"{place}: expected a Timestamp, found {value!r}")
    return value


def _seconds(place: str, span: Any) -> int:
    if not isinstance(span, timedelta):
        raise Mismatch(f"{place}: expected a timedelta, found {span!r}")
    seconds: int = _checked(place, u32, span // timedelta(seconds=1))
    if seconds < 1:
        raise Mismatch(f"{place}: expected at least 1 s, found {span}")
    return seconds


def _last(place: str, value: Any) -> tuple[str | None, int]:
    if isinstance(value, tuple):
        subject, sequence = _checked(place, tuple[str, u64], list(value))
        return subject, sequence
    return None, _checked(place, u64, value)
