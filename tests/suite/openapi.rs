//! The OpenAPI document is valid, complete, and true: a tester driven by it finds no answer that it
//! does not describe.

use std::process::Command;
use std::time::Duration;

use foldstream_tests::process::Process;
use foldstream_tests::stage::{Kind, Stage};
use serde_json::Value;

/// Longest time of the tester. Its options give it 25 seconds for random cases, and some more for
/// systematic ones.
const LONGEST: Duration = Duration::from_secs(180);

/// What each answer is checked for.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_schema_conformance,unsupported_method";

#[tokio::test]
async fn the_document_describes_every_route() {
    let stage = Stage::start(Kind::Embedded).await;
    let document: Value = stage
        .client()
        .get("/openapi.json")
        .await
        .expect(200)
        .value();
    assert!(
        document["openapi"]
            .as_str()
            .is_some_and(|version| version.starts_with("3.1")),
        "{}",
        document["openapi"]
    );
    let paths = document["paths"].as_object().expect("paths are an object");
    let mut described: Vec<String> = Vec::new();
    for (path, item) in paths {
        for method in ["get", "post", "delete"] {
            if let Some(operation) = item.get(method) {
                assert!(
                    operation["responses"]
                        .as_object()
                        .is_some_and(|all| !all.is_empty()),
                    "{method} {path}"
                );
                assert!(
                    operation["summary"].is_string() || operation["description"].is_string(),
                    "{method} {path}"
                );
                described.push(format!("{method} {path}"));
            }
        }
    }
    for wanted in [
        "get /v1/deployments",
        "post /v1/deployments",
        "get /v1/deployments/{name}",
        "delete /v1/deployments/{name}",
        "post /v1/deployments/{name}/pause",
        "post /v1/deployments/{name}/resume",
        "get /v1/deployments/{name}/entries",
        "get /v1/deployments/{name}/entries/{key}",
        "get /v1/deployments/{name}/queries/{query}",
        "post /v1/deployments/{name}/queries/{query}",
        "get /v1/deployments/{name}/changes",
        "post /v1/events",
        "get /v1/events",
        "get /v1/events/tail",
        "get /v1/audit",
        "get /v1/sources",
        "get /v1/host",
        "get /livez",
        "get /readyz",
        "get /startupz",
        "get /metrics",
    ] {
        assert!(
            described.iter().any(|found| found == wanted),
            "{wanted} is not described: {described:?}"
        );
    }
}

/// What of an event the schema of that name does not describe: fields that it lacks, or does not
/// know.
fn difference(document: &Value, schema: &str, data: &Value) -> Vec<String> {
    let schema = &document["components"]["schemas"][schema];
    let known = schema["properties"]
        .as_object()
        .expect("a schema has properties");
    let required = schema["required"]
        .as_array()
        .expect("a schema says what is required");
    let lacks = required
        .iter()
        .map(|name| name.as_str().expect("a name"))
        .filter(|name| data.get(name).is_none());
    let found = data.as_object().expect("the data of an event is an object");
    let unknown = found
        .keys()
        .map(String::as_str)
        .filter(|name| !known.contains_key(*name));
    lacks.chain(unknown).map(str::to_owned).collect()
}

#[tokio::test]
async fn streams_send_the_events_that_the_document_describes() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    let document: Value = stage
        .client()
        .get("/openapi.json")
        .await
        .expect(200)
        .value();
    for (path, described, of, schema) in [
        (
            "/v1/deployments/ledger/changes",
            "/v1/deployments/{name}/changes",
            "change",
            "Change",
        ),
        ("/v1/events/tail", "/v1/events/tail", "event", "StoredEvent"),
    ] {
        let answer = &document["paths"][described]["get"]["responses"]["200"];
        let [content_type] = &answer["content"]
            .as_object()
            .expect("content")
            .keys()
            .collect::<Vec<_>>()[..]
        else {
            panic!("one form: {answer}")
        };
        let request = stage.client().request(reqwest::Method::GET, path);
        let response = request.send().await.expect("the host answers");
        assert_eq!(
            response.headers()["content-type"],
            content_type.as_str(),
            "{path}"
        );
        let mut events = stage.client().events(path, None).await;
        let position = events.next_of("position").await;
        stage.publish(10).await;
        let event = events.next_of(of).await;
        for (event, schema) in [(position, "PositionMark"), (event, schema)] {
            let described = answer["description"].as_str().expect("words");
            assert!(
                described.contains(&format!("`{}`", event.event)) && described.contains(schema),
                "{described}"
            );
            let data: Value = serde_json::from_str(&event.data).expect("the data is JSON");
            assert_eq!(
                difference(&document, schema, &data),
                [""; 0],
                "{path}: {data}"
            );
        }
    }
}

#[tokio::test]
// A watch and a tail never end, which is all that this tester would find out about them: they have
// a test of their own.
async fn a_tester_driven_by_the_document_finds_nothing_that_it_does_not_describe() {
    // The tester waits for each answer, and likes to ask for positions that never come.
    let mut stage = Stage::start_with(Kind::Embedded, "[serve]\nwait_max = \"200ms\"\n").await;
    stage.deploy_ledger().await;
    stage.publish(200).await;
    stage.assert_ledger_equals_model().await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for file in ["schemathesis.toml", "hooks.py"] {
        let from = foldstream_tests::root()
            .join("tests/data/openapi")
            .join(file);
        std::fs::copy(from, folder.path().join(file)).expect("our folder can be written");
    }
    let mut tester = Process::start(
        "schemathesis",
        Command::new(foldstream_tests::tool(
            "schemathesis",
            "FOLDSTREAM_SCHEMATHESIS",
        ))
        .arg("run")
        .arg(format!("{}/openapi.json", stage.host.url()))
        .args(["--checks", CHECKS])
        .args(["--exclude-path-regex", "(changes|tail)$"])
        .args(["--phases", "examples,coverage,fuzzing,stateful"])
        // One worker: with two, Python 3.11 fails at times while the tester reads source text in
        // both.
        .args([
            "--max-examples",
            "15",
            "--max-time",
            "25",
            "--seed",
            "1",
            "--workers",
            "1",
        ])
        .args([
            "--request-timeout",
            "20",
            "--suppress-health-check",
            "filter_too_much",
            "--no-color",
        ])
        .env("PYTHONPATH", folder.path())
        .current_dir(folder.path()),
    );
    let status = tester.wait(LONGEST);
    assert!(status.success(), "{}", tester.output());
    stage.client().get("/livez").await.expect(200);
    stage.publish(100).await;
    let log = stage.host.process().output();
    assert!(!log.contains("panicked"), "{log}");
}
