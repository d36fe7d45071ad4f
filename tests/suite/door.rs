//! The door: tokens and their scopes, what is read again while a host runs, pages and proxies, and
//! what the log tells.

use std::collections::BTreeMap;
use std::path::Path;

use foldstream_tests::cli;
use foldstream_tests::client::{Client, Events};
use foldstream_tests::guests;
use foldstream_tests::host::{Host, foldstream, serve};
use foldstream_tests::process::Process;
use foldstream_tests::wait;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

/// Makes a token with the program: itself, and its entry.
fn make_token(arguments: &[&str]) -> (String, String) {
    let mut all = vec!["token", "new"];
    all.extend(arguments);
    let text = cli::run(&all).expect(0).stdout;
    let (first, rest) = text.split_once("\n\n").expect("a token and its entry");
    let (_, entry) = rest.split_once("\n\n").expect("the entry is last");
    assert!(
        !entry.contains("foldstream_"),
        "the file holds no token: {entry}"
    );
    (
        first
            .rsplit(' ')
            .next()
            .expect("the token is first")
            .to_owned(),
        format!("{entry}\n"),
    )
}

/// A host that wants the tokens of a file.
async fn host_with(entries: &str) -> (Host, std::path::PathBuf) {
    let mut host = Host::start().await;
    let file = host.config_file().with_file_name("tokens.toml");
    std::fs::write(&file, entries).expect("written");
    host.configure(&format!("[serve]\ntokens_file = {file:?}\n"));
    host.restart().await;
    (host, file)
}

fn as_token(host: &Host, token: &str) -> Client {
    host.client().clone().with_token(token)
}

#[tokio::test]
async fn an_event_by_which_timers_fire_needs_the_scope_of_operators() {
    let (loader, one) = make_token(&["--name", "loader", "--scope", "append"]);
    let both = ["--name", "both", "--scope", "append", "--scope", "operate"];
    let (both, two) = make_token(&both);
    let limited = [
        "--name",
        "limited",
        "--scope",
        "append",
        "--scope",
        "operate",
        "--deployment",
        "ledger",
    ];
    let (limited, three) = make_token(&limited);
    let (host, _) = host_with(&[one, two, three].concat()).await;
    let append = async |token: &str, subject: &str| {
        let events = json!({"events": [{"subject": subject, "data": {}}]}).to_string();
        let client = as_token(&host, token);
        client.post("/v1/events", "application/json", events).await
    };
    for own in ["_fs.timers.ledger", "_fs.timers", "_fs.other"] {
        let said = append(&loader, own).await.problem(403, "not-allowed");
        assert!(said.detail.contains("scope operate"), "{said:?}");
        append(&both, own).await.expect(200);
    }
    append(&loader, "_fsx.timers.ledger").await.expect(200);
    // A restored handler would take such an event for a message of its own.
    let with_id = async |token: &str, id: &str| {
        let event = json!({"subject": "a", "headers": {"ce-id": id}, "data": {}});
        let events = json!({"events": [event]}).to_string();
        let client = as_token(&host, token);
        client.post("/v1/events", "application/json", events).await
    };
    let own = "fs.60bf88735b7de10a.877.0.0";
    let said = with_id(&loader, own).await.problem(403, "not-allowed");
    assert!(said.detail.contains("a message of a handler"), "{said:?}");
    with_id(&both, own).await.expect(200);
    for other in [
        "fs.1",
        "fs.60bf88735b7de10a.877.0",
        "60bf88735b7de10a.877.0.0",
    ] {
        with_id(&loader, other).await.expect(200);
    }
    append(&limited, "_fs.timers.ledger").await.expect(200);
    for other in ["_fs.timers.other", "_fs.other"] {
        append(&limited, other).await.problem(403, "not-allowed");
    }
}

