from datetime import timedelta

from foldstream.testing import Harness, Published, event
from starter import Starter


def test_a_paid_order_is_shipped_once() -> None:
    starter = Harness(Starter)
    starter.given(event("orders.42.placed"), event("orders.42.paid"), event("orders.42.paid"))
    starter.after(timedelta(hours=1))

    assert starter.published() == [Published("tasks.42.ship", "ship", {"order": "42"})]
    starter.assert_same_for_any_batching()


def test_an_order_that_is_not_paid_is_reminded_of() -> None:
    starter = Harness(Starter)
    starter.given(event("orders.42.placed"))
    assert starter.published() == []
    starter.after(timedelta(minutes=30))

    assert starter.published()[0].subject == "tasks.42.remind"
    assert starter.query("order", "42") == {"paid": False, "reminders": 1}
    starter.assert_same_for_any_batching()
