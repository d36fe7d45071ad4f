//! `foldstream show`: one deployment.

use super::{outbox, sagas, timers};
use crate::api::{
    Deployment, DeploymentInbox, DeploymentLanes, Failure, FailureEvents, Generation, ModuleInfo,
    OnFailure, ParkedCounts, SourceState, SourceStatus,
};
use crate::cli::Context;
use crate::cli::commands::project::inspect::{self, MIGRATES};
use crate::cli::commands::rollouts::generations::{outlook, standing};
use crate::cli::support::output::{bytes, counted, grouped, known, span, table};

/// Show one deployment: state, position, lag, candidate, module, queries, failure.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream show order-totals
  foldstream show order-totals -o json | jq .failure")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let deployment = context.client()?.deployment(&args.name).await?;
    context.output.one(&deployment, lines)?;
    Ok(())
}

/// What is shown of a deployment: names and values.
type Rows = Vec<(&'static str, String)>;

fn lines(deployment: &Deployment) -> String {
    let mut rows = vec![
        ("name", deployment.name.clone()),
        ("state", state_line(deployment)),
    ];
    rows.extend(deployment.failure.iter().flat_map(failure_rows));
    rows.extend(position_rows(deployment));
    rows.push(("source", source_line(deployment)));
    rows.extend(oddities(deployment));
    rows.extend(deployment.outbox.iter().flat_map(outbox::rows));
    rows.extend(deployment.timers.iter().flat_map(timers::rows));
    rows.extend(deployment.sagas.iter().flat_map(sagas::rows));
    rows.extend(generation_rows(deployment));
    rows.extend(module_rows(&deployment.module));
    table(
        &[],
        rows.into_iter()
            .map(|(name, value)| vec![name.to_owned(), value]),
    )
}

fn failure_rows(failure: &Failure) -> Rows {
    let at = failure
        .sequence
        .map(|sequence| format!(" at sequence {sequence}"))
        .unwrap_or_default();
    let what = format!("{}{at}: {}", failure.kind, failure.message);
    let mut rows = vec![("failure", what)];
    rows.extend(
        failure
            .class
            .map(|class| ("class", class.name().to_owned())),
    );
    rows.push(("failing since", failing_line(failure)));
    rows
}

/// How far the deployment is, and which events it went without.
fn position_rows(deployment: &Deployment) -> Rows {
    let head = known(deployment.head, grouped);
    let position = format!("{} of {head}", grouped(deployment.position));
    let mut rows = vec![
        ("position", position),
        ("checkpoint", checkpoint_line(deployment)),
        ("lag", lag_line(deployment)),
    ];
    if deployment.missing_events > 0 {
        let missing = counted(deployment.missing_events, "event");
        rows.push(("missing", format!("{missing} already gone from the stream")));
    }
    let applied = counted(deployment.events_applied, "event");
    let rate = grouped(deployment.rate as u64);
    rows.push(("applied", format!("{applied}, {rate}/s")));
    rows.extend(skipped_line(deployment).map(|line| ("skipped", line)));
    rows.extend(parked_line(deployment).map(|line| ("parked", line)));
    rows.extend(failure_events_line(deployment).map(|line| ("failure events", line)));
    rows.extend(deployment.inbox.iter().map(|inbox| {
        let DeploymentInbox { ids, duplicates } = inbox;
        let (left_out, known) = (counted(*duplicates, "duplicate"), counted(*ids, "id"));
        ("inbox", format!("{left_out} left out, {known} known"))
    }));
    rows.extend(
        deployment
            .lanes
            .iter()
            .map(|lanes| ("lanes", lanes_line(lanes))),
    );
    rows
}

fn batches(count: u64) -> String {
    let noun = if count == 1 { "batch" } else { "batches" };
    format!("{} {noun}", grouped(count))
}

/// How many lanes it has, and what became of its batches.
fn lanes_line(lanes: &DeploymentLanes) -> String {
    let collided = batches(lanes.collided);
    let mut line = if lanes.gave_up {
        format!(
            "1 instead of {}, because lanes touched the same entries in {collided}",
            lanes.count
        )
    } else {
        let split = batches(lanes.split);
        format!(
            "{}; {split} folded in lanes, {collided} folded again",
            lanes.count
        )
    };
    if !lanes.keys.is_empty() {
        line.push_str(&format!("; entries in common: {}", lanes.keys.join(", ")));
    }
    line
}

/// The sizes of the state, and the generations.
fn generation_rows(deployment: &Deployment) -> Rows {
    let (state, file) = (bytes(deployment.state_bytes), bytes(deployment.file_bytes));
    let (number, since) = (deployment.generation, &deployment.deployed_at);
    let mut rows = vec![
        ("state size", format!("{state} in a file of {file}")),
        ("generation", format!("{number}, deployed at {since}")),
    ];
    rows.extend(deployment.checks_events_after.map(|after| {
        let from = match after {
            0 => String::new(),
            after => format!(" after event {}", grouped(after)),
        };
        (
            "checks",
            format!("events{from}, against the schemas of the module"),
        )
    }));
    if !deployment.reason.is_empty() {
        rows.push(("reason", deployment.reason.clone()));
    }
    let others = [
        ("candidate", &deployment.candidate),
        ("previous", &deployment.previous),
    ];
    for (name, other) in others {
        rows.extend(
            other
                .as_deref()
                .map(|generation| (name, other_line(generation))),
        );
    }
    rows
}

fn module_rows(module: &ModuleInfo) -> Rows {
    let (kind, name, size) = (module.kind.name(), &module.name, bytes(module.size));
    let mut rows = vec![
        ("module", format!("{kind} {name} ({size})")),
        ("digest", module.digest.clone()),
        ("subjects", module.subjects.join(", ")),
    ];
    rows.extend(
        module
            .inbox
            .iter()
            .map(|inbox| ("recognises", inspect::inbox(inbox))),
    );
    rows.extend([
        ("error policy", inspect::error_policy(module)),
        ("limits", inspect::limits(module)),
        ("state version", module.state_version.to_string()),
    ]);
    if module.migrates {
        rows.push(("migrates", MIGRATES.to_owned()));
    }
    for query in &module.queries {
        rows.push(("query", format!("{}: {}", query.name, query.description)));
    }
    rows
}

fn state_line(deployment: &Deployment) -> String {
    let mut line = deployment.state.name().to_owned();
    if let Some(percent) = deployment.repair_percent {
        line.push_str(&format!(", repairing the state file: {percent:.0} %"));
    }
    if let Some(seconds) = deployment.remaining_seconds {
        line.push_str(&format!(", {} left", span(seconds)));
    }
    line
}

/// How long it has failed, and when the next attempt is due.
fn failing_line(failure: &Failure) -> String {
    let attempts = counted(failure.attempts.into(), "attempt");
    let next = failure
        .next_attempt_at
        .as_ref()
        .map(|at| format!(", the next at {at}"))
        .unwrap_or_default();
    let breaker = if failure.breaker_open {
        ", the circuit breaker is open"
    } else {
        ""
    };
    format!("{}, {attempts}{next}{breaker}", failure.first_at)
}

/// How much of the state is on disk.
fn checkpoint_line(deployment: &Deployment) -> String {
    let is_state = |failure: &Failure| failure.kind == "state";
    if deployment.file_bytes == 0 && deployment.failure.as_ref().is_some_and(is_state) {
        return "unknown, because the state can't be opened".to_owned();
    }
    let durable = grouped(deployment.checkpoint);
    if deployment.checkpoint >= deployment.position {
        return format!("{durable}; the whole state is on disk");
    }
    format!(
        "{durable} is on disk; later events are in memory, and are read again from the stream \
         after a crash"
    )
}

fn lag_line(deployment: &Deployment) -> String {
    match (deployment.lag_events, deployment.lag_seconds) {
        (None, _) => format!("unknown, because {}", why_unknown(deployment)),
        (Some(0), _) => "none".to_owned(),
        (Some(events), Some(seconds)) => format!(
            "{}, the oldest {} old",
            counted(events, "event"),
            span(seconds)
        ),
        (Some(events), None) => format!("{}, of unknown age", counted(events, "event")),
    }
}

/// Why nobody knows how far it is behind.
fn why_unknown(deployment: &Deployment) -> &'static str {
    match deployment
        .failure
        .as_ref()
        .map(|failure| failure.kind.as_str())
    {
        Some("source-diverged" | "source-truncated") => {
            "the stream does not have what the state was built from"
        }
        Some("source") => "the host has no such source",
        _ => "the source does not answer",
    }
}

