use std::time::{Duration, SystemTime};

use foldstream::log::{Log, NewEvent, Options};

use crate::{
    Place, append, append_numbered, event, expecting, fresh, is_conflict, read_all, texts, trim,
    with_id,
};

fn first_and_last(log: &Log) -> (u64, u64, u64) {
    let info = log.info();
    (info.first_sequence, info.last_sequence, info.events)
}

fn seconds_ago(seconds: u64) -> u64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970");
    u64::try_from((now - Duration::from_secs(seconds)).as_nanos()).expect("before 2554")
}

#[test]
fn old_events_are_removed_from_the_front() {
    let place = Place::with(Options {
        max_age: Some(Duration::from_secs(3_600)),
        ..Options::default()
    });
    let log = place.open();
    let old = |number: u64| NewEvent {
        time_ns: Some(seconds_ago(7_200)),
        ..event("a.old", &number.to_string())
    };
    append(&log, &(1..=25_000).map(old).collect::<Vec<_>>()[..10_000]);
    append(&log, &(10_001..=15_000).map(old).collect::<Vec<_>>());
    append(&log, &[event("a.new", "15001"), event("a.new", "15002")]);

    assert_eq!(trim(&log).expect("trims"), 15_000);
    assert_eq!(trim(&log).expect("trims"), 0);
    assert_eq!(first_and_last(&log), (15_001, 15_002, 2));
    assert_eq!(texts(&read_all(&log)), ["15001", "15002"]);
    assert_eq!(log.info().bytes, 2 * (5 + 5));

    // The subject has no event any more, and so no last sequence.
    assert!(is_conflict(
        &log.append(&[event("x", "")], &expecting("a.old", 9)),
        0
    ));
    assert!(is_conflict(
        &log.append(&[event("x", "")], &expecting("a.*", 9)),
        15_002
    ));
}

#[test]
fn event_that_was_removed_is_still_known_by_its_id_after_a_restart() {
    let place = Place::with(Options {
        max_bytes: Some(9_010),
        ..Options::default()
    });
    let log = place.open();
    append(&log, &[with_id("a"), with_id("b")]);
    // More than one chunk, so that the first one goes as a whole.
    for number in 0..20 {
        append(
            &log,
            &[
                event("a.bb", &"x".repeat(9_000)),
                with_id(&format!("n{number}")),
            ],
        );
        assert!(trim(&log).expect("trims") > 0);
    }
    drop(log);
    // Twice: what is recalled is still there after another restart.
    for _ in 0..2 {
        let log = place.open();
        let again = append(
            &log,
            &[with_id("b"), with_id("n7"), with_id("n19"), with_id("a")],
        );
        assert_eq!((again.duplicates, again.sequences), (4, vec![2, 18, 42, 1]));
        append(&log, &[event("a.bb", &"x".repeat(9_000))]);
        trim(&log).expect("trims");
    }
    let place = Place {
        options: Options {
            duplicate_window: Duration::from_millis(1),
            ..place.options
        },
        ..place
    };
    assert_eq!(append(&place.open(), &[with_id("a")]).duplicates, 0);
}

#[test]
fn log_keeps_its_newest_bytes() {
    let place = Place::with(Options {
        max_bytes: Some(1_000),
        ..Options::default()
    });
    let log = place.open();
    // Each event counts 4 bytes of subject and 96 of data.
    let events: Vec<_> = (0..50)
        .map(|number| event("a.bb", &format!("{number:096}")))
        .collect();
    append(&log, &events);
    assert_eq!(trim(&log).expect("trims"), 40);
    assert_eq!(
        (first_and_last(&log), log.info().bytes),
        ((41, 50, 10), 1_000)
    );
    append(&log, &events[..3]);
    assert_eq!(trim(&log).expect("trims"), 3);
    assert_eq!(
        (first_and_last(&log), log.info().bytes),
        ((44, 53, 10), 1_000)
    );

    drop(log);
    let log = place.open();
    assert_eq!(
        (first_and_last(&log), log.info().bytes),
        ((44, 53, 10), 1_000)
    );
    assert_eq!(read_all(&log).first().map(|event| event.sequence), Some(44));
}

