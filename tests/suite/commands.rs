//! Every command as a person or a script uses it: what it prints, to which output, and how it
//! ends.

use std::time::Duration;

use foldstream_tests::cli::{self, Output};
use foldstream_tests::host::{self, Host};
use foldstream_tests::process::Process;
use foldstream_tests::stage::{Kind, LEDGER, Stage};
use foldstream_tests::{guests, wait};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Names of all commands.
const COMMANDS: [&str; 33] = [
    "serve",
    "dev",
    "demo",
    "new",
    "build",
    "inspect",
    "deploy",
    "list",
    "show",
    "get",
    "scan",
    "query",
    "watch",
    "events",
    "outbox",
    "timers",
    "pause",
    "resume",
    "generations",
    "promote",
    "rollback",
    "rebuild",
    "rebuilds",
    "throttle",
    "abort",
    "prune",
    "backup",
    "compact",
    "delete",
    "audit",
    "verify",
    "config",
    "doctor",
];

/// Three orders whose fold is known by heart.
const EVENTS: &str = r#"{"subject":"orders.7.placed","id":"a","data":{"order":"o-1","amount":100}}
{"subject":"orders.8.placed","id":"b","data":{"order":"o-2","amount":250}}
{"subject":"orders.7.paid","id":"c","data":{"order":"o-3","amount":-40}}
"#;

/// A host with three orders folded.
async fn host() -> Host {
    let host = Host::start().await;
    cli::on_with_input(&host, &["events", "import", "-"], EVENTS).expect(0);
    let module = guests::path("ledger").display().to_string();
    cli::on(&host, &["deploy", &module, "--wait", "--timeout", "60s"]).expect(0);
    host
}

fn on(host: &Host, line: &str) -> Output {
    cli::on(host, &line.split(' ').collect::<Vec<_>>())
}

#[test]
fn every_help_begins_with_examples_and_ends_with_exit_codes() {
    let whole = cli::run(&["--help"]).expect(0);
    for command in COMMANDS {
        assert!(
            whole.stdout.contains(&format!("\n  {command} ")),
            "{command} is not listed"
        );
        let help = cli::run(&[command, "--help"]).expect(0).stdout;
        let example = help
            .find(&format!("foldstream {command}"))
            .expect("there is an example");
        let usage = help.find("Usage:").expect("there is a usage");
        assert!(example < usage, "examples come first in {command}");
        assert!(help.contains("Exit codes"), "{command}");
    }
    assert!(
        !whole.stdout.contains("check-module"),
        "what is ours alone is hidden"
    );
}

#[test]
fn wrong_usage_ends_with_2_and_a_hint_on_stderr() {
    for arguments in [
        &["shwo"][..],
        &["show"],
        &["list", "--nothing"],
        &["scan", "a", "--prefix", "a", "--start", "b"],
        &[],
    ] {
        let output = cli::run(arguments).expect(2);
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{arguments:?}: {output:?}"
        );
    }
    assert!(
        cli::run(&["shwo"]).stderr.contains("show"),
        "it suggests what was meant"
    );
}

#[test]
fn an_unreachable_host_ends_with_5_and_says_what_to_do() {
    let url = format!("http://127.0.0.1:{}", foldstream_tests::nats::free_port());
    for command in [
        "list",
        "show a",
        "get a b",
        "scan a",
        "query a b",
        "get a b --as-of 5",
        "scan a --as-of 5",
        "query a b --as-of 5",
        "events read",
        "pause a",
        "resume a",
        "delete a --yes",
    ] {
        let arguments: Vec<&str> = ["--url", &url]
            .into_iter()
            .chain(command.split(' '))
            .collect();
        let output = cli::run(&arguments).expect(5);
        assert!(
            output.stdout.is_empty() && output.stderr.contains("foldstream serve"),
            "{command}: {output:?}"
        );
    }
}

#[tokio::test]
async fn what_does_not_exist_ends_with_3() {
    let host = host().await;
    for command in [
        "show nothing",
        "get nothing key",
        "get ledger nothing",
        "scan nothing",
        "query nothing pair",
        "query ledger nothing",
        "pause nothing",
        "resume nothing",
        "generations nothing",
        "promote nothing",
        "rollback nothing",
        "rebuild nothing",
        "throttle nothing --off",
        "abort nothing",
        "prune nothing --keep 1",
        "delete nothing --yes",
        "watch nothing",
        "deploy /nonexistent.wasm",
        "inspect /nonexistent.wasm",
    ] {
        let output = on(&host, command).expect(3);
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{command}: {output:?}"
        );
    }
}

