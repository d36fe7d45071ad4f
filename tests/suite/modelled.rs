//! A handler that parks, against a model in memory: events, failures, retries, drops, upgrades,
//! releases that are put back, rebuilds and kills in an order drawn by a seed; kills also come while
//! events are applied, retried and dropped, and while a state is rebuilt. After each step the host
//! has parked what the model has parked, and its state is the model's; each key's messages are
//! stored in the order in which the model applied its events; and once nothing is parked, the state
//! equals the fold.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use foldstream::api::{self, DeployOutcome, GenerationStatus, WorkState};
use foldstream_tests::client::Client;
use foldstream_tests::host::Host;
use foldstream_tests::reactor::{self, Place, REACTOR, TO_LOG, event};
use foldstream_tests::{guests, wait};
use serde_json::json;

/// Keys of events that may fail.
const KEYS: u64 = 5;
/// A key whose events never fail.
const CALM: u64 = 9;
/// Events after which new code is no longer on probation, if nothing else waits.
const PROBATION: u64 = 100;
/// Steps of a run.
const STEPS: usize = 40;
/// Most events of one step.
const EVENTS: u64 = 12;

/// The code of the handler, by what it can't apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    /// Events that ask for three messages, and those that ask it to fail.
    Broken,
    /// Those that ask it to fail.
    First,
    /// None.
    Fixed,
}

impl Code {
    const ALL: [Self; 3] = [Self::Broken, Self::First, Self::Fixed];

    fn guest(self) -> &'static str {
        match self {
            Self::Broken => "reactor-broken",
            Self::First => REACTOR,
            Self::Fixed => "reactor-fixed",
        }
    }

    fn applies(self, told: &Told) -> bool {
        match told.what {
            "fail" => self == Self::Fixed,
            "three" => self != Self::Broken,
            _ => true,
        }
    }
}

/// An event: its sequence, and what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    sequence: u64,
    what: &'static str,
}

/// What became of the events of a key.
#[derive(Debug, Default)]
struct Key {
    /// In the order in which they were applied.
    applied: Vec<Told>,
    parked: VecDeque<Told>,
    /// Whether the first one that is parked was tried: it was not, if the one before it was dropped.
    has_failed: bool,
}

/// What a handler that parks does.
#[derive(Debug)]
struct Model {
    code: Code,
    keys: BTreeMap<u64, Key>,
    last: u64,
}

impl Model {
    fn append(&mut self, key: u64, told: Told) {
        self.last = told.sequence;
        let of = self.keys.entry(key).or_default();
        if !of.parked.is_empty() {
            of.parked.push_back(told);
        } else if self.code.applies(&told) {
            of.applied.push(told);
        } else {
            of.parked.push_back(told);
            of.has_failed = true;
        }
    }

    fn retry(&mut self, key: u64) {
        let of = self.keys.entry(key).or_default();
        while let Some(told) = of.parked.pop_front() {
            if !self.code.applies(&told) {
                of.parked.push_front(told);
                of.has_failed = true;
                return;
            }
            of.applied.push(told);
        }
    }

    fn drop(&mut self, key: u64, dropped: Dropped) {
        let of = self.keys.entry(key).or_default();
        match dropped {
            Dropped::First => drop(of.parked.pop_front()),
            Dropped::Whole => of.parked.clear(),
        }
        of.has_failed = false;
    }

    fn parked_keys(&self) -> Vec<u64> {
        let parked = self.keys.iter().filter(|(_, of)| !of.parked.is_empty());
        parked.map(|(key, _)| *key).collect()
    }

    /// Whether a fold of all that was applied, with the code of now, gives the state of now.
    fn can_fold_again(&self) -> bool {
        let mut applied = self.keys.values().flat_map(|of| &of.applied);
        applied.all(|told| self.code.applies(told))
    }
}

/// What is dropped of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// The first event that is parked.
    First,
    /// All that is parked.
    Whole,
}

/// A host, and a model in memory that does the same.
pub(crate) trait Modelled {
    /// Does something that is drawn, with both; returns what, in words.
    async fn step(&mut self) -> String;

    /// Fails if the host has not done what the model has done.
    async fn check(&self);

    /// Releases everything that is parked, and checks the end.
    async fn finish(&mut self);
}

/// Draws steps, and checks after each.
pub(crate) async fn follow(mut bed: impl Modelled) {
    for number in 0..STEPS {
        let done = bed.step().await;
        // Shown only if the test fails.
        println!("{number}: {done}");
        bed.check().await;
    }
    bed.finish().await;
}

