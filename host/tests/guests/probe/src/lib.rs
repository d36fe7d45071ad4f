//! A guest that does on demand what guests should not do: the kind of an event names the deed.

#[cfg(not(any(feature = "wasi", feature = "migrate")))]
wit_bindgen::generate!({ world: "projection", path: "../../../../wit" });
#[cfg(feature = "migrate")]
wit_bindgen::generate!({ world: "migrating-projection", path: "../../../../wit" });
#[cfg(feature = "wasi")]
wit_bindgen::generate!({
    inline: "package probe:probe; world probe { include foldstream:module/projection@0.1.0; \
             include probe:system/system; }",
    path: ["../../../../wit", "wit"],
    generate_all,
});

use foldstream::module::log::{self, Level};
use foldstream::module::state::{self, Direction, KeyRange, Selection};
use foldstream::module::types::{
    ErrorPolicy, FailureKind, KeyRule, Limits, ModuleKind, QueryDescription,
};

struct Probe;
export!(Probe);

impl Guest for Probe {
    fn manifest() -> Manifest {
        Manifest {
            kind: ModuleKind::Projection,
            name: "probe".into(),
            description: "Does what guests should not do.".into(),
            subjects: vec!["probe.>".into()],
            wants_headers: cfg!(feature = "headers"),
            key_rule: KeyRule::SubjectToken(2),
            state_version: 3,
            error_policy: ErrorPolicy {
                attempts: Some(2),
                initial_backoff_ms: Some(10),
                max_backoff_ms: None,
            },
            limits: Limits {
                memory_bytes: Some(8 << 20),
                deadline_ms: Some(300),
                batch_events: None,
                state_bytes: None,
            },
            queries: vec![QueryDescription {
                name: "echo".into(),
                description: "Returns its arguments.".into(),
            }],
        }
    }

    fn apply(events: Vec<Event>) -> Result<(), Failure> {
        for (index, event) in events.iter().enumerate() {
            deed(index as u32, event)?;
        }
        Ok(())
    }

    fn query(name: String, args: Payload) -> Result<Payload, QueryError> {
        match name.as_str() {
            "echo" => Ok(args),
            "get" => state::get(&text(&args)).ok_or(QueryError::NotFound),
            "write" => {
                state::put("written", &args);
                Ok(args)
            }
            "loop" => endless(),
            "grow" => grow(),
            "trap" => panic!("as ordered"),
            "big" => {
                log::write(Level::Info, "a large answer is made");
                Ok(Payload::Bytes(vec![7; text(&args).parse().unwrap()]))
            }
            "invalid" => Err(QueryError::InvalidArguments("not so".into())),
            "fail" => Err(QueryError::Failed("on purpose".into())),
            #[cfg(feature = "wasi")]
            "now" => Ok(Payload::Text(system::wall().to_string())),
            _ => Err(QueryError::UnknownQuery),
        }
    }

    #[cfg(feature = "migrate")]
    fn migrate(from_version: u32, entries: Vec<Entry>) -> Result<Vec<Entry>, String> {
        let mut new = Vec::new();
        for entry in &entries {
            migrate_one(from_version, entry, &mut new)?;
        }
        Ok(new)
    }
}

/// The key of an old entry names the deed; harmless ones are numbered, so that their keys differ.
#[cfg(feature = "migrate")]
fn migrate_one(from_version: u32, entry: &Entry, new: &mut Vec<Entry>) -> Result<(), String> {
    let count = || text(&entry.value).parse::<usize>().unwrap();
    match entry.key.split('/').next().unwrap() {
        "drop" => {}
        "keep" => new.push(entry.clone()),
        "twice" => new.extend([1, 2].map(|number| Entry {
            key: format!("v{from_version}/{number}/{}", entry.key),
            value: entry.value.clone(),
        })),
        "refuse" => return Err(text(&entry.value)),
        "trap" => panic!("as ordered"),
        "loop" => endless(),
        "grow" => grow(),
        "get" => drop(state::get("count")),
        "put" => state::put("count", &entry.value),
        "log" => (0..count()).for_each(|_| log::write(Level::Warn, "chatter")),
        "many" => new.extend((0..count()).map(|_| Entry {
            key: "k".into(),
            value: Payload::Text(String::new()),
        })),
        "overlap" => overlap_entries(count(), new),
        other => return Err(format!("no such deed: {other}")),
    }
    Ok(())
}

