//! Handlers: their messages are stored once, in order, whatever happens to the host; and no other
//! fold publishes.

use std::collections::BTreeSet;
use std::time::Duration;

use foldstream::api::{self, Promise};
use foldstream_tests::client::Client;
use foldstream_tests::host::Host;
use foldstream_tests::reactor::{self, REACTOR, TO_LOG, event, events, published};
use foldstream_tests::{cli, guests, wait};
use serde_json::json;

/// Small and frequent flushes, so that kills fall before, into and behind commits.
const FLUSHES: &str = "[state]\nflush_interval = \"50ms\"\n";

/// All events under a pattern in the embedded log.
async fn stored(client: &Client, pattern: &str) -> Vec<serde_json::Value> {
    reactor::logged(client, "events", pattern).await
}

/// How many different messages there are.
fn counted(messages: &[serde_json::Value]) -> usize {
    let ids: BTreeSet<_> = messages
        .iter()
        .map(|message| reactor::in_log(message).id)
        .collect();
    ids.len()
}

#[tokio::test]
async fn message_of_an_event_is_stored_with_its_id_and_its_cause() {
    let host = Host::start().await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_LOG)
        .await;
    let appended = client.append(&[event(1, "three")]).await;
    let shown = published(client, appended.last_sequence).await;

    let messages = stored(client, "out.%3E").await;
    assert_eq!(messages.len(), 3, "{messages:?}");
    let lineage = shown
        .outbox
        .as_ref()
        .expect("it is a handler")
        .lineage
        .clone();
    for (index, message) in messages.iter().enumerate() {
        let headers = &message["headers"];
        assert_eq!(message["type"], "answer");
        assert_eq!(
            headers["ce-id"],
            format!("fs.{lineage}.1.0.{index}"),
            "{headers}"
        );
        assert_eq!(
            (&headers["ce-causationid"], &headers["x-number"]),
            (&json!("1"), &json!(index.to_string()))
        );
    }
    let target = &shown.outbox.expect("it is a handler").targets[0];
    assert_eq!((target.promise, target.released), (Some(Promise::Exact), 3));
}

#[tokio::test]
async fn killed_again_and_again_on_the_embedded_log_each_message_is_stored_once() {
    let mut random = fastrand::Rng::with_seed(foldstream_tests::seed());
    let mut host = Host::start_with(FLUSHES).await;
    host.client()
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_LOG)
        .await;
    let mut causes = Vec::new();
    for _ in 0..10 {
        for _ in 0..4 {
            let appended = host.client().append(&events(200, "three")).await;
            causes.extend(appended.sequences);
        }
        tokio::time::sleep(Duration::from_micros(random.u64(0..300_000))).await;
        host.kill();
        host.restart().await;
    }
    let last = *causes.last().expect("some were appended");
    let shown = published(host.client(), last).await;

    let messages = stored(host.client(), "out.%3E").await;
    let stored: Vec<_> = messages.iter().map(reactor::in_log).collect();
    let wanted = causes
        .iter()
        .flat_map(|cause| reactor::wanted(*cause, "three"))
        .collect();
    let lineage = shown.outbox.expect("it is a handler").lineage;
    reactor::assert_each_once(&stored, &wanted, &lineage);
}

#[tokio::test]
async fn nothing_is_published_without_a_grant_and_the_handler_stops_at_the_event() {
    let host = Host::start().await;
    let client = host.client();
    let deployed = client.deploy(REACTOR, &guests::module(REACTOR)).await;
    assert!(
        deployed
            .warnings
            .iter()
            .any(|warning| warning.contains("out.>")),
        "{:?}",
        deployed.warnings
    );
    client
        .append(&[event(1, "quiet"), event(1, "one"), event(1, "quiet")])
        .await;

    let (shown, failure) = client.failed(REACTOR).await;
    assert_eq!((shown.position, failure.sequence), (1, Some(2)));
    assert!(
        failure.message.contains("grant")
            && failure.message.contains("--allow-publish")
            && failure.message.contains("parked retry"),
        "{}",
        failure.message
    );
    assert_eq!(stored(client, "out.%3E").await.len(), 0);

    // The same module with a grant continues where it stopped.
    let deployed = client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_LOG)
        .await;
    assert!(
        deployed.reason.contains("grants: +out.>@events"),
        "{}",
        deployed.reason
    );
    published(client, 3).await;
    assert_eq!(stored(client, "out.%3E").await.len(), 1);
    let audit = client.get("/v1/audit?limit=10").await.expect(200).text();
    assert!(
        audit.contains("\"grant\"") && audit.contains("+out.>@events"),
        "{audit}"
    );
}

