//! Looking back and folding again: as-of reads, snapshots, verification, partial rebuilds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use foldstream::api::{self, NewEvent, WorkState};
use foldstream_tests::client::{Answer, Client};
use foldstream_tests::events::new_event;
use foldstream_tests::guests;
use foldstream_tests::model::Ledger;
use foldstream_tests::stage::{Kind, LEDGER, Stage};
use foldstream_tests::wait;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// What a path answers as of a moment, once it is prepared.
async fn as_of(client: &Client, path: &str, moment: &str) -> Answer {
    let joint = if path.contains('?') { '&' } else { '?' };
    let path = format!("/v1/deployments/{LEDGER}/{path}{joint}as-of={moment}");
    wait::until(&format!("{path} to be prepared"), || async {
        let answer = client.get(&path).await;
        (answer.status != 503).then_some(answer)
    })
    .await
}

async fn the_past_is_answered_as_it_was(kind: Kind) {
    let mut stage = Stage::with_ledger(kind).await;
    let mut moments: Vec<(u64, String, Ledger)> = Vec::new();
    for _ in 0..3 {
        let last = stage.publish(300).await;
        stage.client().reached(LEDGER, last).await;
        // Later than the last event here, and earlier than the next one.
        let now = jiff::Timestamp::now().to_string();
        moments.push((last, now, stage.model.clone()));
    }
    for (sequence, time, model) in &moments {
        for moment in [sequence.to_string(), time.clone()] {
            let client = stage.client();
            let head = as_of(client, "entries/head", &moment).await.expect(200);
            assert_eq!(
                (head.position(), head.value()),
                (*sequence, model.head()),
                "as of {moment}"
            );
            let page: api::EntryPage = as_of(client, "entries?limit=1000", &moment)
                .await
                .expect(200)
                .json();
            assert_eq!(
                (page.entries, page.position),
                (model.entries(), *sequence),
                "as of {moment}"
            );
            let pair = as_of(client, "queries/pair", &moment).await.expect(200);
            assert_eq!(
                pair.value(),
                serde_json::json!({ "left": sequence, "right": sequence })
            );
        }
    }
    // Between two batches, and before the first event.
    assert_eq!(
        as_of(stage.client(), "entries/head", "17")
            .await
            .expect(200)
            .value()["count"],
        17
    );
    as_of(stage.client(), "entries/head", "0")
        .await
        .problem(404, "not-found");
    as_of(stage.client(), "entries/head", "901")
        .await
        .problem(422, "refused");
    as_of(stage.client(), "entries/head", "2100-01-01T00:00:00Z")
        .await
        .problem(422, "refused");
    for wrong in ["yesterday", "-1", "5&at-least=7", "5&generation=1"] {
        as_of(stage.client(), "entries/head", wrong)
            .await
            .problem(400, "invalid");
    }
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn the_past_of_a_jetstream_stream_is_answered_as_it_was() {
    the_past_is_answered_as_it_was(Kind::JetStream).await;
}

#[tokio::test]
async fn the_past_of_an_embedded_log_is_answered_as_it_was() {
    the_past_is_answered_as_it_was(Kind::Embedded).await;
}

#[tokio::test]
async fn event_of_an_earlier_time_is_part_of_the_past_that_was_read_before() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    let order = stage.draw(1).remove(0);
    let at = |time: &str| NewEvent {
        time: Some(time.to_owned()),
        ..order.new_event()
    };
    let client = stage.client();
    let count = async |wanted: u64| {
        let head = as_of(client, "entries/head", "2026-01-01T11:00:00Z").await;
        let head = head.expect(200);
        assert_eq!(
            (head.position(), head.value()["count"].as_u64()),
            (wanted, Some(wanted))
        );
    };
    client.append(&[at("2026-01-01T10:00:00Z")]).await;
    client.reached(LEDGER, 1).await;
    count(1).await;
    // Nothing says that the stream has no more events of that time.
    client.append(&[at("2026-01-01T10:30:00Z")]).await;
    client.reached(LEDGER, 2).await;
    count(2).await;
    client.append(&[at("2026-01-01T12:00:00Z")]).await;
    client.reached(LEDGER, 3).await;
    count(2).await;
}