#[tokio::test]
async fn audit_tells_what_was_done_newest_first_also_to_what_is_gone() {
    let host = host().await;
    let module = guests::path("ledger").display().to_string();
    on(&host, &format!("deploy {module} --name other")).expect(0);
    on(&host, "pause ledger").expect(0);
    on(&host, "delete other --yes").expect(0);
    let done = |line: &str| -> Vec<(String, String)> {
        let text = |entry: &Value, key: &str| entry[key].as_str().expect("it is text").to_owned();
        let entries = on(&host, line).expect(0).lines();
        entries
            .iter()
            .map(|entry| (text(entry, "action"), text(entry, "deployment")))
            .collect()
    };
    let entry = |action: &str, deployment: &str| (action.to_owned(), deployment.to_owned());
    let all = [
        entry("delete", "other"),
        entry("pause", "ledger"),
        entry("deploy", "other"),
        entry("deploy", "ledger"),
    ];
    assert_eq!(done("audit -o ndjson"), all);
    assert_eq!(
        done("audit other -o ndjson"),
        [entry("delete", "other"), entry("deploy", "other")]
    );
    assert_eq!(done("audit --limit 1 -o ndjson"), all[..1]);
    assert!(
        on(&host, "audit ledger")
            .expect(0)
            .stdout
            .starts_with("AT "),
        "a table for people"
    );
    let client = host.client();
    let log: foldstream::api::AuditLog = client
        .get("/v1/audit?deployment=ledger&limit=1")
        .await
        .expect(200)
        .json();
    assert_eq!(
        (log.entries[0].action.as_str(), log.entries.len()),
        ("pause", 1)
    );
    client
        .get("/v1/audit?limit=0")
        .await
        .problem(400, "invalid");
    client
        .get("/v1/audit?limit=10001")
        .await
        .problem(400, "invalid");
}

#[tokio::test]
async fn deploy_says_what_it_did_and_refuses_what_is_no_module() {
    let host = Host::start().await;
    let module = guests::path("ledger").display().to_string();
    let first = cli::on(&host, &["deploy", &module, "-o", "json"])
        .expect(0)
        .json();
    assert_eq!(
        (&first["outcome"], &first["deployment"]["name"]),
        (&json!("created"), &json!("ledger"))
    );
    let again = cli::on(&host, &["deploy", &module]).expect(0);
    let said = "ledger: unchanged (generation 1, source events): generation 1 has this module, and \
                is active\n";
    assert_eq!(again.stdout, said);
    let named = cli::on(
        &host,
        &["deploy", &module, "--name", "other", "--wait", "-q"],
    )
    .expect(0);
    assert_eq!(named.stdout, "other: live at position 0\n");
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), "no module").expect("written");
    let bad = cli::on(&host, &["deploy", &file.path().display().to_string()]).expect(4);
    assert!(bad.stderr.contains("foldstream build"), "{bad:?}");
    cli::on(&host, &["deploy", &module, "--name", "Not A Name"]).expect(4);
}

#[tokio::test]
async fn deploy_wait_fails_when_the_deployment_does() {
    let host = Host::start().await;
    cli::on(
        &host,
        &["events", "append", "orders.1.placed", "{\"no\":\"order\"}"],
    )
    .expect(0);
    let module = guests::path("ledger").display().to_string();
    let output = cli::on(&host, &["deploy", &module, "--wait", "--timeout", "60s"]);
    assert!(
        output.code != 0 && output.stderr.contains("rejected"),
        "{output:?}"
    );
}

