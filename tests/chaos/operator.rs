//! Operators who change deployments all the time, one each, while others kill the host under the
//! changes.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use foldstream::api::{Deployment, DeploymentState, ParkedList, ParkedOutcome};
use foldstream_tests::client::Answer;
use foldstream_tests::{guests, wait};
use reqwest::Method;
use serde_json::{Value, json};

use crate::publisher::CUSTOMERS;
use crate::world::{Counts, LEDGER, Phase, TALLY, World};

/// A deployment that an operator changes.
#[derive(Clone, Copy, Debug)]
pub struct Operated {
    /// Its name.
    pub name: &'static str,
    /// The source that it reads.
    pub source: &'static str,
    /// Its guests: one of state version 1, one of version 2, which can migrate, and one of version
    /// 1 that fails.
    pub modules: [&'static str; 3],
    /// What is done to it: each change as often as it is drawn.
    pub changes: &'static [(Change, u32)],
}

/// The ledger.
pub const OF_LEDGER: Operated = Operated {
    name: LEDGER,
    source: "orders",
    modules: ["ledger", "ledger-next", "ledger-broken"],
    changes: &[
        (Change::Rebuild, 6),
        (Change::Migrate, 2),
        (Change::Inherit, 2),
        (Change::Break, 1),
        (Change::RollBack, 5),
        (Change::Repeat, 1),
        (Change::Pause, 2),
        (Change::Part, 2),
        (Change::Verify, 1),
        (Change::AsOf, 1),
        (Change::Prune, 1),
    ],
};

/// What an operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Deploys the other state version, built from the beginning of the stream.
    Rebuild,
    /// Deploys the next state version, made from the entries that there are.
    Migrate,
    /// Deploys other code over the same state.
    Inherit,
    /// Deploys code that fails, and is put back.
    Break,
    /// Rolls back.
    RollBack,
    /// Builds the same module from scratch.
    Repeat,
    /// Deploys code with a mistake, and leaves it alone for a while: what it can't do is parked.
    Worsen,
    /// Retries some of what is parked, or all.
    Retry,
    /// Deploys other code over the same state, which retries what is parked.
    Mend,
    /// Pauses, and resumes some time later.
    Pause,
    /// Rebuilds one key of the neighbour.
    Part,
    /// Folds all of it again, and compares.
    Verify,
    /// Reads from before.
    AsOf,
    /// Removes what no longer serves.
    Prune,
}

/// Pause before something that did not fit is tried again.
const AGAIN: Duration = Duration::from_millis(50);

/// How long a change may take before the next one is begun over it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Changes a deployment until the chaos is over.
pub async fn run(world: &World, of: &Operated) {
    let mut random = fastrand::Rng::with_seed(world.seed ^ 0x6f70_6572 ^ seed_of(of.name));
    // It begins with the one that matters most.
    let mut next = Some(of.changes[0].0);
    while world.is_until(Phase::Chaos) {
        let change = next.take().unwrap_or_else(|| draw(of, &mut random));
        world.note(&format!("operator: {change:?} {}", of.name));
        act(world, of, change, &mut random).await;
        world
            .sleep_until_after(Phase::Chaos, Duration::from_millis(random.u64(0..400)))
            .await;
    }
}

/// Gives each deployment draws of its own.
fn seed_of(name: &str) -> u64 {
    name.bytes()
        .fold(0, |seed, byte| seed << 8 | u64::from(byte))
}

fn draw(of: &Operated, random: &mut fastrand::Rng) -> Change {
    let mut lot = random.u32(..of.changes.iter().map(|(_, weight)| weight).sum::<u32>());
    for (change, weight) in of.changes {
        if lot < *weight {
            return *change;
        }
        lot -= weight;
    }
    Change::RollBack
}

async fn act(world: &World, of: &Operated, change: Change, random: &mut fastrand::Rng) {
    let [first, next, broken] = of.modules;
    let is_first = async || world.show(of.name).await.module.state_version == 1;
    match change {
        Change::Rebuild | Change::Migrate => {
            let is_first = is_first().await;
            let module = if is_first { next } else { first };
            // Only the next version knows how to migrate.
            let strategy = if change == Change::Migrate && is_first {
                "&strategy=migrate"
            } else {
                ""
            };
            deploy(world, of, guests::module(module), strategy).await;
            come_to_rest(world, of.name).await;
        }
        Change::Inherit | Change::Mend => {
            let module = if is_first().await { first } else { next };
            let parameters = if change == Change::Mend {
                "&retry-parked=true"
            } else {
                ""
            };
            let module = guests::release(module, random.u8(1..250));
            deploy(world, of, module, parameters).await;
        }
        Change::Break => {
            if is_first().await {
                deploy(world, of, guests::module(broken), "").await;
            }
        }
        Change::Worsen => worsen(world, of, random).await,
        Change::Retry => retry_some(world, of.name, random).await,
        Change::RollBack => post(world, of.name, "rollback").await,
        Change::Repeat => {
            post(world, of.name, "rebuild").await;
            come_to_rest(world, of.name).await;
        }
        Change::Pause => {
            post(world, of.name, "pause").await;
            world
                .sleep_until_after(Phase::Chaos, Duration::from_millis(random.u64(0..1_500)))
                .await;
            resume(world, of.name).await;
        }
        Change::Part => {
            let key = random.u32(..CUSTOMERS);
            post(world, TALLY, &format!("rebuild-part?key={key}")).await;
        }
        Change::Verify => post(world, of.name, "verification").await,
        Change::AsOf => as_of(world, random).await,
        Change::Prune => post(world, of.name, &format!("prune?keep={}", random.u8(..2))).await,
    }
}

