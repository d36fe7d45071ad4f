//! Metrics: of a form that promtool accepts, and true.

use std::io::Write;
use std::process::{Command, Stdio};

use foldstream::api::{DeploymentState, NewEvent};
use foldstream_tests::client::Client;
use foldstream_tests::events::new_event;
use foldstream_tests::stage::{Kind, LEDGER, Stage};
use foldstream_tests::{guests, wait};

async fn page(client: &Client) -> String {
    let answer = client.get("/metrics").await.expect(200);
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    answer.text()
}

/// The value of the one sample that begins with this text.
fn sample(page: &str, begin: &str) -> f64 {
    let mut found = page.lines().filter(|line| line.starts_with(begin));
    let line = found
        .next()
        .unwrap_or_else(|| panic!("no sample {begin} in\n{page}"));
    assert!(found.next().is_none(), "several samples begin with {begin}");
    line.rsplit(' ')
        .next()
        .and_then(|value| value.parse().ok())
        .expect("a sample ends in a number")
}

fn of(metric: &str, deployment: &str) -> String {
    format!("{metric}{{deployment=\"{deployment}\"")
}

#[tokio::test]
async fn promtool_finds_nothing_to_complain_about() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage
        .client()
        .deploy("second", &guests::module("mischief"))
        .await;
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    stage
        .client()
        .query(LEDGER, "pair", &serde_json::Value::Null)
        .await
        .expect(200);
    let page = page(stage.client()).await;
    let mut promtool = Command::new(foldstream_tests::tool("promtool", "FOLDSTREAM_PROMTOOL"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool starts");
    promtool
        .stdin
        .take()
        .expect("piped")
        .write_all(page.as_bytes())
        .expect("promtool reads");
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

/// Runs promtool over files, which must have nothing to complain about.
fn promtool(arguments: &[&str]) {
    let mut command = Command::new(foldstream_tests::tool("promtool", "FOLDSTREAM_PROMTOOL"));
    let output = foldstream_tests::cli::finish(
        command
            .args(arguments)
            .current_dir(foldstream_tests::root()),
        None,
    );
    assert_eq!(output.code, 0, "{}{}", output.stdout, output.stderr);
}

#[test]
fn alerts_are_sound_and_fire_when_they_should() {
    promtool(&["check", "rules", "deploy/alerts.yml"]);
    promtool(&["test", "rules", "tests/data/alerts.test.yml"]);
}

/// The names of metrics in a text.
fn metrics_in(text: &str) -> std::collections::BTreeSet<String> {
    let words =
        text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    words
        .filter(|word| word.starts_with("foldstream_"))
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn alerts_ask_for_metrics_that_exist_from_the_start() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(10).await;
    stage.assert_ledger_equals_model().await;
    // A candidate, which has series of its own.
    let next = guests::module("ledger-next");
    stage
        .client()
        .deploy_with(LEDGER, &next, "&strategy=rebuild&promote=manual")
        .await;
    let mut known = metrics_in(&page(stage.client()).await);
    // From the first instance of a saga on, as `sagas.rs` shows.
    known.insert("foldstream_saga_instances".to_owned());
    // Of handlers alone, as `deliveries.rs`, `handlers_jetstream.rs`, `targets.rs` and `timers.rs`
    // show.
    for metric in [
        "outbox_conflicts",
        "outbox_longest_wait_seconds",
        "outbox_promise",
        "outbox_troubled",
        "outbox_window_seconds",
        "timers_looping",
        "timers_troubled",
    ] {
        known.insert(format!("foldstream_{metric}"));
    }
    let rules = std::fs::read_to_string(foldstream_tests::root().join("deploy/alerts.yml"))
        .expect("it is there");
    let missing: Vec<_> = metrics_in(&rules).difference(&known).cloned().collect();
    assert!(missing.is_empty(), "no such metrics: {missing:?}");
}

#[tokio::test]
async fn positions_lag_and_counts_move_with_the_events() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    let last = stage.publish(500).await;
    stage.assert_ledger_equals_model().await;
    let page_now = page(stage.client()).await;
    for (metric, value) in [
        ("foldstream_position", last as f64),
        ("foldstream_head", last as f64),
        ("foldstream_lag_events", 0.0),
        ("foldstream_lag_seconds", 0.0),
        ("foldstream_generation", 1.0),
    ] {
        assert_eq!(sample(&page_now, &of(metric, LEDGER)), value, "{metric}");
    }
    assert_eq!(
        sample(
            &page_now,
            &format!(
                "{},outcome=\"applied\"",
                of("foldstream_events_total", LEDGER)
            )
        ),
        500.0
    );
    assert!(sample(&page_now, &of("foldstream_state_bytes", LEDGER)) > 1_000.0);
    assert!(sample(&page_now, &of("foldstream_guest_memory_bytes", LEDGER)) > 10_000.0);
    assert!(
        sample(
            &page_now,
            &of("foldstream_apply_duration_seconds_count", LEDGER)
        ) >= 1.0
    );
    assert!(sample(&page_now, &of("foldstream_batch_events_sum", LEDGER)) == 500.0);
    stage
        .client()
        .show_when(LEDGER, "flush", |shown| shown.checkpoint == last)
        .await;
    let later = page(stage.client()).await;
    assert_eq!(
        sample(&later, &of("foldstream_checkpoint", LEDGER)),
        last as f64
    );
    assert!(
        sample(
            &later,
            &of("foldstream_commit_duration_seconds_count", LEDGER)
        ) >= 1.0
    );
}

#[tokio::test]
async fn lag_grows_while_paused_and_states_are_distinguished() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(10).await;
    stage.assert_ledger_equals_model().await;
    let live = page(stage.client()).await;
    let state = |page: &str, state: &str| {
        sample(
            page,
            &format!(
                "{},state=\"{state}\"",
                of("foldstream_deployment_state", LEDGER)
            ),
        )
    };
    assert_eq!((state(&live, "live"), state(&live, "paused")), (1.0, 0.0));
    stage
        .client()
        .post(
            &format!("/v1/deployments/{LEDGER}/pause"),
            "application/json",
            "",
        )
        .await
        .expect(200);
    stage
        .client()
        .show_when(LEDGER, "pause", |shown| {
            shown.state == DeploymentState::Paused
        })
        .await;
    let paused = page(stage.client()).await;
    assert_eq!(
        (state(&paused, "live"), state(&paused, "paused")),
        (0.0, 1.0)
    );
    assert_eq!(
        (
            sample(&paused, &of("foldstream_lag_events", LEDGER)),
            lag_seconds(&paused)
        ),
        (0.0, 0.0)
    );
    for published in [5, 7] {
        let last = stage.publish(published).await;
        lag_is(stage.client(), LEDGER, last, (last - 10) as f64).await;
    }
    let last = stage.model.last();
    stage.host.restart().await;
    lag_is(stage.client(), LEDGER, last, 12.0).await;
}

