//! What parked events rule out, and what messages say about them.

use crate::deployment::{Deployment, parked_counts as counts};
use crate::deployments::{Error, parked_remark};
use crate::runner::Runner;
use crate::state::catalogue::Generation;

/// Refuses code that would find the keys of parked events in another way.
pub(crate) fn check_same_rule(deployment: &Deployment, next: &Generation) -> Result<(), Error> {
    let record = deployment.record();
    let (rule, other) = (&record.active().module.key_rule, &next.module.key_rule);
    let parked = counts(deployment.active().store().as_ref());
    if rule == other || parked.events == 0 {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "generation {} has key rule {other} instead of {rule}, by which events of {name} are \
         parked; retry or drop them first (`foldstream parked list {name}`)",
        next.number,
        name = deployment.name()
    )))
}

/// Refuses to make another state of a handler active while events are parked in either: one of the
/// two has applied them, and the other would publish their messages again or not at all. Asked
/// before a hold, and again while nothing can be parked any more.
pub(crate) fn check_switch(
    deployment: &Deployment,
    from: &Runner,
    to: &Runner,
) -> Result<(), Error> {
    // A projection publishes nothing, so nothing can be sent twice.
    if deployment.record().handler.is_none() {
        return Ok(());
    }
    let events = |runner: &Runner| counts(runner.store().as_ref()).events;
    let (ours, theirs) = (events(from), events(to));
    if (ours, theirs) == (0, 0) {
        return Ok(());
    }
    let name = deployment.name();
    Err(Error::Conflict(format!(
        "{name} has {} parked events, whose messages are not published yet; the other state has \
         applied these events without publishing, so retry or drop them first (`foldstream parked \
         list {name}`); if only corrected code can apply them, `foldstream deploy MODULE --name \
         {name} --strategy inherit --retry-parked`, which replaces a candidate that waits",
        ours.max(theirs)
    )))
}

/// Text to add to a message about a state that became active, and the one before.
pub(crate) fn remark_of_both(now: &Runner, before: &Runner) -> String {
    let (now, before) = (
        counts(now.store().as_ref()),
        counts(before.store().as_ref()),
    );
    let mut text = parked_remark(&now);
    // The state before continues as a follower, with its own parked events.
    if now.events != before.events {
        let events = if before.events == 1 {
            "event"
        } else {
            "events"
        };
        text.push_str(&format!(
            "; the state before had {} parked {events}",
            before.events
        ));
    }
    text
}
