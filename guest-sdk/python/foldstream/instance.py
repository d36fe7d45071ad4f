"""One running instance of a module: answers the calls of the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import log
from .effects import Effects, Outbox
from .errors import Retry, is_deliberate, summary
from .events import Event
from .handler import Handler
from .migration import NewEntries, OldEntry, Stored
from .module import Module, describe
from .tables import Backend, State, Unwritable
from .timers import Fired
from .waiting import begin_call, refuse_unfinished


@dataclass(frozen=True)
class Failed:
    """Why a batch could not be applied completely."""

    index: int
    retry: bool
    message: str
    error: BaseException


class Instance:
    """A module with its state: answers the calls of the host."""

    def __init__(self, module: type[Module], backend: Backend, outbox: Outbox | None = None) -> None:
        """Only handlers need an outbox."""
        described = describe(module)
        self.state = State(backend)
        self.outbox = outbox
        self.module = module()
        for name, (table, types) in described.tables.items():
            # The attribute of the instance takes the place of the class's, which has no state.
            self.module.__dict__[name] = table._open(self.state, types)

    def apply(self, events: Sequence[Event]) -> Failed | None:
        """Applies or handles a batch. After a failure the instance must not be used again."""
        if isinstance(self.module, Handler):
            return self._each(events, self._acting(self.module.handle))
        return self._each(events, self.module.apply)  # type: ignore[attr-defined]

    def fire(self, timers: Sequence[Fired]) -> Failed | None:
        """Handles timers that fire. After a failure the instance must not be used again."""
        assert isinstance(self.module, Handler)
        return self._each(timers, self._acting(self.module.on_timer))

    def _acting(self, method: Callable[[Any, Effects], None]) -> Callable[[Any], Any]:
        """Passes effects on after success only: a failed event has none."""

        def act(item: Any) -> Any:
            effects = Effects()
            returned: Any = method(item, effects)  # type: ignore[func-returns-value]
            effects._is_closed = True
            if self.outbox is not None:
                # The host finds the cause by its index in the batch.
                effects._pass_on(self.state.event, self.outbox)
            return returned

        return act

    def _each(self, items: Sequence[Any], react: Callable[[Any], Any]) -> Failed | None:
        state, index = self.state, 0
        begin_call()
        try:
            for index, item in enumerate(items):
                state.event = index
                refuse_unfinished("a method for events", react(item))
                state.event = -1
                state.make_room()
            # Once for all events: a value that many of them change is encoded once.
            state.flush()
        except MemoryError:
            # Not the event's fault: it ends the call, and the host says which limit it was.
            raise
        except Unwritable as error:
            return _failed(error.index, error.cause)
        except BaseException as error:
            # Also KeyboardInterrupt and its like: they end a program, and here none ends.
            return _failed(index, error)
        return None

    def migrate(self, from_version: int, page: Sequence[Stored]) -> list[Stored]:
        """Converts a page of entries of an older version. The state is not accessible meanwhile."""
        # One list for the page: the host takes the last of several entries of one key.
        entries = NewEntries()
        migrate: Any = self.module.migrate  # type: ignore[attr-defined]
        begin_call()
        for key, value in page:
            refuse_unfinished("migrate", migrate(from_version, OldEntry(key, value), entries))
        return entries._stored

    def query(self, name: str, arguments: str | bytes) -> str | None:
        """Answers a query with JSON text; none if there is no such query."""
        found = describe(type(self.module)).queries.get(name)
        if found is None:
            return None
        self.state.writable = False
        begin_call()
        return found.answer(self.module, arguments)


def _failed(index: int, error: BaseException) -> Failed:
    if not is_deliberate(error):
        log.traceback(error)
    return Failed(index, isinstance(error, Retry), summary(error), error)
