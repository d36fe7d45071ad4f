//! What the target of a handler costs while it takes nothing, what it has lost, and the turn of ordered
//! and delayed messages.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::Config;
use foldstream::api::{self, Promise};
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer, Version};
use foldstream_tests::proxy::Proxy;
use foldstream_tests::reactor::{
    REACTOR, TO_STREAM, assert_in_order, event, events, host_with_stream, published, stored,
};
use foldstream_tests::{cli, guests, wait};
use serde_json::json;

use crate::deliveries::{Stage, Target, full, plain, with_cursors};

/// Refusals after which a handler would have made a new connection for each.
const REFUSALS: usize = 4;

/// Waits until the server has refused some attempts without a new connection. What the host connects
/// for other purposes after a start is made once, and may come between.
async fn refusals_cost_no_connection(proxy: &Proxy) {
    let mut before = (proxy.connections(), proxy.refusals());
    wait::until("some attempts to be refused over one connection", || {
        let now = (proxy.connections(), proxy.refusals());
        if now.0 != before.0 {
            before = now;
        }
        let is_over = now.1 >= before.1 + REFUSALS;
        async move { is_over.then_some(()) }
    })
    .await;
}

/// Waits until the trouble of the only target is this one.
async fn names(stage: &Stage, trouble: &str) {
    let is_named = |outbox: &api::Outbox| {
        let found = outbox.targets[0].trouble.as_deref();
        found.is_some_and(|found| found.contains(trouble))
    };
    stage.waits_until("name the trouble", is_named).await;
}

#[tokio::test]
async fn stream_that_is_missing_or_full_costs_no_new_connections() {
    for (target, config) in [
        (Target::Plain(Version::Newest), plain()),
        (Target::Cursors, with_cursors()),
    ] {
        let mut stage = Stage::start(target).await;
        let first = stage.append(1, "one").await;
        published(stage.client(), first).await;
        stage.edit(full(config.clone(), 1)).await;
        let second = stage.append(1, "one").await;
        names(&stage, "maximum messages").await;
        refusals_cost_no_connection(stage.server().1).await;

        let context = stage.server().0.jetstream().await;
        context.delete_stream("OUT").await.expect("is deleted");
        // After a start the host asks what the stream has.
        stage.host.restart().await;
        names(&stage, "stream OUT does not exist").await;
        refusals_cost_no_connection(stage.server().1).await;

        nats::create_stream_with(&context, config).await;
        cli::on(&stage.host, &["outbox", "retry", REACTOR]).expect(0);
        published(stage.client(), second).await;
        assert_eq!(stage.causes().await, [second], "{target:?}");
    }
}

/// A server with a stream that the guest `alarm` reads and writes, and its settings.
async fn alarms(message_bytes_max: i32) -> (NatsServer, jetstream::Context, Config) {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    let subjects = ["alarm.>", "rang.>", "_fs.timers.>"].map(str::to_owned);
    let config = Config {
        subjects: subjects.to_vec(),
        max_message_size: message_bytes_max,
        ..nats::stream_config("ALARMS", "alarm.>")
    };
    nats::create_stream_with(&context, config.clone()).await;
    (server, context, config)
}

/// A host with that guest, and the address of the server or of a proxy.
async fn with_alarm(url: &str) -> Host {
    let host = Host::start_with(&format!(
        "[sources.alarms]\nkind = \"jetstream\"\nstream = \"ALARMS\"\nservers = [{url:?}]\n"
    ))
    .await;
    let grant = "&allow-publish=rang.%3E%40alarms";
    let module = guests::module("alarm");
    host.client().deploy_with("alarm", &module, grant).await;
    host
}

