#![doc = include_str!("../README.md")]

#[cfg(any(target_arch = "wasm32", test))]
mod arena;
mod backend;
mod cache;
mod cached_key;
mod effects;
pub mod event;
mod failure;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod guest;
mod handler;
#[cfg(target_arch = "wasm32")]
mod host;
mod json;
pub mod key;
pub mod log;
mod manifest;
mod migrate;
mod projection;
pub mod saga;
pub mod scan;
mod state;
mod strict;
mod table;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
mod time;
mod timer;

pub use effects::{Effects, Message};
pub use event::{Event, Payload};
pub use failure::{Failure, FailureKind, MigrateError, QueryError, Retry, TableError};
pub use handler::Handler;
#[doc(hidden)]
pub use handler::Handling;
pub use manifest::{EventId, KeyRule, Manifest};
pub use migrate::{Migrate, NewEntries, OldEntry};
pub use projection::Projection;
pub use scan::Scan;
pub use state::State;
pub use table::{Table, Value};
pub use time::{Date, TimeError, Timestamp, Weekday};
pub use timer::{Fired, Timer};

/// The JSON of this SDK, for types that hold a value as it is: `serde_json::Value`.
#[doc(no_inline)]
pub use serde_json;

/// What a projection needs: `use foldstream_sdk::prelude::*;`.
pub mod prelude {
    pub use serde::{Deserialize, Serialize};

    pub use crate::{
        Date, Effects, Event, EventId, Failure, Fired, Handler, KeyRule, Manifest, Message,
        Migrate, MigrateError, NewEntries, OldEntry, Projection, QueryError, Retry, State, Table,
        TableError, Timer, Timestamp, Value, Weekday, debug, error, events, handler, info,
        projection, warn,
    };
}

/// The contract, as a component contains it; `tests/contract.rs` keeps it equal to `wit/`.
#[doc(hidden)]
pub const CONTRACT: &[u8; include_bytes!("contract.bin").len()] = include_bytes!("contract.bin");

/// The same for projections that can migrate.
#[doc(hidden)]
pub const MIGRATING_CONTRACT: &[u8; include_bytes!("migrating-contract.bin").len()] =
    include_bytes!("migrating-contract.bin");

/// The same for handlers.
#[doc(hidden)]
pub const HANDLER_CONTRACT: &[u8; include_bytes!("handler-contract.bin").len()] =
    include_bytes!("handler-contract.bin");

/// The same for handlers that can migrate.
#[doc(hidden)]
pub const MIGRATING_HANDLER_CONTRACT: &[u8; include_bytes!("migrating-handler-contract.bin")
     .len()] = include_bytes!("migrating-handler-contract.bin");

/// What any module exports in addition.
#[doc(hidden)]
pub const INBOX_CONTRACT: &[u8; include_bytes!("inbox-contract.bin").len()] =
    include_bytes!("inbox-contract.bin");

/// Does nothing, for projections only.
#[doc(hidden)]
pub fn is_a_projection<P: Projection>() {}

/// Does nothing, for modules that can migrate only.
#[doc(hidden)]
pub fn can_migrate<P: Migrate>() {}

