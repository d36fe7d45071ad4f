//! What README.md shows: it compiles, it passes, and it is the same text.

use foldstream_sdk::prelude::*;

#[derive(Deserialize)]
struct Placed {
    total_cents: u64,
}

events! {
    enum OrderEvent {
        "placed" => Placed(Placed),
        "cancelled" => Cancelled(Placed),
        _ => Other,
    }
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Totals {
    orders: u64,
    total_cents: u64,
}

/// Everything it keeps, in tables. Entries of this one have keys such as `customer/42`.
struct Orders {
    customers: Table<String, Totals>,
}

impl Projection for Orders {
    fn manifest() -> Manifest<Self> {
        Manifest::new("orders")
            .description("What each customer ordered")
            .subjects(["orders.>"])
            .query(
                "customer",
                "The totals of one customer, by name: \"42\"",
                Self::customer,
            )
    }

    fn open(state: &State) -> Self {
        Self {
            customers: state.table("customer"),
        }
    }

    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        let customer = event.token(2)?; // of the subject `orders.42.placed`
        match event.decode()? {
            OrderEvent::Placed(order) => self.customers.update(customer, |totals| {
                totals.orders += 1;
                totals.total_cents += order.total_cents;
            })?,
            OrderEvent::Cancelled(order) => self.customers.update(customer, |totals| {
                totals.orders -= 1;
                totals.total_cents -= order.total_cents;
            })?,
            OrderEvent::Other => {}
        }
        Ok(())
    }
}

impl Orders {
    fn customer(&self, name: String) -> Result<Totals, QueryError> {
        self.customers.get(&name)?.ok_or(QueryError::NotFound)
    }
}

projection!(Orders);

#[cfg(test)]
mod tests {
    use super::*;
    use foldstream_sdk::testing::{Harness, event, json};

    #[test]
    fn orders_add_up() {
        let mut orders = Harness::<Orders>::new();
        orders.given([
            event("orders.42.placed", json!({"total_cents": 1_000})),
            event("orders.42.placed", json!({"total_cents": 500})),
            event("orders.42.cancelled", json!({"total_cents": 1_000})),
        ]);

        assert_eq!(
            orders.get("customer/42"),
            Some(json!({"orders": 1, "total_cents": 500}))
        );
        assert_eq!(
            orders.query("customer", json!("42")),
            Ok(json!({"orders": 1, "total_cents": 500}))
        );
        orders.assert_same_for_any_batching();
    }
}

/// What version 1 stored under `customer`: it counted in euros.
#[derive(Deserialize)]
struct TotalsInEuros {
    orders: u64,
    total_euros: u64,
}

impl Migrate for Orders {
    fn migrate(
        from_version: u32,
        old: &OldEntry<'_>,
        new: &mut NewEntries,
    ) -> Result<(), MigrateError> {
        if from_version != 1 {
            return Err(MigrateError::unknown_version(from_version));
        }
        if let Some((customer, totals)) = old.of_table::<String, TotalsInEuros>("customer")? {
            let TotalsInEuros {
                orders,
                total_euros,
            } = totals;
            new.put::<String>(
                "customer",
                &customer,
                &Totals {
                    orders,
                    total_cents: total_euros * 100,
                },
            )?;
        }
        Ok(())
    }
}

projection!(Orders, migrate); // instead of `projection!(Orders);`

use foldstream_sdk::testing::{Harness, event, json};

#[test]
fn totals_in_euros_are_migrated() {
    let migrated =
        Harness::<Orders>::migrated(1, [("customer/42", json!({"orders": 1, "total_euros": 5}))]);

    let mut folded = Harness::<Orders>::new();
    folded.given([event("orders.42.placed", json!({"total_cents": 500}))]);
    assert_eq!(
        migrated.expect("version 1 is known").entries(""),
        folded.entries("")
    );
}

struct Shipping;

impl Handler for Shipping {
    fn manifest() -> Manifest<Self> {
        Manifest::new("shipping")
            .subjects(["orders.*.paid"])
            .publishes(["shipping.*.send"])
    }

    fn open(_: &State) -> Self {
        Self
    }

    fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
        let order = event.token(2)?;
        effects.publish(
            Message::to(format!("shipping.{order}.send"))
                .kind("send")
                .json(&order)?,
        );
        Ok(())
    }
}

handler!(Shipping);

#[test]
fn readme_shows_this_file() {
    let blocks = include_str!("../README.md").split("```");
    let shown: Vec<&str> = blocks
        .filter_map(|block| block.strip_prefix("rust"))
        .collect();
    assert_eq!(
        shown.len(),
        5,
        "the projection and its test, its migration and the test of that, and a handler"
    );
    for block in shown {
        let (_, code) = block.split_once('\n').expect("a first line");
        assert!(
            include_str!("readme.rs").contains(code.trim_end()),
            "tests/readme.rs differs from:\n{code}"
        );
    }
}
