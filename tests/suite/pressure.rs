//! Clients that read nothing, send nothing, or only hold connections: what they cost the host has a
//! bound, goes back when they leave, and keeps nobody else out.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use foldstream_tests::client::{Answer, Client};
use foldstream_tests::guests;
use foldstream_tests::host::{Host, serve};
use foldstream_tests::process::Process;
use foldstream_tests::wait;
use futures_util::future::join_all;
use reqwest::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

const MIB: u64 = 1 << 20;
/// A host with little memory, 40 MiB of it on demand.
const TIGHT: &str = "[limits]\nmemory_bytes = \"64MiB\"\n";
/// More than such a host takes in addition to what it had when it was idle, in bytes. Buffers of
/// the system are not its own.
const BOUND: u64 = 72 * MIB;
/// What the allocator may keep afterwards, in bytes.
const KEPT: u64 = 24 * MIB;
/// Receive buffer of a client that lets the system take in as little as possible, in bytes.
const SMALL_BUFFER: u32 = 4 << 10;

fn address(host: &Host) -> SocketAddr {
    host.url()
        .trim_start_matches("http://")
        .parse()
        .expect("an address")
}

/// A connection whose system takes in little by itself.
async fn connect(to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .set_recv_buffer_size(SMALL_BUFFER)
        .expect("it can be small");
    socket
        .connect(to)
        .await
        .expect("the system takes connections")
}

/// Sends a request and reads nothing.
async fn ask(to: SocketAddr, path: &str) -> TcpStream {
    let mut stream = connect(to).await;
    let head = format!("GET {path} HTTP/1.1\r\nHost: {to}\r\n\r\n");
    stream
        .write_all(head.as_bytes())
        .await
        .expect("the system takes a head");
    stream
}

/// Appends this many events of 250 KB each.
async fn append_large(client: &Client, count: usize) {
    for number in 0..count {
        let event = format!(
            r#"{{"events":[{{"subject":"orders.{number}.placed","data":"{}"}}]}}"#,
            "x".repeat(250_000)
        );
        client
            .post("/v1/events", "application/json", event)
            .await
            .expect(200);
    }
}

/// A figure of the metrics; 0 if it is not there yet. On a new connection: an idle one may be
/// closed at any time.
pub(crate) async fn metric(host: &Host, name: &str) -> f64 {
    let page = Client::new(host.url())
        .get("/metrics")
        .await
        .expect(200)
        .text();
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0.0, |value| value.trim().parse().expect("a number"))
}

/// Waits until the host has given back what it took.
async fn gives_back(host: &Host, before: u64) {
    wait::until("memory to go back", || async {
        (host.memory_bytes() < before + KEPT).then_some(())
    })
    .await;
}

#[tokio::test]
async fn answers_that_nobody_reads_have_a_bound_and_their_memory_goes_back() {
    let host = Host::start_with(TIGHT).await;
    append_large(host.client(), 20).await;
    let page = host
        .client()
        .get("/v1/events?limit=1000")
        .await
        .expect(200)
        .text();
    assert!(page.len() > 2_000_000, "a page is large");
    let before = host.memory_bytes();

    let mut unread = join_all((0..120).map(|_| ask(address(&host), "/v1/events?limit=1000"))).await;
    let refused = "foldstream_memory_refused_total{part=\"requests\"}";
    wait::until("one to be refused", || async {
        (metric(&host, refused).await > 0.0).then_some(())
    })
    .await;
    // What is small is still answered, and a large page says when to come back.
    host.client().get("/v1/deployments").await.expect(200);
    let deadline = Instant::now() + wait::DEADLINE;
    let turned_away = loop {
        let answer: Answer = host.client().get("/v1/events?limit=1000").await;
        if answer.status == 503 {
            break answer;
        }
        assert!(Instant::now() < deadline, "no page is refused");
        // The system's buffers take some answers whole, which are then nobody's memory here.
        unread.push(ask(address(&host), "/v1/events?limit=1000").await);
    };
    assert_eq!(turned_away.header("retry-after"), Some("1"));
    assert!(
        turned_away
            .problem(503, "busy")
            .detail
            .starts_with("host-memory: ")
    );
    assert!(
        host.peak_memory_bytes() < before + BOUND,
        "{} MiB",
        host.peak_memory_bytes() / MIB
    );

    drop(unread);
    wait::until("a page to be answered", || async {
        (host.client().get("/v1/events?limit=1000").await.status == 200).then_some(())
    })
    .await;
    gives_back(&host, before).await;
}

