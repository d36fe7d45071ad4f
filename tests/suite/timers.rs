//! Timers of handlers: each fires once, at or after its time, at one place among the events,
//! whatever happens to the host.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::stream;
use foldstream::api::{self, GenerationStatus};
use foldstream_tests::client::Client;
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::{cli, guests, wait};
use serde_json::{Value, json};

/// Name of the deployment of the guest of that name.
pub(crate) const ALARM: &str = "alarm";
const GRANT: &str = "&allow-publish=rang.%3E%40events";
/// Small and frequent flushes, so that kills fall before, into and behind commits.
const FLUSHES: &str = "[state]\nflush_interval = \"50ms\"\n";
/// Later than any test lasts.
pub(crate) const LATER_MS: u64 = 3_600_000;

pub(crate) fn event(key: &str, what: &str, data: &Value) -> api::NewEvent {
    serde_json::from_value(json!({ "subject": format!("alarm.{key}.{what}"), "data": data }))
        .expect("an event")
}

fn set(key: &str, name: &str, after_ms: u64) -> api::NewEvent {
    event(key, "set", &json!({ "name": name, "after_ms": after_ms }))
}

fn cancel(key: &str, name: &str) -> api::NewEvent {
    event(key, "cancel", &json!({ "name": name }))
}

/// All events under a pattern in the embedded log.
async fn stored(client: &Client, pattern: &str) -> Vec<Value> {
    let mut all = Vec::new();
    let mut after = 0;
    loop {
        let path = format!("/v1/events?source=events&after={after}&limit=1000&subject={pattern}");
        let page = client.get(&path).await.expect(200).value();
        all.extend(page["events"].as_array().expect("a list").iter().cloned());
        match page["next"].as_u64() {
            Some(next) => after = next,
            None => return all,
        }
    }
}

/// The names of the timers whose messages are stored, in their order.
pub(crate) fn names(rang: &[Value]) -> Vec<String> {
    rang.iter()
        .map(|message| message["data"]["name"].as_str().expect("a name").to_owned())
        .collect()
}

/// Waits until this many timers have rung and all that they caused is published.
pub(crate) async fn rang(client: &Client, count: usize) -> Vec<Value> {
    wait::until("the timers to ring", || async {
        let rang = stored(client, "rang.%3E").await;
        (rang.len() >= count).then_some(rang)
    })
    .await
}

/// How many timers are pending, once the state is open.
pub(crate) async fn pending(client: &Client, wanted: u64) -> api::Timers {
    let shown = client
        .show_when(ALARM, "have timers", |shown| {
            shown
                .timers
                .as_ref()
                .is_some_and(|timers| timers.pending == wanted)
        })
        .await;
    shown.timers.expect("it was just there")
}

pub(crate) async fn start(config: &str) -> Host {
    let host = Host::start_with(config).await;
    host.client()
        .deploy_with(ALARM, &guests::module(ALARM), GRANT)
        .await;
    host
}

/// Folds the stream again in other batches, and compares.
fn assert_same_when_folded_again(host: &Host) {
    cli::on(host, &["verify", ALARM, "--seed", "7"]).expect(0);
}

fn assert_once_and_not_early(rang: &[Value]) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for message in rang {
        let data = &message["data"];
        *counts
            .entry(data["name"].as_str().expect("a name"))
            .or_default() += 1;
        assert!(
            data["fired"].as_u64() >= data["at"].as_u64(),
            "it fired early: {data}"
        );
    }
    let twice: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "fired more than once: {twice:?}");
}

