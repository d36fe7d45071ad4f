//! Sagas and migrations in every language that has them: one saga publishes, sets and stores the
//! same, and state passes from one version to the next, and from one language to another.

use foldstream::api::{
    DeployOutcome, Deployment, Entry, GenerationStatus, NewEvent, PendingTimers, SagaInstances,
    WaitingMessages,
};
use foldstream_tests::client::Client;
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::{cli, guests, reactor, root, wait};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::languages::module;
use crate::sagas::GRANTED;

/// The Rust example, its name in the other SDKs, and its deployment.
const SAGA: &str = "saga-orchestrated";
/// The languages besides Rust, as folders of their examples and guests.
const EXAMPLES: [&str; 3] = ["typescript/examples", "python/examples", "go/examples"];
const GUESTS: [&str; 3] = [
    "typescript/test/guests",
    "python/tests/guests",
    "go/tests/guests",
];
/// How each of them refuses what its migration leaves to be done later.
const LATER: [&str; 3] = [
    "what follows would never run",
    "was never awaited; nothing here waits for it",
    "a goroutine is still running, and nothing here waits for it",
];
/// What happens to orders, one after the other: none of them waits for a time.
const STORIES: [(&str, &[&str]); 14] = [
    ("done", &["charged", "reserved", "sent"]),
    ("declined", &["declined"]),
    ("sold-out", &["charged", "out-of-stock", "refunded"]),
    (
        "nowhere",
        &["charged", "reserved", "refused", "released", "refunded"],
    ),
    (
        "twice",
        &[
            "placed", "charged", "charged", "reserved", "reserved", "sent", "sent",
        ],
    ),
    ("cancelled", &["cancelled", "refunded", "cancelled"]),
    ("pivot", &["charged", "reserved", "cancelled", "sent"]),
    (
        "early",
        &["sent", "released", "charged", "reserved", "sent"],
    ),
    (
        "busy",
        &["unavailable", "unavailable", "charged", "reserved", "sent"],
    ),
    ("late", &["charged", "declined", "out-of-stock", "refunded"]),
    ("after-all", &["declined", "charged", "skip", "refunded"]),
    ("resumed", &["declined", "charged", "resume", "refunded"]),
    ("ключ", &["declined"]),
    ("50%\"", &["declined"]),
];

/// An event about an order: who says what follows from the word.
fn happens(order: &str, what: &str, time: Option<Timestamp>) -> NewEvent {
    let by = match what {
        "charged" | "declined" | "unavailable" | "refunded" => "payment",
        "reserved" | "out-of-stock" | "released" => "stock",
        "sent" | "refused" => "shipping",
        _ => "orders",
    };
    let data = match what {
        "placed" => json!({
            "cents": 4_200, "item": "lämp 🦀", "card": "\"\\\u{1}", "address": "", "more": [1],
        }),
        "charged" => json!({ "payment": format!("p-{order}") }),
        _ => json!({}),
    };
    let subject = format!("{by}.{order}.{what}");
    let event =
        json!({"subject": subject, "data": data, "time": time.map(|time| time.to_string())});
    serde_json::from_value(event).expect("an event")
}

