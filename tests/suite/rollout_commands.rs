//! Generations from the command line: deployed, watched, compared, promoted, rolled back, pruned.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Stdio};

use foldstream_tests::cli::{self, Output};
use foldstream_tests::events::new_event;
use foldstream_tests::host::{self, Host};
use foldstream_tests::process::Process;
use foldstream_tests::stage::{Kind, LEDGER, Stage};
use foldstream_tests::{guests, wait};
use serde_json::{Value, json};

/// Events of a candidate that is built slowly: more than what counts as within reach of the head.
const MANY: usize = 6_000;
/// So slow that nothing comes to its end while a test looks.
const SLOWLY: &str = "--max-rate 50";

fn on(host: &Host, line: &str) -> Output {
    cli::on(host, &line.split_whitespace().collect::<Vec<_>>())
}

/// Deploys a guest with further options.
fn deploy(host: &Host, guest: &str, options: &str) -> Output {
    let module = guests::path(guest).display().to_string();
    cli::on(
        host,
        &["deploy", &module]
            .into_iter()
            .chain(options.split_whitespace())
            .collect::<Vec<_>>(),
    )
}

/// A host with this many orders folded by the first version of the ledger; `rollout` are lines of
/// that section. What a busy machine takes for a cut-over is not what is tested here, so the hold
/// may be long.
async fn stage(events: usize, rollout: &str) -> Stage {
    let config = format!("[rollout]\nhold_max = \"5s\"\n{rollout}");
    let mut stage = Stage::start_with(Kind::Embedded, &config).await;
    stage.publish(events).await;
    deploy(&stage.host, "ledger", "--wait --timeout 60s").expect(0);
    stage
}

/// The generations of the ledger, as number and status.
fn statuses(host: &Host) -> Vec<(u64, String)> {
    let rows = on(host, "generations ledger -o ndjson").expect(0).lines();
    let status = |row: &Value| {
        (
            row["number"].as_u64().expect("a number"),
            row["status"].as_str().expect("text").to_owned(),
        )
    };
    rows.iter().map(status).collect()
}

/// Whether a wait ended at a position; the state may still be about to change to `live` then.
fn serves_at(output: &Output, position: u64) -> bool {
    let ends =
        ["live", "catching-up"].map(|state| format!("ledger: {state} at position {position}\n"));
    ends.contains(&output.stdout)
}

