//! The tasks of an owner that send its effects: one per source, so that a stream that is away holds
//! back no other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::status::Status;
use super::task::Task;
use crate::effects::{Grants, Lineage};
use crate::metrics::DeploymentMetrics;
use crate::room::{Room, Use};
use crate::source::Source;
use crate::state::{self, Store};

/// How long a stop waits for messages on their way.
const STOP_MAX: Duration = Duration::from_secs(4);

/// How long to wait at least before it is looked at again for which sources messages wait.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What a releaser needs.
pub(crate) struct Parts {
    /// Name of the deployment, for its log.
    pub deployment: String,
    /// The lineage of the effects.
    pub lineage: Lineage,
    /// The state that has them.
    pub store: Store,
    /// All sources of the host, by name.
    pub sources: Arc<BTreeMap<String, Source>>,
    /// What may be published now.
    pub grants: Arc<dyn Fn() -> Grants + Send + Sync>,
    /// The subjects that the module declares to publish.
    pub publishes: Arc<dyn Fn() -> Arc<[String]> + Send + Sync>,
    /// Changes when grants do, or `is_paused`.
    pub changed: watch::Receiver<u64>,
    /// Whether an operator paused the deployment.
    pub is_paused: Arc<dyn Fn() -> bool + Send + Sync>,
    /// The disk of the state.
    pub room: Option<Room>,
    /// Where it reports.
    pub status: Arc<Status>,
    /// Counters.
    pub metrics: DeploymentMetrics,
}

impl Parts {
    /// Removes confirmed effects, unless the disk has too little room for a commit: then they are
    /// sent again after a crash, which is sound.
    pub(super) fn remove_confirmed(&self) -> Result<(), state::Error> {
        let has_room = self
            .room
            .as_ref()
            .is_none_or(|room| room.check(Use::Write, 0).is_ok());
        if has_room {
            self.store.remove_confirmed_effects()
        } else {
            Ok(())
        }
    }
}

/// Runs until it is stopped.
pub(crate) struct Releaser {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    runtime: Handle,
    parts: Arc<Parts>,
}

impl Releaser {
    /// Starts the tasks.
    pub(crate) fn start(parts: Parts, runtime: &Handle) -> Self {
        let (stop, stopped) = watch::channel(false);
        let parts = Arc::new(parts);
        let mut tasks = Vec::new();
        // One for each source of the host, because a grant may be added while they run.
        for (name, source) in parts.sources.iter() {
            let task = Task::new(Arc::clone(&parts), name.clone(), source, stopped.clone());
            tasks.push(runtime.spawn(task.run()));
        }
        tasks.push(runtime.spawn(report_unknown(Arc::clone(&parts), stopped)));
        Self {
            stop,
            tasks,
            runtime: runtime.clone(),
            parts,
        }
    }

    /// Ends all tasks and removes what is confirmed. Blocking; not to be called on a thread of the
    /// runtime.
    pub(crate) fn stop(mut self) {
        self.stop.send_replace(true);
        let tasks = std::mem::take(&mut self.tasks);
        let aborts: Vec<_> = tasks.iter().map(JoinHandle::abort_handle).collect();
        let ended = self.runtime.block_on(async {
            tokio::time::timeout(STOP_MAX, futures_util::future::join_all(tasks)).await
        });
        if ended.is_err() {
            // Another owner may send the same effects from now on.
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
            tracing::warn!(
                "messages were on their way when a deployment stopped; they are sent again, with \
                 the same ids"
            );
        }
        if let Err(error) = self.parts.remove_confirmed() {
            tracing::warn!(
                %error,
                "confirmed messages could not be removed; they are sent again, with the same ids"
            );
        }
    }
}

impl Drop for Releaser {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Reports effects and grants for sources that the configuration no longer has, while there are any.
async fn report_unknown(parts: Arc<Parts>, mut stopped: watch::Receiver<bool>) {
    let mut changed = parts.changed.clone();
    let mut rows = parts.store.outbox_changes();
    let is_unknown = |target: &String| !parts.sources.contains_key(target);
    // What was reported before the releaser was started again.
    let known = parts.status.targets().into_keys();
    let mut reported: BTreeSet<String> = known.filter(is_unknown).collect();
    let mut warned = BTreeSet::new();
    while !*stopped.borrow() {
        // Both as of before the look.
        changed.borrow_and_update();
        rows.borrow_and_update();
        let (store, status) = (parts.store.clone(), &parts.status);
        let waiting = tokio::task::spawn_blocking(move || store.effect_targets()).await;
        // Only a report, so an error is left to the tasks that send.
        if let Ok(Ok(waiting)) = waiting {
            let waiting: BTreeSet<String> = waiting.into_iter().filter(is_unknown).collect();
            // A grant is worth a warning before its first message.
            let granted = (parts.grants)();
            let granted = granted.iter().map(|grant| grant.source.clone());
            for target in waiting.iter().cloned().chain(granted.filter(is_unknown)) {
                if warned.insert(target.clone()) {
                    tracing::warn!(
                        deployment = parts.deployment,
                        target,
                        "messages may be published to a source that the configuration has no more"
                    );
                }
            }
            for target in &waiting {
                let trouble = format!(
                    "the configuration has no source {target} any more; add it again, its \
                     messages wait"
                );
                status.troubled(target, Some(trouble));
            }
            for target in reported.difference(&waiting) {
                status.forget(target);
            }
            reported = waiting;
        }
        let again = async {
            // Many commits may follow each other.
            tokio::time::sleep(LOOK_AGAIN).await;
            let _ = rows.changed().await;
        };
        let may_change = tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => true,
            is_open = changed.changed() => is_open.is_ok(),
            // Messages for such a source need a grant for it, of which there was a warning.
            () = again, if !warned.is_empty() => true,
        };
        if !may_change {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        }
    }
}
