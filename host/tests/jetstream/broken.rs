//! Messages that the client cannot read: published over a raw socket, as client libraries refuse to
//! send them.

use foldstream::api::{SourceState, Start};
use foldstream::batch::Limits;
use foldstream::event::Event;
use foldstream::source::{Error, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::reading::{Reading, checkpoint, options, request};
use crate::relay::{Fate, Relay};
use crate::server::{Server, numbered, orders, publish, until, within};

/// A message as it goes over the wire.
struct Raw {
    subject: &'static [u8],
    headers: &'static [u8],
}

const fn headers(headers: &'static [u8]) -> Raw {
    Raw {
        subject: b"orders.x.placed",
        headers,
    }
}

/// Everything that the client is known to drop its connection for.
const BROKEN: &[Raw] = &[
    headers(b"NATS/1.0\r\nuser: Jos\xe9\r\nok: yes\r\n\r\n"),
    headers(b"NATS/1.0\r\nus\xe9r: x\r\nok: yes\r\n\r\n"),
    headers(b"NATS/1.0\r\nuser: a\rb\r\nok: yes\r\n\r\n"),
    headers(b"NATS/1.0\r\nmy user: ada\r\nok: yes\r\n\r\n"),
    headers(b"NATS/1.0\r\nno colon here\r\nok: yes\r\n\r\n"),
    headers(b"NATS/2.0\r\nok: yes\r\n\r\n"),
    headers(b"ok: yes\r\n\r\n"),
    headers(b"\0\0\0\0\r\nok: yes\r\n\r\n"),
    Raw {
        subject: b"orders.\xff.placed",
        headers: b"",
    },
    Raw {
        subject: b"orders.\xff.placed",
        headers: b"NATS/1.0\r\nok: yes\r\n\r\n",
    },
    Raw {
        subject: "orders.a\u{a0}b.placed".as_bytes(),
        headers: b"NATS/1.0\r\nok: yes\r\n\r\n",
    },
];

/// A publisher that checks nothing.
struct Publisher {
    socket: TcpStream,
}

impl Publisher {
    async fn connect(server: &Server) -> Self {
        let mut socket = TcpStream::connect(("127.0.0.1", server.port()))
            .await
            .expect("the server listens");
        let hello = b"CONNECT {\"headers\":true,\"verbose\":false,\"pedantic\":false}\r\n";
        socket.write_all(hello).await.expect("the server reads");
        Self { socket }
    }

    /// Publishes and waits until the server has taken it.
    async fn publish(&mut self, raw: &Raw) {
        self.publish_with(raw, br#"{"number":0}"#).await;
    }

    async fn publish_with(&mut self, raw: &Raw, data: &[u8]) {
        let (length, total) = (raw.headers.len(), raw.headers.len() + data.len());
        let line = match length {
            0 => format!(" {total}\r\n"),
            _ => format!(" {length} {total}\r\n"),
        };
        let verb: &[u8] = if length == 0 { b"PUB " } else { b"HPUB " };
        let message = [
            verb,
            raw.subject,
            line.as_bytes(),
            raw.headers,
            data,
            b"\r\nPING\r\n",
        ]
        .concat();
        self.socket
            .write_all(&message)
            .await
            .expect("the server reads");
        let mut answer = Vec::new();
        within("the server takes a message", async {
            while !answer.ends_with(b"PONG\r\n") {
                let count = self
                    .socket
                    .read_buf(&mut answer)
                    .await
                    .expect("the server writes");
                assert!(
                    count > 0,
                    "the server hung up: {}",
                    String::from_utf8_lossy(&answer)
                );
            }
        })
        .await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains("-ERR"), "{answer}");
    }
}

async fn stream_with(server: &Server, count: u64) {
    let jetstream = server.jetstream().await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..count)).await;
}

async fn stored(server: &Server, count: u64) {
    let jetstream = server.jetstream().await;
    until("the stream has taken all", async || {
        let info = jetstream
            .get_stream("ORDERS")
            .await
            .expect("stream")
            .cached_info()
            .clone();
        (info.state.messages == count).then_some(())
    })
    .await;
}

fn sequences(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.sequence).collect()
}

/// Readers of all kinds: without a filter, with the server's, with the host's, in small batches.
fn requests() -> Vec<Request> {
    let all = Request {
        wants_headers: true,
        ..request(&[">"])
    };
    let filtered = Request {
        wants_headers: true,
        ..request(&["orders.*.placed"])
    };
    let matched = Request {
        wants_headers: true,
        ..request(&["orders.*.placed", "none.>"])
    };
    let small = Request {
        limits: Limits {
            events: 3,
            bytes: 1 << 20,
        },
        ..all.clone()
    };
    vec![all, filtered, matched, small]
}

