//! A projection that breaks a rule of the contract where it hardly shows: what it stores of a few
//! events depends on what it remembers of the event before, which is lost when it begins again.

use std::cell::Cell;

wit_bindgen::generate!({ world: "projection", path: "../../../wit" });

use foldstream::module::state::put;
use foldstream::module::types::{ErrorPolicy, KeyRule, Limits, ModuleKind};

thread_local! {
    /// The sequence of the event before; 0 after a restart.
    static BEFORE: Cell<u64> = const { Cell::new(0) };
}

struct Forgetful;

impl Guest for Forgetful {
    fn manifest() -> Manifest {
        Manifest {
            kind: ModuleKind::Projection,
            name: "forgetful".to_owned(),
            description: "Stores what it remembers, which nobody may rely on".to_owned(),
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
        for event in &events {
            let before = BEFORE.with(|before| before.replace(event.sequence));
            if event.sequence % 100 == 50 {
                put(
                    &format!("before/{}", event.sequence),
                    &Payload::Text(before.to_string()),
                );
            }
        }
        Ok(())
    }

    fn query(_name: String, _args: Payload) -> Result<Payload, QueryError> {
        Err(QueryError::UnknownQuery)
    }
}

export!(Forgetful);
