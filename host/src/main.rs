//! The `foldstream` program: parses the command line, runs the command, and
//! ends with its exit code.

use std::process::ExitCode;

use foldstream::cli::{self, support::exit};

fn main() -> ExitCode {
    ignore_early_hang_up();
    foldstream::memory::save_addresses();
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !foldstream::panics::is_reported_elsewhere(panic) {
            usual(panic);
        }
    }));
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return refused(&error),
    };
    let output = cli.output();
    let exit = match cli.run() {
        Ok(()) => exit::Exit::Done,
        Err(error) if exit::is_broken_pipe(&error) => exit::Exit::Done,
        Err(error) => {
            let message = exit::message_of(&error);
            if !message.is_empty() {
                output.error(&message);
            }
            exit::exit_of(&error)
        }
    };
    output.finish();
    exit.into()
}

/// A host reloads its settings at SIGHUP, and one that is still reading them for the first time has
/// nothing to reload: the signal must not end it. The host replaces this by its own handler. Other
/// commands still end with their terminal.
fn ignore_early_hang_up() {
    let is_host = |argument: &std::ffi::OsString| {
        ["serve", "dev", "demo"].iter().any(|host| argument == host)
    };
    if std::env::args_os()
        .skip(1)
        .any(|argument| is_host(&argument))
    {
        // SAFETY: no other thread runs yet, and ignoring a signal runs no code of ours.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    }
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
