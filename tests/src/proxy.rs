//! A proxy in front of a server, which can swallow what the server answers and break connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A proxy on a port of its own. Dropping it ends all connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    swallows: Arc<AtomicBool>,
    broken: watch::Sender<u64>,
}

impl Proxy {
    /// Starts one in front of an address such as `nats://127.0.0.1:4222`.
    pub async fn start(server: &str) -> Self {
        let server: SocketAddr = server
            .trim_start_matches("nats://")
            .parse()
            .expect("an address");
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("a port is free");
        let port = listener.local_addr().expect("it listens").port();
        let (swallows, broken) = (Arc::new(AtomicBool::new(false)), watch::Sender::new(0));
        let (flag, breaks) = (Arc::clone(&swallows), broken.subscribe());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (flag, mut breaks) = (Arc::clone(&flag), breaks.clone());
                // Only breaks from now on concern this connection.
                breaks.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(server).await else {
                        return;
                    };
                    tokio::select! {
                        () = forward(client, server, &flag) => {}
                        // Also when the proxy is dropped.
                        _ = breaks.changed() => {}
                    }
                });
            }
        });
        Self {
            port,
            swallows,
            broken,
        }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// From now on, whether answers of the server are swallowed; requests still reach it.
    pub fn swallow(&self, swallows: bool) {
        self.swallows.store(swallows, Ordering::SeqCst);
    }

    /// Breaks all connections.
    pub fn break_all(&self) {
        self.broken.send_modify(|number| *number += 1);
    }
}

/// Passes on both directions until one side ends.
async fn forward(client: TcpStream, server: TcpStream, swallows: &AtomicBool) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async { drop(tokio::io::copy(&mut from_client, &mut to_server).await) };
    let answers = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            // Read all the same, so that the server does not notice.
            if !swallows.load(Ordering::SeqCst)
                && to_client.write_all(&buffer[..count]).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}