#[tokio::test]
async fn timer_fires_once_after_its_time_and_its_message_continues_its_event() {
    let host = start("").await;
    let client = host.client();
    let asked = client
        .append(&[set("a", "tea", 300), set("b", "never", LATER_MS)])
        .await;
    let rang = rang(client, 1).await;

    assert_once_and_not_early(&rang);
    let (message, firings) = (&rang[0], stored(client, "_fs.timers.%3E").await);
    assert_eq!(message["subject"], "rang.a.tea");
    assert_eq!(
        message["headers"]["ce-correlationid"],
        asked.sequences[0].to_string(),
        "{message}"
    );
    // Its firing is recorded, behind the events.
    assert_eq!(firings.len(), 1, "{firings:?}");
    assert_eq!(
        (&firings[0]["data"]["name"], &firings[0]["sequence"]),
        (&json!("a/tea"), &message["data"]["sequence"])
    );
    let timers = pending(client, 1).await;
    assert!(
        timers.next_at.is_some() && timers.trouble.is_none(),
        "{timers:?}"
    );
    let page = client.get("/v1/deployments/alarm/timers").await.expect(200);
    let page: api::PendingTimers = page.json();
    assert_eq!(
        (page.timers.len(), page.timers[0].name.as_str()),
        (1, "b/never")
    );
    assert_same_when_folded_again(&host);
}

#[tokio::test]
async fn killed_between_set_and_time_the_timer_fires_once_after_the_restart() {
    let mut host = start(FLUSHES).await;
    host.client()
        .append(&[set("a", "soon", 2_000), set("a", "later", LATER_MS)])
        .await;
    pending(host.client(), 2).await;
    host.kill();
    tokio::time::sleep(Duration::from_millis(2_000)).await;
    host.restart().await;
    let rang = rang(host.client(), 1).await;
    assert_eq!(names(&rang), ["a/soon"]);
    assert_once_and_not_early(&rang);
    pending(host.client(), 1).await;
}

#[tokio::test]
async fn killed_again_and_again_while_timers_fire_each_fires_once() {
    let mut random = fastrand::Rng::with_seed(foldstream_tests::seed());
    let mut host = start(FLUSHES).await;
    let mut wanted = 0;
    for round in 0..8_u64 {
        let events: Vec<_> = (0..60)
            .map(|number| {
                let name = format!("r{round}-{number}");
                set(&format!("k{}", number % 7), &name, random.u64(0..600))
            })
            .collect();
        host.client().append(&events).await;
        wanted += events.len();
        tokio::time::sleep(Duration::from_micros(random.u64(0..400_000))).await;
        host.kill();
        host.restart().await;
    }
    rang(host.client(), wanted).await;
    pending(host.client(), 0).await;
    host.client()
        .show_when(ALARM, "publish everything", |shown| {
            shown
                .outbox
                .as_ref()
                .is_some_and(|outbox| outbox.entries == 0)
        })
        .await;
    let rang = stored(host.client(), "rang.%3E").await;
    assert_eq!(rang.len(), wanted);
    assert_once_and_not_early(&rang);
    let counts = host.client().entries(ALARM, "rang/").await;
    assert_eq!(counts.len(), wanted);
    assert_same_when_folded_again(&host);
}

#[tokio::test]
async fn replaced_cancelled_and_repeated_timers_do_what_the_last_word_says() {
    let host = start("").await;
    let client = host.client();
    client
        .append(&[
            // Replaced by a later time, and by an earlier one.
            set("a", "first", 0),
            set("a", "first", LATER_MS),
            set("a", "second", LATER_MS),
            set("a", "second", 100),
            // Cancelled before it fires, and set again after that.
            set("b", "gone", 0),
            cancel("b", "gone"),
            set("c", "back", LATER_MS),
            cancel("c", "back"),
            set("c", "back", 50),
            cancel("c", "unknown"),
            // Sets itself again under its own name.
            set("d", "again-3", 10),
        ])
        .await;
    // Due at one instant; the first of them cancels the second.
    let now = jiff::Timestamp::now().as_nanosecond() as u64;
    let at = |name: &str| event("e", "set", &json!({ "name": name, "at_ns": now }));
    client.append(&[at("cancels-victim"), at("victim")]).await;
    let rang = rang(client, 6).await;
    let mut names = names(&rang);
    names.sort();
    assert_eq!(
        names,
        [
            "a/second",
            "c/back",
            "d/again-3",
            "d/again-3",
            "d/again-3",
            "e/cancels-victim"
        ]
    );
    pending(client, 1).await;
    assert_same_when_folded_again(&host);
}

