//! What breaks: each fault is one arm, with what must be true after it.

use std::time::{Duration, Instant};

use foldstream::api::{DeploymentList, DeploymentState};
use foldstream_tests::nats::Version;
use foldstream_tests::orders::Order;
use foldstream_tests::wait;
use reqwest::Method;

use crate::world::{ALL, Counts, LEDGER, Phase, STREAM, World, authorization};
use crate::{errands, operator, publisher};

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The host is killed.
    Kill,
    /// The host is killed while it starts.
    KillTwice,
    /// The host kills itself at a step of a rollout.
    KillAtStep,
    /// The host is asked to stop.
    Stop,
    /// The server is killed.
    KillServer,
    /// The server is stopped and started again; an old one may be upgraded meanwhile.
    StopServer,
    /// Server and host are killed, and the host is there first.
    KillBoth,
    /// The description of the stream is edited, and the server restarted.
    EditStream,
    /// The server takes permissions away, and gives them back.
    Refuse,
    /// The files of the host can not grow for a while.
    FillDisk,
    /// An event is published that the module rejects, and it is skipped.
    Poison,
    /// An order is published with a header that is broken.
    BreakHeader,
    /// Streams store what handlers publish, and their acknowledgements are lost.
    LoseAcknowledgements,
    /// Handlers hear nothing of the server, until their connections break.
    SwallowAnswers,
    /// The connections of handlers break.
    BreakConnections,
}

/// Each fault as often as it is drawn.
const FAULTS: [(Fault, u32); 15] = [
    (Fault::Kill, 24),
    (Fault::KillTwice, 3),
    (Fault::KillAtStep, 6),
    (Fault::Stop, 2),
    (Fault::KillServer, 2),
    (Fault::StopServer, 1),
    (Fault::KillBoth, 2),
    (Fault::EditStream, 1),
    (Fault::Refuse, 1),
    (Fault::FillDisk, 2),
    (Fault::Poison, 2),
    (Fault::BreakHeader, 2),
    (Fault::LoseAcknowledgements, 4),
    (Fault::SwallowAnswers, 3),
    (Fault::BreakConnections, 3),
];

/// Permissions that are not enough, each in another way.
const REFUSED: [&str; 4] = [
    "publish: { deny: \"$JS.API.CONSUMER.MSG.NEXT.>\" }",
    "publish: { deny: \"$JS.API.CONSUMER.CREATE.>\" }",
    "publish: { deny: \"$JS.API.>\" }",
    "publish: { deny: \">\" }, subscribe: { deny: \">\" }",
];

/// Data of events that the ledger rejects.
const POISON: [&[u8]; 6] = [
    b"",
    b"not JSON",
    b"{\"order\":\"o-1\"}",
    b"[1,2",
    b"\xff\xfe\x00",
    b"huge",
];

/// Headers that no sound client writes.
const BROKEN_HEADERS: [&[u8]; 4] = [b"user: Jos\xe9", b"a key: value", b"no colon", b"key: a\rb"];

/// How long a host has to come to the step at which it kills itself, before it is killed.
const STEP_WAIT: Duration = Duration::from_secs(3);

/// How long a host has to notice that its server is gone. It is woken by the end of its
/// connections.
const NOTICES_WITHIN: Duration = Duration::from_secs(2);

/// Pause between two looks at a host whose server is down.
const LOOK: Duration = Duration::from_millis(50);

/// Breaks things until the host was killed this often, or the time is over.
pub async fn run(world: &World, kills: u64, until: Instant) {
    let mut random = fastrand::Rng::with_seed(world.seed ^ 0x6661_7465);
    while world
        .counts
        .kills
        .load(std::sync::atomic::Ordering::Relaxed)
        < kills
        && Instant::now() < until
    {
        world
            .sleep_until_after(Phase::Chaos, Duration::from_millis(random.u64(100..1_800)))
            .await;
        let fault = draw(&mut random);
        world.note(&format!("fate: {fault:?}"));
        strike(world, fault, &mut random).await;
    }
}

fn draw(random: &mut fastrand::Rng) -> Fault {
    let mut lot = random.u32(..FAULTS.iter().map(|(_, weight)| weight).sum::<u32>());
    for (fault, weight) in FAULTS {
        if lot < weight {
            return fault;
        }
        lot -= weight;
    }
    Fault::Kill
}

