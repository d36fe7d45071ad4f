//! The ladder of failures: each class has its name, is charged to whom it concerns, and is tried as
//! often as it should.

use foldstream::api::{self, DeploymentState, FailureClass, GenerationStatus, NewEvent};
use foldstream_tests::cli::{self, Output};
use foldstream_tests::events::new_event;
use foldstream_tests::guests;
use foldstream_tests::host::Host;
use foldstream_tests::wait;
use serde_json::json;

const NAME: &str = "mischief";

fn told(verb: &str) -> NewEvent {
    new_event("mischief.a", json!(verb))
}

/// A host with a module that does what its events say, and has three attempts.
async fn host(config: &str) -> Host {
    let host = Host::start_with(config).await;
    host.client().deploy(NAME, &guests::module(NAME)).await;
    host
}

fn on(host: &Host, line: &str) -> Output {
    cli::on(host, &line.split(' ').collect::<Vec<_>>())
}

async fn metrics(host: &Host) -> String {
    host.client().get("/metrics").await.expect(200).text()
}

/// An event between two harmless ones fails: the class, and how often it was tried.
async fn fails(verb: &str) -> (api::Failure, Host) {
    let host = host("[modules]\ndeadline = \"500ms\"\n").await;
    let bad = host
        .client()
        .append(&[told("note before"), told(verb), told("note behind")])
        .await
        .sequences[1];
    let (shown, failure) = host.client().failed(NAME).await;
    assert_eq!(
        (shown.position, failure.sequence),
        (bad - 1, Some(bad)),
        "{failure:?}"
    );
    (failure, host)
}

async fn has_class(verb: &str, class: FailureClass, attempts: u32) {
    let (failure, host) = fails(verb).await;
    assert_eq!(
        (failure.class, failure.attempts),
        (Some(class), attempts),
        "{failure:?}"
    );
    assert_eq!(
        (&failure.next_attempt_at, failure.breaker_open),
        (&None, false),
        "nothing more is tried"
    );
    let name = class.name();
    let shown = on(&host, "show mischief").expect(0).stdout;
    assert!(
        shown.contains(&format!("\nclass          {name}\n")),
        "{shown}"
    );
    let page = metrics(&host).await;
    let sample =
        format!("foldstream_apply_failures_total{{class=\"{name}\",deployment=\"{NAME}\"}} ");
    let count = page
        .lines()
        .find_map(|line| line.strip_prefix(&sample))
        .expect("each class has a series");
    assert_ne!(count, "0", "{sample}");
    // Nothing but an operator leaves an event out.
    let skips: api::SkipList = host
        .client()
        .get("/v1/deployments/mischief/skips")
        .await
        .expect(200)
        .json();
    assert!(skips.skips.is_empty(), "{skips:?}");
    let helps = class != FailureClass::StateLimit;
    assert_eq!(
        failure
            .message
            .contains("foldstream resume mischief --skip 2"),
        helps,
        "{}",
        failure.message
    );
}

macro_rules! classes {
    ($($claim:ident: $verb:expr => $class:ident, $attempts:expr;)*) => {
        $(#[tokio::test]
        async fn $claim() {
            has_class($verb, FailureClass::$class, $attempts).await;
        })*
    };
}

classes! {
    a_retry_has_the_attempts_of_the_policy: "retry later" => Retry, 3;
    a_rejected_event_has_one_attempt: "reject no" => Rejected, 1;
    the_same_trap_ends_the_attempts: "trap" => Trap, 3;
    a_deadline_is_tried_again_and_then_stops_the_deployment: "loop" => Deadline, 3;
    memory_is_charged_to_the_event: "grow" => Memory, 3;
    a_stack_that_is_full_is_memory: "recurse" => Memory, 3;
    a_refusal_of_the_host_is_charged_to_the_event: "big-key 1025" => Refused, 3;
    a_state_that_is_full_is_charged_to_the_deployment: "fill 8388608" => StateLimit, 1;
}

