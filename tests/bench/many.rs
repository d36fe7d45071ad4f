//! Many deployments: how long a host that has them takes to start after a kill and to stop, and
//! what many live ones of one stream cost the server and the host.

use std::time::{Duration, Instant};

use foldstream_tests::host::{Host, processor_seconds};
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::{guests, wait};

use crate::arguments::Arguments;
use crate::report::{Report, Target, median};
use crate::workload::{self, STREAM};

/// Deployments of a host that is killed and started again.
const STARTED: usize = 1_000;
/// Deployments that follow one stream.
const FOLLOWERS: [usize; 2] = [1, 100];
/// Events per second that they follow.
const RATE: u64 = 1_000;
/// How often events are published.
const TICK: Duration = Duration::from_millis(10);
const TICKS_PER_SECOND: u64 = 100;

/// Measures both.
pub async fn measure(arguments: &Arguments, report: &mut Report) {
    start(arguments.rounds, report).await;
    follow(arguments.seconds, report).await;
}

/// From the start of a process to the answer that all deployments are ready, and from the signal to
/// its end.
async fn start(rounds: usize, report: &mut Report) {
    let mut host = Host::start().await;
    host.client().append(&[workload::new_event()]).await;
    let module = guests::module("customer-totals");
    for number in 0..STARTED {
        host.client()
            .deploy(&format!("many-{number}"), &module)
            .await;
    }
    for number in 0..STARTED {
        host.client().reached(&format!("many-{number}"), 1).await;
    }
    let (mut started, mut stopped) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        host.kill();
        let begin = Instant::now();
        host.restart().await;
        ready(&host).await;
        started.push(begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        assert!(host.stop().success(), "it stops as asked");
        stopped.push(begin.elapsed().as_secs_f64());
        host.restart().await;
        ready(&host).await;
    }
    report.add_with_target(
        format!("start after a kill until {STARTED} deployments are ready"),
        median(started),
        "s",
        Target::AtMost(5.0),
    );
    let name = format!("stop of a host with {STARTED} deployments");
    report.add_with_target(name, median(stopped), "s", Target::AtMost(1.0));
}

async fn ready(host: &Host) {
    let answers = async || {
        let answer = host.client().get("/readyz").await;
        answer.status.is_success().then_some(())
    };
    wait::until("all deployments to be ready", answers).await;
}

/// Processor time of the server and of the host while live events arrive.
async fn follow(seconds: u64, report: &mut Report) {
    for followers in FOLLOWERS {
        let mut server = workload::publish(1, 1).await;
        let host = Host::start_on(&server, STREAM).await;
        let module = guests::module("customer-totals");
        for number in 0..followers {
            let name = format!("follower-{number}");
            host.client().deploy(&name, &module).await;
            host.client().reached(&name, 1).await;
        }
        let (server_seconds, host_seconds) = live(&mut server, host, followers, seconds).await;
        let name = format!("{followers} live deployments of one stream at {RATE} events/s");
        report.add(
            format!("{name}: processor of the server"),
            100.0 * server_seconds / seconds as f64,
            "%",
            "of a core, publishing included",
        );
        report.add(
            format!("{name}: processor of the host"),
            100.0 * host_seconds / seconds as f64,
            "%",
            "of a core",
        );
    }
}

/// Processor seconds of the server and of the host for events at an even rate.
async fn live(
    server: &mut NatsServer,
    mut host: Host,
    followers: usize,
    seconds: u64,
) -> (f64, f64) {
    let context = server.jetstream().await;
    let ticks = seconds * TICKS_PER_SECOND;
    let each = (RATE / TICKS_PER_SECOND) as usize;
    let events = ticks as usize * each;
    let mut messages = workload::messages(1 + events, 1_000).skip(1);
    let ids = (server.process().id(), host.process().id());
    let before = (processor_seconds(ids.0), processor_seconds(ids.1));
    let mut ticker = tokio::time::interval(TICK);
    for _ in 0..ticks {
        ticker.tick().await;
        nats::publish(&context, messages.by_ref().take(each).collect::<Vec<_>>()).await;
    }
    for number in 0..followers {
        let name = format!("follower-{number}");
        host.client().reached(&name, 1 + events as u64).await;
    }
    let after = (processor_seconds(ids.0), processor_seconds(ids.1));
    (after.0 - before.0, after.1 - before.1)
}
