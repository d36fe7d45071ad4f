//! What every answer has to be: the fold of the stream at each of its positions, kept by the test
//! itself.

use std::collections::BTreeMap;
use std::sync::Mutex;

use foldstream::api::Entry;
use foldstream_tests::model::Ledger;
use serde_json::{Value, json};
use tokio::sync::watch;

/// The fold at every position.
#[derive(Debug)]
pub struct Oracle {
    history: Mutex<History>,
    /// Up to here all events are known.
    through: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct History {
    model: Ledger,
    heads: Vec<Head>,
    customers: BTreeMap<String, Vec<Row>>,
}

/// What is true of all events up to one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head {
    /// The last event that was folded.
    pub sequence: u64,
    count: u64,
    chain: u64,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    sequence: u64,
    count: u64,
    amount: i64,
}

/// The form in which a state has the fold: each version of the guest has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// That of the guest `ledger`.
    First,
    /// That of the guest `ledger-next`.
    Next,
}

impl Shape {
    /// The form of a state that has such a `head`.
    pub fn of(head: &Value) -> Self {
        if head.get("events").is_some() {
            Self::Next
        } else {
            Self::First
        }
    }

    /// What the keys of customers begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::First => "customer/",
            Self::Next => "account/",
        }
    }

    fn head(self, head: Head) -> Value {
        match self {
            Self::First => {
                json!({ "count": head.count, "chain": format!("{:016x}", head.chain), "last": head.sequence })
            }
            Self::Next => {
                json!({ "events": head.count, "chain": head.chain, "last": head.sequence })
            }
        }
    }

    fn row(self, row: Row) -> Value {
        match self {
            Self::First => {
                json!({ "count": row.count, "amount": row.amount, "last": row.sequence })
            }
            Self::Next => {
                json!({ "orders": row.count, "balance": row.amount, "last": row.sequence })
            }
        }
    }
}

/// The last element that lies at a position or before it.
fn at<T: Copy>(elements: &[T], position: u64, sequence: impl Fn(&T) -> u64) -> Option<T> {
    elements
        .partition_point(|element| sequence(element) <= position)
        .checked_sub(1)
        .map(|index| elements[index])
}

impl History {
    fn head(&self, position: u64) -> Option<Head> {
        at(&self.heads, position, |head| head.sequence)
    }

    fn row(&self, name: &str, position: u64) -> Option<Row> {
        at(self.customers.get(name)?, position, |row| row.sequence)
    }
}

impl Oracle {
    /// Of an empty stream.
    pub fn new() -> Self {
        Self {
            history: Mutex::default(),
            through: watch::Sender::new(0),
        }
    }

    /// Takes the next event of the stream. One that the guests reject is left out, as it has to be
    /// skipped.
    pub fn take(&self, sequence: u64, subject: &str, data: &[u8]) {
        let mut history = self.history.lock().expect("no holder panics");
        if is_order(subject, data) {
            let history = &mut *history;
            history.model.apply(sequence, subject, data);
            history.heads.push(Head {
                sequence,
                count: history.model.count(),
                chain: history.model.chain(),
            });
            let name = subject.split('.').nth(1).expect("an order has a customer");
            let (count, amount, _) = history.model.customer(name).expect("it was folded above");
            history
                .customers
                .entry(name.to_owned())
                .or_default()
                .push(Row {
                    sequence,
                    count,
                    amount,
                });
        }
        drop(history);
        self.through.send_replace(sequence);
    }

    /// The last sequence that it knows.
    pub fn through(&self) -> u64 {
        *self.through.borrow()
    }

    /// Waits until all events up to a position are known.
    pub async fn knows(&self, position: u64) {
        let mut through = self.through.subscribe();
        let known = through.wait_for(|through| *through >= position);
        let known = tokio::time::timeout(foldstream_tests::wait::DEADLINE, known).await;
        let known =
            known.unwrap_or_else(|_| panic!("a position {position} that the stream does not have"));
        known.expect("the sender lives as long as we do");
    }

    /// The `head` entry at a position; none before the first event.
    pub fn head(&self, position: u64, shape: Shape) -> Option<Value> {
        self.history
            .lock()
            .expect("no holder panics")
            .head(position)
            .map(|head| shape.head(head))
    }

    /// The last event that was folded at a position.
    pub fn last(&self, position: u64) -> u64 {
        self.history
            .lock()
            .expect("no holder panics")
            .head(position)
            .map_or(0, |head| head.sequence)
    }

    /// The number of events that were folded at a position.
    pub fn count(&self, position: u64) -> u64 {
        self.history
            .lock()
            .expect("no holder panics")
            .head(position)
            .map_or(0, |head| head.count)
    }

    /// The number of a customer's events at a position.
    pub fn count_of(&self, customer: &str, position: u64) -> u64 {
        self.history
            .lock()
            .expect("no holder panics")
            .row(customer, position)
            .map_or(0, |row| row.count)
    }

    /// The value of any key at a position; none if there is none.
    pub fn value(&self, key: &str, position: u64, shape: Shape) -> Option<Value> {
        let history = self.history.lock().expect("no holder panics");
        match key {
            "head" => history.head(position).map(|head| shape.head(head)),
            "pair/left" | "pair/right" => history.head(position).map(|head| json!(head.sequence)),
            _ => history
                .row(key.strip_prefix(shape.prefix())?, position)
                .map(|row| shape.row(row)),
        }
    }

    /// All entries at a position, in their order.
    pub fn entries(&self, position: u64, shape: Shape) -> Vec<Entry> {
        let history = self.history.lock().expect("no holder panics");
        let mut entries: Vec<Entry> = history
            .customers
            .keys()
            .filter_map(|name| {
                let row = history.row(name, position)?;
                Some(Entry {
                    key: format!("{}{name}", shape.prefix()),
                    value: shape.row(row),
                })
            })
            .collect();
        if let Some(head) = history.head(position) {
            entries.push(Entry {
                key: "head".to_owned(),
                value: shape.head(head),
            });
            for key in ["pair/left", "pair/right"] {
                entries.push(Entry {
                    key: key.to_owned(),
                    value: json!(head.sequence),
                });
            }
        }
        entries
    }
}

/// Whether the guests can fold it.
fn is_order(subject: &str, data: &[u8]) -> bool {
    let Ok(order) = serde_json::from_slice::<Value>(data) else {
        return false;
    };
    subject.starts_with("orders.") && order["amount"].is_i64() && order["order"].is_string()
}

/// The first difference between two rows of entries.
pub fn difference(wanted: &[Entry], found: &[Entry]) -> Option<String> {
    let wanted_at: BTreeMap<&str, &Value> = wanted
        .iter()
        .map(|entry| (entry.key.as_str(), &entry.value))
        .collect();
    let found_at: BTreeMap<&str, &Value> = found
        .iter()
        .map(|entry| (entry.key.as_str(), &entry.value))
        .collect();
    let keys: std::collections::BTreeSet<&str> =
        wanted_at.keys().chain(found_at.keys()).copied().collect();
    let differs = keys
        .into_iter()
        .find(|key| wanted_at.get(key) != found_at.get(key))?;
    Some(format!(
        "{differs}: {:?} instead of {:?}",
        found_at.get(differs),
        wanted_at.get(differs)
    ))
}
