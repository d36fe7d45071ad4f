//! What comes due with time, each piece in a task of its own, so that nothing waits for anything else.

use std::sync::Arc;

use super::Rollouts;

impl Rollouts {
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
}

/// Does something when it is dropped, however that comes.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}
