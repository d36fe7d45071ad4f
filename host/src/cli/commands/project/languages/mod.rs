//! The languages in which modules are written: each has a file here, and a row in `Language::row`.
//!
//! A row says how a project of the language begins (`foldstream new`), how it is built, and what
//! `foldstream dev` watches. Its SDK and its templates are in `guest-sdk/<language>`.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use include_dir::Dir;
use serde::Deserialize;

use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::{Output, pretty};
use crate::schemas;

mod c;
mod go;
mod name;
mod python;
pub(crate) mod rust;
mod tool;
mod typescript;
mod wit;

pub(crate) use name::Name;

/// The kind of module that a project makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Folds events into a read model.
    #[default]
    Projection,
    /// Also publishes messages and sets timers.
    Handler,
}

impl Kind {
    /// Its name, for people and in what a project says.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Projection => "projection",
            Self::Handler => "handler",
        }
    }
}

/// What a component exports, as its project says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Exports {
    /// The kind of module.
    kind: Kind,
    /// Whether it converts the state of an older version: it exports `migrate`.
    migrates: bool,
}

impl Exports {
    /// The world of our contract with these exports.
    fn world(self) -> String {
        let kind = self.kind.name();
        if self.migrates {
            format!("migrating-{kind}")
        } else {
            kind.to_owned()
        }
    }
}

/// What the starter has in every language: sample events and scenarios, and what editors need to
/// complete the scenarios.
fn samples(kind: Kind) -> Files {
    let schema = pretty(&crate::scenario::schema()) + "\n";
    let (events, scenarios) = match kind {
        Kind::Projection => (
            include_str!("../../../../../../examples/starter/events.ndjson"),
            include_str!("../../../../../../examples/starter/scenarios.yaml"),
        ),
        Kind::Handler => (
            include_str!("../../../../../../examples/starter-handler/events.ndjson"),
            include_str!("../../../../../../examples/starter-handler/scenarios.yaml"),
        ),
    };
    let scenarios = scenarios.replace("../../docs/scenarios.schema.json", "scenarios.schema.json");
    vec![
        ("events.ndjson".into(), events.into()),
        ("scenarios.yaml".into(), scenarios.into_bytes()),
        ("scenarios.schema.json".into(), schema.into_bytes()),
    ]
}

/// A language of modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Language {
    /// Built with cargo; the fastest and smallest modules.
    Rust,
    /// Built with componentize-py.
    Python,
    /// TypeScript or JavaScript, built with esbuild and componentize-qjs.
    #[value(alias = "ts", alias = "javascript", alias = "js")]
    Typescript,
    /// Built with the Go compiler alone.
    #[value(alias = "golang")]
    Go,
    /// Built with the C compiler of Zig.
    C,
}

/// What the command line knows of a language.
pub(crate) struct Row {
    /// Its name, for people.
    pub name: &'static str,
    /// The file by which a project of the language is known.
    pub manifest: &'static str,
    /// Files at the top of a project that a build reads, apart from those in folders: names, or an
    /// ending such as `*.go`.
    pub sources: &'static [&'static str],
    /// Folders at the top of a project that a build does not read, or writes itself.
    pub other_folders: &'static [&'static str],
    /// Names that a project cannot have, separated by spaces.
    pub reserved: &'static str,
    /// The folder of a new project with the SDK in it.
    pub sdk: &'static str,
    /// The files of a new projection, by their paths.
    pub projection: fn(&Name) -> Files,
    /// Those of a new handler, if its SDK writes handlers.
    pub handler: Option<fn(&Name) -> Files>,
    /// Commands to try in a new project before `foldstream dev`, each with what it does.
    pub first_steps: &'static [(&'static str, &'static str)],
}

/// Files of a new project: paths and contents.
pub(crate) type Files = Vec<(PathBuf, Vec<u8>)>;

/// What a build made.
#[derive(Debug)]
pub(crate) struct Compiled {
    /// Name of the project.
    pub name: String,
    /// A component, or a core module of which the host makes one.
    pub module: Bytes,
}

impl Language {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [
        Self::Rust,
        Self::Python,
        Self::Typescript,
        Self::Go,
        Self::C,
    ];

    /// What the command line knows of it.
    pub(crate) fn row(self) -> &'static Row {
        match self {
            Self::Rust => &rust::ROW,
            Self::Python => &python::ROW,
            Self::Typescript => &typescript::ROW,
            Self::Go => &go::ROW,
            Self::C => &c::ROW,
        }
    }

    /// The language of the project in a folder.
    pub(crate) fn of(dir: &Path) -> Result<Self, Failure> {
        let found = Self::ALL
            .into_iter()
            .find(|language| dir.join(language.row().manifest).is_file());
        found.ok_or_else(|| {
            let manifests = Self::ALL.map(|language| language.row().manifest);
            let message = format!(
                "{} has no {}; give the folder of a project, or create one with `foldstream new \
                 NAME`",
                dir.display(),
                manifests.join(" or ")
            );
            Failure::new(Exit::NotFound, message)
        })
    }

    /// Builds the project in a folder, with the schemas of its events. Cancelling also stops the
    /// compiler.
    pub(crate) async fn compile(self, dir: &Path, output: Output) -> anyhow::Result<Compiled> {
        // First: a mistake in them should not wait for a compiler.
        let schemas = schemas::of_folder(&dir.join(schemas::FOLDER))?;
        let compiled = match self {
            Self::Rust => rust::compile(dir, output).await,
            Self::Python => python::compile(dir, output).await,
            Self::Typescript => typescript::compile(dir, output).await,
            Self::Go => go::compile(dir, output).await,
            Self::C => c::compile(dir, output).await,
        }?;
        if schemas.is_empty() {
            return Ok(compiled);
        }
        let module = schemas::attach(&compiled.module, &schemas::to_bytes(&schemas));
        Ok(Compiled {
            module: module.into(),
            ..compiled
        })
    }
}