/// What one module did: everything that must not depend on its language. Events have the times from
/// `base` on, which is long enough ago for their time-outs to be over, and not for the end of a saga
/// to be forgotten.
async fn done(module: &[u8], base: Timestamp) -> Value {
    let server = NatsServer::start().await;
    let mut config = nats::stream_config("OUT", "orders.>");
    let others = ["payment.>", "stock.>", "shipping.>"];
    config.subjects.extend(others.map(str::to_owned));
    nats::create_stream_with(&server.jetstream().await, config).await;
    let host = reactor::host_with_stream(&server.url(), "").await;
    let client = host.client();
    let grants = GRANTED.map(|subject| format!("{subject}%40out")).join(",");
    let grants = format!("&source=events&allow-publish={grants}");
    client.deploy_with(SAGA, module, &grants).await;

    let mut events = vec![happens("unknown", "charged", Some(base))];
    for (order, story) in STORIES {
        let whole = std::iter::once(&"placed").chain(story);
        events.extend(whole.map(|what| happens(order, what, Some(base))));
    }
    // Nobody answers these: all their time-outs follow each other, up to an operator.
    let late = base + SignedDuration::from_micros(1_000_001);
    let silent = ["silent-1", "silent-2", "silent-3"];
    events.extend(silent.map(|order| happens(order, "placed", Some(late))));
    client.append(&events).await;
    wait::until("the silent ones to get stuck", async || {
        let path = format!("/v1/deployments/{SAGA}/sagas?status=stuck");
        // Its state may not be open yet.
        let answer = client.get(&path).await;
        let listed: Option<SagaInstances> = (answer.status == 200).then(|| answer.json());
        (listed?.instances.len() == silent.len()).then_some(())
    })
    .await;
    let stuck = seen(client, &server, base).await;
    let answers = [
        ("silent-1", "refunded"),
        ("silent-1", "charged"),
        ("silent-2", "charged"),
        ("silent-2", "resume"),
        ("silent-2", "refunded"),
        ("silent-3", "skip"),
        ("silent-3", "skip"),
    ];
    let answers = answers.map(|(order, what)| happens(order, what, None));
    let last = client.append(&answers).await.last_sequence;
    settled(client, SAGA, last).await;
    let mut ended = seen(client, &server, base).await;

    let long = "k".repeat(500);
    for (number, (order, what, data)) in [
        ("bad", "placed", json!({"cents": "many"})),
        ("bad", "placed", json!([])),
        ("done-2", "charged", json!({"payment": 1})),
        (&*long, "placed", json!({})),
    ]
    .into_iter()
    .enumerate()
    {
        let failing = NewEvent {
            data,
            ..happens(order, what, None)
        };
        let events = [happens("done-2", "placed", None), failing];
        let sequence = client.append(&events).await.last_sequence;
        let (_, failure) = client.failed(SAGA).await;
        assert_eq!(failure.sequence, Some(sequence), "{failure:?}");
        ended["failures"][number.to_string()] = json!([failure.class, failure.attempts]);
        let skip = sequence.to_string();
        cli::on(
            &host,
            &["resume", SAGA, "--skip", &skip, "--reason", "a test"],
        )
        .expect(0);
        settled(client, SAGA, sequence).await;
    }
    json!({ "stuck": stuck, "ended": ended })
}

/// Waits until everything has left that does not wait for a time or an operator.
async fn settled(client: &Client, name: &str, sequence: u64) {
    let condition = |shown: &Deployment| {
        let outbox = shown.outbox.as_ref();
        shown.position >= sequence
            && outbox.is_some_and(|outbox| outbox.entries == outbox.delayed + outbox.conflicts)
    };
    client.show_when(name, "settle", condition).await;
}

