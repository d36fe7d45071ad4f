//! What each customer ordered, in all and per day, and who ordered most.
//!
//! Events come under `orders.<customer>.<type>`. An order is placed with its
//! total; it may be paid and shipped; it may be cancelled, or returned in part.

use foldstream_sdk::prelude::*;

#[derive(Deserialize)]
struct Placed {
    order: String,
    total_cents: u64,
}

/// Of most events only the order matters here; what else they carry is ignored.
#[derive(Deserialize)]
struct OfOrder {
    order: String,
}

#[derive(Deserialize)]
struct Returned {
    order: String,
    refund_cents: u64,
}

events! {
    /// What happens to an order.
    enum OrderEvent {
        "placed" => Placed(Placed),
        "paid" => Paid(OfOrder),
        "shipped" => Shipped(OfOrder),
        "cancelled" => Cancelled(OfOrder),
        "returned" => Returned(Returned),
        _ => Other,
    }
}

/// What is kept of a customer, and of each day of a customer.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Totals {
    /// Orders placed and not cancelled.
    orders: u64,
    /// Their worth, less what was returned.
    total_cents: u64,
    /// What was paid, whatever came later.
    paid_cents: u64,
    /// Orders shipped.
    shipped: u64,
}

/// What is kept of an order, as later events do not repeat it.
#[derive(Clone, Serialize, Deserialize)]
struct Order {
    day: Date,
    total_cents: u64,
}

/// One line of the answer to `top-customers`.
#[derive(Serialize)]
struct Ranked {
    customer: String,
    total_cents: u64,
}

struct OrderTotals {
    /// `order/<customer>/<order>`
    orders: Table<(String, String), Order>,
    /// `customer/<customer>`
    customers: Table<String, Totals>,
    /// `day/<customer>/<day>`, by the day on which the order was placed
    days: Table<(String, Date), Totals>,
    /// `rank/<total>/<customer>`: the keys are the ranking, from the smallest total up
    ranking: Table<(u64, String), ()>,
}

impl Projection for OrderTotals {
    fn manifest() -> Manifest<Self> {
        Manifest::new("order-totals")
            .description("What each customer ordered, in all and per day, and who ordered most")
            .subjects(["orders.>"])
            .key(KeyRule::SubjectToken(2))
            .query(
                "customer",
                "The totals of a customer: {\"customer\": \"ada\"}",
                Self::customer,
            )
            .query(
                "days",
                "A customer's totals per day: {\"customer\": \"ada\", \"from\": \"2026-10-01\", \
                 \"to\": \"2026-10-30\"}",
                Self::days,
            )
            .query(
                "top-customers",
                "Who ordered most: {\"limit\": 3}",
                Self::top_customers,
            )
    }

    fn open(state: &State) -> Self {
        Self {
            orders: state.table("order"),
            customers: state.table("customer"),
            days: state.table("day"),
            ranking: state.table("rank"),
        }
    }

    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        let customer = event.token(2)?;
        match event.decode()? {
            OrderEvent::Placed(Placed { order, total_cents }) => {
                let placed = Order {
                    day: event.time().date(),
                    total_cents,
                };
                self.orders.put((customer, &order), placed.clone())?;
                self.change(customer, &placed, |totals| {
                    totals.orders += 1;
                    totals.total_cents += total_cents;
                })
            }
            OrderEvent::Paid(paid) => self.change_of(customer, &paid.order, |totals, order| {
                totals.paid_cents += order.total_cents;
            }),
            OrderEvent::Shipped(shipped) => {
                self.change_of(customer, &shipped.order, |totals, _| totals.shipped += 1)
            }
            OrderEvent::Cancelled(OfOrder { order }) => {
                self.change_of(customer, &order, |totals, order| {
                    totals.orders = totals.orders.saturating_sub(1);
                    totals.total_cents = totals.total_cents.saturating_sub(order.total_cents);
                })?;
                // Whatever comes later of this order is not counted.
                Ok(self.orders.delete((customer, &order))?)
            }
            OrderEvent::Returned(Returned {
                order,
                refund_cents,
            }) => self.change_of(customer, &order, |totals, _| {
                totals.total_cents = totals.total_cents.saturating_sub(refund_cents);
            }),
            OrderEvent::Other => Ok(()),
        }
    }
}

impl OrderTotals {
    /// Changes the totals for an order that was placed before.
    fn change_of(
        &mut self,
        customer: &str,
        order: &str,
        change: impl Fn(&mut Totals, &Order),
    ) -> Result<(), Failure> {
        match self.orders.get((customer, order))? {
            Some(placed) => self.change(customer, &placed, |totals| change(totals, &placed)),
            None => {
                // Cancelled before, or the stream was cut behind it: there is nothing to count.
                warn!("customer {customer} has no order {order}");
                Ok(())
            }
        }
    }

    /// Changes the totals of a customer and of the order's day, and moves the customer in the
    /// ranking.
    fn change(
        &mut self,
        customer: &str,
        order: &Order,
        change: impl Fn(&mut Totals),
    ) -> Result<(), Failure> {
        self.days.update((customer, order.day), &change)?;
        let (before, after) = self.customers.update(customer, |totals| {
            let before = totals.total_cents;
            change(totals);
            (before, totals.total_cents)
        })?;
        if before != after {
            self.ranking.delete((before, customer))?;
            self.ranking.put((after, customer), ())?;
        }
        Ok(())
    }

    fn customer(&self, arguments: CustomerArguments) -> Result<Totals, QueryError> {
        self.customers
            .get(&arguments.customer)?
            .ok_or(QueryError::NotFound)
    }

    fn days(&self, arguments: DaysArguments) -> Result<Vec<(Date, Totals)>, QueryError> {
        let DaysArguments { customer, from, to } = &arguments;
        let days = self
            .days
            .scan()
            .range((customer.as_str(), *from)..=(customer.as_str(), *to))
            .entries()?;
        Ok(days
            .into_iter()
            .map(|((_, day), totals)| (day, totals))
            .collect())
    }

    fn top_customers(&self, arguments: TopArguments) -> Result<Vec<Ranked>, QueryError> {
        let last = self.ranking.last(arguments.limit.min(100))?;
        Ok(last
            .into_iter()
            .map(|((total_cents, customer), ())| Ranked {
                customer,
                total_cents,
            })
            .collect())
    }
}

#[derive(Deserialize)]
struct CustomerArguments {
    customer: String,
}

#[derive(Deserialize)]
struct DaysArguments {
    customer: String,
    from: Date,
    to: Date,
}

#[derive(Deserialize)]
struct TopArguments {
    #[serde(default = "ten")]
    limit: usize,
}

fn ten() -> usize {
    10
}

projection!(OrderTotals);

#[cfg(test)]
mod tests;
