//! Events that a typed handler can't make sense of, from a real server: each is named, waits with its
//! key, and stops nothing else.

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use bytes::Bytes;
use foldstream::api;
use foldstream_tests::client::Client;
use foldstream_tests::host::{Host, jetstream_source};
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::{cli, guests};

const ALARM: &str = "alarm";
const SOUND: &[u8] = br#"{"name":"tea"}"#;

/// A server with events and messages in one stream, and a handler whose failed events are parked.
async fn start() -> (NatsServer, Context, Host) {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    let subjects = ["alarm.>", "rang.>", "_fs.timers.>"].map(str::to_owned);
    let config = async_nats::jetstream::stream::Config {
        subjects: subjects.to_vec(),
        ..nats::stream_config("ALARMS", "alarm.>")
    };
    nats::create_stream_with(&context, config).await;
    let host = Host::start_with(&jetstream_source(&server.url(), "ALARMS")).await;
    let options = "&on-failure=park&allow-publish=rang.%3E%40orders";
    let module = guests::module(ALARM);
    host.client().deploy_with(ALARM, &module, options).await;
    (server, context, host)
}

/// Publishes an event; returns its sequence.
async fn publish(context: &Context, subject: &str, (kind, data): (Option<&str>, &[u8])) -> u64 {
    let mut headers = HeaderMap::new();
    if let Some(kind) = kind {
        headers.insert("Event-Type", kind);
    }
    let sent = context
        .publish_with_headers(subject.to_owned(), headers, Bytes::copy_from_slice(data))
        .await;
    let stored = sent.expect("the server is there").await;
    stored.expect("it is stored").sequence
}

async fn parked(client: &Client) -> api::ParkedList {
    let path = "/v1/deployments/alarm/parked";
    client.get(path).await.expect(200).json()
}

/// Waits until nothing of the handler waits any more: events, timers, messages.
async fn settled(client: &Client, position: u64, rang: u64) -> api::Deployment {
    client.reached(ALARM, position).await;
    client
        .show_when(ALARM, "have rung", |shown| {
            let outbox = shown.outbox.as_ref().expect("it is a handler");
            let released: u64 = outbox.targets.iter().map(|target| target.released).sum();
            released == rang && outbox.entries == 0
        })
        .await
}

/// UTF-16 with a byte order mark, as some tools write it.
fn utf_16(text: &str) -> Vec<u8> {
    let units = std::iter::once(0xfeff).chain(text.encode_utf16());
    units.flat_map(u16::to_le_bytes).collect()
}

#[tokio::test]
async fn data_that_a_handler_cannot_read_is_parked_by_key_and_stops_nothing_else() {
    let (_server, context, host) = start().await;
    let client = host.client();
    let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    let digits = [
        &b"{\"name\":\"tea\",\"after_ms\":"[..],
        &b"9".repeat(700_000),
        b"}",
    ]
    .concat();
    let poison: [(&str, Vec<u8>); 14] = [
        ("cut", br#"{"name":"tea""#.to_vec()),
        ("empty", Vec::new()),
        ("text", b"tea".to_vec()),
        ("utf16", utf_16(r#"{"name":"tea"}"#)),
        // The beginning of a file that gzip wrote.
        ("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03".to_vec()),
        ("latin1", b"{\"name\":\"th\xe9\"}".to_vec()),
        ("mark", b"\xef\xbb\xbf{\"name\":\"tea\"}".to_vec()),
        ("half", br#"{"name":"\ud800"}"#.to_vec()),
        ("nan", br#"{"name":"tea","after_ms":NaN}"#.to_vec()),
        ("twice", br#"{"name":"tea","name":"egg"}"#.to_vec()),
        ("kind", br#"{"name":5}"#.to_vec()),
        ("negative", br#"{"name":"tea","after_ms":-1}"#.to_vec()),
        ("deep", deep),
        ("digits", digits),
    ];
    for (key, data) in &poison {
        // A module that fails at most of the last events seems to be at fault itself.
        for _ in 0..2 {
            publish(&context, "alarm.good.tick", (None, SOUND)).await;
        }
        publish(&context, &format!("alarm.{key}.set"), (None, data)).await;
    }
    // A sound event of one such key waits behind it; one of another key does not.
    publish(&context, "alarm.cut.set", (None, SOUND)).await;
    let last = publish(&context, "alarm.good.set", (None, SOUND)).await;
    let shown = settled(client, last, 1).await;
    assert_eq!(shown.state, api::DeploymentState::Live);

    let list = parked(client).await;
    let mut keys: Vec<&str> = list.keys.iter().map(|parked| parked.key.as_str()).collect();
    let mut wanted = poison.each_ref().map(|(key, _)| *key);
    keys.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(keys, wanted);
    assert_eq!(list.counts.events, poison.len() as u64 + 1);
    for parked in &list.keys {
        let failure = parked.failure.as_ref().expect("its first event failed");
        assert_eq!(failure.class, "rejected", "{parked:?}");
        // What it says is short, whatever the event has.
        assert!((10..500).contains(&failure.message.len()), "{parked:?}");
    }
    for key in wanted {
        // Readable, also if the data is not.
        cli::on(&host, &["parked", "show", ALARM, key]).expect(0);
    }

    let drop = ["parked", "drop", ALARM, "--all", "--reason", "unreadable"];
    cli::on(&host, &drop).expect(0);
    cli::on(&host, &["parked", "retry", ALARM, "--all"]).expect(0);
    settled(client, last, 2).await;
    assert_eq!(parked(client).await.counts.events, 0);
    cli::on(&host, &["verify", ALARM]).expect(0);
}

#[tokio::test]
async fn unknown_types_and_versions_and_hostile_subjects_stop_nothing() {
    let (_server, context, host) = start().await;
    let client = host.client();
    for kind in ["gone", "set.v9", "SET", "set.v02", "é", "a/b:c;d"] {
        publish(&context, "alarm.odd.set", (Some(kind), SOUND)).await;
    }
    let long = "k".repeat(150);
    let hostile = [
        "<script>alert(1)</script>",
        "'--drop",
        "%2e%2e%2f",
        "__proto__",
        "\u{202e}rtl\u{200b}",
        "\u{1f375}",
        "~|`$(id)`",
        &long,
    ];
    let mut last = 0;
    for key in hostile {
        last = publish(&context, &format!("alarm.{key}.set"), (None, SOUND)).await;
    }
    let shown = settled(client, last, hostile.len() as u64).await;
    assert_eq!(shown.state, api::DeploymentState::Live);
    assert_eq!(parked(client).await.counts.events, 0);
    let counted = client.entries(ALARM, "rang/").await;
    assert_eq!(counted.len(), hostile.len(), "{counted:?}");
    cli::on(&host, &["verify", ALARM]).expect(0);
}
