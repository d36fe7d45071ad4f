//! Scenarios: files that say what a module must do, played against the compiled module.

use std::path::PathBuf;

use foldstream_tests::host::foldstream;
use foldstream_tests::process::Process;
use foldstream_tests::{cli, guests, root, wait};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The examples with scenarios.
const EXAMPLES: [&str; 9] = [
    "starter",
    "starter-handler",
    "order-totals",
    "fulfilment",
    "saga-orchestrated",
    "saga-choreographed/checkout",
    "saga-choreographed/stock",
    "saga-choreographed/shipping",
    "saga-participants",
];

/// Files of one test.
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a file can be written");
        path.to_string_lossy().into_owned()
    }
}

pub(crate) fn module(name: &str) -> String {
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
        "scenarios.yaml:6:5)",
        "scenarios.yaml:10:36: entry customer/ada at /total_cents",
        "expected  101",
        "found     100",
        "scenarios.yaml:11:9: entry customer/eve",
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
        json!({
            "step": 1, "line": 10, "column": 36, "what": "entry customer/ada", "path": "/total_cents",
            "expected": 101, "found": 100,
        })
    );
}

#[test]
fn a_scenario_has_a_clock_of_its_own() {
    let played = test(
        "order-totals",
        "
events:
  placed:
    subject: orders.ada.placed
    data: { order: '${order}', total_cents: 100 }
scenarios:
  - name: years later
    when:
      - { event: placed, with: { order: one } }
      - { pass: 20y }
      - { event: placed, with: { order: two } }
    then:
      entries: { customer/ada: { orders: 2, shipped: 0, paid_cents: 0, total_cents: 200 } }
  - name: at the end of the century
    start: 2099-12-31T00:00:00Z
    when: [{ event: placed, with: { order: one } }]
    then:
      entries: { customer/ada: { orders: 1, shipped: 0, paid_cents: 0, total_cents: 100 } }
",
        &[],
    );
    played.expect(0);
}

