//! What a reader does with a sound stream.

use async_nats::jetstream::stream::Config;
use foldstream::api::{SourceState, Start};
use foldstream::batch::{Batch, Limits};
use foldstream::event::Event;
use foldstream::position::Checkpoint;
use foldstream::source::jetstream::{JetStream, Options, Reader};
use foldstream::source::{Error, OnMissing, Request, initial_status};
use foldstream::subject::SubjectSet;
use tokio::sync::watch;

use crate::server::{DEADLINE, Server, numbered, orders, publish, until, within};

pub(crate) fn options(server: &Server) -> Options {
    Options {
        name: "test".to_owned(),
        stream: "ORDERS".to_owned(),
        servers: vec![server.url()],
        ..Options::default()
    }
}

pub(crate) fn request(subjects: &[&str]) -> Request {
    Request {
        resume: None,
        start: Start::Beginning,
        subjects: SubjectSet::parse(subjects).expect("subjects are sound"),
        wants_headers: false,
        limits: Limits::default(),
        begins_after: None,
        accepts_missing_through: 0,
        skips: std::sync::Arc::default(),
    }
}

/// A reader with what it tells about itself.
pub(crate) struct Reading {
    pub reader: Reader,
    pub status: watch::Receiver<foldstream::source::Status>,
}

impl Reading {
    pub(crate) fn begin(options: Options, request: Request) -> Self {
        let (sender, status) = watch::channel(initial_status());
        let source = JetStream::new(options).expect("the settings are sound");
        Self {
            reader: source.read(request, sender),
            status,
        }
    }

    pub(crate) async fn next(&mut self) -> Result<Batch, Error> {
        match tokio::time::timeout(DEADLINE, self.reader.next()).await {
            Ok(result) => result,
            Err(_) => panic!("no batch within {DEADLINE:?}: {:?}", *self.status.borrow()),
        }
    }

    /// Reads until `count` events have come; returns them and the last batch.
    pub(crate) async fn events(&mut self, count: usize) -> (Vec<Event>, Batch) {
        let mut events = Vec::new();
        let mut last = 0;
        loop {
            let batch = self.next().await.expect("the stream is sound");
            assert!(batch.through >= last, "positions never fall");
            for event in &batch.events {
                assert!(
                    event.sequence > last && event.sequence <= batch.through,
                    "events come in order"
                );
                last = event.sequence;
            }
            last = batch.through;
            events.extend(batch.events.iter().cloned());
            if events.len() >= count {
                return (events, batch);
            }
        }
    }

    /// Reads until the position has come to a sequence; returns the events on the way.
    pub(crate) async fn through(&mut self, sequence: u64) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let batch = self.next().await.expect("the stream is sound");
            events.extend(batch.events);
            if batch.through >= sequence {
                return events;
            }
        }
    }

    /// The batch with which the position comes to a sequence.
    pub(crate) async fn batch_through(&mut self, sequence: u64) -> Batch {
        loop {
            let batch = self.next().await.expect("the stream is sound");
            if batch.through >= sequence {
                return batch;
            }
        }
    }

    /// Reads until the reader stops.
    pub(crate) async fn error(&mut self) -> (Vec<Event>, Error) {
        let mut events = Vec::new();
        loop {
            match self.next().await {
                Ok(batch) => events.extend(batch.events),
                Err(error) => return (events, error),
            }
        }
    }

    /// Lets the reader run until it shows a state. The reader must have nothing to hand out
    /// meanwhile.
    pub(crate) async fn state(&mut self, state: SourceState) -> String {
        let Self { reader, status } = self;
        within("a state", async {
            tokio::select! {
                batch = async { loop { reader.next().await.expect("the reader continues"); } } => batch,
                status = status.wait_for(|status| status.state == state) => {
                    status.expect("the reader lives").message.clone().unwrap_or_default()
                }
            }
        })
        .await
    }
}

pub(crate) fn checkpoint(batch: &Batch) -> Checkpoint {
    batch.checkpoint(None, batch.events.last(), batch.through)
}

pub(crate) fn numbers(events: &[Event]) -> Vec<u64> {
    let number = |event: &Event| {
        let value: serde_json::Value =
            serde_json::from_slice(event.data.as_bytes()).expect("data is JSON");
        value["number"].as_u64().expect("data has a number")
    };
    events.iter().map(number).collect()
}

