//! A mute runner follows the owner of its deployment's effects, and never passes what the owner has
//! made durable.

use std::sync::{Arc, Weak};

use tokio::sync::watch;

use super::waiting::advanced;
use super::{OtherStream, Runner};
use crate::pipeline::NO_LEASH;

impl Runner {
    /// Never passes the active runner from now on, whichever that is. Must be called within a
    /// runtime.
    pub fn follow_lead(self: &Arc<Self>, mut active: watch::Receiver<Arc<Self>>) {
        // Weak: a task must not keep its runner alive, nor its state file open.
        let follower = Arc::downgrade(self);
        let task = tokio::spawn(async move {
            loop {
                let lead = Arc::clone(&active.borrow_and_update());
                let is_lead = std::ptr::eq(Arc::as_ptr(&lead), follower.as_ptr());
                if is_lead {
                    // After the last change by the lead before it, which this task made.
                    lead.set_leash(NO_LEASH);
                }
                // Both arms only observe.
                let is_over = tokio::select! {
                    changed = active.changed() => changed.is_err(),
                    () = lead_by(&lead, &follower), if !is_lead => true,
                };
                // The deployment is gone, or the runner that follows is.
                if is_over {
                    return;
                }
            }
        });
        // The task before it could still move the leash by another lead.
        if let Some(before) = self.lead.lock().replace(task.abort_handle()) {
            before.abort();
        }
    }

    /// Sets how far it may go. The caller holds it, so that nothing is applied in between.
    pub fn set_leash(&self, end: u64) {
        self.shared.leash.send_replace(end);
    }

    /// Whether it must not pass another runner.
    pub fn is_on_leash(&self) -> bool {
        // A runner without effects is never on one.
        *self.shared.leash.borrow() != NO_LEASH
    }

    /// Whether it has applied everything that another runner has made durable; false while that is
    /// unknown.
    pub fn is_as_far_as(&self, lead: &Self) -> bool {
        let durable = |lead: &Self| {
            Some(
                lead.store()?
                    .checkpoint()
                    .map_or(0, |checkpoint| checkpoint.position),
            )
        };
        match (self.store(), durable(lead)) {
            (Some(store), Some(durable)) => store.position() >= durable,
            _ => false,
        }
    }

    /// Lets it go as far as the lead has durably come; returns whether it still exists.
    fn lengthen_leash(&self, lead: &Self, position: u64) {
        let stream = self.compare_stream_of(lead);
        // A lost owner has no durable position, and that of another stream is no measure; the end of
        // the leash is what an operator gave. Right after a start, an owner does not know yet that
        // its stream was made again.
        let is_back = || lead.owns_effects() && lead.now().begun && stream == OtherStream::Same;
        if self.shared.succeeds_lost_owner && !is_back() {
            // It takes over where its leash ends.
            return;
        }
        // A leash that does not move wakes nobody.
        self.shared.leash.send_if_modified(|leash| {
            let before = std::mem::replace(leash, led(*leash, position, stream));
            before != *leash
        });
    }
}

/// The end of a leash, once the lead, which reads this stream, has come to a position.
fn led(leash: u64, position: u64, stream: OtherStream) -> u64 {
    match stream {
        // Positions in another stream are no measure, and nobody has decided about the events in
        // this one.
        OtherStream::Different => NO_LEASH,
        // The lead before it read another stream.
        OtherStream::Same if leash == NO_LEASH => position,
        // It never gets shorter: what was folded cannot be taken back.
        OtherStream::Same | OtherStream::Unknown => leash.max(position),
    }
}

/// Moves the leash of a runner with another one, until either is gone.
async fn lead_by(lead: &Arc<Runner>, follower: &Weak<Runner>) {
    let mut stores = lead.stores();
    loop {
        let store = stores.borrow_and_update().clone();
        let Some(store) = store else {
            // The sender lives in the runner that leads.
            if stores.changed().await.is_err() {
                return;
            }
            continue;
        };
        let mut checkpoints = store.checkpoints();
        // Kept open by nobody here.
        drop(store);
        loop {
            let position = checkpoints
                .borrow_and_update()
                .as_ref()
                .map_or(0, |checkpoint| checkpoint.position);
            // Looked up in each round: it may be gone while its lead continues.
            let Some(known) = follower.upgrade() else {
                return;
            };
            known.lengthen_leash(lead, position);
            // Its first batch says which stream it reads.
            let (its_stores, has_read) = (known.stores(), known.position() > 0);
            // Not held across the wait, which may last for as long as the lead does.
            drop(known);
            // All arms only observe.
            let is_open = tokio::select! {
                changed = checkpoints.changed() => changed.is_ok(),
                changed = stores.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    false
                }
                () = advanced(its_stores, 0), if !has_read => true,
            };
            // The state was closed; the outer loop waits for the next one.
            if !is_open {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leash_only_grows_behind_one_lead_and_is_back_behind_a_lead_of_the_same_stream() {
        for stream in [OtherStream::Same, OtherStream::Unknown] {
            assert_eq!(led(0, 7, stream), 7);
            assert_eq!(led(9, 7, stream), 9);
        }
        assert_eq!(led(9, 7, OtherStream::Different), NO_LEASH);
        assert_eq!(led(NO_LEASH, 7, OtherStream::Different), NO_LEASH);
        assert_eq!(led(NO_LEASH, 7, OtherStream::Same), 7);
        assert_eq!(
            led(NO_LEASH, 7, OtherStream::Unknown),
            NO_LEASH,
            "the lead is not open"
        );
    }
}
