//! A projection that proves what was applied: how many events, which, in which order, and each
//! exactly once.
//!
//! `chain` is a hash over all events in their order, so that one event left out, applied twice or
//! swapped with its neighbour changes it for ever. `pair/left` and `pair/right` are written
//! together for every event and must never be seen apart. Written against the contract alone,
//! without the SDK.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

wit_bindgen::generate!({ world: "projection", path: "../../../wit" });

use foldstream::module::state::{Direction, Selection, get, put_many, scan};
use foldstream::module::types::{
    ErrorPolicy, FailureKind, KeyRule, Limits, ModuleKind, QueryDescription,
};

/// What is true of all events so far.
#[derive(Serialize, Deserialize)]
struct Head {
    /// Number of events.
    count: u64,
    /// Hash over all of them, in hexadecimal.
    chain: String,
    /// The last sequence.
    last: u64,
}

/// What is true of one customer's events.
#[derive(Default, Serialize, Deserialize)]
struct Customer {
    count: u64,
    amount: i64,
    last: u64,
}

#[derive(Deserialize)]
struct Order {
    order: String,
    amount: i64,
}

#[derive(Default)]
struct Audit {
    customers: u64,
    count: u64,
    amount: i64,
}

struct Ledger;

impl Guest for Ledger {
    fn manifest() -> Manifest {
        let query = |name: &str, description: &str| QueryDescription {
            name: name.to_owned(),
            description: description.to_owned(),
        };
        Manifest {
            kind: ModuleKind::Projection,
            name: "ledger".to_owned(),
            description: "Proves which events were applied, in which order".to_owned(),
            subjects: vec!["orders.>".to_owned()],
            wants_headers: false,
            key_rule: KeyRule::SubjectToken(2),
            state_version: 1,
            error_policy: ErrorPolicy {
                attempts: Some(3),
                initial_backoff_ms: Some(10),
                max_backoff_ms: Some(100),
            },
            limits: Limits {
                memory_bytes: None,
                deadline_ms: None,
                batch_events: None,
                state_bytes: None,
            },
            queries: vec![
                query("pair", "The two keys that are always written together"),
                query(
                    "audit",
                    "Sums over all customers, next to what the head says",
                ),
            ],
        }
    }

    fn apply(events: Vec<Event>) -> Result<(), Failure> {
        let mut head = load_head();
        let mut customers = BTreeMap::new();
        for (index, event) in (0u32..).zip(&events) {
            fold(&mut head, &mut customers, event).map_err(|message| Failure {
                index,
                kind: FailureKind::Reject,
                message,
            })?;
        }
        store(&head, &customers);
        Ok(())
    }

    fn query(name: String, _args: Payload) -> Result<Payload, QueryError> {
        match name.as_str() {
            "pair" => Ok(text(
                serde_json::json!({ "left": number("pair/left"), "right": number("pair/right") }),
            )),
            "audit" => Ok(text(audit())),
            _ => Err(QueryError::UnknownQuery),
        }
    }
}

fn fold(
    head: &mut Head,
    customers: &mut BTreeMap<String, Customer>,
    event: &Event,
) -> Result<(), String> {
    if event.sequence <= head.last {
        return Err(format!(
            "event {} arrived behind {}",
            event.sequence, head.last
        ));
    }
    let name = event
        .subject
        .split('.')
        .nth(1)
        .ok_or("subject has no customer")?;
    let order: Order = serde_json::from_slice(octets(&event.data))
        .map_err(|error| format!("data is no order: {error}"))?;
    let chain = u64::from_str_radix(&head.chain, 16).map_err(|error| error.to_string())?;
    head.chain = format!("{:016x}", link(chain, event, &order));
    head.count += 1;
    head.last = event.sequence;
    if !customers.contains_key(name) {
        customers.insert(
            name.to_owned(),
            load(&format!("customer/{name}")).unwrap_or_default(),
        );
    }
    let customer = customers.get_mut(name).ok_or("inserted above")?;
    customer.count += 1;
    customer.amount += order.amount;
    customer.last = event.sequence;
    Ok(())
}

/// FNV-1a over the chain so far and one event.
fn link(chain: u64, event: &Event, order: &Order) -> u64 {
    let fact = format!(
        "{chain:x} {} {} {} {}",
        event.sequence, event.subject, order.order, order.amount
    );
    fact.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn load_head() -> Head {
    load("head").unwrap_or(Head {
        count: 0,
        chain: "0".to_owned(),
        last: 0,
    })
}

fn store(head: &Head, customers: &BTreeMap<String, Customer>) {
    let mut entries = vec![
        ("head".to_owned(), Some(text(head))),
        ("pair/left".to_owned(), Some(text(head.last))),
        ("pair/right".to_owned(), Some(text(head.last))),
    ];
    entries.extend(
        customers
            .iter()
            .map(|(name, customer)| (format!("customer/{name}"), Some(text(customer)))),
    );
    put_many(&entries);
}

fn audit() -> serde_json::Value {
    let mut sums = Audit::default();
    let mut after = None;
    loop {
        let page = scan(
            &Selection::Prefix("customer/".to_owned()),
            after.as_deref(),
            Direction::Forwards,
            1_000,
        );
        for entry in &page.entries {
            let Ok(customer) = serde_json::from_slice::<Customer>(octets(&entry.value)) else {
                continue;
            };
            sums.customers += 1;
            sums.count += customer.count;
            sums.amount += customer.amount;
        }
        after = page.entries.last().map(|entry| entry.key.clone());
        if !page.more {
            break;
        }
    }
    serde_json::json!({
        "customers": sums.customers, "count": sums.count, "amount": sums.amount, "head": load_head(),
    })
}

fn load<T: for<'a> Deserialize<'a>>(key: &str) -> Option<T> {
    get(key).and_then(|value| serde_json::from_slice(octets(&value)).ok())
}

fn number(key: &str) -> u64 {
    load(key).unwrap_or(0)
}

fn text(value: impl Serialize) -> Payload {
    Payload::Text(serde_json::to_string(&value).unwrap_or_default())
}

fn octets(payload: &Payload) -> &[u8] {
    match payload {
        Payload::Text(text) => text.as_bytes(),
        Payload::Bytes(bytes) => bytes,
    }
}

export!(Ledger);