#[tokio::test]
async fn unfinished_heads_have_a_bound_and_their_memory_goes_back() {
    let host = Host::start_with(TIGHT).await;
    host.client().get("/livez").await.expect(200);
    let before = host.memory_bytes();
    let head = format!(
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Long: {}",
        "x".repeat(60_000)
    );
    let unfinished = join_all((0..900).map(async |_| {
        let mut stream = TcpStream::connect(address(&host))
            .await
            .expect("the system takes connections");
        // The host may have closed it already, to make room.
        let _ = stream.write_all(head.as_bytes()).await;
        stream
    }))
    .await;
    let used = "foldstream_memory_used_bytes{part=\"connections\"}";
    wait::until("their memory to be charged", || async {
        (metric(&host, used).await > 5.0 * MIB as f64).then_some(())
    })
    .await;
    // All of them together would take 54 MB and what holds them.
    assert!(
        host.peak_memory_bytes() < before + 32 * MIB,
        "{} of {before}",
        host.peak_memory_bytes()
    );
    drop(unfinished);
    wait::until("their memory to be free", || async {
        (metric(&host, used).await < MIB as f64).then_some(())
    })
    .await;
    gives_back(&host, before).await;
}

#[tokio::test]
async fn idle_connections_make_room_for_those_that_ask() {
    // 256 connections at most.
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("foldstream.toml");
    std::fs::write(
        &config,
        format!("data_dir = {:?}\n", folder.path().join("data")),
    )
    .expect("written");
    let limited = serve(&config);
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -n 512 && exec \"$0\" \"$@\""])
        .arg(limited.get_program())
        .args(limited.get_args());
    for (name, value) in limited.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut host = Process::start("foldstream serve", &mut command);
    let url = wait::until("the host to listen", || async {
        host.printed("listening on ")
    })
    .await;
    let to: SocketAddr = url
        .trim_start_matches("http://")
        .parse()
        .expect("an address");
    let client = Client::new(&url);
    client.deploy("ledger", &guests::module("ledger")).await;
    let mut watch = client.events("/v1/events/tail", None).await;
    watch.next_of("position").await;

    let mut idle = Vec::new();
    for round in 0..8 {
        for number in 0..100 {
            let mut stream = TcpStream::connect(to)
                .await
                .expect("the system takes connections");
            if number % 2 == 0 {
                // Some have been used, and are kept alive.
                let _ = stream
                    .write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    .await;
            }
            idle.push(stream);
        }
        // Each on a new connection.
        for _ in 0..5 {
            let newcomer = Client::new(&url);
            let asked = newcomer
                .try_send(newcomer.request(Method::GET, "/v1/deployments"))
                .await;
            let answer = asked.unwrap_or_else(|error| panic!("round {round}: {error}"));
            assert_eq!(answer.status, 200);
        }
    }
    // A watch has a request, so it is none of those that make room.
    append_large(&client, 1).await;
    watch.next_of("event").await;
    drop(idle);
    assert!(host.ended().is_none());
}

#[tokio::test]
async fn uploads_that_stall_keep_nobody_from_deploying_and_are_given_up() {
    let host = Host::start_with(TIGHT).await;
    let mut stalled = join_all((0..8).map(async |_| {
        let mut stream = TcpStream::connect(address(&host))
            .await
            .expect("the system takes connections");
        let head = "POST /v1/deployments?name=slow HTTP/1.1\r\nHost: localhost\r\n\
                    Content-Type: application/wasm\r\nContent-Length: 8000000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(&vec![0; 1 << 20]).await.expect("sent");
        stream
    }))
    .await;
    host.client()
        .deploy("ledger", &guests::module("ledger"))
        .await;
    let used = "foldstream_memory_used_bytes{part=\"requests\"}";
    for stream in &mut stalled {
        let mut answer = Vec::new();
        let read = tokio::time::timeout(wait::DEADLINE, stream.read_to_end(&mut answer)).await;
        read.expect("the host gives it up").expect("and says so");
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.starts_with("HTTP/1.1 408 ") && answer.contains("too little for too long"),
            "{answer}"
        );
    }
    assert!(
        metric(&host, used).await < MIB as f64,
        "their memory is free again"
    );
}

