use std::sync::Barrier;
use std::time::Duration;

use foldstream::event::Payload;
use foldstream::log::{Error, Expectation, Log, NewEvent, Options};
use foldstream::subject::SubjectSet;

use crate::{
    Place, append, append_numbered, event, eventually, expecting, fresh, is_conflict, read_all,
    texts, with_id,
};

#[test]
fn events_come_back_as_they_were_appended() {
    let place = Place::new();
    let log = place.open();
    let rich = NewEvent {
        kind: Some("placed".to_owned()),
        id: Some("m1".to_owned()),
        time_ns: Some(1_700_000_000_000_000_000),
        headers: vec![
            ("X-B".to_owned(), "2".to_owned()),
            ("x-a".to_owned(), "1".to_owned()),
        ],
        ..event("orders.1.new", "{\"total\":1}")
    };
    let binary = NewEvent {
        data: Payload::Bytes(b"\xff\0\x01".to_vec().into()),
        ..event("orders.2.paid", "")
    };
    let large = event("orders.3.large", &"x".repeat(3 << 20));
    let appended = append(&log, &[rich, binary, large, event("orders.4.empty", "")]);
    assert_eq!(
        (
            appended.sequences,
            appended.duplicates,
            appended.last_sequence
        ),
        (vec![1, 2, 3, 4], 0, 4)
    );

    let mut log = Some(log);
    for _ in 0..2 {
        let log = log.take().unwrap_or_else(|| place.open());
        let events = read_all(&log);
        let seen: Vec<_> = events
            .iter()
            .map(|event| (event.sequence, &*event.subject, &*event.kind))
            .collect();
        assert_eq!(
            seen,
            [
                (1, "orders.1.new", "placed"),
                (2, "orders.2.paid", "paid"),
                (3, "orders.3.large", "large"),
                (4, "orders.4.empty", "empty")
            ]
        );
        assert_eq!(events[0].time_ns, 1_700_000_000_000_000_000);
        assert_eq!(events[0].data, Payload::from("{\"total\":1}"));
        let headers: Vec<_> = events[0]
            .headers
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        assert_eq!(headers, [("nats-msg-id", "m1"), ("x-a", "1"), ("x-b", "2")]);
        assert_eq!(events[1].data.as_bytes(), b"\xff\0\x01");
        assert_eq!(events[2].data.len(), 3 << 20);
        assert!(events[3].data.is_empty());
        let info = log.info();
        assert_eq!(
            (info.first_sequence, info.last_sequence, info.events),
            (1, 4, 4)
        );
        assert!(info.bytes > 3 << 20 && info.bytes < (3 << 20) + 200);
    }
}

#[test]
fn single_and_grouped_appends_read_the_same() {
    let place = Place::new();
    let mut random = fastrand::Rng::with_seed(5);
    let mut wanted = Vec::new();
    let mut log = place.open();
    for _ in 0..150 {
        let count = if random.bool() {
            1
        } else {
            random.usize(1..400)
        };
        let events: Vec<_> = (0..count)
            .map(|_| {
                let subject = format!("a.{}.{}", random.u8(..20), random.u8(..3));
                event(
                    &subject,
                    &format!("{}:{}", wanted.len(), "d".repeat(random.usize(..900))),
                )
            })
            .collect();
        append(&log, &events);
        wanted.extend(events.into_iter().map(|event| (event.subject, event.data)));
        if random.u8(..20) == 0 {
            drop(log);
            log = place.open();
        }
    }
    let events = read_all(&log);
    assert_eq!(events.len(), wanted.len());
    for (index, (event, (subject, data))) in events.iter().zip(&wanted).enumerate() {
        assert_eq!(
            (event.sequence, &*event.subject, &event.data),
            (index as u64 + 1, subject.as_str(), data)
        );
    }

    let subjects = SubjectSet::parse(&["a.7.*", "a.*.1"]).expect("sound");
    let (mut found, mut after) = (Vec::new(), 0);
    while after < log.info().last_sequence {
        let (page, through) = log.read(after, Some(&subjects), 7, 4_096).expect("reads");
        assert!(page.len() <= 7 && through > after && through - after <= 7 * 16);
        found.extend(page.into_iter().map(|event| event.sequence));
        after = through;
    }
    let matching: Vec<_> = (1..)
        .zip(&wanted)
        .filter(|(_, (subject, _))| subjects.matches(subject))
        .map(|(sequence, _)| sequence)
        .collect();
    assert_eq!(found, matching);
}

#[test]
fn one_bad_event_refuses_the_whole_append() {
    let log = fresh();
    let outcome = log.append(
        &[event("a", "1"), event("a.*", "2")],
        &Expectation::default(),
    );
    assert!(matches!(outcome, Err(Error::Invalid { index: 1, .. })));
    assert_eq!(
        (
            log.info().last_sequence,
            log.info().events,
            log.info().first_sequence
        ),
        (0, 0, 0)
    );
}