async fn worsen(world: &World, of: &Operated, random: &mut fastrand::Rng) {
    let [first, _, broken] = of.modules;
    if world.show(of.name).await.module.state_version != 1 {
        // The next version has no mistakes.
        deploy(world, of, guests::module(first), "").await;
        return come_to_rest(world, of.name).await;
    }
    deploy(world, of, guests::module(broken), "").await;
    let alone = Duration::from_millis(random.u64(1_000..8_000));
    world.sleep_until_after(Phase::Chaos, alone).await;
}

/// Retries some of the parked keys of a deployment, or all.
async fn retry_some(world: &World, name: &str, random: &mut fastrand::Rng) {
    let path = format!("/v1/deployments/{name}/parked");
    let answer = world.ask_once(|client| client.request(Method::GET, &path));
    let Some(answer) = answer.await.filter(|answer| answer.status == 200) else {
        return;
    };
    let mut keys: Vec<String> = answer
        .json::<ParkedList>()
        .keys
        .into_iter()
        .map(|parked| parked.key)
        .collect();
    if keys.is_empty() {
        return;
    }
    if random.u8(..3) == 0 {
        return retry(world, name, &json!({ "all": true })).await;
    }
    random.shuffle(&mut keys);
    keys.truncate(random.usize(1..=keys.len()));
    retry(world, name, &json!({ "keys": keys })).await;
}

/// Retries a selection of parked keys.
pub async fn retry(world: &World, name: &str, selection: &Value) {
    let path = format!("/v1/deployments/{name}/parked/retry");
    let answer = world.ask_once(|client| {
        let request = client
            .request(Method::POST, &path)
            .header("content-type", "application/json");
        request.body(selection.to_string())
    });
    let answer = answer.await;
    // What an earlier deploy was asked to retry may be released meanwhile.
    if answer.as_ref().is_some_and(|answer| answer.status == 404) {
        return world.note("operator: a key is parked no more");
    }
    told(world, &format!("{path} {selection}"), answer.as_ref());
    if let Some(answer) = answer.filter(|answer| answer.status == 200) {
        let outcome: ParkedOutcome = answer.json();
        world.note(&format!(
            "operator: {} released, {} keys failed again, {} events are left",
            outcome.events,
            outcome.failed.len(),
            outcome.left.events
        ));
        let released = &world.counts.released;
        released.fetch_add(outcome.events, Ordering::Relaxed);
    }
}

/// Resumes a deployment until it is no longer paused.
pub async fn resume(world: &World, name: &str) {
    loop {
        world
            .ask(Method::POST, &format!("/v1/deployments/{name}/resume"))
            .await;
        if world.show(name).await.state != DeploymentState::Paused {
            return;
        }
    }
}

/// Rolls back code that can apply nothing: the last change may have been a rollback to it. Nothing else
/// leaves it active.
pub async fn leave_broken(world: &World, name: &str, last: u64) {
    let is_broken = |shown: &Deployment| {
        let failure = shown.failure.as_ref();
        failure.is_some_and(|failure| failure.message.contains("cannot apply event"))
    };
    let what = format!("be live at {last}, or to stop");
    let shown = world
        .show_when(name, &what, |shown| {
            let is_live = shown.state == DeploymentState::Live && shown.position >= last;
            is_live || is_broken(shown)
        })
        .await;
    if is_broken(&shown) {
        assert!(shown.reason.starts_with("rolled back"), "{shown:#?}");
        world.note(&format!("operator: {name} leaves broken code"));
        let path = format!("/v1/deployments/{name}/rollback");
        world.ask(Method::POST, &path).await.expect(200);
    }
}

/// Skips an event, as soon as that can be decided.
pub async fn skip(world: &World, name: &str, sequence: u64) {
    let body = json!({ "skip": [sequence], "reason": "poison" }).to_string();
    let path = format!("/v1/deployments/{name}/resume");
    let begin = Instant::now();
    let mut last = String::new();
    loop {
        let answer = world.ask_once(|client| {
            let request = client
                .request(Method::POST, &path)
                .header("content-type", "application/json");
            request.body(body.clone())
        });
        if let Some(answer) = answer.await {
            if answer.status.is_success() || world.skips(name).await.contains(&sequence) {
                return;
            }
            last = answer.text();
        }
        assert!(
            begin.elapsed() < wait::DEADLINE,
            "event {sequence} of {name} can not be skipped: {last}"
        );
        tokio::time::sleep(AGAIN).await;
    }
}

