//! A proxy in front of a NATS server, which can swallow what the server answers, or nothing but its
//! acknowledgements of what is published, and break connections. It counts connections and refusals.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the proxy does not pass on.
#[derive(Debug, Default)]
struct Swallowed {
    everything: AtomicBool,
    acknowledgements: AtomicBool,
}

/// What the proxy counts.
#[derive(Debug, Default)]
struct Counts {
    connections: AtomicUsize,
    refusals: AtomicUsize,
}

/// A proxy on a port of its own. Dropping it ends all connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    swallowed: Arc<Swallowed>,
    counts: Arc<Counts>,
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
        let (swallowed, broken) = (Arc::new(Swallowed::default()), watch::Sender::new(0));
        let (shared, breaks) = (Arc::clone(&swallowed), broken.subscribe());
        let counts = Arc::new(Counts::default());
        let counted = Arc::clone(&counts);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (swallowed, mut breaks) = (Arc::clone(&shared), breaks.clone());
                let counts = Arc::clone(&counted);
                counts.connections.fetch_add(1, Ordering::SeqCst);
                // Only breaks from now on concern this connection.
                breaks.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(server).await else {
                        return;
                    };
                    tokio::select! {
                        () = forward(client, server, &swallowed, &counts) => {}
                        // Also when the proxy is dropped.
                        _ = breaks.changed() => {}
                    }
                });
            }
        });
        Self {
            port,
            swallowed,
            counts,
            broken,
        }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// From now on, whether answers of the server are swallowed; requests still reach it.
    pub fn swallow(&self, swallows: bool) {
        self.swallowed.everything.store(swallows, Ordering::SeqCst);
    }

    /// From now on, whether acknowledgements of streams are lost, while everything else still comes
    /// and no connection ends.
    pub fn lose_acknowledgements(&self, loses: bool) {
        self.swallowed
            .acknowledgements
            .store(loses, Ordering::SeqCst);
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::SeqCst)
    }

    /// How often the server, or one of its streams, has answered that it does not do something.
    pub fn refusals(&self) -> usize {
        self.counts.refusals.load(Ordering::SeqCst)
    }

    /// Breaks all connections.
    pub fn break_all(&self) {
        self.broken.send_modify(|number| *number += 1);
    }
}

/// Passes on both directions until one side ends.
async fn forward(client: TcpStream, server: TcpStream, swallowed: &Swallowed, counts: &Counts) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async { drop(tokio::io::copy(&mut from_client, &mut to_server).await) };
    let answers = async {
        let (mut buffer, mut read) = (vec![0; 64 << 10], Vec::new());
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            read.extend_from_slice(&buffer[..count]);
            // Read all the same, so that the server does not notice.
            let passed = passed(&mut read, swallowed, counts);
            if to_client.write_all(&passed).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}

/// Takes the complete frames out of what was read; those of them that are passed on.
fn passed(read: &mut Vec<u8>, swallowed: &Swallowed, counts: &Counts) -> Vec<u8> {
    let (mut passed, mut done) = (Vec::with_capacity(read.len()), 0);
    while let Some(length) = frame(&read[done..]) {
        let frame = &read[done..done + length];
        let is_swallowed = swallowed.everything.load(Ordering::SeqCst)
            || (is_acknowledgement(frame) && swallowed.acknowledgements.load(Ordering::SeqCst));
        if is_refusal(frame) {
            counts.refusals.fetch_add(1, Ordering::SeqCst);
        }
        if !is_swallowed {
            passed.extend_from_slice(frame);
        }
        done += length;
    }
    read.drain(..done);
    passed
}

/// The length of the first frame, if all of it is there: a line, and the payload whose length is
/// the last word of a line `MSG …` or `HMSG …`.
fn frame(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|pair| pair == b"\r\n")? + 2;
    let mut words = bytes[..line]
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let has_payload = words
        .next()
        .is_some_and(|verb| [&b"MSG"[..], b"HMSG"].contains(&verb));
    let payload = if has_payload {
        let size = words.next_back().and_then(|word| str::from_utf8(word).ok());
        size.and_then(|size| size.parse::<usize>().ok())? + 2
    } else {
        0
    };
    (bytes.len() >= line + payload).then_some(line + payload)
}

/// Whether a frame says that a stream has stored a message.
fn is_acknowledgement(frame: &[u8]) -> bool {
    let payload = frame.windows(2).position(|pair| pair == b"\r\n");
    frame.starts_with(b"MSG ")
        && payload.is_some_and(|end| frame[end + 2..].starts_with(b"{\"stream\":"))
}

/// Whether a frame is an answer that names an error.
fn is_refusal(frame: &[u8]) -> bool {
    let code = b"\"err_code\":";
    frame.starts_with(b"MSG ") && frame.windows(code.len()).any(|part| part == code)
}
