"""Migrations: what an old entry gives, and what a new one is stored as."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest
from foldstream import Event, Manifest, NewEntries, OldEntry, Projection, Table, UnknownVersion, Value, u32
from foldstream.errors import Mismatch
from foldstream.testing import Harness, event
from foldstream.waiting import watch_coroutines

Added = tuple[str, u32, int]


class First(Projection):
    """Version 1: all in one table, amounts as text."""

    manifest = Manifest("amounts", ["add.*"])
    rows = Table[tuple[str, u32], str]("row")
    total = Value[int]("total")

    def apply(self, event: Event) -> None:
        name, day, amount = event.json(Added)
        self.total.set(self.total.get(0) + amount)
        self.rows[name, day] = str(int(self.rows.get((name, day), "0")) + amount)


class Second(Projection):
    """Version 2: by day and name, amounts as numbers; the total has another name."""

    manifest = Manifest("amounts", ["add.*"], state_version=2)
    days = Table[tuple[u32, str], int]("day")
    sum = Value[int]("sum")

    def apply(self, event: Event) -> None:
        name, day, amount = event.json(Added)
        self.sum.set(self.sum.get(0) + amount)
        self.days[day, name] = self.days.get((day, name), 0) + amount

    def migrate(self, from_version: int, old: OldEntry, new: NewEntries) -> None:
        if from_version != 1:
            raise UnknownVersion(from_version)
        row = old.of_table("row", tuple[str, u32], str)
        if row is not None:
            (name, day), amount = row
            new.set(self.days, (day, name), int(amount))
        total = old.of_value("total", int)
        if total is not None:
            new.set_value(self.sum, total)


def test_migrating_gives_what_folding_gives_and_continues_from_there() -> None:
    # Names that are escaped in keys, and an entry that a later version has in another order.
    events = [event("add.x", [name, 7 - len(name), 5]) for name in ("b", "a/b", "a", "100 %", "b")]
    old, folded = Harness(First).given(*events), Harness(Second).given(*events)
    migrated = Harness.migrated(Second, 1, old.entries())
    assert migrated.entries() == folded.entries()
    assert migrated.get("day/0000000006/b") == 10

    migrated.given(event("add.x", ["b", 6, 1]))
    assert (migrated.get("day/0000000006/b"), migrated.get("sum")) == (11, 26)
    migrated.assert_same_for_any_batching()


@pytest.mark.parametrize(
    ("version", "key", "value", "message"),
    [
        (7, "total", 1, "state version 7 is unknown to this version of the module"),
        (1, "row/a/1", "5", "the key row/a/1 does not match its old type: expected the 10 digits of a u32 in the key"),
        (1, "row/a", "5", "the key row/a does not match its old type: expected 2 parts in the key"),
        (1, "row/a/0000000001", 5, "the value of row/a/0000000001 does not match its old type: expected a text"),
        (1, "total", "x", "the value of total does not match its old type: expected an integer"),
        (1, "row/a/0000000001", "five", "invalid literal for int"),
    ],
)
def test_refusals_say_why(version: int, key: str, value: Any, message: str) -> None:
    with pytest.raises(Exception) as refused:
        Harness.migrated(Second, version, {key: value})
    assert message in str(refused.value)


class Anything(Projection):
    """Does with an entry what its value says."""

    manifest = Manifest("anything", [">"])
    where = Table[str, Any]("where")
    long = Table[str, None]("long")
    same = Value[str]("same")

    def apply(self, event: Event) -> None:
        pass

    def migrate(self, from_version: int, old: OldEntry, new: NewEntries) -> None:
        match old.json(str):
            case "keep":
                new.keep(old)
            case "where":
                new.set(self.where, old.key, [old.is_in(name) for name in ("t", "t-x")])
            case "same":
                new.set_value(self.same, old.key)
            case "long":
                new.set(self.long, "x" * 1_020, None)
            case "unwritable":
                new.set(self.where, "a", {"no": object()})


def test_entries_are_kept_as_they_are_or_left_out() -> None:
    migrated = Harness.migrated(Anything, 1, {"a/1": "keep", "a/2": "drop", "b": "keep"})
    assert migrated.entries() == {"a/1": "keep", "b": "keep"}


def test_a_table_has_what_follows_its_name_and_a_slash() -> None:
    migrated = Harness.migrated(Anything, 1, dict.fromkeys(("t", "t-x/1", "t/1", "tt/1"), "where"))
    assert migrated.entries() == {
        "where/t": [True, False],
        "where/t%2F1": [True, False],
        "where/t-x%2F1": [False, True],
        "where/tt%2F1": [False, False],
    }


def test_later_entries_of_one_key_win_in_the_order_of_the_old_keys() -> None:
    assert Harness.migrated(Anything, 1, {"b": "same", "a": "same"}).entries() == {"same": "b"}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("long", "a key has 1025 bytes; at most 1024 are allowed"),
        ("unwritable", "the value of where/a cannot be stored"),
    ],
)
def test_what_no_table_could_store_is_refused(what: str, message: str) -> None:
    with pytest.raises(Mismatch, match=message):
        Harness.migrated(Anything, 1, {"a": what})


def test_a_migration_that_would_finish_later_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(Anything):
        async def later(self) -> None: ...

        def migrate(self, from_version: int, old: OldEntry, new: NewEntries) -> Any:
            new.keep(old)
            return (_ for _ in ()) if old.json(str) == "generator" else self.later() and None

    monkeypatch.setattr(sys, "unraisablehook", None)
    with warnings.catch_warnings():
        # As a component does.
        watch_coroutines()
        with pytest.raises(TypeError, match="migrate returned a generator, which nothing here runs"):
            Harness.migrated(Later, 1, {"a": "generator"})
        with pytest.raises(TypeError, match="Later.later' was never awaited; nothing here waits for it"):
            Harness.migrated(Later, 1, {"a": "coroutine"})
