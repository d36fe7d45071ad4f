//! Decisions to skip events.

use super::each;
use crate::api;
use crate::overview::Skip;
use crate::state::exceptions;

impl From<Vec<Skip>> for api::SkipList {
    fn from(skips: Vec<Skip>) -> Self {
        Self { skips: each(skips) }
    }
}

impl From<Skip> for api::Skip {
    fn from(skip: Skip) -> Self {
        let Skip {
            decision,
            state,
            later,
        } = skip;
        let exceptions::Skip {
            sequence,
            reason,
            at,
            error,
            event,
            // Counted as `later`.
            behind: _,
        } = decision;
        let event = event.as_ref();
        Self {
            sequence,
            later,
            state,
            reason,
            at,
            error,
            subject: event.map(|event| event.subject.clone()),
            kind: event.map(|event| event.kind.clone()),
            time: event.map(|event| event.time.clone()),
            digest: event.map(|event| event.digest.clone()),
        }
    }
}
