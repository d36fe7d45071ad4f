"""Fulfils orders by orchestration: one saga asks payment, stock and shipping, one after the other, and
undoes what was done if one of them can't do its part. The module `examples/saga-orchestrated` in Python:
it publishes, sets and stores the same.

Its time-outs are short so that a demonstration shows them; real ones are minutes or days.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta

from foldstream import Effects, Event, Fired, Handler, HandlerManifest, KeyRule
from foldstream.saga import Call, Compensation, RetryPolicy, Saga, SagaMessage, Sagas, Step

TIMEOUT = timedelta(seconds=3)
"""How long each attempt waits for its answer."""
TWICE = RetryPolicy(2, timedelta(milliseconds=500), TIMEOUT)
UNDO = RetryPolicy(3, timedelta(milliseconds=200), TIMEOUT)


@dataclass
class Order:
    """An order, and what its saga keeps of it."""

    cents: int
    item: str
    card: str
    address: str
    payment: str | None = None
    """The number of the payment, once there is one."""


@dataclass
class Charged:
    """An answer of payment."""

    payment: str


def command(to: str, what: str) -> Callable[[Call[Order]], SagaMessage]:
    """A command to a participant. Its id is the same for each attempt, and for the command that undoes
    it."""
    return lambda call: SagaMessage(f"{to}.{call.key}.{what}", {"id": call.id, **asdict(call.data)})


def ended(how: str) -> Callable[[Call[Order]], SagaMessage]:
    """The end of an order."""
    return lambda call: SagaMessage(f"orders.{call.key}.{how}", {"reason": call.reason} if call.reason else {})


def charged(order: Order, event: Event) -> None:
    """Keeps the number of the payment."""
    order.payment = event.json(Charged).payment


fulfilment = Saga(
    "order-fulfilment",
    Order,
    starts_on="orders.*.placed",
    steps=[
        Step(
            "payment",
            command("payment", "charge"),
            succeeds_on="payment.*.charged",
            fails_on="payment.*.declined",
            retries_on="payment.*.unavailable",
            on_success=charged,
            timeout=TIMEOUT,
            retry=TWICE,
            compensation=Compensation(
                command("payment", "refund"),
                succeeds_on="payment.*.refunded",
                fails_on="payment.*.refund-failed",
                timeout=TIMEOUT,
                retry=UNDO,
            ),
        ),
        Step(
            "stock",
            command("stock", "reserve"),
            succeeds_on="stock.*.reserved",
            fails_on="stock.*.out-of-stock",
            timeout=TIMEOUT,
            retry=TWICE,
            compensation=Compensation(
                command("stock", "release"), succeeds_on="stock.*.released", timeout=TIMEOUT, retry=UNDO
            ),
        ),
        # Nothing brings goods back. So nobody gives up on an answer, and a customer can't cancel any more.
        Step(
            "shipping",
            command("shipping", "send"),
            pivot=True,
            succeeds_on="shipping.*.sent",
            fails_on="shipping.*.refused",
            timeout=TIMEOUT,
            retry=RetryPolicy.forever(timedelta(milliseconds=500), TIMEOUT),
        ),
    ],
    cancels_on="orders.*.cancelled",
    resumes_on="orders.*.resume",
    skips_on="orders.*.skip",
    on_completed=ended("fulfilled"),
    on_compensated=ended("rejected"),
    on_stuck=ended("stuck"),
)
"""What happens to an order, and what undoes it."""


class Fulfilment(Handler):
    """Asks payment, stock and shipping, and undoes what was done if one can't"""

    manifest = HandlerManifest(
        "order-fulfilment",
        fulfilment.subjects,
        publishes=[
            "payment.*.charge",
            "payment.*.refund",
            "stock.*.reserve",
            "stock.*.release",
            "shipping.*.send",
            "orders.*.fulfilled",
            "orders.*.rejected",
            "orders.*.stuck",
        ],
        timers=True,
        key=KeyRule.subject_token(2),
    )
    sagas = Sagas(fulfilment)

    def handle(self, event: Event, effects: Effects) -> None:
        self.sagas.handle(event, effects)

    def on_timer(self, timer: Fired, effects: Effects) -> None:
        self.sagas.on_timer(timer, effects)
