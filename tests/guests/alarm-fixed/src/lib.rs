//! The guest `alarm` without its mistakes: it handles what is ill, and timers that fail once.

#[path = "../../alarm/src/lib.rs"]
mod alarm;

// Used by the code above.
use foldstream_sdk as _;
use serde as _;
