//! Fulfils orders by orchestration: one saga asks payment, stock and shipping, one after the other,
//! and undoes what was done if one of them can't do its part.
//!
//! Its time-outs are short so that a demonstration shows them; real ones are minutes or days.

use std::time::Duration;

use foldstream_sdk::prelude::*;
use foldstream_sdk::saga::{Call, Compensation, RetryPolicy, Saga, Sagas, Step};

/// How long each attempt waits for its answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// An order, and what its saga keeps of it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Order {
    cents: u64,
    item: String,
    card: String,
    address: String,
    /// The number of the payment, once there is one.
    #[serde(default)]
    payment: Option<String>,
}

/// An answer of payment.
#[derive(Deserialize)]
struct Charged {
    payment: String,
}

/// A command to a participant.
#[derive(Serialize)]
struct Command<'a> {
    /// The same for each attempt, and for the command that undoes it.
    id: String,
    #[serde(flatten)]
    order: &'a Order,
}

/// The end of an order.
#[derive(Serialize)]
struct Ended<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
}

fn command(call: &Call<'_, Order>, to: &str, what: &str) -> Result<Message, Failure> {
    let command = Command {
        id: call.id(),
        order: call.data(),
    };
    Message::to(format!("{to}.{}.{what}", call.key())).json(&command)
}

fn ended(call: &Call<'_, Order>, how: &str) -> Result<Message, Failure> {
    let ended = Ended {
        reason: call.reason(),
    };
    Message::to(format!("orders.{}.{how}", call.key())).json(&ended)
}

/// The saga: what happens to an order, and what undoes it.
pub fn saga() -> Saga<Order> {
    let twice = RetryPolicy::attempts(2).backoff(Duration::from_millis(500), TIMEOUT);
    let undo = RetryPolicy::attempts(3).backoff(Duration::from_millis(200), TIMEOUT);
    let payment = Step::new("payment")
        .command(|call| command(call, "payment", "charge"))
        .succeeds_on("payment.*.charged")
        .fails_on("payment.*.declined")
        .retries_on("payment.*.unavailable")
        .on_success(|order: &mut Order, event| {
            order.payment = Some(event.json::<Charged>()?.payment);
            Ok(())
        })
        .timeout(TIMEOUT)
        .retry(twice)
        .compensation(
            Compensation::new(|call| command(call, "payment", "refund"))
                .succeeds_on("payment.*.refunded")
                .fails_on("payment.*.refund-failed")
                .timeout(TIMEOUT)
                .retry(undo),
        );
    let stock = Step::new("stock")
        .command(|call| command(call, "stock", "reserve"))
        .succeeds_on("stock.*.reserved")
        .fails_on("stock.*.out-of-stock")
        .timeout(TIMEOUT)
        .retry(twice)
        .compensation(
            Compensation::new(|call| command(call, "stock", "release"))
                .succeeds_on("stock.*.released")
                .timeout(TIMEOUT)
                .retry(undo),
        );
    // Nothing brings goods back. So nobody gives up on an answer, and a customer can't cancel any more.
    let shipping = Step::new("shipping")
        .pivot()
        .command(|call| command(call, "shipping", "send"))
        .succeeds_on("shipping.*.sent")
        .fails_on("shipping.*.refused")
        .timeout(TIMEOUT)
        .retry(RetryPolicy::forever().backoff(Duration::from_millis(500), TIMEOUT));
    Saga::new("order-fulfilment")
        .starts_on("orders.*.placed", |event| event.json())
        .step(payment)
        .step(stock)
        .step(shipping)
        .cancels_on("orders.*.cancelled")
        .resumes_on("orders.*.resume")
        .skips_on("orders.*.skip")
        .on_completed(|call| ended(call, "fulfilled"))
        .on_compensated(|call| ended(call, "rejected"))
        .on_stuck(|call| ended(call, "stuck"))
}

/// The coordinator.
pub struct Fulfilment {
    sagas: Sagas<Order>,
}

impl Handler for Fulfilment {
    fn manifest() -> Manifest<Self> {
        Manifest::new("order-fulfilment")
            .description("Asks payment, stock and shipping, and undoes what was done if one can't")
            .saga(&saga())
            .publishes([
                "payment.*.charge",
                "payment.*.refund",
                "stock.*.reserve",
                "stock.*.release",
                "shipping.*.send",
                "orders.*.fulfilled",
                "orders.*.rejected",
                "orders.*.stuck",
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

handler!(Fulfilment);