#[tokio::test]
async fn a_token_does_what_its_scopes_say_and_nothing_else() {
    let (reader, one) = make_token(&[
        "--name",
        "dashboard",
        "--scope",
        "read",
        "--deployment",
        "ledger",
    ]);
    let (loader, two) = make_token(&["--name", "loader", "--scope", "append"]);
    let (operator, three) = make_token(&[
        "--name", "operator", "--scope", "operate", "--scope", "read",
    ]);
    let (ci, four) = make_token(&["--name", "ci", "--scope", "deploy", "--scope", "read"]);
    let (mut host, file) = host_with(&[one, two, three, four].concat()).await;
    let [reader, loader, operator, ci] =
        [&reader, &loader, &operator, &ci].map(|token| as_token(&host, token));
    let module = guests::module("ledger");
    let append = |client: Client| async move {
        let events = r#"{"events":[{"subject":"orders.1.placed","data":{}}]}"#;
        client.post("/v1/events", "application/json", events).await
    };

    host.client()
        .get("/v1/deployments")
        .await
        .problem(401, "unauthorized");
    for client in [&reader, &loader, &operator] {
        let said = client
            .upload(module.clone(), "?name=ledger")
            .await
            .problem(403, "not-allowed")
            .detail;
        assert!(said.contains("scope deploy"), "{said}");
    }
    ci.deploy("ledger", &module).await;
    ci.deploy("other", &module).await;

    reader.get("/v1/deployments/ledger").await.expect(200);
    reader
        .get("/v1/deployments/other")
        .await
        .problem(403, "not-allowed");
    reader
        .get("/v1/deployments/%6fther")
        .await
        .problem(403, "not-allowed");
    reader
        .get("/v1/deployments")
        .await
        .problem(403, "not-allowed");
    reader.get("/v1/events").await.problem(403, "not-allowed");
    reader.get("/v1/host").await.expect(200);
    reader.get("/v1/nothing").await.problem(404, "not-found");
    reader
        .act("ledger", "pause")
        .await
        .problem(403, "not-allowed");
    append(reader.clone()).await.problem(403, "not-allowed");
    append(loader.clone()).await.expect(200);
    loader.get("/v1/events").await.problem(403, "not-allowed");
    ci.act("ledger", "pause").await.problem(403, "not-allowed");
    operator.act("ledger", "pause").await.expect(200);
    let delete = async |client: &Client| {
        client
            .send(client.request(Method::DELETE, "/v1/deployments/other"))
            .await
    };
    delete(&operator).await.problem(403, "not-allowed");
    delete(&ci).await.expect(204);

    let entries = operator.get("/v1/audit").await.expect(200).value()["entries"].clone();
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or("-").to_owned();
    let told = |entry: &Value| format!("{} by {}", text(entry, "action"), text(entry, "actor"));
    let done: Vec<String> = entries
        .as_array()
        .expect("a list")
        .iter()
        .map(told)
        .collect();
    assert_eq!(
        done,
        [
            "delete by ci",
            "pause by operator",
            "deploy by ci",
            "deploy by ci"
        ]
    );
    assert_eq!(entries[0]["peer"], "127.0.0.1");

    // A token that is taken out of the file lets nobody in any more, without a signal or a restart.
    std::fs::write(&file, "tokens = []\n").expect("written");
    wait::until("the token to be withdrawn", || async {
        (operator.get("/v1/host").await.status == 401).then_some(())
    })
    .await;
    host.stop();
}

