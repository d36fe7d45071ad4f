//! Schemas of events that modules carry: built in, refused, compared, and held against scenarios.

use foldstream_tests::host::Host;
use foldstream_tests::{cli, guests};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with files.
struct Folder(TempDir);

impl Folder {
    fn new(files: &[(&str, Value)]) -> Self {
        let folder = Self(tempfile::tempdir().expect("a temporary folder"));
        for (name, content) in files {
            folder.write(name, &content.to_string());
        }
        folder
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        let parent = path.parent().expect("it has one");
        std::fs::create_dir_all(parent).expect("a folder can be made");
        std::fs::write(&path, text).expect("a file can be written");
        path.to_string_lossy().into_owned()
    }

    fn path(&self) -> &str {
        self.0.path().to_str().expect("is text")
    }
}

/// A module with a custom section at its end.
fn with_section(module: &[u8], content: &[u8]) -> Vec<u8> {
    let number = |mut number: usize| {
        let mut bytes = Vec::new();
        while number > 0x7f {
            bytes.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    };
    let name = b"foldstream:schemas";
    let body = [&number(name.len()), name.as_slice(), content].concat();
    [module, &[0], &number(body.len()), &body].concat()
}

fn section(schemas: &Value) -> Vec<u8> {
    json!({ "format": 1, "schemas": schemas })
        .to_string()
        .into_bytes()
}

fn reads(event: &str, schema: &Value) -> Value {
    json!({ "event": event, "version": 1, "direction": "reads", "schema": schema })
}

fn order_totals() -> String {
    guests::path("order-totals").to_string_lossy().into_owned()
}

#[test]
fn a_build_writes_schemas_into_the_module_and_inspect_lists_them() {
    let shown = cli::run(&["inspect", &order_totals()]).expect(0).stdout;
    let line = "read schemas   cancelled, paid, placed, returned, shipped";
    assert!(shown.contains(line), "{shown}");
    let described = cli::run(&["inspect", &order_totals(), "-o", "json"]).expect(0);
    let first = json!({ "event": "cancelled", "version": 1, "direction": "reads" });
    assert_eq!(described.json()["events"][0], first);
}

#[test]
fn a_build_refuses_schemas_before_it_compiles() {
    let project = Folder::new(&[(
        "schemas/placed.json",
        json!({ "$ref": "https://example.com/a" }),
    )]);
    // Nothing else of the project is looked at.
    project.write("Cargo.toml", "");
    let refused = cli::run(&["build", project.path()]).expect(4).stderr;
    assert!(
        refused.contains("the schema of placed at /$ref: it refers to another document"),
        "{refused}"
    );
    project.write("schemas/placed.json", "{}");
    project.write("schemas/placed.v1.json", "{}");
    let refused = cli::run(&["build", project.path()]).expect(4).stderr;
    assert!(
        refused.contains("there are two schemas of placed"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_host_refuses_uploads_with_schemas_that_are_not_sound_and_continues() {
    let host = Host::start().await;
    let module = guests::module("starter");
    let upload = async |module: Vec<u8>| {
        let answer = host.client().upload(module, "?name=counts").await;
        (answer.status.as_u16(), answer.text())
    };
    let deploy = async |content: &[u8]| upload(with_section(&module, content)).await;
    let nested = (0..60).fold(json!(true), |inner, _| json!({ "not": inner }));
    let mut doubling = json!({ "$ref": "#/$defs/0", "$defs": { "30": {} } });
    for level in 0..30 {
        let next = json!({ "$ref": format!("#/$defs/{}", level + 1) });
        doubling["$defs"][level.to_string()] = json!({ "allOf": [next, next] });
    }
    let brackets = "[".repeat(100_000);
    let hostile: &[(&[u8], &str)] = &[
        (b"{", "has not the form"),
        (brackets.as_bytes(), "has not the form"),
        (
            &section(&json!([reads("a", &doubling)])),
            "more than 10000 subschemas",
        ),
        (
            &section(&json!([reads("a", &json!({ "items": { "$ref": "#" } }))])),
            "refers to itself",
        ),
        (
            &section(&json!([reads(
                "a",
                &json!({ "$ref": "http://127.0.0.1:1/" })
            )])),
            "never fetched",
        ),
        (
            &section(&json!([reads(
                "a",
                &json!({ "pattern": "((a{99}){99}){99}" })
            )])),
            "at /pattern",
        ),
        (
            &section(&json!([reads("a", &json!({ "pattern": "(a+)+\\1" }))])),
            "back-references",
        ),
        (
            &section(&json!([reads("a", &json!(true)), reads("a", &json!(true))])),
            "two schemas of a",
        ),
        (&vec![b' '; 600 << 10], "at most 524288"),
    ];
    for (content, wanted) in hostile {
        let (status, text) = deploy(content).await;
        assert_eq!(status, 422, "{text}");
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let twice = with_section(&module, &section(&json!([reads("a", &json!(true))])));
    let twice = with_section(&twice, &section(&json!([reads("b", &json!(true))])));
    let (status, text) = upload(twice).await;
    assert!(status == 422 && text.contains("two sections"), "{text}");
    let (status, text) = deploy(&section(&json!([reads("a", &nested)]))).await;
    assert_eq!(status, 201, "{text}");
}

const SCENARIOS: &str = "
scenarios:
  - name: fits
    when: [{ subject: orders.ada.placed, data: { order: '1', total_cents: 100 } }]
    then: { position: 1 }
  - name: does not
    given:
      - { subject: orders.ada.placed, data: { order: '1', total_cents: 100 }, times: 2 }
      - { subject: orders.ada.refunded, data: anything }
    when:
      - { subject: orders.ada.placed, data: { order: '2', total_cents: 1, currency: 7 } }
    then: { position: 4 }
  - name: means it
    invalid_events: true
    when: [{ subject: orders.ada.placed, data: { order: '2', total_cents: 1, currency: 7 } }]
    then: { position: 1 }
";

#[test]
fn events_of_scenarios_are_held_against_the_schemas() {
    let folder = Folder::new(&[]);
    let file = folder.write("scenarios.yaml", SCENARIOS);
    let output = cli::run(&["test", &order_totals(), &file]).expect(1);
    for wanted in [
        "ok    fits",
        "FAIL  does not",
        "scenarios.yaml:11:9: event orders.ada.placed does not fit the schema placed at \
         /properties/currency/type:",
        "; the data at /currency\n",
        "expected  \"string\"",
        "found     7",
        "ok    means it",
        "3 scenarios: 2 passed, 1 failed",
    ] {
        assert!(
            output.stdout.contains(wanted),
            "{wanted}: {}",
            output.stdout
        );
    }
}

#[test]
fn published_messages_are_held_against_the_schemas() {
    let folder = Folder::new(&[]);
    let module = guests::module("fulfilment");
    let wrong = json!([{
        "event": "send", "version": 1, "direction": "publishes",
        "schema": { "required": ["nobody-writes-this"] },
    }]);
    let file = folder.0.path().join("fulfilment.wasm");
    std::fs::write(&file, with_section(&module, &section(&wrong))).expect("a file can be written");
    let scenarios = guests::folder("fulfilment").join("scenarios.yaml");
    let arguments = [
        "test",
        &file.to_string_lossy(),
        &scenarios.to_string_lossy(),
        "--once",
    ];
    let output = cli::run(&arguments).expect(1);
    assert!(
        output
            .stdout
            .contains("(send) does not fit the schema send at /required"),
        "{}",
        output.stdout
    );
}