/// Messages, timers, the stored bytes and what the API lists, without what differs from host to host.
async fn seen(client: &Client, server: &NatsServer, base: Timestamp) -> Value {
    let shown = client.show(SAGA).await;
    let lineage = shown.outbox.expect("it is a handler").lineage;
    let alike = |text: &str| without_clock(text, base).replace(&lineage, "LINEAGE");
    settled(client, SAGA, shown.position).await;
    let stored = reactor::messages(&server.jetstream().await, "OUT").await;
    let messages = stored
        .iter()
        .filter(|message| !reactor::is_cursor(&message.subject));
    let mut messages: Vec<_> = messages
        .map(|message| {
            let headers = message.headers.iter();
            let mut headers: Vec<_> = headers
                .filter(|(name, _)| !name.to_string().eq_ignore_ascii_case("ce-time"))
                .map(|(name, values)| format!("{name}: {}", alike(values[0].as_str())))
                .collect();
            headers.sort();
            let payload = String::from_utf8_lossy(&message.payload).into_owned();
            json!([message.subject.as_str(), headers, payload])
        })
        .collect();
    // Those of different keys leave in any order.
    messages.sort_by_key(ToString::to_string);
    let path = format!("/v1/deployments/{SAGA}/timers?limit=1000");
    let timers: PendingTimers = client.get(&path).await.expect(200).json();
    let timers = timers.timers.into_iter();
    let timers: Vec<_> = timers
        .map(|timer| json!([timer.name, timer.set_by, timer.key]))
        .collect();
    let mut entries = Vec::new();
    for entry in client.entries(SAGA, "").await {
        // In a path, a percent sign is what escapes.
        let path = entry.key.replace('%', "%25");
        let body = client.entry(SAGA, &path).await.expect(200).text();
        entries.push(json!([alike(&entry.key), alike(&body)]));
    }
    let mut listed = Vec::new();
    for status in [
        "running",
        "compensating",
        "stuck",
        "completed",
        "compensated",
    ] {
        let path = format!("/v1/deployments/{SAGA}/sagas?status={status}&limit=1000");
        listed.push(alike(&client.get(&path).await.expect(200).text()));
    }
    json!({ "messages": messages, "timers": timers, "entries": entries, "listed": listed })
}

/// A text without the times that come from the clock of a host: those of firings, and what follows
/// from them.
fn without_clock(text: &str, base: Timestamp) -> String {
    const FORM: &str = "2026-11-23T14:05:06.123456789Z";
    let begin = format!("{:.9}", base + SignedDuration::from_mins(50));
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let time = rest
            .get(..FORM.len())
            .filter(|time| time.ends_with('Z') && time.parse::<Timestamp>().is_ok());
        // Tomorrow, an instance is removed: that is known from its end.
        let is_of_clock = time.is_some_and(|time| time > begin.as_str());
        let (piece, length) = match time {
            Some(time) if !is_of_clock => (time, FORM.len()),
            Some(_) => ("CLOCK", FORM.len()),
            None => (&rest[..next.len_utf8()], next.len_utf8()),
        };
        shown.push_str(piece);
        rest = &rest[length..];
    }
    shown
}

#[tokio::test]
async fn a_saga_publishes_sets_and_stores_the_same_in_every_language() {
    // A whole microsecond: JavaScript meets times no more exactly.
    let base = Timestamp::from_second(Timestamp::now().as_second() - 3_600).expect("a time");
    let base = base + SignedDuration::from_micros(123_456);
    let wanted = done(&guests::module(SAGA), base).await;
    let count = |place: &str| {
        wanted
            .pointer(place)
            .and_then(Value::as_array)
            .map(Vec::len)
    };
    // Each of the stories has an instance and a place in the index; a count has all.
    let instances = STORIES.len() + 3;
    assert_eq!(
        count("/ended/entries"),
        Some(2 * instances + 1),
        "{wanted:#}"
    );
    assert_eq!(count("/ended/timers"), Some(instances), "{wanted:#}");
    assert!(count("/ended/messages") > Some(60), "{wanted:#}");
    for language in EXAMPLES {
        let module = module(&format!("{language}/{SAGA}"));
        let found = done(&module, base).await;
        assert_eq!(found, wanted, "{language}: {found:#}\n{wanted:#}");
    }
}

#[test]
fn a_saga_of_any_language_plays_the_scenarios_of_the_example() {
    let example = guests::folder(SAGA).join("scenarios.yaml");
    // With the stored form to the byte, and times as the stream has them.
    let exact = root().join("guest-sdk/conformance/sagas.yaml");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut modules = vec![guests::path(SAGA)];
    for language in EXAMPLES {
        let path = folder.path().join(language.replace('/', "-") + ".wasm");
        std::fs::write(&path, module(&format!("{language}/{SAGA}"))).expect("written");
        modules.push(path);
    }
    let scenarios = [&example, &exact].map(|file| {
        let text = std::fs::read_to_string(file).expect("it is there");
        text.matches("\n  - name: ").count()
    });
    let all = format!("{} passed, 0 failed", scenarios.iter().sum::<usize>());
    for module in modules {
        let files = [&module, &example, &exact].map(|file| file.display().to_string());
        let played = cli::run(&["test", &files[0], &files[1], &files[2]]).expect(0);
        assert!(played.stdout.contains(&all), "{all}: {played:?}");
    }
}

