//! TypeScript and JavaScript: a project with `package.json`, bundled with esbuild and built with
//! componentize-qjs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use include_dir::{Dir, include_dir};
use serde::Deserialize;

use super::tool::{self, Tool};
use super::{Compiled, Exports, Files, Kind, Name, Row, add_sources, samples, wit};
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::Output;

const INSTALL: &str =
    "npm install, or npm install --save-dev esbuild@0.28.2 componentize-qjs@0.4.5";
/// The tool that makes one file of a module and what it imports. Version 0.28 was tried.
const BUNDLE: Tool = Tool {
    program: "esbuild",
    folder: Some("node_modules/.bin"),
    environment: None,
    install: INSTALL,
};
/// The tool that makes a component of that file. Version 0.4.5 was tried.
const COMPONENTIZE: Tool = Tool {
    program: "componentize-qjs",
    ..BUNDLE
};
/// The templates, which are built and tested in their places.
const PROJECTION: [(&str, &str); 6] = [
    (
        "package.json",
        include_str!("../../../../../../guest-sdk/typescript/examples/starter/package.json"),
    ),
    (
        "package-lock.json",
        include_str!("../../../../../../guest-sdk/typescript/examples/starter/package-lock.json"),
    ),
    (
        "tsconfig.json",
        include_str!("../../../../../../guest-sdk/typescript/examples/starter/tsconfig.json"),
    ),
    (
        "README.md",
        include_str!("../../../../../../guest-sdk/typescript/examples/starter/README.md"),
    ),
    (
        "src/index.ts",
        include_str!("../../../../../../guest-sdk/typescript/examples/starter/src/index.ts"),
    ),
    (
        "test/index.test.ts",
        include_str!("../../../../../../guest-sdk/typescript/examples/starter/test/index.test.ts"),
    ),
];
const HANDLER: [(&str, &str); 6] = [
    (
        "package.json",
        include_str!(
            "../../../../../../guest-sdk/typescript/examples/starter-handler/package.json"
        ),
    ),
    (
        "package-lock.json",
        include_str!("../../../../../../guest-sdk/typescript/examples/starter/package-lock.json"),
    ),
    (
        "tsconfig.json",
        include_str!("../../../../../../guest-sdk/typescript/examples/starter/tsconfig.json"),
    ),
    (
        "README.md",
        include_str!("../../../../../../guest-sdk/typescript/examples/starter-handler/README.md"),
    ),
    (
        "src/index.ts",
        include_str!(
            "../../../../../../guest-sdk/typescript/examples/starter-handler/src/index.ts"
        ),
    ),
    (
        "test/index.test.ts",
        include_str!(
            "../../../../../../guest-sdk/typescript/examples/starter-handler/test/index.test.ts"
        ),
    ),
];
static SDK: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../guest-sdk/typescript/src");
/// The folder of the SDK in the template, and in a new project.
const SDK_PATH_TEMPLATE: &str = "\"../../src/";
const SDK_PATH: &str = "\"./vendor/foldstream-sdk/";
/// Files that may have the module.
const MAIN: [&str; 2] = ["src/index.ts", "src/index.js"];
/// Words of the language.
const RESERVED: &str = "\
    await break case catch class const continue debugger default delete do else enum export \
    extends false finally for function if implements import in instanceof interface let new null \
    package private protected public return static super switch this throw true try typeof var \
    void while with yield projection handler effects query event text test assert node-modules";

/// The row of the language.
pub(super) static ROW: Row = Row {
    name: "TypeScript",
    manifest: "package.json",
    sources: &["package.json", "tsconfig.json"],
    other_folders: &["test", "dist", "build", "node_modules"],
    reserved: RESERVED,
    sdk: "vendor",
    projection: |name| files(name, Kind::Projection, &PROJECTION),
    handler: Some(|name| files(name, Kind::Handler, &HANDLER)),
    first_steps: &[
        ("npm install", "install the tools"),
        ("npm test", "test it without WebAssembly"),
    ],
};

fn files(name: &Name, kind: Kind, template: &[(&str, &str)]) -> Files {
    let mut files = samples(kind);
    files.push((".gitignore".into(), "/node_modules\n*.wasm\n".into()));
    for (path, text) in template {
        let text = if path.ends_with(".ts") {
            name.in_code(text)
        } else {
            name.in_text(text).replace(SDK_PATH_TEMPLATE, SDK_PATH)
        };
        files.push((path.into(), text.into_bytes()));
    }
    let vendor = Path::new("vendor/foldstream-sdk");
    add_sources(&mut files, &SDK, vendor, &[".ts"]);
    files
}

