//! Firing from a real state into a real embedded log, by clocks that jump.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::sweep::LOOPS_MAX;
use super::{Activity, Parts, Status, Task};
use crate::clock::Reading;
use crate::event::Event;
use crate::log::{self, Log};
use crate::metrics::Metrics;
use crate::position::{Checkpoint, StreamIdentity};
use crate::source::Source;
use crate::source::embedded::Embedded;
use crate::state::{Options, Store, Writer};
use crate::timers::Timer;

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400;

/// The clocks of a machine, and how often the task has looked at them.
struct Machine {
    reading: Mutex<Reading>,
    looks: watch::Sender<u64>,
    /// Ends the rest of the task.
    changes: watch::Sender<u64>,
}

impl Machine {
    fn new(seconds: u64) -> Arc<Self> {
        let reading = Reading {
            wall_ns: seconds * SECOND,
            steady: Duration::ZERO,
        };
        Arc::new(Self {
            reading: Mutex::new(reading),
            looks: watch::Sender::new(0),
            changes: watch::Sender::new(0),
        })
    }

    /// Shows this from now on, and waits until the task has looked at it and has begun to look
    /// again: whatever the look led to is done by then.
    async fn shows(&self, wall_s: u64, steady_s: u64) {
        *self.reading.lock() = Reading {
            wall_ns: wall_s * SECOND,
            steady: Duration::from_secs(steady_s),
        };
        // The task reads both clocks up to twice in a round.
        let enough = *self.looks.borrow() + 6;
        let mut looks = self.looks.subscribe();
        let seen = async {
            while *looks.borrow_and_update() < enough {
                self.changes.send_modify(|count| *count += 1);
                looks.changed().await.expect("the sender lives");
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(30), seen).await;
        seen.expect("the task looks at the clocks");
    }
}

struct Bed {
    log: Log,
    machine: Arc<Machine>,
    _task: Task,
    _writer: Writer,
    _folder: tempfile::TempDir,
}

impl Bed {
    /// A task with durable timers, by name and time in seconds, on a machine whose clock shows a time.
    fn start(timers: &[(&str, u64)], seconds: u64) -> Self {
        Self::start_with(|writer| set(writer, timers), seconds)
    }

    /// The same with timers that are set like this.
    fn start_with(set: impl FnOnce(&mut Writer), seconds: u64) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = log::Options::default();
        let log = Log::open(&folder.path().join("log.redb"), options).expect("the log opens");
        let (store, writer) = state(&folder.path().join("state.redb"), set);
        let machine = Machine::new(seconds);
        let shown = Arc::clone(&machine);
        let source = Source::Embedded(Embedded::new(log.clone()));
        let parts = Parts {
            deployment: "test".to_owned(),
            store,
            source: Arc::new(move || Ok(source.clone())),
            activity: Arc::new(|| Activity::Lives),
            changed: machine.changes.subscribe(),
            status: Arc::new(Status::default()),
            metrics: Metrics::new().deployment("test"),
            clocks: Arc::new(move || {
                let reading = *shown.reading.lock();
                shown.looks.send_modify(|count| *count += 1);
                reading
            }),
        };
        let task = Task::start(parts, &tokio::runtime::Handle::current());
        Self {
            log,
            machine,
            _task: task,
            _writer: writer,
            _folder: folder,
        }
    }

    /// Waits until a firing that has this in its data is in the log.
    async fn fires(&self, data: &str) {
        let mut head = self.log.head();
        let fired = head.wait_for(|_| {
            let (events, _) = self.log.read(0, None, 1_000, usize::MAX).expect("reads");
            let data_of = |event: &Event| event.data.as_str().map(str::to_owned);
            let mut all = events.iter().filter_map(data_of);
            all.any(|text| text.contains(data))
        });
        let fired = tokio::time::timeout(Duration::from_secs(30), fired).await;
        fired.expect("in time").expect("the log is open");
    }

