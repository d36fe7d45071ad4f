#![doc = include_str!("../README.md")]

#[cfg(any(target_arch = "wasm32", test))]
mod arena;
mod backend;
mod cache;
pub mod event;
mod failure;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod guest;
mod held;
#[cfg(target_arch = "wasm32")]
mod host;
pub mod key;
pub mod log;
mod manifest;
mod projection;
pub mod scan;
mod state;
mod table;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
mod time;

pub use event::{Event, Payload};
pub use failure::{Failure, FailureKind, QueryError, Retry, TableError};
pub use manifest::{KeyRule, Manifest};
pub use projection::Projection;
pub use scan::Scan;
pub use state::State;
pub use table::{Table, Value};
pub use time::{Date, TimeError, Timestamp};

/// What a projection needs: `use foldstream_sdk::prelude::*;`.
pub mod prelude {
    pub use serde::{Deserialize, Serialize};

    pub use crate::{
        Date, Event, Failure, KeyRule, Manifest, Projection, QueryError, Retry, State, Table, TableError, Timestamp,
        Value, debug, error, events, info, projection, warn,
    };
}

/// The contract, as a component carries it; `tests/contract.rs` keeps it equal to `wit/`.
#[doc(hidden)]
pub const CONTRACT: &[u8; include_bytes!("contract.bin").len()] = include_bytes!("contract.bin");

/// Does nothing, for projections only.
#[doc(hidden)]
pub fn is_a_projection<P: Projection>() {}

/// Makes a type that implements [`Projection`] the projection of its crate.
///
/// Once per crate, whose `crate-type` has `cdylib`. On other targets than wasm32 it does nothing.
#[macro_export]
macro_rules! projection {
    ($projection:ty) => {
        // Elsewhere only tests run it; to the compiler it is in use all the same.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() = $crate::is_a_projection::<$projection>;

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            use $crate::guest;

            ::std::thread_local! {
                static RUNNING: guest::Running<$projection> = const { guest::Running::new() };
            }

            #[used]
            #[unsafe(link_section = "component-type:foldstream:module/projection")]
            static CONTRACT: [u8; $crate::CONTRACT.len()] = *$crate::CONTRACT;

            #[unsafe(export_name = "cabi_realloc")]
            unsafe extern "C" fn realloc(old: *mut u8, old_size: usize, alignment: usize, size: usize) -> *mut u8 {
                unsafe { guest::realloc(old, old_size, alignment, size) }
            }

            #[unsafe(export_name = "manifest")]
            extern "C" fn manifest() -> *const u8 {
                guest::manifest::<$projection>()
            }

            #[unsafe(export_name = "apply")]
            unsafe extern "C" fn apply(events: *const u8, count: usize) -> *const u8 {
                RUNNING.with(|running| unsafe { guest::apply(running, events, count) })
            }

            #[unsafe(export_name = "query")]
            unsafe extern "C" fn query(
                name: *const u8,
                name_length: usize,
                is_bytes: u32,
                arguments: *const u8,
                arguments_length: usize,
            ) -> *const u8 {
                unsafe { guest::query::<$projection>(name, name_length, is_bytes, arguments, arguments_length) }
            }
        };
    };
}
