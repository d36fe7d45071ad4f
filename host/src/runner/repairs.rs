//! Changes to a state from outside its fold.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Runner;
use crate::pipeline::{ParkedOutcome, ParkedWork, ParkedWorkError, Repair, RepairError};
use crate::state;
use crate::state::catalogue::OnFailure;

/// How long a repair may wait for the thread that owns the state, which may be unable to open it.
const REPAIR_MAX: Duration = Duration::from_secs(10);

impl Runner {
    /// Replaces entries, durably, with some that may lack `missing` events. The caller holds it at a
    /// ceiling.
    pub async fn patch(&self, patch: state::Patch, missing: u64) -> Result<(), RepairError> {
        self.repair(Repair::Patch(patch, missing)).await
    }

    /// Records, durably, that the state lacks at least this many events, as accepted. The caller
    /// holds it at a ceiling.
    pub async fn note_missing(&self, missing: u64) -> Result<(), RepairError> {
        self.repair(Repair::Missing(missing)).await
    }

    /// Records, durably, that nothing up to a position would have changed the state. The caller has
    /// the proof, and holds it at a ceiling.
    pub async fn advance(&self, position: u64) -> Result<(), RepairError> {
        self.repair(Repair::Advance(position)).await
    }

    async fn repair(&self, repair: Repair) -> Result<(), RepairError> {
        let mut done = self.shared.patches.hand_over(repair);
        // Wakes the thread: a change of pace makes it look for repairs.
        self.change_pace(|_| ());
        // Cancel-safe: a received value is not lost.
        match tokio::time::timeout(REPAIR_MAX, done.done()).await {
            Ok(answer) => answer,
            // Taken back before it began: nothing has changed.
            Err(_) if self.shared.patches.withdraw() => Err(RepairError::Late(REPAIR_MAX)),
            // It has begun, and will complete.
            Err(_) => done.done().await,
        }
    }

    /// Sets what becomes of events that have used up their attempts, and lets the pipeline begin again
    /// with that.
    pub fn set_on_failure(&self, wanted: OnFailure) {
        let parks = wanted == OnFailure::Park;
        let before = self.shared.parks.swap(parks, Ordering::Relaxed);
        // Read after the swap: a pipeline that ends meanwhile starts with the new value.
        let has_failed = self.now().has_stopped();
        if before != parks && (self.is_running() || has_failed) {
            self.resume();
        }
    }

    /// Sets in how many lanes it folds, and lets the pipeline begin again with that.
    pub fn set_lanes(&self, lanes: u32) {
        let before = std::mem::replace(&mut self.shared.program.write().lanes, lanes);
        if before != lanes && self.is_running() {
            self.resume();
        }
    }

    /// Retries or drops parked events. The caller holds it at a ceiling.
    pub async fn change_parked(&self, work: ParkedWork) -> Result<ParkedOutcome, ParkedWorkError> {
        let closed = |_| Err(ParkedWorkError::Closed);
        let mut answer = self.shared.parked.hand_over(work);
        self.change_pace(|_| ());
        // Cancel-safe: a received value is not lost.
        match tokio::time::timeout(REPAIR_MAX, &mut answer).await {
            Ok(answer) => answer.unwrap_or_else(closed),
            Err(_) if self.shared.parked.withdraw() => Err(ParkedWorkError::Late),
            // It has begun, and will complete.
            Err(_) => answer.await.unwrap_or_else(closed),
        }
    }
}
