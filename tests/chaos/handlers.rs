//! Two handlers on a stream of their own: one publishes to another stream, the other one to an
//! embedded log. Operators change both all the time, the host is killed under them, and the proxy
//! between them and the server loses acknowledgements. At rest each message that the stream asks
//! for has to be there once, in the order of its key, and the state has to be the fold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use foldstream::api::{Deployment, DeploymentState, EntryPage, Outbox};
use foldstream_tests::reactor::{self, Place, Stored};
use foldstream_tests::{guests, nats, wait};
use reqwest::Method;

use crate::operator::{self, Change, Operated};
use crate::publisher;
use crate::world::{Phase, World};

/// The stream of events, and its source.
pub const INPUT: &str = "in";
/// The stream of messages, and its source.
pub const OUTPUT: &str = "out";
/// The embedded log.
pub const LOG: &str = "log";

/// The handler that publishes to the stream.
pub const TO_STREAM: Operated = Operated {
    name: "to-stream",
    source: INPUT,
    modules: ["reactor", "reactor-next", "reactor-broken"],
    changes: &[
        (Change::Rebuild, 5),
        (Change::Migrate, 2),
        (Change::Inherit, 4),
        (Change::Break, 2),
        (Change::RollBack, 5),
        (Change::Repeat, 2),
        (Change::Pause, 1),
        (Change::Verify, 1),
        (Change::Prune, 1),
    ],
};
/// The one that publishes to the log.
pub const TO_LOG: Operated = Operated {
    name: "to-log",
    ..TO_STREAM
};

/// Keys of events: enough that some wait behind each other, and others do not.
const KEYS: u32 = 20;

/// Time between two parts.
const INTERVAL: Duration = Duration::from_millis(50);

/// Creates both streams.
pub async fn create_streams(context: &jetstream::Context, seed: u64) {
    nats::create_stream(context, INPUT, "in.>").await;
    create_output(context, OUTPUT, "out.>", Output::of(seed)).await;
}

/// How a stream of messages prevents second copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// It may remove messages, and its window decides.
    HasWindow,
    /// It takes cursors, if its server knows them.
    HasCursors,
    /// Messages in doubt are read back, and its window is shorter than most outages.
    IsReadBack,
}

impl Output {
    /// One of them, drawn by a number.
    pub fn of(number: u64) -> Self {
        [Self::HasWindow, Self::HasCursors, Self::IsReadBack][(number % 3) as usize]
    }
}

/// Creates a stream of messages.
pub async fn create_output(
    context: &jetstream::Context,
    name: &str,
    pattern: &str,
    output: Output,
) {
    let config = nats::stream_config(name, pattern);
    let has_cursors = output == Output::HasCursors;
    let mut subjects = config.subjects.clone();
    if has_cursors {
        subjects.push("_fs.cursors.>".to_owned());
    }
    let (duplicate_window, max_messages_per_subject) = if output == Output::HasWindow {
        // No subject has as many messages, so nothing is ever removed.
        (Duration::from_secs(120), 100_000)
    } else {
        (Duration::from_secs(1), -1)
    };
    let config = jetstream::stream::Config {
        subjects,
        allow_atomic_publish: has_cursors,
        duplicate_window,
        max_messages_per_subject,
        ..config
    };
    nats::create_stream_with(context, config).await;
}

/// Publishes events until the round is at rest.
pub async fn feed(world: &World) {
    let mut random = fastrand::Rng::with_seed(world.seed ^ 0x6665_6564);
    let part = [1, 5, 20][random.usize(..3)];
    let mut number = 0_u64;
    let mut connection = publisher::connect(world).await;
    while world.is_until(Phase::Calm) {
        let turn = world.publishing.lock().await;
        for _ in 0..part {
            let what = ["one", "three", "quiet", "later"][random.usize(..4)];
            let subject = format!("in.{}.{what}", random.u32(..KEYS));
            number += 1;
            // Again and again with the same id: once in the stream.
            let id = number.to_string();
            while store(&connection, &subject, &id, "").await.is_none() {
                connection = publisher::connect(world).await;
            }
        }
        drop(turn);
        world.sleep_until_after(Phase::Calm, INTERVAL).await;
    }
}

/// Publishes an event; none if nobody knows whether it is stored.
pub async fn store(
    connection: &jetstream::Context,
    subject: &str,
    id: &str,
    data: &str,
) -> Option<()> {
    let message = jetstream::message::PublishMessage::build()
        .message_id(id)
        .payload(data.to_owned().into());
    let stored = connection.send_publish(subject.to_owned(), message).await;
    stored.ok()?.await.ok().map(drop)
}

