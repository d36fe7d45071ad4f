//! Positions that clients see never go back: the host is killed at random under load, with deploys
//! and rollbacks under way, while readers and a watch remember the highest position that each was
//! shown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream;
use foldstream::api;
use foldstream_tests::client::{Answer, Client};
use foldstream_tests::host::{Host, jetstream_source};
use foldstream_tests::model::Ledger;
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::orders::{Order, Orders};
use foldstream_tests::stage::{Kind, LEDGER, STREAM, Stage};
use foldstream_tests::{guests, wait};
use reqwest::Method;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How often the host is killed; FOLDSTREAM_KILLS asks for more.
const KILLS: usize = 6;
/// Longest life of the host between two kills.
const LIFE_MAX: Duration = Duration::from_millis(2_500);
/// Events that are published at once, and how often: 2,000 a second.
const AT_ONCE: usize = 10;
const EVERY: Duration = Duration::from_millis(5);
/// After this many events comes one that is not for the ledger, if the stream has such events.
const OTHERS: usize = 5;

fn kills() -> usize {
    std::env::var("FOLDSTREAM_KILLS").map_or(KILLS, |text| {
        text.parse().expect("FOLDSTREAM_KILLS is a number")
    })
}

/// The client of the host as it was started last.
type Clients = watch::Receiver<Client>;

/// What a reader was shown: it fails as soon as that goes back.
#[derive(Debug, Default)]
struct Seen {
    position: u64,
    by: String,
}

impl Seen {
    fn show(&mut self, position: u64, by: impl FnOnce() -> String) {
        assert!(
            position >= self.position,
            "went back from {} ({}) to {position} ({})",
            self.position,
            self.by,
            by()
        );
        (self.position, self.by) = (position, by());
    }
}

/// A task that runs until it is stopped.
struct Until {
    stop: Arc<AtomicBool>,
    task: JoinHandle<u64>,
}

impl Until {
    fn stopped<F: Future<Output = u64> + Send + 'static>(
        work: impl FnOnce(Arc<AtomicBool>) -> F,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        Self {
            task: tokio::spawn(work(Arc::clone(&stop))),
            stop,
        }
    }

    /// What it counted.
    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("positions never went back")
    }
}

fn told(answer: &Answer, url: &str) -> String {
    format!(
        "{url}, generation {}",
        answer.header("foldstream-generation").unwrap_or("?")
    )
}

/// Reads as fast as it can. An answer that says that it is not there yet is fine, an older one is
/// not.
async fn read(clients: Clients, stop: Arc<AtomicBool>) -> u64 {
    let (mut seen, mut answers) = (Seen::default(), 0);
    while !stop.load(Ordering::Relaxed) {
        let client = clients.borrow().clone();
        let path = format!("/v1/deployments/{LEDGER}/entries/head?timeout=100ms");
        match client.try_send(client.request(Method::GET, &path)).await {
            Ok(answer) if [200, 404].contains(&answer.status.as_u16()) => {
                let Some(position) = answer.header("foldstream-position") else {
                    continue;
                };
                seen.show(position.parse().expect("a number"), || {
                    told(&answer, client.url())
                });
                answers += 1;
            }
            Ok(answer) => assert!(
                [503, 504].contains(&answer.status.as_u16()),
                "{}",
                answer.text()
            ),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
    answers
}

/// Watches, and comes back with the last id that it got.
async fn watch_changes(clients: Clients, stop: Arc<AtomicBool>) -> u64 {
    let (mut seen, mut events, mut last) = (Seen::default(), 0, None::<String>);
    while !stop.load(Ordering::Relaxed) {
        let client = clients.borrow().clone();
        let path = format!("/v1/deployments/{LEDGER}/changes?prefix=head");
        let Some(mut stream) = client.try_events(&path, last.as_deref()).await else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        while let Ok(Some(event)) =
            tokio::time::timeout(Duration::from_millis(300), stream.next()).await
        {
            let data: serde_json::Value = serde_json::from_str(&event.data).expect("JSON");
            let position = data["position"]
                .as_u64()
                .expect("every event has a position");
            seen.show(position, || {
                format!("{} {} {}", client.url(), event.event, event.id)
            });
            last = Some(event.id);
            events += 1;
        }
    }
    events
}

/// Deploys both versions in turn and rolls back, as chance says; what is refused or cut off is
/// tried again another time.
async fn roll_out(clients: Clients, stop: Arc<AtomicBool>, mut random: fastrand::Rng) -> u64 {
    let modules = [
        guests::module("ledger"),
        guests::module("ledger-next"),
        guests::release("ledger", 2),
    ];
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        let client = clients.borrow().clone();
        let request = match random.usize(..5) {
            number @ 0..3 => client
                .request(Method::POST, &format!("/v1/deployments?name={LEDGER}"))
                .header("content-type", "application/wasm")
                .body(modules[number].clone()),
            _ => client.request(Method::POST, &format!("/v1/deployments/{LEDGER}/rollback")),
        };
        if client
            .try_send(request)
            .await
            .is_ok_and(|answer| answer.status.is_success())
        {
            done += 1;
        }
        tokio::time::sleep(Duration::from_millis(random.u64(..150))).await;
    }
    done
}

/// Publishes at a steady rate; every acknowledged order goes into the model.
async fn publish(to: Stream, stop: Arc<AtomicBool>, last: Arc<AtomicU64>, seed: u64) -> Ledger {
    let (mut orders, mut model) = (Orders::new(seed, 100), Ledger::default());
    let mut tick = tokio::time::interval(EVERY);
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        let batch: Vec<Option<Order>> = (0..AT_ONCE)
            .map(|at| {
                if to.events == Events::WithOthers && at % OTHERS == 0 {
                    None
                } else {
                    orders.next()
                }
            })
            .collect();
        let message = |order: &Option<Order>| match order {
            Some(order) => order.message(),
            None => ("audit.entry".to_owned(), "{}".into()),
        };
        let end = nats::publish(&to.context, batch.iter().map(message)).await;
        for (sequence, order) in (end + 1 - AT_ONCE as u64..).zip(&batch) {
            if let Some(order) = order {
                model.apply(sequence, &order.subject(), order.data().as_bytes());
            }
        }
        last.store(end, Ordering::Relaxed);
    }
    model
}

