//! Timers that are set again: to the time that they had, or again and again without an end; and
//! timers whose firings or events their stream has lost.

use foldstream::api::{self, GenerationStatus};
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::{cli, guests, wait};
use serde_json::{Value, json};

use crate::timers::{ALARM, LATER_MS, alarms, ask, event, names, pending, rang, start};

#[tokio::test]
async fn timer_that_is_set_again_for_the_same_past_time_fires_at_once_each_time() {
    let mut host = start("").await;
    // Each one waited twice as long as the one before, and the twelfth for minutes.
    for count in 1..=12 {
        let past = json!({ "name": "deadline", "at_ns": 1_000 });
        host.client().append(&[event("a", "set", &past)]).await;
        let rang = rang(host.client(), count).await;
        assert_eq!(names(&rang), vec!["a/deadline"; count]);
        // Nor does what was published before a crash count as a firing of it.
        if count == 6 {
            host.kill();
            host.restart().await;
        }
    }
    pending(host.client(), 0).await;
}

/// Timers in a row after which they are a loop.
const IN_A_ROW: u64 = 20;

async fn looping(host: &Host) -> api::TimerLoop {
    let is_loop = |shown: &api::Deployment| {
        let timers = shown.timers.as_ref();
        timers.is_some_and(|timers| timers.timer_loop.is_some())
    };
    let shown = host.client().show_when(ALARM, "find the loop", is_loop);
    let timers = shown.await.timers.expect("it has some");
    timers.timer_loop.expect("it was just there")
}

#[tokio::test]
async fn timers_that_set_each_other_without_an_end_are_named_as_a_loop_and_slowed_down() {
    let mut host = start(&format!("[state]\ntimers_in_a_row_max = {IN_A_ROW}\n")).await;
    let soon = json!({ "name": "again-1000000", "after_ms": 0 });
    // As many as may set each other, and no loop.
    let few = json!({ "name": "again-10", "after_ms": 0 });
    let told = [event("b", "set", &few), event("a", "set", &soon)];
    host.client().append(&told).await;
    let found = looping(&host).await;
    assert_eq!(found.timer, "a/again-1000000");
    assert!(u64::from(found.in_a_row) >= IN_A_ROW, "{found:?}");
    let words = ["a timer loop", "a/again-1000000", "foldstream timers drop"];
    let shown = cli::on(&host, &["show", ALARM]).expect(0).stdout;
    let doctor = cli::on(&host, &["doctor"]).expect(0).stdout;
    for word in words {
        assert!(
            shown.contains(word) && doctor.contains(word),
            "{shown}{doctor}"
        );
    }
    let metric = |value: u8| format!("foldstream_timers_looping{{deployment=\"alarm\"}} {value}");
    let metrics = host.client().get("/metrics").await.text();
    assert!(metrics.contains(&metric(1)), "{metrics}");

    // It is in the state, so a start finds it again, and other timers do not wait for it.
    host.kill();
    host.restart().await;
    looping(&host).await;
    let other = json!({ "name": "tea", "after_ms": 0 });
    host.client().append(&[event("b", "set", &other)]).await;
    wait::until("another timer to ring", || async {
        let rang = names(&rang(host.client(), 1).await);
        rang.contains(&"b/tea".to_owned()).then_some(())
    })
    .await;
    // Those of the others, and some of the loop that are slow.
    assert_slowed_down(&rang(host.client(), IN_A_ROW as usize + 16).await);

    // The timer may be another one between the list and the drop.
    wait::until("the loop to end", || async {
        cli::on(&host, &["timers", "drop", ALARM, "a/again-1000000"]);
        let shown = host.client().show(ALARM).await;
        let timers = shown.timers.expect("it has had some");
        (timers.pending == 0 && timers.timer_loop.is_none()).then_some(())
    })
    .await;
    let metrics = host.client().get("/metrics").await.text();
    assert!(metrics.contains(&metric(0)), "{metrics}");
}

/// How many keys loop: more than the host publishes at once.
const LOOPS: usize = 400;
/// How many of them may have their turn before another timer rings: far fewer than have to if it
/// waits until it is among the first ones.
const TURNS_MAX: usize = 60;

