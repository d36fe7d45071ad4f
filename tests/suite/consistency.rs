//! Queries, scans and watches under load: each sees whole batches, positions never go back, a watch
//! misses nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use foldstream_tests::client::Client;
use foldstream_tests::stage::{Kind, LEDGER, Stage};
use foldstream_tests::wait;
use serde_json::{Value, json};

/// Asks over and over until told to stop, and checks each answer; returns how many there were.
async fn reader(client: Client, stop: Arc<AtomicBool>, check: impl AsyncFn(&Client) -> u64) -> u64 {
    let (mut position, mut answers) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let now = check(&client).await;
        assert!(
            now >= position,
            "positions never go back: {position}, then {now}"
        );
        position = now;
        answers += 1;
    }
    answers
}

/// Two keys that are always written together are never seen apart.
async fn the_pair_agrees(client: &Client) -> u64 {
    let answer = client.query(LEDGER, "pair", &json!(null)).await.expect(200);
    let pair = answer.value();
    assert_eq!(pair["left"], pair["right"]);
    assert!(
        pair["left"].as_u64() <= Some(answer.position()),
        "{pair} at {}",
        answer.position()
    );
    answer.position()
}

/// The sum over all customers is what the head says, in one snapshot.
async fn the_sums_agree(client: &Client) -> u64 {
    let answer = client
        .query(LEDGER, "audit", &json!(null))
        .await
        .expect(200);
    let audit = answer.value();
    assert_eq!(audit["count"], audit["head"]["count"], "{audit}");
    answer.position()
}

/// One page of a scan is one snapshot.
async fn a_page_agrees(client: &Client) -> u64 {
    let answer = client
        .get(&format!("/v1/deployments/{LEDGER}/entries?limit=1000"))
        .await
        .expect(200);
    let page: foldstream::api::EntryPage = answer.json();
    let value = |key: &str| {
        page.entries
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| entry.value.clone())
    };
    let customers = page
        .entries
        .iter()
        .filter(|entry| entry.key.starts_with("customer/"));
    let sum: u64 = customers
        .map(|entry| entry.value["count"].as_u64().expect("a number"))
        .sum();
    assert_eq!(value("pair/left"), value("pair/right"));
    if let Some(head) = value("head") {
        assert_eq!(head["count"], json!(sum));
    }
    assert_eq!(page.position, answer.position());
    page.position
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_and_scans_see_whole_batches_while_events_are_applied() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    let stop = Arc::new(AtomicBool::new(false));
    let spawn = |stop: &Arc<AtomicBool>| (stage.client().clone(), Arc::clone(stop));
    let ((a, s), (b, t), (c, u)) = (spawn(&stop), spawn(&stop), spawn(&stop));
    let readers = [
        tokio::spawn(async move { reader(a, s, the_pair_agrees).await }),
        tokio::spawn(async move { reader(b, t, the_sums_agree).await }),
        tokio::spawn(async move { reader(c, u, a_page_agrees).await }),
    ];
    for _ in 0..20 {
        stage.publish(1_000).await;
    }
    stage.assert_ledger_equals_model().await;
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        let answers = reader.await.expect("no check fails");
        assert!(answers > 10, "only {answers} answers under load");
    }
}

#[tokio::test]
async fn a_read_that_asks_for_a_position_sees_at_least_that() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    for _ in 0..50 {
        let last = stage.publish(20).await;
        let path = format!("/v1/deployments/{LEDGER}/entries/head?at-least={last}&timeout=30s");
        let answer = stage.client().get(&path).await.expect(200);
        assert!(answer.position() >= last);
        assert_eq!(answer.value(), stage.model.head());
    }
    let path = format!("/v1/deployments/{LEDGER}/entries/head?at-least=1000000&timeout=100ms");
    let begin = std::time::Instant::now();
    let problem = stage.client().get(&path).await.problem(504, "behind");
    assert_eq!(problem.position, Some(stage.model.last()));
    assert!(
        begin.elapsed().as_millis() >= 100,
        "it waits as long as it was told"
    );
}

