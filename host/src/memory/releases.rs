//! Announces that something was released, to those who wait for it.

use std::sync::atomic::{Ordering, fence};

use tokio::sync::watch;

/// The releases of one resource.
#[derive(Debug, Default)]
pub(crate) struct Releases {
    times: watch::Sender<()>,
}

impl Releases {
    /// Makes every waiting check due again. Called after the release.
    pub(crate) fn announce(&self) {
        // Pairs with the fence in `until`: either this sees the receiver, or its first check sees the
        // release. Almost always nobody waits, and a release then costs no more than this look.
        fence(Ordering::SeqCst);
        if self.times.receiver_count() > 0 {
            self.times.send_replace(());
        }
    }

    /// Waits until a check finds what it needs: made at once, and again after releases. Cancel-safe:
    /// it only observes.
    pub(crate) async fn until(&self, mut check: impl FnMut() -> bool) {
        // Before the first check, so that no release after it is missed.
        let mut times = self.times.subscribe();
        fence(Ordering::SeqCst);
        while !check() {
            // A release during the check has changed it by now.
            times
                .changed()
                .await
                .expect("the sender is borrowed by this wait");
        }
    }
}