/// Waits until the only instance is stuck for the `count`th time; it must have met all its timers.
async fn stuck_again(client: &Client, count: usize) {
    let instance = wait::until("it to be stuck again", async || {
        let entry = client.entry(SAGA, "saga/order-fulfilment/1").await;
        let instance = (entry.status == 200).then(|| entry.value())?;
        let notes = instance["history"].as_array()?.iter();
        let is_stuck = |note: &&Value| {
            note["what"]
                .as_str()
                .is_some_and(|what| what.starts_with("stuck"))
        };
        let is_all = instance["status"] == "stuck" && notes.filter(is_stuck).count() == count;
        is_all.then_some(instance)
    })
    .await;
    let counts = client.entry(SAGA, "saga-count/order-fulfilment").await;
    assert_eq!(
        counts.expect(200).value()["ignored"],
        json!({}),
        "{instance:#}"
    );
}

#[tokio::test]
async fn an_instance_continues_with_its_timer_in_another_language() {
    let host = Host::start().await;
    let client = host.client();
    let grants = GRANTED
        .map(|subject| format!("{subject}%40events"))
        .join(",");
    let grants = format!("&allow-publish={grants}");
    let rust = guests::module(SAGA);
    let others = EXAMPLES.map(|language| module(&format!("{language}/{SAGA}")));
    // Compiled before, so that each takes over before the next time-out.
    for (number, other) in others.iter().enumerate() {
        client.deploy(&format!("compiled-{number}"), other).await;
    }
    client.deploy_with(SAGA, &rust, &grants).await;
    client.append(&[happens("1", "placed", None)]).await;
    let mut count = 0;
    for other in &others {
        for next in [other, &rust] {
            // It has a timer that the code before has set, for the next 3 s.
            let deployed = client.deploy_with(SAGA, next, "").await;
            assert_eq!(deployed.outcome, DeployOutcome::Inherited);
            count += 1;
            stuck_again(client, count).await;
            client.append(&[happens("1", "resume", None)]).await;
        }
    }
}

/// The entries of a deployment.
async fn entries(client: &Client, name: &str) -> Vec<(String, Value)> {
    let entries = client.entries(name, "").await.into_iter();
    let plain = |Entry { key, value, .. }| (key, value);
    entries.map(plain).collect()
}

fn visit(page: &str) -> NewEvent {
    serde_json::from_value(json!({"subject": format!("visits.{page}"), "data": {}})).expect("sound")
}

#[tokio::test]
async fn a_projection_migrates_the_state_of_an_older_version_in_any_language() {
    for (language, later) in GUESTS.into_iter().zip(LATER) {
        let host = Host::start().await;
        let client = host.client();
        let pages = ["home", "a%2F", "ключ", "home"];
        client.append(&pages.map(visit)).await;
        client.deploy("visits", &guests::module("starter")).await;
        client.reached("visits", 4).await;
        let next = module(&format!("{language}/visits-next"));
        let deployed = client
            .deploy_with("visits", &next, "&strategy=migrate")
            .await;
        assert_eq!(deployed.outcome, DeployOutcome::Migrating, "{language}");
        client.becomes("visits", 2, GenerationStatus::Active).await;
        let last = client.append(&pages.map(visit)).await.last_sequence;
        client.reached("visits", last).await;
        client.deploy("folded", &next).await;
        client.reached("folded", last).await;
        let migrated = entries(client, "visits").await;
        assert_eq!(migrated, entries(client, "folded").await, "{language}");
        assert_eq!(migrated.len(), 3, "{language}");

        // What it can't convert ends the migration, and the older version continues. So does what would
        // be done later; that page comes first in the order of the keys.
        let odd = "nobody knows what to do with this page";
        for (page, told) in [("odd", odd), ("late", later)] {
            let name = format!("refused-{page}");
            let last = client.append(&[visit(page)]).await.last_sequence;
            client.deploy(&name, &guests::module("starter")).await;
            client.reached(&name, last).await;
            client.deploy_with(&name, &next, "&strategy=migrate").await;
            let failed = client.becomes(&name, 2, GenerationStatus::Failed).await;
            assert!(failed.reason.contains(told), "{language}: {failed:?}");
            let last = client.append(&[visit("home")]).await.last_sequence;
            client.reached(&name, last).await;
            assert_eq!(client.show(&name).await.generation, 1, "{language}");
        }
    }
}

