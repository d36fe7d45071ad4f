//! Python: a project with `pyproject.toml`, built with componentize-py.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use include_dir::{Dir, include_dir};
use serde::Deserialize;

use super::tool::{self, Tool};
use super::{Compiled, Exports, Files, Kind, Name, Row, add_sources, samples, wit};
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::Output;

/// The tool that makes a component of Python. Version 0.25 was tried.
const COMPONENTIZE: Tool = Tool {
    program: "componentize-py",
    folder: Some(".venv/bin"),
    environment: Some("VIRTUAL_ENV"),
    install: "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt, or pip install \
              componentize-py==0.25.1",
};
/// The templates, which are built and tested in their places.
const PROJECTION: [(&str, &str); 5] = [
    (
        "pyproject.toml",
        include_str!("../../../../../../guest-sdk/python/examples/starter/pyproject.toml"),
    ),
    (
        "README.md",
        include_str!("../../../../../../guest-sdk/python/examples/starter/README.md"),
    ),
    (
        "src/starter.py",
        include_str!("../../../../../../guest-sdk/python/examples/starter/src/starter.py"),
    ),
    (
        "tests/test_starter.py",
        include_str!("../../../../../../guest-sdk/python/examples/starter/tests/test_starter.py"),
    ),
    (
        "requirements.txt",
        include_str!("../../../../../../guest-sdk/python/examples/starter/requirements.txt"),
    ),
];
const HANDLER: [(&str, &str); 5] = [
    (
        "pyproject.toml",
        include_str!("../../../../../../guest-sdk/python/examples/starter-handler/pyproject.toml"),
    ),
    (
        "README.md",
        include_str!("../../../../../../guest-sdk/python/examples/starter-handler/README.md"),
    ),
    (
        "src/starter.py",
        include_str!("../../../../../../guest-sdk/python/examples/starter-handler/src/starter.py"),
    ),
    (
        "tests/test_starter.py",
        include_str!(
            "../../../../../../guest-sdk/python/examples/starter-handler/tests/test_starter.py"
        ),
    ),
    (
        "requirements.txt",
        include_str!("../../../../../../guest-sdk/python/examples/starter/requirements.txt"),
    ),
];
static SDK: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../guest-sdk/python/foldstream");
/// The folder of the SDK in the template, and in a new project.
const SDK_PATH_TEMPLATE: &str = "\"../..\"";
const SDK_PATH: &str = "\"vendor\"";
/// The module that a component begins with.
const ENTRY: &str = "foldstream_entry";
/// Words of the language, and modules of its library that a project would hide.
const RESERVED: &str = "\
    abc aifc and antigravity argparse array as assert ast async asynchat asyncio asyncore atexit \
    audioop await base64 bdb binascii bisect break builtins bz2 calendar case cgi cgitb chunk \
    class cmath cmd code codecs codeop collections colorsys compileall concurrent configparser \
    contextlib contextvars continue copy copyreg crypt csv ctypes curses dataclasses datetime \
    dbm decimal def del difflib dis distutils doctest elif else email encodings ensurepip enum \
    errno except faulthandler fcntl filecmp fileinput finally fnmatch foldstream for fractions \
    from ftplib functools gc genericpath getopt getpass gettext glob global graphlib grp gzip \
    hashlib heapq hmac html http idlelib if imaplib imghdr imp import importlib in inspect io \
    ipaddress is itertools json keyword lambda lib2to3 linecache locale logging lzma mailbox \
    mailcap marshal match math mimetypes mmap modulefinder msilib msvcrt multiprocessing netrc \
    nis nntplib nonlocal not nt ntpath nturl2path numbers opcode operator optparse or os \
    ossaudiodev pass pathlib pdb pickle pickletools pipes pkgutil platform plistlib poplib posix \
    posixpath pprint profile pstats pty pwd py-compile pyclbr pydoc pydoc-data pyexpat pytest \
    queue quopri raise random re readline reprlib resource return rlcompleter runpy sched \
    secrets select selectors shelve shlex shutil signal site smtpd smtplib sndhdr socket \
    socketserver spwd sqlite3 sre-compile sre-constants sre-parse ssl stat statistics string \
    stringprep struct subprocess sunau symtable sys sysconfig syslog tabnanny tarfile telnetlib \
    tempfile termios textwrap this threading time timeit tkinter token tokenize tomllib trace \
    traceback tracemalloc try tty turtle turtledemo type types typing unicodedata unittest \
    urllib uu uuid vendor venv warnings wave weakref webbrowser while winreg winsound with \
    wsgiref xdrlib xml xmlrpc yield zipapp zipfile zipimport zlib zoneinfo";