#[tokio::test]
async fn a_token_waits_for_its_events_only_in_deployments_that_it_may_read() {
    let (loader, one) = make_token(&["--name", "loader", "--scope", "append"]);
    let (waiter, two) = make_token(&[
        "--name",
        "waiter",
        "--scope",
        "append",
        "--scope",
        "read",
        "--deployment",
        "ledger",
    ]);
    let (ci, three) = make_token(&["--name", "ci", "--scope", "deploy", "--scope", "read"]);
    let (host, _file) = host_with(&[one, two, three].concat()).await;
    let [loader, waiter, ci] = [&loader, &waiter, &ci].map(|token| as_token(&host, token));
    let module = guests::module("ledger");
    ci.deploy("ledger", &module).await;
    ci.deploy("other", &module).await;
    let wait = async |client: &Client, name: &str| {
        let events = r#"{"events":[{"subject":"orders.1.placed","data":{}}]}"#;
        let path = format!("/v1/events?wait={name}&timeout=0s");
        client.post(&path, "application/json", events).await
    };
    let said = wait(&loader, "ledger").await.problem(403, "not-allowed");
    assert!(said.detail.contains("scope read"), "{}", said.detail);
    for other in ["other", "ledger,other", "ledger&wait=other", ""] {
        wait(&waiter, other).await.problem(403, "not-allowed");
    }
    wait(&waiter, "ledger").await.expect(200);
}

/// Waits until a stream brings a change or an event.
async fn news(stream: &mut Events) {
    // Positions come for as long as it is open.
    let news = stream.next_of_any(&["change", "event"]);
    let news = tokio::time::timeout(wait::DEADLINE, news).await;
    news.expect("it brings some");
}

/// What a stream says before the host closes it.
async fn reason_of_end(stream: &mut Events) -> String {
    // Positions come for as long as it is open.
    let end = tokio::time::timeout(wait::DEADLINE, stream.next_of("end")).await;
    let end = end.expect("the stream ends").data;
    assert!(stream.next().await.is_none(), "nothing follows the end");
    let mark: Value = serde_json::from_str(&end).expect("an end is JSON");
    mark["reason"].as_str().expect("a text").to_owned()
}

#[tokio::test]
async fn whatever_is_open_with_a_withdrawn_token_ends_and_nothing_else() {
    let make = |name: &str| make_token(&["--name", name, "--scope", "read"]);
    let (removed, one) = make("removed");
    let (reduced, two) = make("reduced");
    let (kept, three) = make("kept");
    let all = ["read", "append", "operate", "deploy"];
    let mut arguments = vec!["--name", "all"];
    arguments.extend(all.iter().flat_map(|scope| ["--scope", scope]));
    let (all, four) = make_token(&arguments);
    let (mut host, file) = host_with(&[&*one, &*two, &*three, &*four].concat()).await;
    let [removed, reduced, kept, all] =
        [&removed, &reduced, &kept, &all].map(|token| as_token(&host, token));
    all.deploy("ledger", &guests::module("ledger")).await;
    let (changes, tail) = ("/v1/deployments/ledger/changes", "/v1/events/tail");
    let mut ending = [
        removed.events(changes, None).await,
        removed.events(tail, None).await,
        // It shows events of all deployments.
        reduced.events(tail, None).await,
    ];
    let mut staying = [
        reduced.events(changes, None).await,
        kept.events(changes, None).await,
        kept.events(tail, None).await,
    ];
    let far = "/v1/deployments/ledger/entries?at-least=9&timeout=30s";
    let waiting = {
        let removed = removed.clone();
        tokio::spawn(async move { removed.get(far).await })
    };
    let append = async || {
        let events =
            r#"{"events":[{"subject":"orders.1.placed","data":{"order":"1","amount":5}}]}"#;
        let answer = all.post("/v1/events", "application/json", events).await;
        answer.expect(200);
    };

    // The same tokens again end nothing.
    host.process().signal(Signal::HUP);
    host.prints("tokens reloaded").await;
    append().await;
    for stream in ending.iter_mut().chain(&mut staying) {
        news(stream).await;
    }
    assert!(!waiting.is_finished(), "its token is still valid");

    let entries = format!("{two}deployments = [\"ledger\"]\n{three}{four}");
    std::fs::write(&file, entries).expect("written");
    host.process().signal(Signal::HUP);
    for stream in &mut ending {
        assert_eq!(reason_of_end(stream).await, "not-allowed");
    }
    waiting
        .await
        .expect("no panic")
        .problem(401, "unauthorized");
    append().await;
    for stream in &mut staying {
        news(stream).await;
    }
    let ended = r#"foldstream_watches_ended_total{reason="not-allowed"} 3"#;
    let metrics = kept.get("/metrics").await.expect(200).text();
    assert!(metrics.contains(ended), "{metrics}");
}