#[tokio::test]
async fn stream_that_refuses_firings_costs_no_new_connections() {
    let (mut server, context, config) = alarms(-1).await;
    let proxy = Proxy::start(&server.url()).await;
    let host = with_alarm(&proxy.url()).await;
    let client = host.client();
    let edited = context.update_stream(full(config.clone(), 1)).await;
    edited.expect("is edited");
    let data = json!({ "name": "tea", "after_ms": 0 }).to_string();
    let sent = context.publish("alarm.a.set", data.into()).await;
    sent.expect("is sent").await.expect("is stored");
    client
        .show_when("alarm", "say that its stream is full", |shown| {
            let why = shown
                .timers
                .as_ref()
                .and_then(|timers| timers.trouble.clone());
            why.is_some_and(|why| why.contains("maximum messages"))
        })
        .await;
    refusals_cost_no_connection(&proxy).await;
    // An operator learns the same, and whether it may help to try again.
    let fire = async || client.act("alarm", "timers/fire?timer=a/tea").await;
    let refused = fire().await.problem(422, "refused").detail;
    assert!(refused.contains("maximum messages"), "{refused}");
    server.stop();
    let away = fire().await.problem(503, "not-ready").detail;
    assert!(away.contains("connect"), "{away}");
    let audit = client.get("/v1/audit").await.expect(200).text();
    assert_eq!(audit.matches("timer-fire-failed").count(), 2, "{audit}");
    server.restart().await;
    context.update_stream(config).await.expect("is edited");
    client
        .show_when("alarm", "fire its timer", |shown| {
            let timers = shown.timers.as_ref();
            timers.is_some_and(|timers| timers.pending == 0)
        })
        .await;
}

#[tokio::test]
async fn timer_whose_firing_is_refused_holds_no_other_back() {
    let (server, context, config) = alarms(620).await;
    let host = with_alarm(&server.url()).await;
    let client = host.client();
    // Its firing has a header and more members, so it is larger than the event that sets it.
    let long = "x".repeat(500);
    for (name, after_ms) in [(long.as_str(), 0), ("tea", 200), ("egg", 400)] {
        let data = json!({ "name": name, "after_ms": after_ms }).to_string();
        let sent = context.publish("alarm.a.set", data.into()).await;
        sent.expect("is sent").await.expect("is stored");
    }
    let is_left_alone = |shown: &api::Deployment| {
        let timers = shown.timers.as_ref().expect("it is a handler");
        let why = timers.trouble.as_deref().unwrap_or_default();
        timers.pending == 1 && why.contains("message size exceeds")
    };
    let shown = client
        .show_when("alarm", "fire the others", is_left_alone)
        .await;
    let trouble = shown.timers.and_then(|timers| timers.trouble);
    let trouble = trouble.expect("one is refused");
    assert!(trouble.contains("timer \"a/xxx"), "{trouble}");
    assert!(trouble.len() < 300, "{trouble}");
    let shown = cli::on(&host, &["show", "alarm"]).expect(0);
    assert!(shown.stdout.contains("some cannot fire"), "{shown:?}");
    // It fires as soon as it may.
    let config = Config {
        max_message_size: -1,
        ..config
    };
    context.update_stream(config).await.expect("is edited");
    let has_fired = |shown: &api::Deployment| {
        let timers = shown.timers.as_ref().expect("it is a handler");
        timers.pending == 0 && timers.trouble.is_none()
    };
    client.show_when("alarm", "fire it", has_fired).await;
}