#[test]
fn message_ids_are_stored_once_also_after_a_restart() {
    let place = Place::new();
    let log = place.open();
    let first = append(&log, &[with_id("a"), with_id("b"), with_id("a")]);
    assert_eq!(
        (first.sequences, first.duplicates, first.last_sequence),
        (vec![1, 2, 1], 1, 2)
    );
    let second = append(&log, &[with_id("b"), with_id("c")]);
    assert_eq!(
        (second.sequences, second.duplicates, second.last_sequence),
        (vec![2, 3], 1, 3)
    );

    drop(log);
    let log = place.open();
    let third = append(&log, &[with_id("c"), with_id("d"), with_id("a")]);
    assert_eq!(
        (third.sequences, third.duplicates, third.last_sequence),
        (vec![3, 4, 1], 2, 4)
    );
    assert_eq!(texts(&read_all(&log)), ["a", "b", "c", "d"]);
}

#[test]
fn message_ids_are_forgotten_behind_the_window() {
    let place = Place::with(Options {
        duplicate_window: Duration::from_millis(30),
        ..Options::default()
    });
    let log = place.open();
    append(&log, &[with_id("a")]);
    eventually("the id is forgotten", || {
        append(&log, &[with_id("a")]).duplicates == 0
    });
    drop(log);
    let log = place.open();
    eventually("the id is forgotten after a restart", || {
        append(&log, &[with_id("a")]).duplicates == 0
    });
}

#[test]
fn without_a_window_each_event_is_stored_also_twice_in_one_append() {
    let place = Place::with(Options {
        duplicate_window: Duration::ZERO,
        ..Options::default()
    });
    let log = place.open();
    let appended = append(&log, &[with_id("a"), with_id("a")]);
    assert_eq!(
        (
            appended.sequences,
            appended.duplicates,
            appended.last_sequence
        ),
        (vec![1, 2], 0, 2)
    );
    assert_eq!(append(&log, &[with_id("a")]).last_sequence, 3);
}

#[test]
fn events_from_the_past_are_known_by_their_append_not_by_their_time() {
    let place = Place::new();
    let log = place.open();
    let old = NewEvent {
        time_ns: Some(1),
        ..with_id("a")
    };
    append(&log, std::slice::from_ref(&old));
    drop(log);
    assert_eq!(append(&place.open(), &[old]).duplicates, 1);
}

#[test]
fn expected_last_sequence_is_checked() {
    let log = fresh();
    let at = |sequence| Expectation {
        last_sequence: Some(sequence),
        ..Expectation::default()
    };
    assert_eq!(
        log.append(&[event("a", "1")], &at(0))
            .expect("holds")
            .last_sequence,
        1
    );
    assert!(is_conflict(&log.append(&[event("a", "2")], &at(0)), 1));
    assert!(is_conflict(&log.append(&[event("a", "2")], &at(7)), 1));
    assert_eq!(
        log.append(&[event("a", "2")], &at(1))
            .expect("holds")
            .last_sequence,
        2
    );
    assert_eq!(texts(&read_all(&log)), ["1", "2"]);
}

#[test]
fn repeated_request_is_answered_like_the_first() {
    let log = fresh();
    let at_start = Expectation {
        last_sequence: Some(0),
        ..Expectation::default()
    };
    let events = [with_id("a"), with_id("b")];
    log.append(&events, &at_start).expect("holds");
    append(&log, &[event("x", "later")]);
    let again = log.append(&events, &at_start).expect("is a repetition");
    assert_eq!(
        (again.sequences, again.duplicates, again.last_sequence),
        (vec![1, 2], 2, 3)
    );
    assert!(is_conflict(
        &log.append(&[with_id("a"), with_id("c")], &at_start),
        3
    ));
}

#[test]
fn expected_subject_sequence_is_checked_by_pattern() {
    let place = Place::new();
    let mut log = place.open();
    append(
        &log,
        &[
            event("orders.1.placed", ""),
            event("orders.2.placed", ""),
            event("orders.1.paid", ""),
        ],
    );
    for _ in 0..2 {
        let last =
            |pattern: &str| match log.append(&[event("x.y", "")], &expecting(pattern, u64::MAX)) {
                Err(Error::Conflict { found, .. }) => found,
                other => panic!("{other:?}"),
            };
        assert_eq!(last("orders.1.>"), 3);
        assert_eq!(last("orders.1.placed"), 1);
        assert_eq!(last("orders.*.placed"), 2);
        assert_eq!(last("orders.3.>"), 0);
        assert_eq!(last("orders.1"), 0);
        assert_eq!(last("*.1.*"), 3);
        assert_eq!(last(">"), 3);
        drop(log);
        log = place.open();
    }
    log.append(&[event("orders.3.placed", "")], &expecting("orders.3.>", 0))
        .expect("holds");
    assert!(is_conflict(
        &log.append(&[event("orders.3.placed", "")], &expecting("orders.3.>", 0)),
        4
    ));
    log.append(&[event("orders.3.paid", "")], &expecting("orders.3.>", 4))
        .expect("holds");
}

