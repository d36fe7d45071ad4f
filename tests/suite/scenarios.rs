//! Scenarios: files that say what a module must do, played against the compiled module.

use std::path::PathBuf;
use std::process::Stdio;

use foldstream_tests::host::{Host, foldstream};
use foldstream_tests::{cli, guests, root, wait};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The examples with scenarios.
const EXAMPLES: [&str; 4] = ["starter", "order-totals", "fulfilment", "saga-orchestrated"];

/// Files of one test.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a file can be written");
        path.to_string_lossy().into_owned()
    }
}

fn module(name: &str) -> String {
    guests::path(name).to_string_lossy().into_owned()
}

/// Tests a module with one file of scenarios.
fn test(guest: &str, scenarios: &str, more: &[&str]) -> cli::Output {
    let files = Files::new();
    let file = files.write("scenarios.yaml", scenarios);
    cli::run(&[&["test", &module(guest), &file][..], more].concat())
}

#[test]
fn scenarios_of_all_examples_pass_whatever_the_batches_and_restarts() {
    for example in EXAMPLES {
        let file = guests::folder(example).join("scenarios.yaml");
        let file = file.to_string_lossy();
        let output = cli::run(&["test", &module(example), &file, "-o", "json"]);
        assert_eq!(
            output.code, 0,
            "{example}: {}{}",
            output.stdout, output.stderr
        );
        let tested = output.json()["scenarios"]
            .as_array()
            .expect("a list")
            .clone();
        assert!(tested.len() > 1, "{example}");
        for scenario in tested {
            assert_eq!(scenario["passed"], true, "{scenario}");
        }
    }
}

#[test]
fn the_schema_for_editors_is_that_of_the_program() {
    let printed = cli::run(&["test", "--schema"]).expect(0).stdout;
    let kept = std::fs::read_to_string(root().join("docs/scenarios.schema.json"))
        .expect("docs has the schema");
    assert_eq!(printed, kept, "write it again: foldstream test --schema");
}

const WRONG: &str = "
scenarios:
  - name: this is so
    when: [{ subject: orders.ada.placed, data: { order: '1', total_cents: 100 } }]
    then: { entries: { customer/ada: { orders: 1, total_cents: 100, paid_cents: 0, shipped: 0 } } }
  - name: this is not
    when: [{ subject: orders.ada.placed, data: { order: '1', total_cents: 100 } }]
    then:
      entries:
        customer/ada: { orders: 1, total_cents: 101, paid_cents: 0, shipped: 0 }
        customer/eve: { orders: 1 }
      position: 2
";

#[test]
fn a_scenario_that_fails_shows_what_differs_and_where() {
    let output = test("order-totals", WRONG, &[]).expect(1);
    for wanted in [
        "ok    this is so",
        "FAIL  this is not",
        "entry customer/ada at /total_cents",
        "expected  101",
        "found     100",
        "entry customer/eve",
        "found     nothing",
        "2 scenarios: 1 passed, 1 failed",
    ] {
        assert!(
            output.stdout.contains(wanted),
            "{wanted}: {}",
            output.stdout
        );
    }
    assert!(
        output.stderr.contains("1 scenario failed"),
        "{}",
        output.stderr
    );
    let lines = test("order-totals", WRONG, &["-o", "ndjson"])
        .expect(1)
        .lines();
    assert_eq!(
        lines[1]["differences"][0],
        json!({ "step": 1, "what": "entry customer/ada", "path": "/total_cents", "expected": 101, "found": 100 })
    );
}

#[test]
fn reports_for_ci_name_each_scenario_and_why_it_failed() {
    let files = Files::new();
    let scenarios = files.write("a<b>.yaml", WRONG);
    let junit = files.path("junit.xml");
    let junit = junit.to_string_lossy();
    cli::run(&[
        "test",
        &module("order-totals"),
        &scenarios,
        "--junit",
        &junit,
    ])
    .expect(1);
    let report = std::fs::read_to_string(&*junit).expect("the report is written");
    for wanted in [
        "tests=\"2\"",
        "failures=\"1\"",
        "name=\"this is not\" classname=\"order-totals\"",
        "a&lt;b&gt;.yaml",
        "entry customer/ada at /total_cents",
    ] {
        assert!(report.contains(wanted), "{wanted}: {report}");
    }
}

