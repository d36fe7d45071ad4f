//! Events that were published twice: each fold leaves out the same ones.

use super::*;
use crate::module::Inbox;

/// Times are in milliseconds.
const WINDOW: u64 = 100;
const IDS_MAX: u32 = 12;

#[derive(Clone, Debug)]
struct Published {
    subject: String,
    id: Option<String>,
    time: u64,
}

fn random_events(random: &mut fastrand::Rng, count: u64) -> Vec<Published> {
    let mut time = 1_000;
    (0..count)
        .map(|_| {
            // Now and then ids are far apart in time, and now and then close.
            time += if random.u8(..) < 10 {
                random.u64(0..3 * WINDOW)
            } else {
                random.u64(0..8)
            };
            Published {
                subject: format!("s.{}", random.u8(0..3)),
                id: (random.u8(..) < 230).then(|| random.u8(0..12).to_string()),
                time,
            }
        })
        .collect()
}

/// What a fold should leave, by the definition of a duplicate alone.
fn expected(events: &[Published]) -> (BTreeMap<String, u64>, u64) {
    let mut seen: Vec<(&str, &str, u64)> = Vec::new();
    let (mut counts, mut duplicates) = (BTreeMap::new(), 0);
    for event in events {
        if let Some(id) = &event.id {
            let latest = seen.len().saturating_sub(IDS_MAX as usize);
            let is_known = seen[latest..].iter().any(|(subject, known, time)| {
                *subject == event.subject && known == id && event.time - time <= WINDOW
            });
            if is_known {
                duplicates += 1;
                continue;
            }
            seen.push((&event.subject, id, event.time));
        }
        *counts.entry(event.subject.clone()).or_default() += 1;
    }
    (counts, duplicates)
}

/// Appends events, each with those after it that have other ids: the log itself recognises an id
/// within one append.
fn append(log: &Log, mut events: &[Published]) {
    while !events.is_empty() {
        let mut ids = std::collections::BTreeSet::new();
        let together = events
            .iter()
            .take_while(|event| event.id.as_ref().is_none_or(|id| ids.insert(id)))
            .count();
        append_together(log, &events[..together]);
        events = &events[together..];
    }
}

fn append_together(log: &Log, events: &[Published]) {
    let events: Vec<_> = events
        .iter()
        .map(|event| NewEvent {
            subject: event.subject.clone(),
            kind: None,
            id: event.id.clone(),
            time_ns: Some(event.time * 1_000_000),
            headers: Vec::new(),
            data: Payload::from("{}"),
        })
        .collect();
    log.append(&events, &Expectation::default())
        .expect("appends");
}

fn stage(random: &mut fastrand::Rng) -> Stage {
    let mut stage = Stage::with_events(0);
    let options = Options {
        duplicate_window: Duration::ZERO,
        ..Options::default()
    };
    stage.log = Log::open(&stage.folder.path().join("twice.redb"), options).expect("opens");
    stage.recognises = Some(Inbox::of_messages(Duration::from_millis(WINDOW), IDS_MAX));
    stage.shuffle = random.bool().then(|| random.u64(..));
    stage.attempts = 1_000;
    stage
}

/// Some events fail now and then, in any of the ways.
fn now_and_then(seed: u64) -> Mischief {
    let random = Mutex::new(fastrand::Rng::with_seed(seed));
    Arc::new(move |_, index| {
        let mut random = random.lock();
        (random.u8(..) < 2).then(|| match random.u8(0..3) {
            0 => ApplyError::Retry {
                index,
                message: "not yet".to_owned(),
            },
            1 => ApplyError::Trap(random.u64(..).to_string()),
            _ => ApplyError::Busy(shortage()),
        })
    })
}

#[test]
fn same_events_are_left_out_wherever_batches_end_and_whatever_fails() {
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let events = random_events(&mut random, 400);
        let (counts, duplicates) = expected(&events);
        assert!(duplicates > 20, "{duplicates} duplicates");
        let mut stage = stage(&mut random);
        let (first, rest) = events.split_at(random.usize(1..400));
        append(&stage.log, first);
        assert!(matches!(stage.run(now_and_then(seed)), Ended::Asked));
        append(&stage.log, rest);
        assert!(matches!(stage.run_again(now_and_then(seed)), Ended::Asked));
        assert_eq!(durable(&stage.state()), (counts, 400), "seed {seed}");
        let (store, _writer) = Store::open(&stage.state(), state::Options::default(), |_| ())
            .expect("the state opens");
        let found = store.checkpoint().expect("it has one").duplicates;
        assert_eq!(found, duplicates, "seed {seed}");
        let now = stage.progress.now();
        assert_eq!((now.pending, now.failure), (0, None), "seed {seed}");
    }
}

#[test]
fn without_an_inbox_each_event_counts() {
    let mut random = fastrand::Rng::with_seed(1);
    let mut stage = stage(&mut random);
    stage.recognises = None;
    append(&stage.log, &random_events(&mut random, 100));
    assert!(matches!(stage.run(peaceful()), Ended::Asked));
    let (counts, position) = durable(&stage.state());
    assert_eq!((counts.values().sum::<u64>(), position), (100, 100));
}
