//! Scenarios that are recorded from deployments, and played.

use foldstream_tests::host::{Host, jetstream_source};
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::{cli, guests};
use serde_json::{Value, json};

use crate::scenarios::{Files, module};

#[tokio::test]
async fn a_recording_with_invalid_events_and_names_that_keys_escape_passes() {
    let host = Host::start().await;
    let client = host.client();
    let module_of = guests::module("order-totals");
    client
        .deploy_with("order-totals", &module_of, "&on-failure=park")
        .await;
    let placed = |customer: &str, data: Value| {
        let subject = format!("orders.{customer}.placed");
        json!({ "subject": subject, "data": data }).to_string()
    };
    let events = [
        placed("ada", json!({ "order": "Smith/Jones", "total_cents": 5 })),
        placed("eve", json!({ "order": "o2", "total_cents": "5" })),
        placed(
            "ada",
            json!({ "order": "100%", "total_cents": 5, "who": "Smith/Jones" }),
        ),
    ];
    client
        .post("/v1/events", "application/x-ndjson", events.join("\n"))
        .await
        .expect(200);
    client.reached("order-totals", 3).await;
    let files = Files::new();
    for (name, redact) in [
        ("plain.yaml", &[][..]),
        ("redacted.yaml", &["--redact", "/order"]),
    ] {
        let recorded = files.path(name);
        let recorded = recorded.to_string_lossy();
        let mut arguments = vec!["record", "order-totals", "--to", &recorded];
        arguments.extend(redact);
        cli::on(&host, &arguments).expect(0);
        let text = std::fs::read_to_string(&*recorded).expect("written");
        assert!(text.contains("invalid_events: true"), "{text}");
        let shows = ["Smith", "100%"].iter().any(|secret| text.contains(secret));
        assert_eq!(shows, redact.is_empty(), "{text}");
        cli::run(&["test", &module("order-totals"), &recorded]).expect(0);
    }
}

#[tokio::test]
async fn what_a_deployment_folded_becomes_a_scenario_that_passes() {
    let host = Host::start().await;
    let client = host.client();
    let events = std::fs::read(guests::folder("order-totals").join("events.ndjson"))
        .expect("the example has events");
    client
        .post("/v1/events", "application/x-ndjson", events)
        .await
        .expect(200);
    client
        .deploy("order-totals", &guests::module("order-totals"))
        .await;
    client.reached("order-totals", 30).await;
    let files = Files::new();
    let recorded = files.path("recorded.yaml");
    let recorded = recorded.to_string_lossy();
    cli::on(
        &host,
        &["record", "order-totals", "--limit", "30", "--to", &recorded],
    )
    .expect(0);
    let played = cli::run(&["test", &module("order-totals"), &recorded, "-o", "json"]).expect(0);
    assert_eq!(played.json()["scenarios"][0]["cost"]["events"], 30);
    let text = cli::on(&host, &["record", "order-totals", "-o", "json"]).expect(0);
    assert_eq!(text.json()["scenarios"].as_array().map(Vec::len), Some(1));
    let as_json = files.path("recorded.json");
    std::fs::write(&as_json, &text.stdout).expect("written");
    cli::run(&["test", &module("order-totals"), &as_json.to_string_lossy()]).expect(0);
    // What is there is kept.
    cli::on(&host, &["record", "order-totals", "--to", &recorded]).expect(4);
    // Of one customer, whose orders are named otherwise.
    let recorded = files.path("grace.yaml");
    let recorded = recorded.to_string_lossy();
    let output = cli::on(
        &host,
        &[
            "record",
            "order-totals",
            "--subject",
            "orders.grace.*",
            "--prefix",
            "customer/grace",
            "--redact",
            "/order",
            "--redact",
            "/currency",
            "--redact",
            "/emial",
            "--to",
            &recorded,
        ],
    )
    .expect(0);
    let misspelt = "no recorded event has anything at /emial";
    assert!(output.stderr.contains(misspelt), "{}", output.stderr);
    let text = std::fs::read_to_string(&*recorded).expect("written");
    assert!(
        text.contains("redacted-1") && !text.contains("EUR"),
        "{text}"
    );
    cli::run(&["test", &module("order-totals"), &recorded]).expect(0);
    for (arguments, code) in [
        (&["record", "nobody"][..], 3),
        (&["record", "order-totals", "--redact", "order"], 2),
        (
            &[
                "record",
                "order-totals",
                "--subject",
                "a.>",
                "--prefix",
                "a",
            ],
            3,
        ),
    ] {
        cli::on(&host, arguments).expect(code);
    }
}