/// A host and the model of its handler.
struct Bed {
    host: Host,
    model: Model,
    random: fastrand::Rng,
    releases: u8,
}

impl Bed {
    async fn start(seed: u64) -> Self {
        let host = Host::start_with("[state]\nflush_interval = \"50ms\"\n").await;
        let module = guests::module(Code::First.guest());
        let parameters = format!("{TO_LOG}&on-failure=park");
        host.client()
            .deploy_with(REACTOR, &module, &parameters)
            .await;
        Self {
            host,
            model: Model {
                code: Code::First,
                keys: BTreeMap::new(),
                last: 0,
            },
            random: fastrand::Rng::with_seed(seed),
            releases: 0,
        }
    }

    fn client(&self) -> &Client {
        self.host.client()
    }

    /// Appends events to the stream and not yet to the model.
    async fn append(&self, events: &[(u64, &'static str)]) -> Vec<(u64, Told)> {
        let told: Vec<_> = events.iter().map(|(key, what)| event(*key, what)).collect();
        let sequences = self.client().append(&told).await.sequences;
        let told = events.iter().zip(sequences).map(|((key, what), sequence)| {
            let what = *what;
            (*key, Told { sequence, what })
        });
        told.collect()
    }

    fn learn(&mut self, told: Vec<(u64, Told)>) {
        for (key, told) in told {
            self.model.append(key, told);
        }
    }

    /// Few of them fail: a module that fails everywhere stops instead of parking everything.
    fn draw(&mut self) -> Vec<(u64, &'static str)> {
        let count = self.random.u64(1..=EVENTS);
        let events = (0..count).map(|_| {
            let what = match self.random.u8(..20) {
                0 => "fail",
                1..=3 => "three",
                4..=7 => "quiet",
                _ => "one",
            };
            (self.random.u64(..KEYS), what)
        });
        // Some that are applied, between those that may fail.
        events.flat_map(|event| [event, (CALM, "quiet")]).collect()
    }

    async fn retry_all(&mut self, keys: &[u64]) -> String {
        self.retry_selected(keys, json!({ "all": true })).await
    }

    async fn retry(&mut self, keys: &[u64]) -> String {
        let texts: Vec<_> = keys.iter().map(u64::to_string).collect();
        self.retry_selected(keys, json!({ "keys": texts })).await
    }

    /// Retries the parked keys, which this selects.
    async fn retry_selected(&mut self, keys: &[u64], selection: serde_json::Value) -> String {
        self.client().reached(REACTOR, self.model.last).await;
        ask(self.client(), REACTOR, "retry", &selection).await;
        keys.iter().for_each(|key| self.model.retry(*key));
        format!("retry {selection}")
    }

    async fn drop(&mut self, key: u64, dropped: Dropped) -> String {
        self.client().reached(REACTOR, self.model.last).await;
        let whole = dropped == Dropped::Whole;
        let selection =
            json!({ "keys": [key.to_string()], "whole_keys": whole, "reason": "drawn" });
        if whole || self.model.keys[&key].has_failed {
            ask(self.client(), REACTOR, "drop", &selection).await;
            self.model.drop(key, dropped);
            return format!("drop {selection}");
        }
        // What has not been tried may be sound.
        let path = format!("/v1/deployments/{REACTOR}/parked/drop");
        let answer = self
            .client()
            .post(&path, "application/json", selection.to_string())
            .await;
        let refused = answer.problem(409, "conflict");
        assert!(
            refused.detail.contains("has not been tried"),
            "{}",
            refused.detail
        );
        format!("drop {selection}: refused")
    }

    /// Deploys other code, or another release of the same, over the same state.
    async fn deploy(&mut self, code: Code, parameters: &str) -> u64 {
        self.client().reached(REACTOR, self.model.last).await;
        self.releases += 1;
        let module = guests::release(code.guest(), self.releases);
        let deployed = self
            .client()
            .deploy_with(REACTOR, &module, parameters)
            .await;
        assert_eq!(
            deployed.outcome,
            DeployOutcome::Inherited,
            "{}",
            deployed.reason
        );
        deployed.generation
    }

    /// New code passes its probation, and may then retry what is parked.
    async fn upgrade(&mut self) -> String {
        let code = Code::ALL[self.random.usize(..3)];
        let retries = self.random.bool();
        let parameters = format!("&strategy=inherit&retry-parked={retries}");
        let generation = self.deploy(code, &parameters).await;
        self.model.code = code;
        let calm: Vec<_> = (0..PROBATION).map(|_| (CALM, "quiet")).collect();
        let told = self.append(&calm).await;
        self.learn(told);
        self.client().passed_probation(generation).await;
        if retries {
            let parked = self.model.parked_keys();
            parked.iter().for_each(|key| self.model.retry(*key));
        }
        format!("upgrade to {code:?}, retry: {retries}")
    }

    /// New code fails at an event that the code before it can apply, and gives way to it.
    async fn put_back(&mut self) -> String {
        let parked = self.model.parked_keys();
        let free = (0..KEYS).find(|key| !parked.contains(key));
        let (Some(key), Code::First | Code::Fixed) = (free, self.model.code) else {
            return "nothing to put back".to_owned();
        };
        let generation = self.deploy(Code::Broken, "&strategy=inherit").await;
        let told = self.append(&[(CALM, "one"), (key, "three")]).await;
        self.learn(told);
        self.client()
            .becomes(REACTOR, generation, GenerationStatus::Failed)
            .await;
        "put back".to_owned()
    }

    /// The host is killed while it applies events.
    async fn append_in_motion(&mut self) -> String {
        let events = self.draw();
        let told = self.append(&events).await;
        self.learn(told);
        kill_in_motion(&mut self.host, &mut self.random).await;
        format!("append and kill {events:?}")
    }

    /// The host is killed while it retries all parked keys.
    async fn retry_in_motion(&mut self, keys: &[u64]) -> String {
        self.release_in_motion("retry", keys, json!({})).await;
        keys.iter().for_each(|key| self.model.retry(*key));
        format!("retry and kill {keys:?}")
    }

    /// The host is killed while it drops a key.
    async fn drop_in_motion(&mut self, key: u64) -> String {
        let selection = json!({ "whole_keys": true, "reason": "drawn" });
        self.release_in_motion("drop", &[key], selection).await;
        self.model.drop(key, Dropped::Whole);
        format!("drop and kill {key}")
    }

    async fn release_in_motion(
        &mut self,
        what: &str,
        keys: &[u64],
        mut selection: serde_json::Value,
    ) {
        let keys: Vec<_> = keys.iter().map(u64::to_string).collect();
        selection["keys"] = json!(keys);
        let released = Released {
            name: REACTOR,
            what,
            selection,
            last: self.model.last,
            keys,
        };
        self.client().reached(REACTOR, self.model.last).await;
        killed_while_released(&mut self.host, &mut self.random, &released).await;
    }

    async fn rebuild(&mut self) -> String {
        self.client().reached(REACTOR, self.model.last).await;
        rebuild(self.client(), REACTOR).await;
        "rebuild".to_owned()
    }

    async fn verify(&mut self) -> String {
        self.client().reached(REACTOR, self.model.last).await;
        verify(self.client(), REACTOR).await;
        "verify".to_owned()
    }

    /// Each key's messages are stored in the order in which its events were applied, each once.
    async fn check_messages(&self) {
        self.client()
            .show_when(REACTOR, "publish everything", |shown| {
                shown
                    .outbox
                    .as_ref()
                    .is_some_and(|outbox| outbox.entries == 0)
            })
            .await;
        let mut found: BTreeMap<String, Vec<Place>> = BTreeMap::new();
        for message in reactor::logged(self.client(), "events", "out.%3E").await {
            let message = reactor::in_log(&message);
            found.entry(message.key).or_default().push(message.place);
        }
        for (key, of) in &self.model.keys {
            let wanted = of.applied.iter();
            let wanted: Vec<Place> = wanted
                .flat_map(|told| reactor::wanted(told.sequence, told.what))
                .collect();
            let found = found.remove(&key.to_string()).unwrap_or_default();
            assert_eq!(found, wanted, "messages of key {key}");
        }
        assert!(found.is_empty(), "nobody asked for {found:?}");
    }
}

impl Modelled for Bed {
    async fn step(&mut self) -> String {
        let parked = self.model.parked_keys();
        let key = (!parked.is_empty()).then(|| parked[self.random.usize(..parked.len())]);
        match (self.random.u8(..24), key) {
            (0..6, _) => {
                let events = self.draw();
                let told = self.append(&events).await;
                self.learn(told);
                format!("append {events:?}")
            }
            (6..8, _) => self.append_in_motion().await,
            (8, Some(_)) if parked.len() == 1 => self.retry_all(&parked).await,
            (8..10, Some(key)) => self.retry(&[key]).await,
            (10, Some(_)) => self.retry_all(&parked).await,
            (11, Some(_)) => self.retry_in_motion(&parked).await,
            (12, Some(key)) => self.drop(key, Dropped::First).await,
            (13, Some(key)) if self.random.bool() => self.drop_in_motion(key).await,
            (13, Some(key)) => self.drop(key, Dropped::Whole).await,
            (14..17, _) => self.upgrade().await,
            (17, _) => self.put_back().await,
            (18, None) if self.model.can_fold_again() => self.rebuild().await,
            (19, _) if self.model.can_fold_again() => self.verify().await,
            (20, _) => {
                let _ = self.host.stop();
                self.host.restart().await;
                "stop".to_owned()
            }
            (21, None) if self.model.can_fold_again() => {
                self.client().reached(REACTOR, self.model.last).await;
                killed_while_rebuilt(&mut self.host, &mut self.random, REACTOR).await;
                "rebuild and kill".to_owned()
            }
            (22, _) => {
                self.host.kill();
                self.host.restart().await;
                "kill".to_owned()
            }
            _ => self.append_in_motion().await,
        }
    }

    /// The host has parked what the model has parked, and its state is the model's.
    async fn check(&self) {
        let shown = self.client().reached(REACTOR, self.model.last).await;
        assert_eq!(shown.failure, None, "{shown:#?}");
        let wanted: BTreeMap<String, Vec<u64>> = self
            .model
            .parked_keys()
            .iter()
            .map(|key| {
                let parked = self.model.keys[key].parked.iter();
                (key.to_string(), parked.map(|told| told.sequence).collect())
            })
            .collect();
        // What a deploy retries, it retries later.
        wait::until(&format!("the host to park {wanted:?}"), || async {
            (parked(self.client(), REACTOR).await == wanted).then_some(())
        })
        .await;
        let entries = self.client().entries(REACTOR, "handled/").await;
        let found: BTreeMap<String, String> = entries
            .into_iter()
            .map(|entry| {
                let count = entry.value.to_string().trim_matches('"').to_owned();
                (entry.key, count)
            })
            .collect();
        let wanted: BTreeMap<String, String> = self
            .model
            .keys
            .iter()
            .filter(|(_, of)| !of.applied.is_empty())
            .map(|(key, of)| (format!("handled/{key}"), of.applied.len().to_string()))
            .collect();
        assert_eq!(found, wanted, "the state is not that of the model");
    }

    /// Everything is released: the state is the fold of all events but those that were dropped.
    async fn finish(&mut self) {
        self.check_messages().await;
        self.deploy(Code::Fixed, "&strategy=inherit").await;
        self.model.code = Code::Fixed;
        let parked = self.model.parked_keys();
        if !parked.is_empty() {
            self.retry_all(&parked).await;
        }
        self.check().await;
        self.check_messages().await;
        assert!(self.model.parked_keys().is_empty());
        self.verify().await;
        self.rebuild().await;
        self.check().await;
        self.check_messages().await;
    }
}

/// Longest time from a request to the kill, in microseconds: a few commits.
const MOMENT_US: u64 = 150_000;

/// Kills the host at a drawn moment of what it does, and starts it again.
pub(crate) async fn kill_in_motion(host: &mut Host, random: &mut fastrand::Rng) {
    tokio::time::sleep(Duration::from_micros(random.u64(..MOMENT_US))).await;
    host.kill();
    host.restart().await;
}

/// Asks a deployment for something while the host is killed: that may be done then, or not.
pub(crate) async fn killed_while_asked(
    host: &mut Host,
    random: &mut fastrand::Rng,
    (path, body): (String, serde_json::Value),
) {
    let client = host.client().clone();
    let request = client
        .request(reqwest::Method::POST, &path)
        .header("content-type", "application/json")
        .body(body.to_string());
    // No answer is the answer of the dead.
    let asked = tokio::spawn(async move { drop(client.try_send(request).await) });
    kill_in_motion(host, random).await;
    asked.await.expect("it only asks");
}

/// Retries everything that is parked, or drops a key, while the host is killed; and again after the
/// start if anything of these keys is left.
pub(crate) async fn killed_while_released(
    host: &mut Host,
    random: &mut fastrand::Rng,
    released: &Released<'_>,
) {
    let Released {
        name,
        what,
        selection,
        last,
        keys,
    } = released;
    let path = format!("/v1/deployments/{name}/parked/{what}");
    killed_while_asked(host, random, (path, selection.clone())).await;
    let client = host.client();
    client.reached(name, *last).await;
    let left = parked(client, name).await;
    let left: Vec<_> = keys.iter().filter(|key| left.contains_key(*key)).collect();
    if !left.is_empty() {
        let mut selection = selection.clone();
        selection["keys"] = json!(left);
        ask(client, name, what, &selection).await;
    }
}

/// Parked keys that are retried or dropped.
pub(crate) struct Released<'a> {
    /// Of this deployment.
    pub(crate) name: &'a str,
    /// `retry` or `drop`.
    pub(crate) what: &'a str,
    pub(crate) selection: serde_json::Value,
    /// The position at which the state is open and complete.
    pub(crate) last: u64,
    pub(crate) keys: Vec<String>,
}

/// Rebuilds a state while the host is killed: the new one takes over, or there is none.
pub(crate) async fn killed_while_rebuilt(host: &mut Host, random: &mut fastrand::Rng, name: &str) {
    let path = format!("/v1/deployments/{name}/rebuild");
    killed_while_asked(host, random, (path, serde_json::Value::Null)).await;
    let client = host.client();
    client
        .show_when(name, "come to rest", |shown| shown.candidate.is_none())
        .await;
}

/// Retries or drops what is parked.
pub(crate) async fn ask(client: &Client, name: &str, what: &str, selection: &serde_json::Value) {
    let path = format!("/v1/deployments/{name}/parked/{what}");
    let begin = Instant::now();
    loop {
        let body = selection.to_string();
        let answer = client.post(&path, "application/json", body).await;
        let text = answer.text();
        match answer.status.as_u16() {
            // On a busy machine one request may not get to all keys.
            200 if answer.json::<api::ParkedOutcome>().unfinished.is_none() => return,
            // The state is not open yet.
            200 | 409 | 503 => {}
            other => panic!("{what} is answered {other}: {text}"),
        }
        assert!(
            begin.elapsed() < wait::DEADLINE,
            "{what} {selection}: {text}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Rebuilds a state, and waits until the new one is active.
pub(crate) async fn rebuild(client: &Client, name: &str) {
    let answer = client.act(name, "rebuild").await;
    assert!(answer.status.is_success(), "{}", answer.text());
    let generation = answer.json::<api::Deployed>().generation;
    client
        .becomes(name, generation, GenerationStatus::Active)
        .await;
}

/// Folds the stream again, and compares.
pub(crate) async fn verify(client: &Client, name: &str) {
    let path = format!("/v1/deployments/{name}/verification");
    let verified = wait::until("a verification", || async {
        client.act(name, "verification").await.expect(200);
        let ended = wait::until("the verification to end", || async {
            let verified: api::Verification = client.get(&path).await.expect(200).json();
            matches!(verified.state, WorkState::Done | WorkState::Failed).then_some(verified)
        })
        .await;
        // On a busy machine both folds may not meet in time, and it says so.
        (!ended.message.ends_with("verify again")).then_some(ended)
    })
    .await;
    assert_eq!(verified.equal, Some(true), "{verified:?}");
}

/// The sequences of parked events, by key.
pub(crate) async fn parked(client: &Client, name: &str) -> BTreeMap<String, Vec<u64>> {
    let path = format!("/v1/deployments/{name}/parked");
    let mut parked = BTreeMap::new();
    for key in client
        .get(&path)
        .await
        .expect(200)
        .json::<api::ParkedList>()
        .keys
    {
        let path = format!("{path}/events?key={}", key.key);
        let answer = client.get(&path).await;
        // A retry may just have applied the last one.
        if answer.status == 200 {
            let events = answer.json::<api::ParkedEvents>().events;
            let sequences = events.iter().map(|event| event.sequence).collect();
            parked.insert(key.key, sequences);
        }
    }
    parked
}

#[tokio::test]
async fn a_handler_that_parks_does_what_the_model_does_1() {
    follow(Bed::start(foldstream_tests::seed()).await).await;
}

#[tokio::test]
async fn a_handler_that_parks_does_what_the_model_does_2() {
    follow(Bed::start(2).await).await;
}
