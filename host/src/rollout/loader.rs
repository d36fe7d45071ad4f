//! Loads modules from the data folder, on the thread of the caller, and only a few at a time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::data_dir::DataDir;
use crate::module::{self, Engine, Module};
use crate::runner::LoadError;

/// Modules loaded at once: checking and compiling them takes processors and memory that others need
/// as well.
const AT_ONCE: usize = 4;

/// The modules of a data folder.
#[derive(Debug)]
pub(crate) struct Loader {
    folder: DataDir,
    engine: Engine,
    /// Free turns.
    turns: Mutex<usize>,
    freed: Condvar,
    is_stopping: AtomicBool,
}

/// A turn to load; dropping it releases the turn.
struct LoadPermit<'a>(&'a Loader);

impl Drop for LoadPermit<'_> {
    fn drop(&mut self) {
        *self.0.turns.lock() += 1;
        self.0.freed.notify_one();
    }
}

impl Loader {
    /// The modules of a folder.
    pub(crate) fn new(folder: DataDir, engine: Engine) -> Self {
        let (turns, freed, is_stopping) =
            (Mutex::new(AT_ONCE), Condvar::new(), AtomicBool::new(false));
        Self {
            folder,
            engine,
            turns,
            freed,
            is_stopping,
        }
    }

    /// Makes all callers stop waiting for a turn.
    pub(crate) fn stop(&self) {
        // Under the lock, so that a caller who is about to wait does not miss it.
        let turns = self.turns.lock();
        self.is_stopping.store(true, Ordering::Release);
        drop(turns);
        self.freed.notify_all();
    }

    /// The module of a digest. Blocking; slow if it has to be compiled.
    pub(crate) fn load(&self, digest: &str) -> Result<Arc<Module>, LoadError> {
        // Deployments of the same module share it.
        if let Some(module) = self.engine.loaded(digest) {
            return Ok(module);
        }
        // One that was loaded while this waited is found by the engine, by its digest.
        let _turn = self.turn()?;
        let component = std::fs::read(self.folder.module(digest)).map_err(|error| LoadError {
            message: format!("module {digest} can't be read: {error}; deploy it again"),
            is_passing: error.kind() != io::ErrorKind::NotFound,
        })?;
        // A file that is not what its name says must not run, whatever it is.
        if module::digest(&component) != digest {
            let message = format!("module {digest} is damaged on disk; deploy it again");
            return Err(LoadError {
                message,
                is_passing: false,
            });
        }
        // The cache of compiled modules usually makes this quick.
        let accepted = self.engine.accept(component.into());
        accepted
            .and_then(|accepted| self.engine.load(&accepted))
            .map(|loaded| loaded.module)
            .map_err(|error| {
                let is_passing = error.is_passing();
                LoadError {
                    message: error.to_string(),
                    is_passing,
                }
            })
    }

    fn turn(&self) -> Result<LoadPermit<'_>, LoadError> {
        let mut free = self.turns.lock();
        // `stop` sets it under this lock, so nobody who is about to wait misses it.
        while *free == 0 && !self.is_stopping.load(Ordering::Acquire) {
            self.freed.wait(&mut free);
        }
        if self.is_stopping.load(Ordering::Acquire) {
            return Err(LoadError {
                message: "the host is stopping".to_owned(),
                is_passing: true,
            });
        }
        *free -= 1;
        Ok(LoadPermit(self))
    }
}