#[tokio::test]
async fn target_that_is_gone_is_in_trouble_only_while_messages_wait_for_it() {
    let events = "[sources.events]\nkind = \"embedded\"\n";
    let mut host =
        Host::start_with(&format!("{events}[sources.gone]\nkind = \"embedded\"\n")).await;
    let module = guests::module(REACTOR);
    let grant = "&source=events&allow-publish=out.%3E%40gone";
    host.client().deploy_with(REACTOR, &module, grant).await;
    host.stop();
    host.configure(events);
    host.restart().await;
    let trouble = |shown: &api::Deployment| {
        let outbox = shown.outbox.as_ref().expect("it is a handler");
        let mut gone = outbox
            .targets
            .iter()
            .filter(|target| target.source == "gone");
        gone.find_map(|target| target.trouble.clone())
    };
    host.prints("a source that the configuration has no more")
        .await;
    let shown = host.client().show(REACTOR).await;
    assert_eq!(trouble(&shown), None, "nothing waits");
    host.client().append(&[event(1, "one")]).await;
    let is_named = |shown: &api::Deployment| {
        trouble(shown).is_some_and(|trouble| trouble.contains("has no source gone"))
    };
    host.client()
        .show_when(REACTOR, "name the source", is_named)
        .await;

    let grant = "&source=events&allow-publish=out.%3E%40events";
    host.client().deploy_with(REACTOR, &module, grant).await;
    let list = cli::on(&host, &["outbox", "list", REACTOR, "-o", "json"])
        .expect(0)
        .stdout;
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let id = list["messages"][0]["id"]
        .as_str()
        .expect("one waits")
        .to_owned();
    let drop = ["outbox", "drop", REACTOR, &id, "--reason", "a trial"];
    cli::on(&host, &drop).expect(0);
    let is_over = |shown: &api::Deployment| trouble(shown).is_none();
    host.client()
        .show_when(REACTOR, "forget the source", is_over)
        .await;
}

#[tokio::test]
async fn promise_follows_the_settings_of_a_stream_that_is_edited() {
    let forgets = |config: Config| Config {
        max_messages_per_subject: 1,
        ..config
    };
    for (target, config, before) in [
        (Target::Plain(Version::Newest), plain(), Promise::ReadBack),
        (Target::Cursors, with_cursors(), Promise::Exact),
    ] {
        let stage = Stage::start(target).await;
        for (config, promise) in [
            (config.clone(), before),
            (forgets(config.clone()), Promise::Window),
            (config, before),
        ] {
            stage.edit(config).await;
            // It is looked at while messages leave.
            wait::until("the promise to be as the stream allows", || async {
                let last = stage.append(1, "one").await;
                let shown = published(stage.client(), last).await;
                let outbox = shown.outbox.expect("it is a handler");
                (outbox.targets[0].promise == Some(promise)).then_some(())
            })
            .await;
            let page = stage.client().get("/metrics").await.expect(200).text();
            let has = |metric: &str| {
                page.contains(&format!(
                    "{metric}{{deployment=\"reactor\",target=\"out\"}} 0."
                ))
            };
            assert!(has("foldstream_outbox_longest_wait_seconds"), "{page}");
            let is_all = promise == Promise::Window;
            assert_eq!(has("foldstream_outbox_window_seconds"), is_all, "{page}");
        }
    }
}

/// What the host does while a target is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    Runs,
    Down,
}

/// A target that was deleted and made again, while the host ran or was stopped.
async fn made_again(target: Target, config: Config, host: Meanwhile) {
    let mut stage = Stage::start(target).await;
    let mut last = 0;
    for _ in 0..3 {
        last = stage.append(1, "one").await;
    }
    published(stage.client(), last).await;
    if host == Meanwhile::Down {
        assert!(stage.host.stop().success());
    }
    let context = stage.server().0.jetstream().await;
    context.delete_stream("OUT").await.expect("is deleted");
    nats::create_stream_with(&context, config).await;
    if host == Meanwhile::Down {
        stage.host.restart().await;
    }

    let mut is_lost = true;
    for step in ["made again", "started", "accepted", "started again"] {
        match step {
            "accepted" => {
                cli::on(&stage.host, &["outbox", "retry", REACTOR, "--accept-lost"]).expect(0);
                is_lost = false;
            }
            "started" | "started again" => stage.host.restart().await,
            _ => {}
        }
        let appended = stage.append(1, "one").await;
        let shown = published(stage.client(), appended).await;
        let outbox = shown.outbox.expect("it is a handler");
        let found = outbox.targets[0].promise == Some(Promise::Lost);
        assert_eq!(found, is_lost, "{target:?}, {host:?}: {step}");
        last += 1;
    }
    let causes: Vec<u64> = (4..=last).collect();
    assert_eq!(stage.causes().await, causes, "{target:?}: none twice");
}