/// Waits until a generation of the ledger has a status.
async fn becomes(host: &Host, number: u64, status: &str) {
    wait::until(&format!("generation {number} to be {status}"), || async {
        statuses(host)
            .contains(&(number, status.to_owned()))
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn deploy_says_what_it_does_and_why() {
    let stage = stage(100, "").await;
    let host = &stage.host;
    let same = deploy(host, "ledger", "").expect(0).stdout;
    let said = "ledger: unchanged (generation 1, source events): generation 1 has this module, and \
                is active\n";
    assert_eq!(same, said);
    let refused = deploy(host, "ledger-next", "--strategy inherit").expect(4);
    assert!(
        refused.stdout.is_empty() && refused.stderr.contains("state version 2 is not 1"),
        "{refused:?}"
    );
    let refused = deploy(host, "ledger", "--strategy migrate").expect(4);
    assert!(
        refused.stderr.contains("exports no `migrate`"),
        "{refused:?}"
    );
    let next = deploy(host, "ledger-next", "--manual -o json")
        .expect(0)
        .json();
    assert_eq!(
        (&next["outcome"], &next["generation"]),
        (&json!("rebuilding"), &json!(2))
    );
    assert!(
        next["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("state version 2 instead of 1")),
        "{next}"
    );
    let again = deploy(host, "ledger-next", "").expect(0).stdout;
    assert!(
        again.contains("unchanged (generation 2,") && again.ends_with("and is being built\n"),
        "{again}"
    );
    let migrated = deploy(host, "ledger-next", "--strategy migrate")
        .expect(0)
        .stdout;
    assert!(
        migrated.contains("migrating alongside the active generation (generation 3,"),
        "{migrated}"
    );
}

#[tokio::test]
async fn deploy_waits_until_another_version_serves_and_rollback_takes_it_back() {
    let stage = stage(500, "").await;
    let host = &stage.host;
    let deployed = deploy(host, "ledger-next", "--wait --timeout 60s").expect(0);
    assert!(serves_at(&deployed, 500), "{deployed:?}");
    assert!(
        deployed
            .stderr
            .contains("rebuilding alongside the active generation"),
        "{deployed:?}"
    );
    assert_eq!(
        statuses(host),
        [(1, "previous".to_owned()), (2, "active".to_owned())]
    );
    let table = on(host, "generations ledger").expect(0).stdout;
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows[0][..5],
        ["NUMBER", "STATUS", "SINCE", "STRATEGY", "STATE-VERSION"]
    );
    assert_eq!((rows[1][1], rows[1][4]), ("previous", "1"));
    assert_eq!((rows[2][1], rows[2][4], rows[2][5]), ("active", "2", "500"));
    assert!(
        table.contains("took over from generation 1 at position 500"),
        "{table}"
    );
    let shown = on(host, "show ledger").expect(0).stdout;
    assert!(
        shown.contains("previous       generation 1, previous (rebuild): 100 %"),
        "{shown}"
    );

    let back = on(host, "rollback ledger").expect(0).stdout;
    assert!(
        back.starts_with("ledger: generation 1 took over from generation 2 at position 500"),
        "{back}"
    );
    assert_eq!(
        statuses(host),
        [(1, "active".to_owned()), (2, "previous".to_owned())]
    );
    assert_eq!(
        on(host, "rollback ledger -o json").expect(0).json()["to"],
        2
    );
}

#[tokio::test]
async fn candidate_waits_for_promote_and_can_be_read_before() {
    let stage = stage(500, "").await;
    let host = &stage.host;
    assert!(
        on(host, "promote ledger")
            .expect(4)
            .stderr
            .contains("has no candidate")
    );
    let deployed = deploy(host, "ledger-next", "--manual --wait --timeout 60s")
        .expect(0)
        .stdout;
    assert!(
        deployed.starts_with("ledger: generation 2 is ready at position "),
        "{deployed}"
    );
    assert!(
        deployed.ends_with("`foldstream promote ledger` makes it active\n"),
        "{deployed}"
    );
    let list = on(host, "list").expect(0).stdout;
    assert!(
        list.lines().nth(1).expect("a row").contains("  ready  "),
        "{list}"
    );
    assert!(
        on(host, "show ledger")
            .expect(0)
            .stdout
            .contains("candidate      generation 2, ready (rebuild)")
    );

    let serving = on(host, "get ledger head --at-least 500").expect(0).stdout;
    assert!(serving.contains("\"count\":500"), "{serving}");
    let candidate = on(host, "get ledger head --at-least 500 --generation 2")
        .expect(0)
        .stdout;
    assert!(candidate.contains("\"events\":500"), "{candidate}");
    let keys = on(host, "scan ledger --limit 1 --generation 2 -o ndjson")
        .expect(0)
        .lines();
    assert!(
        keys[0]["key"]
            .as_str()
            .is_some_and(|key| key.starts_with("account/")),
        "{keys:?}"
    );
    let audit = on(host, "query ledger audit --generation 2 -o json")
        .expect(0)
        .json();
    assert_eq!(audit["head"]["events"], 500);
    on(host, "get ledger head --generation 7").expect(3);

    let promoted = on(host, "promote ledger").expect(0).stdout;
    assert!(
        promoted.starts_with("ledger: generation 2 took over from generation 1"),
        "{promoted}"
    );
    assert!(
        on(host, "get ledger head")
            .expect(0)
            .stdout
            .contains("\"events\":500")
    );
    assert!(
        on(host, "get ledger head --generation 1")
            .expect(0)
            .stdout
            .contains("\"count\":500")
    );
}

#[tokio::test]
async fn comparison_keeps_a_candidate_and_shows_why() {
    let stage = stage(500, "").await;
    let host = &stage.host;
    let kept = deploy(host, "ledger-next", "--require-equal --wait --timeout 60s").expect(1);
    for wanted in [
        "held back by its gate",
        "compared entries differ",
        "account/",
        "promote ledger --force",
    ] {
        assert!(
            kept.stderr.contains(wanted),
            "{wanted} is missing: {kept:?}"
        );
    }
    assert!(kept.stdout.is_empty(), "{kept:?}");
    let table = on(host, "generations ledger").expect(0).stdout;
    assert!(
        table.contains("\n\nGeneration 2, compared with generation 1 at ")
            && table.contains("\nDIFFERENCE  ALLOWED  KEY"),
        "{table}"
    );
    let refused = on(host, "promote ledger").expect(4);
    assert!(
        refused.stderr.contains("not allowed") && refused.stderr.contains("--force"),
        "{refused:?}"
    );
    on(host, "promote ledger --force").expect(0);
    assert_eq!(
        statuses(host),
        [(1, "previous".to_owned()), (2, "active".to_owned())]
    );
    // Built from scratch it is the same, and so is a part of it.
    let equal = on(host, "rebuild ledger --require-equal --wait --timeout 60s").expect(0);
    assert!(
        equal.stderr.contains("compared: all ") && serves_at(&equal, 500),
        "{equal:?}"
    );
    let sampled = on(
        host,
        "rebuild ledger --require-equal --sample 30 --wait --timeout 60s",
    )
    .expect(0);
    assert!(
        sampled.stderr.contains("with 95 % confidence"),
        "{sampled:?}"
    );
}

#[tokio::test]
async fn comparison_shows_the_parts_of_a_value_that_differ() {
    let stage = stage(500, "").await;
    let options = "--allow added,removed --wait --timeout 60s";
    let kept = deploy(&stage.host, "ledger-next", options).expect(1);
    assert!(kept.stderr.contains("/count 500 → -"), "{kept:?}");
    let table = on(&stage.host, "generations ledger").expect(0).stdout;
    assert!(table.contains("/count 500 → -"), "{table}");
}

#[tokio::test]
async fn comparison_allows_what_was_named_or_is_in_a_file_of_rules() {
    let stage = stage(500, "").await;
    let host = &stage.host;
    let kept = deploy(
        host,
        "ledger-next",
        "--allow added,removed --wait --timeout 60s",
    )
    .expect(1);
    assert!(
        kept.stderr.contains("changed     no       head"),
        "{kept:?}"
    );
    on(host, "abort ledger").expect(0);
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let rules = "allow = []\n[[rules]]\nprefix = \"account/\"\nallow = \
        [\"added\"]\n[[rules]]\nprefix = \"customer/\"\nallow = [\"removed\"]\n[[rules]]\nprefix = \
        \"head\"\nignore = [\"/count\", \"/events\", \"/chain\"]\n";
    std::fs::write(file.path(), rules).expect("written");
    let options = format!("--rules {} --wait --timeout 60s", file.path().display());
    let passed = deploy(host, "ledger-next", &options).expect(0);
    assert!(
        passed.stderr.contains("; 0 of them are not allowed"),
        "{passed:?}"
    );
    std::fs::write(file.path(), "alow = []\n").expect("written");
    let refused = deploy(host, "ledger", &options).expect(2);
    assert!(
        refused.stderr.contains("unknown field `alow`"),
        "{refused:?}"
    );
    let shown = deploy(host, "ledger", "--compare --wait --timeout 60s").expect(0);
    assert!(shown.stderr.contains("compared: "), "{shown:?}");
    assert_eq!(statuses(host).last(), Some(&(4, "active".to_owned())));
}

#[tokio::test]
async fn comparison_or_a_hand_keeps_a_module_from_taking_over_the_state_at_once() {
    let stage = stage(100, "").await;
    let host = &stage.host;
    // The same code with another digest, as after a refactoring.
    let mut module = guests::module("ledger");
    module.extend([0, 2, 1, b'r']);
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), module).expect("written");
    let file = file.path().display().to_string();
    let refused = cli::on(
        host,
        &["deploy", &file, "--strategy", "inherit", "--require-equal"],
    )
    .expect(4);
    assert!(refused.stderr.contains("cannot be compared"), "{refused:?}");
    let compared = cli::on(host, &["deploy", &file, "--require-equal", "--wait"]).expect(0);
    assert!(
        compared.stderr.contains("needs a state of its own")
            && compared.stderr.contains("compared: all")
    );
    on(host, "rollback ledger").expect(0);
    let inherited = cli::on(host, &["deploy", &file, "--wait"]).expect(0);
    assert!(
        inherited
            .stderr
            .contains("both modules have state version 1"),
        "{inherited:?}"
    );
    assert!(serves_at(&inherited, 100), "{inherited:?}");
}

#[tokio::test]
async fn slow_candidate_is_shown_paused_throttled_and_given_up() {
    let stage = stage(MANY, "").await;
    let host = &stage.host;
    on(host, "abort ledger").expect(4);
    on(host, "throttle ledger --off").expect(4);
    deploy(host, "ledger-next", SLOWLY).expect(0);
    wait::until("the candidate to fold", || async {
        on(host, "show ledger")
            .expect(0)
            .stdout
            .contains("building (rebuild): 0 %, ")
            .then_some(())
    })
    .await;
    let list = on(host, "list").expect(0).stdout;
    assert!(
        list.lines().nth(1).expect("a row").contains("  0 %  "),
        "{list}"
    );
    let late = deploy(host, "ledger-next", "--wait --timeout 1s").expect(6);
    assert!(
        late.stderr
            .contains("generation 2 of ledger is building when the time ran out"),
        "{late:?}"
    );
    let early = on(host, "promote ledger").expect(4);
    assert!(early.stderr.contains("is still being built"), "{early:?}");

    let paused = on(host, "pause ledger --candidate").expect(0).stdout;
    assert!(
        paused.starts_with("ledger: generation 2 is paused at position "),
        "{paused}"
    );
    wait::until("the candidate to pause", || async {
        let shown = on(host, "show ledger").expect(0).stdout;
        (shown.contains("building (rebuild): ") && shown.contains(" %, paused")).then_some(())
    })
    .await;
    let waits = deploy(host, "ledger-next", "--wait").expect(1);
    assert!(
        waits
            .stderr
            .contains("foldstream resume ledger --candidate"),
        "{waits:?}"
    );
    assert!(
        on(host, "show ledger")
            .expect(0)
            .stdout
            .contains("state          live"),
        "the active generation keeps serving"
    );
    assert!(
        on(host, "resume ledger --candidate")
            .expect(0)
            .stdout
            .contains("generation 2 continues")
    );
    let throttled = on(host, "throttle ledger --max-rate 60 --cpu 50")
        .expect(0)
        .stdout;
    assert_eq!(
        throttled,
        "ledger: generation 2 is built with at most 60 events per second and 50 % of a core\n"
    );
    let aborted = on(host, "abort ledger").expect(0).stdout;
    assert_eq!(
        aborted,
        format!(
            "ledger: candidate discarded; generation 1 is active at position {}\n",
            "6,000"
        )
    );
    assert_eq!(
        statuses(host),
        [(1, "active".to_owned()), (2, "retired".to_owned())]
    );
    // Without a limit it is done in a moment.
    deploy(host, "ledger-next", SLOWLY).expect(0);
    on(host, "throttle ledger --off").expect(0);
    becomes(host, 3, "active").await;
}

#[tokio::test]
async fn deploy_that_waits_ends_when_somebody_gives_the_candidate_up() {
    let stage = stage(MANY, "").await;
    let mut command = host::foldstream();
    command
        .args(["--url", stage.host.url(), "deploy"])
        .arg(guests::path("ledger-next"))
        .arg("--wait");
    let mut waits = Process::start("foldstream deploy", command.args(SLOWLY.split(' ')));
    wait::until("progress with its rate", || async {
        waits.printed(" of 6,000 events, ")
    })
    .await;
    on(&stage.host, "abort ledger").expect(0);
    assert_eq!(waits.wait(wait::DEADLINE).code(), Some(1));
    let said = waits.output();
    assert!(
        said.contains("generation 2 of ledger is retired: aborted by an operator"),
        "{said}"
    );
}

#[tokio::test]
async fn deploy_that_waits_ends_with_the_failure_of_the_candidate() {
    let stage = stage(100, "").await;
    let host = &stage.host;
    on(host, "events append orders.1.placed {\"no\":\"order\"}").expect(0);
    stage.client().failed(LEDGER).await;
    let failed = deploy(host, "ledger-next", "--wait --timeout 60s").expect(1);
    assert!(
        failed
            .stderr
            .contains("generation 2 of ledger is failed: rejected: "),
        "{failed:?}"
    );
    assert_eq!(
        statuses(host),
        [(1, "active".to_owned()), (2, "failed".to_owned())]
    );
}

#[tokio::test]
async fn deploy_that_waits_tells_when_code_fails_on_the_state_that_it_took_over() {
    let stage = stage(100, "").await;
    let host = &stage.host;
    on(host, "events append orders.1.placed {\"no\":\"order\"}").expect(0);
    stage.client().failed(LEDGER).await;
    let failed = deploy(host, "ledger-broken", "--wait --timeout 60s").expect(1);
    assert!(
        failed
            .stderr
            .contains("generation 2 of ledger is failed: generation 1 was restored: "),
        "{failed:?}"
    );
    assert!(
        failed.stderr.contains("cannot apply event 101"),
        "{failed:?}"
    );
}

#[tokio::test]
async fn deploy_that_waits_is_not_misled_by_the_failure_of_the_code_before() {
    let mut stage = Stage::start(Kind::Embedded).await;
    stage.publish(100).await;
    deploy(&stage.host, "ledger-broken", "").expect(0);
    stage.client().failed(LEDGER).await;
    let mended = deploy(&stage.host, "ledger", "--wait --timeout 60s").expect(0);
    assert!(
        mended
            .stderr
            .contains("inherited the active read model (generation 2,"),
        "{mended:?}"
    );
    assert!(serves_at(&mended, 100), "{mended:?}");
}

#[tokio::test]
async fn rebuilds_show_what_runs_and_what_waits_for_its_turn() {
    let stage = stage(MANY, "rebuilds_max = 1\n").await;
    let host = &stage.host;
    let none = on(host, "rebuilds").expect(0);
    assert!(none.stderr.contains("1 may run at once"), "{none:?}");
    deploy(host, "ledger", "--name other --wait --timeout 60s").expect(0);
    deploy(host, "ledger-next", SLOWLY).expect(0);
    deploy(host, "ledger-next", "--name other").expect(0);
    let rows = wait::until("both to be in the queue", || async {
        let rows = on(host, "rebuilds -o ndjson").expect(0).lines();
        (rows.len() == 2 && rows[0]["generation"]["state"].is_string() && rows[1]["place"] == 1)
            .then_some(rows)
    })
    .await;
    assert_eq!(
        (&rows[0]["deployment"], &rows[1]["deployment"]),
        (&json!("ledger"), &json!("other"))
    );
    let table = on(host, "rebuilds").expect(0).stdout;
    let words: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        words[0],
        [
            "PLACE",
            "DEPLOYMENT",
            "GENERATION",
            "STRATEGY",
            "STATUS",
            "PROGRESS",
            "WAITS-FOR"
        ]
    );
    assert_eq!(
        (words[1][0], words[1][1], words[2][0], words[2][1]),
        ("runs", "ledger", "1", "other")
    );
    assert!(table.contains("queued behind 1"), "{table}");
    assert_eq!(on(host, "rebuilds -o json").expect(0).json()["at_once"], 1);
    let list = on(host, "list").expect(0).stdout;
    assert!(
        list.lines().nth(2).expect("a row").contains("  waits  "),
        "{list}"
    );
    let late = deploy(host, "ledger-next", "--name other --wait --timeout 1s").expect(6);
    assert!(
        late.stderr.contains("other generation 2: queued behind 1"),
        "{late:?}"
    );
    // One that is paused gives its place away, before its turn as well.
    on(host, "pause other --candidate").expect(0);
    let paused = deploy(host, "ledger-next", "--name other --wait --timeout 60s").expect(1);
    assert!(
        paused.stderr.contains("generation 2 of other is paused"),
        "{paused:?}"
    );
    on(host, "resume other --candidate").expect(0);
    on(host, "pause ledger --candidate").expect(0);
    deploy(host, "ledger-next", "--name other --wait --timeout 60s").expect(0);
}

