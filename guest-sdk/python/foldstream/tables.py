"""Tables: typed collections over the state, decoded once and written once per batch.

They rely on the contract: between two batches on one instance nobody else changes the state, and
after a failure the instance is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar, cast, get_args, overload

from .codec import Codec, codec, parse
from .errors import Mismatch
from .keys import KEY_BYTES_MAX, KeyType, escape_text, key_type, tuple_type

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

ENTRIES_MAX = 32_768
"""Entries that all tables of an instance together keep decoded."""
TEXT_MAX = 2 << 20
"""Size of these entries as text. Decoded they take about eight times as much."""
PAGE_ENTRIES_MAX = 1_000
"""Most entries of a scan to request at once."""


class Backend(Protocol):
    """The state that tables read and write: a host's, or one in memory for tests."""

    def get(self, key: str) -> str | bytes | None:
        """The value of a key."""

    def put_many(self, entries: list[tuple[str, str | None]]) -> None:
        """Sets many keys; none deletes."""

    def scan(
        self, start: str, end: str | None, after: str | None, backwards: bool, limit: int
    ) -> tuple[list[tuple[str, str | bytes]], bool]:
        """A page of the keys from `start` to before `end`, and whether there is more."""


class _Entry:
    """A decoded entry of a table."""

    __slots__ = ("text", "value", "size", "changed", "held")

    def __init__(self, text: str, value: Any, size: int) -> None:
        # Its key, as in the state.
        self.text = text
        self.value = value
        # Length of its text.
        self.size = size
        # Index in the batch of the event that changed it last; -1 if it is written.
        self.changed = -1
        # Index of the last event that may hold the value, to change it in place.
        self.held = -2


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT: Any = _Absent()


class Unwritable(Exception):
    """A value has no form in JSON. It blames the event that touched it last."""

    def __init__(self, index: int, cause: Mismatch) -> None:
        super().__init__(str(cause))
        self.index = index
        self.cause = cause


