//! Taking confirmed effects out of the file, also while others of their round are still sent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::effects::{Row, RowKey};
use crate::outbox::releaser::Parts;

/// How long confirmed effects may stay in the file while others are sent. A crash within that time
/// sends them again, so it is far shorter than any stream's window.
pub(super) const CONFIRMED_MAX: Duration = Duration::from_secs(1);

/// The commits of a task that remove confirmed effects: one at a time, or many of them could wait for
/// a slow disk.
pub(super) struct Removals {
    parts: Arc<Parts>,
    /// Not held across a wait.
    state: Mutex<State>,
}

struct State {
    /// Effects that were confirmed since the round began, and that the store does not know yet.
    confirmed: Vec<RowKey>,
    /// How many were confirmed since then.
    noted: u64,
    /// The commit that runs, if one does.
    running: Option<JoinHandle<()>>,
    /// When the last one began.
    begun: Instant,
}

impl Removals {
    pub(super) fn new(parts: Arc<Parts>) -> Self {
        Self {
            parts,
            state: Mutex::new(State {
                confirmed: Vec::new(),
                noted: 0,
                running: None,
                begun: Instant::now(),
            }),
        }
    }

    /// Whether it is time for the next one.
    pub(super) fn is_due(&self) -> bool {
        self.state.lock().begun.elapsed() >= CONFIRMED_MAX
    }

    /// A stream has confirmed an effect; removes what was confirmed so far if it is time for that. A
    /// round may take long, and its end tells the store about all of them.
    pub(super) fn note(&self, row: &Row) {
        let mut state = self.state.lock();
        state.confirmed.push(row.key());
        state.noted += 1;
        let runs = state.running.as_ref().is_some_and(|run| !run.is_finished());
        if runs || state.begun.elapsed() < CONFIRMED_MAX {
            return;
        }
        let confirmed = std::mem::take(&mut state.confirmed);
        self.parts.store.confirm_effects(confirmed);
        self.begin(&mut state);
    }

    /// The round is over, and the store knows all that was confirmed; returns how many were noted.
    pub(super) fn forget(&self) -> u64 {
        let mut state = self.state.lock();
        state.confirmed.clear();
        std::mem::take(&mut state.noted)
    }

    /// Removes what the store knows, while others are sent.
    pub(super) async fn remove(&self) {
        self.ended().await;
        self.begin(&mut self.state.lock());
    }

    /// Waits for the commit that runs, if one does.
    pub(super) async fn ended(&self) {
        let running = self.state.lock().running.take();
        if let Some(running) = running {
            // A panic is reported where it happens, and the rows are removed with the next ones.
            let _ = running.await;
        }
    }

    fn begin(&self, state: &mut State) {
        state.begun = Instant::now();
        let parts = Arc::clone(&self.parts);
        state.running = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = parts.remove_confirmed() {
                // The next commit fails as well, and reopens the state.
                tracing::warn!(
                    deployment = parts.deployment,
                    %error,
                    "confirmed messages could not be removed"
                );
            }
        }));
    }
}