#[tokio::test]
async fn each_broken_message_is_read_in_its_place_in_a_replay() {
    let server = Server::start().await;
    stream_with(&server, 5).await;
    let mut publisher = Publisher::connect(&server).await;
    let mut expected = 5;
    for raw in BROKEN {
        publisher.publish(raw).await;
        publish(&server.jetstream().await, numbered(0..2)).await;
        expected += 3;
    }
    stored(&server, expected).await;

    for request in requests() {
        let mut reading = Reading::begin(options(&server), request);
        let (events, last) = reading.events(expected as usize).await;
        assert_eq!(sequences(&events), (1..=expected).collect::<Vec<_>>());
        assert_eq!((last.through, last.pending), (expected, 0));
        for (index, raw) in BROKEN.iter().enumerate() {
            let event = &events[5 + 3 * index];
            let told = event.header("foldstream-header-error");
            assert!(told.is_some(), "{index}: {event:?}");
            assert_eq!(
                event.header("ok"),
                (!raw.headers.is_empty()).then_some("yes"),
                "{index}: {event:?}"
            );
            assert_eq!(event.kind, "placed", "{index}");
        }
        assert_eq!(reading.status.borrow().repaired, BROKEN.len() as u64);
        assert_eq!(reading.status.borrow().state, SourceState::Reading);
        let told = events
            .iter()
            .filter(|event| event.header("foldstream-header-error").is_some());
        assert_eq!(told.count(), BROKEN.len());
    }
}

#[tokio::test]
async fn broken_messages_are_read_live_and_at_the_very_beginning() {
    let server = Server::start().await;
    stream_with(&server, 0).await;
    let mut publisher = Publisher::connect(&server).await;
    let mut readings: Vec<Reading> = requests()
        .into_iter()
        .map(|request| Reading::begin(options(&server), request))
        .collect();
    for reading in &mut readings {
        reading.state(SourceState::Reading).await;
    }
    let mut sequence = 0;
    for (index, raw) in BROKEN.iter().enumerate() {
        // Several in a row, sound ones between and none at all.
        for _ in 0..=(index % 3) {
            publisher.publish(raw).await;
            sequence += 1;
        }
        if index % 2 == 1 {
            publish(&server.jetstream().await, numbered(0..1)).await;
            sequence += 1;
        }
        for reading in &mut readings {
            reading.through(sequence).await;
        }
    }
    for reading in &mut readings {
        assert_eq!(
            reading.status.borrow().repaired,
            sequence - BROKEN.len() as u64 / 2
        );
    }
}

#[tokio::test]
async fn event_with_two_content_types_is_recognised_after_a_restart() {
    let server = Server::start().await;
    stream_with(&server, 0).await;
    let mut publisher = Publisher::connect(&server).await;
    let raw = headers(
        b"NATS/1.0\r\nContent-Type: text/plain\r\nContent-Type: \
                        application/cloudevents+json\r\n\r\n",
    );
    let envelope = br#"{"specversion":"1.0","id":"1","source":"/test","type":"order.placed","data":{"number":1}}"#;
    publisher.publish_with(&raw, envelope).await;
    let mut reading = Reading::begin(options(&server), request(&[">"]));
    let (events, last) = reading.events(1).await;
    assert_eq!(events[0].kind, "order.placed");
    let resumed = Request {
        resume: Some(checkpoint(&last)),
        ..request(&[">"])
    };
    let mut reading = Reading::begin(options(&server), resumed);
    assert_eq!(
        reading
            .next()
            .await
            .expect("the stream is the same")
            .through,
        1
    );
}

#[tokio::test]
async fn broken_message_behind_a_deleted_one_is_read() {
    let server = Server::start().await;
    stream_with(&server, 6).await;
    let mut publisher = Publisher::connect(&server).await;
    for raw in &BROKEN[..4] {
        publisher.publish(raw).await;
    }
    stored(&server, 10).await;
    let stream = server
        .jetstream()
        .await
        .get_stream("ORDERS")
        .await
        .expect("stream");
    for deleted in [5, 8] {
        stream.delete_message(deleted).await.expect("deletion");
        for request in requests() {
            let accepting = Request {
                accepts_missing_through: 10,
                ..request
            };
            let mut reading = Reading::begin(options(&server), accepting);
            let events = reading.through(10).await;
            assert_eq!(events.len(), if deleted == 5 { 9 } else { 8 });
        }
    }
}

#[tokio::test]
async fn thousands_of_broken_messages_in_a_row_are_read() {
    let server = Server::start().await;
    stream_with(&server, 1).await;
    let mut publisher = Publisher::connect(&server).await;
    for index in 0..1_200 {
        publisher.publish(&BROKEN[index % BROKEN.len()]).await;
    }
    stored(&server, 1_201).await;
    let mut reading = Reading::begin(options(&server), request(&[">"]));
    let (events, _) = reading.events(1_201).await;
    assert_eq!(sequences(&events), (1..=1_201).collect::<Vec<_>>());
}