/// What a stream has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Events {
    Orders,
    /// Others as well, so that the server filters.
    WithOthers,
}

/// A stream to which orders are published.
struct Stream {
    context: jetstream::Context,
    events: Events,
}

/// A server with a stream of these events.
async fn server(events: Events) -> (NatsServer, Stream) {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    let mut config = nats::stream_config(STREAM, "orders.>");
    if events == Events::WithOthers {
        config.subjects.push("audit.>".to_owned());
    }
    nats::create_stream_with(&context, config).await;
    (server, Stream { context, events })
}

async fn never_goes_back(events: Events) {
    let seed = foldstream_tests::seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let (server, stream) = server(events).await;
    let mut host = Host::start_with(&jetstream_source(&server.url(), STREAM)).await;
    host.client()
        .deploy(LEDGER, &guests::module("ledger"))
        .await;
    let (sender, clients) = watch::channel(host.client().clone());
    let last = Arc::new(AtomicU64::new(0));
    let stop_publishing = Arc::new(AtomicBool::new(false));
    let publishing = tokio::spawn(publish(
        stream,
        Arc::clone(&stop_publishing),
        Arc::clone(&last),
        random.u64(..),
    ));
    let mut watchers: Vec<Until> = (0..3)
        .map(|_| Until::stopped(|stop| read(clients.clone(), stop)))
        .collect();
    watchers.push(Until::stopped(|stop| watch_changes(clients.clone(), stop)));
    let operator = Until::stopped(|stop| roll_out(clients.clone(), stop, random.fork()));
    for _ in 0..kills() {
        tokio::time::sleep(Duration::from_micros(
            random.u64(..LIFE_MAX.as_micros() as u64),
        ))
        .await;
        host.kill();
        host.restart().await;
        sender.send_replace(host.client().clone());
        for watcher in &watchers {
            assert!(
                !watcher.task.is_finished(),
                "a reader saw its position go back"
            );
        }
    }
    operator.end().await;
    stop_publishing.store(true, Ordering::Relaxed);
    let model = publishing.await.expect("the stream takes what it is sent");
    let client = host.client().clone();
    client.reached(LEDGER, last.load(Ordering::Relaxed)).await;
    for watcher in watchers {
        let answers = watcher.end().await;
        assert!(answers > 0, "nothing was read");
    }
    // A candidate may take over until all of them are built: entries of one generation are compared.
    let (shown, entries) = wait::until("entries of one generation", || async {
        let shown = client.show(LEDGER).await;
        let entries = client.entries(LEDGER, "").await;
        let is_same = client.show(LEDGER).await.generation == shown.generation;
        is_same.then_some((shown, entries))
    })
    .await;
    let wanted = if shown.module.state_version == 2 {
        model.next_entries()
    } else {
        model.entries()
    };
    assert!(entries == wanted, "the state is not the fold");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_never_go_back_through_kills_and_rollouts() {
    never_goes_back(Events::Orders).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_never_go_back_for_a_reader_that_the_server_filters() {
    never_goes_back(Events::WithOthers).await;
}

/// An answer that waits for nothing.
async fn answer_now(client: &Client, rest: &str) -> Answer {
    client
        .get(&format!(
            "/v1/deployments/{LEDGER}/entries/head?timeout=0s{rest}"
        ))
        .await
}

#[tokio::test]
async fn a_stop_in_good_order_is_followed_by_answers_at_once_also_without_the_source() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    let last = stage.publish(500).await;
    stage.client().reached(LEDGER, last).await;
    for _ in 0..2 {
        // Nothing more is learned in between, so that the second stop is as good as the first.
        assert_eq!(stage.host.stop().code(), Some(0));
        stage.server().kill();
        stage.host.restart().await;
        let client = stage.client().clone();
        let answer = wait::until("an answer", || async {
            Some(answer_now(&client, "").await).filter(|answer| answer.status == 200)
        })
        .await;
        assert_eq!(answer.position(), last);
    }
    stage.server().restart().await;
    stage.publish(10).await;
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn a_crash_is_followed_by_no_answer_before_the_source_was_reached() {
    let mut stage = Stage::start_with(Kind::JetStream, "[state]\nflush_interval = \"10m\"\n").await;
    stage.deploy_ledger().await;
    let durable = stage.publish(500).await;
    stage.client().reached(LEDGER, durable).await;
    // A stop makes all durable; what comes then is shown and lost.
    assert_eq!(stage.host.stop().code(), Some(0));
    stage.host.restart().await;
    let last = stage.publish(100).await;
    stage.client().reached(LEDGER, last).await;
    stage.host.kill();
    stage.server().kill();
    stage.host.restart().await;
    let client = stage.client().clone();
    let is_away = |shown: &api::Deployment| shown.source_status.message.is_some();
    client.show_when(LEDGER, "miss its source", is_away).await;
    let problem = answer_now(&client, "").await.problem(503, "not-ready");
    assert!(
        problem.detail.contains("its source is not connected yet ("),
        "{}",
        problem.detail
    );
    // To rest does not make it any better, and neither does another start.
    client.act(LEDGER, "pause").await.expect(200);
    answer_now(&client, "").await.problem(503, "not-ready");
    assert_eq!(stage.host.stop().code(), Some(0));
    stage.host.restart().await;
    let client = stage.client().clone();
    client
        .show_when(LEDGER, "pause", |shown| shown.position == durable)
        .await;
    answer_now(&client, "").await.problem(503, "not-ready");
    client.act(LEDGER, "resume").await.expect(200);
    stage.server().restart().await;
    stage.client().reached(LEDGER, last).await;
    assert!(answer_now(&client, "").await.expect(200).position() >= last);
}

#[tokio::test]
async fn what_follows_goes_back_neither_by_itself_nor_when_it_takes_over() {
    let mut stage = Stage::start_with(Kind::JetStream, "[state]\nflush_interval = \"10m\"\n").await;
    stage.deploy_ledger().await;
    let last = stage.publish(500).await;
    stage.client().reached(LEDGER, last).await;
    stage
        .client()
        .deploy(LEDGER, &guests::module("ledger-next"))
        .await;
    stage
        .client()
        .show_when(LEDGER, "take over", |shown| shown.generation == 2)
        .await;
    for _ in 0..3 {
        let last = stage.publish(1_000).await;
        let client = stage.client().clone();
        client.reached(LEDGER, last).await;
        let pinned = wait::until("the one before to follow", || async {
            let answer = answer_now(&client, "&generation=1").await;
            Some(answer).filter(|answer| answer.status == 200 && answer.position() >= last)
        })
        .await;
        let seen = answer_now(&client, "")
            .await
            .expect(200)
            .position()
            .max(pinned.position());
        stage.host.kill();
        stage.host.restart().await;
        let client = stage.client().clone();
        let rolled_back = wait::until("a rollback", || async {
            for rest in ["&generation=1", "&generation=2", ""] {
                let answer = answer_now(&client, rest).await;
                assert!(
                    answer.status != 200 || answer.position() >= seen,
                    "{rest}: back from {seen} to {}",
                    answer.position()
                );
            }
            let answer = client.act(LEDGER, "rollback").await;
            answer.status.is_success().then_some(())
        });
        rolled_back.await;
        wait::until("an answer", || async {
            let answer = answer_now(&client, "").await;
            assert!(
                answer.status != 200 || answer.position() >= seen,
                "back from {seen} to {}",
                answer.position()
            );
            (answer.status == 200).then_some(())
        })
        .await;
        client
            .show_when(LEDGER, "serve by the one before", |shown| {
                shown.generation == 1
            })
            .await;
        client.act(LEDGER, "rollback").await.expect(200);
    }
    stage.assert_ledger_equals_model().await;
}
