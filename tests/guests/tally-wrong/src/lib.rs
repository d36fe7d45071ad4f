//! What a wrong release of `tally` leaves behind: counts that are none, and entries that nobody
//! wants.

wit_bindgen::generate!({ world: "projection", path: "../../../wit" });

use foldstream::module::state::put;
use foldstream::module::types::{ErrorPolicy, KeyRule, Limits, ModuleKind};

struct Wrong;

impl Guest for Wrong {
    fn manifest() -> Manifest {
        Manifest {
            kind: ModuleKind::Projection,
            name: "tally".to_owned(),
            description: "Counts wrongly".to_owned(),
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
            for key in [
                format!("tally/{customer}"),
                format!("kind/wrong/{customer}"),
            ] {
                put(&key, &Payload::Text("0".to_owned()));
            }
        }
        Ok(())
    }

    fn query(_name: String, _args: Payload) -> Result<Payload, QueryError> {
        Err(QueryError::UnknownQuery)
    }
}

export!(Wrong);