async fn strike(world: &World, fault: Fault, random: &mut fastrand::Rng) {
    match fault {
        Fault::Kill => world.kill_host(None).await,
        Fault::KillTwice => {
            world.kill_host(None).await;
            tokio::time::sleep(Duration::from_millis(random.u64(0..150))).await;
            world.kill_host(None).await;
        }
        Fault::KillAtStep => kill_at_step(world, random).await,
        Fault::Stop => {
            let mut host = world.host.lock().await;
            let status = host.stop();
            assert_eq!(status.code(), Some(0), "a stop in good order ends with 0");
            world.start_host(&mut host, None).await;
            Counts::add(&world.counts.faults);
        }
        Fault::KillServer | Fault::StopServer => {
            let mut server = world.server.lock().await;
            if fault == Fault::KillServer {
                server.kill();
            } else {
                server.stop();
                if random.bool() {
                    server.set_version(Version::Newest);
                }
            }
            Counts::add(&world.counts.server_stops);
            nothing_is_live(
                world,
                Duration::from_millis(random.u64(0..5_000)),
                NOTICES_WITHIN,
            )
            .await;
            server.restart().await;
        }
        Fault::KillBoth => {
            let mut server = world.server.lock().await;
            server.kill();
            Counts::add(&world.counts.server_stops);
            world.kill_host(None).await;
            // It has never reached a server: from its first answer on it knows nothing.
            nothing_is_live(
                world,
                Duration::from_millis(random.u64(0..2_000)),
                Duration::ZERO,
            )
            .await;
            server.restart().await;
        }
        Fault::EditStream => edit_stream(world, random).await,
        Fault::Refuse => refuse(world, random).await,
        Fault::FillDisk => fill_disk(world, random).await,
        Fault::Poison => poison(world, random).await,
        Fault::BreakHeader => {
            let header = BROKEN_HEADERS[random.usize(..BROKEN_HEADERS.len())];
            // Its number is none that the publisher uses.
            let order = Order {
                customer: 7,
                kind: "placed",
                amount: 1,
                number: random.u64(1 << 40..1 << 41),
            };
            // A server that is killed meanwhile may have stored it or not: the oracle looks.
            let _ = publisher::publish_raw(world, &order, header).await;
            Counts::add(&world.counts.faults);
        }
        Fault::LoseAcknowledgements | Fault::SwallowAnswers | Fault::BreakConnections => {
            harm_connections(world, fault, random).await;
        }
    }
}