/// Deploys both, to publish for each event from the first one on.
pub async fn deploy(world: &World) {
    for (of, target) in [(TO_STREAM, OUTPUT), (TO_LOG, LOG)] {
        let module = guests::module(of.modules[0]);
        let parameters =
            format!("&effects-from=beginning&source={INPUT}&allow-publish=out.%3E%40{target}");
        world
            .client()
            .deploy_with(of.name, &module, &parameters)
            .await;
        world
            .show_when(of.name, "apply something", |shown| shown.position > 0)
            .await;
    }
}

/// Checks both at rest.
pub async fn check(world: &World) {
    let context = publisher::connect(world).await;
    let events = reactor::messages(&context, INPUT).await;
    let mut wanted: BTreeSet<Place> = BTreeSet::new();
    let mut handled: BTreeMap<String, u64> = BTreeMap::new();
    for event in &events {
        let what = event.subject.rsplit('.').next().expect("three tokens");
        wanted.extend(reactor::wanted(event.sequence, what));
        *handled.entry(reactor::key_of(&event.subject)).or_default() += 1;
    }
    let last = events.last().map_or(0, |event| event.sequence);
    let shown = settled(world, &TO_STREAM, last).await;
    let stored: Vec<Stored> = reactor::messages(&context, OUTPUT)
        .await
        .iter()
        .filter(|message| !reactor::is_cursor(&message.subject))
        .map(reactor::in_stream)
        .collect();
    reactor::assert_each_once(&stored, &wanted, &outbox(&shown).lineage);
    state_is_the_fold(world, &TO_STREAM, last, &handled).await;
    let epoch = outbox(&shown).epoch;
    let shown = settled(world, &TO_LOG, last).await;
    let logged: Vec<Stored> = reactor::logged(&world.client(), LOG, "out.%3E")
        .await
        .iter()
        .map(reactor::in_log)
        .collect();
    reactor::assert_each_once(&logged, &wanted, &outbox(&shown).lineage);
    state_is_the_fold(world, &TO_LOG, last, &handled).await;
    let counted = (stored.len() + logged.len()) as u64;
    world.counts.effects.fetch_add(counted, Ordering::Relaxed);
    world.note(&format!(
        "counted {counted} effects of {last} events; owners: {epoch} and {}",
        outbox(&shown).epoch
    ));
}

fn outbox(shown: &Deployment) -> &Outbox {
    shown.outbox.as_ref().expect("it is a handler")
}

/// Waits until all is published that the events up to one ask for. Code that failed after its
/// probation is replaced, as an operator would do it.
async fn settled(world: &World, of: &Operated, last: u64) -> Deployment {
    operator::resume(world, of.name).await;
    let (mut moved, mut place) = (Instant::now(), None);
    loop {
        let shown = world.show(of.name).await;
        let outbox = outbox(&shown);
        // A busy machine takes long for thousands of messages.
        let now = Some((shown.position, outbox.entries));
        if place != now {
            (moved, place) = (Instant::now(), now);
        }
        if shown.state == DeploymentState::Live
            && shown.position >= last
            && shown.candidate.is_none()
            && outbox.entries == 0
        {
            assert!(shown.failure.is_none(), "{shown:#?}");
            return shown;
        }
        assert!(
            moved.elapsed() < wait::DEADLINE,
            "waited in vain for {} to publish everything up to {last}: {shown:#?}",
            of.name
        );
        if shown.state == DeploymentState::Failed {
            let failure = shown.failure.as_ref().map(|failure| failure.kind.as_str());
            assert_eq!(failure, Some("rejected"), "{shown:#?}");
            operator::deploy(world, of, guests::module(of.modules[0]), "").await;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The state counts the events of each key.
async fn state_is_the_fold(
    world: &World,
    of: &Operated,
    last: u64,
    handled: &BTreeMap<String, u64>,
) {
    let path = format!(
        "/v1/deployments/{}/entries?limit=1000&at-least={last}&timeout=30s",
        of.name
    );
    let page: EntryPage = world.ask(Method::GET, &path).await.expect(200).json();
    let found: BTreeMap<String, u64> = page
        .entries
        .iter()
        .map(|entry| {
            let key = entry.key.rsplit('/').next().expect("a key");
            // One version stores text, the other one a number.
            let count = entry.value.to_string().trim_matches('"').parse();
            (key.to_owned(), count.expect("a number"))
        })
        .collect();
    assert_eq!(&found, handled, "{} is not the fold", of.name);
}
