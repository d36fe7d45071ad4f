//! A handler, of a stream or of an embedded log, that parks events that it can't handle, sets
//! timers, buys things in sagas and leaves out what was published twice. Its operator retries what is
//! parked, and deploys code with and without a mistake, under the same kills and faults as all
//! others. At rest everything is released, and must be what the stream asks for: each message once,
//! in the order of its key, no timer too early or twice, each purchase done or undone.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use foldstream::api::{
    Deployment, DeploymentState, EntryPage, PendingTimers, SagaInstances, SagaStatus, StoredEvent,
};
use foldstream_tests::reactor::{self, Place};
use foldstream_tests::{guests, wait};
use reqwest::Method;
use serde_json::json;

use crate::errands_model::{Errands, Stored};
use crate::handlers::{self, Output};
use crate::operator::{self, Change, Operated};
use crate::publisher;
use crate::world::World;

/// The stream of events and firings, and its source.
pub const INPUT: &str = "errands";
/// The stream of messages, and its source.
pub const OUTPUT: &str = "done";

/// The embedded log of all three, and its source.
pub const LOG: &str = "errand-log";

/// Name of the handler.
pub const NAME: &str = "errands";

/// The handler of most rounds.
pub const ON_STREAM: Operated = Operated {
    name: NAME,
    source: INPUT,
    modules: ["errands-fixed", "errands-next", "errands"],
    changes: &[
        (Change::Worsen, 8),
        (Change::Retry, 8),
        (Change::Mend, 3),
        (Change::Rebuild, 1),
        (Change::Inherit, 1),
        (Change::RollBack, 2),
        (Change::Repeat, 1),
        (Change::Pause, 1),
        (Change::Verify, 1),
        (Change::Prune, 1),
    ],
};

/// The handler of a round: one in three reads the log.
pub fn handler(seed: u64) -> Operated {
    if seed % 3 == 2 {
        Operated {
            source: LOG,
            ..ON_STREAM
        }
    } else {
        ON_STREAM
    }
}

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(50);
/// A timer that is as far away is not due in the round.
const FAR: Duration = Duration::from_secs(600);

/// Creates both streams. The output is of any kind, but cursors have subjects that only one stream
/// can have.
pub async fn create_streams(context: &jetstream::Context, seed: u64) {
    let config = jetstream::stream::Config {
        subjects: vec!["errand.>".to_owned(), "_fs.timers.>".to_owned()],
        // What is published twice is there twice, unless that happens at once.
        duplicate_window: Duration::from_millis(100),
        ..foldstream_tests::nats::stream_config(INPUT, "errand.>")
    };
    foldstream_tests::nats::create_stream_with(context, config).await;
    let output = match Output::of(seed / 3) {
        Output::HasCursors if Output::of(seed) == Output::HasCursors => Output::IsReadBack,
        output => output,
    };
    handlers::create_output(context, OUTPUT, "done.>", output).await;
}

/// Deploys it, with its mistake.
pub async fn deploy(world: &World) {
    let Operated {
        name,
        source,
        modules,
        ..
    } = handler(world.seed);
    let target = if source == LOG { LOG } else { OUTPUT };
    let parameters = format!(
        "&effects-from=beginning&source={source}&on-failure=park&allow-publish=done.%3E%40{target}"
    );
    let client = world.client();
    client
        .deploy_with(name, &guests::module(modules[2]), &parameters)
        .await;
    world
        .show_when(name, "apply something", |shown| shown.position > 0)
        .await;
}

/// Checks it at rest.
pub async fn check(world: &World) {
    let (shown, stream) = settled(world).await;
    let wanted = Errands::of(&stream);
    timers_are_as_wanted(world, &wanted).await;
    let messages = stored(world, OUTPUT, &["done"]).await;
    let outbox = shown.outbox.as_ref().expect("it is a handler");
    messages_are_as_wanted(&messages, &wanted, &outbox.lineage);
    state_is_as_wanted(world, &wanted, shown.position).await;
    purchases_are_as_wanted(world, &wanted).await;
    let inbox = shown.inbox.as_ref().expect("it has one");
    assert_eq!(
        inbox.duplicates, wanted.duplicates,
        "events that are left out because they came twice"
    );
    let counts = &world.counts;
    for (count, more) in [
        (&counts.effects, messages.len() as u64),
        (&counts.firings, wanted.fired),
        (&counts.duplicates, wanted.duplicates),
        (&counts.purchases, wanted.purchases().len() as u64),
    ] {
        count.fetch_add(more, Ordering::Relaxed);
    }
    world.note(&format!(
        "errands: {} messages of {} events and firings; {} fired, {} twice, {} ill; owner: {}",
        messages.len(),
        stream.len(),
        wanted.fired,
        wanted.duplicates,
        wanted.ill,
        outbox.epoch
    ));
}

