//! Deploying: from the upload to the first applied event, with and without compiled code at hand;
//! and what idle deployments cost.

use std::time::Instant;

use foldstream_tests::guests;
use foldstream_tests::host::Host;

use crate::arguments::Arguments;
use crate::report::{Report, Target, median};
use crate::workload::{self, STREAM};

/// Measures both.
pub async fn measure(arguments: &Arguments, report: &mut Report) {
    let module = guests::module("customer-totals");
    report.add(
        "module",
        module.len() as f64 / 1024.0,
        "KiB",
        "tests/guests/customer-totals",
    );
    let (mut cold, mut cached) = (Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        let (first, second) = deploy_twice(&module).await;
        cold.push(first);
        cached.push(second);
    }
    let name = "deploy to first applied event, cold";
    report.add_with_target(name, median(cold), "ms", Target::AtMost(1_000.0));
    let name = "deploy to first applied event, from the cache of a host started again";
    report.add_with_target(name, median(cached), "ms", Target::AtMost(100.0));
    idle(arguments.deployments, &module, report).await;
}

/// Milliseconds of a deploy to a new host, and of one to the same host started again, under another
/// name.
async fn deploy_twice(module: &[u8]) -> (f64, f64) {
    let mut host = Host::start().await;
    host.client().append(&[workload::new_event()]).await;
    let cold = deploy(&host, "cold", module).await;
    host.client()
        .send(
            host.client()
                .request(reqwest::Method::DELETE, "/v1/deployments/cold"),
        )
        .await
        .expect(204);
    host.stop();
    host.restart().await;
    (cold, deploy(&host, "cached", module).await)
}

async fn deploy(host: &Host, name: &str, module: &[u8]) -> f64 {
    let started = Instant::now();
    host.client().deploy(name, module).await;
    let path = format!("/v1/deployments/{name}/entries?limit=1&at-least=1&timeout=30s");
    host.client().get(&path).await.expect(200);
    started.elapsed().as_secs_f64() * 1e3
}

/// Memory of many deployments that have applied one event and wait for more.
async fn idle(deployments: usize, module: &[u8], report: &mut Report) {
    let server = workload::publish(1, 1).await;
    let host = Host::start_on(&server, STREAM).await;
    host.client().deploy("first", module).await;
    host.client().reached("first", 1).await;
    let before = host.memory_bytes();
    for number in 0..deployments {
        host.client()
            .deploy(&format!("idle-{number}"), module)
            .await;
    }
    for number in 0..deployments {
        host.client().reached(&format!("idle-{number}"), 1).await;
    }
    let each =
        host.memory_bytes().saturating_sub(before) as f64 / deployments as f64 / f64::from(1 << 20);
    report.add_with_target(
        format!("memory of one of {deployments} idle deployments on JetStream"),
        each,
        "MiB",
        Target::AtMost(2.0),
    );
}
