//! Parked events: other keys continue, nothing is lost, and everything that can no longer be told
//! says so.

use foldstream::api::{self, DeploymentState, NewEvent};
use foldstream_tests::cli::{self, Output};
use foldstream_tests::client::Client;
use foldstream_tests::events::new_event;
use foldstream_tests::guests;
use foldstream_tests::host::{Host, jetstream_source};
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::stage::Kind;
use foldstream_tests::wait;
use serde_json::json;

pub(crate) const NAME: &str = "mischief";

fn told((subject, verb): (&str, &str)) -> NewEvent {
    new_event(&format!("mischief.{subject}"), json!(verb))
}

/// A host whose module has subjects as keys, and whose failed events are parked.
pub(crate) struct Bed {
    pub(crate) host: Host,
    /// On JetStream.
    server: Option<NatsServer>,
}

impl Bed {
    pub(crate) async fn start(config: &str) -> Self {
        Self::start_on(Kind::Embedded, config).await
    }

    async fn start_on(kind: Kind, config: &str) -> Self {
        let (host, server) = match kind {
            Kind::Embedded => (Host::start_with(config).await, None),
            Kind::JetStream => {
                let server = NatsServer::start().await;
                nats::create_stream(&server.jetstream().await, "MISCHIEF", "mischief.>").await;
                let source = jetstream_source(&server.url(), "MISCHIEF");
                let host = Host::start_with(&format!("{source}{config}")).await;
                (host, Some(server))
            }
        };
        host.client()
            .deploy_with(NAME, &guests::module(NAME), "&on-failure=park")
            .await;
        Self { host, server }
    }

    /// Publishes events as key and verb; returns the last sequence.
    pub(crate) async fn tell(&self, events: &[(&str, &str)]) -> u64 {
        let Some(server) = &self.server else {
            let events: Vec<_> = events.iter().map(|event| told(*event)).collect();
            return self.host.client().append(&events).await.last_sequence;
        };
        let context = server.jetstream().await;
        let message = |(key, verb): &(&str, &str)| {
            (format!("mischief.{key}"), verb.as_bytes().to_vec().into())
        };
        nats::publish(&context, events.iter().map(message)).await
    }

    pub(crate) async fn notes_at(&self, position: u64) -> String {
        self.host.client().reached(NAME, position).await;
        let answer = self
            .host
            .client()
            .query(NAME, "notes", &json!(null))
            .await
            .expect(200);
        answer.text().trim_matches('"').to_owned()
    }

    pub(crate) fn run(&self, line: &str) -> Output {
        cli::on(&self.host, &line.split(' ').collect::<Vec<_>>())
    }

    pub(crate) async fn parked(&self) -> api::ParkedList {
        self.host
            .client()
            .get("/v1/deployments/mischief/parked")
            .await
            .expect(200)
            .json()
    }
}

/// A mistake in the code at the first event of `ada`, and a harmless event of each key behind it.
pub(crate) const ILL: [(&str, &str); 4] = [
    ("ada", "note 1"),
    ("ada", "ill 2"),
    ("bob", "note 3"),
    ("ada", "note 4"),
];

#[tokio::test]
async fn a_corrected_module_applies_what_was_parked_in_order() {
    parked_and_retried(Kind::Embedded).await;
}

#[tokio::test]
async fn a_corrected_module_applies_what_was_parked_in_order_on_jetstream() {
    parked_and_retried(Kind::JetStream).await;
}

