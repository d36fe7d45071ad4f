//! Fuzz targets: untrusted input and damaged files, drawn from a seed and passed to the code that
//! reads them first.
//!
//! `make test` runs each target with a fixed number of seeds; `make fuzz FUZZ_TARGET=config
//! FUZZ_MINUTES=60` runs one for longer. Each input that once did harm has a test of its own next
//! to the code that was at fault.

mod append; // events as JSON and NDJSON, through the API into the embedded log and out of it
mod cloudevents; // CloudEvents in each mode, and the same as messages of a stream
mod config; // configuration files
mod files; // state, catalogue and log on a bad disk
mod folder; // the program on a data folder with a damaged file
mod headers; // header blocks of NATS, as our own reader and the client see them
mod http; // paths, queries, headers and bodies of all routes
mod log; // what is appended and read through the API
mod manifests; // what a module says of itself
mod schemas; // schemas that modules carry: checked, compared, made into types
mod subjects; // subjects, patterns, templates, times, percent-encoding
mod uploads; // the host survives every upload