#[tokio::test]
async fn all_events_come_in_order_with_head_and_pending() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..20_000)).await;

    let mut reading = Reading::begin(options(&server), request(&[">"]));
    let (events, last) = reading.events(20_000).await;

    assert_eq!(numbers(&events), (0..20_000).collect::<Vec<_>>());
    assert_eq!((last.through, last.head, last.pending), (20_000, 20_000, 0));
    assert_eq!(last.stream.name, "ORDERS");
    assert_eq!(&*events[7].subject, "orders.7.placed");
    assert_eq!(&*events[7].kind, "placed");
    assert!(events[7].time_ns > 1_700_000_000_000_000_000);
    assert_eq!(reading.status.borrow().state, SourceState::Reading);
}

#[tokio::test]
async fn batches_keep_to_their_limits() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..1_000)).await;
    for limits in [
        Limits {
            events: 10,
            bytes: 1 << 20,
        },
        Limits {
            events: 1_000,
            bytes: 600,
        },
    ] {
        let mut reading = Reading::begin(
            options(&server),
            Request {
                limits,
                ..request(&[">"])
            },
        );
        let mut events = Vec::new();
        while events.len() < 1_000 {
            let batch = reading.next().await.expect("the stream is sound");
            assert!(
                batch.events.len() <= limits.events && batch.bytes() <= limits.bytes,
                "{limits:?}"
            );
            assert_eq!(
                batch.through,
                batch
                    .events
                    .last()
                    .map_or(batch.through, |event| event.sequence)
            );
            events.extend(batch.events);
        }
        assert_eq!(numbers(&events), (0..1_000).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn reader_resumes_behind_its_checkpoint() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..3_000)).await;
    let limits = Limits {
        events: 700,
        bytes: 1 << 20,
    };
    let mut reading = Reading::begin(
        options(&server),
        Request {
            limits,
            ..request(&[">"])
        },
    );
    let mut expected = 0;
    // Each round resumes where the one before stopped, through a new reader.
    while expected < 3_000 {
        let (events, batch) = reading.events(1).await;
        let count = events.len() as u64;
        assert_eq!(
            numbers(&events),
            (expected..expected + count).collect::<Vec<_>>()
        );
        expected += count;
        let resume = Some(checkpoint(&batch));
        reading = Reading::begin(
            options(&server),
            Request {
                resume,
                limits,
                ..request(&[">"])
            },
        );
    }
}

#[tokio::test]
async fn caught_up_reader_says_so_and_passes_on_single_events() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(orders()).await.expect("stream");

    let mut reading = Reading::begin(options(&server), request(&[">"]));
    let first = reading.next().await.expect("the stream is sound");
    assert_eq!(
        (first.events.len(), first.through, first.head, first.pending),
        (0, 0, 0, 0)
    );

    for number in 0..20 {
        publish(&jetstream, numbered(number..number + 1)).await;
        let batch = reading.next().await.expect("the stream is sound");
        assert_eq!(numbers(&batch.events), [number]);
        assert_eq!(
            (batch.through, batch.head, batch.pending),
            (number + 1, number + 1, 0)
        );
    }
    let resume = Some(Checkpoint::at(20, (*first.stream).clone()));
    let mut resumed = Reading::begin(
        options(&server),
        Request {
            resume,
            ..request(&[">"])
        },
    );
    let batch = resumed.next().await.expect("the stream is sound");
    assert_eq!(
        (batch.events.len(), batch.through, batch.head, batch.pending),
        (0, 20, 20, 0)
    );
}

#[tokio::test]
async fn several_patterns_match_exactly_what_they_say() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    let config = Config {
        subjects: vec!["orders.>".to_owned(), "audit.>".to_owned()],
        ..orders()
    };
    jetstream.create_stream(config).await.expect("stream");
    let subjects = [
        "orders.1.placed",
        "orders.1.paid",
        "orders.1.lost",
        "audit.1.paid",
        "orders.1.paid.twice",
    ];
    publish(
        &jetstream,
        subjects
            .iter()
            .map(|subject| ((*subject).to_owned(), String::new())),
    )
    .await;

    for (patterns, expected) in [
        (&["orders.*.placed", "orders.*.paid"][..], vec![1, 2]),
        (&["orders.*.paid", "audit.>"][..], vec![2, 4]),
        (&["orders.*.paid"][..], vec![2]),
        (&["orders.>"][..], vec![1, 2, 3, 5]),
        (&["nothing.>", "never"][..], vec![]),
        (&["nothing.>"][..], vec![]),
    ] {
        let mut reading = Reading::begin(options(&server), request(patterns));
        let events = reading.through(5).await;
        let sequences: Vec<u64> = events.iter().map(|event| event.sequence).collect();
        assert_eq!(sequences, expected, "{patterns:?}");
    }
}

