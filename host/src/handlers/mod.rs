//! What handlers do besides keeping a state, as operators see and change it: what they may publish
//! (`grants`), the messages that wait (`waiting`), pending timers (`timers`), and sagas (`sagas`).

mod grants;
mod sagas;
mod timers;
mod waiting;

use std::sync::Arc;

pub(crate) use grants::EffectsRequest;
pub(crate) use timers::{PendingTimer, PendingTimers, TimerAction, TimerChanged};
pub(crate) use waiting::{
    Conditions, DroppedMessages, Lost, NamedMessages, WaitingMessage, WaitingMessages,
};

use crate::deployments::Deployments;
use crate::source::Sources;

/// Shows and changes the effects of handlers.
#[derive(Debug)]
pub struct Handlers {
    deployments: Arc<Deployments>,
    /// What handlers read, and publish to.
    sources: Sources,
}

impl Handlers {
    /// The handlers among these deployments.
    pub(crate) fn new(deployments: Arc<Deployments>, sources: Sources) -> Self {
        Self {
            deployments,
            sources,
        }
    }
}