#[tokio::test]
async fn list_and_show_tell_how_deployments_are() {
    let host = host().await;
    let list = on(&host, "list").expect(0).stdout;
    let lines: Vec<Vec<&str>> = list
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0][..4], ["NAME", "STATE", "POSITION", "LAG"]);
    assert_eq!(lines[1][..4], ["ledger", "live", "3", "0"]);
    let json = on(&host, "list -o json").expect(0).json();
    assert_eq!(json["deployments"][0]["position"], 3);
    let rows = on(&host, "list -o ndjson").expect(0).lines();
    assert_eq!((rows.len(), &rows[0]["name"]), (1, &json!("ledger")));
    let shown = on(&host, "show ledger").expect(0).stdout;
    for wanted in ["live", "orders.>", "pair", "audit", "events"] {
        assert!(shown.contains(wanted), "{wanted} is missing in {shown}");
    }
    assert_eq!(
        on(&host, "show ledger -o json").expect(0).json()["module"]["name"],
        "ledger"
    );
}

#[tokio::test]
async fn get_prints_the_value_alone() {
    let host = host().await;
    assert_eq!(
        on(&host, "get ledger customer/7").expect(0).stdout,
        "{\"count\":2,\"amount\":60,\"last\":3}\n"
    );
    assert_eq!(
        on(&host, "get ledger pair/left --at-least 3")
            .expect(0)
            .stdout,
        "3\n"
    );
    let entry = on(&host, "get ledger pair/left -o json").expect(0).json();
    assert_eq!(
        entry,
        json!({ "key": "pair/left", "value": 3, "position": 3 })
    );
    on(&host, "get ledger pair/left --at-least 99 --timeout 100ms").expect(6);
}

#[tokio::test]
async fn scan_prints_entries_in_the_order_of_their_keys() {
    let host = host().await;
    let keys = |output: &Output| {
        output
            .lines()
            .iter()
            .map(|row| row["key"].clone())
            .collect::<Vec<_>>()
    };
    let all = on(&host, "scan ledger -o ndjson").expect(0);
    assert_eq!(
        keys(&all),
        [
            "customer/7",
            "customer/8",
            "head",
            "pair/left",
            "pair/right"
        ]
    );
    assert_eq!(
        keys(&on(&host, "scan ledger --all -o ndjson").expect(0)),
        keys(&all)
    );
    assert_eq!(
        keys(&on(&host, "scan ledger --reverse --limit 2 -o ndjson").expect(0)),
        ["pair/right", "pair/left"]
    );
    assert_eq!(
        keys(&on(&host, "scan ledger --start head --end pair/r -o ndjson").expect(0)),
        ["head", "pair/left"]
    );
    assert_eq!(
        keys(&on(&host, "scan ledger --after head -o ndjson").expect(0)),
        ["pair/left", "pair/right"]
    );
    assert_eq!(
        on(&host, "scan ledger --prefix pair/").expect(0).stdout,
        "KEY         VALUE\npair/left   3\npair/right  3\n"
    );
    let whole = on(&host, "scan ledger --all -o json").expect(0).json();
    assert_eq!(
        (
            whole["entries"].as_array().map(Vec::len),
            &whole["position"]
        ),
        (Some(5), &json!(3))
    );
    let first = on(&host, "scan ledger --limit 1").expect(0);
    assert!(
        first.stderr.contains("--after"),
        "it says what to do next: {first:?}"
    );
}

#[tokio::test]
async fn query_prints_the_answer() {
    let host = host().await;
    assert_eq!(
        on(&host, "query ledger pair -o ndjson").expect(0).stdout,
        "{\"left\":3,\"right\":3}\n"
    );
    assert_eq!(
        on(&host, "query ledger audit -o json").expect(0).json()["amount"],
        310
    );
    let output = cli::on(&host, &["query", "ledger", "pair", "{broken"]).expect(2);
    assert!(output.stderr.contains("JSON"), "{output:?}");

    // Arguments that a query cannot use: what it says of itself, and how to quote.
    host.client()
        .deploy("mischief", &guests::module("mischief"))
        .await;
    let wrong = on(&host, "query mischief invalid ada").expect(4).stderr;
    for words in [
        "told to refuse",
        "`invalid` is described as: Does invalid",
        "sent as text: for a JSON string quote them twice, as in '\"ada\"'",
    ] {
        assert!(wrong.contains(words), "{wrong}");
    }
}

