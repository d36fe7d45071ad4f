//! Firings that an operator leaves out: their timers are pending no more, or they would fire again.

use crate::event::Event;
use crate::state::Writer;
use crate::timers::Firing;

/// Removes the timers of skipped firings after one position and up to another.
pub(super) fn pass(writer: &mut Writer, left_out: &[Event], after: u64, through: u64) {
    for event in left_out {
        // Those before were removed with an earlier part of the batch.
        if !(after < event.sequence && event.sequence <= through) {
            continue;
        }
        leave_out(writer, event);
    }
}

/// Removes the timer of a firing that is left out; returns whether the event is a firing.
pub(super) fn leave_out(writer: &mut Writer, event: &Event) -> bool {
    let Some(firing) = Firing::of(event) else {
        return false;
    };
    if let Err(error) = writer.fire_timer(&firing, event.time_ns) {
        // It fires again, and the operator can leave it out again.
        tracing::warn!(timer = firing.name, %error, "the timer of a skipped firing could not be removed");
    }
    true
}