#[tokio::test]
async fn rollback_to_a_state_that_is_gone_says_what_it_takes() {
    let stage = stage(300, "keep_previous = \"1ms\"\n").await;
    let host = &stage.host;
    assert!(
        on(host, "rollback ledger")
            .expect(4)
            .stderr
            .contains("has no previous generation")
    );
    deploy(host, "ledger-next", "--wait --timeout 60s").expect(0);
    becomes(host, 1, "retired").await;
    let refused = on(host, "rollback ledger").expect(4);
    assert!(
        refused
            .stderr
            .contains("foldstream rollback ledger --rebuild")
            && refused.stderr.contains("up to 300 events")
    );
    let begun = on(host, "rollback ledger --rebuild").expect(0).stdout;
    assert!(
        begun.starts_with("ledger: ") && begun.contains("generation 1"),
        "{begun}"
    );
    becomes(host, 3, "active").await;
    assert!(
        on(host, "get ledger head")
            .expect(0)
            .stdout
            .contains("\"count\":300")
    );
}

#[tokio::test]
async fn prune_says_what_goes_before_it_goes() {
    let stage = stage(300, "").await;
    let host = &stage.host;
    assert_eq!(
        on(host, "prune ledger --keep 0").expect(0).stdout,
        "ledger: nothing to remove\n"
    );
    for _ in 0..2 {
        let waited = on(host, "rebuild ledger --wait --timeout 60s").expect(0);
        let lines: Vec<&str> = waited.stderr.lines().collect();
        let is_repeated = lines.windows(2).any(|two| two[0] == two[1]);
        assert!(!is_repeated, "{}", waited.stderr);
    }
    let would = on(host, "prune ledger --keep 0 --dry-run").expect(0).stdout;
    assert!(
        would.starts_with("ledger: would remove generations 1, 2 with "),
        "{would}"
    );
    assert_eq!(statuses(host).len(), 3);
    let one = on(host, "prune ledger --keep 1 -o json").expect(0).json();
    assert_eq!(
        (&one["generations"], &one["dry_run"]),
        (&json!([1]), &json!(false))
    );
    assert!(
        on(host, "prune ledger --keep 0")
            .expect(0)
            .stdout
            .starts_with("ledger: removed generation 2 with ")
    );
    assert_eq!(statuses(host), [(3, "active".to_owned())]);
}