/// Names of the files in a folder.
fn files(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[tokio::test]
async fn snapshots_shorten_the_way_back_and_are_bounded() {
    let config = "[rollout]\nsnapshot_events = 500\nsnapshots_keep = 2\nas_of_max = 2\n";
    let mut stage = Stage::start_with(Kind::JetStream, config).await;
    stage.deploy_ledger().await;
    let folder = stage.host.data_dir().join("snapshots").join(LEDGER);
    let mut at = Vec::new();
    for _ in 0..4 {
        let last = stage.publish(600).await;
        stage.client().reached(LEDGER, last).await;
        let wanted = format!("1-{last}-");
        wait::until("a snapshot", || async {
            files(&folder)
                .iter()
                .any(|name| name.starts_with(&wanted))
                .then_some(())
        })
        .await;
        at.push((last, stage.model.clone()));
    }
    wait::until("old snapshots to go", || async {
        (files(&folder).len() == 2).then_some(())
    })
    .await;
    stage.publish(200).await;
    let (sequence, model) = &at[3];
    let page: api::EntryPage = as_of(stage.client(), "entries?limit=1000", &sequence.to_string())
        .await
        .expect(200)
        .json();
    assert_eq!(page.entries, model.entries());
    let later = as_of(stage.client(), "entries/head", &(sequence + 50).to_string())
        .await
        .expect(200);
    assert_eq!(later.value()["count"], sequence + 50);
    for moment in [10, 20, 30] {
        as_of(stage.client(), "entries/head", &moment.to_string())
            .await
            .expect(200);
    }
    let scratch = stage.host.data_dir().join("scratch");
    assert_eq!(files(&scratch).len(), 2, "as many pasts as may be kept");
    stage.host.kill();
    stage.host.restart().await;
    assert_eq!(files(&scratch).len(), 0, "they end with the process");
    assert_eq!(
        as_of(stage.client(), "entries/head", "1000")
            .await
            .expect(200)
            .value()["count"],
        1000
    );
    stage.assert_ledger_equals_model().await;
}

/// Lets a process run for a tenth of the time, so that what is short lasts.
struct Slowed {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Slowed {
    fn new(process: u32) -> Self {
        let process = Pid::from_raw(process.cast_signed()).expect("not 0");
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                for (signal, time) in [(Signal::STOP, 45), (Signal::CONT, 5)] {
                    // It may have ended.
                    let _ = kill_process(process, signal);
                    std::thread::sleep(Duration::from_millis(time));
                }
            }
        });
        Self {
            is_over,
            thread: Some(thread),
        }
    }
}

