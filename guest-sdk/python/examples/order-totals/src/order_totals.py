"""What each customer ordered, in all and per day, and who ordered most.

Events come under `orders.<customer>.<type>`. An order is placed with its total; it may be paid and
shipped; it may be cancelled, or returned in part. The same module in Rust is in
`examples/order-totals`; both store the same bytes.
"""

from dataclasses import dataclass
from datetime import date

from foldstream import Event, KeyRule, Manifest, NotFound, Projection, Table, log, on, query, u64


@dataclass
class Placed:
    order: str
    total_cents: u64


@dataclass
class OfOrder:
    """Of most events only the order matters here; what else they carry is ignored."""

    order: str


@dataclass
class Returned:
    order: str
    refund_cents: u64


@dataclass
class Totals:
    """What is kept of a customer, and of each day of a customer."""

    # Orders placed and not cancelled.
    orders: u64 = 0
    # Their worth, less what was returned.
    total_cents: u64 = 0
    # What was paid, whatever came later.
    paid_cents: u64 = 0
    # Orders shipped.
    shipped: u64 = 0


@dataclass(frozen=True)
class Order:
    """What is kept of an order, as later events do not repeat it."""

    day: date
    total_cents: u64


@dataclass
class CustomerArguments:
    customer: str


@dataclass
class DaysArguments:
    customer: str
    # In JSON "from", which is a word of the language.
    from_: date
    to: date


@dataclass
class TopArguments:
    limit: u64 = 10


@dataclass
class Ranked:
    customer: str
    total_cents: u64


class OrderTotals(Projection):
    """What each customer ordered, in all and per day, and who ordered most"""

    manifest = Manifest("order-totals", ["orders.>"], key=KeyRule.subject_token(2))

    # order/<customer>/<order>
    orders = Table[tuple[str, str], Order]("order")
    # customer/<customer>
    customers = Table[str, Totals]("customer")
    # day/<customer>/<day>, by the day on which the order was placed
    days = Table[tuple[str, date], Totals]("day")
    # rank/<total>/<customer>: the keys are the ranking, from the smallest total up
    ranking = Table[tuple[u64, str], None]("rank")

    @on("placed")
    def placed(self, event: Event, placed: Placed) -> None:
        customer = event.token(2)
        order = Order(event.time.date(), placed.total_cents)
        self.orders[customer, placed.order] = order
        self.change(customer, order, orders=1, total_cents=order.total_cents)

    @on("paid")
    def paid(self, event: Event, paid: OfOrder) -> None:
        if order := self.order(event, paid.order):
            self.change(event.token(2), order, paid_cents=order.total_cents)

    @on("shipped")
    def shipped(self, event: Event, shipped: OfOrder) -> None:
        if order := self.order(event, shipped.order):
            self.change(event.token(2), order, shipped=1)

    @on("cancelled")
    def cancelled(self, event: Event, cancelled: OfOrder) -> None:
        if order := self.order(event, cancelled.order):
            customer = event.token(2)
            self.change(customer, order, orders=-1, total_cents=-order.total_cents)
            # Whatever comes later of this order is not counted.
            self.orders.delete((customer, cancelled.order))

    @on("returned")
    def returned(self, event: Event, returned: Returned) -> None:
        if order := self.order(event, returned.order):
            self.change(event.token(2), order, total_cents=-returned.refund_cents)

    def order(self, event: Event, order: str) -> Order | None:
        """An order that was placed before."""
        customer = event.token(2)
        placed = self.orders.get((customer, order))
        if placed is None:
            # Cancelled before, or the stream was cut behind it: there is nothing to count.
            log.warn(f"customer {customer} has no order {order}")
        return placed

    def change(
        self,
        customer: str,
        order: Order,
        *,
        orders: int = 0,
        total_cents: int = 0,
        paid_cents: int = 0,
        shipped: int = 0,
    ) -> None:
        """Changes the totals of a customer and of the order's day, and moves the customer in the
        ranking."""
        totals = self.customers.edit(customer)
        before = totals.total_cents
        for changed in (self.days.edit((customer, order.day)), totals):
            changed.orders = max(changed.orders + orders, 0)
            changed.total_cents = max(changed.total_cents + total_cents, 0)
            changed.paid_cents += paid_cents
            changed.shipped += shipped
        if totals.total_cents != before:
            self.ranking.delete((before, customer))
            self.ranking[totals.total_cents, customer] = None

    @query
    def customer(self, arguments: CustomerArguments) -> Totals:
        """The totals of a customer: {"customer": "ada"}"""
        totals = self.customers.get(arguments.customer)
        if totals is None:
            raise NotFound
        return totals

    @query("days")
    def days_of_customer(self, arguments: DaysArguments) -> list[tuple[date, Totals]]:
        """A customer's totals per day: {"customer": "ada", "from": "2026-10-01",
        "to": "2026-10-30"}"""
        days = self.days.scan(
            under=arguments.customer, start=arguments.from_, through=arguments.to
        )
        return [(day, totals) for (_, day), totals in days]

    @query
    def top_customers(self, arguments: TopArguments) -> list[Ranked]:
        """Who ordered most: {"limit": 3}"""
        last = self.ranking.scan(backwards=True, limit=min(arguments.limit, 100))
        return [Ranked(customer, total_cents) for (total_cents, customer), _ in last]