async fn kill_at_step(world: &World, random: &mut fastrand::Rng) {
    let steps = foldstream::deployments::crash_points::STEPS;
    let step = steps[random.usize(..steps.len())];
    world.note(&format!("fate: the next host dies at {step}"));
    world.kill_host(Some(step)).await;
    let begin = Instant::now();
    while begin.elapsed() < STEP_WAIT {
        let died = world.host.lock().await.has_ended();
        if died {
            Counts::add(&world.counts.kills_at_steps);
            world.note(&format!("fate: the host died at {step}"));
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.kill_host(None).await;
}

/// While the server is down, nothing says that it is live and lags behind nothing; the host may
/// take some time to notice.
async fn nothing_is_live(world: &World, down: Duration, notices_within: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < down {
        let is_noticed = begin.elapsed() >= notices_within;
        let list = world
            .ask_once(|client| client.request(Method::GET, "/v1/deployments"))
            .await;
        if let Some(list) = list.filter(|list| is_noticed && list.status == 200) {
            for shown in list.json::<DeploymentList>().deployments {
                // A log needs no server.
                if shown.source == errands::LOG {
                    continue;
                }
                let is_live = shown.state == DeploymentState::Live && shown.lag_events == Some(0);
                assert!(
                    !is_live,
                    "it says that it is live without a server: {shown:#?}"
                );
            }
            Counts::add(&world.counts.answers);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Takes permissions of the host away for a while. What it shows is true meanwhile.
async fn refuse(world: &World, random: &mut fastrand::Rng) {
    let mut server = world.server.lock().await;
    server.reload_with(&authorization(REFUSED[random.usize(..REFUSED.len())]));
    Counts::add(&world.counts.faults);
    tokio::time::sleep(Duration::from_millis(random.u64(0..2_500))).await;
    server.reload_with(&authorization(ALL));
}

/// Harms the connections of handlers for a while; one in two times the host is killed meanwhile.
async fn harm_connections(world: &World, fault: Fault, random: &mut fastrand::Rng) {
    let proxy = &world.proxy;
    Counts::add(&world.counts.faults);
    proxy.lose_acknowledgements(fault == Fault::LoseAcknowledgements);
    proxy.swallow(fault == Fault::SwallowAnswers);
    if fault == Fault::BreakConnections {
        proxy.break_all();
    }
    let harmed = Duration::from_millis(random.u64(0..2_500));
    world.sleep_until_after(Phase::Chaos, harmed).await;
    if random.bool() {
        world.kill_host(None).await;
    }
    // What a connection did not deliver can't come later, so it ends before the next answer.
    if fault != Fault::LoseAcknowledgements {
        proxy.break_all();
    }
    proxy.lose_acknowledgements(false);
    proxy.swallow(false);
}

/// Lets no file of the host grow for a while.
async fn fill_disk(world: &World, random: &mut fastrand::Rng) {
    let largest = {
        let host = world.host.lock().await;
        let states = host.data_dir().join("state").join(LEDGER);
        let files = std::fs::read_dir(states)
            .map(|files| files.flatten().collect::<Vec<_>>())
            .unwrap_or_default();
        files
            .iter()
            .filter_map(|file| file.metadata().ok())
            .map(|file| file.len())
            .max()
            .unwrap_or(0)
    };
    world
        .host
        .lock()
        .await
        .limit_files(Some(largest + random.u64(0..(256 << 10))));
    Counts::add(&world.counts.faults);
    tokio::time::sleep(Duration::from_millis(random.u64(0..3_000))).await;
    world.host.lock().await.limit_files(None);
}

/// Publishes an event that the ledger rejects; the way past it is a decision.
async fn poison(world: &World, random: &mut fastrand::Rng) {
    let data = POISON[random.usize(..POISON.len())];
    let data = if data == b"huge" {
        vec![b'x'; 600_000]
    } else {
        data.to_vec()
    };
    let sequence = publisher::publish_one(world, "orders.poison", &data).await;
    world.note(&format!("fate: poison at {sequence}"));
    Counts::add(&world.counts.faults);
    let wait = Duration::from_millis(random.u64(0..1_500));
    world.sleep_until_after(Phase::Chaos, wait).await;
    if random.bool() {
        world.kill_host(None).await;
    }
    operator::skip(world, LEDGER, sequence).await;
}

/// Edits the description of the stream, and restarts the server, which may write down another
/// creation time then.
async fn edit_stream(world: &World, random: &mut fastrand::Rng) {
    let mut server = world.server.lock().await;
    let context = publisher::connect(world).await;
    let mut stream = wait::until("the stream", || async {
        context.get_stream(STREAM).await.ok()
    })
    .await;
    let mut config = stream
        .info()
        .await
        .expect("a stream tells about itself")
        .config
        .clone();
    config.description = Some(format!("edited {}", random.u32(..)));
    context
        .update_stream(config)
        .await
        .expect("a description can be edited");
    server.stop();
    Counts::add(&world.counts.server_stops);
    Counts::add(&world.counts.faults);
    server.restart().await;
}

/// The subjects that a stream of the round has: with one of them the server filters nothing, with
/// two it does.
pub fn subjects(random: &mut fastrand::Rng) -> &'static [&'static str] {
    if random.bool() {
        &["orders.>"]
    } else {
        &["orders.>", "noise.>"]
    }
}

/// The server of a round: one in three is of the oldest version.
pub fn version(random: &mut fastrand::Rng) -> Version {
    if random.u8(..3) == 0 {
        Version::Oldest
    } else {
        Version::Newest
    }
}

/// The configuration of a host of the round.
pub fn config(random: &mut fastrand::Rng) -> String {
    let flush = ["20ms", "200ms", "1s", "5s"][random.usize(..4)];
    let batch = [50, 500, 5_000][random.usize(..3)];
    let snapshots = [0, 3_000][random.usize(..2)];
    let snapshots = if snapshots == 0 {
        String::new()
    } else {
        format!("[rollout]\nsnapshot_events = {snapshots}\n")
    };
    // An event that loops is found out by the third deadline.
    let modules = "[modules]\ndeadline = \"3s\"\n";
    format!(
        "[state]\nflush_interval = \"{flush}\"\n[pipeline]\nbatch_events = \
         {batch}\n{modules}{snapshots}"
    )
}

/// Orders per second.
pub fn rate(random: &mut fastrand::Rng) -> usize {
    [200, 1_000, 2_000][random.usize(..3)]
}
