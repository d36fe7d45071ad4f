//! Reads the configuration from its three origins, and reports every mistake in it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::{Table, Value};

use super::{Config, Key, Limits, LogOutput, Modules, Pipeline, REDACTED, Rollout, Serve, State};
use crate::settings::Kind;
use crate::small_file::read_regular;
use crate::source::SOURCE_KINDS;
use crate::spelling::nearest;

/// The file that is read if none is given and it exists.
pub const FILE_DEFAULT: &str = "foldstream.toml";

/// Prefix of the environment variables.
const ENVIRONMENT_PREFIX: &str = "FOLDSTREAM_";
/// Largest file, in bytes: far more than all keys with a thousand sources need.
const FILE_BYTES_MAX: u64 = 1 << 20;
const KIND: &str = "kind";
/// Longest duration. Much longer ones overflow the clocks of the system, and nobody needs them.
const DURATION_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The sections with a fixed set of keys, in the order of the struct.
pub(super) const SECTIONS: [(&str, &[Key]); 7] = [
    ("serve", Serve::KEYS),
    ("modules", Modules::KEYS),
    ("state", State::KEYS),
    ("pipeline", Pipeline::KEYS),
    ("rollout", Rollout::KEYS),
    ("limits", Limits::KEYS),
    ("log", LogOutput::KEYS),
];

/// A setting from the command line.
#[derive(Clone, Debug)]
pub struct Override {
    /// The flag that set it, for messages.
    pub flag: String,
    /// The key with its section, such as `serve.listen`.
    pub key: String,
    /// The value as text.
    pub value: String,
}

/// The origins of the configuration; later ones override earlier ones.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    /// The file; none if no file is read.
    pub file: Option<PathBuf>,
    /// The environment.
    pub environment: Vec<(String, String)>,
    /// The command line.
    pub overrides: Vec<Override>,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Its origin: file and line, environment variable or flag.
    pub origin: String,
    /// What is wrong, and what to do next.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.origin, self.message)
    }
}

/// All mistakes, so that they can be fixed at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// At least one.
    pub mistakes: Vec<Mistake>,
}

/// Longest message about a mistake, in bytes. It may quote a value, which can be as long as a whole
/// file.
const MESSAGE_BYTES_MAX: usize = 1_024;

impl Error {
    fn of(mut mistakes: Vec<Mistake>) -> Self {
        for mistake in &mut mistakes {
            mistake.message = shown(&mistake.message);
        }
        Self { mistakes }
    }
}

