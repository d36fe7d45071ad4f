//! Timers and sagas of parked keys: firings wait in the order of their key, and each fires once,
//! whatever code and state take over meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use foldstream::api::{self, GenerationStatus};
use foldstream_tests::cli::{self, Output};
use foldstream_tests::events::new_event;
use foldstream_tests::host::{Host, jetstream_source};
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::stage::Kind;
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
    new_event(subject, data.clone())
}

on_both_sources!(
    a_firing_waits_behind_parked_events_of_its_key_and_fires_once_they_are_retried,
    a_released_event_cancels_or_moves_the_timer_whose_firing_waited_behind_it,
    a_firing_that_fails_is_parked_and_can_be_retried_or_dropped,
    a_firing_is_dropped_where_it_was_dropped_when_the_stream_is_folded_again,
    code_that_inherits_and_code_before_it_keep_what_is_parked_and_each_timer_fires_once,
    code_that_is_put_back_keeps_parked_firings_and_fires_what_the_other_code_set,
    a_rebuilt_state_takes_over_once_nothing_is_parked_with_every_timer_in_it,
    killed_again_and_again_around_retries_and_rollouts_each_timer_fires_once,
);

/// A host with a handler that sets timers, and parks.
struct Bed {
    host: Host,
    name: &'static str,
    /// On JetStream.
    server: Option<NatsServer>,
}

impl Bed {
    async fn alarm(kind: Kind) -> Self {
        Self::alarm_of(kind, ALARM).await
    }

    /// The same with other code.
    async fn alarm_of(kind: Kind, guest: &str) -> Self {
        match kind {
            Kind::Embedded => {
                let host = Host::start().await;
                Self::deployed((host, None), ALARM, guest, "rang.%3E%40events").await
            }
            Kind::JetStream => {
                let server = NatsServer::start().await;
                // Its window is shorter than any pause here, so it recognises nothing.
                let config = async_nats::jetstream::stream::Config {
                    subjects: ["alarm.>", "rang.>", "_fs.timers.>"]
                        .map(str::to_owned)
                        .to_vec(),
                    duplicate_window: Duration::from_millis(100),
                    ..nats::stream_config("ALARMS", "alarm.>")
                };
                nats::create_stream_with(&server.jetstream().await, config).await;
                let source = jetstream_source(&server.url(), "ALARMS");
                let host = Host::start_with(&source).await;
                Self::deployed((host, Some(server)), ALARM, guest, "rang.%3E%40orders").await
            }
        }
    }

    async fn start(name: &'static str, grant: &str) -> Self {
        Self::deployed((Host::start().await, None), name, name, grant).await
    }

    async fn deployed(
        (host, server): (Host, Option<NatsServer>),
        name: &'static str,
        guest: &str,
        grant: &str,
    ) -> Self {
        let parameters = format!("&on-failure=park&allow-publish={grant}");
        host.client()
            .deploy_with(name, &guests::module(guest), &parameters)
            .await;
        Self { host, name, server }
    }

    fn run(&self, line: &str) -> Output {
        cli::on(&self.host, &line.split(' ').collect::<Vec<_>>())
    }

    async fn deploy_fixed(&self) -> u64 {
        self.deploy(&format!("{}-fixed", self.name)).await
    }

    /// Deploys code that inherits; the number of its generation.
    async fn deploy(&self, guest: &str) -> u64 {
        let module = guests::module(guest);
        let client = self.host.client();
        let deployed = client.deploy_with(self.name, &module, "&strategy=inherit");
        deployed.await.generation
    }

    /// Makes the generation before active again, as soon as that is possible.
    async fn roll_back(&self) {
        wait::until("a rollback", async || {
            let answer = self.host.client().act(self.name, "rollback").await;
            answer.status.is_success().then_some(())
        })
        .await;
    }

    /// How often each timer rang.
    async fn rang(&self) -> BTreeMap<String, u32> {
        let mut rang = BTreeMap::new();
        for event in self.stored("rang.%3E").await {
            let subject = event["subject"].as_str().expect("a subject");
            *rang.entry(subject.to_owned()).or_default() += 1;
        }
        rang
    }

    /// Each of these timers rang once, and no other one, and none does after a while.
    async fn assert_rang_once(&self, names: &[&str]) {
        let wanted: BTreeMap<String, u32> = names
            .iter()
            .map(|name| (format!("rang.{name}"), 1))
            .collect();
        wait::until("the timers to ring", async || {
            (self.rang().await.len() >= wanted.len()).then_some(())
        })
        .await;
        tokio::time::sleep(A_WHILE).await;
        assert_eq!(self.rang().await, wanted);
    }

