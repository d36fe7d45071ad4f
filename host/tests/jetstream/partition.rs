//! A reader whose consumer is on a server that is cut off from its cluster: that server still
//! answers, perhaps as the leader of the stream that it was, and does not have what the others
//! store and remove meanwhile. And a publisher that is connected to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::Config;
use foldstream::api::SourceState;
use foldstream::event::Event;
use foldstream::source::jetstream::{JetStream, Options, Outgoing, Publisher};
use foldstream::source::{Error, Request};
use futures_util::StreamExt as _;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::reading::{Reading, checkpoint, options, request};
use crate::server::{Server, free_port, orders, until};

/// Longer than the host trusts a consumer without a proof.
const CUT_FOR: Duration = Duration::from_secs(7);
/// Events that come and go while the server of the consumer is cut off.
const GONE: usize = 100;
/// How often they may all be delivered before they go: the server gets them one after the other
/// once it is back, and removes them only then.
const ROUNDS: usize = 8;

/// The way from one server of a cluster to another, or from a client to a server.
struct Route {
    port: u16,
    is_cut: watch::Sender<bool>,
    /// How often somebody took it.
    taken: Arc<AtomicUsize>,
}

impl Route {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let here = listener.local_addr().expect("it is bound").port();
        let (is_cut, watched) = watch::channel(false);
        let taken = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&taken);
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let mut watched = watched.clone();
                tokio::spawn(async move {
                    if *watched.borrow() {
                        return;
                    }
                    let Ok(mut to) = TcpStream::connect(("127.0.0.1", port)).await else {
                        return;
                    };
                    tokio::select! {
                        _ = copy_bidirectional(&mut from, &mut to) => {}
                        _ = watched.wait_for(|is_cut| *is_cut) => {}
                    }
                });
            }
        });
        Self {
            port: here,
            is_cut,
            taken,
        }
    }
}

/// Three servers; all ways to the last one go through these routes.
async fn cluster() -> (Vec<Server>, Vec<Route>) {
    let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
    let routes = vec![Route::to(ports[0]).await, Route::to(ports[1]).await];
    let near = [ports[0], ports[1]];
    let far = [routes[0].port, routes[1].port];
    let mut servers = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let (others, advertise) = match index {
            // The others do not find another way to it.
            2 => (far, "advertise: \"127.0.0.1:1\","),
            _ => (near, ""),
        };
        let others = others.map(|port| format!("nats-route://127.0.0.1:{port}"));
        let mut server = Server::prepare(&format!(
            "server_name: s{index}\ncluster {{ name: test, listen: \"127.0.0.1:{port}\", {advertise} routes: [{}] }}",
            others.join(", ")
        ));
        server.run().await;
        servers.push(server);
    }
    (servers, routes)
}

/// A stream of orders and of others on all three.
async fn mixed(server: &Server) -> jetstream::stream::Stream {
    let jetstream = server.jetstream().await;
    let config = Config {
        num_replicas: 3,
        subjects: vec!["orders.>".to_owned(), "audit.>".to_owned()],
        ..orders()
    };
    Box::pin(until("a replicated stream", || async {
        jetstream.create_stream(config.clone()).await.ok().map(drop)
    }))
    .await;
    jetstream.get_stream("ORDERS").await.expect("it is there")
}

/// Which server leads the stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leader {
    /// The last one.
    Last,
    Another,
}

/// Lets this server lead the stream.
async fn lead(server: &Server, wanted: Leader) {
    let jetstream = server.jetstream().await;
    let client = async_nats::connect(server.url()).await.expect("it is up");
    Box::pin(until("another leader", || async {
        let stream = jetstream.get_stream("ORDERS").await.ok()?;
        let leader = stream.cached_info().cluster.clone()?.leader?;
        if (leader == "s2") == (wanted == Leader::Last) {
            return Some(());
        }
        let step_down = "$JS.API.STREAM.LEADER.STEPDOWN.ORDERS";
        drop(client.request(step_down, "".into()).await);
        None
    }))
    .await;
}

/// Where the only consumer of a stream is.
async fn place(stream: &jetstream::stream::Stream) -> Option<String> {
    let found: Vec<_> = stream.consumers().collect().await;
    match &found[..] {
        [Ok(only)] => only.cluster.clone()?.leader,
        _ => None,
    }
}

