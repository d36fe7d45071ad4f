//! CloudEvents in each form that a publisher may use.

use foldstream::batch::Limits;
use foldstream::cloudevents::Recognition;
use foldstream::event::{Event, Headers};
use foldstream::position::Checkpoint;
use foldstream::source::Request;
use foldstream::source::jetstream::{JetStream, Options};

use crate::reading::{Reading, checkpoint, options, request};
use crate::server::{Server, orders, within};

const ENVELOPE: &str = r#"{"specversion":"1.0","id":"1","source":"/shop","type":"made","subject":"cart","data":{"n":1.10}}"#;

async fn publish_one(server: &Server, headers: &[(&str, &str)], body: &str) {
    let mut map = async_nats::HeaderMap::new();
    headers
        .iter()
        .for_each(|(name, value)| map.append(*name, *value));
    let jetstream = server.jetstream().await;
    let sent = jetstream
        .publish_with_headers("orders.ada.x", map, body.to_owned().into())
        .await
        .expect("published");
    within("the event is stored", async { sent.await })
        .await
        .expect("the stream takes events");
}

async fn stream() -> Server {
    let server = Server::start().await;
    server
        .jetstream()
        .await
        .create_stream(orders())
        .await
        .expect("stream");
    server
}

async fn checkpoint_behind(server: &Server, count: usize) -> Checkpoint {
    // One event a batch: a batch that is cut by what has arrived would reach past the place.
    let limits = Limits {
        events: 1,
        bytes: 64 << 20,
    };
    let mut reading = Reading::begin(
        options(server),
        Request {
            limits,
            ..request(&[">"])
        },
    );
    let (mut events, mut last) = (0, None);
    while events < count {
        let batch = reading.next().await.expect("the stream is sound");
        events += batch.events.len();
        last = Some(checkpoint(&batch));
    }
    last.expect("there are events")
}

async fn read(
    server: &Server,
    recognition: Recognition,
    headers: Headers,
    count: usize,
) -> Vec<Event> {
    let options = Options {
        cloudevents: recognition,
        ..options(server)
    };
    let mut reading = Reading::begin(
        options,
        Request {
            wants_headers: headers == Headers::Wanted,
            ..request(&[">"])
        },
    );
    reading.events(count).await.0
}

