//! Fixes stay, failures are shown, and nothing is called done before it is: what becomes of code
//! that fails, and of the code that takes its place.

use foldstream::api::{self, DeployOutcome, DeploymentState, GenerationStatus};
use foldstream_tests::cli::{self, Output};
use foldstream_tests::events::new_event;
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::stage::{Kind, LEDGER, Stage};
use foldstream_tests::{guests, wait};
use serde_json::json;

const MISCHIEF: &str = "mischief";

fn on(host: &Host, line: &str) -> Output {
    cli::on(host, &line.split_whitespace().collect::<Vec<_>>())
}

/// Deploys a guest with further options.
fn deploy(host: &Host, guest: &str, options: &str) -> Output {
    let module = guests::path(guest).display().to_string();
    cli::on(
        host,
        &["deploy", &module]
            .into_iter()
            .chain(options.split_whitespace())
            .collect::<Vec<_>>(),
    )
}

/// An event for the mischief.
fn told(verb: &str) -> api::NewEvent {
    new_event("mischief.a", json!(verb))
}

/// An event that no version of the ledger can apply.
async fn append_poison(stage: &Stage) {
    stage
        .client()
        .append(&[new_event("orders.1.placed", json!({ "no": "order" }))])
        .await;
    stage.client().failed(LEDGER).await;
}

#[tokio::test]
async fn a_candidate_that_fails_near_the_end_is_given_up_and_the_wait_for_it_ends() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(10).await;
    let mut events: Vec<_> = (0..200).map(|_| told("note fine")).collect();
    events.extend([
        told("reject this one"),
        told("note behind"),
        told("note behind"),
    ]);
    stage.client().append(&events).await;
    stage.client().reached(LEDGER, 213).await;
    for (number, options) in [(2, "--wait"), (3, "--manual --wait")] {
        // Slowly, so that it is seen near the end before it fails.
        let line =
            format!("--name {LEDGER} --strategy rebuild --max-rate 400 --timeout 60s {options}");
        let failed = deploy(&stage.host, MISCHIEF, &line).expect(1);
        for wanted in [
            &format!("generation {number} of ledger is failed: rejected: "),
            "this one",
            "(sequence 211)",
        ] {
            assert!(
                failed.stderr.contains(wanted),
                "{wanted} is missing: {failed:?}"
            );
        }
        assert_eq!(
            stage.client().show(LEDGER).await.generation,
            1,
            "the active generation keeps serving"
        );
    }
    let again = on(&stage.host, "resume ledger --candidate").expect(1);
    assert!(again.stderr.contains("this one"), "{again:?}");
    let failed = stage
        .client()
        .becomes(LEDGER, 3, GenerationStatus::Failed)
        .await;
    assert_eq!(failed.failed_at, Some(211));
    // Other code for the same state continues where the candidate stopped.
    let parameters = "&promote=manual";
    let deployed = stage
        .client()
        .deploy_with(LEDGER, &guests::release(MISCHIEF, 2), parameters)
        .await;
    assert_eq!(
        (deployed.outcome, deployed.generation),
        (DeployOutcome::Rebuilding, 4)
    );
    assert!(
        deployed
            .reason
            .contains("stopped at event 211, and continues there"),
        "{}",
        deployed.reason
    );
    let failed = stage
        .client()
        .becomes(LEDGER, 4, GenerationStatus::Failed)
        .await;
    assert_eq!((failed.failed_at, failed.state_file), (Some(211), 3));
    stage.publish(10).await;
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn a_candidate_does_not_take_over_before_the_event_at_which_both_fail() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(300).await;
    append_poison(&stage).await;
    let line = "--max-rate 600 --wait --timeout 60s";
    let failed = deploy(&stage.host, "ledger-next", line).expect(1);
    assert!(
        failed
            .stderr
            .contains("generation 2 of ledger is failed: rejected: "),
        "{failed:?}"
    );
    assert_eq!(stage.client().show(LEDGER).await.generation, 1);
}

