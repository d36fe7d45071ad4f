//! The next version of the guest `errands-fixed`: it keeps what it has done in another table.

#[path = "../../errands/src/lib.rs"]
mod errands;

// Used by the code above.
use foldstream_sdk as _;
use serde as _;