#[tokio::test]
async fn target_that_was_made_again_lacks_what_it_had_until_that_is_accepted() {
    for host in [Meanwhile::Runs, Meanwhile::Down] {
        made_again(Target::Plain(Version::Newest), plain(), host).await;
        made_again(Target::Cursors, with_cursors(), host).await;
    }
}

/// What `doctor` finds in doubt of the promises of the only target.
fn thin_promise(host: &Host) -> bool {
    let found = cli::on(host, &["doctor"]).stdout;
    found.contains("a message that waits longer than the window may be stored twice")
}

#[tokio::test]
async fn outage_beyond_the_window_is_named_by_doctor_and_remembered_over_restarts() {
    let mut stage = Stage::start(Target::Plain(Version::Newest)).await;
    // The window alone prevents second copies of a stream that forgets its messages.
    stage
        .edit(Config {
            max_messages_per_subject: 1,
            duplicate_window: Duration::from_secs(4),
            ..plain()
        })
        .await;
    let last = stage.append(1, "one").await;
    let shown = published(stage.client(), last).await;
    let target = &shown.outbox.expect("it is a handler").targets[0];
    assert!(target.longest_wait_seconds < 2.0, "{target:?}");
    assert!(!thin_promise(&stage.host));

    stage.server().0.stop();
    let last = stage.append(1, "one").await;
    let has_waited = |outbox: &api::Outbox| outbox.targets[0].longest_wait_seconds >= 5.0;
    stage
        .waits_until("wait beyond the window", has_waited)
        .await;
    stage.server().0.restart().await;
    published(stage.client(), last).await;
    assert!(thin_promise(&stage.host), "after the outage");

    stage.host.restart().await;
    let last = stage.append(1, "one").await;
    let shown = published(stage.client(), last).await;
    let outbox = shown.outbox.expect("it is a handler");
    assert!(has_waited(&outbox), "{:?}", outbox.targets[0]);
    assert_eq!(outbox.targets[0].promise, Some(Promise::Window));
    assert!(thin_promise(&stage.host), "after the restart");
}

#[tokio::test]
async fn thousands_that_waited_leave_once_each_and_in_the_order_of_their_keys() {
    for target in [Target::Plain(Version::Newest), Target::Cursors] {
        let mut stage = Stage::start(target).await;
        let first = stage.append(1, "one").await;
        published(stage.client(), first).await;
        stage.server().0.stop();
        let last = stage
            .client()
            .append(&events(3_500, "one"))
            .await
            .last_sequence;
        // More than are read at once, so that the next ones are read while others are sent.
        stage
            .waits_until("wait", |outbox| outbox.entries == 3_500)
            .await;
        stage.server().0.restart().await;
        let shown = published(stage.client(), last).await;
        let outbox = shown.outbox.expect("it is a handler");
        let counts = (outbox.targets[0].released, outbox.targets[0].resent);
        assert_eq!(counts, (3_501, 0), "{target:?}");
        let stored = stage.stored().await;
        assert_eq!(stored.len(), 3_501, "{target:?}");
        assert_in_order(
            stored
                .into_iter()
                .map(|message| (message.key, message.place)),
        );
    }
}

#[tokio::test]
async fn messages_that_their_stream_has_leave_the_outbox_while_others_are_sent() {
    const COUNT: u64 = 600;
    let mut stage = Stage::start(Target::Cursors).await;
    let first = stage.append(1, "one").await;
    published(stage.client(), first).await;
    stage.server().0.stop();
    // Each needs a batch of its own, and no commit of the handler removes them.
    let due: Vec<_> = (0..COUNT).map(|key| event(key, "past")).collect();
    for due in due.chunks(500) {
        stage.client().append(due).await;
    }
    stage
        .waits_until("wait", |outbox| outbox.entries == COUNT)
        .await;
    stage.server().0.restart().await;
    let waits_some = |outbox: &api::Outbox| (1..COUNT).contains(&outbox.entries);
    stage.waits_until("wait in part", waits_some).await;
    stage
        .waits_until("leave", |outbox| outbox.entries == 0)
        .await;
    assert_eq!(stage.stored().await.len() as u64, COUNT + 1);
}