#[test]
fn subject_sequences_are_right_for_many_subjects() {
    let place = Place::new();
    let log = place.open();
    let mut last = vec![0_u64; 70_000];
    let mut random = fastrand::Rng::with_seed(3);
    let round = |log: &Log, last: &mut Vec<u64>, from: usize| {
        let events: Vec<_> = (from..from + 10_000)
            .map(|number| event(&format!("s.{}.x", number % 70_000), ""))
            .collect();
        let appended = append(log, &events);
        for (number, sequence) in (from..).zip(appended.sequences) {
            last[number % 70_000] = sequence;
        }
    };
    let check = |log: &Log, last: &[u64], random: &mut fastrand::Rng| {
        for _ in 0..200 {
            let number = random.usize(..last.len());
            for pattern in [format!("s.{number}.x"), format!("s.{number}.*")] {
                let outcome = log.append(&[event("t", "")], &expecting(&pattern, u64::MAX));
                assert!(
                    is_conflict(&outcome, last[number]),
                    "{pattern}: {outcome:?}, not {}",
                    last[number]
                );
            }
        }
    };
    for step in 0..12 {
        round(&log, &mut last, step * 10_000);
        check(&log, &last, &mut random);
    }
    drop(log);
    let log = place.open();
    check(&log, &last, &mut random);
    round(&log, &mut last, 33_000);
    check(&log, &last, &mut random);
    let outcome = log.append(&[event("t", "")], &expecting(">", 0));
    assert!(is_conflict(&outcome, log.info().last_sequence));
}

#[test]
fn pattern_over_too_many_subjects_is_refused() {
    let log = fresh();
    for step in 0..11 {
        let events: Vec<_> = (0..10_000)
            .map(|number| event(&format!("s.{}", step * 10_000 + number), ""))
            .collect();
        append(&log, &events);
    }
    // The first 65,536 subjects go into the tree a part at a time, as events arrive.
    for step in 0..9 {
        let events: Vec<_> = (0..10_000)
            .map(|number| event(&format!("r.{}", step * 10_000 + number), ""))
            .collect();
        append(&log, &events);
    }
    let outcome = log.append(&[event("t", "")], &expecting("s.*", 0));
    assert!(
        matches!(outcome, Err(Error::Invalid { index: 0, .. })),
        "{outcome:?}"
    );
    log.append(&[event("t", "")], &expecting("s.109999", 110_000))
        .expect("one subject is looked up");
}

#[test]
fn of_concurrent_appends_with_one_expectation_exactly_one_wins() {
    let log = fresh();
    let barrier = Barrier::new(16);
    for round in 0..20 {
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|number| {
                    let (log, barrier) = (&log, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        log.append(
                            &[event("agg.1.x", &number.to_string())],
                            &expecting("agg.1.>", round),
                        )
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect()
        });
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
        assert_eq!(
            outcomes
                .iter()
                .filter(|outcome| is_conflict(outcome, round + 1))
                .count(),
            15
        );
    }
    assert_eq!(log.info().last_sequence, 20);
}

#[test]
fn concurrent_appends_keep_their_own_order_and_lose_nothing() {
    let log = fresh();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let log = &log;
            scope.spawn(move || {
                for number in 0..100 {
                    let pair = [
                        event(&format!("t.{thread}"), &format!("{number}a")),
                        event("t.x", ""),
                    ];
                    let appended = append(log, &pair);
                    assert_eq!(appended.sequences[1], appended.sequences[0] + 1);
                }
            });
        }
    });
    let events = read_all(&log);
    assert_eq!(events.len(), 1_600);
    for thread in 0..8 {
        let subject = format!("t.{thread}");
        let own: Vec<_> = events
            .iter()
            .filter(|event| event.subject == subject)
            .cloned()
            .collect();
        let wanted: Vec<_> = (0..100).map(|number| format!("{number}a")).collect();
        assert_eq!(texts(&own), wanted);
    }
}

#[test]
fn appends_beyond_the_room_of_the_queue_wait_their_turn() {
    let log = fresh();
    let large = "x".repeat(4 << 20);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (log, large) = (&log, &large);
            scope.spawn(move || append(log, &vec![event(&format!("t.{thread}"), large); 4]));
        }
    });
    assert_eq!(log.info().bytes, 32 * ((4 << 20) + 3));
}

