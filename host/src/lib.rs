//! Foldstream: a WebAssembly-hosted projection runtime.
//!
//! A host reads events from NATS JetStream or from its own embedded log, feeds
//! them in batches to sandboxed Wasm components, and keeps what those build,
//! with the position that it reflects, in redb. ARCHITECTURE.md follows one
//! event through these modules.

pub mod access;
pub mod actor;
pub mod advice;
pub mod api;
pub mod atomic_file;
pub mod audit;
pub mod backup;
pub mod batch;
pub mod cli;
pub mod cloudevents;
pub mod config;
pub mod damage;
pub mod data_dir;
pub mod deployment;
pub mod descriptors;
pub mod effects;
#[doc(hidden)]
pub mod entry;
pub mod event;
pub mod host;
pub mod integrity;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod module;
pub mod names;
pub mod newest;
pub mod outbox;
pub mod pipeline;
pub mod position;
pub mod preflight;
pub mod progress;
pub mod rollout;
pub mod room;
pub mod runner;
pub mod scope;
pub mod serve;
pub mod small_file;
pub mod source;
pub mod state;
pub mod subject;
pub mod timestamp;
pub mod usage;
pub mod view;