#[tokio::test]
async fn watch_prints_changes_until_it_is_interrupted() {
    let host = host().await;
    let mut command = host::foldstream();
    command.args([
        "--url",
        host.url(),
        "watch",
        "ledger",
        "--prefix",
        "pair/left",
        "--after",
        "0",
        "-o",
        "ndjson",
    ]);
    let mut watch = Process::start("foldstream watch", &mut command);
    wait::until("the first change", || async {
        watch.printed("\"value\":3")
    })
    .await;
    on(
        &host,
        "events append orders.9.placed {\"order\":\"o-4\",\"amount\":1}",
    )
    .expect(0);
    wait::until("the next change", || async { watch.printed("\"value\":4") }).await;
    watch.signal(Signal::INT);
    assert_eq!(watch.wait(Duration::from_secs(20)).code(), Some(130));
}

#[tokio::test]
async fn events_are_appended_read_exported_and_imported_again_alike() {
    let host = Host::start().await;
    let first = cli::on(
        &host,
        &[
            "events",
            "append",
            "orders.7.placed",
            "{\"order\":\"o-1\",\"amount\":5}",
            "--id",
            "a",
        ],
    );
    assert_eq!(first.expect(0).stdout, "1\n");
    let again = cli::on(
        &host,
        &["events", "append", "orders.7.placed", "{}", "--id", "a"],
    )
    .expect(0);
    assert_eq!(again.stdout, "1 (already stored)\n");
    cli::on(
        &host,
        &[
            "events",
            "append",
            "a.b",
            "{}",
            "--expected-last-sequence",
            "0",
        ],
    )
    .expect(4);
    cli::on(&host, &["events", "append", "a.*", "{}"]).expect(4);
    cli::on_with_input(
        &host,
        &[
            "events",
            "append",
            "text.noted",
            "-",
            "--header",
            "X-A=1",
            "--type",
            "Noted",
        ],
        "hello é",
    )
    .expect(0);
    let read = on(&host, "events read -o ndjson").expect(0).lines();
    assert_eq!(read.len(), 2);
    assert_eq!(
        (
            &read[1]["data"],
            &read[1]["type"],
            &read[1]["headers"]["x-a"]
        ),
        (&json!("hello é"), &json!("Noted"), &json!("1"))
    );
    assert_eq!(
        on(&host, "events read --subject text.> --limit 1 -o ndjson")
            .expect(0)
            .lines()
            .len(),
        1
    );

    let digits = "{\"z\": 0.12345678901234567890, \"a\":123456789012345678901, \"a\":1.0}";
    cli::on(&host, &["events", "append", "orders.8.noted", digits]).expect(0);
    let packed = digits.replace(' ', "");
    for output in ["table", "ndjson"] {
        let shown = on(&host, &format!("events read --sequence 3 -o {output}")).expect(0);
        assert!(shown.stdout.contains(&packed), "{}", shown.stdout);
    }
    let read = on(&host, "events read -o ndjson").expect(0).lines();

    let exported = on(&host, "events export").expect(0).stdout;
    let other = Host::start().await;
    cli::on_with_input(&other, &["events", "import", "-"], &exported).expect(0);
    let fields = |rows: Vec<Value>| -> Vec<Value> {
        rows.into_iter()
            .map(|row| {
                json!([
                    row["subject"],
                    row["type"],
                    row["headers"],
                    row["data"],
                    row["time"]
                ])
            })
            .collect()
    };
    assert_eq!(
        fields(on(&other, "events read -o ndjson").expect(0).lines()),
        fields(read)
    );
}

#[tokio::test]
async fn import_names_the_line_that_is_wrong_and_keeps_what_is_before_it() {
    let host = Host::start().await;
    let output = cli::on_with_input(
        &host,
        &["events", "import", "-"],
        &format!("{EVENTS}nonsense\n"),
    )
    .expect(4);
    assert!(output.stderr.contains(":4"), "{output:?}");
    assert_eq!(
        on(&host, "events read -o json").expect(0).json()["last_sequence"],
        3
    );
}

#[tokio::test]
async fn tail_prints_events_as_they_come() {
    let host = host().await;
    let mut command = host::foldstream();
    command.args([
        "--url",
        host.url(),
        "events",
        "tail",
        "--after",
        "2",
        "-o",
        "ndjson",
    ]);
    let tail = Process::start("foldstream events tail", &mut command);
    wait::until("the event that is there", || async {
        tail.printed("\"sequence\":3")
    })
    .await;
    on(
        &host,
        "events append orders.9.placed {\"order\":\"o-4\",\"amount\":1}",
    )
    .expect(0);
    wait::until("the event that comes", || async {
        tail.printed("\"sequence\":4")
    })
    .await;
}

