"""Old versions of events are read as in every SDK: `guest-sdk/conformance/upcasts.json`."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from foldstream import (
    Effects,
    Event,
    Handler,
    HandlerManifest,
    Manifest,
    Projection,
    Reject,
    Retry,
    Table,
    i64,
    on,
    upcast,
)
from foldstream.codec import to_json
from foldstream.errors import Mismatch
from foldstream.testing import GivenEvent, Harness, event

VECTORS = json.loads((Path(__file__).parents[2] / "conformance/upcasts.json").read_text())


@dataclass
class PlacedV1:
    order: str
    total_cents: i64


@dataclass
class PlacedV2:
    order: str
    total_cents: i64
    currency: str


@dataclass
class Total:
    cents: i64
    currency: str


@dataclass
class Placed:
    order: str
    total: Total
    lines: list[str] = field(default_factory=list)


@upcast("placed")
def from_v1(old: PlacedV1) -> PlacedV2:
    if old.total_cents < 0:
        raise Reject("the total is below zero")
    return PlacedV2(old.order, old.total_cents, "EUR")


@upcast("placed.v2")
def from_v2(old: PlacedV2) -> Placed:
    if not old.currency:
        raise Reject("the currency is missing")
    return Placed(old.order, Total(old.total_cents, old.currency))


class Orders(Projection):
    manifest = Manifest("orders", ["orders.>"])
    orders = Table[str, Placed]("order")

    @on("placed.v3", upcasts=[from_v1, from_v2])
    def placed(self, event: Event, placed: Placed) -> None:
        self.orders[event.token(2)] = placed


def of(vector: dict[str, Any]) -> GivenEvent:
    return event(vector["subject"], vector["data"], kind=vector["type"])


def test_all_versions_of_an_event_give_the_entries_of_every_language() -> None:
    harness = Harness(Orders).given(*map(of, VECTORS["events"]))
    # The harness parses what is stored, and this writes it as the tables do.
    assert {key: to_json(value) for key, value in harness.entries().items()} == VECTORS["entries"]
    harness.assert_same_for_any_batching()


@pytest.mark.parametrize("vector", VECTORS["rejected"], ids=lambda vector: vector["event"]["data"])
def test_old_events_are_rejected_as_in_every_language(vector: dict[str, Any]) -> None:
    harness = Harness(Orders)
    with pytest.raises((Reject, Mismatch)) as raised:
        harness.given(of(vector["event"]))
    assert str(raised.value).startswith(vector["message"])
    assert harness.entries() == {}


def test_a_handler_reads_old_versions() -> None:
    class Shipping(Handler):
        manifest = HandlerManifest("shipping", ["orders.>"], publishes=["shipping.>"])

        @on("placed.v3", upcasts=[from_v2, from_v1])
        def placed(self, event: Event, placed: Placed, effects: Effects) -> None:
            effects.publish("shipping.send", {"order": placed.order})

    shipping = Harness(Shipping).given(event("orders.7.placed", {"order": "7", "total_cents": 5}))
    assert [message.data for message in shipping.published()] == [{"order": "7"}]


def test_a_conversion_cannot_ask_for_another_attempt_and_its_mistakes_keep_their_class() -> None:
    @upcast("later")
    def later(old: PlacedV1) -> Placed:
        raise Retry("later")

    @upcast("mistaken")
    def mistaken(old: PlacedV1) -> Placed:
        raise ZeroDivisionError("a mistake")

    class Failing(Projection):
        manifest = Manifest("failing", ["x.*"])

        @on("placed.v3", upcasts=[later, mistaken])
        def placed(self, event: Event, placed: Placed) -> None: ...

    data = {"order": "1", "total_cents": 1}
    with pytest.raises(Reject) as raised:
        Harness(Failing).given(event("x.later", data))
    assert str(raised.value) == "event 1 (x.later) of type later does not become the current version: later"
    with pytest.raises(ZeroDivisionError):
        Harness(Failing).given(event("x.mistaken", data))


@upcast("a")
def circular(old: PlacedV1) -> PlacedV1:
    return old


@upcast("placed")
def same_kind(old: PlacedV2) -> Placed:
    return from_v2(old)


@upcast("placed.v3")
def current_kind(old: PlacedV2) -> Placed:
    return from_v2(old)


@upcast("a")
async def waiting(old: PlacedV1) -> Placed:
    return Placed("", Total(i64(0), ""))


@pytest.mark.parametrize(
    "upcasts, mistake",
    [
        ([from_v1], "from_v1 returns .*PlacedV2.*, which no upcast makes the current version"),
        ([from_v1, from_v2, same_kind], "not clear which upcast is next"),
        ([same_kind, from_v2, same_kind], "two upcasts read events of type 'placed'"),
        ([circular], "not clear which upcast is next"),
        ([current_kind], "two methods handle events of type 'placed.v3'"),
        ([waiting], "waiting"),
        ([str], "str is no upcast"),
    ],
)
def test_mistakes_in_upcasts_are_shown_before_any_event(upcasts: list[Any], mistake: str) -> None:
    class Mistaken(Projection):
        manifest = Manifest("mistaken", ["x"])

        @on("placed.v3", upcasts=upcasts)
        def placed(self, event: Event, placed: Placed) -> None: ...

    with pytest.raises(TypeError, match=mistake):
        Harness(Mistaken)


def test_upcasts_need_the_type_of_the_data() -> None:
    class Untyped(Projection):
        manifest = Manifest("untyped", ["x"])

        @on("placed.v3", upcasts=[from_v1])
        def placed(self, event: Event) -> None: ...

    with pytest.raises(TypeError, match="takes the data of the event with its type"):
        Harness(Untyped)
