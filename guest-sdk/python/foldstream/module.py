"""What projections and handlers share: tables, methods for types of events, and queries."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, overload

from .codec import Codec, codec, parse, to_json
from .errors import InvalidArguments, Mismatch
from .events import Event
from .manifest import Manifest
from .tables import Part
from .versions import Read, old_versions, reading
from .waiting import refuse_unfinished, refuse_waiting

F = TypeVar("F", bound=Callable[..., Any])


class Module:
    """A projection or a handler.

    If it has a method `migrate`, it converts the state of an older version, so that the state need not
    be rebuilt from the beginning of the stream: raise `state_version`, write the method, and add
    `migrates = true` to `[tool.foldstream]`::

        def migrate(self, from_version: int, old: OldEntry, new: NewEntries) -> None:
            if from_version != 1:
                raise UnknownVersion(from_version)
            if found := old.of_table("visits", str, Counter):
                page, counter = found
                new.set(self.pages, page, counter.count)

    The host calls it once for every old entry, in the order of the keys. Only what is put into `new` is
    stored, and the result must equal a fold of the stream with this version. Tables can't be read here,
    and one entry knows nothing of the others. An exception ends the migration, and the old state stays
    unchanged.
    """

    manifest: ClassVar[Manifest]

    __foldstream__: ClassVar[_Description]
    __foldstream_method__: ClassVar[str]
    """The method that takes an event, and calls the method for its type unless it is overridden."""
    __foldstream_default__: ClassVar[Any]
    """That method, if it is not overridden."""
    __foldstream_manifest__: ClassVar[type[Manifest]] = Manifest
    """The class of its manifest."""
    __foldstream_effects__: ClassVar[int]
    """How many parameters methods for events have in addition to event and data."""


@overload
def query(name: F) -> F: ...
@overload
def query(name: str) -> Callable[[F], F]: ...
def query(name: Any) -> Any:
    """Makes a method a query, under its own name with hyphens for underscores, or another::

        @query("top-customers")
        def top(self, arguments: Top) -> list[Ranked]:
            \"\"\"Who ordered most: {"limit": 3}.\"\"\"

    If it has a parameter with a type, the arguments of the query are decoded as that type. Its
    documentation is what people see. Raise `NotFound` if the state has nothing for the arguments.
    """
    if isinstance(name, str):

        def mark(method: F) -> F:
            method.__foldstream_query__ = name  # type: ignore[attr-defined]
            return method

        return mark
    name.__foldstream_query__ = name.__name__.replace("_", "-")
    return name


@dataclass(frozen=True)
class Query:
    """A query, as a host sees it."""

    name: str
    description: str
    answer: Callable[[Any, str | bytes], str]
    """Takes a module and arguments, returns JSON text."""


@dataclass(frozen=True)
class _Description:
    """What a class declares, looked up once."""

    tables: dict[str, tuple[Part, Any]]
    handlers: dict[str, Callable[..., None]]
    queries: dict[str, Query]


def describe(module: type[Module]) -> _Description:
    """What a module declares. Raises `TypeError` with the mistake."""
    known = module.__dict__.get("__foldstream__")
    if known is None:
        known = module.__foldstream__ = _describe(module)
    return known


def _describe(module: type[Module]) -> _Description:
    shown = module.__name__
    wanted = module.__foldstream_manifest__
    if not isinstance(getattr(module, "manifest", None), wanted):
        name = wanted.__name__
        raise TypeError(f'{shown} lacks its manifest: manifest = {name}("name", ["subject.>"])')
    tables: dict[str, Any] = {}
    handlers: dict[str, Callable[..., None]] = {}
    queries: dict[str, Query] = {}
    names: set[str] = set()
    for name in dir(module):
        member = inspect.getattr_static(module, name)
        if isinstance(member, Part):
            for table in member._names:
                if any(_clash(table, other) for other in names):
                    raise TypeError(f"{shown}: two tables are named {table!r}; rename one")
                names.add(table)
            tables[name] = (member, member._declared())
            if member._sets_timers and not module.manifest._sets_timers():
                raise TypeError(f"{shown}: {name} sets timers, which the manifest does not declare; add timers=True")
        if name in _CALLED:
            refuse_waiting(shown, name, member)
        for kind, handle in _handlers(shown, member, module.__foldstream_effects__):
            if kind in handlers:
                raise TypeError(f"{shown}: two methods handle events of type {kind!r}")
            handlers[kind] = handle
        query_name = getattr(member, "__foldstream_query__", None)
        if query_name is not None:
            if query_name in queries:
                raise TypeError(f"{shown}: two queries are named {query_name!r}")
            queries[query_name] = _query(shown, query_name, member)
    method = module.__foldstream_method__
    if not handlers and getattr(module, method) is module.__foldstream_default__:
        raise TypeError(f'{shown} handles no events: mark methods with @on("type"), or override {method}')
    return _Description(tables, handlers, queries)


def _clash(one: str, other: str) -> bool:
    # A part of a table is not in another table.
    return f"{one}/".startswith(f"{other}/") or other.startswith(f"{one}/")


_CALLED = {"apply", "handle", "migrate", "on_timer"}
"""Methods that a host calls by their names."""


def _typed_parameters(shown: str, method: Any, most: int) -> list[Any]:
    """The declared types of a method's parameters after `self`."""
    refuse_waiting(shown, method.__name__, method)
    parameters = list(inspect.signature(method).parameters.values())[1:]
    if len(parameters) > most:
        raise TypeError(f"{shown}.{method.__name__} takes at most {most} parameters after self")
    hints = typing.get_type_hints(method, include_extras=True)
    missing = [parameter.name for parameter in parameters if parameter.name not in hints]
    if missing:
        raise TypeError(f"{shown}.{method.__name__}: give {missing[0]!r} a type")
    return [hints[parameter.name] for parameter in parameters]