#[test]
fn reports_are_xml_whatever_scenarios_are_called() {
    let files = Files::new();
    let scenarios = files.write(
        "odd.yaml",
        "
scenarios:
  - name: \"a\\uFFFEb\\0c\\x1bd\"
    when: [{ subject: a.b.c, type: none }]
    then: { entries: { \"x\\uFFFF\": 1 } }
",
    );
    let junit = files.path("junit.xml").display().to_string();
    cli::run(&[
        "test",
        &module("order-totals"),
        &scenarios,
        "--junit",
        &junit,
    ])
    .expect(1);
    let report = std::fs::read_to_string(&junit).expect("the report is written");
    let is_forbidden = |char: char| {
        matches!(char, '\u{fffe}' | '\u{ffff}') || (char < ' ' && !"\t\n\r".contains(char))
    };
    assert!(!report.contains(is_forbidden), "{report:?}");
    assert!(report.contains("a\u{fffd}bc"), "{report:?}");
    let full = cli::run(&[
        "test",
        &module("order-totals"),
        &scenarios,
        "--junit",
        "/dev/full",
    ]);
    assert!(full.stderr.contains("/dev/full"), "{full:?}");
}

#[test]
fn mistakes_in_events_are_refused_with_file_and_line() {
    let files = Files::new();
    let scenarios = files.write(
        "headers.yaml",
        "scenarios:\n  - name: a\n    when:\n      - { subject: a.b, headers: { 'a b': x } }\n",
    );
    let refused = cli::run(&["test", &module("order-totals"), &scenarios]).expect(2);
    assert!(refused.stderr.contains("headers.yaml:4:"), "{refused:?}");
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
        "line=\"6\"",
        "entry customer/ada at /total_cents",
    ] {
        assert!(report.contains(wanted), "{wanted}: {report}");
    }
}

#[test]
fn mistakes_end_with_their_exit_code_and_nothing_is_played() {
    for (text, code, wanted) in [
        (
            "scenarios:\n  - name: a\n    whem: []\n",
            2,
            "scenarios.yaml:3:5: unknown field `whem`; did you mean `when`?",
        ),
        (
            "scenarios:\n  - name: a\n    when:\n      - subject: a\n        data: ${cents}\n",
            2,
            "scenarios.yaml:4:9: scenario `a`: no variable `cents`",
        ),
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
            "scenarios:\n  - name: a\n    then: { failure: { kind: trapp } }\n",
            2,
            "scenarios.yaml:3:30: unknown value `trapp`; did you mean `trap`?",
        ),
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

#[test]
fn hostile_files_are_refused_at_their_place() {
    let files = Files::new();
    let module = module("order-totals");
    let bomb = (0..40).fold("vars:\n  a0: &a0 [x]\n".to_owned(), |text, number| {
        let list = vec![format!("*a{number}"); 9].join(", ");
        format!("{text}  a{next}: &a{next} [{list}]\n", next = number + 1)
    });
    let long = format!("scenarios: [] #{}", "x".repeat(9 << 20));
    let variables = "
vars: { a: '${b}${b}', b: '${c}${c}', c: '${a}' }
scenarios: [{ name: round, when: [{ subject: orders.ada.placed, data: '${a}' }] }]
";
    for (text, wanted) in [
        (&b" \n"[..], "s.yaml:1:1: the file is empty"),
        (
            b"scenarios:\n  - name: \xff\xfe\n",
            "s.yaml: it is no UTF-8 text",
        ),
        (b"\x00\x01\x02", "s.yaml:1:"),
        (bomb.as_bytes(), "s.yaml:"),
        (long.as_bytes(), "has more than 8388608 bytes"),
        (variables.as_bytes(), "s.yaml:3:"),
        (b"scenarios:\n  - name: a\n    name: b\n", "s.yaml:3:5: "),
        (
            b"scenarios:\n  - name: a\n  - name: a\n",
            "s.yaml:3:5: scenario `a`: there are two of this name",
        ),
        (
            b"scenarios:\n  - name: a\n    when: [{ subject: a, times: 100000000 }]\n",
            "s.yaml:3:12: scenario `a`: `times` and `others` are 1 to 100000",
        ),
        (
            b"scenarios:\n  - name: a\n    when: [{ pass: 999999years }]\n",
            "is longer than 100 years",
        ),
    ] {
        let path = files.path("s.yaml");
        std::fs::write(&path, text).expect("a file can be written");
        let refused = cli::run(&["test", &module, &path.to_string_lossy()]).expect(2);
        let message = &refused.stderr;
        let text = String::from_utf8_lossy(&text[..text.len().min(80)]);
        assert!(message.contains(wanted), "{text}: {message}");
        assert!(message.len() < 1_000, "{text}: {message}");
        assert_eq!(refused.stdout, "", "{text}");
    }
    let folder = files.0.path().to_string_lossy();
    let refused = cli::run(&["test", &module, &folder]).expect(2);
    assert!(refused.stderr.contains("is a directory") || refused.stderr.contains("Is a directory"));
}

#[test]
fn modules_that_misbehave_fail_at_their_event_and_harm_nothing() {
    let scenario = |verb: &str, kind: &str| {
        format!(
            "
scenarios:
  - name: {verb}
    given: [{{ subject: mischief.a, data: note one }}]
    when: [{{ subject: mischief.a, data: {verb} }}, {{ subject: mischief.b, data: note two }}]
    then:
      entries: {{ note/00000001: one }}
      no_other_entries: true
      failure: {{ kind: {kind}, event: 2 }}
      position: 1
"
        )
    };
    for (verb, kind) in [("trap", "trap"), ("grow", "limit"), ("recurse", "limit")] {
        test("mischief", &scenario(verb, kind), &[]).expect(0);
    }
    // Each attempt takes until the deadline, so once is enough.
    test("mischief", &scenario("loop", "deadline"), &["--once"]).expect(0);
    let unexpected = "scenarios: [{ name: a, when: [{ subject: mischief.a, data: trap }] }]";
    let failed = test("mischief", unexpected, &[]).expect(1);
    assert!(failed.stdout.contains("wasm trap"), "{}", failed.stdout);
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
    let calls = &mut costs["files"]["s.yaml"]["this is so"]["host_calls"];
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
    let other = files.write("other.yaml", "scenarios: [{ name: new }]");
    let new = cli::run(&["test", &module, &other, "--baseline", &baseline]).expect(0);
    assert!(
        new.stderr.contains("1 scenario is not in the baseline"),
        "{}",
        new.stderr
    );
    let elsewhere = Files::new();
    let namesake = elsewhere.write("s.yaml", WRONG);
    let both = ["test", &module, &scenarios, &namesake];
    let refused = cli::run(&[&both[..], &["--baseline", &baseline]].concat()).expect(2);
    assert!(
        refused.stderr.contains("have one name"),
        "{}",
        refused.stderr
    );
}

#[tokio::test]
async fn a_change_of_a_file_runs_the_scenarios_again() {
    let files = Files::new();
    let (module, scenarios) = (module("order-totals"), files.write("s.yaml", WRONG));
    let mut running = Process::start(
        "foldstream test",
        foldstream().args(["test", &module, &scenarios, "--watch"]),
    );
    let says = async |text: &'static str| {
        wait::until(text, async || running.output().contains(text).then_some(())).await;
    };
    says("1 passed, 1 failed").await;
    says("waiting for changes").await;
    files.write("s.yaml", "scenarios: [");
    says("s.yaml:1:12: ").await;
    files.write(
        "s.yaml",
        &WRONG
            .replace("101", "100")
            .replace("eve: { orders: 1 }", "eve: null"),
    );
    says("expected  2").await;
    // Nothing runs now.
    running.signal(Signal::INT);
    let status = running.wait(wait::DEADLINE);
    assert_eq!(status.code(), Some(130), "{}", running.output());
}

/// A scenario of many events.
const ORDERS: &str = "
scenarios:
  - name: orders
    when:
      - { subject: orders.a, times: 130 }
    then: { entries: { events: 130 } }
";

#[test]
fn exploring_finds_the_smallest_scenario_and_writes_it_next_to_the_file() {
    let files = Files::new();
    let scenarios = files.write(
        "stumbling.yaml",
        "
scenarios:
  - name: items count per category
    when:
      - { subject: items.a.added, data: { category: tools } }
      - { subject: items.b.added, data: { category: toys } }
",
    );
    let stumbling = module("stumbling");
    let explore = ["test", &stumbling, &scenarios, "--explore", "200"];
    let output = cli::run(&explore).expect(1);
    assert!(output.stdout.contains("FAIL  up to 200"), "{output:?}");
    let found = files.path("stumbling.found-1.yaml");
    let text = std::fs::read_to_string(&found).expect("it is written");
    assert_eq!(text.matches("subject:").count(), 1, "{text}");
    // It fails by itself, in the same way, and a second one does not replace it.
    let found = found.to_string_lossy();
    let alone = cli::run(&["test", &stumbling, &found]).expect(1);
    assert!(alone.stdout.contains("\"kind\":\"trap\""), "{alone:?}");
    cli::run(&explore).expect(1);
    assert!(files.path("stumbling.found-2.yaml").exists());
}

#[test]
fn exploring_a_sound_module_finds_nothing() {
    for example in EXAMPLES {
        let file = guests::folder(example).join("scenarios.yaml");
        let file = file.to_string_lossy();
        let output = cli::run(&["test", &module(example), &file, "--explore", "40"]);
        assert_eq!(output.code, 0, "{example}: {}", output.stdout);
        assert!(output.stdout.contains("ok    up to 40"), "{output:?}");
    }
}

#[test]
fn exploring_needs_examples_and_draws_the_same_on_any_number_of_threads() {
    let scenarios = "scenarios: [{ name: nothing }]";
    let nothing = test("order-totals", scenarios, &["--explore", "5"]).expect(0);
    assert!(
        nothing.stderr.contains("no events to draw from"),
        "{nothing:?}"
    );
    assert!(!nothing.stdout.contains("drawn"), "{nothing:?}");
    let scenarios = "
scenarios:
  - name: items count per category
    when: [{ subject: items.a.added, data: { category: tools } }]
";
    let found = ["1", "3"].map(|jobs| {
        let files = Files::new();
        let file = files.write("s.yaml", scenarios);
        let explore = ["--explore", "100", "--jobs", jobs];
        cli::run(&[&["test", &module("stumbling"), &file][..], &explore].concat()).expect(1);
        std::fs::read_to_string(files.path("s.found-1.yaml")).expect("it is written")
    });
    assert_eq!(found[0], found[1]);
}

#[test]
fn a_duplicate_at_the_end_is_no_fault() {
    let scenario = "
scenarios:
  - name: the last event comes twice
    when:
      - { subject: orders.1.placed, id: one }
      - { subject: orders.1.placed, id: one }
    then: { entries: { counts/1: 1 }, position: 2 }
";
    test("once", scenario, &[]).expect(0);
}

#[test]
fn what_messages_ask_of_their_delivery_is_compared() {
    let scenario = "
scenarios:
  - name: when, for how long and on what condition messages are stored
    when:
      - { subject: in.1.later }
      - { subject: in.1.brief }
      - { subject: in.1.first }
      - { subject: in.1.alone }
    then:
      published:
        - { subject: out.1.1, not_before: 4s }
        - { subject: out.1.2, time_to_live_seconds: 1 }
        - { subject: out.1.first, expected_last: { sequence: 0 } }
        - { subject: out.1.alone, expected_last: { subject: 'out.1.>', sequence: 0 } }
";
    test("reactor", scenario, &[]).expect(0);
    for (from, to) in [
        ("not_before: 4s", "not_before: 5s"),
        ("time_to_live_seconds: 1", "time_to_live_seconds: 2"),
        ("{ sequence: 0 }", "{ sequence: 1 }"),
        ("'out.1.>'", "out.1.alone"),
    ] {
        let failed = test("reactor", &scenario.replace(from, to), &[]).expect(1);
        let name = from.split(':').next().expect("it has a name");
        let name = if name.contains("not") || name.contains("time") {
            name
        } else {
            "expected_last"
        };
        assert!(failed.stdout.contains(name), "{failed:?}");
    }
}

#[test]
fn a_firing_of_a_parked_key_waits_with_it() {
    let scenario = "
scenarios:
  - name: the timer waits
    on_failure: park
    given:
      - { subject: alarm.tea.set, data: { name: cup, after_ms: 1000 } }
    when:
      - { subject: alarm.tea.ill-set, data: { name: pot } }
      - { pass: 1m }
    then:
      parked: [tea]
      published: []
      timers: { tea/cup: '2026-01-01T00:00:01Z' }
";
    test("alarm", scenario, &[]).expect(0);
}

#[test]
fn timers_fire_where_a_scenario_says_if_it_wants_to() {
    let scenario = "
scenarios:
  - name: an event comes between
    timers_fire: by-action
    given:
      - { subject: alarm.tea.set, data: { name: cup, after_ms: 1000 } }
    when:
      - { fire: tea/cup }
      - { subject: alarm.tea.cancel, at: '2026-01-01T00:00:05Z', data: { name: other } }
      - { others: 3 }
      - { fire: tea/cup }
      - { fire: tea/cup, at: '2026-01-01T00:00:06Z' }
    then:
      published: [{ subject: rang.tea.cup, data: { sequence: 7, '...': '${any}' } }]
      timers: {}
      position: 8
";
    test("alarm", scenario, &[]).expect(0);
}

#[test]
fn scenarios_that_say_little_pass_and_are_played() {
    let scenario = "
scenarios:
  - name: nothing happens
  - name: nothing is expected
    when: [{ subject: orders.ada.placed, data: { order: '1', total_cents: 1 } }]
  - name: events at the same time and offsets of time zones
    start: 2026-10-01T01:30:00+02:00
    when:
      - { subject: orders.ada.placed, data: { order: '1', total_cents: 1 } }
      - { subject: orders.ada.placed, at: 2026-09-30T23:30:00Z, data: { order: '2', total_cents: 1 } }
      # Time does not go back.
      - { subject: orders.ada.placed, at: 2020-01-01T00:00:00Z, data: { order: '3', total_cents: 1 } }
    then:
      entries:
        day/ada/2026-09-30: { shipped: 0, paid_cents: 0, total_cents: 3.0, orders: 3 }
      no_other_entries: false
";
    let output = test("order-totals", scenario, &["-o", "json"]).expect(0);
    let output = output.json();
    let events = |index: usize| output["scenarios"][index]["cost"]["events"].clone();
    assert_eq!([events(0), events(1), events(2)], [0, 1, 3]);
}

#[test]
fn events_that_the_module_does_not_read_are_named() {
    let scenario = "
scenarios:
  - name: a
    when: [{ subject: order.ada.placed, times: 2, data: { order: a, total_cents: 1 } }]
";
    let output = test("order-totals", scenario, &[]).expect(0);
    let note = "note: the module does not read order.ada.placed\n";
    assert!(output.stdout.contains(note), "{}", output.stdout);
}

#[test]
fn failures_that_nobody_expects_fail_the_scenario() {
    let scenario = "
scenarios:
  - name: it is rejected
    when: [{ subject: orders.ada.placed, data: none }]
";
    let output = test("order-totals", scenario, &[]).expect(1);
    assert!(output.stdout.contains("failure\n"), "{}", output.stdout);
    assert!(output.stdout.contains("expected  nothing"));
}

#[test]
fn costs_are_the_same_in_every_run() {
    let files = Files::new();
    let baseline = files.path("costs.json");
    let baseline = baseline.to_string_lossy();
    let file = guests::folder("saga-orchestrated").join("scenarios.yaml");
    let (module, file) = (module("saga-orchestrated"), file.to_string_lossy());
    cli::run(&["test", &module, &file, "--save-baseline", &baseline]).expect(0);
    for jobs in ["1", "3"] {
        cli::run(&[
            "test",
            &module,
            &file,
            "--baseline",
            &baseline,
            "--jobs",
            jobs,
        ])
        .expect(0);
    }
}

#[tokio::test]
async fn an_interrupt_ends_a_run_and_leaves_nothing() {
    let files = Files::new();
    let (module, scenarios) = (module("sloppy"), files.write("s.yaml", ORDERS));
    let temporary = files.path("temporary");
    std::fs::create_dir(&temporary).expect("a folder");
    let mut running = Process::start(
        "foldstream test",
        foldstream()
            .args(["test", &module, &scenarios, "--once", "--watch"])
            .env("TMPDIR", &temporary),
    );
    let is_empty = || {
        let mut entries = std::fs::read_dir(&temporary).expect("it is there");
        entries.next().is_none()
    };
    wait::until("its folder", async || (!is_empty()).then_some(())).await;
    running.signal(Signal::INT);
    let status = running.wait(wait::DEADLINE);
    assert_eq!(status.code(), Some(130), "{}", running.output());
    assert!(is_empty());

    // In the middle of a call that would take seconds.
    let endless = "scenarios: [{ name: a, when: [{ subject: mischief.a, data: loop }] }]";
    let (module, scenarios) = (self::module("mischief"), files.write("s.yaml", endless));
    let mut running = Process::start(
        "foldstream test",
        foldstream()
            .args(["test", &module, &scenarios])
            .env("TMPDIR", &temporary),
    );
    let threads = PathBuf::from(format!("/proc/{}/task", running.id()));
    let plays = || {
        let threads = std::fs::read_dir(&threads).ok()?.flatten();
        let names = threads.map(|thread| std::fs::read_to_string(thread.path().join("comm")));
        names.flatten().find(|name| name.trim() == "scenario")
    };
    wait::until("the thread of a scenario", async || plays()).await;
    running.signal(Signal::INT);
    let status = running.wait(wait::DEADLINE);
    assert_eq!(status.code(), Some(130), "{}", running.output());
    assert!(
        !running.output().contains("panicked"),
        "{}",
        running.output()
    );
    assert!(is_empty());
}