impl Row {
    /// The files of a new project of a kind.
    pub(crate) fn files(&self, name: &Name, kind: Kind) -> Result<Files, Failure> {
        let files = match kind {
            Kind::Projection => Some(self.projection),
            Kind::Handler => self.handler,
        };
        files.map(|files| files(name)).ok_or_else(|| {
            let with = Language::ALL.map(Language::row);
            let with = with.iter().filter(|row| row.handler.is_some());
            let with: Vec<_> = with.map(|row| row.name).collect();
            let message = format!(
                "the SDK for {} writes no handlers yet; choose another language with --lang: {}",
                self.name,
                with.join(", ")
            );
            Failure::new(Exit::Usage, message)
        })
    }

    /// Whether a build reads this file at the top of a project.
    pub(crate) fn is_source(&self, file: &str) -> bool {
        self.sources
            .iter()
            .any(|source| match source.strip_prefix('*') {
                Some(ending) => file.ends_with(ending),
                None => file == *source,
            })
    }
}

/// Adds the sources in a folder to the files of a project. Only names with one of these endings are
/// taken: the folder may contain build output.
fn add_sources(files: &mut Files, folder: &Dir<'_>, to: &Path, endings: &[&str]) {
    for file in folder.files() {
        let name = file.path().to_string_lossy();
        if endings.iter().any(|ending| name.ends_with(ending)) {
            files.push((to.join(file.path()), file.contents().to_vec()));
        }
    }
    for inner in folder.dirs() {
        add_sources(files, inner, to, endings);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files of a new project of each language and kind.
    fn projects() -> Vec<(Language, Files)> {
        let kinds = [Kind::Projection, Kind::Handler];
        let all = Language::ALL.into_iter().flat_map(|language| {
            let name = Name::parse("order-totals", language).expect("is sound");
            kinds.map(|kind| (language, language.row().files(&name, kind)))
        });
        all.filter_map(|(language, files)| Some((language, files.ok()?)))
            .collect()
    }

    #[test]
    fn nothing_of_the_starter_remains_in_a_new_project() {
        for (language, files) in projects() {
            for wanted in [
                language.row().manifest,
                "README.md",
                "events.ndjson",
                "scenarios.yaml",
                "scenarios.schema.json",
                ".gitignore",
            ] {
                assert!(
                    files.iter().any(|(path, _)| path == Path::new(wanted)),
                    "{wanted}"
                );
            }
            assert!(
                files
                    .iter()
                    .any(|(path, _)| path.starts_with(language.row().sdk)),
                "the SDK is in the project, so that it builds without a registry of ours"
            );
            let sdk = language.row().sdk;
            for (path, contents) in files.iter().filter(|(path, _)| !path.starts_with(sdk)) {
                let text = String::from_utf8(contents.clone()).expect("is text");
                let lower = text.to_lowercase() + &path.to_string_lossy();
                assert!(!lower.contains("starter"), "{}: {text}", path.display());
                assert!(!text.contains("../.."), "{}: {text}", path.display());
            }
        }
    }

    #[test]
    fn languages_without_handlers_name_those_with_them() {
        let name = Name::parse("order-totals", Language::C).expect("is sound");
        let refused = Language::C.row().files(&name, Kind::Handler);
        let refused = refused.expect_err("has none");
        assert_eq!(refused.exit, Exit::Usage);
        assert!(
            refused.message.contains("C writes no handlers yet")
                && refused.message.contains("Rust"),
            "{refused}"
        );
    }

    #[test]
    fn sources_are_names_or_endings() {
        let row = Language::Go.row();
        assert!(row.is_source("go.mod") && row.is_source("main.go"));
        assert!(!row.is_source("main.wasm") && !row.is_source("go.mod.bak"));
    }

    #[test]
    fn folders_without_a_project_are_refused_with_advice() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let missing = Language::of(folder.path()).expect_err("there is none");
        assert!(
            missing
                .message
                .ends_with("create one with `foldstream new NAME`"),
            "{missing}"
        );
        for language in Language::ALL {
            let folder = tempfile::tempdir().expect("a temporary folder");
            std::fs::write(folder.path().join(language.row().manifest), "").expect("write");
            assert_eq!(Language::of(folder.path()).expect("is one"), language);
        }
    }
}
