//! What a reader does while servers of a cluster come and go.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Config;
use foldstream::batch::Limits;
use foldstream::source::Request;
use foldstream::source::jetstream::Options;

use crate::reading::{Reading, checkpoint, numbers, options, request};
use crate::relay::{Relay, lose_states};
use crate::server::{
    Server, Version, free_port, numbered, on_both_versions, orders, publish, until, within,
};

/// How long servers of a cluster may take to agree before they are restarted.
const AGREE_WITHIN: Duration = Duration::from_secs(25);

/// Pause between two questions to a cluster, which has other things to do.
const LOOK: Duration = Duration::from_millis(100);

on_both_versions! {
    servers_of_a_cluster_come_and_go_without_loss
    a_leader_that_took_over_is_the_same_stream_to_who_comes_back
    a_consumer_that_is_not_shown_to_have_kept_up_with_its_cluster_is_not_trusted
}

/// Three servers, each with the name of its index.
async fn cluster(version: Version) -> Vec<Server> {
    let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
    let routes: Vec<String> = ports
        .iter()
        .map(|port| format!("nats-route://127.0.0.1:{port}"))
        .collect();
    let mut servers: Vec<Server> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let configuration = format!(
            "server_name: s{index}\ncluster {{ name: test, listen: \"127.0.0.1:{port}\", routes: \
             [{}] }}",
            routes.join(", ")
        );
        servers.push(Server::prepare_of(version, &configuration));
    }
    for server in &mut servers {
        server.run().await;
    }
    servers
}

/// A stream of this many orders on all servers, and how to read it.
async fn replicated(servers: &mut [Server], count: u64) -> Options {
    let config = Config {
        num_replicas: 3,
        ..orders()
    };
    restarting(servers, async |servers: &[Server]| {
        servers[0]
            .jetstream()
            .await
            .create_stream(config.clone())
            .await
            .ok()
            .map(drop)
    })
    .await;
    publish(&servers[0].jetstream().await, numbered(0..count)).await;
    Options {
        servers: servers.iter().map(Server::url).collect(),
        ..options(&servers[0])
    }
}

async fn a_leader_that_took_over_is_the_same_stream_to_who_comes_back(version: Version) {
    let mut servers = cluster(version).await;
    let options = replicated(&mut servers, 100).await;
    let mut live = Reading::begin(options.clone(), request(&["orders.*.placed"]));
    let (_, last) = live.events(100).await;
    let resume = Some(checkpoint(&last));
    for round in 0..2 {
        let leader = leader(&servers[0]).await;
        let index = usize::from(leader.ends_with('1')) + 2 * usize::from(leader.ends_with('2'));
        servers[index].kill();
        let other = &servers[(index + 1) % 3];
        let has_changed = async || {
            let jetstream = other.jetstream().await;
            let found = jetstream
                .get_stream("ORDERS")
                .await
                .ok()?
                .cached_info()
                .cluster
                .clone()?
                .leader?;
            (found != leader).then_some(())
        };
        Box::pin(until("another leader", has_changed)).await;
        let number = 100 + round;
        publish(&other.jetstream().await, numbered(number..number + 1)).await;
        assert_eq!(
            numbers(&live.events(1).await.0),
            [number],
            "who was there all the time"
        );
        for subjects in [&["orders.*.placed"][..], &[">"]] {
            let request = Request {
                resume: resume.clone(),
                ..request(subjects)
            };
            let (events, last) = Reading::begin(options.clone(), request)
                .events(1 + round as usize)
                .await;
            assert_eq!(
                (numbers(&events)[0], last.through),
                (100, 101 + round),
                "who comes back"
            );
        }
        servers[index].run().await;
        all_replicas(&mut servers[index]).await;
    }
}

/// The name of the server that leads the stream.
async fn leader(server: &Server) -> String {
    let leads = async || {
        let jetstream = server.jetstream().await;
        jetstream
            .get_stream("ORDERS")
            .await
            .ok()?
            .cached_info()
            .cluster
            .clone()?
            .leader
    };
    Box::pin(until("a leader", leads)).await
}