#[tokio::test]
async fn an_append_whose_token_is_withdrawn_while_it_waits_has_stored_its_event() {
    let make = |name: &str, scopes: &[&str]| {
        let mut arguments = vec!["--name", name];
        arguments.extend(scopes.iter().flat_map(|scope| ["--scope", scope]));
        make_token(&arguments)
    };
    let (removed, one) = make("removed", &["append", "read"]);
    let (all, two) = make("all", &["read", "deploy"]);
    let mut host =
        Host::start_with("[pipeline]\ninitial_backoff = \"60s\"\nmax_backoff = \"60s\"\n").await;
    let file = host.config_file().with_file_name("tokens.toml");
    std::fs::write(&file, [&*one, &*two].concat()).expect("written");
    host.configure(&format!(
        "[pipeline]\ninitial_backoff = \"60s\"\nmax_backoff = \"60s\"\n\
         [serve]\ntokens_file = {file:?}\n"
    ));
    host.restart().await;
    let (removed, all) = (as_token(&host, &removed), as_token(&host, &all));
    all.deploy("stumbling", &guests::module("stumbling")).await;
    // It fails, and is tried again in half a minute.
    let events = r#"{"events":[{"subject":"items.1","data":{}}]}"#;
    let path = "/v1/events?wait=stumbling&timeout=25s";
    let waiting = tokio::spawn(async move { removed.post(path, "application/json", events).await });
    wait::until("the event to be stored", || async {
        let page = all.get("/v1/events").await.expect(200).value();
        (page["last_sequence"] == 1).then_some(())
    })
    .await;
    std::fs::write(&file, &two).expect("written");
    host.process().signal(Signal::HUP);
    let answer = waiting.await.expect("no panic").expect(200).value();
    let waited = json!([{"deployment": "stumbling", "outcome": "not-allowed", "position": 0}]);
    assert_eq!(
        (&answer["sequences"], &answer["waited"]),
        (&json!([1]), &waited)
    );
}

