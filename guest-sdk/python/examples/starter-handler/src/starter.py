"""Has paid orders shipped, and reminds of those that are not paid: a small handler, to begin from."""

from dataclasses import dataclass
from datetime import timedelta

from foldstream import Effects, Event, Fired, Handler, HandlerManifest, KeyRule, NotFound, Table, on, query, u64


@dataclass
class Order:
    """What is kept of an order."""

    paid: bool = False
    reminders: u64 = 0


class Starter(Handler):
    """Has paid orders shipped, and reminds of those that are not paid"""

    manifest = HandlerManifest(
        "starter",
        ["orders.*.*"],
        publishes=["tasks.*.*"],
        timers=True,
        key=KeyRule.subject_token(2),
    )

    # Everything it keeps, in tables. Entries of this one have keys such as `order/42`.
    orders = Table[str, Order]("order")

    @on("placed")
    def placed(self, event: Event, effects: Effects) -> None:
        """Handles an event such as `orders.42.placed`."""
        order = event.token(2)
        self.orders.edit(order)
        effects.set_timer(f"payment/{order}", event.time + timedelta(minutes=30))

    @on("paid")
    def paid(self, event: Event, effects: Effects) -> None:
        id = event.token(2)
        order = self.orders.edit(id)
        if order.paid:
            return
        order.paid = True
        effects.cancel_timer(f"payment/{id}")
        effects.publish(f"tasks.{id}.ship", {"order": id})

    def on_timer(self, timer: Fired, effects: Effects) -> None:
        """Half an hour has passed, and the order is not paid."""
        id = timer.part(2)
        self.orders.edit(id).reminders += 1
        effects.publish(f"tasks.{id}.remind", {"order": id})

    @query
    def order(self, id: str) -> Order:
        """How far an order is, by its name: "42"."""
        order = self.orders.get(id)
        if order is None:
            raise NotFound
        return order
