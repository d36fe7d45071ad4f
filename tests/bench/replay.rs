//! Replay: how fast a stream that is there already becomes state.
//!
//! Three measurements over the same stream take turns, so that what else the machine does falls on
//! all of them: a reader that only counts, which is the ceiling; the fold in native Rust; and the
//! same fold as a module. The last two differ in the fold alone: reader, memtable, commits and
//! durability are the host's own pipeline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use foldstream::api::Start;
use foldstream::batch::Limits;
use foldstream::memory::memtables::Budget;
use foldstream::metrics::Metrics;
use foldstream::module::{self, Engine, Identity, Module};
use foldstream::pipeline::{Desired, MakeFold, Pace, Pipeline, Policy, Settings};
use foldstream::progress::Progress;
use foldstream::source::{Request, Source, initial_status};
use foldstream::state::{self, Store};
use foldstream::subject::SubjectSet;
use foldstream_tests::{guests, host};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::arguments::Arguments;
use crate::native::CustomerTotals;
use crate::report::{Report, Target, median};
use crate::workload;

/// One measurement.
#[derive(Clone, Copy)]
pub struct Replay {
    /// Events per second, from the first read to the last commit.
    pub events_per_second: f64,
    /// Processor seconds of this process for a million events.
    pub cpu_per_million: f64,
}

/// Measures all numbers of customers.
pub fn measure(runtime: &Runtime, arguments: &Arguments, report: &mut Report) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let module = load_module(folder.path());
    for &customers in &arguments.customers {
        let server = runtime.block_on(workload::publish(arguments.events, customers));
        let mut rounds = Rounds {
            customers,
            counting: Vec::new(),
            native: Vec::new(),
            wasm: Vec::new(),
        };
        for _ in 0..arguments.rounds {
            let source = || Source::JetStream(workload::source(&server));
            rounds
                .counting
                .push(count(runtime, &source(), arguments.events));
            rounds
                .native
                .push(fold(runtime, source(), arguments.events, native_folds()));
            rounds.wasm.push(fold(
                runtime,
                source(),
                arguments.events,
                instances(&module),
            ));
        }
        add(report, &rounds);
    }
}

/// What was measured with this many customers.
struct Rounds {
    customers: u32,
    counting: Vec<Replay>,
    native: Vec<Replay>,
    wasm: Vec<Replay>,
}

fn add(report: &mut Report, rounds: &Rounds) {
    let Rounds {
        customers,
        counting,
        native,
        wasm,
    } = rounds;
    let rate =
        |rounds: &[Replay]| median(rounds.iter().map(|round| round.events_per_second).collect());
    let mut row = |name: &str, rounds: &[Replay]| {
        let cpu = median(rounds.iter().map(|round| round.cpu_per_million).collect());
        let note = format!("{cpu:.2} s CPU per million events in this process");
        report.add(
            format!("replay, {customers} customers: {name}"),
            rate(rounds),
            "events/s",
            note,
        );
    };
    row("counting reader", counting);
    row("native fold", native);
    row("Wasm", wasm);
    let against = |others: &[Replay]| {
        let pairs = wasm
            .iter()
            .zip(others)
            .map(|(wasm, other)| wasm.events_per_second / other.events_per_second);
        median(pairs.collect())
    };
    let name = format!("replay, {customers} customers: Wasm / native");
    report.add_with_target(name, against(native), "ratio", Target::AtLeast(0.8));
    let name = format!("replay, {customers} customers: Wasm / counting reader");
    if *customers <= 10_000 {
        report.add_with_target(name, against(counting), "ratio", Target::AtLeast(0.5));
    } else {
        report.add(name, against(counting), "ratio", "");
    }
}

/// The module of the workload.
pub fn load_module(cache: &std::path::Path) -> Arc<Module> {
    load(cache, "customer-totals")
}

/// The module of a guest.
pub fn load(cache: &std::path::Path, guest: &str) -> Arc<Module> {
    let mut options = module::Options::new(cache.to_path_buf(), foldstream_tests::foldstream());
    options.deadline = Duration::from_secs(60);
    let engine = Engine::new(options).expect("this machine runs the engine");
    let accepted = engine
        .accept(guests::module(guest).into())
        .expect("the example is a module");
    engine.load(&accepted).expect("the example compiles").module
}

/// Makes native folds.
pub fn native_folds() -> MakeFold {
    Box::new(|| Ok(Box::<CustomerTotals>::default()))
}