#[tokio::test]
async fn a_hangup_reads_the_token_again_and_ends_nothing() {
    let mut host = Host::start().await;
    let config = |token: &str, level: &str| {
        format!("[serve]\ntoken = \"{token}\"\n[log]\nlevel = \"{level}\"\n")
    };
    host.configure(&config("the-first-token-of-all", "info"));
    host.restart().await;
    let (first, second) = (
        as_token(&host, "the-first-token-of-all"),
        as_token(&host, "the-second-token-of-all"),
    );
    first.get("/v1/host").await.expect(200);
    let wrong = second
        .get("/v1/host")
        .await
        .problem(401, "unauthorized")
        .detail;
    let missing = host
        .client()
        .get("/v1/host")
        .await
        .problem(401, "unauthorized")
        .detail;
    assert!(
        wrong.contains("is not one of this host") && missing.contains("Authorization"),
        "{wrong} / {missing}"
    );

    // What can't be read changes nothing.
    host.configure("[serve]\ntoken = 7\n");
    host.process().signal(Signal::HUP);
    host.prints("cannot reload the configuration").await;
    first.get("/v1/host").await.expect(200);
    // Nor does a file without any token open the host to everyone.
    host.configure("");
    host.process().signal(Signal::HUP);
    host.prints("cannot reload the tokens").await;
    host.client()
        .get("/v1/host")
        .await
        .problem(401, "unauthorized");

    host.configure(&config("the-second-token-of-all", "debug"));
    host.process().signal(Signal::HUP);
    wait::until("the new token", || async {
        (second.get("/v1/host").await.status == 200).then_some(())
    })
    .await;
    first.get("/v1/host").await.problem(401, "unauthorized");
    host.prints("answered").await;
    assert!(
        !host.output().contains("-token-of-all"),
        "{}",
        host.output()
    );
    let metrics = second.get("/metrics").await.expect(200).text();
    assert!(
        metrics.contains(r#"foldstream_http_refused_total{reason="token-wrong"}"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_log_names_no_subject_and_no_key_of_a_customer() {
    let host = Host::start().await;
    host.client()
        .deploy("mischief", &guests::module("mischief"))
        .await;
    for (number, data) in ["note private-person", "reject told to", "trap", "loop"]
        .into_iter()
        .enumerate()
    {
        let id = format!("private-person-{number}");
        let event =
            serde_json::json!({"subject": "mischief.private-person", "data": data, "id": id});
        let body = serde_json::json!({ "events": [event] }).to_string();
        host.client()
            .post("/v1/events", "application/json", body)
            .await
            .expect(200);
    }
    for sequence in [2, 3, 4] {
        let failed_at = |shown: &foldstream::api::Deployment| {
            shown
                .failure
                .as_ref()
                .is_some_and(|failure| failure.sequence == Some(sequence))
        };
        host.client().show_when("mischief", "fail", failed_at).await;
        let skips = format!(r#"{{"skip":[{sequence}],"reason":"told to"}}"#);
        host.client()
            .post("/v1/deployments/mischief/resume", "application/json", skips)
            .await
            .expect(200);
    }
    host.client().reached("mischief", 4).await;
    host.client().entry("mischief", "private-person").await;
    host.client()
        .get("/v1/events?subject=private-person.>..")
        .await;
    host.client().act("mischief", "rebuild").await.expect(200);
    host.client()
        .becomes("mischief", 2, foldstream::api::GenerationStatus::Active)
        .await;
    for found in ["skip", "INFO", "ERROR"] {
        host.prints(found).await;
    }
    let log = host.output();
    let telling: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("private-person"))
        .collect();
    assert!(telling.is_empty(), "{telling:#?}");
}

#[tokio::test]
async fn strangers_learn_no_names_from_probes() {
    let mut host = Host::start().await;
    host.client()
        .deploy("secret-plan", &guests::module("mischief"))
        .await;
    let events = r#"{"events":[{"subject":"mischief.trap","data":{"do":"trap"}}]}"#;
    host.client()
        .post("/v1/events", "application/json", events)
        .await
        .expect(200);
    host.configure("[serve]\ntoken = \"a-token-that-is-long-enough\"\n");
    host.restart().await;
    for path in ["/livez", "/readyz", "/startupz"] {
        let text = host.client().get(path).await.text();
        assert!(!text.contains("secret-plan"), "{path}: {text}");
    }
}

#[tokio::test]
async fn pages_of_listed_origins_may_ask_and_watch_and_no_others() {
    let token = "a-token-that-is-long-enough";
    let host = Host::start_with(&format!(
        "[serve]\ntoken = {token:?}\norigins = [\"https://app.example\"]\n"
    ))
    .await;
    let client = host.client();
    let preflight = |origin: &str| {
        let request = client
            .request(Method::OPTIONS, "/v1/deployments")
            .header("origin", origin);
        let request = request.header("access-control-request-headers", "authorization");
        client.send(request.header("access-control-request-method", "GET"))
    };
    let allowed = preflight("https://app.example").await.expect(200);
    assert_eq!(
        allowed.header("access-control-allow-origin"),
        Some("https://app.example")
    );
    assert!(
        allowed
            .header("access-control-allow-headers")
            .is_some_and(|names| names.contains("authorization"))
    );
    assert_eq!(
        preflight("https://evil.example")
            .await
            .header("access-control-allow-origin"),
        None
    );
    let refused = client
        .send(
            client
                .request(Method::GET, "/v1/host")
                .header("origin", "https://app.example"),
        )
        .await;
    refused.clone().problem(401, "unauthorized");
    assert_eq!(
        refused.header("access-control-allow-origin"),
        Some("https://app.example"),
        "the page may read why"
    );

    let owner = as_token(&host, token);
    owner.deploy("ledger", &guests::module("ledger")).await;
    let scan = owner
        .request(Method::GET, "/v1/deployments/ledger/entries")
        .header("origin", "https://app.example");
    let read = owner.send(scan).await.expect(200);
    let exposed = read.header("access-control-expose-headers").unwrap_or("");
    for name in ["generation", "position", "skipped", "parked"] {
        assert!(
            exposed.contains(&format!("foldstream-{name}")),
            "a page may read what a state is, and what it leaves out: {exposed}"
        );
    }
    let watch = |query: &str| {
        client
            .request(
                Method::GET,
                &format!("/v1/deployments/ledger/changes{query}"),
            )
            .send()
    };
    let status = |query: &'static str| async move {
        watch(query).await.expect("an answer").status().as_u16()
    };
    assert_eq!(status("").await, 401);
    assert_eq!(status("?access_token=wrong-wrong-wrong-wrong").await, 401);
    assert_eq!(
        status("?access_token=a-token-that-is-long-enough&prefix=a").await,
        200
    );
    assert_eq!(
        status("?prefix=a&access_token=a-token-that-is-long-enough").await,
        200
    );
    client
        .get(&format!("/v1/host?access_token={token}"))
        .await
        .problem(401, "unauthorized");
    owner
        .get(&format!("/v1/host?access_token={token}"))
        .await
        .problem(400, "invalid");
    assert!(!host.output().contains(token), "{}", host.output());
}

#[tokio::test]
async fn without_a_token_neither_pages_nor_proxies_are_served() {
    let host = Host::start().await;
    let client = host.client();
    let with = |name: &str, value: &str| {
        client.send(
            client
                .request(Method::GET, "/v1/sources")
                .header(name, value),
        )
    };
    with("sec-fetch-site", "cross-site")
        .await
        .problem(403, "forbidden");
    with("sec-fetch-site", "same-site")
        .await
        .problem(403, "forbidden");
    with("sec-fetch-site", "same-origin").await.expect(200);
    for name in ["x-forwarded-for", "forwarded", "via", "x-real-ip"] {
        let said = with(name, "203.0.113.9")
            .await
            .problem(403, "forbidden")
            .detail;
        assert!(
            said.contains("proxy") && said.contains("token"),
            "{name}: {said}"
        );
    }
    client.get("/livez").await.expect(200);
}

/// Each line of a process as JSON.
fn json_lines(output: &str) -> Vec<BTreeMap<String, Value>> {
    let parse = |line: &str| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON: {error}: {line}"))
    };
    output.lines().map(parse).collect()
}

