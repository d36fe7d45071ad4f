//! The guest `witness` for events that their stream never removes.

#[path = "../../witness/src/lib.rs"]
mod witness;

// Used by the code above.
use wit_bindgen as _;