/// A message of limited length, without control characters. Its end says what to do, so the middle
/// is cut.
fn shown(message: &str) -> String {
    let plain = |text: &str| -> String {
        text.chars()
            .map(|c| {
                if c.is_control() {
                    c.escape_default().to_string()
                } else {
                    c.to_string()
                }
            })
            .collect()
    };
    if message.len() <= MESSAGE_BYTES_MAX {
        return plain(message);
    }
    // Both ends are kept: the first names the key, the last says what to do.
    let half = MESSAGE_BYTES_MAX / 2;
    let (begin, end) = (
        message.floor_char_boundary(half),
        message.ceil_char_boundary(message.len() - half),
    );
    format!(
        "{} … {} bytes … {}",
        plain(&message[..begin]),
        end - begin,
        plain(&message[end..])
    )
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(formatter, "{separator}{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// One key, with the value from one origin.
struct Assignment {
    origin: String,
    path: Vec<String>,
    value: Value,
}

/// Reads the configuration. It checks the types of values; [`Config::problems`] checks their
/// meaning.
pub fn load(origins: &Origins) -> Result<Config, Error> {
    let mut assignments = match &origins.file {
        Some(file) => read_file(file).map_err(|mistake| Error::of(vec![mistake]))?,
        None => Vec::new(),
    };
    // Type errors of one origin do not hide those of another.
    let mut mistakes = Vec::new();
    mistakes.extend(add_environment(&mut assignments, &origins.environment));
    add_overrides(&mut assignments, &origins.overrides);

    // From all origins first: what a source may have depends on its kind, wherever that is set.
    let kinds = source_kinds(&assignments);
    let mut merged = Table::new();
    for assignment in assignments {
        match check(&assignment, &kinds) {
            Ok(value) => insert(&mut merged, &assignment.path, value),
            Err(message) => mistakes.push(Mistake {
                origin: assignment.origin,
                message,
            }),
        }
    }
    // Only if all are right: a part of a configuration is none.
    if !mistakes.is_empty() {
        return Err(Error::of(mistakes));
    }
    // Each value was checked alone; what is left is what they are together.
    Config::deserialize(Value::Table(merged)).map_err(|error| {
        Error::of(vec![Mistake {
            origin: "configuration".to_owned(),
            message: error.message().to_owned(),
        }])
    })
}

fn read_file(file: &Path) -> Result<Vec<Assignment>, Mistake> {
    let name = file.display().to_string();
    let mistake = |message: String| Mistake {
        origin: name.clone(),
        message,
    };
    let unreadable = |error: std::io::Error| {
        mistake(format!(
            "cannot be read: {error}; `foldstream config template` prints a template"
        ))
    };
    // A running host reads it again, and must not wait for the writer of a pipe.
    let content = read_regular(file, FILE_BYTES_MAX).map_err(|error| match error.kind() {
        std::io::ErrorKind::FileTooLarge => mistake(format!(
            "has more than {FILE_BYTES_MAX} bytes; is this the right file?"
        )),
        _ => unreadable(error),
    })?;
    let text = String::from_utf8(content)
        .map_err(|_| mistake("is no UTF-8 text; is this the right file?".to_owned()))?;
    let line_of = |offset: usize| text[..offset.min(text.len())].matches('\n').count() + 1;
    let syntax = |error: &toml::de::Error| Mistake {
        origin: match error.span() {
            Some(span) => format!("{name}:{}", line_of(span.start)),
            None => name.clone(),
        },
        message: format!(
            "is not valid TOML: {}",
            error.message().trim_end().replace('\n', ", ")
        ),
    };
    let table: Table = text.parse().map_err(|error| syntax(&error))?;
    // Parsed a second time, with places: the first result has the values.
    let spanned = toml::de::DeTable::parse(&text).map_err(|error| syntax(&error))?;
    let mut lines = BTreeMap::new();
    collect_lines(spanned.get_ref(), &mut Vec::new(), &line_of, &mut lines);
    let mut assignments = Vec::new();
    // Keys have their line; a table without one is named by the file.
    flatten(table, &mut Vec::new(), &mut |path, value| {
        let origin = match lines.get(&path) {
            Some(line) => format!("{name}:{line}"),
            None => name.clone(),
        };
        assignments.push(Assignment {
            origin,
            path,
            value,
        });
    });
    Ok(assignments)
}

fn collect_lines(
    table: &toml::de::DeTable<'_>,
    path: &mut Vec<String>,
    line_of: &dyn Fn(usize) -> usize,
    lines: &mut BTreeMap<Vec<String>, usize>,
) {
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        lines.insert(path.clone(), line_of(key.span().start));
        if let Some(inner) = value.get_ref().as_table() {
            collect_lines(inner, path, line_of, lines);
        }
        path.pop();
    }
}

/// Whether a path names a section and not a key.
fn is_section(path: &[String]) -> bool {
    match path {
        [section] => section == "sources" || SECTIONS.iter().any(|(name, _)| name == section),
        [sources, _] => sources == "sources",
        _ => false,
    }
}

fn flatten(table: Table, path: &mut Vec<String>, found: &mut dyn FnMut(Vec<String>, Value)) {
    for (key, value) in table {
        path.push(key);
        match value {
            // A source without keys is still a source, which lacks its kind.
            Value::Table(inner) if is_section(path) && !(inner.is_empty() && path.len() == 2) => {
                flatten(inner, path, found);
            }
            other => found(path.clone(), other),
        }
        path.pop();
    }
}

/// Variables without a double underscore belong to other programs and to the client
/// (FOLDSTREAM_URL, and those that Kubernetes sets for a service named `foldstream`), except for
/// the one key outside all sections. Variables that lack only the second underscore of a key are
/// mistakes.
fn add_environment(
    assignments: &mut Vec<Assignment>,
    environment: &[(String, String)],
) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    let mut variables: Vec<&(String, String)> = environment.iter().collect();
    // In the order of names, because the environment has none.
    variables.sort();
    for (name, text) in variables {
        let Some(rest) = name.strip_prefix(ENVIRONMENT_PREFIX) else {
            continue;
        };
        if !rest.contains("__") && rest != "DATA_DIR" {
            mistakes.extend(likely_key(rest).map(|key| Mistake {
                origin: name.clone(),
                message: format!(
                    "would be ignored; write {ENVIRONMENT_PREFIX}{key}, with two underscores \
                     after each section"
                ),
            }));
            continue;
        }
        let mut path: Vec<String> = rest.split("__").map(str::to_lowercase).collect();
        rename_source(&mut path, assignments);
        let value = text_value(&path, text);
        assignments.push(Assignment {
            origin: name.clone(),
            path,
            value,
        });
    }
    mistakes
}

