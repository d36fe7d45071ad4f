//! `foldstream new`: creates a crate that builds with nothing but cargo.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use include_dir::{Dir, include_dir};

use crate::cli::Context;
use crate::cli::support::exit::{Exit, Failure};

/// The starter example, which is built and tested in `examples/`.
static STARTER_SOURCES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../examples/starter/src");
const STARTER_FILES: [(&str, &str); 3] = [
    (
        "Cargo.toml",
        include_str!("../../../../../examples/starter/Cargo.toml"),
    ),
    (
        "README.md",
        include_str!("../../../../../examples/starter/README.md"),
    ),
    (
        "events.ndjson",
        include_str!("../../../../../examples/starter/events.ndjson"),
    ),
];
/// The SDK is included so that the crate builds without a registry of ours. Only the files that a
/// build reads are embedded: the whole folder might contain build output.
static SDK_SOURCES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../guest-sdk/rust/src");
const SDK_FILES: [(&str, &str); 2] = [
    (
        "Cargo.toml",
        include_str!("../../../../../guest-sdk/rust/Cargo.toml"),
    ),
    // The SDK includes this file as its documentation.
    (
        "README.md",
        include_str!("../../../../../guest-sdk/rust/README.md"),
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
/// Longest name; it is also the name of the deployment.
const NAME_BYTES_MAX: usize = 63;
/// Names reserved by the compiler or by cargo.
const RESERVED: &str = "\
    as async await become box break const continue crate do dyn else enum extern false final \
    fn for gen if impl in let loop macro match mod move mut override priv pub ref return \
    self static struct super trait true try type typeof unsafe unsized use virtual where \
    while yield alloc core foldstream-sdk proc-macro serde std test";

/// Start a projection in Rust: a crate with a test, sample events, and the SDK.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream new order-totals
  foldstream new order-totals && cd order-totals && foldstream dev")]
pub(crate) struct Args {
    /// Name of the crate, or the path of the folder to create, which ends with the name.
    name: PathBuf,
}

/// Writes the crate and prints the next steps.
pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let folder = &args.name;
    let name = Name::parse(&folder.file_name().unwrap_or_default().to_string_lossy())?;
    if folder.exists() {
        let message = format!(
            "{} exists already; choose another name, or remove it first",
            folder.display()
        );
        return Err(Failure::new(Exit::Refused, message).into());
    }
    for (path, contents) in files(&name) {
        write(&folder.join(path), &contents)?;
    }
    context.output.line(&format!(
        "Created {folder}, a projection named {name}. Next:\n  \
         cd {folder}\n  \
         cargo test           test it without WebAssembly\n  \
         foldstream dev       run it on a log of its own, and rebuild it after each change\n  \
         foldstream build     build {name}.wasm for `foldstream deploy`",
        folder = folder.display(),
        name = name.kebab,
    ))?;
    Ok(())
}

fn write(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    let unwritable = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(unwritable)?;
    }
    std::fs::write(path, contents).with_context(unwritable)
}

/// Every file of a new crate, by its path.
fn files(name: &Name) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = vec![(PathBuf::from(".gitignore"), IGNORED.as_bytes().to_vec())];
    for (path, text) in STARTER_FILES {
        let mut text = name.in_text(text);
        if path == "Cargo.toml" {
            text = text.replace(SDK_PATH_EXAMPLE, SDK_PATH) + WORKSPACE;
        }
        files.push((PathBuf::from(path), text.into_bytes()));
    }
    each_file(&STARTER_SOURCES, &mut |path, contents| {
        let text = std::str::from_utf8(contents).expect("sources are text");
        files.push((Path::new("src").join(path), name.in_code(text).into_bytes()));
    });
    let sdk = Path::new(SDK_PATH);
    for (path, text) in SDK_FILES {
        files.push((sdk.join(path), text.as_bytes().to_vec()));
    }
    each_file(&SDK_SOURCES, &mut |path, contents| {
        files.push((sdk.join("src").join(path), contents.to_vec()));
    });
    files
}