#[tokio::test]
async fn first_deploy_shows_what_a_handler_may_publish_and_warns_if_that_is_nothing() {
    let host = Host::start().await;
    let module = guests::path(REACTOR).display().to_string();
    let deploy = |name: &str, options: &[&str]| {
        let line = ["deploy", &module, "--name", name];
        cli::on(&host, &[&line[..], options].concat()).expect(0)
    };
    let shown = deploy("open", &["--allow-publish", "out.>@events"]);
    assert!(
        shown.stdout.contains("; it may publish out.>@events"),
        "{shown:?}"
    );
    let audit = cli::on(&host, &["audit", "open"]).expect(0).stdout;
    assert!(audit.contains("grants: +out.>@events"), "{audit}");
    for options in [&[][..], &["--wait"]] {
        let name = format!("shut{}", options.len());
        let shown = deploy(&name, options);
        assert!(!shown.stdout.contains("may publish"), "{shown:?}");
        assert!(
            shown.stderr.contains("warning: ") && shown.stderr.contains("out.>"),
            "{shown:?}"
        );
    }
}

#[tokio::test]
async fn what_was_there_before_the_deploy_is_handled_without_publishing() {
    let host = Host::start().await;
    let client = host.client();
    client.append(&events(50, "one")).await;
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_LOG)
        .await;
    let appended = client.append(&[event(3, "one")]).await;
    let shown = published(client, appended.last_sequence).await;
    assert_eq!(stored(client, "out.%3E").await.len(), 1);
    assert_eq!(shown.outbox.expect("it is a handler").effects_after, 50);
    let handled: u64 = client
        .entries(REACTOR, "handled/")
        .await
        .iter()
        .map(|entry| {
            entry
                .value
                .to_string()
                .trim_matches('"')
                .parse::<u64>()
                .expect("a number")
        })
        .sum();
    assert_eq!(handled, 51, "the state has all events");

    // Another one acts from the beginning, as asked.
    let all = "&allow-publish=out.%3E%40events&effects-from=beginning";
    client
        .deploy_with("second", &guests::module(REACTOR), all)
        .await;
    wait::until("the second to publish", || async {
        (stored(client, "out.%3E").await.len() == 52).then_some(())
    })
    .await;
}

#[tokio::test]
async fn messages_that_a_guest_may_not_send_stop_it_by_name() {
    for (what, word) in [
        ("undeclared", "publishes"),
        ("steering", "outbox-headers"),
        ("elsewhere", "grant"),
    ] {
        let host = Host::start().await;
        let client = host.client();
        client
            .deploy_with(REACTOR, &guests::module(REACTOR), TO_LOG)
            .await;
        client.append(&[event(1, what)]).await;
        let (_, failure) = client.failed(REACTOR).await;
        assert!(
            failure.message.starts_with(word),
            "{what}: {}",
            failure.message
        );
        assert_eq!(
            stored(client, "%3E").await.len(),
            1,
            "only the cause is in the log"
        );
    }
    let host = Host::start().await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_LOG)
        .await;
    let answer = client.query(REACTOR, "publish", &json!(null)).await;
    assert!(
        answer.text().contains("outside of `handle`"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn failed_event_publishes_nothing_and_those_before_it_do() {
    let host = Host::start().await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_LOG)
        .await;
    client
        .append(&[
            event(1, "one"),
            event(2, "three"),
            event(3, "fail"),
            event(4, "one"),
        ])
        .await;
    let (shown, failure) = client.failed(REACTOR).await;
    assert_eq!((shown.position, failure.sequence), (2, Some(3)));
    wait::until("messages of the events before it", || async {
        (stored(client, "out.%3E").await.len() == 4).then_some(())
    })
    .await;
}

#[tokio::test]
async fn mute_folds_publish_nothing() {
    let host = Host::start_with(FLUSHES).await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_LOG)
        .await;
    let appended = client.append(&events(100, "three")).await;
    published(client, appended.last_sequence).await;
    let before = stored(client, "out.%3E").await.len();
    assert_eq!(before, 300);

    // As of an earlier event, and folded again with other batches.
    wait::until("the state as of an earlier event", || async {
        let path = format!("/v1/deployments/{REACTOR}/entries?prefix=handled/&as-of=50");
        let answer = client.get(&path).await;
        (answer.status == 200).then(|| answer.position())
    })
    .await;
    client.act(REACTOR, "verification").await;
    let verified = wait::until("the verification to end", || async {
        let path = format!("/v1/deployments/{REACTOR}/verification");
        let verification: api::Verification = client.get(&path).await.expect(200).json();
        matches!(
            verification.state,
            api::WorkState::Done | api::WorkState::Failed
        )
        .then_some(verification)
    })
    .await;
    assert_eq!(verified.state, api::WorkState::Done, "{verified:?}");
    // One more event shows that nothing else is on its way.
    let appended = client.append(&[event(1, "one")]).await;
    published(client, appended.last_sequence).await;
    assert_eq!(stored(client, "out.%3E").await.len(), before + 1);
}

