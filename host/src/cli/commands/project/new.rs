//! `foldstream new`: creates a project that builds with the tools of its language alone.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::languages::{Kind, Language, Name, Row};
use crate::cli::Context;
use crate::cli::support::exit::{Exit, Failure};

/// Start a projection or a handler: a project with a test, sample events, and the SDK of its language.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream new order-totals
  foldstream new --lang python order-totals
  foldstream new --lang typescript --kind handler fulfilment
  foldstream new order-totals && cd order-totals && foldstream dev")]
pub(crate) struct Args {
    /// Name of the project, or the path of the folder to create, which ends with the name.
    name: PathBuf,
    /// The language to write it in.
    #[arg(long, value_name = "LANGUAGE", default_value = "rust")]
    lang: Language,
    /// What to write.
    #[arg(long, value_name = "KIND", default_value = "projection")]
    kind: Kind,
}

/// Writes the project and prints the next steps.
pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let folder = &args.name;
    let typed = folder.file_name().unwrap_or_default().to_string_lossy();
    let name = Name::parse(&typed, args.lang)?;
    if folder.exists() {
        let message = format!(
            "{} exists already; choose another name, or remove it first",
            folder.display()
        );
        return Err(Failure::new(Exit::Refused, message).into());
    }
    let row = args.lang.row();
    for (path, contents) in row.files(&name, args.kind)? {
        write(&folder.join(path), &contents)?;
    }
    context
        .output
        .line(&next_steps(folder, &name, args.kind, row))?;
    Ok(())
}

fn next_steps(folder: &Path, name: &Name, kind: Kind, row: &Row) -> String {
    let name = &name.kebab;
    let built = format!("build {name}.wasm for `foldstream deploy`");
    let test = format!("foldstream test {name}.wasm scenarios.yaml");
    // What the template publishes: without a grant it would stop at its first message.
    let dev = match kind {
        Kind::Projection => "foldstream dev",
        Kind::Handler => "foldstream dev --allow-publish 'tasks.>@events'",
    };
    let steps: Vec<_> = row
        .first_steps
        .iter()
        .copied()
        .chain([
            (
                dev,
                "run it on a log of its own, and rebuild it after each change",
            ),
            ("foldstream build", built.as_str()),
            (test.as_str(), "play scenarios against it"),
        ])
        .collect();
    let width = steps
        .iter()
        .map(|(command, _)| command.len())
        .max()
        .unwrap_or(0);
    let mut text = format!(
        "Created {folder}, a {kind} named {name}. Next:\n  cd {folder}",
        kind = kind.name(),
        folder = folder.display()
    );
    for (command, purpose) in steps {
        text.push_str(&format!("\n  {command:<width$}  {purpose}"));
    }
    text
}

fn write(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    let unwritable = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(unwritable)?;
    }
    std::fs::write(path, contents).with_context(unwritable)
}
