//! The path of an event without a server: the events come from an embedded log, so that nothing else
//! uses the processors, and the processor time is that of the host alone.
//!
//! It is the part to profile: `perf record` sees the applying thread as `fold`.

use std::path::Path;

use foldstream::event::Payload;
use foldstream::log::{Expectation, Log, NewEvent, Options};
use foldstream::source::Source;
use foldstream::source::embedded::Embedded;
use tokio::runtime::Runtime;

use crate::arguments::Arguments;
use crate::replay::{self, Replay};
use crate::report::{Report, median};
use crate::workload;

/// Events appended at once.
const APPENDED_AT_ONCE: usize = 5_000;

/// Measures all numbers of customers.
pub fn measure(runtime: &Runtime, arguments: &Arguments, report: &mut Report) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let module = replay::load_module(folder.path());
    for &customers in &arguments.customers {
        let path = folder.path().join(format!("{customers}.redb"));
        let log = log(&path, arguments.events, customers);
        let source = || Source::Embedded(Embedded::new(log.clone()));
        let (mut counting, mut native, mut wasm) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..arguments.rounds {
            counting.push(replay::count(runtime, &source(), arguments.events));
            native.push(replay::fold(
                runtime,
                source(),
                arguments.events,
                replay::native_folds(),
            ));
            wasm.push(replay::fold(
                runtime,
                source(),
                arguments.events,
                replay::instances(&module),
            ));
        }
        let mut row = |name: &str, rounds: &[Replay]| {
            let cpu = median(rounds.iter().map(|round| round.cpu_per_million).collect());
            let name = format!("path, {customers} customers: {name}");
            report.add(name, cpu, "s CPU", "per million events of an embedded log");
        };
        row("counting reader", &counting);
        row("native fold", &native);
        row("Wasm", &wasm);
    }
}

/// An embedded log with the events of the workload.
pub fn log(path: &Path, events: usize, customers: u32) -> Log {
    let log = Log::open(path, Options::default()).expect("a new log opens");
    let mut messages = workload::messages(events, customers);
    loop {
        let part: Vec<NewEvent> = messages
            .by_ref()
            .take(APPENDED_AT_ONCE)
            .map(|(subject, data)| NewEvent {
                subject,
                kind: None,
                id: None,
                time_ns: None,
                headers: Vec::new(),
                data: Payload::detect(data),
            })
            .collect();
        if part.is_empty() {
            return log;
        }
        log.append(&part, &Expectation::default())
            .expect("the log takes events");
    }
}
