//! What a bad release of the guest `ledger` is like: it says that it stores the same, answers one
//! query of it, and can apply nothing.

wit_bindgen::generate!({ world: "projection", path: "../../../wit" });

use foldstream::module::state::get;
use foldstream::module::types::{
    ErrorPolicy, FailureKind, KeyRule, Limits, ModuleKind, QueryDescription,
};

struct Broken;

impl Guest for Broken {
    fn manifest() -> Manifest {
        let query = |name: &str| QueryDescription {
            name: name.to_owned(),
            description: "Not here".to_owned(),
        };
        Manifest {
            kind: ModuleKind::Projection,
            name: "ledger".to_owned(),
            description: "Can apply nothing".to_owned(),
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
            queries: vec![query("pair")],
        }
    }

    fn apply(events: Vec<Event>) -> Result<(), Failure> {
        let message = format!("cannot apply event {}", events[0].sequence);
        Err(Failure {
            index: 0,
            kind: FailureKind::Reject,
            message,
        })
    }

    fn query(name: String, _args: Payload) -> Result<Payload, QueryError> {
        if name != "pair" {
            return Err(QueryError::UnknownQuery);
        }
        let [left, right] = ["pair/left", "pair/right"].map(number);
        Ok(Payload::Text(format!(
            "{{\"left\":{left},\"right\":{right}}}"
        )))
    }
}

fn number(key: &str) -> String {
    match get(key) {
        Some(Payload::Text(number)) => number,
        _ => "0".to_owned(),
    }
}

export!(Broken);
