//! The rules of our own code that a compiler does not check: which file may name which crate and
//! which layer, how long files and functions may be, which words names and prose do without. It
//! reads text, formatted by rustfmt, and knows nothing of types.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Longest file, in lines.
const FILE_LINES_MAX: usize = 1_000;
/// Longest function, in lines.
const FUNCTION_LINES_MAX: usize = 100;
/// A function with more lines is long: at most 1 in `LONG_FUNCTIONS_ONE_IN` may be.
const FUNCTION_LINES_LONG: usize = 70;
const LONG_FUNCTIONS_ONE_IN: usize = 100;

/// Who may name an outside crate: files of the host whose path begins with one of these.
const HOMES: &[(&str, &[&str])] = &[
    ("redb", &["state/", "log/", "storage.rs"]),
    ("wasmtime", &["module/"]),
    ("wasmtime_wasi", &["module/"]),
    // What looks inside an upload runs in a process of its own.
    ("wasmparser", &["module/checker/"]),
    ("wit_component", &["module/checker/"]),
    ("wit_parser", &["module/checker/"]),
    ("wat", &["module/checker/"]),
    ("seccompiler", &["module/checker/"]),
    ("landlock", &["module/checker/"]),
    ("jsonschema", &["schemas/"]),
    ("async_nats", &["source/jetstream/"]),
    ("prometheus", &["metrics/"]),
    ("axum", &["serve/"]),
    ("axum_server", &["serve/"]),
    ("tower_http", &["serve/"]),
    ("clap", &["cli/", "main.rs"]),
    ("anyhow", &["cli/", "main.rs"]),
];

/// The modules of the host, from the bottom up: each may name those in lines above its own, and no
/// others. A module that is new here finds its place by what it has to know.
const LAYERS: &[&[&str]] = &[
    &["data_path"],
    &[
        "actor",
        "advice",
        "atomic_file",
        "clock",
        "damage",
        "descriptors",
        "event",
        "failure",
        "key_text",
        "lanes",
        "names",
        "precedence",
        "room",
        "scope",
        "small_file",
        "spelling",
        "subject",
        "timestamp",
    ],
    &[
        "cloudevents",
        "effects",
        "memory",
        "newest",
        "panics",
        "position",
        "schemas",
        "settings",
        "storage",
        "timers",
        "usage",
    ],
    &["batch", "generate", "log", "state"],
    &[
        "audit",
        "data_dir",
        "integrity",
        "module",
        "progress",
        "sagas",
        "source",
    ],
    &["overview"],
    &["bundle", "metrics"],
    &["config", "entry", "firing", "outbox", "pipeline", "view"],
    &["access", "runner"],
    &["deployment", "scenario"],
    &["deployments"],
    &["history"],
    &["exceptions", "handlers"],
    &["rollout", "backup"],
    &["host"],
    // Its words are those of the modules above; see `API_USERS`.
    &["api"],
    &["conversion"],
    &["serve"],
    &["preflight"],
    &["cli"],
];

/// Who may name `api`, the JSON of the API, and why. All others answer with types of their own, which
/// `conversion` takes apart: a field of the API is not a field of the host, nor of its files.
const API_USERS: &[(&str, &str)] = &[
    ("cli", "it is a client of the API"),
    ("conversion", "it converts what the host knows to JSON"),
    ("serve", "it serves the API"),
];

/// What a module may not name although it is below: files whose path begins with the first, paths
/// that begin with the second.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("source/", &["module", "state"]),
    ("module/", &["log"]),
    // Deployments are reached through their handles alone.
    (
        "serve/",
        &[
            "pipeline",
            "source",
            "state::Store",
            "state::Writer",
            "state::Options",
            "module::Engine",
            "module::Instance",
            "module::Module",
            "module::Loaded",
        ],
    ),
];

