//! What messages ask of their delivery: not before a time, for how long, and on what condition; on
//! an embedded log, on streams with and without cursors, and on both versions of the server.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, SubjectTransform};
use foldstream::api::{self, GenerationStatus, Promise};
use foldstream_tests::client::Client;
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer, Version};
use foldstream_tests::proxy::Proxy;
use foldstream_tests::reactor::{
    self, REACTOR, Stored, TO_LOG, TO_STREAM, event, host_with_stream, published, stored,
};
use foldstream_tests::{cli, guests, wait};

/// How long the guest delays messages.
const DELAY: Duration = Duration::from_secs(4);

/// A stream whose window is shorter than any outage here.
pub(crate) fn plain() -> Config {
    Config {
        duplicate_window: Duration::from_millis(200),
        ..nats::stream_config("OUT", "out.>")
    }
}

/// The same with cursors.
pub(crate) fn with_cursors() -> Config {
    Config {
        subjects: vec!["out.>".to_owned(), "_fs.cursors.>".to_owned()],
        allow_atomic_publish: true,
        ..plain()
    }
}

/// The same, but the stream does not take the subject of the cursors.
pub(crate) fn without_their_subject() -> Config {
    Config {
        subjects: vec!["out.>".to_owned()],
        ..with_cursors()
    }
}

/// Where messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Log,
    Plain(Version),
    Cursors,
}

/// A target, and a host that reaches it, over a proxy if it is a stream.
pub(crate) struct Stage {
    pub(crate) host: Host,
    server: Option<(NatsServer, Proxy)>,
}

impl Stage {
    pub(crate) async fn start(target: Target) -> Self {
        Self::start_with(target, "").await
    }

    pub(crate) async fn start_with(target: Target, more: &str) -> Self {
        let (config, version) = match target {
            Target::Log => {
                let host = Host::start_with(more).await;
                host.client()
                    .deploy_with(REACTOR, &guests::module(REACTOR), TO_LOG)
                    .await;
                return Self { host, server: None };
            }
            Target::Plain(version) => (plain(), version),
            Target::Cursors => (with_cursors(), Version::Newest),
        };
        let server = NatsServer::start_version(version).await;
        nats::create_stream_with(&server.jetstream().await, config).await;
        Self::before(server, more).await
    }

    /// A host that reaches the stream of a server, over a proxy.
    pub(crate) async fn before(server: NatsServer, more: &str) -> Self {
        let proxy = Proxy::start(&server.url()).await;
        let host = host_with_stream(&proxy.url(), more).await;
        host.client()
            .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
            .await;
        let server = Some((server, proxy));
        Self { host, server }
    }

    pub(crate) fn client(&self) -> &Client {
        self.host.client()
    }

    /// Appends an event; its sequence.
    pub(crate) async fn append(&self, key: u64, what: &str) -> u64 {
        let appended = self.client().append(&[event(key, what)]).await;
        appended.last_sequence
    }

    /// All messages of the target, in its order.
    pub(crate) async fn stored(&self) -> Vec<Stored> {
        match &self.server {
            Some((server, _)) => stored(server).await,
            None => reactor::logged(self.client(), "events", "out.%3E")
                .await
                .iter()
                .map(reactor::in_log)
                .collect(),
        }
    }

    /// The events that caused the messages, in the order of the target.
    pub(crate) async fn causes(&self) -> Vec<u64> {
        let stored = self.stored().await;
        stored.iter().map(|message| message.place.0).collect()
    }

    pub(crate) async fn waits_until(
        &self,
        what: &str,
        is_so: impl Fn(&api::Outbox) -> bool,
    ) -> api::Deployment {
        self.client()
            .show_when(REACTOR, what, |shown| {
                shown.outbox.as_ref().is_some_and(&is_so)
            })
            .await
    }

    /// The messages that wait.
    pub(crate) async fn waiting(&self) -> Vec<api::WaitingMessage> {
        let path = format!("/v1/deployments/{REACTOR}/outbox");
        // Nothing can be listed before the state is open.
        let page = wait::until("the state to be open", || async {
            let page = self.client().get(&path).await;
            (page.status != 503).then_some(page)
        });
        let page: api::WaitingMessages = page.await.expect(200).json();
        page.messages
    }

    /// Edits the stream.
    pub(crate) async fn edit(&self, config: Config) {
        let (server, _) = self.server.as_ref().expect("it is a stream");
        let context = server.jetstream().await;
        context.update_stream(config).await.expect("it is edited");
    }

    /// Waits until the target has more messages, of which the host hears nothing.
    pub(crate) async fn stores_more_than(&self, before: usize) {
        wait::until("messages to be stored without an answer", || async {
            (self.stored().await.len() > before).then_some(())
        })
        .await;
    }