async fn parked_and_retried(kind: Kind) {
    let mut bed = Bed::start_on(kind, "").await;
    let last = bed.tell(&ILL).await;
    assert_eq!(bed.notes_at(last).await, "1,3");
    let list = bed.run("parked list mischief").expect(0).stdout;
    assert!(
        list.contains("mischief.ada  2       2      rejected"),
        "{list}"
    );
    let shown = bed
        .run("parked show mischief mischief.ada")
        .expect(0)
        .stdout;
    assert!(
        shown.contains("a mistake in the code") && shown.contains("note 4"),
        "{shown}"
    );
    let shown = bed.run("show mischief").expect(0).stdout;
    assert!(
        shown.contains("state          live") && shown.contains("parked         2 events of 1 key"),
        "{shown}"
    );
    let answer = bed
        .host
        .client()
        .entry(NAME, "note/00000001")
        .await
        .expect(200);
    assert_eq!(answer.header("foldstream-parked"), Some("2"));
    let page = bed.host.client().get("/metrics").await.expect(200).text();
    for line in
        ["keys", "events"].map(|what| format!("foldstream_parked_{what}{{deployment=\"{NAME}\"}}"))
    {
        assert!(
            page.lines()
                .any(|found| found.starts_with(&line) && !found.ends_with(" 0")),
            "{line}"
        );
    }
    // Killed and started again: the same, and later events still wait.
    bed.host.kill();
    bed.host.restart().await;
    let last = bed.tell(&[("ada", "note 5"), ("bob", "note 6")]).await;
    assert_eq!(bed.notes_at(last).await, "1,3,6");
    // The same code fails again, which the answer says, and changes nothing.
    let again = bed.run("parked retry mischief mischief.ada").expect(1);
    assert!(
        again.stderr.contains("failed again") && again.stderr.contains("a mistake in the code"),
        "{again:?}"
    );
    assert_eq!(
        bed.parked().await.keys[0]
            .failure
            .as_ref()
            .map(|failure| failure.attempts),
        Some(2)
    );
    bed.host
        .client()
        .deploy_with(NAME, &guests::module("mischief-fixed"), "&strategy=inherit")
        .await;
    let last = bed.tell(&[("ada", "note 7")]).await;
    bed.host.client().reached(NAME, last).await;
    let retried = bed.run("parked retry mischief --all").expect(0).stdout;
    assert!(
        retried.contains("applied 4 events; 1 key no longer parked; 0 events of 0 keys left"),
        "{retried}"
    );
    assert_eq!(bed.notes_at(last).await, "1,2,3,4,5,6,7");
    let answer = bed
        .host
        .client()
        .entry(NAME, "note/00000001")
        .await
        .expect(200);
    assert_eq!(answer.header("foldstream-parked"), None);
    let audit = bed.run("audit mischief").expect(0).stdout;
    assert!(
        audit.contains("parked-retry") && audit.contains("mischief.ada"),
        "{audit}"
    );
}

#[tokio::test]
async fn verify_and_reads_of_the_past_repeat_what_was_parked_applied_later_and_dropped() {
    let mut bed = Bed::start("").await;
    bed.tell(&ILL).await;
    let last = bed.tell(&[("eve", "reject no"), ("eve", "note 6")]).await;
    assert_eq!(bed.notes_at(last).await, "1,3");
    let verified = |bed: &Bed, remark: &str| {
        let output = bed.run("verify mischief").expect(0);
        let text = output.stdout + &output.stderr;
        assert!(text.contains(remark), "{text}");
    };
    verified(&bed, "without 4 events that are parked");
    let refused = bed.run("rebuild mischief --key mischief.ada");
    assert!(
        refused.code != 0 && refused.stderr.contains("events of it are parked"),
        "{refused:?}"
    );
    bed.run("get mischief note/00000001 --as-of 3").expect(0);
    // Code that applies those of ada, some positions later.
    bed.host
        .client()
        .deploy_with(NAME, &guests::module("mischief-fixed"), "&strategy=inherit")
        .await;
    let last = bed.tell(&[("bob", "note 7")]).await;
    assert_eq!(bed.notes_at(last).await, "1,3,7");
    let now = format!("get mischief note/00000002 --as-of {last}");
    assert_ne!(bed.run(&now).code, 0, "it is parked");
    bed.run("parked retry mischief mischief.ada").expect(0);
    // A state of the past that was kept is not that of this position any more.
    bed.run(&now).expect(0);
    bed.run("parked drop mischief mischief.eve --reason broken")
        .expect(0);
    assert_eq!(bed.notes_at(last).await, "1,2,3,4,7");
    verified(&bed, "without 1 event that is parked");
    bed.run("parked retry mischief --all").expect(0);
    let last = bed.tell(&[("ada", "note 8")]).await;
    assert_eq!(bed.notes_at(last).await, "1,2,3,4,6,7,8");
    // Killed, so that all of it is read from files.
    bed.host.kill();
    bed.host.restart().await;
    bed.notes_at(last).await;
    verified(&bed, "skipped: 5");
    // The state of a moment is as it was at that moment.
    let has = |key: u64, moment: u64| {
        let key = format!("note/{key:08}");
        let moment = moment.to_string();
        let words = ["get", NAME, &key, "--as-of", &moment];
        cli::on(&bed.host, &words).code == 0
    };
    for moment in 4..7 {
        assert!(
            has(3, moment) && !has(2, moment) && !has(4, moment),
            "{moment}"
        );
    }
    for moment in 7..=last {
        assert!(
            has(2, moment) && has(4, moment) && has(6, moment),
            "{moment}"
        );
    }
}

