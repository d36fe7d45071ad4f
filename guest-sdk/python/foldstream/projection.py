"""The class that a projection extends, and one running instance of it."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, overload

from . import log
from .codec import Codec, codec, parse, to_json
from .errors import InvalidArguments, Mismatch, Retry, is_deliberate, summary
from .events import Event, on
from .manifest import Manifest
from .tables import Backend, State, Table, Unwritable, Value

__all__ = ["Projection", "on", "query"]

F = TypeVar("F", bound=Callable[..., Any])


class Projection:
    """Folds events into a read model::

        class Visits(Projection):
            \"\"\"Counts visits per page.\"\"\"

            manifest = Manifest("visits", ["visits.*"])
            pages = Table[str, int]("page")

            @on("visited")
            def visited(self, event: Event) -> None:
                page = event.token(2)
                self.pages[page] = self.pages.get(page, 0) + 1

            @query
            def visits(self, page: str) -> int:
                \"\"\"How often a page was visited, by its name: "home".\"\"\"
                return self.pages.get(page, 0)

    The result may depend on the events only: not on batch boundaries, restarts, the clock or
    randomness. So keep everything in tables and nothing in other attributes; the host may replace
    an instance between any two batches.

    An exception rejects the event, whatever its class; `Retry` asks the host to try again. What
    the event wrote is dropped; the events before it are kept.
    """

    manifest: ClassVar[Manifest]

    def apply(self, event: Event) -> None:
        """Applies one event. By default it calls the method that handles the event's type, as `on`
        says; override it to handle events in another way."""
        handler = self.__foldstream__.handlers.get(event.kind)
        if handler is not None:
            handler(self, event)

    __foldstream__: ClassVar[_Description]


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
    """Takes a projection and arguments, returns JSON text."""


@dataclass(frozen=True)
class _Description:
    """What a class declares, looked up once."""

    tables: dict[str, tuple[Table[Any, Any] | Value[Any], Any]]
    handlers: dict[str, Callable[[Any, Event], None]]
    queries: dict[str, Query]


@dataclass(frozen=True)
class Failed:
    """Why a batch could not be applied completely."""

    index: int
    retry: bool
    message: str
    error: Exception


class Instance:
    """A projection with its state: answers the calls of the host."""

    def __init__(self, projection: type[Projection], backend: Backend) -> None:
        described = describe(projection)
        self.state = State(backend)
        self.projection = projection()
        for name, (table, types) in described.tables.items():
            # The attribute of the instance takes the place of the class's, which has no state.
            self.projection.__dict__[name] = table._open(self.state, types)

    def apply(self, events: Sequence[Event]) -> Failed | None:
        """Applies a batch. After a failure the instance must not be used again."""
        state, apply, index = self.state, self.projection.apply, 0
        try:
            for index, event in enumerate(events):
                state.event = index
                apply(event)
                state.event = -1
                state.make_room()
            # Once for all events: a value that many of them change is encoded once.
            state.flush()
        except MemoryError:
            # Not the event's fault: it ends the call, and the host says which limit it was.
            raise
        except Unwritable as error:
            return _failed(error.index, error.cause)
        except Exception as error:
            return _failed(index, error)
        return None

    def query(self, name: str, arguments: str | bytes) -> str | None:
        """Answers a query with JSON text; none if there is no such query."""
        found = describe(type(self.projection)).queries.get(name)
        if found is None:
            return None
        self.state.writable = False
        return found.answer(self.projection, arguments)


def _failed(index: int, error: Exception) -> Failed:
    if not is_deliberate(error):
        log.traceback(error)
    return Failed(index, isinstance(error, Retry), summary(error), error)


def describe(projection: type[Projection]) -> _Description:
    """What a projection declares. Raises `TypeError` with the mistake."""
    known = projection.__dict__.get("__foldstream__")
    if known is None:
        known = projection.__foldstream__ = _describe(projection)
    return known


def _describe(projection: type[Projection]) -> _Description:
    shown = projection.__name__
    if not isinstance(getattr(projection, "manifest", None), Manifest):
        raise TypeError(f'{shown} lacks its manifest: manifest = Manifest("name", ["subject.>"])')
    tables: dict[str, Any] = {}
    handlers: dict[str, Callable[[Any, Event], None]] = {}
    queries: dict[str, Query] = {}
    names: set[str] = set()
    for name in dir(projection):
        member = inspect.getattr_static(projection, name)
        if isinstance(member, (Table, Value)):
            if member.name in names:
                raise TypeError(f"{shown}: two tables are named {member.name!r}; rename one")
            names.add(member.name)
            tables[name] = (member, member._declared())
        for kind in getattr(member, "__foldstream_on__", ()):
            if kind in handlers:
                raise TypeError(f"{shown}: two methods handle events of type {kind!r}")
            handlers[kind] = _handler(shown, member)
        query_name = getattr(member, "__foldstream_query__", None)
        if query_name is not None:
            if query_name in queries:
                raise TypeError(f"{shown}: two queries are named {query_name!r}")
            queries[query_name] = _query(shown, query_name, member)
    if not handlers and projection.apply is Projection.apply:
        raise TypeError(f'{shown} handles no events: mark methods with @on("type"), or override apply')
    return _Description(tables, handlers, queries)


def _typed_parameters(shown: str, method: Any, most: int) -> list[Any]:
    """The declared types of a method's parameters after `self`."""
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


def _handler(shown: str, method: Any) -> Callable[[Any, Event], None]:
    types = _typed_parameters(shown, method, 2)
    if len(types) == 1:
        return typing.cast(Callable[[Any, Event], None], method)
    if len(types) != 2:
        raise TypeError(f"{shown}.{method.__name__} takes the event: (self, event: Event)")
    decode = _codec_of(shown, method, types[1]).decode

    def handle(projection: Any, event: Event) -> None:
        try:
            data = decode(parse(event.data))
        except Mismatch as error:
            raise Mismatch(f"event {event.sequence} ({event.subject}): {error}") from None
        method(projection, event, data)

    return handle


def _query(shown: str, name: str, method: Any) -> Query:
    types = _typed_parameters(shown, method, 1)
    description = " ".join((inspect.getdoc(method) or "").split())
    if not types:
        return Query(name, description, lambda projection, _: to_json(method(projection)))
    decode = _codec_of(shown, method, types[0]).decode

    def answer(projection: Any, arguments: str | bytes) -> str:
        try:
            given = _arguments(decode, arguments)
        except Mismatch as error:
            raise InvalidArguments(str(error)) from None
        return to_json(method(projection, given))

    return Query(name, description, answer)


def _arguments(decode: Callable[[Any], Any], arguments: str | bytes) -> Any:
    if arguments.strip():
        return decode(parse(arguments))
    # None were given: null for what may be absent, an object without fields for other types.
    try:
        return decode(None)
    except Mismatch:
        return decode({})
