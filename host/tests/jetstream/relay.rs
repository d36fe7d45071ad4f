//! What a reader does when requests to the JetStream API, or their answers, do not come through
//! whole: as through a server on the way, a leaf node for one, that loses or garbles them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::Config;
use foldstream::batch::Limits;
use foldstream::source::Request;
use foldstream::source::jetstream::Options;
use futures_util::StreamExt;

use crate::reading::{Reading, numbers, options, request};
use crate::server::{Server, numbered, orders, publish, within};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is passed on.
    Pass,
    /// Nobody gets it.
    Lose,
    /// It is passed on, and its answer changed.
    Garble,
    /// It is passed on after this long.
    Late(Duration),
}

/// Passes on requests to the JetStream API that come under another prefix.
pub(crate) struct Relay {
    passing: tokio::task::JoinHandle<()>,
    /// How many requests were lost or late, or answers changed.
    hits: Arc<AtomicUsize>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.passing.abort();
    }
}

impl Relay {
    /// Starts one. `judge` decides about each request by its subject and its body, which is empty
    /// for the trial of a permission; `garble` changes an answer, and says whether it did.
    pub(crate) async fn start(
        server: &Server,
        mut judge: impl FnMut(&str, &[u8]) -> Fate + Send + 'static,
        mut garble: impl FnMut(&mut serde_json::Value) -> bool + Send + 'static,
    ) -> Self {
        let client = within("a client connects", async_nats::connect(server.url()))
            .await
            .expect("the server is there");
        let mut requests = client.subscribe("relay.API.>").await.expect("subscribed");
        client.flush().await.expect("the server is there");
        let hits = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&hits);
        let passing = tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                let subject = request.subject.replace("relay.", "$JS.");
                let Some(reply) = request.reply else {
                    // What was sent without a wish for an answer, such as the removal of a
                    // consumer.
                    drop(client.publish(subject, request.payload).await);
                    continue;
                };
                match judge(&subject, &request.payload) {
                    Fate::Pass => drop(
                        client
                            .publish_with_reply(subject, reply, request.payload)
                            .await,
                    ),
                    Fate::Late(after) => {
                        counted.fetch_add(1, Ordering::SeqCst);
                        let client = client.clone();
                        tokio::spawn(async move {
                            tokio::time::sleep(after).await;
                            drop(
                                client
                                    .publish_with_reply(subject, reply, request.payload)
                                    .await,
                            );
                        });
                    }
                    Fate::Lose => drop(counted.fetch_add(1, Ordering::SeqCst)),
                    Fate::Garble => {
                        let Ok(answer) = client.request(subject, request.payload).await else {
                            continue;
                        };
                        let mut answer =
                            serde_json::from_slice(&answer.payload).expect("answers are JSON");
                        counted.fetch_add(usize::from(garble(&mut answer)), Ordering::SeqCst);
                        drop(client.publish(reply, answer.to_string().into()).await);
                    }
                }
            }
        });
        Self { passing, hits }
    }

    /// How many requests were lost or late, or answers changed.
    pub(crate) fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }

    /// The settings of a source behind it.
    pub(crate) fn options(server: &Server) -> Options {
        Options {
            api_prefix: Some("relay.API".to_owned()),
            ..options(server)
        }
    }
}

#[tokio::test]
async fn consumer_whose_request_was_lost_on_the_way_is_asked_for_again() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..10)).await;
    let mut has_lost = false;
    let lose_the_first = move |subject: &str, body: &[u8]| {
        if subject.contains("CONSUMER.CREATE")
            && !body.is_empty()
            && !std::mem::replace(&mut has_lost, true)
        {
            return Fate::Lose;
        }
        Fate::Pass
    };
    let relay = Relay::start(&server, lose_the_first, |_| false).await;
    let mut reading = Reading::begin(Relay::options(&server), request(&[">"]));
    assert_eq!(
        numbers(&reading.events(10).await.0),
        (0..10).collect::<Vec<_>>()
    );
    assert_eq!(relay.hits(), 1);
}

#[tokio::test]
async fn consumer_that_takes_longer_to_make_than_other_answers_is_waited_for() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..10)).await;
    // As on a stream of hundreds of millions of events, which the server has to count. Other
    // answers are given up after 15 s.
    let count_long = |subject: &str, body: &[u8]| {
        if subject.contains("CONSUMER.CREATE") && !body.is_empty() {
            Fate::Late(Duration::from_secs(17))
        } else {
            Fate::Pass
        }
    };
    let relay = Relay::start(&server, count_long, |_| false).await;
    let mut reading = Reading::begin(Relay::options(&server), request(&[">"]));
    assert_eq!(
        numbers(&reading.events(10).await.0),
        (0..10).collect::<Vec<_>>()
    );
    assert!(relay.hits() > 0, "it came late");
    assert_eq!(reading.status.borrow().reconnects, 0);
}

