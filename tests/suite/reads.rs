//! Reading a read model over HTTP: entries, pages in both directions, queries, positions, ETags,
//! problems, and who may.

use foldstream::api::{EntryPage, NewEvent};
use foldstream_tests::client::{Answer, Client};
use foldstream_tests::guests;
use foldstream_tests::host::Host;
use foldstream_tests::stage::{Kind, LEDGER, Stage};
use reqwest::Method;
use serde_json::json;

/// A ledger of 500 events of 100 customers.
async fn stage() -> Stage {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(500).await;
    stage.assert_ledger_equals_model().await;
    stage
}

async fn page(stage: &Stage, parameters: &str) -> EntryPage {
    stage
        .client()
        .get(&format!("/v1/deployments/{LEDGER}/entries?{parameters}"))
        .await
        .expect(200)
        .json()
}

fn keys(page: &EntryPage) -> Vec<&str> {
    page.entries
        .iter()
        .map(|entry| entry.key.as_str())
        .collect()
}

#[tokio::test]
async fn pages_put_together_are_the_whole_in_both_directions() {
    let stage = stage().await;
    let wanted: Vec<String> = stage
        .model
        .entries()
        .into_iter()
        .map(|entry| entry.key)
        .collect();
    for order in ["asc", "desc"] {
        let (mut found, mut after) = (Vec::new(), String::new());
        loop {
            let page = page(&stage, &format!("order={order}&limit=7{after}")).await;
            assert!(page.entries.len() <= 7 && page.position == 500);
            found.extend(keys(&page).into_iter().map(str::to_owned));
            match page.next {
                Some(next) => after = format!("&after={}", next.replace('/', "%2F")),
                None => break,
            }
        }
        if order == "desc" {
            found.reverse();
        }
        assert_eq!(found, wanted, "{order}");
    }
}

#[tokio::test]
async fn prefix_and_range_select_what_they_say() {
    let stage = stage().await;
    let all: Vec<String> = stage
        .model
        .entries()
        .into_iter()
        .map(|entry| entry.key)
        .collect();
    let select = |wanted: &dyn Fn(&str) -> bool| -> Vec<String> {
        all.iter()
            .filter(|key| wanted(key.as_str()))
            .cloned()
            .collect()
    };
    assert_eq!(
        keys(&page(&stage, "prefix=customer/1&limit=1000").await),
        select(&|key| key.starts_with("customer/1"))
    );
    assert_eq!(
        keys(&page(&stage, "start=customer/3&end=customer/5&limit=1000").await),
        select(&|key| ("customer/3".."customer/5").contains(&key))
    );
    assert_eq!(
        keys(&page(&stage, "start=head").await),
        select(&|key| key >= "head")
    );
    assert_eq!(keys(&page(&stage, "prefix=nothing").await), [""; 0]);
}

#[tokio::test]
async fn every_answer_has_its_position_and_an_etag_that_changes_with_its_content() {
    let mut stage = stage().await;
    let paths = ["entries/head", "entries?prefix=pair/", "queries/pair"]
        .map(|path| format!("/v1/deployments/{LEDGER}/{path}"));
    for path in &paths {
        let first = stage.client().get(path).await.expect(200);
        assert_eq!(first.position(), 500, "{path}");
        let etag = first
            .header("etag")
            .expect("every read has an ETag")
            .to_owned();
        let again = stage
            .client()
            .request(Method::GET, path)
            .header("if-none-match", &etag);
        let again = stage.client().send(again).await.expect(304);
        assert!(again.body.is_empty(), "{path}");
        stage.publish(1).await;
        let head = stage.model.last();
        let separator = if path.contains('?') { '&' } else { '?' };
        let changed = format!("{path}{separator}at-least={head}");
        let request = stage
            .client()
            .request(Method::GET, &changed)
            .header("if-none-match", &etag);
        let changed = stage.client().send(request).await.expect(200);
        assert_ne!(changed.header("etag"), Some(etag.as_str()), "{path}");
        // The next path begins where the first began.
        stage = self::stage().await;
    }
}

#[tokio::test]
async fn values_are_answered_as_what_they_are() {
    let host = Host::start().await;
    let client = host.client();
    client.deploy("mischief", &guests::module("mischief")).await;
    let event = |data: &str| NewEvent {
        subject: "mischief.a".to_owned(),
        kind: None,
        id: None,
        time: None,
        headers: std::collections::BTreeMap::new(),
        data: json!(data),
    };
    let events = [
        event("note {\"a\":1}"),
        event("note plain é"),
        event("big-value 3"),
    ];
    let last = client.append(&events).await.last_sequence;
    client.reached("mischief", last).await;
    let entry = async |key: &str| client.entry("mischief", key).await.expect(200);
    let value = entry("note/00000001").await;
    assert_eq!(
        (value.header("content-type"), value.value()),
        (Some("application/json"), json!({"a": 1}))
    );
    let value = entry("note/00000002").await;
    assert_eq!(
        (value.header("content-type"), value.text()),
        (Some("text/plain; charset=utf-8"), "plain é".to_owned())
    );
    let value = entry("big-value").await;
    assert_eq!(
        (value.header("content-type"), &*value.body),
        (Some("application/octet-stream"), &[0xff; 3][..])
    );
    assert_eq!(entry("note%2F00000002").await.text(), "plain é");
}