#[tokio::test]
async fn a_rebuild_of_one_key_says_what_stays_parked_of_others() {
    const TOTALS: &str = "customer-totals";
    let host = Host::start_with("").await;
    let module = guests::module(TOTALS);
    let client = host.client();
    client
        .deploy_with(TOTALS, &module, "&on-failure=park")
        .await;
    let order = |customer: &str| {
        let data =
            json!({ "order": "o", "customer": customer, "cents": 5, "items": 1, "channel": "web" });
        new_event(&format!("orders.{customer}.placed"), data)
    };
    let broken = |customer: &str| new_event(&format!("orders.{customer}.placed"), json!("{"));
    let told = [
        order("ada"),
        broken("bob"),
        order("bob"),
        order("ada"),
        broken("carl"),
    ];
    let last = client.append(&told).await.last_sequence;
    client.reached(TOTALS, last).await;
    let rebuild = ["rebuild", TOTALS, "--key", "ada"];
    let rebuilt = cli::on(&host, &rebuild).expect(0);
    let remark = "3 events of 2 other keys stay parked";
    assert!(rebuilt.stdout.contains(remark), "{rebuilt:?}");
    let path = "rebuild-part?key=ada";
    let part: api::PartialRebuild = client.act(TOTALS, path).await.expect(200).json();
    assert_eq!((part.parked.events, part.parked.keys), (3, 2));
    // Without any it says nothing of them.
    let drop = ["parked", "drop", TOTALS, "bob", "carl", "--whole-keys"];
    let reason = ["--reason", "broken"];
    cli::on(&host, &[&drop[..], &reason[..]].concat()).expect(0);
    let rebuilt = cli::on(&host, &rebuild).expect(0);
    assert!(!rebuilt.stdout.contains("parked"), "{rebuilt:?}");
}

#[tokio::test]
async fn a_rebuild_makes_up_for_parked_events_and_a_rollback_returns_to_them() {
    let bed = Bed::start("").await;
    let last = bed.tell(&ILL).await;
    assert_eq!(bed.notes_at(last).await, "1,3");
    bed.host
        .client()
        .deploy_with(NAME, &guests::module("mischief-fixed"), "&strategy=rebuild")
        .await;
    bed.host
        .client()
        .show_when(NAME, "take over", |shown| shown.generation == 2)
        .await;
    assert_eq!(bed.notes_at(last).await, "1,2,3,4");
    assert_eq!(bed.parked().await.counts, api::ParkedCounts::default());
    bed.run("verify mischief").expect(0);
    // Back to the state that has parked events: it still has them, and says so.
    let back = bed.run("rollback mischief").expect(0);
    let text = back.stdout + &back.stderr;
    assert!(text.contains("without 2 events that are parked"), "{text}");
    assert_eq!(bed.parked().await.counts.events, 2);
    assert_eq!(bed.notes_at(last).await, "1,3");
}

