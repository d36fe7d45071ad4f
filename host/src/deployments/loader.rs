//! Loads modules from the data folder, on the thread of the caller, and only a few at a time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::data_dir::DataDir;
use crate::module::{self, Engine, Module};
use crate::runner::LoadError;

/// Modules loaded at once whose compiled code is cached: linking them takes processors and memory
/// that others need as well.
const CACHED_AT_ONCE: usize = 4;
/// The same for modules without. The engine compiles one at a time; meanwhile another one may be
/// read or linked.
const COMPILED_AT_ONCE: usize = 2;

/// The modules of a data folder.
#[derive(Debug)]
pub(crate) struct Loader {
    folder: DataDir,
    engine: Engine,
    /// Separate, so that one that takes long to compile keeps none waiting that need not be
    /// compiled.
    cached: Turns,
    compiled: Turns,
    is_stopping: AtomicBool,
}

/// Free turns to load.
#[derive(Debug)]
struct Turns {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Turns {
    fn new(count: usize) -> Self {
        Self {
            free: Mutex::new(count),
            freed: Condvar::new(),
        }
    }
}

/// A turn to load; dropping it releases the turn.
struct LoadPermit<'a>(&'a Turns);

impl Drop for LoadPermit<'_> {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.freed.notify_one();
    }
}

impl Loader {
    /// The modules of a folder.
    pub(crate) fn new(folder: DataDir, engine: Engine) -> Self {
        Self {
            folder,
            engine,
            cached: Turns::new(CACHED_AT_ONCE),
            compiled: Turns::new(COMPILED_AT_ONCE),
            is_stopping: AtomicBool::new(false),
        }
    }

    /// Makes all callers stop waiting for a turn.
    pub(crate) fn stop(&self) {
        for turns in [&self.cached, &self.compiled] {
            // Under the lock, so that a caller who is about to wait does not miss it.
            let free = turns.free.lock();
            self.is_stopping.store(true, Ordering::Release);
            drop(free);
            turns.freed.notify_all();
        }
    }

    /// The module of a digest. Blocking; slow if it has to be compiled.
    pub(crate) fn load(&self, digest: &str) -> Result<Arc<Module>, LoadError> {
        // Deployments of the same module share it.
        if let Some(module) = self.engine.loaded(digest) {
            return Ok(module);
        }
        // One that was loaded while this waited is found by the engine, by its digest.
        let _turn = self.turn(if self.engine.has_code(digest) {
            &self.cached
        } else {
            &self.compiled
        })?;
        let component = self.folder.read_module(digest).map_err(|error| LoadError {
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

    fn turn<'a>(&self, turns: &'a Turns) -> Result<LoadPermit<'a>, LoadError> {
        let mut free = turns.free.lock();
        // `stop` sets it under this lock, so nobody who is about to wait misses it.
        while *free == 0 && !self.is_stopping.load(Ordering::Acquire) {
            turns.freed.wait(&mut free);
        }
        if self.is_stopping.load(Ordering::Acquire) {
            return Err(LoadError {
                message: "the host is stopping".to_owned(),
                is_passing: true,
            });
        }
        *free -= 1;
        Ok(LoadPermit(turns))
    }
}