#[tokio::test]
async fn a_log_in_json_is_json_from_the_first_line_to_the_last() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("foldstream.toml");
    let config = format!(
        "data_dir = {:?}\n[log]\nformat = \"json\"\n",
        folder.path().join("data")
    );
    std::fs::write(&file, config).expect("written");
    let mut process = Process::start("foldstream serve", &mut serve(&file));
    let url = wait::until("the host to listen", || {
        let line = process.printed("listening on ");
        async move { line }
    })
    .await;
    let client = Client::new(url.split('"').next().expect("the rest of the line"));
    client.deploy("ledger", &guests::module("ledger")).await;
    client.act("ledger", "pause").await.expect(200);
    assert_eq!(process.terminate(wait::DEADLINE).code(), Some(0));
    let lines = json_lines(&process.output());
    let find = |message: &str| {
        lines
            .iter()
            .find(|line| line.get("message").is_some_and(|text| text == message))
    };
    let start = find("started").expect("the start is logged");
    assert_eq!(start["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(start["configuration"], file.display().to_string());
    assert_eq!(start["deployments"], 0);
    let pauses = lines
        .iter()
        .filter(|line| line.get("action").is_some_and(|action| action == "pause"));
    assert_eq!(
        pauses.map(|line| line["peer"].clone()).collect::<Vec<_>>(),
        ["127.0.0.1"]
    );
    assert!(find("stopping").is_some(), "{lines:?}");

    // An error at the start is a line like the others.
    let taken = refused_in_json(folder.path(), &["--set", "pipeline.attempts=0"]);
    assert!(taken.iter().any(|line| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.contains("pipeline.attempts"))
    }));
    assert!(
        taken
            .iter()
            .all(|line| line.contains_key("level") && line.contains_key("timestamp")),
        "{taken:?}"
    );
}