/// Waits until all replicas are up to date.
async fn all_replicas(server: &mut Server) {
    restarting(
        std::slice::from_mut(server),
        async |servers: &[Server]| {
            let jetstream = servers[0].jetstream().await;
            let info = jetstream
                .get_stream("ORDERS")
                .await
                .ok()?
                .cached_info()
                .cluster
                .clone()?;
            (info.leader.is_some() && info.replicas.iter().all(|replica| replica.current))
                .then_some(())
        },
    )
    .await;
}

/// Waits for something that these servers must agree about. Servers of 2.10 that meet on a busy
/// machine close each other's connections as duplicates, and may then not know one of them for
/// minutes. As an operator would, this restarts them.
async fn restarting(servers: &mut [Server], agreed: impl AsyncFn(&[Server]) -> Option<()>) {
    within("the servers agree", async {
        loop {
            let begin = Instant::now();
            while begin.elapsed() < AGREE_WITHIN {
                if Box::pin(agreed(servers)).await.is_some() {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
            for server in servers.iter_mut() {
                server.kill();
                server.run().await;
            }
        }
    })
    .await;
}

async fn a_consumer_that_is_not_shown_to_have_kept_up_with_its_cluster_is_not_trusted(
    version: Version,
) {
    let mut servers = cluster(version).await;
    replicated(&mut servers, 0).await;
    let jetstream = servers[0].jetstream().await;
    let mixed = Config {
        num_replicas: 3,
        subjects: vec!["orders.>".to_owned(), "audit.>".to_owned()],
        ..orders()
    };
    jetstream.update_stream(mixed).await.expect("edited");
    let stream = jetstream.get_stream("ORDERS").await.expect("it is there");
    let others = |count: usize| vec![("audit.noise".to_owned(), "{}".to_owned()); count];
    let (relay, lose) = lose_states(&servers[0]).await;
    let mut reading = Reading::begin(Relay::options(&servers[0]), request(&["orders.>"]));

    // Given a reader whose consumer has reached the end that the leader named.
    publish(&jetstream, numbered(0..1)).await;
    publish(&jetstream, others(1)).await;
    reading.through(2).await;
    // When messages of others come and go, then they are nothing to it.
    publish(&jetstream, others(5)).await;
    stream.purge().filter("audit.>").await.expect("purge");
    publish(&jetstream, numbered(1..2)).await;
    let last = reading.batch_through(8).await;
    assert!(last.missing.is_empty(), "{:?}", last.missing);

    // When the leader is not heard for a while, as by a server that is cut off from it.
    lose.store(true, Ordering::SeqCst);
    while relay.hits() == 0 {
        let idle = tokio::time::timeout(LOOK, reading.reader.next()).await;
        assert!(idle.is_err(), "nothing is published: {idle:?}");
    }
    tokio::time::sleep(Duration::from_secs(6)).await;
    publish(&jetstream, others(5)).await;
    stream.purge().filter("audit.>").await.expect("purge");
    publish(&jetstream, numbered(2..3)).await;
    lose.store(false, Ordering::SeqCst);
    // Then what went meanwhile may have been for it.
    let (events, gap) = reading.error().await;
    assert!(events.is_empty(), "{:?}", numbers(&events));
    assert!(
        gap.to_string().contains("5 events (9 to 13) are gone"),
        "{gap}"
    );
}

async fn servers_of_a_cluster_come_and_go_without_loss(version: Version) {
    let mut servers = cluster(version).await;
    let options = replicated(&mut servers, 20_000).await;
    let limits = Limits {
        events: 50,
        bytes: 1 << 20,
    };
    let mut reading = Reading::begin(
        options,
        Request {
            limits,
            ..request(&["orders.*.placed"])
        },
    );
    let (mut events, _) = reading.events(1_000).await;

    for server in &mut servers {
        server.kill();
        let count = events.len() + 5_500;
        events.extend(reading.events(count - events.len()).await.0);
        server.run().await;
        all_replicas(server).await;
    }
    events.extend(reading.events(20_000 - events.len()).await.0);
    assert!(
        numbers(&events).into_iter().eq(0..20_000),
        "events are lost, doubled or out of order"
    );
    assert!(
        reading.status.borrow().reconnects >= 1,
        "no server was lost that mattered"
    );
}
