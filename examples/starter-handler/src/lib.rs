//! Has paid orders shipped, and reminds of those that are not paid: a small handler, to begin from.

use std::time::Duration;

use foldstream_sdk::prelude::*;

/// How long an order may wait for its payment before a reminder.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// What is kept of an order. The defaults let a later version read entries that lack its fields.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Order {
    paid: bool,
    reminders: u64,
}

/// The data of what it publishes.
#[derive(Serialize)]
struct Task<'a> {
    order: &'a str,
}

/// Everything it keeps, in tables. Entries of this one have keys such as `order/42`.
struct Starter {
    orders: Table<String, Order>,
}

impl Handler for Starter {
    /// What it is called, what it reads, publishes and answers.
    fn manifest() -> Manifest<Self> {
        Manifest::new("starter-handler")
            .description("Has paid orders shipped, and reminds of those that are not paid")
            .subjects(["orders.*.*"])
            .publishes(["tasks.*.*"])
            .timers()
            .key(KeyRule::SubjectToken(2))
            .query(
                "order",
                "How far an order is, by its name: \"42\"",
                |starter: &Self, order: String| {
                    starter.orders.get(&order)?.ok_or(QueryError::NotFound)
                },
            )
    }

    fn open(state: &State) -> Self {
        Self {
            orders: state.table("order"),
        }
    }

    /// Handles one event, such as `orders.42.paid`.
    fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
        let id = event.token(2)?;
        let mut order = self.orders.get_or_default(id)?;
        let timer = format!("payment/{id}");
        match event.kind() {
            "placed" => effects.set_timer(Timer::after(event, PATIENCE, timer)),
            "paid" if !order.paid => {
                order.paid = true;
                effects.cancel_timer(timer);
                effects.publish(Message::to(format!("tasks.{id}.ship")).json(&Task { order: id })?);
            }
            _ => return Ok(()),
        }
        Ok(self.orders.put(id, order)?)
    }

    /// Half an hour has passed, and the order is not paid.
    fn on_timer(&mut self, timer: &Fired<'_>, effects: &mut Effects) -> Result<(), Failure> {
        let id = timer.part(2);
        self.orders.update(id, |order| order.reminders += 1)?;
        effects.publish(Message::to(format!("tasks.{id}.remind")).json(&Task { order: id })?);
        Ok(())
    }
}

handler!(Starter);

#[cfg(test)]
mod tests {
    use super::*;
    use foldstream_sdk::testing::{HandlerHarness, event, json};

    #[test]
    fn a_paid_order_is_shipped_once() {
        let mut starter = HandlerHarness::<Starter>::new();
        let happened = |what: &str| event(&format!("orders.42.{what}"), json!({}));
        starter.given([happened("placed"), happened("paid"), happened("paid")]);
        starter.after(PATIENCE);

        let [task] = &starter.published()[..] else {
            panic!("one task")
        };
        assert_eq!(
            (task.subject.as_str(), &task.data),
            ("tasks.42.ship", &json!({"order": "42"}))
        );
        starter.assert_same_for_any_batching();
    }

    #[test]
    fn an_order_that_is_not_paid_is_reminded_of() {
        let mut starter = HandlerHarness::<Starter>::new();
        starter.given([event("orders.42.placed", json!({}))]);
        assert_eq!(starter.published(), []);
        starter.after(PATIENCE);

        assert_eq!(starter.published()[0].subject, "tasks.42.remind");
        let wanted = json!({"paid": false, "reminders": 1});
        assert_eq!(starter.query("order", json!("42")), Ok(wanted));
    }
}