#[tokio::test]
async fn a_gate_says_that_the_active_state_is_without_parked_events() {
    let bed = Bed::start("").await;
    let last = bed.tell(&ILL).await;
    assert_eq!(bed.notes_at(last).await, "1,3");
    // By itself it would take over.
    let module = guests::module("mischief-fixed");
    let gate = "&strategy=rebuild&gate=%7B%22allow%22%3A%5B%5D%7D";
    bed.host.client().deploy_with(NAME, &module, gate).await;
    let is_compared = |shown: &api::Generation| shown.comparison.is_some();
    let candidate = foldstream_tests::wait::until("the gate to compare", async || {
        let mut generations = bed.host.client().generations(NAME).await.into_iter();
        generations.find(|one| one.number == 2 && is_compared(one))
    })
    .await;
    assert!(
        candidate.reason.contains("held back by its gate")
            && candidate
                .reason
                .contains("without 2 events that are parked"),
        "{}",
        candidate.reason
    );
    let refused = bed.run("promote mischief").stderr;
    assert!(
        refused.contains("without 2 events that are parked"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_dry_run_shows_what_a_retry_or_a_drop_would_do_and_changes_nothing() {
    let bed = Bed::start("").await;
    let last = bed.tell(&ILL).await;
    bed.notes_at(last).await;
    let before = bed.parked().await;
    let would = bed.run("parked retry mischief --all --dry-run").expect(1);
    assert!(
        would.stdout.contains("would have applied 0 events")
            && would.stderr.contains("would fail again"),
        "{would:?}"
    );
    let would = bed
        .run("parked drop mischief --all --whole-keys --reason none --dry-run")
        .expect(0)
        .stdout;
    assert!(
        would.contains("would have dropped 2 events; 1 key would no longer be parked"),
        "{would}"
    );
    bed.host
        .client()
        .deploy_with(NAME, &guests::module("mischief-fixed"), "&strategy=inherit")
        .await;
    let would = bed
        .run("parked retry mischief mischief.ada --dry-run")
        .expect(0)
        .stdout;
    assert!(
        would.contains("would have applied 2 events; 1 key would no longer be parked")
            && would.contains("+ note/00000002  2")
            && would.contains("+ note/00000004  4"),
        "{would}"
    );
    assert_eq!(bed.parked().await, before);
    assert_eq!(bed.notes_at(last).await, "1,3");
}

#[tokio::test]
async fn a_deploy_retries_what_earlier_code_has_parked_if_asked() {
    let bed = Bed::start("").await;
    let last = bed.tell(&ILL).await;
    assert_eq!(bed.notes_at(last).await, "1,3");
    let module = guests::path("mischief-fixed").display().to_string();
    let words = [
        "deploy",
        &module,
        "--name",
        NAME,
        "--strategy",
        "inherit",
        "--retry-parked",
    ];
    cli::on(&bed.host, &words).expect(0);
    bed.host
        .client()
        .show_when(NAME, "apply what was parked", |shown| {
            shown.parked.events == 0
        })
        .await;
    assert_eq!(bed.notes_at(last).await, "1,2,3,4");
    let audit = bed.run("audit mischief").expect(0).stdout;
    assert!(
        audit.contains("parked-retry-wanted") && audit.contains("by generation 2"),
        "{audit}"
    );
}

#[tokio::test]
async fn a_bundle_reproduces_a_failure_without_the_host() {
    let bed = Bed::start("").await;
    let last = bed.tell(&ILL).await;
    bed.notes_at(last).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("ada.json").display().to_string();
    let exported = bed
        .run(&format!("parked export mischief mischief.ada -f {file}"))
        .expect(0)
        .stdout;
    assert!(
        exported.contains("2 events") && exported.contains("a mistake in the code"),
        "{exported}"
    );
    let audit = bed.run("audit mischief").expect(0).stdout;
    assert!(audit.contains("parked-export"), "{audit}");
    // What the host wrote at the first failure says the same.
    let first = folder.path().join("first.json").display().to_string();
    bed.run(&format!("parked export mischief -f {first}"))
        .expect(0);
    drop(bed);
    for file in [&file, &first] {
        let replayed = cli::run(&["replay", file]).expect(0);
        assert!(
            replayed
                .stdout
                .contains("2 mischief.ada: rejected: event 0 of the batch is rejected: a mistake")
                && replayed.stderr.contains("reproduced"),
            "{replayed:?}"
        );
    }
    let fixed = guests::path("mischief-fixed").display().to_string();
    let replayed = cli::run(&["replay", &file, "--module", &fixed, "--calls"]).expect(0);
    assert!(
        replayed.stdout.contains("2 mischief.ada: applied")
            && replayed.stdout.contains("+ note/00000002  2")
            && replayed.stdout.contains("+ note/00000004  4")
            && replayed.stdout.contains("\"call\":\"put\""),
        "{replayed:?}"
    );
    let damaged = folder.path().join("damaged.json").display().to_string();
    std::fs::write(&damaged, "{}").expect("writes");
    let refused = cli::run(&["replay", &damaged]);
    assert!(
        refused.code != 0 && refused.stderr.contains("no failure bundle"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn each_failure_is_published_where_the_operator_wants_it() {
    let mut bed = Bed::start("").await;
    let module = guests::path(NAME).display().to_string();
    let deploy = |place: &str| {
        let words = ["deploy", &module, "--name", NAME, "--failure-events", place];
        cli::on(&bed.host, &words)
    };
    let refused = deploy("mischief.failures@events");
    assert!(
        refused.code != 0 && refused.stderr.contains("the module itself reads"),
        "{refused:?}"
    );
    let refused = deploy("ops.>@events");
    assert!(
        refused.code != 0 && refused.stderr.contains("one subject"),
        "{refused:?}"
    );
    deploy("ops.failures@events").expect(0);
    bed.tell(&ILL).await;
    let published = async |bed: &Bed, count: usize| {
        foldstream_tests::wait::until("failures to be published", async || {
            let path = "/v1/events?source=events&limit=1000&subject=ops.failures";
            let page = bed.host.client().get(path).await.expect(200).value();
            let events = page["events"].as_array().expect("a list").clone();
            (events.len() >= count).then_some(events)
        })
        .await
    };
    let first = &published(&bed, 1).await[0];
    assert_eq!(first["type"], "foldstream.event-parked");
    // So that a loop through it is found.
    let headers = &first["headers"];
    assert_eq!(headers["foldstream-path"], NAME, "{first}");
    assert_eq!(headers["ce-causationid"], "2", "{first}");
    let data = &first["data"];
    assert_eq!(
        (
            &data["deployment"],
            &data["key"],
            &data["sequence"],
            &data["class"]
        ),
        (
            &json!(NAME),
            &json!("mischief.ada"),
            &json!(2),
            &json!("rejected")
        ),
        "{first}"
    );
    bed.host.kill();
    bed.host.restart().await;
    bed.tell(&[("ada", "reject late"), ("eve", "reject no")])
        .await;
    let all = published(&bed, 2).await;
    assert_eq!(all.len(), 2, "each once: {all:?}");
    assert_eq!(all[1]["data"]["key"], "mischief.eve");
    // An event that waited behind its key fails after later events of other keys did.
    bed.run("parked drop mischief mischief.ada --reason broken")
        .expect(0);
    assert_ne!(bed.run("parked retry mischief mischief.ada").code, 0);
    let all = published(&bed, 3).await;
    assert_eq!(all.len(), 3, "each once: {all:?}");
    let sequence = |event: &serde_json::Value| event["data"]["sequence"].as_u64();
    assert_eq!(all[2]["data"]["key"], "mischief.ada");
    assert!(sequence(&all[2]) < sequence(&all[1]), "{all:?}");
}

/// Waits until a handler has published everything but what it has parked.
async fn published(client: &Client, last: u64, parked: u64) {
    client
        .show_when("reactor", "publish everything", |shown| {
            let outbox = shown.outbox.as_ref();
            shown.position >= last
                && shown.parked.events == parked
                && outbox.is_some_and(|outbox| outbox.entries == 0)
        })
        .await;
}

/// Each message as its key, its cause and its number, in the order of the log.
async fn stored(client: &Client) -> Vec<(String, u64, u64)> {
    let path = "/v1/events?source=events&limit=1000&subject=out.%3E";
    let page = client.get(path).await.expect(200).value();
    let events = page["events"].as_array().expect("a list");
    let message = |event: &serde_json::Value| {
        let key = event["subject"].as_str().expect("text").split('.').nth(1);
        let number = |name: &str| event["data"][name].as_u64().expect("a number");
        (
            key.expect("a key").to_owned(),
            number("of"),
            number("number"),
        )
    };
    events.iter().map(message).collect()
}

#[tokio::test]
async fn messages_of_a_handler_leave_when_its_parked_events_are_applied() {
    let host = Host::start().await;
    let client = host.client();
    let broken = guests::module("reactor-broken");
    client
        .deploy_with(
            "reactor",
            &broken,
            "&on-failure=park&allow-publish=out.%3E%40events",
        )
        .await;
    let event = |subject: &str| -> NewEvent {
        serde_json::from_value(json!({ "subject": subject, "data": {} })).expect("an event")
    };
    let told = [
        "in.1.one",
        "in.1.three",
        "in.1.one",
        "in.2.one",
        "in.1.three",
    ];
    let last = client.append(&told.map(event)).await.last_sequence;
    published(client, last, 3).await;
    let own = |key: &str, of, number| (key.to_owned(), of, number);
    assert_eq!(stored(client).await, [own("1", 1, 0), own("2", 4, 0)]);
    let shown = cli::on(&host, &["parked", "show", "reactor", "1"])
        .expect(0)
        .stdout;
    assert!(
        shown.contains("handled/1  1") && shown.contains("can't answer three times"),
        "what it read: {shown}"
    );
    // The other state has applied these events, and published nothing.
    client
        .deploy_with(
            "reactor",
            &guests::module("reactor"),
            "&strategy=rebuild&promote=manual",
        )
        .await;
    client
        .becomes("reactor", 2, api::GenerationStatus::Ready)
        .await;
    let refused = cli::on(&host, &["promote", "reactor"]);
    assert!(
        refused.code != 0
            && refused
                .stderr
                .contains("whose messages are not published yet"),
        "{refused:?}"
    );
    cli::on(&host, &["abort", "reactor"]).expect(0);
    client
        .deploy_with(
            "reactor",
            &guests::module("reactor"),
            "&strategy=inherit&retry-parked=true",
        )
        .await;
    published(client, last, 0).await;
    let all = stored(client).await;
    let of_one: Vec<_> = all.iter().filter(|(key, ..)| key == "1").cloned().collect();
    assert_eq!(
        of_one,
        [
            own("1", 1, 0),
            own("1", 2, 0),
            own("1", 2, 1),
            own("1", 2, 2),
            own("1", 3, 0),
            own("1", 5, 0),
            own("1", 5, 1),
            own("1", 5, 2),
        ],
        "each once, in the order of its key"
    );
    assert_eq!(all.len(), 9);
}

#[tokio::test]
async fn a_dropped_event_is_listed_with_its_reason_like_a_skipped_one() {
    let bed = Bed::start("").await;
    let last = bed.tell(&ILL).await;
    bed.notes_at(last).await;
    let without = bed.run("parked drop mischief mischief.ada").code;
    assert_ne!(without, 0, "a reason is required");
    let words = [
        "parked",
        "drop",
        NAME,
        "mischief.ada",
        "--reason",
        "test data, ticket 4711",
    ];
    let dropped = cli::on(&bed.host, &words).expect(0).stdout;
    assert!(
        dropped.contains("dropped 1 event") && dropped.contains("1 event of 1 key left"),
        "{dropped}"
    );
    bed.run("parked retry mischief mischief.ada").expect(0);
    assert_eq!(bed.notes_at(last).await, "1,3,4");
    let skips = bed.run("skips mischief").expect(0).stdout;
    assert!(skips.contains("test data, ticket 4711"), "{skips}");
    let audit = bed.run("audit mischief").expect(0).stdout;
    assert!(
        audit.contains("parked-drop") && audit.contains("ticket 4711"),
        "{audit}"
    );
}

#[tokio::test]
async fn neither_a_deadline_nor_a_full_state_parks() {
    for (verb, class) in [("loop", "deadline"), ("fill 8388608", "state-limit")] {
        let bed = Bed::start("[modules]\ndeadline = \"500ms\"\n").await;
        bed.tell(&[("ada", "note 1"), ("ada", verb), ("bob", "note 3")])
            .await;
        let (shown, failure) = bed.host.client().failed(NAME).await;
        assert_eq!(
            (failure.class.map(api::FailureClass::name), shown.position),
            (Some(class), 1),
            "{failure:?}"
        );
        assert!(bed.parked().await.keys.is_empty());
    }
}

#[tokio::test]
async fn at_a_limit_the_deployment_waits_and_a_retry_lets_it_continue() {
    let bed = Bed::start("[state]\nparked_events_max = 2\n").await;
    let last = bed
        .tell(&[
            ("ada", "ill 1"),
            ("ada", "note 2"),
            ("bob", "note 3"),
            ("ada", "note 4"),
        ])
        .await;
    let is_full = |shown: &api::Deployment| {
        shown
            .failure
            .as_ref()
            .is_some_and(|failure| failure.kind == "parked")
    };
    let shown = bed
        .host
        .client()
        .show_when(NAME, "meet the limit", is_full)
        .await;
    let failure = shown.failure.expect("it was just looked at");
    assert_eq!(
        (shown.state, shown.position),
        (DeploymentState::Retrying, 1),
        "{failure:?}"
    );
    assert!(
        failure.message.contains("state.parked_events_max"),
        "{failure:?}"
    );
    bed.host
        .client()
        .deploy_with(NAME, &guests::module("mischief-fixed"), "&strategy=inherit")
        .await;
    bed.run("parked retry mischief --all").expect(0);
    assert_eq!(bed.notes_at(last).await, "1,2,3,4");
}

#[tokio::test]
async fn at_a_limit_of_keys_or_bytes_the_deployment_stops_at_the_next_event_that_fails() {
    // One failure takes more than 400 bytes, and the limit of bytes may be passed by one.
    for (limit, most) in [("parked_keys_max", 1), ("parked_bytes_max", 400)] {
        stops_at(limit, most).await;
    }
}

async fn stops_at(limit: &str, most: u64) {
    let bed = Bed::start(&format!("[state]\n{limit} = {most}\n")).await;
    let told = [("ada", "ill 1"), ("bob", "note 2"), ("eve", "ill 3")];
    let last = bed.tell(&told).await;
    let (shown, failure) = bed.host.client().failed(NAME).await;
    assert_eq!((shown.position, shown.parked.keys), (2, 1));
    assert!(
        failure.message.contains(&format!("state.{limit}")),
        "{failure:?}"
    );
    bed.run("parked drop mischief --all --reason known")
        .expect(0);
    bed.run("resume mischief").expect(0);
    assert_eq!(bed.notes_at(last).await, "2");
    assert_eq!(bed.parked().await.counts.keys, 1);
}

#[tokio::test]
async fn parking_needs_a_key_rule_and_can_be_ended() {
    let bed = Bed::start("").await;
    let module = guests::path("sloppy").display().to_string();
    let refused = cli::on(
        &bed.host,
        &[
            "deploy",
            &module,
            "--name",
            "sloppy",
            "--on-failure",
            "park",
        ],
    );
    assert!(
        refused.code != 0 && refused.stderr.contains("declares no key rule"),
        "{refused:?}"
    );
    let module = guests::path(NAME).display().to_string();
    cli::on(
        &bed.host,
        &["deploy", &module, "--name", NAME, "--on-failure", "stop"],
    )
    .expect(0);
    bed.tell(&ILL).await;
    let (shown, failure) = bed.host.client().failed(NAME).await;
    assert_eq!((failure.kind.as_str(), shown.position), ("rejected", 1));
    // And begun again, which tries the event once more.
    cli::on(
        &bed.host,
        &["deploy", &module, "--name", NAME, "--on-failure", "park"],
    )
    .expect(0);
    assert_eq!(bed.notes_at(4).await, "1,3");
}

#[tokio::test]
async fn killed_at_any_moment_every_event_is_applied_or_parked() {
    let mut bed = Bed::start("[state]\nflush_interval = \"20ms\"\n").await;
    let (mut sound, mut last) = (Vec::new(), 0);
    for round in 0..6 {
        let verbs: Vec<(usize, String)> = (round * 40..(round + 1) * 40)
            .map(|number| {
                (
                    number % 5,
                    if number % 37 == 20 {
                        "reject no".to_owned()
                    } else {
                        format!("note {number}")
                    },
                )
            })
            .collect();
        sound.extend(
            verbs
                .iter()
                .filter_map(|(_, verb)| verb.strip_prefix("note ").map(str::to_owned)),
        );
        let keys = ["ada", "bob", "cid", "dan", "eve"];
        let events: Vec<(&str, &str)> = verbs
            .iter()
            .map(|(key, verb)| (keys[*key], verb.as_str()))
            .collect();
        last = bed.tell(&events).await;
        bed.host.kill();
        bed.host.restart().await;
    }
    bed.host.client().reached(NAME, last).await;
    let notes = bed.notes_at(last).await;
    let parked = bed.parked().await.counts;
    let applied = notes.split(',').count() as u64;
    assert!(
        parked.keys > 0 && applied + parked.events == last,
        "{applied} applied, {parked:?}, of {last}"
    );
    for _ in 0..20 {
        if bed.parked().await.counts.events == 0 {
            break;
        }
        bed.run("parked drop mischief --all --reason broken")
            .expect(0);
        bed.run("parked retry mischief --all");
        bed.host.kill();
        bed.host.restart().await;
    }
    assert_eq!(
        bed.notes_at(last).await,
        sound.join(","),
        "each sound event once"
    );
}

#[tokio::test]
async fn failure_that_its_target_refuses_holds_back_no_other_and_is_shown() {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    nats::create_stream(&context, "MISCHIEF", "mischief.>").await;
    let ops = async_nats::jetstream::stream::Config {
        max_message_size: 1_200,
        ..nats::stream_config("OPS", "ops.>")
    };
    nats::create_stream_with(&context, ops).await;
    let url = server.url();
    let host = Host::start_with(&format!(
        "{}[sources.ops]\nkind = \"jetstream\"\nstream = \"OPS\"\nservers = [{url:?}]\n",
        jetstream_source(&url, "MISCHIEF")
    ))
    .await;
    let client = host.client();
    let options = "&source=orders&on-failure=park&failure-events=ops.f%40ops";
    client
        .deploy_with(NAME, &guests::module(NAME), options)
        .await;
    // More than are published between two marks. A module that fails at most of the last events seems
    // to be at fault itself, so two events between them are sound.
    let long = "k".repeat(700);
    let keys = (0..260).map(|number| format!("{long}{number}"));
    let keys = keys.chain(["ada", "eve"].map(str::to_owned));
    let told = keys.flat_map(|key| {
        let told = [("bob", "note 1"), ("bob", "note 2"), (&key, "ill 3")];
        told.map(|(key, verb)| (format!("mischief.{key}"), verb.into()))
    });
    nats::publish(&context, told).await;
    foldstream_tests::wait::until("the others to be published", async || {
        (foldstream_tests::reactor::messages(&context, "OPS")
            .await
            .len()
            == 2)
            .then_some(())
    })
    .await;
    let is_named = |shown: &api::Deployment| {
        let events = shown.failure_events.as_ref().expect("they go somewhere");
        let trouble = events.trouble.as_deref().unwrap_or_default();
        events.to == "ops.f@ops" && trouble.contains("message size exceeds")
    };
    client.show_when(NAME, "name the refusal", is_named).await;
    let shown = cli::on(&host, &["show", NAME]).expect(0).stdout;
    assert!(
        shown.contains("failure events") && shown.contains("some wait: "),
        "{shown}"
    );
    let doctor = cli::on(&host, &["doctor"]).stdout;
    assert!(doctor.contains("failure events of mischief"), "{doctor}");

    let drop = ["parked", "drop", NAME, "--all", "--reason", "too long"];
    cli::on(&host, &drop).expect(0);
    let is_over = |shown: &api::Deployment| {
        let events = shown.failure_events.as_ref().expect("they go somewhere");
        events.trouble.is_none()
    };
    client.show_when(NAME, "have no trouble", is_over).await;
    assert_eq!(
        foldstream_tests::reactor::messages(&context, "OPS")
            .await
            .len(),
        2,
        "each once"
    );
}

#[tokio::test]
async fn a_verification_repeats_long_retries_before_it_holds_the_deployment() {
    let bed = Bed::start("").await;
    // Each of these takes about a second when it is applied: all together longer than a hold.
    let mut events = vec![("ada", "ill 1")];
    events.extend([("ada", "many-tiny 200000"); 8]);
    // So that only a fold without a ceiling comes to the place of the retry.
    events.extend([("bob", "note 2"); 400]);
    let last = bed.tell(&events).await;
    bed.notes_at(last).await;
    let module = guests::path("mischief-fixed").display().to_string();
    let deploy = ["deploy", &module, "--name", NAME, "--strategy", "inherit"];
    cli::on(&bed.host, &deploy).expect(0);
    bed.run("parked retry mischief --all").expect(0);
    let client = bed.host.client();
    let path = format!("/v1/deployments/{NAME}/verification");
    let verification = async || -> api::Verification { client.get(&path).await.expect(200).json() };
    client.act(NAME, "verification").await.expect(200);
    wait::until("the second fold to come to the end", async || {
        (verification().await.progress >= 1.0).then_some(())
    })
    .await;
    // More than it folds within a hold, while it repeats the retries.
    for _ in 0..60 {
        bed.tell(&[("bob", "note 3"); 1_000]).await;
    }
    let ended = wait::until("the verification to end", async || {
        let now = verification().await;
        matches!(now.state, api::WorkState::Done | api::WorkState::Failed).then_some(now)
    })
    .await;
    assert_eq!(ended.equal, Some(true), "{ended:?}");
}