/// The position in the id of an event of a watch.
fn position(id: &str) -> u64 {
    id.split('.')
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("id {id} has no position"))
}

/// Folds changes into a map until it has all through a position; the id to resume from.
async fn follow(
    events: &mut foldstream_tests::client::Events,
    seen: &mut BTreeMap<String, Value>,
    until: u64,
) -> String {
    let begin = std::time::Instant::now();
    loop {
        // Heartbeats come for ever, so that waiting for the next event alone would not end.
        assert!(
            begin.elapsed() < wait::DEADLINE,
            "the watch has not shown {until}"
        );
        let event = events.next().await.expect("the watch continues");
        match event.event.as_str() {
            "change" => {
                let change: foldstream::api::Change =
                    serde_json::from_str(&event.data).expect("a change is JSON");
                // While more changes of one batch follow, the id still is the position before it:
                // resuming there leaves none of them out.
                let through = position(&event.id);
                assert!(through <= change.position, "{event:?}");
                seen.insert(change.key, change.value);
                if through >= until {
                    return event.id;
                }
            }
            "position" | "" => {}
            other => panic!("{other}: {}", event.data),
        }
    }
}

#[tokio::test]
async fn a_watch_that_resumes_after_a_position_ends_with_the_same_state() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    let path = format!("/v1/deployments/{LEDGER}/changes");
    let (mut whole, mut seen) = (BTreeMap::new(), BTreeMap::new());
    let mut uninterrupted = stage.client().events(&path, None).await;
    let mut events = stage.client().events(&path, None).await;
    let first = stage.publish(200).await;
    let id = follow(&mut events, &mut seen, first).await;
    drop(events);
    let missed = stage.publish(200).await;
    stage.client().reached(LEDGER, missed).await;
    let mut events = stage.client().events(&path, Some(&id)).await;
    follow(&mut events, &mut seen, missed).await;
    // So few that most keys changed for the last time in what was missed.
    let last = stage.publish(10).await;
    follow(&mut events, &mut seen, last).await;
    follow(&mut uninterrupted, &mut whole, last).await;
    assert_eq!(seen, whole, "what was missed comes with the resumed watch");
    let wanted: BTreeMap<String, Value> = stage
        .model
        .entries()
        .into_iter()
        .map(|entry| (entry.key, entry.value))
        .collect();
    assert_eq!(whole, wanted, "and all of it is the fold");
}

#[tokio::test]
async fn a_watch_says_first_how_soon_to_come_back_after_it_broke_off() {
    let stage = Stage::with_ledger(Kind::Embedded).await;
    let request = stage.client().request(
        reqwest::Method::GET,
        &format!("/v1/deployments/{LEDGER}/changes"),
    );
    let mut answer = request.send().await.expect("the host answers");
    let mut text = String::new();
    while !text.contains("\n\n") {
        let chunk = tokio::time::timeout(wait::DEADLINE, answer.chunk())
            .await
            .expect("something arrives");
        text.push_str(&String::from_utf8_lossy(
            &chunk.expect("it is read").expect("it does not end"),
        ));
    }
    let pause = text
        .strip_prefix("retry: ")
        .and_then(|rest| rest.split_once("\n\n"))
        .map(|(pause, _)| pause);
    assert!(
        pause.is_some_and(|pause| pause.parse::<u64>().is_ok_and(|pause| pause > 0)),
        "{text}"
    );
}

