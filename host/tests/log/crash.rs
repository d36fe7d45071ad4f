use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use foldstream::log::{Error, Expectation, Log, Options};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{DEADLINE, Place, append, append_numbered, event, read_all, with_id};

/// In a child process, the log that it works on.
const CHILD: &str = "FOLDSTREAM_TEST_LOG";

/// The path of the log, where this process was started by [`child`].
fn role() -> Option<String> {
    std::env::var(CHILD).ok()
}

/// This test binary again, running one test in the role of a child.
fn child(test: &str, place: &Place, shell: &str) -> Command {
    let binary = std::env::current_exe().expect("the test binary has a path");
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("{shell}exec \"$0\" --exact {test} --nocapture"));
    command
        .arg(binary)
        .env(CHILD, place.path())
        .stdout(Stdio::piped());
    command
}

#[test]
fn acknowledged_events_survive_a_killed_process() {
    if let Some(path) = role() {
        append_until_killed(&Log::open(path.as_ref(), Options::default()).expect("the log opens"));
    }
    let place = Place::new();
    let mut random = fastrand::Rng::with_seed(17);
    let mut before = 0;
    for _ in 0..8 {
        let mut child = child(
            "crash::acknowledged_events_survive_a_killed_process",
            &place,
            "",
        )
        .spawn()
        .expect("starts");
        let acknowledged = kill_after(&mut child, random.usize(1..60));
        let log = place.open();
        let events = read_all(&log);
        let last = log.info().last_sequence;
        assert_eq!(events.len() as u64, last, "no holes");
        assert!(last > before, "the child appended something");
        for (data, sequence) in acknowledged {
            let event = &events[usize::try_from(sequence).expect("small") - 1];
            assert_eq!(event.data.as_str(), Some(data.as_str()), "event {sequence}");
        }
        // Ids that were acknowledged before the crash are known behind it.
        let again = append(
            &log,
            &[with_id(
                events[events.len() - 1]
                    .header("nats-msg-id")
                    .expect("has an id"),
            )],
        );
        assert_eq!(again.duplicates, 1);
        before = last;
    }
}

/// Appends from several threads and tells each acknowledgement on standard output.
fn append_until_killed(log: &Log) -> ! {
    let next = AtomicU64::new(log.info().last_sequence);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(3, Ordering::Relaxed);
                    let events: Vec<_> = (number..number + 3)
                        .map(|one| with_id(&format!("{one}-{}", std::process::id())))
                        .collect();
                    let appended = append(log, &events);
                    let mut output = std::io::stdout().lock();
                    for (event, sequence) in events.iter().zip(appended.sequences) {
                        let data = event.data.as_str().expect("text");
                        writeln!(output, "acknowledged {data} {sequence}")
                            .expect("the parent reads");
                    }
                }
            });
        }
    });
    unreachable!("the threads append for ever")
}

/// Kills the child after some acknowledgements; returns all that it told until then.
fn kill_after(child: &mut Child, count: usize) -> Vec<(String, u64)> {
    let output = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut acknowledged = Vec::new();
    for line in output.lines() {
        let line = line.expect("the child writes text");
        // A line that the kill cut off has no newline and may lack its end: it does not count.
        let Some((data, sequence)) = line
            .strip_prefix("acknowledged ")
            .and_then(|rest| rest.split_once(' '))
        else {
            continue;
        };
        acknowledged.push((data.to_owned(), sequence.parse().expect("a number")));
        if acknowledged.len() == count {
            child.kill().expect("it runs");
            break;
        }
    }
    child.wait().expect("it ends");
    assert_eq!(
        acknowledged.len(),
        count,
        "the child appended until it was killed"
    );
    acknowledged
}

#[test]
fn full_disk_loses_nothing_acknowledged_and_passes() {
    if role().is_some() {
        return fill_and_free();
    }
    let place = Place::new();
    // Files end at 4 MiB, and writing beyond is an error instead of a signal. The hard limit stays.
    let limits = "trap '' XFSZ; ulimit -S -f 4096; ";
    let output = child(
        "crash::full_disk_loses_nothing_acknowledged_and_passes",
        &place,
        limits,
    )
    .stderr(Stdio::piped())
    .output()
    .expect("starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let log = place.open();
    assert_eq!(log.info().events, read_all(&log).len() as u64);
}

/// Appends until the file may not grow, checks what is there, and continues once it may.
fn fill_and_free() {
    let path = role().expect("it is the child");
    let log = Log::open(path.as_ref(), Options::default()).expect("the log opens");
    let large = "x".repeat(10_000);
    let mut acknowledged = 0;
    let failure = loop {
        match log.append(&[event("a.b", &large)], &Expectation::default()) {
            Ok(appended) => acknowledged = appended.last_sequence,
            Err(error) => break error,
        }
        assert!(acknowledged < 10_000, "the limit holds");
    };
    assert!(matches!(failure, Error::Storage(_)), "{failure}");
    assert!(acknowledged > 10, "some events fit");
    assert!(log.info().last_sequence >= acknowledged);
    until(|| {
        log.read(0, None, 10_000, 64 << 20)
            .is_ok_and(|(events, _)| events.len() as u64 >= acknowledged)
    });

    let current = getrlimit(Resource::Fsize);
    setrlimit(
        Resource::Fsize,
        Rlimit {
            current: current.maximum,
            maximum: current.maximum,
        },
    )
    .expect("the hard limit is higher");
    until(|| {
        log.append(&[event("a.b", "after")], &Expectation::default())
            .is_ok()
    });
    append_numbered(&log, 100);
    let events = read_all(&log);
    assert!(events.len() as u64 > acknowledged + 100);
    let whole = |sequence: u64| {
        events[usize::try_from(sequence).expect("small") - 1]
            .data
            .len()
            == 10_000
    };
    assert!((1..=acknowledged).all(whole));
}

/// Tries again a few times a second, as a failed log is opened again once a second at most.
fn until(mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < DEADLINE, "the log did not recover");
        std::thread::sleep(Duration::from_millis(50));
    }
}
