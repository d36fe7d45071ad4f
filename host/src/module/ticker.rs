//! The deadline clock: it raises the epoch while guests run, and sleeps while none does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Error;

/// How often the epoch rises: the precision of deadlines.
pub(super) const TICK: Duration = Duration::from_millis(5);
/// Ticks without a guest after which it sleeps. Waking it costs more than a few ticks.
const IDLE_TICKS: u32 = 20;

/// The clock of one engine.
#[derive(Debug)]
pub(super) struct Ticker {
    inner: Arc<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    /// Number of running guest calls.
    running: AtomicU64,
    /// The thread waits for a guest, or is about to.
    rests: AtomicBool,
    /// The engine no longer exists.
    ended: AtomicBool,
    lock: Mutex<()>,
    woken: Condvar,
}

/// A running guest; dropping it ends the call.
#[derive(Debug)]
pub(super) struct Running {
    inner: Arc<Calls>,
}

impl Ticker {
    /// Starts the clock, which calls `tick` each time.
    pub(super) fn start(tick: impl Fn() + Send + 'static) -> Result<Self, Error> {
        let inner = Arc::new(Calls::default());
        let shared = Arc::clone(&inner);
        let thread = std::thread::Builder::new()
            .name("epoch".to_owned())
            .spawn(move || shared.run(tick));
        match thread {
            Ok(_) => Ok(Self { inner }),
            Err(error) => {
                let message = format!("cannot start the thread that watches deadlines: {error}");
                Err(Error::engine(message, error))
            }
        }
    }

    /// Records that a guest runs.
    pub(super) fn run(&self) -> Running {
        // First the count, then the look at `rests`: the thread sets and looks in the opposite
        // order, so that one of the two always sees the other.
        self.inner.running.fetch_add(1, Ordering::SeqCst);
        if self.inner.rests.load(Ordering::SeqCst) {
            self.inner.wake();
        }
        Running {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.inner.ended.store(true, Ordering::SeqCst);
        // The thread may rest: it looks at `ended` and leaves.
        self.inner.wake();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.inner.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Calls {
    /// The lock is free only once the thread waits, so the thread can't miss this.
    fn wake(&self) {
        let _waits = self.lock.lock();
        self.woken.notify_one();
    }

    fn is_idle(&self) -> bool {
        self.running.load(Ordering::SeqCst) == 0 && !self.ended.load(Ordering::SeqCst)
    }

    fn run(&self, tick: impl Fn()) {
        let mut idle = 0;
        // Guests that still run while the engine is dropped must meet their deadline.
        while !self.ended.load(Ordering::SeqCst) || self.running.load(Ordering::SeqCst) > 0 {
            tick();
            std::thread::sleep(TICK);
            idle = if self.is_idle() { idle + 1 } else { 0 };
            if idle >= IDLE_TICKS {
                self.rest();
                idle = 0;
            }
        }
    }

    /// Waits for a guest. A starting guest either sees that the clock sleeps, or is seen here.
    fn rest(&self) {
        let mut waits = self.lock.lock();
        // Set before it looks for guests: see `Ticker::run`.
        self.rests.store(true, Ordering::SeqCst);
        while self.is_idle() {
            self.woken.wait(&mut waits);
        }
        self.rests.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until(what: &str, is_so: impl Fn() -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !is_so() {
            assert!(std::time::Instant::now() < deadline, "never: {what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn it_ticks_while_a_guest_runs_and_rests_while_none_does() {
        let ticks = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&ticks);
        let ticker = Ticker::start(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        })
        .expect("starts");
        for _ in 0..3 {
            until("it rests", || ticker.inner.rests.load(Ordering::SeqCst));
            let before = ticks.load(Ordering::SeqCst);
            let (one, other) = (ticker.run(), ticker.run());
            until("it ticks", || ticks.load(Ordering::SeqCst) > before + 2);
            drop(one);
            let before = ticks.load(Ordering::SeqCst);
            until("it ticks on", || {
                ticks.load(Ordering::SeqCst) > before + u64::from(IDLE_TICKS) * 2
            });
            drop(other);
        }
    }

    #[test]
    fn it_ends_with_its_engine_also_while_it_rests() {
        let alive = Arc::new(());
        let held = Arc::clone(&alive);
        let ticker = Ticker::start(move || drop(Arc::clone(&held))).expect("starts");
        until("it rests", || ticker.inner.rests.load(Ordering::SeqCst));
        drop(ticker);
        until("it ends", || Arc::strong_count(&alive) == 1);
    }

    #[test]
    fn no_guest_that_begins_while_it_goes_to_rest_is_missed() {
        let ticks = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&ticks);
        let inner = Arc::new(Calls::default());
        let shared = Arc::clone(&inner);
        // It rests after each tick.
        let thread = std::thread::spawn(move || {
            while !shared.ended.load(Ordering::SeqCst) {
                counted.fetch_add(1, Ordering::SeqCst);
                shared.rest();
            }
        });
        let ticker = Ticker { inner };
        for _ in 0..10_000 {
            let running = ticker.run();
            let before = ticks.load(Ordering::SeqCst);
            until("it ticks", || ticks.load(Ordering::SeqCst) > before);
            drop(running);
        }
        drop(ticker);
        thread.join().expect("no panic");
    }
}
