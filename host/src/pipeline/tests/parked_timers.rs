//! Claims about timers of parked keys, against a model of each key in memory.

use std::collections::{BTreeMap, BTreeSet};

use super::parking::{Bed, Sequences};
use super::*;
use crate::timers::{self, Firing, Timer, What};

/// Does to timers what the data of an event says; returns the key to note it for. A firing that
/// fires nothing has none.
pub(super) fn key_of(event: &Event, writer: &mut Writer) -> Option<String> {
    if let Some(firing) = Firing::of(event) {
        let fired = writer
            .fire_timer(&firing, event.time_ns)
            .expect("within limits");
        return fired.and(firing.key);
    }
    let words: Vec<&str> = event.data.as_str().expect("text").split(' ').collect();
    let name = |name: &str| format!("{}/{name}", event.subject);
    match words[..] {
        ["set", timer, at] => {
            let timer_to_set = Timer {
                at_ns: at.parse().expect("a time"),
                set_by: event.sequence,
                key: Some(event.subject.to_string()),
                ..Timer::default()
            };
            writer
                .set_timer(&name(timer), &timer_to_set)
                .expect("within limits");
        }
        ["cancel", timer] => drop(writer.remove_timer(&name(timer)).expect("reads")),
        _ => {}
    }
    Some(event.subject.to_string())
}

