//! A handler that sets timers and parks, and a projection of what it is asked and publishes, against
//! a model in memory: timers that are set, replaced, cancelled, fired and parked, failures, retries,
//! drops, upgrades of both, releases that are put back, rebuilds and kills in an order drawn by a
//! seed; kills also come while events are applied, timers fire, keys are retried and dropped, and a
//! state is rebuilt. After each step both states are the model's, each timer has rung as often as in the model,
//! and in the order of its key.

use std::collections::{BTreeMap, VecDeque};

use foldstream::api::{self, DeployOutcome, GenerationStatus};
use foldstream_tests::client::Client;
use foldstream_tests::host::Host;
use foldstream_tests::reactor;
use foldstream_tests::{guests, wait};
use serde_json::json;

use crate::modelled::{
    Dropped, Modelled, Released, ask, follow, kill_in_motion, killed_while_rebuilt,
    killed_while_released, parked, rebuild, verify,
};

const ALARM: &str = "alarm";
const BELL: &str = "bell";
/// Keys of events that may fail, and one whose events never do.
const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const CALM: &str = "calm";
/// Names of timers. The handler can't fire one of them before it is corrected.
const NAMES: [&str; 3] = ["tea", "wine", "fails-once"];
/// Later than any test lasts.
const LATER_MS: u64 = 3_600_000;
/// Events after which new code is no longer on probation, if nothing else waits.
const PROBATION: u64 = 100;
/// Most events of one step.
const EVENTS: u64 = 8;

/// What an event asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// To set a timer, which is due at once or much later.
    Set { name: &'static str, is_due: bool },
    /// To cancel it.
    Cancel(&'static str),
    /// What the handler can't do before it is corrected: to set a timer for much later.
    Ill(&'static str),
    /// Nothing.
    Quiet,
}

impl What {
    fn event(self, key: &str) -> api::NewEvent {
        let (verb, name, after_ms) = match self {
            Self::Set { name, is_due } => ("set", name, if is_due { 0 } else { LATER_MS }),
            Self::Cancel(name) => ("cancel", name, 0),
            Self::Ill(name) => ("ill-set", name, LATER_MS),
            Self::Quiet => ("quiet", "", 0),
        };
        let data = json!({ "name": name, "after_ms": after_ms });
        let event = json!({ "subject": format!("alarm.{key}.{verb}"), "data": data });
        serde_json::from_value(event).expect("an event")
    }
}

/// The code of the handler, by what it can't handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    /// Events that set a timer ill, and a timer that fails once.
    Ill,
    /// None.
    Fixed,
}

/// What waits with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    Event(What),
    Firing(&'static str),
}

#[derive(Debug, Default)]
struct Key {
    /// Pending timers, and whether each is due.
    timers: BTreeMap<&'static str, bool>,
    /// The timers that rang, in order.
    rang: Vec<&'static str>,
    parked: VecDeque<Waiting>,
    /// Whether the first one was tried: it was not, if the one before it was dropped.
    has_failed: bool,
    handled: u64,
    asked: u64,
}

impl Key {
    /// Meets an event or a firing; returns whether it could.
    fn meets(&mut self, waiting: Waiting, code: Code) -> bool {
        match waiting {
            Waiting::Event(what) => {
                match what {
                    What::Ill(_) if code == Code::Ill => return false,
                    What::Ill(name) => drop(self.timers.insert(name, false)),
                    What::Set { name, is_due } => drop(self.timers.insert(name, is_due)),
                    What::Cancel(name) => drop(self.timers.remove(name)),
                    What::Quiet => {}
                }
                self.handled += 1;
            }
            // A firing of a timer that was cancelled, or set to a later time, does nothing.
            Waiting::Firing(name) if self.timers.get(name) == Some(&true) => {
                if name == "fails-once" && code == Code::Ill {
                    return false;
                }
                self.timers.remove(name);
                self.rang.push(name);
            }
            Waiting::Firing(_) => {}
        }
        true
    }

    /// Comes now, behind what waits.
    fn comes(&mut self, waiting: Waiting, code: Code) {
        if !self.parked.is_empty() {
            self.parked.push_back(waiting);
        } else if !self.meets(waiting, code) {
            self.parked.push_back(waiting);
            self.has_failed = true;
        }
    }

    /// What is due fires, unless a firing of it waits. There is one at most.
    fn fires(&mut self, code: Code) {
        while let Some(name) = self.due() {
            self.comes(Waiting::Firing(name), code);
        }
    }

    fn due(&self) -> Option<&'static str> {
        let waits = |name: &&'static str| self.parked.contains(&Waiting::Firing(name));
        let due = self.timers.iter().filter(|(_, is_due)| **is_due);
        due.map(|(name, _)| *name).find(|name| !waits(name))
    }

    fn retry(&mut self, code: Code) {
        while let Some(first) = self.parked.pop_front() {
            if !self.meets(first, code) {
                self.parked.push_front(first);
                self.has_failed = true;
                break;
            }
        }
        self.fires(code);
    }

    fn drop(&mut self, dropped: Dropped, code: Code) {
        let count = match dropped {
            Dropped::First => 1,
            Dropped::Whole => self.parked.len(),
        };
        for waiting in self.parked.drain(..count) {
            // Its timer is pending no more.
            if let Waiting::Firing(name) = waiting
                && self.timers.get(name) == Some(&true)
            {
                self.timers.remove(name);
            }
        }
        self.has_failed = false;
        self.fires(code);
    }
}

