//! `foldstream build`: compiles a Rust crate to a checked module, using only cargo.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use bytes::Bytes;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use super::inspect;
use crate::api::ModuleInfo;
use crate::cli::Context;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::{Output, bytes};

/// The target of guests: no operating system, so a module can import only what the contract names.
const TARGET: &str = "wasm32-unknown-unknown";
/// Options for small and fast code, which the crate's own profile may lack.
const PROFILE: [(&str, &str); 5] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
    ("CARGO_PROFILE_RELEASE_LTO", "true"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_STRIP", "true"),
];
/// Debian's compiler for this target, and the sources of its standard library.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_SOURCES: &str = "/usr/lib/rustlib/src/rust/library/std/Cargo.toml";

/// Build a Rust crate into a checked module.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream build
  foldstream build ./order-totals
  foldstream build ./order-totals --out build/totals.wasm

Needs cargo and the target: rustup target add wasm32-unknown-unknown")]
pub(crate) struct Args {
    /// Folder of the crate.
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// File to write; default: ./NAME.wasm, with the name of the crate.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What cargo built from a crate.
#[derive(Debug)]
pub(crate) struct Compiled {
    /// Name of the crate.
    pub name: String,
    /// The artifact: a core module, or a component if the crate chose a linker that makes one.
    pub module: Bytes,
}

/// Builds, checks, and writes the module.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let compiled = compile(&args.dir, context.output).await?;
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
        info.kind,
        info.name,
        bytes(info.size),
        info.digest
    )
}

/// Runs cargo on the crate. Cancelling also stops cargo.
pub(crate) async fn compile(dir: &Path, output: Output) -> anyhow::Result<Compiled> {
    let manifest = dir.join("Cargo.toml");
    let name = package_name(&manifest)?;
    // As cargo names it in its messages, with which it is compared.
    let manifest = manifest
        .canonicalize()
        .with_context(|| format!("cannot find {}", manifest.display()))?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(dir)
        .args(["build", "--release", "--lib", "--target", TARGET]);
    cargo
        .arg("--message-format=json-render-diagnostics")
        .envs(PROFILE);
    if output.quiet {
        cargo.arg("--quiet");
    }
    choose_compiler(&mut cargo, dir).await?;
    cargo
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut child = cargo.spawn().map_err(|error| {
        Failure::new(
            Exit::Failed,
            format!("cannot run cargo: {error}; install Rust from https://rustup.rs"),
        )
    })?;
    let stdout = child.stdout.take().expect("asked for a pipe above");
    // Read to its end before the wait: a full pipe would stop cargo.
    let artifact = find_artifact(BufReader::new(stdout), &manifest).await?;
    let status = child.wait().await.context("cannot wait for cargo")?;
    if !status.success() {
        return Err(Failure::new(
            Exit::Failed,
            format!("cargo could not build {name}; see its messages above"),
        )
        .into());
    }
    let Some(artifact) = artifact else {
        let message = format!(
            "{} does not build a module; add `[lib]` with `crate-type = [\"cdylib\", \"rlib\"]` to \
             it",
            manifest.display()
        );
        return Err(Failure::new(Exit::Refused, message).into());
    };
    let module = tokio::fs::read(&artifact)
        .await
        .with_context(|| format!("cannot read {}", artifact.display()))?;
    Ok(Compiled {
        name,
        module: module.into(),
    })
}

fn package_name(manifest: &Path) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Manifest {
        package: Option<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
    }
    let shown = manifest.display();
    let text = std::fs::read_to_string(manifest).map_err(|error| {
        let message = format!(
            "cannot read {shown}: {error}; give the folder of a crate, or create one with \
             `foldstream new NAME`"
        );
        Failure::new(Exit::NotFound, message)
    })?;
    let read: Manifest = toml::from_str(&text).map_err(|error| {
        Failure::new(
            Exit::Refused,
            format!("{shown} is not a cargo manifest: {}", error.message()),
        )
    })?;
    let package = read.package.ok_or_else(|| {
        Failure::new(
            Exit::Refused,
            format!("{shown} is a workspace; give the folder of the crate in it"),
        )
    })?;
    Ok(package.name)
}