fn lag_seconds(page: &str) -> f64 {
    sample(page, &of("foldstream_lag_seconds", LEDGER))
}

/// Waits until the page shows a lag of this many events, which has to come with a head and with
/// seconds.
async fn lag_is(client: &Client, name: &str, head: u64, events: f64) {
    let shown = wait::until("the lag to be shown", || async {
        let page = page(client).await;
        let seconds = sample(&page, &of("foldstream_lag_seconds", name));
        (sample(&page, &of("foldstream_lag_events", name)) == events && seconds > 0.0)
            .then_some(page)
    })
    .await;
    assert_eq!(sample(&shown, &of("foldstream_head", name)), head as f64);
}

#[tokio::test]
async fn lag_grows_on_jetstream_while_nothing_is_read() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(10).await;
    stage.assert_ledger_equals_model().await;
    stage
        .client()
        .post(
            &format!("/v1/deployments/{LEDGER}/pause"),
            "application/json",
            "",
        )
        .await
        .expect(200);
    let last = stage.publish(20).await;
    lag_is(stage.client(), LEDGER, last, 20.0).await;
    stage.host.restart().await;
    lag_is(stage.client(), LEDGER, last, 20.0).await;
}

/// An event that tells the mischief what to do.
fn told(verb: &str) -> NewEvent {
    new_event("mischief.a", serde_json::json!(verb))
}

#[tokio::test]
async fn lag_grows_behind_an_event_that_fails() {
    let stage = Stage::start(Kind::Embedded).await;
    stage
        .client()
        .deploy("mischief", &guests::module("mischief"))
        .await;
    stage
        .client()
        .append(&[told("note one"), told("reject two")])
        .await;
    stage.client().failed("mischief").await;
    lag_is(stage.client(), "mischief", 2, 1.0).await;
    let last = stage
        .client()
        .append(&[told("note three"), told("note four")])
        .await
        .last_sequence;
    lag_is(stage.client(), "mischief", last, 3.0).await;
}