#[tokio::test]
async fn pause_resume_and_delete_do_what_they_say() {
    let host = host().await;
    for _ in 0..20 {
        let answered = ["pause", "resume"].map(|verb| {
            on(&host, &format!("{verb} ledger -o json"))
                .expect(0)
                .json()
        });
        assert_eq!(
            answered[0]["state"], "paused",
            "the answer is about what was asked for"
        );
        assert_ne!(
            answered[1]["state"], "paused",
            "the answer is about what was asked for"
        );
    }
    on(&host, "pause ledger").expect(0);
    host.client()
        .show_when(LEDGER, "pause", |shown| {
            shown.state == foldstream::api::DeploymentState::Paused
        })
        .await;
    on(&host, "resume ledger").expect(0);
    host.client()
        .show_when(LEDGER, "run", |shown| {
            shown.state == foldstream::api::DeploymentState::Live
        })
        .await;
    let refused = on(&host, "delete ledger");
    assert!(
        refused.code != 0 && refused.stderr.contains("--yes"),
        "nobody is there to ask: {refused:?}"
    );
    on(&host, "delete ledger --yes").expect(0);
    on(&host, "show ledger").expect(3);
}

#[test]
fn build_and_inspect_show_what_a_module_is() {
    let module = guests::path("ledger").display().to_string();
    let shown = cli::run(&["inspect", &module, "-o", "json"])
        .expect(0)
        .json();
    assert_eq!(
        (&shown["kind"], &shown["name"]),
        (&json!("projection"), &json!("ledger"))
    );
    assert_eq!(shown["size"], json!(guests::module("ledger").len()));
    assert_eq!(shown["digest"].as_str().map(str::len), Some(64));
    let imports = shown["imports"].as_array().expect("a list");
    assert!(imports.iter().all(|import| {
        import
            .as_str()
            .is_some_and(|name| name.starts_with("foldstream:module/"))
    }));
    let text = cli::run(&["inspect", &module]).expect(0).stdout;
    assert!(
        text.contains("orders.>") && text.contains("audit"),
        "{text}"
    );
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), "no module").expect("written");
    cli::run(&["inspect", &file.path().display().to_string()]).expect(4);
    let folder = tempfile::tempdir().expect("a temporary folder");
    cli::run_in(folder.path(), &["build"]).expect(3);
}

#[test]
fn config_commands_check_show_and_print_a_template_that_is_sound() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let template = cli::run(&["config", "template"]).expect(0).stdout;
    let file = folder.path().join("foldstream.toml");
    std::fs::write(&file, template).expect("written");
    cli::run_in(folder.path(), &["config", "check"]).expect(0);
    std::fs::write(&file, "[pipeline]\nattempts = 0\n").expect("written");
    let output = cli::run_in(folder.path(), &["config", "check", "-o", "json"]).expect(2);
    assert_eq!(output.json()[0]["key"], "pipeline.attempts");
    std::fs::write(&file, "[serve]\ntoken = \"a-very-secret-token\"\n").expect("written");
    let shown = cli::run_in(folder.path(), &["config", "show"])
        .expect(0)
        .stdout;
    assert!(
        !shown.contains("a-very-secret-token") && shown.contains("127.0.0.1:7575"),
        "{shown}"
    );
}

#[tokio::test]
async fn doctor_finds_a_sound_set_up_sound_and_warns_about_a_stream_in_memory() {
    use async_nats::jetstream::stream::StorageType;
    use foldstream_tests::nats::{self, NatsServer};
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    nats::create_stream(&context, "SOUND", "sound.>").await;
    let mut config = nats::stream_config("MEMORY", "memory.>");
    config.storage = StorageType::Memory;
    nats::create_stream_with(&context, config).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let check = |stream: &str| {
        std::fs::write(
            folder.path().join("foldstream.toml"),
            host::jetstream_source(&server.url(), stream),
        )
        .expect("written");
        cli::run_in(folder.path(), &["doctor"])
    };
    let sound = check("SOUND").expect(0);
    assert!(
        sound
            .stdout
            .lines()
            .any(|line| line.starts_with("warn") && line.contains("no host answers")),
        "the environment names a host that does not run: {sound:?}"
    );
    let memory = check("MEMORY");
    assert!(
        format!("{}{}", memory.stdout, memory.stderr).contains("memory"),
        "{memory:?}"
    );
    let missing = check("MISSING");
    assert!(
        missing.code != 0 && format!("{}{}", missing.stdout, missing.stderr).contains("MISSING"),
        "{missing:?}"
    );
}

