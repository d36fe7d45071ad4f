//! Rust: a crate, built with nothing but cargo.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use include_dir::{Dir, include_dir};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use super::{Compiled, Files, Kind, Name, Row, add_sources, samples};
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::Output;

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

/// The starter examples, which are built and tested in `examples/`.
const PROJECTION: Template = Template {
    kind: Kind::Projection,
    sources: include_dir!("$CARGO_MANIFEST_DIR/../examples/starter/src"),
    manifest: include_str!("../../../../../../examples/starter/Cargo.toml"),
    readme: include_str!("../../../../../../examples/starter/README.md"),
};
const HANDLER: Template = Template {
    kind: Kind::Handler,
    sources: include_dir!("$CARGO_MANIFEST_DIR/../examples/starter-handler/src"),
    manifest: include_str!("../../../../../../examples/starter-handler/Cargo.toml"),
    readme: include_str!("../../../../../../examples/starter-handler/README.md"),
};
/// The SDK is included so that the crate builds without a registry of ours. Only the files that a
/// build reads are embedded: the whole folder might contain build output.
static SDK_SOURCES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../guest-sdk/rust/src");
const SDK_FILES: [(&str, &str); 2] = [
    (
        "Cargo.toml",
        include_str!("../../../../../../guest-sdk/rust/Cargo.toml"),
    ),
    // The SDK includes this file as its documentation.
    (
        "README.md",
        include_str!("../../../../../../guest-sdk/rust/README.md"),
    ),
];
/// The path of the SDK in the examples, and in a new crate.
const SDK_PATH_EXAMPLE: &str = "../../guest-sdk/rust";
const SDK_PATH: &str = "vendor/foldstream-sdk";
/// The crate may be inside another workspace. The SDK is not a member, because users do not need
/// what its own tests need.
const WORKSPACE: &str = "
# A workspace of its own, wherever the folder is.
[workspace]
exclude = [\"vendor\"]
";
const IGNORED: &str = "/target\n*.wasm\n";
/// Names reserved by the compiler or by cargo.
const RESERVED: &str = "\
    as async await become box break const continue crate do dyn else enum extern false final \
    fn for gen if impl in let loop macro match mod move mut override priv pub ref return \
    self static struct super trait true try type typeof unsafe unsized use virtual where \
    while yield alloc core foldstream-sdk proc-macro serde std test";

/// The row of the language.
pub(super) static ROW: Row = Row {
    name: "Rust",
    manifest: "Cargo.toml",
    sources: &[
        "Cargo.toml",
        "build.rs",
        "rust-toolchain",
        "rust-toolchain.toml",
    ],
    other_folders: &["target"],
    reserved: RESERVED,
    sdk: "vendor",
    projection: |name| PROJECTION.files(name),
    handler: Some(|name| HANDLER.files(name)),
    first_steps: &[("cargo test", "test it without WebAssembly")],
};

/// What a project begins with.
struct Template {
    kind: Kind,
    sources: Dir<'static>,
    manifest: &'static str,
    readme: &'static str,
}

impl Template {
    fn files(&self, name: &Name) -> Files {
        let mut files = samples(self.kind);
        files.push((".gitignore".into(), IGNORED.into()));
        let manifest = name.in_text(self.manifest);
        let manifest = manifest.replace(SDK_PATH_EXAMPLE, SDK_PATH) + WORKSPACE;
        files.push((ROW.manifest.into(), manifest.into_bytes()));
        files.push(("README.md".into(), name.in_text(self.readme).into_bytes()));
        let mut sources = Files::new();
        add_sources(&mut sources, &self.sources, Path::new("src"), &[".rs"]);
        files.extend(sources.into_iter().map(|(path, contents)| {
            let text = String::from_utf8(contents).expect("sources are text");
            (path, name.in_code(&text).into_bytes())
        }));
        let sdk = Path::new(SDK_PATH);
        for (path, text) in SDK_FILES {
            files.push((sdk.join(path), text.as_bytes().to_vec()));
        }
        add_sources(&mut files, &SDK_SOURCES, &sdk.join("src"), &[".rs", ".bin"]);
        files
    }
}

/// Runs cargo on the crate. Cancelling also stops cargo.
pub(super) async fn compile(dir: &Path, output: Output) -> anyhow::Result<Compiled> {
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