#[test]
fn sequences_and_times_continue_after_everything_is_removed() {
    let place = Place::with(Options {
        max_age: Some(Duration::from_secs(60)),
        ..Options::default()
    });
    let log = place.open();
    let time = seconds_ago(100);
    append(
        &log,
        &[
            NewEvent {
                time_ns: Some(time),
                ..event("a", "")
            },
            NewEvent {
                time_ns: Some(time),
                ..event("a", "")
            },
        ],
    );
    assert_eq!(trim(&log).expect("trims"), 2);
    assert_eq!((first_and_last(&log), log.info().bytes), ((0, 2, 0), 0));
    assert!(read_all(&log).is_empty());

    drop(log);
    let log = place.open();
    assert_eq!(first_and_last(&log), (0, 2, 0));
    let back = append(
        &log,
        &[NewEvent {
            time_ns: Some(1),
            ..event("a", "again")
        }],
    );
    assert_eq!(back.sequences, [3]);
    assert_eq!(first_and_last(&log), (3, 3, 1));
    assert_eq!(read_all(&log)[0].time_ns, time);
}

#[test]
fn clock_that_cannot_be_relied_on_removes_by_bytes_only() {
    let place = Place::with(Options {
        max_age: Some(Duration::from_secs(3_600)),
        max_bytes: Some(50),
        ..Options::default()
    });
    let log = place.open();
    let old = |number: u64| NewEvent {
        time_ns: Some(seconds_ago(7_200)),
        ..event("a.old", &number.to_string())
    };
    append(&log, &(1..=9).map(old).collect::<Vec<_>>());
    // Each takes 6 bytes.
    assert_eq!(log.enforce_retention(None).expect("trims"), 1);
    assert_eq!(trim(&log).expect("trims"), 8);
}

#[test]
fn nothing_is_removed_without_limits() {
    let log = fresh();
    append(
        &log,
        &[NewEvent {
            time_ns: Some(1),
            ..event("a", "")
        }],
    );
    append_numbered(&log, 100);
    assert_eq!(trim(&log).expect("trims"), 0);
    assert_eq!(log.info().events, 101);
}

#[test]
fn log_under_random_appends_restarts_and_retention_equals_a_list() {
    for seed in 0..6 {
        let mut random = fastrand::Rng::with_seed(seed);
        let place = Place::with(Options {
            max_bytes: Some(40_000),
            ..Options::default()
        });
        let mut log = Some(place.open());
        let (mut list, mut gone) = (Vec::<(String, String)>::new(), 0);
        for _ in 0..120 {
            let open = log.get_or_insert_with(|| place.open());
            match random.u8(..10) {
                0 => log = None,
                1 | 2 => {
                    trim(open).expect("trims");
                    let size = |(subject, data): &(String, String)| subject.len() + data.len();
                    while list[gone..].iter().map(size).sum::<usize>() > 40_000 {
                        gone += 1;
                    }
                }
                _ => {
                    let count = random.usize(1..60);
                    let events: Vec<_> = (0..count)
                        .map(|_| {
                            event(
                                &format!("s.{}", random.u8(..9)),
                                &"d".repeat(random.usize(..300)),
                            )
                        })
                        .collect();
                    append(open, &events);
                    list.extend(
                        events
                            .into_iter()
                            .map(|one| (one.subject, one.data.as_str().expect("text").to_owned())),
                    );
                }
            }
        }
        let log = log.unwrap_or_else(|| place.open());
        let events = read_all(&log);
        assert_eq!(
            events
                .first()
                .map_or(list.len() as u64 + 1, |event| event.sequence),
            gone as u64 + 1,
            "seed {seed}"
        );
        let seen: Vec<_> = events
            .iter()
            .map(|event| {
                (
                    event.subject.to_string(),
                    event.data.as_str().expect("text").to_owned(),
                )
            })
            .collect();
        assert!(seen == list[gone..], "seed {seed}");
        for number in 0..9 {
            let subject = format!("s.{number}");
            let last = (gone..list.len())
                .rev()
                .find(|index| list[*index].0 == subject)
                .map_or(0, |index| index as u64 + 1);
            assert!(
                is_conflict(
                    &log.append(&[event("x", "")], &expecting(&subject, u64::MAX)),
                    last
                ),
                "seed {seed}"
            );
        }
    }
}