/// The state of a source, and how long it has lasted if it keeps events from arriving.
pub(crate) fn source_word(status: &SourceStatus) -> String {
    let state = status.state.name();
    let lasts = status
        .since
        .as_deref()
        .filter(|_| status.state.is_trouble())
        .and_then(seconds_since);
    lasts.map_or_else(
        || state.to_owned(),
        |seconds| format!("{state} for {}", span(seconds)),
    )
}

/// Seconds since a time in RFC 3339.
fn seconds_since(time: &str) -> Option<f64> {
    let time: jiff::Timestamp = time.parse().ok()?;
    // The clocks of two machines differ, so the time may be ahead of ours.
    Some(
        jiff::Timestamp::now()
            .duration_since(time)
            .as_secs_f64()
            .max(0.0),
    )
}

/// The events that its state left out.
fn skipped_line(deployment: &Deployment) -> Option<String> {
    let last = deployment.skips.last().map(|skip| {
        // Decided, and counted once the state is behind it.
        let which = if skip.sequence > deployment.position {
            "next"
        } else {
            "the last"
        };
        format!("; {which} is {}: {}", skip.sequence, skip.reason)
    });
    let has_any = deployment.skipped > 0 || last.is_some();
    let count = counted(deployment.skipped, "event");
    has_any.then(|| format!("{count}{}", last.unwrap_or_default()))
}

