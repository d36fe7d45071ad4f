//! `foldstream generate`: types of a language, made of the schemas of events.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::api::Direction;
use crate::cli::Context;
use crate::cli::commands::deployments::deploy;
use crate::cli::commands::project::inspect;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::counted;
use crate::generate::{self, Formats, Generated, Inexpressible, Place, Target};
use crate::schemas::{self, EventSchema, FOLDER};
use crate::small_file::read_within;

/// Largest file that is compared, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Generate types for Rust, TypeScript, Python or Go from the schemas of events.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream generate --out src/events.rs
  foldstream generate order-totals/schemas --out src/events.ts
  foldstream generate order-totals.wasm --lang python
  foldstream generate --out events.go --package orders
  foldstream generate --out src/events.rs --check          # fail if the file is not up to date

The schemas are in a module, in a file, or in a folder as docs/contracts.md describes it. The language \
is that of --lang, or of the ending of --out: .rs, .ts, .py or .go. The types work with the SDK of \
the language, and the same schemas give the same file.

What no type can say is an error with its place in the schema; with --any it has the type of any \
JSON. Limits such as minLength are not part of a type.

It ends with 1 if --check finds a difference, with 3 if a file is missing, and with 4 if a schema or \
module is refused.")]
pub(crate) struct Args {
    /// The schemas: a folder, file or module.
    #[arg(default_value = FOLDER)]
    schemas: PathBuf,
    /// The language.
    #[arg(long, value_enum, required_unless_present = "out")]
    lang: Option<Lang>,
    /// The file to write; default: standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write nothing, and fail if the file is not what would be written.
    #[arg(long, requires = "out")]
    check: bool,
    /// Give what no type can say the type of any JSON.
    #[arg(long)]
    any: bool,
    /// Types of texts with the format date or date-time.
    #[arg(long, value_enum, default_value_t)]
    formats: FormatTypes,
    /// The package of a Go file.
    #[arg(long, default_value = "main", value_parser = package)]
    package: String,
}

/// A language of types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Lang {
    Rust,
    #[value(alias = "ts", alias = "javascript", alias = "js")]
    Typescript,
    Python,
    #[value(alias = "golang")]
    Go,
}

/// Types of texts with a format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum FormatTypes {
    /// The dates and times of the SDK, which begin in 1970.
    #[default]
    Sdk,
    /// Plain texts.
    Text,
}

/// What is printed if the code goes to a file, or as JSON.
#[derive(Serialize)]
struct Report {
    language: &'static str,
    /// The file; none if it was not written.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    /// The code, if there is no file.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    events: Vec<EventType>,
    /// Places with the type of any JSON.
    any: Vec<Loose>,
}

/// The type of an event.
#[derive(Serialize)]
struct EventType {
    event: String,
    version: u32,
    direction: Direction,
    #[serde(rename = "type")]
    kind: String,
}

/// A place with the type of any JSON.
#[derive(Serialize)]
struct Loose {
    event: String,
    pointer: String,
    reason: String,
}

/// Generates the types, and prints, writes or compares them.
pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let target = target(args)?;
    let schemas = read(&args.schemas)?;
    let inexpressible = if args.any {
        Inexpressible::AnyJson
    } else {
        Inexpressible::Refuse
    };
    let formats = match args.formats {
        FormatTypes::Sdk => Formats::Typed,
        FormatTypes::Text => Formats::Text,
    };
    let generated = generate::generate(&schemas, &target, inexpressible, formats);
    let generated = generated.map_err(|error| refused(&args.schemas, &error))?;
    for place in &generated.loose {
        let (event, at, reason) = (&place.event, place.shown(), &place.reason);
        let message = format!("{event} at {at}: {reason}, so it has the type of any JSON");
        context.output.warning(&message);
    }
    match &args.out {
        None => print(generated, &target, context),
        Some(out) if args.check => compare(out, &generated.code),
        Some(out) => {
            write(out, &generated.code)?;
            let report = report(generated, &target, Some(out));
            context.output.one(&report, |report| {
                let events = counted(report.events.len() as u64, "event");
                format!("{}: types of {events} in {}", out.display(), target.name())
            })?;
            Ok(())
        }
    }
}

fn target(args: &Args) -> anyhow::Result<Target> {
    let ending = args.out.as_deref().and_then(Path::extension);
    let meant = match ending.and_then(|ending| ending.to_str()) {
        Some("rs") => Some(Lang::Rust),
        Some("ts" | "mts") => Some(Lang::Typescript),
        Some("py") => Some(Lang::Python),
        Some("go") => Some(Lang::Go),
        _ => None,
    };
    let message = "the ending of --out says no language; name one with --lang";
    let lang = args.lang.or(meant);
    Ok(
        match lang.ok_or_else(|| Failure::new(Exit::Usage, message))? {
            Lang::Rust => Target::Rust,
            Lang::Typescript => Target::TypeScript,
            Lang::Python => Target::Python,
            Lang::Go => Target::Go {
                package: args.package.clone(),
            },
        },
    )
}

