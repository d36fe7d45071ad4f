//! JetStream as a source, against a real nats-server.
//!
//! - `cloudevents`: each form that a publisher may use, and what is not one
//! - `reading`: order, limits, resuming, matching, idle progress, sizes, slow and cancelled callers
//! - `faults`: server and consumer lost; stream missing, recreated, purged, truncated, replaced
//! - `broken`: messages that the client cannot read
//! - `cluster`: servers of a cluster come and go
//! - `connecting`: each way to prove who we are, TLS, contexts, domains, settings that contradict
//!   each other
//! - `forged`: what others publish to our inbox
//! - `history`: what proves that a stream is the same, and what it has lost
//! - `inspecting`: what an operator sees of a stream
//! - `leaf`: streams and their mirrors on both sides of a leaf node
//! - `limits`: what a server or a stream limits, and what a stream holds that is no event
//! - `relay`: requests and answers that are lost or garbled on the way
//! - `partition`: the server of a reader's consumer is cut off from its cluster
//! - `permissions`: what a server has to allow, taken away and given back
//! - `sharing`: readers of one source that share a reader once they have caught up

mod broken;
mod bursts;
mod cloudevents;
mod cluster;
mod connecting;
mod faults;
mod forged;
mod history;
mod inspecting;
mod leaf;
mod limits;
mod partition;
mod permissions;
mod reading;
mod relay;
mod server;
mod sharing;
