//! The `foldstream` program: parses the command line, runs the command, and
//! ends with its exit code.

use std::process::ExitCode;

use foldstream::cli::{self, support::exit};

fn main() -> ExitCode {
    foldstream::memory::save_addresses();
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // The caller of guarded work reports a damaged file, with advice.
        if !foldstream::damage::is_guarded() {
            usual(panic);
        }
    }));
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return refused(&error),
    };
    let output = cli.output();
    let Err(error) = cli.run() else {
        return exit::Exit::Done.into();
    };
    if exit::is_broken_pipe(&error) {
        return exit::Exit::Done.into();
    }
    let message = exit::message_of(&error);
    if !message.is_empty() {
        output.error(&message);
    }
    exit::exit_of(&error).into()
}

/// Help and version were requested; anything else is a mistake.
fn refused(error: &clap::Error) -> ExitCode {
    // The reader of our output may be gone, which changes nothing.
    let _ = error.print();
    if error.use_stderr() {
        exit::Exit::Usage.into()
    } else {
        exit::Exit::Done.into()
    }
}
