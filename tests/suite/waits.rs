//! An append that waits returns when deployments have applied its events, and says what became of
//! them.

use foldstream::api::{self, WaitOutcome};
use foldstream_tests::client::{Answer, Client};
use foldstream_tests::host::Host;
use foldstream_tests::{cli, guests};
use serde_json::json;

const TALLY: &str = "tally";

async fn append(client: &Client, events: &[serde_json::Value], query: &str) -> Answer {
    let body = json!({ "events": events }).to_string();
    let path = format!("/v1/events?source=events&{query}");
    client.post(&path, "application/json", body).await
}

fn order(number: u64) -> serde_json::Value {
    json!({ "subject": format!("orders.{number}.placed"), "data": {} })
}

async fn waited(client: &Client, events: &[serde_json::Value], query: &str) -> Vec<api::Waited> {
    let appended = append(client, events, query).await.expect(200);
    appended.json::<api::Appended>().waited
}

fn outcomes(waited: &[api::Waited]) -> Vec<(&str, WaitOutcome)> {
    waited
        .iter()
        .map(|waited| (waited.deployment.as_str(), waited.outcome))
        .collect()
}

async fn last_sequence(client: &Client) -> u64 {
    let page = client.get("/v1/events?source=events&after=999999").await;
    page.value()["last_sequence"].as_u64().expect("a number")
}

#[tokio::test]
async fn append_that_waits_returns_with_the_events_applied_or_says_that_they_are_not() {
    let config = "[sources.events]\nkind = \"embedded\"\n[sources.other]\nkind = \"embedded\"\n";
    let host = Host::start_with(config).await;
    let client = host.client();
    let module = guests::module(TALLY);
    client.deploy_with(TALLY, &module, "&source=events").await;
    client
        .deploy_with("second", &module, "&source=events")
        .await;
    client
        .deploy_with("elsewhere", &module, "&source=other")
        .await;
    for round in 1..=20 {
        let found = waited(
            client,
            &[order(1), order(2)],
            "wait=tally,second&timeout=30s",
        )
        .await;
        let applied = WaitOutcome::Applied;
        assert_eq!(outcomes(&found), [("second", applied), (TALLY, applied)]);
        assert!(found.iter().all(|waited| waited.position >= round * 2));
        for name in [TALLY, "second"] {
            let entry = client.entry(name, "tally/2").await.expect(200);
            assert_eq!(entry.value(), json!(round), "visible at once");
        }
    }
    // An event that the module does not want is passed all the same.
    let other = json!({ "subject": "invoices.1", "data": {} });
    let found = waited(client, &[other], "wait=tally&timeout=30s").await;
    assert_eq!(outcomes(&found), [(TALLY, WaitOutcome::Applied)]);

    // What cannot be waited for is refused before anything is appended.
    let before = last_sequence(client).await;
    let answer = append(client, &[order(1)], "wait=nobody").await;
    answer.problem(404, "not-found");
    let refused = append(client, &[order(1)], "wait=elsewhere").await;
    let refused = refused.problem(422, "refused");
    assert!(
        refused.detail.contains("nothing was appended"),
        "{}",
        refused.detail
    );
    append(client, &[order(1)], "wait=tally&timeout=soon")
        .await
        .problem(400, "invalid");
    let many: Vec<String> = (0..9).map(|number| format!("d{number}")).collect();
    append(client, &[order(1)], &format!("wait={}", many.join(",")))
        .await
        .problem(400, "invalid");
    assert_eq!(last_sequence(client).await, before);

    // A paused deployment is not waited for.
    client.act(TALLY, "pause").await.expect(200);
    let found = waited(client, &[order(1)], "wait=tally,second&timeout=60s").await;
    let expected = [
        ("second", WaitOutcome::Applied),
        (TALLY, WaitOutcome::Stopped),
    ];
    assert_eq!(outcomes(&found), expected);
    assert_eq!(last_sequence(client).await, before + 1, "it is stored");
    let told = cli::on(
        &host,
        &[
            "events",
            "append",
            "orders.1.placed",
            "--source",
            "events",
            "--wait-for",
            TALLY,
        ],
    );
    let told = told.expect(6);
    assert!(
        told.stdout.contains("tally: stopped") && told.stderr.contains("do not append it again"),
        "{}{}",
        told.stdout,
        told.stderr
    );
    client.act(TALLY, "resume").await.expect(200);
    let found = waited(client, &[order(1)], "wait=tally&timeout=30s").await;
    assert_eq!(outcomes(&found), [(TALLY, WaitOutcome::Applied)]);
}

#[tokio::test]
async fn append_whose_wait_times_out_has_stored_the_event() {
    let host =
        Host::start_with("[pipeline]\ninitial_backoff = \"60s\"\nmax_backoff = \"60s\"\n").await;
    let client = host.client();
    client
        .deploy("stumbling", &guests::module("stumbling"))
        .await;
    // It fails, and is tried again in half a minute.
    let stuck = json!({ "subject": "items.1", "data": {} });
    let body = json!({ "events": [stuck] }).to_string();
    let path = "/v1/events?wait=stumbling&timeout=300ms";
    let appended = client
        .post(path, "application/json", body)
        .await
        .expect(200);
    let appended = appended.json::<api::Appended>();
    assert_eq!(appended.sequences, [1]);
    let found = outcomes(&appended.waited);
    assert_eq!(found, [("stumbling", WaitOutcome::TimedOut)]);
    assert_eq!(appended.waited[0].position, 0);
}