#[test]
fn mistakes_end_with_their_exit_code_and_nothing_is_played() {
    for (text, code, wanted) in [
        ("scenarios: [{ name: a, whem: [] }]", 2, "whem"),
        (
            "scenarios: [{ name: a, when: [{ subject: a.b, id: '${x}' }] }]",
            2,
            "no variable `x`",
        ),
        (
            "scenarios: [{ name: a, when: [{ subject: a.*, data: 1 }] }]",
            2,
            "a.*",
        ),
        ("scenarios: [{ name: a, when: [{ pass: soon }] }]", 2, "15m"),
        ("scenarios: [{ name: a, start: today }]", 2, "RFC 3339"),
        (
            "scenarios: [{ name: a, when: [{ subject: _fs.timers.a }] }]",
            2,
            "belongs to the host",
        ),
        ("scenarios: [[", 2, "scenarios.yaml"),
        ("scenarios: []", 3, "the files have no scenarios"),
    ] {
        let output = test("order-totals", text, &[]).expect(code);
        assert!(output.stderr.contains(wanted), "{text}: {}", output.stderr);
    }
    let missing = cli::run(&["test", &module("order-totals"), "/nowhere.yaml"]).expect(3);
    assert!(
        missing.stderr.contains("/nowhere.yaml"),
        "{}",
        missing.stderr
    );
    let files = Files::new();
    let (scenarios, module) = (
        files.write("s.yaml", WRONG),
        files.write("m.wasm", "no module"),
    );
    cli::run(&["test", &module, &scenarios]).expect(4);
}

/// What a run says about a module whose scenarios themselves pass.
fn finding(guest: &str, scenario: &str) -> Value {
    let output = test(guest, scenario, &["-o", "json"]).expect(1);
    let mut output = output.json();
    let scenario = output["scenarios"][0].take();
    assert!(scenario.get("differences").is_none(), "{scenario}");
    scenario["finding"].clone()
}

#[test]
fn a_module_that_remembers_outside_its_state_is_found() {
    let scenario = "
scenarios:
  - name: 60 events
    when: [{ subject: orders.a, times: 60 }]
    then: { entries: { before/50: 49 } }
";
    let finding = finding("forgetful", scenario);
    assert_eq!(finding["property"], "hidden-state");
    assert_eq!(
        finding["differences"][0],
        json!({ "step": 1, "what": "entry before/50", "path": "", "expected": 49, "found": 0 })
    );
    // Each property is looked at unless only the scenarios are wanted.
    test("forgetful", scenario, &["--once"]).expect(0);
}

#[test]
fn a_module_that_counts_batches_is_found() {
    let finding = finding(
        "sloppy",
        "
scenarios:
  - name: 120 events
    when: [{ subject: orders.a, times: 120 }]
    then: { entries: { events: 120 } }
",
    );
    assert_eq!(finding["property"], "batches");
    assert_eq!(finding["differences"][0]["what"], "entry batches");
}

#[test]
fn events_are_delivered_twice_to_a_module_with_an_inbox_only() {
    let scenario = "
scenarios:
  - name: each event counts once
    when:
      - { subject: orders.1.placed, times: 3 }
      - { pass: 30m }
      - { subject: orders.1.placed, id: again }
      - { subject: orders.1.placed, id: again }
    then: { entries: { counts/1: 4 }, no_other_entries: true }
";
    test("once", scenario, &[]).expect(0);
    test("customer-totals", scenario, &[]).expect(1);
}