impl Drop for Slowed {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[tokio::test]
async fn a_long_copy_of_a_state_keeps_no_log_from_its_retention() {
    let config = "[rollout]\nsnapshot_events = 1\nsnapshots_keep = 1\n\
                  [sources.events]\nkind = \"embedded\"\nmax_bytes = \"100KiB\"\n";
    let mut stage = Stage::start_with(Kind::Embedded, config).await;
    stage
        .client()
        .deploy("large", &guests::module("mischief-fixed"))
        .await;
    let event = |data: String| api::NewEvent {
        data: json!(data),
        ..serde_json::from_value(json!({ "subject": "mischief.x" })).expect("an event")
    };
    let fill: Vec<_> = (0..4).map(|_| event("fill 16000000".to_owned())).collect();
    let last = stage.client().append(&fill).await.last_sequence;
    stage.client().reached("large", last).await;
    let folder = stage.host.data_dir().join("snapshots").join("large");
    let process = stage.host.process().id();
    let copying = || {
        let names = files(&folder);
        names.into_iter().find(|name| name.ends_with(".new"))
    };
    let first_sequence = async || {
        let sources: serde_json::Value = stage.client().get("/v1/sources").await.expect(200).json();
        sources["sources"][0]["first_sequence"]
            .as_u64()
            .expect("a number")
    };
    let large: Vec<_> = (0..4)
        .map(|_| event(format!("note {}", "x".repeat(50_000))))
        .collect();
    let slowed = Slowed::new(process);
    let patience = 3 * wait::DEADLINE;
    wait::until_within(patience, "retention during a copy", || async {
        let copy = copying();
        let first = first_sequence().await;
        // More than may stay, and a reason for the next copy.
        stage.client().append(&large).await;
        while copy.is_some() && copying() == copy {
            if first_sequence().await > first && copying() == copy {
                return Some(());
            }
        }
        None
    })
    .await;
    drop(slowed);
}

async fn verified(client: &Client, name: &str, parameters: &str) -> api::Verification {
    let path = format!("verification{parameters}");
    client.act(name, &path).await.expect(200);
    wait::until("the verification to end", || async {
        let answer = client
            .get(&format!("/v1/deployments/{name}/verification"))
            .await
            .expect(200);
        Some(answer.json::<api::Verification>()).filter(|verification| {
            matches!(verification.state, WorkState::Done | WorkState::Failed)
        })
    })
    .await
}

#[tokio::test]
async fn what_holds_up_a_side_fold_is_reported() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    let last = stage.publish(300).await;
    stage.client().reached(LEDGER, last).await;
    stage.server().stop();

    let client = stage.client().clone();
    let path = format!("/v1/deployments/{LEDGER}/entries/head?as-of=100&timeout=1s");
    wait::until("the read as of then to say what it waits for", || async {
        let problem = client.get(&path).await.problem(503, "not-ready");
        problem
            .detail
            .contains("trying again (cannot connect")
            .then_some(())
    })
    .await;
    let path = format!("/v1/deployments/{LEDGER}/verification");
    let begun = client.act(LEDGER, "verification").await.expect(200);
    assert_eq!(begun.value()["obstacle"], serde_json::Value::Null);
    wait::until("the verification to say what it waits for", || async {
        let verification: api::Verification = client.get(&path).await.expect(200).json();
        verification
            .obstacle
            .filter(|obstacle| obstacle.contains("cannot connect"))
    })
    .await;

    // Who waits for the answer of a request is not kept waiting.
    let part = client
        .act(LEDGER, "rebuild-part?key=ada")
        .await
        .problem(503, "not-ready");
    assert!(part.detail.contains("cannot connect"), "{}", part.detail);

    stage.server().restart().await;
    assert_eq!(
        as_of(&client, "entries/head", "100")
            .await
            .expect(200)
            .value()["count"],
        100
    );
    let verification = verified(&client, LEDGER, "").await;
    assert_eq!(
        (verification.equal, verification.obstacle),
        (Some(true), None),
        "{}",
        verification.message
    );
}

#[tokio::test]
async fn a_deterministic_module_is_verified_while_events_arrive() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(3_000).await;
    stage
        .client()
        .get(&format!("/v1/deployments/{LEDGER}/verification"))
        .await
        .problem(404, "not-found");
    let client = stage.client().clone();
    let verification = tokio::spawn(async move { verified(&client, LEDGER, "").await });
    for _ in 0..10 {
        stage.publish(50).await;
    }
    let verification = verification.await.expect("no panic");
    assert_eq!(
        (verification.state, verification.equal),
        (WorkState::Done, Some(true)),
        "{}",
        verification.message
    );
    assert!(verification.restarts > 1_000, "{verification:?}");
    assert!(
        verification.position >= 3_000 && verification.progress == 1.0,
        "{verification:?}"
    );
    let comparison = verification.comparison.expect("it was compared");
    assert_eq!(comparison.compared, comparison.entries);
    let sampled = verified(stage.client(), LEDGER, "?sample=20").await;
    assert_eq!(sampled.equal, Some(true));
    assert!(
        sampled
            .comparison
            .expect("it was compared")
            .conclusion
            .contains("95 % confidence")
    );
    stage.assert_ledger_equals_model().await;
    assert_eq!(
        files(&stage.host.data_dir().join("scratch")).len(),
        0,
        "nothing of it is left"
    );
}

