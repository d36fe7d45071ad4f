//! Failures of deployments.

use crate::api;
use crate::failure::Failure;

impl From<Failure> for api::Failure {
    fn from(failure: Failure) -> Self {
        let Failure {
            kind,
            class,
            message,
            sequence,
            first_at,
            attempts,
            next_attempt_at,
            breaker_open,
        } = failure;
        Self {
            kind,
            class,
            message,
            sequence,
            first_at,
            attempts,
            next_attempt_at,
            breaker_open,
        }
    }
}
