//! A module that does whatever an event tells it to: everything that a sandbox must survive.
//!
//! The data of an event is a verb and an argument, such as `loop` or `put 1000`. `note TEXT` is the
//! harmless one: it keeps the text under `note/<sequence>`, so that a test sees which events were
//! applied.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};

wit_bindgen::generate!({ world: "projection", path: "../../../wit" });

use foldstream::module::log::{self, Level};
use foldstream::module::state::{Direction, Selection, get, get_many, put, put_many, scan};
use foldstream::module::types::{
    ErrorPolicy, FailureKind, KeyRule, Limits, ModuleKind, QueryDescription,
};

struct Mischief;

/// Whether this instance has met an event before.
static IS_USED: AtomicBool = AtomicBool::new(false);

impl Guest for Mischief {
    fn manifest() -> Manifest {
        Manifest {
            kind: ModuleKind::Projection,
            name: "mischief".to_owned(),
            description: "Does whatever an event tells it to".to_owned(),
            subjects: vec!["mischief.>".to_owned()],
            wants_headers: true,
            key_rule: KeyRule::Subject,
            state_version: 1,
            error_policy: ErrorPolicy {
                attempts: Some(3),
                initial_backoff_ms: Some(10),
                max_backoff_ms: Some(50),
            },
            limits: Limits {
                memory_bytes: Some(32 << 20),
                deadline_ms: None,
                batch_events: None,
                // The other one may fill a disk.
                state_bytes: (!cfg!(feature = "fixed")).then_some(4 << 20),
            },
            queries: [
                "loop", "trap", "write", "grow", "big", "args", "notes", "fail", "missing",
                "invalid",
            ]
            .map(|name| QueryDescription {
                name: name.to_owned(),
                description: format!("Does {name}"),
            })
            .to_vec(),
        }
    }

    fn apply(events: Vec<Event>) -> Result<(), Failure> {
        for (index, event) in (0u32..).zip(&events) {
            act(event).map_err(|(kind, message)| Failure {
                index,
                kind,
                message,
            })?;
        }
        Ok(())
    }

    fn query(name: String, args: Payload) -> Result<Payload, QueryError> {
        match name.as_str() {
            "loop" => {
                log::write(Level::Info, "a query loops");
                spin();
            }
            "trap" => panic!("told to trap"),
            "write" => put("written-by-a-query", &Payload::Text("no".to_owned())),
            "grow" => grow(),
            "big" => return Ok(Payload::Bytes(vec![b'x'; number(&text(&args))])),
            "args" => return Ok(args),
            "notes" => return Ok(Payload::Text(notes())),
            "fail" => return Err(QueryError::Failed("told to fail".to_owned())),
            "missing" => return Err(QueryError::NotFound),
            "invalid" => return Err(QueryError::InvalidArguments("told to refuse".to_owned())),
            _ => return Err(QueryError::UnknownQuery),
        }
        Ok(Payload::Text("done".to_owned()))
    }
}

