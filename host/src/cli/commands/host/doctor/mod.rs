//! `foldstream doctor`: finds what makes hosts lose data, slow down or stop.

mod data;
mod machine;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::api::{Deployment, DeploymentList, DeploymentState, HostInfo, SourceInfo, SourceList};
use crate::cli::Context;
use crate::cli::commands::deployments::outbox::{self, Promised};
use crate::cli::commands::deployments::timers;
use crate::cli::commands::project::languages::rust;
use crate::cli::commands::rollouts::generations::standing;
use crate::cli::support::client::{self, Client};
use crate::cli::support::config_args;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::{Format, Output, compact, counted, pretty, table};
use crate::cli::support::wait_until_live;
use crate::config::{Config, Severity};
use crate::memory;

/// Longest wait for one source.
const SOURCE_WAIT: Duration = Duration::from_secs(10);

/// Find what makes hosts lose data, slow down or stop, and say what to do about it.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream doctor
  foldstream doctor --config /etc/foldstream.toml
  foldstream doctor -o ndjson | jq -r 'select(.status != \"ok\")'
  foldstream doctor --data /var/lib/foldstream    # check all files of a stopped host

Asks a running host about its sources; without one, checks them directly from the configuration. \
The exit code is 1 if a check fails.")]
pub(crate) struct Args {
    #[command(flatten)]
    settings: config_args::Settings,
    /// Instead, read and verify every file of this data folder. Its host must be stopped. Files
    /// that were not closed cleanly are repaired, as a host would do.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Ok,
    /// It works, but may lose data or be slow.
    Warn,
    /// It does not work.
    Fail,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub check: String,
    pub status: Status,
    /// The finding, and what to do.
    pub finding: String,
}

impl Check {
    fn new(check: impl Into<String>, status: Status, finding: impl Into<String>) -> Self {
        Self {
            check: check.into(),
            status,
            finding: finding.into(),
        }
    }

    pub(crate) fn ok(check: impl Into<String>, finding: impl Into<String>) -> Self {
        Self::new(check, Status::Ok, finding)
    }

    /// It works, but may lose data or be slow.
    pub(crate) fn warn(check: impl Into<String>, finding: impl Into<String>) -> Self {
        Self::new(check, Status::Warn, finding)
    }

    /// It does not work.
    pub(crate) fn fail(check: impl Into<String>, finding: impl Into<String>) -> Self {
        Self::new(check, Status::Fail, finding)
    }
}

/// Runs all checks and prints them.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    if let Some(folder) = &args.data {
        return report(&context.output, &data::checks(folder).await?);
    }
    // First, so that it spans all other checks.
    let watch = machine::ClockWatch::begin();
    let config = args.settings.load(Vec::new())?;
    let client = context.client_of(Some(&config))?;
    let mut checks = check_configuration(&config);
    let host = client.get::<HostInfo>(&["v1", "host"], &[]).await;
    match &host {
        Ok(info) => {
            checks.push(check_host(info, client.url()));
            checks.extend(
                info.faults
                    .iter()
                    .map(|fault| Check::fail("data folder", fault.clone())),
            );
            checks.extend(check_running(&client).await);
            checks.push(check_server_clock(&client).await);
        }
        Err(client::Error::Unreachable {
            is_refused: true, ..
        }) => {
            let finding = format!(
                "no host answers at {}; checking sources directly",
                client.url()
            );
            // A host that was named is expected to answer; that of the configuration may not run
            // yet.
            checks.push(if context.url.is_some() {
                Check::warn("host", finding)
            } else {
                Check::ok("host", finding)
            });
            checks.extend(check_sources_directly(&config).await);
        }
        Err(error) => checks.push(Check::fail("host", error.to_string())),
    }
    // The host's limits count, no matter where or as which user this command runs.
    let process = host.map_or_else(
        |_| memory::process(&config.shares(), None, Vec::new()).into(),
        |info| info.process,
    );
    checks.extend(machine::checks(&config, &process));
    checks.push(check_target().await);
    checks.push(watch.end());
    report(&context.output, &checks)
}

