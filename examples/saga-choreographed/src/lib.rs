//! Fulfils orders without a coordinator. The modules are in the folders next to this one; this
//! crate has only the scenarios that run them together, in `tests/`.
