//! Ships orders whose goods are reserved.

use std::borrow::Cow;

use foldstream_sdk::prelude::*;

#[derive(Deserialize)]
struct Reserved<'a> {
    #[serde(borrow)]
    address: Cow<'a, str>,
}

/// The handler.
pub struct Shipping {
    /// `order/<order>`: whether it was sent.
    orders: Table<String, bool>,
}

impl Handler for Shipping {
    fn manifest() -> Manifest<Self> {
        Manifest::new("saga-shipping")
            .description("Ships orders whose goods are reserved")
            .subjects(["stock.*.reserved"])
            .publishes(["shipping.*.sent", "shipping.*.refused"])
            .key(KeyRule::SubjectToken(2))
    }

    fn open(state: &State) -> Self {
        Self {
            orders: state.table("order"),
        }
    }

    fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
        let order = event.token(2)?;
        if self.orders.contains(order)? {
            return Ok(());
        }
        let can_be_sent = event.json::<Reserved<'_>>()?.address != "nowhere";
        let answer = if can_be_sent { "sent" } else { "refused" };
        effects.publish(Message::to(format!("shipping.{order}.{answer}")));
        Ok(self.orders.put(order, can_be_sent)?)
    }
}

handler!(Shipping);
