//! Panics that the hook of the program does not report, because somebody else reports what came of
//! them.

use std::panic::PanicHookInfo;

use crate::damage;

/// Where the NATS client panics at a header that it can't parse, such as one with a lone carriage
/// return. Its connection ends with that. The reader notices, fetches the message alone, and reports
/// it with its sequence.
const CLIENT_HEADERS: (&str, &str) = ("async-nats", "src/header.rs");

/// Whether a panic is reported by somebody who knows more about it.
pub fn is_reported_elsewhere(panic: &PanicHookInfo<'_>) -> bool {
    // The caller of guarded work reports a damaged file, with advice.
    if damage::is_guarded() {
        return true;
    }
    let (package, file) = CLIENT_HEADERS;
    let is_header = panic.location().is_some_and(|location| {
        location.file().contains(package) && location.file().ends_with(file)
    });
    if is_header {
        tracing::debug!(%panic, "the NATS client can't parse a header, and reads it again");
    }
    is_header
}