#[tokio::test]
async fn idle_filtered_reader_moves_over_events_for_others() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    let config = Config {
        subjects: vec!["orders.>".to_owned(), "audit.>".to_owned()],
        ..orders()
    };
    jetstream.create_stream(config).await.expect("stream");
    publish(&jetstream, numbered(0..3)).await;
    let mut reading = Reading::begin(options(&server), request(&["orders.>"]));
    assert_eq!(reading.events(3).await.1.through, 3);

    publish(
        &jetstream,
        (0..500).map(|_| ("audit.noise".to_owned(), "{}".to_owned())),
    )
    .await;
    assert!(reading.through(503).await.is_empty());
    publish(&jetstream, numbered(3..4)).await;
    let batch = reading.next().await.expect("the stream is sound");
    assert_eq!(
        (numbers(&batch.events), batch.through, batch.head),
        (vec![3], 504, 504)
    );
}

#[tokio::test]
async fn events_of_any_size_arrive_whole() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(orders()).await.expect("stream");
    // The largest are larger than what one request may take.
    let sizes = [
        1 << 20,
        10,
        0,
        5 << 20,
        7 << 20,
        100,
        3 << 20,
        6 << 20,
        1 << 20,
        1,
    ];
    publish(
        &jetstream,
        sizes
            .iter()
            .map(|size| ("orders.large".to_owned(), "x".repeat(*size))),
    )
    .await;

    let mut reading = Reading::begin(options(&server), request(&[">"]));
    let (events, _) = reading.events(sizes.len()).await;

    assert_eq!(
        events
            .iter()
            .map(|event| event.data.len())
            .collect::<Vec<_>>(),
        sizes
    );
    assert!(
        events
            .iter()
            .all(|event| event.data.as_bytes().iter().all(|byte| *byte == b'x'))
    );
    assert_eq!(
        reading.status.borrow().reconnects,
        0,
        "no consumer was lost on the way"
    );
}

#[tokio::test]
async fn slow_caller_loses_nothing() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..40_000)).await;
    let limits = Limits {
        events: 100,
        bytes: 1 << 20,
    };
    let mut reading = Reading::begin(
        options(&server),
        Request {
            limits,
            ..request(&[">"])
        },
    );
    let (mut events, _) = reading.events(100).await;

    // The caller is away until the server has sent all that it was asked for.
    let stream = jetstream.get_stream("ORDERS").await.expect("stream");
    let names: Vec<String> = {
        use futures_util::TryStreamExt;
        stream
            .consumer_names()
            .try_collect()
            .await
            .expect("consumers")
    };
    until("all is sent that was asked for", async || {
        let info = stream.consumer_info(&names[0]).await.expect("consumer");
        (info.num_waiting == 0).then_some(())
    })
    .await;
    events.extend(reading.events(40_000 - events.len()).await.0);

    assert_eq!(numbers(&events), (0..40_000).collect::<Vec<_>>());
    assert_eq!(reading.status.borrow().reconnects, 0);
}

