"""What Python modules of any kind export to a host; only components import it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from datetime import timedelta
from types import ModuleType
from typing import Any, TypeVar

from componentize_py_types import Err
from wit_world.imports import inboxes, log as host_log, state, types

from . import log
from .effects import Outbox
from .errors import InvalidArguments, NotFound, summary
from .errors import is_deliberate
from .events import Event
from .instance import Failed, Instance
from .manifest import EventId, KeyRule
from .module import Module, describe
from .timers import Fired
from .waiting import watch_coroutines

_LEVELS = {
    "debug": host_log.Level.DEBUG,
    "info": host_log.Level.INFO,
    "warn": host_log.Level.WARN,
    "error": host_log.Level.ERROR,
}


M = TypeVar("M", bound=Module)


def find(module: ModuleType, base: type[M], otherwise: str) -> type[M]:
    """The one class of a Python module that extends another. Raises `TypeError`."""
    found = [
        member
        for member in vars(module).values()
        if isinstance(member, type) and issubclass(member, base) and member.__module__ == module.__name__
    ]
    if len(found) != 1:
        names = ", ".join(sorted(one.__name__ for one in found)) or "none"
        raise TypeError(
            f"{module.__name__} must define one class that extends {base.__name__}; it has {names}; {otherwise}"
        )
    return found[0]


class Running:
    """A module that runs: what components of any kind do with it."""

    def __init__(self, module: type[Module], migrates: bool, outbox: Outbox | None = None) -> None:
        """Runs when the component is built: a mistake in a declaration is found then, and what is
        looked up now is part of the component. `migrates` says whether it exports `migrate`."""
        describe(module)
        if migrates != hasattr(module, "migrate"):
            says, name = "migrates = true in [tool.foldstream]", module.__name__
            raise TypeError(
                f"pyproject.toml says {says}, and {name} has no migrate"
                if migrates
                else f"{name} has migrate, which needs {says}"
            )
        watch_coroutines()
        self.module = module
        self._outbox = outbox
        self._instance: Instance | None = None
        log.sink = lambda level, message: host_log.write(_LEVELS[level], message)

    def apply(self, events: list[types.Event]) -> None:
        """Applies or handles a batch; what it raises is the failure in the terms of the contract."""
        made = [
            Event(e.sequence, e.time_ns, e.subject, e.kind, dict(e.headers), e.data.value) for e in events
        ]
        self._do(lambda instance: instance.apply(made))

    def fire(self, timers: list[Fired]) -> None:
        """Handles timers that fire, in the same way."""
        self._do(lambda instance: instance.fire(timers))

    def query(self, name: str, args: types.Payload) -> types.Payload:
        # A fresh instance: the state of a query is a snapshot of its own.
        return _answer(Instance(self.module, _State()), name, args)

    def migrate(self, from_version: int, entries: list[state.Entry]) -> list[state.Entry]:
        """Converts a page of an older version; what it raises tells people why it can't."""
        page = [(entry.key, entry.value.value) for entry in entries]
        try:
            made = Instance(self.module, _State()).migrate(from_version, page)
        except MemoryError:
            raise
        except Exception as error:
            if not is_deliberate(error):
                log.traceback(error)
            raise Err(summary(error)) from None
        bytes_, text = types.Payload_Bytes, types.Payload_Text
        return [state.Entry(key, bytes_(value) if isinstance(value, bytes) else text(value)) for key, value in made]

    def inbox(self) -> inboxes.InboxSettings | None:
        return _inbox(self.module)

    def manifest(self) -> dict[str, Any]:
        """The fields that the manifests of all kinds have."""
        return _manifest(self.module)

    def _do(self, call: Callable[[Instance], Failed | None]) -> None:
        if self._instance is None:
            self._instance = Instance(self.module, _State(), self._outbox)
        failed = call(self._instance)
        if failed is not None:
            # What the instance holds no longer matches the host's state.
            self._instance = None
            kind = types.FailureKind.RETRY if failed.retry else types.FailureKind.REJECT
            raise Err(types.Failure(failed.index, kind, failed.message))


