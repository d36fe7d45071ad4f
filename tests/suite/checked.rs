//! Events and messages validated against the schemas of a module while they are folded: what does not fit
//! fails, and every other fold of the stream comes to the same.

use foldstream::api::{DeployOutcome, FailureClass, GenerationStatus, NewEvent};
use foldstream_tests::cli::{self, Output};
use foldstream_tests::events::new_event;
use foldstream_tests::guests;
use foldstream_tests::host::Host;
use serde_json::{Value, json};

use crate::contracts::{Folder, reads, section, with_section};

const NAME: &str = "order-totals";
const CHECKS: &str = "&check-events=on";
const PARKS: &str = "&on-failure=park";

/// An order that the module can apply, and that fits its schema.
fn valid(customer: &str) -> NewEvent {
    let subject = format!("orders.{customer}.placed");
    new_event(&subject, json!({ "order": "1", "total_cents": 100 }))
}

/// One that the module can apply, and that does not fit.
fn invalid(customer: &str) -> NewEvent {
    let subject = format!("orders.{customer}.placed");
    let data = json!({ "order": "2", "total_cents": 10, "currency": 7 });
    new_event(&subject, data)
}

/// An event of the module `starter`.
fn visit() -> NewEvent {
    new_event("visits.placed", json!({}))
}

fn on(host: &Host, line: &str) -> Output {
    cli::on(host, &line.split(' ').collect::<Vec<_>>())
}

async fn total(host: &Host, customer: &str) -> Value {
    let key = format!("customer/{customer}");
    let entries = host.client().entries(NAME, &key).await;
    entries
        .first()
        .map_or(Value::Null, |entry| entry.value["total_cents"].clone())
}

async fn deploy(host: &Host, parameters: &str) -> foldstream::api::Deployed {
    let module = guests::module(NAME);
    host.client().deploy_with(NAME, &module, parameters).await
}

fn verified(host: &Host) {
    let said = on(host, "verify order-totals").expect(0);
    assert!(said.stdout.contains("same result"), "{said:?}");
}

#[tokio::test]
async fn an_invalid_event_stops_the_deployment_with_its_place_until_it_is_skipped() {
    let mut host = Host::start().await;
    deploy(&host, CHECKS).await;
    let events = [valid("ada"), invalid("ada"), valid("bob")];
    host.client().append(&events).await;
    let (deployment, failure) = host.client().failed(NAME).await;
    assert_eq!(
        (deployment.position, failure.sequence, failure.attempts),
        (1, Some(2), 1)
    );
    assert_eq!(
        (failure.kind.as_str(), failure.class),
        ("invalid", Some(FailureClass::Rejected))
    );
    for wanted in [
        "it does not fit the schema placed at /properties/currency/type: value is not of type \
         \"string\"; the data at `/currency`",
        "--skip 2",
    ] {
        assert!(failure.message.contains(wanted), "{}", failure.message);
    }
    let shown = on(&host, "show order-totals").expect(0).stdout;
    assert!(
        shown.contains("events, against the schemas of the module"),
        "{shown}"
    );
    // It stops at the same event after a restart.
    host.stop();
    host.restart().await;
    let (_, again) = host.client().failed(NAME).await;
    assert_eq!((again.kind.as_str(), again.sequence), ("invalid", Some(2)));
    on(&host, "resume order-totals --skip 2 --reason wrong").expect(0);
    host.client().reached(NAME, 3).await;
    assert_eq!(total(&host, "ada").await, 100);
    verified(&host);
}