/// Makes instances of a module.
pub fn instances(module: &Arc<Module>) -> MakeFold {
    let module = Arc::clone(module);
    let identity = Identity {
        deployment: "bench".to_owned(),
        generation: 1,
    };
    Box::new(move || Ok(Box::new(module.instantiate(&identity)?)))
}

fn request() -> Request {
    Request {
        resume: None,
        start: Start::Beginning,
        subjects: SubjectSet::parse(&["orders.>"]).expect("a constant and valid"),
        wants_headers: false,
        limits: Limits::default(),
        begins_after: None,
        accepts_missing_through: 0,
        skips: Arc::default(),
    }
}

/// Runs a measured piece of work over this many events.
fn timed(events: usize, work: impl FnOnce()) -> Replay {
    let (started, cpu) = (Instant::now(), processor_seconds());
    work();
    let seconds = started.elapsed().as_secs_f64();
    Replay {
        events_per_second: events as f64 / seconds,
        cpu_per_million: (processor_seconds() - cpu) / (events as f64 / 1e6),
    }
}

/// The ceiling: the same reader, and nothing done with what it reads.
pub fn count(runtime: &Runtime, source: &Source, events: usize) -> Replay {
    timed(events, || {
        let read = runtime.block_on(async {
            let (status, _) = watch::channel(initial_status());
            let mut reader = source.read(request(), status);
            let mut read = 0;
            while read < events {
                read += reader
                    .next()
                    .await
                    .expect("the stream is whole")
                    .events
                    .len();
            }
            read
        });
        assert_eq!(read, events);
    })
}

/// The host's pipeline around a fold, from an empty state to everything durable.
pub fn fold(runtime: &Runtime, source: Source, events: usize, make_fold: MakeFold) -> Replay {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let defaults = foldstream::config::Config::default();
    let options = state::Options {
        cache_bytes: 64 << 20,
        ..state::Options::default()
    };
    let (store, writer) =
        Store::open(&folder.path().join("state.redb"), options, |_| {}).expect("a new state opens");
    let (control, desired) = watch::channel(Desired::Run(0));
    let (_pace, pace) = watch::channel(Pace::default());
    let (source_status, _status) = watch::channel(initial_status());
    let pipeline = Pipeline {
        source,
        request: request(),
        skips: foldstream::state::exceptions::Skips::default(),
        source_status,
        make_fold,
        store: store.clone(),
        writer,
        recognises: None,
        role: foldstream::effects::Role::Mute,
        settings: Settings {
            batch: Limits {
                events: defaults.pipeline.batch_events,
                bytes: defaults.pipeline.batch_bytes,
            },
            policy: Policy {
                attempts: 1,
                initial_backoff: defaults.pipeline.initial_backoff,
                max_backoff: defaults.pipeline.max_backoff,
            },
            build_attempts: 1,
            build_backoff: defaults.pipeline.max_backoff,
            retry_percent: defaults.pipeline.retry_percent,
            keeper: None,
            parking: foldstream::pipeline::ParkingLimits::default(),
            flush_interval: defaults.state.flush_interval,
            memtable_bytes: defaults.state.memtable_bytes,
            idle_after: Duration::ZERO,
            budget: Arc::new(Budget::new(defaults.shares().memtables)),
            disk: None,
            shuffle: None,
        },
        progress: Arc::new(Progress::new(Some(0), 0)),
        metrics: Metrics::new().deployment("bench"),
        wanted: Desired::Run(0),
        control: desired,
        pace,
        leash: foldstream::pipeline::Leash::none(),
        standing: watch::Sender::new(None),
        patches: Arc::default(),
        parking: foldstream::pipeline::Parking::never("bench"),
        parked: Arc::default(),
        runtime: runtime.handle().clone(),
    };
    timed(events, || {
        // Named as in a host, so that a profile tells it from the reader and from commits.
        let thread = std::thread::Builder::new().name("fold".to_owned());
        let running = thread
            .spawn(move || pipeline.run())
            .expect("a thread can be started");
        while store.position() < events as u64 && !running.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        control.send_replace(Desired::Stop);
        running.join().expect("the pipeline does not panic");
        assert_eq!(
            store.checkpoint().map(|checkpoint| checkpoint.position),
            Some(events as u64),
            "all is durable"
        );
    })
}

/// Processor time of this process so far.
fn processor_seconds() -> f64 {
    host::processor_seconds(std::process::id())
}
