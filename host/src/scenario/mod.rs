//! Scenarios: given events, when something happens, then this is so.
//!
//! A scenario runs against a compiled module with the production parts: an embedded log, the
//! pipeline and a state file, in a temporary folder and without a host. Nothing here folds, fires or
//! publishes by itself; it appends events and firings to the log, waits until the pipeline is
//! through, and looks at what is durable.

mod bed;
mod compare;
mod contracts;
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

pub(crate) use bed::Folders;
pub(crate) use compare::Difference;
pub(crate) use contracts::has_invalid_events;
pub(crate) use cost::{Cost, Growth};
pub(crate) use document::{Document, Mistake};
pub(crate) use explore::{Exploration, Explored, Fault};
pub(crate) use file::{Action, File, OnFailure, Scenario, Then, TimersFire, schema};
pub(crate) use in_order::in_order;
pub(crate) use literal::{RecordedEvent, literal, texts};
pub(crate) use places::Place;
pub(crate) use properties::Finding;
pub(crate) use suite::{Failed, Outcome, Runs, Suite};