#[tokio::test]
async fn rebuilt_state_meets_the_firings_and_takes_the_pending_timers_over() {
    let host = start("").await;
    let client = host.client();
    client
        .append(&[set("a", "one", 50), set("b", "two", 4_000)])
        .await;
    rang(client, 1).await;
    client.append(&[set("a", "three", LATER_MS)]).await;
    let answer = client.act(ALARM, "rebuild").await;
    assert!(answer.status.is_success(), "{}", answer.text());
    let number = answer.json::<api::Deployed>().generation;
    client
        .becomes(ALARM, number, GenerationStatus::Active)
        .await;
    let rang = rang(client, 2).await;
    assert_eq!(names(&rang), ["a/one", "b/two"], "the new state fires it");
    let timers = pending(client, 1).await;
    assert!(timers.next_at.is_some(), "{timers:?}");
    assert_same_when_folded_again(&host);
}

#[tokio::test]
async fn firing_that_fails_stops_the_handler_and_can_be_skipped() {
    let host = start("").await;
    let client = host.client();
    client
        .append(&[set("a", "fails", 0), set("a", "fine", 10)])
        .await;
    let (_, failure) = client.failed(ALARM).await;
    let sequence = failure.sequence.expect("it names the firing");
    assert!(failure.message.contains("asked to fail"), "{failure:?}");
    let sequence = sequence.to_string();
    let skip = [
        "resume",
        ALARM,
        "--skip",
        &sequence,
        "--reason",
        "it never works",
    ];
    cli::on(&host, &skip).expect(0);
    let rang = rang(client, 1).await;
    assert_eq!(names(&rang), ["a/fine"]);
    pending(client, 0).await;
}

#[tokio::test]
async fn an_operator_fires_and_drops_timers_and_every_fold_meets_that() {
    let host = start("").await;
    let client = host.client();
    client
        .append(&[
            set("a", "now", LATER_MS),
            set("a", "never", 3_000),
            set("b", "moved", LATER_MS),
        ])
        .await;
    pending(client, 3).await;
    let run = |words: &[&str]| cli::on(&host, &[&["timers"], words].concat());
    let would = run(&["fire", ALARM, "a/now", "--dry-run"]).expect(0);
    assert!(would.stdout.contains("would fire timer a/now"), "{would:?}");
    let missing = run(&["fire", ALARM, "a/none"]);
    assert!(
        missing.code != 0 && missing.stderr.contains("no pending timer `a/none`"),
        "{missing:?}"
    );
    assert!(stored(client, "_fs.timers.%3E").await.is_empty());
    run(&["fire", ALARM, "a/now"]).expect(0);
    run(&["drop", ALARM, "a/never"]).expect(0);
    let rang = rang(client, 1).await;
    assert_eq!(names(&rang), ["a/now"]);
    assert!(rang[0]["data"]["fired"].as_u64() < rang[0]["data"]["at"].as_u64());
    pending(client, 1).await;
    // A decision about a timer that was set again since then does nothing.
    let shown = run(&["fire", ALARM, "b/moved", "--dry-run", "-o", "json"]).expect(0);
    let shown: api::TimerChanged = serde_json::from_str(&shown.stdout).expect("JSON");
    let seen: jiff::Timestamp = shown.timer.at.parse().expect("a time");
    client.append(&[set("b", "moved", LATER_MS)]).await;
    let late: api::NewEvent = serde_json::from_value(json!({
        "subject": "_fs.timers.alarm",
        "data": { "fire": "b/moved", "at": seen.as_nanosecond() as u64, "key": "b" },
    }))
    .expect("an event");
    client.append(&[late, set("c", "last", 0)]).await;
    let rang = self::rang(client, 2).await;
    assert_eq!(names(&rang), ["a/now", "c/last"]);
    let audit = cli::on(&host, &["audit", ALARM]).expect(0).stdout;
    assert!(
        audit.contains("timer-fire") && audit.contains("timer-drop") && audit.contains("a/never"),
        "{audit}"
    );
    // Longer than the dropped one had.
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    assert_eq!(names(&self::rang(client, 2).await).len(), 2);
    pending(client, 1).await;
    assert_same_when_folded_again(&host);
}

