//! The fold of `tests/guests/ledger` in plain Rust, over a map: what a state has to equal.

use std::collections::BTreeMap;

use foldstream::api::Entry;
use serde_json::{Value, json};

/// What the ledger's state is after some events.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    count: u64,
    chain: u64,
    last: u64,
    customers: BTreeMap<String, (u64, i64, u64)>,
}

impl Ledger {
    /// Folds one event: its sequence, its subject and its data as the stream has it.
    pub fn apply(&mut self, sequence: u64, subject: &str, data: &[u8]) {
        assert!(sequence > self.last, "the model is fed in order");
        let order: Value = serde_json::from_slice(data).expect("orders are JSON");
        let amount = order["amount"].as_i64().expect("orders have amounts");
        let customer = subject.split('.').nth(1).expect("orders have customers");
        let number = order["order"].as_str().expect("orders have numbers");
        // In exactly the form in which the guest does it.
        let fact = format!("{:x} {sequence} {subject} {number} {amount}", self.chain);
        self.chain = hash(&fact);
        self.count += 1;
        self.last = sequence;
        let row = self.customers.entry(customer.to_owned()).or_default();
        *row = (row.0 + 1, row.1 + amount, sequence);
    }

    /// Number of events.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The last sequence.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Hash over all events.
    pub fn chain(&self) -> u64 {
        self.chain
    }

    /// Number of a customer's events, their amount, and the last of them.
    pub fn customer(&self, name: &str) -> Option<(u64, i64, u64)> {
        self.customers.get(name).copied()
    }

    /// The `head` entry.
    pub fn head(&self) -> Value {
        json!({ "count": self.count, "chain": format!("{:016x}", self.chain), "last": self.last })
    }

    /// All entries in their order.
    pub fn entries(&self) -> Vec<Entry> {
        let customers = self
            .customers
            .iter()
            .map(|(name, (count, amount, last))| Entry {
                key: format!("customer/{name}"),
                value: json!({ "count": count, "amount": amount, "last": last }),
            });
        let rest = [
            ("head", self.head()),
            ("pair/left", json!(self.last)),
            ("pair/right", json!(self.last)),
        ];
        customers
            .chain(rest.into_iter().map(|(key, value)| Entry {
                key: key.to_owned(),
                value,
            }))
            .collect()
    }
}

impl Ledger {
    /// All entries in their order, as the guest `ledger-next` stores them.
    pub fn next_entries(&self) -> Vec<Entry> {
        let accounts = self
            .customers
            .iter()
            .map(|(name, (count, amount, last))| Entry {
                key: format!("account/{name}"),
                value: json!({ "orders": count, "balance": amount, "last": last }),
            });
        let head = json!({ "events": self.count, "chain": self.chain, "last": self.last });
        let rest = [
            ("head", head),
            ("pair/left", json!(self.last)),
            ("pair/right", json!(self.last)),
        ];
        accounts
            .chain(rest.into_iter().map(|(key, value)| Entry {
                key: key.to_owned(),
                value,
            }))
            .collect()
    }
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