#[tokio::test]
async fn checks_begin_where_they_are_turned_on_and_every_fold_agrees() {
    let mut host = Host::start().await;
    deploy(&host, PARKS).await;
    host.client().append(&[valid("ada"), invalid("ada")]).await;
    host.client().reached(NAME, 2).await;
    assert_eq!(total(&host, "ada").await, 110);
    let deployed = deploy(&host, CHECKS).await;
    assert_eq!(deployed.outcome, DeployOutcome::Inherited);
    assert!(
        deployed.reason.contains("events are checked from here on"),
        "{}",
        deployed.reason
    );
    assert_eq!(deployed.deployment.checks_events_after, Some(2));
    // Neither without the option nor with it does anything change now.
    for parameters in ["", CHECKS] {
        let again = deploy(&host, parameters).await;
        assert_eq!(again.outcome, DeployOutcome::Unchanged);
    }
    let valid_ones: Vec<_> = (0..120).map(|_| valid("bob")).collect();
    host.client().append(&valid_ones).await;
    host.client().passed_probation(2).await;
    let events = [invalid("ada"), valid("ada"), valid("bob")];
    let last = host.client().append(&events).await.last_sequence;
    let deployment = host.client().reached(NAME, last).await;
    assert_eq!((deployment.parked.keys, deployment.parked.events), (1, 2));
    assert_eq!(total(&host, "ada").await, 110, "both wait");
    let listed = on(&host, "parked list order-totals").expect(0).stdout;
    assert!(
        listed.contains("ada") && listed.contains("rejected"),
        "{listed}"
    );
    verified(&host);
    let past = on(&host, "get order-totals customer/ada --as-of 2")
        .expect(0)
        .stdout;
    assert!(past.contains("110"), "{past}");
    replays(&host);
    host.kill();
    host.restart().await;
    host.client().reached(NAME, last).await;
    verified(&host);
    // A state of its own is made of checked events only, from the first one.
    deploy(&host, "&strategy=rebuild").await;
    let failed = host
        .client()
        .becomes(NAME, 3, GenerationStatus::Failed)
        .await;
    assert_eq!(
        (failed.failed_at, failed.checks_events_after),
        (Some(2), Some(0))
    );
    // Without checks the code continues that state, or the active one.
    let deployed = deploy(&host, "&check-events=off").await;
    assert_eq!(deployed.outcome, DeployOutcome::Inherited);
    assert_eq!(deployed.deployment.checks_events_after, None);
    on(&host, "parked retry order-totals ada").expect(0);
    host.client()
        .show_when(NAME, "have nothing parked", |shown| shown.parked.keys == 0)
        .await;
    assert_eq!(total(&host, "ada").await, 220);
}

/// The bundle of a parked event fails the same without the host.
fn replays(host: &Host) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("ada.json").display().to_string();
    on(host, &format!("parked export order-totals ada -f {file}")).expect(0);
    let replayed = cli::run(&["replay", &file]).expect(0);
    assert!(
        replayed
            .stdout
            .contains("invalid: event 0 of the batch is invalid")
            && replayed.stderr.contains("reproduced"),
        "{replayed:?}"
    );
}

#[tokio::test]
async fn corrected_schemas_apply_the_event_at_which_the_deployment_stopped() {
    let host = Host::start().await;
    let with_schema = |schema: Value| {
        let schemas = section(&json!([reads("placed", &schema)]));
        with_section(&guests::module("starter"), &schemas)
    };
    let strict = with_schema(json!({ "required": ["nobody-writes-this"] }));
    let client = host.client();
    client.append(&[visit()]).await;
    client.deploy_with("counts", &strict, CHECKS).await;
    client.failed("counts").await;
    let deployed = client.deploy("counts", &with_schema(json!(true))).await;
    assert_eq!(deployed.outcome, DeployOutcome::Inherited);
    assert_eq!(deployed.deployment.checks_events_after, Some(0));
    client.reached("counts", 1).await;
    // Back to the strict one, which decides about later events only.
    client.append(&vec![visit(); 120]).await;
    client.passed_probation(2).await;
    client.append(&[visit()]).await;
    let position = client.reached("counts", 122).await.position;
    let deployed = client.deploy("counts", &strict).await;
    assert_eq!(
        deployed.deployment.checks_events_after,
        Some(position),
        "{}",
        deployed.reason
    );
    // It fails at the next event, and the code before it continues.
    client.append(&[visit()]).await;
    client.becomes("counts", 3, GenerationStatus::Failed).await;
    let shown = client.reached("counts", 123).await;
    assert_eq!(
        (shown.generation, shown.checks_events_after),
        (2, Some(position))
    );
}

/// The example handler, with a schema of what it publishes that nothing fits.
fn publishes_what_does_not_fit() -> Vec<u8> {
    let schemas = json!([{
        "event": "send", "version": 1, "direction": "publishes",
        "schema": { "required": ["nobody-writes-this"] },
    }]);
    with_section(&guests::module("fulfilment"), &section(&schemas))
}