#[tokio::test]
async fn what_an_operator_decides_on_one_host_concerns_no_deployment_of_that_name_on_another() {
    let server = NatsServer::start().await;
    let jetstream = server.jetstream().await;
    nats::create_stream_with(&jetstream, alarms()).await;
    let host = Host::start_on(&server, "ALARMS").await;
    let other = Host::start_on(&server, "ALARMS").await;
    for host in [&host, &other] {
        host.client().deploy(ALARM, &guests::module(ALARM)).await;
    }
    for name in ["dropped", "kept", "old"] {
        ask(&jetstream, name, LATER_MS).await;
    }
    pending(host.client(), 3).await;
    pending(other.client(), 3).await;
    cli::on(&host, &["timers", "drop", ALARM, "a/dropped"]).expect(0);
    pending(host.client(), 2).await;
    // A candidate knows whose decisions count, and so does a fold that repeats another.
    let rebuilt = host.client().act(ALARM, "rebuild").await;
    let number = rebuilt.json::<api::Deployed>().generation;
    host.client()
        .becomes(ALARM, number, GenerationStatus::Active)
        .await;
    pending(host.client(), 2).await;
    assert_same_when_folded_again(&host);
    // The other one has got behind the decision.
    ask(&jetstream, "last", LATER_MS).await;
    pending(host.client(), 3).await;
    pending(other.client(), 4).await;
    assert_same_when_folded_again(&other);
    // What an earlier release decided names nobody, and concerns both.
    let at = wait::until("the timer to be durable", || async {
        let page = other.client().get("/v1/deployments/alarm/timers").await;
        let page: api::PendingTimers = page.expect(200).json();
        let mut timers = page.timers.into_iter();
        let old = timers.find(|timer| timer.name == "a/old");
        old.map(|timer| timer.at)
    });
    let at: jiff::Timestamp = at.await.parse().expect("a time");
    let drop = json!({ "drop": "a/old", "at": at.as_nanosecond() as u64, "key": "a" });
    let sent = jetstream.publish("_fs.timers.alarm", drop.to_string().into());
    sent.await.expect("is sent").await.expect("is stored");
    pending(host.client(), 2).await;
    pending(other.client(), 3).await;
}

#[tokio::test]
async fn handlers_that_cause_each_other_through_timers_without_end_are_stopped_and_named() {
    let host = start("").await;
    let client = host.client();
    let grant = "&allow-publish=alarm.%3E%40events";
    client
        .deploy_with("echo", &guests::module("echo"), grant)
        .await;
    client.append(&[set("a", "each-0", 0)]).await;
    let failure = wait::until("one of them to stop", || async {
        let both = [client.show(ALARM).await, client.show("echo").await];
        let mut failed = both
            .into_iter()
            .filter(|shown| shown.state == api::DeploymentState::Failed);
        failed.find_map(|shown| shown.failure)
    })
    .await;
    assert!(
        failure.message.starts_with("loop") && failure.message.contains("alarm -> echo -> alarm"),
        "{failure:?}"
    );
    let firings = stored(client, "_fs.timers.%3E").await;
    assert_eq!(firings.len(), 17, "a chain of 32 passes 16 of them");
    let headers = &firings[15]["headers"];
    assert_eq!(headers["ce-correlationid"], "1", "{headers}");
    assert!(headers["ce-causationid"].is_string(), "{headers}");
    let path = headers["foldstream-path"].as_str().expect("a chain");
    assert_eq!(path.split(',').count(), 30, "{path}");
}

