//! Events of any source are shown, one or many, there or to come, and a look leaves nothing behind.

use std::time::Duration;

use bytes::Bytes;
use foldstream::api;
use foldstream_tests::cli::{self, Output};
use foldstream_tests::host::{self, Host};
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::process::Process;
use foldstream_tests::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const STREAM: &str = "LOOKED";

async fn start() -> (NatsServer, async_nats::jetstream::Context, Host) {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    nats::create_stream(&context, STREAM, "a.>").await;
    let host = Host::start_on(&server, STREAM).await;
    (server, context, host)
}

fn run(host: &Host, typed: &str) -> Output {
    cli::on(host, &typed.split(' ').collect::<Vec<_>>())
}

async fn publish(
    context: &async_nats::jetstream::Context,
    events: impl Iterator<Item = (String, String)>,
) -> u64 {
    nats::publish(
        context,
        events.map(|(subject, data)| (subject, Bytes::from(data))),
    )
    .await
}

fn sequences(output: &Output) -> Vec<u64> {
    output
        .lines()
        .iter()
        .map(|event| event["sequence"].as_u64().expect("a number"))
        .collect()
}

#[tokio::test]
async fn events_of_a_stream_are_read_by_place_subject_and_page() {
    let (_server, context, host) = start().await;
    assert_eq!(
        run(&host, "events read").expect(0).stdout.lines().count(),
        1,
        "an empty stream is no error"
    );
    publish(
        &context,
        (1..=100).map(|number| (format!("a.{}", number % 10), number.to_string())),
    )
    .await;
    let stream = context.get_stream(STREAM).await.expect("it is there");
    for sequence in (20..=60).chain([5]) {
        stream.delete_message(sequence).await.expect("it is there");
    }
    assert_eq!(
        sequences(&run(&host, "events read -o ndjson --limit 6")),
        [1, 2, 3, 4, 6, 7]
    );
    assert_eq!(
        sequences(&run(&host, "events read -o ndjson --from 18 --limit 4")),
        [18, 19, 61, 62]
    );
    let third = sequences(&run(
        &host,
        "events read -o ndjson --subject a.3 --limit 1000",
    ));
    assert_eq!(third, [3, 13, 63, 73, 83, 93]);
    let all = sequences(&run(&host, "events read -o ndjson --limit 1000"));
    assert_eq!(all.len(), 58);
    let one = run(&host, "events read --sequence 7 -o json")
        .expect(0)
        .json();
    assert_eq!((&one["subject"], &one["data"]), (&"a.7".into(), &7.into()));
    assert!(
        run(&host, "events read --sequence 5")
            .expect(3)
            .stderr
            .contains("it was removed")
    );
    assert!(
        run(&host, "events read --sequence 101")
            .expect(3)
            .stderr
            .contains("does not exist yet")
    );

    // Page by page the same, and a page says where the next one begins.
    let (mut after, mut paged) = (0, Vec::new());
    loop {
        let answer = host
            .client()
            .get(&format!("/v1/events?source=orders&limit=7&after={after}"))
            .await
            .expect(200);
        let page: api::EventPage = answer.json();
        assert!(
            page.events.len() <= 7 && page.last_sequence == 100,
            "{page:?}"
        );
        paged.extend(page.events.iter().map(|event| event.sequence));
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(paged, all);
    host.client()
        .get("/v1/events?source=none")
        .await
        .problem(400, "invalid");
    host.client()
        .get("/v1/events?limit=0")
        .await
        .problem(400, "invalid");
    let left = stream
        .get_info()
        .await
        .expect("it answers")
        .state
        .consumer_count;
    assert_eq!(left, 0, "no consumer is left");
}

#[tokio::test]
async fn a_message_that_no_client_can_read_is_shown() {
    let (server, context, host) = start().await;
    publish(&context, [("a.1".to_owned(), "1".to_owned())].into_iter()).await;
    let address = server.url().trim_start_matches("nats://").to_owned();
    let mut socket = tokio::net::TcpStream::connect(address)
        .await
        .expect("the server listens");
    let headers = b"NATS/1.0\r\nuser: a\rb\r\nother: c\r\n\r\n";
    let line = format!("HPUB a.2 {} {}\r\n", headers.len(), headers.len() + 1);
    let hello = b"CONNECT {\"headers\":true,\"verbose\":false}\r\n";
    socket
        .write_all(&[&hello[..], line.as_bytes(), headers, b"2\r\nPING\r\n"].concat())
        .await
        .expect("it reads");
    let mut answer = Vec::new();
    while !answer.ends_with(b"PONG\r\n") {
        assert!(
            socket
                .read_buf(&mut answer)
                .await
                .expect("the server writes")
                > 0,
            "the server hung up"
        );
    }
    publish(&context, [("a.3".to_owned(), "3".to_owned())].into_iter()).await;
    assert_eq!(sequences(&run(&host, "events read -o ndjson")), [1, 2, 3]);
    let broken = run(&host, "events read --sequence 2 -o json")
        .expect(0)
        .json();
    assert_eq!(
        (&broken["data"], &broken["headers"]["other"]),
        (&2.into(), &"c".into())
    );
    assert!(
        broken["headers"]["foldstream-header-error"]
            .as_str()
            .is_some_and(|fault| fault.contains("carriage"))
    );
}

#[tokio::test]
async fn a_tail_of_a_stream_shows_what_is_there_and_what_comes_also_after_the_server_was_away() {
    let (mut server, context, host) = start().await;
    publish(
        &context,
        (1..=300).map(|number| (format!("a.{}", number % 2), number.to_string())),
    )
    .await;
    let mut command = host::foldstream();
    command.args([
        "--url",
        host.url(),
        "events",
        "tail",
        "--from",
        "299",
        "--subject",
        "a.1",
        "-o",
        "ndjson",
    ]);
    let tail = Process::start("foldstream events tail", &mut command);
    wait::until("the event that is there", || async {
        tail.printed("\"sequence\":299")
    })
    .await;
    publish(
        &context,
        [
            ("a.0".to_owned(), "0".to_owned()),
            ("a.1".to_owned(), "1".to_owned()),
        ]
        .into_iter(),
    )
    .await;
    wait::until("the event that comes", || async {
        tail.printed("\"sequence\":302")
    })
    .await;
    server.kill();
    tokio::time::sleep(Duration::from_millis(600)).await;
    server.restart().await;
    publish(
        &server.jetstream().await,
        [("a.1".to_owned(), "2".to_owned())].into_iter(),
    )
    .await;
    wait::until("the event after the restart", || async {
        tail.printed("\"sequence\":303")
    })
    .await;
    assert_eq!(
        (
            tail.printed("\"sequence\":300"),
            tail.printed("\"sequence\":298")
        ),
        (None, None)
    );
}

#[tokio::test]
async fn a_stream_that_cannot_be_reached_says_so() {
    let (mut server, _context, host) = start().await;
    server.kill();
    let problem = host
        .client()
        .get("/v1/events")
        .await
        .problem(503, "not-ready");
    assert!(
        problem.detail.contains("cannot read the events"),
        "{}",
        problem.detail
    );
    host.client()
        .get("/v1/events/tail")
        .await
        .problem(503, "not-ready");
}

#[tokio::test]
async fn the_log_is_meant_if_there_is_one_and_streams_are_named() {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    nats::create_stream(&context, STREAM, "a.>").await;
    publish(
        &context,
        [("a.1".to_owned(), "\"of the stream\"".to_owned())].into_iter(),
    )
    .await;
    let config = format!(
        "[sources.log]\nkind = \"embedded\"\n{}",
        host::jetstream_source(&server.url(), STREAM)
    );
    let host = Host::start_with(&config).await;
    run(&host, "events append a.1 {\"of\":\"the-log\"} --source log").expect(0);
    assert!(
        run(&host, "events read")
            .expect(0)
            .stdout
            .contains("the-log")
    );
    assert!(
        run(&host, "events read --source orders")
            .expect(0)
            .stdout
            .contains("of the stream")
    );
}

#[tokio::test]
async fn what_is_exported_and_imported_has_the_same_bytes() {
    let (_server, context, host) = start().await;
    let octets: [&[u8]; 15] = [
        b"hello",
        b"\"hello\"",
        b"1",
        b"\"1\"",
        b"null",
        b"\"null\"",
        b"",
        b"\"\"",
        b"{\"$bytes\":\"AAEC\"}",
        b"{\"$bytes\":\"zz\"}",
        b" {\"z\": 1.50, \"a\":123456789012345678901, \"a\":1} ",
        b"{\n  \"a\": 1\n}\n",
        b"\"\\ud800\"",
        b"1e400",
        b"\xff\0",
    ];
    let events = octets.map(|data| ("a.placed".to_owned(), Bytes::from_static(data)));
    nats::publish(&context, events.into_iter()).await;
    let exact = async |host: &Host| -> Vec<serde_json::Value> {
        let page: api::EventPage = host
            .client()
            .get("/v1/events?exact=true")
            .await
            .expect(200)
            .json();
        page.events.into_iter().map(|event| event.data).collect()
    };
    let given = exact(&host).await;
    assert_eq!(given.len(), octets.len());
    assert_eq!(given[0], "hello");
    assert_eq!(given[1], serde_json::json!({ "$bytes": "ImhlbGxvIg==" }));
    let modelled = |data: &serde_json::Value| data.to_string();
    let distinct: std::collections::BTreeSet<_> = given.iter().map(modelled).collect();
    assert_eq!(distinct.len(), given.len(), "{given:?}");
    for format in ["foldstream", "cloudevents"] {
        let exported = run(&host, &format!("events export --format {format}")).expect(0);
        let other = Host::start().await;
        cli::on_with_input(&other, &["events", "import", "-"], &exported.stdout).expect(0);
        assert_eq!(exact(&other).await, given, "{format}");
    }
}

#[tokio::test]
async fn messages_of_the_server_are_no_events_for_people_either() {
    let (_server, context, host) = start().await;
    let send = async |name: &'static str, value: &'static str| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(name, value);
        let sent = context
            .publish_with_headers("a.1", headers, "".into())
            .await;
        sent.expect("is sent").await.expect("is stored");
    };
    send("KV-Operation", "DEL").await;
    publish(&context, [("a.1".to_owned(), "1".to_owned())].into_iter()).await;
    send("KV-Operation", "PURGE").await;
    send("Nats-Marker-Reason", "MaxAge").await;
    send("KV-Operation", "PUT").await;
    send("KV-Operation", "DEL").await;
    for typed in [
        "events read -o ndjson",
        "events read -o ndjson --subject a.1",
    ] {
        assert_eq!(sequences(&run(&host, typed)), [2, 5], "{typed}");
        let page = run(&host, &format!("{typed} --limit 1")).expect(0);
        assert_eq!(sequences(&page), [2], "{typed}");
        let rest = run(&host, &format!("{typed} --after 2 --limit 1")).expect(0);
        assert_eq!(sequences(&rest), [5], "{typed}");
    }
    for format in ["foldstream", "cloudevents"] {
        let exported = run(&host, &format!("events export --format {format}")).expect(0);
        assert_eq!(exported.stdout.lines().count(), 2, "{}", exported.stdout);
    }
    let removed = run(&host, "events read --sequence 3").expect(3);
    assert!(removed.stderr.contains("no event"), "{removed:?}");
}