/// Files of the command line that run a host in this very process; every other one is a client.
const CLI_HOSTS: &[&str] = &[
    "cli/commands/host/serve.rs",
    "cli/commands/project/dev.rs",
    "cli/commands/project/demo.rs",
    "cli/support/local_host.rs",
];
/// What a client of the command line may not name.
const CLI_FORBIDDEN: &[&str] = &[
    "host",
    "rollout",
    "exceptions",
    "handlers",
    "history",
    "deployments",
    "deployment",
    "runner",
    "pipeline",
    "state",
    "log",
    "serve",
];

/// Words that names do without, each with the plain one; names are compared in lower case, between
/// underscores.
const WORDS: &[(&str, &str)] = &[
    ("anew", "again"),
    ("are_told", "are_reported"),
    ("beside", "alongside"),
    ("go_on", "continue"),
    ("goes_on", "continues"),
    ("is_told", "is_reported"),
    ("what_serves", "active_generation"),
    ("whoever", "no_matter_who"),
];

/// Words that comments and documents do without, each with the plain one.
const PROSE: &[(&str, &str)] = &[
    ("anew", "again, or from scratch"),
    ("beside", "alongside"),
    ("goes on", "continues"),
    ("is told", "learns, or is asked"),
    ("so many", "this many, or how many"),
    ("what serves", "the active generation"),
    ("whoever", "a noun"),
];

/// A rule that a file breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The file, and the line if there is one.
    pub place: String,
    /// The rule.
    pub rule: String,
}

/// All violations in the repository; first of all, a circle of modules.
pub fn check_repository(root: &Path) -> Vec<Violation> {
    let (mut violations, mut uses) = (Vec::new(), Uses::new());
    let (mut all, mut long) = (0, Vec::new());
    for (path, text) in texts(root, &["md", "wit"]) {
        violations.extend(prose(&path, text.lines()));
    }
    for (path, text) in texts(root, &["rs"]) {
        violations.extend(check_file(&path, &text));
        for function in functions(&text) {
            all += 1;
            if function.lines > FUNCTION_LINES_LONG {
                long.push(format!("{path}:{}", function.first));
            }
        }
        for (module, used) in uses_of(&path, &text) {
            uses.entry(module).or_default().insert(used);
        }
    }
    violations.extend(too_many_long(all, &long));
    if let Some(circle) = circle(&uses) {
        let rule = format!("modules must not form a circle: {}", circle.join(" -> "));
        violations.insert(
            0,
            Violation {
                place: "host/src".to_owned(),
                rule,
            },
        );
    }
    violations
}

/// Our files with one of these extensions: their paths in the repository, and what they say.
pub(crate) fn texts(root: &Path, extensions: &[&str]) -> Vec<(String, String)> {
    let with_text = |file: PathBuf| {
        let text = std::fs::read_to_string(&file).expect("our own files can be read");
        let path = file.strip_prefix(root).expect("it was found there");
        (path.to_string_lossy().into_owned(), text)
    };
    let found = files(root, extensions).into_iter();
    found.map(with_text).collect()
}

/// Which modules of the host each of them names.
pub type Uses = BTreeMap<String, BTreeSet<String>>;

/// The modules that a file names, each with the module that the file is in.
fn uses_of(path: &str, text: &str) -> Vec<(String, String)> {
    let Some(module) = path.strip_prefix("host/src/").map(module_of) else {
        return Vec::new();
    };
    let named = paths(text).into_iter().filter_map(|(_, name)| {
        let name = name.strip_prefix("crate::")?;
        Some(name.split("::").next()?.to_owned())
    });
    // `crate` alone has constants and functions of no module.
    named
        .filter(|name| *name != module && level(name).is_some())
        .map(|name| (module.clone(), name))
        .collect()
}

/// A circle among modules, with its first one at the end again; none if there is none.
pub fn circle(uses: &Uses) -> Option<Vec<String>> {
    let mut free_of_circles = BTreeSet::new();
    uses.keys()
        .find_map(|module| circle_from(module, uses, &mut Vec::new(), &mut free_of_circles))
}