#[tokio::test]
async fn doctor_judges_the_host_that_answers_and_not_itself() {
    let host = host::Host::start_with("[limits]\nmemory_bytes = \"1000TiB\"\n").await;
    let checks = cli::on(&host, &["doctor", "-o", "json"]).expect(0).json();
    let memory = checks
        .as_array()
        .expect("a list")
        .iter()
        .find(|check| check["check"] == "memory")
        .expect("it is looked at");
    assert_eq!(
        memory["status"], "warn",
        "only the host was told to take more than there is: {memory}"
    );
    assert!(
        memory["finding"]
            .as_str()
            .is_some_and(|finding| finding.contains("limits.memory_bytes")),
        "{memory}"
    );
}

#[test]
fn completions_and_manual_pages_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let script = cli::run(&["completions", shell]).expect(0).stdout;
        assert!(
            COMMANDS.iter().all(|command| script.contains(command)),
            "{shell}"
        );
    }
    assert!(cli::run(&["man"]).expect(0).stdout.contains(".TH"));
    assert!(
        cli::run(&["man", "deploy"])
            .expect(0)
            .stdout
            .contains("deploy")
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    cli::run(&["man", "--dir", &folder.path().display().to_string()]).expect(0);
    for command in COMMANDS {
        assert!(
            folder
                .path()
                .join(format!("foldstream-{command}.1"))
                .is_file(),
            "{command}"
        );
    }
}

#[test]
fn demo_shows_rows_a_query_and_the_position_and_ends() {
    let events = guests::folder("order-totals").join("events.ndjson");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [module, events] =
        [guests::path("order-totals"), events].map(|path| path.display().to_string());
    let asked = ["--query", "top-customers", "--arguments", "{\"limit\": 5}"];
    let output = cli::run_in(
        folder.path(),
        &[
            &["demo", "--module", &module, "--events", &events, "--once"],
            &asked[..],
        ]
        .concat(),
    )
    .expect(0);
    for wanted in [
        "rows",
        "query",
        "Position",
        "lag 0",
        "http://127.0.0.1:",
        "total_cents",
    ] {
        assert!(
            output.stdout.contains(wanted),
            "{wanted} is missing in {}",
            output.stdout
        );
    }
    let left = std::fs::read_dir(folder.path()).expect("read").count();
    assert_eq!(left, 0, "it leaves nothing behind where it was started");
}