#[tokio::test]
async fn a_watch_does_not_resume_in_a_deployment_of_the_same_name() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    let path = format!("/v1/deployments/{LEDGER}/changes");
    let mut events = stage.client().events(&path, None).await;
    let first = stage.publish(100).await;
    let id = follow(&mut events, &mut BTreeMap::new(), first).await;
    drop(events);
    let request = stage.client().request(
        reqwest::Method::DELETE,
        &format!("/v1/deployments/{LEDGER}"),
    );
    stage.client().send(request).await.expect(204);
    let last = stage.publish(100).await;
    stage.deploy_ledger().await;
    stage.client().reached(LEDGER, last).await;
    let mut events = stage.client().events(&path, Some(&id)).await;
    let event = events.next().await.expect("the watch continues");
    assert_eq!(
        event.event, "reset",
        "the position of {id} counts in a state that is gone: {event:?}"
    );
    let last = stage.publish(10).await;
    let resumed = follow(&mut events, &mut BTreeMap::new(), last).await;
    assert_ne!(
        id.split('.').nth(1),
        resumed.split('.').nth(1),
        "{id}, {resumed}"
    );
    // The new one's own ids are good.
    let mut events = stage.client().events(&path, Some(&resumed)).await;
    assert_eq!(
        events.next().await.expect("the watch continues").event,
        "position"
    );
}

#[tokio::test]
async fn a_watch_of_a_prefix_shows_its_keys_alone_and_every_last_value() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    let path = format!("/v1/deployments/{LEDGER}/changes?prefix=customer/1&after=0");
    let mut events = stage.client().events(&path, None).await;
    let mut seen: BTreeMap<String, Value> = BTreeMap::new();
    let last = stage.publish(3_000).await;
    stage.client().reached(LEDGER, last).await;
    let wanted: BTreeMap<String, Value> = stage
        .model
        .entries()
        .into_iter()
        .filter(|entry| entry.key.starts_with("customer/1"))
        .map(|entry| (entry.key, entry.value))
        .collect();
    while seen != wanted {
        let change = events.change().await;
        assert!(change.key.starts_with("customer/1"), "{change:?}");
        seen.insert(change.key, change.value);
    }
}

#[tokio::test]
async fn a_resume_point_that_is_no_longer_known_is_said_so() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    let last = stage.publish(1_000).await;
    stage.client().reached(LEDGER, last).await;
    assert_eq!(stage.host.stop().code(), Some(0));
    stage.host.restart().await;
    // After a restart nothing is known of what changed before it.
    stage
        .client()
        .show_when(LEDGER, "be opened", |shown| shown.position >= last)
        .await;
    let path = format!("/v1/deployments/{LEDGER}/changes?after=1");
    let mut events = stage.client().events(&path, None).await;
    loop {
        let event = events.next().await.expect("the watch continues");
        match event.event.as_str() {
            "reset" => break,
            "change" => panic!("a change before the reset: {}", event.data),
            _ => {}
        }
    }
    let last = stage.publish(1).await;
    loop {
        let change = events.change().await;
        if change.key == "pair/left" && change.value == json!(last) {
            break;
        }
    }
}

#[tokio::test]
async fn reads_continue_while_a_deployment_is_replaced_by_another() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(1_000).await;
    stage.assert_ledger_equals_model().await;
    let (client, stop) = (stage.client().clone(), Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    let reads = tokio::spawn(async move {
        while !stopped.load(Ordering::Relaxed) {
            let answer = client.entry(LEDGER, "head").await.expect(200);
            assert!(
                answer.position() >= 1_000,
                "went back to {}",
                answer.position()
            );
        }
    });
    stage
        .client()
        .deploy(LEDGER, &foldstream_tests::guests::module("ledger-next"))
        .await;
    stage
        .client()
        .show_when(LEDGER, "take over", |shown| shown.generation == 2)
        .await;
    stage.deploy_ledger().await;
    stage
        .client()
        .show_when(LEDGER, "take over", |shown| shown.generation == 3)
        .await;
    stage.assert_ledger_equals_model().await;
    stop.store(true, Ordering::Relaxed);
    wait::until("the reader to end", || async {
        reads.is_finished().then_some(())
    })
    .await;
    reads.await.expect("no read breaks");
}
