//! Verifications, and what they found.

use crate::api;
use crate::overview::{Divergence, Verification};

impl From<Verification> for api::Verification {
    fn from(verification: Verification) -> Self {
        let Verification {
            state,
            generation,
            position,
            progress,
            rate,
            remaining_seconds,
            seed,
            restarts,
            equal,
            comparison,
            divergence,
            skipped,
            missing_events,
            parked,
            message,
            obstacle,
        } = verification;
        Self {
            state,
            generation,
            position,
            progress,
            rate,
            remaining_seconds,
            seed,
            restarts,
            equal,
            comparison: comparison.map(Into::into),
            divergence: divergence.map(Into::into),
            skipped,
            missing_events,
            parked: parked.into(),
            message,
            obstacle,
        }
    }
}

impl From<Divergence> for api::Divergence {
    fn from(divergence: Divergence) -> Self {
        let Divergence { key, sequence } = divergence;
        Self { key, sequence }
    }
}