#[tokio::test]
async fn an_envelope_is_read_alike_however_it_is_announced() {
    let server = stream().await;
    let binary = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/shop"),
        ("ce-type", "made"),
        ("ce-subject", "%63art"),
        ("ce-datacontenttype", "application/json"),
    ];
    let kafka = binary.map(|(name, value)| (name.replace("ce-", "ce_"), value.replace("%63", "c")));
    let kafka: Vec<(&str, &str)> = kafka
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    publish_one(&server, &[], ENVELOPE).await;
    publish_one(
        &server,
        &[(
            "Content-Type",
            "application/cloudevents+json; charset=utf-8",
        )],
        ENVELOPE,
    )
    .await;
    publish_one(
        &server,
        &[("content-type", "application/cloudevents")],
        ENVELOPE,
    )
    .await;
    publish_one(&server, &binary, r#"{"n":1.10}"#).await;
    publish_one(&server, &kafka, r#"{"n":1.10}"#).await;
    for headers in [Headers::Wanted, Headers::Left] {
        for event in read(&server, Recognition::Auto, headers, 5).await {
            assert_eq!(
                (event.kind.as_ref(), event.data.as_str()),
                ("made", Some(r#"{"n":1.10}"#)),
                "{event:?}"
            );
            let expected = (headers == Headers::Wanted).then_some("cart");
            assert_eq!(
                (
                    event.header("ce-subject"),
                    event.header("foldstream-cloudevent-error")
                ),
                (expected, None),
                "{event:?}"
            );
        }
    }
}

#[tokio::test]
async fn what_is_malformed_never_stops_a_reader_and_carries_a_note() {
    let server = stream().await;
    let bodies = [
        ENVELOPE.replace("1.0", "0.3"),
        ENVELOPE.replace("\"/shop\"", "7"),
        ENVELOPE.replace("\"id\":\"1\",", ""),
        ENVELOPE.replace("\"subject\":\"cart\"", "\"time\":\"lunchtime\""),
        ENVELOPE.replace("\"subject\"", "\"Subject\""),
    ];
    for body in &bodies {
        publish_one(&server, &[], body).await;
    }
    publish_one(&server, &[("ce-type", "made"), ("ce-id", "%ff")], "{}").await;
    publish_one(
        &server,
        &[("content-type", "application/cloudevents+avro")],
        "{}",
    )
    .await;
    publish_one(&server, &[], "{\"specversion\": \"of another kind\"}").await;
    let events = read(&server, Recognition::Auto, Headers::Wanted, 8).await;
    let note = |event: &Event| {
        event
            .header("foldstream-cloudevent-error")
            .map(str::to_owned)
    };
    for (event, (body, said)) in
        events.iter().zip(
            bodies
                .iter()
                .zip(["specversion", "source", "id", "time", "Subject"]),
        )
    {
        assert_eq!(
            (event.kind.as_ref(), event.data.as_str()),
            ("x", Some(body.as_str()))
        );
        assert!(
            note(event).is_some_and(|note| note.contains(&format!("attribute {said}"))),
            "{event:?}"
        );
    }
    assert_eq!(
        (events[5].kind.as_ref(), note(&events[5]).is_some()),
        ("made", true)
    );
    assert_eq!(
        (events[6].kind.as_ref(), note(&events[6]).is_some()),
        ("x", true)
    );
    assert_eq!(
        note(&events[7]),
        None,
        "it has none of the other attributes"
    );
    let without = read(&server, Recognition::Auto, Headers::Left, 8).await;
    assert!(
        without
            .iter()
            .zip(&events)
            .all(|(one, other)| (&one.kind, &one.data) == (&other.kind, &other.data))
    );
}

#[tokio::test]
async fn a_source_may_be_set_not_to_look_and_changing_that_loses_no_position() {
    let server = stream().await;
    publish_one(
        &server,
        &[("content-type", "application/cloudevents+json")],
        ENVELOPE,
    )
    .await;
    publish_one(&server, &[], ENVELOPE).await;
    for (recognition, kinds) in [
        (Recognition::Auto, ["made", "made"]),
        (Recognition::Headers, ["made", "x"]),
        (Recognition::Off, ["x", "x"]),
    ] {
        let events = read(&server, recognition, Headers::Left, 2).await;
        assert_eq!(
            [&*events[0].kind, &*events[1].kind],
            kinds,
            "{recognition:?}"
        );
    }
    let applied = checkpoint_behind(&server, 2).await;
    publish_one(&server, &[], "{}").await;
    for recognition in [Recognition::Off, Recognition::Headers] {
        let options = Options {
            cloudevents: recognition,
            ..options(&server)
        };
        let resume = Request {
            resume: Some(applied.clone()),
            ..request(&[">"])
        };
        let (events, _) = Reading::begin(options, resume).events(1).await;
        assert_eq!(events[0].sequence, 3, "{recognition:?}");
    }
}

#[tokio::test]
async fn an_operator_learns_how_the_first_events_are_read() {
    let server = stream().await;
    let source = |recognition| {
        let options = Options {
            cloudevents: recognition,
            ..options(&server)
        };
        JetStream::new(options).expect("the settings are sound")
    };
    let told = async |recognition| source(recognition).info().await;
    assert_eq!(
        told(Recognition::Auto).await.first_events,
        None,
        "there are none"
    );
    let kept = source(Recognition::Auto);
    publish_one(&server, &[], ENVELOPE).await;
    let one = "the first one is read as CloudEvents in JSON, recognised by their attributes";
    assert_eq!(kept.info().await.first_events.as_deref(), Some(one));
    publish_one(&server, &[], "{}").await;
    publish_one(&server, &[], &ENVELOPE.replace("1.0\"", "0.3\"")).await;
    let mixed = format!(
        "{}; and as plain events, whose type is the last token of their subject",
        one.replace("one is", "3 are")
    );
    for info in [kept.info().await, told(Recognition::Auto).await] {
        assert_eq!(info.first_events.as_deref(), Some(mixed.as_str()));
        let noted = |warning: &String| {
            warning.contains("event 3 was meant") && warning.contains("specversion is 0.3")
        };
        assert!(info.warnings.iter().any(noted), "{:?}", info.warnings);
    }
    let plain = told(Recognition::Headers)
        .await
        .first_events
        .expect("there are events");
    assert!(
        plain.contains("though their JSON looks like CloudEvents"),
        "{plain}"
    );
}
