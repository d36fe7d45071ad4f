//! JetStream as a source, against a real nats-server.
//!
//! - `reading`: order, limits, resuming, matching, idle progress, sizes, slow and cancelled callers
//! - `faults`: server and consumer lost; stream missing, recreated, purged, truncated, replaced
//! - `broken`: messages that the client cannot read
//! - `cluster`: servers of a cluster come and go
//! - `connecting`: each way to prove who we are, TLS, contexts, domains, settings that contradict each other
//! - `inspecting`: what an operator is told about a stream

mod broken;
mod cluster;
mod connecting;
mod faults;
mod inspecting;
mod reading;
mod server;
