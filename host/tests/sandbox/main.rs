//! The sandbox: what a module may not do, with real components in the real engine over real state.
//!
//! 1. the way of a batch: lowering, state functions, failures, headers
//! 2. limits: time, memory, stack, host calls, log, sizes
//! 3. queries
//! 4. the closed WASI
//! 5. uploads, compilation and its cache, in `uploads.rs`
//! 6. migration, in `migration.rs`
//! 7. defects of the host itself, in `defects.rs`

mod bed;
mod defects;
mod migration;
mod uploads;

use std::io::Write as _;
use std::process::Command;
use std::slice::from_ref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldstream::event::{Event, Payload};
use foldstream::memory::{self, Memory};
use foldstream::module::{ApplyError, Error, Identity, QueryError};
use foldstream::state::{self, Store};

use bed::*;

// ---- 1. the way of a batch ----

#[test]
fn manifest_is_read_and_shown() {
    let module = load(shared(), "");
    let manifest = module.manifest();
    assert_eq!(manifest.name, "probe");
    assert!(manifest.subjects.matches("probe.x.y"));
    assert!(!manifest.wants_headers);
    assert_eq!(manifest.deadline, Some(Duration::from_millis(300)));
    let info = module.info();
    assert_eq!(
        (info.kind.name(), info.key_rule.as_str(), info.state_version),
        ("projection", "subject-token:2", 3)
    );
    assert_eq!(
        (info.limits.deadline_ms, info.limits.memory_bytes),
        (Some(300), manifest.memory_bytes)
    );
    assert_eq!(info.error_policy.attempts, manifest.attempts);
    assert_eq!(info.queries[0].name, "echo");
    assert!(
        info.imports
            .contains(&"foldstream:module/state@0.1.0".to_owned()),
        "{:?}",
        info.imports
    );
}

#[test]
fn every_field_of_an_event_arrives() {
    let mut bed = Bed::probe();
    let mut binary = event(2, "echo", "");
    binary.data = Payload::Bytes(Bytes::from_static(&[0, 255]));
    bed.apply(&[event(1, "echo", "täxt"), binary, event(3, "echo", "")])
        .expect("applies");
    assert_eq!(
        bed.value("echo/0001").expect("there"),
        "1 1700000000000000001 probe.subject echo [] täxt"
    );
    assert_eq!(
        bed.value("echo/0002").expect("there"),
        "2 1700000000000000002 probe.subject echo [] [0, 255]"
    );
    assert_eq!(
        bed.value("echo/0003").expect("there"),
        "3 1700000000000000003 probe.subject echo [] "
    );
}

