//! Against consumers as one would write them by hand: the same events of one stream, the same
//! aggregate of each customer, durable once a second. All of them, and the host with its module, take
//! turns over one server. The host's time contains its start, the compilation and the upload, and ends
//! when reads have all events.

mod rust;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use foldstream_tests::guests;
use foldstream_tests::host::Host;
use foldstream_tests::nats::NatsServer;

use crate::arguments::Arguments;
use crate::report::{Report, Target, median};
use crate::workload::{self, STREAM};

/// The sums over all customers of what is kept of each: events, orders, items, worth, paid, shipped
/// and web orders.
type Sums = [u64; 7];

/// Measures all with the first number of customers.
pub async fn measure(arguments: &Arguments, report: &mut Report) {
    let (events, customers) = (arguments.events, arguments.customers[0]);
    let server = workload::publish(events, customers).await;
    let (mut ours, mut rust, mut python) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let by_host = timed(events, &mut ours, host(&server, events)).await;
        let file = folder.path().join("rust.redb");
        let by_rust = timed(events, &mut rust, rust::run(&server, events, &file)).await;
        assert_eq!(by_rust, by_host, "the same fold");
        let file = folder.path().join("python.db");
        let by_python = timed(events, &mut python, run_python(&server, events, &file)).await;
        assert_eq!(by_python, by_host, "the same fold");
    }
    let note = format!("{events} events, {customers} customers");
    let name = "by hand: the host, start and compilation included";
    report.add(name, median(ours.clone()), "events/s", note.as_str());
    for (name, rates, target) in [
        ("Rust and redb", rust, 4.0),
        ("Python and SQLite", python, 15.0),
    ] {
        let ratios = ours.iter().zip(&rates).map(|(ours, rate)| ours / rate);
        let ratio = median(ratios.collect());
        report.add(
            format!("by hand: {name}"),
            median(rates),
            "events/s",
            note.as_str(),
        );
        let name = format!("by hand: the host / {name}");
        report.add_with_target(name, ratio, "ratio", Target::AtLeast(target));
    }
}

/// Notes the events per second of a consumer; what it found.
async fn timed(events: usize, rates: &mut Vec<f64>, consumer: impl Future<Output = Sums>) -> Sums {
    let started = Instant::now();
    let sums = consumer.await;
    rates.push(events as f64 / started.elapsed().as_secs_f64());
    sums
}

/// A new host with a new deployment, until reads have all events.
async fn host(server: &NatsServer, events: usize) -> Sums {
    let host = Host::start_on(server, STREAM).await;
    let module = guests::module("customer-totals");
    host.client().deploy("totals", &module).await;
    host.client().reached("totals", events as u64).await;
    let mut sums = Sums::default();
    for entry in host.client().entries("totals", "customer/").await {
        let kept = [
            "events",
            "orders",
            "items",
            "total_cents",
            "paid_cents",
            "shipped",
            "web_orders",
        ];
        for (sum, name) in sums.iter_mut().zip(kept) {
            *sum += entry.value[name].as_u64().expect("a number");
        }
    }
    sums
}

async fn run_python(server: &NatsServer, events: usize, file: &Path) -> Sums {
    let url = server.url();
    let (_, port) = url.rsplit_once(':').expect("an address has a port");
    let mut command = Command::new("python3");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/consumers/consumer.py");
    command
        .arg(script)
        .args([port, STREAM])
        .arg(events.to_string());
    command.arg(file).stderr(Stdio::inherit());
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .expect("the task ends")
        .expect("python3 starts");
    assert!(output.status.success(), "it ended with {}", output.status);
    serde_json::from_slice(&output.stdout).expect("it prints its sums")
}
