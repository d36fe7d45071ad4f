//! Inputs drawn from a seed: the same number gives the same input, so that each failure can be
//! repeated.
//!
//! `tests/fuzz` has the targets. Each is a function of a random number generator: it draws an
//! input, gives it to the code that reads it first, and checks the answer. The same function runs
//! for some seconds in `make test` and for hours in `make fuzz`.

pub mod change;
pub mod drive;
pub mod plain_http;
pub mod smith;
pub mod strange;
pub mod text;
pub mod uploads;
