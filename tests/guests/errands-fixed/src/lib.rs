//! The guest `errands` without its mistakes: it does what is ill.

#[path = "../../errands/src/lib.rs"]
mod errands;

// Used by the code above.
use foldstream_sdk as _;
use serde as _;
