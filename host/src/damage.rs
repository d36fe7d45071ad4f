//! Damage: turns panics at damaged files into errors.
//!
//! redb assumes that pages contain what it wrote to them. It reports most damage as an error, but
//! some damage breaks an assumption deep in a tree, and then it panics. Such a panic becomes an
//! error here, like that of any other damage: a bad disk under one state must not end a thread of
//! the host.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static GUARDED: Cell<u32> = const { Cell::new(0) };
}

/// Longest message of a panic, in characters.
const WORDS_MAX: usize = 200;

/// The content of a file is inconsistent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its content is inconsistent ({0})")]
pub(crate) struct Inconsistent(String);

/// Runs work on a file, and returns an error if it panics. The database must not be trusted
/// afterwards: using or closing it may panic again.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Inconsistent> {
    // While it lives, the panic hook leaves the report to the caller.
    let guard = Guard::new();
    let done = catch_unwind(AssertUnwindSafe(work));
    drop(guard);
    done.map_err(|panic| {
        // `panic!` with arguments carries a `String`, without any a `&str`.
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Inconsistent(
            text.chars()
                .take(WORDS_MAX)
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect(),
        )
    })
}

/// Whether this thread runs guarded work, so that the caller of [`guarded`] reports a panic.
pub(crate) fn is_guarded() -> bool {
    GUARDED.with(|guarded| guarded.get() > 0)
}

/// An open database. Closing one writes to its file, and may panic at damage; nobody waits for the
/// outcome, so that panic ends here.
#[derive(Debug)]
pub(crate) struct Open<D>(Option<D>);

impl<D> Open<D> {
    /// Takes over an open database.
    pub(crate) fn new(database: D) -> Self {
        Self(Some(database))
    }
}

impl<D> Deref for Open<D> {
    type Target = D;

    fn deref(&self) -> &D {
        self.0.as_ref().expect("only dropping takes the database")
    }
}

impl<D> DerefMut for Open<D> {
    fn deref_mut(&mut self) -> &mut D {
        self.0.as_mut().expect("only dropping takes the database")
    }
}

impl<D> Drop for Open<D> {
    fn drop(&mut self) {
        // Taken out, so that the field that is dropped after this holds nothing.
        let database = self.0.take();
        if let Err(error) = guarded(|| drop(database)) {
            tracing::warn!(%error, "closed a damaged file");
        }
    }
}

struct Guard;

impl Guard {
    fn new() -> Self {
        GUARDED.with(|guarded| guarded.set(guarded.get() + 1));
        Self
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        GUARDED.with(|guarded| guarded.set(guarded.get() - 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_is_an_error_and_the_thread_survives() {
        let found = guarded(|| guarded(|| -> u8 { panic!("on purpose") }));
        assert_eq!(found, Ok(Err(Inconsistent("on purpose".to_owned()))));
        assert_eq!(guarded(is_guarded), Ok(true));
        assert!(!is_guarded());
    }

    #[test]
    fn closing_a_damaged_file_does_not_panic() {
        struct Damaged;
        impl Drop for Damaged {
            fn drop(&mut self) {
                panic!("on purpose");
            }
        }
        drop(Open::new(Damaged));
        assert!(!is_guarded());
    }
}
