//! `foldstream check-module`: the child process that checks and compiles uploads under its own
//! limits.

use std::process::ExitCode;

use clap::ValueEnum;

use crate::cli::support::exit::{Exit, Failure};
use crate::module;

/// Check or compile a module. Called by the host, not by people.
#[derive(Clone, Debug, clap::Args)]
#[command(hide = true)]
pub(crate) struct Args {
    /// What to do.
    job: Job,
    /// Version of the host.
    #[arg(long)]
    host_version: String,
    /// Address space, in bytes.
    #[arg(long)]
    memory_bytes: u64,
    /// Processor time, in seconds.
    #[arg(long)]
    cpu_seconds: u64,
    /// Most bytes of a component or code.
    #[arg(long)]
    bytes_max: u64,
    /// Compile for memories without reserved address space.
    #[arg(long)]
    scarce: bool,
    /// Compile code that counts its instructions.
    #[arg(long)]
    fuel: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Job {
    /// Check an upload.
    Check,
    /// Compile a component.
    Compile,
    /// Test what this process can still access.
    Probe,
}

/// Processes the upload on standard input and writes the answer to standard output.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let order = module::Order {
        job: match args.job {
            Job::Check => module::Job::Check,
            Job::Compile => module::Job::Compile,
            Job::Probe => module::Job::Probe,
        },
        version: args.host_version,
        memory_bytes: args.memory_bytes,
        cpu_seconds: args.cpu_seconds,
        bytes_max: args.bytes_max,
        is_scarce: args.scarce,
        counts_fuel: args.fuel,
    };
    if module::run_checker(order) == ExitCode::SUCCESS {
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, "").into())
}
