//! `foldstream compile-module`: the child process in which uploads are compiled, with limits of its own.

use std::process::ExitCode;

use super::exit::{Exit, Failure};

/// Compile a module. Called by the host, not by people.
#[derive(Clone, Debug, clap::Args)]
#[command(hide = true)]
pub struct Args {}

/// Compiles what comes on standard input, with messages of its own.
pub fn run(_args: Args) -> anyhow::Result<()> {
    if crate::module::compile_child() == ExitCode::SUCCESS {
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, "").into())
}
