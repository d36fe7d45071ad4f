//! `foldstream completions`: completion scripts for shells.

use std::io::Write as _;

/// Print a completion script for a shell.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream completions bash > ~/.local/share/bash-completion/completions/foldstream
  foldstream completions zsh > ~/.zfunc/_foldstream
  foldstream completions fish > ~/.config/fish/completions/foldstream.fish")]
pub(crate) struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut crate::cli::command(),
        "foldstream",
        &mut script,
    );
    std::io::stdout().lock().write_all(&script)?;
    Ok(())
}