/// What `package.json` says.
#[derive(Debug)]
struct Project {
    name: String,
    /// The file with the module.
    main: PathBuf,
    exports: Exports,
}

impl Project {
    fn read(dir: &Path) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct File {
            name: Option<String>,
            #[serde(default)]
            foldstream: Settings,
        }
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Settings {
            main: Option<PathBuf>,
            #[serde(default)]
            kind: Kind,
            #[serde(default)]
            migrates: bool,
        }
        let file = dir.join(ROW.manifest);
        let shown = file.display();
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {shown}"))?;
        let refused = |message: String| Failure::new(Exit::Refused, message);
        let read: File = serde_json::from_str(&text)
            .map_err(|error| refused(format!("{shown} is not sound: {error}")))?;
        let name = read
            .name
            .ok_or_else(|| refused(format!("{shown} has no name; add one")))?;
        let Settings {
            main: named,
            kind,
            migrates,
        } = read.foldstream;
        let wanted: Vec<PathBuf> = match &named {
            Some(main) => vec![main.clone()],
            None => MAIN.map(PathBuf::from).to_vec(),
        };
        let main = wanted
            .iter()
            .map(|main| dir.join(main))
            .find(|main| main.is_file());
        let Some(main) = main else {
            let message = format!(
                "there is no {} for {shown}; write it, or name another file as \"main\" of \
                 \"foldstream\" in it",
                wanted[0].display()
            );
            return Err(Failure::new(Exit::NotFound, message).into());
        };
        // A scope is no part of a file's name.
        let name = name.rsplit('/').next().unwrap_or_default().to_owned();
        let exports = Exports { kind, migrates };
        Ok(Self {
            name,
            main,
            exports,
        })
    }
}

/// Bundles the project, and runs componentize-qjs on the bundle.
pub(super) async fn compile(dir: &Path, output: Output) -> anyhow::Result<Compiled> {
    let project = Project::read(dir)?;
    let (bundler, componentizer) = (BUNDLE.find(dir)?, COMPONENTIZE.find(dir)?);
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let wit = scratch.path().join("wit");
    wit::write(&wit, project.exports)?;
    output.note(&format!(
        "building {} with {}",
        project.name,
        componentizer.display()
    ));
    let bundle = scratch.path().join("bundle.js");
    bundle_project(&project, dir, &bundler, &bundle).await?;
    let component = scratch.path().join("component.wasm");
    // Not asynchronous: the host calls plain functions.
    let mut arguments: Vec<OsString> = ["--sync", "-n", wit::WORLD, "-w"]
        .map(OsString::from)
        .to_vec();
    arguments.extend([wit.into(), "-j".into(), bundle.into()]);
    arguments.extend(["-o".into(), component.clone().into_os_string()]);
    let run = tool::run(&componentizer, arguments, scratch.path(), &[]).await?;
    succeeded(&project, &run)?;
    let module = tokio::fs::read(&component)
        .await
        .context("componentize-qjs wrote no component")?;
    Ok(Compiled {
        name: project.name,
        module: module.into(),
    })
}