#[tokio::test]
async fn code_is_not_put_back_behind_an_event_that_it_could_not_apply() {
    let stage = Stage::start(Kind::Embedded).await;
    stage
        .client()
        .deploy(MISCHIEF, &guests::module(MISCHIEF))
        .await;
    stage
        .client()
        .append(&[told("note fine"), told("reject this one")])
        .await;
    stage.client().failed(MISCHIEF).await;
    // Passes that event, as its subjects are others.
    let line = format!("--name {MISCHIEF} --strategy inherit --wait --timeout 60s");
    deploy(&stage.host, "ledger", &line).expect(0);
    let client = stage.client();
    client
        .show_when(MISCHIEF, "pass the event", |shown| shown.position == 2)
        .await;
    client
        .append(&[new_event("orders.1.placed", json!({ "no": "order" }))])
        .await;
    let (shown, failure) = client.failed(MISCHIEF).await;
    assert_eq!(
        (failure.kind.as_str(), failure.sequence),
        ("rejected", Some(3))
    );
    assert_eq!(shown.generation, 2, "the fix stays: {}", shown.reason);
    // A rollback is the operator's decision, and says what it means.
    let back = on(&stage.host, "rollback mischief").expect(0);
    assert!(
        back.stdout
            .contains("its code stopped at event 2, which the state now contains"),
        "{back:?}"
    );
}

#[tokio::test]
async fn a_fix_is_not_undone_if_the_host_started_before_it_and_the_server_is_away() {
    let mut server = NatsServer::start().await;
    let config = async_nats::jetstream::stream::Config {
        subjects: vec!["mischief.>".to_owned(), "orders.>".to_owned()],
        ..nats::stream_config("ORDERS", "")
    };
    nats::create_stream_with(&server.jetstream().await, config).await;
    let publish = async |server: &NatsServer, subject: &str, data: serde_json::Value| {
        let sent = server.jetstream().await;
        let sent = sent.publish(subject.to_owned(), data.to_string().into());
        sent.await.expect("is sent").await.expect("is stored");
    };
    let mut host = Host::start_on(&server, "ORDERS").await;
    host.client()
        .deploy(MISCHIEF, &guests::module(MISCHIEF))
        .await;
    publish(&server, "mischief.a", json!("note fine")).await;
    publish(&server, "mischief.a", json!("reject this one")).await;
    host.client().failed(MISCHIEF).await;
    host.kill();
    server.kill();
    host.restart().await;
    // Nothing of that failure is known any more. Passes that event, as its subjects are others.
    let line = format!("--name {MISCHIEF} --strategy inherit");
    deploy(&host, "ledger", &line).expect(0);
    server.restart().await;
    let client = host.client();
    client
        .show_when(MISCHIEF, "pass the event", |shown| shown.position == 2)
        .await;
    publish(&server, "orders.1.placed", json!({ "no": "order" })).await;
    let (shown, failure) = client.failed(MISCHIEF).await;
    assert_eq!(failure.sequence, Some(3));
    assert_eq!(shown.generation, 2, "the fix stays: {}", shown.reason);
}

#[tokio::test]
async fn code_that_is_put_back_is_shown_with_the_reason() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    stage
        .client()
        .deploy(LEDGER, &guests::module("ledger-broken"))
        .await;
    stage.publish(1).await;
    stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Failed)
        .await;
    let shown = on(&stage.host, "show ledger").expect(0).stdout;
    assert!(
        shown.contains("restored, because generation 2 failed on its state: "),
        "{shown}"
    );
    assert!(shown.contains("cannot apply event 101"), "{shown}");
}

