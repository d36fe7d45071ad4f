"""Data of events is checked as in every SDK: `guest-sdk/conformance/data.json`."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from foldstream import Event, Manifest, Projection, Reject, Table, Value, i64, on, u64
from foldstream.errors import Mismatch
from foldstream.testing import Harness, event

VECTORS = json.loads((Path(__file__).parents[2] / "conformance/data.json").read_text())


@dataclass
class Person:
    name: str


@dataclass
class Placed:
    order: str
    cents: u64
    delta: i64 = 0
    rate: float = 0.5
    by: Person | None = None


@dataclass
class Mapped:
    counts: dict[str, u64]
    note: Any


class Orders(Projection):
    manifest = Manifest(name="orders", subjects=["orders.>"])
    last_placed = Value[Placed]("placed")
    last_mapped = Value[Mapped]("mapped")

    @on("placed")
    def placed(self, event: Event, data: Placed) -> None:
        self.last_placed.set(data)

    @on("mapped")
    def mapped(self, event: Event, data: Mapped) -> None:
        self.last_mapped.set(data)


CASES = [("placed", VECTORS), ("mapped", VECTORS["maps"])]


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind, all in CASES for case in all["accepted"]])
def test_data_is_taken_as_in_every_language(kind: str, case: Any) -> None:
    orders = Harness(Orders)
    orders.given(event(f"orders.1.{kind}", case["data"]))
    assert orders.get(kind) == case["stored"]


@pytest.mark.parametrize(("kind", "data"), [(kind, data) for kind, all in CASES for data in all["rejected"]])
def test_data_is_rejected_as_in_every_language(kind: str, data: str) -> None:
    orders = Harness(Orders)
    with pytest.raises(Mismatch):
        orders.given(event(f"orders.1.{kind}", data))
    assert orders.entries() == {}


def test_a_member_that_occurs_twice_is_named() -> None:
    def read(data: str, type: Any) -> str:
        with pytest.raises(Reject) as rejected:
            Event(1, 0, "x.a", "a", {}, data).json(type)
        return str(rejected.value)

    twice = "found a member that occurs twice"
    two = read('{"order":"1","cents":1,"cents":1}', Placed)
    assert two.endswith(f"cents: expected an integer from 0 to {2**64 - 1}, {twice}")
    assert read('{"a":[{"b":1,"b":1}]}', Any).endswith(f"a: [0]: b: expected JSON, {twice}")
    assert read('{"a":1,"a":1}', dict).endswith(f"a: expected JSON, {twice}")
    assert read("1" + "0" * 400, float).endswith("expected a finite number, found a number")


def odd_values() -> dict[str, Any]:
    """Values whose JSON is read as something else."""
    return {
        "counter": Counter(a=1),
        "defaults": defaultdict(list, a=[1]),
        "tuple": ([1], {"a": [1]}),
        "person": Person("ada"),
        "dates": {date(2026, 11, 23): date(2026, 11, 23)},
        "numbers": {1: [True]},
    }


class Odd(Projection):
    manifest = Manifest(name="odd", subjects=["odd.>"])
    values = Table[str, Any]("value")
    seen = Table[str, str]("seen")

    @on("set")
    def set(self, event: Event) -> None:
        for name, value in odd_values().items():
            self.values[name] = value

    @on("change")
    def change(self, event: Event) -> None:
        for name in odd_values():
            value = self.values.get(name)
            self.seen[name] = repr(value)
            if isinstance(value, list):
                value.append(1)
                value[0].append(2)
            else:
                value["b"] = 2


def test_a_value_without_a_type_is_the_same_before_and_after_it_was_stored() -> None:
    odd = Harness(Odd)
    odd.given(event("odd.set"), event("odd.change"), event("odd.change"))
    assert odd.get("value/tuple") == [[1], {"a": [1]}]
    assert odd.get("value/counter") == {"a": 1}
    assert odd.get("seen/dates") == "{'2026-11-23': '2026-11-23'}"
    odd.assert_same_for_any_batching()