/// Records a deployment, and plays the record.
fn plays(host: &Host, module: &str, name: &str) -> String {
    let files = Files::new();
    let recorded = files.path("recorded.yaml");
    let recorded = recorded.to_string_lossy();
    cli::on(
        host,
        &["record", name, "--limit", "1000", "--to", &recorded],
    )
    .expect(0);
    let text = std::fs::read_to_string(&*recorded).expect("written");
    let played = cli::run(&["test", &self::module(module), &recorded]);
    assert_eq!(played.code, 0, "{text}\n{}{}", played.stdout, played.stderr);
    text
}

#[tokio::test]
async fn events_that_were_skipped_or_parked_are_recorded_as_such() {
    let host = Host::start().await;
    let client = host.client();
    let told = |key: &str, verb: &str| -> foldstream::api::NewEvent {
        serde_json::from_value(json!({ "subject": format!("mischief.{key}"), "data": verb }))
            .expect("an event")
    };
    let other: foldstream::api::NewEvent =
        serde_json::from_value(json!({ "subject": "elsewhere.a", "data": 1 })).expect("an event");
    client
        .append(&[
            other.clone(),
            told("a", "note one"),
            told("a", "nonsense"),
            other,
            told("b", "note null"),
            told("c", "note ${two}"),
        ])
        .await;
    client
        .deploy_with("mischief", &guests::module("mischief"), "")
        .await;
    client.failed("mischief").await;
    cli::on(
        &host,
        &["resume", "mischief", "--skip", "3", "--reason", "a test"],
    )
    .expect(0);
    client.reached("mischief", 6).await;
    let text = plays(&host, "mischief", "mischief");
    assert!(text.contains("others: 2"), "{text}");
    assert!(!text.contains("nonsense"), "{text}");

    client
        .deploy_with("parks", &guests::module("mischief"), "&on-failure=park")
        .await;
    let last = client
        .append(&[told("b", "nonsense"), told("b", "note no")])
        .await;
    client.reached("parks", last.last_sequence).await;
    let text = plays(&host, "mischief", "parks");
    assert!(text.contains("on_failure: park"), "{text}");
    assert!(text.contains("parked:"), "{text}");
}

#[tokio::test]
async fn timers_are_recorded_where_they_fired() {
    let host = Host::start().await;
    let client = host.client();
    client
        .deploy_with(
            "alarm",
            &guests::module("alarm"),
            "&allow-publish=rang.%3E%40events",
        )
        .await;
    let set = |name: &str, after_ms: u64| -> foldstream::api::NewEvent {
        let data = json!({ "name": name, "after_ms": after_ms });
        serde_json::from_value(json!({ "subject": "alarm.tea.set", "data": data }))
            .expect("an event")
    };
    client
        .append(&[set("cup", 1), set("pot", 30), set("later", 3_600_000)])
        .await;
    client
        .show_when("alarm", "have rung", |shown| {
            shown
                .timers
                .as_ref()
                .is_some_and(|timers| timers.pending == 1)
        })
        .await;
    let last = client.append(&[set("late", 3_600_000)]).await;
    client.reached("alarm", last.last_sequence).await;
    let text = plays(&host, "alarm", "alarm");
    assert!(
        text.contains("fire: tea/cup") && text.contains("fire: tea/pot"),
        "{text}"
    );
}

#[tokio::test]
async fn what_came_from_a_server_is_recorded_with_its_times() {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    nats::create_stream(&context, "ORDERS", "orders.>").await;
    let host = Host::start_with(&jetstream_source(&server.url(), "ORDERS")).await;
    let orders = (1..=20).map(|number| {
        let data = json!({ "order": number.to_string(), "total_cents": number });
        (
            format!("orders.c{}.placed", number % 3),
            data.to_string().into_bytes().into(),
        )
    });
    let last = nats::publish(&context, orders).await;
    host.client()
        .deploy("order-totals", &guests::module("order-totals"))
        .await;
    host.client().reached("order-totals", last).await;
    let text = plays(&host, "order-totals", "order-totals");
    assert_eq!(text.matches("subject:").count(), 20, "{text}");
}