#[tokio::test]
async fn timer_fires_although_its_stream_takes_no_message_with_the_headers_of_its_event() {
    let server = NatsServer::start().await;
    let jetstream = server.jetstream().await;
    let config = stream::Config {
        max_message_size: 1_000,
        ..alarms()
    };
    nats::create_stream_with(&jetstream, config).await;
    let host = Host::start_on(&server, "ALARMS").await;
    let grant = "&allow-publish=rang.%3E%40orders&effects-from=beginning";
    host.client()
        .deploy_with(ALARM, &guests::module(ALARM), grant)
        .await;
    let name = "x".repeat(200);
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("ce-correlationid", "y".repeat(700).as_str());
    let data = json!({ "name": name, "after_ms": 0 }).to_string();
    let sent = jetstream.publish_with_headers("alarm.a.set", headers, data.into());
    sent.await.expect("is sent").await.expect("is stored");
    // The firing.
    host.client().reached(ALARM, 2).await;
    pending(host.client(), 0).await;
}

#[tokio::test]
async fn heartbeats_and_retries_after_a_pause_are_no_loops() {
    let host = start("").await;
    let client = host.client();
    let grant = "&allow-publish=alarm.%3E%40events";
    client
        .deploy_with("echo", &guests::module("echo"), grant)
        .await;
    // One sets itself again forty times; the other rings once a second, after an event of another
    // handler each time.
    client
        .append(&[set("h", "again-40", 0), set("r", "each-1000", 0)])
        .await;
    let rounds = wait::until("both to ring", || async {
        let beats = stored(client, "rang.h.%3E").await;
        let rounds = stored(client, "rang.r.%3E").await;
        (beats.len() >= 40 && rounds.len() >= 4).then_some(rounds)
    })
    .await;
    for round in &rounds[1..] {
        assert_eq!(round["headers"]["foldstream-path"], "alarm", "{round}");
    }
    let shown = client.show(ALARM).await;
    assert_eq!(shown.state, api::DeploymentState::Live, "{shown:?}");
}

#[tokio::test]
async fn a_timer_of_any_name_can_be_dropped_once() {
    let host = start("").await;
    let client = host.client();
    let names = [
        "ü b?c=d&e#f",
        "%2F..%00/../x",
        "--all",
        "\"quoted\" 'twice' \\",
        "{\"drop\":\"a/other\"}",
    ];
    let events: Vec<_> = names.iter().map(|name| set("a", name, LATER_MS)).collect();
    client.append(&events).await;
    client.append(&[set("a", "other", LATER_MS)]).await;
    pending(client, 6).await;
    for (left, name) in (1..=5).rev().zip(names) {
        let name = format!("a/{name}");
        let drop = ["timers", "drop", ALARM, &name];
        cli::on(&host, &drop).expect(0);
        pending(client, left).await;
        let again = cli::on(&host, &drop);
        assert!(again.stderr.contains("no pending timer"), "{again:?}");
    }
    assert_same_when_folded_again(&host);
}