fn circle_from<'a>(
    module: &'a str,
    uses: &'a Uses,
    way: &mut Vec<&'a str>,
    free_of_circles: &mut BTreeSet<&'a str>,
) -> Option<Vec<String>> {
    // The way up to here comes back to this module: the circle is what lies between.
    if let Some(begin) = way.iter().position(|before| *before == module) {
        return Some(
            way[begin..]
                .iter()
                .chain([&module])
                .map(ToString::to_string)
                .collect(),
        );
    }
    // All that it leads to was looked at before, from another module.
    if free_of_circles.contains(module) {
        return None;
    }
    way.push(module);
    let found = uses
        .get(module)
        .into_iter()
        .flatten()
        .find_map(|used| circle_from(used, uses, way, free_of_circles));
    way.pop();
    // Only once all that it names was looked at.
    free_of_circles.insert(module);
    found
}

/// The module at the top of the host that a file is in, given its path in `host/src`.
fn module_of(file: &str) -> String {
    let first = file.split('/').next().unwrap_or(file);
    first.strip_suffix(".rs").unwrap_or(first).to_owned()
}

/// The index of a module's layer in [`LAYERS`], if it has one.
fn level(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The violations of one file, given its path in the repository.
pub fn check_file(path: &str, text: &str) -> Vec<Violation> {
    let mut violations = lengths(path, text);
    violations.extend(words(path, text));
    let comments = text.lines().map(|line| code_and_comment(line).1);
    violations.extend(prose(path, comments));
    if let Some(inner) = path.strip_prefix("host/src/") {
        let module = module_of(inner);
        // `lib` and `main` name every layer.
        if level(&module).is_none() && !["lib", "main"].contains(&module.as_str()) {
            let rule = format!(
                "module {module} is in no layer; give it its place in LAYERS of \
                 tests/src/layering.rs"
            );
            violations.push(Violation {
                place: path.to_owned(),
                rule,
            });
        }
        for (line, name) in paths(text) {
            violations.extend(layers(inner, &name).map(|rule| Violation {
                place: format!("{path}:{line}"),
                rule,
            }));
        }
    }
    violations
}

/// Our Rust files.
pub(crate) fn rust_files(folder: &Path) -> Vec<PathBuf> {
    files(folder, &["rs"])
}

/// Our files with one of these extensions: only what git would see, so nothing that was built or
/// installed, and no hidden folder.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("our own folders can be read") {
        let entry = entry.expect("our own folders can be read");
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            let is_hidden = name.to_string_lossy().starts_with('.');
            if name != "target" && name != "node_modules" && !is_hidden {
                found.extend(files(&path, extensions));
            }
        } else if path
            .extension()
            .is_some_and(|extension| extensions.iter().any(|wanted| extension == *wanted))
        {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The rule that a file breaks by naming a path, if it breaks one.
fn layers(file: &str, name: &str) -> Option<String> {
    let begins = |name: &str, with: &str| name == with || name.starts_with(&format!("{with}::"));
    for (outside, homes) in HOMES {
        if begins(name, outside) && !homes.iter().any(|home| file.starts_with(home)) {
            return Some(format!("{outside} belongs to {}", homes.join(", ")));
        }
    }
    let inner = name.strip_prefix("crate::")?;
    let (module, used) = (module_of(file), inner.split("::").next()?);
    if used == "api" && module != "api" && !API_USERS.iter().any(|(user, _)| *user == module) {
        return Some(format!(
            "{module} must not know api: answer with a type of its own, which conversion/ converts"
        ));
    }
    // Modules of one layer do not name each other either.
    if module != used
        && let Some((own, other)) = level(&module).zip(level(used))
        && other >= own
    {
        return Some(format!(
            "{module} must not know {used}, which is not below it"
        ));
    }
    for (layer, forbidden) in FORBIDDEN {
        if file.starts_with(layer)
            && let Some(found) = forbidden.iter().find(|forbidden| begins(inner, forbidden))
        {
            return Some(format!("{layer} must not know {found}"));
        }
    }
    // After the layers, so that a client breaks only the rule that is its own.
    if file.starts_with("cli/") && !CLI_HOSTS.iter().any(|host| file.starts_with(host)) {
        let found = CLI_FORBIDDEN
            .iter()
            .find(|forbidden| begins(inner, forbidden))?;
        return Some(format!(
            "the command line is a client and must not know {found}"
        ));
    }
    None
}

/// Every path of at least two segments with its line; groups in braces are taken apart.
fn paths(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let code = without_comment(line);
        // A `use` may go over several lines, and ends with a semicolon.
        if !is_use(&code) {
            found.extend(
                plain_paths(&code)
                    .into_iter()
                    .map(|path| (number + 1, path)),
            );
            continue;
        }
        let mut whole = code.trim().to_owned();
        while !whole.ends_with(';') {
            let Some((_, next)) = lines.next() else { break };
            whole.push_str(without_comment(next).trim());
        }
        let tree = without_visibility(&whole)
            .trim_start_matches("use ")
            .trim_end_matches(';');
        found.extend(expand("", tree).into_iter().map(|path| (number + 1, path)));
    }
    found
}