    /// The server of the stream, and the proxy before it.
    pub(crate) fn server(&mut self) -> (&mut NatsServer, &Proxy) {
        let (server, proxy) = self.server.as_mut().expect("it is a stream");
        (server, proxy)
    }

    /// The answers of the server get lost from now on.
    pub(crate) fn swallow(&self) {
        let (_, proxy) = self.server.as_ref().expect("it has a server");
        proxy.swallow(true);
    }

    /// The answers of the server come again, over other connections.
    pub(crate) fn let_through(&self) {
        let (_, proxy) = self.server.as_ref().expect("it has a server");
        proxy.break_all();
        proxy.swallow(false);
    }
}

macro_rules! on_each_target {
    ($($claim:ident)*) => {
        mod log {
            $(#[tokio::test] async fn $claim() { super::$claim(super::Target::Log).await; })*
        }
        mod plain {
            $(#[tokio::test] async fn $claim() {
                super::$claim(super::Target::Plain(super::Version::Newest)).await;
            })*
        }
        mod oldest {
            $(#[tokio::test] async fn $claim() {
                super::$claim(super::Target::Plain(super::Version::Oldest)).await;
            })*
        }
        mod cursors {
            $(#[tokio::test] async fn $claim() { super::$claim(super::Target::Cursors).await; })*
        }
    };
}

on_each_target! {
    delayed_message_holds_nothing_back_and_outlives_kills_rebuilds_and_rollbacks
    message_whose_condition_does_not_hold_is_set_aside_until_an_operator_decides
    delayed_message_is_sent_at_once_or_dropped_on_request
}

async fn delayed_message_holds_nothing_back_and_outlives_kills_rebuilds_and_rollbacks(
    target: Target,
) {
    let mut stage = Stage::start(target).await;
    let begun = std::time::Instant::now();
    let later = stage.append(1, "later").await;
    let one = stage.append(1, "one").await;
    // Once the event behind it is handled: before that, nothing else waits either.
    let shown = stage
        .client()
        .show_when(REACTOR, "publish the other one", |shown| {
            let outbox = shown.outbox.as_ref().expect("it is a handler");
            shown.position >= one && (outbox.entries, outbox.delayed) == (1, 1)
        })
        .await;
    assert_eq!(stage.causes().await, [one], "of the same key");
    assert!(
        shown.outbox.expect("it is a handler").oldest_seconds < 1.0,
        "it could not have left yet"
    );
    stage.host.kill();
    stage.host.restart().await;
    let client = stage.client();
    let answer = client.act(REACTOR, "rebuild").await;
    let number = answer.json::<api::Deployed>().generation;
    client
        .becomes(REACTOR, number, GenerationStatus::Active)
        .await;
    client.act(REACTOR, "rollback").await.expect(200);
    published(stage.client(), one).await;
    assert!(begun.elapsed() >= DELAY, "{:?}", begun.elapsed());
    assert_eq!(stage.causes().await, [one, later]);
    // It is not sent again either.
    let last = stage.append(1, "one").await;
    stage.host.kill();
    stage.host.restart().await;
    published(stage.client(), last).await;
    assert_eq!(stage.causes().await, [one, later, last]);
}

