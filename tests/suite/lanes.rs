//! Several lanes leave what one leaves: the same entries, the same failures, whatever modules share,
//! and through kills.

use std::time::Duration;

use foldstream::api::{self, NewEvent};
use foldstream_tests::events::new_event;
use foldstream_tests::host::Host;
use foldstream_tests::orders::Orders;
use foldstream_tests::{cli, guests};
use serde_json::json;

/// The deployment that is folded serially, and the one with lanes.
const ONE: &str = "one";
const SEVERAL: &str = "several";
/// Small batches, so that many are split.
const CONFIG: &str = "[pipeline]\nbatch_events = 1024\n";

/// What the guest `customer-totals` folds: each key has an entry of its own.
fn totals(count: u64) -> Vec<NewEvent> {
    (0..count)
        .map(|number| {
            let (subject, data) = customer_totals::sample(number, 500);
            let data = serde_json::from_str(&data).expect("samples are JSON");
            new_event(&subject, data)
        })
        .collect()
}

/// What the guest `mischief` folds: some keys depend on entries of others.
fn mischief(random: &mut fastrand::Rng, count: u64) -> Vec<NewEvent> {
    let verb = |random: &mut fastrand::Rng| match random.u16(0..4_000) {
        0 => format!("rate {}", random.u8(1..9)),
        1 => "count-owed".to_owned(),
        2..400 => format!("owe {}", random.u8(1..99)),
        _ => "note harmless".to_owned(),
    };
    (0..count)
        .map(|_| {
            let subject = format!("mischief.k{}", random.u8(0..40));
            new_event(&subject, json!(verb(random)))
        })
        .collect()
}

async fn append(host: &Host, events: &[NewEvent]) -> u64 {
    let mut last = 0;
    for part in events.chunks(1_000) {
        last = host.client().append(part).await.last_sequence;
    }
    last
}

/// Deploys a module twice, with one lane and with several.
async fn deploy_both(host: &Host, guest: &str, lanes: u32, parameters: &str) {
    let module = guests::module(guest);
    for (name, lanes) in [(ONE, 1), (SEVERAL, lanes)] {
        let parameters = format!("&lanes={lanes}{parameters}");
        host.client().deploy_with(name, &module, &parameters).await;
    }
}

async fn assert_equal(host: &Host, last: u64) {
    let client = host.client();
    for name in [ONE, SEVERAL] {
        client.reached(name, last).await;
    }
    let (one, several) = (
        client.entries(ONE, "").await,
        client.entries(SEVERAL, "").await,
    );
    assert!(!one.is_empty());
    assert!(one == several, "the entries differ");
    // Serially, and with random batches.
    cli::on(host, &["verify", SEVERAL]).expect(0);
}

async fn lanes_of(host: &Host, name: &str) -> api::DeploymentLanes {
    let shown = host.client().show(name).await;
    shown.lanes.expect("it has several lanes")
}

#[tokio::test]
async fn keys_apart_are_folded_in_lanes() {
    let host = Host::start_with(CONFIG).await;
    let last = append(&host, &totals(12_000)).await;
    deploy_both(&host, "customer-totals", 3, "").await;
    assert_equal(&host, last).await;
    let lanes = lanes_of(&host, SEVERAL).await;
    assert!(lanes.split > 3 && lanes.collided == 0, "{lanes:?}");
    assert_eq!(host.client().show(ONE).await.lanes, None);
    let shown = cli::on(&host, &["show", SEVERAL]).expect(0).stdout;
    assert!(shown.contains("lanes          3; "), "{shown}");
    let page = host.client().get("/metrics").await.expect(200).text();
    let line = format!("foldstream_lanes{{deployment=\"{SEVERAL}\"}} 3");
    assert!(page.contains(&line), "{page}");
}

#[tokio::test]
async fn keys_that_share_some_entries_are_folded_with_the_result_of_one_lane() {
    let host = Host::start_with(CONFIG).await;
    let mut random = fastrand::Rng::with_seed(foldstream_tests::seed());
    let last = append(&host, &mischief(&mut random, 12_000)).await;
    deploy_both(&host, "mischief", 2, "").await;
    assert_equal(&host, last).await;
    let lanes = lanes_of(&host, SEVERAL).await;
    assert!(lanes.split + lanes.collided > 0, "{lanes:?}");
}

#[tokio::test]
async fn keys_that_share_an_entry_go_back_to_one_lane_which_is_shown() {
    let host = Host::start_with(CONFIG).await;
    // Each event of a ledger changes its head. Lanes are tried less and less often.
    let orders = Orders::new(foldstream_tests::seed(), 100).take(70_000);
    let events: Vec<_> = orders.map(|order| order.new_event()).collect();
    let last = append(&host, &events).await;
    deploy_both(&host, "ledger", 2, "").await;
    assert_equal(&host, last).await;
    let lanes = lanes_of(&host, SEVERAL).await;
    assert!(
        lanes.gave_up && lanes.split == 0 && lanes.collided == 5,
        "{lanes:?}"
    );
    let shared = ["head", "pair/left", "pair/right"];
    assert!(
        lanes.keys.iter().all(|key| shared.contains(&key.as_str())),
        "{lanes:?}"
    );
    let shown = cli::on(&host, &["show", SEVERAL]).expect(0).stdout;
    assert!(
        shown.contains("1 instead of 2, because lanes touched the same entries in 5 batches; "),
        "{shown}"
    );
    let page = host.client().get("/metrics").await.expect(200).text();
    let line = format!("foldstream_lanes{{deployment=\"{SEVERAL}\"}} 1");
    assert!(page.contains(&line), "{page}");
}

