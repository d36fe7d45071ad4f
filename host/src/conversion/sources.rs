//! Sources: as they are when somebody asks, and as a deployment sees them.

use crate::api;
use crate::source::{Info, Status};

impl From<Info> for api::SourceInfo {
    fn from(info: Info) -> Self {
        let Info {
            name,
            kind,
            stream,
            reachable,
            state,
            message,
            obstacle,
            first_sequence,
            is_complete,
            last_sequence,
            events,
            bytes,
            first_events,
            warnings,
        } = info;
        Self {
            name,
            kind: kind.to_owned(),
            stream,
            reachable,
            state,
            message,
            obstacle,
            first_sequence,
            is_complete,
            last_sequence,
            events,
            bytes,
            first_events,
            warnings,
        }
    }
}

impl From<&Status> for api::SourceStatus {
    fn from(status: &Status) -> Self {
        Self {
            state: status.state,
            message: status.message.clone(),
            since: Some(status.since.to_string()),
            last_heard: status.last_heard().map(|time| time.to_string()),
            reconnects: status.reconnects,
            passed_over: status.passed_over,
            repaired: status.repaired,
        }
    }
}
