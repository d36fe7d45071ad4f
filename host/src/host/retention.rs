//! Retention of the embedded logs.

use super::Host;
use crate::actor::blocking;
use crate::source::Source;

impl Host {
    /// Removes expired events from the embedded logs.
    pub(crate) fn enforce_retention(&self) {
        for (name, source) in &self.inner.sources {
            let Source::Embedded(embedded) = source else { continue };
            // A log that is not open yet keeps its events.
            let Ok(log) = embedded.log() else { continue };
            self.rollouts().chore("retention", name, async move {
                match blocking(move || log.enforce_retention()).await {
                    Ok(0) => {}
                    Ok(removed) => tracing::info!(removed, "removed old events from the embedded log"),
                    Err(error) => tracing::error!(%error, "retention of the embedded log failed"),
                }
            });
        }
    }
}