fn report(output: &Output, checks: &[Check]) -> anyhow::Result<()> {
    match output.format {
        Format::Table => output.line(&lines(checks))?,
        Format::Json => output.line(&pretty(&checks))?,
        Format::Ndjson => checks
            .iter()
            .try_for_each(|check| output.line(&compact(check)))?,
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let (warnings, failures) = (count(Status::Warn), count(Status::Fail));
    if failures > 0 {
        let message = format!(
            "{failures} of {} checks failed; each says what to do",
            checks.len()
        );
        return Err(Failure::new(Exit::Failed, message).into());
    }
    output.note(&match warnings {
        0 => "all is well".to_owned(),
        _ => format!("no failures; {warnings} warnings"),
    });
    Ok(())
}

fn lines(checks: &[Check]) -> String {
    let row = |check: &Check| {
        let status = match check.status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        vec![
            status.to_owned(),
            check.check.clone(),
            check.finding.clone(),
        ]
    };
    table(&["STATUS", "CHECK", "FINDING"], checks.iter().map(row))
}

fn check_configuration(config: &Config) -> Vec<Check> {
    let problems = crate::preflight::problems(config);
    if problems.is_empty() {
        return vec![Check::ok(
            "configuration",
            "keys, files and limits are consistent",
        )];
    }
    let check = |problem: &crate::config::Problem| match problem.severity {
        Severity::Warning => Check::warn("configuration", problem.to_string()),
        Severity::Error => Check::fail("configuration", problem.to_string()),
    };
    problems.iter().map(check).collect()
}

fn check_host(info: &HostInfo, url: &str) -> Check {
    let own = env!("CARGO_PKG_VERSION");
    if info.version == own {
        let deployments = counted(info.deployments, "deployment");
        return Check::ok(
            "host",
            format!("version {own} answers at {url}, {deployments}"),
        );
    }
    let finding = format!(
        "{url} runs version {}, but this program is {own}; use the same version for both",
        info.version
    );
    Check::warn("host", finding)
}

async fn check_running(client: &Client) -> Vec<Check> {
    let mut checks = Vec::new();
    match client.get::<SourceList>(&["v1", "sources"], &[]).await {
        Ok(list) => checks.extend(list.sources.iter().flat_map(check_source)),
        Err(error) => checks.push(Check::fail("sources", error.to_string())),
    }
    match client
        .get::<DeploymentList>(&["v1", "deployments"], &[])
        .await
    {
        Ok(list) => checks.extend(list.deployments.iter().flat_map(|deployment| {
            let name = format!("deployment {}", deployment.name);
            let own = match deployment.state {
                DeploymentState::Failed => {
                    Check::fail(name, wait_until_live::failure_text(deployment))
                }
                DeploymentState::Retrying => {
                    Check::warn(name, wait_until_live::failure_text(deployment))
                }
                DeploymentState::Disconnected => Check::fail(name, disconnected(deployment)),
                DeploymentState::Paused => Check::warn(
                    name,
                    format!("is paused; `foldstream resume {}`", deployment.name),
                ),
                DeploymentState::Opening
                | DeploymentState::CatchingUp
                | DeploymentState::Stopping => Check::ok(
                    name,
                    format!("{}, lag {}", deployment.state.name(), lag(deployment)),
                ),
                DeploymentState::Live if deployment.lag_events.is_none() => Check::warn(
                    name,
                    "was live, but its lag is unknown: its source does not answer",
                ),
                DeploymentState::Live => Check::ok(name, format!("live, lag {}", lag(deployment))),
            };
            std::iter::once(own)
                .chain(check_candidate(deployment))
                .chain(check_outbox(deployment))
                .chain(check_timers(deployment))
                .chain(check_failure_events(deployment))
        })),
        Err(error) => checks.push(Check::fail("deployments", error.to_string())),
    }
    checks
}

/// Whether something keeps a candidate that is ready from taking over.
fn check_candidate(deployment: &Deployment) -> Option<Check> {
    let candidate = deployment.candidate.as_ref()?;
    candidate.held_back.as_ref()?;
    Some(Check::warn(
        format!("candidate of {}", deployment.name),
        format!("generation {} {}", candidate.number, standing(candidate)),
    ))
}

/// How safely a handler publishes.
fn check_outbox(deployment: &Deployment) -> Vec<Check> {
    let targets = deployment.outbox.iter().flat_map(|outbox| &outbox.targets);
    let check = |target: &crate::api::OutboxTarget| {
        let name = format!("outbox of {}", deployment.name);
        match outbox::judge(&deployment.name, target) {
            Promised::Holds(finding) => Check::ok(name, finding),
            Promised::MayFail(finding) => Check::warn(name, finding),
        }
    };
    targets.map(check).collect()
}

/// Whether the timers of a handler can fire, and come to an end.
fn check_timers(deployment: &Deployment) -> Vec<Check> {
    let Some(shown) = &deployment.timers else {
        return Vec::new();
    };
    let trouble = shown.trouble.as_ref();
    let trouble = trouble.map(|trouble| format!("some cannot fire: {trouble}"));
    let found = trouble
        .into_iter()
        .chain(shown.timer_loop.as_ref().map(timers::looping));
    let name = format!("timers of {}", deployment.name);
    found
        .map(|found| Check::warn(name.clone(), found))
        .collect()
}

/// Whether events about parked events reach their target.
fn check_failure_events(deployment: &Deployment) -> Option<Check> {
    let events = deployment.failure_events.as_ref()?;
    let trouble = events.trouble.as_ref()?;
    Some(Check::warn(
        format!("failure events of {}", deployment.name),
        format!("some are not published to {}: {trouble}", events.to),
    ))
}

fn lag(deployment: &Deployment) -> String {
    crate::cli::support::output::known(deployment.lag_events, |events| {
        format!("{} events", crate::cli::support::output::grouped(events))
    })
}

/// Why a deployment reads nothing, and what that means.
fn disconnected(deployment: &Deployment) -> String {
    let status = &deployment.source_status;
    let why = status.message.as_deref().unwrap_or("it does not answer");
    format!(
        "reads nothing: source {} is {}: {why}; its lag is {}; it continues on its own once \
         the source is back",
        deployment.source,
        crate::cli::commands::deployments::show::source_word(status),
        lag(deployment)
    )
}

fn check_source(source: &SourceInfo) -> Vec<Check> {
    let name = format!("source {}", source.name);
    if !source.reachable {
        let message = source.message.as_deref().unwrap_or("it cannot be reached");
        return vec![Check::fail(
            name,
            format!("{} stream {}: {message}", source.kind, source.stream),
        )];
    }
    let obstacle = source
        .obstacle
        .iter()
        .map(|obstacle| Check::fail(name.clone(), format!("cannot be read: {obstacle}")));
    let mut checks: Vec<Check> = obstacle.collect();
    if checks.is_empty() && source.warnings.is_empty() {
        let finding = format!(
            "{} stream {}, {} events, last sequence {}",
            source.kind,
            source.stream,
            crate::cli::support::output::known(source.events, crate::cli::support::output::grouped),
            crate::cli::support::output::known(
                source.last_sequence,
                crate::cli::support::output::grouped
            )
        );
        checks.push(Check::ok(name.clone(), finding));
    }
    checks.extend(
        source
            .warnings
            .iter()
            .map(|warning| Check::warn(name.clone(), warning.clone())),
    );
    checks.extend(check_first_events(source));
    checks
}

/// How events are interpreted is not an error in itself; only people know what they expected.
fn check_first_events(source: &SourceInfo) -> Option<Check> {
    let finding = source.first_events.clone()?;
    Some(Check::ok(format!("events of {}", source.name), finding))
}

async fn check_sources_directly(config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    for (name, source) in &config.sources {
        let title = format!("source {name}");
        match source.without_host(name) {
            None => checks.push(Check::ok(
                title,
                "embedded log; only a running host can check it",
            )),
            Some(Err(error)) => checks.push(Check::fail(title, error.to_string())),
            Some(Ok(source)) => match tokio::time::timeout(SOURCE_WAIT, source.info()).await {
                Ok(info) => checks.extend(check_source(&info.into())),
                Err(_) => checks.push(Check::fail(
                    title,
                    format!(
                        "no answer within {} s; is the server running?",
                        SOURCE_WAIT.as_secs()
                    ),
                )),
            },
        }
    }
    if config.sources.is_empty() {
        checks.push(Check::ok(
            "source events",
            "embedded log, the default; only a running host can check it",
        ));
    }
    checks
}

/// The host stamps events of an embedded log and computes lag by its clock.
async fn check_server_clock(client: &Client) -> Check {
    match client.clock_skew().await {
        Ok(Some(skew)) => machine::judge_skew(skew),
        Ok(None) => Check::ok("clock of the host", "the host does not report its time"),
        Err(error) => Check::warn("clock of the host", error.to_string()),
    }
}

async fn check_target() -> Check {
    if rust::has_target(None).await {
        return Check::ok("build target", "wasm32-unknown-unknown is installed");
    }
    let finding = "wasm32-unknown-unknown is missing; only `build` and `dev` need it: rustup \
                   target add wasm32-unknown-unknown";
    Check::warn("build target", finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_rows() {
        let checks = [
            Check::ok("disk", "fine"),
            Check::fail("source orders", "no such stream"),
        ];
        assert_eq!(
            lines(&checks),
            "STATUS  CHECK          FINDING\nok      disk           fine\nFAIL    source \
             orders  no such stream"
        );
        assert_eq!(
            compact(&checks[1]),
            r#"{"check":"source orders","status":"fail","finding":"no such stream"}"#
        );
    }

    #[test]
    fn warnings_of_a_stream_are_checks_of_their_own() {
        let mut info = SourceInfo {
            name: "orders".to_owned(),
            kind: "jetstream".to_owned(),
            stream: "ORDERS".to_owned(),
            reachable: true,
            state: None,
            message: None,
            first_sequence: Some(1),
            is_complete: Some(true),
            last_sequence: Some(1_000),
            events: Some(1_000),
            bytes: Some(1),
            first_events: None,
            obstacle: None,
            warnings: Vec::new(),
        };
        let [check] = &check_source(&info)[..] else {
            panic!("one check")
        };
        assert_eq!(
            *check,
            Check::ok(
                "source orders",
                "jetstream stream ORDERS, 1,000 events, last sequence 1,000"
            )
        );
        info.first_events = Some("the first 3 are read as CloudEvents in JSON".to_owned());
        let [_, events] = &check_source(&info)[..] else {
            panic!("two checks")
        };
        assert_eq!(
            *events,
            Check::ok(
                "events of orders",
                "the first 3 are read as CloudEvents in JSON"
            )
        );
        info.first_events = None;
        info.warnings = vec!["max-age drops events".to_owned(), "one replica".to_owned()];
        assert!(
            check_source(&info)
                .iter()
                .all(|check| check.status == Status::Warn)
        );
        assert_eq!(check_source(&info).len(), 2);
        info.reachable = false;
        info.message = Some("connection refused".to_owned());
        let [check] = &check_source(&info)[..] else {
            panic!("one check")
        };
        assert_eq!(
            *check,
            Check::fail(
                "source orders",
                "jetstream stream ORDERS: connection refused"
            )
        );
    }
}
