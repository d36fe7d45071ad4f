//! What comes due with time, each piece in a task of its own, so that nothing waits for anything else.

use std::sync::Arc;

use crate::host::{Host, blocking};
use crate::source::Source;

impl Host {
    /// Does something in a task of its own, unless the same is still being done for that name.
    pub(crate) fn chore(&self, kind: &'static str, name: &str, work: impl Future<Output = ()> + Send + 'static) {
        let chore = (kind, name.to_owned());
        if !self.inner.chores.lock().insert(chore.clone()) {
            return;
        }
        let inner = Arc::downgrade(&self.inner);
        let over = OnDrop(move || {
            if let Some(inner) = inner.upgrade() {
                inner.chores.lock().remove(&chore);
            }
        });
        tokio::spawn(async move {
            work.await;
            drop(over);
        });
    }

    /// Removes what the embedded logs no longer have to keep.
    pub(crate) fn enforce_retention(&self) {
        for (name, source) in &self.inner.sources {
            let Source::Embedded(embedded) = source else { continue };
            // One that is not open yet keeps what it has.
            let Ok(log) = embedded.log() else { continue };
            self.chore("retention", name, async move {
                match blocking(move || log.enforce_retention()).await {
                    Ok(0) => {}
                    Ok(removed) => tracing::info!(removed, "removed old events from the embedded log"),
                    Err(error) => tracing::error!(%error, "retention of the embedded log failed"),
                }
            });
        }
    }
}

/// Does something when it is dropped, however that comes.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}
