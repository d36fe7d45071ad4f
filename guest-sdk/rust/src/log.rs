//! Messages for people, kept in the host's log under the deployment's name.
//!
//! In native tests they go to standard error, which `cargo test` shows when a
//! test fails.

use std::fmt;

/// How much a message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Details for finding an error.
    Debug,
    /// Normal events worth knowing.
    Info,
    /// Something that a person should check.
    Warn,
    /// What went wrong.
    Error,
}

/// Writes one message; the macros [`debug!`](crate::debug), [`info!`](crate::info),
/// [`warn!`](crate::warn) and [`error!`](crate::error) are shorter. The host keeps 4,096 bytes of a
/// message, and limits how many a call may write.
#[inline(never)]
pub fn write(level: Level, message: fmt::Arguments<'_>) {
    #[cfg(target_arch = "wasm32")]
    match message.as_str() {
        Some(message) => crate::host::log(level, message),
        None => crate::host::log(level, &message.to_string()),
    }
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("{level:?}: {message}");
}

/// Logs details for finding an error; takes the arguments of `format!`.
#[macro_export]
macro_rules! debug {
    ($($message:tt)+) => { $crate::log::write($crate::log::Level::Debug, ::core::format_args!($($message)+)) };
}

/// Logs a normal event; takes the arguments of `format!`.
#[macro_export]
macro_rules! info {
    ($($message:tt)+) => { $crate::log::write($crate::log::Level::Info, ::core::format_args!($($message)+)) };
}

/// Logs something that a person should check; takes the arguments of `format!`.
#[macro_export]
macro_rules! warn {
    ($($message:tt)+) => { $crate::log::write($crate::log::Level::Warn, ::core::format_args!($($message)+)) };
}

/// Logs an error; takes the arguments of `format!`.
#[macro_export]
macro_rules! error {
    ($($message:tt)+) => { $crate::log::write($crate::log::Level::Error, ::core::format_args!($($message)+)) };
}