#[tokio::test]
async fn a_busy_host_is_charged_to_nobody_and_waited_for() {
    let host = host("[modules]\ndeadline = \"8s\"\ninstances_max = 1\n").await;
    let client = host.client().clone();
    let query = tokio::spawn(async move { client.query(NAME, "loop", &json!(null)).await.status });
    host.client()
        .show_when(NAME, "have the instance of a query", |shown| {
            shown.instances == 1
        })
        .await;
    let last = host
        .client()
        .append(&[told("note one")])
        .await
        .last_sequence;
    let is_busy = |shown: &api::Deployment| {
        shown
            .failure
            .as_ref()
            .is_some_and(|failure| failure.class == Some(FailureClass::Busy))
    };
    let shown = host
        .client()
        .show_when(NAME, "wait for the host", is_busy)
        .await;
    let failure = shown.failure.clone().expect("it was just looked at");
    assert_eq!(
        (shown.state, failure.attempts, failure.sequence),
        (DeploymentState::Retrying, 0, None),
        "{failure:?}"
    );
    assert!(
        metrics(&host)
            .await
            .contains("foldstream_retries_total{deployment=\"mischief\"} 0\n")
    );
    let shown = host.client().reached(NAME, last).await;
    assert_eq!(shown.failure, None);
    query.await.expect("it ends");
}

#[tokio::test]
async fn a_candidate_has_the_attempts_of_a_rebuild() {
    let host = host("[rollout]\nattempts = 2\n").await;
    host.client()
        .append(&[told("note one"), told("retry later")])
        .await;
    let (_, failure) = host.client().failed(NAME).await;
    assert_eq!(
        failure.attempts, 3,
        "the manifest of the active generation says so"
    );
    on(&host, "rebuild mischief").expect(0);
    let candidate = host
        .client()
        .becomes(NAME, 2, GenerationStatus::Failed)
        .await;
    let failure = candidate.failure.expect("it failed");
    assert_eq!(
        (failure.class, failure.attempts),
        (Some(FailureClass::Retry), 2)
    );
}

#[tokio::test]
async fn retries_beyond_their_budget_open_the_breaker_and_a_resume_closes_it() {
    let host = host("[pipeline]\nretry_percent = 0\n").await;
    // Each but the first needs a second attempt, which passes.
    let events: Vec<_> = (1..=15)
        .map(|number| told(&format!("fresh {number}")))
        .collect();
    let last = host.client().append(&events).await.last_sequence;
    let is_open = |shown: &api::Deployment| {
        shown
            .failure
            .as_ref()
            .is_some_and(|failure| failure.breaker_open)
    };
    let shown = host
        .client()
        .show_when(NAME, "open its breaker", is_open)
        .await;
    let failure = shown.failure.clone().expect("it was just looked at");
    assert_eq!(
        (shown.state, failure.attempts),
        (DeploymentState::Retrying, 1),
        "{failure:?}"
    );
    assert!(
        failure.next_attempt_at.is_some() && shown.position < last,
        "{failure:?}"
    );
    assert!(
        metrics(&host)
            .await
            .contains("foldstream_breaker_open{deployment=\"mischief\"} 1\n")
    );
    let text = on(&host, "show mischief").expect(0).stdout;
    assert!(text.contains("the circuit breaker is open"), "{text}");
    on(&host, "resume mischief").expect(0);
    let shown = host.client().reached(NAME, last).await;
    assert_eq!(shown.failure, None);
    let notes = wait::until("the gauge to follow", async || {
        let is_closed = metrics(&host)
            .await
            .contains("foldstream_breaker_open{deployment=\"mischief\"} 0\n");
        is_closed.then_some(
            host.client()
                .query(NAME, "notes", &json!(null))
                .await
                .expect(200)
                .text(),
        )
    });
    let expected: Vec<_> = (1..=15).map(|number| number.to_string()).collect();
    assert_eq!(
        notes.await.trim_matches('"'),
        expected.join(","),
        "each once, in order"
    );
}
