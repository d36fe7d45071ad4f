//! CloudEvents in each of their forms, in and out; and times, which never go back however events
//! come in.

use foldstream::api::{Appended, EventPage, StoredEvent};
use foldstream_tests::cli;
use foldstream_tests::client::{Answer, Client};
use foldstream_tests::host::Host;
use reqwest::Method;
use serde_json::{Value, json};

const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

fn minimal() -> Value {
    json!({ "specversion": "1.0", "id": "minimal", "type": "io.example.test", "source": "https://example.io" })
}

fn with(name: &str, value: Value) -> Value {
    let mut event = minimal();
    event[name] = value;
    event
}

async fn post(client: &Client, content_type: &str, body: &Value) -> Answer {
    client
        .post("/v1/events", content_type, body.to_string())
        .await
}

async fn stored(client: &Client) -> Vec<StoredEvent> {
    client
        .get("/v1/events?limit=10000")
        .await
        .expect(200)
        .json::<EventPage>()
        .events
}

/// Events of the kinds in the CloudEvents project's own set of tests for JSON, and more: what is
/// wrong with each.
fn invalid() -> Vec<(&'static str, Value)> {
    let mut events = vec![
        ("data and data_base64", {
            let mut event = with("data", json!("text"));
            event["data_base64"] = json!("YQ==");
            event
        }),
        ("data_base64", with("data_base64", json!("%"))),
        ("data_base64", with("data_base64", json!(7))),
        ("MyExtension", with("MyExtension", json!("bad"))),
        ("my.extension", with("my.extension", json!("bad"))),
        ("my_extension", with("my_extension", json!("bad"))),
        ("xxxxxxxx", with(&"x".repeat(100), json!("bad"))),
        ("extension", with("extension", json!(1.5))),
        ("extension", with("extension", json!(2_147_483_648_u64))),
        ("extension", with("extension", json!({ "a": 1 }))),
        ("extension", with("extension", json!("a\nb"))),
    ];
    for name in ["specversion", "id", "type", "source"] {
        events.extend(
            [Value::Null, json!(""), json!(25), json!({ "a": "b" })]
                .map(|value| (name, with(name, value))),
        );
        let mut without = minimal();
        without
            .as_object_mut()
            .expect("an event is an object")
            .remove(name);
        events.push((name, without));
    }
    events.extend(
        ["0.3", "0.9", "1.1", "1.0.2"]
            .map(|version| ("specversion", with("specversion", json!(version)))),
    );
    let times = [
        "lunchtime",
        "2018-04-05T18:31Z",
        "2018-04-05T18:31:00X",
        "2018-04-05T18:31:00+25:00",
        "2018-04-05T18:31:00+xx:00",
        "2018-04-05T18:31:00+05",
        "2018-04-05",
        "",
    ];
    events.extend(times.map(|time| ("time", with("time", json!(time)))));
    events.extend(
        ["xyz", "", "text/"]
            .map(|media| ("datacontenttype", with("datacontenttype", json!(media)))),
    );
    events.extend(
        ["", "schema.json", "/schema"]
            .map(|schema| ("dataschema", with("dataschema", json!(schema)))),
    );
    events.extend([json!(""), json!(7)].map(|subject| ("subject", with("subject", subject))));
    events
}

#[tokio::test]
async fn every_invalid_event_is_refused_by_the_name_of_what_is_wrong() {
    let host = Host::start().await;
    let client = host.client();
    for (name, event) in invalid() {
        let alone = post(client, STRUCTURED, &event)
            .await
            .problem(400, "invalid");
        assert!(alone.detail.contains(name), "{event}: {}", alone.detail);
        let batch = post(client, BATCH, &json!([minimal(), event]))
            .await
            .problem(400, "invalid");
        assert!(
            batch.detail.starts_with("event 1 is refused") && batch.detail.contains(name),
            "{}",
            batch.detail
        );
        let line = client
            .post("/v1/events", "application/x-ndjson", event.to_string())
            .await;
        // Without a specversion a line is an event of our own format.
        if event.get("specversion").is_some() {
            assert!(
                line.problem(400, "invalid").detail.contains(name),
                "{event}"
            );
        }
    }
    for batch in [json!(["not an object", minimal()]), json!({}), json!(7)] {
        post(client, BATCH, &batch).await.problem(400, "invalid");
    }
    assert_eq!(stored(client).await.len(), 0);
}

