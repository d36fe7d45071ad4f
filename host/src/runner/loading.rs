//! Loads the module of a runner on a thread of its own, while the runner rests.

use std::sync::Arc;
use std::time::Duration;

use super::options::{LoadError, NotLoaded, Program};
use super::threads;
use super::worker::Worker;
use crate::module::Module;
use crate::pipeline::{Desired, Ended};
use crate::progress::DeploymentState;
use crate::state::{self, Store};

/// Pause before the next attempt to load a module that failed for a passing reason; it doubles up
/// to the maximum.
const LOAD_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));
/// Why a module is not loaded, after a defect.
const LOADING_BROKE_OFF: &str =
    "loading stopped because of a defect in the host; see its log, and please report it";

/// A program, and the result of loading its module.
pub(super) type Loaded = (Program, Result<Arc<Module>, LoadError>);

/// A module that loads on a separate thread, so that nobody has to wait for it.
pub(super) struct Loading {
    generation: u64,
    done: tokio::sync::oneshot::Receiver<Result<Arc<Module>, LoadError>>,
}

impl Loading {
    /// Starts to load the module of a program.
    fn begin(deployment: &str, program: &Program) -> Result<Self, LoadError> {
        // A thread of its own, because loading may compile for minutes.
        let (load, (finish, done)) = (Arc::clone(&program.load), tokio::sync::oneshot::channel());
        let begin = move || {
            // The requester may be gone.
            let _ = finish.send(load());
        };
        let thread = threads::spawn(format!("load-{deployment}"), begin);
        let message = |error| format!("cannot start a thread: {error}; raise the limit of tasks");
        thread.map_err(|error| LoadError {
            message: message(error),
            is_passing: true,
        })?;
        Ok(Self {
            generation: program.generation,
            done,
        })
    }

    /// Waits until it is loaded. Cancel-safe: the result stays until it is received.
    async fn done(&mut self) -> Result<Arc<Module>, LoadError> {
        let broken = || LoadError {
            message: LOADING_BROKE_OFF.to_owned(),
            is_passing: true,
        };
        (&mut self.done).await.unwrap_or_else(|_| Err(broken()))
    }
}

impl Worker {
    /// Loads the module if that has not happened or failed, because the cause may be over. While it
    /// loads, the runner rests, so that it can be paused, held and repaired.
    pub(super) fn load_module(
        &mut self,
        store: &Store,
        writer: &mut state::Writer,
        wanted: Desired,
    ) -> Result<(Program, Arc<Module>), Ended> {
        if self.shared.progress.now().state == DeploymentState::Paused {
            // It was resumed, and the rest may take long.
            self.shared.progress.set_state(DeploymentState::CatchingUp);
        }
        let mut pause = LOAD_PAUSE.0;
        loop {
            // No limit: whatever loads slowly is still wanted.
            match self.loaded(store, writer, wanted, Duration::MAX)? {
                Some((program, Ok(module))) => return Ok((program, module)),
                Some((_, Err(error))) if !error.is_passing => {
                    self.shared
                        .progress
                        .note_stopped("module", &error.message, None);
                    return Err(Ended::Failed);
                }
                Some((_, Err(error))) => {
                    self.shared.progress.note_waiting("module", &error.message);
                }
                None => {}
            }
            // A passing failure, such as a lack of memory, is tried again with growing pauses.
            self.rest_unless(store, writer, wanted, async {
                tokio::time::sleep(pause).await;
            })?;
            pause = (pause * 2).min(LOAD_PAUSE.1);
        }
    }

    /// The program with its module, once it is loaded; none if that takes longer than `at_most`.
    /// The runner rests meanwhile. The result is recorded unless another program took over, which
    /// starts at the next request.
    pub(super) fn loaded(
        &mut self,
        store: &Store,
        writer: &mut state::Writer,
        wanted: Desired,
        at_most: Duration,
    ) -> Result<Option<Loaded>, Ended> {
        // A copy: while it loads, another program may take over.
        let mut program = self.shared.program.read().clone();
        if let Ok(module) = &program.module {
            let module = Arc::clone(module);
            return Ok(Some((program, Ok(module))));
        }
        // A load that nobody waited for is not begun twice.
        let before = self
            .loading
            .take()
            .filter(|loading| loading.generation == program.generation);
        let begun = before.map_or_else(|| Loading::begin(&self.shared.deployment, &program), Ok);
        let mut loading = match begun {
            Ok(loading) => loading,
            Err(error) => return Ok(Some((program, Err(error)))),
        };
        let waited = async { tokio::time::timeout(at_most, loading.done()).await.ok() };
        let outcome = match self.rest_unless(store, writer, wanted, waited) {
            Ok(Some(outcome)) => outcome,
            // Interrupted or too slow: the load continues, and the next call waits for it.
            unfinished => {
                self.loading = Some(loading);
                return unfinished.map(|_| None);
            }
        };
        // Only if it is still wanted: the program may have been replaced meanwhile.
        program.module = outcome.clone().map_err(NotLoaded::Failed);
        let mut current = self.shared.program.write();
        if current.generation == program.generation && current.module.is_err() {
            current.module.clone_from(&program.module);
        }
        drop(current);
        Ok(Some((program, outcome)))
    }
}