/// Hands one and the same large text over again and again. A host that takes it all has it freed as
/// often: a trap.
#[cfg(feature = "migrate")]
fn overlap_entries(count: usize, new: &mut Vec<Entry>) {
    let value = "v".repeat(1 << 20).leak();
    new.extend((0..count).map(|_| {
        let value = unsafe { String::from_raw_parts(value.as_mut_ptr(), value.len(), value.len()) };
        Entry {
            key: "k".into(),
            value: Payload::Text(value),
        }
    }));
}

fn deed(index: u32, event: &Event) -> Result<(), Failure> {
    match event.kind.as_str() {
        "echo" => echo(event),
        "count" => count("count"),
        "loop" => endless(),
        "grow" => grow(),
        "recurse" => log::write(Level::Info, &recurse(event.sequence).to_string()),
        "trap" => panic!("as ordered"),
        "log" => {
            for _ in 0..event.sequence {
                log::write(Level::Warn, &text(&event.data));
            }
        }
        "storm" => {
            for _ in 0..event.sequence {
                count("storm");
            }
        }
        "get" => drop(state::get(&text(&event.data))),
        "many" => drop(state::get_many(&vec![
            text(&event.data);
            event.sequence as usize
        ])),
        "put-many" => put_many(event),
        "big-value" => state::put("big", &Payload::Bytes(vec![1; event.sequence as usize])),
        "scan" => scan(event),
        "reject" => return Err(failure(index, FailureKind::Reject, event)),
        "retry" => return Err(failure(index, FailureKind::Retry, event)),
        "blame" => return Err(failure(event.sequence as u32, FailureKind::Reject, event)),
        "overlap" => overlap(event.sequence as usize),
        #[cfg(any(feature = "wasi", feature = "preview1"))]
        "system" => state::put("system", &Payload::Text(system::report())),
        #[cfg(feature = "wasi")]
        "hold" => system::hold(event.sequence),
        #[cfg(feature = "wasi")]
        "flood" => system::flood(event.sequence as usize),
        #[cfg(feature = "wasi")]
        "clock" => state::put(
            &format!("clock/{}", event.sequence),
            &Payload::Text(system::wall().to_string()),
        ),
        other => {
            return Err(failure(index, FailureKind::Reject, event))
                .inspect_err(|_| log::write(Level::Error, other));
        }
    }
    Ok(())
}

fn failure(index: u32, kind: FailureKind, event: &Event) -> Failure {
    Failure {
        index,
        kind,
        message: text(&event.data),
    }
}

fn text(payload: &Payload) -> String {
    match payload {
        Payload::Text(text) => text.clone(),
        Payload::Bytes(bytes) => format!("{bytes:?}"),
    }
}

/// Stores all that the event says under its sequence.
fn echo(event: &Event) {
    let Event {
        sequence,
        time_ns,
        subject,
        kind,
        headers,
        data,
    } = event;
    let report = format!(
        "{sequence} {time_ns} {subject} {kind} {headers:?} {}",
        text(data)
    );
    state::put(&format!("echo/{sequence:04}"), &Payload::Text(report));
}

fn count(key: &str) {
    let count = state::get(key).map_or(0, |value| text(&value).parse::<u64>().unwrap());
    state::put(key, &Payload::Text((count + 1).to_string()));
}

fn put_many(event: &Event) {
    let entries: Vec<_> = (0..event.sequence)
        .map(|number| {
            (
                format!("many/{number:05}"),
                (number % 3 != 2).then(|| event.data.clone()),
            )
        })
        .collect();
    state::put_many(&entries);
    let keys: Vec<_> = entries.iter().map(|(key, _)| key.clone()).collect();
    for ((_, put), got) in entries.iter().zip(state::get_many(&keys)) {
        assert_eq!(put.as_ref().map(text), got.as_ref().map(text));
    }
}

fn scan(event: &Event) {
    let limit = event.sequence as u32;
    let all = state::scan(
        &Selection::Prefix("echo/".into()),
        None,
        Direction::Forwards,
        limit,
    );
    let range = KeyRange {
        start: Some("echo/0002".into()),
        end: None,
    };
    let back = state::scan(
        &Selection::Range(range),
        Some("echo/9998"),
        Direction::Backwards,
        limit,
    );
    let keys = |page: state::Page| {
        let keys: Vec<_> = page.entries.into_iter().map(|entry| entry.key).collect();
        format!("{} {}", keys.join(","), page.more)
    };
    state::put(
        "scan",
        &Payload::Text(format!("{} | {}", keys(all), keys(back))),
    );
}

