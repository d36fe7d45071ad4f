//! Conversions between what the host knows and the JSON of its API ([`crate::api`]).
//!
//! The modules below answer with types of their own, so that a field of the API can be renamed
//! without them. They are taken apart here field by field: a field that is new on one side does not
//! compile until it is shown, or left out on purpose. Words, such as the state of a deployment, are
//! one enum for all: `api` re-exports it from where it is decided.

mod builds;
mod deployments;
mod events;
mod failures;
mod handlers;
mod host;
mod memory;
mod modules;
mod parked;
mod rollouts;
mod sagas;
mod schemas;
mod skips;
mod sources;
mod verifications;

pub(crate) use rollouts::rebuilds;

fn each<A, B: From<A>>(items: Vec<A>) -> Vec<B> {
    items.into_iter().map(B::from).collect()
}