#[tokio::test]
async fn every_valid_event_is_taken_and_reported_by_source_and_id() {
    let host = Host::start().await;
    let client = host.client();
    assert_eq!(
        post(client, BATCH, &json!([]))
            .await
            .expect(200)
            .json::<Appended>()
            .sequences,
        [0_u64; 0]
    );
    let optional = json!({
        "specversion": "1.0", "id": "1", "type": "io.example.test", "source": "#fragment", "subject": null, "time": null,
        "dataschema": null, "datacontenttype": null, "extension": null, "data": null, "data_base64": null
    });
    let all = json!({
        "specversion": "1.0", "id": "2", "type": "io.example.test", "source": "https://example.io",
        "datacontenttype": "TEXT/Plain; CharSet=utf-8", "dataschema": "https://example.io/schema", "subject": "a b.>",
        "time": "2018-04-05T18:31:00.123+01:00", "extinteger": 10, "extboolean": true, "exturiref": "//authority/path",
        "extbinary": "TWE=", "exttimestamp": "2018-04-05T17:31:00Z", "exturi": "urn:oid:1.2.3", "extstring": "a text",
        "data": "Simple text"
    });
    let first = client
        .post(
            "/v1/events",
            "Application/CloudEvents+JSON; charset=UTF-8",
            optional.to_string(),
        )
        .await;
    first.expect(200);
    let again = post(client, BATCH, &json!([all, optional, minimal(), minimal()]))
        .await
        .expect(200)
        .json::<Appended>();
    assert_eq!((again.duplicates, again.sequences), (2, vec![2, 1, 3, 3]));
    let events = stored(client).await;
    assert_eq!(
        (events[0].data.clone(), events[1].data.clone()),
        (Value::Null, json!("Simple text"))
    );
    let header = |name: &str| events[1].headers[name].as_str();
    assert_eq!(
        (
            header("ce-extinteger"),
            header("ce-extboolean"),
            header("ce-subject")
        ),
        ("10", "true", "a b.>")
    );
    assert_eq!(header("content-type"), "TEXT/Plain; CharSet=utf-8");
    let texts = ["exttimestamp", "exturi", "extstring"].map(|name| header(&format!("ce-{name}")));
    assert_eq!(texts, ["2018-04-05T17:31:00Z", "urn:oid:1.2.3", "a text"]);
}

#[tokio::test]
async fn attributes_may_be_headers_of_the_request() {
    let host = Host::start().await;
    let client = host.client();
    let request = |more: &[(&str, &str)]| {
        let headers = [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("CE-Type", "two words"),
            ("ce-source", "/s"),
        ];
        let mut request = client
            .request(Method::POST, "/v1/events")
            .body("{\"a\": 1.10}");
        for (name, value) in headers
            .iter()
            .filter(|(name, _)| more.iter().all(|(other, _)| name != other))
            .chain(more)
        {
            request = request.header(*name, *value);
        }
        request
    };
    let more = [
        ("content-type", "application/json"),
        ("ce-subject", "Euro%20%E2%82%AC"),
        ("ce-time", "2018-04-05T17:31:00Z"),
    ];
    client.send(request(&more)).await.expect(200);
    let again = client
        .send(request(&more))
        .await
        .expect(200)
        .json::<Appended>();
    assert_eq!(again.duplicates, 1);
    let [event] = &stored(client).await[..] else {
        panic!("one event")
    };
    assert_eq!(
        (event.subject.as_str(), event.kind.as_str()),
        ("two%20words", "two words")
    );
    assert_eq!(
        (
            event.headers["ce-subject"].as_str(),
            event.headers["content-type"].as_str()
        ),
        ("Euro €", "application/json")
    );
    assert_eq!(
        (&event.data, event.time.as_str()),
        (&json!({ "a": 1.10 }), "2018-04-05T17:31:00.000000000Z")
    );
    for (name, value, said) in [
        ("ce-id", "", "attribute id"),
        ("ce-time", "lunchtime", "attribute time"),
        ("ce-subject", "%C0%A0", "ce-subject"),
        ("ce-datacontenttype", "text/plain", "content-type"),
        ("content-type", "xyz", "attribute datacontenttype"),
    ] {
        let problem = client
            .send(request(&[(name, value)]))
            .await
            .problem(400, "invalid");
        assert!(problem.detail.contains(said), "{}", problem.detail);
    }
    for unknown in [
        "application/cloudevents+avro",
        "application/cloudevents-batch+xml",
        "application/cloudevents+protobuf",
    ] {
        let problem = client
            .send(request(&[("content-type", unknown)]))
            .await
            .problem(415, "unsupported-media-type");
        assert!(problem.detail.contains(STRUCTURED), "{}", problem.detail);
    }
}

fn imported(host: &Host, arguments: &[&str], input: &str) -> Value {
    let arguments = [&["events", "import", "-", "-o", "json"], arguments].concat();
    cli::on_with_input(host, &arguments, input).expect(0).json()
}

