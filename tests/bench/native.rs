//! The fold of `tests/guests/customer-totals` in native Rust, with its own types and its own
//! function: the baseline, with everything else as it is for a module.

use std::collections::HashMap;

use customer_totals::{Aggregate, OrderEvent, fold};
use foldstream::event::{Event, Payload};
use foldstream::module::ApplyError;
use foldstream::pipeline::Fold;
use foldstream::state::{self, Writer};

/// The fold.
#[derive(Default)]
pub struct CustomerTotals;

impl Fold for CustomerTotals {
    fn apply(&mut self, events: &[Event], mut writer: Writer) -> (Writer, Result<(), ApplyError>) {
        let result = apply(events, &mut writer);
        (writer, result)
    }
}

fn apply(events: &[Event], writer: &mut Writer) -> Result<(), ApplyError> {
    let mut customers: HashMap<&str, Aggregate> = HashMap::new();
    for (index, event) in events.iter().enumerate() {
        let order: OrderEvent<'_> =
            serde_json::from_slice(event.data.as_bytes()).map_err(|error| {
                ApplyError::Rejected {
                    index,
                    message: error.to_string(),
                }
            })?;
        let aggregate = match customers.entry(order.customer) {
            std::collections::hash_map::Entry::Occupied(row) => row.into_mut(),
            std::collections::hash_map::Entry::Vacant(row) => {
                row.insert(load(writer, order.customer)?)
            }
        };
        fold(aggregate, &event.kind, event.sequence, &order);
    }
    for (customer, aggregate) in customers {
        let text = serde_json::to_string(&aggregate).expect("our own types are JSON");
        writer
            .put(&key(customer), Some(Payload::from(text)))
            .map_err(refused)?;
    }
    Ok(())
}

fn load(writer: &Writer, customer: &str) -> Result<Aggregate, ApplyError> {
    let value = writer.get(&key(customer)).map_err(refused)?;
    Ok(value
        .and_then(|value| serde_json::from_slice(value.as_bytes()).ok())
        .unwrap_or_default())
}

fn key(customer: &str) -> String {
    format!("customer/{customer}")
}

fn refused(error: state::Error) -> ApplyError {
    ApplyError::State(error)
}
