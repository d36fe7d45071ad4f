//! A bad module cannot hurt its host, nor its neighbours: what it does wrong has a name, and the
//! others continue.

use std::time::Duration;

use foldstream::api::{DeploymentState, Failure, NewEvent};
use foldstream_tests::guests;
use foldstream_tests::stage::{Kind, Stage};
use foldstream_tests::wait;
use serde_json::json;

const MISCHIEF: &str = "mischief";

fn event(data: &str) -> NewEvent {
    NewEvent {
        subject: "mischief.a".to_owned(),
        kind: None,
        id: None,
        time: None,
        headers: std::collections::BTreeMap::new(),
        data: json!(data),
    }
}

/// A host with the ledger and the mischief on one embedded log.
async fn stage() -> Stage {
    stage_with("").await
}

/// The same with lines for the limits of modules.
async fn stage_with(limits: &str) -> Stage {
    // A call that never ends is not waited for longer than it must.
    let config = format!("[modules]\ndeadline = \"1s\"\n{limits}");
    let stage = Stage::start_with(Kind::Embedded, &config).await;
    stage.deploy_ledger().await;
    stage
        .client()
        .deploy(MISCHIEF, &guests::module(MISCHIEF))
        .await;
    stage
}

/// Between two harmless events a bad one: what is before is kept, what is behind waits, the
/// neighbour continues, and the host answers. Returns the failure.
async fn misbehave(verb: &str) -> Failure {
    misbehave_on(stage().await, verb).await
}

async fn misbehave_on(mut stage: Stage, verb: &str) -> Failure {
    let bad = stage
        .client()
        .append(&[event("note before"), event(verb), event("note behind")])
        .await
        .sequences[1];
    let (shown, failure) = stage.client().failed(MISCHIEF).await;
    assert_eq!(failure.sequence, Some(bad), "{verb}: {failure:?}");
    assert_eq!(
        shown.position,
        bad - 1,
        "{verb}: what is before the bad event is kept, and no more"
    );
    let notes = stage.client().entries(MISCHIEF, "").await;
    assert_eq!(notes.len(), 1, "{verb}: {notes:?}");
    assert_eq!(notes[0].value, json!("before"), "{verb}");
    let answer = stage
        .client()
        .query(MISCHIEF, "notes", &json!(null))
        .await
        .expect(200);
    assert_eq!(
        answer.text(),
        "before",
        "{verb}: a stopped deployment still answers"
    );
    skip_in_model_and_publish(&mut stage, 500).await;
    failure
}

/// The ledger continues: sequences of the mischief's events are no events of the ledger.
async fn skip_in_model_and_publish(stage: &mut Stage, count: usize) {
    let last = stage.publish(count).await;
    stage.assert_ledger_equals_model().await;
    assert_eq!(stage.client().show("ledger").await.position, last);
}

macro_rules! mischief {
    ($($claim:ident: $verb:expr => $kind:expr, $says:expr;)*) => {
        $(#[tokio::test]
        async fn $claim() {
            let failure = misbehave($verb).await;
            assert_eq!(failure.kind, $kind, "{failure:?}");
            assert!(failure.message.contains($says), "says nothing of `{}`: {failure:?}", $says);
        })*
    };
}

mischief! {
    an_endless_loop_meets_its_deadline: "loop" => "deadline", "longer than";
    a_trap_is_a_trap: "trap" => "trap", "unreachable";
    unbounded_memory_meets_its_limit: "grow" => "limit", "memory";
    unbounded_recursion_meets_the_end_of_the_stack: "recurse" => "limit", "stack";
    unbounded_frames_in_memory_meet_its_end: "recurse-in-memory" => "trap", "out of bounds";
    a_rejected_event_stops_with_the_guests_words: "reject this one is bad" => "rejected", "this \
        one is bad";
    a_retried_event_stops_in_the_end: "retry not yet" => "retry", "not yet";
    an_event_half_done_leaves_nothing: "half" => "rejected", "half done";
    a_value_too_large_is_refused: "big-value 2000000" => "limit", "value";
    a_key_too_long_is_refused: "big-key 1025" => "limit", "key";
    an_empty_key_is_refused: "big-key 0" => "limit", "key";
    too_many_keys_at_once_are_refused: "many-keys 65537" => "limit", "65";
    too_many_entries_at_once_are_refused: "many-entries 65537" => "limit", "65";
    state_beyond_its_limit_is_refused: "fill 8388608" => "limit", "state-bytes";
}

