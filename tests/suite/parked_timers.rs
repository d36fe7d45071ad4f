//! Timers of parked keys: their firings wait in the order of the key, and each fires once.

use std::collections::BTreeMap;
use std::time::Duration;

use foldstream::api;
use foldstream_tests::cli::{self, Output};
use foldstream_tests::host::Host;
use foldstream_tests::{guests, wait};
use serde_json::{Value, json};

const ALARM: &str = "alarm";
const BOOKING: &str = "booking";
/// Later than any test lasts.
const LATER_MS: u64 = 3_600_000;
/// Longer than the longest pause before a timer whose firing did nothing fires again for the third
/// time.
const A_WHILE: Duration = Duration::from_millis(1_500);

fn told(subject: &str, data: &Value) -> api::NewEvent {
    serde_json::from_value(json!({ "subject": subject, "data": data })).expect("an event")
}

/// A host with a handler that sets timers, and parks.
struct Bed {
    host: Host,
    name: &'static str,
}

impl Bed {
    async fn alarm() -> Self {
        Self::start(ALARM, "rang.%3E%40events").await
    }

    async fn start(name: &'static str, grant: &str) -> Self {
        let host = Host::start_with("").await;
        let parameters = format!("&on-failure=park&allow-publish={grant}");
        host.client()
            .deploy_with(name, &guests::module(name), &parameters)
            .await;
        Self { host, name }
    }

    fn run(&self, line: &str) -> Output {
        cli::on(&self.host, &line.split(' ').collect::<Vec<_>>())
    }

    async fn deploy_fixed(&self) {
        let module = guests::module(&format!("{}-fixed", self.name));
        self.host
            .client()
            .deploy_with(self.name, &module, "&strategy=inherit")
            .await;
    }

    /// Asks the alarm: key, verb, name and milliseconds.
    async fn ask(&self, asked: &[(&str, &str, &str, u64)]) {
        let events: Vec<_> = asked
            .iter()
            .map(|(key, verb, name, after_ms)| {
                let data = json!({ "name": name, "after_ms": after_ms });
                told(&format!("alarm.{key}.{verb}"), &data)
            })
            .collect();
        self.host.client().append(&events).await;
    }

    /// Events under a pattern, in order.
    async fn stored(&self, pattern: &str) -> Vec<Value> {
        let path = format!("/v1/events?source=events&limit=1000&subject={pattern}");
        let page = self.host.client().get(&path).await.expect(200).value();
        page["events"].as_array().expect("a list").clone()
    }

    /// The subjects of what was published, in order, once there are as many as wanted.
    async fn published(&self, pattern: &str, wanted: usize) -> Vec<String> {
        let found = wait::until("messages to be published", async || {
            let found = self.stored(pattern).await;
            (found.len() >= wanted).then_some(found)
        });
        let subject = |event: &Value| event["subject"].as_str().expect("a subject").to_owned();
        found.await.iter().map(subject).collect()
    }

    async fn firings(&self) -> usize {
        self.stored("_fs.timers.%3E").await.len()
    }

    /// Waits until this many events are parked.
    async fn parks(&self, events: u64) {
        self.host
            .client()
            .show_when(self.name, "park events", |shown| {
                shown.parked.events == events
            })
            .await;
    }

    /// Waits until this many timers are pending.
    async fn pending(&self, wanted: u64) {
        let has = |shown: &api::Deployment| {
            let timers = shown.timers.as_ref();
            timers.is_some_and(|timers| timers.pending == wanted)
        };
        let client = self.host.client();
        client.show_when(self.name, "have timers", has).await;
    }

    fn verify(&self) {
        self.run(&format!("verify {} --seed 7", self.name))
            .expect(0);
    }
}

#[tokio::test]
async fn a_firing_waits_behind_parked_events_of_its_key_and_fires_once_they_are_retried() {
    let mut bed = Bed::alarm().await;
    bed.ask(&[
        ("ada", "set", "tea", 400),
        ("ada", "ill-set", "late", 0),
        ("bob", "set", "tea", 400),
    ])
    .await;
    assert_eq!(bed.published("rang.%3E", 1).await, ["rang.bob.tea"]);
    bed.parks(2).await;
    let list = bed.run("parked show alarm ada").expect(0).stdout;
    assert!(
        list.contains("a mistake in the code") && list.contains("_fs.timers.alarm"),
        "{list}"
    );
    // Its timer stays pending, and no other firing is published for it; also after a restart.
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(bed.firings().await, 2);
    bed.host.kill();
    bed.host.restart().await;
    bed.ask(&[("bob", "set", "more", 10)]).await;
    assert_eq!(bed.published("rang.%3E", 2).await[1], "rang.bob.more");
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(bed.firings().await, 3);
    bed.parks(2).await;
    bed.pending(1).await;
    bed.verify();
    bed.deploy_fixed().await;
    let would = bed.run("parked retry alarm ada --dry-run").expect(0).stdout;
    assert!(would.contains("would have applied 2 events"), "{would}");
    bed.run("parked retry alarm --all").expect(0);
    // What was set when it was parked fires now, and what waited has fired in its turn.
    let rang = bed.published("rang.ada.%3E", 2).await;
    assert_eq!(rang, ["rang.ada.tea", "rang.ada.late"]);
    bed.pending(0).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(bed.published("rang.%3E", 4).await.len(), 4);
    bed.verify();
}

