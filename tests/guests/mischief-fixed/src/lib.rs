//! The guest `mischief` without its mistake: it applies the events that are `ill`.

#[path = "../../mischief/src/lib.rs"]
mod mischief;

// Used by the code above.
use wit_bindgen as _;
