//! The guest `booking` without its mistake: it reads the answer about the room in both forms.

#[path = "../../booking/src/lib.rs"]
mod booking;

// Used by the code above.
use foldstream_sdk as _;
use serde as _;