fn is_use(code: &str) -> bool {
    without_visibility(code).starts_with("use ")
}

/// A line without the `pub`, `pub(crate)` and so on that it begins with.
fn without_visibility(code: &str) -> &str {
    let code = code.trim_start();
    let Some(rest) = code.strip_prefix("pub") else {
        return code;
    };
    let rest = match rest.strip_prefix('(') {
        Some(inner) => inner.split_once(')').map_or(rest, |(_, rest)| rest),
        None => rest,
    };
    rest.trim_start()
}

/// The paths of a `use` tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(prefix: &str, tree: &str) -> Vec<String> {
    let Some((head, rest)) = tree.split_once('{') else {
        return vec![format!(
            "{prefix}{}",
            tree.split(" as ").next().unwrap_or(tree).trim()
        )];
    };
    let prefix = format!("{prefix}{}", head.trim());
    let inner = rest.strip_suffix('}').unwrap_or(rest);
    let (mut depth, mut begin, mut found) = (0_i32, 0, Vec::new());
    // The comma at the end closes the last part as well.
    for (at, character) in inner.char_indices().chain([(inner.len(), ',')]) {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = inner[begin..at].trim();
                if !part.is_empty() {
                    found.extend(expand(&prefix, part));
                }
                begin = at + 1;
            }
            _ => {}
        }
    }
    found
}

/// The paths in a line of code that is no `use`.
fn plain_paths(code: &str) -> Vec<String> {
    let in_path =
        |character: char| character.is_alphanumeric() || character == '_' || character == ':';
    let words = code.split(|character| !in_path(character));
    words
        .filter(|word| word.contains("::"))
        .map(|word| word.trim_matches(':').to_owned())
        .collect()
}

/// A line without its comment and without its string literals.
fn without_comment(line: &str) -> String {
    code_and_comment(line).0
}

/// A line without its comment and without its string literals, and the comment.
fn code_and_comment(line: &str) -> (String, &str) {
    let mut code = String::with_capacity(line.len());
    let mut in_string = false;
    let mut previous = ' ';
    for (at, character) in line.char_indices() {
        if character == '"' && previous != '\\' && previous != '\'' {
            in_string = !in_string;
        } else if !in_string {
            if line[at..].starts_with("//") {
                return (code, &line[at..]);
            }
            code.push(character);
        }
        // Two backslashes are one character: what follows them is not escaped.
        previous = if previous == '\\' && character == '\\' {
            ' '
        } else {
            character
        };
    }
    (code, "")
}