    /// How many firings the log has, once the clocks show this.
    async fn fired_at(&self, wall_s: u64, steady_s: u64) -> u64 {
        self.machine.shows(wall_s, steady_s).await;
        *self.log.head().borrow()
    }
}

fn set(writer: &mut Writer, timers: &[(&str, u64)]) {
    for (name, at_s) in timers {
        let timer = Timer {
            at_ns: at_s * SECOND,
            set_by: 1,
            ..Timer::default()
        };
        writer.set_timer(name, &timer).expect("within limits");
    }
}

fn state(path: &std::path::Path, set: impl FnOnce(&mut Writer)) -> (Store, Writer) {
    let (store, mut writer) =
        Store::open(path, Options::default(), |_| ()).expect("the state opens");
    writer.begin();
    set(&mut writer);
    let stream = StreamIdentity {
        name: "s".to_owned(),
        created_ns: 1,
    };
    writer.publish(Checkpoint::at(1, stream));
    store.flush().expect("commits");
    (store, writer)
}

#[tokio::test(flavor = "multi_thread")]
async fn timers_fire_by_no_clock_that_has_just_jumped_ahead() {
    let bed = Bed::start(&[("soon", 1_010), ("tomorrow", DAY)], 1_000);
    assert_eq!(bed.fired_at(1_001, 1).await, 0);
    // A day ahead, and back a moment later: nothing was due by the wrong time.
    assert_eq!(bed.fired_at(1_002 + DAY, 2).await, 0);
    assert_eq!(bed.fired_at(1_009 + DAY, 9).await, 0);
    assert_eq!(bed.fired_at(1_010, 10).await, 0);
    assert_eq!(
        bed.fired_at(1_019, 19).await,
        0,
        "it has not run evenly for long"
    );
    assert_eq!(bed.fired_at(1_020, 20).await, 1, "soon");
    // Once more, and this time it stays.
    assert_eq!(bed.fired_at(1_021 + DAY, 21).await, 1);
    assert_eq!(bed.fired_at(1_030 + DAY, 30).await, 1);
    assert_eq!(bed.fired_at(1_031 + DAY, 31).await, 2, "tomorrow");
}

#[tokio::test(flavor = "multi_thread")]
async fn clock_that_jumps_back_makes_timers_late_and_fires_none_twice() {
    let bed = Bed::start(&[("first", 5_000), ("second", 5_010)], 4_999);
    assert_eq!(bed.fired_at(5_000, 1).await, 1, "first");
    // An hour back: the second one is late by that, and the first one is on its way.
    assert_eq!(bed.fired_at(1_401, 2).await, 1);
    assert_eq!(bed.fired_at(1_411, 12).await, 1);
    assert_eq!(bed.fired_at(1_450, 51).await, 1);
    // It is corrected, which is a jump as well.
    assert_eq!(bed.fired_at(5_051, 52).await, 1);
    assert_eq!(bed.fired_at(5_060, 61).await, 1);
    assert_eq!(bed.fired_at(5_061, 62).await, 2, "second");
    assert_eq!(bed.fired_at(5_200, 201).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn timer_fires_although_more_timers_of_loops_wait_before_it_than_a_look_reads() {
    let looping = |writer: &mut Writer| {
        for number in 0..2 * LOOPS_MAX as u64 + 1 {
            let timer = Timer {
                at_ns: SECOND + number,
                set_by: 1,
                depth: Options::default().timers_in_a_row_max,
                ..Timer::default()
            };
            let name = format!("loop-{number}");
            writer.set_timer(&name, &timer).expect("within limits");
        }
        set(writer, &[("tea", 900)]);
    };
    let bed = Bed::start_with(looping, 1_000);
    bed.fires("tea").await;
    // One of them has had its turn since, and others follow.
    bed.fires("loop-").await;
    assert!(*bed.log.head().borrow() < 100);
}