/// The correct name of a variable that lacks only the second underscore of one of our keys.
fn likely_key(rest: &str) -> Option<String> {
    let rest = rest.to_lowercase();
    let in_section = SECTIONS.iter().find_map(|(section, keys)| {
        let name = rest.strip_prefix(section)?.strip_prefix('_')?;
        find(keys, name).map(|key| format!("{section}__{}", key.name))
    });
    let in_source = || {
        let rest = rest.strip_prefix("sources_")?;
        let keys = SOURCE_KINDS
            .iter()
            .flat_map(|kind| kind.keys)
            .map(|key| key.name)
            .chain([KIND]);
        // The longest match, because `token_file` is not `file`.
        let fits = keys.filter_map(|key| Some((rest.strip_suffix(key)?.strip_suffix('_')?, key)));
        let (source, key) = fits
            .filter(|(source, _)| !source.is_empty())
            .max_by_key(|(_, key)| key.len())?;
        Some(format!("sources__{source}__{key}"))
    };
    in_section
        .or_else(in_source)
        .map(|name| name.to_uppercase())
}

/// The name of a variable can't contain the hyphen in the name of a source: an underscore
/// represents it.
fn rename_source(path: &mut [String], assignments: &[Assignment]) {
    let [sources, name, _] = path else { return };
    if sources != "sources" {
        return;
    }
    let known = assignments
        .iter()
        .filter(|known| known.path.len() > 1 && known.path[0] == "sources");
    let same = known
        .map(|known| &known.path[1])
        .find(|known| known.to_lowercase().replace('-', "_") == *name);
    if let Some(same) = same {
        *name = same.clone();
    }
}

fn add_overrides(assignments: &mut Vec<Assignment>, overrides: &[Override]) {
    // Last, so that they win.
    for setting in overrides {
        let path: Vec<String> = setting.key.split('.').map(str::to_owned).collect();
        let value = text_value(&path, &setting.value);
        assignments.push(Assignment {
            origin: setting.flag.clone(),
            path,
            value,
        });
    }
}

/// The value of a text, by the type of its key; keys of one name have one type in all kinds of
/// sources.
fn text_value(path: &[String], text: &str) -> Value {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let key = match path[..] {
        [name] => find(Config::KEYS, name),
        ["sources", _, name] => SOURCE_KINDS.iter().find_map(|kind| find(kind.keys, name)),
        [section, name] => section_keys(section).and_then(|keys| find(keys, name)),
        _ => None,
    };
    key.map_or(Kind::Text, |key| key.kind()).value_of(text)
}