/// Makes one file of the project and the SDK, with a map of its lines for stack traces.
async fn bundle_project(
    project: &Project,
    dir: &Path,
    bundler: &Path,
    bundle: &Path,
) -> anyhow::Result<()> {
    let dir = std::path::absolute(dir).with_context(|| format!("cannot find {}", dir.display()))?;
    let main = std::path::absolute(&project.main).unwrap_or_else(|_| project.main.clone());
    let Exports { kind, migrates } = project.exports;
    let functions = match kind {
        Kind::Projection => "manifest, inbox, apply, query",
        Kind::Handler => "manifest, inbox, handle, onTimer, query",
    };
    let migrate = if migrates { ", migrate" } else { "" };
    // Next to the bundle, and resolved as if they were in the project. With `require` the SDK evaluates
    // the module, and says where in the sources it throws.
    let module = format!(
        "export {{ default }} from {};\n",
        serde_json::Value::from(main.to_string_lossy()),
    );
    let entry = format!(
        "import {{ exported }} from \"@foldstream/sdk/guest-{}\";\nexport const {{ {functions}{migrate} }} = \
         exported(() => require(\"./module.ts\"), {migrates});\n",
        kind.name(),
    );
    let entry_file = bundle.with_file_name("entry.ts");
    for (file, text) in [
        (bundle.with_file_name("module.ts"), module),
        (entry_file.clone(), entry),
    ] {
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let mut arguments: Vec<OsString> = vec![entry_file.into_os_string()];
    arguments.extend(
        [
            "--bundle",
            "--format=esm",
            "--platform=neutral",
            "--main-fields=module,main",
            "--target=es2023",
            // The SDK then finds code that waits for a promise: nothing in a component runs it.
            "--supported:async-await=false",
            "--supported:async-generator=false",
            "--supported:for-await=false",
            "--external:foldstream:module/*",
            "--sourcemap=external",
            "--sources-content=false",
            "--log-level=warning",
        ]
        .map(OsString::from),
    );
    let settings = dir.join("tsconfig.json");
    if settings.is_file() {
        arguments.push(flag("--tsconfig=", &settings));
    }
    arguments.push(flag("--outfile=", bundle));
    let run = tool::run(bundler, arguments, &dir, &[]).await?;
    succeeded(project, &run)?;
    add_map(bundle, &dir).with_context(|| format!("cannot read what {} wrote", bundler.display()))
}

fn flag(name: &str, path: &Path) -> OsString {
    let mut flag = OsString::from(name);
    flag.push(path);
    flag
}

/// Adds the map of a bundle to it, with the paths of sources as seen from the project: the SDK
/// translates stack traces with it.
fn add_map(bundle: &Path, dir: &Path) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Map {
        sources: Vec<PathBuf>,
        mappings: String,
    }
    let text = std::fs::read_to_string(bundle.with_extension("js.map"))?;
    let map: Map = serde_json::from_str(&text)?;
    let folder = bundle.parent().unwrap_or(Path::new("."));
    let shown = |source: &PathBuf| {
        // The sources are named from the folder of the bundle.
        let file = folder.join(source);
        let file = file.canonicalize().unwrap_or(file);
        let file = file.strip_prefix(dir).unwrap_or(&file);
        file.to_string_lossy().into_owned()
    };
    let sources: Vec<String> = map.sources.iter().map(shown).collect();
    let map = serde_json::json!({ "sources": sources, "mappings": map.mappings });
    let bundled = std::fs::read_to_string(bundle)?;
    // First, so that it is there when the module is evaluated, and without a line of its own: the
    // lines of the bundle stay where the map says.
    std::fs::write(
        bundle,
        format!("globalThis.__foldstreamMap = {map};{bundled}"),
    )?;
    Ok(())
}

fn succeeded(project: &Project, run: &std::process::Output) -> Result<(), Failure> {
    if run.status.success() {
        return Ok(());
    }
    let printed = String::from_utf8_lossy(&run.stderr);
    // What the tool itself says; Node adds where the tool ended.
    let told = printed.split("\nnode:").next().unwrap_or_default();
    Err(tool::refused(&project.name, told))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn project_says_what_is_wrong_with_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let read = |text: &str| {
            std::fs::write(folder.path().join("package.json"), text).expect("write");
            Project::read(folder.path()).map_err(|error| error.to_string())
        };
        for (text, message) in [
            ("{", "is not sound"),
            ("{}", "has no name"),
            (r#"{"name": "a"}"#, "there is no src/index.ts"),
            (
                r#"{"name": "a", "foldstream": {"mian": "b.ts"}}"#,
                "unknown field `mian`",
            ),
            (
                r#"{"name": "a", "foldstream": {"main": "b.ts"}}"#,
                "there is no b.ts",
            ),
            (
                r#"{"name": "a", "foldstream": {"kind": "saga"}}"#,
                "unknown variant `saga`, expected `projection` or `handler`",
            ),
        ] {
            let error = read(text).expect_err("is wrong");
            assert!(error.contains(message), "{text}: {error}");
        }
        std::fs::create_dir(folder.path().join("src")).expect("make src");
        std::fs::write(folder.path().join("src/index.js"), "").expect("write");
        let project = read(r#"{"name": "@ours/a"}"#).expect("is sound");
        assert_eq!(project.name, "a");
        assert!(project.main.ends_with("src/index.js"));
        assert_eq!(project.exports.world(), "projection");
        let project = read(r#"{"name": "a", "foldstream": {"migrates": true}}"#);
        let world = project.expect("is sound").exports.world();
        assert_eq!(world, "migrating-projection");
    }

    #[test]
    fn templates_of_both_kinds_need_the_tools_that_the_lockfile_lists() {
        let tools = |template: &[(&str, &str)]| {
            let read: serde_json::Value = serde_json::from_str(template[0].1).expect("is JSON");
            (read["scripts"].clone(), read["devDependencies"].clone())
        };
        assert_eq!(tools(&PROJECTION), tools(&HANDLER));
    }
}
