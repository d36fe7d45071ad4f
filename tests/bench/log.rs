//! The embedded log as its users meet it: a file imported with the command line, single events of
//! many clients, each acknowledged when it is durable, and how fast it can be read.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use foldstream::source::Source;
use foldstream::source::embedded::Embedded;
use foldstream_tests::host::{Host, foldstream};
use reqwest::Method;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::arguments::Arguments;
use crate::path;
use crate::replay;
use crate::report::{Report, Target, median, quantile};
use crate::workload;

/// Clients that append one event at a time.
const CLIENTS: usize = 64;

/// Measures all three.
pub fn measure(runtime: &Runtime, arguments: &Arguments, report: &mut Report) {
    let customers = arguments.customers[0];
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = folder.path().join("events.ndjson");
    write_events(&file, arguments.events, customers);
    let (mut imported, mut appended, mut slowest) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        imported.push(runtime.block_on(import(&file, arguments.events)));
        let (rate, p99) = runtime.block_on(append(arguments.seconds));
        appended.push(rate);
        slowest.push(p99);
    }
    report.add_with_target(
        format!("embedded log: import of {} events", arguments.events),
        median(imported),
        "events/s",
        Target::AtLeast(300_000.0),
    );
    report.add_with_target(
        format!("embedded log: single appends of {CLIENTS} clients, durable"),
        median(appended),
        "events/s",
        Target::AtLeast(20_000.0),
    );
    let name = "embedded log: single append, p99";
    report.add(name, median(slowest), "ms", "from request to confirmation");

    let log = path::log(&folder.path().join("log.redb"), arguments.events, customers);
    let source = || Source::Embedded(Embedded::new(log.clone()));
    let read = (0..arguments.rounds)
        .map(|_| replay::count(runtime, &source(), arguments.events).events_per_second);
    report.add_with_target(
        "embedded log: counting reader",
        median(read.collect()),
        "events/s",
        Target::AtLeast(1_000_000.0),
    );
}

/// A file of events as `events export` writes it.
fn write_events(file: &Path, events: usize, customers: u32) {
    let file = std::fs::File::create(file).expect("a temporary file can be made");
    let mut file = std::io::BufWriter::new(file);
    for (subject, data) in workload::messages(events, customers) {
        let data = str::from_utf8(&data).expect("samples are JSON");
        writeln!(file, "{{\"subject\":{subject:?},\"data\":{data}}}").expect("there is room");
    }
    file.flush().expect("there is room");
}

/// Events per second of `foldstream events import`, from its start to its end.
async fn import(file: &Path, events: usize) -> f64 {
    let host = Host::start().await;
    let started = Instant::now();
    let mut command = foldstream();
    command.args(["events", "import", "--quiet", "--url", host.url()]);
    command.arg(file);
    let status = tokio::task::spawn_blocking(move || command.status())
        .await
        .expect("the task ends")
        .expect("the program starts");
    assert!(status.success(), "the import ended with {status}");
    events as f64 / started.elapsed().as_secs_f64()
}

/// Events per second of clients that each append one event after the other, and the 99th percentile
/// of one append in milliseconds.
async fn append(seconds: u64) -> (f64, f64) {
    let host = Host::start().await;
    let data = workload::new_event();
    let body = serde_json::json!({ "events": [data] }).to_string();
    let begin = Instant::now();
    let end = begin + Duration::from_secs(seconds);
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (client, body) = (host.client().clone(), body.clone());
        clients.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < end {
                let started = Instant::now();
                let request = client
                    .request(Method::POST, "/v1/events")
                    .header("content-type", "application/json")
                    .body(body.clone());
                client.send(request).await.expect(200);
                times.push(started.elapsed().as_secs_f64() * 1e3);
            }
            times
        });
    }
    let mut times: Vec<f64> = clients.join_all().await.into_iter().flatten().collect();
    times.sort_by(f64::total_cmp);
    let rate = times.len() as f64 / begin.elapsed().as_secs_f64();
    (rate, quantile(&times, 0.99))
}
