"""Scenarios: events in, entries and answers out, without Wasm."""

from pathlib import Path

import pytest
from foldstream.errors import Mismatch
from foldstream.testing import GivenEvent, Harness, event, events_from_ndjson
from order_totals import OrderTotals

SAMPLES = Path(__file__).parents[5] / "examples/order-totals/events.ndjson"


def placed(customer: str, order: str, cents: int, time: str | None = None) -> GivenEvent:
    return event(f"orders.{customer}.placed", {"order": order, "total_cents": cents}, time=time)


def test_orders_add_up_per_customer_and_day() -> None:
    orders = Harness(OrderTotals)
    orders.given(
        placed("ada", "1", 1_000, "2026-10-01T23:59:59Z"),
        placed("ada", "2", 500, "2026-10-02T00:00:00Z"),
        placed("grace", "3", 700),
        event("orders.ada.paid", {"order": "1", "method": "card"}),
        event("orders.ada.shipped", {"order": "1", "carrier": "post"}),
    )

    totals = {"orders": 2, "total_cents": 1_500, "paid_cents": 1_000, "shipped": 1}
    assert orders.query("customer", {"customer": "ada"}) == totals
    days = orders.query("days", {"customer": "ada", "from": "2026-10-02", "to": "2026-10-30"})
    second = {"orders": 1, "total_cents": 500, "paid_cents": 0, "shipped": 0}
    assert days == [["2026-10-02", second]]
    orders.assert_same_for_any_batching()


def test_cancelled_and_returned_orders_count_on_the_day_they_were_placed() -> None:
    orders = Harness(OrderTotals)
    orders.given(
        placed("ada", "1", 1_000, "2026-10-01T10:00:00Z"),
        placed("ada", "2", 500, "2026-10-01T11:00:00Z"),
        event("orders.ada.cancelled", {"order": "1"}, time="2026-10-03T00:00:00Z"),
        event("orders.ada.returned", {"order": "2", "refund_cents": 200}),
    )

    # A second cancellation finds no order.
    orders.given(event("orders.ada.cancelled", {"order": "1"}))
    totals = {"orders": 1, "total_cents": 300, "paid_cents": 0, "shipped": 0}
    assert orders.entries("day/") == {"day/ada/2026-10-01": totals}


def test_ranking_has_each_customer_once_and_the_largest_total_first() -> None:
    orders = Harness(OrderTotals)
    orders.given(placed("ada", "1", 100), placed("grace", "2", 900), placed("ada", "3", 5_000))
    orders.given(event("orders.ada.cancelled", {"order": "3"}))

    grace = {"customer": "grace", "total_cents": 900}
    ada = {"customer": "ada", "total_cents": 100}
    assert orders.query("top-customers", {"limit": 1}) == [grace]
    assert orders.query("top-customers") == [grace, ada]


def test_an_order_that_was_never_placed_changes_nothing() -> None:
    orders = Harness(OrderTotals)
    orders.given(event("orders.ada.paid", {"order": "1"}), event("orders.ada.praised"))
    assert orders.entries() == {}


def test_an_event_without_its_fields_is_rejected() -> None:
    orders = Harness(OrderTotals)
    with pytest.raises(Mismatch, match="event 2 .orders.ada.placed.: missing field `order`"):
        orders.given(placed("ada", "1", 1), event("orders.ada.placed"))
    # What came before it is kept.
    assert orders.query("top-customers") == [{"customer": "ada", "total_cents": 1}]


def test_all_samples_are_applied() -> None:
    orders = Harness(OrderTotals)
    orders.given(*events_from_ndjson(SAMPLES.read_text()))
    assert len(orders.entries("customer/")) == 8
    orders.assert_same_for_any_batching()