#[tokio::test]
async fn new_code_inherits_outbox_and_state_and_repeats_nothing() {
    let host = Host::start().await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_LOG)
        .await;
    for release in 1..=3 {
        client.append(&events(100, "one")).await;
        let deployed = client
            .deploy(REACTOR, &guests::release(REACTOR, release))
            .await;
        assert_eq!(
            deployed.outcome,
            api::DeployOutcome::Inherited,
            "{}",
            deployed.reason
        );
    }
    let appended = client.append(&events(100, "one")).await;
    published(client, appended.last_sequence).await;
    client.act(REACTOR, "rollback").await.expect(200);
    let appended = client.append(&[event(1, "one")]).await;
    published(client, appended.last_sequence).await;
    let messages = stored(client, "out.%3E").await;
    assert_eq!((messages.len(), counted(&messages)), (401, 401));
}

#[tokio::test]
async fn module_of_another_kind_and_grants_that_make_no_sense_are_refused() {
    let host = Host::start().await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_LOG)
        .await;
    // A handler is no projection, and the other way round.
    let answer = client
        .upload(guests::module("tally"), &format!("?name={REACTOR}"))
        .await;
    assert!(
        answer
            .text()
            .contains("is a handler, and the module is a projection"),
        "{}",
        answer.text()
    );
    let answer = client
        .upload(guests::module("tally"), &format!("?name=tally{TO_LOG}"))
        .await;
    assert!(
        answer.text().contains("is for handlers"),
        "{}",
        answer.text()
    );
    // Nor may it feed itself, or publish to what does not exist.
    let own = client
        .upload(
            guests::module(REACTOR),
            "?name=other&allow-publish=in.1.%3E%40events",
        )
        .await;
    assert!(
        own.text().contains("which it reads itself"),
        "{}",
        own.text()
    );
    let nowhere = client
        .upload(
            guests::module(REACTOR),
            "?name=other&allow-publish=out.%3E%40nowhere",
        )
        .await;
    assert!(
        nowhere.text().contains("there is no source nowhere"),
        "{}",
        nowhere.text()
    );
}

#[tokio::test]
async fn grants_are_checked_against_all_code_that_may_use_them() {
    let host = Host::start().await;
    let client = host.client();
    client.deploy("loop", &guests::module("echo")).await;
    let query = "?name=loop&strategy=rebuild&allow-publish=out.%3E%40events";
    let refused = client.upload(guests::module(REACTOR), query).await;
    assert!(
        refused.text().contains("which it reads itself"),
        "the code that is active until the new one takes over reads it: {}",
        refused.text()
    );
    let module = guests::module(REACTOR);
    let deployed = client
        .deploy_with("loop", &module, "&strategy=rebuild")
        .await;
    client
        .becomes("loop", deployed.generation, api::GenerationStatus::Active)
        .await;
    client.deploy_with("loop", &module, TO_LOG).await;
    // The code before it would use the grant as well.
    let refused = client.act("loop", "rollback").await.problem(422, "refused");
    assert!(
        refused.detail.contains("which it reads itself"),
        "{}",
        refused.detail
    );
}

