//! Lanes: one lane against two over an embedded log, and what remains serial.
//!
//! The guest `pondering` computes for some 10 µs an event, `customer-totals` parses and sums. Both
//! numbers of lanes take turns. From the time in which two lanes worked at once, and the rest, the
//! gain of more cores is computed: the rest stays, and what was done at once is divided by the number
//! of lanes. A machine with that many cores may still be limited by its reader, which is in the table
//! of `path`.

use std::sync::Arc;

use foldstream::module::{Identity, Module};
use foldstream::pipeline::MakeFold;
use foldstream::pipeline::lanes::{Lanes, MakeLane, Plan, Record};
use foldstream::source::Source;
use foldstream::source::embedded::Embedded;
use tokio::runtime::Runtime;

use crate::arguments::Arguments;
use crate::path;
use crate::replay::{self, Replay};
use crate::report::{Report, Target, median};

/// The part of the events that the slow guest gets.
const SLOW_PART: usize = 10;
/// Numbers of cores for which the gain is computed.
const CORES: [f64; 2] = [8.0, 16.0];

/// One run in two lanes.
struct Run {
    replay: Replay,
    /// Seconds in which lanes worked at once, and all others.
    at_once: f64,
    rest: f64,
}

/// Measures both guests.
pub fn measure(runtime: &Runtime, arguments: &Arguments, report: &mut Report) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for (guest, part, target) in [("pondering", SLOW_PART, 1.8), ("customer-totals", 1, 1.4)] {
        let module = replay::load(folder.path(), guest);
        for &customers in &arguments.customers {
            let events = (arguments.events / part).max(1);
            let path = folder.path().join(format!("{guest}-{customers}.redb"));
            let log = path::log(&path, events, customers);
            let source = || Source::Embedded(Embedded::new(log.clone()));
            let (mut one, mut two) = (Vec::new(), Vec::new());
            for _ in 0..arguments.rounds {
                let folds = replay::instances(&module);
                one.push(replay::fold(runtime, source(), events, folds));
                let record = Arc::new(Record::default());
                let folds = in_lanes(&module, &record);
                let replay = replay::fold(runtime, source(), events, folds);
                let figures = record.figures();
                assert!(
                    figures.collided == 0 && figures.failed == 0,
                    "its keys are apart: {figures:?}"
                );
                let seconds = events as f64 / replay.events_per_second;
                let at_once = figures.at_once.as_secs_f64();
                two.push(Run {
                    replay,
                    at_once,
                    rest: seconds - at_once,
                });
            }
            let name = format!("lanes, {guest}, {customers} customers");
            add(report, &name, target, (&one, &two));
        }
    }
}

fn add(report: &mut Report, name: &str, target: f64, (one, two): (&[Replay], &[Run])) {
    let each = |figure: &dyn Fn(&Replay, &Run) -> f64| {
        let pairs = one.iter().zip(two).map(|(one, two)| figure(one, two));
        median(pairs.collect())
    };
    let rate = each(&|one, _| one.events_per_second);
    report.add(format!("{name}: one lane"), rate, "events/s", "");
    let rate = each(&|_, two| two.replay.events_per_second);
    report.add(format!("{name}: two lanes"), rate, "events/s", "");
    let gain = each(&|one, two| two.replay.events_per_second / one.events_per_second);
    let target = Target::AtLeast(target);
    report.add_with_target(format!("{name}: two / one"), gain, "ratio", target);
    let rest = each(&|_, two| two.rest / (two.rest + two.at_once));
    report.add(
        format!("{name}: serial part of two lanes"),
        100.0 * rest,
        "%",
        "of the time, in which lanes do not work",
    );
    for cores in CORES {
        let gain = each(&|one, two| {
            let events = two.replay.events_per_second * (two.rest + two.at_once);
            let seconds = two.rest + two.at_once * 2.0 / cores;
            events / seconds / one.events_per_second
        });
        let name = format!("{name}: computed, {cores} cores");
        report.add(name, gain, "ratio", "from the two rows above");
    }
}

/// Makes folds of two lanes.
fn in_lanes(module: &Arc<Module>, record: &Arc<Record>) -> MakeFold {
    let plan = Plan::new(2, module.manifest().key_rule.clone());
    let (module, record) = (Arc::clone(module), Arc::clone(record));
    let identity = Identity {
        deployment: "bench".to_owned(),
        generation: 1,
    };
    let make: MakeLane = Arc::new(move || Ok(Box::new(module.instantiate(&identity)?)));
    Box::new(move || {
        let lanes = Lanes::new(plan.clone(), Arc::clone(&make), Arc::clone(&record))?;
        Ok(Box::new(lanes))
    })
}
