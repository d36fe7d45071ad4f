//! Waiting for what can be observed, never for time to pass.

use std::time::{Duration, Instant};

/// How long the suite waits for anything before it fails: far more than needed, as the machine may
/// be busy.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

/// Looks until `observe` yields something; fails with `what` after [`DEADLINE`].
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, observe: impl FnMut() -> F) -> T {
    until_within(DEADLINE, what, observe).await
}

/// Looks until `observe` yields something; fails with `what` after `deadline`.
pub async fn until_within<T, F: Future<Output = Option<T>>>(
    deadline: Duration,
    what: &str,
    mut observe: impl FnMut() -> F,
) -> T {
    let begin = Instant::now();
    loop {
        // At least once, also if the machine was busy for the whole time.
        if let Some(found) = observe().await {
            return found;
        }
        assert!(
            begin.elapsed() < deadline,
            "waited {deadline:?} in vain for {what}"
        );
        tokio::time::sleep(INTERVAL).await;
    }
}
