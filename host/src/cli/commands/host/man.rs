//! `foldstream man`: manual pages, generated from the texts of the help.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::cli::Context;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::exit_code;

/// Print manual pages.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream man | man -l -
  foldstream man deploy | man -l -
  foldstream man --dir ~/.local/share/man/man1")]
pub(crate) struct Args {
    /// The command, such as `deploy` or `events import`; default: the whole program.
    command: Vec<String>,
    /// Write the pages of all commands into this folder.
    #[arg(long, value_name = "FOLDER", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

/// Prints one page, or writes them all.
pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let mut command = crate::cli::command();
    command.build();
    let Some(folder) = &args.dir else {
        let chosen = find(&command, &args.command)?;
        std::io::stdout().lock().write_all(&page(chosen)?)?;
        return Ok(());
    };
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let mut count = 0;
    for command in all(&command) {
        let file = folder.join(format!("{}.1", page_name(command)));
        std::fs::write(&file, page(command)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        count += 1;
    }
    context
        .output
        .note(&format!("wrote {count} pages to {}", folder.display()));
    Ok(())
}

fn find<'a>(whole: &'a clap::Command, path: &[String]) -> Result<&'a clap::Command, Failure> {
    let mut command = whole;
    for name in path {
        command = command.find_subcommand(name).ok_or_else(|| {
            Failure::new(
                Exit::NotFound,
                format!(
                    "there is no command `{}`; `foldstream --help` lists them",
                    path.join(" ")
                ),
            )
        })?;
    }
    Ok(command)
}

fn all(command: &clap::Command) -> Vec<&clap::Command> {
    let mut commands = vec![command];
    for subcommand in command
        .get_subcommands()
        .filter(|subcommand| !subcommand.is_hide_set())
    {
        if subcommand.get_name() != "help" {
            commands.extend(all(subcommand));
        }
    }
    commands
}

fn page_name(command: &clap::Command) -> String {
    command
        .get_bin_name()
        .unwrap_or_else(|| command.get_name())
        .replace(' ', "-")
}

fn page(command: &clap::Command) -> anyhow::Result<Vec<u8>> {
    let examples = command
        .get_before_help()
        .map(ToString::to_string)
        .unwrap_or_default();
    let man = Man::new(command.clone().disable_help_subcommand(true))
        .title(page_name(command).to_uppercase());
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    section(
        &mut text,
        "EXAMPLES",
        examples.trim_start_matches("Examples:\n"),
    )?;
    man.render_options_section(&mut text)?;
    if command.get_subcommands().next().is_some() {
        man.render_subcommands_section(&mut text)?;
    }
    section(
        &mut text,
        "EXIT STATUS",
        exit_code::HELP.trim_start_matches("Exit codes:\n"),
    )?;
    Ok(text)
}

/// A section whose lines stay unchanged.
fn section(page: &mut Vec<u8>, name: &str, lines: &str) -> std::io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut roff = Roff::new();
    roff.control("SH", [name]);
    roff.control("nf", []);
    for line in lines.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff.to_writer(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_examples_and_exit_codes() {
        let mut command = crate::cli::command();
        command.build();
        let commands = all(&command);
        assert!(commands.len() > 25, "{}", commands.len());
        for command in commands {
            let text = String::from_utf8(page(command).expect("renders")).expect("is text");
            let name = page_name(command);
            assert!(text.contains(".SH EXAMPLES"), "{name}");
            assert!(text.contains(".SH \"EXIT STATUS\""), "{name}");
            assert!(text.contains("interrupted"), "{name}");
            assert!(name.starts_with("foldstream"), "{name}");
        }
    }
}