/// The row of the language.
pub(super) static ROW: Row = Row {
    name: "Python",
    manifest: "pyproject.toml",
    sources: &["pyproject.toml"],
    other_folders: &["tests", "build", "dist", "__pycache__"],
    reserved: RESERVED,
    sdk: "vendor",
    projection: |name| files(name, Kind::Projection, &PROJECTION),
    handler: Some(|name| files(name, Kind::Handler, &HANDLER)),
    first_steps: &[
        ("python3 -m venv .venv", "make an environment"),
        (
            ".venv/bin/pip install -r requirements.txt",
            "install the tools into it",
        ),
        (".venv/bin/pytest", "test it without WebAssembly"),
    ],
};

fn files(name: &Name, kind: Kind, template: &[(&str, &str)]) -> Files {
    let mut files = samples(kind);
    files.push((
        ".gitignore".into(),
        b"__pycache__/\n/.venv\n/.pytest_cache\n*.wasm\n".to_vec(),
    ));
    for (path, text) in template {
        let text = if path.ends_with(".py") {
            name.in_code(text)
        } else {
            name.in_text(text).replace(SDK_PATH_TEMPLATE, SDK_PATH)
        };
        let path = path.replace("starter", &name.snake);
        files.push((path.into(), text.into_bytes()));
    }
    let vendor = Path::new("vendor/foldstream");
    add_sources(&mut files, &SDK, vendor, &[".py", "py.typed"]);
    files
}

/// What `pyproject.toml` says.
#[derive(Debug)]
struct Project {
    name: String,
    /// The Python module with the class.
    module: String,
    exports: Exports,
    /// Folders to import from.
    path: Vec<PathBuf>,
}

impl Project {
    fn read(dir: &Path) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct File {
            project: Option<Metadata>,
            #[serde(default)]
            tool: Tools,
        }
        #[derive(Deserialize)]
        struct Metadata {
            name: String,
        }
        #[derive(Default, Deserialize)]
        struct Tools {
            #[serde(default)]
            foldstream: Settings,
        }
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Settings {
            module: Option<String>,
            path: Option<Vec<PathBuf>>,
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
        let read: File = toml::from_str(&text)
            .map_err(|error| refused(format!("{shown} is not sound: {}", error.message())))?;
        let Some(Metadata { name }) = read.project else {
            return Err(
                refused(format!("{shown} names no project; add [project] and name")).into(),
            );
        };
        let Settings {
            module,
            path,
            kind,
            migrates,
        } = read.tool.foldstream;
        let module = module.unwrap_or_else(|| name.replace('-', "_"));
        let path: Vec<PathBuf> = path
            .unwrap_or_else(|| vec!["src".into(), "vendor".into()])
            .iter()
            .map(|folder| dir.join(folder))
            .collect();
        let is_there = |folder: &PathBuf| {
            folder.join(format!("{module}.py")).is_file() || folder.join(&module).is_dir()
        };
        if !path.iter().any(is_there) {
            let message = format!(
                "there is no Python module {module} for {shown}; write src/{module}.py, or name \
                 another in [tool.foldstream] with module and path"
            );
            return Err(Failure::new(Exit::NotFound, message).into());
        }
        Ok(Self {
            name,
            module,
            exports: Exports { kind, migrates },
            path,
        })
    }
}

/// Runs componentize-py on the project.
pub(super) async fn compile(dir: &Path, output: Output) -> anyhow::Result<Compiled> {
    let project = Project::read(dir)?;
    let program = COMPONENTIZE.find(dir)?;
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    wit::write(&scratch.path().join("wit"), project.exports)?;
    let entry = scratch.path().join("entry");
    let module = &project.module;
    let text = format!(
        "import {module}\nfrom foldstream.guest_{} import export\n\nWitWorld = export({module}, \
         migrates={})\n",
        project.exports.kind.name(),
        if project.exports.migrates {
            "True"
        } else {
            "False"
        },
    );
    std::fs::create_dir(&entry)
        .and_then(|()| std::fs::write(entry.join(format!("{ENTRY}.py")), text))
        .with_context(|| format!("cannot write {}", entry.display()))?;

    output.note(&format!(
        "building {} with {}",
        project.name,
        program.display()
    ));
    let component = scratch.path().join("component.wasm");
    let folders: Vec<PathBuf> = std::iter::once(entry).chain(project.path).collect();
    let arguments = arguments(&scratch.path().join("wit"), &folders, &component);
    // Packages of the environment that the tool is in can be imported as well.
    let environment = program
        .ancestors()
        .nth(2)
        .filter(|folder| folder.join("pyvenv.cfg").is_file())
        .map(|folder| ("VIRTUAL_ENV", folder.as_os_str()));
    let run = tool::run(&program, arguments, scratch.path(), environment.as_slice()).await?;
    if !run.status.success() {
        let told = message_of(&String::from_utf8_lossy(&run.stderr), &folders);
        return Err(tool::refused(&project.name, &told).into());
    }
    let module = tokio::fs::read(&component)
        .await
        .context("componentize-py wrote no component")?;
    Ok(Compiled {
        name: project.name,
        module: module.into(),
    })
}

