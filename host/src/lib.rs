//! Foldstream: a WebAssembly-hosted projection runtime.
//!
//! A host reads events from NATS JetStream or from its own embedded log, feeds
//! them in batches to sandboxed Wasm components, and keeps what those build,
//! with the position that it reflects, in redb. ARCHITECTURE.md follows one
//! event through these modules.

mod access;
mod actor;
mod advice;
pub mod api;
mod atomic_file;
mod audit;
mod backup;
pub mod batch;
mod bundle;
pub mod cli;
mod clock;
pub mod cloudevents;
pub mod config;
mod conversion;
mod damage;
mod data_dir;
mod data_path;
mod deployment;
pub mod deployments;
mod descriptors;
pub mod effects;
#[doc(hidden)]
pub mod entry;
pub mod event;
mod exceptions;
mod failure;
mod firing;
mod generate;
mod handlers;
mod history;
pub mod host;
mod integrity;
mod key_text;
mod lanes;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod module;
mod names;
mod newest;
mod outbox;
mod overview;
pub mod panics;
pub mod pipeline;
pub mod position;
mod precedence;
pub mod preflight;
pub mod progress;
mod rollout;
mod room;
pub mod runner;
mod sagas;
mod scenario;
mod schemas;
mod scope;
pub mod serve;
mod settings;
mod small_file;
pub mod source;
mod spelling;
pub mod state;
mod storage;
pub mod subject;
mod timers;
pub mod timestamp;
pub mod usage;
mod view;
