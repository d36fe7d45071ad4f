//! Whether a runner answers reads, from which position on, and with what.

use std::sync::Arc;
use std::time::Instant;

use super::{NotLoaded, Runner};
use crate::event::Payload;
use crate::module::{Identity, QueryError};
use crate::state::Snapshot;

/// The requested position was not reached in time.
#[derive(Debug, thiserror::Error)]
#[error("position {wanted} was not reached in time: the deployment is at {position}")]
pub struct Behind {
    /// The requested position.
    pub wanted: u64,
    /// The position reached.
    pub position: u64,
}

/// Why a state can't be read at the moment.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its file is still being opened.
    #[error("{0}")]
    NotReady(String),
    /// It has not yet reached the position that it must reach.
    #[error(transparent)]
    Behind(#[from] Behind),
    /// It was deleted meanwhile, or the host stops.
    #[error("{0} was deleted, or the host is stopping")]
    Gone(String),
}

impl Runner {
    /// A view that reflects at least a sequence, if available now, otherwise the reason. Does not
    /// wait.
    pub fn try_snapshot(&self, at_least: Option<u64>) -> Result<Snapshot, ReadError> {
        let Some(store) = self.store() else {
            return Err(ReadError::NotReady(self.why_not_ready()));
        };
        // None: nobody knows yet what readers saw before the host started.
        let Some(gate) = self.shared.progress.answers_from() else {
            return Err(ReadError::NotReady(self.why_not_ready()));
        };
        // Both bounds apply: what readers saw before, and what this one asks for.
        let wanted = gate.max(at_least.unwrap_or(0));
        let snapshot = store.snapshot();
        let position = snapshot.position();
        if position >= wanted {
            Ok(snapshot)
        } else {
            Err(Behind { wanted, position }.into())
        }
    }

    /// It answers reads from now on.
    pub fn start_serving(&self) {
        self.shared.progress.start_serving();
    }

    /// It answers no reads from now on.
    pub fn stop_serving(&self) {
        self.shared.progress.stop_serving();
    }

    /// It answers no reads from now on, and follows the stream, so that it can answer them again.
    pub fn follow(&self) {
        self.shared.progress.follow();
    }

    /// Whether it has just started and does not know yet from which position it may answer.
    pub fn is_uncertain(&self) -> bool {
        self.now().catches_up_to.is_none() && self.is_running()
    }

    /// Replaces another runner: rejects reads until this runner reaches the highest position that
    /// the other has (or may have) served.
    pub fn inherit_shown_positions(&self, other: &Self, position: u64) {
        self.shared
            .progress
            .note_predecessor(&other.now(), position);
    }

    /// Why the state has no open file.
    pub fn why_not_open(&self) -> String {
        let name = &self.shared.deployment;
        self.why_it_can_not_be_read()
            .unwrap_or_else(|| format!("the state of {name} is not open yet; try again"))
    }

    fn why_it_can_not_be_read(&self) -> Option<String> {
        let (name, now) = (&self.shared.deployment, self.now());
        match (now.failure, now.repair_percent) {
            (Some(failure), _) => Some(format!("{name} can't be read: {}", failure.message)),
            (None, Some(percent)) => Some(format!(
                "the state of {name} is being repaired after an unclean stop: {percent:.0} %; try \
                 again later"
            )),
            (None, None) => None,
        }
    }

    fn why_not_ready(&self) -> String {
        let name = &self.shared.deployment;
        match self.why_it_can_not_be_read() {
            Some(why) => why,
            None => {
                let source = self
                    .source_status()
                    .message
                    .map(|message| format!(" ({message})"))
                    .unwrap_or_default();
                format!(
                    "{name} was not stopped cleanly, and only the end of its stream shows which \
                     positions it may have answered from; its source is not connected yet{source}; \
                     try again"
                )
            }
        }
    }

    /// Answers a query over a snapshot, on a blocking thread.
    pub async fn query(
        &self,
        snapshot: Snapshot,
        name: String,
        args: Payload,
    ) -> Result<Payload, QueryError> {
        let program = self.program();
        // A module that loads now, or that the runner will load, is worth another request.
        let may_come = self.is_running() || matches!(program.module, Err(NotLoaded::Yet));
        let not_loaded = |why: NotLoaded| {
            let why = why.to_string();
            if may_come {
                QueryError::NotReady(why)
            } else {
                QueryError::Failed(why)
            }
        };
        let module = program.module.map_err(not_loaded)?;
        let identity = Identity {
            deployment: self.shared.deployment.clone(),
            generation: program.generation,
        };
        let seconds = self.shared.metrics.query_seconds.clone();
        let progress = Arc::clone(&self.shared.progress);
        let answered = tokio::task::spawn_blocking(move || {
            // Counted while it runs, so that the host knows how many instances there are.
            let _alive = progress.count_instance();
            let started = Instant::now();
            let answer = module.query(&identity, snapshot, &name, &args);
            seconds.observe(started.elapsed().as_secs_f64());
            answer
        });
        answered.await.unwrap_or_else(|error| {
            Err(QueryError::Failed(format!(
                "the query ended unexpectedly: {error}"
            )))
        })
    }

    /// The position up to which nothing under a prefix changed since another position; none if
    /// something changed, or if that is unknown or can't be read.
    pub fn untouched_through(&self, after: u64, prefix: &str) -> Option<u64> {
        // A gate that is not open yet admits no read, and so no answer from memory either.
        let gate = self.shared.progress.answers_from()?;
        // All from one store, because a reopened store counts its changes from its last checkpoint.
        let store = self.store()?;
        let through = store.position();
        if through < gate {
            return None;
        }
        store
            .changed_between(after, through, prefix)
            .is_some_and(|keys| keys.is_empty())
            .then_some(through)
    }

    /// Whether a part of the state was replaced at a position, as far as known.
    pub fn was_patched_at(&self, position: u64) -> bool {
        self.store()
            .is_none_or(|store| store.changed_between(position, position, "").is_none())
    }
}