async fn message_whose_condition_does_not_hold_is_set_aside_until_an_operator_decides(
    target: Target,
) {
    let mut stage = Stage::start(target).await;
    let first = stage.append(1, "first").await;
    let (second, third) = (
        stage.append(1, "first").await,
        stage.append(1, "first").await,
    );
    let one = stage.append(1, "one").await;
    let aside = |outbox: &api::Outbox| outbox.entries == 2 && outbox.conflicts == 2;
    stage.waits_until("set two aside", aside).await;
    assert_eq!(stage.causes().await, [first, one]);
    // Durably: the cursors have passed them.
    let two = stage.append(2, "one").await;
    stage.host.kill();
    stage.host.restart().await;
    stage
        .client()
        .show_when(REACTOR, "handle the last event", |shown| {
            shown.position >= two && shown.outbox.as_ref().is_some_and(aside)
        })
        .await;
    assert_eq!(stage.causes().await, [first, one, two]);
    let metrics = stage.client().get("/metrics").await.expect(200).text();
    let gauge = format!("foldstream_outbox_conflicts{{deployment=\"{REACTOR}\"}} 2");
    assert!(metrics.contains(&gauge), "{metrics}");
    let waiting = stage.waiting().await;
    let id = |cause| {
        let message = waiting.iter().find(|message| message.sequence == cause);
        message.expect("it waits").id.clone()
    };
    let why = waiting[0].conflict.as_deref().unwrap_or_default();
    assert!(why.contains("last sequence"), "{why}");
    assert_eq!(
        waiting[0].expected_last,
        Some(api::ExpectedLast {
            subject: "out.1.first".to_owned(),
            sequence: 0
        })
    );
    let listed = cli::on(&stage.host, &["outbox", "list", REACTOR]).expect(0);
    assert!(
        listed.stdout.contains("`outbox send` or `drop`"),
        "{listed:?}"
    );

    // As it is, it is a conflict again.
    let decide = |words: &[&str]| {
        let words = [&["outbox"], words, &["--reason", "a test"]].concat();
        cli::on(&stage.host, &words)
    };
    decide(&["send", REACTOR, &id(second)]).expect(0);
    stage.waits_until("set it aside again", aside).await;
    decide(&["send", REACTOR, &id(second), "--without-condition"]).expect(0);
    stage
        .waits_until("send it", |outbox| outbox.entries == 1)
        .await;
    decide(&["drop", REACTOR, &id(third)]).expect(0);
    published(stage.client(), two).await;
    assert_eq!(stage.causes().await, [first, one, two, second]);
    let audit = stage.client().get("/v1/audit?limit=9").await.expect(200);
    for part in ["\"send-messages-without-condition\"", "\"drop-messages\""] {
        assert!(audit.text().contains(part), "{}", audit.text());
    }
}

async fn delayed_message_is_sent_at_once_or_dropped_on_request(target: Target) {
    let stage = Stage::start(target).await;
    let now = stage.append(1, "tomorrow").await;
    let never = stage.append(2, "tomorrow").await;
    // What is listed is durable.
    let waiting = wait::until("both to be durable", || async {
        let waiting = stage.waiting().await;
        (waiting.len() == 2).then_some(waiting)
    })
    .await;
    assert!(waiting.iter().all(|message| message.not_before.is_some()));
    // Page by page as well.
    let path = format!("/v1/deployments/{REACTOR}/outbox");
    let page = stage.client().get(&format!("{path}?limit=1")).await;
    let page: api::WaitingMessages = page.expect(200).json();
    let next = page.next.expect("there is another");
    let page = stage.client().get(&format!("{path}?after={next}")).await;
    let page: api::WaitingMessages = page.expect(200).json();
    assert_eq!(page.messages, waiting[1..]);
    for (word, message) in [("send", &waiting[0]), ("drop", &waiting[1])] {
        let words = ["outbox", word, REACTOR, &message.id, "--reason", "a test"];
        cli::on(&stage.host, &words).expect(0);
    }
    published(stage.client(), never).await;
    assert_eq!(stage.causes().await, [now]);
    let words = [
        "outbox",
        "send",
        REACTOR,
        &waiting[0].id,
        "--reason",
        "again",
    ];
    cli::on(&stage.host, &words).expect(3);
}

