//! The embedded log through its API, and CloudEvents from both sources as a guest sees them.

use std::collections::BTreeMap;

use bytes::Bytes;
use foldstream::api::{Appended, EventPage, NewEvent, StoredEvent};
use foldstream_tests::client::Client;
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::{guests, wait};
use serde_json::{Value, json};

fn event(subject: &str, data: &Value) -> NewEvent {
    NewEvent {
        subject: subject.to_owned(),
        kind: None,
        id: None,
        time: None,
        headers: BTreeMap::new(),
        data: data.clone(),
    }
}

async fn append(client: &Client, body: &Value) -> foldstream_tests::client::Answer {
    client
        .post("/v1/events", "application/json", body.to_string())
        .await
}

#[tokio::test]
async fn appended_events_are_read_back_as_they_were_given() {
    let host = Host::start().await;
    let client = host.client();
    let given = [
        json!({ "b": 1, "a": [true, null, 1.5, "é"] }),
        json!("text"),
        json!({ "$bytes": "AP8B" }),
        json!(12345678901234567890u64),
        Value::Null,
    ];
    let events: Vec<NewEvent> = given.iter().map(|data| event("a.b.c", data)).collect();
    let appended = client.append(&events).await;
    assert_eq!(appended.sequences, [1, 2, 3, 4, 5]);
    let page: EventPage = client.get("/v1/events").await.expect(200).json();
    let data: Vec<Value> = page.events.iter().map(|event| event.data.clone()).collect();
    assert_eq!(data, given);
    assert!(
        page.events
            .iter()
            .all(|event| event.subject == "a.b.c" && event.kind == "c")
    );
    assert_eq!((page.last_sequence, page.next), (5, None));
}

#[tokio::test]
async fn an_append_happens_whole_or_not_at_all() {
    let host = Host::start().await;
    let client = host.client();
    let bad = json!({ "events": [{ "subject": "a.b" }, { "subject": "a.*" }] });
    append(client, &bad).await.problem(400, "invalid");
    let page: EventPage = client.get("/v1/events").await.expect(200).json();
    assert_eq!(page.last_sequence, 0);
}

#[tokio::test]
async fn expectations_guard_an_append() {
    let host = Host::start().await;
    let client = host.client();
    let with = |subject: &str, expectation: Value| {
        let mut body = json!({ "events": [{ "subject": subject, "data": 1 }] });
        body.as_object_mut()
            .expect("an object")
            .extend(expectation.as_object().expect("an object").clone());
        body
    };
    append(client, &with("a.1", json!({ "expected_last_sequence": 0 })))
        .await
        .expect(200);
    append(client, &with("a.1", json!({ "expected_last_sequence": 0 })))
        .await
        .problem(409, "conflict");
    append(
        client,
        &with("a.2", json!({ "expected_last_subject_sequence": 0 })),
    )
    .await
    .expect(200);
    append(
        client,
        &with("a.2", json!({ "expected_last_subject_sequence": 0 })),
    )
    .await
    .problem(409, "conflict");
    let wide = json!({ "expected_last_subject_sequence": 2, "expected_subject": "a.>" });
    append(client, &with("a.3", wide.clone())).await.expect(200);
    append(client, &with("a.3", wide))
        .await
        .problem(409, "conflict");
}

#[tokio::test]
async fn of_concurrent_appends_with_one_expectation_one_wins() {
    let host = Host::start().await;
    let tries: Vec<_> = (0..20)
        .map(|number| {
            let client = host.client().clone();
            let body = json!({ "events": [{ "subject": "a.b", "data": number }], "expected_last_sequence": 0 });
            tokio::spawn(async move { append(&client, &body).await.status.as_u16() })
        })
        .collect();
    let mut statuses = Vec::new();
    for one in tries {
        statuses.push(one.await.expect("it ends"));
    }
    statuses.sort_unstable();
    assert_eq!((statuses[0], statuses[1], statuses[19]), (200, 409, 409));
}

