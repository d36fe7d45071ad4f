//! What parked events rule out, and what messages say about them.

use super::Error;
use super::key_part::Keys;
use crate::api;
use crate::deployment::{Deployment, parked_counts as counts};
use crate::runner::Runner;
use crate::state::catalogue::Generation;

/// Refuses code that would find the keys of parked events in another way.
pub(super) fn check_same_rule(deployment: &Deployment, next: &Generation) -> Result<(), Error> {
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
pub(super) fn check_switch(
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
         applied these events without publishing, so retry or drop them first (`foldstream parked list {name}`)",
        ours.max(theirs)
    )))
}

/// Refuses to fold keys from scratch of which events are parked.
pub(super) fn refuse_part(deployment: &Deployment, keys: &Keys) -> Result<(), Error> {
    let store = deployment.active().store();
    // A state that is not open is asked again under the hold.
    let parked = store.map(|store| store.parked_keys()).unwrap_or_default();
    match parked.keys().find(|key| keys.has(key)) {
        None => Ok(()),
        Some(key) => Err(Error::Refused(format!(
            "cannot rebuild `{key}`: events of it are parked; `foldstream parked retry {0}` \
             applies them, `foldstream \
             parked drop {0}` leaves them out, and a rebuild of all of {0} gives a state without \
             parked events",
            deployment.name()
        ))),
    }
}

/// Text to add to a message about a state with parked events.
pub(super) fn remark(parked: &api::ParkedCounts) -> String {
    match parked.events {
        0 => String::new(),
        1 => "; without 1 event that is parked".to_owned(),
        events => format!("; without {events} events that are parked"),
    }
}

/// The same about a state that became active, and the one before.
pub(super) fn remark_of_both(now: &Runner, before: &Runner) -> String {
    let (now, before) = (
        counts(now.store().as_ref()),
        counts(before.store().as_ref()),
    );
    let mut text = remark(&now);
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
