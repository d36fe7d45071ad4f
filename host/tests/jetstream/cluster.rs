//! What a reader does while servers of a cluster come and go.

use async_nats::jetstream::stream::Config;
use foldstream::batch::Limits;
use foldstream::source::Request;
use foldstream::source::jetstream::Options;

use crate::reading::{Reading, numbers, options, request};
use crate::server::{Server, free_port, numbered, orders, publish, until};

/// Three servers, each with the name of its index.
async fn cluster() -> Vec<Server> {
    let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
    let routes: Vec<String> = ports.iter().map(|port| format!("nats-route://127.0.0.1:{port}")).collect();
    let mut servers: Vec<Server> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let server = Server::prepare(&format!(
            "server_name: s{index}\ncluster {{ name: test, listen: \"127.0.0.1:{port}\", routes: [{}] }}",
            routes.join(", ")
        ));
        servers.push(server);
    }
    for server in &mut servers {
        server.run().await;
    }
    servers
}

#[tokio::test]
async fn servers_of_a_cluster_come_and_go_without_loss() {
    let mut servers = cluster().await;
    let jetstream = servers[0].jetstream().await;
    let config = Config { num_replicas: 3, ..orders() };
    until("the cluster takes a stream", async || jetstream.create_stream(config.clone()).await.ok()).await;
    publish(&jetstream, numbered(0..20_000)).await;
    let urls = servers.iter().map(Server::url).collect();
    let limits = Limits { events: 50, bytes: 1 << 20 };
    let options = Options { servers: urls, ..options(&servers[0]) };
    let mut reading = Reading::begin(options, Request { limits, ..request(&["orders.*.placed"]) });
    let (mut events, _) = reading.events(1_000).await;

    for server in &mut servers {
        server.kill();
        let count = events.len() + 5_500;
        events.extend(reading.events(count - events.len()).await.0);
        server.run().await;
        let jetstream = server.jetstream().await;
        until("all replicas are there again", async || {
            let info = jetstream.get_stream("ORDERS").await.ok()?.cached_info().cluster.clone()?;
            (info.leader.is_some() && info.replicas.iter().all(|replica| replica.current)).then_some(())
        })
        .await;
    }
    events.extend(reading.events(20_000 - events.len()).await.0);
    assert!(numbers(&events).into_iter().eq(0..20_000), "events are lost, doubled or out of order");
    assert!(reading.status.borrow().reconnects >= 1, "no server was lost that mattered");
}
