//! Waits until a deployment has applied the events that exist, and shows its progress.

use std::time::{Duration, Instant};

use super::client::{self, Client};
use super::exit::{Exit, Failure};
use super::output::{Output, grouped, known};
use super::progress::{Progress, Step};
use crate::api::{self, Deployment, DeploymentState, SourceState, SourceStatus};

/// Pause between two checks; short at first, because small streams are done at once.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// How long a host may be away that has answered before: long enough for a restart.
const AWAY_MAX: Duration = Duration::from_secs(60);

/// Waits until the deployment is live, or has passed the head that the stream had when the wait
/// began.
pub(crate) async fn wait(
    client: &Client,
    name: &str,
    timeout: Option<Duration>,
    output: Output,
) -> anyhow::Result<Deployment> {
    let mut patience = Patience::new(timeout);
    // What is waited for was just begun.
    patience.heard();
    let mut progress = Progress::new(name, output);
    let mut target = 0;
    let mut shown = Shown::default();
    loop {
        match client.deployment(name).await {
            Ok(deployment) => {
                // The first head that is known: what is appended later does not prolong the wait.
                if target == 0 {
                    target = deployment.head.unwrap_or_default();
                }
                patience.heard();
                if finished(&deployment, target)? {
                    return Ok(deployment);
                }
                progress.show(&step(&deployment));
                show_trouble(&deployment, &mut shown, &progress);
                if patience.is_over() {
                    return Err(too_late(&deployment).into());
                }
            }
            Err(error) => patience.bear(error, &progress)?,
        }
        patience.pause().await;
    }
}

/// How long to wait, and how often to check.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    deadline: Option<Instant>,
    pause: Duration,
    /// Since when the host has not answered, once it has.
    away: Option<Instant>,
    /// Whether the host has answered at all.
    has_heard: bool,
}

impl Patience {
    /// Starts the clock; without a limit it waits for as long as it takes.
    pub(crate) fn new(timeout: Option<Duration>) -> Self {
        Self {
            deadline: timeout.map(|timeout| Instant::now() + timeout),
            pause: PAUSE_FIRST,
            away: None,
            has_heard: false,
        }
    }

    /// Notes that the host answers.
    pub(crate) fn heard(&mut self) {
        self.away = None;
        self.has_heard = true;
    }

    /// Returns an error unless it is one that passes if one waits: a busy host, or one that
    /// restarts. The user hears once of a host that is away.
    pub(crate) fn bear(&mut self, error: client::Error, progress: &Progress) -> anyhow::Result<()> {
        if !error.may_pass() || self.is_over() {
            return Err(error.into());
        }
        // It answers, though not with what was asked for.
        if matches!(error, client::Error::Problem(_)) {
            self.heard();
            return Ok(());
        }
        // A host that never answered is more likely a wrong address than one that restarts.
        let is_lost = match self.away {
            Some(since) => self.deadline.is_none() && since.elapsed() > AWAY_MAX,
            None => !self.has_heard,
        };
        if is_lost {
            return Err(error.into());
        }
        if self.away.is_none() {
            self.away = Some(Instant::now());
            let patience = match self.deadline {
                Some(_) => String::new(),
                None => format!(" for {} s", AWAY_MAX.as_secs()),
            };
            progress.note(&format!("{error}; waiting{patience} for it to come back"));
        }
        Ok(())
    }

