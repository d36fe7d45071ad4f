//! Retention of the embedded logs, and notes of how far they have come.

use super::Host;
use crate::actor::blocking;
use crate::source::Source;

impl Host {
    /// Notes how far each embedded log has come, for the next start.
    pub(super) async fn note_logs(&self) {
        let logs: Vec<_> = self
            .inner
            .sources
            .all()
            .filter_map(Source::open_log)
            .collect();
        blocking(move || logs.iter().for_each(|log| log.note_newest())).await;
    }

    /// Removes expired events from the embedded logs, and notes how far each has come. Without a
    /// time, nothing is removed by age.
    pub(crate) fn enforce_retention(&self, now_ns: Option<u64>) {
        for (name, source) in self.inner.sources.iter() {
            // A log that is not open yet keeps its events.
            let Some(log) = source.open_log() else {
                continue;
            };
            // As a chore, of which one per log runs at a time: a large log may take longer than the
            // interval.
            self.inner.deployments.chore("retention", name, async move {
                let done = blocking(move || {
                    log.note_newest();
                    log.enforce_retention(now_ns)
                });
                match done.await {
                    Ok(0) => {}
                    Ok(removed) => {
                        tracing::info!(removed, "removed old events from the embedded log");
                    }
                    Err(error) => tracing::error!(%error, "retention of the embedded log failed"),
                }
            });
        }
    }
}
