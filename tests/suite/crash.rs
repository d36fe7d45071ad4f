//! Kill the host at any moment: the state after the restart equals the fold, with no event twice
//! and none missing.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use foldstream::api::{self, DeploymentState};
use foldstream_tests::client::Client;
use foldstream_tests::events::new_event;
use foldstream_tests::orders::Order;
use foldstream_tests::stage::{Kind, LEDGER, Stage};
use foldstream_tests::wait;
use foldstream_tests::{guests, nats, process};
use rustix::process::Signal;

/// Name of the deployment of the guest of that name.
const MISCHIEF: &str = "mischief";

/// How often the host is killed in one test.
const ROUNDS: usize = 8;
/// Orders published in one round, with a kill somewhere among them.
const ORDERS: usize = 4_000;

/// Small and frequent flushes, so that kills fall before, into and behind commits.
const FLUSHES: &str = "[state]\nflush_interval = \"50ms\"\nmemtable_bytes = 65536\n";

/// A moment that no one chose, within the time in which a round is worked through.
async fn random_moment(random: &mut fastrand::Rng) {
    tokio::time::sleep(Duration::from_micros(random.u64(0..400_000))).await;
}

#[tokio::test]
async fn killed_under_load_on_jetstream_the_state_equals_the_fold() {
    let mut random = fastrand::Rng::with_seed(foldstream_tests::seed());
    let mut stage = Stage::start_with(Kind::JetStream, FLUSHES).await;
    stage.deploy_ledger().await;
    for _ in 0..ROUNDS {
        let orders = stage.draw(ORDERS);
        let context = stage.context().clone();
        let messages: Vec<_> = orders.iter().map(Order::message).collect();
        let publisher = tokio::spawn(async move { nats::publish(&context, messages).await });
        random_moment(&mut random).await;
        stage.host.kill();
        stage.host.restart().await;
        let last = publisher.await.expect("the publisher does not fail");
        let first = last + 1 - orders.len() as u64;
        for (sequence, order) in (first..).zip(&orders) {
            stage
                .model
                .apply(sequence, &order.subject(), order.data().as_bytes());
        }
    }
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn killed_under_load_on_the_embedded_log_the_state_equals_the_fold() {
    let mut random = fastrand::Rng::with_seed(foldstream_tests::seed());
    let mut stage = Stage::start_with(Kind::Embedded, FLUSHES).await;
    stage.deploy_ledger().await;
    for _ in 0..ROUNDS {
        let mut orders = stage.draw(ORDERS);
        let appender = tokio::spawn(append_until_it_fails(
            stage.client().clone(),
            orders.clone(),
        ));
        random_moment(&mut random).await;
        stage.host.kill();
        let sequences = appender.await.expect("the appender does not fail");
        stage.host.restart().await;
        // What was acknowledged is there; what was not is sent again, and its ids keep it from
        // being stored twice.
        let rest = orders.split_off(sequences.len());
        let events: Vec<_> = rest.iter().map(with_id).collect();
        let mut all: Vec<u64> = sequences;
        for part in events.chunks(1_000) {
            all.extend(stage.client().append(part).await.sequences);
        }
        for (sequence, order) in all.into_iter().zip(orders.iter().chain(&rest)) {
            stage
                .model
                .apply(sequence, &order.subject(), order.data().as_bytes());
        }
    }
    assert_eq!(
        stage.model.last(),
        stage.model.count(),
        "no event is stored twice"
    );
    stage.assert_ledger_equals_model().await;
}

/// Appends in small parts; returns the sequences that were acknowledged before the host was gone.
async fn append_until_it_fails(client: Client, orders: Vec<Order>) -> Vec<u64> {
    let mut sequences = Vec::new();
    for part in orders.chunks(50) {
        let events: Vec<_> = part.iter().map(with_id).collect();
        let body = serde_json::json!({ "events": events }).to_string();
        let request = client
            .request(reqwest::Method::POST, "/v1/events")
            .header("content-type", "application/json");
        let Ok(answer) = client.try_send(request.body(body)).await else {
            break;
        };
        sequences.extend(answer.expect(200).json::<api::Appended>().sequences);
    }
    sequences
}

fn with_id(order: &Order) -> api::NewEvent {
    api::NewEvent {
        id: Some(format!("o-{}", order.number)),
        ..order.new_event()
    }
}

#[tokio::test]
async fn killed_between_deploy_and_first_event_the_deployment_is_there() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.host.kill();
    stage.publish(100).await;
    stage.host.restart().await;
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn reads_never_go_back_across_a_kill() {
    let mut stage = Stage::start_with(Kind::JetStream, "[state]\nflush_interval = \"10m\"\n").await;
    stage.deploy_ledger().await;
    for _ in 0..3 {
        let last = stage.publish(2_000).await;
        stage.client().reached(LEDGER, last).await;
        let seen = stage
            .client()
            .entry(LEDGER, "head")
            .await
            .expect(200)
            .position();
        stage.host.kill();
        stage.host.restart().await;
        let client = stage.client();
        let answer = wait::until("the host to answer reads again", || async {
            let answer = client.entry(LEDGER, "head").await;
            match answer.status.as_u16() {
                200 => Some(answer),
                // Before it is as far as it was, it says so instead of showing an older state.
                503 | 504 => None,
                other => panic!("answer {other}: {}", answer.text()),
            }
        })
        .await;
        assert!(
            answer.position() >= seen,
            "was at {seen}, went back to {}",
            answer.position()
        );
    }
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn a_stop_ends_within_its_budget_even_under_load() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(20_000).await;
    stage.applied(1).await;
    let begin = std::time::Instant::now();
    assert_eq!(stage.host.stop().code(), Some(0));
    assert!(
        begin.elapsed() < Duration::from_secs(12),
        "the stop took {:?}",
        begin.elapsed()
    );
    stage.host.restart().await;
    stage.assert_ledger_equals_model().await;
}

/// An event that tells the mischief what to do.
fn told(verb: &str) -> api::NewEvent {
    new_event("mischief.a", serde_json::json!(verb))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_within_its_budget_whatever_a_guest_is_at() {
    let config = "[modules]\ndeadline = \"60s\"\n[pipeline]\nstop_budget = \"2s\"\n";
    let mut stage = Stage::start_with(Kind::Embedded, config).await;
    stage
        .client()
        .deploy(MISCHIEF, &guests::module(MISCHIEF))
        .await;
    let path = format!("/v1/deployments/{MISCHIEF}/queries/loop");
    let request = stage
        .client()
        .request(reqwest::Method::POST, &path)
        .header("content-type", "application/json");
    let client = stage.client().clone();
    // It gets no answer, as the host is gone before.
    let query = tokio::spawn(async move { client.try_send(request.body("null")).await.is_ok() });
    stage.client().append(&[told("loop")]).await;
    stage
        .client()
        .show_when(MISCHIEF, "receive the event", |shown| shown.head == Some(1))
        .await;
    let begin = std::time::Instant::now();
    assert_eq!(stage.host.stop().code(), Some(0));
    let took = begin.elapsed();
    // Far less than the minute for which both calls may last; the rest is for a busy machine.
    assert!(took < Duration::from_secs(10), "the stop took {took:?}");
    query.abort();
}

async fn pause(client: &Client, name: &str) {
    client
        .post(
            &format!("/v1/deployments/{name}/pause"),
            "application/json",
            "",
        )
        .await
        .expect(200);
    client
        .show_when(name, "pause", |shown| {
            shown.state == DeploymentState::Paused
        })
        .await;
}

async fn resume(client: &Client, name: &str) {
    client
        .post(
            &format!("/v1/deployments/{name}/resume"),
            "application/json",
            "",
        )
        .await
        .expect(200);
}

#[tokio::test]
async fn what_was_paused_answers_at_once_after_a_restart() {
    let mut stage = Stage::start(Kind::Embedded).await;
    stage.deploy_ledger().await;
    let last = stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    pause(stage.client(), LEDGER).await;
    stage.publish(10).await;
    stage.host.restart().await;
    stage
        .client()
        .show_when(LEDGER, "be paused again", |shown| {
            shown.state == DeploymentState::Paused
        })
        .await;
    let answer = stage
        .client()
        .get(&format!("/v1/deployments/{LEDGER}/entries/head?timeout=0s"))
        .await
        .expect(200);
    assert_eq!(answer.position(), last);
    let answer = stage
        .client()
        .query(LEDGER, "pair", &serde_json::json!(null))
        .await
        .expect(200);
    assert_eq!(
        (answer.position(), answer.value()["left"].as_u64()),
        (last, Some(last)),
        "queries too"
    );
}

#[tokio::test]
async fn what_failed_answers_at_once_after_a_restart() {
    let mut stage = Stage::start(Kind::Embedded).await;
    stage
        .client()
        .deploy(MISCHIEF, &guests::module(MISCHIEF))
        .await;
    stage
        .client()
        .append(&[told("note one"), told("reject two"), told("note three")])
        .await;
    stage.client().failed(MISCHIEF).await;
    stage.host.restart().await;
    stage.client().failed(MISCHIEF).await;
    let path = format!("/v1/deployments/{MISCHIEF}/entries/note/00000001?timeout=0s");
    assert_eq!(stage.client().get(&path).await.expect(200).position(), 1);
}

#[tokio::test]
async fn a_state_from_before_the_cut_over_is_not_shown() {
    let mut stage = Stage::start(Kind::Embedded).await;
    stage.deploy_ledger().await;
    let last = stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    stage
        .client()
        .deploy(LEDGER, &guests::module("ledger-next"))
        .await;
    stage
        .client()
        .show_when(LEDGER, "take over", |shown| shown.generation == 2)
        .await;
    pause(stage.client(), LEDGER).await;
    assert_eq!(stage.host.stop().code(), Some(0));
    // Whatever loses the state, an old backup for one: clients have seen positions from the
    // cut-over on.
    std::fs::remove_file(stage.host.data_dir().join(format!("state/{LEDGER}/2.redb")))
        .expect("it is there");
    stage.host.restart().await;
    stage
        .client()
        .show_when(LEDGER, "be paused again", |shown| {
            shown.state == DeploymentState::Paused
        })
        .await;
    let path = format!("/v1/deployments/{LEDGER}/entries/head?timeout=0s");
    let client = stage.client();
    let answer = wait::until("it to know how far it has to be", || async {
        Some(client.get(&path).await).filter(|answer| answer.status != 503)
    })
    .await;
    assert_eq!(answer.problem(504, "behind").position, Some(0));
    resume(stage.client(), LEDGER).await;
    stage.client().reached(LEDGER, last).await;
    assert!(
        stage
            .client()
            .entry(LEDGER, "head")
            .await
            .expect(200)
            .position()
            >= last
    );
}

#[tokio::test]
async fn reads_never_go_back_when_the_disk_is_full() {
    let config = "[state]\nflush_interval = \"2s\"\n[pipeline]\nbatch_events = 1\n";
    let mut stage = Stage::start_with(Kind::Embedded, config).await;
    stage
        .client()
        .deploy(MISCHIEF, &guests::module(MISCHIEF))
        .await;
    let durable = stage
        .client()
        .append(&[told("note one"), told("note two")])
        .await
        .last_sequence;
    stage.client().reached(MISCHIEF, durable).await;
    // A pause makes what was applied durable. What follows is appended to the log while there is
    // still room for it.
    pause(stage.client(), MISCHIEF).await;
    let large: Vec<_> = (0..25).map(|_| told("fill 131072")).collect();
    let last = stage.client().append(&large).await.last_sequence;
    let file = stage
        .host
        .data_dir()
        .join(format!("state/{MISCHIEF}/1.redb"));
    let size = std::fs::metadata(file).expect("it is there").len();
    stage.host.limit_files(Some(size + (256 << 10)));
    resume(stage.client(), MISCHIEF).await;
    let path = format!("/v1/deployments/{MISCHIEF}/entries/note/00000001?timeout=0s");
    let seen = wait::until("an answer from what is in memory only", || async {
        let answer = stage.client().get(&path).await;
        (answer.status == 200)
            .then(|| answer.position())
            .filter(|position| *position > durable)
    })
    .await;
    let has_failed = |shown: &foldstream::api::Deployment| {
        shown
            .failure
            .as_ref()
            .is_some_and(|failure| failure.kind == "state")
    };
    let shown = stage
        .client()
        .show_when(MISCHIEF, "fail to commit", has_failed)
        .await;
    assert_eq!(shown.state, DeploymentState::Retrying);
    assert!(
        shown.position >= durable,
        "the last position is kept: {}",
        shown.position
    );
    // Opened again, it is where the file is; paused, it stays there.
    pause(stage.client(), MISCHIEF).await;
    let shown = stage
        .client()
        .show_when(MISCHIEF, "be opened", |shown| shown.position == durable)
        .await;
    assert_eq!(shown.state, DeploymentState::Paused);
    assert_eq!(
        stage
            .client()
            .get(&path)
            .await
            .problem(504, "behind")
            .position,
        Some(durable)
    );
    stage.host.limit_files(None);
    resume(stage.client(), MISCHIEF).await;
    stage.client().reached(MISCHIEF, last).await;
    assert!(stage.client().get(&path).await.expect(200).position() >= seen);
}

/// The file of the only module.
fn module_file(stage: &Stage) -> std::path::PathBuf {
    let folder = std::fs::read_dir(stage.host.data_dir().join("modules")).expect("it is there");
    folder.flatten().next().expect("there is a module").path()
}

#[tokio::test]
async fn a_module_whose_file_is_gone_is_there_again_once_it_is_deployed_again() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    stage.host.kill();
    let file = module_file(&stage);
    std::fs::remove_file(&file).expect("it was there");
    stage.host.restart().await;
    let (_, failure) = stage.client().failed(LEDGER).await;
    assert_eq!(failure.kind, "module", "{failure:?}");
    let deployed = stage.deploy_ledger().await;
    assert_eq!(deployed.outcome, foldstream::api::DeployOutcome::Unchanged);
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    assert!(file.exists(), "the next start needs it");
    stage.host.restart().await;
    stage.publish(10).await;
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn a_module_that_was_damaged_is_loaded_again_when_it_is_resumed() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    stage.host.kill();
    let file = module_file(&stage);
    let sound = std::fs::read(&file).expect("it is there");
    std::fs::write(&file, &sound[..sound.len() / 2]).expect("written");
    stage.host.restart().await;
    let (_, failure) = stage.client().failed(LEDGER).await;
    assert_eq!(failure.kind, "module", "{failure:?}");
    std::fs::write(&file, &sound).expect("written");
    resume(stage.client(), LEDGER).await;
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
}

/// Moves the compiled code of all modules between two folders, without the key that it is signed
/// with.
fn move_code(from: &std::path::Path, to: &std::path::Path) {
    let mut moved = 0;
    for file in std::fs::read_dir(from).expect("it is there").flatten() {
        if file
            .path()
            .extension()
            .is_some_and(|extension| extension == "code")
        {
            std::fs::rename(file.path(), to.join(file.file_name())).expect("moved");
            moved += 1;
        }
    }
    assert_eq!(moved, 1, "there is one module");
}

#[tokio::test]
async fn modules_that_take_long_to_compile_keep_no_others_from_starting() {
    let mut stage = Stage::start(Kind::Embedded).await;
    let cache = stage.host.data_dir().join("cache");
    let compiled = || {
        let files = std::fs::read_dir(&cache).expect("it is there").flatten();
        let paths = files.map(|file| file.path());
        let is_code = |path: &PathBuf| path.extension().is_some_and(|known| known == "code");
        paths.filter(is_code).collect::<Vec<_>>()
    };
    // By name, so that they are the first that start.
    let slow: Vec<String> = (0..8).map(|number| format!("a-slow-{number}")).collect();
    let quick: Vec<String> = (0..4).map(|number| format!("b-quick-{number}")).collect();
    let mut lost = Vec::new();
    for (number, name) in (0..).zip(slow.iter().chain(&quick)) {
        if number == slow.len() {
            lost = compiled();
        }
        let module = guests::release(LEDGER, u8::try_from(number).expect("a few"));
        stage.client().deploy(name, &module).await;
    }
    stage.publish(10).await;
    assert_eq!(stage.host.stop().code(), Some(0));
    lost.iter()
        .for_each(|file| std::fs::remove_file(file).expect("it is there"));
    stage.host.restart().await;

    // From now on, who compiles takes forever.
    let host = stage.host.process().id();
    let is_over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&is_over);
    let stopper = std::thread::spawn(move || {
        while !ends.load(Ordering::Relaxed) {
            let children = process::children(host);
            children
                .iter()
                .for_each(|child| process::signal(child, Signal::STOP));
            std::thread::sleep(Duration::from_millis(2));
        }
        let children = process::children(host);
        children
            .iter()
            .for_each(|child| process::signal(child, Signal::CONT));
    });
    let last = stage.publish(10).await;
    for name in &quick {
        stage.client().reached(name, last).await;
    }
    let waiting = stage.client().show(&slow[7]).await;
    assert_eq!(waiting.position, 10, "{waiting:?}");
    is_over.store(true, Ordering::Relaxed);
    stopper.join().expect("no panic");
    for name in &slow {
        stage.client().reached(name, last).await;
    }
}

#[tokio::test]
async fn a_module_that_takes_too_long_to_compile_is_tried_again_by_itself() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    stage.host.kill();
    let (cache, elsewhere) = (
        stage.host.data_dir().join("cache"),
        tempfile::tempdir().expect("a temporary folder"),
    );
    move_code(&cache, elsewhere.path());
    stage
        .host
        .configure("[modules]\ncompile_time_max = \"1ms\"\n");
    stage.host.restart().await;
    let waits = |shown: &foldstream::api::Deployment| {
        let failure = shown.failure.as_ref();
        shown.state == DeploymentState::Retrying
            && failure.is_some_and(|failure| failure.kind == "module")
    };
    let shown = stage.client().show_when(LEDGER, "try again", waits).await;
    let failure = shown.failure.expect("it was just there");
    assert!(failure.message.contains("compile_time_max"), "{failure:?}");
    stage.client().get("/livez").await.expect(200);
    // Nobody asks for it: the next attempt finds the compiled code.
    move_code(elsewhere.path(), &cache);
    stage.publish(10).await;
    stage.assert_ledger_equals_model().await;
}