#[tokio::test]
async fn server_with_small_batches_is_not_asked_for_large_ones_again_and_again() {
    const COUNT: u64 = 600;
    let mut server = NatsServer::start().await;
    let store = server.store();
    server.configure(&format!(
        "jetstream {{ store_dir: {store:?}, limits {{ batch {{ max_msgs: 4 }} }} }}"
    ));
    server.restart().await;
    nats::create_stream_with(&server.jetstream().await, with_cursors()).await;
    let mut stage = Stage::before(server, "").await;
    let appended = stage.client().append(&events(COUNT, "one")).await;
    let last = appended.last_sequence;
    published(stage.client(), last).await;
    let stored = stage.stored().await;
    assert_eq!(stored.len() as u64, COUNT);
    // Three messages and the cursor are a batch. One larger batch in 16 tries whether more are taken.
    let refusals = stage.server().1.refusals() as u64;
    assert!(refusals > 0 && refusals < COUNT / 3 / 4, "{refusals}");
}

/// Puts the files of the server back to how they were before some messages; what the host says then.
async fn put_back(target: Target, host: Meanwhile) {
    let mut stage = Stage::start(target).await;
    let first = stage.append(1, "one").await;
    published(stage.client(), first).await;
    stage.server().0.stop();
    let copy = stage.server().0.back_up();
    stage.server().0.restart().await;
    let mut last = first;
    for _ in 0..3 {
        last = stage.append(1, "one").await;
    }
    let shown = published(stage.client(), last).await;
    let promise = shown.outbox.expect("it is a handler").targets[0].promise;
    assert_ne!(promise, Some(Promise::Lost));
    if host == Meanwhile::Down {
        stage.host.stop();
    }
    stage.server().0.stop();
    stage.server().0.restore(copy.path());
    stage.server().0.restart().await;
    if host == Meanwhile::Down {
        stage.host.restart().await;
    }
    let next = stage.append(2, "one").await;
    let shown = published(stage.client(), next).await;
    assert_eq!(stage.causes().await, [first, next], "{target:?}");
    let promise = shown.outbox.expect("it is a handler").targets[0].promise;
    assert_eq!(promise, Some(Promise::Lost), "{target:?}, {host:?}");
    let shown = cli::on(&stage.host, &["show", REACTOR]).expect(0);
    assert!(shown.stdout.contains("has lost some"), "{shown:?}");
    let doctor = cli::on(&stage.host, &["doctor"]);
    assert!(
        doctor.stdout.contains("lacks messages of reactor"),
        "{doctor:?}"
    );
    let told = stage.host.output();
    let times = told.matches("lacks messages that it had confirmed").count();
    assert_eq!(times, 1, "{told}");

    // Until somebody accepts it.
    stage.host.stop();
    stage.host.restart().await;
    let promise = async |stage: &Stage, wanted: fn(Option<Promise>) -> bool| {
        let is_so = |shown: &api::Deployment| {
            let targets = shown.outbox.iter().flat_map(|outbox| &outbox.targets);
            targets.into_iter().any(|target| wanted(target.promise))
        };
        let client = stage.client();
        client.show_when(REACTOR, "say what is lost", is_so).await
    };
    promise(&stage, |promise| promise == Some(Promise::Lost)).await;
    let accept = ["outbox", "retry", REACTOR, "--accept-lost"];
    cli::on(&stage.host, &accept).expect(0);
    promise(&stage, |promise| promise != Some(Promise::Lost)).await;
    stage.host.kill();
    stage.host.restart().await;
    let next = stage.append(3, "one").await;
    let shown = published(stage.client(), next).await;
    let promise = shown.outbox.expect("it is a handler").targets[0].promise;
    assert_ne!(promise, Some(Promise::Lost), "{target:?}");
    let told = stage.host.output();
    assert!(!told.contains("lacks messages that it had"), "{told}");
    let audit = cli::on(&stage.host, &["audit", REACTOR]).expect(0).stdout;
    assert!(audit.contains("accept-lost"), "{audit}");
}