/// The subjects of the messages that the stream `OUT` has, in order.
async fn sent(server: &NatsServer) -> Vec<String> {
    let stored = reactor::messages(&server.jetstream().await, "OUT").await;
    let subjects = stored.iter().map(|message| message.subject.to_string());
    subjects
        .filter(|subject| !reactor::is_cursor(subject))
        .collect()
}

#[tokio::test]
async fn a_handler_migrates_in_any_language_and_keeps_its_timers_and_messages() {
    const ANSWERS: &str = "answers";
    for language in GUESTS {
        let server = NatsServer::start().await;
        let config = nats::stream_config("OUT", "out.>");
        nats::create_stream_with(&server.jetstream().await, config).await;
        let host = reactor::host_with_stream(&server.url(), "").await;
        let client = host.client();
        let grants = "&source=events&allow-publish=out.%3E%40out,_INBOX.%3E%40out";
        client
            .deploy_with(ANSWERS, &guests::module(ANSWERS), grants)
            .await;
        let asks = |key: &str, what: &str| -> NewEvent {
            let event = json!({"subject": format!("in.{key}.{what}"), "data": {}});
            serde_json::from_value(event).expect("an event")
        };
        // Three messages, one that waits for tomorrow, and per timer of two one that fires at once.
        let events = [
            ("a", "three"),
            ("a", "later"),
            ("a", "timer"),
            ("b", "timer"),
        ];
        let events = events.map(|(key, what)| asks(key, what));
        let last = client.append(&events).await.last_sequence;
        settled(client, ANSWERS, last + 2).await;
        let mut messages = sent(&server).await;

        let next = module(&format!("{language}/answers-next"));
        let deployed = client
            .deploy_with(ANSWERS, &next, "&strategy=migrate")
            .await;
        assert_eq!(deployed.outcome, DeployOutcome::Migrating, "{language}");
        client.becomes(ANSWERS, 2, GenerationStatus::Active).await;
        let last = client.append(&[asks("b", "next")]).await.last_sequence;
        settled(client, ANSWERS, last).await;
        let wanted = [("a", 3), ("b", 2), ("timers", 2)];
        let wanted = wanted.map(|(key, count)| (format!("seen/{key}"), json!({ "events": count })));
        assert_eq!(entries(client, ANSWERS).await, wanted, "{language}");
        let path = |what: &str| format!("/v1/deployments/{ANSWERS}/{what}?limit=1000");
        let timers: PendingTimers = client.get(&path("timers")).await.expect(200).json();
        let [timer] = &timers.timers[..] else {
            panic!("{language}: b's was cancelled: {timers:?}")
        };
        assert_eq!(timer.name, "later/a", "{language}");
        let waiting: WaitingMessages = client.get(&path("outbox")).await.expect(200).json();
        assert_eq!(waiting.messages.len(), 1, "{language}: {waiting:?}");
        // No message of the older version again.
        messages.push("out.b.next".to_owned());
        assert_eq!(sent(&server).await, messages, "{language}");
    }
}
