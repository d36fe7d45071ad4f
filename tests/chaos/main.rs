//! Chaos, drawn by a seed: the host and the server are killed, events and streams are lost,
//! restored and poisoned, disks fill up and permissions go, while an operator changes the
//! deployment, and readers and watchers check every answer against the fold at its position.
//! Handlers publish meanwhile, over a proxy that loses acknowledgements, and each of their messages
//! is counted. `fate.rs`, `side.rs`, `leaky.rs`, `errands.rs` and `operator.rs` name what is done,
//! docs/what-happens-when.md what is not.
//!
//! `make chaos CHAOS_SEED=… CHAOS_KILLS=…` or `CHAOS_MINUTES=…` runs it for long; without them it
//! is a short run of one seed, and part of `make test`. The seed draws what is done; when it
//! happens depends on the machine.

mod errands;
mod errands_feed;
mod errands_model;
mod fate;
mod handlers;
mod leaky;
mod operator;
mod oracle;
mod plan;
mod publisher;
mod readers;
mod removal;
mod rest;
mod side;
mod testimony;
mod watchers;
mod world;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use foldstream_tests::guests;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::task::JoinHandle;

use plan::Plan;
use watchers::Seen;
use world::{Counts, LEDGER, Phase, TALLY, World};

/// Clients that read.
const READERS: u64 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_breaks_nothing_is_lost_doubled_untrue_or_seen_to_go_back() {
    let plan = Plan::from_environment();
    // Built before anything is timed: a first build takes a minute.
    let operated = [
        operator::OF_LEDGER.modules,
        handlers::TO_LOG.modules,
        errands::ON_STREAM.modules,
    ];
    let others = [
        "tally",
        side::MISCHIEF,
        side::FIXED,
        leaky::WITNESS,
        leaky::BYSTANDER,
    ];
    for name in operated.as_flattened().iter().chain(&others) {
        guests::path(name);
    }
    let (total, begin) = (Counts::default(), Instant::now());
    for round in 0.. {
        let kills =
            plan.kills_of_next_round(total.kills.load(std::sync::atomic::Ordering::Relaxed));
        if kills == 0 {
            break;
        }
        let seed = plan.seed + round;
        eprintln!("chaos: round {round} with CHAOS_SEED={seed}");
        let counts = play(seed, kills, plan.chaos_of_round).await;
        total.add_all(&counts.counts);
        eprintln!(
            "chaos: {:.0} s, in all {}",
            begin.elapsed().as_secs_f64(),
            total.words()
        );
    }
}

/// Plays one round.
async fn play(seed: u64, kills: u64, at_most: Duration) -> Arc<World> {
    let mut random = fastrand::Rng::with_seed(seed);
    let (subjects, config, rate) = (
        fate::subjects(&mut random),
        fate::config(&mut random),
        fate::rate(&mut random),
    );
    let version = fate::version(&mut random);
    let world = Arc::new(World::start(seed, version, subjects, &config).await);
    world.note(&format!(
        "{rate} orders/s on {subjects:?}, server {version:?}; {config:?}"
    ));
    let tasks: FuturesUnordered<JoinHandle<()>> = FuturesUnordered::new();
    let noise = subjects.len() > 1;
    let shared = Arc::clone(&world);
    tasks.push(tokio::spawn(async move {
        publisher::run(&shared, rate, noise).await;
    }));
    let shared = Arc::clone(&world);
    tasks.push(tokio::spawn(async move { handlers::feed(&shared).await }));
    let shared = Arc::clone(&world);
    tasks.push(tokio::spawn(
        async move { errands_feed::run(&shared).await },
    ));
    deploy(&world).await;
    handlers::deploy(&world).await;
    errands::deploy(&world).await;
    for number in 0..READERS {
        let shared = Arc::clone(&world);
        tasks.push(tokio::spawn(
            async move { readers::run(&shared, number).await },
        ));
    }
    let seen: [Arc<Mutex<Seen>>; 2] = Default::default();
    for seen in &seen {
        let (shared, seen) = (Arc::clone(&world), Arc::clone(seen));
        tasks.push(tokio::spawn(
            async move { watchers::run(&shared, &seen).await },
        ));
    }
    for operated in [
        operator::OF_LEDGER,
        handlers::TO_STREAM,
        handlers::TO_LOG,
        errands::handler(seed),
    ] {
        let shared = Arc::clone(&world);
        tasks.push(tokio::spawn(async move {
            operator::run(&shared, &operated).await;
        }));
    }
    let shared = Arc::clone(&world);
    tasks.push(tokio::spawn(async move { side::run(&shared).await }));
    let shared = Arc::clone(&world);
    tasks.push(tokio::spawn(async move { leaky::run(&shared).await }));
    let shared = Arc::clone(&world);
    tasks.push(tokio::spawn(async move {
        conduct(&shared, kills, at_most, &seen).await;
    }));
    watch_over(&world, tasks).await;
    world
}

/// Brings the round from chaos to rest to its end.
async fn conduct(world: &World, kills: u64, at_most: Duration, seen: &[Arc<Mutex<Seen>>]) {
    fate::run(world, kills, Instant::now() + at_most).await;
    world.set_phase(Phase::Calm);
    world.kill_host(None).await;
    drop(world.playing.write().await);
    // Orders that come when everything is up again: nothing is stuck.
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.set_phase(Phase::Rest);
    // The publisher puts down what it has begun.
    drop(world.publishing.lock().await);
    let seen: Vec<&Mutex<Seen>> = seen.iter().map(AsRef::as_ref).collect();
    rest::check(world, &seen).await;
    world.set_phase(Phase::Over);
}

/// Deploys both modules, and waits until they have something to show.
async fn deploy(world: &World) {
    for (name, module) in [(LEDGER, "ledger"), (TALLY, "tally")] {
        world
            .client()
            .deploy_with(name, &guests::module(module), "&source=orders")
            .await;
        world
            .show_when(name, "apply something", |shown| shown.position > 100)
            .await;
    }
}

/// Waits for all tasks. The first one that fails ends the run, with everything that one needs to
/// look into it.
async fn watch_over(world: &World, mut tasks: FuturesUnordered<JoinHandle<()>>) {
    while let Some(ended) = tasks.next().await {
        let Err(error) = ended else { continue };
        for task in &tasks {
            task.abort();
        }
        let places = world.keep().await;
        eprintln!(
            "---- actions of this round:\n{}----\nfiles are kept:\n{places}",
            world.log()
        );
        panic!(
            "a round failed: {error}; run it again with CHAOS_SEED={}",
            world.seed
        );
    }
}