#[test]
fn no_host_gets_a_command_that_was_meant_for_another() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let broken = folder.path().join("broken.toml");
    std::fs::write(&broken, "data_dir = 5\n").expect("our folder is writable");
    for config in [broken, folder.path().join("absent.toml")] {
        let mut command = host::foldstream();
        command
            .arg("list")
            .env("FOLDSTREAM_CONFIG", &config)
            .current_dir(folder.path());
        let refused = cli::finish(&mut command, None);
        assert!(
            // Not 5, which a host would have that cannot be reached.
            [2, 3].contains(&refused.code) && refused.stderr.contains("FOLDSTREAM_CONFIG"),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn names_that_no_address_can_have_are_refused() {
    let host = Host::start().await;
    for arguments in [&["show", "."], &["show", ".."]] {
        let refused = cli::on(&host, arguments);
        assert!(refused.code == 2, "{refused:?}");
    }
    let refused = cli::on(&host, &["get", "totals", ".."]).expect(2);
    assert!(
        refused.stderr.contains("cannot be part of a URL"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn an_empty_token_counts_as_none() {
    let host = Host::start().await;
    let mut command = host::foldstream();
    command
        .args(["--url", host.url(), "list"])
        .env("FOLDSTREAM_TOKEN", "");
    cli::finish(&mut command, None).expect(0);
}

#[tokio::test]
async fn a_new_project_builds_and_dev_runs_it_and_builds_it_again_when_it_changes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    cli::run_in(folder.path(), &["new", "my-totals"]).expect(0);
    let project = folder.path().join("my-totals");
    cli::run_in(folder.path(), &["new", "my-totals"]).expect(4);
    let mut command = host::foldstream();
    command
        .args(["dev", "my-totals", "--listen", "127.0.0.1:0"])
        .current_dir(folder.path());
    // One target folder for all that is built in this way, as building the dependencies takes long.
    command.env(
        "CARGO_TARGET_DIR",
        foldstream_tests::built().join("guests/new"),
    );
    let mut dev = Process::start("foldstream dev", &mut command);
    let url = wait::until("dev to listen", || async { dev.printed("listening on ") }).await;
    let client = foldstream_tests::client::Client::new(&url);
    let generation = async || -> Option<u64> {
        assert_eq!(
            dev.printed("error: "),
            None,
            "dev could not build what `new` wrote: {}",
            dev.output()
        );
        let answer = client.get("/v1/deployments/my-totals").await;
        (answer.status == 200).then(|| answer.json::<foldstream::api::Deployment>().generation)
    };
    let long = Duration::from_secs(300);
    wait::until_within(long, "the first build to be deployed", generation).await;
    let source = project.join("src/lib.rs");
    let text = std::fs::read_to_string(&source).expect("it is there");
    let changed = text.replace("state_version = 1", "state_version = 2");
    let changed = if changed == text {
        format!("{text}\n#[unsafe(no_mangle)]\npub extern \"C\" fn changed() {{}}\n")
    } else {
        changed
    };
    std::fs::write(&source, changed).expect("written");
    wait::until_within(long, "the change to be deployed", async || {
        generation().await.filter(|number| *number > 1)
    })
    .await;
    dev.signal(Signal::INT);
    assert_eq!(dev.wait(wait::DEADLINE).code(), Some(0));
}

/// Runs a program in a folder of its own crate, with the target folder that all such crates share.
fn in_crate(folder: &std::path::Path, program: &str, arguments: &[&str]) -> Output {
    let mut command = if program == "foldstream" {
        host::foldstream()
    } else {
        std::process::Command::new(program)
    };
    command.args(arguments).current_dir(folder);
    command.env(
        "CARGO_TARGET_DIR",
        foldstream_tests::built().join("guests/new"),
    );
    cli::finish(&mut command, None)
}

#[tokio::test]
async fn a_first_projection_is_made_tested_built_deployed_and_asked_as_the_readme_says() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // Another name than that of the test above, as both are built into one folder.
    cli::run_in(folder.path(), &["new", "page-visits"]).expect(0);
    let project = folder.path().join("page-visits");
    let tested = in_crate(&project, "cargo", &["test", "--quiet"]).expect(0);
    assert!(tested.stdout.contains("1 passed"), "{tested:?}");
    in_crate(&project, "foldstream", &["build"]).expect(0);
    in_crate(
        &project,
        "foldstream",
        &["build", "--out", "new/folder/it.wasm"],
    )
    .expect(0);
    assert!(
        project.join("new/folder/it.wasm").is_file(),
        "a folder for it is made if there is none"
    );
    let host = Host::start().await;
    let module = project.join("page-visits.wasm").display().to_string();
    cli::on(&host, &["deploy", &module, "--wait", "--timeout", "60s"]).expect(0);
    let appended = on(&host, "events append visits.home").expect(0).stdout;
    let position = appended.trim();
    let asked = cli::on(
        &host,
        &[
            "query",
            "page-visits",
            "visits",
            "\"home\"",
            "--at-least",
            position,
        ],
    )
    .expect(0);
    assert_eq!(asked.stdout.trim(), "1");
    let scanned = on(&host, "scan page-visits -o ndjson").expect(0).lines();
    assert_eq!(
        (&scanned[0]["key"], &scanned[0]["value"]),
        (&json!("page/home"), &json!(1))
    );
}

#[tokio::test]
async fn quiet_says_nothing_but_errors_and_verbose_says_more() {
    let stage = Stage::start(Kind::Embedded).await;
    assert_eq!(on(&stage.host, "list -q").expect(0).stderr, "");
    assert!(!on(&stage.host, "list").expect(0).stderr.is_empty());
    assert!(
        on(&stage.host, "list -v")
            .expect(0)
            .stderr
            .contains("/v1/deployments")
    );
    assert!(
        !on(&stage.host, "show nothing -q")
            .expect(3)
            .stderr
            .is_empty()
    );
}