/// What is parked, and whether further events would be.
fn parked_line(deployment: &Deployment) -> Option<String> {
    let ParkedCounts {
        keys,
        events,
        bytes: size,
        since,
    } = &deployment.parked;
    match (events, deployment.on_failure) {
        (0, OnFailure::Stop) => None,
        (0, OnFailure::Park) => Some("nothing; events that fail are parked".to_owned()),
        _ => {
            let since = since
                .as_ref()
                .map(|since| format!(", since {since}"))
                .unwrap_or_default();
            Some(format!(
                "{} of {}, {}{since}",
                counted(*events, "event"),
                counted(*keys, "key"),
                bytes(*size)
            ))
        }
    }
}

/// Where events about parked events go.
fn failure_events_line(deployment: &Deployment) -> Option<String> {
    let FailureEvents { to, trouble } = deployment.failure_events.as_ref()?;
    Some(match trouble {
        None => to.clone(),
        Some(trouble) => format!("{to}; some wait: {trouble}; the host tries again on its own"),
    })
}

/// A generation that is not active.
fn other_line(generation: &Generation) -> String {
    format!(
        "generation {}, {} ({}): {}; {}",
        generation.number,
        generation.status.name(),
        generation.strategy.name(),
        outlook(generation),
        standing(generation)
    )
}

/// Messages that are not valid events, counted since the reader started.
fn oddities(deployment: &Deployment) -> Vec<(&'static str, String)> {
    let status = &deployment.source_status;
    let mut rows = Vec::new();
    if status.passed_over > 0 {
        let count = grouped(status.passed_over);
        rows.push((
            "passed over",
            format!("{count} messages that are not events (delete markers, tombstones, schedules)"),
        ));
    }
    if status.repaired > 0 {
        let count = grouped(status.repaired);
        rows.push((
            "repaired",
            format!("{count} messages with invalid headers or subjects; the log names them"),
        ));
    }
    rows
}

