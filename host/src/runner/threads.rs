//! Starts the threads of runners.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts a thread; an error says that the system refused it.
pub(super) fn spawn(
    name: String,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    #[cfg(test)]
    if refusals::is_refused(&name) {
        return Err(io::Error::from(io::ErrorKind::WouldBlock));
    }
    Builder::new().name(name).spawn(run)
}

/// Threads that a test has refused, as a system at its limit of tasks would.
#[cfg(test)]
pub(super) mod refusals {
    use parking_lot::Mutex;

    static REFUSED: Mutex<Vec<String>> = Mutex::new(Vec::new());

    /// Refuses a thread this often.
    pub(crate) fn refuse(name: &str, times: usize) {
        REFUSED
            .lock()
            .extend(std::iter::repeat_n(name.to_owned(), times));
    }

    pub(super) fn is_refused(name: &str) -> bool {
        let mut refused = REFUSED.lock();
        let found = refused.iter().position(|one| one == name);
        found.map(|index| refused.swap_remove(index)).is_some()
    }
}
