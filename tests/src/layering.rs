//! The rules of our own code that a compiler does not check: which file may name which crate and which layer, how long
//! files and functions may be. It reads text, formatted by rustfmt, and knows nothing of types.

use std::path::{Path, PathBuf};

/// Longest file, in lines.
const FILE_LINES_MAX: usize = 600;
/// Longest function, in lines.
const FUNCTION_LINES_MAX: usize = 70;

/// Who may name an outside crate: files of the host whose path begins with one of these.
const HOMES: &[(&str, &[&str])] = &[
    ("redb", &["state/", "log/"]),
    ("wasmtime", &["module/"]),
    ("wasmtime_wasi", &["module/"]),
    // What looks inside an upload runs in a process of its own.
    ("wasmparser", &["module/checker/"]),
    ("wit_component", &["module/checker/"]),
    ("wit_parser", &["module/checker/"]),
    ("wat", &["module/checker/"]),
    ("seccompiler", &["module/checker/"]),
    ("landlock", &["module/checker/"]),
    ("async_nats", &["source/jetstream/"]),
    ("prometheus", &["metrics.rs", "metrics/"]),
    ("axum", &["serve/"]),
    ("axum_server", &["serve/"]),
    ("tower_http", &["serve/"]),
    ("clap", &["cli/", "main.rs"]),
    ("anyhow", &["cli/", "main.rs"]),
];

/// What a layer may not name: files whose path begins with the first, paths that begin with the second.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("state/", &["module", "source", "log", "serve", "cli", "pipeline", "deployment", "host"]),
    ("log/", &["module", "state", "serve", "cli", "pipeline", "deployment", "host"]),
    ("source/", &["module", "state", "serve", "cli", "pipeline", "deployment", "host"]),
    ("module/", &["source", "log", "serve", "cli", "pipeline", "deployment", "host"]),
    ("pipeline", &["serve", "cli", "host"]),
    ("deployment", &["serve", "cli"]),
    ("host", &["serve", "cli"]),
    // Deployments are reached through their handles alone.
    (
        "serve/",
        &[
            "cli",
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
const CLI_FORBIDDEN: &[&str] = &["host", "deployment", "pipeline", "state", "log", "serve"];

/// A rule that a file breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The file, and where there is one the line.
    pub place: String,
    /// The rule.
    pub rule: String,
}

/// All violations in the repository.
pub fn check_repository(root: &Path) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in rust_files(root) {
        let text = std::fs::read_to_string(&file).expect("our own files can be read");
        let path = file.strip_prefix(root).expect("it was found there").to_string_lossy().into_owned();
        violations.extend(check_file(&path, &text));
    }
    violations
}

/// The violations of one file, given its path in the repository.
pub fn check_file(path: &str, text: &str) -> Vec<Violation> {
    let mut violations = lengths(path, text);
    if let Some(inner) = path.strip_prefix("host/src/") {
        for (line, name) in paths(text) {
            violations.extend(layers(inner, &name).map(|rule| Violation { place: format!("{path}:{line}"), rule }));
        }
    }
    violations
}

/// Our Rust files: everything that git would see, so nothing under `target` or hidden folders.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("our own folders can be read") {
        let entry = entry.expect("our own folders can be read");
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            if name != "target" && !name.to_string_lossy().starts_with('.') {
                files.extend(rust_files(&path));
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
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
    for (layer, forbidden) in FORBIDDEN {
        if file.starts_with(layer)
            && let Some(found) = forbidden.iter().find(|forbidden| begins(inner, forbidden))
        {
            return Some(format!("{layer} must not know {found}"));
        }
    }
    if file.starts_with("cli/") && !CLI_HOSTS.iter().any(|host| file.starts_with(host)) {
        let found = CLI_FORBIDDEN.iter().find(|forbidden| begins(inner, forbidden))?;
        return Some(format!("the command line is a client and must not know {found}"));
    }
    None
}

/// Every path of at least two segments with its line; groups in braces are taken apart.
fn paths(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let code = without_comment(line);
        if !code.trim_start().trim_start_matches("pub ").starts_with("use ") {
            found.extend(plain_paths(&code).into_iter().map(|path| (number + 1, path)));
            continue;
        }
        let mut whole = code.trim().to_owned();
        while !whole.ends_with(';') {
            let Some((_, next)) = lines.next() else { break };
            whole.push_str(without_comment(next).trim());
        }
        let tree = whole.trim_start_matches("pub ").trim_start_matches("use ").trim_end_matches(';');
        found.extend(expand("", tree).into_iter().map(|path| (number + 1, path)));
    }
    found
}

/// The paths of a `use` tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(prefix: &str, tree: &str) -> Vec<String> {
    let Some((head, rest)) = tree.split_once('{') else {
        return vec![format!("{prefix}{}", tree.split(" as ").next().unwrap_or(tree).trim())];
    };
    let prefix = format!("{prefix}{}", head.trim());
    let inner = rest.strip_suffix('}').unwrap_or(rest);
    let (mut depth, mut begin, mut found) = (0_i32, 0, Vec::new());
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
    let in_path = |character: char| character.is_alphanumeric() || character == '_' || character == ':';
    let words = code.split(|character| !in_path(character));
    words.filter(|word| word.contains("::")).map(|word| word.trim_matches(':').to_owned()).collect()
}

/// A line without its comment and without its string literals.
fn without_comment(line: &str) -> String {
    let mut code = String::with_capacity(line.len());
    let mut in_string = false;
    let mut previous = ' ';
    for (at, character) in line.char_indices() {
        if character == '"' && previous != '\\' && previous != '\'' {
            in_string = !in_string;
        } else if !in_string {
            if line[at..].starts_with("//") {
                break;
            }
            code.push(character);
        }
        previous = if previous == '\\' && character == '\\' { ' ' } else { character };
    }
    code
}

/// Files and functions that are too long.
fn lengths(path: &str, text: &str) -> Vec<Violation> {
    let lines: Vec<&str> = text.lines().collect();
    let mut violations = Vec::new();
    if lines.len() > FILE_LINES_MAX {
        let rule = format!("{} lines are more than {FILE_LINES_MAX}", lines.len());
        violations.push(Violation { place: path.to_owned(), rule });
    }
    for (first, line) in lines.iter().enumerate() {
        // What ends on the line on which it begins is short.
        let Some(name) = function_name(line).filter(|_| !line.ends_with('}')) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        // In formatted code a body ends where a brace stands at the indent of its function, which a macro may close too.
        let ends = |rest: &str| rest == "}" || rest.starts_with("})");
        let end = lines[first..].iter().position(|line| line.strip_prefix(indent).is_some_and(ends));
        let declaration = lines[first..].iter().position(|line| line.ends_with(';')).unwrap_or(usize::MAX);
        let opens = lines[first..].iter().position(|line| line.ends_with('{')).unwrap_or(usize::MAX);
        let Some(end) = end.filter(|_| opens < declaration) else { continue };
        if end + 1 > FUNCTION_LINES_MAX {
            let rule = format!("function {name} has {} lines, more than {FUNCTION_LINES_MAX}", end + 1);
            violations.push(Violation { place: format!("{path}:{}", first + 1), rule });
        }
    }
    violations
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
