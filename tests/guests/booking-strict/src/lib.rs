//! The guest `booking` with more in each trip, which trips of the other code do not have.

#[path = "../../booking/src/lib.rs"]
mod booking;

// Used by the code above.
use foldstream_sdk as _;
use serde as _;
