"""What a handler exports to a host; only `foldstream build` imports it, for the component."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import wit_world
from wit_world.imports import handling, inboxes, outbox, state, timers, types

from .effects import Cancelled, Message
from .guest import Running, find, settle
from .handler import Handler
from .time import Timestamp
from .timers import Fired, Timer


class _Outbox:
    """The host."""

    def publish(self, cause: int, messages: Sequence[Message]) -> None:
        outbox.publish_with([(_message(cause, message), _delivery(message)) for message in messages])

    def change_timers(self, cause: int, changes: Sequence[Timer | Cancelled]) -> None:
        # In order: a timer may be set again after it was cancelled.
        for change in changes:
            if isinstance(change, Cancelled):
                timers.cancel(cause, [change.name])
            else:
                timers.set(cause, [timers.Timer(change.name, int(change.at), change.key)])


def export(module: ModuleType, migrates: bool) -> type[Any]:
    """The class that a component exports. Runs when the component is built."""
    handler = find(module, Handler, "a projection needs no kind in [tool.foldstream]")
    running = Running(handler, migrates, _Outbox())

    class WitWorld(wit_world.WitWorld):
        def manifest(self) -> handling.HandlerManifest:
            asked = handler.manifest
            return handling.HandlerManifest(
                **running.manifest(), publishes=asked._publishes(), sets_timers=asked._sets_timers()
            )

        def inbox(self) -> inboxes.InboxSettings | None:
            return running.inbox()

        def handle(self, events: list[types.Event]) -> None:
            running.apply(events)

        def on_timer(self, timers: list[timers.Fired]) -> None:
            running.fire(
                [
                    Fired(one.name, Timestamp(one.at_ns), Timestamp(one.fired_ns), one.sequence, one.key)
                    for one in timers
                ]
            )

        def query(self, name: str, args: types.Payload) -> types.Payload:
            return running.query(name, args)

        def migrate(self, from_version: int, entries: list[state.Entry]) -> list[state.Entry]:
            return running.migrate(from_version, entries)

    settle()
    return WitWorld


def _message(cause: int, message: Message) -> outbox.Message:
    data = message.data
    payload = types.Payload_Bytes(data) if isinstance(data, bytes) else types.Payload_Text(data)
    return outbox.Message(cause, message.subject, message.kind, list(message.headers), payload, message.key)


def _delivery(message: Message) -> outbox.Delivery:
    last, at = message.expected_last, message.not_before
    return outbox.Delivery(
        None if at is None else int(at),
        message.time_to_live,
        None if last is None else outbox.ExpectedLast(*last),
    )