fn source_line(deployment: &Deployment) -> String {
    let mut line = deployment.source.clone();
    if let Some(stream) = &deployment.stream {
        line.push_str(&format!(", stream {stream}"));
    }
    let status = &deployment.source_status;
    if status.state != SourceState::Reading {
        line.push_str(&format!(", {}", source_word(status)));
    }
    let heard = status
        .last_heard
        .as_deref()
        .filter(|_| status.state.is_trouble())
        .and_then(seconds_since);
    if let Some(ago) = heard {
        line.push_str(&format!(", last heard {} ago", span(ago)));
    }
    if let Some(message) = &status.message {
        line.push_str(&format!(": {message}"));
    }
    line
}

#[cfg(test)]
pub(in crate::cli) mod tests {
    use super::*;
    use crate::api::{DeploymentState, ModuleKind};
    use crate::api::{
        ErrorPolicy, FailureClass, ModuleInfo, ModuleLimits, QueryDescription, SourceStatus,
    };

    pub(in crate::cli) fn deployment() -> Deployment {
        Deployment {
            name: "order-totals".to_owned(),
            generation: 2,
            state: DeploymentState::CatchingUp,
            source: "events".to_owned(),
            stream: Some("ORDERS".to_owned()),
            source_status: SourceStatus {
                state: SourceState::Reading,
                message: None,
                since: None,
                last_heard: None,
                reconnects: 0,
                passed_over: 0,
                repaired: 0,
            },
            position: 400_000,
            checkpoint: 390_000,
            head: Some(1_000_000),
            lag_events: Some(600_000),
            lag_seconds: Some(12.0),
            missing_events: 0,
            events_applied: 400_000,
            begun: true,
            rate: 212_345.6,
            remaining_seconds: Some(2.8),
            repair_percent: None,
            state_bytes: 2_048,
            memtable_bytes: 1_024,
            pinned_bytes: 0,
            file_bytes: 1 << 20,
            guest_memory_bytes: 1_179_648,
            instances: 1,
            deployed_at: "2026-11-23T10:00:00.000000000Z".to_owned(),
            reason: "the name is new".to_owned(),
            failure: None,
            skipped: 0,
            on_failure: OnFailure::Stop,
            failure_events: None,
            checks_events_after: None,
            parked: ParkedCounts::default(),
            skips: Vec::new(),
            candidate: None,
            previous: None,
            outbox: None,
            inbox: None,
            lanes: None,
            timers: None,
            sagas: Vec::new(),
            module: ModuleInfo {
                digest: "abcdef0123456789".to_owned(),
                size: 102_400,
                kind: ModuleKind::Projection,
                name: "order-totals".to_owned(),
                description: "Totals per customer".to_owned(),
                subjects: vec!["orders.>".to_owned()],
                wants_headers: false,
                key_rule: "subject-token:2".to_owned(),
                state_version: 1,
                error_policy: ErrorPolicy {
                    attempts: Some(3),
                    initial_backoff_ms: Some(10),
                    max_backoff_ms: None,
                },
                limits: ModuleLimits {
                    memory_bytes: Some(32 << 20),
                    deadline_ms: Some(1_000),
                    ..ModuleLimits::default()
                },
                queries: vec![QueryDescription {
                    name: "top-customers".to_owned(),
                    description: "those who spent most".to_owned(),
                }],
                imports: vec!["foldstream:module/state@0.1.0".to_owned()],
                migrates: false,
                publishes: Vec::new(),
                inbox: None,
                sets_timers: false,
                events: Vec::new(),
            },
        }
    }

    #[test]
    fn deployment_is_shown_with_all_that_matters() {
        assert_eq!(
            lines(&deployment()),
            "\
name           order-totals
state          catching-up, 2.8 s left
position       400,000 of 1,000,000
checkpoint     390,000 is on disk; later events are in memory, and are read again from the stream after a crash
lag            600,000 events, the oldest 12 s old
applied        400,000 events, 212,345/s
source         events, stream ORDERS
state size     2.0 KiB in a file of 1.0 MiB
generation     2, deployed at 2026-11-23T10:00:00.000000000Z
reason         the name is new
module         projection order-totals (100.0 KiB)
digest         abcdef0123456789
subjects       orders.>
error policy   3 attempts, first pause 10 ms
limits         memory 32.0 MiB, deadline 1000 ms
state version  1
query          top-customers: those who spent most"
        );
    }