#[tokio::test]
async fn limits_and_mistakes_have_names() {
    let host = Host::start_with("[state]\ntimers_pending_max = 5\n").await;
    let client = host.client();
    client
        .deploy_with(ALARM, &guests::module(ALARM), GRANT)
        .await;
    // As late as a time can be, a thousand years later, and in the past.
    let at = |name: &str, at_ns: u64| event("a", "set", &json!({ "name": name, "at_ns": at_ns }));
    let far = set("a", "far", 1_000 * 365 * 24 * 60 * 60 * 1_000);
    client
        .append(&[at("last", u64::MAX), far, at("past", 1)])
        .await;
    assert_eq!(names(&rang(client, 1).await), ["a/past"]);
    pending(client, 2).await;
    let list = cli::on(&host, &["timers", "list", ALARM]).expect(0).stdout;
    assert_eq!(list.matches("2554-07-21T23:34:33").count(), 2, "{list}");
    let many = event(
        "b",
        "set",
        &json!({ "name": "n", "after_ms": LATER_MS, "count": 5 }),
    );
    client.append(&[many]).await;
    let (_, failure) = client.failed(ALARM).await;
    assert!(
        failure.message.contains("timers-pending")
            && failure.message.contains("state.timers_pending_max"),
        "{failure:?}"
    );
    let long = "x".repeat(600);
    client.append(&[set("c", &long, 0)]).await;

    client
        .deploy_with(
            "reactor",
            &guests::module("reactor"),
            "&allow-publish=out.%3E%40events",
        )
        .await;
    let undeclared: api::NewEvent =
        serde_json::from_value(json!({ "subject": "in.1.timer", "data": {} })).expect("an event");
    client.append(&[undeclared]).await;
    let (_, failure) = client.failed("reactor").await;
    assert!(failure.message.contains("sets-timers"), "{failure:?}");
}

#[tokio::test]
async fn firings_are_no_events_for_others() {
    let host = start("").await;
    let client = host.client();
    client.append(&[set("a", "tea", 0)]).await;
    rang(client, 1).await;
    let all = stored(client, "%3E").await;
    assert!(
        all.iter()
            .all(|event| !event["subject"].as_str().expect("text").starts_with("_fs")),
        "{all:?}"
    );
}

#[tokio::test]
async fn timer_that_an_event_before_the_deploy_set_fires_and_publishes_nothing() {
    let host = Host::start().await;
    let client = host.client();
    client.append(&[set("a", "old", 0)]).await;
    client
        .deploy_with(ALARM, &guests::module(ALARM), GRANT)
        .await;
    client.append(&[set("b", "new", 0)]).await;
    let rang = rang(client, 1).await;
    pending(client, 0).await;
    assert_eq!(names(&rang), ["b/new"]);
    assert_eq!(client.entries(ALARM, "rang/").await.len(), 2);
    assert_eq!(stored(client, "rang.%3E").await.len(), 1);
}

#[tokio::test]
async fn thousands_due_at_one_instant_fire_in_order_once_each() {
    let mut host = start(FLUSHES).await;
    let many = json!({ "name": "n", "after_ms": 300, "count": 3_000 });
    host.client().append(&[event("a", "set", &many)]).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    host.kill();
    host.restart().await;
    let rang = rang(host.client(), 3_000).await;
    assert_once_and_not_early(&rang);
    let names = names(&rang);
    assert!(names.is_sorted(), "they fired in another order");
    pending(host.client(), 0).await;
    assert_same_when_folded_again(&host);
}

/// A message of a stream.
fn read(payload: &[u8]) -> Value {
    json!({ "data": serde_json::from_slice::<Value>(payload).expect("the guest writes JSON") })
}

/// A stream with alarms, what rings and firings.
pub(crate) fn alarms() -> stream::Config {
    stream::Config {
        subjects: ["alarm.>", "rang.>", "_fs.timers.>"]
            .map(str::to_owned)
            .to_vec(),
        ..nats::stream_config("ALARMS", "alarm.>")
    }
}

/// Asks for a timer of key `a` in the stream.
pub(crate) async fn ask(jetstream: &async_nats::jetstream::Context, name: &str, after_ms: u64) {
    let data = json!({ "name": name, "after_ms": after_ms }).to_string();
    let sent = jetstream.publish("alarm.a.set", data.into()).await;
    sent.expect("is sent").await.expect("is stored");
}

