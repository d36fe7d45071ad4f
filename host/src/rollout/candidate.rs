//! How a candidate gets on: whether it can take over, waits for an operator, or stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::deployment::Deployment;
use crate::deployments::{Error, owners};
use crate::failure::Whose;
use crate::progress::Now;
use crate::runner::Runner;
use crate::state::catalogue::{BuildSettings, Generation, Promotion, Record};

/// The outcome of building a candidate.
pub(super) enum Built {
    /// It follows the stream.
    Ready,
    /// It can't continue, on its own or at all.
    Failed(Stopped),
    /// An operator paused it.
    Paused,
    /// It is no longer a candidate, or the host is stopping.
    Gone,
}

/// Why a candidate can't continue.
pub(super) struct Stopped {
    pub(super) reason: String,
    /// The event that stopped it, if an event did.
    pub(super) sequence: Option<u64>,
    /// The runner that stopped, if one did.
    runner: Option<Arc<Runner>>,
}

/// What became of a candidate that stopped, before that was recorded.
pub(super) enum Since {
    /// It is still stopped.
    Stopped,
    /// An operator has let the same runner continue.
    Continued,
    /// Another runner continues it, with another task that drives it; or nothing does.
    Replaced,
}

impl Stopped {
    pub(super) fn because(error: &Error) -> Self {
        let reason = match error {
            // Its text names the folder, which concerns the log alone.
            Error::DataDir(error) => {
                tracing::error!(%error, "a candidate can't be built");
                "the data folder can't be written; the log of the host says why".to_owned()
            }
            error => error.to_string(),
        };
        Self {
            reason,
            sequence: None,
            runner: None,
        }
    }

    /// Why a runner can't continue; none if it can. A runner reopens a failed state on its own.
    pub(super) fn of(runner: &Arc<Runner>, name: &str) -> Option<Self> {
        let now = runner.now();
        if !now.has_stopped() {
            return None;
        }
        // A candidate can be skipped past its event like an active generation; the message says
        // how.
        let failure = now
            .failure
            .clone()
            .map(|failure| failure.with_way_past(name, Whose::Candidate));
        let reason = failure.map(|failure| {
            let at = failure
                .sequence
                .map(|sequence| format!(" (sequence {sequence})"))
                .unwrap_or_default();
            format!("{}: {}{at}", failure.kind, failure.message)
        });
        Some(Self {
            reason: reason.unwrap_or_else(|| "it failed".to_owned()),
            sequence: now.failing_at(),
            runner: Some(Arc::clone(runner)),
        })
    }

    /// What became of it since, by the runner that the candidate has now. The caller holds the
    /// deployment's lock.
    pub(super) fn since(&self, current: Option<&Arc<Runner>>) -> Since {
        let Some(stopped) = &self.runner else {
            return Since::Stopped;
        };
        if !current.is_some_and(|current| Arc::ptr_eq(current, stopped)) {
            Since::Replaced
        } else if stopped.now().has_stopped() {
            Since::Stopped
        } else {
            Since::Continued
        }
    }
}

/// How fast a candidate progresses, to decide when it is close enough to take over.
pub(super) struct Pace {
    since: Instant,
    applied: u64,
}

impl Pace {
    pub(super) fn of(now: &Now) -> Self {
        Self {
            since: Instant::now(),
            applied: now.applied,
        }
    }

    /// Whether the rest can be applied within the hold of a cut-over, at the measured rate.
    pub(super) fn is_within_reach(&self, now: &Now, hold: Duration) -> bool {
        // At least a millisecond, so that a check right at the start divides by no zero.
        let average = now.applied.saturating_sub(self.applied) as f64
            / self.since.elapsed().as_secs_f64().max(1e-3);
        // The better of both rates: the average has slow first batches in it, and the latest may be
        // a short dip.
        now.begun && now.pending as f64 <= average.max(now.rate) * hold.as_secs_f64()
    }
}

/// Whether nothing happens to a ready candidate before an operator promotes it. An operator wants
/// to see the comparison first.
pub(super) fn waits_for_operator(candidate: &Generation) -> bool {
    let must_compare = candidate.build.gate.is_some() && candidate.comparison.is_none();
    candidate.build.promote == Promotion::Manual && !must_compare
}

/// If the active generation stopped at an event, a candidate must have passed that event, or have
/// applied all events: the event that stopped one may stop the other too.
pub(super) fn check_ahead(serving: &Runner, runner: &Runner) -> Result<(), Error> {
    let now = runner.now();
    // One on a leash never gets ahead; it meets that event as the owner of its effects.
    let is_ahead = runner.is_on_leash()
        || runner.position() > serving.position()
        || (now.begun && now.pending == 0);
    if is_ahead || !serving.now().has_stopped() {
        return Ok(());
    }
    Err(Error::Conflict(format!(
        "the active generation stopped at {}, and the candidate at {} has not passed it yet; try \
         again when it has",
        serving.position(),
        runner.position()
    )))
}

/// Says that a candidate is throttled, and how to lift that; empty if it is not.
pub(super) fn throttled(name: &str, candidate: &Generation) -> String {
    let BuildSettings {
        max_rate,
        cpu_percent,
        ..
    } = &candidate.build;
    let limits: Vec<String> = max_rate
        .map(|rate| format!("{rate} events per second"))
        .into_iter()
        .chain(cpu_percent.map(|percent| format!("{percent} % of a core")))
        .collect();
    if limits.is_empty() || !candidate.status.is_candidate() {
        return String::new();
    }
    format!(
        "; it is throttled to {}: `foldstream throttle {name} --off` lifts that, and `foldstream \
         promote {name} --lift-throttle` lifts it and promotes",
        limits.join(" and ")
    )
}

/// The candidate with this number, as long as it is a candidate.
pub(super) fn find(deployment: &Deployment, number: u64) -> Option<Generation> {
    if deployment.is_gone() {
        return None;
    }
    // This is called often, so it copies only this generation.
    deployment.with_record(|record| {
        record
            .generation(number)
            .filter(|generation| generation.status.is_candidate())
            .cloned()
    })
}

/// Waits until a candidate is as wanted, or no longer a candidate. Cancel-safe: it only
/// observes.
pub(super) async fn until(
    deployment: &Deployment,
    number: u64,
    is_wanted: impl Fn(&Generation) -> bool,
) {
    let is_over = |record: &Record| {
        let candidate = record
            .generation(number)
            .filter(|generation| generation.status.is_candidate());
        candidate.is_none_or(&is_wanted).then_some(())
    };
    deployment.until(is_over).await;
}

/// Whether a candidate has applied everything that it may as long as it owns no effects.
pub(super) fn is_with_lead(deployment: &Deployment, number: u64, runner: &Runner) -> bool {
    if !runner.is_on_leash() || !runner.now().has_started() {
        return false;
    }
    // Position and row are two reads; a wrong answer in between is corrected at the next
    // figures.
    let active = deployment.active();
    let (continues_after, is_lost) = deployment.with_record(|record| {
        let candidate = record.generation(number);
        let after =
            candidate.and_then(|candidate| owners::continues_after(record, &active, candidate));
        (after, owners::is_owner_lost(record, &active))
    });
    match continues_after {
        Some(after) => runner
            .store()
            .is_some_and(|store| store.position() >= after),
        // The position of another file says nothing about what the owner has handled.
        None => !is_lost && runner.is_as_far_as(&active),
    }
}