def _codec_of(shown: str, method: Any, declared: Any) -> Codec:
    try:
        return codec(declared)
    except TypeError as error:
        raise TypeError(f"{shown}.{method.__name__}: {error}") from None


def _handlers(shown: str, method: Any, effects: int) -> Iterator[tuple[str, Callable[..., None]]]:
    """How a method handles events, by the types of the current version and of old ones."""
    kinds = getattr(method, "__foldstream_on__", ())
    if not kinds:
        return
    upcasts = method.__foldstream_upcasts__
    types = _typed_parameters(shown, method, 2 + effects)
    if len(types) == 1 + effects:
        if upcasts:
            raise TypeError(f"{shown}.{method.__name__} has upcasts, so it takes the data of the event with its type")
        for kind in kinds:
            yield kind, method
        return
    if len(types) != 2 + effects:
        wanted = "(self, event: Event, effects: Effects)" if effects else "(self, event: Event)"
        raise TypeError(f"{shown}.{method.__name__} takes the event: {wanted}")
    read = reading(_codec_of(shown, method, types[1]).decode)
    for kind in kinds:
        yield kind, _reacting(method, read)
    for kind, read in old_versions(f"{shown}.{method.__name__}", types[1], upcasts).items():
        yield kind, _reacting(method, read)


def _reacting(method: Any, read: Read) -> Callable[..., None]:
    def handle(module: Any, event: Event, *effects: Any) -> Any:
        return method(module, event, read(event), *effects)

    return handle


def _query(shown: str, name: str, method: Any) -> Query:
    types = _typed_parameters(shown, method, 1)
    description = " ".join((inspect.getdoc(method) or "").split())
    if not types:
        return Query(name, description, lambda module, _: _answered(name, method(module)))
    decode = _codec_of(shown, method, types[0]).decode

    def answer(module: Any, arguments: str | bytes) -> str:
        try:
            given = _arguments(decode, arguments)
        except Mismatch as error:
            raise InvalidArguments(str(error)) from None
        return _answered(name, method(module, given))

    return Query(name, description, answer)


def _answered(name: str, answer: Any) -> str:
    refuse_unfinished(f"query {name}", answer)
    return to_json(answer)


def _arguments(decode: Callable[[Any], Any], arguments: str | bytes) -> Any:
    if arguments.strip():
        return decode(parse(arguments))
    # None were given: null for what may be absent, an object without fields for other types.
    try:
        return decode(None)
    except Mismatch:
        return decode({})