#[test]
fn headers_arrive_where_the_manifest_asks_for_them() {
    let mut bed = Bed::new(load(shared(), "headers"));
    let mut bare = event(2, "echo", "b");
    bare.headers.clear();
    bed.apply(&[event(1, "echo", "a"), bare]).expect("applies");
    let first = bed.value("echo/0001").expect("there");
    assert!(
        first.ends_with(r#"echo [("ce-id", "42"), ("x", "ü")] a"#),
        "{first}"
    );
    assert!(
        bed.value("echo/0002")
            .expect("there")
            .ends_with("echo [] b")
    );
}

#[test]
fn state_functions_see_the_writes_of_the_batch() {
    let mut bed = Bed::probe();
    let events: Vec<_> = (1..=5)
        .map(|sequence| event(sequence, "echo", "x"))
        .collect();
    bed.apply(&events).expect("applies");
    bed.apply(&[
        event(6, "count", ""),
        event(7, "count", ""),
        event(2, "scan", ""),
    ])
    .expect("applies");
    assert_eq!(bed.value("count").expect("there"), "2");
    assert_eq!(
        bed.value("scan").expect("there"),
        "echo/0001,echo/0002 true | echo/0005,echo/0004 true"
    );
    bed.apply(&[event(5_000, "put-many", "v")])
        .expect("what was put is got back");
    assert_eq!(bed.value("many/00003").expect("there"), "v");
    assert_eq!(
        bed.value("many/00002"),
        None,
        "an entry without a value deletes"
    );
}

#[test]
fn empty_scan_limit_gives_an_empty_page() {
    let mut bed = Bed::probe();
    bed.apply(&[event(1, "echo", "x"), event(0, "scan", "")])
        .expect("applies");
    assert_eq!(bed.value("scan").expect("there"), " true |  false");
}

#[test]
fn failures_name_their_event_and_spend_the_instance() {
    let mut bed = Bed::probe();
    let error = bed
        .apply(&[event(1, "count", ""), event(2, "reject", "no good")])
        .expect_err("fails");
    assert!(
        matches!(&error, ApplyError::Rejected { index: 1, message } if message == "no good"),
        "{error:?}"
    );
    assert_eq!(bed.value("count"), None, "the writes of the batch are gone");
    let error = bed
        .apply(&[event(1, "count", "")])
        .expect_err("the instance is spent");
    assert!(error.to_string().contains("failed before"), "{error}");
    bed.works_again();
    let error = bed.apply(&[event(3, "retry", "later")]).expect_err("fails");
    assert!(
        matches!(&error, ApplyError::Retry { index: 0, message } if message == "later"),
        "{error:?}"
    );
}

#[test]
fn failure_of_an_event_outside_the_batch_is_named() {
    let mut bed = Bed::probe();
    let error = bed.apply(&[event(7, "blame", "x")]).expect_err("fails");
    assert!(
        matches!(&error, ApplyError::Trap(_))
            && error.to_string().contains("event 7 of a batch of 1"),
        "{error:?}"
    );
}

#[test]
fn long_failure_message_is_cut() {
    let mut bed = Bed::probe();
    let error = bed
        .apply(&[event(1, "reject", &"ü".repeat(4_000))])
        .expect_err("fails");
    let ApplyError::Rejected { message, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(message.len(), 4_096);
}

// ---- 2. limits ----

#[test]
fn endless_loop_is_cut_off() {
    let mut bed = Bed::probe();
    let begin = Instant::now();
    let error = bed.apply(&[event(1, "loop", "")]).expect_err("never ends");
    let ApplyError::Deadline(deadline) = error else {
        panic!("{error:?}")
    };
    assert_eq!(
        deadline,
        Duration::from_millis(300),
        "the manifest's deadline"
    );
    assert!(begin.elapsed() >= deadline, "not before the deadline");
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "after {:?}",
        begin.elapsed()
    );
    bed.works_again();
}

#[test]
fn memory_growth_reaches_its_limit() {
    let mut bed = Bed::probe();
    assert_eq!(bed.limit(&[event(1, "grow", "")]), "memory-bytes");
    assert!(bed.instance.memory_bytes() < 8 << 20);
}

/// A core module that does this at its start, and then has all exports of a projection.
fn at_start(code: &str) -> Bytes {
    let module = format!(
        r#"(module
            (table $table 1 funcref)
            (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
            (func (export "manifest") (result i32) unreachable)
            (func (export "apply") (param i32 i32) (result i32) unreachable)
            (func (export "query") (param i32 i32 i32 i32 i32) (result i32) unreachable)
            (func $begin {code})
            (start $begin))"#
    );
    Bytes::from(wat::parse_str(module).expect("it is WAT"))
}

#[test]
fn table_growth_reaches_its_limit() {
    let grow = |elements: u32| {
        let failed = "(i32.const -1)";
        let code = format!(
            "(if (i32.eq (table.grow $table (ref.null func) (i32.const {elements})) {failed}) \
             (then unreachable))"
        );
        let accepted = shared()
            .accept(at_start(&code))
            .expect("the table is small at first");
        shared()
            .load(&accepted)
            .expect_err("it does not start, or has no manifest")
            .to_string()
    };
    let beyond = grow(100_000);
    assert!(
        beyond.contains("100001 table elements; this host allows 100000"),
        "{beyond}"
    );
    let within = grow(99_999);
    assert!(
        within.contains("unreachable") && !within.contains("table"),
        "{within}"
    );
}

#[test]
fn deep_recursion_reaches_the_stack_limit() {
    let mut bed = Bed::probe();
    bed.apply(&[event(100, "recurse", "")])
        .expect("a little is fine");
    // The guest's own stack is in its memory and ends with a trap of its own; the host's is shorter
    // here.
    let (engine, _folder) = engine(|options| options.stack_bytes_max = 16 << 10);
    let mut bed = Bed::new(load(&engine, ""));
    assert_eq!(bed.limit(&[event(5_000, "recurse", "")]), "stack");
}

#[test]
fn trap_costs_one_instance_and_says_where() {
    let mut bed = Bed::probe();
    let error = bed
        .apply(&[event(1, "count", ""), event(2, "trap", "")])
        .expect_err("traps");
    let ApplyError::Trap(text) = &error else {
        panic!("{error:?}")
    };
    assert!(
        text.contains("unreachable") && text.contains("\n  at ") && text.len() <= 4_096,
        "{text}"
    );
    assert_eq!(bed.value("count"), None);
    bed.works_again();
}

#[test]
fn host_call_storm_reaches_its_limit() {
    let (engine, _folder) = engine(|options| options.host_calls_max = 1_000);
    let mut bed = Bed::new(load(&engine, ""));
    bed.apply(&[event(500, "storm", "")])
        .expect("as many as allowed");
    assert_eq!(bed.limit(&[event(501, "storm", "")]), "host-calls");
}

#[test]
fn huge_log_is_cut_and_counted() {
    let mut bed = Bed::probe();
    let log = logged(|| {
        bed.apply(&[event(10_000, "log", "chatter")])
            .expect("applies");
        bed.apply(&[
            event(10_001, "log", &"y".repeat(5_000)),
            event(10_002, "count", ""),
        ])
        .expect("applies");
    });
    let lines = log.lines().filter(|line| line.contains("chatter")).count();
    assert!((100..2_000).contains(&lines), "{lines} lines");
    assert!(
        log.contains("deployment=\"probe\""),
        "lines name the deployment"
    );
    assert_eq!(
        log.matches("the rest was dropped").count(),
        2,
        "told once per call"
    );
    assert!(
        log.contains(&"y".repeat(4_096)) && !log.contains(&"y".repeat(4_097)),
        "a message is cut"
    );
}

#[test]
fn sizes_have_limits() {
    let mut bed = Bed::probe();
    assert_eq!(
        bed.limit(&[event(1, "get", &"k".repeat(1_025))]),
        "key-bytes"
    );
    assert_eq!(bed.limit(&[event(1, "get", "")]), "key-bytes");
    assert_eq!(
        bed.limit(&[event((1 << 20) + 1, "big-value", "")]),
        "value-bytes"
    );
    assert_eq!(bed.limit(&[event(65_537, "many", "k")]), "keys-per-call");
}

#[test]
fn transfer_has_a_limit() {
    // The list names one and the same large string again and again: little memory of the guest's,
    // much of the host's.
    let mut bed = Bed::new(load(shared(), ""));
    assert_eq!(bed.limit(&[event(60_000, "overlap", "")]), "transfer-bytes");
}

#[test]
fn answer_of_get_many_has_a_limit() {
    // From the file each value is a copy of its own: little memory of the state's, much of the
    // host's.
    let mut bed = Bed::probe();
    bed.apply(&[event(1 << 20, "big-value", "")])
        .expect("the largest value");
    bed.store.flush().expect("flushes");
    assert_eq!(bed.limit(&[event(1_500, "many", "big")]), "transfer-bytes");
    bed.apply(&[event(2, "many", "big")])
        .expect("a few of them are fine");
}

#[test]
fn instances_have_a_limit() {
    let (engine, _folder) = engine(|options| options.instances_max = 2);
    let bed = Bed::new(load(&engine, ""));
    let second = bed.module.instantiate(&identity()).expect("the second");
    let error = bed.module.instantiate(&identity()).expect_err("no third");
    assert!(matches!(error, Error::Busy(_)), "{error}");
    assert!(error.to_string().contains("all 2 places"), "{error}");
    assert!(matches!(bed.query("echo", "x"), Err(QueryError::Busy)));
    drop(second);
    bed.query("echo", "x").expect("there is room again");
}

/// The probe may have 8 MiB, and starts with a little more than 1.
const PROBE_BYTES: u64 = 8 << 20;

#[test]
fn memory_that_the_host_lacks_is_no_fault_of_a_module_and_comes_back() {
    let memory = Memory::new(4 * PROBE_BYTES);
    let (engine, _folder) = engine(|options| options.memory = memory.clone());
    let module = load(&engine, "");
    let code = memory.used();
    assert!(code > 0, "native code is counted");
    let mut bed = Bed::new(Arc::clone(&module));
    // Enough for what is there, and for little more.
    let mut others = memory.reservation(memory::Purpose::Fold);
    others
        .grow_to(memory.most_of_one() - memory.used())
        .expect("there is enough");
    let error = bed
        .apply(&[event(1, "grow", "")])
        .expect_err("there is no memory");
    assert!(
        matches!(&error, ApplyError::Busy(shortage) if shortage.to_string().starts_with("host-memory: ")),
        "{error:?}"
    );
    let error = bed.query("grow", "").expect_err("nor for a query");
    assert!(
        matches!(&error, QueryError::Short(shortage) if shortage.to_string().starts_with("host-memory: ")),
        "{error:?}"
    );
    drop(others);
    bed.works_again();
    assert_eq!(
        bed.limit(&[event(2, "grow", "")]),
        "memory-bytes",
        "its own limit is its own fault"
    );
    drop(bed);
    assert_eq!(memory.used(), code, "all but the code comes back");
    drop((module, engine));
    assert_eq!(memory.used(), 0);
}

#[test]
fn batch_of_many_tiny_writes_is_charged_for_each_of_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let memory = Memory::new(64 << 20);
    let options = state::Options {
        memory: memory.clone(),
        ..state::Options::default()
    };
    let (_store, mut writer) =
        Store::open(&folder.path().join("state.redb"), options, |_| {}).expect("state opens");
    writer.begin();
    let refused = (0..2_000_000)
        .find_map(|key| writer.put(&format!("{key:x}"), None).err())
        .expect("it has a limit");
    assert!(
        matches!(
            refused,
            state::Error::Limit {
                limit: "batch-bytes",
                ..
            }
        ),
        "{refused}"
    );
    assert!(memory.used() >= 16 << 20, "{} bytes", memory.used());
    writer.discard();
    assert_eq!(memory.used(), 0);
    let mut others = memory.reservation(memory::Purpose::Fold);
    others
        .grow_to(memory.most_of_one())
        .expect("there is enough");
    let value = Payload::Bytes(vec![0; 1 << 20].into());
    let short = (0..20)
        .find_map(|key| writer.put(&format!("{key}"), Some(value.clone())).err())
        .expect("there is no memory");
    assert!(
        matches!(short, state::Error::Busy(_)),
        "a shortage is no limit of the module: {short}"
    );
}