#[tokio::test]
async fn an_event_with_a_known_id_is_not_stored_again_even_after_a_restart() {
    let mut host = Host::start().await;
    let once = NewEvent {
        id: Some("payment-1".to_owned()),
        ..event("a.b", &json!(1))
    };
    let first = host.client().append(std::slice::from_ref(&once)).await;
    let again = host.client().append(std::slice::from_ref(&once)).await;
    assert_eq!(
        (again.sequences, again.duplicates, again.last_sequence),
        (first.sequences.clone(), 1, 1)
    );
    host.restart().await;
    let again = host.client().append(std::slice::from_ref(&once)).await;
    assert_eq!((again.sequences, again.duplicates), (first.sequences, 1));
}

#[tokio::test]
async fn events_are_found_by_subject_and_position() {
    let host = Host::start().await;
    let client = host.client();
    let events: Vec<NewEvent> = (0..100)
        .map(|number| event(&format!("a.{}.x", number % 4), &json!(number)))
        .collect();
    client.append(&events).await;
    let mut found = Vec::new();
    let mut after = 0;
    loop {
        let path = format!("/v1/events?subject=a.3.*&limit=7&after={after}");
        let page: EventPage = client.get(&path).await.expect(200).json();
        assert!(page.events.len() <= 7);
        found.extend(page.events.iter().map(|event| event.sequence));
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(
        found,
        (1..=100)
            .filter(|sequence| (sequence - 1) % 4 == 3)
            .collect::<Vec<u64>>()
    );
}

#[tokio::test]
async fn a_tail_shows_what_is_there_and_what_comes() {
    let host = Host::start().await;
    let client = host.client();
    client
        .append(&[event("a.1", &json!(1)), event("b.1", &json!(2))])
        .await;
    let mut events = client
        .events("/v1/events/tail?after=0&subject=a.*", None)
        .await;
    let mut next = async || -> StoredEvent {
        let event = events.next_of("event").await;
        let stored: StoredEvent = serde_json::from_str(&event.data).expect("an event is JSON");
        assert_eq!(event.id, stored.sequence.to_string());
        stored
    };
    assert_eq!(next().await.sequence, 1);
    client
        .append(&[event("b.2", &json!(3)), event("a.2", &json!(4))])
        .await;
    assert_eq!(next().await.sequence, 4);
}

#[tokio::test]
async fn retention_by_bytes_removes_the_oldest_and_keeps_counting() {
    let host =
        Host::start_with("[sources.events]\nkind = \"embedded\"\nmax_bytes = 100000\n").await;
    let client = host.client();
    for _ in 0..10 {
        let events: Vec<NewEvent> = (0..100)
            .map(|_| event("a.b", &json!("x".repeat(1_000))))
            .collect();
        client.append(&events).await;
    }
    let source = wait::until("old events to be removed", || async {
        let list: foldstream::api::SourceList = client.get("/v1/sources").await.expect(200).json();
        list.sources
            .into_iter()
            .find(|source| source.bytes <= Some(100_000) && source.first_sequence > Some(1))
    })
    .await;
    assert_eq!(source.last_sequence, Some(1_000));
    assert_eq!(
        source.events,
        source.first_sequence.map(|first| 1_001 - first)
    );
}

#[tokio::test]
async fn lines_of_events_are_appended_whole() {
    let host = Host::start().await;
    let lines = "{\"subject\":\"a.1\",\"data\":1}\n{\"subject\":\"a.2\",\"type\":\"made\",\"data\":{\"x\":2}}\n";
    let answer = host
        .client()
        .post("/v1/events", "application/x-ndjson", lines)
        .await
        .expect(200);
    assert_eq!(answer.json::<Appended>().sequences, [1, 2]);
    let page: EventPage = host.client().get("/v1/events").await.expect(200).json();
    assert_eq!(page.events[1].kind, "made");
    host.client()
        .post(
            "/v1/events",
            "application/x-ndjson",
            "{\"subject\":\"a.1\"}\nnot json\n",
        )
        .await
        .problem(400, "invalid");
}

/// What the mischief was told of its last event: its type and its headers.
async fn told(client: &Client, last: u64) -> String {
    client.reached("mischief", last).await;
    client.entry("mischief", "headers").await.expect(200).text()
}

fn assert_cloud_event(told: &str) {
    assert!(told.starts_with("com.example.made "), "{told}");
    for header in [
        "(\"ce-id\", \"e-1\")",
        "(\"ce-source\", \"/shop\")",
        "(\"ce-subject\", \"cart é\")",
        "(\"ce-time\", \"2026-03-01T12:00:00Z\")",
        "(\"ce-correlationid\", \"c-1\")",
        "(\"traceparent\", \"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\")",
    ] {
        assert!(told.contains(header), "{header} is missing in {told}");
    }
}

/// The headers of the binary form.
fn binary_headers() -> BTreeMap<String, String> {
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "e-1"),
        ("ce-type", "com.example.made"),
        ("ce-source", "/shop"),
        ("ce-subject", "cart%20%C3%A9"),
        ("ce-time", "2026-03-01T12:00:00Z"),
        ("ce-correlationid", "c-1"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
    ];
    headers
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn structured() -> Value {
    json!({
        "specversion": "1.0", "id": "e-1", "type": "com.example.made", "source": "/shop", "subject": "cart é",
        "time": "2026-03-01T12:00:00Z", "correlationid": "c-1",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "datacontenttype": "text/plain", "data": "headers"
    })
}

#[tokio::test]
async fn a_cloud_event_in_either_form_from_jetstream_reaches_the_guest_alike() {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    nats::create_stream(&context, "EVENTS", "mischief.>").await;
    let host = Host::start_on(&server, "EVENTS").await;
    host.client()
        .deploy("mischief", &guests::module("mischief"))
        .await;
    let mut headers = async_nats::HeaderMap::new();
    for (name, value) in binary_headers() {
        headers.insert(name, value);
    }
    let publish = async |headers, data: String| {
        let acknowledgement = context
            .publish_with_headers("mischief.a", headers, Bytes::from(data))
            .await;
        acknowledgement
            .expect("the connection takes it")
            .await
            .expect("it is stored")
            .sequence
    };
    let last = publish(headers, "headers".to_owned()).await;
    assert_cloud_event(&told(host.client(), last).await);
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("content-type", "application/cloudevents+json");
    let last = publish(headers, structured().to_string()).await;
    assert_cloud_event(&told(host.client(), last).await);
}

#[tokio::test]
async fn a_cloud_event_in_either_form_from_the_embedded_log_reaches_the_guest_alike() {
    let host = Host::start().await;
    let client = host.client();
    client.deploy("mischief", &guests::module("mischief")).await;
    let binary = NewEvent {
        headers: binary_headers(),
        ..event("mischief.a", &json!("headers"))
    };
    let last = client.append(&[binary]).await.last_sequence;
    assert_cloud_event(&told(client, last).await);
    let path = "/v1/events?subject=mischief.a";
    let answer = client
        .post(
            path,
            "application/cloudevents+json",
            structured().to_string(),
        )
        .await
        .expect(200);
    assert_cloud_event(&told(client, answer.json::<Appended>().last_sequence).await);
    let batch = json!([structured(), structured()]).to_string();
    let answer = client
        .post(path, "application/cloudevents-batch+json", batch)
        .await
        .expect(200);
    assert_cloud_event(&told(client, answer.json::<Appended>().last_sequence).await);
}

#[tokio::test]
async fn an_ordinary_event_has_its_headers_in_lower_case_and_a_type() {
    let host = Host::start().await;
    let client = host.client();
    client.deploy("mischief", &guests::module("mischief")).await;
    let mut plain = event("mischief.made", &json!("headers"));
    let last = client
        .append(std::slice::from_ref(&plain))
        .await
        .last_sequence;
    assert_eq!(told(client, last).await, "made []");
    plain.headers = BTreeMap::from([
        ("X-Two".to_owned(), "2".to_owned()),
        ("Event-Type".to_owned(), "Told".to_owned()),
    ]);
    let last = client.append(&[plain]).await.last_sequence;
    let told = told(client, last).await;
    assert!(
        told.starts_with("Told ") && told.contains("(\"x-two\", \"2\")"),
        "{told}"
    );
}