class State:
    """The tables of one instance."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.tables: list[Table[Any, Any]] = []
        # Index in its batch of the event that is being applied; -1 between events.
        self.event = -1
        # Queries only read.
        self.writable = True
        self.entries = 0
        self.text = 0

    def flush(self) -> None:
        """Writes what has changed in any table. Raises `Unwritable`."""
        writes: list[tuple[str, str | None]] = []
        for table in self.tables:
            if table._changed:
                table._collect(writes)
        if writes:
            self.backend.put_many(writes)

    def make_room(self) -> None:
        """Between two events: if the tables have grown too large, they start empty."""
        # Never within an event, which may hold a value that it is about to change.
        if self.entries > ENTRIES_MAX or self.text > TEXT_MAX:
            self.flush()
            for table in self.tables:
                table._entries.clear()
                table._by_key.clear()
            self.entries = self.text = 0


class Part:
    """What a module declares in its class, and has over a state in each instance."""

    _sets_timers = False
    """Whether the manifest must declare timers."""

    @property
    def _names(self) -> list[str]:
        """How the keys of its tables begin."""
        raise NotImplementedError

    def _declared(self) -> Any:
        """The types of its tables. Raises `TypeError`."""
        raise NotImplementedError

    def _open(self, state: State, types: Any) -> Part:
        """The same over a state."""
        raise NotImplementedError


class Table(Part, Generic[K, V]):
    """A typed collection: keys of type `K` in order, values of type `V` as JSON.

    Declare it in a projection, with its types and its name::

        class Orders(Projection):
            customers = Table[str, Totals]("customer")
            days = Table[tuple[str, date], Totals]("day")

    The state stores an entry under the name and the key, as `foldstream.keys` describes:
    ``customer/42``, ``day/42/2026-11-23``. A table keeps what it reads or writes decoded, and
    writes changes once at the end of a batch. Names have lower-case letters, digits and hyphens.

    It works like a `dict`: ``customers[name] = Totals()``, ``customers.get(name)``,
    ``name in customers``. To change a value in place, use `edit`: what `get` returns is a copy.
    """

    _state: State
    _key: KeyType
    _codec: Codec

    def __init__(self, name: str, owner: str | None = None) -> None:
        """With an owner it is a part of a table that the SDK keeps for several owners."""
        plain = name.isascii() and name.replace("-", "a").isalnum() and name == name.lower()
        if not plain or len(name) > 64:
            raise ValueError(f"table name {name!r}: use 1 to 64 lower-case letters, digits and hyphens")
        self._named = (name, owner)
        self.name = name if owner is None else f"{name}/{owner}"
        self._entries: dict[str, _Entry] = {}
        # The same entries by the keys of Python, if equal keys have the same text.
        self._by_key: dict[Any, _Entry] = {}
        self._changed: list[_Entry] = []

    @property
    def _names(self) -> list[str]:
        return [self.name]

    def _declared(self) -> tuple[KeyType, Codec]:
        arguments = get_args(getattr(self, "__orig_class__", None))
        if len(arguments) != 2:
            raise TypeError(f'table {self.name} lacks its types: Table[str, int]("{self.name}")')
        try:
            return key_type(arguments[0]), codec(arguments[1])
        except TypeError as error:
            raise TypeError(f"table {self.name}: {error}") from None

    def _open(self, state: State, types: tuple[KeyType, Codec]) -> Table[K, V]:
        """The same table over a state."""
        opened = type(self)(*self._named)
        opened._state = state
        opened._key, opened._codec = types
        state.tables.append(opened)
        return opened

    @overload
    def get(self, key: K) -> V | None: ...
    @overload
    def get(self, key: K, default: D) -> V | D: ...
    def get(self, key: K, default: Any = None) -> Any:
        """The value of a key, or `default`. It is a copy: changing it changes nothing."""
        value = self._entry(key).value
        if value is _ABSENT:
            return default
        copy = self._codec.copy
        return value if copy is None else copy(value)

    def __getitem__(self, key: K) -> V:
        value = self.get(key, _ABSENT)
        if value is _ABSENT:
            raise KeyError(key)
        return cast(V, value)

    def __setitem__(self, key: K, value: V) -> None:
        copy = self._codec.copy
        self._mark(self._entry(key, load=False)).value = value if copy is None else copy(value)

    def __contains__(self, key: K) -> bool:
        return self._entry(key).value is not _ABSENT

    def edit(self, key: K) -> V:
        """The value of a key, to be changed in place until the event ends.

        If there is none, it begins with the type's defaults. Values that cannot change, such as
        numbers and texts, are set instead: ``pages[page] = pages.get(page, 0) + 1``.
        """
        entry = self._mark(self._entry(key))
        if entry.value is _ABSENT:
            new = self._codec.new
            if new is None:
                raise TypeError(
                    f"table {self.name} has no value to begin with; give each field a default, "
                    "or set values that cannot be changed in place"
                )
            entry.value = new()
        elif self._codec.copy is None:
            raise TypeError(f"values of table {self.name} cannot be changed in place; set them")
        entry.held = self._state.event
        return cast(V, entry.value)

    def delete(self, key: K) -> None:
        """Removes the entry of a key; does nothing if it does not exist."""
        self._mark(self._entry(key, load=False)).value = _ABSENT

    def scan(
        self,
        *,
        under: Any = None,
        starting_with: str | None = None,
        start: Any = None,
        stop: Any = None,
        through: Any = None,
        after: K | None = None,
        backwards: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[K, V]]:
        """Entries in the order of their keys, read page by page.

        `under`: only keys whose first part is this one; a tuple gives several leading parts.
        `starting_with`: only keys whose next part begins with this text.
        `start`, `stop`: only keys from the first and before the second; `through` is a last key
        that belongs to it. With `under` they are what follows the leading parts.
        `after`: continue behind this key, in the direction of the scan.
        `backwards`: from the largest key down. `limit`: at most this many.

        The last seven days of a customer up to a day::

            days.scan(under="42", through=day, backwards=True, limit=7)
        """
        span = self._span(under, starting_with, start, stop, through)
        behind = None if after is None else self._text(after)
        return self._read(span, behind, backwards, limit)

    def delete_scan(self, **narrow: Any) -> int:
        """Removes all entries that a scan with the same arguments covers, and says how many.

        Nothing is decoded, so this also removes values that no longer fit their type. Keep
        ninety days of a customer: ``days.delete_scan(under="42", stop=day - timedelta(90))``.
        """
        span = self._span(*(narrow.pop(name, None) for name in _SPAN))
        after, backwards, limit = (narrow.pop(name, None) for name in ("after", "backwards", "limit"))
        if narrow:
            raise TypeError(f"delete_scan() has no argument {next(iter(narrow))!r}")
        behind = None if after is None else self._text(after)
        count = 0
        for page in self._pages(span, behind, bool(backwards), limit):
            for text, _ in page:
                entry = self._entries.get(text) or self._add(text, _ABSENT, 0)
                self._mark(entry).value = _ABSENT
            count += len(page)
        return count

    def _read(
        self, span: tuple[str, str], after: str | None, backwards: bool, limit: int | None
    ) -> Iterator[tuple[K, V]]:
        length = len(self.name)
        for page in self._pages(span, after, backwards, limit):
            for text, value in page:
                try:
                    key = self._key.read(text[length:])
                except ValueError as error:
                    raise Mismatch(f"key {text}: {error}") from None
                yield cast(K, key), self._decode(text, value)

    def _pages(
        self, span: tuple[str, str], after: str | None, backwards: bool, limit: int | None
    ) -> Iterator[list[tuple[str, str | bytes]]]:
        start, end = span
        more = start < end
        while more and limit != 0:
            # The host scans what it has, so the writes of this batch have to be there first.
            self._state.flush()
            wanted = PAGE_ENTRIES_MAX if limit is None else min(limit, PAGE_ENTRIES_MAX)
            page, more = self._state.backend.scan(start, end, after, backwards, wanted)
            if not page:
                return
            after = page[-1][0]
            if limit is not None:
                limit -= len(page)
            yield page

    def _span(
        self, under: Any, starting_with: str | None, start: Any, stop: Any, through: Any
    ) -> tuple[str, str]:
        """The keys of a scan, as texts: from the first to before the second."""
        stem, rest = self.name, self._key
        if under is not None:
            leading = under if type(under) is tuple else (under,)
            if len(leading) >= len(rest.parts):
                raise TypeError(f"table {self.name}: `under` takes fewer parts than a key has")
            stem += "".join(part.write(value) for part, value in zip(rest.parts, leading))
            rest = tuple_type(rest.parts[len(leading) :])
        low = f"{stem}/"
        # Zero follows the slash.
        high = f"{stem}0"
        if starting_with is not None:
            low += escape_text(starting_with)
            if starting_with:
                high = _behind_all(low)
        if start is not None:
            low = max(low, stem + rest.write(start))
        # The text after a key is the key with the lowest character appended.
        if stop is not None:
            high = min(high, stem + rest.write(stop))
        if through is not None:
            high = min(high, stem + rest.write(through) + "\0")
        return low, high

    def _text(self, key: K) -> str:
        text = self.name + self._key.write(key)
        # Refused here with a message that names the limit; the host would end the call.
        if len(text) > KEY_BYTES_MAX or (not text.isascii() and len(text.encode()) > KEY_BYTES_MAX):
            length = len(text.encode())
            raise Mismatch(f"a key has {length} bytes; at most {KEY_BYTES_MAX} are allowed")
        return text

    def _entry(self, key: K, load: bool = True) -> _Entry:
        # What is set or removed need not be read first.
        exact = self._key.exact
        if exact:
            entry = self._by_key.get(key)
            if entry is not None:
                return entry
        text = self._text(key)
        entry = self._entries.get(text)
        if entry is None:
            entry = self._load(text) if load else self._add(text, _ABSENT, 0)
        if exact:
            self._by_key[key] = entry
        return entry

    def _mark(self, entry: _Entry) -> _Entry:
        state = self._state
        if entry.changed < 0:
            if not state.writable:
                raise TypeError(f"a query cannot change table {self.name}")
            self._changed.append(entry)
        # The event that changed it last is blamed if the value cannot be encoded.
        entry.changed = state.event
        return entry

    def _load(self, text: str) -> _Entry:
        stored = self._state.backend.get(text)
        if stored is None:
            return self._add(text, _ABSENT, 0)
        return self._add(text, self._decode(text, stored), len(stored))

    def _add(self, text: str, value: Any, size: int) -> _Entry:
        entry = self._entries[text] = _Entry(text, value, size)
        self._state.entries += 1
        self._state.text += size + len(text)
        return entry

    def _decode(self, text: str, stored: str | bytes) -> V:
        try:
            return cast(V, self._codec.decode(parse(stored)))
        except Mismatch as error:
            raise Mismatch(
                f"the value of {text} does not match its type: {error}; raise the state version if "
                "values change their format"
            ) from None

    def _stored(self, key: K, value: V) -> tuple[str, str]:
        """Key and value of an entry, as they are stored."""
        text = self._text(key)
        try:
            return text, self._codec.encode(value)
        except Mismatch as error:
            raise Mismatch(f"the value of {text} cannot be stored: {error}") from None

    def _collect(self, writes: list[tuple[str, str | None]]) -> None:
        now, kept = self._state.event, []
        encode: Callable[[Any], str] = self._codec.encode
        for entry in self._changed:
            text = entry.text
            if entry.value is _ABSENT:
                writes.append((text, None))
                size = 0
            else:
                try:
                    value = encode(entry.value)
                except Mismatch as error:
                    shown = Mismatch(f"the value of {text} cannot be stored: {error}")
                    raise Unwritable(entry.changed, shown) from None
                writes.append((text, value))
                size = len(value)
            self._state.text += size - entry.size
            entry.size = size
            # The event that is being applied may hold the value, and change it again.
            if entry.held == now:
                kept.append(entry)
            else:
                entry.changed = -1
        self._changed = kept

    def __repr__(self) -> str:
        return f"Table({self.name!r})"


SINGLE = KeyType(lambda _: "", lambda _: (), (), True)
"""The key of a single value has no parts: it is its name alone."""


class Value(Part, Generic[V]):
    """A single value under a name of its own: ``total = Value[int]("total")``."""

    _table: Table[Any, V]

    def __init__(self, name: str) -> None:
        self.name = name
        self._spec: Table[Any, V] = Table(name)

    @property
    def _names(self) -> list[str]:
        return [self.name]

    def _declared(self) -> tuple[KeyType, Codec]:
        arguments = get_args(getattr(self, "__orig_class__", None))
        if len(arguments) != 1:
            raise TypeError(f'value {self.name} lacks its type: Value[int]("{self.name}")')
        return SINGLE, codec(arguments[0])

    def _open(self, state: State, types: tuple[KeyType, Codec]) -> Value[V]:
        opened = type(self)(self.name)
        opened._table = self._spec._open(state, types)
        return opened

    @overload
    def get(self) -> V | None: ...
    @overload
    def get(self, default: D) -> V | D: ...
    def get(self, default: Any = None) -> Any:
        """The value, or `default`. It is a copy: changing it changes nothing."""
        return self._table.get((), default)

    def set(self, value: V) -> None:
        """Sets the value."""
        self._table[()] = value

    def edit(self) -> V:
        """The value, to be changed in place until the event ends. See `Table.edit`."""
        return self._table.edit(())

    def delete(self) -> None:
        """Removes the value."""
        self._table.delete(())

    def __repr__(self) -> str:
        return f"Value({self.name!r})"


_SPAN = ("under", "starting_with", "start", "stop", "through")


def _behind_all(prefix: str) -> str:
    """The lowest text after all texts with this prefix. It never ends with the last character."""
    for place in range(len(prefix) - 1, -1, -1):
        number = ord(prefix[place]) + 1
        if number < 0x110000:
            # Surrogates are no characters.
            return prefix[:place] + chr(0xE000 if number == 0xD800 else number)
    raise AssertionError("a prefix begins with the name of its table")