#[test]
fn module_that_needs_more_than_the_host_gives_is_refused() {
    let accepted = shared().accept(guest("")).expect("accepted");
    let error = |memory_bytes_max| {
        let (engine, _folder) = engine(|options| options.memory_bytes_max = memory_bytes_max);
        engine.load(&accepted).expect_err("it needs more")
    };
    let start = error(1 << 20);
    assert!(
        matches!(&start, Error::Refused(text) if text.contains("memory")),
        "{start}"
    );
    let later = error(4 << 20);
    assert!(
        matches!(&later, Error::Manifest(text) if text.contains("memory-bytes is 8388608")),
        "{later}"
    );
}

#[test]
fn little_address_space_is_enough() {
    const LIMITED: &str = "FOLDSTREAM_TEST_LIMITED";
    if std::env::var_os(LIMITED).is_some() {
        let limit = rustix::process::Rlimit {
            current: Some(8 << 30),
            maximum: Some(8 << 30),
        };
        rustix::process::setrlimit(rustix::process::Resource::As, limit).expect("sets the limit");
        let mut bed = Bed::probe();
        bed.apply(&[event(1, "count", "")]).expect("applies");
        assert_eq!(bed.limit(&[event(1, "grow", "")]), "memory-bytes");
        std::io::stdout()
            .write_all(b"went well\n")
            .expect("the parent reads");
        return;
    }
    guest("");
    let output = Command::new(std::env::current_exe().expect("has a path"))
        .args(["--exact", "little_address_space_is_enough", "--nocapture"])
        .env(LIMITED, "1")
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("went well"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

// ---- 3. queries ----

#[test]
fn query_reads_a_snapshot() {
    let mut bed = Bed::probe();
    bed.apply(&[event(1, "count", "")]).expect("applies");
    assert_eq!(
        bed.query("get", "count").expect("answers"),
        Payload::from("1")
    );
    assert_eq!(
        bed.query("echo", "ünd").expect("answers"),
        Payload::from("ünd")
    );
    assert!(matches!(
        bed.query("get", "nothing"),
        Err(QueryError::NotFound)
    ));
    assert!(matches!(
        bed.query("nonsense", ""),
        Err(QueryError::UnknownQuery)
    ));
    assert!(
        matches!(bed.query("invalid", ""), Err(QueryError::InvalidArguments(text)) if text == "not so")
    );
    assert!(matches!(bed.query("fail", ""), Err(QueryError::Failed(text)) if text == "on purpose"));
}

#[test]
fn write_in_a_query_is_refused() {
    let bed = Bed::probe();
    let error = bed.query("write", "x").expect_err("refused");
    assert!(
        matches!(&error, QueryError::Failed(text) if text.contains("a query can only read")),
        "{error}"
    );
    assert_eq!(bed.value("written"), None);
}

#[test]
fn query_has_the_same_limits() {
    let bed = Bed::probe();
    assert!(matches!(
        bed.query("loop", ""),
        Err(QueryError::Deadline(_))
    ));
    assert!(
        matches!(bed.query("trap", ""), Err(QueryError::Failed(text)) if text.starts_with("trap: "))
    );
    bed.query("echo", "still answers")
        .expect("the next one is not affected");
}

#[test]
fn query_runs_once_however_long_its_answer_is() {
    let bed = Bed::probe();
    let log = logged(|| {
        let answer = bed.query("big", "5000000").expect("it is allowed");
        assert_eq!(answer.len(), 5_000_000);
    });
    assert_eq!(log.matches("a large answer is made").count(), 1, "{log}");
}

#[test]
fn answer_has_a_limit() {
    let (engine, _folder) = engine(|options| options.answer_bytes_max = 1_000);
    let bed = Bed::new(load(&engine, ""));
    bed.query("big", "1000").expect("as much as allowed");
    let error = bed.query("big", "1001").expect_err("too much");
    assert!(error.to_string().starts_with("answer-bytes"), "{error}");
}

// ---- 4. the closed WASI ----

fn system_report(bed: &mut Bed) -> String {
    bed.apply(&[event(1, "count", ""), event(2, "system", "")])
        .expect("applies");
    bed.value("system").expect("there")
}

#[test]
fn system_gives_away_nothing() {
    let mut bed = Bed::new(load(shared(), "wasi"));
    let mut report = String::new();
    let log = logged(|| report = system_report(&mut bed));
    assert!(
        report.starts_with("1700000000000"),
        "time is that of the event: {report}"
    );
    assert!(
        report.contains(" slept 3600 first [1] true true "),
        "{report}"
    );
    assert!(
        report.contains(r#"folders 0 Some(ErrorCode { code: 1, name: "access-denied""#),
        "{report}"
    );
    assert!(log.contains("half a line"), "{log}");
    let again = system_report(&mut Bed::new(load(shared(), "wasi")));
    assert_eq!(report, again, "chance is the same in each instance");
    let mut other = Bed::new(load(shared(), "wasi"));
    let identity = Identity {
        deployment: "probe".to_owned(),
        generation: 2,
    };
    other.instance = other.module.instantiate(&identity).expect("an instance");
    assert_ne!(
        report,
        system_report(&mut other),
        "and another in another generation"
    );
}

#[test]
fn resources_of_the_system_have_a_limit() {
    let mut bed = Bed::new(load(shared(), "wasi"));
    bed.apply(&[event(1_000, "hold", "")])
        .expect("as many as allowed");
    // What an instance holds counts, whichever call took it.
    let error = bed
        .apply(&[event(1_001, "count", ""), event(1_025, "hold", "")])
        .expect_err("too many");
    assert!(error.to_string().contains("resource"), "{error:?}");
    assert_eq!(bed.value("count"), None);
    bed.works_again();
}

#[test]
fn a_write_to_a_stream_has_a_limit() {
    let mut bed = Bed::new(load(shared(), "wasi"));
    bed.apply(&[event(64 << 10, "flood", "")])
        .expect("as much as allowed");
    let error = bed
        .apply(&[event(64 << 10, "count", ""), event(65_537, "flood", "")])
        .expect_err("too much");
    assert!(
        matches!(&error, ApplyError::Trap(text) if text.contains("65536 are allowed")),
        "{error:?}"
    );
    assert_eq!(bed.value("count"), None);
    bed.works_again();
}

#[test]
fn a_call_has_the_time_of_its_last_event_and_never_that_of_the_machine() {
    let later = |sequence| {
        let mut event = event(sequence, "clock", "");
        event.time_ns += 60_000_000_000 * sequence;
        event
    };
    let seen = |batches: &[&[Event]]| {
        let mut bed = Bed::new(load(shared(), "wasi"));
        for batch in batches {
            bed.apply(batch).expect("applies");
        }
        ["clock/1", "clock/2"].map(|key| {
            let value = bed.value(key).expect("there");
            value.parse::<u64>().expect("a number")
        })
    };
    let (first, second) = (later(1), later(2));
    let is_at =
        |seen: u64, event: &Event| (event.time_ns..event.time_ns + 1_000_000).contains(&seen);
    let [one, two] = seen(&[&[first.clone(), second.clone()]]);
    assert!(is_at(one, &second) && is_at(two, &second), "{one} {two}");
    let [one, two] = seen(&[from_ref(&first), from_ref(&second)]);
    assert!(is_at(one, &first) && is_at(two, &second), "{one} {two}");
}

#[test]
fn query_sees_the_time_of_the_last_event() {
    let mut bed = Bed::new(load(shared(), "wasi"));
    bed.apply(&[event(5, "count", "")]).expect("applies");
    let now = bed.query("now", "").expect("answers");
    assert!(
        now.as_str().expect("text").starts_with("170000000000000"),
        "{now:?}"
    );
}

#[test]
fn preview_1_is_answered_inside_the_component() {
    let module = load(shared(), "preview1");
    assert!(
        module
            .info()
            .imports
            .iter()
            .all(|name| name.starts_with("foldstream:")),
        "{:?}",
        module.info().imports
    );
    let mut bed = Bed::new(module);
    let mut report = String::new();
    let log = logged(|| report = system_report(&mut bed));
    assert_eq!(report, "true 15 44 true");
    assert!(log.contains("from preview 1"), "{log}");
}