#[tokio::test]
async fn a_module_that_depends_on_batches_is_found_out_with_key_and_event() {
    let mut stage = Stage::start(Kind::Embedded).await;
    let last = stage.publish(400).await;
    stage
        .client()
        .deploy("sloppy", &guests::module("sloppy"))
        .await;
    stage.client().reached("sloppy", last).await;
    let found = verified(stage.client(), "sloppy", "?seed=7").await;
    assert_eq!(
        (found.state, found.equal),
        (WorkState::Done, Some(false)),
        "{}",
        found.message
    );
    let divergence = found.divergence.expect("it is named");
    assert_eq!(divergence.key, "batches");
    assert!(
        divergence.sequence.is_some_and(|sequence| sequence > 100),
        "{divergence:?}"
    );
    assert!(
        found.message.contains("not deterministic"),
        "{}",
        found.message
    );
    assert_eq!(found.seed, 7);
}

/// Entries of a deployment by key.
async fn entries(client: &Client, name: &str) -> BTreeMap<String, serde_json::Value> {
    client
        .entries(name, "")
        .await
        .into_iter()
        .map(|entry| (entry.key, entry.value))
        .collect()
}

/// Whether an entry of `tally` is of a customer.
fn is_of(key: &str, customer: impl Fn(&str) -> bool) -> bool {
    key.rsplit('/').next().is_some_and(customer)
}

async fn a_part_is_rebuilt_without_touching_the_rest(kind: Kind) {
    const NAME: &str = "tally";
    let mut stage = Stage::start(kind).await;
    stage.publish(2_000).await;
    stage.client().deploy(NAME, &guests::module(NAME)).await;
    let last = stage.model.last();
    stage.client().reached(NAME, last).await;
    stage
        .client()
        .deploy(NAME, &guests::module("tally-wrong"))
        .await;
    let last = stage.publish(500).await;
    stage.client().reached(NAME, last).await;
    stage.client().act(NAME, "rollback").await.expect(200);
    let last = stage.publish(300).await;
    stage
        .client()
        .deploy("reference", &guests::module(NAME))
        .await;
    for name in [NAME, "reference"] {
        stage.client().reached(name, last).await;
    }
    let (client, wrong) = (stage.client(), entries(stage.client(), NAME).await);
    let right = entries(client, "reference").await;
    let differing = wrong
        .iter()
        .find(|(key, value)| right.get(*key) != Some(value))
        .expect("it did harm");
    let customer = differing
        .0
        .rsplit('/')
        .next()
        .expect("entries end with the customer")
        .to_owned();
    let changes = format!("/v1/deployments/{NAME}/changes");
    let mut watch = client.events(&changes, None).await;
    let seen = watch.next_of("position").await.id;
    let rebuilt: api::PartialRebuild = client
        .act(NAME, &format!("rebuild-part?key={customer}"))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (rebuilt.position, rebuilt.filtered_by_server),
        (last, true),
        "{rebuilt:?}"
    );
    assert!(
        rebuilt.written > 0 && rebuilt.removed > 0 && rebuilt.events < 100,
        "{rebuilt:?}"
    );
    let now = entries(client, NAME).await;
    let part = |all: &BTreeMap<String, serde_json::Value>, own: bool| -> BTreeMap<_, _> {
        all.clone()
            .into_iter()
            .filter(|(key, _)| is_of(key, |found| found == customer) == own)
            .collect()
    };
    assert_eq!(part(&now, true), part(&right, true), "the part is the fold");
    assert_eq!(
        part(&now, false),
        part(&wrong, false),
        "the rest is as it was"
    );
    // Positions can't tell a watcher what changed: it is asked to read again, also while no
    // event arrives.
    watch.next_of("reset").await;
    // So is one that was away meanwhile.
    let mut back = client.events(&changes, Some(&seen)).await;
    assert_eq!(
        back.next_of_any(&["reset", "position"]).await.event,
        "reset"
    );
    // Part by part everything is mended, also while events arrive, and it lasts.
    for digit in 0..10 {
        stage.publish(20).await;
        stage
            .client()
            .act(NAME, &format!("rebuild-part?prefix={digit}"))
            .await
            .expect(200);
    }
    stage.host.kill();
    stage.host.restart().await;
    let last = stage.publish(100).await;
    for name in [NAME, "reference"] {
        stage.client().reached(name, last).await;
    }
    assert_eq!(
        entries(stage.client(), NAME).await,
        entries(stage.client(), "reference").await
    );
}

