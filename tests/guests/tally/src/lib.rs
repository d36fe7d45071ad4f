//! A projection whose every entry is of one customer alone: what a partial rebuild can do something
//! for.

wit_bindgen::generate!({ world: "projection", path: "../../../wit" });

use foldstream::module::state::{get, put};
use foldstream::module::types::{ErrorPolicy, KeyRule, Limits, ModuleKind};

struct Tally;

impl Guest for Tally {
    fn manifest() -> Manifest {
        Manifest {
            kind: ModuleKind::Projection,
            name: "tally".to_owned(),
            description: "Counts the events of each customer, and of each type".to_owned(),
            subjects: vec!["orders.*.*".to_owned()],
            wants_headers: false,
            key_rule: KeyRule::SubjectToken(2),
            state_version: 1,
            error_policy: ErrorPolicy {
                attempts: None,
                initial_backoff_ms: None,
                max_backoff_ms: None,
            },
            limits: Limits {
                memory_bytes: None,
                deadline_ms: None,
                batch_events: None,
                state_bytes: None,
            },
            queries: Vec::new(),
        }
    }

    fn apply(events: Vec<Event>) -> Result<(), Failure> {
        for event in &events {
            let customer = event.subject.split('.').nth(1).unwrap_or_default();
            add(&format!("tally/{customer}"));
            add(&format!("kind/{}/{customer}", event.kind));
        }
        Ok(())
    }

    fn query(_name: String, _args: Payload) -> Result<Payload, QueryError> {
        Err(QueryError::UnknownQuery)
    }
}

fn add(key: &str) {
    let before = match get(key) {
        Some(Payload::Text(number)) => number.parse().unwrap_or(0),
        _ => 0,
    };
    put(key, &Payload::Text((before + 1).to_string()));
}

export!(Tally);