#[tokio::test]
async fn cancelled_calls_lose_nothing() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..2_000)).await;
    let limits = Limits {
        events: 10,
        bytes: 1 << 20,
    };
    let mut reading = Reading::begin(
        options(&server),
        Request {
            limits,
            ..request(&[">"])
        },
    );
    let mut events = Vec::new();
    within("all events", async {
        while events.len() < 2_000 {
            // Gives up after a single look, also in the middle of connecting and opening.
            tokio::select! {
                biased;
                batch = reading.reader.next() => events.extend(batch.expect("the stream is sound").events),
                () = tokio::task::yield_now() => {}
            }
        }
    })
    .await;
    assert_eq!(numbers(&events), (0..2_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn headers_come_when_asked_for() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(orders()).await.expect("stream");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Trace-Id", "abc");
    headers.insert("Event-Type", "order-placed");
    let sent = jetstream
        .publish_with_headers("orders.1", headers, "{}".into())
        .await
        .expect("published");
    within("the event is stored", async { sent.await })
        .await
        .expect("the stream takes events");

    for (wants_headers, expected) in [(true, Some("abc")), (false, None)] {
        let mut reading = Reading::begin(
            options(&server),
            Request {
                wants_headers,
                ..request(&[">"])
            },
        );
        let (events, _) = reading.events(1).await;
        assert_eq!(events[0].header("trace-id"), expected);
        assert_eq!(&*events[0].kind, "order-placed");
    }
}

#[tokio::test]
async fn deleted_events_stop_a_reader_unless_they_are_accepted() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    let stream = jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..100)).await;
    for sequence in [10, 11, 12, 50, 99, 100] {
        assert!(
            stream.delete_message(sequence).await.expect("deletion"),
            "{sequence}"
        );
    }
    for subjects in [&[">"], &["*.*.placed"]] {
        let (_, error) = Reading::begin(options(&server), request(subjects))
            .error()
            .await;
        assert!(matches!(error, Error::Incomplete { .. }), "{error}");
        let accepting = Request {
            accepts_missing_through: 100,
            ..request(subjects)
        };
        let mut reading = Reading::begin(options(&server), accepting);
        // The last two leave no later event that would tell of them; the server does.
        assert_eq!(reading.through(100).await.len(), 94, "{subjects:?}");
    }
}

#[tokio::test]
async fn stream_that_begins_later_by_design_is_complete() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    let config = Config {
        first_sequence: Some(1_000),
        ..orders()
    };
    jetstream.create_stream(config).await.expect("stream");
    let mut reading = Reading::begin(options(&server), request(&[">"]));
    assert_eq!(
        reading.next().await.expect("the stream is sound").through,
        999
    );
    publish(&jetstream, numbered(0..5)).await;
    assert_eq!(reading.events(5).await.1.through, 1_004);
}

#[tokio::test]
async fn short_lived_events_for_others_are_no_gap() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    let config = Config {
        subjects: vec!["orders.>".to_owned(), "audit.>".to_owned()],
        max_messages: 50,
        ..orders()
    };
    jetstream.create_stream(config).await.expect("stream");
    let mut reading = Reading::begin(options(&server), request(&["orders.>"]));
    reading.next().await.expect("the stream is sound");
    let mut last = 0;
    for round in 0..3 {
        publish(&jetstream, numbered(round..round + 1)).await;
        // Read before the others push it out of the stream.
        assert_eq!(numbers(&reading.events(1).await.0), [round]);
        last += 1;
        // Fewer at once than the stream has room for, so that none goes before it is read.
        for _ in 0..10 {
            let others = (0..40).map(|_| ("audit.noise".to_owned(), "{}".to_owned()));
            publish(&jetstream, others).await;
            last += 40;
            assert!(reading.through(last).await.is_empty());
        }
    }
}

#[tokio::test]
async fn latest_values_of_a_compacting_stream_can_be_read() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    let config = Config {
        max_messages_per_subject: 1,
        ..orders()
    };
    jetstream.create_stream(config).await.expect("stream");
    publish(&jetstream, numbered(0..100)).await;
    let options = Options {
        on_missing: OnMissing::Count,
        ..options(&server)
    };
    for subjects in [&[">"], &["orders.*.placed"]] {
        let mut reading = Reading::begin(options.clone(), request(subjects));
        let (events, last) = reading.events(10).await;
        assert_eq!(numbers(&events), (90..100).collect::<Vec<_>>());
        assert_eq!(
            last.missing_between(0, 100),
            90,
            "{subjects:?}: what is gone is counted"
        );
    }
}

#[tokio::test]
async fn first_available_begins_where_the_stream_begins() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    let stream = jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..100)).await;
    stream.purge().sequence(41).await.expect("purge");
    let start = Start::FirstAvailable;
    let mut reading = Reading::begin(
        options(&server),
        Request {
            start,
            ..request(&[">"])
        },
    );
    assert_eq!(
        numbers(&reading.events(60).await.0),
        (40..100).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn dropped_reader_leaves_no_consumer_behind() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    let mut stream = jetstream.create_stream(orders()).await.expect("stream");
    let mut reading = Reading::begin(options(&server), request(&[">"]));
    reading.next().await.expect("the stream is sound");
    assert_eq!(stream.info().await.expect("info").state.consumer_count, 1);
    drop(reading);
    until("the consumer is gone", async || {
        let info = jetstream
            .get_stream("ORDERS")
            .await
            .expect("stream")
            .cached_info()
            .clone();
        (info.state.consumer_count == 0).then_some(())
    })
    .await;
}
