//! Reserves goods for orders that are paid, and releases them if they can't be shipped.

use foldstream_sdk::prelude::*;

#[derive(Clone, Serialize, Deserialize)]
struct Paid {
    item: String,
    address: String,
}

/// What was done for an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Done {
    Reserved,
    OutOfStock,
    Released,
}

/// The handler.
pub struct Stock {
    /// `order/<order>`
    orders: Table<String, Done>,
}

impl Handler for Stock {
    fn manifest() -> Manifest<Self> {
        Manifest::new("saga-stock")
            .description("Reserves goods for orders that are paid")
            .subjects(["orders.*.paid", "shipping.*.refused"])
            .publishes([
                "stock.*.reserved",
                "stock.*.out-of-stock",
                "stock.*.released",
            ])
            .key(KeyRule::SubjectToken(2))
    }

    fn open(state: &State) -> Self {
        Self {
            orders: state.table("order"),
        }
    }

    fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
        let order = event.token(2)?;
        let before = self.orders.get(order)?;
        let done = match (event.token(3)?, before) {
            ("paid", None) => {
                let paid: Paid = event.json()?;
                let is_there = paid.item != "sold-out";
                let answer = if is_there { "reserved" } else { "out-of-stock" };
                let message = Message::to(format!("stock.{order}.{answer}"));
                effects.publish(message.json(&paid)?);
                if is_there {
                    Done::Reserved
                } else {
                    Done::OutOfStock
                }
            }
            ("refused", Some(Done::Reserved)) => {
                effects.publish(Message::to(format!("stock.{order}.released")));
                Done::Released
            }
            // It came before.
            _ => return Ok(()),
        };
        Ok(self.orders.put(order, done)?)
    }
}

handler!(Stock);