    #[test]
    fn candidate_and_previous_are_below_the_active_generation() {
        use crate::api::GenerationStatus;
        let candidate = crate::cli::commands::rollouts::generations::tests::generation();
        let mut previous = Generation {
            number: 1,
            status: GenerationStatus::Previous,
            ..candidate.clone()
        };
        previous.reason = "generation 2 took over at position 9".to_owned();
        previous.progress = Some(1.0);
        let mut shown = deployment();
        shown.candidate = Some(Box::new(candidate));
        shown.previous = Some(Box::new(previous));
        let shown = lines(&shown);
        let expected = "
generation     2, deployed at 2026-11-23T10:00:00.000000000Z
reason         the name is new
candidate      generation 3, building (rebuild): 40 %, 212,345/s, 2.8 s left; state version 2 instead of 1
previous       generation 1, previous (rebuild): 100 %; generation 2 took over at position 9
module  ";
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn source_that_is_away_makes_head_and_lag_unknown() {
        let mut away = deployment();
        away.state = DeploymentState::Disconnected;
        away.checkpoint = away.position;
        (
            away.head,
            away.lag_events,
            away.lag_seconds,
            away.remaining_seconds,
        ) = (None, None, None, None);
        away.source_status.state = SourceState::Reconnecting;
        away.source_status.message = Some("cannot connect: connection refused".to_owned());
        let shown = lines(&away);
        for line in [
            "state          disconnected",
            "position       400,000 of unknown",
            "checkpoint     400,000; the whole state is on disk",
            "lag            unknown, because the source does not answer",
            "source         events, stream ORDERS, reconnecting: cannot connect: connection refused",
        ] {
            assert!(
                shown.lines().any(|found| found == line),
                "{line} is missing in\n{shown}"
            );
        }
    }

    #[test]
    fn module_that_migrates_says_so() {
        let mut migrating = deployment();
        migrating.module.migrates = true;
        let shown = lines(&migrating);
        assert!(
            shown.contains("\nstate version  1\nmigrates       state of older versions\nquery "),
            "{shown}"
        );
    }

    #[test]
    fn failure_is_shown_right_below_the_state() {
        let mut failed = deployment();
        failed.state = DeploymentState::Failed;
        failed.remaining_seconds = None;
        failed.failure = Some(Failure {
            kind: "rejected".to_owned(),
            class: Some(FailureClass::Rejected),
            message: "no amount".to_owned(),
            sequence: Some(17),
            first_at: "2026-11-23T10:00:01.000000000Z".to_owned(),
            attempts: 1,
            next_attempt_at: None,
            breaker_open: false,
        });
        let shown = lines(&failed);
        let expected = "\
name           order-totals
state          failed
failure        rejected at sequence 17: no amount
class          rejected
failing since  2026-11-23T10:00:01.000000000Z, 1 attempt
position       400,000 of 1,000,000";
        assert!(shown.starts_with(expected), "{shown}");
    }

    #[test]
    fn the_next_attempt_and_an_open_breaker_are_shown_with_the_failure() {
        let failure = Failure {
            kind: "retry".to_owned(),
            class: Some(FailureClass::Retry),
            message: "later".to_owned(),
            sequence: Some(17),
            first_at: "2026-11-23T10:00:01Z".to_owned(),
            attempts: 2,
            next_attempt_at: Some("2026-11-23T10:00:31Z".to_owned()),
            breaker_open: true,
        };
        assert_eq!(
            failing_line(&failure),
            "2026-11-23T10:00:01Z, 2 attempts, the next at 2026-11-23T10:00:31Z, the circuit \
             breaker is open"
        );
    }
}