#[tokio::test]
async fn nothing_is_called_live_before_its_code_applied_something_or_failed() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    let last = stage.publish(100).await;
    stage.client().reached(LEDGER, last).await;
    let poison = [(
        "orders.1.placed".to_owned(),
        bytes::Bytes::from_static(b"{\"no\":\"order\"}"),
    )];
    foldstream_tests::nats::publish(stage.context(), poison).await;
    stage.client().failed(LEDGER).await;
    let failed = on(&stage.host, "resume ledger").expect(1);
    assert!(
        failed.stdout.is_empty()
            && failed
                .stderr
                .contains("ledger failed at sequence 101: rejected: "),
        "{failed:?}"
    );
    let module = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(module.path(), guests::release(LEDGER, 2)).expect("written");
    let file = module.path().display().to_string();
    // It can't do what the code before could not, and that is put back.
    let failed = cli::on(
        &stage.host,
        &["deploy", &file, "--wait", "--timeout", "60s"],
    )
    .expect(1);
    assert!(failed.stderr.contains("rejected"), "{failed:?}");
    // Without the source nothing is known.
    stage.server().kill();
    wait::until("the source to be missed", || async {
        let told = on(&stage.host, "resume ledger").expect(0).stdout;
        told.contains("nothing applied yet (its source was not reached: ")
            .then_some(())
    })
    .await;
    let late = cli::on(&stage.host, &["deploy", &file, "--wait", "--timeout", "2s"]).expect(6);
    assert!(late.stderr.contains("cannot connect"), "{late:?}");
}

#[tokio::test]
async fn a_rebuild_after_a_change_of_subjects_lacks_no_event_that_the_state_before_never_saw() {
    let mut stage = Stage::start(Kind::Embedded).await;
    let client = stage.client().clone();
    // Only the second module wants events of four tokens.
    let events: Vec<_> = (0..50)
        .map(|_| new_event("orders.1.placed", json!({})))
        .collect();
    client.append(&events).await;
    let others: Vec<_> = (0..950)
        .map(|_| new_event("orders.1.placed.late", json!({})))
        .collect();
    let last = client.append(&others).await.last_sequence;
    client.deploy("tally", &guests::module("tally")).await;
    client.reached("tally", last).await;
    client
        .deploy_with("tally", &guests::module("sloppy"), "&strategy=inherit")
        .await;
    client
        .show_when("tally", "be live", |shown| {
            shown.state == DeploymentState::Live && shown.begun
        })
        .await;
    client
        .act("tally", "rebuild?max-rate=500")
        .await
        .expect(200);
    let taken_over = client.becomes("tally", 3, GenerationStatus::Active).await;
    let entry = client
        .get("/v1/deployments/tally/entries/events")
        .await
        .expect(200);
    assert_eq!(
        (entry.position(), entry.text().as_str()),
        (last, "1000"),
        "{}",
        taken_over.reason
    );
    stage.host.kill();
    stage.host.restart().await;
    stage.client().reached("tally", last).await;
    let entry = stage
        .client()
        .get("/v1/deployments/tally/entries/events")
        .await
        .expect(200);
    assert_eq!(entry.text(), "1000");
}

#[tokio::test]
async fn a_candidate_outlives_a_disk_that_is_full_for_a_while() {
    let config = "[state]\nflush_interval = \"20ms\"\n[pipeline]\nbatch_events = 1\n";
    let mut stage = Stage::start_with(Kind::Embedded, config).await;
    let client = stage.client().clone();
    client.deploy(MISCHIEF, &guests::module(MISCHIEF)).await;
    let large: Vec<_> = (0..25).map(|_| told("fill 131072")).collect();
    let last = client.append(&large).await.last_sequence;
    client.reached(MISCHIEF, last).await;
    client
        .show_when(MISCHIEF, "be durable", |shown| shown.checkpoint == last)
        .await;
    stage.host.limit_files(Some(2 << 20));
    client
        .act(MISCHIEF, "rebuild?max-rate=50")
        .await
        .expect(200);
    let fails = |shown: &api::Deployment| {
        let failure = shown
            .candidate
            .as_ref()
            .and_then(|candidate| candidate.failure.as_ref());
        failure.is_some_and(|failure| failure.kind == "state")
    };
    client
        .show_when(MISCHIEF, "have a candidate whose state fails", fails)
        .await;
    let metrics = client.get("/metrics").await.expect(200).text();
    let counts = metrics.lines().filter_map(|line| {
        line.strip_prefix("foldstream_state_failures_total{")?
            .split_once("} ")
    });
    let count: f64 = counts
        .map(|(_, count)| count.parse::<f64>().expect("a number"))
        .sum();
    assert!(count >= 1.0, "it is counted: {metrics}");
    stage.host.limit_files(None);
    client.becomes(MISCHIEF, 2, GenerationStatus::Active).await;
    client.reached(MISCHIEF, last).await;
}

