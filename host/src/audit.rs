//! Entries of the audit log: who asked for what, and when.

use crate::actor;
use crate::state::catalogue::Audit;

/// An entry about something that is done now, for the actor of this task or thread.
pub(crate) fn entry(action: &str, deployment: &str, detail: String) -> Audit {
    let actor = actor::current();
    Audit {
        peer: actor
            .as_ref()
            .and_then(|actor| Some(actor.peer?.to_string())),
        actor: actor.and_then(|actor| actor.name),
        at: jiff::Timestamp::now().to_string(),
        action: action.to_owned(),
        deployment: deployment.to_owned(),
        detail,
    }
}