#[tokio::test]
async fn endless_host_calls_meet_their_limit_before_the_deadline() {
    // Unoptimised, the million calls that are usual take longer than the deadline of this module.
    let stage = stage_with("host_calls_max = 10000\n").await;
    let failure = misbehave_on(stage, "call-storm").await;
    assert!(
        failure.kind == "limit" && failure.message.contains("host-calls"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn a_flood_of_tiny_writes_meets_a_limit_before_it_takes_the_memory_of_the_host() {
    let stage = Stage::start_with(Kind::Embedded, "[modules]\ndeadline = \"30s\"\n").await;
    stage
        .client()
        .deploy(MISCHIEF, &guests::module(MISCHIEF))
        .await;
    stage.client().append(&[event("many-tiny 2000000")]).await;
    let (_, failure) = stage.client().failed(MISCHIEF).await;
    assert!(
        failure.kind == "limit" && failure.message.contains("batch-entries: "),
        "{failure:?}"
    );
    let peak = stage.host.peak_memory_bytes();
    assert!(peak < 300 << 20, "{peak} bytes");
}

/// Queries that grow until they are stopped: each may have 32 MiB.
#[tokio::test]
async fn many_greedy_queries_leave_the_host_and_the_fold_their_memory() {
    let mut stage = stage_with("[limits]\nmemory_bytes = \"160MiB\"\n").await;
    let before = stage.host.peak_memory_bytes();
    let greedy: Vec<_> = (0..40)
        .map(|_| {
            let client = stage.client().clone();
            tokio::spawn(async move { client.query(MISCHIEF, "grow", &json!(null)).await })
        })
        .collect();
    skip_in_model_and_publish(&mut stage, 2_000).await;
    let mut refused = 0;
    for answer in greedy {
        let answer = answer.await.expect("it ends");
        refused += usize::from(answer.status == 503 && answer.text().contains("host-memory: "));
    }
    assert!(refused > 0, "some met the budget of the host and were told");
    let grown = stage.host.peak_memory_bytes() - before;
    assert!(grown < 200 << 20, "grew by {grown} bytes");
}

#[tokio::test]
async fn a_rejected_event_is_not_tried_again_and_a_retried_one_as_often_as_its_policy_says() {
    assert_eq!(misbehave("reject no").await.attempts, 1);
    assert_eq!(
        misbehave("retry later").await.attempts,
        3,
        "the manifest says 3 attempts"
    );
}

/// No attempt of any event failed so far, not even one that passed the next time.
async fn never_retried(stage: &Stage, name: &str) {
    let metrics = stage.client().get("/metrics").await.expect(200).text();
    let retries = format!("foldstream_retries_total{{deployment=\"{name}\"}} 0");
    assert!(
        metrics.lines().any(|line| line == retries),
        "an event was blamed for what was kept before it: {metrics}"
    );
}

#[tokio::test]
async fn what_an_instance_kept_of_earlier_events_is_no_fault_of_the_next_one() {
    let stage = stage().await;
    // Each fits by itself, and an instance may have 32 MiB.
    for _ in 0..12 {
        let last = stage
            .client()
            .append(&[event("keep 5")])
            .await
            .last_sequence;
        let shown = stage.client().reached(MISCHIEF, last).await;
        assert_eq!(shown.failure, None);
    }
    never_retried(&stage, MISCHIEF).await;
    let last = stage
        .client()
        .append(&[event("keep 40")])
        .await
        .last_sequence;
    let (shown, failure) = stage.client().failed(MISCHIEF).await;
    assert_eq!(
        (shown.position, failure.kind.as_str(), failure.sequence),
        (last - 1, "limit", Some(last))
    );
    assert!(
        failure.message.contains("memory-bytes"),
        "the limit is named: {failure:?}"
    );
}

/// The same module with a maximum of its own: 16 MiB of memory, in pages.
fn with_own_maximum(module: &[u8]) -> Vec<u8> {
    let text = wasmprinter::print_bytes(module).expect("a component can be printed");
    let (mut changed, mut count) = (String::new(), 0);
    for line in text.lines() {
        let memory = line
            .trim_start()
            .strip_prefix("(memory (;0;) ")
            .and_then(|rest| rest.strip_suffix(')'));
        match memory.filter(|pages| pages.bytes().all(|byte| byte.is_ascii_digit())) {
            Some(pages) => {
                count += 1;
                changed.push_str(&line.replace(pages, &format!("{pages} 256")));
            }
            None => changed.push_str(line),
        }
        changed.push('\n');
    }
    assert_eq!(count, 1, "it has one memory");
    wat::parse_str(&changed).expect("it is still a component")
}

#[tokio::test]
async fn a_module_at_its_own_maximum_of_memory_blames_no_event_for_what_it_kept() {
    let stage = stage().await;
    stage
        .client()
        .deploy("bounded", &with_own_maximum(&guests::module(MISCHIEF)))
        .await;
    for _ in 0..12 {
        let last = stage
            .client()
            .append(&[event("keep 5")])
            .await
            .last_sequence;
        let shown = stage.client().reached("bounded", last).await;
        assert_eq!(shown.failure, None);
    }
    never_retried(&stage, "bounded").await;
    let last = stage
        .client()
        .append(&[event("keep 20")])
        .await
        .last_sequence;
    let (shown, failure) = stage.client().failed("bounded").await;
    assert_eq!(
        (shown.position, failure.kind.as_str(), failure.sequence),
        (last - 1, "limit", Some(last))
    );
    assert!(
        failure.message.contains("memory-bytes") && failure.message.contains("no memory left"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn a_deployment_whose_module_hangs_can_be_deleted_while_others_are_created() {
    let mut stage = Stage::start_with(Kind::Embedded, "[modules]\ndeadline = \"8s\"\n").await;
    stage.deploy_ledger().await;
    stage
        .client()
        .deploy(MISCHIEF, &guests::module(MISCHIEF))
        .await;
    stage
        .client()
        .append(&[event("note before"), event("loop")])
        .await;
    stage
        .client()
        .show_when(MISCHIEF, "apply the first", |shown| shown.instances > 0)
        .await;
    let client = stage.client().clone();
    let delete = tokio::spawn(async move {
        let request = client.request(reqwest::Method::DELETE, "/v1/deployments/mischief");
        client.send(request).await.status
    });
    wait::until("the deployment to be gone", || async {
        (stage.client().get("/v1/deployments/mischief").await.status == 404).then_some(())
    })
    .await;
    stage
        .client()
        .deploy("other", &guests::module("ledger"))
        .await;
    assert!(
        !delete.is_finished(),
        "the module still hangs, and nobody waits for it"
    );
    skip_in_model_and_publish(&mut stage, 10).await;
    assert_eq!(delete.await.expect("it ends"), 204);
    // Nothing is left of it when its name is used again.
    stage
        .client()
        .upload(guests::module(MISCHIEF), "")
        .await
        .expect(201);
}

#[tokio::test]
async fn deployments_without_work_leave_their_instances_to_those_that_have_some() {
    let mut stage = Stage::start_with(Kind::Embedded, "[modules]\ninstances_max = 2\n").await;
    stage.publish(100).await;
    for number in 0..5 {
        stage
            .client()
            .deploy(&format!("ledger-{number}"), &guests::module("ledger"))
            .await;
    }
    for number in 0..5 {
        stage.assert_equals_model(&format!("ledger-{number}")).await;
    }
    stage.publish(100).await;
    for number in 0..5 {
        stage.assert_equals_model(&format!("ledger-{number}")).await;
        let shown = stage.client().show(&format!("ledger-{number}")).await;
        assert!(
            shown.failure.is_none_or(|failure| failure.kind == "busy"),
            "no event is to blame"
        );
    }
    wait::until("a query to find a place", || async {
        (stage
            .client()
            .query("ledger-0", "pair", &json!(null))
            .await
            .status
            == 200)
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_module_that_hangs_keeps_no_log_from_its_retention() {
    let config = "[modules]\ndeadline = \"20s\"\n[rollout]\nkeep_previous = \"100ms\"\n\
                  [sources.events]\nkind = \"embedded\"\nmax_bytes = \"100KiB\"\n";
    let mut stage = Stage::start_with(Kind::Embedded, config).await;
    stage.deploy_ledger().await;
    stage.publish(10).await;
    stage.client().append(&[event("loop")]).await;
    // What hangs is a candidate that is given up; who gives it up waits, and so does what is to be
    // retired.
    stage
        .client()
        .deploy_with("ledger", &guests::module(MISCHIEF), "")
        .await;
    stage
        .client()
        .show_when("ledger", "have a candidate that hangs", |shown| {
            shown.instances >= 2
        })
        .await;
    let (client, next) = (stage.client().clone(), guests::release("ledger", 1));
    let deploy = tokio::spawn(async move {
        client
            .deploy_with("ledger", &next, "&strategy=inherit")
            .await
    });
    stage
        .client()
        .show_when("ledger", "have its new code", |shown| shown.generation == 3)
        .await;
    let first_sequence = async || {
        let sources: serde_json::Value = stage.client().get("/v1/sources").await.expect(200).json();
        sources["sources"][0]["first_sequence"]
            .as_u64()
            .expect("a number")
    };
    assert_eq!(first_sequence().await, 1);
    let large = json!(format!("note {}", "x".repeat(50_000)));
    let events: Vec<_> = (0..4)
        .map(|_| NewEvent {
            data: large.clone(),
            ..event("")
        })
        .collect();
    // Twice: what waits may begin to wait after the first time.
    for _ in 0..2 {
        let first = first_sequence().await;
        stage.client().append(&events).await;
        wait::until("retention", || async {
            (first_sequence().await > first).then_some(())
        })
        .await;
    }
    assert!(!deploy.is_finished(), "the candidate still hangs");
    deploy.await.expect("it ends");
}

#[tokio::test]
async fn a_log_storm_is_cut_off_and_the_module_continues() {
    let mut stage = stage().await;
    let last = stage
        .client()
        .append(&[event("log-storm 20000"), event("note behind")])
        .await
        .last_sequence;
    stage.client().reached(MISCHIEF, last).await;
    let output = stage.host.process().output();
    assert!(output.len() < 4 << 20, "{} bytes of log", output.len());
    skip_in_model_and_publish(&mut stage, 100).await;
}

#[tokio::test]
async fn a_log_storm_of_many_calls_is_cut_off_as_one_of_a_single_call_is() {
    let stage = stage_with("[pipeline]\nbatch_events = 1\n").await;
    let storm = vec![event("log-storm 100"); 100];
    let last = stage.client().append(&storm).await.last_sequence;
    stage.client().reached(MISCHIEF, last).await;
    stage.host.prints("lines are dropped").await;
    let output = stage.host.output();
    // All of it would be 10 MB, and each call is within its own limit.
    assert!(output.len() < 3 << 20, "{} bytes of log", output.len());
}

#[tokio::test]
async fn a_failed_deployment_can_be_resumed_and_fails_again_at_the_same_event() {
    let stage = stage().await;
    stage
        .client()
        .append(&[event("note before"), event("trap")])
        .await;
    let (first, _) = stage.client().failed(MISCHIEF).await;
    stage
        .client()
        .post("/v1/deployments/mischief/resume", "application/json", "")
        .await
        .expect(200);
    let (again, failure) = stage.client().failed(MISCHIEF).await;
    assert_eq!(
        (again.position, failure.kind.as_str()),
        (first.position, "trap")
    );
}

#[tokio::test]
async fn a_failure_survives_a_restart() {
    let mut stage = stage().await;
    stage.client().append(&[event("trap")]).await;
    stage.client().failed(MISCHIEF).await;
    stage.host.restart().await;
    let (_, failure) = stage.client().failed(MISCHIEF).await;
    assert_eq!(failure.kind, "trap");
    skip_in_model_and_publish(&mut stage, 100).await;
}

#[tokio::test]
async fn queries_that_misbehave_are_refused_and_the_deployment_continues() {
    let stage = stage().await;
    let client = stage.client();
    client.append(&[event("note one")]).await;
    client
        .show_when(MISCHIEF, "apply", |shown| shown.position == 1)
        .await;
    let ask = async |name: &str, args: serde_json::Value| client.query(MISCHIEF, name, &args).await;
    ask("loop", json!(null)).await.problem(504, "timeout");
    assert!(ask("trap", json!(null)).await.status.as_u16() >= 400);
    assert!(ask("grow", json!(null)).await.status.as_u16() >= 400);
    ask("missing", json!(null)).await.problem(404, "not-found");
    ask("nothing-of-the-kind", json!(null))
        .await
        .problem(404, "not-found");
    let invalid = ask("invalid", json!(null)).await.problem(400, "invalid");
    assert!(invalid.detail.contains("told to refuse"), "{invalid:?}");
    assert!(
        ask("fail", json!(null))
            .await
            .text()
            .contains("told to fail")
    );
    assert!(
        ask("write", json!(null)).await.status.as_u16() >= 400,
        "a query cannot write"
    );
    client
        .entry(MISCHIEF, "written-by-a-query")
        .await
        .problem(404, "not-found");
    assert!(
        ask("big", json!(100_000_000)).await.status.as_u16() >= 400,
        "an answer has a limit"
    );
    assert_eq!(
        ask("args", json!({ "a": [1, "é"] }))
            .await
            .expect(200)
            .value(),
        json!({ "a": [1, "é"] })
    );
    assert_eq!(ask("notes", json!(null)).await.expect(200).text(), "one");
    assert_eq!(client.show(MISCHIEF).await.state, DeploymentState::Live);
}

#[tokio::test]
async fn many_stuck_queries_do_not_stop_applying_nor_the_neighbour() {
    let mut stage = stage_with("[serve]\nqueries_max = 8\n").await;
    let stuck: Vec<_> = (0..40)
        .map(|_| {
            let client = stage.client().clone();
            tokio::spawn(async move {
                client
                    .query(MISCHIEF, "loop", &json!(null))
                    .await
                    .status
                    .as_u16()
            })
        })
        .collect();
    stage.host.prints("a query loops").await;
    // They have half of the places, and the line before them.
    for _ in 0..5 {
        stage
            .client()
            .query("ledger", "pair", &json!(null))
            .await
            .expect(200);
    }
    skip_in_model_and_publish(&mut stage, 2_000).await;
    for answer in stuck {
        let status = answer.await.expect("it ends");
        assert!([429, 503, 504].contains(&status), "{status}");
    }
}

#[tokio::test]
async fn a_query_whose_client_left_keeps_its_place_until_it_ends() {
    let stage = stage_with("[serve]\nqueries_max = 1\n").await;
    let client = stage.client().clone();
    client
        .show_when(MISCHIEF, "be ready", |shown| {
            shown.state == DeploymentState::Live
        })
        .await;
    let looping = tokio::spawn({
        let client = client.clone();
        async move { client.query(MISCHIEF, "loop", &json!(null)).await }
    });
    stage.host.prints("a query loops").await;
    looping.abort();
    // The answer comes once there is a place, and so once the other query has reached its deadline.
    wait::until("a place", || async {
        (client.query(MISCHIEF, "args", &json!(1)).await.status == 200).then_some(())
    })
    .await;
    let metrics = client.get("/metrics").await.expect(200).text();
    let ended = metrics.lines().find(|line| {
        line.starts_with("foldstream_query_duration_seconds_count{deployment=\"mischief\"}")
    });
    assert!(
        ended.is_some_and(|line| line.ends_with(" 2")),
        "the first one still runs: {ended:?}"
    );
}

#[tokio::test]
async fn crashing_again_and_again_does_not_grow_the_host() {
    let stage = Stage::start_with(
        Kind::Embedded,
        "[pipeline]\nattempts = 200\ninitial_backoff = \"1ms\"\nmax_backoff = \"10ms\"\n",
    )
    .await;
    stage
        .client()
        .deploy(MISCHIEF, &guests::module(MISCHIEF))
        .await;
    let before = stage.host.memory_bytes();
    for round in 0..30 {
        stage.client().append(&[event("grow")]).await;
        stage.client().failed(MISCHIEF).await;
        stage
            .client()
            .post("/v1/deployments/mischief/resume", "application/json", "")
            .await
            .expect(200);
        stage
            .client()
            .show_when(MISCHIEF, &format!("fail in round {round}"), |shown| {
                shown.failure.is_some()
            })
            .await;
    }
    let grown = stage.host.memory_bytes().saturating_sub(before);
    assert!(grown < 128 << 20, "grew by {grown} bytes");
}

#[tokio::test]
async fn many_deploys_at_once_come_to_their_turn() {
    let stage = Stage::start(Kind::Embedded).await;
    let deploys: Vec<_> = (0..24)
        .map(|number| {
            let (client, module) = (stage.client().clone(), guests::release("ledger", number));
            tokio::spawn(async move {
                client
                    .upload(module, &format!("?name=ledger-{number}"))
                    .await
            })
        })
        .collect();
    for answer in deploys {
        answer.await.expect("it ends").expect(201);
    }
}

/// Uploads something that must be refused, and returns what the host says about it.
async fn refuse(module: Vec<u8>) -> String {
    let stage = Stage::start(Kind::Embedded).await;
    let problem = stage
        .client()
        .upload(module, "?name=bad")
        .await
        .problem(422, "refused");
    stage
        .client()
        .get("/v1/deployments/bad")
        .await
        .problem(404, "not-found");
    problem.detail
}

#[tokio::test]
async fn what_is_no_module_is_refused() {
    let good = guests::module("ledger");
    refuse(b"hello".to_vec()).await;
    refuse(good[..good.len() / 2].to_vec()).await;
    let mut broken = good.clone();
    for at in (broken.len() / 3..broken.len() / 2).step_by(97) {
        broken[at] ^= 0x5a;
    }
    refuse(broken).await;
}

#[tokio::test]
async fn a_component_of_another_world_is_refused() {
    let detail = refuse(wat::parse_str("(component)").expect("it is WAT")).await;
    assert!(
        detail.contains("projection") || detail.contains("export"),
        "{detail}"
    );
    let detail =
        refuse(wat::parse_str("(module (func (export \"run\")))").expect("it is WAT")).await;
    assert!(!detail.is_empty());
}

#[tokio::test]
async fn a_forbidden_import_is_refused_by_name() {
    let component =
        r#"(component (import "evil:network/sockets@1.0.0" (instance (export "open" (func)))))"#;
    let detail = refuse(wat::parse_str(component).expect("it is WAT")).await;
    assert!(detail.contains("evil:network/sockets"), "{detail}");
}

#[tokio::test]
async fn a_module_larger_than_the_limit_is_refused() {
    let stage = Stage::start_with(Kind::Embedded, "[modules]\nupload_bytes_max = 1000\n").await;
    stage
        .client()
        .upload(guests::module("ledger"), "?name=large")
        .await
        .problem(413, "too-large");
}

#[tokio::test]
async fn a_module_that_asks_for_more_than_the_host_gives_is_refused() {
    let stage = Stage::start_with(
        Kind::Embedded,
        "[modules]\nmemory_bytes = \"8MiB\"\nmemory_bytes_max = \"16MiB\"\n",
    )
    .await;
    let problem = stage
        .client()
        .upload(guests::module(MISCHIEF), "")
        .await
        .problem(422, "refused");
    assert!(problem.detail.contains("memory"), "{problem:?}");
}

#[tokio::test]
async fn compiling_for_too_long_is_ended() {
    let stage = Stage::start_with(Kind::Embedded, "[modules]\ncompile_time_max = \"1ms\"\n").await;
    let begin = std::time::Instant::now();
    let answer = stage.client().upload(guests::module("ledger"), "").await;
    assert_eq!(answer.status, 422, "{}", answer.text());
    assert!(begin.elapsed() < Duration::from_secs(20));
    stage.client().get("/livez").await.expect(200);
}