#[tokio::test]
async fn stream_with_cursors_that_lost_its_end_is_named() {
    put_back(Target::Cursors, Meanwhile::Runs).await;
}

#[tokio::test]
async fn stream_with_cursors_that_lost_its_end_while_the_host_was_down_is_named() {
    put_back(Target::Cursors, Meanwhile::Down).await;
}

#[tokio::test]
async fn stream_that_lost_its_end_is_named() {
    put_back(Target::Plain(Version::Newest), Meanwhile::Runs).await;
}

#[tokio::test]
async fn stream_that_lost_its_end_while_the_host_was_down_is_named() {
    put_back(Target::Plain(Version::Newest), Meanwhile::Down).await;
}

#[tokio::test]
async fn silent_server_is_named_after_one_round_however_many_keys_wait() {
    let stage = Stage::start(Target::Plain(Version::Newest)).await;
    let first = stage.append(1, "one").await;
    published(stage.client(), first).await;
    stage.swallow();
    let keys: Vec<_> = (0..1_000).map(|key| event(key, "one")).collect();
    let last = stage.client().append(&keys).await.last_sequence;
    // One key after the other would take minutes.
    names(&stage, "did not confirm").await;
    stage.let_through();
    published(stage.client(), last).await;
    let causes: BTreeSet<u64> = stage.causes().await.into_iter().collect();
    assert_eq!(causes.len(), 1_001);
    assert_eq!(stage.stored().await.len(), 1_001, "none twice");
}

#[tokio::test]
async fn messages_find_their_stream_again_if_the_servers_are_no_cluster() {
    let (mut server, other) = (NatsServer::start().await, NatsServer::start().await);
    nats::create_stream_with(&server.jetstream().await, plain()).await;
    let host = Host::start_with(&format!(
        "[sources.events]\nkind = \"embedded\"\n[sources.out]\nkind = \"jetstream\"\n\
         stream = \"OUT\"\nservers = [{:?}, {:?}]\n",
        server.url(),
        other.url()
    ))
    .await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    let released = async |wanted: u64| {
        wait::until("what waits to be published", || async {
            // Not after a pause, which grows.
            client.act(REACTOR, "outbox/retry").await.expect(200);
            let outbox = client.show(REACTOR).await.outbox;
            let targets = outbox.map(|outbox| outbox.targets).unwrap_or_default();
            let released: u64 = targets.iter().map(|target| target.released).sum();
            (released == wanted).then_some(())
        })
        .await;
    };
    client.append(&[event(1, "one")]).await;
    released(1).await;
    server.kill();
    client.append(&[event(1, "one")]).await;
    client
        .show_when(REACTOR, "find the stream missing", |shown| {
            let targets = shown.outbox.iter().flat_map(|outbox| &outbox.targets);
            let mut troubles = targets.filter_map(|target| target.trouble.as_deref());
            troubles.any(|trouble| trouble.contains("does not exist"))
        })
        .await;
    server.restart().await;
    released(2).await;
}