/// Stores an event as soon as the stream takes it, and returns its sequence.
async fn store(jetstream: &jetstream::Context, subject: &'static str) -> u64 {
    let stored = Box::pin(until("a leader that takes events", || async {
        let sent = jetstream.publish(subject, "{}".into()).await.ok()?;
        sent.await.ok()
    }));
    stored.await.sequence
}

/// Events come and go while the last server is cut off, which has the consumer and perhaps leads
/// the stream.
async fn events_that_come_and_go_behind_a_cut_are_missed(leader: Leader) {
    let (servers, routes) = cluster().await;
    let stream = mixed(&servers[0]).await;
    let jetstream = servers[0].jetstream().await;
    let cut = |is_cut| {
        routes.iter().for_each(|route| {
            route.is_cut.send_replace(is_cut);
        });
    };
    for _ in 0..ROUNDS {
        // Given a reader with its consumer on the server that will be cut off, which is up to date.
        lead(&servers[0], leader).await;
        let mut last = store(&jetstream, "orders.kept").await;
        let mut reading = loop {
            // The events of an earlier round are gone.
            let request = Request {
                accepts_missing_through: last,
                ..request(&["orders.>"])
            };
            let mut reading = Reading::begin(options(&servers[2]), request);
            reading.through(last).await;
            let place = Box::pin(until("one consumer", || place(&stream))).await;
            if place == "s2" {
                break reading;
            }
        };
        last = store(&jetstream, "audit.noise").await;
        reading.through(last).await;

        // When events come and go where only the others see it.
        cut(true);
        let idle = tokio::time::timeout(CUT_FOR, reading.next()).await;
        assert!(idle.is_err(), "nothing is published: {idle:?}");
        for _ in 0..GONE {
            store(&jetstream, "orders.gone").await;
        }
        let purge = stream.purge().filter("orders.gone");
        purge.await.expect("they are removed");
        last = store(&jetstream, "orders.kept").await;
        cut(false);

        // Then none is passed over in silence.
        let mut delivered = 0;
        loop {
            match reading.next().await {
                Ok(batch) => {
                    let is_gone = |event: &&Event| event.subject == "orders.gone";
                    delivered += batch.events.iter().filter(is_gone).count();
                    if batch.through >= last {
                        break;
                    }
                }
                Err(Error::Gap { .. }) => return,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(
            delivered >= GONE,
            "only {delivered} were delivered, without a word"
        );
    }
    panic!("they were all delivered before they went, each time");
}

#[tokio::test]
async fn what_comes_and_goes_while_the_server_of_the_consumer_is_cut_off_is_missed() {
    Box::pin(events_that_come_and_go_behind_a_cut_are_missed(
        Leader::Another,
    ))
    .await;
}

#[tokio::test]
async fn what_comes_and_goes_while_an_earlier_leader_of_the_stream_is_cut_off_is_missed() {
    Box::pin(events_that_come_and_go_behind_a_cut_are_missed(
        Leader::Last,
    ))
    .await;
}

#[tokio::test]
async fn server_that_is_cut_off_says_nothing_about_the_end_of_the_stream() {
    Box::pin(nobody_believes_a_server_that_is_cut_off(Leader::Another)).await;
}

#[tokio::test]
async fn earlier_leader_that_is_cut_off_says_nothing_about_the_end_of_the_stream() {
    Box::pin(nobody_believes_a_server_that_is_cut_off(Leader::Last)).await;
}

/// A reader comes back to the server that is cut off, with a position that the server does not
/// have.
async fn nobody_believes_a_server_that_is_cut_off(leader: Leader) {
    let (servers, routes) = cluster().await;
    mixed(&servers[0]).await;
    let jetstream = servers[0].jetstream().await;
    store(&jetstream, "orders.kept").await;
    lead(&servers[0], leader).await;
    let cut = |is_cut| {
        routes.iter().for_each(|route| {
            route.is_cut.send_replace(is_cut);
        });
    };
    cut(true);
    let last = store(&jetstream, "orders.kept").await;
    let mut before = Reading::begin(options(&servers[0]), request(&["orders.>"]));
    let batch = before.batch_through(last).await;
    let resume = Some(checkpoint(&batch));

    // A follower begins to answer some fifteen seconds after it lost its leader.
    let there = servers[2].jetstream().await;
    Box::pin(until("an answer", || async {
        there.get_stream("ORDERS").await.ok()
    }))
    .await;

    // While it is cut off, the reader waits: it neither shows an end nor stops.
    let request = Request {
        resume,
        ..request(&["orders.>"])
    };
    let mut reading = Reading::begin(options(&servers[2]), request);
    let shown = tokio::time::timeout(CUT_FOR, reading.next()).await;
    assert!(shown.is_err(), "{shown:?}");

    // Then it reads on.
    cut(false);
    let next = store(&jetstream, "orders.kept").await;
    assert_eq!(reading.through(next).await.len(), 1);
}

#[tokio::test]
async fn live_reader_notices_that_its_server_is_cut_off() {
    // With a filter, and with all subjects of the stream.
    for subjects in [&["orders.>"][..], &["orders.>", "audit.>"]] {
        Box::pin(cut_off_while_live(subjects)).await;
    }
}

async fn cut_off_while_live(subjects: &[&str]) {
    let (servers, routes) = cluster().await;
    let stream = mixed(&servers[0]).await;
    let jetstream = servers[0].jetstream().await;
    lead(&servers[0], Leader::Last).await;
    let first = store(&jetstream, "orders.kept").await;
    // Given a live reader with its consumer on the server that will be cut off.
    let mut reading = loop {
        let mut reading = Reading::begin(options(&servers[2]), request(subjects));
        reading.through(first).await;
        let place = Box::pin(until("one consumer", || place(&stream))).await;
        if place == "s2" {
            break reading;
        }
    };

    // When events come elsewhere, and the consumer still sends its heartbeats.
    for route in &routes {
        route.is_cut.send_replace(true);
    }
    let next = store(&jetstream, "orders.kept").await;

    // Then the reader does not pass for live, and reads on once it can.
    let shown = reading.state(SourceState::Reconnecting).await;
    assert!(shown.contains("no server leads"), "{shown}");
    for route in &routes {
        route.is_cut.send_replace(false);
    }
    reading.through(next).await;
}

#[tokio::test]
async fn publisher_leaves_a_server_that_is_cut_off() {
    Box::pin(what_is_published_reaches_the_majority(Leader::Another)).await;
}

#[tokio::test]
async fn publisher_leaves_an_earlier_leader_that_is_cut_off() {
    Box::pin(what_is_published_reaches_the_majority(Leader::Last)).await;
}

/// How a handler or its timers publish: again and again, until the stream has it.
async fn publish_until_stored(publisher: &Publisher, id: &str) {
    let message = Outgoing {
        id: id.to_owned(),
        subject: "orders.kept".to_owned(),
        data: "{}".into(),
        ..Outgoing::default()
    };
    Box::pin(until("the message to be stored", || async {
        match publisher.publish(&message).await {
            Ok(_) => Some(()),
            // Such a pause as the handler makes.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                None
            }
        }
    }))
    .await;
}

async fn what_is_published_reaches_the_majority(leader: Leader) {
    let (servers, routes) = cluster().await;
    mixed(&servers[0]).await;
    let jetstream = servers[0].jetstream().await;
    store(&jetstream, "orders.kept").await;
    lead(&servers[0], leader).await;
    // Given a publisher that is connected to the last server, and knows the others.
    let way = Route::to(servers[2].port()).await;
    let urls = [
        format!("nats://127.0.0.1:{}", way.port),
        servers[0].url(),
        servers[1].url(),
    ];
    let options = Options {
        servers: urls.to_vec(),
        ..options(&servers[0])
    };
    let publisher = loop {
        let source = JetStream::new(options.clone()).expect("the settings are sound");
        let publisher = source.publisher();
        let before = way.taken.load(Ordering::SeqCst);
        publish_until_stored(&publisher, "before").await;
        if way.taken.load(Ordering::SeqCst) > before {
            break publisher;
        }
    };

    // When that server is cut off, and stays so.
    for route in &routes {
        route.is_cut.send_replace(true);
    }

    // Then what is published, as messages and as firings are, is where the majority is.
    publish_until_stored(&publisher, "meanwhile").await;
    let stream = jetstream.get_stream("ORDERS").await;
    let stream = stream.expect("the majority answers");
    let last = stream.get_last_raw_message_by_subject("orders.kept").await;
    let last = last.expect("it is there");
    let id = last.headers.get("Nats-Msg-Id").expect("it has an id");
    assert_eq!(id.as_str(), "meanwhile");
}