#[tokio::test]
async fn one_bad_event_counts_as_one_however_many_calls_fail_for_it() {
    let stage = Stage::start(Kind::Embedded).await;
    stage
        .client()
        .deploy("mischief", &guests::module("mischief"))
        .await;
    stage
        .client()
        .show_when("mischief", "be live", |shown| {
            shown.state == DeploymentState::Live
        })
        .await;
    let mut events: Vec<NewEvent> = ["1", "2", "3", "", "5", "6", "7"]
        .map(|text| told(&format!("note {text}")))
        .into();
    events[3] = told("trap");
    stage.client().append(&events).await;
    stage.client().failed("mischief").await;
    let page_now = page(stage.client()).await;
    let events = |outcome: &str| {
        sample(
            &page_now,
            &format!(
                "{},outcome=\"{outcome}\"",
                of("foldstream_events_total", "mischief")
            ),
        )
    };
    assert_eq!((events("applied"), events("failed")), (3.0, 1.0));
    // All seven; then, behind the first three, four, two, and the bad one alone in each of three
    // attempts.
    let failures = |class: &str| {
        sample(
            &page_now,
            &format!("foldstream_apply_failures_total{{class=\"{class}\",deployment=\"mischief\""),
        )
    };
    assert_eq!((failures("trap"), failures("deadline")), (6.0, 0.0));
    assert_eq!(
        sample(&page_now, &of("foldstream_retries_total", "mischief")),
        2.0
    );
}

#[tokio::test]
async fn instances_are_counted_while_they_are_there() {
    let mut stage = Stage::start_with(Kind::Embedded, "[modules]\ndeadline = \"60s\"\n").await;
    stage.deploy_ledger().await;
    stage
        .client()
        .deploy("mischief", &guests::module("mischief"))
        .await;
    stage.publish(10).await;
    stage.assert_ledger_equals_model().await;
    let figures = |page: &str, name: &str| {
        [
            "foldstream_guest_instances",
            "foldstream_guest_memory_bytes",
        ]
        .map(|metric| sample(page, &of(metric, name)))
    };
    let live = page(stage.client()).await;
    let [instances, memory] = figures(&live, LEDGER);
    assert!(
        instances == 1.0 && memory > 10_000.0,
        "{instances} instances, {memory} bytes"
    );
    assert_eq!(
        figures(&live, "mischief"),
        [0.0, 0.0],
        "nothing was applied, so there is none yet"
    );
    stage
        .client()
        .post(
            &format!("/v1/deployments/{LEDGER}/pause"),
            "application/json",
            "",
        )
        .await
        .expect(200);
    stage
        .client()
        .show_when(LEDGER, "pause", |shown| {
            shown.state == DeploymentState::Paused
        })
        .await;
    assert_eq!(figures(&page(stage.client()).await, LEDGER), [0.0, 0.0]);
    let client = stage.client().clone();
    let query = tokio::spawn(async move {
        client
            .query("mischief", "loop", &serde_json::Value::Null)
            .await
            .status
    });
    wait::until("the query's instance to be counted", || async {
        (figures(&page(stage.client()).await, "mischief")[0] == 1.0).then_some(())
    })
    .await;
    query.abort();
}

#[tokio::test]
async fn failures_and_retries_are_counted_and_a_deleted_deployment_leaves_the_page() {
    let stage = Stage::with_ledger(Kind::Embedded).await;
    stage
        .client()
        .deploy("mischief", &guests::module("mischief"))
        .await;
    let body = r#"{"events":[{"subject":"mischief.a","data":"retry later"}]}"#;
    stage
        .client()
        .post("/v1/events", "application/json", body)
        .await
        .expect(200);
    stage.client().failed("mischief").await;
    let page_now = page(stage.client()).await;
    assert_eq!(
        sample(&page_now, &of("foldstream_retries_total", "mischief")),
        2.0,
        "3 attempts are 2 retries"
    );
    assert_eq!(
        sample(
            &page_now,
            &format!(
                "{},outcome=\"failed\"",
                of("foldstream_events_total", "mischief")
            )
        ),
        1.0
    );
    let request = stage
        .client()
        .request(reqwest::Method::DELETE, "/v1/deployments/mischief");
    stage.client().send(request).await.expect(204);
    let later = page(stage.client()).await;
    assert!(!later.contains("deployment=\"mischief\""), "{later}");
    assert!(later.contains(&of("foldstream_position", LEDGER)));
}