#[tokio::test]
async fn a_file_of_cloud_events_is_imported_however_they_follow_each_other() {
    let host = Host::start().await;
    let event = |id: &str| with("id", json!(id));
    let lines = format!(
        "{}\n\n{}\n{{\"subject\":\"our.own\"}}\n",
        event("1"),
        event("2")
    );
    assert_eq!(imported(&host, &[], &lines)["events"], 3);
    let pretty = serde_json::to_string_pretty(&json!([event("3"), event("4")])).expect("JSON");
    assert_eq!(imported(&host, &[], &pretty)["last_sequence"], 5);
    let single = serde_json::to_string_pretty(&event("5")).expect("JSON");
    assert_eq!(
        imported(&host, &[], &format!("\u{feff}{single}\n{single}"))["duplicates"],
        1
    );
    assert_eq!(
        imported(&host, &[], &lines)["duplicates"],
        2,
        "an own event without an id is a new one"
    );
    assert_eq!(imported(&host, &[], "[]")["events"], 0);
    let subjects: Vec<String> = stored(host.client())
        .await
        .into_iter()
        .map(|event| event.subject)
        .collect();
    assert_eq!(
        subjects[..3],
        ["io.example.test", "io.example.test", "our.own"]
    );

    let arguments = ["--subject", "flights.{subject}.{type}"];
    let flight = |kind: &str| json!({ "specversion": "1.0", "id": kind, "source": "/s", "type": kind, "subject": "N 1.4*" });
    imported(
        &host,
        &arguments,
        &format!("{}\n{}\n", flight("flight.departed"), flight(">")),
    );
    let subjects: Vec<String> = stored(host.client())
        .await
        .into_iter()
        .map(|event| event.subject)
        .collect();
    assert_eq!(
        subjects[7..],
        [
            "flights.N%201%2E4%2A.flight%2Edeparted",
            "flights.N%201%2E4%2A.%3E"
        ]
    );

    let malformed = format!(
        "[\n{},\n{}\n]",
        event("6"),
        with("time", json!("lunchtime"))
    );
    let output = cli::on_with_input(&host, &["events", "import", "-"], &malformed).expect(4);
    assert!(
        output
            .stderr
            .contains("standard input:3: is not a CloudEvent: attribute time"),
        "{}",
        output.stderr
    );
    assert!(
        output.stderr.contains("the first event was imported"),
        "{}",
        output.stderr
    );
    let output = cli::on_with_input(
        &host,
        &["events", "import", "-", "--subject", "a.{"],
        &lines,
    )
    .expect(2);
    assert!(output.stderr.contains("{name:tokens}"), "{}", output.stderr);
}

#[tokio::test]
async fn what_is_exported_as_cloud_events_comes_back_equal() {
    let host = Host::start().await;
    let client = host.client();
    post(
        client,
        STRUCTURED,
        &with("data", json!({ "z": 1.5, "a": ["x", null] })),
    )
    .await
    .expect(200);
    let text = json!({
        "specversion": "1.0", "id": "100%", "type": "io.example.text", "source": "two words", "datacontenttype": "text/plain",
        "time": "2018-04-05T17:31:00+02:00", "traceparent": "00-1-2-00", "number": 7, "data": "123"
    });
    client
        .post("/v1/events?subject=a.b", STRUCTURED, text.to_string())
        .await
        .expect(200);
    let octets = json!({
        "specversion": "1.0", "id": "3", "type": "io.example.octets", "source": "/s", "datacontenttype": "image/png",
        "data_base64": "/wA="
    });
    post(client, STRUCTURED, &octets).await.expect(200);
    let binary = json!({ "events": [{
        "subject": "a.c", "data": { "n": 1 },
        "headers": { "ce-specversion": "1.0", "ce-id": "4%20", "ce-source": "/s", "ce-type": "made", "X-Two": "2" }
    }] });
    client
        .post("/v1/events", "application/json", binary.to_string())
        .await
        .expect(200);
    let plain =
        json!({ "events": [{ "subject": "orders.1.placed", "data": "text", "id": "own" }] });
    client
        .post("/v1/events", "application/json", plain.to_string())
        .await
        .expect(200);

    let exported = cli::on(&host, &["events", "export", "--format", "cloudevents"])
        .expect(0)
        .stdout;
    let other = Host::start().await;
    assert_eq!(imported(&other, &[], &exported)["events"], 5);
    let facts = |events: Vec<StoredEvent>| -> Vec<Value> {
        let fact = |mut event: StoredEvent| {
            event.headers.remove("nats-msg-id");
            json!([
                event.subject,
                event.kind,
                event.headers,
                event.data,
                event.time
            ])
        };
        events.into_iter().map(fact).collect()
    };
    let (given, come) = (
        facts(stored(client).await),
        facts(stored(other.client()).await),
    );
    assert_eq!(given[..3], come[..3]);
    assert_eq!(
        (&given[3][0], &given[3][1], &given[3][3], &given[3][4]),
        (&come[3][0], &come[3][1], &come[3][3], &come[3][4])
    );
    assert_eq!(
        (&come[3][2]["ce-id"], &come[3][2]["x-two"]),
        (&json!("4 "), &json!("2"))
    );
    let attributes = &come[4][2];
    assert_eq!(
        (&attributes["ce-id"], &attributes["ce-source"]),
        (&json!("5"), &json!("/foldstream/events"))
    );
    assert_eq!(
        (&come[4][0], &come[4][3], &come[4][4]),
        (&given[4][0], &given[4][3], &given[4][4])
    );
    assert_eq!(imported(&other, &[], &exported)["duplicates"], 5);
    let own = cli::on(&host, &["events", "export"]).expect(0).stdout;
    let third = Host::start().await;
    imported(&third, &[], &own);
    assert_eq!(facts(stored(third.client()).await), given);
}

