//! Firings that an operator skips: their timers are pending no more, or they would fire again.

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
        let Some(firing) = Firing::of(event) else {
            continue;
        };
        if let Err(error) = writer.fire_timer(&firing.name, event.time_ns) {
            // It fires again, and the operator can skip it again.
            tracing::warn!(timer = firing.name, %error, "the timer of a skipped firing could not be removed");
        }
    }
}
