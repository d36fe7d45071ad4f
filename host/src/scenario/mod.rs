//! Scenarios: given events, when something happens, then this is so.
//!
//! A scenario runs against a compiled module with the production parts: an embedded log, the
//! pipeline and a state file, in a temporary folder and without a host. Nothing here folds, fires or
//! publishes by itself; it appends events and firings to the log, waits until the pipeline is
//! through, and looks at what is durable.

mod bed;
mod compare;
mod cost;
mod document;
mod expand;
mod explore;
mod file;
mod in_order;
mod literal;
mod observe;
mod places;
mod play;
mod properties;
mod suite;
#[cfg(test)]
mod tests;

pub use bed::{Error, Folders};
pub use compare::Difference;
pub use cost::{Cost, Growth};
pub use document::{Document, Mistake};
pub use explore::{Exploration, Explored, Fault};
pub use file::{
    Action, ExpectedFailure, ExpectedMessage, FailureKind, File, OnFailure, SCENARIOS_MAX,
    Scenario, Step, Template, Then, TimersFire, schema,
};
pub use in_order::in_order;
pub use literal::{literal, texts};
pub use places::Place;
pub use properties::{Finding, Property};
pub use suite::{Failed, Outcome, Suite};