/// Exports a type that implements [`Projection`] as the projection of its crate.
///
/// Use it once per crate, whose `crate-type` includes `cdylib`. On targets other than wasm32 it
/// does nothing.
///
/// With `projection!(Orders, migrate);` it can also convert the state of older versions; see
/// [`Migrate`].
#[macro_export]
macro_rules! projection {
    (@exports $projection:ty, $contract:ident, $section:literal) => {
        // On other targets only tests run it, but the compiler should treat it as used.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() = $crate::is_a_projection::<$projection>;

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            use $crate::guest;

            ::std::thread_local! {
                static RUNNING: guest::Running<$projection> = const { guest::Running::new() };
            }

            #[used]
            #[unsafe(link_section = $section)]
            static CONTRACT: [u8; $crate::$contract.len()] = *$crate::$contract;

            #[used]
            #[unsafe(link_section = "component-type:foldstream:module/with-inbox")]
            static INBOX_CONTRACT: [u8; $crate::INBOX_CONTRACT.len()] = *$crate::INBOX_CONTRACT;

            #[unsafe(export_name = "cabi_realloc")]
            unsafe extern "C" fn realloc(old: *mut u8, old_size: usize, alignment: usize, size: usize) -> *mut u8 {
                unsafe { guest::realloc(old, old_size, alignment, size) }
            }

            #[unsafe(export_name = "manifest")]
            extern "C" fn manifest() -> *const u8 {
                guest::manifest::<$projection>()
            }

            #[unsafe(export_name = "inbox")]
            extern "C" fn inbox() -> *const u8 {
                guest::inbox::<$projection>()
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
    ($projection:ty) => {
        $crate::projection!(@exports $projection, CONTRACT, "component-type:foldstream:module/projection");
    };
    ($projection:ty, migrate) => {
        $crate::projection!(
            @exports $projection, MIGRATING_CONTRACT, "component-type:foldstream:module/migrating-projection"
        );

        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() = $crate::can_migrate::<$projection>;

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            #[unsafe(export_name = "migrate")]
            unsafe extern "C" fn migrate(from_version: u32, entries: *const u8, count: usize) -> *const u8 {
                unsafe { $crate::guest::migrate::<$projection>(from_version, entries, count) }
            }
        };
    };
}

/// Exports a type that implements [`Handler`] as the handler of its crate.
///
/// Use it once per crate, whose `crate-type` includes `cdylib`. On targets other than wasm32 it
/// does nothing.
///
/// With `handler!(Shipping, migrate);` it can also convert the state of older versions; see
/// [`Migrate`].
#[macro_export]
macro_rules! handler {
    (@exports $handler:ty, $contract:ident, $section:literal) => {
        // On other targets only tests run it, but the compiler should treat it as used.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() = $crate::is_a_projection::<$crate::Handling<$handler>>;

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            use $crate::{Handling, guest};

            ::std::thread_local! {
                static RUNNING: guest::Running<Handling<$handler>> = const { guest::Running::new() };
            }

            #[used]
            #[unsafe(link_section = $section)]
            static CONTRACT: [u8; $crate::$contract.len()] = *$crate::$contract;

            #[used]
            #[unsafe(link_section = "component-type:foldstream:module/with-inbox")]
            static INBOX_CONTRACT: [u8; $crate::INBOX_CONTRACT.len()] = *$crate::INBOX_CONTRACT;

            #[unsafe(export_name = "cabi_realloc")]
            unsafe extern "C" fn realloc(old: *mut u8, old_size: usize, alignment: usize, size: usize) -> *mut u8 {
                unsafe { guest::realloc(old, old_size, alignment, size) }
            }

            #[unsafe(export_name = "manifest")]
            extern "C" fn manifest() -> *const u8 {
                guest::handler_manifest::<$handler>()
            }

            #[unsafe(export_name = "inbox")]
            extern "C" fn inbox() -> *const u8 {
                guest::inbox::<Handling<$handler>>()
            }

            #[unsafe(export_name = "on-timer")]
            unsafe extern "C" fn on_timer(timers: *const u8, count: usize) -> *const u8 {
                RUNNING.with(|running| unsafe { guest::on_timer(running, timers, count) })
            }

            #[unsafe(export_name = "handle")]
            unsafe extern "C" fn handle(events: *const u8, count: usize) -> *const u8 {
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
                unsafe { guest::query::<Handling<$handler>>(name, name_length, is_bytes, arguments, arguments_length) }
            }
        };
    };
    ($handler:ty) => {
        $crate::handler!(@exports $handler, HANDLER_CONTRACT, "component-type:foldstream:module/handler");
    };
    ($handler:ty, migrate) => {
        $crate::handler!(
            @exports $handler, MIGRATING_HANDLER_CONTRACT, "component-type:foldstream:module/migrating-handler"
        );

        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() = $crate::can_migrate::<$handler>;

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            #[unsafe(export_name = "migrate")]
            unsafe extern "C" fn migrate(from_version: u32, entries: *const u8, count: usize) -> *const u8 {
                unsafe { $crate::guest::migrate::<$crate::Handling<$handler>>(from_version, entries, count) }
            }
        };
    };
}
