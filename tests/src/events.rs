//! Events to append.

use std::collections::BTreeMap;

use foldstream::api::NewEvent;
use serde_json::Value;

/// An event with a subject and data, and nothing else.
pub fn new_event(subject: &str, data: Value) -> NewEvent {
    NewEvent {
        subject: subject.to_owned(),
        kind: None,
        id: None,
        time: None,
        headers: BTreeMap::new(),
        data,
    }
}
