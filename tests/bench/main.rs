//! The bench: what folding through a sandbox costs, side by side in one run.
//!
//! `make bench` runs all of it; `make bench BENCH="--events 100000 --only replay"` a part. It
//! prints a table and writes the same as JSON. Everything is measured on real parts: a nats-server
//! started for the purpose, redb on disk, and for what a user waits for the `foldstream` program in
//! its release build.

mod arguments;
mod consumer;
mod consumers;
mod deploy;
mod diff;
mod disk;
mod handlers;
mod lanes;
mod latency;
mod log;
mod many;
mod native;
mod path;
mod reads;
mod replay;
mod report;
mod swap;
mod workload;

use std::process::ExitCode;

use arguments::Arguments;
use report::Report;

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    if let Some(folder) = &arguments.diff {
        if let Err(message) = diff::print(folder) {
            eprintln!("{message}");
            return ExitCode::FAILURE;
        }
        return ExitCode::SUCCESS;
    }
    // A runtime of two threads, as the machine for which targets are stated has two cores.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be started");
    let mut report = Report::new(&arguments);
    if arguments.runs("replay") {
        replay::measure(&runtime, &arguments, &mut report);
    }
    if arguments.runs("path") {
        path::measure(&runtime, &arguments, &mut report);
    }
    if arguments.runs("lanes") {
        lanes::measure(&runtime, &arguments, &mut report);
    }
    if arguments.runs("by-hand") {
        runtime.block_on(consumers::measure(&arguments, &mut report));
    }
    if arguments.runs("log") {
        log::measure(&runtime, &arguments, &mut report);
    }
    if arguments.runs("latency") {
        runtime.block_on(latency::measure(&arguments, &mut report));
    }
    if arguments.runs("deploy") {
        runtime.block_on(deploy::measure(&arguments, &mut report));
    }
    if arguments.runs("many") {
        runtime.block_on(many::measure(&arguments, &mut report));
    }
    if arguments.runs("reads") {
        runtime.block_on(reads::measure(&arguments, &mut report));
    }
    if arguments.runs("swap") {
        runtime.block_on(swap::measure(&arguments, &mut report));
    }
    if arguments.runs("disk") {
        runtime.block_on(disk::measure(&arguments, &mut report));
    }
    if arguments.runs("handlers") {
        runtime.block_on(handlers::measure(&arguments, &mut report));
    }
    report.finish(&arguments.json);
    ExitCode::SUCCESS
}
