//! Header blocks of NATS: our own parser finds a fault in a block if and only if the client cannot
//! parse it; otherwise both return the same headers.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use fastrand::Rng;
use foldstream::entry;
use foldstream_tests::fuzz::{change, drive, text};
use futures_util::StreamExt as _;

const WORDS: &[&str] = &[
    "NATS/1.0",
    "NATS/",
    "NATS/1.0 503",
    " 200 OK",
    "\r\n",
    "\n",
    "\r",
    ":",
    " ",
    "\t",
    "Nats-Msg-Id: 1",
    "\r\n\r\n",
    "\u{ff}",
    "X:1",
    "\r\n folded",
    "\0",
    "Status: 100",
    "\u{85}",
    "\u{2028}",
];

/// How long the client may take over one message.
const MESSAGE_MAX: Duration = Duration::from_secs(20);

/// What happens on the server's side or the client's.
enum Seen {
    /// The client has subscribed, on this connection and under this number.
    Subscribed(TcpStream, String),
    /// A message arrived: its headers.
    Arrived(Vec<(String, String)>),
}

#[test]
fn a_block_has_a_fault_if_and_only_if_the_client_cannot_read_it() {
    let seen = client();
    let Ok(Seen::Subscribed(mut stream, mut number)) = seen.recv_timeout(MESSAGE_MAX) else {
        panic!("no client")
    };
    drive::run("headers", 1_500, |rng| {
        let block = block(rng);
        let (headers, fault) = entry::header_block(&block);
        let head = format!("HMSG t.x {number} {} {}\r\n", block.len(), block.len() + 1);
        stream
            .write_all(&[head.as_bytes(), &block, b"1\r\n"].concat())
            .expect("the client reads");
        match seen
            .recv_timeout(MESSAGE_MAX)
            .expect("the client reads or gives up")
        {
            Seen::Arrived(read) => {
                assert_eq!(
                    fault,
                    None,
                    "the client reads {:?}",
                    String::from_utf8_lossy(&block)
                );
                assert_eq!(
                    by_name(headers),
                    by_name(read),
                    "{:?}",
                    String::from_utf8_lossy(&block)
                );
                "readable"
            }
            // It reads from another connection before it gives one up.
            Seen::Subscribed(next, other) => {
                (stream, number) = (next, other);
                assert!(
                    fault.is_some(),
                    "the client cannot read {:?}",
                    String::from_utf8_lossy(&block)
                );
                "unreadable"
            }
        }
    });
}

fn by_name(mut headers: Vec<(String, String)>) -> Vec<(String, String)> {
    // An empty name is left out of every event, also if the client read the block.
    headers.retain(|(name, _)| !name.is_empty());
    // The client keeps the order of the values of one name, and no other.
    headers.sort_by(|one, other| one.0.cmp(&other.0));
    headers
}

fn block(rng: &mut Rng) -> Vec<u8> {
    let mut block = "NATS/1.0".to_owned();
    if rng.u8(0..10) == 0 {
        block.push_str(
            rng.choice(&[" 503", " 503 No Responders", " 99999", " x", "  100  Idle "])
                .expect("some"),
        );
    }
    block.push_str("\r\n");
    for _ in 0..rng.usize(0..5) {
        let name = if rng.u8(0..4) == 0 {
            text::any(rng)
        } else {
            text::word(rng)
        };
        let value = if rng.bool() {
            text::any(rng)
        } else {
            text::word(rng)
        };
        let folded = *rng
            .choice(&["", "", "", "\r\n more", "\r\n\tmore"])
            .expect("some");
        let space = *rng.choice(&[" ", "", "  "]).expect("some");
        block.push_str(&format!("{name}:{space}{value}{folded}\r\n"));
    }
    block.push_str("\r\n");
    let block = block.into_bytes();
    let block = if rng.u8(0..3) > 0 {
        block
    } else {
        change::changed(rng, &block, WORDS)
    };
    if block.is_empty() {
        b"NATS/1.0\r\n\r\n".to_vec()
    } else {
        block
    }
}

/// A client of NATS that has subscribed at a server of our own making, which sends what we like.
fn client() -> Receiver<Seen> {
    let (tell, seen) = channel();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let server = tell.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, tell) = (stream.expect("a connection"), server.clone());
            std::thread::spawn(move || serve(stream, &tell));
        }
    });
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        // A block that ends the client's own task leaves it without a connection for good.
        while runtime.block_on(subscribe(&address, &tell)).is_some() {}
    });
    seen
}

/// Tells of each message until the client is lost; none once nobody looks.
async fn subscribe(address: &str, tell: &Sender<Seen>) -> Option<()> {
    let options = async_nats::ConnectOptions::new().max_reconnects(None);
    let options = options.reconnect_delay_callback(|_| Duration::ZERO);
    let client = options.connect(address).await.expect("it connects");
    let mut messages = client.subscribe("t.>").await.expect("it subscribes");
    while let Some(message) = messages.next().await {
        let headers = message.headers.unwrap_or_default();
        let each = headers.iter().flat_map(|(name, values)| {
            values.iter().map(move |value| {
                (
                    AsRef::<str>::as_ref(name).to_owned(),
                    value.as_str().to_owned(),
                )
            })
        });
        tell.send(Seen::Arrived(each.collect())).ok()?;
    }
    Some(())
}

/// Serves one connection until the client closes it, or nobody looks any more.
fn serve(mut stream: TcpStream, tell: &Sender<Seen>) -> Option<()> {
    let information = r#"INFO {"server_id":"A","server_name":"a","version":"2.14.0","go":"","host":"127.0.0.1","port":4222,"headers":true,"max_payload":8388608,"proto":1,"client_id":1}"#;
    stream
        .write_all(format!("{information}\r\n").as_bytes())
        .ok();
    let mut lines = BufReader::new(stream.try_clone().expect("a socket")).split(b'\n');
    while let Some(Ok(line)) = lines.next() {
        let line = String::from_utf8_lossy(&line).trim().to_owned();
        if line.starts_with("PING") {
            stream.write_all(b"PONG\r\n").ok();
        }
        if let Some(rest) = line.strip_prefix("SUB t.> ") {
            tell.send(Seen::Subscribed(
                stream.try_clone().expect("a socket"),
                rest.trim().to_owned(),
            ))
            .ok()?;
        }
    }
    Some(())
}