/// The schemas of a folder, file or module. A module is parsed in a process of its own.
fn read(path: &Path) -> anyhow::Result<Vec<EventSchema>> {
    if path.extension().is_some_and(|ending| ending == "wasm") && !path.is_dir() {
        return Ok(inspect::carried(deploy::read_module(path)?)?.to_vec());
    }
    if path.is_dir() {
        return Ok(schemas::of_folder(path)?);
    }
    Ok(vec![schemas::of_file(path)?])
}

fn refused(path: &Path, error: &generate::Error) -> Failure {
    let (exit, advice) = match error {
        generate::Error::Nothing => (
            Exit::NotFound,
            "; put one file per event into it, such as placed.json",
        ),
        _ => (Exit::Refused, ""),
    };
    Failure::new(exit, format!("{}: {error}{advice}", path.display()))
}

fn print(generated: Generated, target: &Target, context: &Context) -> anyhow::Result<()> {
    if context.output.format == crate::cli::support::output::Format::Table {
        context.output.raw(generated.code.as_bytes())?;
        return Ok(());
    }
    let report = report(generated, target, None);
    context.output.one(&report, |_| String::new())?;
    Ok(())
}

fn report(generated: Generated, target: &Target, out: Option<&Path>) -> Report {
    let Generated {
        code,
        events,
        loose,
    } = generated;
    let event = |(schema, kind): (EventSchema, String)| EventType {
        event: schema.event,
        version: schema.version,
        direction: schema.direction,
        kind,
    };
    let place = |place: Place| Loose {
        event: place.event,
        pointer: place.pointer,
        reason: place.reason,
    };
    Report {
        language: target.name(),
        file: out.map(|out| out.display().to_string()),
        code: out.is_none().then_some(code),
        events: events.into_iter().map(event).collect(),
        any: loose.into_iter().map(place).collect(),
    }
}

/// Replaces the file in one step: a compiler that watches it never sees half of it.
fn write(out: &Path, code: &str) -> anyhow::Result<()> {
    let failed = |error: io::Error| {
        let exit = match error.kind() {
            io::ErrorKind::NotFound => Exit::NotFound,
            _ => Exit::Failed,
        };
        Failure::new(exit, format!("cannot write {}: {error}", out.display()))
    };
    // The file stays as it is if nothing changed, so that nothing is compiled again.
    if current(out).is_some_and(|current| current == code.as_bytes()) {
        return Ok(());
    }
    // What is no plain file, such as /dev/stdout, is written as it is.
    if out.exists() && !out.is_file() {
        return Ok(std::fs::write(out, code).map_err(failed)?);
    }
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut file = tempfile::Builder::new()
        .prefix(".foldstream-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .map_err(failed)?;
    io::Write::write_all(&mut file, code.as_bytes()).map_err(failed)?;
    file.persist(out).map_err(|error| failed(error.error))?;
    Ok(())
}

fn current(out: &Path) -> Option<Vec<u8>> {
    let is_file = out.is_file();
    is_file.then(|| read_within(out, FILE_BYTES_MAX).ok())?
}

fn compare(out: &Path, code: &str) -> anyhow::Result<()> {
    let shown = out.display();
    let failed = |message: String| Failure::new(Exit::Failed, message);
    let again = "run the same command without --check";
    let written = match read_within(out, FILE_BYTES_MAX) {
        Ok(written) => written,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let message = format!("{shown} does not exist; {again}");
            return Err(Failure::new(Exit::NotFound, message).into());
        }
        Err(error) => return Err(failed(format!("cannot read {shown}: {error}")).into()),
    };
    let (found, wanted) = (lines(&written), lines(code.as_bytes()));
    if found.clone().eq(wanted.clone()) {
        return Ok(());
    }
    let line = 1 + found.zip(wanted).take_while(|(a, b)| a == b).count();
    let message = format!("{shown} is not up to date: line {line} differs; {again}");
    Err(failed(message).into())
}

/// The lines of a file, whose ends a checkout may have changed.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    let lines = text.split(|byte| *byte == b'\n');
    lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// The name of a package.
fn package(text: &str) -> Result<String, String> {
    const WORDS: &[&str] = &[
        "break",
        "case",
        "chan",
        "const",
        "continue",
        "default",
        "defer",
        "else",
        "fallthrough",
        "for",
        "func",
        "go",
        "goto",
        "if",
        "import",
        "interface",
        "map",
        "package",
        "range",
        "return",
        "select",
        "struct",
        "switch",
        "type",
        "var",
    ];
    let is_letter = |c: char| c.is_ascii_lowercase() || c == '_';
    let is_sound = text.starts_with(is_letter)
        && text.chars().all(|c| is_letter(c) || c.is_ascii_digit())
        && text != "_"
        && !WORDS.contains(&text);
    if is_sound {
        return Ok(text.to_owned());
    }
    Err("a package has lower-case letters, digits and underscores, and is no word of Go".to_owned())
}