#[tokio::test]
async fn a_message_that_does_not_fit_fails_the_event_that_published_it() {
    let host = Host::start().await;
    let client = host.client();
    let module = publishes_what_does_not_fit();
    let grant = "&allow-publish=shipping.*.send%40events";
    // The second one has no grant, and would drop the message.
    for (name, parameters) in [("sends", grant), ("mute", "&effects-from=beginning")] {
        let parameters = format!("{CHECKS}{parameters}");
        client.deploy_with(name, &module, &parameters).await;
    }
    let events = std::fs::read(guests::folder("fulfilment").join("events.ndjson"))
        .expect("the example has events");
    client
        .post("/v1/events", "application/x-ndjson", events)
        .await
        .expect(200);
    for name in ["sends", "mute"] {
        let (_, failure) = client.failed(name).await;
        assert_eq!(failure.class, Some(FailureClass::Refused), "{failure:?}");
        let wanted = "event-schema: a message to shipping.1001.send: it does not fit the schema send \
                      at /required";
        assert!(failure.message.contains(wanted), "{}", failure.message);
    }
    let sent = client.get("/v1/events?subject=shipping.%3E").await.value();
    assert_eq!(sent["events"], json!([]));
}

#[tokio::test]
async fn modules_that_cannot_check_events_are_refused_and_nothing_changes() {
    let host = Host::start().await;
    let starter = guests::module("starter");
    let upload = async |module: Vec<u8>, parameters: &str| {
        let query = format!("?name=counts{parameters}");
        let answer = host.client().upload(module, &query).await;
        (answer.status.as_u16(), answer.text())
    };
    let (status, text) = upload(starter.clone(), CHECKS).await;
    assert!(
        status == 422 && text.contains("no schemas of events"),
        "{text}"
    );
    let (status, text) = upload(starter.clone(), "&check-events=maybe").await;
    assert_eq!(status, 400, "{text}");
    // An upload may carry it, but a host does not match events against it.
    let large = json!([reads("a", &json!({ "pattern": "(?:\\w{60}){60}" }))]);
    let large = with_section(&starter, &section(&large));
    let (status, text) = upload(large.clone(), CHECKS).await;
    assert!(
        status == 422 && text.contains("can't check events"),
        "{text}"
    );
    host.client()
        .get("/v1/deployments/counts")
        .await
        .expect(404);
    let (status, text) = upload(large, "").await;
    assert_eq!(status, 201, "{text}");
}

#[tokio::test]
async fn hostile_schemas_fail_events_and_harm_no_neighbour() {
    let host = Host::start().await;
    let starter = guests::module("starter");
    let nested = (0..12).fold(
        json!({ "properties": { "a": true } }),
        |inner, _| json!({ "allOf": [inner], "unevaluatedProperties": false }),
    );
    let schemas = json!([reads("placed", &nested)]);
    let module = with_section(&starter, &section(&schemas));
    host.client().deploy_with("hostile", &module, CHECKS).await;
    deploy(&host, CHECKS).await;
    let large = new_event("visits.placed", json!({ "a": "x".repeat(60_000) }));
    host.client().append(&[large, valid("ada")]).await;
    host.client().reached(NAME, 2).await;
    let (_, failure) = host.client().failed("hostile").await;
    assert_eq!(failure.kind, "invalid");
    assert!(
        failure.message.contains("schema-steps"),
        "{}",
        failure.message
    );
}

const SCENARIOS: &str = "
scenarios:
  - name: stops
    check_events: true
    when: [{ subject: orders.ada.placed, data: { order: '2', total_cents: 1, currency: 7 } }]
    then: { position: 0, failure: { kind: invalid, message: /currency, event: 1 } }
  - name: parks
    check_events: true
    on_failure: park
    when:
      - { subject: orders.ada.placed, data: { order: '2', total_cents: 1, currency: 7 } }
      - { subject: orders.bob.placed, data: { order: '3', total_cents: 1 } }
    then: { position: 2, parked: [ada] }
  - name: does not expect it
    check_events: true
    when: [{ subject: orders.ada.placed, data: { order: '2', total_cents: 1, currency: 7 } }]
    then: { position: 1 }
";

#[test]
fn scenarios_check_events_as_a_deployment_does() {
    let folder = Folder::new(&[]);
    let file = folder.write("scenarios.yaml", SCENARIOS);
    let module = guests::path(NAME).to_string_lossy().into_owned();
    let output = cli::run(&["test", &module, &file]).expect(1).stdout;
    for wanted in [
        "ok    stops",
        "ok    parks",
        "FAIL  does not expect it",
        "3 scenarios: 2 passed, 1 failed",
    ] {
        assert!(output.contains(wanted), "{wanted}: {output}");
    }
}
