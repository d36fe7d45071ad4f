//! Scenarios: given events, when something happens, then this is so.
//!
//! A scenario runs against a compiled module with the production parts: an embedded log, the
//! pipeline and a state file, in a temporary folder and without a host. Nothing here folds, fires or
//! publishes by itself; it appends events and firings to the log, waits until the pipeline is
//! through, and looks at what is durable.

mod bed;
mod compare;
mod cost;
mod expand;
mod file;
mod observe;
mod play;
mod properties;
mod suite;
#[cfg(test)]
mod tests;

pub use bed::Error;
pub use compare::Difference;
pub use cost::{Cost, Growth};
pub use file::{
    Action, ExpectedFailure, ExpectedMessage, File, Mistake, OnFailure, SCENARIOS_MAX, Scenario,
    Step, Template, Then, schema,
};
pub use properties::{Finding, Property};
pub use suite::{Failed, Outcome, Suite};