/// What an event of the test does.
#[derive(Clone, Copy, Debug)]
enum Act {
    Set(&'static str, u64),
    Cancel(&'static str),
    Fire(&'static str),
}

/// The time at which the log stores an event, in nanoseconds.
fn time_of(sequence: u64) -> u64 {
    1_000 + sequence * 10
}

fn append(bed: &Bed, sequence: u64, key: u64, act: Act) {
    let data = match act {
        Act::Set(name, at) => Payload::from(format!("set {name} {at}")),
        Act::Cancel(name) => Payload::from(format!("cancel {name}")),
        Act::Fire(name) => {
            let firing = Firing {
                name: format!("s.{key}/{name}"),
                at_ns: 0,
                key: Some(format!("s.{key}")),
                what: What::Due,
                lineage: None,
            };
            firing.data()
        }
    };
    let subject = match act {
        Act::Fire(_) => timers::subject("test"),
        _ => format!("s.{key}"),
    };
    let event = NewEvent {
        subject,
        kind: None,
        id: None,
        time_ns: Some(time_of(sequence)),
        headers: Vec::new(),
        data,
    };
    let appended = bed.stage.log.append(&[event], &Expectation::default());
    assert_eq!(appended.expect("appends").sequences, [sequence]);
}

/// Sequences that are noted, and times of timers, if each key meets its events in order.
fn model(
    acts: &[(u64, Act)],
    is_done: impl Fn(u64) -> bool,
    dropped: &BTreeSet<u64>,
) -> (Sequences, BTreeMap<String, u64>) {
    let (mut noted, mut pending) = (Sequences::new(), BTreeMap::new());
    for (sequence, (key, act)) in (1..).zip(acts).filter(|(sequence, _)| is_done(*sequence)) {
        let name = |name: &str| format!("s.{key}/{name}");
        let is_dropped = dropped.contains(&sequence);
        let does_it = match *act {
            // A firing that is dropped ends its timer all the same.
            Act::Fire(timer) => {
                let name = name(timer);
                let is_due = pending
                    .get(&name)
                    .is_some_and(|at| *at <= time_of(sequence));
                is_due && pending.remove(&name).is_some()
            }
            _ if is_dropped => false,
            Act::Set(timer, at) => {
                pending.insert(name(timer), at);
                true
            }
            Act::Cancel(timer) => {
                pending.remove(&name(timer));
                true
            }
        };
        if does_it && !is_dropped {
            noted.entry(format!("s.{key}")).or_default().push(sequence);
        }
    }
    (noted, pending)
}

fn assert_as_modelled(bed: &mut Bed, acts: &[(u64, Act)], dropped: &BTreeSet<u64>, seed: u64) {
    let (noted, parked, position) = bed.durable();
    let waiting: BTreeSet<u64> = parked.values().flatten().copied().collect();
    let is_done = |sequence| sequence <= position && !waiting.contains(&sequence);
    let (expected, pending) = model(acts, is_done, dropped);
    assert_eq!(noted, expected, "seed {seed}: {acts:?}, parked {parked:?}");
    let found = bed.open().0.snapshot().timers(None, 1_000).expect("reads");
    let found: BTreeMap<_, _> = found
        .into_iter()
        .map(|(name, timer)| (name, timer.at_ns))
        .collect();
    assert_eq!(found, pending, "seed {seed}: {acts:?}, parked {parked:?}");
    assert_eq!(bed.folded_again(), noted, "seed {seed}: folded again");
}

#[test]
fn each_key_meets_its_events_and_firings_in_order_whatever_is_parked_retried_and_dropped() {
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bed = Bed::with_events(0);
        let (mut acts, mut dropped) = (Vec::new(), BTreeSet::new());
        for _ in 0..8 {
            let before = acts.len() as u64;
            for _ in 0..random.u64(1..12) {
                let sequence = acts.len() as u64 + 1;
                let name = if random.bool() { "tea" } else { "egg" };
                let act = match random.u32(..5) {
                    0 | 1 => Act::Set(name, time_of(sequence) + random.u64(0..40) - 10),
                    2 => Act::Cancel(name),
                    _ => Act::Fire(name),
                };
                let key = random.u64(0..3);
                append(&bed, sequence, key, act);
                acts.push((key, act));
            }
            let bad = random.u64(before + 1..=acts.len() as u64);
            bed.bad.lock().insert(bad);
            bed.fold();
            let (_, parked, _) = bed.durable();
            let keys: Vec<String> = parked.keys().cloned().collect();
            if let Some(key) = keys.first().filter(|_| random.bool()) {
                dropped.insert(parked[key][0]);
                let work = ParkedWork::Drop {
                    parts: vec![(key.clone(), 1)],
                    reason: "chance".to_owned(),
                };
                bed.ask(work).expect("it runs");
            }
            if random.bool() {
                // The others still fail, so that a retry applies a part.
                let first = bed.bad.lock().first().copied();
                bed.bad.lock().retain(|bad| Some(*bad) != first);
            }
            if !keys.is_empty() && random.bool() {
                let dry_run = false;
                bed.ask(ParkedWork::Retry { keys, dry_run })
                    .expect("it runs");
            }
            assert_as_modelled(&mut bed, &acts, &dropped, seed);
        }
        bed.bad.lock().clear();
        loop {
            let (_, parked, position) = bed.durable();
            if parked.is_empty() && position == acts.len() as u64 {
                break;
            }
            let (keys, dry_run) = (parked.into_keys().collect(), false);
            let outcome = bed.ask(ParkedWork::Retry { keys, dry_run });
            assert!(outcome.expect("it runs").failed.is_empty());
            bed.fold();
        }
        assert_as_modelled(&mut bed, &acts, &dropped, seed);
    }
}

#[test]
fn a_timer_has_a_parked_firing_until_that_is_applied_or_dropped_also_in_a_new_process() {
    let mut bed = Bed::with_events(0);
    append(&bed, 1, 0, Act::Set("tea", 1_000));
    append(&bed, 2, 1, Act::Set("tea", 1_000));
    // Both timers are due, and their firings fail.
    bed.bad.lock().extend([3, 4]);
    append(&bed, 3, 0, Act::Fire("tea"));
    append(&bed, 4, 1, Act::Fire("tea"));
    bed.fold();
    let parked = |bed: &Bed| {
        let store = bed.open().0;
        let subject = timers::subject("test");
        let of = |name| store.is_parked_firing(&subject, name);
        (of("s.0/tea"), of("s.1/tea"), store.parked_firings())
    };
    assert_eq!(parked(&bed), (true, true, 2));
    bed.bad.lock().clear();
    let (keys, dry_run) = (vec!["s.0".to_owned()], false);
    bed.ask(ParkedWork::Retry { keys, dry_run })
        .expect("it runs");
    assert_eq!(parked(&bed), (false, true, 1));
    let work = ParkedWork::Drop {
        parts: vec![("s.1".to_owned(), 99)],
        reason: "useless".to_owned(),
    };
    bed.ask(work).expect("it runs");
    assert_eq!(parked(&bed), (false, false, 0));
    assert_eq!(bed.open().0.pending_timers(), 0);
}