/// A relay that loses every request for the state of the stream while a switch is on.
pub(crate) async fn lose_states(server: &Server) -> (Relay, Arc<AtomicBool>) {
    let is_on = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&is_on);
    let judge = move |subject: &str, body: &[u8]| {
        let is_state = subject.contains("STREAM.INFO") && !body.is_empty();
        if is_state && is_on.load(Ordering::SeqCst) {
            Fate::Lose
        } else {
            Fate::Pass
        }
    };
    (Relay::start(server, judge, |_| false).await, switch)
}

/// A stream of orders and of others.
async fn mixed(server: &Server) -> jetstream::Context {
    let jetstream = server.jetstream().await;
    let subjects = vec!["orders.>".to_owned(), "audit.>".to_owned()];
    jetstream
        .create_stream(Config {
            subjects,
            ..orders()
        })
        .await
        .expect("stream");
    jetstream
}

fn other() -> (String, String) {
    ("audit.noise".to_owned(), "{}".to_owned())
}

#[tokio::test]
async fn a_live_reader_reads_on_while_the_state_of_the_stream_is_not_answered() {
    let server = Server::start().await;
    let jetstream = mixed(&server).await;
    let (relay, lose) = lose_states(&server).await;
    let mut reading = Reading::begin(Relay::options(&server), request(&["orders.>"]));
    publish(&jetstream, numbered(0..1)).await;
    reading.through(1).await;
    lose.store(true, Ordering::SeqCst);
    // The second one is asked for when the first one was given up.
    let mut count = 1;
    while relay.hits() < 2 {
        publish(
            &jetstream,
            [other()].into_iter().chain(numbered(count..count + 1)),
        )
        .await;
        assert_eq!(numbers(&reading.events(1).await.0), [count]);
        count += 1;
    }
    assert_eq!(
        reading.status.borrow().reconnects,
        0,
        "another connection would not help"
    );
}

#[tokio::test]
async fn an_idle_reader_waits_with_its_position_until_the_state_of_the_stream_is_answered() {
    let server = Server::start().await;
    let jetstream = mixed(&server).await;
    let (relay, lose) = lose_states(&server).await;
    let mut reading = Reading::begin(Relay::options(&server), request(&["orders.>"]));
    publish(&jetstream, numbered(0..1)).await;
    reading.through(1).await;
    lose.store(true, Ordering::SeqCst);
    publish(&jetstream, [other(), other()]).await;
    let unanswered = async {
        while relay.hits() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("two requests are lost", async {
        tokio::select! {
            () = unanswered => {}
            batch = async { loop { assert_eq!(reading.reader.next().await.expect("it is sound").through, 1); } } => batch,
        }
    })
    .await;
    lose.store(false, Ordering::SeqCst);
    assert!(reading.through(3).await.is_empty());
    assert_eq!(reading.status.borrow().reconnects, 0);
}

#[tokio::test]
async fn a_jump_is_asked_about_again_if_no_answer_comes() {
    let server = Server::start().await;
    let jetstream = mixed(&server).await;
    let (relay, lose) = lose_states(&server).await;
    publish(
        &jetstream,
        numbered(0..20_000).flat_map(|order| [order, other()]),
    )
    .await;
    let limits = Limits {
        events: 50,
        bytes: 1 << 20,
    };
    let mut reading = Reading::begin(
        Relay::options(&server),
        Request {
            limits,
            ..request(&["orders.>"])
        },
    );
    let (mut events, _) = reading.events(50).await;
    lose.store(true, Ordering::SeqCst);
    while relay.hits() < 1 {
        let next = tokio::time::timeout(Duration::from_millis(20), reading.reader.next()).await;
        events.extend(
            next.into_iter()
                .flat_map(|batch| batch.expect("the stream is sound").events),
        );
    }
    lose.store(false, Ordering::SeqCst);
    events.extend(reading.events(20_000 - events.len()).await.0);
    assert_eq!(numbers(&events), (0..20_000).collect::<Vec<_>>());
    assert_eq!(reading.status.borrow().reconnects, 0);
}