#[test]
fn reading_behind_the_end_finds_nothing() {
    let log = fresh();
    append_numbered(&log, 3);
    assert_eq!(log.read(3, None, 0, 0).expect("reads"), (Vec::new(), 3));
    assert_eq!(
        log.read(u64::MAX, None, 10, 10).expect("reads"),
        (Vec::new(), u64::MAX)
    );
    let (events, through) = log.read(0, None, 0, 0).expect("reads");
    assert_eq!((events.len(), through), (1, 1));
}

#[test]
fn times_never_go_back() {
    let place = Place::new();
    let log = place.open();
    let at = |time_ns| NewEvent {
        time_ns: Some(time_ns),
        ..event("a", "")
    };
    append(&log, &[at(100), at(50), at(200)]);
    append(&log, &[at(150)]);
    drop(log);
    let log = place.open();
    append(&log, &[at(10), event("a", "")]);
    let times: Vec<_> = read_all(&log).iter().map(|event| event.time_ns).collect();
    assert_eq!(times[..5], [100, 100, 200, 200, 200]);
    assert!(times[5] > 1_700_000_000_000_000_000);
}

#[test]
fn times_that_are_ahead_of_the_clock_are_named() {
    // As under a clock that was a day ahead.
    let place = Place::with(Options {
        future_max: None,
        ..Options::default()
    });
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
    let ahead = now + Duration::from_secs(24 * 3_600);
    let time_ns = u64::try_from(ahead.as_nanos()).expect("before 2554");
    let log = place.open();
    let tomorrow = NewEvent {
        time_ns: Some(time_ns),
        ..event("a", "")
    };
    append(&log, &[tomorrow]);
    assert_eq!(log.warnings(), Vec::<String>::new(), "any distance is fine");
    drop(log);
    let place = Place {
        options: Options::default(),
        folder: place.folder,
    };
    let log = place.open();
    append(&log, &[event("a", "")]);
    let times: Vec<_> = read_all(&log).iter().map(|event| event.time_ns).collect();
    assert_eq!(times, [time_ns, time_ns]);
    let [warning] = &log.warnings()[..] else {
        panic!("{:?}", log.warnings());
    };
    assert!(
        warning.contains("is 23h 5") && warning.contains("ahead of this machine's clock"),
        "{warning}"
    );
}

#[test]
fn history_keeps_its_identity() {
    let place = Place::new();
    let log = place.open();
    let identity = log.identity();
    assert_eq!(identity.name, "events");
    drop(log);
    let renamed = Place {
        options: Options {
            name: "other".to_owned(),
            ..Options::default()
        },
        folder: place.folder,
    };
    assert_eq!(renamed.open().identity(), identity);
    assert_ne!(fresh().identity(), identity);
}

#[test]
fn file_in_use_or_of_another_kind_is_refused() {
    let place = Place::new();
    let log = place.open();
    let second = Log::open(&place.path(), Options::default()).expect_err("is in use");
    assert!(
        second.to_string().contains("another process has it open"),
        "{second}"
    );
    drop(log);
    let other = place.folder.path().join("notes.txt");
    std::fs::write(&other, "no log at all".repeat(1_000)).expect("writes");
    let error = Log::open(&other, Options::default()).expect_err("is no log");
    assert!(matches!(error, Error::Open(_)), "{error}");
}

#[test]
fn head_rises_with_durable_appends() {
    let log = fresh();
    let head = log.head();
    assert_eq!(*head.borrow(), 0);
    append_numbered(&log, 3);
    assert!(head.has_changed().expect("the log is there"));
    assert_eq!(*head.borrow(), 3);
    let _ = log.append(
        &[event("a", "")],
        &Expectation {
            last_sequence: Some(9),
            ..Expectation::default()
        },
    );
    assert_eq!(*head.borrow(), 3);
}

#[test]
fn a_log_that_lost_its_file_within_its_first_seconds_does_not_begin_again() {
    let place = Place::new();
    let log = place.open();
    append_numbered(&log, 3);
    drop(log);
    // What a crash may leave of a file that was just made: nothing, or no file.
    std::fs::write(place.path(), "").expect("written");
    for step in ["empty", "missing"] {
        let refused = Log::open(&place.path(), Options::default()).err();
        let message = refused.unwrap_or_else(|| panic!("{step}")).to_string();
        assert!(message.contains("had come to 3"), "{step}: {message}");
        std::fs::remove_file(place.path()).expect("removed");
    }
    // What its operator accepts.
    std::fs::remove_file(place.path().with_extension("newest")).expect("it is there");
    append_numbered(&place.open(), 1);
}
