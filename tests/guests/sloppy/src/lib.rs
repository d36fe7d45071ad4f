//! A projection that breaks the first rule of the contract: what it stores depends on where batches
//! end.

wit_bindgen::generate!({ world: "projection", path: "../../../wit" });

use foldstream::module::state::{get, put};
use foldstream::module::types::{ErrorPolicy, KeyRule, Limits, ModuleKind};

struct Sloppy;

impl Guest for Sloppy {
    fn manifest() -> Manifest {
        Manifest {
            kind: ModuleKind::Projection,
            name: "sloppy".to_owned(),
            description: "Counts batches, which nobody may".to_owned(),
            subjects: vec!["orders.>".to_owned()],
            wants_headers: false,
            key_rule: KeyRule::None,
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
        add("events", events.len() as u64);
        // Only once there were some, so that the first event that shows it is not the first of all.
        if events.iter().any(|event| event.sequence > 100) {
            add("batches", 1);
        }
        Ok(())
    }

    fn query(_name: String, _args: Payload) -> Result<Payload, QueryError> {
        Err(QueryError::UnknownQuery)
    }
}

fn add(key: &str, more: u64) {
    let before = match get(key) {
        Some(Payload::Text(number)) => number.parse().unwrap_or(0),
        _ => 0,
    };
    put(key, &Payload::Text((before + more).to_string()));
}

export!(Sloppy);
