//! Claims about lanes, over real state files: whatever a module reads, writes and remembers, several
//! lanes leave the same entries as one, and report the same errors.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};

use fastrand::Rng;
use tempfile::TempDir;

use super::*;
use crate::event::Payload;
use crate::position::{Checkpoint, StreamIdentity};
use crate::state::{Direction, Options, Scan, Selection, Store};

/// How often entities of different keys use each other's entries, in percent.
#[derive(Clone, Copy, Debug)]
enum Sharing {
    Apart,
    Some,
    All,
}

impl Sharing {
    fn percent(self) -> u8 {
        match self {
            Self::Apart => 0,
            Self::Some => 2,
            Self::All => 60,
        }
    }
}

/// Does what the data of an event says: letters, each with an entry. Every write depends on all that
/// was read for the event.
struct Obedient {
    /// All that this instance has read and written, if it remembers that between batches.
    remembers: Option<HashMap<String, Option<String>>>,
    /// Whether this instance saw all entries below `shared/` once, and keeps track of its own.
    seen: Option<BTreeMap<String, String>>,
}

impl Obedient {
    fn get(&mut self, writer: &Writer, key: &str) -> Option<String> {
        if let Some(known) = self.remembers.as_ref().and_then(|known| known.get(key)) {
            return known.clone();
        }
        let value = writer.get(key).expect("it can be read");
        let value = value.map(|value| value.as_str().expect("text").to_owned());
        if let Some(known) = &mut self.remembers {
            known.insert(key.to_owned(), value.clone());
        }
        value
    }

    fn put(&mut self, writer: &mut Writer, key: &str, value: Option<String>) {
        if let Some(known) = &mut self.remembers {
            known.insert(key.to_owned(), value.clone());
        }
        if let Some(seen) = self.seen.as_mut().filter(|_| key.starts_with("shared/")) {
            match &value {
                Some(value) => seen.insert(key.to_owned(), value.clone()),
                None => seen.remove(key),
            };
        }
        writer
            .put(key, value.map(Payload::from))
            .expect("within limits");
    }

    /// All entries below `shared/`, which an instance that remembers scans once.
    fn shared(&mut self, writer: &Writer) -> BTreeMap<String, String> {
        if let Some(seen) = &self.seen {
            return seen.clone();
        }
        let page = writer.scan(&Scan {
            selection: Selection::Prefix("shared/".to_owned()),
            after: None,
            direction: Direction::Forwards,
            limit: 1_000,
        });
        let entries: BTreeMap<String, String> = page
            .expect("it can be scanned")
            .entries
            .into_iter()
            .map(|(key, value)| (key.to_string(), value.as_str().expect("text").to_owned()))
            .collect();
        if self.remembers.is_some() {
            self.seen = Some(entries.clone());
        }
        entries
    }