fn find<'a>(keys: &'a [Key], name: &str) -> Option<&'a Key> {
    keys.iter().find(|key| key.name == name)
}

fn section_keys(section: &str) -> Option<&'static [Key]> {
    SECTIONS
        .iter()
        .find(|(name, _)| *name == section)
        .map(|(_, keys)| *keys)
}

fn source_kinds(assignments: &[Assignment]) -> BTreeMap<String, String> {
    // Later origins overwrite, as for every other key.
    let mut kinds = BTreeMap::new();
    for assignment in assignments {
        if let ([sources, name, key], Some(kind)) =
            (&assignment.path[..], assignment.value.as_str())
            && sources == "sources"
            && key == KIND
        {
            kinds.insert(name.clone(), kind.to_owned());
        }
    }
    kinds
}

fn check(assignment: &Assignment, kinds: &BTreeMap<String, String>) -> Result<Value, String> {
    let path: Vec<&str> = assignment.path.iter().map(String::as_str).collect();
    match path[..] {
        ["sources"] => Err(wrong_type(
            "sources",
            Kind::Section,
            &assignment.value.to_string(),
        )),
        ["sources", name] | ["sources", name, _] if !kinds.contains_key(name) => Err(format!(
            "source `{name}` has no kind; add `sources.{name}.kind` with {}",
            kind_names()
        )),
        ["sources", name, key] => check_source(assignment, name, key, &kinds[name]),
        [name] => match find(Config::KEYS, name) {
            Some(key) => check_value(&path, key, &assignment.value),
            None => Err(unknown(&path)),
        },
        [section, name] => match section_keys(section).and_then(|keys| find(keys, name)) {
            Some(key) => check_value(&path, key, &assignment.value),
            None => Err(unknown(&path)),
        },
        _ => Err(unknown(&path)),
    }
}

/// The kinds of sources, as a message lists them.
fn kind_names() -> String {
    let names: Vec<String> = SOURCE_KINDS
        .iter()
        .rev()
        .map(|kind| format!("\"{}\"", kind.name))
        .collect();
    names.join(" or ")
}

fn check_source(
    assignment: &Assignment,
    name: &str,
    key: &str,
    kind: &str,
) -> Result<Value, String> {
    let keys = match SOURCE_KINDS.iter().find(|known| known.name == kind) {
        None if key == KIND => {
            let names = kind_names();
            return Err(format!(
                "`sources.{name}.kind` must be {names}, not \"{kind}\""
            ));
        }
        // The kind is reported once; without it the keys can't be judged.
        None => return Ok(assignment.value.clone()),
        Some(_) if key == KIND => return Ok(assignment.value.clone()),
        Some(known) => known.keys,
    };
    if let Some(known) = find(keys, key) {
        return check_value(&["sources", name, key], known, &assignment.value);
    }
    if SOURCE_KINDS
        .iter()
        .any(|other| find(other.keys, key).is_some())
    {
        return Err(format!(
            "`sources.{name}.{key}` does not apply to a source of kind {kind}; remove it"
        ));
    }
    let hint = suggestion(key, keys.iter().map(|key| key.name)).map_or_else(
        || listing("such a source", keys),
        |near| format!("did you mean `sources.{name}.{near}`?"),
    );
    Err(format!("unknown key `sources.{name}.{key}`; {hint}"))
}

