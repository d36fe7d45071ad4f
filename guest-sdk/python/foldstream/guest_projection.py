"""What a projection exports to a host; only `foldstream build` imports it, for the component."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import wit_world
from wit_world.imports import inboxes, state, types

from .guest import Running, find, settle
from .projection import Projection


def export(module: ModuleType, migrates: bool) -> type[Any]:
    """The class that a component exports. Runs when the component is built."""
    projection = find(module, Projection, 'a handler needs kind = "handler" in [tool.foldstream]')
    running = Running(projection, migrates)

    class WitWorld(wit_world.WitWorld):
        def manifest(self) -> types.Manifest:
            return types.Manifest(kind=types.ModuleKind.PROJECTION, **running.manifest())

        def inbox(self) -> inboxes.InboxSettings | None:
            return running.inbox()

        def apply(self, events: list[types.Event]) -> None:
            running.apply(events)

        def query(self, name: str, args: types.Payload) -> types.Payload:
            return running.query(name, args)

        def migrate(self, from_version: int, entries: list[state.Entry]) -> list[state.Entry]:
            return running.migrate(from_version, entries)

    settle()
    return WitWorld