def settle() -> None:
    """Called last when a component is built: what exists now stays for good, so the collector need
    not look at it again."""
    gc.collect()
    gc.freeze()


class _State:
    """The state of the host."""

    def get(self, key: str) -> str | bytes | None:
        found = state.get(key)
        return None if found is None else found.value

    def put_many(self, entries: list[tuple[str, str | None]]) -> None:
        text = types.Payload_Text
        for start in range(0, len(entries), _PUTS_MAX):
            part = entries[start : start + _PUTS_MAX]
            state.put_many([(key, None if value is None else text(value)) for key, value in part])

    def scan(
        self, start: str, end: str | None, after: str | None, backwards: bool, limit: int
    ) -> tuple[list[tuple[str, str | bytes]], bool]:
        direction = state.Direction.BACKWARDS if backwards else state.Direction.FORWARDS
        selection = state.Selection_Range(state.KeyRange(start, end))
        page = state.scan(selection, after, direction, limit)
        return [(entry.key, entry.value.value) for entry in page.entries], page.more


_PUTS_MAX = 65_536
"""Most entries that a host takes in one call."""


def _answer(instance: Instance, name: str, args: types.Payload) -> types.Payload:
    try:
        answer = instance.query(name, args.value)
    except NotFound:
        raise Err(types.QueryError_NotFound()) from None
    except InvalidArguments as error:
        raise Err(types.QueryError_InvalidArguments(summary(error))) from None
    except MemoryError:
        raise
    except Exception as error:
        if not is_deliberate(error):
            log.traceback(error)
        raise Err(types.QueryError_Failed(summary(error))) from None
    if answer is None:
        raise Err(types.QueryError_UnknownQuery())
    return types.Payload_Text(answer)


def _manifest(module: type[Module]) -> dict[str, Any]:
    asked = module.manifest
    backoff = asked.backoff
    description = asked.description or (module.__doc__ or "").strip().partition("\n\n")[0]
    return dict(
        name=asked.name,
        description=" ".join(description.split()),
        subjects=list(asked.subjects),
        wants_headers=asked._wants_headers(),
        key_rule=_key_rule(asked.key),
        state_version=asked.state_version,
        error_policy=types.ErrorPolicy(
            asked.attempts,
            None if backoff is None else _milliseconds(backoff[0]),
            None if backoff is None else _milliseconds(backoff[1]),
        ),
        limits=types.Limits(
            asked.memory_limit,
            None if asked.deadline is None else _milliseconds(asked.deadline),
            asked.batch_limit,
            asked.state_limit,
        ),
        queries=[
            types.QueryDescription(query.name, query.description)
            for query in describe(module).queries.values()
        ],
    )


def _milliseconds(span: timedelta) -> int:
    return min(span // timedelta(milliseconds=1), 2**32 - 1)


def _key_rule(rule: KeyRule) -> types.KeyRule:
    value: Any = rule.value
    match rule.case:
        case "subject":
            return types.KeyRule_Subject()
        case "subject-token":
            return types.KeyRule_SubjectToken(value)
        case "header":
            return types.KeyRule_Header(value)
        case "data-pointer":
            return types.KeyRule_DataPointer(value)
    return types.KeyRule_None_()


def _inbox(module: type[Module]) -> inboxes.InboxSettings | None:
    asked = module.manifest.inbox
    if asked is None:
        return None
    window = asked.window // timedelta(milliseconds=1)
    return inboxes.InboxSettings(_event_id(asked.id), window, asked.ids_max)


def _event_id(id: EventId) -> inboxes.EventId:
    value: Any = id.value
    match id.case:
        case "header":
            return inboxes.EventId_Header(value)
        case "data-pointer":
            return inboxes.EventId_DataPointer(value)
    return inboxes.EventId_MessageId()
