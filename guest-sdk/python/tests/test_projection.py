"""What a projection sees, what becomes of its errors, and what tables do over batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import pytest
from foldstream import (
    Event,
    InvalidArguments,
    Manifest,
    NotFound,
    Projection,
    Reject,
    Retry,
    Table,
    Timestamp,
    Value,
    log,
    on,
    query,
    u64,
)
from foldstream.errors import Mismatch, summary
from foldstream.instance import Instance, describe
from foldstream.testing import Harness, Memory, event, events_from_ndjson


@dataclass
class Added:
    amount: int


@dataclass
class Totals:
    count: u64 = 0
    last: list[int] = field(default_factory=list)


class Sums(Projection):
    """Adds amounts."""

    manifest = Manifest("sums", ["sums.>"])
    totals = Table[str, Totals]("total")
    days = Table[tuple[str, date], u64]("day")
    all = Value[int]("all")

    @on("added", "amended")
    def added(self, event: Event, added: Added) -> None:
        if added.amount == 13:
            raise Reject("13 is no amount")
        if added.amount == 14:
            raise Retry("not yet") from OSError("away")
        if added.amount == 15:
            raise KeyError("customer")
        name = event.token(2)
        totals = self.totals.edit(name)
        totals.count += 1
        totals.last.append(added.amount)
        self.days[name, event.time.date()] = totals.count
        self.all.set((self.all.get() or 0) + added.amount)

    @on("removed")
    def removed(self, event: Event) -> None:
        self.totals.delete(event.token(2))

    @query
    def total(self, name: str) -> Totals:
        """The totals of a name."""
        totals = self.totals.get(name)
        if totals is None:
            raise NotFound
        return totals

    @query("of-days")
    def of(self, arguments: dict[str, str]) -> Any:
        return [day for (_, day), _ in self.days.scan(under=arguments["name"])]

    @query
    def careless(self) -> None:
        self.all.set(1)


def added(name: str, amount: Any, **more: Any) -> Any:
    return event(f"sums.{name}.added", {"amount": amount}, **more)


def test_values_are_changed_in_place_and_stored_once() -> None:
    sums = Harness(Sums)
    sums.given(added("a", 1), added("a", 2), added("b", 5), event("sums.b.removed"), event("sums.b.other"))
    assert sums.get("total/a") == {"count": 2, "last": [1, 2]}
    assert sums.entries("total/") == {"total/a": {"count": 2, "last": [1, 2]}}
    assert sums.get("all") == 8
    sums.assert_same_for_any_batching()


def test_events_of_other_subjects_are_not_seen() -> None:
    sums = Harness(Sums).given(event("other.a.added", {"amount": 1}))
    assert sums.entries() == {}


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        (added("a", 13), Reject, "13 is no amount"),
        (added("a", 14), Retry, "not yet: OSError: away"),
        (added("a", "x"), Mismatch, "event 2 (sums.a.added): amount: expected an integer, found a text"),
        (event("sums.a.added", b"\xff"), Mismatch, "event 2 (sums.a.added)"),
    ],
)
def test_what_came_before_a_failing_event_is_kept(bad: Any, kind: type[Exception], message: str) -> None:
    sums = Harness(Sums)
    with pytest.raises(kind) as raised:
        sums.given(added("a", 1), bad, added("a", 3))
    assert message in summary(raised.value)
    assert sums.get("total/a") == {"count": 1, "last": [1]}


def test_an_unexpected_exception_is_told_with_its_line_and_its_traceback(monkeypatch: Any) -> None:
    told: list[str] = []
    monkeypatch.setattr(log, "sink", lambda _, message: told.append(message))
    instance = Instance(Sums, Memory(Sums.manifest))
    bad = Event(1, 0, "sums.a.added", "added", {}, '{"amount":15}')
    failed = instance.apply([bad])
    assert failed is not None and not failed.retry
    assert failed.message.startswith("KeyError: 'customer' (test_projection.py, line ")
    assert failed.message.endswith(", in added)")
    assert told[0].startswith("Traceback") and "raise KeyError" in told[0]


class Mute(Exception):
    def __str__(self) -> str:
        raise KeyError("message")


@pytest.mark.parametrize(
    ("thrown", "told"),
    [
        (Mute(), "Mute: its message cannot be shown (KeyError) (test_projection.py, line "),
        (KeyboardInterrupt(), "KeyboardInterrupt (test_projection.py, line "),
        (GeneratorExit(), "GeneratorExit (test_projection.py, line "),
        (SystemExit(3), "SystemExit: 3 (test_projection.py, line "),
        (ExceptionGroup("many", [ValueError("a"), Reject("b")]), "in apply): ValueError: a; b"),
    ],
)
def test_whatever_is_raised_rejects_its_event(thrown: BaseException, told: str, monkeypatch: Any) -> None:
    class Raising(Projection):
        manifest = Manifest("raising", ["a"])

        def apply(self, event: Event) -> None:
            raise thrown

    monkeypatch.setattr(log, "sink", lambda *_: None)
    failed = Instance(Raising, Memory(Raising.manifest)).apply([Event(1, 0, "a", "a", {}, "")])
    assert failed is not None and not failed.retry
    assert told in failed.message


def test_running_out_of_memory_is_no_fault_of_the_event() -> None:
    class Hungry(Projection):
        manifest = Manifest("hungry", ["a"])

        def apply(self, event: Event) -> None:
            raise MemoryError

    with pytest.raises(MemoryError):
        Instance(Hungry, Memory(Hungry.manifest)).apply([Event(1, 0, "a", "a", {}, "")])


def test_a_value_that_cannot_be_stored_blames_the_event_that_touched_it() -> None:
    class Careless(Projection):
        manifest = Manifest("careless", ["a.*"])
        totals = Table[str, Totals]("total")

        def apply(self, event: Event) -> None:
            self.totals.edit(event.token(2)).count -= event.kind == "bad"

    instance = Instance(Careless, Memory(Careless.manifest))
    events = [Event(n, 0, f"a.{n}", kind, {}, "") for n, kind in enumerate(["good", "bad", "good"])]
    failed = instance.apply(events)
    assert failed is not None and failed.index == 1
    assert "the value of total/1 cannot be stored: count: expected an integer from 0" in failed.message


def test_what_get_returns_is_a_copy() -> None:
    class Copies(Projection):
        manifest = Manifest("copies", ["a"])
        totals = Table[str, Totals]("total")

        def apply(self, event: Event) -> None:
            mine = Totals()
            self.totals["a"] = self.totals["b"] = mine
            mine.count = 9
            self.totals["a"].count = 9
            (self.totals.get("b") or mine).last.append(9)
            assert "a" in self.totals and "c" not in self.totals

    copies = Harness(Copies).given(event("a"))
    assert copies.get("total/a") == copies.get("total/b") == {"count": 0, "last": []}


def test_a_value_held_over_a_scan_is_stored_as_it_is_at_the_end() -> None:
    class Scans(Projection):
        manifest = Manifest("scans", ["a"])
        totals = Table[str, Totals]("total")

        def apply(self, event: Event) -> None:
            mine = self.totals.edit("a")
            mine.count += 1
            assert [totals.count for _, totals in self.totals.scan()] == [mine.count]
            mine.count += 1

    scans = Harness(Scans).given(event("a"), event("a"))
    assert scans.get("total/a") == {"count": 4, "last": []}
    scans.assert_same_for_any_batching()


class Days(Projection):
    manifest = Manifest("days", ["a.*"])
    days = Table[tuple[str, date], u64]("day")
    names = Table[tuple[str, u64], None]("name")

    def apply(self, event: Event) -> None:
        match event.kind:
            case "expire":
                stop = event.time.date() - timedelta(2)
                assert self.days.delete_scan(under=event.token(2), stop=stop) == event.json(int)
            case "name":
                self.names[event.json(str), 1] = None
            case _:
                self.days[event.token(2), event.time.date()] = 1

    @query
    def found(self, how: dict[str, Any]) -> Any:
        for name in ("start", "stop", "through"):
            if name in how:
                how[name] = date.fromisoformat(how[name])
        return [str(day)[-2:] for (_, day), _ in self.days.scan(**how)]

    @query
    def named(self, beginning: str) -> Any:
        return [name for (name, _), _ in self.names.scan(starting_with=beginning)]


def test_scans_cover_what_they_say() -> None:
    days = Harness(Days)
    days.given(*(event(f"a.{who}", time=f"2026-11-0{day}T12:00:00Z") for who in "xyz" for day in range(1, 6)))

    def found(**how: Any) -> Any:
        return days.query("found", {"under": "y"} | how)

    assert found() == ["01", "02", "03", "04", "05"]
    assert found(start="2026-11-02", stop="2026-11-04") == ["02", "03"]
    assert found(start="2026-11-02", through="2026-11-04") == ["02", "03", "04"]
    assert found(backwards=True, limit=2) == ["05", "04"]
    assert found(starting_with="2026-11-03") == ["03"]
    assert found(start="2026-11-04", stop="2026-11-02") == []
    assert len(days.query("found", {})) == 15
    days.given(event("a.y", 2, kind="expire", time="2026-11-05T00:00:00Z"))
    assert found() == ["03", "04", "05"] and len(days.query("found", {})) == 13


def test_texts_are_found_by_how_they_begin() -> None:
    days = Harness(Days)
    names = ["red", "red wagon", "red/blue", "rede\u0301", "reD", "green", "r\U0010ffff"]
    days.given(*(event("a.n", f'"{name}"', kind="name") for name in names))
    assert sorted(days.query("named", "red")) == sorted(["red", "red wagon", "red/blue", "rede\u0301"])
    assert days.query("named", "r\U0010ffff") == ["r\U0010ffff"]
    assert len(days.query("named", "")) == len(names)


def test_tables_that_grow_too_large_are_written_and_start_empty(monkeypatch: Any) -> None:
    monkeypatch.setattr("foldstream.tables.ENTRIES_MAX", 3)
    sums = Harness(Sums)
    sums.given(*(added(name, 1) for name in "abcabcabcd"))
    assert {key: value["count"] for key, value in sums.entries("total/").items()} == {
        "total/a": 3,
        "total/b": 3,
        "total/c": 3,
        "total/d": 1,
    }


def test_keys_that_are_too_long_are_refused() -> None:
    with pytest.raises(Mismatch, match="a key has 1030 bytes; at most 1024 are allowed"):
        Harness(Sums).given(added("ë" * 512, 1))


def test_queries_say_what_is_wrong() -> None:
    sums = Harness(Sums).given(added("a", 1, time="2026-11-23T23:59:59Z"))
    assert sums.query("total", "a") == {"count": 1, "last": [1]}
    assert sums.query("of-days", {"name": "a"}) == ["2026-11-23"]
    for name, arguments, expected in [
        ("total", "nobody", NotFound),
        ("total", 5, InvalidArguments),
        ("total", None, InvalidArguments),
        ("nothing", None, LookupError),
        ("of-days", {}, KeyError),
        ("careless", None, TypeError),
    ]:
        with pytest.raises(expected):
            sums.query(name, arguments)
    assert sums.get("all") == 1


def test_mistakes_in_declarations_are_named() -> None:
    class NoManifest(Projection):
        pass

    class NoEvents(Projection):
        manifest = Manifest("a", ["a"])

    class NoTypes(Projection):
        manifest = Manifest("a", ["a"])
        table: Any = Table("t")

        def apply(self, event: Event) -> None: ...

    class Twice(Projection):
        manifest = Manifest("a", ["a"])
        one = Table[str, int]("t")
        two = Value[int]("t")

        def apply(self, event: Event) -> None: ...

    class Untyped(Projection):
        manifest = Manifest("a", ["a"])

        @on("a")
        def a(self, event: Event, data) -> None: ...  # type: ignore[no-untyped-def]

    for mistaken, message in [
        (NoManifest, "lacks its manifest"),
        (NoEvents, "handles no events"),
        (NoTypes, "lacks its types"),
        (Twice, "two tables are named 't'"),
        (Untyped, "give 'data' a type"),
    ]:
        with pytest.raises(TypeError, match=message):
            describe(mistaken)
    for name in ("", "A", "a/b", "ä", "a" * 65):
        with pytest.raises(ValueError):
            Table[str, int](name)
    with pytest.raises(TypeError):
        Manifest("a", "orders.>")


def test_dependence_on_batches_is_found() -> None:
    class Hidden(Projection):
        manifest = Manifest("hidden", ["a"])
        counts = Table[str, int]("count")
        seen = 0

        def apply(self, event: Event) -> None:
            self.seen += 1
            self.counts["a"] = self.seen

    hidden = Harness(Hidden).given(event("a"), event("a"))
    with pytest.raises(AssertionError, match="the result depends on the batches: count/a is 2 as given, and 1"):
        hidden.assert_same_for_any_batching()


def test_times_are_instants() -> None:
    time = Timestamp.parse("2026-11-23T14:05:06.123456789Z")
    assert str(time + timedelta(days=1)) == "2026-11-24T14:05:06.123456789Z"
    assert time - Timestamp.parse("2026-11-23T14:05:06Z") == timedelta(microseconds=123456)
    assert time.datetime().isoformat() == "2026-11-23T14:05:06.123456+00:00"
    for wrong in ("1969-12-31T23:59:59Z", "2026-11-23T24:00:00Z", "2026-11-23T14:05:60Z", "2600-01-01T00:00:00Z"):
        with pytest.raises(ValueError):
            Timestamp.parse(wrong)


def test_events_are_read_from_lines() -> None:
    events = events_from_ndjson('{"subject":"sums.a.b","type":"added","time":"2026-11-23T00:00:00Z","data":{"amount":2}}\n\n')
    assert Harness(Sums).given(*events).get("day/a/2026-11-23") == 1
    with pytest.raises(ValueError, match="line 2"):
        events_from_ndjson('{"subject":"a"}\n{}')
