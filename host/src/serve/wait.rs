//! Waits, after an append, until deployments have applied its events.
//!
//! The append has succeeded whatever comes of the wait, so a wait that ends without result is no
//! error: an error would invite the client to append again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::problem::{Kind, Problem};
use super::standing::Standing;
use crate::api::{WaitOutcome, Waited};
use crate::deployment::Deployment;
use crate::deployments::Deployments;
use crate::runner::Runner;

/// Most deployments that one append waits for.
const DEPLOYMENTS_MAX: usize = 8;

/// The deployments that an append waits for.
pub(super) struct Waits {
    deployments: Vec<Arc<Deployment>>,
    timeout: Duration,
}

/// The names of deployments in a parameter, separated by commas.
pub(super) fn names(text: &str) -> BTreeSet<String> {
    text.split(',').map(|name| name.trim().to_owned()).collect()
}

impl Waits {
    /// Those with these names, separated by commas, which must read the source. Before anything is
    /// appended.
    pub(super) fn of(
        all: &Deployments,
        text: &str,
        source: &str,
        timeout: Duration,
    ) -> Result<Self, Problem> {
        let names = names(text);
        if names.len() > DEPLOYMENTS_MAX {
            return Err(Problem::invalid(format!(
                "wait names {} deployments; an append waits for at most {DEPLOYMENTS_MAX}",
                names.len()
            )));
        }
        let mut deployments = Vec::with_capacity(names.len());
        for name in names {
            let deployment = all.get(&name)?;
            let reads = deployment.with_record(|record| record.active().source.clone());
            if reads != source {
                return Err(Problem::new(
                    Kind::Refused,
                    format!(
                        "{name} reads source {reads}, so it never applies what is appended to \
                         {source}; nothing was appended"
                    ),
                ));
            }
            deployments.push(deployment);
        }
        Ok(Self {
            deployments,
            timeout,
        })
    }

    /// Waits until all of them have applied the events, or can't, or the host stops, which would wait
    /// for this otherwise. A client that may no longer read them learns nothing about them.
    pub(super) async fn wait(
        self,
        sequences: &[u64],
        (shutdown, standing): (&CancellationToken, &Standing),
    ) -> Vec<Waited> {
        let until = Instant::now() + self.timeout;
        let waits = self
            .deployments
            .iter()
            .map(|deployment| wait(deployment, sequences, (until, shutdown)));
        tokio::select! {
            // Both arms only observe.
            biased;
            _ = standing.lapsed() => self.deployments.iter().map(|it| unknown(it)).collect(),
            waited = futures_util::future::join_all(waits) => waited,
        }
    }
}

async fn wait(
    deployment: &Deployment,
    sequences: &[u64],
    (until, shutdown): (Instant, &CancellationToken),
) -> Waited {
    let last = sequences.iter().copied().max().unwrap_or(0);
    let mut actives = deployment.actives();
    loop {
        let runner = Arc::clone(&actives.borrow_and_update());
        if let Some(outcome) = outcome(&runner, sequences, last) {
            return waited(deployment, &runner, outcome);
        }
        let answers = runner.wait_until_answering(Some(last));
        let stops = runner.until(|runner| (!runner.is_running()).then_some(()));
        tokio::select! {
            // All arms only observe.
            () = answers => {}
            () = stops => {}
            changed = actives.changed() => {
                if changed.is_err() {
                    return waited(deployment, &runner, WaitOutcome::Stopped);
                }
            }
            () = shutdown.cancelled() => {
                let outcome = outcome(&runner, sequences, last);
                return waited(deployment, &runner, outcome.unwrap_or(WaitOutcome::Stopped));
            }
            () = tokio::time::sleep_until(until) => {
                let outcome = outcome(&runner, sequences, last);
                return waited(deployment, &runner, outcome.unwrap_or(WaitOutcome::TimedOut));
            }
        }
    }
}

/// What became of the events; none while that is open.
fn outcome(runner: &Runner, sequences: &[u64], last: u64) -> Option<WaitOutcome> {
    match runner.try_snapshot(Some(last)) {
        Ok(snapshot) => Some(if snapshot.has_parked(sequences) {
            WaitOutcome::Parked
        } else if snapshot.has_skipped(sequences) {
            WaitOutcome::Skipped
        } else {
            WaitOutcome::Applied
        }),
        Err(_) => (!runner.is_running()).then_some(WaitOutcome::Stopped),
    }
}

fn waited(deployment: &Deployment, runner: &Runner, outcome: WaitOutcome) -> Waited {
    Waited {
        deployment: deployment.name().to_owned(),
        outcome,
        position: runner.last_position(),
    }
}

/// What somebody learns whose token was withdrawn during the wait.
fn unknown(deployment: &Deployment) -> Waited {
    Waited {
        deployment: deployment.name().to_owned(),
        outcome: WaitOutcome::NotAllowed,
        position: 0,
    }
}