#[tokio::test]
async fn lost_state_file_does_not_publish_everything_again() {
    let mut host = Host::start_with(FLUSHES).await;
    host.client()
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_LOG)
        .await;
    let appended = host.client().append(&events(20, "one")).await;
    published(host.client(), appended.last_sequence).await;
    host.stop();
    let file = host.data_dir().join("state").join(REACTOR).join("1.redb");
    std::fs::remove_file(file).expect("it is there");
    host.restart().await;
    let (_, failure) = host.client().failed(REACTOR).await;
    assert_eq!(failure.kind, "owner-mismatch", "{}", failure.message);
    host.client().act(REACTOR, "resume").await;
    let (_, failure) = host.client().failed(REACTOR).await;
    assert_eq!(
        failure.kind, "owner-mismatch",
        "resuming does not make an owner"
    );
    assert_eq!(stored(host.client(), "out.%3E").await.len(), 20);
}

#[tokio::test]
async fn handlers_that_cause_each_other_without_end_are_stopped_and_named() {
    let host = Host::start().await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_LOG)
        .await;
    client
        .deploy_with(
            "echo",
            &guests::module("echo"),
            "&allow-publish=in.%3E%40events",
        )
        .await;
    client.append(&[event(1, "one")]).await;
    let failure = wait::until("one of them to stop", || async {
        let both = [client.show(REACTOR).await, client.show("echo").await];
        let mut failed = both
            .into_iter()
            .filter(|shown| shown.state == api::DeploymentState::Failed);
        failed.find_map(|shown| shown.failure)
    })
    .await;
    let message = &failure.message;
    assert!(
        message.starts_with("loop") && message.contains("reactor -> echo -> reactor"),
        "{message}"
    );
    let last = stored(client, "%3E").await;
    assert_eq!(last.len(), 33, "the first event, and a chain of 32");
    let path = last[32]["headers"]["foldstream-path"]
        .as_str()
        .expect("each message has its chain")
        .to_owned();
    assert_eq!(path.split(',').count(), 32, "{path}");
}

#[tokio::test]
async fn handlers_whose_loop_spreads_are_stopped_and_named() {
    let host = Host::start().await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_LOG)
        .await;
    // Each message of one goes to both others, so no chain of the first ten thousand events is long.
    for name in ["echo-1", "echo-2", "echo-3"] {
        let grant = "&allow-publish=in.%3E%40events";
        client
            .deploy_with(name, &guests::module("echo"), grant)
            .await;
    }
    client.append(&[event(1, "one")]).await;
    let (_, failure) = client.failed(REACTOR).await;
    let message = &failure.message;
    assert!(
        message.starts_with("loop: more than 20000 events of the same origin")
            && message.contains("reactor -> echo-"),
        "{message}"
    );
}

#[tokio::test]
async fn a_loop_ends_at_an_event_that_is_parked_and_other_keys_continue() {
    let host = Host::start().await;
    let client = host.client();
    let parks = format!("{TO_LOG}&on-failure=park");
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), &parks)
        .await;
    client
        .deploy_with(
            "echo",
            &guests::module("echo"),
            "&on-failure=park&allow-publish=in.%3E%40events",
        )
        .await;
    client.append(&[event(1, "one")]).await;
    let parked = async |wanted: u64| {
        let is_parked = |shown: &api::Deployment| {
            shown.state == api::DeploymentState::Live && shown.parked.events == wanted
        };
        client.show_when(REACTOR, "park an event", is_parked).await
    };
    parked(1).await;
    assert_eq!(
        stored(client, "%3E").await.len(),
        33,
        "the first event, and a chain of 32"
    );
    // A stranger who writes such a chain stops nothing but a key.
    let mut strange = event(2, "one");
    let path = ["x"; 32].join(",");
    strange.headers.insert("foldstream-path".to_owned(), path);
    client.append(&[strange, event(3, "none")]).await;
    parked(2).await;
    let appended = client.append(&[event(4, "none")]).await;
    client.reached(REACTOR, appended.last_sequence).await;
    let drop = ["parked", "drop", REACTOR, "--all", "--reason", "a loop"];
    cli::on(&host, &drop).expect(0);
    parked(0).await;
}
