from datetime import timedelta

from foldstream.testing import GivenEvent, Harness, event
from saga_orchestrated import Fulfilment

PLACED = event("orders.1.placed", {"cents": 4_200, "item": "lamp", "card": "valid", "address": "1 Main Street"})
CHARGED = event("payment.1.charged", {"payment": "p-1"})


def orders(*events: GivenEvent) -> Harness:
    return Harness(Fulfilment).given(*events)


def published(orders: Harness) -> list[str]:
    return [message.subject.replace(".1.", " ") for message in orders.published()]


def test_an_order_is_charged_reserved_and_shipped() -> None:
    fulfilled = orders(PLACED, CHARGED, event("stock.1.reserved"), event("shipping.1.sent"))
    assert published(fulfilled) == ["payment charge", "stock reserve", "shipping send", "orders fulfilled"]
    assert fulfilled.get("saga/order-fulfilment/1")["data"]["payment"] == "p-1"
    fulfilled.assert_same_for_any_batching()


def test_a_payment_that_never_answers_is_tried_again_and_then_refunded_in_case() -> None:
    silent = orders(PLACED).after(timedelta(seconds=8)).given(event("payment.1.refunded"))
    assert published(silent) == ["payment charge", "payment charge", "payment refund", "orders rejected"]
    assert silent.published()[-1].data == {"reason": "payment: no answer within 3s"}
    silent.assert_same_for_any_batching()


def test_goods_that_cannot_be_shipped_are_restocked_and_then_refunded() -> None:
    refused = orders(PLACED, CHARGED, event("stock.1.reserved"), event("shipping.1.refused"))
    refused.given(event("stock.1.released"), event("payment.1.refunded"))
    assert published(refused)[3:] == ["stock release", "payment refund", "orders rejected"]
    refused.assert_same_for_any_batching()