struct Bed {
    host: Host,
    random: fastrand::Rng,
    keys: BTreeMap<&'static str, Key>,
    code: Code,
    releases: u8,
    last: u64,
}

impl Bed {
    async fn start(seed: u64) -> Self {
        let host = Host::start_with("[state]\nflush_interval = \"50ms\"\n").await;
        let client = host.client();
        let parameters = "&on-failure=park&allow-publish=rang.%3E%40events";
        client
            .deploy_with(ALARM, &guests::module(ALARM), parameters)
            .await;
        client.deploy(BELL, &guests::module(BELL)).await;
        Self {
            host,
            random: fastrand::Rng::with_seed(seed),
            keys: BTreeMap::new(),
            code: Code::Ill,
            releases: 0,
            last: 0,
        }
    }

    fn client(&self) -> &Client {
        self.host.client()
    }

    async fn append(&mut self, events: &[(&'static str, What)]) {
        let told: Vec<_> = events.iter().map(|(key, what)| what.event(key)).collect();
        self.last = self.client().append(&told).await.last_sequence;
        for (key, what) in events {
            let of = self.keys.entry(*key).or_default();
            of.asked += 1;
            of.comes(Waiting::Event(*what), self.code);
        }
        // In the log they are together, so a firing comes behind all of them.
        self.keys.values_mut().for_each(|of| of.fires(self.code));
    }

    /// Few of them fail, and at most one timer of a key is due: the order of two is not drawn.
    fn draw(&mut self) -> Vec<(&'static str, What)> {
        let mut events = Vec::new();
        let mut has_due: Vec<&str> = Vec::new();
        for _ in 0..self.random.u64(1..=EVENTS) {
            let key = KEYS[self.random.usize(..KEYS.len())];
            let name = NAMES[self.random.usize(..NAMES.len())];
            let is_parked = self.keys.get(key).is_some_and(|of| !of.parked.is_empty());
            let may_fail = self.random.u8(..6) == 0;
            let what = match self.random.u8(..10) {
                0 if may_fail => What::Ill(name),
                // What waits may set a timer when it is released, with others.
                1..=4
                    if !is_parked && !has_due.contains(&key) && (name != NAMES[2] || may_fail) =>
                {
                    has_due.push(key);
                    What::Set { name, is_due: true }
                }
                5..=7 => What::Set {
                    name,
                    is_due: false,
                },
                8 => What::Cancel(name),
                _ => What::Quiet,
            };
            events.push((key, what));
            // Some that are handled, between those that may fail.
            events.push((CALM, What::Quiet));
        }
        events
    }

    fn parked_keys(&self) -> Vec<&'static str> {
        let parked = self.keys.iter().filter(|(_, of)| !of.parked.is_empty());
        parked.map(|(key, _)| *key).collect()
    }

    async fn retry(&mut self, keys: &[&'static str]) -> String {
        ask(self.client(), ALARM, "retry", &json!({ "keys": keys })).await;
        for key in keys {
            let of = self.keys.get_mut(key).expect("it is parked");
            of.retry(self.code);
        }
        format!("retry {keys:?}")
    }

    async fn drop(&mut self, key: &'static str, dropped: Dropped) -> String {
        let whole = dropped == Dropped::Whole;
        if !whole && !self.keys[key].has_failed {
            return "the first event was not tried".to_owned();
        }
        let selection = json!({ "keys": [key], "whole_keys": whole, "reason": "drawn" });
        ask(self.client(), ALARM, "drop", &selection).await;
        let of = self.keys.get_mut(key).expect("it is parked");
        of.drop(dropped, self.code);
        format!("drop {selection}")
    }

    /// The host is killed while it handles events and fires timers.
    async fn append_in_motion(&mut self) -> String {
        let events = self.draw();
        self.append(&events).await;
        kill_in_motion(&mut self.host, &mut self.random).await;
        format!("append and kill {events:?}")
    }

    /// The host is killed while it retries all parked keys.
    async fn retry_in_motion(&mut self, keys: &[&'static str]) -> String {
        let selection = json!({ "keys": keys });
        self.release_in_motion("retry", keys, selection).await;
        for key in keys {
            let of = self.keys.get_mut(key).expect("it is parked");
            of.retry(self.code);
        }
        format!("retry and kill {keys:?}")
    }

    /// The host is killed while it drops a key.
    async fn drop_in_motion(&mut self, key: &'static str) -> String {
        let selection = json!({ "keys": [key], "whole_keys": true, "reason": "drawn" });
        self.release_in_motion("drop", &[key], selection).await;
        let of = self.keys.get_mut(key).expect("it is parked");
        of.drop(Dropped::Whole, self.code);
        format!("drop and kill {key}")
    }

    async fn release_in_motion(
        &mut self,
        what: &str,
        keys: &[&'static str],
        selection: serde_json::Value,
    ) {
        let released = Released {
            name: ALARM,
            what,
            selection,
            last: self.last,
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        };
        killed_while_released(&mut self.host, &mut self.random, &released).await;
    }

    async fn deploy(&mut self, code: Code) -> u64 {
        self.releases += 1;
        let guest = match code {
            Code::Ill => ALARM,
            Code::Fixed => "alarm-fixed",
        };
        let module = guests::release(guest, self.releases);
        let client = self.client();
        let deployed = client.deploy_with(ALARM, &module, "&strategy=inherit");
        let deployed = deployed.await;
        assert_eq!(
            deployed.outcome,
            DeployOutcome::Inherited,
            "{}",
            deployed.reason
        );
        deployed.generation
    }

    /// Other code passes its probation.
    async fn upgrade(&mut self) -> String {
        self.code = if self.random.bool() {
            Code::Fixed
        } else {
            Code::Ill
        };
        let generation = self.deploy(self.code).await;
        let calm: Vec<_> = (0..PROBATION).map(|_| (CALM, What::Quiet)).collect();
        self.append(&calm).await;
        self.client().passed_probation(generation).await;
        format!("upgrade to {:?}", self.code)
    }

    /// New code fails at an event that the code before it can handle, and gives way to it.
    async fn put_back(&mut self) -> String {
        let parked = self.parked_keys();
        let free = KEYS.into_iter().find(|key| !parked.contains(key));
        let (Some(key), Code::Fixed) = (free, self.code) else {
            return "nothing to put back".to_owned();
        };
        let generation = self.deploy(Code::Ill).await;
        let name = NAMES[self.random.usize(..2)];
        self.append(&[(CALM, What::Quiet), (key, What::Ill(name))])
            .await;
        let client = self.client();
        client
            .becomes(ALARM, generation, GenerationStatus::Failed)
            .await;
        "put back".to_owned()
    }

    fn rang_in_the_model(&self) -> BTreeMap<String, Vec<String>> {
        let keys = self.keys.iter().filter(|(_, of)| !of.rang.is_empty());
        keys.map(|(key, of)| {
            let rang = of.rang.iter().map(|name| (*name).to_owned());
            ((*key).to_owned(), rang.collect())
        })
        .collect()
    }

    /// The timers of each key that rang, in the order of the messages; and the last sequence of a
    /// message or event.
    async fn rang(&self) -> (BTreeMap<String, Vec<String>>, u64) {
        let (mut rang, mut last) = (BTreeMap::<_, Vec<_>>::new(), self.last);
        for message in reactor::logged(self.client(), "events", "rang.%3E").await {
            let subject = message["subject"].as_str().expect("a subject");
            let mut tokens = subject.split('.').skip(1).map(str::to_owned);
            let (key, name) = (tokens.next(), tokens.next());
            rang.entry(key.expect("a key"))
                .or_default()
                .push(name.expect("a name"));
            last = last.max(message["sequence"].as_u64().expect("a number"));
        }
        (rang, last)
    }

    /// The entries of handler and projection are those of the model.
    async fn check_states(&self, last: u64) {
        let count = |(key, count): (String, u64)| (count > 0).then(|| (key, count.to_string()));
        let keys = self.keys.iter();
        let handled = keys
            .clone()
            .map(|(key, of)| (format!("events/{key}"), of.handled));
        let wanted: BTreeMap<_, _> = handled.filter_map(count).collect();
        assert_eq!(self.entries(ALARM, "events/").await, wanted);
        self.client().reached(BELL, last).await;
        let mut wanted: BTreeMap<_, _> = keys
            .clone()
            .map(|(key, of)| (format!("asked/{key}"), of.asked))
            .filter_map(count)
            .collect();
        for (key, of) in keys {
            for name in NAMES {
                let times = of.rang.iter().filter(|rang| **rang == name).count() as u64;
                wanted.extend(count((format!("rang/{key}/{name}"), times)));
            }
        }
        assert_eq!(self.entries(BELL, "").await, wanted);
    }

    async fn entries(&self, name: &str, prefix: &str) -> BTreeMap<String, String> {
        let entries = self.client().entries(name, prefix).await.into_iter();
        entries
            .map(|entry| (entry.key, entry.value.to_string()))
            .collect()
    }
}

impl Modelled for Bed {
    async fn step(&mut self) -> String {
        let parked = self.parked_keys();
        let key = (!parked.is_empty()).then(|| parked[self.random.usize(..parked.len())]);
        match (self.random.u8(..24), key) {
            (0..7, _) => {
                let events = self.draw();
                self.append(&events).await;
                format!("append {events:?}")
            }
            (7..9, _) => self.append_in_motion().await,
            (9..11, Some(key)) => self.retry(&[key]).await,
            (11, Some(_)) => self.retry_in_motion(&parked).await,
            (12, Some(_)) => self.retry(&parked).await,
            (13, Some(key)) => self.drop(key, Dropped::First).await,
            (14, Some(key)) if self.random.bool() => self.drop_in_motion(key).await,
            (14, Some(key)) => self.drop(key, Dropped::Whole).await,
            (15..18, _) => self.upgrade().await,
            (18, _) => self.put_back().await,
            // What a fold of now could not apply was applied by other code.
            (19, None) if self.code == Code::Fixed && self.random.bool() => {
                killed_while_rebuilt(&mut self.host, &mut self.random, ALARM).await;
                "rebuild the handler and kill".to_owned()
            }
            (19, None) if self.code == Code::Fixed => {
                rebuild(self.client(), ALARM).await;
                "rebuild the handler".to_owned()
            }
            (20, _) => {
                self.releases += 1;
                let module = guests::release(BELL, self.releases);
                let way = ["inherit", "rebuild"][self.random.usize(..2)];
                let parameters = format!("&strategy={way}");
                let client = self.client();
                let deployed = client.deploy_with(BELL, &module, &parameters).await;
                let number = deployed.generation;
                client.becomes(BELL, number, GenerationStatus::Active).await;
                format!("the projection: {way}")
            }
            (21, _) if self.code == Code::Fixed => {
                verify(self.client(), ALARM).await;
                verify(self.client(), BELL).await;
                "verify".to_owned()
            }
            (22, _) => {
                let _ = self.host.stop();
                self.host.restart().await;
                "stop".to_owned()
            }
            (23, _) if self.random.bool() => {
                self.host.kill();
                self.host.restart().await;
                "kill".to_owned()
            }
            _ => self.append_in_motion().await,
        }
    }

    /// The host has done what the model has done.
    async fn check(&self) {
        self.client().reached(ALARM, self.last).await;
        let wanted: BTreeMap<String, usize> = self
            .keys
            .iter()
            .filter(|(_, of)| !of.parked.is_empty())
            .map(|(key, of)| ((*key).to_owned(), of.parked.len()))
            .collect();
        wait::until(&format!("the host to park {wanted:?}"), || async {
            let found = parked(self.client(), ALARM).await.into_iter();
            let found: BTreeMap<_, _> = found.map(|(key, events)| (key, events.len())).collect();
            (found == wanted).then_some(())
        })
        .await;
        let pending: u64 = self.keys.values().map(|of| of.timers.len() as u64).sum();
        self.client()
            .show_when(ALARM, &format!("have {pending} timers"), |shown| {
                let timers = shown.timers.as_ref();
                let outbox = shown.outbox.as_ref();
                shown.position >= self.last
                    && timers.is_some_and(|timers| timers.pending == pending)
                    && outbox.is_some_and(|outbox| outbox.entries == 0)
            })
            .await;
        let shown = self.client().show(ALARM).await;
        assert_eq!(shown.failure, None, "{shown:#?}");
        let wanted = self.rang_in_the_model();
        // What was shown may be of two moments, and something may still be on its way.
        let last = wait::until(&format!("the timers to ring: {wanted:?}"), || async {
            let (rang, last) = self.rang().await;
            (rang == wanted).then_some(last)
        })
        .await;
        self.check_states(last).await;
    }

    /// Everything is released.
    async fn finish(&mut self) {
        self.code = Code::Fixed;
        self.deploy(Code::Fixed).await;
        let parked = self.parked_keys();
        if !parked.is_empty() {
            self.retry(&parked).await;
        }
        self.check().await;
        assert!(self.parked_keys().is_empty());
        verify(self.client(), ALARM).await;
        rebuild(self.client(), ALARM).await;
        self.check().await;
        verify(self.client(), BELL).await;
    }
}

#[tokio::test]
async fn a_handler_with_timers_and_a_projection_do_what_the_model_does_1() {
    follow(Bed::start(foldstream_tests::seed()).await).await;
}

#[tokio::test]
async fn a_handler_with_timers_and_a_projection_do_what_the_model_does_2() {
    follow(Bed::start(2).await).await;
}