#[test]
fn costs_that_grow_fail_the_run() {
    let files = Files::new();
    let (module, scenarios) = (module("order-totals"), files.write("s.yaml", WRONG));
    let baseline = files.path("costs.json");
    let baseline = baseline.to_string_lossy().into_owned();
    let run = |more: &[&str]| {
        let only = ["--only", "this is so"];
        cli::run(&[&["test", &module, &scenarios][..], &only, more].concat())
    };
    run(&["--save-baseline", &baseline]).expect(0);
    run(&["--baseline", &baseline]).expect(0);
    let mut costs: Value =
        serde_json::from_str(&std::fs::read_to_string(&baseline).expect("written")).expect("JSON");
    let calls = &mut costs["scenarios"]["this is so"]["host_calls"];
    assert!(calls.as_f64().expect("a number") > 1.0, "{calls}");
    *calls = json!(1.0);
    std::fs::write(&baseline, costs.to_string()).expect("written");
    let grown = run(&["--baseline", &baseline]).expect(1);
    assert!(
        grown
            .stdout
            .contains("host_calls of an event has grown from 1"),
        "{}",
        grown.stdout
    );
    run(&["--baseline", "/nowhere.json"]).expect(3);
}

#[tokio::test]
async fn a_change_of_a_file_runs_the_scenarios_again() {
    let files = Files::new();
    let (module, scenarios) = (module("order-totals"), files.write("s.yaml", WRONG));
    let log = files.path("log");
    let out = std::fs::File::create(&log).expect("a file");
    let mut running = foldstream()
        .args(["test", &module, &scenarios, "--watch"])
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("a handle"))
        .stderr(out)
        .spawn()
        .expect("it starts");
    let says = async |text: &'static str| {
        wait::until(text, async || {
            let said = std::fs::read_to_string(&log).expect("the log");
            said.contains(text).then_some(())
        })
        .await;
    };
    says("1 passed, 1 failed").await;
    says("waiting for changes").await;
    files.write("s.yaml", "scenarios: [");
    says("s.yaml: ").await;
    files.write(
        "s.yaml",
        &WRONG
            .replace("101", "100")
            .replace("eve: { orders: 1 }", "eve: null"),
    );
    says("expected  2").await;
    running.kill().expect("it runs");
    running.wait().expect("it ends");
}

#[tokio::test]
async fn what_a_deployment_folded_becomes_a_scenario_that_passes() {
    let host = Host::start().await;
    let client = host.client();
    let events = std::fs::read(guests::folder("order-totals").join("events.ndjson"))
        .expect("the example has events");
    client
        .post("/v1/events", "application/x-ndjson", events)
        .await
        .expect(200);
    client
        .deploy("order-totals", &guests::module("order-totals"))
        .await;
    client.reached("order-totals", 30).await;
    let files = Files::new();
    let recorded = files.path("recorded.yaml");
    let recorded = recorded.to_string_lossy();
    cli::on(
        &host,
        &["record", "order-totals", "--limit", "30", "--to", &recorded],
    )
    .expect(0);
    let played = cli::run(&["test", &module("order-totals"), &recorded, "-o", "json"]).expect(0);
    assert_eq!(played.json()["scenarios"][0]["cost"]["events"], 30);
    // Of one customer, whose orders are named otherwise.
    cli::on(
        &host,
        &[
            "record",
            "order-totals",
            "--subject",
            "orders.grace.*",
            "--prefix",
            "customer/grace",
            "--redact",
            "/order",
            "--redact",
            "/currency",
            "--to",
            &recorded,
        ],
    )
    .expect(0);
    let text = std::fs::read_to_string(&*recorded).expect("written");
    assert!(
        text.contains("redacted-1") && !text.contains("EUR"),
        "{text}"
    );
    cli::run(&["test", &module("order-totals"), &recorded]).expect(0);
    for (arguments, code) in [
        (&["record", "nobody"][..], 3),
        (&["record", "order-totals", "--redact", "order"], 2),
        (
            &[
                "record",
                "order-totals",
                "--subject",
                "a.>",
                "--prefix",
                "a",
            ],
            3,
        ),
    ] {
        cli::on(&host, arguments).expect(code);
    }
}
