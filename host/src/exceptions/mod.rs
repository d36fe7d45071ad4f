//! Exceptions to events: what becomes of events that fail, by rule or by decision of an operator.
//!
//! A deployment parks events that fail (`failure_policy`, `parked`), and reports them
//! (`failure_events`); they are retried by newer code (`parked_retry`) or as an operator asks. An
//! operator may also skip events (`skips`). `parked_rules` says what is impossible while events are
//! parked.

pub(crate) mod failure_events;
mod failure_policy;
mod parked;
mod parked_retry;
pub(crate) mod parked_rules;
mod skips;

use std::sync::Arc;

pub(crate) use failure_policy::FailureRequest;
pub(crate) use parked::{Extent, ParkedAction, ParkedChange, ParkedList, ParkedSelection};
pub(crate) use skips::Wanted as WantedSkips;
pub(crate) use skips::failure_noted;

use crate::deployments::Deployments;
use crate::history::History;
use crate::source::Sources;

/// Decides about events that fail.
#[derive(Debug)]
pub struct Exceptions {
    deployments: Arc<Deployments>,
    /// Past states do not have what is released or dropped.
    history: Arc<History>,
    /// Where events are looked up, and failures reported.
    sources: Sources,
}

impl Exceptions {
    /// Decides about events of these deployments.
    pub(crate) fn new(
        deployments: Arc<Deployments>,
        history: Arc<History>,
        sources: Sources,
    ) -> Self {
        Self {
            deployments,
            history,
            sources,
        }
    }
}