#[tokio::test]
async fn an_event_that_fails_in_a_lane_stops_as_in_one() {
    for verb in ["trap", "loop", "reject nonsense", "half"] {
        let deadline = if verb == "loop" { "500ms" } else { "30s" };
        let config = format!("{CONFIG}[modules]\ndeadline = \"{deadline}\"\n");
        let host = Host::start_with(&config).await;
        let mut random = fastrand::Rng::with_seed(foldstream_tests::seed());
        let mut events = mischief(&mut random, 6_000);
        events[4_400] = new_event("mischief.k7", json!(verb));
        append(&host, &events).await;
        deploy_both(&host, "mischief", 2, "").await;
        let mut failures = Vec::new();
        for name in [ONE, SEVERAL] {
            let (deployment, failure) = host.client().failed(name).await;
            failures.push((
                deployment.position,
                failure.sequence,
                failure.kind,
                // Its end names the deployment.
                failure.message.split("; deploy").next().map(str::to_owned),
                failure.attempts,
                host.client().entries(name, "").await,
            ));
        }
        assert!(failures[0] == failures[1], "{verb}: {failures:?}");
        assert_eq!(failures[0].1, Some(4_401), "{verb}");
        // A slow event makes batches small, which are not split; and keys of some may collide.
        let lanes = lanes_of(&host, SEVERAL).await;
        assert!(
            lanes.failed + lanes.collided > 0 || verb == "loop",
            "{verb}: {lanes:?}"
        );
    }
}

#[tokio::test]
async fn events_that_fail_in_lanes_are_parked_with_their_keys_and_retried_as_in_one() {
    let host = Host::start_with(CONFIG).await;
    let mut random = fastrand::Rng::with_seed(foldstream_tests::seed());
    let mut events = mischief(&mut random, 10_000);
    for place in [3_000, 5_000, 5_001, 9_000] {
        let subject = events[place].subject.clone();
        events[place] = new_event(&subject, json!("ill corrected"));
    }
    let last = append(&host, &events).await;
    deploy_both(&host, "mischief", 3, "&on-failure=park").await;
    let mut parked = Vec::new();
    for name in [ONE, SEVERAL] {
        host.client().reached(name, last).await;
        let path = format!("/v1/deployments/{name}/parked");
        let list: api::ParkedList = host.client().get(&path).await.expect(200).json();
        let keys = list.keys.iter().map(|key| (key.key.clone(), key.events));
        parked.push(keys.collect::<Vec<_>>());
    }
    assert!(parked[0].len() >= 2 && parked[0] == parked[1], "{parked:?}");
    let fixed = guests::module("mischief-fixed");
    for name in [ONE, SEVERAL] {
        host.client()
            .deploy_with(name, &fixed, "&strategy=inherit")
            .await;
        cli::on(&host, &["parked", "retry", name, "--all"]).expect(0);
    }
    assert_equal(&host, last).await;
}

#[tokio::test]
async fn killed_while_it_folds_in_lanes_the_state_equals_the_fold() {
    let flushes = "[state]\nflush_interval = \"20ms\"\nmemtable_bytes = 65536\n";
    let mut host = Host::start_with(&format!("{CONFIG}{flushes}")).await;
    let mut random = fastrand::Rng::with_seed(foldstream_tests::seed());
    let last = append(&host, &totals(60_000)).await;
    deploy_both(&host, "customer-totals", 2, "").await;
    for _ in 0..6 {
        // A moment that no one chose, while it catches up.
        tokio::time::sleep(Duration::from_micros(random.u64(0..300_000))).await;
        host.kill();
        host.restart().await;
    }
    assert_equal(&host, last).await;
    // The number of lanes is in the catalogue.
    assert_eq!(lanes_of(&host, SEVERAL).await.count, 2);
}

#[tokio::test]
async fn deploys_set_lanes_and_refuse_what_cannot_have_them() {
    let host = Host::start_with("[modules]\nlanes = 2\n").await;
    let client = host.client();
    let module = guests::module("customer-totals");
    client.deploy(SEVERAL, &module).await;
    let has = |count: u32| {
        move |shown: &api::Deployment| {
            shown
                .lanes
                .as_ref()
                .is_some_and(|lanes| lanes.count == count)
        }
    };
    client
        .show_when(SEVERAL, "take the number of the host", has(2))
        .await;
    let again = client.deploy_with(SEVERAL, &module, "&lanes=5").await;
    assert!(again.reason.contains("lanes: 5"), "{}", again.reason);
    client.show_when(SEVERAL, "have five", has(5)).await;
    client.deploy_with(SEVERAL, &module, "&lanes=1").await;
    client
        .show_when(SEVERAL, "have one", |shown| shown.lanes.is_none())
        .await;
    for (guest, parameters, reason) in [
        ("witness", "&lanes=2", "declares no key rule"),
        ("echo", "&lanes=2", "is a handler"),
        (
            "customer-totals",
            "&lanes=0",
            "lanes are `auto`, or a number",
        ),
        (
            "customer-totals",
            "&lanes=65",
            "lanes are `auto`, or a number",
        ),
    ] {
        let query = format!("?name=refused{parameters}");
        let answer = client.upload(guests::module(guest), &query).await;
        assert!(answer.status.is_client_error(), "{guest}{parameters}");
        assert!(answer.text().contains(reason), "{}", answer.text());
    }
    // More than one lane where possible.
    client
        .deploy_with("keyless", &guests::module("witness"), "&lanes=auto")
        .await;
    assert_eq!(client.show("keyless").await.lanes, None);
}