#[tokio::test]
async fn wrong_requests_get_a_problem_that_says_what_to_do() {
    let stage = stage().await;
    let client = stage.client();
    let deployment = format!("/v1/deployments/{LEDGER}");
    client
        .get("/v1/deployments/nothing")
        .await
        .problem(404, "not-found");
    client.get("/v1/nothing").await.problem(404, "not-found");
    client
        .get(&format!("{deployment}/entries/nothing"))
        .await
        .problem(404, "not-found");
    client
        .get(&format!("{deployment}/queries/nothing"))
        .await
        .problem(404, "not-found");
    for parameters in [
        "limit=0",
        "limit=10001",
        "limit=x",
        "order=up",
        "limt=3",
        "at-least=x",
        "timeout=x",
    ] {
        client
            .get(&format!("{deployment}/entries?{parameters}"))
            .await
            .problem(400, "invalid");
    }
    client
        .send(client.request(Method::PUT, &deployment))
        .await
        .problem(405, "method-not-allowed");
    client
        .post("/v1/events", "text/plain", "hello")
        .await
        .problem(415, "unsupported-media-type");
    let of_curl = "application/x-www-form-urlencoded";
    let hint = client.post("/v1/events", of_curl, "{}").await;
    let hint = hint.problem(415, "unsupported-media-type").detail;
    assert!(hint.contains("curl") && hint.contains("-H"), "{hint}");
    let compressed = client
        .request(Method::POST, "/v1/events")
        .header("content-type", "application/json")
        .header("content-encoding", "gzip")
        .body("{\"events\":[]}");
    let hint = client.send(compressed).await;
    let hint = hint.problem(415, "unsupported-media-type").detail;
    assert!(hint.contains("without compression"), "{hint}");
    client
        .post("/v1/events", "application/json", "{")
        .await
        .problem(400, "invalid");
    client
        .upload(guests::module("ledger"), "?name=Not%20A%20Name")
        .await
        .problem(400, "invalid");
    client
        .upload(guests::module("ledger"), "?source=nothing")
        .await
        .problem(400, "invalid");
}

#[tokio::test]
async fn a_body_beyond_its_limit_is_refused() {
    let host = Host::start_with("[serve]\nbody_bytes_max = 1000\n").await;
    let body = json!({ "events": [{ "subject": "a.b", "data": "x".repeat(2_000) }] }).to_string();
    host.client()
        .post("/v1/events", "application/json", body)
        .await
        .problem(413, "too-large");
}

#[tokio::test]
async fn with_a_token_nobody_without_it_gets_anything_but_the_probes() {
    let config = "[serve]\ntoken = \"a-token-that-is-long-enough\"\n";
    let mut host = Host::start_with(config).await;
    let stranger = host.client().clone();
    for path in [
        "/v1/deployments",
        "/v1/sources",
        "/v1/host",
        "/v1/events",
        "/metrics",
        "/openapi.json",
        "/nothing",
    ] {
        stranger.get(path).await.problem(401, "unauthorized");
        stranger
            .clone()
            .with_token("wrong")
            .get(path)
            .await
            .problem(401, "unauthorized");
    }
    stranger
        .upload(guests::module("ledger"), "")
        .await
        .problem(401, "unauthorized");
    for path in ["/livez", "/readyz", "/startupz"] {
        stranger.get(path).await.expect(200);
    }
    let owner = host
        .client()
        .clone()
        .with_token("a-token-that-is-long-enough");
    owner.get("/v1/deployments").await.expect(200);
    assert!(
        !host
            .process()
            .output()
            .contains("a-token-that-is-long-enough")
    );
}

#[tokio::test]
async fn probes_say_when_the_host_is_alive_started_and_ready() {
    let stage = stage().await;
    for path in ["/livez", "/readyz", "/startupz"] {
        assert_eq!(
            stage.client().get(path).await.expect(200).value()["ok"],
            json!(true),
            "{path}"
        );
    }
}

/// Readers that wait for a position that never comes: of an entry, a page, and a generation.
fn waiting(client: &Client) -> Vec<tokio::task::JoinHandle<Result<Answer, reqwest::Error>>> {
    let base = format!("/v1/deployments/{LEDGER}/entries");
    let wait = "at-least=1000000&timeout=20s";
    let paths = [
        format!("{base}/none?{wait}"),
        format!("{base}?{wait}"),
        format!("{base}?generation=1&{wait}"),
    ];
    let read = |path: String| {
        let client = client.clone();
        tokio::spawn(async move {
            let request = client.request(Method::GET, &path);
            client.try_send(request).await
        })
    };
    paths.into_iter().map(read).collect()
}

#[tokio::test]
async fn readers_that_wait_are_answered_once_the_deployment_is_deleted() {
    let stage = stage().await;
    let readers = waiting(stage.client());
    // Behind them on the same host.
    stage.client().show(LEDGER).await;
    let path = format!("/v1/deployments/{LEDGER}");
    let delete = stage.client().request(Method::DELETE, &path);
    assert!(stage.client().send(delete).await.status.is_success());
    for reader in readers {
        let answer = reader.await.expect("it ends").expect("it is answered");
        answer.problem(404, "not-found");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_wait_are_answered_when_the_host_stops() {
    let mut stage = stage().await;
    let readers = waiting(stage.client());
    stage.client().show(LEDGER).await;
    tokio::task::block_in_place(|| stage.host.stop());
    for reader in readers {
        let answer = reader.await.expect("it ends").expect("it is answered");
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
        answer.problem(503, "stopping");
    }
}