#[tokio::test]
async fn ordered_messages_have_their_turn_behind_a_hundred_delayed_ones() {
    /// Most delayed messages that leave before later ordered ones.
    const SHARE: usize = 100;
    let mut stage = Stage::start(Target::Cursors).await;
    stage.server().0.kill();
    // More than one round of both.
    let delayed: Vec<_> = (0..3 * SHARE as u64)
        .map(|number| event(number % 7, "past"))
        .collect();
    let delayed: BTreeSet<u64> = stage
        .client()
        .append(&delayed)
        .await
        .sequences
        .into_iter()
        .collect();
    let mut last = 0;
    for _ in 0..3 {
        let appended = stage.client().append(&events(250, "three")).await;
        last = appended.last_sequence;
    }
    stage.client().reached(REACTOR, last).await;
    stage.server().0.restart().await;
    cli::on(&stage.host, &["outbox", "retry", REACTOR]).expect(0);
    published(stage.client(), last).await;
    let is_delayed: Vec<bool> = stage
        .causes()
        .await
        .iter()
        .map(|cause| delayed.contains(cause))
        .collect();
    assert_eq!(is_delayed.len(), 3 * SHARE + 3 * 750);
    let behind = is_delayed.iter().rposition(|is_delayed| !is_delayed);
    let before = &is_delayed[..behind.expect("some are ordered")];
    let runs = before.split(|is_delayed| !is_delayed).map(<[bool]>::len);
    let longest = runs.max().expect("one at least");
    assert!((1..=SHARE).contains(&longest), "{longest} in a row");
}

#[tokio::test]
async fn retry_of_parked_events_stops_while_the_outbox_is_full() {
    /// Messages that the outbox takes.
    const MOST: u64 = 20;
    let settings = format!("[state]\noutbox_entries_max = {MOST}\n");
    let mut stage = Stage::start_with(Target::Plain(Version::Newest), &settings).await;
    let reactor = guests::module(REACTOR);
    stage
        .client()
        .deploy_with(REACTOR, &reactor, "&on-failure=park")
        .await;
    // One fails, and two hundred of its key wait behind it.
    let mut causes = vec![stage.append(1, "fail").await];
    let behind: Vec<_> = (0..200).map(|_| event(1, "one")).collect();
    causes.extend(stage.client().append(&behind).await.sequences);
    let last = causes[200];
    stage.client().reached(REACTOR, last).await;
    let fixed = guests::module("reactor-fixed");
    stage
        .client()
        .deploy_with(REACTOR, &fixed, "&strategy=inherit")
        .await;
    stage.edit(full(plain(), 1)).await;

    let retry = ["parked", "retry", REACTOR, "1"];
    let said = cli::on(&stage.host, &retry).expect(1);
    assert!(
        said.stderr.contains("as its outbox takes"),
        "{}",
        said.stderr
    );
    let shown = stage.client().show(REACTOR).await;
    let waiting = shown.outbox.expect("it is a handler").entries;
    // A retry is asked for that before each portion, and each is twice as large as the one before.
    assert!((MOST..3 * MOST).contains(&waiting), "{waiting}");
    assert!(shown.parked.events > 0, "{:?}", shown.parked);

    // The host looks for room now, instead of after its pause.
    stage.edit(plain()).await;
    stage.host.restart().await;
    wait::until("all to be retried", || async {
        let said = cli::on(&stage.host, &retry);
        let is_over = said.code == 0 || said.stderr.contains("nothing");
        (is_over && stage.client().show(REACTOR).await.parked.events == 0).then_some(())
    })
    .await;
    published(stage.client(), last).await;
    assert_eq!(stage.causes().await, causes);
}

#[tokio::test]
async fn lists_of_a_state_that_is_not_open_say_why_and_when_to_ask_again() {
    let server = NatsServer::start().await;
    nats::create_stream_with(&server.jetstream().await, plain()).await;
    let mut host = host_with_stream(&server.url(), "").await;
    host.client()
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    host.stop();
    let file = host.data_dir().join("state").join(REACTOR).join("1.redb");
    std::fs::write(file, "no state").expect("the folder is ours");
    host.restart().await;
    for list in ["outbox", "timers", "sagas", "parked", "parked/events?key=a"] {
        let path = format!("/v1/deployments/{REACTOR}/{list}");
        let answer = host.client().get(&path).await;
        assert!(answer.header("retry-after").is_some(), "{list}");
        let problem = answer.problem(503, "not-ready");
        assert!(
            problem.detail.contains(REACTOR),
            "{list}: {}",
            problem.detail
        );
    }
}