/// A host with enough entries for a scan of several pages, each larger than a pipe holds.
async fn host_with_many_entries() -> Host {
    let host = Host::start().await;
    let event = |number: u32| {
        let customer = format!("{number:0200}");
        format!(
            "{}\n",
            json!({ "subject": format!("orders.{customer}.placed"), "data": { "order": "o", "amount": 1 } })
        )
    };
    cli::on_with_input(
        &host,
        &["events", "import", "-"],
        &(0..3_000).map(event).collect::<String>(),
    )
    .expect(0);
    deploy(&host, "ledger", "--wait --timeout 60s").expect(0);
    host
}

/// A scan of all entries that stopped within its first page, as nobody reads what it prints.
fn begun_scan(host: &Host) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut command = host::foldstream();
    command.args([
        "--url",
        host.url(),
        "scan",
        "ledger",
        "--all",
        "-o",
        "ndjson",
    ]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdout = BufReader::with_capacity(1, child.stdout.take().expect("piped above"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("a first line comes");
    assert!(line.contains("customer/"), "{line}");
    (child, stdout)
}

fn ended(mut child: Child, mut stdout: BufReader<std::process::ChildStdout>) -> Output {
    let (mut rest, mut stderr) = (String::new(), String::new());
    stdout.read_to_string(&mut rest).expect("outputs are text");
    child
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut stderr)
        .expect("outputs are text");
    let code = child
        .wait()
        .expect("our own child can be waited for")
        .code()
        .unwrap_or(-1);
    Output {
        code,
        stdout: rest,
        stderr,
    }
}

#[tokio::test]
async fn scan_of_all_stays_with_the_generation_on_which_it_began() {
    let host = host_with_many_entries().await;
    let (child, stdout) = begun_scan(&host);
    deploy(&host, "ledger-next", "--wait --timeout 60s").expect(0);
    let rest = ended(child, stdout).expect(0);
    let rows = rest.lines();
    let customers = rows
        .iter()
        .filter(|row| {
            row["key"]
                .as_str()
                .is_some_and(|key| key.starts_with("customer/"))
        })
        .count();
    assert_eq!(
        (rows.len(), customers),
        (2_999 + 3, 2_999),
        "the first was read before"
    );
    let whole = on(&host, "scan ledger --all -o json").expect(0).json();
    assert_eq!(
        (
            &whole["generation"],
            whole["entries"].as_array().map(Vec::len)
        ),
        (&json!(2), Some(3_003))
    );
}

#[tokio::test]
async fn scan_of_all_whose_generation_goes_away_says_that_it_must_begin_again() {
    let host = host_with_many_entries().await;
    let (child, stdout) = begun_scan(&host);
    deploy(&host, "ledger-next", "--wait --timeout 60s").expect(0);
    on(&host, "prune ledger --keep 0").expect(0);
    let rest = ended(child, stdout).expect(4);
    assert!(
        rest.stderr
            .contains("the scan stopped after 1,000 entries and must be repeated from the start: "),
        "{}",
        rest.stderr
    );
}

#[tokio::test]
async fn verify_proves_the_same_fold_or_names_what_differs() {
    let mut stage = stage(800, "").await;
    let proved = on(&stage.host, "verify ledger --seed 3").expect(0);
    assert!(
        proved
            .stdout
            .starts_with("the second fold gives the same result: all ")
            && proved.stdout.contains("seed 3"),
        "{proved:?}"
    );
    let sampled = on(&stage.host, "verify ledger --sample 20 -o json")
        .expect(0)
        .json();
    assert_eq!(
        (&sampled["state"], &sampled["equal"]),
        (&json!("done"), &json!(true))
    );
    deploy(&stage.host, "sloppy", "--wait").expect(0);
    stage.publish(50).await;
    let found = on(&stage.host, "verify sloppy").expect(1);
    assert!(
        found.stdout.contains("not deterministic") && found.stdout.contains("`batches`"),
        "{found:?}"
    );
    on(&stage.host, "verify nothing").expect(3);
}

#[tokio::test]
async fn reads_as_of_a_moment_and_rebuilds_of_a_part_are_commands() {
    let mut stage = stage(300, "").await;
    stage.publish(100).await;
    let head = on(&stage.host, "get ledger head --as-of 250 -o json")
        .expect(0)
        .json();
    assert_eq!(
        (&head["value"]["count"], &head["position"]),
        (&json!(250), &json!(250))
    );
    let past = on(&stage.host, "scan ledger --all --as-of 250 -o ndjson")
        .expect(0)
        .lines();
    assert!(
        past.contains(&json!({ "key": "pair/left", "value": 250 })),
        "{past:?}"
    );
    let pair = on(&stage.host, "query ledger pair --as-of 250 -o json")
        .expect(0)
        .json();
    assert_eq!(pair, json!({ "left": 250, "right": 250 }));
    let early = on(&stage.host, "get ledger head --as-of 9999").expect(4);
    assert!(early.stderr.contains("in the future"), "{early:?}");
    on(&stage.host, "get ledger head --as-of 1 --at-least 2").expect(2);
    deploy(&stage.host, "tally", "--wait").expect(0);
    let part = on(&stage.host, "rebuild tally --key 7").expect(0).stdout;
    let tally = on(&stage.host, "get tally tally/7").expect(0).stdout;
    let said = format!(
        "tally: 7 rebuilt at position 400: {} events, 0 entries written, 0 removed\n",
        tally.trim()
    );
    assert_eq!(
        part, said,
        "every event of the key was folded, and nothing was wrong"
    );
    on(&stage.host, "rebuild tally --prefix 1 -o json")
        .expect(0)
        .json();
    let refused = on(&stage.host, "rebuild ledger --key 7").expect(4);
    assert!(refused.stderr.contains("rebuild all of it"), "{refused:?}");
    on(&stage.host, "rebuild tally --key 7 --manual").expect(2);
}

#[tokio::test]
async fn promotion_of_a_paused_candidate_names_the_pause_at_once() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(300).await;
    stage.assert_ledger_equals_model().await;
    let host = &stage.host;
    on(host, "rebuild ledger --manual --max-rate 10").expect(0);
    on(host, "pause ledger --candidate").expect(0);
    for line in ["promote ledger", "promote ledger --lift-throttle"] {
        let begin = std::time::Instant::now();
        let refused = on(host, line).expect(4).stderr;
        assert!(
            refused.contains("is paused; continue with `foldstream resume ledger --candidate`"),
            "{line}: {refused}"
        );
        assert!(
            begin.elapsed() < std::time::Duration::from_secs(8),
            "{line} waited for nothing"
        );
    }
    on(host, "resume ledger --candidate").expect(0);
    let early = on(host, "promote ledger").expect(4).stderr;
    assert!(early.contains("is still being built"), "{early}");
}

#[tokio::test]
async fn a_wait_that_fails_prints_the_state_and_the_error_for_programs() {
    let host = Host::start().await;
    let bad = new_event("mischief.ada", json!("reject told to"));
    host.client().append(&[bad]).await;
    let module = guests::path("mischief").display().to_string();
    let deploy = ["deploy", &module, "--wait", "-o", "json"];
    let failed = |words: &[&str], shown: fn(&Value) -> &Value| {
        let output = cli::on(&host, words).expect(1);
        let printed = output.json();
        let deployment = shown(&printed);
        assert_eq!(deployment["state"], json!("failed"), "{output:?}");
        assert_eq!(deployment["failure"]["sequence"], json!(1), "{output:?}");
        let error = printed["error"].as_str().expect("a text");
        assert!(error.contains("told to"), "{output:?}");
        assert!(output.stderr.contains(error), "{output:?}");
    };
    failed(&deploy, |printed| &printed["deployment"]);
    failed(&["resume", "mischief", "-o", "json"], |printed| printed);
    // People have it from the error alone.
    let output = cli::on(&host, &["resume", "mischief"]).expect(1);
    assert_eq!(output.stdout, "", "{output:?}");
}