/// Finds the crate's own `.wasm` in cargo's messages, one JSON object per line.
async fn find_artifact(
    stdout: impl tokio::io::AsyncBufRead + Unpin,
    manifest: &Path,
) -> anyhow::Result<Option<PathBuf>> {
    #[derive(Deserialize)]
    struct Message {
        reason: String,
        #[serde(default)]
        manifest_path: PathBuf,
        #[serde(default)]
        filenames: Vec<PathBuf>,
    }
    let mut artifact = None;
    let mut lines = stdout.lines();
    while let Some(line) = lines
        .next_line()
        .await
        .context("cannot read cargo's messages")?
    {
        // Cargo may write lines of other programs in between.
        let Ok(message) = serde_json::from_str::<Message>(&line) else {
            continue;
        };
        if message.reason != "compiler-artifact" || message.manifest_path != manifest {
            continue;
        }
        let wasm = message
            .filenames
            .into_iter()
            .find(|file| file.extension().is_some_and(|end| end == "wasm"));
        // The last one counts, if cargo names the crate more than once.
        artifact = wasm.or(artifact);
    }
    Ok(artifact)
}

/// Keeps the compiler if it has the target; otherwise uses Debian's, which builds the standard
/// library from its sources.
async fn choose_compiler(cargo: &mut Command, dir: &Path) -> anyhow::Result<()> {
    if has_target(Some(dir)).await {
        return Ok(());
    }
    if !Path::new(DEBIAN_SOURCES).is_file() || !Path::new(DEBIAN_RUSTC).is_file() {
        let message = format!(
            "the compiler lacks the target {TARGET}; run `rustup target add {TARGET}`, or on \
             Debian `apt install rustc-web rust-web-src`"
        );
        return Err(Failure::new(Exit::Failed, message).into());
    }
    cargo
        .env("RUSTC", DEBIAN_RUSTC)
        .env("RUSTC_BOOTSTRAP", "1")
        .arg("-Zbuild-std=std,panic_abort");
    // Every rustup toolchain includes the linker that makes components. Without it, Debian's linker
    // produces a core module, which works just as well.
    if let Some(folder) = linker_folder(dir).await {
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        path.push(":");
        path.push(&folder);
        cargo.env("PATH", path).env(
            "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER",
            "wasm-component-ld",
        );
    }
    Ok(())
}

/// Whether the compiler that cargo would use in a folder has the target's standard library.
pub(crate) async fn has_target(dir: Option<&Path>) -> bool {
    let Some(folder) = rustc(dir, &["--print", "target-libdir", "--target", TARGET]).await else {
        return false;
    };
    let Ok(entries) = std::fs::read_dir(folder.trim()) else {
        return false;
    };
    // The folder may exist, and have nothing of the standard library.
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libstd-") && name.ends_with(".rlib")
    })
}

async fn linker_folder(dir: &Path) -> Option<PathBuf> {
    let sysroot = rustc(Some(dir), &["--print", "sysroot"]).await?;
    let version = rustc(Some(dir), &["-vV"]).await?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))?;
    let folder = Path::new(sysroot.trim())
        .join("lib/rustlib")
        .join(host)
        .join("bin");
    folder.join("wasm-component-ld").is_file().then_some(folder)
}

async fn rustc(dir: Option<&Path>, arguments: &[&str]) -> Option<String> {
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    if let Some(dir) = dir {
        rustc.current_dir(dir);
    }
    let output = rustc.output().await.ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn artifact_is_that_of_the_crate_itself() {
        let messages = br#"{"reason":"compiler-artifact","manifest_path":"/dep/Cargo.toml","filenames":["/t/dep.wasm"]}
not json
{"reason":"compiler-artifact","manifest_path":"/own/Cargo.toml","filenames":["/t/libown.rlib","/t/own.wasm"]}
{"reason":"build-finished","success":true}
"#;
        let found = find_artifact(&messages[..], Path::new("/own/Cargo.toml"))
            .await
            .expect("can be read");
        assert_eq!(found, Some(PathBuf::from("/t/own.wasm")));
        let found = find_artifact(&messages[..], Path::new("/other/Cargo.toml"))
            .await
            .expect("can be read");
        assert_eq!(found, None);
    }

    #[test]
    fn folders_without_a_crate_are_refused_with_advice() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let manifest = folder.path().join("Cargo.toml");
        let missing = package_name(&manifest).expect_err("there is none");
        assert!(
            missing
                .message
                .ends_with("create one with `foldstream new NAME`"),
            "{missing}"
        );
        std::fs::write(&manifest, "[workspace]\n").expect("write");
        let workspace = package_name(&manifest).expect_err("is a workspace");
        assert!(
            workspace
                .message
                .ends_with("is a workspace; give the folder of the crate in it"),
            "{workspace}"
        );
        std::fs::write(&manifest, "[package]\nname = \"order-totals\"\n").expect("write");
        assert_eq!(package_name(&manifest).expect("is a crate"), "order-totals");
    }
}