/// Prose with a word that it does without.
fn prose<'a>(path: &str, lines: impl Iterator<Item = &'a str>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (number, line) in lines.enumerate() {
        let letters = |character: char| {
            if character.is_alphabetic() {
                character
            } else {
                ' '
            }
        };
        let words: String = line.to_lowercase().chars().map(letters).collect();
        let apart = format!(
            " {} ",
            words.split_whitespace().collect::<Vec<_>>().join(" ")
        );
        let found = PROSE
            .iter()
            .filter(|(word, _)| apart.contains(&format!(" {word} ")));
        violations.extend(found.map(|(word, plain)| Violation {
            place: format!("{path}:{}", number + 1),
            rule: format!("it says {word}; say {plain}"),
        }));
    }
    violations
}

/// Names with a word that they do without.
fn words(path: &str, text: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = without_comment(line);
        let in_name = |character: char| character.is_alphanumeric() || character == '_';
        for name in code.split(|character| !in_name(character)) {
            let apart = format!("_{}_", name.to_lowercase());
            let found = WORDS
                .iter()
                .find(|(word, _)| apart.contains(&format!("_{word}_")));
            violations.extend(found.map(|(word, plain)| Violation {
                place: format!("{path}:{}", number + 1),
                rule: format!("{name} has the word {word}; say {plain}"),
            }));
        }
    }
    violations
}

/// Files and functions that are too long.
fn lengths(path: &str, text: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    let count = text.lines().count();
    if count > FILE_LINES_MAX {
        violations.push(Violation {
            place: path.to_owned(),
            rule: format!("{count} lines are more than {FILE_LINES_MAX}"),
        });
    }
    let long = functions(text)
        .into_iter()
        .filter(|function| function.lines > FUNCTION_LINES_MAX);
    violations.extend(long.map(|Function { name, first, lines }| Violation {
        place: format!("{path}:{first}"),
        rule: format!("function {name} has {lines} lines, more than {FUNCTION_LINES_MAX}"),
    }));
    violations
}

/// What is found if more functions are long than may be, of this many in all.
pub fn too_many_long(all: usize, long: &[String]) -> Option<Violation> {
    (long.len() * LONG_FUNCTIONS_ONE_IN > all).then(|| Violation {
        place: long.join(", "),
        rule: format!(
            "{} of {all} functions have more than {FUNCTION_LINES_LONG} lines, and 1 in \
             {LONG_FUNCTIONS_ONE_IN} may; split some",
            long.len()
        ),
    })
}

/// A function with a body that ends on a later line than it begins.
struct Function<'a> {
    name: &'a str,
    /// Its first line, from 1.
    first: usize,
    lines: usize,
}

/// The functions of a formatted file.
fn functions(text: &str) -> Vec<Function<'_>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        // What ends on the line on which it begins is short.
        let Some(name) = function_name(line).filter(|_| !line.ends_with('}')) else {
            continue;
        };
        let rest = &lines[first..];
        let indent = &line[..line.len() - line.trim_start().len()];
        // In formatted code a body ends with a brace at the indent of its function, which a macro
        // may close too.
        let ends = |rest: &str| rest == "}" || rest.starts_with("})");
        let end = rest
            .iter()
            .position(|line| line.strip_prefix(indent).is_some_and(ends));
        let place_of = |last: char| {
            let place = rest.iter().position(|line| line.ends_with(last));
            place.unwrap_or(usize::MAX)
        };
        if let Some(end) = end.filter(|_| place_of('{') < place_of(';')) {
            found.push(Function {
                name,
                first: first + 1,
                lines: end + 1,
            });
        }
    }
    found
}

/// The name of the function that a line begins, if it begins one.
fn function_name(line: &str) -> Option<&str> {
    let mut words = line.trim_start().split(' ');
    loop {
        let word = words.next()?;
        match word {
            "fn" => return words.next().and_then(|rest| rest.split(['(', '<']).next()),
            "const" | "async" | "unsafe" | "extern" | "\"C\"" => {}
            _ if word.starts_with("pub") => {}
            _ => return None,
        }
    }
}
