//! C: a project with `module.toml`, built with the C compiler and C library of Zig.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use include_dir::{Dir, include_dir};
use serde::Deserialize;

use super::tool::{self, Tool};
use super::{Compiled, Files, Kind, Name, Row, add_sources, samples};
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::Output;

/// The compiler, which brings a C library for WebAssembly. Version 0.17 was tried.
const ZIG: Tool = Tool {
    program: "zig",
    folder: Some(".venv/bin"),
    environment: Some("VIRTUAL_ENV"),
    install: "https://ziglang.org/download, or python3 -m venv .venv && .venv/bin/pip install \
              ziglang==0.17.1",
};
/// Its name as a package of Python.
const PYTHON_ZIG: Tool = Tool {
    program: "python-zig",
    ..ZIG
};
/// A module that a host calls, small and fast. A call of the SDK needs little stack; what it does
/// not use stays free for the tables.
const OPTIONS: [&str; 7] = [
    "cc",
    "-target",
    "wasm32-wasi",
    "-mexec-model=reactor",
    "-O2",
    "-s",
    "-Wl,-z,stack-size=1048576",
];
/// The template, which is built and tested in its place.
const TEMPLATE: [(&str, &str); 5] = [
    (
        "module.toml",
        include_str!("../../../../../../guest-sdk/c/examples/starter/module.toml"),
    ),
    (
        "Makefile",
        include_str!("../../../../../../guest-sdk/c/examples/starter/Makefile"),
    ),
    (
        "README.md",
        include_str!("../../../../../../guest-sdk/c/examples/starter/README.md"),
    ),
    (
        "src/starter.c",
        include_str!("../../../../../../guest-sdk/c/examples/starter/src/starter.c"),
    ),
    (
        "tests/test.c",
        include_str!("../../../../../../guest-sdk/c/examples/starter/tests/test.c"),
    ),
];
static SDK: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../guest-sdk/c/foldstream");
/// The folder of the SDK in the template, and in a new project.
const SDK_PATH_TEMPLATE: &str = "../../foldstream";
const SDK_PATH: &str = "vendor/foldstream";

/// The row of the language.
pub(super) static ROW: Row = Row {
    name: "C",
    manifest: "module.toml",
    sources: &["module.toml"],
    other_folders: &["tests", "build"],
    reserved: "foldstream test vendor",
    sdk: "vendor",
    projection,
    handler: None,
    first_steps: &[("make test", "test it without WebAssembly")],
};

fn projection(name: &Name) -> Files {
    let mut files = samples(Kind::Projection);
    files.push((".gitignore".into(), "/build\n*.wasm\n".into()));
    for (path, text) in TEMPLATE {
        let text = if path.ends_with(".c") {
            name.in_code(text)
        } else {
            let source = format!("src/{}.c", name.snake);
            let text = text.replace("src/starter.c", &source);
            name.in_text(&text).replace(SDK_PATH_TEMPLATE, SDK_PATH)
        };
        let path = path.replace("starter", &name.snake);
        files.push((path.into(), text.into_bytes()));
    }
    add_sources(&mut files, &SDK, Path::new(SDK_PATH), &[".c", ".h"]);
    files
}

/// What `module.toml` says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Project {
    name: String,
    /// Folders whose C files are compiled, and in which these find headers.
    #[serde(default = "usual_folders")]
    folders: Vec<PathBuf>,
    /// Further options of the compiler.
    #[serde(default)]
    options: Vec<String>,
}

fn usual_folders() -> Vec<PathBuf> {
    vec!["src".into(), SDK_PATH.into()]
}

impl Project {
    fn read(dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join(ROW.manifest);
        let shown = file.display();
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {shown}"))?;
        toml::from_str(&text).map_err(|error| {
            let message = format!("{shown} is not sound: {}", error.message());
            Failure::new(Exit::Refused, message).into()
        })
    }

    /// The C files, in the order of their names, as seen from the project's folder.
    fn sources(&self, dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
        let mut sources = Vec::new();
        for folder in &self.folders {
            let shown = dir.join(folder);
            let unreadable = || format!("cannot read {}", shown.display());
            for entry in std::fs::read_dir(&shown).with_context(unreadable)? {
                let name = entry.with_context(unreadable)?.file_name();
                if Path::new(&name).extension().is_some_and(|end| end == "c") {
                    sources.push(folder.join(name));
                }
            }
        }
        sources.sort();
        Ok(sources)
    }
}

/// Runs the compiler on the project. Cancelling also stops it.
pub(super) async fn compile(dir: &Path, output: Output) -> anyhow::Result<Compiled> {
    let project = Project::read(dir)?;
    let sources = project.sources(dir)?;
    let program = ZIG
        .find(dir)
        .or_else(|missing| PYTHON_ZIG.find(dir).map_err(|_| missing))?;
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let module = scratch.path().join("module.wasm");
    output.note(&format!(
        "building {} with {}",
        project.name,
        program.display()
    ));
    let mut arguments: Vec<OsString> = OPTIONS.map(OsString::from).to_vec();
    arguments.extend(project.options.iter().map(OsString::from));
    for folder in &project.folders {
        arguments.extend(["-I".into(), folder.clone().into_os_string()]);
    }
    arguments.extend(sources.into_iter().map(PathBuf::into_os_string));
    arguments.extend(["-o".into(), module.clone().into_os_string()]);
    let run = tool::run(&program, arguments, dir, &[]).await?;
    if !run.status.success() {
        let told = String::from_utf8_lossy(&run.stderr);
        return Err(tool::refused(&project.name, &told).into());
    }
    let module = tokio::fs::read(&module)
        .await
        .context("zig wrote no module")?;
    Ok(Compiled {
        name: project.name,
        module: module.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn project_says_what_is_wrong_with_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let read = |text: &str| {
            std::fs::write(folder.path().join("module.toml"), text).expect("write");
            Project::read(folder.path())
                .and_then(|project| project.sources(folder.path()))
                .map_err(|error| error.to_string())
        };
        for (text, message) in [
            ("name", "is not sound"),
            ("folders = []", "missing field `name`"),
            ("name = \"a\"\nfolder = []", "unknown field `folder`"),
            ("name = \"a\"", "cannot read "),
        ] {
            let error = read(text).expect_err("is wrong");
            assert!(error.contains(message), "{text}: {error}");
        }
        std::fs::create_dir(folder.path().join("src")).expect("make src");
        for name in ["b.c", "a.c", "a.h"] {
            std::fs::write(folder.path().join("src").join(name), "").expect("write");
        }
        let sources = read("name = \"a\"\nfolders = [\"src\"]").expect("is sound");
        assert_eq!(sources, ["src/a.c", "src/b.c"].map(PathBuf::from));
    }
}