    /// Whether the time is up.
    pub(crate) fn is_over(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Waits until the next check.
    pub(crate) async fn pause(&mut self) {
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

fn finished(deployment: &Deployment, target: u64) -> Result<bool, Failure> {
    match deployment.state {
        // Live says nothing about new code that has not begun: `begun` does.
        DeploymentState::Live => Ok(deployment.begun),
        DeploymentState::Failed => Err(Failure::new(Exit::Failed, failure_text(deployment))),
        DeploymentState::Paused => {
            let name = &deployment.name;
            Err(Failure::new(
                Exit::Failed,
                format!("{name} is paused; continue with `foldstream resume {name}`"),
            ))
        }
        DeploymentState::Stopping => Err(Failure::new(
            Exit::Unreachable,
            "the host is stopping; try again later",
        )),
        DeploymentState::Opening
        | DeploymentState::CatchingUp
        | DeploymentState::Retrying
        | DeploymentState::Disconnected => {
            // Passing the old end is enough: a stream that never rests would never be caught up
            // with.
            Ok(deployment.begun && target > 0 && deployment.position >= target)
        }
    }
}

/// The failure of a deployment, as a sentence for people.
pub(crate) fn failure_text(deployment: &Deployment) -> String {
    let name = &deployment.name;
    let Some(failure) = &deployment.failure else {
        return format!("{name} failed; `foldstream show {name}` may say more");
    };
    let at = failure
        .sequence
        .map(|sequence| format!(" at sequence {sequence}"))
        .unwrap_or_default();
    format!("{name} failed{at}: {}: {}", failure.kind, failure.message)
}

/// The outcome of a resume or a rollback, in one line; an error if the deployment failed.
pub(crate) fn outcome(deployment: &Deployment) -> Result<String, Failure> {
    let (name, position) = (&deployment.name, grouped(deployment.position));
    let state = deployment.state.name();
    if deployment.state == DeploymentState::Failed {
        return Err(Failure::new(Exit::Failed, failure_text(deployment)));
    }
    let line = format!("{name}: {state} at position {position}");
    // A paused one begins when it is resumed, so nothing is missing.
    if deployment.begun || deployment.state == DeploymentState::Paused {
        return Ok(line);
    }
    let because = match (&deployment.failure, &deployment.source_status.message) {
        (Some(failure), _) => format!("{}: {}", failure.kind, failure.message),
        (None, Some(message)) => format!("its source was not reached: {message}"),
        (None, None) => "the first batch is still running".to_owned(),
    };
    Ok(format!(
        "{line}, nothing applied yet ({because}); see `foldstream show {name}`"
    ))
}

fn too_late(deployment: &Deployment) -> Failure {
    let because = match (&deployment.failure, &deployment.source_status.message) {
        (Some(failure), _) => format!(" ({}: {})", failure.kind, failure.message),
        (None, Some(message)) => format!(" (source: {message})"),
        (None, None) => String::new(),
    };
    let message = format!(
        "{} is at {} of {} when the time ran out{because}; it continues on its own, `foldstream \
         show {}` shows its progress",
        deployment.name,
        grouped(deployment.position),
        known(deployment.head, grouped),
        deployment.name
    );
    Failure::new(Exit::TimedOut, message)
}

fn step(deployment: &Deployment) -> Step {
    Step {
        done: deployment.events_applied,
        // Events that match, and not sequences: a filtered stream has gaps.
        total: deployment
            .lag_events
            .map(|lag| deployment.events_applied + lag),
        is_estimate: false,
        rate: deployment.rate,
        remaining_seconds: deployment.remaining_seconds,
    }
}

/// Reports each problem that delays the deployment once.
fn show_trouble(deployment: &Deployment, shown: &mut Shown, progress: &Progress) {
    let source = Some(&deployment.source_status);
    let trouble = Trouble::of(&deployment.name, deployment.failure.as_ref(), source);
    // New code that has applied nothing yet may fail in the same way.
    if trouble.is_none() && !deployment.begun {
        return;
    }
    shown.update(trouble, deployment.position, progress);
}

/// What delays a deployment or generation for which a command waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    text: String,
    /// The event that could not be applied, if that is the trouble.
    sequence: Option<u64>,
}

impl Trouble {
    /// The trouble of a deployment or generation, if it has any: a failure, else its source.
    pub(crate) fn of(
        name: &str,
        failure: Option<&api::Failure>,
        source: Option<&SourceStatus>,
    ) -> Option<Self> {
        if let Some(failure) = failure {
            let (kind, message) = (&failure.kind, &failure.message);
            return Some(Self {
                text: format!("{name}: {kind}, trying again: {message}"),
                sequence: failure.sequence,
            });
        }
        let trouble = source_trouble(source?)?;
        Some(Self {
            text: format!("{name}: {trouble}"),
            sequence: None,
        })
    }
}

/// The trouble that the user was shown last, if it is not over.
#[derive(Debug, Default)]
pub(crate) struct Shown(Option<Trouble>);

impl Shown {
    /// Reports a new problem, and the end of one. Trouble with an event is over once a position
    /// has passed the event: between two attempts it only seems to be.
    pub(crate) fn update(&mut self, trouble: Option<Trouble>, position: u64, progress: &Progress) {
        if self.0 == trouble {
            return;
        }
        match (&trouble, &self.0) {
            (Some(trouble), _) => progress.note(&trouble.text),
            (None, Some(shown)) if shown.sequence.is_some_and(|failed| position < failed) => return,
            (None, _) => progress.note(&format!("{}: resolved, it continues", progress.subject())),
        }
        self.0 = trouble;
    }
}

/// Why a source can't be read, if it can't.
fn source_trouble(status: &SourceStatus) -> Option<String> {
    let message = status.message.as_ref()?;
    let is_trouble = status.state.is_trouble()
        // Two states that are no trouble to a host, but that a user who waits should know of.
        || matches!(status.state, SourceState::Connecting | SourceState::Stopped);
    is_trouble.then(|| format!("source {}: {message}", status.state.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(state: DeploymentState) -> Deployment {
        Deployment {
            state,
            ..crate::cli::commands::deployments::show::tests::deployment()
        }
    }

    #[test]
    fn a_host_that_is_away_is_waited_for_if_it_answered_before_but_not_for_ever() {
        let progress = Progress::new("totals", Output::default());
        let away = || client::Error::Unreachable {
            url: "http://127.0.0.1:1".to_owned(),
            message: "connection refused".to_owned(),
            is_refused: true,
        };
        let mut patience = Patience::new(None);
        let error = patience.bear(away(), &progress).expect_err("never heard");
        assert_eq!(super::super::exit::exit_of(&error), Exit::Unreachable);
        patience.heard();
        patience.bear(away(), &progress).expect("it may restart");
        patience.bear(away(), &progress).expect("for a while");
        let long_ago = AWAY_MAX + Duration::from_secs(1);
        patience.away = Instant::now().checked_sub(long_ago);
        patience.bear(away(), &progress).expect_err("for long");
        patience.heard();
        patience.bear(away(), &progress).expect("a new absence");
        // A limit of the user's own is kept instead.
        let mut patience = Patience::new(Some(Duration::from_secs(600)));
        patience.heard();
        patience.bear(away(), &progress).expect("it may restart");
        patience.away = Instant::now().checked_sub(long_ago);
        patience
            .bear(away(), &progress)
            .expect("the user waits longer");
        patience.deadline = Some(Instant::now());
        patience
            .bear(away(), &progress)
            .expect_err("the time is up");
    }

    #[test]
    fn trouble_with_an_event_is_over_once_a_position_has_passed_it() {
        let progress = Progress::new("totals", Output::default());
        let failed = Trouble {
            text: "totals: trap, trying again: unreachable".to_owned(),
            sequence: Some(11),
        };
        let mut shown = Shown::default();
        shown.update(Some(failed.clone()), 10, &progress);
        shown.update(None, 10, &progress);
        assert_eq!(shown.0, Some(failed), "between two attempts");
        shown.update(None, 11, &progress);
        assert_eq!(shown.0, None, "it was applied, skipped or parked");
        let away = Trouble {
            text: "totals: source away".to_owned(),
            sequence: None,
        };
        shown.update(Some(away), 11, &progress);
        shown.update(None, 11, &progress);
        assert_eq!(shown.0, None, "the source is back");
    }

    #[test]
    fn waiting_ends_when_live_or_past_the_first_head() {
        assert!(finished(&deployment(DeploymentState::Live), 0).expect("is fine"));
        assert!(!finished(&deployment(DeploymentState::CatchingUp), 1_000_000).expect("is fine"));
        assert!(finished(&deployment(DeploymentState::CatchingUp), 400_000).expect("is fine"));
        assert!(
            !finished(&deployment(DeploymentState::CatchingUp), 0)
                .expect("the head is not known yet")
        );
        for state in [DeploymentState::Live, DeploymentState::CatchingUp] {
            let unproved = Deployment {
                begun: false,
                ..deployment(state)
            };
            assert!(!finished(&unproved, 400_000).expect("it has yet to apply something"));
        }
    }

    #[test]
    fn what_has_yet_to_apply_something_is_not_called_live_without_a_word() {
        let shown = outcome(&deployment(DeploymentState::Live)).expect("is fine");
        assert_eq!(shown, "order-totals: live at position 400,000");
        let mut away = Deployment {
            begun: false,
            ..deployment(DeploymentState::CatchingUp)
        };
        away.source_status.message = Some("connection refused".to_owned());
        let shown = outcome(&away).expect("is no failure");
        assert!(
            shown.contains("nothing applied yet (its source was not reached: connection refused)"),
            "{shown}"
        );
        let failure = outcome(&deployment(DeploymentState::Failed)).expect_err("it failed");
        assert_eq!(failure.exit, Exit::Failed);
    }

    #[test]
    fn waiting_ends_with_the_failure_of_the_deployment() {
        let mut failed = deployment(DeploymentState::Failed);
        failed.failure = Some(api::Failure {
            kind: "trap".to_owned(),
            class: None,
            message: "unreachable".to_owned(),
            sequence: Some(17),
            first_at: String::new(),
            attempts: 10,
            next_attempt_at: None,
            breaker_open: false,
        });
        let failure = finished(&failed, 0).expect_err("it failed");
        assert_eq!(failure.exit, Exit::Failed);
        assert_eq!(
            failure.message,
            "order-totals failed at sequence 17: trap: unreachable"
        );
        let failure = finished(&deployment(DeploymentState::Paused), 0).expect_err("it is paused");
        assert_eq!(
            failure.message,
            "order-totals is paused; continue with `foldstream resume order-totals`"
        );
    }
}