/// Stored without an answer, and sent again long after the window has forgotten the ids.
async fn lost_answer(target: Target, what: &str) {
    let mut stage = Stage::start(target).await;
    let mut last = stage.append(0, "one").await;
    published(stage.client(), last).await;
    let mut wanted = BTreeSet::from([last]);
    for (key, kills) in [(1, false), (2, true)] {
        if what == "later" {
            wanted.insert(stage.append(key, what).await);
            stage
                .waits_until("have it", |outbox| outbox.delayed == 1)
                .await;
        }
        let before = stage.stored().await.len();
        stage.swallow();
        if what != "later" {
            wanted.insert(stage.append(key, what).await);
        }
        stage.stores_more_than(before).await;
        if kills {
            stage.host.kill();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        stage.let_through();
        if kills {
            stage.host.restart().await;
        }
        last = stage.append(key, "one").await;
        wanted.insert(last);
        let shown = published(stage.client(), last).await;
        assert_eq!(shown.outbox.expect("it is a handler").conflicts, 0);
    }
    let mut causes = stage.causes().await;
    causes.sort_unstable();
    assert_eq!(causes, wanted.into_iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn delayed_message_whose_answer_is_lost_is_stored_once() {
    lost_answer(Target::Plain(Version::Newest), "later").await;
}

#[tokio::test]
async fn delayed_message_whose_answer_is_lost_is_stored_once_on_an_old_server() {
    lost_answer(Target::Plain(Version::Oldest), "later").await;
}

#[tokio::test]
async fn delayed_message_whose_answer_is_lost_is_stored_once_with_cursors() {
    lost_answer(Target::Cursors, "later").await;
}

#[tokio::test]
async fn condition_that_the_message_itself_has_ended_is_no_conflict() {
    lost_answer(Target::Plain(Version::Newest), "first").await;
}

#[tokio::test]
async fn condition_that_the_message_itself_has_ended_is_no_conflict_on_an_old_server() {
    lost_answer(Target::Plain(Version::Oldest), "first").await;
}

#[tokio::test]
async fn condition_that_the_message_itself_has_ended_is_no_conflict_with_cursors() {
    lost_answer(Target::Cursors, "first").await;
}

#[tokio::test]
async fn message_whose_time_is_over_leaves_at_once_and_once_through_kills() {
    for target in [Target::Log, Target::Plain(Version::Newest), Target::Cursors] {
        let mut stage = Stage::start(target).await;
        let mut random = fastrand::Rng::with_seed(foldstream_tests::seed());
        let mut wanted = Vec::new();
        for _ in 0..4 {
            let events: Vec<_> = (0..40).map(|number| event(number % 7, "past")).collect();
            let appended = stage.client().append(&events).await;
            wanted.extend(appended.sequences);
            tokio::time::sleep(Duration::from_micros(random.u64(0..200_000))).await;
            stage.host.kill();
            stage.host.restart().await;
        }
        published(stage.client(), *wanted.last().expect("some")).await;
        let mut causes = stage.causes().await;
        causes.sort_unstable();
        assert_eq!(causes, wanted, "{target:?}");
    }
}

#[tokio::test]
async fn message_that_is_due_while_its_server_is_away_is_stored_once_when_it_is_back() {
    for target in [Target::Plain(Version::Newest), Target::Cursors] {
        let mut stage = Stage::start(target).await;
        let one = stage.append(1, "one").await;
        published(stage.client(), one).await;
        let later = stage.append(1, "later").await;
        stage
            .waits_until("have it", |outbox| outbox.delayed == 1)
            .await;
        let (server, _) = stage.server.as_mut().expect("it has a server");
        server.kill();
        trouble(&stage).await;
        let (server, _) = stage.server.as_mut().expect("it has a server");
        server.restart().await;
        cli::on(&stage.host, &["outbox", "retry", REACTOR]).expect(0);
        published(stage.client(), later).await;
        assert_eq!(stage.causes().await, [one, later], "{target:?}");
    }
}

/// What the trouble of the only target is.
pub(crate) async fn trouble(stage: &Stage) -> String {
    let shown = stage
        .waits_until("name the trouble", |outbox| {
            outbox.targets[0].trouble.is_some()
        })
        .await;
    let targets = shown.outbox.expect("it is a handler").targets;
    targets[0].trouble.clone().expect("checked above")
}

#[tokio::test]
async fn message_with_a_time_to_live_waits_for_a_stream_that_allows_it_and_expires_there() {
    let stage = Stage::start(Target::Plain(Version::Newest)).await;
    let brief = stage.append(1, "brief").await;
    let other = stage.append(2, "one").await;
    let why = trouble(&stage).await;
    assert!(why.contains("--allow-msg-ttl"), "{why}");
    stage
        .waits_until("publish the other one", |outbox| outbox.entries == 1)
        .await;
    assert_eq!(stage.causes().await, [other], "of another key");
    let (server, _) = stage.server.as_ref().expect("it has a server");
    let config = Config {
        allow_message_ttl: true,
        ..plain()
    };
    let context = server.jetstream().await;
    context.update_stream(config).await.expect("is taken");
    cli::on(&stage.host, &["outbox", "retry", REACTOR]).expect(0);
    published(stage.client(), brief).await;
    wait::until("the message to expire", || async {
        let mut stream = context.get_stream("OUT").await.expect("is there");
        let state = &stream.info().await.expect("answers").state;
        (state.last_sequence == 2 && state.messages == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn server_that_would_ignore_what_a_message_asks_for_does_not_get_it() {
    let stage = Stage::start(Target::Plain(Version::Oldest)).await;
    for (key, what, word) in [(1, "brief", "2.11"), (2, "alone", "2.12")] {
        stage.append(key, what).await;
        let why = trouble(&stage).await;
        assert!(why.contains(word), "{why}");
        let waiting = stage.waiting().await;
        let words = ["outbox", "drop", REACTOR, &waiting[0].id, "--reason", "old"];
        cli::on(&stage.host, &words).expect(0);
    }
    assert_eq!(stage.causes().await, [0; 0]);
}

#[tokio::test]
async fn condition_on_other_subjects_counts_on_a_new_server() {
    for target in [Target::Plain(Version::Newest), Target::Cursors, Target::Log] {
        let stage = Stage::start(target).await;
        let alone = stage.append(1, "alone").await;
        stage.append(1, "alone").await;
        let one = stage.append(2, "one").await;
        stage.append(2, "alone").await;
        let shown = stage
            .waits_until("set two aside", |outbox| {
                outbox.conflicts == 2 && outbox.entries == 2
            })
            .await;
        assert_eq!(stage.causes().await, [alone, one], "{target:?}");
        let promise = shown.outbox.expect("it is a handler").targets[0].promise;
        let exact = target != Target::Plain(Version::Newest);
        assert_eq!(promise == Some(Promise::Exact), exact, "{promise:?}");
    }
}

#[tokio::test]
async fn embedded_log_refuses_a_time_to_live_before_anything_is_committed() {
    let stage = Stage::start(Target::Log).await;
    stage.append(1, "brief").await;
    let (shown, failure) = stage.client().failed(REACTOR).await;
    assert_eq!((shown.position, failure.sequence), (0, Some(1)));
    for part in ["time-to-live", "embedded log"] {
        assert!(failure.message.contains(part), "{}", failure.message);
    }
    assert_eq!(shown.outbox.expect("it is a handler").entries, 0);
}

#[tokio::test]
async fn conflict_that_an_older_copy_of_the_state_does_not_know_is_one_again() {
    for target in [Target::Log, Target::Cursors] {
        let mut stage = Stage::start(target).await;
        let first = stage.append(1, "first").await;
        published(stage.client(), first).await;
        stage.host.stop();
        let file = stage.host.data_dir().join("state/reactor/1.redb");
        let copy = std::fs::read(&file).expect("it is there");
        stage.host.restart().await;
        let mut aside = Vec::new();
        for _ in 0..3 {
            aside.push(stage.append(1, "first").await);
        }
        let one = stage.append(1, "one").await;
        let set_aside = |count| move |outbox: &api::Outbox| outbox.conflicts == count;
        let shown = stage.waits_until("set three aside", set_aside(3)).await;
        let lineage = shown.outbox.expect("it is a handler").lineage;
        stage
            .waits_until("publish the other one", |outbox| outbox.entries == 3)
            .await;
        let id = |cause: u64| format!("fs.{lineage}.{cause}.0.0");
        let send = [
            "outbox",
            "send",
            REACTOR,
            &id(aside[0]),
            "--without-condition",
        ];
        let send = [&send[..], &["--reason", "a test"]].concat();
        cli::on(&stage.host, &send).expect(0);
        stage
            .waits_until("send it", |outbox| outbox.entries == 2)
            .await;
        assert_eq!(stage.causes().await, [first, one, aside[0]], "{target:?}");

        stage.host.kill();
        std::fs::write(&file, copy).expect("it is written");
        // Longer than the window.
        tokio::time::sleep(Duration::from_millis(300)).await;
        stage.host.restart().await;
        // Neither lost nor sent again.
        stage
            .waits_until("set two aside again", |outbox| {
                outbox.entries == 2 && outbox.conflicts == 2
            })
            .await;
        assert_eq!(stage.causes().await, [first, one, aside[0]], "{target:?}");
        let waiting = stage.waiting().await;
        let why = waiting[0].conflict.as_deref().unwrap_or_default();
        assert!(why.contains("later messages are stored"), "{why}");
    }
}

#[tokio::test]
async fn delayed_messages_fill_the_outbox_and_the_handler_continues_once_some_are_decided() {
    let limits = "[state]\noutbox_entries_max = 20\n[pipeline]\nbatch_events = 1\n";
    let stage = Stage::start_with(Target::Log, limits).await;
    let events: Vec<_> = (0..40).map(|key| event(key, "tomorrow")).collect();
    let last = stage.client().append(&events).await.last_sequence;
    let full = |outbox: &api::Outbox| outbox.full && outbox.delayed >= 20;
    let shown = stage.waits_until("be full", full).await;
    assert!(shown.position < last, "{shown:?}");
    let why = format!("{shown:?}");
    assert!(why.contains("of them for their time"), "{why}");
    let waiting = stage.waiting().await;
    let drop = |waiting: &[api::WaitingMessage]| {
        let ids = waiting.iter().map(|message| message.id.as_str());
        let words = ["outbox", "drop", REACTOR, "--reason", "a test"];
        let words: Vec<&str> = words.into_iter().chain(ids).collect();
        cli::on(&stage.host, &words).expect(0);
    };
    // The handler continues when a tenth of them is gone, and is said to wait until then.
    let position = shown.position;
    drop(&waiting[..1]);
    let says_so = |shown: &api::Deployment| {
        let failure = shown.failure.as_ref();
        failure.is_some_and(|failure| failure.message.contains("19 messages of"))
    };
    let shown = stage
        .client()
        .show_when(REACTOR, "say how many wait", says_so)
        .await;
    let outbox = shown.outbox.expect("it is a handler");
    assert_eq!(
        (outbox.entries, outbox.full, shown.position),
        (19, true, position)
    );
    drop(&waiting[1..]);
    stage.waits_until("be full again", full).await;
    // One that leaves at its time counts as one that is dropped.
    let waiting = stage.waiting().await;
    let ids = waiting.iter().map(|message| message.id.as_str());
    let words = ["outbox", "send", REACTOR, "--reason", "a test"];
    let words: Vec<&str> = words.into_iter().chain(ids).collect();
    cli::on(&stage.host, &words).expect(0);
    stage.client().reached(REACTOR, last).await;
    stage.stores_more_than(waiting.len() - 1).await;
    assert_eq!(stage.causes().await.len(), waiting.len());
}

#[tokio::test]
async fn refused_message_holds_neither_other_keys_back_for_long_nor_delayed_ones_at_all() {
    holds_no_others_back(Target::Plain(Version::Newest), &["brief", "overdue"]).await;
}

#[tokio::test]
async fn refused_delayed_message_holds_none_back_where_a_cursor_says_what_is_stored() {
    holds_no_others_back(Target::Cursors, &["overdue"]).await;
}

async fn holds_no_others_back(target: Target, refused: &[&str]) {
    let stage = Stage::start(target).await;
    for message in refused {
        stage.append(1, message).await;
    }
    let left = refused.len() as u64;
    let why = trouble(&stage).await;
    assert!(why.contains("--allow-msg-ttl"), "{why}");
    let due = stage.append(1, "past").await;
    stage
        .waits_until("pass the refused ones", |outbox| outbox.entries == left)
        .await;
    others_leave_soon(&stage, left, vec![due], [2, 3, 4]).await;
}

/// Whether messages of other keys leave soon while some are left that can't.
async fn others_leave_soon(stage: &Stage, left: u64, mut wanted: Vec<u64>, keys: [u64; 3]) {
    // Until the pauses between attempts are long.
    tokio::time::sleep(Duration::from_secs(15)).await;
    for key in keys {
        let begun = std::time::Instant::now();
        wanted.push(stage.append(key, "one").await);
        stage
            .waits_until("publish the other one", |outbox| outbox.entries == left)
            .await;
        wait::until("it to be stored", || async {
            (stage.stored().await.len() == wanted.len()).then_some(())
        })
        .await;
        assert!(
            begun.elapsed() < Duration::from_secs(4),
            "{:?}",
            begun.elapsed()
        );
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert_eq!(stage.causes().await, wanted);
}

#[tokio::test]
async fn many_refused_delayed_messages_hold_none_back_that_is_behind_them() {
    let stage = Stage::start(Target::Cursors).await;
    let refused: Vec<_> = (0..300).map(|key| event(key, "overdue")).collect();
    stage.client().append(&refused).await;
    let mut wanted = Vec::new();
    for _ in 0..3 {
        let begun = std::time::Instant::now();
        wanted.push(stage.append(1, "past").await);
        stage
            .waits_until("have all", |outbox| outbox.delayed >= 300)
            .await;
        wait::until("it to be stored", || async {
            (stage.stored().await.len() == wanted.len()).then_some(())
        })
        .await;
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(8), "{waited:?}");
        // Until the pauses between attempts are long.
        tokio::time::sleep(Duration::from_secs(12)).await;
    }
    assert_eq!(stage.causes().await, wanted);
    assert!(trouble(&stage).await.contains("--allow-msg-ttl"));
}

#[tokio::test]
async fn withdrawn_grant_of_a_delayed_message_holds_back_no_other_message() {
    withdrawn_grant(Target::Plain(Version::Newest)).await;
}

#[tokio::test]
async fn withdrawn_grant_of_a_delayed_message_holds_back_no_other_message_with_cursors() {
    withdrawn_grant(Target::Cursors).await;
}

async fn withdrawn_grant(target: Target) {
    let stage = Stage::start(target).await;
    let first = stage.append(1, "one").await;
    published(stage.client(), first).await;
    // It can't leave before the grant is withdrawn.
    let config = if target == Target::Cursors {
        with_cursors()
    } else {
        plain()
    };
    let messages = stage.stored().await.len() as i64 + i64::from(target == Target::Cursors);
    stage.edit(full(config.clone(), messages)).await;
    stage.append(1, "later").await;
    let why = trouble(&stage).await;
    assert!(!why.contains("no longer publish"), "{why}");
    stage
        .client()
        .deploy_with(
            REACTOR,
            &guests::module(REACTOR),
            "&allow-publish=out.2.%2A%40out",
        )
        .await;
    stage
        .waits_until("withhold it", |outbox| {
            let why = outbox.targets[0].trouble.as_deref();
            why.is_some_and(|why| why.contains("no longer publish"))
        })
        .await;
    stage.edit(config).await;
    others_leave_soon(&stage, 1, vec![first], [2, 2, 2]).await;
}

#[tokio::test]
async fn older_copy_of_the_state_sends_no_message_again_however_many_are_due() {
    let mut stage = Stage::start(Target::Plain(Version::Newest)).await;
    let first = stage.append(1, "one").await;
    published(stage.client(), first).await;
    // More than are read at once.
    let delayed: Vec<_> = (0..1_300).map(|key| event(key, "later")).collect();
    let mut last = 0;
    for delayed in delayed.chunks(500) {
        last = stage.client().append(delayed).await.last_sequence;
    }
    stage.client().reached(REACTOR, last).await;
    stage.host.stop();
    let file = stage.host.data_dir().join("state/reactor/1.redb");
    let copy = std::fs::read(&file).expect("it is there");
    stage.host.restart().await;
    published(stage.client(), last).await;
    assert_eq!(stage.causes().await.len(), 1_301);

    stage.host.kill();
    std::fs::write(&file, copy).expect("it is written");
    // Longer than the window.
    tokio::time::sleep(Duration::from_millis(300)).await;
    stage.host.restart().await;
    published(stage.client(), last).await;
    assert_eq!(stage.causes().await.len(), 1_301);
}

#[tokio::test]
async fn cursor_from_before_messages_that_were_sent_without_one_is_not_believed() {
    let mut stage = Stage::start(Target::Cursors).await;
    let mut sent = vec![stage.append(1, "one").await];
    published(stage.client(), sent[0]).await;
    stage.edit(without_their_subject()).await;
    stage.host.kill();
    stage.host.restart().await;
    sent.push(stage.append(1, "one").await);
    published(stage.client(), sent[1]).await;
    stage.edit(with_cursors()).await;
    // Still without: nothing was in doubt since.
    stage.swallow();
    sent.push(stage.append(1, "one").await);
    stage.stores_more_than(2).await;
    stage.host.kill();
    stage.let_through();
    // Longer than the window.
    tokio::time::sleep(Duration::from_millis(300)).await;
    stage.host.restart().await;
    published(stage.client(), sent[2]).await;
    sent.push(stage.append(1, "one").await);
    published(stage.client(), sent[3]).await;
    assert_eq!(stage.causes().await, sent);
    let shown = stage.waits_until("use cursors again", |outbox| {
        outbox.targets[0].promise == Some(Promise::Exact)
    });
    shown.await;
}

#[tokio::test]
async fn stream_that_takes_cursors_no_longer_gets_messages_without_and_again_with_them() {
    let disabled = Config {
        allow_atomic_publish: false,
        ..with_cursors()
    };
    for without in [without_their_subject(), disabled] {
        let mut stage = Stage::start(Target::Cursors).await;
        let mut sent = Vec::new();
        for (config, promise) in [
            (with_cursors(), Promise::Exact),
            (without, Promise::ReadBack),
            (with_cursors(), Promise::Exact),
        ] {
            stage.edit(config).await;
            if promise == Promise::Exact && !sent.is_empty() {
                // Looked for after a start only: messages without cursors are not refused.
                stage.host.kill();
                stage.host.restart().await;
            }
            for _ in 0..2 {
                let last = stage.append(1, "one").await;
                let shown = published(stage.client(), last).await;
                sent.push(last);
                let outbox = shown.outbox.expect("it is a handler");
                assert_eq!(outbox.targets[0].promise, Some(promise));
            }
        }
        assert_eq!(stage.causes().await, sent);
    }
}

#[tokio::test]
async fn stream_that_transforms_subjects_promises_no_more_than_its_window() {
    for (subjects, transformed) in [("out.>", "moved.>"), (">", "moved.>")] {
        let mut stage = Stage::start(Target::Cursors).await;
        stage
            .edit(Config {
                subject_transform: Some(SubjectTransform {
                    source: subjects.to_owned(),
                    destination: transformed.to_owned(),
                }),
                duplicate_window: Duration::from_secs(60),
                allow_atomic_publish: subjects == ">",
                ..with_cursors()
            })
            .await;
        let first = stage.append(1, "one").await;
        published(stage.client(), first).await;
        for _ in 0..2 {
            let before = stage.stored().await.len();
            stage.swallow();
            let last = stage.append(1, "one").await;
            stage.stores_more_than(before).await;
            stage.host.kill();
            stage.let_through();
            stage.host.restart().await;
            let shown = published(stage.client(), last).await;
            let target = &shown.outbox.expect("it is a handler").targets[0];
            assert_eq!(target.promise, Some(Promise::Window), "{target:?}");
        }
        assert_eq!(stage.causes().await, [1, 2, 3]);
    }
}

#[tokio::test]
async fn older_copy_of_the_state_sends_nothing_again_that_it_makes_again_later() {
    // Far from everything waits when the host looks at the stream.
    let few = "[state]\noutbox_entries_max = 5\n[pipeline]\nbatch_events = 2\n";
    for target in [Target::Plain(Version::Newest), Target::Cursors] {
        let mut stage = Stage::start_with(target, few).await;
        let first = stage.append(1, "one").await;
        published(stage.client(), first).await;
        stage.host.stop();
        let file = stage.host.data_dir().join("state/reactor/1.redb");
        let copy = std::fs::read(&file).expect("it is there");
        stage.host.restart().await;
        let what = ["one", "three", "past"];
        let events: Vec<_> = (0..200)
            .map(|number| event(number % 7, what[number as usize % 3]))
            .collect();
        let last = stage.client().append(&events).await.last_sequence;
        published(stage.client(), last).await;
        let before = stage.stored().await.len();

        for kills in [0, 1] {
            stage.host.kill();
            std::fs::write(&file, &copy).expect("it is written");
            // Longer than the window.
            tokio::time::sleep(Duration::from_millis(300)).await;
            stage.host.restart().await;
            if kills > 0 {
                // In the middle of it.
                stage
                    .waits_until("make some again", |outbox| outbox.entries > 0)
                    .await;
                stage.host.kill();
                stage.host.restart().await;
            }
            published(stage.client(), last).await;
            assert_eq!(stage.stored().await.len(), before, "{target:?}");
        }
        let last = stage.append(1, "one").await;
        published(stage.client(), last).await;
        assert_eq!(stage.stored().await.len(), before + 1, "{target:?}");
    }
}

/// A stream that has this many messages, and takes no more.
pub(crate) fn full(config: Config, max_messages: i64) -> Config {
    Config {
        max_messages,
        discard: DiscardPolicy::New,
        ..config
    }
}

#[tokio::test]
async fn no_message_is_left_out_if_a_stream_takes_cursors_after_it_refused_some() {
    let stage = Stage::start(Target::Plain(Version::Newest)).await;
    let mut sent = vec![stage.append(1, "one").await];
    published(stage.client(), sent[0]).await;
    stage.edit(full(plain(), 1)).await;
    for key in [1, 1, 2, 1, 2] {
        sent.push(stage.append(key, "one").await);
    }
    stage
        .waits_until("have all", |outbox| outbox.entries == 5)
        .await;
    let why = trouble(&stage).await;
    assert!(why.contains("maximum messages exceeded"), "{why}");
    // Until nobody knows what is stored.
    stage.swallow();
    stage
        .waits_until("be in doubt", |outbox| {
            let why = outbox.targets[0].trouble.as_deref();
            why.is_some_and(|why| !why.contains("maximum messages exceeded"))
        })
        .await;
    stage.edit(with_cursors()).await;
    stage.let_through();
    published(stage.client(), *sent.last().expect("there are some")).await;
    assert_eq!(stage.causes().await, sent);
}

#[tokio::test]
async fn withdrawn_grant_holds_back_its_key_and_no_other_on_a_stream_without_cursors() {
    let stage = Stage::start(Target::Plain(Version::Newest)).await;
    let first = stage.append(1, "one").await;
    published(stage.client(), first).await;
    stage.edit(full(plain(), 1)).await;
    let mut sent = Vec::new();
    for key in [1, 2, 1, 2] {
        sent.push(stage.append(key, "one").await);
    }
    stage
        .waits_until("have all", |outbox| outbox.entries == 4)
        .await;
    let grant = async |subjects: &str| {
        let module = guests::module(REACTOR);
        let parameters = format!("&allow-publish={subjects}%40out");
        stage
            .client()
            .deploy_with(REACTOR, &module, &parameters)
            .await;
    };
    grant("out.2.%2A").await;
    stage.edit(plain()).await;
    stage
        .waits_until("publish those of the other key", |outbox| {
            outbox.entries == 2
        })
        .await;
    assert_eq!(stage.causes().await, [first, sent[1], sent[3]]);
    grant("out.%3E").await;
    published(stage.client(), sent[3]).await;
    assert_eq!(
        stage.causes().await,
        [first, sent[1], sent[3], sent[0], sent[2]]
    );
}