/// What the stream has, or the log if the handler reads that, under subjects that begin with one of
/// these.
async fn stored(world: &World, stream: &str, begins: &[&str]) -> Vec<Stored> {
    if handler(world.seed).source != LOG {
        let context = publisher::connect(world).await;
        let messages = reactor::messages(&context, stream).await;
        let mut stored: Vec<_> = messages.iter().map(Stored::from).collect();
        stored.retain(|stored| begins.iter().any(|begin| stored.subject.starts_with(begin)));
        return stored;
    }
    let mut stored = Vec::new();
    for begin in begins {
        let events = reactor::logged(&world.client(), LOG, &format!("{begin}.%3E")).await;
        let events = events
            .into_iter()
            .map(serde_json::from_value::<StoredEvent>);
        stored.extend(events.map(|event| Stored::from(event.expect("an event"))));
    }
    stored.sort_by_key(|stored| stored.sequence);
    stored
}

/// Waits until everything is released and done, and no timer is due any more; with the stream until
/// then.
async fn settled(world: &World) -> (Deployment, Vec<Stored>) {
    let of = handler(world.seed);
    let name = NAME;
    operator::resume(world, name).await;
    let (mut moved, mut before, mut is_mended) = (Instant::now(), None, false);
    loop {
        let shown = world.show(name).await;
        let entries = shown.outbox.as_ref().map(|outbox| outbox.entries);
        let pending = shown.timers.as_ref().map(|timers| timers.pending);
        let now = Some((shown.position, entries, pending, shown.parked.events));
        if before != now {
            (moved, before) = (Instant::now(), now);
        }
        // The state may have code with the mistake, which can't fold what other code has retried.
        let must_mend = !is_mended && shown.module.state_version == 1;
        let is_done = shown.state == DeploymentState::Live
            && !must_mend
            && shown.candidate.is_none()
            && entries == Some(0)
            && shown.parked.events == 0
            && has_only_far_timers(&shown);
        if is_done {
            let stream = stored(world, INPUT, &["errand", "_fs.timers"]).await;
            if shown.position >= stream.last().map_or(0, |last| last.sequence) {
                assert!(shown.failure.is_none(), "{shown:#?}");
                return (shown, stream);
            }
        }
        assert!(
            moved.elapsed() < wait::DEADLINE,
            "waited in vain for {name} to release and to do everything: {shown:#?}"
        );
        let is_held_up = shown.state == DeploymentState::Failed || shown.parked.events > 0;
        if must_mend && (is_held_up || shown.candidate.is_none()) {
            is_mended = operator::deploy(world, &of, guests::module(of.modules[0]), "").await;
        } else if shown.parked.events > 0 {
            operator::retry(world, name, &json!({ "all": true })).await;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Whether no timer is due within a while, as far as that is known.
fn has_only_far_timers(shown: &Deployment) -> bool {
    let timers = shown.timers.as_ref().expect("it sets timers");
    if timers.pending == 0 {
        return true;
    }
    let next: Option<jiff::Timestamp> = timers
        .next_at
        .as_ref()
        .map(|at| at.parse().expect("a time"));
    next.is_some_and(|next| next > jiff::Timestamp::now() + FAR)
}

/// What is pending is what the stream leaves pending.
async fn timers_are_as_wanted(world: &World, wanted: &Errands) {
    let mut found = BTreeMap::new();
    let path = format!("/v1/deployments/{NAME}/timers?limit=1000");
    let page: PendingTimers = world.ask(Method::GET, &path).await.expect(200).json();
    for timer in page.timers {
        let at: jiff::Timestamp = timer.at.parse().expect("a time");
        let at = u64::try_from(at.as_nanosecond()).expect("after 1970");
        found.insert(timer.name, at);
    }
    let lack = |these: &BTreeMap<String, u64>, those: &BTreeMap<String, u64>| {
        let mut missing = these.clone();
        missing.retain(|name, at| those.get(name) != Some(at));
        missing
    };
    let (never, more) = (lack(&wanted.pending, &found), lack(&found, &wanted.pending));
    assert!(
        never.is_empty() && more.is_empty(),
        "timers that should be pending and are not: {never:?}; that are and should not be: {more:?}"
    );
    let now = u64::try_from(jiff::Timestamp::now().as_nanosecond()).expect("after 1970");
    let overdue = found.iter().find(|(_, at)| **at <= now);
    assert_eq!(overdue, None, "a timer that is due has not fired");
}

/// Each message is stored once, in the order of its key and with the data that it has to have, and
/// nothing else is.
fn messages_are_as_wanted(messages: &[Stored], wanted: &Errands, lineage: &str) {
    let stored: Vec<reactor::Stored> = messages
        .iter()
        .map(|message| reactor::Stored {
            id: message.id.clone(),
            key: reactor::key_of(&message.subject),
            place: place_of(&message.id),
            is_delayed: false,
        })
        .collect();
    let places = wanted.messages.keys().copied().collect();
    reactor::assert_each_once(&stored, &places, lineage);
    for message in messages {
        let place = place_of(&message.id);
        let wanted = &wanted.messages[&place];
        assert_eq!(
            (&message.subject, &message.data),
            (&wanted.subject, &wanted.data),
            "the message of {place:?}"
        );
        let at = message.data["at"].as_u64().unwrap_or_default();
        assert!(
            at <= message.time_ns,
            "a timer fired before its time: {message:?}"
        );
    }
}

/// The place that the id of a message has.
fn place_of(id: &str) -> Place {
    let mut parts = id.split('.').skip(2).step_by(2).map(str::parse);
    let mut next = || parts.next().and_then(Result::ok);
    next()
        .zip(next())
        .unwrap_or_else(|| panic!("{id} has no place"))
}

/// The state has what was done for each key, in its order.
async fn state_is_as_wanted(world: &World, wanted: &Errands, last: u64) {
    let name = NAME;
    let is_first = world.show(name).await.module.state_version == 1;
    let prefix = if is_first { "done/" } else { "ran/" };
    let (mut found, mut after) = (BTreeMap::new(), String::new());
    loop {
        let path = format!(
            "/v1/deployments/{name}/entries?prefix={prefix}&limit=1000&at-least={last}&timeout=30s{after}"
        );
        let page: EntryPage = world.ask(Method::GET, &path).await.expect(200).json();
        for entry in page.entries {
            let key = entry.key.trim_start_matches(prefix).to_owned();
            let number = |name: &str| entry.value[name].as_u64().expect("a number");
            found.insert(key, (number("count"), number("chain")));
        }
        let Some(next) = page.next else { break };
        after = format!("&after={next}");
    }
    assert_eq!(found, wanted.done(), "{name} is not the fold");
}

/// Each purchase has ended as the answers say, or as their absence does.
async fn purchases_are_as_wanted(world: &World, wanted: &Errands) {
    let mut found = BTreeMap::new();
    for status in [
        "running",
        "compensating",
        "stuck",
        "completed",
        "compensated",
    ] {
        let mut after = String::new();
        loop {
            let path = format!("/v1/deployments/{NAME}/sagas?status={status}&limit=1000{after}");
            let page: SagaInstances = world.ask(Method::GET, &path).await.expect(200).json();
            for instance in page.instances {
                found.insert(instance.key, instance.status);
            }
            let Some(next) = page.next else { break };
            after = format!("&after={}", next.replace('%', "%25"));
        }
    }
    let wanted = wanted.purchases();
    assert_eq!(found, wanted, "purchases");
    let running = wanted
        .iter()
        .find(|(_, status)| !matches!(status, SagaStatus::Completed | SagaStatus::Compensated));
    assert_eq!(running, None, "a purchase has no end");
}
