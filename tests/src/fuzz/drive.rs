//! Runs a target with increasing seeds, and reports which of them failed.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;

/// Longest time that one input may take: far more than any needs, as the machine may be busy.
const CASE_MAX: Duration = Duration::from_secs(60);
/// Most different failures to report; a long run ends after that many.
const FAILURES_MAX: usize = 20;
/// How many characters of the message distinguish a failure from others.
const SAME: usize = 60;

/// Which seeds a run takes: `FUZZ_SEED` is the first; `FUZZ_INPUTS` says how many, or else
/// `FUZZ_MINUTES` how long.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The first seed.
    pub first: u64,
    /// How many; none if the time decides, or the target.
    pub inputs: Option<u64>,
    /// How long; none runs a fixed number of inputs.
    pub time: Option<Duration>,
}

impl Plan {
    /// What the environment says.
    pub fn from_environment() -> Self {
        let number = |name: &str| {
            std::env::var(name)
                .ok()
                .and_then(|value| value.parse::<u64>().ok())
        };
        let time = number("FUZZ_MINUTES").map(|minutes| Duration::from_secs(minutes * 60));
        Self {
            first: number("FUZZ_SEED").unwrap_or(1),
            inputs: number("FUZZ_INPUTS"),
            time,
        }
    }

    /// The seeds of a run that takes this many unless the plan says otherwise.
    pub fn seeds(self, count: u64) -> impl Iterator<Item = u64> {
        let begin = Instant::now();
        (self.first..).take_while(move |seed| match (self.inputs, self.time) {
            (None, Some(time)) => begin.elapsed() < time,
            (inputs, _) => seed - self.first < inputs.unwrap_or(count),
        })
    }
}

/// Gives each seed of the plan to a target: `count` of them unless the environment says how many or
/// for how long. A target returns what became of its input, in a word or two, and panics if that is wrong.
///
/// # Panics
///
/// When the target did, with the seeds; and the process ends if one input takes longer than a
/// minute.
pub fn run(target: &str, count: u64, mut case: impl FnMut(&mut Rng) -> &'static str) {
    let (plan, begin) = (Plan::from_environment(), Instant::now());
    let watch = Watch::start(target);
    let (mut outcomes, mut failures) = (
        BTreeMap::new(),
        BTreeMap::<String, (u64, u64, String)>::new(),
    );
    let mut done = 0_u64;
    for seed in plan.seeds(count) {
        watch.note(seed);
        match catch_unwind(AssertUnwindSafe(|| case(&mut Rng::with_seed(seed)))) {
            Ok(outcome) => *outcomes.entry(outcome).or_insert(0_u64) += 1,
            Err(panic) => {
                let text = words(&*panic);
                let kind: String = text
                    .chars()
                    .filter(|character| !character.is_ascii_digit())
                    .take(SAME)
                    .collect();
                failures.entry(kind).or_insert_with(|| (seed, 0, text)).1 += 1;
            }
        }
        done += 1;
        if failures.len() == FAILURES_MAX {
            break;
        }
    }
    println!(
        "{target}: {done} inputs from seed {} in {:.1?}: {outcomes:?}",
        plan.first,
        begin.elapsed()
    );
    let told = failures
        .values()
        .map(|(seed, times, text)| format!("seed {seed}, {times} times: {text}"));
    let told: Vec<_> = told.collect();
    assert!(
        told.is_empty(),
        "{target}: FUZZ_SEED={} FUZZ_TARGET={target} make fuzz\n{}",
        plan.first,
        told.join("\n")
    );
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words")
        .to_owned()
}

/// Ends the process if an input takes too long, and writes each seed to a file, in case an input
/// ends the process.
struct Watch {
    seed: Arc<AtomicU64>,
    since: Instant,
    /// When the input began, in milliseconds since `since`.
    begun_ms: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    file: File,
}

impl Watch {
    fn start(target: &str) -> Self {
        let path = note_of(target);
        std::fs::create_dir_all(path.parent().expect("it has one"))
            .expect("the target folder can be written");
        let file = File::create(&path).expect("the target folder can be written");
        let watch = Self {
            seed: Arc::default(),
            since: Instant::now(),
            begun_ms: Arc::default(),
            done: Arc::default(),
            file,
        };
        let (seed, begun_ms, done) = (
            watch.seed.clone(),
            watch.begun_ms.clone(),
            watch.done.clone(),
        );
        let (since, target) = (watch.since, target.to_owned());
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(200));
                let begun = Duration::from_millis(begun_ms.load(Ordering::Relaxed));
                if !done.load(Ordering::Relaxed) && since.elapsed().saturating_sub(begun) > CASE_MAX
                {
                    eprintln!(
                        "{target}: seed {} takes longer than {CASE_MAX:?}",
                        seed.load(Ordering::Relaxed)
                    );
                    std::process::abort();
                }
            }
        });
        watch
    }

    fn note(&self, seed: u64) {
        let elapsed = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.seed.store(seed, Ordering::Relaxed);
        self.begun_ms.store(elapsed, Ordering::Relaxed);
        self.file
            .write_all_at(format!("{seed:020}\n").as_bytes(), 0)
            .expect("the target folder can be written");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// The file that holds the seed of a target that runs, or ended the process.
fn note_of(target: &str) -> PathBuf {
    crate::built().join("fuzz").join(format!("{target}.seed"))
}
