//! `foldstream build`: makes a checked module of a project, in any language that has a row.

use std::path::PathBuf;

use anyhow::Context as _;

use super::inspect;
use super::languages::Language;
use crate::api::ModuleInfo;
use crate::cli::Context;
use crate::cli::support::output::bytes;

/// Build a project into a checked module.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream build
  foldstream build ./order-totals
  foldstream build ./order-totals --out build/totals.wasm

The language is that of the project: Cargo.toml is Rust, which needs cargo and the target \
wasm32-unknown-unknown; pyproject.toml is Python, which needs componentize-py; package.json is \
TypeScript or JavaScript, which needs esbuild and componentize-qjs; go.mod is Go, which needs Go \
1.24; module.toml is C, which needs zig. If a tool is missing, \
the command says how to install it.")]
pub(crate) struct Args {
    /// Folder of the project.
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// File to write; default: ./NAME.wasm, with the name of the project.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Builds, checks, and writes the module.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let language = Language::of(&args.dir)?;
    let compiled = language.compile(&args.dir, context.output).await?;
    let module = compiled.module;
    // Compiling the module takes seconds of a thread.
    let examined = tokio::task::spawn_blocking(move || inspect::examine(module))
        .await
        .context("the check panicked")??;
    let out = args
        .out
        .unwrap_or_else(|| PathBuf::from(format!("{}.wasm", compiled.name)));
    // The output folder, for example one below `target`, may not exist yet.
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let made = folder.map_or(Ok(()), std::fs::create_dir_all);
    let written = made.and_then(|()| std::fs::write(&out, &examined.component));
    written.with_context(|| format!("cannot write {}", out.display()))?;
    context.output.note(&format!("wrote {}", out.display()));
    context.output.one(&examined.info, line)?;
    Ok(())
}

fn line(info: &ModuleInfo) -> String {
    format!(
        "{} {}, {}, sha256:{}",
        info.kind.name(),
        info.name,
        bytes(info.size),
        info.digest
    )
}
