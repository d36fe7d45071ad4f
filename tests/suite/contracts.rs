//! Schemas of events that modules carry: built in, refused, compared, and validated against scenarios.

use foldstream_tests::host::Host;
use foldstream_tests::{cli, guests};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with files.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new(files: &[(&str, Value)]) -> Self {
        let folder = Self(tempfile::tempdir().expect("a temporary folder"));
        for (name, content) in files {
            folder.write(name, &content.to_string());
        }
        folder
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        let parent = path.parent().expect("it has one");
        std::fs::create_dir_all(parent).expect("a folder can be made");
        std::fs::write(&path, text).expect("a file can be written");
        path.to_string_lossy().into_owned()
    }

    pub(crate) fn path(&self) -> &str {
        self.0.path().to_str().expect("is text")
    }
}

/// A module with a custom section at its end.
pub(crate) fn with_section(module: &[u8], content: &[u8]) -> Vec<u8> {
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

pub(crate) fn section(schemas: &Value) -> Vec<u8> {
    json!({ "format": 1, "schemas": schemas })
        .to_string()
        .into_bytes()
}

pub(crate) fn reads(event: &str, schema: &Value) -> Value {
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
        (&vec![b' '; 600 << 10], "at most 131072"),
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

fn check(arguments: &[&str], code: i32) -> cli::Output {
    cli::run(&[&["contract", "check"], arguments].concat()).expect(code)
}

fn order(total: &Value, more: &Value) -> Value {
    let mut schema = json!({
        "type": "object", "required": ["order", "total_cents"], "additionalProperties": false,
        "properties": { "order": { "type": "string", "minLength": 1 }, "total_cents": total },
    });
    for (name, member) in more.as_object().expect("members") {
        schema["properties"][name] = member.clone();
    }
    schema
}

#[test]
fn modes_say_which_side_must_read_which() {
    let integer = json!({ "type": "integer", "minimum": 0 });
    let number = json!({ "type": "number", "minimum": 0 });
    let old = Folder::new(&[("placed.json", order(&integer, &json!({})))]);
    let more = json!({ "note": { "type": "string" } });
    let new = Folder::new(&[
        ("placed.json", order(&number, &more)),
        ("cancelled.json", json!({})),
    ]);
    check(&[old.path(), new.path()], 0);
    let failing = check(
        &[old.path(), new.path(), "--mode", "forward", "-o", "json"],
        1,
    )
    .json();
    assert_eq!(failing["compatible"], false);
    let reasons = failing["checks"][0]["reasons"].as_array().expect("a list");
    let places: Vec<_> = reasons
        .iter()
        .map(|reason| (reason["pointer"].as_str(), reason["keyword"].as_str()))
        .collect();
    assert_eq!(
        places,
        [
            (Some("/note"), Some("/additionalProperties")),
            (Some("/total_cents"), Some("/properties/total_cents/type")),
        ]
    );
    assert_eq!(failing["checks"][1]["verdict"], "only-new");
    check(&[old.path(), new.path(), "--mode", "full"], 1);
    check(&[new.path(), old.path(), "--mode", "forward"], 0);
    // Only the last old side counts, unless the mode is transitive.
    check(&[new.path(), old.path(), old.path()], 0);
    let failing = check(
        &[
            new.path(),
            old.path(),
            old.path(),
            "--mode",
            "backward-transitive",
        ],
        1,
    );
    assert!(
        failing
            .stdout
            .contains("2 events compared, 1 not compatible"),
        "{}",
        failing.stdout
    );
    let files: Vec<String> = [&old, &new]
        .map(|folder| format!("{}/placed.json", folder.path()))
        .to_vec();
    check(&[&files[0], &files[1]], 0);
}

#[test]
fn what_is_not_understood_is_a_choice() {
    let open =
        |member: &str| json!({ "type": "object", "properties": { member: { "type": "string" } } });
    let old = Folder::new(&[("a.json", open("x"))]);
    let new = Folder::new(&[("a.json", open("y"))]);
    check(&[old.path(), new.path()], 1);
    new.write(
        "a.json",
        &json!({ "not": { "required": ["z"] } }).to_string(),
    );
    let unknown = check(&[old.path(), new.path()], 1);
    assert!(
        unknown.stdout.contains("`not` is only understood"),
        "{}",
        unknown.stdout
    );
    check(&[old.path(), new.path(), "--allow-unknown"], 0);
}

#[test]
fn sides_that_cannot_be_compared_are_refused() {
    let folder = Folder::new(&[("a.json", json!({})), ("other/b.json", json!({}))]);
    let at = |name: &str| format!("{}/{name}", folder.path());
    let missing = check(&[&at("a.json"), &at("none.json")], 3);
    assert!(missing.stderr.contains("cannot read"), "{}", missing.stderr);
    let missing = check(&[&at("none"), &at("a.json")], 3);
    assert!(missing.stderr.contains("cannot read"), "{}", missing.stderr);
    let nothing = check(&[&at("other"), &at("a.json")], 3);
    assert!(
        nothing.stderr.contains("no event in common"),
        "{}",
        nothing.stderr
    );
    let empty = tempfile::tempdir().expect("a temporary folder");
    let empty = empty.path().display().to_string();
    let nothing = check(&[&empty, "--deployed"], 3);
    assert!(
        nothing.stderr.contains("has no schemas of events"),
        "{}",
        nothing.stderr
    );
    check(&[&at("a.json")], 2);
    check(&[&at("a.json"), &at("a.json"), "--deployed"], 2);
    folder.write("wrong.json", "{\"type\": 1}");
    let refused = check(&[&at("a.json"), &at("wrong.json")], 4);
    assert!(
        refused.stderr.contains("the schema of wrong at /type"),
        "{}",
        refused.stderr
    );
    let garbage = folder.write("garbage.wasm", "no module");
    check(&[&garbage, &at("a.json")], 4);
    check(&[&order_totals(), &order_totals(), "--mode", "full"], 0);
}

/// A deployment that says nothing of what it reads is listed, and fails the check if that is asked for.
async fn assert_unknown(host: &Host, producer: &str) {
    host.client()
        .deploy("silent", &guests::module("starter"))
        .await;
    let check = |more: &[&str], code: i32| {
        let arguments = ["contract", "check", producer, "--deployed"];
        cli::on(host, &[&arguments, more].concat()).expect(code)
    };
    let shown = check(&[], 0).stdout;
    for wanted in [
        "?     *  (silent: carries no schema of these events)",
        "1 event compared, 0 not compatible, 1 deployment not compared",
    ] {
        assert!(shown.contains(wanted), "{wanted}: {shown}");
    }
    let found = check(&["-o", "json"], 0).json();
    assert_eq!(found["unknown"], json!(["silent"]));
    let failing = check(&["--require-schemas"], 1);
    assert!(
        failing
            .stderr
            .contains("1 deployment without a schema of these events"),
        "{}",
        failing.stderr
    );
    check(&["--require-schemas", "--mode", "full"], 2);
}

#[test]
fn a_version_that_both_sides_have_is_compared_with_itself() {
    let kind = |kind: &str| json!({ "type": kind });
    let old = Folder::new(&[("p.json", kind("string")), ("p.v2.json", kind("integer"))]);
    let new = Folder::new(&[("p.json", kind("string")), ("p.v2.json", kind("string"))]);
    // An event of type `p.v2` is validated against version 2 alone.
    let failing = check(&[old.path(), new.path()], 1).stdout;
    assert!(
        failing.contains("p v2 of") && failing.contains("it may be of type integer"),
        "{failing}"
    );
    let third = Folder::new(&[("p.v3.json", kind("integer")), ("p.json", kind("string"))]);
    check(&[third.path(), old.path()], 0);
    new.write("p.v02.json", "{}");
    let refused = check(&[old.path(), new.path()], 4).stderr;
    assert!(refused.contains("p.v02 ends like a version"), "{refused}");
}

#[tokio::test]
async fn a_producer_is_compared_with_every_deployed_consumer() {
    let host = Host::start().await;
    let deployed = |path: &str, code: i32| {
        cli::on(&host, &["contract", "check", path, "--deployed"]).expect(code)
    };
    let producer = Folder::new(&[(
        "published/placed.json",
        order(&json!({ "type": "integer", "minimum": 5 }), &json!({})),
    )]);
    let nobody = deployed(producer.path(), 3);
    assert!(
        nobody.stderr.contains("nothing is compared"),
        "{}",
        nobody.stderr
    );
    let arguments = [
        "contract",
        "check",
        producer.path(),
        "--deployed",
        "-o",
        "json",
    ];
    let unknown = cli::on(&host, &arguments).expect(3).json();
    assert_eq!(unknown["compatible"], json!(null), "{unknown}");
    host.client()
        .deploy("totals", &guests::module("order-totals"))
        .await;
    let strict = json!([reads("placed", &json!({ "required": ["currency"] }))]);
    let strict = with_section(&guests::module("starter"), &section(&strict));
    let fits = deployed(producer.path(), 0);
    assert!(
        fits.stdout.contains("ok    placed  (totals and "),
        "{}",
        fits.stdout
    );
    assert_unknown(&host, producer.path()).await;
    host.client().deploy("strict", &strict).await;
    let failing = deployed(producer.path(), 1);
    for wanted in [
        "ok    placed  (totals and ",
        "FAIL  placed  (strict and ",
        "at /currency:",
        "it is required, and may be absent (/required)",
        "2 events compared, 1 not compatible",
    ] {
        assert!(
            failing.stdout.contains(wanted),
            "{wanted}: {}",
            failing.stdout
        );
    }
    let carried = host.client().get("/v1/deployments/strict/schemas").await;
    assert_eq!(carried.json::<Value>()["schemas"][0]["event"], "placed");
    let missing = host.client().get("/v1/deployments/nobody/schemas").await;
    assert_eq!(missing.status, 404);
}