#[tokio::test]
async fn times_that_would_go_back_are_reported_or_refused() {
    let host = Host::start().await;
    let now = cli::on(&host, &["events", "append", "a.b", "{}"]).expect(0);
    assert_eq!((now.stdout.as_str(), now.stderr.as_str()), ("1\n", ""));
    let line =
        |day: u32| format!("{{\"subject\":\"a.b\",\"time\":\"2018-04-{day:02}T17:31:00Z\"}}\n");
    let newest_first: String = (1..=5).rev().map(line).collect();
    let refused = cli::on_with_input(
        &host,
        &["events", "import", "-", "--times", "refuse"],
        &newest_first,
    )
    .expect(4);
    assert!(
        refused
            .stderr
            .contains("standard input:1: its time 2018-04-05T17:31:00"),
        "{}",
        refused.stderr
    );
    assert_eq!(
        stored(host.client()).await.len(),
        1,
        "nothing of a request that is refused is stored"
    );
    let output = cli::on_with_input(&host, &["events", "import", "-"], &newest_first).expect(0);
    assert!(
        output.stderr.contains("5 events had times") && output.stderr.contains("never go back"),
        "{}",
        output.stderr
    );
    assert_eq!(imported(&host, &[], &newest_first)["times_raised"], 5);
    assert_eq!(
        imported(&host, &["--times", "ignore"], &newest_first)["times_raised"],
        0
    );
    let cloud_event = with("time", json!("2018-04-05T17:31:00Z"));
    assert_eq!(
        post(host.client(), STRUCTURED, &cloud_event)
            .await
            .expect(200)
            .json::<Appended>()
            .times_raised,
        1
    );
    let again = post(host.client(), STRUCTURED, &cloud_event)
        .await
        .expect(200)
        .json::<Appended>();
    assert_eq!((again.duplicates, again.times_raised), (1, 0));
    let path = "/v1/events?times=refuse";
    let other = json!({ "specversion": "1.0", "id": "2", "type": "t", "source": "/s", "time": "2018-04-05T17:31:00Z" });
    let refused = host
        .client()
        .post(path, STRUCTURED, other.to_string())
        .await
        .problem(409, "conflict");
    assert!(refused.detail.contains("times=raise"), "{}", refused.detail);
    let appended = cli::on(
        &host,
        &["events", "append", "a.b", "--time", "2018-04-05T17:31:00Z"],
    )
    .expect(0);
    assert!(
        appended.stderr.contains("1 event had a time earlier"),
        "{}",
        appended.stderr
    );
}

#[tokio::test]
async fn times_of_a_file_in_their_order_are_kept_and_none_lies_ahead() {
    let host = Host::start().await;
    let flight = |day: u32| with("time", json!(format!("2013-01-{day:02}T05:15:00-05:00")));
    let event = |day: u32| {
        let mut event = flight(day);
        event["id"] = json!(day.to_string());
        event
    };
    let file: String = (1..=9).map(|day| format!("{}\n", event(day))).collect();
    assert_eq!(imported(&host, &[], &file)["times_raised"], 0);
    assert_eq!(
        stored(host.client()).await[0].time,
        "2013-01-01T10:15:00.000000000Z"
    );
    let ahead = |minutes: i64| {
        let time = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(minutes);
        let mut event = with("time", json!(time.to_string()));
        event["id"] = json!(format!("ahead {minutes}"));
        event
    };
    let refused = post(host.client(), STRUCTURED, &ahead(10))
        .await
        .problem(400, "invalid");
    assert!(
        refused.detail.contains("5 minutes ahead"),
        "{}",
        refused.detail
    );
    post(host.client(), STRUCTURED, &ahead(1)).await.expect(200);
    let path = "/v1/events?times=ignore";
    host.client()
        .post(path, STRUCTURED, ahead(10_000).to_string())
        .await
        .expect(200);
}