#[tokio::test]
async fn append_that_waits_learns_that_its_event_is_parked_or_its_deployment_deleted() {
    let host = Host::start_with(
        "[pipeline]\ninitial_backoff = \"60s\"\nmax_backoff = \"60s\"\n[serve]\nwait_max = \"2s\"\n",
    )
    .await;
    let client = host.client();
    let mischief = guests::module("mischief");
    client
        .deploy_with("mischief", &mischief, "&on-failure=park")
        .await;
    let tell = async |key: &str, verb: &str| {
        let event = json!({ "subject": format!("mischief.{key}"), "data": verb });
        let body = json!({ "events": [event] }).to_string();
        let path = "/v1/events?wait=mischief&timeout=1m";
        let answer = client.post(path, "application/json", body).await;
        let appended = answer.expect(200).json::<api::Appended>();
        appended.waited[0].clone()
    };
    let parked = tell("a", "reject it").await;
    assert_eq!(
        (parked.outcome, parked.position),
        (WaitOutcome::Parked, 1),
        "it failed"
    );
    assert_eq!(tell("a", "note 1").await.outcome, WaitOutcome::Parked);
    assert_eq!(tell("b", "note 2").await.outcome, WaitOutcome::Applied);
    let told = cli::on(
        &host,
        &[
            "events",
            "append",
            "mischief.a",
            "note 3",
            "--wait-for",
            "mischief",
        ],
    );
    assert!(told.expect(6).stdout.contains("mischief: parked"));

    // The host's own limit counts, and a deployment that is deleted meanwhile ends the wait.
    client
        .deploy("stumbling", &guests::module("stumbling"))
        .await;
    let body = json!({ "events": [{ "subject": "items.1", "data": {} }] }).to_string();
    let path = "/v1/events?wait=stumbling,mischief&timeout=100m";
    let answer = client.post(path, "application/json", body.clone()).await;
    let found = answer.expect(200).json::<api::Appended>().waited;
    let expected = [
        ("mischief", WaitOutcome::Applied),
        ("stumbling", WaitOutcome::TimedOut),
    ];
    assert_eq!(outcomes(&found), expected);
    let wait = client.post(path, "application/json", body);
    let delete = async {
        client
            .show_when("mischief", "pass the event", |shown| shown.position >= 6)
            .await;
        let request = client.request(reqwest::Method::DELETE, "/v1/deployments/stumbling");
        client.send(request).await
    };
    let (answer, deleted) = tokio::join!(wait, delete);
    assert!(deleted.status.is_success(), "{}", deleted.text());
    let found = answer.expect(200).json::<api::Appended>().waited;
    let stumbling = found[1].outcome;
    // Under load the limit may come first.
    assert!(
        [WaitOutcome::Stopped, WaitOutcome::TimedOut].contains(&stumbling),
        "{stumbling:?}"
    );
}

#[tokio::test]
async fn many_appends_wait_at_once_and_a_stop_of_the_host_or_a_client_that_leaves_harms_none() {
    let mut host = Host::start_with("").await;
    host.client().deploy(TALLY, &guests::module(TALLY)).await;
    let client = host.client();
    let waits = (1..=200u64).map(async |number| {
        let body = json!({ "events": [order(number)] }).to_string();
        let path = "/v1/events?wait=tally&timeout=60s";
        let answer = client.post(path, "application/json", body).await;
        outcomes(&answer.expect(200).json::<api::Appended>().waited)[0].1
    });
    let found = futures_util::future::join_all(waits).await;
    assert!(
        found.iter().all(|outcome| *outcome == WaitOutcome::Applied),
        "{found:?}"
    );
    let module = guests::module("stumbling");
    client.deploy("stumbling", &module).await;
    let body = json!({ "events": [{ "subject": "items.1", "data": {} }] }).to_string();
    let path = "/v1/events?wait=stumbling&timeout=30s";
    // The client leaves; its event is stored.
    let left = client.post(path, "application/json", body.clone());
    let stored = client.show_when(TALLY, "pass the event", |shown| shown.position >= 201);
    tokio::select! {
        _ = left => panic!("nothing applies the event"),
        _ = stored => {}
    }
    // The host stops, and the waits end with it.
    let waiting = {
        let client = Client::new(client.url());
        tokio::spawn(async move {
            let request = client
                .request(reqwest::Method::POST, path)
                .header("content-type", "application/json")
                .body(body);
            client.try_send(request).await
        })
    };
    client
        .show_when(TALLY, "pass the event", |shown| shown.position >= 202)
        .await;
    host.stop();
    // An answer says that it has not been applied; a closed connection says nothing.
    if let Ok(answer) = waiting.await.expect("no panic") {
        let appended = answer.expect(200).json::<api::Appended>();
        assert_eq!(appended.sequences, [202]);
        assert_eq!(appended.waited[0].outcome, WaitOutcome::Stopped);
    }
    host.restart().await;
    assert_eq!(last_sequence_of(host.client()).await, 202);
}

async fn last_sequence_of(client: &Client) -> u64 {
    let page = client.get("/v1/events?after=999999").await;
    page.value()["last_sequence"].as_u64().expect("a number")
}