/// Checks one value by parsing a configuration that contains nothing else.
fn check_value(path: &[&str], key: &Key, value: &Value) -> Result<Value, String> {
    let mut alone = Table::new();
    let owned: Vec<String> = path.iter().map(|&part| part.to_owned()).collect();
    insert(&mut alone, &owned, value.clone());
    // With a kind that has this key, because a source without one cannot be parsed.
    if path[0] == "sources" {
        let kind = SOURCE_KINDS
            .iter()
            .find(|kind| find(kind.keys, key.name).is_some())
            .expect("the key was found in one of them");
        insert(
            &mut alone,
            &[owned[0].clone(), owned[1].clone(), KIND.to_owned()],
            Value::String(kind.name.to_owned()),
        );
    }
    // Parsed apart: a longer one is well-formed, and would only fail when it is used.
    if let (Kind::Duration, Some(text)) = (key.kind(), value.as_str())
        && humantime::parse_duration(text).is_ok_and(|duration| duration > DURATION_MAX)
    {
        return Err(format!(
            "`{}` is {value}, longer than 100 years; set a shorter time",
            path.join(".")
        ));
    }
    match Config::deserialize(Value::Table(alone)) {
        Ok(_) => Ok(value.clone()),
        // The parser's own message names a type of Rust.
        Err(_) => {
            let found = if key.is_secret() {
                REDACTED.to_owned()
            } else {
                value.to_string()
            };
            Err(wrong_type(&path.join("."), key.kind(), &found))
        }
    }
}

fn wrong_type(path: &str, kind: Kind, found: &str) -> String {
    format!("`{path}` must be {}, not {found}", kind.expected())
}

/// Keys of earlier versions, and what to do about them.
const REMOVED: [(&str, &str); 1] = [(
    "pipeline.catch_up_wait",
    "remove it: after a crash a deployment answers once it has caught up with its stream, and each \
     read waits for its own `timeout`",
)];

fn unknown(path: &[&str]) -> String {
    let shown = path.join(".");
    if let Some((_, advice)) = REMOVED.iter().find(|(key, _)| *key == shown) {
        return format!("unknown key `{shown}`; {advice}");
    }
    let name = path.last().copied().unwrap_or_default();
    // The nearest key of the same section, then the same name in another, then the section itself.
    let within = if path.len() == 2 {
        section_keys(path[0])
    } else {
        None
    };
    if let Some(keys) = within {
        if let Some(near) = suggestion(name, keys.iter().map(|key| key.name)) {
            return format!("unknown key `{shown}`; did you mean `{}.{near}`?", path[0]);
        }
        if let Some(elsewhere) = elsewhere(name) {
            return format!("unknown key `{shown}`; did you mean `{elsewhere}`?");
        }
        return format!(
            "unknown key `{shown}`; {}",
            listing(&format!("[{}]", path[0]), keys)
        );
    }
    if path.len() == 2
        && let Some(section) = suggestion(path[0], SECTIONS.iter().map(|(section, _)| *section))
    {
        return format!(
            "unknown section `{}` in `{shown}`; did you mean `{section}`?",
            path[0]
        );
    }
    match suggestion(name, Config::KEYS.iter().map(|key| key.name))
        .map(str::to_owned)
        .or_else(|| elsewhere(name))
    {
        Some(near) => format!("unknown key `{shown}`; did you mean `{near}`?"),
        None => format!("unknown key `{shown}`; `foldstream config template` lists all keys"),
    }
}

/// The key of the same name in another section.
fn elsewhere(name: &str) -> Option<String> {
    let normal = name.replace('-', "_");
    let mut sections = SECTIONS
        .iter()
        .filter(|(_, keys)| find(keys, &normal).is_some());
    let (section, _) = sections.next()?;
    Some(format!("{section}.{normal}"))
}

fn listing(of: &str, keys: &[Key]) -> String {
    let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
    format!("the keys of {of} are {}", names.join(", "))
}

fn suggestion<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    nearest(&name.replace('-', "_").to_lowercase(), candidates)
}

fn insert(table: &mut Table, path: &[String], value: Value) {
    let Some((last, sections)) = path.split_last() else {
        return;
    };
    let mut current = table;
    for section in sections {
        let next = current
            .entry(section.clone())
            .or_insert_with(|| Value::Table(Table::new()));
        // A section that is a value elsewhere was reported already.
        let Value::Table(inner) = next else { return };
        current = inner;
    }
    current.insert(last.clone(), value);
}