fn endless() -> ! {
    let mut number = 0u64;
    loop {
        number = std::hint::black_box(number.wrapping_add(1));
    }
}

fn grow() -> ! {
    let mut blocks = Vec::new();
    loop {
        blocks.push(std::hint::black_box(vec![1u8; 1 << 20]));
    }
}

#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 16]);
    if depth == 0 {
        0
    } else {
        frame[3] + recurse(depth - 1) - std::hint::black_box(frame)[5] + 1
    }
}

/// Stores one and the same large value many times, with arguments that no binding would make.
fn overlap(count: usize) {
    #[link(wasm_import_module = "foldstream:module/state@0.1.0")]
    unsafe extern "C" {
        #[link_name = "put-many"]
        fn put_many(entries: *const [usize; 6], count: usize);
    }
    let value = "v".repeat(1 << 20);
    let entry = [
        "k".as_ptr() as usize,
        1,
        1,
        0,
        value.as_ptr() as usize,
        value.len(),
    ];
    let entries = vec![entry; count];
    unsafe { put_many(entries.as_ptr(), count) };
}

#[cfg(feature = "wasi")]
mod system {
    use crate::wasi::cli::stdout::get_stdout;
    use crate::wasi::clocks::{monotonic_clock, wall_clock};
    use crate::wasi::filesystem::preopens;
    use crate::wasi::io::poll::poll;
    use crate::wasi::random::random;
    use crate::wasi::sockets::network::IpAddressFamily;
    use crate::wasi::sockets::tcp_create_socket::create_tcp_socket;

    pub(super) fn wall() -> u64 {
        let now = wall_clock::now();
        now.seconds * 1_000_000_000 + u64::from(now.nanoseconds)
    }

    /// Writes this many line breaks at once, without asking how many it may.
    pub(super) fn flood(count: usize) {
        let written = get_stdout().write(&vec![b'\n'; count]);
        written.expect("the stream is open");
    }

    /// Takes this many resources and never gives one back.
    pub(super) fn hold(count: u64) {
        for _ in 0..count {
            std::mem::forget(get_stdout());
        }
    }

    /// Looks at everything that a system could give away.
    pub(super) fn report() -> String {
        let start = wall();
        monotonic_clock::subscribe_duration(3_600_000_000_000).block();
        let slept = (wall() - start) / 1_000_000_000;
        // The shorter of two sleeps ends first, and only that one.
        let (long, short) = (
            monotonic_clock::subscribe_duration(9_000),
            monotonic_clock::subscribe_duration(5_000),
        );
        let first = poll(&[&long, &short]);
        let instant = monotonic_clock::subscribe_instant(0);
        let past = instant.ready();
        let written = get_stdout()
            .blocking_write_and_flush(b"half a line")
            .is_ok();
        let random = random::get_random_u64();
        let folders = preopens::get_directories().len();
        let socket = create_tcp_socket(IpAddressFamily::Ipv4).err();
        format!(
            "{start} slept {slept} first {first:?} {past} {written} random {random} folders \
             {folders} {socket:?}"
        )
    }
}

#[cfg(feature = "preview1")]
mod system {
    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        fn clock_time_get(clock: i32, precision: i64, result: *mut u64) -> i32;
        fn random_get(at: *mut u8, length: usize) -> i32;
        fn fd_write(fd: i32, pieces: *const [usize; 2], count: usize, result: *mut usize) -> i32;
        fn path_open(
            fd: i32,
            flags: i32,
            path: *const u8,
            length: usize,
            open: i32,
            base: i64,
            inherit: i64,
            fdflags: i32,
            result: *mut i32,
        ) -> i32;
    }

    pub(super) fn report() -> String {
        let (mut first, mut second, mut random, mut written, mut file) = (0, 0, [0; 8], 0, 0);
        let text = "from preview 1\n";
        let piece = [text.as_ptr() as usize, text.len()];
        unsafe {
            clock_time_get(0, 0, &mut first);
            clock_time_get(0, 0, &mut second);
            random_get(random.as_mut_ptr(), random.len());
            fd_write(1, &piece, 1, &mut written);
            let open = path_open(3, 0, text.as_ptr(), 4, 0, 0, 0, 0, &mut file);
            format!("{} {written} {open} {:?}", second > first, random != [0; 8])
        }
    }
}
