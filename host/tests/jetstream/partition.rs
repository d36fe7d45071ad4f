//! A reader whose consumer is on a server that is cut off from its cluster: that server still
//! answers, and does not have what the others store and remove meanwhile.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::Config;
use foldstream::source::Error;
use futures_util::StreamExt as _;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::reading::{Reading, numbers, options, request};
use crate::server::{Server, free_port, numbered, orders, publish, until};

/// Longer than the host trusts a consumer without a proof.
const CUT_FOR: Duration = Duration::from_secs(7);

/// The way from one server of a cluster to another.
struct Route {
    port: u16,
    is_cut: watch::Sender<bool>,
}

impl Route {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let here = listener.local_addr().expect("it is bound").port();
        let (is_cut, watched) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
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
        Self { port: here, is_cut }
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

/// A stream of orders and of others on all three, which the last one does not lead.
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
    let client = async_nats::connect(server.url()).await.expect("it is up");
    Box::pin(until("another leader", || async {
        let stream = jetstream.get_stream("ORDERS").await.ok()?;
        let leader = stream.cached_info().cluster.clone()?.leader?;
        if leader != "s2" {
            return Some(stream);
        }
        let step_down = "$JS.API.STREAM.LEADER.STEPDOWN.ORDERS";
        drop(client.request(step_down, "".into()).await);
        None
    }))
    .await
}

/// Where the only consumer of a stream is.
async fn place(stream: &jetstream::stream::Stream) -> Option<String> {
    let found: Vec<_> = stream.consumers().collect().await;
    match &found[..] {
        [Ok(only)] => only.cluster.clone()?.leader,
        _ => None,
    }
}

#[tokio::test]
async fn an_event_that_comes_and_goes_while_the_server_of_the_consumer_is_cut_off_is_missed() {
    let (servers, routes) = cluster().await;
    let stream = mixed(&servers[0]).await;
    let jetstream = servers[0].jetstream().await;
    publish(&jetstream, numbered(0..1)).await;
    // Given a reader with its consumer on the server that will be cut off, which is up to date.
    let mut reading = loop {
        let mut reading = Reading::begin(options(&servers[2]), request(&["orders.>"]));
        reading.through(1).await;
        let place = Box::pin(until("one consumer", || place(&stream))).await;
        if place == "s2" {
            break reading;
        }
    };
    publish(&jetstream, [("audit.noise".to_owned(), "{}".to_owned())]).await;
    reading.through(2).await;

    // When an event comes and goes where only the others see it.
    routes.iter().for_each(|route| {
        route.is_cut.send_replace(true);
    });
    let idle = tokio::time::timeout(CUT_FOR, reading.next()).await;
    assert!(idle.is_err(), "nothing is published: {idle:?}");
    publish(&jetstream, numbered(1..2)).await;
    stream.delete_message(3).await.expect("deleted");
    publish(&jetstream, numbered(2..3)).await;
    routes.iter().for_each(|route| {
        route.is_cut.send_replace(false);
    });

    // Then it is not passed over in silence.
    let (events, error) = reading.error().await;
    assert!(events.is_empty(), "{:?}", numbers(&events));
    assert!(matches!(error, Error::Gap { .. }), "{error}");
    assert!(error.to_string().contains('3'), "{error}");
}