fn refused_in_json(folder: &Path, arguments: &[&str]) -> Vec<BTreeMap<String, Value>> {
    let mut command = foldstream();
    let command = command
        .args(["serve", "--listen", "127.0.0.1:0"])
        .args(arguments)
        .current_dir(folder);
    let output = cli::finish(command, None);
    assert_ne!(output.code, 0);
    json_lines(&output.stderr)
}

#[test]
fn the_folder_option_has_the_name_of_its_key_too() {
    let output = cli::run(&[
        "serve",
        "--data-dir",
        "/dev/null",
        "--listen",
        "127.0.0.1:0",
    ]);
    assert!(
        output.code != 0 && output.stderr.contains("/dev/null"),
        "{output:?}"
    );
}

#[tokio::test]
async fn a_backup_takes_a_token_that_may_read_and_operate() {
    let (reader, one) = make_token(&["--name", "dashboard", "--scope", "read"]);
    let (operator, two) = make_token(&["--name", "operator", "--scope", "operate"]);
    let (both, three) = make_token(&["--name", "backup", "--scope", "operate", "--scope", "read"]);
    let (host, _) = host_with(&[one, two, three].concat()).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let take = |token: &str, name: &str| {
        let target = folder.path().join(name).display().to_string();
        let mut command = foldstream_tests::host::foldstream();
        command
            .args(["--url", host.url(), "backup", &target])
            .env("FOLDSTREAM_TOKEN", token);
        cli::finish(&mut command, None)
    };
    for token in [&reader, &operator] {
        let refused = take(token, "refused").expect(4);
        assert!(refused.stderr.contains("lacks the scope"), "{refused:?}");
    }
    take(&both, "taken").expect(0);
    let names: Vec<_> = std::fs::read_dir(folder.path())
        .expect("it is there")
        .flatten()
        .collect();
    assert!(
        names.len() == 1 && names[0].file_name() == "taken",
        "{names:?}"
    );
}