/// All messages that rang in the stream.
async fn rang_in(server: &NatsServer) -> Vec<Value> {
    let jetstream = server.jetstream().await;
    let mut stream = jetstream.get_stream("ALARMS").await.expect("it is there");
    let last = stream.info().await.expect("it answers").state.last_sequence;
    let mut all = Vec::new();
    for sequence in 1..=last {
        let message = stream.get_raw_message(sequence).await.expect("it is kept");
        if message.subject.starts_with("rang.") {
            all.push(read(&message.payload));
        }
    }
    all
}

#[tokio::test]
async fn timers_of_a_stream_fire_through_kills_and_a_server_that_goes_away() {
    let mut server = NatsServer::start().await;
    let jetstream = server.jetstream().await;
    nats::create_stream_with(&jetstream, alarms()).await;
    let mut host = Host::start_on(&server, "ALARMS").await;
    let grant = "&allow-publish=rang.%3E%40orders";
    host.client()
        .deploy_with(ALARM, &guests::module(ALARM), grant)
        .await;
    for number in 0..50 {
        ask(&jetstream, &format!("t{number}"), number * 40).await;
    }
    host.kill();
    host.restart().await;
    server.kill();
    tokio::time::sleep(Duration::from_millis(700)).await;
    server.restart().await;
    ask(&server.jetstream().await, "last", 0).await;
    let rang = wait::until("all timers to ring", || async {
        let rang = rang_in(&server).await;
        (rang.len() >= 51).then_some(rang)
    })
    .await;
    assert_once_and_not_early(&rang);
    pending(host.client(), 0).await;
    assert_same_when_folded_again(&host);
}

#[tokio::test]
async fn stream_that_takes_no_firings_is_named_and_the_timers_wait() {
    named_as_it_takes_no_firings(nats::stream_config("ALARMS", "alarm.>")).await;
}

#[tokio::test]
async fn stream_that_stores_firings_under_another_subject_is_named_and_gets_none() {
    let config = nats::stream_config("ALARMS", "alarm.>");
    named_as_it_takes_no_firings(stream::Config {
        subjects: vec!["alarm.>".to_owned(), "_fs.timers.>".to_owned()],
        subject_transform: Some(stream::SubjectTransform {
            source: "_fs.timers.>".to_owned(),
            destination: "alarm.timers.>".to_owned(),
        }),
        ..config
    })
    .await;
}

async fn named_as_it_takes_no_firings(config: stream::Config) {
    let server = NatsServer::start().await;
    let jetstream = server.jetstream().await;
    nats::create_stream_with(&jetstream, config).await;
    let host = Host::start_on(&server, "ALARMS").await;
    host.client().deploy(ALARM, &guests::module(ALARM)).await;
    let data = json!({ "name": "tea" }).to_string();
    let sent = jetstream.publish("alarm.a.set", data.into()).await;
    sent.expect("is sent").await.expect("is stored");
    let shown = host
        .client()
        .show_when(ALARM, "say why no timer fires", |shown| {
            shown
                .timers
                .as_ref()
                .is_some_and(|timers| timers.trouble.is_some())
        })
        .await;
    let timers = shown.timers.expect("it has some");
    let trouble = timers.trouble.expect("it was just there");
    assert!(
        trouble.contains("_fs.timers.alarm") && trouble.contains("ALARMS"),
        "{trouble}"
    );
    assert_eq!(timers.pending, 1);
    let fire = format!("timers/fire?timer={}", "a%2Ftea");
    let refused = host.client().act(ALARM, &fire).await;
    let refused = refused.problem(422, "refused").detail;
    assert!(refused.contains("_fs.timers.alarm"), "{refused}");
    let metrics = host.client().get("/metrics").await.text();
    assert!(metrics.contains("foldstream_timers_troubled{deployment=\"alarm\"} 1"));
    let mut stream = jetstream.get_stream("ALARMS").await.expect("it is there");
    let stored = stream.info().await.expect("it answers").state.messages;
    assert_eq!(stored, 1, "only the event");
}
