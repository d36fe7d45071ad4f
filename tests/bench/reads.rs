//! Point reads over HTTP while the same host replays a stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use foldstream_tests::client::Client;
use foldstream_tests::guests;
use foldstream_tests::host::Host;

use crate::arguments::Arguments;
use crate::report::{Report, median, quantile};
use crate::workload::{self, STREAM};

/// Clients that read at once, each with a connection of its own.
const READERS: usize = 4;

/// Measures rate and latency of reads, and what they leave of the replay.
pub async fn measure(arguments: &Arguments, report: &mut Report) {
    let customers = arguments.customers[0];
    let server = workload::publish(arguments.events, customers).await;
    let (mut reads, mut middles, mut tails, mut replays) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        let host = Host::start_on(&server, STREAM).await;
        let started = Instant::now();
        host.client()
            .deploy("replay", &guests::module("customer-totals"))
            .await;
        let stop = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..READERS)
            .map(|number| {
                tokio::spawn(read(
                    Client::new(host.url()),
                    number,
                    customers,
                    Arc::clone(&stop),
                ))
            })
            .collect();
        host.client()
            .reached("replay", arguments.events as u64)
            .await;
        let seconds = started.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        let mut times = Vec::new();
        for reader in readers {
            times.extend(reader.await.expect("no read fails"));
        }
        times.sort_by(f64::total_cmp);
        reads.push(times.len() as f64 / seconds);
        middles.push(quantile(&times, 0.5));
        tails.push(quantile(&times, 0.99));
        replays.push(arguments.events as f64 / seconds);
    }
    report.add(
        "point reads over HTTP while replaying",
        median(reads),
        "reads/s",
        format!("{READERS} connections"),
    );
    report.add("point read while replaying, p50", median(middles), "ms", "");
    report.add("point read while replaying, p99", median(tails), "ms", "");
    report.add(
        "replay while being read",
        median(replays),
        "events/s",
        "compilation included",
    );
}

/// Reads random customers until told to stop; how long each read took, in milliseconds.
async fn read(client: Client, number: usize, customers: u32, stop: Arc<AtomicBool>) -> Vec<f64> {
    let mut random = fastrand::Rng::with_seed(number as u64);
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        let answer = client
            .entry(
                "replay",
                &format!("customer/c{:07}", random.u32(..customers)),
            )
            .await;
        // Early on, many customers have no entry yet.
        assert!(
            [200, 404].contains(&answer.status.as_u16()),
            "{}",
            answer.text()
        );
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    times
}