fn arguments(wit: &Path, folders: &[PathBuf], component: &Path) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["-q".into(), "-d".into(), wit.into()];
    arguments.extend(["-w", wit::WORLD, "componentize", ENTRY].map(OsString::from));
    for folder in folders {
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
        arguments.extend(["-p".into(), folder.into_os_string()]);
    }
    arguments.extend(["-o".into(), component.into()]);
    arguments
}

/// What Python said, out of all that the tool printed, without our own file in the first folder, and
/// with the folders by their names: the tool shows each by its number.
fn message_of(printed: &str, folders: &[PathBuf]) -> String {
    const BEGIN: &str = "Traceback (most recent call last):";
    // The tool's own traceback comes first, and what it adds comes last.
    let from = printed.rfind(BEGIN).unwrap_or(0);
    let end = printed[from..]
        .find("\nCaused by:")
        .map_or(printed.len(), |end| from + end);
    let mut told = printed[from..end].trim_end().to_owned();
    if let Some(begin) = told.find("  File \"/0/")
        && let Some(next) = told[begin + 1..].find("  File ")
    {
        told.replace_range(begin..begin + 1 + next, "");
    }
    for (number, folder) in folders.iter().enumerate() {
        let shown = folder.display();
        told = told.replace(&format!("\"/{number}/"), &format!("\"{shown}/"));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_python_said_is_shown_with_the_names_of_its_files() {
        let printed = "Traceback (most recent call last):\n  File \"/bin/componentize-py\", line \
                       8\nAssertionError: Traceback (most recent call last):\n  File \
                       \"/0/entry.py\", line 1, in <module>\n    import bad\n  File \
                       \"/1/bad.py\", line 3\nSyntaxError: invalid syntax\n\n\nCaused by:\n    \
                       SyntaxError\n\nStack backtrace:\n   0: anyhow\n";
        assert_eq!(
            message_of(printed, &["entry".into(), "bad/src".into()]),
            "Traceback (most recent call last):\n  File \"bad/src/bad.py\", line 3\nSyntaxError: \
             invalid syntax"
        );
        assert_eq!(message_of("no such option\n", &[]), "no such option");
    }

    #[test]
    fn project_says_what_is_wrong_with_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let read = |text: &str| {
            std::fs::write(folder.path().join("pyproject.toml"), text).expect("write");
            Project::read(folder.path()).map_err(|error| error.to_string())
        };
        for (text, message) in [
            ("[project", "is not sound"),
            ("", "names no project"),
            ("[project]\nname = \"a-b\"", "no Python module a_b"),
            (
                "[project]\nname = \"a\"\n[tool.foldstream]\nmodul = \"b\"",
                "unknown field `modul`",
            ),
            (
                "[project]\nname = \"a\"\n[tool.foldstream]\nkind = \"saga\"",
                "unknown variant `saga`, expected `projection` or `handler`",
            ),
        ] {
            let error = read(text).expect_err("is wrong");
            assert!(error.contains(message), "{text}: {error}");
        }
        std::fs::create_dir(folder.path().join("src")).expect("make src");
        std::fs::write(folder.path().join("src/a_b.py"), "").expect("write");
        let project = read("[project]\nname = \"a-b\"").expect("is sound");
        assert_eq!(
            (
                project.name.as_str(),
                project.module.as_str(),
                project.exports.world().as_str()
            ),
            ("a-b", "a_b", "projection")
        );
        let project = read(
            "[project]\nname = \"a-b\"\n[tool.foldstream]\nkind = \"handler\"\nmigrates = true",
        );
        let world = project.expect("is sound").exports.world();
        assert_eq!(world, "migrating-handler");
    }
}