    fn obey(&mut self, event: &Event, writer: &mut Writer) -> Result<(), String> {
        let mut sum = event.sequence;
        let mut add = |text: &str| {
            for byte in text.bytes() {
                sum = (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        let data = event.data.as_str().expect("text");
        for order in data.split_whitespace() {
            let (verb, key) = order.split_at(1);
            match verb {
                "g" => add(&format!("{:?}", self.get(writer, key))),
                "s" => add(&format!("{:?}", self.shared(writer))),
                "p" | "d" => {}
                _ => return Err(format!("cannot {order}")),
            }
        }
        let value = format!("{sum:x}");
        for order in data.split_whitespace() {
            match order.split_at(1) {
                ("p", key) => self.put(writer, key, Some(value.clone())),
                ("d", key) => self.put(writer, key, None),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Fold for Obedient {
    fn apply(&mut self, events: &[Event], mut writer: Writer) -> (Writer, Result<(), ApplyError>) {
        for (index, event) in events.iter().enumerate() {
            if let Err(message) = self.obey(event, &mut writer) {
                return (writer, Err(ApplyError::Rejected { index, message }));
            }
        }
        (writer, Ok(()))
    }
}

/// An event of an entity, at random: mostly about its own entries.
fn event(random: &mut Rng, sequence: u64, sharing: Sharing) -> Event {
    let entity = random.u8(0..20);
    let own = |random: &mut Rng| format!("own/{entity}/{}", random.u8(0..3));
    let mut orders = Vec::new();
    for _ in 0..random.usize(1..4) {
        let key = own(random);
        orders.push(format!(
            "{}{key}",
            random.choice(["g", "g", "p", "d"]).expect("some")
        ));
    }
    orders.push(format!("p{}", own(random)));
    if random.u8(0..100) < sharing.percent() {
        let key = format!("shared/{}", random.u8(0..6));
        let order = match random.u8(0..10) {
            0..4 => format!("g{key}"),
            4..7 => format!("p{key}"),
            7 => format!("d{key}"),
            // An entry that somebody else calls its own.
            8 => format!("gown/{}/0", random.u8(0..20)),
            _ => "s".to_owned(),
        };
        orders.push(order);
    }
    told(sequence, &format!("s.{entity}"), &orders.join(" "))
}

fn told(sequence: u64, subject: &str, orders: &str) -> Event {
    Event {
        sequence,
        time_ns: sequence,
        subject: subject.into(),
        kind: "told".into(),
        headers: Vec::new(),
        data: Payload::from(orders),
    }
}

fn checkpoint(position: u64) -> Checkpoint {
    Checkpoint::at(
        position,
        StreamIdentity {
            name: "events".to_owned(),
            created_ns: 1,
        },
    )
}

/// What instances do with what they have read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instances {
    Remember,
    Forget,
}

/// A state, and the fold that works on it.
struct Bench {
    _folder: TempDir,
    store: Store,
    writer: Option<Writer>,
    plan: Option<Plan>,
    record: Arc<Record>,
    instances: Instances,
    fold: Option<Box<dyn Fold>>,
}

impl Bench {
    fn new(lanes: usize, instances: Instances) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("state.redb");
        let (store, writer) =
            Store::open(&path, Options::default(), |_| ()).expect("the state opens");
        let plan = (lanes > 1).then(|| Plan {
            events_min: 2,
            ..Plan::new(lanes, KeyRule::Subject)
        });
        Self {
            _folder: folder,
            store,
            writer: Some(writer),
            plan,
            record: Arc::new(Record::impatient()),
            instances,
            fold: None,
        }
    }

    fn make(&self) -> Box<dyn Fold> {
        let remembers = self.instances == Instances::Remember;
        let make = move || {
            Box::new(Obedient {
                remembers: remembers.then(HashMap::new),
                seen: None,
            }) as Box<dyn Fold>
        };
        match &self.plan {
            None => make(),
            Some(plan) => {
                let make: MakeLane = Arc::new(move || Ok(make()));
                let lanes = Lanes::new(plan.clone(), make, Arc::clone(&self.record));
                Box::new(lanes.expect("instances can be made"))
            }
        }
    }

    /// Applies a batch as a pipeline does; returns the error, which names an event.
    fn apply(&mut self, events: &[Event]) -> Option<String> {
        let mut fold = self.fold.take().unwrap_or_else(|| self.make());
        let mut writer = self.writer.take().expect("it comes back");
        writer.begin();
        let (mut writer, result) = fold.apply(events, writer);
        let error = match result {
            Ok(()) => {
                self.fold = Some(fold);
                writer.publish(checkpoint(events.last().expect("there is one").sequence));
                None
            }
            Err(error) => {
                writer.discard();
                Some(error.to_string())
            }
        };
        self.writer = Some(writer);
        error
    }

    fn entries(&self) -> BTreeMap<String, String> {
        let snapshot = self.store.snapshot();
        let pages: Vec<_> = snapshot
            .pages(1_000)
            .collect::<Result<_, _>>()
            .expect("it can be read");
        pages
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.to_string(), value.as_str().expect("text").to_owned()))
            .collect()
    }
}

/// Folds the same random events with one lane and with several; returns what became of the batches.
fn compare(seed: u64, sharing: Sharing, lanes: usize) -> Figures {
    let mut random = Rng::with_seed(seed);
    let instances = if random.bool() {
        Instances::Remember
    } else {
        Instances::Forget
    };
    let mut one = Bench::new(1, instances);
    let mut several = Bench::new(lanes, instances);
    let mut sequence = 0;
    for _ in 0..random.usize(5..25) {
        let count = random.usize(1..60);
        let events: Vec<Event> = (0..count)
            .map(|_| {
                sequence += 1;
                event(&mut random, sequence, sharing)
            })
            .collect();
        assert_eq!(one.apply(&events), None);
        assert_eq!(several.apply(&events), None);
        assert_eq!(
            one.entries(),
            several.entries(),
            "after event {sequence} of seed {seed}: {sharing:?}, {lanes} lanes, instances that {instances:?}"
        );
        if random.u8(0..8) == 0 {
            // The host restarts an instance whenever it likes.
            several.fold = None;
        }
    }
    several.record.figures()
}

fn compare_all(sharing: Sharing) -> Figures {
    let seeds = std::env::var("FOLDSTREAM_LANES")
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        // Each process gives keys to lanes in its own way, so how many batches collide varies: about as
        // many as there are seeds if keys share some entries.
        .unwrap_or(80);
    let mut sum = Figures::default();
    for seed in 0..seeds {
        let figures = compare(seed, sharing, 2 + seed as usize % 3);
        sum.split += figures.split;
        sum.collided += figures.collided;
        sum.failed += figures.failed;
    }
    sum
}

#[test]
fn keys_apart_are_folded_in_lanes_with_the_result_of_one() {
    let figures = compare_all(Sharing::Apart);
    assert!(figures.split > 300, "{figures:?}");
    assert_eq!((figures.collided, figures.failed), (0, 0), "{figures:?}");
}

#[test]
fn keys_that_share_some_entries_have_the_result_of_one_lane() {
    let figures = compare_all(Sharing::Some);
    assert!(figures.split > 50 && figures.collided > 50, "{figures:?}");
}

#[test]
fn keys_that_share_all_entries_have_the_result_of_one_lane() {
    let figures = compare_all(Sharing::All);
    assert!(figures.collided > 300, "{figures:?}");
}

#[test]
fn failure_in_a_lane_is_that_of_one_lane() {
    for seed in 0..40 {
        let mut random = Rng::with_seed(seed);
        let (mut one, mut several) = (
            Bench::new(1, Instances::Remember),
            Bench::new(3, Instances::Remember),
        );
        let (mut sequence, mut failures) = (0, 0);
        for _ in 0..10 {
            let mut events: Vec<Event> = (0..random.usize(2..40))
                .map(|_| {
                    sequence += 1;
                    event(&mut random, sequence, Sharing::Some)
                })
                .collect();
            if random.bool() {
                let place = random.usize(..events.len());
                events[place].data = Payload::from(format!("x{place}"));
            }
            let error = one.apply(&events);
            assert_eq!(several.apply(&events), error);
            failures += u32::from(error.is_some());
            assert_eq!(one.entries(), several.entries(), "seed {seed}");
        }
        let figures = several.record.figures();
        assert!(failures == 0 || figures.failed > 0, "{figures:?}");
    }
}

#[test]
fn lane_that_was_idle_forgets_what_others_changed() {
    // Two subjects of different lanes.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let subjects: Vec<Event> = (0..20)
        .map(|number| told(1, &format!("s.{number}"), ""))
        .collect();
    let places = split(
        &subjects,
        &KeyRule::Subject,
        2,
        &pool.expect("a thread starts"),
    );
    let in_lane = |lane| {
        let found = places.iter().position(|place| *place == lane);
        subjects[found.expect("twenty keys are in both lanes")]
            .subject
            .to_string()
    };
    let (first, second) = (in_lane(0), in_lane(1));
    let (mut one, mut several) = (
        Bench::new(1, Instances::Remember),
        Bench::new(2, Instances::Remember),
    );
    let batches = [
        // Each remembers its own, and the second one also an entry that it never wrote.
        vec![told(1, &first, "ga pb"), told(2, &second, "gc pd")],
        // Only the first one works, and writes it.
        vec![told(3, &first, "pc"), told(4, &first, "ga pb")],
        vec![told(5, &second, "gc pd"), told(6, &first, "ga pb")],
    ];
    for events in &batches {
        assert_eq!(one.apply(events), None);
        assert_eq!(several.apply(events), None);
    }
    assert_eq!(one.entries(), several.entries());
    let figures = several.record.figures();
    assert_eq!(
        (figures.split, figures.collided),
        (3, 0),
        "nothing was folded twice"
    );
}

#[test]
fn lanes_without_instances_leave_the_batch_to_one() {
    let made = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&made);
    let make: MakeLane = Arc::new(move || {
        // The first is that of the serial fold; the lanes get none.
        match counted.fetch_add(1, Ordering::Relaxed) {
            1..3 => Err(module::Error::Refused("no more".to_owned())),
            _ => Ok(Box::new(Obedient {
                remembers: None,
                seen: None,
            })),
        }
    });
    let mut bench = Bench::new(2, Instances::Forget);
    let plan = bench.plan.clone().expect("it has lanes");
    let lanes = Lanes::new(plan, make, Arc::clone(&bench.record));
    bench.fold = Some(Box::new(lanes.expect("there is one instance")));
    let mut random = Rng::with_seed(1);
    let events: Vec<Event> = (1..40)
        .map(|sequence| event(&mut random, sequence, Sharing::Apart))
        .collect();
    assert_eq!(bench.apply(&events), None);
    assert_eq!(bench.record.figures().failed, 1);
    assert_eq!(
        made.load(Ordering::Relaxed),
        4,
        "one more for the serial fold"
    );
}

#[test]
fn small_batches_are_not_split() {
    let mut bench = Bench::new(2, Instances::Forget);
    let plan = Plan::new(2, KeyRule::Subject);
    assert_eq!(plan.events_min, 512);
    bench.plan = Some(plan);
    let mut random = Rng::with_seed(1);
    let mut sequence = 0;
    for count in [511, 511, 512, 1, 511] {
        let events: Vec<Event> = (0..count)
            .map(|_| {
                sequence += 1;
                event(&mut random, sequence, Sharing::Apart)
            })
            .collect();
        assert_eq!(bench.apply(&events), None);
    }
    assert_eq!(bench.record.figures().split, 1);
}
