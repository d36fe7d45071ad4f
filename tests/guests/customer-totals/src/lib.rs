//! The projection of the benchmark: it parses orders of about 200 bytes, of
//! five types, and keeps one aggregate per customer.
//!
//! The native baseline does the same work with the same [`fold`] and the same
//! types, without the sandbox.

use foldstream_sdk::prelude::*;
use serde::{Deserialize, Serialize};

/// What every event about an order carries.
#[derive(Debug, Deserialize)]
pub struct OrderEvent<'a> {
    /// The order.
    pub order: &'a str,
    /// Who ordered.
    pub customer: &'a str,
    /// What it is about, in cents.
    pub cents: u64,
    /// How many items it is about.
    pub items: u32,
    /// Where it was ordered.
    pub channel: &'a str,
}

/// What is kept of a customer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aggregate {
    /// Events of any type.
    pub events: u64,
    /// Orders placed and not cancelled.
    pub orders: u64,
    /// Items ordered and neither cancelled nor returned.
    pub items: u64,
    /// Worth of those items.
    pub total_cents: u64,
    /// What was paid.
    pub paid_cents: u64,
    /// Orders shipped.
    pub shipped: u64,
    /// Orders placed on the web.
    pub web_orders: u64,
    /// Sequence of the last event.
    pub last_sequence: u64,
}

/// Folds one event into the aggregate of its customer.
pub fn fold(aggregate: &mut Aggregate, kind: &str, sequence: u64, event: &OrderEvent<'_>) {
    aggregate.events += 1;
    aggregate.last_sequence = sequence;
    match kind {
        "placed" => {
            aggregate.orders += 1;
            aggregate.items += u64::from(event.items);
            aggregate.total_cents += event.cents;
            aggregate.web_orders += u64::from(event.channel == "web");
        }
        "paid" => aggregate.paid_cents += event.cents,
        "shipped" => aggregate.shipped += 1,
        "cancelled" => {
            aggregate.orders = aggregate.orders.saturating_sub(1);
            take_back(aggregate, event);
        }
        "returned" => take_back(aggregate, event),
        _ => {}
    }
}

fn take_back(aggregate: &mut Aggregate, event: &OrderEvent<'_>) {
    aggregate.items = aggregate.items.saturating_sub(u64::from(event.items));
    aggregate.total_cents = aggregate.total_cents.saturating_sub(event.cents);
}

/// The event types, in the order in which the samples use them.
pub const KINDS: [&str; 5] = ["placed", "paid", "shipped", "cancelled", "returned"];

/// One sample: the subject `orders.<customer>.<type>` and its data, the same for the same number.
///
/// Customers are spread as if by chance, and so are their orders.
pub fn sample(number: u64, customers: u64) -> (String, String) {
    let chance = spread(number);
    let customer = format!("c{:07}", chance % customers);
    // Of ten orders one is cancelled and one returned.
    let kind = KINDS[[0, 1, 2, 0, 1, 2, 0, 1, 3, 4][(spread(chance) % 10) as usize]];
    let (cents, items) = (100 + chance % 90_000, 1 + chance % 7);
    let channel = ["web", "app", "store"][(chance % 3) as usize];
    let data = format!(
        "{{\"order\":\"o-{number:010}\",\"customer\":\"{customer}\",\"cents\":{cents},\"items\":{items},\
         \"channel\":\"{channel}\",\"currency\":\"EUR\",\"warehouse\":\"eu-central-1\",\"priority\":false,\
         \"reference\":\"{chance:016x}\"}}"
    );
    (format!("orders.{customer}.{kind}"), data)
}

/// The finaliser of splitmix64: neighbours become strangers.
fn spread(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The projection.
#[derive(Debug)]
pub struct CustomerTotals {
    customers: Table<String, Aggregate>,
}

impl Projection for CustomerTotals {
    fn manifest() -> Manifest<Self> {
        Manifest::new("customer-totals")
            .description("One aggregate per customer, for the benchmark")
            .subjects(["orders.>"])
            .key(KeyRule::SubjectToken(2))
            .query(
                "customer",
                "The aggregate of one customer, by its name",
                Self::customer,
            )
    }

    fn open(state: &State) -> Self {
        Self {
            customers: state.table("customer"),
        }
    }

    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        let order: OrderEvent<'_> = event.json()?;
        let customer = order.customer;
        self.customers.update(customer, |aggregate| {
            fold(aggregate, event.kind(), event.sequence(), &order);
        })?;
        Ok(())
    }

    fn prefetch(&self, events: &[Event<'_>]) {
        self.customers
            .prefetch(events.iter().filter_map(|event| event.token(2).ok()));
    }
}

impl CustomerTotals {
    fn customer(&self, customer: String) -> Result<Aggregate, QueryError> {
        self.customers.get(&customer)?.ok_or(QueryError::NotFound)
    }
}

projection!(CustomerTotals);

#[cfg(test)]
mod tests {
    use foldstream_sdk::testing::{Harness, event, json};

    use super::*;

    #[test]
    fn the_projection_is_the_fold() {
        let mut totals = Harness::<CustomerTotals>::new();
        let mut expected = std::collections::BTreeMap::<String, Aggregate>::new();
        let samples: Vec<_> = (0..1_000).map(|number| sample(number, 20)).collect();
        totals.given(
            samples
                .iter()
                .map(|(subject, data)| event(subject, json!(data))),
        );

        for (sequence, (subject, data)) in (1..).zip(&samples) {
            assert!((150..250).contains(&data.len()), "{data}");
            let (customer, kind) = subject["orders.".len()..]
                .split_once('.')
                .expect("three tokens");
            let order = foldstream_sdk::Payload::Text(data)
                .json()
                .expect("an order");
            fold(
                expected.entry(customer.to_owned()).or_default(),
                kind,
                sequence,
                &order,
            );
        }
        assert_eq!(totals.entries("").len(), expected.len());
        for (customer, aggregate) in &expected {
            assert_eq!(
                totals.query("customer", json!(customer)),
                Ok(json!(aggregate)),
                "{customer}"
            );
        }
        totals.assert_same_for_any_batching();
    }
}