#[tokio::test]
async fn a_part_is_rebuilt_on_jetstream_without_touching_the_rest() {
    a_part_is_rebuilt_without_touching_the_rest(Kind::JetStream).await;
}

#[tokio::test]
async fn a_part_is_rebuilt_on_the_embedded_log_without_touching_the_rest() {
    a_part_is_rebuilt_without_touching_the_rest(Kind::Embedded).await;
}

#[tokio::test]
async fn parts_are_refused_where_entries_are_not_of_one_key() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    // With this many, each of the 100 customers has some.
    stage.publish(3_000).await;
    stage.assert_ledger_equals_model().await;
    let problem = stage
        .client()
        .act(LEDGER, "rebuild-part?key=1")
        .await
        .problem(422, "refused");
    assert!(problem.detail.contains("`head`"), "{}", problem.detail);
    stage
        .client()
        .act(LEDGER, "rebuild-part")
        .await
        .problem(400, "invalid");
    stage
        .client()
        .act(LEDGER, "rebuild-part?key=1&prefix=2")
        .await
        .problem(400, "invalid");
    stage
        .client()
        .deploy("sloppy", &guests::module("sloppy"))
        .await;
    let problem = stage
        .client()
        .act("sloppy", "rebuild-part?key=1")
        .await
        .problem(422, "refused");
    assert!(problem.detail.contains("no key rule"), "{}", problem.detail);
    stage.assert_ledger_equals_model().await;
}

/// An event that tells the mischief what to do.
fn told(subject: &str, verb: &str) -> api::NewEvent {
    new_event(subject, serde_json::json!(verb))
}

#[tokio::test]
async fn a_part_is_refused_whose_events_read_what_others_wrote() {
    const NAME: &str = "mischief";
    let stage = Stage::start(Kind::Embedded).await;
    let client = stage.client();
    let [rate, ada, bob] = ["mischief.rate", "mischief.ada", "mischief.bob"];
    let events = [
        told(rate, "rate 2"),
        told(ada, "owe 10"),
        told(bob, "count-owed"),
        told("mischief.eve", "note mine"),
    ];
    let last = client.append(&events).await.last_sequence;
    client.deploy(NAME, &guests::module(NAME)).await;
    client.reached(NAME, last).await;
    let before = entries(client, NAME).await;
    assert_eq!(before["owed/mischief.ada"], serde_json::json!(20));
    let problem = client
        .act(NAME, &format!("rebuild-part?key={ada}"))
        .await
        .problem(422, "refused");
    assert!(
        problem.detail.contains("`rate/EUR`") && problem.detail.contains("rebuild all"),
        "{}",
        problem.detail
    );
    let problem = client
        .act(NAME, &format!("rebuild-part?key={bob}"))
        .await
        .problem(422, "refused");
    assert!(
        problem.detail.contains("all of `owed/"),
        "{}",
        problem.detail
    );
    assert_eq!(entries(client, NAME).await, before, "nothing was changed");
}
