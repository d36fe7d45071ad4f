//! Charges orders, and refunds those that can't be delivered.
//!
//! Nobody coordinates it: it knows the events of stock and shipping, and they know its own. What it
//! does for an order is a saga all the same, so that time-outs, refunds and late answers are dealt
//! with, and `foldstream sagas list` shows which orders wait for what.

use std::time::Duration;

use foldstream_sdk::prelude::*;
use foldstream_sdk::saga::{Call, Compensation, RetryPolicy, Saga, Sagas, Step};

/// How long each attempt waits for its answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// What is kept of an order.
#[derive(Clone, Serialize, Deserialize)]
pub struct Order {
    cents: u64,
    item: String,
    card: String,
    address: String,
}

#[derive(Serialize)]
struct Command<'a> {
    id: String,
    #[serde(flatten)]
    order: &'a Order,
}

#[derive(Serialize)]
struct Rejected<'a> {
    reason: &'a str,
}

fn command(call: &Call<'_, Order>, what: &str) -> Result<Message, Failure> {
    let command = Command {
        id: call.id(),
        order: call.data(),
    };
    Message::to(format!("payment.{}.{what}", call.key())).json(&command)
}

/// What happens to an order here.
pub fn saga() -> Saga<Order> {
    let retry = RetryPolicy::attempts(3).backoff(Duration::from_millis(200), TIMEOUT);
    let payment = Step::new("payment")
        .command(|call| command(call, "charge"))
        .succeeds_on("payment.*.charged")
        .fails_on("payment.*.declined")
        .retries_on("payment.*.unavailable")
        .timeout(TIMEOUT)
        .retry(RetryPolicy::attempts(2).backoff(Duration::from_millis(500), TIMEOUT))
        .compensation(
            Compensation::new(|call| command(call, "refund"))
                .succeeds_on("payment.*.refunded")
                .fails_on("payment.*.refund-failed")
                .timeout(TIMEOUT)
                .retry(retry),
        );
    // Others react to this event, not to the answer of payment: an answer that comes after the order
    // was given up must not ship goods.
    let announcement = Step::new("announcement").command(|call: &Call<'_, Order>| {
        Message::to(format!("orders.{}.paid", call.key())).json(call.data())
    });
    let delivery = Step::new("delivery")
        .succeeds_on("shipping.*.sent")
        .fails_on("stock.*.out-of-stock")
        .fails_on("stock.*.released");
    Saga::new("checkout")
        .starts_on("orders.*.placed", |event| event.json())
        .step(payment)
        .step(announcement)
        .step(delivery)
        .resumes_on("orders.*.resume")
        .skips_on("orders.*.skip")
        .on_compensated(|call| {
            let rejected = Rejected {
                reason: call.reason(),
            };
            Message::to(format!("orders.{}.rejected", call.key())).json(&rejected)
        })
}

/// The handler.
pub struct Checkout {
    sagas: Sagas<Order>,
}

impl Handler for Checkout {
    fn manifest() -> Manifest<Self> {
        Manifest::new("saga-checkout")
            .description("Charges orders, and refunds those that can't be delivered")
            .saga(&saga())
            .publishes([
                "payment.*.charge",
                "payment.*.refund",
                "orders.*.paid",
                "orders.*.rejected",
            ])
            .key(KeyRule::SubjectToken(2))
    }

    fn open(state: &State) -> Self {
        Self {
            sagas: Sagas::open(state, saga()),
        }
    }

    fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
        self.sagas.handle(event, effects)?;
        Ok(())
    }

    fn on_timer(&mut self, timer: &Fired<'_>, effects: &mut Effects) -> Result<(), Failure> {
        self.sagas.on_timer(timer, effects)?;
        Ok(())
    }
}

handler!(Checkout);