#[tokio::test]
async fn confirmed_messages_leave_the_outbox_although_it_is_asked_to_retry_all_the_time() {
    let server = NatsServer::start().await;
    nats::create_stream_with(&server.jetstream().await, plain()).await;
    let host = host_with_stream(&server.url(), "").await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    client.append(&[event(1, "one")]).await;
    wait::until("the outbox to be empty", || async {
        client.act(REACTOR, "outbox/retry").await.expect(200);
        let outbox = client.show(REACTOR).await.outbox.expect("it has one");
        let released: u64 = outbox.targets.iter().map(|target| target.released).sum();
        (released == 1 && outbox.entries == 0).then_some(())
    })
    .await;
}

/// A server with a stream `OUT` in a JetStream domain; its streams are in a folder.
pub(crate) async fn domain(name: &str, store: &std::path::Path, leaf: &str) -> NatsServer {
    // The second block takes the place of the first one.
    let extra = format!("jetstream {{ store_dir: {store:?}, domain: {name} }}\n{leaf}");
    let server = NatsServer::start_with(&format!("server_name: {name}\n{extra}")).await;
    let context = server.jetstream().await;
    nats::create_stream_with(&context, plain()).await;
    server
}

/// The lines by which a server listens for leaf nodes, and by which another one is one of it.
pub(crate) fn hub_and_leaf() -> [String; 2] {
    let port = nats::free_port();
    [
        format!("leafnodes {{ listen: \"127.0.0.1:{port}\" }}"),
        format!("leafnodes {{ remotes: [ {{ url: \"nats://127.0.0.1:{port}\" }} ] }}"),
    ]
}

/// Both servers have a stream of that name, and the host reaches that of the hub through the leaf.
async fn other_domain_confirms_nothing(config: Config) {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let [listens, remotes] = hub_and_leaf();
    let mut hub = domain("hub", folders[0].path(), &listens).await;
    let leaf = domain("leaf", folders[1].path(), &remotes).await;
    for server in [&hub, &leaf] {
        let context = server.jetstream().await;
        context
            .update_stream(config.clone())
            .await
            .expect("is edited");
    }
    let host = Host::start_with(&format!(
        "[sources.events]\nkind = \"embedded\"\n[sources.out]\nkind = \"jetstream\"\n\
         stream = \"OUT\"\ndomain = \"hub\"\nservers = [{:?}]\n",
        leaf.url()
    ))
    .await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    let first = client.append(&[event(1, "one")]).await.last_sequence;
    published(client, first).await;
    hub.kill();
    let last = client.append(&events(7, "one")).await.last_sequence;
    client
        .show_when(
            REACTOR,
            "name the stream that takes its messages",
            |shown| {
                let targets = shown.outbox.iter().flat_map(|outbox| &outbox.targets);
                let mut troubles = targets.filter_map(|target| target.trouble.as_deref());
                troubles.any(|trouble| trouble.contains("is stored by stream OUT of domain leaf"))
            },
        )
        .await;
    hub.restart().await;
    wait::until("all to be in the stream of the hub", || async {
        // Not after a pause, which grows.
        client.act(REACTOR, "outbox/retry").await.expect(200);
        let shown = client.show(REACTOR).await;
        let is_empty = shown.outbox.is_some_and(|outbox| outbox.entries == 0);
        is_empty.then_some(())
    })
    .await;
    let mut causes: Vec<u64> = stored(&hub)
        .await
        .iter()
        .map(|stored| stored.place.0)
        .collect();
    causes.sort_unstable();
    assert_eq!(causes, (1..=last).collect::<Vec<u64>>());
}

#[tokio::test]
async fn acknowledgement_of_another_domain_confirms_nothing() {
    other_domain_confirms_nothing(plain()).await;
}

#[tokio::test]
async fn acknowledgement_of_another_domain_moves_no_cursor() {
    other_domain_confirms_nothing(with_cursors()).await;
}