#[tokio::test]
async fn checkpoint_at_a_broken_message_is_recognised_and_its_neighbour_never_notices() {
    let server = Server::start().await;
    stream_with(&server, 2).await;
    let jetstream = server.jetstream().await;
    let mut config = orders();
    config.subjects.push("calm.>".to_owned());
    jetstream.update_stream(config).await.expect("update");
    let mut publisher = Publisher::connect(&server).await;
    let mut calm = Reading::begin(
        options(&server),
        Request {
            start: Start::Beginning,
            ..request(&["calm.>"])
        },
    );
    calm.state(SourceState::Reading).await;

    let mut sequence = 2;
    for raw in BROKEN {
        publisher.publish(raw).await;
        sequence += 1;
        let mut reading = Reading::begin(options(&server), request(&[">"]));
        let (events, last) = reading.events(sequence).await;
        assert_eq!(sequences(&events[events.len() - 1..]), [sequence as u64]);
        // The proof of the stream meets the broken message.
        let resumed = Request {
            resume: Some(checkpoint(&last)),
            ..request(&[">"])
        };
        let mut reading = Reading::begin(options(&server), resumed);
        assert_eq!(
            reading
                .next()
                .await
                .expect("the stream is the same")
                .through,
            sequence as u64
        );
    }
    publish(&jetstream, [("calm.1".to_owned(), "{}".to_owned())]).await;
    assert_eq!(sequences(&calm.events(1).await.0), [sequence as u64 + 1]);
    assert_eq!(calm.status.borrow().reconnects, 0);
}

/// Makes answers about a message unreadable, in one of some ways, this often.
async fn garble(server: &Server, sequence: u64, way: usize, times: usize) -> Relay {
    let judge = |subject: &str, body: &[u8]| {
        if subject.contains("STREAM.MSG.GET") && !body.is_empty() {
            Fate::Garble
        } else {
            Fate::Pass
        }
    };
    let mut left = times;
    Relay::start(server, judge, move |answer| {
        if answer["message"]["seq"] != sequence || left == 0 {
            return false;
        }
        left -= 1;
        match way {
            0 => answer["message"]["hdrs"] = "!".into(),
            1 => answer["message"]["time"] = "noon".into(),
            _ => answer["message"]["subject"] = serde_json::json!(["no text"]),
        }
        true
    })
    .await
}

/// A stream of orders and of others, with a broken message behind others: sequence 6 of 7.
async fn broken_behind_others(server: &Server) {
    let jetstream = server.jetstream().await;
    let mut config = orders();
    config.subjects.push("calm.>".to_owned());
    jetstream.create_stream(config).await.expect("stream");
    publish(&jetstream, numbered(0..3)).await;
    publish(
        &jetstream,
        ["1", "2"].map(|number| (format!("calm.{number}"), "{}".to_owned())),
    )
    .await;
    Publisher::connect(server).await.publish(&BROKEN[0]).await;
    publish(&jetstream, numbered(1..2)).await;
}

#[tokio::test]
async fn a_message_that_cannot_be_read_at_all_is_named_and_can_be_skipped() {
    for way in 0..3 {
        let server = Server::start().await;
        broken_behind_others(&server).await;
        let relay = garble(&server, 6, way, usize::MAX).await;
        for (subjects, before) in [(&[">"], 5), (&["orders.>"], 3)] {
            let hits = relay.hits();
            let mut reading = Reading::begin(Relay::options(&server), request(subjects));
            let (events, error) = reading.error().await;
            assert_eq!(
                events.len(),
                before,
                "all that precedes it is read: {subjects:?}"
            );
            assert!(
                matches!(error, Error::Unreadable { sequence: 6, .. }),
                "{subjects:?}: {error}"
            );
            assert_eq!(
                (error.kind(), error.sequence()),
                ("source-unreadable", Some(6))
            );
            assert!(
                relay.hits() >= hits + 3,
                "a single bad answer stops nothing"
            );

            let skipping = Request {
                skips: [6].into(),
                ..request(subjects)
            };
            let mut reading = Reading::begin(Relay::options(&server), skipping);
            let events = reading.through(7).await;
            assert_eq!(sequences(&events[before..]), [7], "{subjects:?}");
        }
    }
}

#[tokio::test]
async fn an_unreadable_answer_that_does_not_repeat_stops_nothing() {
    let server = Server::start().await;
    broken_behind_others(&server).await;
    let relay = garble(&server, 6, 0, 2).await;
    let mut reading = Reading::begin(Relay::options(&server), request(&["orders.>"]));
    let (events, _) = reading.events(5).await;
    assert_eq!(sequences(&events), [1, 2, 3, 6, 7]);
    assert_eq!((relay.hits(), reading.status.borrow().repaired), (2, 1));
}