#[tokio::test]
async fn a_promotion_says_what_holds_a_candidate_back_and_lifts_it_if_asked() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    let last = stage.publish(3_000).await;
    stage.client().reached(LEDGER, last).await;
    deploy(&stage.host, "ledger-next", "--manual --max-rate 50").expect(0);
    let client = stage.client();
    let is_folding = |shown: &api::Deployment| {
        shown
            .candidate
            .as_ref()
            .is_some_and(|candidate| candidate.position > 0)
    };
    client
        .show_when(LEDGER, "fold its candidate", is_folding)
        .await;
    let refused = on(&stage.host, "promote ledger").expect(4);
    for wanted in [
        "is still being built",
        "throttled to 50 events per second",
        "throttle ledger --off",
    ] {
        assert!(
            refused.stderr.contains(wanted),
            "{wanted} is missing: {refused:?}"
        );
    }
    let late = deploy(&stage.host, "ledger-next", "--wait --timeout 2s").expect(6);
    assert!(
        late.stderr.contains("is building when the time ran out"),
        "not ready long before the end: {late:?}"
    );
    on(&stage.host, "promote ledger --lift-throttle").expect(0);
    assert_eq!(stage.client().show(LEDGER).await.generation, 2);
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn another_gate_for_a_candidate_that_is_there_is_compared_again() {
    let mut stage = Stage::start_with(Kind::Embedded, "[rollout]\nhold_max = \"5s\"\n").await;
    stage.deploy_ledger().await;
    let last = stage.publish(300).await;
    stage.client().reached(LEDGER, last).await;
    deploy(
        &stage.host,
        "ledger-next",
        "--require-equal --wait --timeout 60s",
    )
    .expect(1);
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let rules = "allow = [\"added\", \"removed\"]\n[[rules]]\nprefix = \"head\"\nignore = \
                 [\"/count\", \"/events\", \"/chain\"]\n";
    std::fs::write(file.path(), rules).expect("written");
    let options = format!("--rules {} --wait --timeout 60s", file.path().display());
    let passed = deploy(&stage.host, "ledger-next", &options).expect(0);
    assert!(
        passed.stderr.contains("compared again with the new gate"),
        "{passed:?}"
    );
    assert!(
        passed
            .stderr
            .contains("1 more differ only in parts that the gate ignores"),
        "{passed:?}"
    );
    assert_eq!(stage.client().show(LEDGER).await.generation, 2);
}

#[tokio::test]
async fn a_fold_that_is_stopped_is_verified_up_to_there_and_the_cause_is_reported() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(300).await;
    append_poison(&stage).await;
    let verified = on(&stage.host, "verify ledger").expect(0);
    for wanted in [
        "the second fold gives the same result: all ",
        "stopped at position 300 at event 301: rejected",
    ] {
        assert!(
            verified.stdout.contains(wanted),
            "{wanted} is missing: {verified:?}"
        );
    }
}

#[tokio::test]
async fn a_module_that_remembers_across_batches_is_noticed() {
    let mut stage = Stage::start(Kind::Embedded).await;
    stage.publish(300).await;
    deploy(&stage.host, "forgetful", "--wait --timeout 60s").expect(0);
    let found = on(&stage.host, "verify forgetful").expect(1);
    assert!(
        found.stdout.contains("differs") || found.stdout.contains("not deterministic"),
        "{found:?}"
    );
}