#[tokio::test]
async fn a_backup_whose_token_is_withdrawn_fails_and_leaves_nothing() {
    let (token, entry) = make_token(&["--name", "backup", "--scope", "operate", "--scope", "read"]);
    let (all, rest) = make_token(&["--name", "all", "--scope", "append"]);
    let (mut host, file) = host_with(&[&*entry, &*rest].concat()).await;
    // Enough for a copy that takes a while.
    let event = json!({"subject": "orders.1.placed", "data": "x".repeat(1_000_000)});
    let events = json!({"events": [event, event, event, event]}).to_string();
    let appending = as_token(&host, &all);
    for _ in 0..20 {
        let body = events.clone();
        let answer = appending.post("/v1/events", "application/json", body);
        answer.await.expect(200);
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("monday");
    let mut command = foldstream();
    command
        .args(["--url", host.url(), "backup"])
        .arg(&target)
        .env("FOLDSTREAM_TOKEN", &token);
    let backup = tokio::task::spawn_blocking(move || cli::finish(&mut command, None));
    host.prints("a backup begins").await;
    std::fs::write(&file, &rest).expect("written");
    host.process().signal(Signal::HUP);
    let ended = backup.await.expect("no panic");
    let left = std::fs::read_dir(folder.path())
        .expect("it is there")
        .count();
    // It may have been done already.
    if ended.code == 0 {
        assert!(target.exists() && left == 1);
    } else {
        let reason = "error: the host could not finish the backup: the token is not one";
        assert!(ended.stderr.starts_with(reason), "{ended:?}");
        assert_eq!((ended.code, left), (1, 0), "{ended:?}");
    }
}

#[tokio::test]
async fn what_a_running_host_reads_again_may_become_anything_and_nothing_waits_for_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let of = |name: &str| folder.path().join(name);
    let tls = |name: &str| {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tls");
        data.join(name)
    };
    let (cert, key, tokens) = (of("server.pem"), of("server.key"), of("tokens.toml"));
    let restore = |file: &Path, name: &str| {
        let _ = std::fs::remove_file(file);
        std::fs::copy(tls(name), file).expect("our folder is writable");
    };
    restore(&cert, "server.pem");
    restore(&key, "server.key");
    let let_in = |name: &str| {
        let (token, entry) = make_token(&["--name", name, "--scope", "read"]);
        let _ = std::fs::remove_file(&tokens);
        std::fs::write(&tokens, entry).expect("our folder is writable");
        token
    };
    let mut token = let_in("a");
    let config = format!(
        "data_dir = {:?}\n[serve]\ntls_cert = {cert:?}\ntls_key = {key:?}\n\
         tokens_file = {tokens:?}\n",
        of("data")
    );
    std::fs::write(of("foldstream.toml"), config).expect("our folder is writable");
    let process = Process::start("foldstream serve", &mut serve(&of("foldstream.toml")));
    let url = wait::until("the host to listen", || {
        let printed = process.printed("listening on ");
        async move { printed }
    })
    .await;
    let ca = tls("ca.pem").display().to_string();
    let is_let_in = |token: &str| {
        let list = ["--url", &url, "--ca", &ca, "--token", token, "list"];
        cli::run(&list).code == 0
    };
    assert!(is_let_in(&token));
    let told = |what: &str| process.output().matches(what).count();
    let make_pipe = |path: &Path| {
        let made = std::process::Command::new("mkfifo").arg(path).status();
        assert!(made.expect("mkfifo runs").success());
    };
    for (file, name, becomes) in [
        (&cert, "server.pem", None),
        (&key, "server.key", Some("/dev/zero")),
        (&cert, "server.pem", Some("/dev/zero")),
        (&tokens, "", Some("/dev/zero")),
        (&tokens, "", None),
    ] {
        let what = if name.is_empty() {
            "the tokens"
        } else {
            "the certificate"
        };
        let what = format!("cannot reload {what}");
        let before = told(&what);
        std::fs::remove_file(file).expect("it is there");
        match becomes {
            Some(device) => std::os::unix::fs::symlink(device, file).expect("a link"),
            None => make_pipe(file),
        }
        wait::until("the host to refuse it", || async {
            (told(&what) > before).then_some(())
        })
        .await;
        // SIGHUP reads all again, and does not wait either.
        process.signal(Signal::HUP);
        if !name.is_empty() {
            restore(file, name);
        }
        let old = std::mem::replace(&mut token, let_in("b"));
        wait::until("the new token to be let in", || async {
            is_let_in(&token).then_some(())
        })
        .await;
        assert!(!is_let_in(&old), "it was withdrawn");
    }
    // Nor does the configuration itself keep the host from anything.
    let what = "cannot reload the configuration";
    let before = told(what);
    std::fs::remove_file(of("foldstream.toml")).expect("it is there");
    make_pipe(&of("foldstream.toml"));
    process.signal(Signal::HUP);
    wait::until("the host to refuse it", || async {
        (told(what) > before).then_some(())
    })
    .await;
    let last = let_in("c");
    wait::until("the new token to be let in", || async {
        is_let_in(&last).then_some(())
    })
    .await;
}