    /// Asks the alarm: key, verb, name and milliseconds.
    async fn ask(&self, asked: &[(&str, &str, &str, u64)]) {
        let events = asked.iter().map(|(key, verb, name, after_ms)| {
            let data = json!({ "name": name, "after_ms": after_ms });
            (format!("alarm.{key}.{verb}"), data)
        });
        match &self.server {
            Some(server) => {
                let messages = events.map(|(subject, data)| (subject, data.to_string().into()));
                nats::publish(&server.jetstream().await, messages).await;
            }
            None => {
                let events: Vec<_> = events
                    .map(|(subject, data)| told(&subject, &data))
                    .collect();
                self.host.client().append(&events).await;
            }
        }
    }

    /// Events under a pattern, in order.
    async fn stored(&self, pattern: &str) -> Vec<Value> {
        let source = if self.server.is_some() {
            "orders"
        } else {
            "events"
        };
        let path = format!("/v1/events?source={source}&limit=1000&subject={pattern}");
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

async fn a_firing_waits_behind_parked_events_of_its_key_and_fires_once_they_are_retried(
    kind: Kind,
) {
    let mut bed = Bed::alarm(kind).await;
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
async fn what_is_decided_for_another_deployment_of_that_name_does_not_wait_with_a_parked_key() {
    let bed = Bed::alarm(Kind::Embedded).await;
    bed.ask(&[
        ("ada", "set", "tea", LATER_MS),
        ("ada", "ill-set", "late", 0),
    ])
    .await;
    bed.parks(1).await;
    let client = bed.host.client();
    let at = wait::until("the timer to be durable", async || {
        let page = client.get("/v1/deployments/alarm/timers").await.expect(200);
        let page: api::PendingTimers = page.json();
        page.timers.first().map(|timer| timer.at.clone())
    });
    let at: jiff::Timestamp = at.await.parse().expect("a time");
    let drop = |lineage: &str| {
        let at = at.as_nanosecond() as u64;
        let data = json!({ "drop": "ada/tea", "at": at, "key": "ada", "lineage": lineage });
        told("_fs.timers.alarm", &data)
    };
    client
        .append(&[drop("0000000000000001"), drop("nonsense")])
        .await;
    bed.ask(&[("bob", "set", "more", 10)]).await;
    assert_eq!(bed.published("rang.%3E", 1).await, ["rang.bob.more"]);
    // Nonsense has no key, so it waits for nobody either.
    bed.parks(1).await;
    bed.pending(1).await;
    // A firing that waited would be the reason to refuse this.
    bed.run("timers fire alarm ada/tea --dry-run").expect(0);
    bed.verify();
}

async fn a_released_event_cancels_or_moves_the_timer_whose_firing_waited_behind_it(kind: Kind) {
    let bed = Bed::alarm(kind).await;
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

async fn a_firing_that_fails_is_parked_and_can_be_retried_or_dropped(kind: Kind) {
    let bed = Bed::alarm(kind).await;
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

async fn a_firing_is_dropped_where_it_was_dropped_when_the_stream_is_folded_again(kind: Kind) {
    let bed = Bed::alarm(kind).await;
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

/// What is parked: a timer whose firing waits, one whose firing failed, and one behind both.
async fn park(bed: &Bed) {
    bed.ask(&[
        ("ada", "set", "tea", 300),
        ("ada", "ill-set", "late", 0),
        ("bob", "set", "fails-once", 0),
        ("cid", "set", "wine", 300),
        ("cid", "ill-cancel", "nothing", 0),
        ("dan", "set", "fine", 300),
    ])
    .await;
    assert_eq!(bed.published("rang.%3E", 1).await, ["rang.dan.fine"]);
    bed.parks(5).await;
    bed.pending(3).await;
}

async fn code_that_inherits_and_code_before_it_keep_what_is_parked_and_each_timer_fires_once(
    kind: Kind,
) {
    let mut bed = Bed::alarm(kind).await;
    park(&bed).await;
    // Its firing comes before whatever an operator decides about the timer now.
    for line in ["timers fire alarm ada/tea", "timers drop alarm cid/wine"] {
        let refused = bed.run(line);
        assert!(
            refused.code != 0 && refused.stderr.contains("foldstream parked"),
            "{refused:?}"
        );
    }
    bed.deploy_fixed().await;
    tokio::time::sleep(A_WHILE).await;
    bed.parks(5).await;
    bed.roll_back().await;
    bed.host.kill();
    bed.host.restart().await;
    bed.parks(5).await;
    // The code before still fails; the one after does not.
    bed.run("parked retry alarm ada").expect(1);
    bed.deploy_fixed().await;
    bed.pending(3).await;
    assert_eq!(bed.firings().await, 4, "one for each timer");
    bed.run("parked drop alarm cid --whole-keys --reason useless")
        .expect(0);
    bed.run("parked retry alarm --all").expect(0);
    bed.assert_rang_once(&["ada.late", "ada.tea", "bob.fails-once", "dan.fine"])
        .await;
    bed.pending(0).await;
    bed.verify();
}

async fn code_that_is_put_back_keeps_parked_firings_and_fires_what_the_other_code_set(kind: Kind) {
    let bed = Bed::alarm_of(kind, "alarm-fixed").await;
    bed.ask(&[
        ("ada", "set", "fails-always", 0),
        ("ada", "set", "tea", 100),
        ("bob", "set", "long", LATER_MS),
    ])
    .await;
    bed.parks(2).await;
    // On probation, the broken code fires a timer, sets one, and fails.
    let broken = bed.deploy(ALARM).await;
    bed.ask(&[("cid", "set", "soon", 0), ("dan", "set", "late", 1_500)])
        .await;
    bed.published("rang.cid.%3E", 1).await;
    bed.ask(&[("eve", "ill-set", "again", 0)]).await;
    let client = bed.host.client();
    client
        .becomes(ALARM, broken, GenerationStatus::Failed)
        .await;
    bed.published("rang.dan.%3E", 1).await;
    bed.parks(2).await;
    bed.run("parked drop alarm ada --reason useless").expect(0);
    bed.run("parked retry alarm ada").expect(0);
    bed.assert_rang_once(&["ada.tea", "cid.soon", "dan.late", "eve.again"])
        .await;
    bed.pending(1).await;
    bed.verify();
}

async fn a_rebuilt_state_takes_over_once_nothing_is_parked_with_every_timer_in_it(kind: Kind) {
    let mut bed = Bed::alarm(kind).await;
    park(&bed).await;
    bed.deploy_fixed().await;
    let client = bed.host.client();
    let answer = client.act(ALARM, "rebuild").await;
    assert!(answer.status.is_success(), "{}", answer.text());
    let number = answer.json::<api::Deployed>().generation;
    client.becomes(ALARM, number, GenerationStatus::Ready).await;
    // The other state has fired these timers, and published nothing: it cannot take over.
    bed.ask(&[("fay", "set", "soon", 100)]).await;
    bed.published("rang.fay.%3E", 1).await;
    bed.parks(5).await;
    bed.host.kill();
    bed.host.restart().await;
    bed.run("parked retry alarm ada").expect(0);
    bed.run("parked drop alarm bob --reason useless").expect(0);
    bed.run("parked retry alarm cid").expect(0);
    let client = bed.host.client();
    client
        .becomes(ALARM, number, GenerationStatus::Active)
        .await;
    let fired = ["ada.late", "ada.tea", "cid.wine", "dan.fine", "fay.soon"];
    bed.assert_rang_once(&fired).await;
    bed.verify();
    // And back, with a timer in either direction.
    bed.ask(&[("gus", "set", "long", 600)]).await;
    bed.pending(1).await;
    bed.roll_back().await;
    bed.published("rang.gus.%3E", 1).await;
    bed.assert_rang_once(&[&fired[..], &["gus.long"]].concat())
        .await;
    bed.pending(0).await;
    bed.verify();
}

async fn killed_again_and_again_around_retries_and_rollouts_each_timer_fires_once(kind: Kind) {
    let mut random = fastrand::Rng::with_seed(foldstream_tests::seed());
    let mut bed = Bed::alarm(kind).await;
    let mut wanted = Vec::new();
    for round in 0..4 {
        let (tea, late) = (format!("tea{round}"), format!("late{round}"));
        bed.ask(&[
            ("ada", "set", &tea, random.u64(0..300)),
            ("ada", "ill-set", &late, random.u64(0..300)),
            ("bob", "set", &tea, random.u64(0..300)),
        ])
        .await;
        wanted.extend([
            format!("ada.{tea}"),
            format!("ada.{late}"),
            format!("bob.{tea}"),
        ]);
        tokio::time::sleep(Duration::from_millis(random.u64(0..400))).await;
        let (kills_before, kills_after) = (random.bool(), random.bool());
        if kills_before {
            bed.host.kill();
            bed.host.restart().await;
        }
        bed.deploy_fixed().await;
        if kills_after {
            bed.host.kill();
            bed.host.restart().await;
        }
        wait::until("what is parked to be retried", async || {
            let retried = bed.run("parked retry alarm --all");
            (retried.code == 0).then_some(())
        })
        .await;
        if random.bool() {
            bed.host.kill();
            bed.host.restart().await;
        }
        bed.roll_back().await;
    }
    bed.pending(0).await;
    let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
    bed.assert_rang_once(&wanted).await;
    // Only this code can fold again what it has released.
    bed.deploy_fixed().await;
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

/// An event of an order of the example `saga-orchestrated`, without participants.
fn order(key: &str, what: &str, data: &Value) -> api::NewEvent {
    let subject = match what {
        "placed" | "cancelled" => format!("orders.{key}.{what}"),
        "charged" => format!("payment.{key}.{what}"),
        "reserved" => format!("stock.{key}.{what}"),
        _ => format!("shipping.{key}.{what}"),
    };
    told(&subject, data)
}

#[tokio::test]
async fn an_order_or_an_answer_that_cannot_be_decoded_parks_its_key_and_other_sagas_complete() {
    let saga = "saga-orchestrated";
    let grants = crate::sagas::GRANTED
        .map(|subject| format!("{subject}%40events"))
        .join("%2C");
    let host = Host::start().await;
    let client = host.client();
    let placed = json!({ "cents": 1, "item": "lamp", "card": "valid", "address": "here" });
    // One is there before the deploy.
    client
        .append(&[order("1", "placed", &json!("garbage"))])
        .await;
    let parameters = format!("&on-failure=park&allow-publish={grants}");
    client
        .deploy_with(saga, &guests::module(saga), &parameters)
        .await;
    let bed = Bed {
        host,
        name: saga,
        server: None,
    };
    let client = bed.host.client();
    client
        .append(&[
            order("2", "placed", &placed),
            order("3", "placed", &json!({ "cents": "many" })),
            order("1", "cancelled", &json!({})),
            order("4", "placed", &placed),
        ])
        .await;
    bed.published("payment.*.charge", 2).await;
    // The answer about order 2 has no number, and its time-out waits behind it.
    let answers = ["2", "4"].map(|key| {
        let number = if key == "2" { "no" } else { "payment" };
        order(key, "charged", &json!({ number: "7" }))
    });
    client.append(&answers).await;
    bed.published("stock.*.reserve", 1).await;
    client
        .append(&[
            order("4", "reserved", &json!({})),
            order("4", "sent", &json!({})),
        ])
        .await;
    assert_eq!(
        bed.published("orders.*.fulfilled", 1).await,
        ["orders.4.fulfilled"]
    );
    bed.parks(5).await;
    let list = bed.run(&format!("parked list {saga}")).expect(0).stdout;
    let keys: Vec<_> = list
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>())
        .collect();
    assert_eq!(keys, [["1", "2"], ["2", "2"], ["3", "1"]], "{list}");
    bed.run(&format!("parked drop {saga} 2 --reason broken"))
        .expect(0);
    bed.run(&format!("parked retry {saga} 2")).expect(0);
    // Without the answer, the time-out counts: it asks again.
    bed.published("payment.2.charge", 2).await;
    bed.parks(3).await;
}

#[tokio::test]
async fn an_instance_that_newer_code_cannot_decode_parks_and_older_code_completes_it() {
    let grants = [
        "room.*.book",
        "room.*.cancel",
        "flight.*.book",
        "trips.*.booked",
    ]
    .map(|subject| format!("{subject}%40events"))
    .join("%2C");
    let bed = Bed::start(BOOKING, &grants).await;
    let client = bed.host.client();
    let wanted = |key: &str| told(&format!("trips.{key}.wanted"), &json!({ "beds": 2 }));
    let room = |key: &str| told(&format!("room.{key}.booked"), &json!({ "room": "a" }));
    let flight = |key: &str| told(&format!("flight.{key}.booked"), &json!({}));
    client.append(&[wanted("1"), room("1")]).await;
    bed.published("flight.*.book", 1).await;
    let strict = bed.deploy("booking-strict").await;
    // Nobody waits for these.
    let calm: Vec<_> = (0..100).map(|_| flight("nobody")).collect();
    client.append(&calm).await;
    client.passed_probation(strict).await;
    client
        .append(&[flight("1"), wanted("2"), room("2"), flight("2")])
        .await;
    assert_eq!(bed.published("trips.*.booked", 1).await, ["trips.2.booked"]);
    bed.parks(1).await;
    let list = bed.run("parked list booking").expect(0).stdout;
    assert!(list.contains("does not match its type"), "{list}");
    bed.deploy(BOOKING).await;
    bed.run("parked retry booking 1").expect(0);
    assert_eq!(
        bed.published("trips.*.booked", 2).await,
        ["trips.2.booked", "trips.1.booked"]
    );
    bed.pending(0).await;
}