/// Deletes a deployment, as soon as that is possible: not while the disk is full.
pub async fn remove(world: &World, name: &str) {
    let path = format!("/v1/deployments/{name}");
    let begin = Instant::now();
    loop {
        let answer = world.ask(Method::DELETE, &path).await;
        if answer.status.is_success() || answer.status == 404 {
            return;
        }
        pause_if_it_may_pass(&answer, begin, "delete").await;
    }
}

/// Deploys a guest under a name, as soon as that is possible.
pub async fn install(world: &World, name: &str, source: &str, guest: &str, parameters: &str) {
    let path = format!("/v1/deployments?name={name}&source={source}{parameters}");
    let begin = Instant::now();
    let mut last = "no answer".to_owned();
    loop {
        let answer = world.ask_once(|client| {
            let request = client
                .request(Method::POST, &path)
                .header("content-type", "application/wasm");
            request.body(guests::module(guest))
        });
        if let Some(answer) = answer.await {
            if answer.status.is_success() {
                return;
            }
            last = answer.text();
        }
        assert!(
            begin.elapsed() < wait::DEADLINE,
            "{guest} can not be deployed: {last}"
        );
        tokio::time::sleep(AGAIN).await;
    }
}

/// Does something to a deployment, as soon as that fits: a source that is away just now can't be
/// asked.
pub async fn insist(world: &World, name: &str, action: &str) {
    let path = format!("/v1/deployments/{name}/{action}");
    let begin = Instant::now();
    loop {
        let answer = world.ask(Method::POST, &path).await;
        if answer.status.is_success() {
            return;
        }
        pause_if_it_may_pass(&answer, begin, action).await;
    }
}

/// Another change is under way, something is not there yet, or the disk is full for a while: none of
/// it lasts.
async fn pause_if_it_may_pass(answer: &Answer, begin: Instant, action: &str) {
    let may_pass =
        matches!(answer.status.as_u16(), 409 | 503 | 507) && begin.elapsed() < wait::DEADLINE;
    assert!(may_pass, "{action}: {}", answer.text());
    tokio::time::sleep(AGAIN).await;
}

/// Waits until nothing is being built, but not for ever: the next change may as well fall into this
/// one.
async fn come_to_rest(world: &World, name: &str) {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE && world.is_until(Phase::Chaos) {
        let shown: Deployment = world.show(name).await;
        // While events are parked, effects can't change hands.
        if shown.candidate.is_none() || shown.parked.events > 0 {
            return;
        }
        world
            .sleep_until_after(Phase::Chaos, Duration::from_millis(20))
            .await;
    }
}

/// Deploys a module to it, if that is possible just now; returns whether it was accepted.
pub async fn deploy(world: &World, of: &Operated, module: Vec<u8>, parameters: &str) -> bool {
    let Operated { name, source, .. } = of;
    let path = format!("/v1/deployments?name={name}&source={source}{parameters}");
    let answer = world.ask_once(|client| {
        let request = client
            .request(Method::POST, &path)
            .header("content-type", "application/wasm");
        request.body(module.clone())
    });
    let answer = answer.await;
    told(world, &path, answer.as_ref());
    answer.is_some_and(|answer| answer.status.is_success())
}

async fn post(world: &World, name: &str, action: &str) {
    let path = format!("/v1/deployments/{name}/{action}");
    let answer = world
        .ask_once(|client| client.request(Method::POST, &path))
        .await;
    told(world, &path, answer.as_ref());
}

/// Notes an answer. A change can be declined, as another one is under way or a file is not open
/// yet; it is never an error inside.
fn told(world: &World, path: &str, answer: Option<&Answer>) {
    let Some(answer) = answer else {
        return world.note(&format!("operator: {path}: no answer"));
    };
    let status = answer.status.as_u16();
    let text: String = answer.text().chars().take(200).collect();
    world.note(&format!(
        "operator: {path}: {status} {}",
        if answer.status.is_success() {
            ""
        } else {
            &text
        }
    ));
    assert!(
        matches!(status, 200..=299 | 409 | 422 | 503 | 504 | 507),
        "{path} is answered {status}: {text}"
    );
    if answer.status.is_success() {
        Counts::add(&world.counts.changed);
    }
}

/// Reads what was there at some earlier position.
async fn as_of(world: &World, random: &mut fastrand::Rng) {
    let position = random.u64(1..=world.oracle.through().max(1));
    let path = format!("/v1/deployments/{LEDGER}/entries/head?as-of={position}&timeout=10s");
    let Some(answer) = world
        .ask_once(|client| client.request(Method::GET, &path))
        .await
    else {
        return;
    };
    told(world, &path, Some(&answer));
    if answer.status == 200 {
        let found = answer.value();
        let wanted = world
            .oracle
            .head(position, crate::oracle::Shape::of(&found));
        assert_eq!(
            Some(&found),
            wanted.as_ref(),
            "as of {position} is not the fold"
        );
    }
}