#[tokio::test]
async fn a_released_event_cancels_or_moves_the_timer_whose_firing_waited_behind_it() {
    let bed = Bed::alarm().await;
    bed.ask(&[
        ("ada", "set", "tea", 300),
        ("ada", "ill-cancel", "tea", 0),
        ("bob", "set", "tea", 300),
        ("bob", "ill-set", "tea", LATER_MS),
        ("cid", "set", "tea", 300),
    ])
    .await;
    assert_eq!(bed.published("rang.%3E", 1).await, ["rang.cid.tea"]);
    bed.parks(4).await;
    bed.deploy_fixed().await;
    bed.run("parked retry alarm --all").expect(0);
    bed.pending(1).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(bed.published("rang.%3E", 1).await, ["rang.cid.tea"]);
    bed.verify();
}

#[tokio::test]
async fn a_firing_that_fails_is_parked_and_can_be_retried_or_dropped() {
    let bed = Bed::alarm().await;
    bed.ask(&[
        ("ada", "set", "fails-once", 0),
        ("bob", "set", "fails-always", 0),
        ("cid", "set", "fine", 100),
    ])
    .await;
    assert_eq!(bed.published("rang.%3E", 1).await, ["rang.cid.fine"]);
    bed.parks(2).await;
    bed.pending(2).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("ada.json").display().to_string();
    bed.run(&format!("parked export alarm ada -f {file}"))
        .expect(0);
    let replayed = cli::run(&["replay", &file]).expect(0);
    assert!(
        replayed.stdout.contains("it was asked to fail") && replayed.stderr.contains("reproduced"),
        "{replayed:?}"
    );
    let fixed = guests::path("alarm-fixed").display().to_string();
    let replayed = cli::run(&["replay", &file, "--module", &fixed]).expect(0);
    assert!(
        replayed.stdout.contains("_fs.timers.alarm: applied")
            && replayed.stdout.contains("+ rang/"),
        "{replayed:?}"
    );
    bed.run("parked retry alarm ada").expect(1);
    bed.deploy_fixed().await;
    bed.run("parked retry alarm --all").expect(1);
    bed.pending(1).await;
    bed.run("parked drop alarm bob --reason useless").expect(0);
    bed.pending(0).await;
    tokio::time::sleep(A_WHILE).await;
    let rang = bed.published("rang.%3E", 2).await;
    assert_eq!(rang, ["rang.cid.fine", "rang.ada.fails-once"]);
    assert_eq!(bed.firings().await, 3);
    bed.verify();
}

#[tokio::test]
async fn a_firing_is_dropped_where_it_was_dropped_when_the_stream_is_folded_again() {
    let bed = Bed::alarm().await;
    // The released event sets the timer again, for a time that the firing has reached.
    bed.ask(&[
        ("ada", "set", "fails-always", 300),
        ("ada", "ill-set", "fails-always", 0),
    ])
    .await;
    bed.parks(2).await;
    bed.deploy_fixed().await;
    bed.run("parked retry alarm ada").expect(1);
    bed.parks(1).await;
    bed.pending(1).await;
    bed.run("parked drop alarm ada --reason useless").expect(0);
    bed.pending(0).await;
    bed.ask(&[("bob", "set", "fine", 0)]).await;
    assert_eq!(bed.published("rang.%3E", 1).await, ["rang.bob.fine"]);
    bed.verify();
}

#[tokio::test]
async fn a_saga_whose_step_fails_parks_and_completes_once_newer_code_retries_it() {
    let grants = [
        "room.*.book",
        "room.*.cancel",
        "flight.*.book",
        "trips.*.booked",
    ]
    .map(|subject| format!("{subject}%40events"))
    .join("%2C");
    let mut bed = Bed::start(BOOKING, &grants).await;
    let client = bed.host.client();
    let wanted = |key: &str| told(&format!("trips.{key}.wanted"), &json!({}));
    let room = |key: &str, data: &Value| told(&format!("room.{key}.booked"), data);
    client.append(&[wanted("1"), wanted("2")]).await;
    bed.published("room.*.book", 2).await;
    client
        .append(&[
            room("1", &json!({ "number": 7 })),
            room("2", &json!({ "room": "a" })),
        ])
        .await;
    bed.published("flight.*.book", 1).await;
    // The time-out of the room passes while its answer is parked, and waits behind it.
    bed.parks(2).await;
    bed.host.kill();
    bed.host.restart().await;
    let client = bed.host.client();
    let flight = |key: &str| told(&format!("flight.{key}.booked"), &json!({}));
    client.append(&[flight("2")]).await;
    bed.published("trips.*.booked", 1).await;
    tokio::time::sleep(A_WHILE).await;
    bed.parks(2).await;
    let module = guests::path("booking-fixed").display().to_string();
    let words = ["deploy", &module, "--strategy", "inherit", "--retry-parked"];
    cli::on(&bed.host, &words).expect(0);
    bed.parks(0).await;
    bed.published("flight.*.book", 2).await;
    bed.host.client().append(&[flight("1")]).await;
    bed.published("trips.*.booked", 2).await;
    bed.pending(0).await;
    // Each command once: no attempt was repeated because of the time that was parked.
    let mut stories: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for event in bed.stored("%3E").await {
        let subject = event["subject"].as_str().expect("a subject");
        if let [what, key, verb] = subject.split('.').collect::<Vec<_>>()[..] {
            let story = stories.entry(key.to_owned()).or_default();
            story.push(format!("{what} {verb}"));
        }
    }
    let story = [
        "trips wanted",
        "room book",
        "room booked",
        "flight book",
        "flight booked",
        "trips booked",
    ];
    assert_eq!(
        (&stories["1"][..], &stories["2"][..]),
        (&story.map(str::to_owned)[..], &story.map(str::to_owned)[..])
    );
    let shown = bed.host.client().show(BOOKING).await;
    assert_eq!(shown.sagas[0].ended["completed"], 2, "{:?}", shown.sagas);
    bed.verify();
}
