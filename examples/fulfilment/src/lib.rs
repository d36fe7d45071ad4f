//! Asks shipping to send each order, once it is placed and paid: the smallest useful handler.
//!
//! Events come under `orders.<order>.<type>`. When an order is both placed and paid, in whichever
//! order the two events arrive, it publishes one command to `shipping.<order>.send`. A cancelled
//! order is not sent.

use foldstream_sdk::prelude::*;

#[derive(Deserialize)]
struct Placed {
    address: Address,
}

#[derive(Deserialize)]
struct Address {
    street: String,
    city: Option<String>,
}

/// Version 1 of `placed`: the address was one line.
#[derive(Deserialize)]
struct PlacedV1 {
    address: String,
}

/// Old events are read as if they were new ones.
impl From<PlacedV1> for Placed {
    fn from(old: PlacedV1) -> Self {
        Self {
            address: Address {
                street: old.address,
                city: None,
            },
        }
    }
}

/// Shipping still expects one line.
impl From<Address> for String {
    fn from(Address { street, city }: Address) -> Self {
        match city {
            Some(city) => format!("{street}, {city}"),
            None => street,
        }
    }
}

events! {
    /// What happens to an order.
    enum OrderEvent {
        "placed.v2" => Placed(Placed, "placed" => PlacedV1),
        "paid" => Paid,
        "cancelled" => Cancelled,
        _ => Other,
    }
}

/// What is kept of an order. The defaults let a later version read entries that lack its fields.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Order {
    address: Option<String>,
    paid: bool,
    cancelled: bool,
    /// Whether shipping was asked; it is asked once.
    asked: bool,
}

/// The command to shipping.
#[derive(Serialize)]
struct Send<'a> {
    order: &'a str,
    address: &'a str,
}

struct Fulfilment {
    /// `order/<order>`
    orders: Table<String, Order>,
}

impl Handler for Fulfilment {
    fn manifest() -> Manifest<Self> {
        Manifest::new("fulfilment")
            .description("Asks shipping to send each order that is placed and paid")
            .subjects(["orders.*.*"])
            .publishes(["shipping.*.send"])
            .key(KeyRule::SubjectToken(2))
            .query(
                "order",
                "How far an order is: \"1001\"",
                |fulfilment: &Self, order: String| {
                    fulfilment.orders.get(&order)?.ok_or(QueryError::NotFound)
                },
            )
    }

    fn open(state: &State) -> Self {
        Self {
            orders: state.table("order"),
        }
    }

    fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
        let id = event.token(2)?;
        let mut order = self.orders.get_or_default(id)?;
        match event.decode()? {
            OrderEvent::Placed(Placed { address }) => order.address = Some(address.into()),
            OrderEvent::Paid => order.paid = true,
            OrderEvent::Cancelled => order.cancelled = true,
            OrderEvent::Other => return Ok(()),
        }
        let is_due = order.paid && !order.cancelled && !order.asked;
        if let Some(address) = order.address.as_deref().filter(|_| is_due) {
            let command = Send { order: id, address };
            effects.publish(Message::to(format!("shipping.{id}.send")).json(&command)?);
            order.asked = true;
        }
        Ok(self.orders.put(id, order)?)
    }
}

handler!(Fulfilment);

#[cfg(test)]
mod tests {
    use super::*;
    use foldstream_sdk::testing::{HandlerHarness, event, json};

    fn placed(order: &str) -> foldstream_sdk::testing::GivenEvent {
        event(
            &format!("orders.{order}.placed"),
            json!({"address": "1 Main Street"}),
        )
    }

    fn happened(order: &str, what: &str) -> foldstream_sdk::testing::GivenEvent {
        event(&format!("orders.{order}.{what}"), json!({}))
    }

    #[test]
    fn order_is_sent_once_it_is_placed_and_paid() {
        let mut fulfilment = HandlerHarness::<Fulfilment>::new();
        fulfilment.given([placed("1"), happened("2", "paid")]);
        assert_eq!(fulfilment.published(), []);
        fulfilment.given([happened("1", "paid"), placed("2"), happened("1", "paid")]);
        let sent: Vec<_> = fulfilment
            .published()
            .into_iter()
            .map(|message| message.subject)
            .collect();
        assert_eq!(sent, ["shipping.1.send", "shipping.2.send"]);
        assert_eq!(
            fulfilment.published()[0].data,
            json!({"order": "1", "address": "1 Main Street"})
        );
        fulfilment.assert_same_for_any_batching();
    }

    #[test]
    fn cancelled_order_is_not_sent() {
        let mut fulfilment = HandlerHarness::<Fulfilment>::new();
        fulfilment.given([
            placed("1"),
            happened("1", "cancelled"),
            happened("1", "paid"),
        ]);
        assert_eq!(fulfilment.published(), []);
    }
}
