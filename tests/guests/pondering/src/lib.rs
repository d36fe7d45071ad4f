//! A projection that computes for some 10 µs about each event: the workload for which lanes are
//! made. It counts events by customer.

use std::hint::black_box;

use foldstream_sdk::prelude::*;

/// Rounds of arithmetic for each event, each of which needs the one before it.
const ROUNDS: u64 = 3_000;

/// The projection.
#[derive(Debug)]
pub struct Pondering {
    customers: Table<String, u64>,
}

impl Projection for Pondering {
    fn manifest() -> Manifest<Self> {
        Manifest::new("pondering")
            .description("Computes about each event, for the benchmark")
            .subjects(["orders.>"])
            .key(KeyRule::SubjectToken(2))
    }

    fn open(state: &State) -> Self {
        Self {
            customers: state.table("customer"),
        }
    }

    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        let mut number = event.sequence();
        for round in 0..ROUNDS {
            number = (number ^ (number >> 30) ^ round).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        }
        black_box(number);
        self.customers
            .update(event.token(2)?, |count| *count += 1)?;
        Ok(())
    }
}

projection!(Pondering);