fn act(event: &Event) -> Result<(), (FailureKind, String)> {
    let data = text(&event.data);
    let (verb, argument) = data.split_once(' ').unwrap_or((&data, ""));
    let is_used = IS_USED.swap(true, Ordering::Relaxed);
    match verb {
        "note" => put(
            &format!("note/{:08}", event.sequence),
            &Payload::Text(argument.to_owned()),
        ),
        // What a mistake in the code makes of a harmless event, until it is corrected.
        "ill" if cfg!(feature = "fixed") => {
            put(
                &format!("note/{:08}", event.sequence),
                &Payload::Text(argument.to_owned()),
            );
        }
        "ill" => return Err((FailureKind::Reject, "a mistake in the code".to_owned())),
        // Needs a second attempt each time, which passes.
        "fresh" if is_used => {
            return Err((FailureKind::Retry, "only on a fresh instance".to_owned()));
        }
        "fresh" => put(
            &format!("note/{:08}", event.sequence),
            &Payload::Text(argument.to_owned()),
        ),
        "headers" => put(
            "headers",
            &Payload::Text(format!("{} {:?}", event.kind, event.headers)),
        ),
        "reject" => return Err((FailureKind::Reject, argument.to_owned())),
        "retry" => return Err((FailureKind::Retry, argument.to_owned())),
        // Writes and fails: none of it may ever be seen.
        "half" => {
            put("half", &Payload::Text("seen".to_owned()));
            return Err((FailureKind::Reject, "half done".to_owned()));
        }
        "trap" => panic!("told to trap"),
        "loop" => spin(),
        "grow" => grow(),
        "keep" => keep(number(argument))?,
        "recurse" => drop(black_box(recurse(1))),
        "recurse-in-memory" => drop(black_box(recurse_in_memory(1))),
        "log-storm" => {
            (0..number(argument))
                .for_each(|line| log::write(Level::Info, &format!("{line:01000}")));
        }
        "call-storm" => loop {
            black_box(get("nothing"));
        },
        "big-value" => put("big-value", &Payload::Bytes(vec![0xff; number(argument)])),
        "big-key" => put(&"k".repeat(number(argument)), &Payload::Text(String::new())),
        "many-keys" => drop(black_box(get_many(&vec!["k".to_owned(); number(argument)]))),
        "many-tiny" => many_tiny(number(argument)),
        "many-entries" => put_many(&vec![("k".to_owned(), None); number(argument)]),
        "fill" => fill(event.sequence, number(argument)),
        "rate" => put("rate/EUR", &Payload::Text(argument.to_owned())),
        // What it stores depends on an entry that another event wrote.
        "owe" => {
            let rate = get("rate/EUR").map_or(0, |rate| number(&text(&rate)));
            put(
                &format!("owed/{}", event.subject),
                &Payload::Text((rate * number(argument)).to_string()),
            );
        }
        // The same of a scan.
        "count-owed" => {
            let page = scan(
                &Selection::Prefix("owed/".to_owned()),
                None,
                Direction::Forwards,
                10_000,
            );
            put(
                &format!("counted/{}", event.subject),
                &Payload::Text(page.entries.len().to_string()),
            );
        }
        _ => return Err((FailureKind::Reject, format!("no such verb: {verb}"))),
    }
    Ok(())
}

fn spin() {
    let mut turns = 0u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

fn grow() {
    let mut held = Vec::new();
    loop {
        held.push(black_box(vec![1u8; 1 << 20]));
    }
}

/// Keeps this many MiB for as long as the instance lives, and rejects the event if there is no
/// memory left.
fn keep(mebibytes: usize) -> Result<(), (FailureKind, String)> {
    let mut kept = Vec::new();
    let refused = |_| (FailureKind::Reject, "no memory left".to_owned());
    kept.try_reserve_exact(mebibytes << 20).map_err(refused)?;
    kept.resize(mebibytes << 20, 1u8);
    black_box(kept.leak());
    Ok(())
}

/// Fills the stack of calls, which the engine holds: its frames hardly touch the module's memory.
fn recurse(depth: u64) -> u64 {
    let next: fn(u64) -> u64 = black_box(recurse);
    next(depth + 1) ^ depth
}

/// Fills the stack that a compiler lays into the module's memory, until it meets the end of it.
#[allow(unconditional_recursion, reason = "that is the mischief")]
fn recurse_in_memory(depth: u64) -> [u64; 32] {
    let mut frame = black_box([depth; 32]);
    frame[0] += recurse_in_memory(depth + 1)[1];
    frame
}

/// Deletes this many entries that were never there: nothing is stored, yet each is a write.
fn many_tiny(count: usize) {
    for begin in (0..count).step_by(10_000) {
        put_many(
            &(begin..begin + 10_000)
                .map(|key| (format!("{key:x}"), None))
                .collect::<Vec<_>>(),
        );
    }
}

fn fill(sequence: u64, bytes: usize) {
    const VALUE: usize = 64 << 10;
    for part in 0..bytes.div_ceil(VALUE) {
        put(
            &format!("fill/{sequence}/{part}"),
            &Payload::Bytes(vec![7; VALUE]),
        );
    }
}

fn notes() -> String {
    let page = scan(
        &Selection::Prefix("note/".to_owned()),
        None,
        Direction::Forwards,
        10_000,
    );
    page.entries
        .iter()
        .map(|entry| text(&entry.value))
        .collect::<Vec<_>>()
        .join(",")
}

fn number(argument: &str) -> usize {
    argument.parse().unwrap_or(0)
}

fn text(payload: &Payload) -> String {
    match payload {
        Payload::Text(text) => text.clone(),
        Payload::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

export!(Mischief);
