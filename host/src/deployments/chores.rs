//! Housekeeping: each piece runs in a separate task, so that nothing waits for anything else.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Deployments;

/// What is in progress: its kind, and the deployment or source.
type Name = (&'static str, String);

#[derive(Debug, Default)]
pub(super) struct Chores(Arc<Mutex<BTreeSet<Name>>>);

/// A chore in progress; dropping it ends it. It keeps no host alive.
#[derive(Debug)]
pub(crate) struct Chore {
    name: Name,
    all: Arc<Mutex<BTreeSet<Name>>>,
}

impl Drop for Chore {
    fn drop(&mut self) {
        // Also if the work panics, or its runtime ends: the name would be taken for good otherwise.
        self.all.lock().remove(&self.name);
    }
}

impl Deployments {
    /// Begins a chore, unless the same one is in progress for that name.
    pub(crate) fn begin_chore(&self, kind: &'static str, name: &str) -> Option<Chore> {
        let name = (kind, name.to_owned());
        let all = Arc::clone(&self.chores.0);
        let is_new = all.lock().insert(name.clone());
        is_new.then_some(Chore { name, all })
    }

    /// Runs work in a separate task, unless the same work is already running for that name.
    pub(crate) fn chore(
        &self,
        kind: &'static str,
        name: &str,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let Some(chore) = self.begin_chore(kind, name) else {
            return;
        };
        tokio::spawn(async move {
            work.await;
            drop(chore);
        });
    }
}