fn each_file(folder: &Dir<'_>, found: &mut dyn FnMut(&Path, &[u8])) {
    for file in folder.files() {
        found(file.path(), file.contents());
    }
    for inner in folder.dirs() {
        each_file(inner, found);
    }
}

/// A name in its three spellings.
#[derive(Debug, PartialEq, Eq)]
struct Name {
    /// `order-totals`: the crate and the deployment.
    kebab: String,
    /// `order_totals`: variables.
    snake: String,
    /// `OrderTotals`: the type.
    pascal: String,
}

impl Name {
    fn parse(typed: &str) -> Result<Self, Failure> {
        let kebab = typed.replace('_', "-");
        let sound = kebab.len() <= NAME_BYTES_MAX
            && kebab.starts_with(|c: char| c.is_ascii_lowercase())
            && kebab
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && kebab.split('-').all(|part| !part.is_empty());
        if !sound {
            let message = format!(
                "`{typed}` cannot be the name of a crate; use 1 to {NAME_BYTES_MAX} lower-case \
                 letters, digits and single hyphens, a letter first"
            );
            return Err(Failure::new(Exit::Usage, message));
        }
        if RESERVED.split(" ").any(|word| word == kebab) {
            let message =
                format!("`{typed}` is reserved in Rust; choose another name, such as {kebab}-view");
            return Err(Failure::new(Exit::Usage, message));
        }
        let capital = |part: &str| part[..1].to_ascii_uppercase() + &part[1..];
        Ok(Self {
            snake: kebab.replace('-', "_"),
            pascal: kebab.split('-').map(capital).collect(),
            kebab,
        })
    }

    fn in_text(&self, template: &str) -> String {
        template
            .replace("Starter", &self.pascal)
            .replace("starter", &self.kebab)
    }

    /// In code, a quoted name is the module's name; anything else is a variable.
    fn in_code(&self, template: &str) -> String {
        let quoted = template.replace("\"starter\"", &format!("\"{}\"", self.kebab));
        quoted
            .replace("Starter", &self.pascal)
            .replace("starter", &self.snake)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_in_three_ways() {
        let name = Name::parse("order-totals").expect("is sound");
        assert_eq!(
            (
                name.kebab.as_str(),
                name.snake.as_str(),
                name.pascal.as_str()
            ),
            ("order-totals", "order_totals", "OrderTotals")
        );
        assert_eq!(Name::parse("order_totals").expect("is sound"), name);
        for wrong in [
            "",
            "Order",
            "1st",
            "a--b",
            "a-",
            "-a",
            "a b",
            "ä",
            &"a".repeat(64),
            "self",
            "test",
        ] {
            assert_eq!(
                Name::parse(wrong).expect_err("is unsound").exit,
                Exit::Usage,
                "{wrong}"
            );
        }
    }

    #[test]
    fn nothing_of_the_starter_remains_in_a_new_crate() {
        let name = Name::parse("order-totals").expect("is sound");
        let files = files(&name);
        for wanted in [
            "Cargo.toml",
            "README.md",
            "events.ndjson",
            "src/lib.rs",
            ".gitignore",
            "vendor/foldstream-sdk/Cargo.toml",
            "vendor/foldstream-sdk/README.md",
            "vendor/foldstream-sdk/src/lib.rs",
        ] {
            assert!(
                files.iter().any(|(path, _)| path == Path::new(wanted)),
                "{wanted}"
            );
        }
        for (path, contents) in files.iter().filter(|(path, _)| !path.starts_with("vendor")) {
            let text = String::from_utf8(contents.clone()).expect("is text");
            assert!(
                !text.to_lowercase().contains("starter"),
                "{}: {text}",
                path.display()
            );
            assert!(!text.contains("../../guest-sdk"), "{}", path.display());
        }
        let manifest = &files
            .iter()
            .find(|(path, _)| path == Path::new("Cargo.toml"))
            .expect("checked above")
            .1;
        let manifest: toml::Table = String::from_utf8_lossy(manifest).parse().expect("is TOML");
        assert_eq!(manifest["package"]["name"].as_str(), Some("order-totals"));
        assert_eq!(
            manifest["dependencies"]["foldstream-sdk"]["path"].as_str(),
            Some(SDK_PATH)
        );
    }
}
