//! Changes to a state from outside its fold.

use std::time::Duration;

use super::Runner;
use crate::pipeline::{Repair, RepairError};
use crate::state;

/// How long a repair may wait for the thread that owns the state, which may be unable to open it.
const REPAIR_MAX: Duration = Duration::from_secs(10);

impl Runner {
    /// Replaces entries, durably. The caller holds it at a ceiling.
    pub async fn patch(&self, patch: state::Patch) -> Result<(), RepairError> {
        self.repair(Repair::Patch(patch)).await
    }

    /// Records, durably, that nothing up to a position would have changed the state. The caller has
    /// the proof, and holds it at a ceiling.
    pub async fn advance(&self, position: u64) -> Result<(), RepairError> {
        self.repair(Repair::Advance(position)).await
    }

    async fn repair(&self, repair: Repair) -> Result<(), RepairError> {
        let mut done = self.shared.patches.hand_over(repair);
        self.change_pace(|_| ());
        // Cancel-safe: a received value is not lost.
        match tokio::time::timeout(REPAIR_MAX, done.done()).await {
            Ok(told) => told,
            Err(_) if self.shared.patches.withdraw() => Err(RepairError::Late(REPAIR_MAX)),
            // It has begun, and will complete.
            Err(_) => done.done().await,
        }
    }
}
