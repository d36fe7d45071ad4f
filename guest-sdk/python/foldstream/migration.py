"""Migrations: the entries of an older version of a module, and those that take their places."""

from __future__ import annotations

from typing import Any, TypeVar, overload

from .codec import codec, parse
from .errors import Mismatch, Reject
from .keys import key_type
from .tables import Table, Value

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

Stored = tuple[str, str | bytes]
"""An entry as a host stores it: its key and its value."""


class UnknownVersion(Reject):
    """This version of a module does not know the version of the state that it is to migrate."""

    def __init__(self, version: int) -> None:
        super().__init__(f"state version {version} is unknown to this version of the module")


class OldEntry:
    """An entry of an older version."""

    __slots__ = ("key", "value")

    key: str
    """Its whole key, such as `customer/42`."""
    value: str | bytes
    """Its value as stored."""

    def __init__(self, key: str, value: str | bytes) -> None:
        self.key = key
        self.value = value

    def is_in(self, name: str) -> bool:
        """Whether it belongs to a table, or is the single value of that name."""
        return self.key == name or self.key.startswith(f"{name}/")

    @overload
    def json(self) -> Any: ...
    @overload
    def json(self, type: type[T]) -> T: ...
    def json(self, type: Any = Any) -> Any:
        """Its value as JSON, checked against a type."""
        try:
            return codec(type).decode(parse(self.value))
        except Mismatch as error:
            raise Mismatch(f"the value of {self.key} does not match its old type: {error}") from None

    def of_table(self, name: str, key: type[K] | Any, value: type[V] | Any) -> tuple[K, V] | None:
        """Its key and value in the format of a table of that name; none if it belongs to another."""
        if not self.is_in(name):
            return None
        try:
            read = key_type(key).read(self.key[len(name) :])
        except ValueError as error:
            raise Mismatch(f"the key {self.key} does not match its old type: {error}") from None
        return read, self.json(value)

    def of_value(self, name: str, type: type[V] | Any) -> V | None:
        """Its value, if it is the single value of that name."""
        return self.json(type) if self.key == name else None


class NewEntries:
    """The entries to store in place of old ones. If a key is set more than once, the last value wins."""

    def __init__(self) -> None:
        self._stored: list[Stored] = []

    def set(self, table: Table[K, V], key: K, value: V) -> None:
        """Stores an entry as the table would."""
        self._stored.append(table._stored(key, value))

    def set_value(self, value: Value[V], content: V) -> None:
        """Stores a single value."""
        self._stored.append(value._table._stored((), content))

    def keep(self, old: OldEntry) -> None:
        """Stores an old entry unchanged."""
        self._stored.append((old.key, old.value))