#[tokio::test]
async fn hundreds_of_loops_keep_no_other_timer_waiting_and_take_turns() {
    let in_a_row = 3;
    let host = start(&format!("[state]\ntimers_in_a_row_max = {in_a_row}\n")).await;
    let client = host.client();
    let again = json!({ "name": "again-1000000", "after_ms": 0 });
    let keys = (0..LOOPS).map(|key| event(&format!("k{key}"), "set", &again));
    client.append(&keys.collect::<Vec<_>>()).await;
    // From then on one of them has its turn every second.
    let before = rang(client, LOOPS * in_a_row).await.len();
    let tea = json!({ "name": "tea", "after_ms": 0 });
    client.append(&[event("zz", "set", &tea)]).await;
    let place = wait::until("the other timer to ring", || async {
        let rang = names(&rang(client, before).await);
        rang.iter().position(|name| name == "zz/tea")
    })
    .await;
    assert!(place <= before + TURNS_MAX, "{before} before, then {place}");

    // Each sets its timer again, and none has a second turn before the others.
    let rang = names(&rang(client, place + 6).await);
    let mut turns: Vec<&String> = rang[before..].iter().collect();
    let count = turns.len();
    turns.sort();
    turns.dedup();
    assert_eq!(turns.len(), count, "{turns:?}");
}

/// By the clock of the log, which is that of the host.
fn assert_slowed_down(rang: &[Value]) {
    let of_loop = rang
        .iter()
        .filter(|message| message["data"]["name"] == "a/again-1000000");
    let fired: Vec<u64> = of_loop
        .map(|message| message["data"]["fired"].as_u64().expect("a time"))
        .collect();
    // The first firing after a start has no pause before it.
    let quick = fired
        .windows(2)
        .skip(IN_A_ROW as usize + 1)
        .filter(|pair| pair[1] - pair[0] < 990_000_000);
    assert!(quick.count() <= 1, "{fired:?}");
}

/// The names of the timers that rang in a stream, in their order.
async fn rang_in(server: &NatsServer) -> Vec<String> {
    let jetstream = server.jetstream().await;
    let mut stream = jetstream.get_stream("ALARMS").await.expect("it is there");
    let last = stream.info().await.expect("it answers").state.last_sequence;
    let mut names = Vec::new();
    for sequence in 1..=last {
        // Some were removed.
        let Ok(message) = stream.get_raw_message(sequence).await else {
            continue;
        };
        if message.subject.starts_with("rang.") {
            let data: Value = serde_json::from_slice(&message.payload).expect("JSON");
            names.push(data["name"].as_str().expect("a name").to_owned());
        }
    }
    names
}

async fn has_rung(server: &NatsServer, name: &str) -> Vec<String> {
    wait::until("a timer to ring", || async {
        let rang = rang_in(server).await;
        rang.iter().any(|one| one == name).then_some(rang)
    })
    .await
}

async fn rebuild(host: &Host) -> api::Generation {
    let client = host.client();
    let answer = client.act(ALARM, "rebuild?accept-missing=true").await;
    assert!(answer.status.is_success(), "{}", answer.text());
    let number = answer.json::<api::Deployed>().generation;
    client
        .becomes(ALARM, number, GenerationStatus::Active)
        .await
}

#[tokio::test]
async fn rebuilt_state_fires_no_timer_again_whose_firing_is_gone_and_keeps_those_whose_event_is() {
    let server = NatsServer::start().await;
    let jetstream = server.jetstream().await;
    nats::create_stream_with(&jetstream, alarms()).await;
    let host = Host::start_on(&server, "ALARMS").await;
    let grant = "&allow-publish=rang.%3E%40orders";
    host.client()
        .deploy_with(ALARM, &guests::module(ALARM), grant)
        .await;
    ask(&jetstream, "later", LATER_MS).await;
    for number in 0..5 {
        ask(&jetstream, &format!("t{number}"), 0).await;
    }
    let fired = ["a/t0", "a/t1", "a/t2", "a/t3", "a/t4"];
    has_rung(&server, "a/t4").await;
    pending(host.client(), 1).await;
    let stream = jetstream.get_stream("ALARMS").await.expect("it is there");
    let firings = stream.purge().filter("_fs.timers.>").await;
    assert_eq!(firings.expect("is purged").purged, 5);
    assert!(stream.delete_message(1).await.expect("is removed"));
    // Each rebuild lacks them again.
    let mut reasons = Vec::new();
    for round in ["first", "second"] {
        reasons.push(rebuild(&host).await.reason);
        // They fire in the order of their times, so those would ring before it.
        ask(&jetstream, round, 0).await;
        has_rung(&server, &format!("a/{round}")).await;
        pending(host.client(), 1).await;
    }
    let wanted = [&fired[..], &["a/first", "a/second"]].concat();
    assert_eq!(rang_in(&server).await, wanted);
    for reason in reasons {
        assert!(
            reason.contains("5 timers that had fired") && reason.contains("1 timer that it lacked"),
            "{reason}"
        );
    }
}