/// Reads a watch to its end; the last event, if it says why.
async fn ending(stream: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    loop {
        let read = tokio::time::timeout(wait::DEADLINE, stream.read_buf(&mut text)).await;
        if let Err(_) | Ok(Ok(0) | Err(_)) = read {
            return None;
        }
        let text = String::from_utf8_lossy(&text);
        if let Some((_, end)) = text
            .rsplit_once("event: end")
            .filter(|(_, end)| end.contains("\n\n"))
        {
            return Some(end.to_owned());
        }
    }
}

#[tokio::test]
async fn watches_that_are_not_read_have_a_bound_and_end_with_a_reason() {
    let host = Host::start_with(TIGHT).await;
    append_large(host.client(), 20).await;
    host.client().get("/v1/events?limit=1000").await.expect(200);
    let before = host.memory_bytes();
    let mut unread =
        join_all((0..100).map(|_| ask(address(&host), "/v1/events/tail?after=0"))).await;
    let ended = |reason: &str| format!("foldstream_watches_ended_total{{reason=\"{reason}\"}}");
    let (short, stalled) = (ended("host-memory"), ended("stalled"));
    wait::until("some to end for want of memory", || async {
        (metric(&host, &short).await > 0.0).then_some(())
    })
    .await;
    // On a busy machine all of them may have ended for want of memory before one of them was
    // stalled for long enough.
    let deadline = Instant::now() + 2 * wait::DEADLINE;
    while metric(&host, &stalled).await == 0.0 {
        assert!(
            Instant::now() < deadline,
            "none ends although nobody reads it"
        );
        unread.push(ask(address(&host), "/v1/events/tail?after=0").await);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(
        host.peak_memory_bytes() < before + BOUND,
        "{} MiB",
        host.peak_memory_bytes() / MIB
    );
    // Those that read again in time learn why.
    // One that never ends is none of them.
    let endings = unread
        .iter_mut()
        .map(|tail| tokio::time::timeout(Duration::from_secs(60), ending(tail)));
    let endings: Vec<_> = join_all(endings).await.into_iter().flatten().collect();
    let has_ended = |reason: &str| endings.iter().flatten().any(|end| end.contains(reason));
    assert!(
        has_ended(r#"{"reason":"host-memory"}"#) && has_ended(r#"{"reason":"stalled"}"#),
        "{endings:?}"
    );
    drop(unread);
    gives_back(&host, before).await;
}

#[tokio::test]
async fn timers_that_small_events_set_take_no_more_than_their_part_of_the_memory() {
    let host = Host::start_with("[limits]\nmemory_bytes = \"192MiB\"\n").await;
    let client = host.client();
    let grant = "&allow-publish=rang.%3E%40events";
    client
        .deploy_with("alarm", &guests::module("alarm"), grant)
        .await;
    let before = host.memory_bytes();
    // Half a million timers from 5 KB of events, which come to the module in one batch.
    let events: Vec<_> = (0..50)
        .map(|key| {
            let data =
                serde_json::json!({ "name": "n", "after_ms": 1_000_000_000, "count": 9_999 });
            let subject = format!("alarm.k{key}.set");
            serde_json::from_value(serde_json::json!({ "subject": subject, "data": data }))
                .expect("an event")
        })
        .collect();
    client.append(&events).await;
    // Commits on a busy disk take their time.
    let patience = Duration::from_secs(240);
    wait::until_within(patience, "the timers to be set", || async {
        let shown = client.show("alarm").await;
        (shown.position == 50).then_some(())
    })
    .await;
    let taken = host.peak_memory_bytes() - before;
    assert!(taken < 150 * MIB, "{} MiB", taken / MIB);
}
