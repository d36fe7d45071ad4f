//! The rule on arguments of our functions: none is a `bool`, because a call does not say what it
//! means, and there are at most four. It reads text, and knows nothing of types. An `impl` of a
//! trait is left out: its signatures are those of the trait.

use std::path::Path;

use crate::layering::{Violation, texts};

/// Most arguments of a function, without `self`.
const ARGUMENTS_MAX: usize = 4;

/// Functions that may break the rule, by file and name, and why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "guest-sdk/rust/src/guest.rs",
        "query",
        "the canonical ABI passes texts and lists as pointer and length",
    ),
    (
        "guest-sdk/rust/src/lib.rs",
        "query",
        "the canonical ABI passes texts and lists as pointer and length",
    ),
    (
        "guest-sdk/rust/src/host.rs",
        "state_scan",
        "the canonical ABI takes records and variants apart",
    ),
    (
        "host/tests/guests/probe/src/lib.rs",
        "path_open",
        "the signature is that of WASI",
    ),
];

/// Files, and folders with a slash at the end, that do not keep the rule yet.
const TO_DO: &[&str] = &["tests/chaos/", "tests/src/proxy.rs"];

/// All violations in the repository, and entries of the lists above that no function needs.
pub fn check_arguments(root: &Path) -> Vec<Violation> {
    let begins = |path: &str, with: &str| match with.strip_suffix('/') {
        Some(_) => path.starts_with(with),
        None => path == with,
    };
    let mut violations = Vec::new();
    let mut is_needed = vec![false; EXCEPTIONS.len() + TO_DO.len()];
    for (path, text) in texts(root, &["rs"]) {
        for found in broken(&text) {
            let exception = EXCEPTIONS
                .iter()
                .position(|(file, name, _)| *file == path && *name == found.name);
            let to_do = TO_DO.iter().position(|place| begins(&path, place));
            match exception.or(to_do.map(|index| EXCEPTIONS.len() + index)) {
                Some(index) => is_needed[index] = true,
                None => violations.push(found.at(&path)),
            }
        }
    }
    let exceptions = EXCEPTIONS
        .iter()
        .map(|(file, name, _)| format!("{file}, {name}"));
    let named = exceptions.chain(TO_DO.iter().map(|place| (*place).to_owned()));
    for (place, _) in named.zip(is_needed).filter(|(_, is_needed)| !is_needed) {
        let rule = "it keeps the rule on arguments; take it off the lists of \
                    tests/src/arguments.rs"
            .to_owned();
        violations.push(Violation { place, rule });
    }
    violations
}

/// The functions of one file that break the rule, whatever is an exception.
pub fn check_text(path: &str, text: &str) -> Vec<Violation> {
    broken(text)
        .into_iter()
        .map(|found| found.at(path))
        .collect()
}

/// A function that breaks the rule.
struct Broken {
    name: String,
    /// Its line, from 1.
    line: usize,
    rule: String,
}

impl Broken {
    fn at(self, path: &str) -> Violation {
        Violation {
            place: format!("{path}:{}", self.line),
            rule: self.rule,
        }
    }
}

fn broken(text: &str) -> Vec<Broken> {
    let code = code_alone(text);
    let mut found = Vec::new();
    let mut line = 1;
    let mut counted = 0;
    for at in own_functions(&code) {
        line += code[counted..at].matches('\n').count();
        counted = at;
        let Some((name, arguments)) = signature(&code[at..]) else {
            continue;
        };
        let mut add = |rule: String| {
            found.push(Broken {
                name: name.to_owned(),
                line,
                rule,
            });
        };
        if arguments.len() > ARGUMENTS_MAX {
            let count = arguments.len();
            add(format!(
                "function {name} has {count} arguments, more than {ARGUMENTS_MAX}; give it a struct \
                 that means something"
            ));
        }
        for argument in arguments.iter().filter(|argument| has_bool(argument)) {
            let words: Vec<_> = argument.split_whitespace().collect();
            add(format!(
                "function {name} has a bool argument ({}); give it an enum",
                words.join(" ")
            ));
        }
    }
    found
}

/// Where functions are declared, apart from those of an `impl` of a trait.
fn own_functions(code: &str) -> Vec<usize> {
    let mut found = Vec::new();
    // The indent of the `impl` that surrounds a line, if it is of a trait.
    let mut of_trait: Option<&str> = None;
    let mut begin = 0;
    for line in code.split_inclusive('\n') {
        let rest = line.trim_start();
        let indent = &line[..line.len() - rest.len()];
        if let Some(outer) = of_trait {
            // In formatted code it ends with a brace at its own indent.
            if rest.starts_with('}') && indent == outer {
                of_trait = None;
            }
        } else if is_of_trait(rest, &code[begin + indent.len()..]) {
            of_trait = Some(indent);
        } else {
            found.extend(line.match_indices("fn ").filter_map(|(at, _)| {
                let before = line[..at].chars().next_back();
                before
                    .is_none_or(|before| !is_in_name(before))
                    .then_some(begin + at)
            }));
        }
        begin += line.len();
    }
    found
}

/// Whether a line begins the `impl` of a trait that has a body on further lines.
fn is_of_trait(line: &str, code: &str) -> bool {
    let line = line.strip_prefix("unsafe ").unwrap_or(line);
    let is_impl = line
        .strip_prefix("impl")
        .is_some_and(|rest| rest.starts_with([' ', '<', '\n']));
    if !is_impl {
        return false;
    }
    let head = code.split('{').next().unwrap_or(code);
    let body = &code[head.len()..];
    // `for<'a>` has no space.
    let names_trait = head.split_whitespace().any(|word| word == "for");
    names_trait && !body.starts_with("{}")
}

fn is_in_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// The name of a function and its arguments without `self`, given the code from its `fn`; none if
/// it is the type of a function.
fn signature(code: &str) -> Option<(&str, Vec<&str>)> {
    let rest = code.strip_prefix("fn ")?.trim_start();
    let end = rest.find(|character| !is_in_name(character))?;
    let (name, mut rest) = rest.split_at(end);
    if rest.starts_with('<') {
        rest = &rest[group(rest)?..];
    }
    let rest = rest.trim_start();
    if name.is_empty() || !rest.starts_with('(') {
        return None;
    }
    let inner = &rest[1..group(rest)? - 1];
    let is_self = |argument: &str| {
        let before_type = argument.split(':').next().unwrap_or(argument);
        before_type
            .split(|character| !is_in_name(character))
            .any(|word| word == "self")
    };
    let arguments = parts(inner).into_iter().map(without_attributes);
    Some((name, arguments.filter(|one| !is_self(one)).collect()))
}

fn without_attributes(argument: &str) -> &str {
    let mut rest = argument.trim();
    while let Some((_, after)) = rest
        .starts_with("#[")
        .then(|| rest.split_once(']'))
        .flatten()
    {
        rest = after.trim_start();
    }
    rest
}

/// How long the group is that begins with a bracket of some kind.
fn group(code: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut previous = ' ';
    for (at, character) in code.char_indices() {
        match character {
            '(' | '[' | '{' | '<' => depth += 1,
            // An arrow.
            '>' if previous == '-' || previous == '=' => {}
            ')' | ']' | '}' | '>' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
        previous = character;
    }
    None
}

/// What commas divide, outside of brackets.
fn parts(inner: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut begin = 0;
    let mut at = 0;
    while at < inner.len() {
        let rest = &inner[at..];
        if rest.starts_with(['(', '[', '{', '<']) {
            at += group(rest).unwrap_or(rest.len());
            continue;
        }
        if rest.starts_with(',') {
            found.push(&inner[begin..at]);
            begin = at + 1;
        }
        at += rest.chars().next().map_or(1, char::len_utf8);
    }
    found.push(&inner[begin..]);
    found.retain(|part| !part.trim().is_empty());
    found
}

/// Whether an argument is a `bool`: alone, optional, in a slice, or in a tuple. The value of a
/// channel or the result of another function is no choice of the caller.
fn has_bool(argument: &str) -> bool {
    let Some((_, of_type)) = argument.split_once(':') else {
        return false;
    };
    let mut rest = of_type.trim();
    loop {
        let end = rest
            .find(|character| !is_in_name(character))
            .unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        match word {
            "bool" => return true,
            // What it gets and returns is up to the function that is passed.
            "Fn" | "FnMut" | "FnOnce" | "fn" => return false,
            _ => {}
        }
        // Only what is optional is still the value itself.
        rest = match after.chars().next() {
            Some('<') if word != "Option" => &after[group(after).unwrap_or(after.len())..],
            Some(next) => &after[next.len_utf8()..],
            None => return false,
        };
    }
}

/// The code with spaces in place of comments, texts and characters, and with the same lines.
fn code_alone(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let before = code.chars().next_back();
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            '"' => quoted(rest),
            'r' if !before.is_some_and(|before| is_in_name(before) && before != 'b') => raw(rest),
            '\'' => character(rest),
            _ => 0,
        };
        if length == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (left_out, after) = rest.split_at(length);
        code.extend(
            left_out
                .chars()
                .map(|one| if one == '\n' { '\n' } else { ' ' }),
        );
        rest = after;
    }
    code
}

/// How long the text is that code begins with.
fn quoted(code: &str) -> usize {
    let mut is_escaped = false;
    for (at, character) in code.char_indices().skip(1) {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// How long the raw text is that code begins with; 0 if it begins with none.
fn raw(code: &str) -> usize {
    let after = &code[1..];
    let hashes = after.len() - after.trim_start_matches('#').len();
    if !after[hashes..].starts_with('"') {
        return 0;
    }
    let begin = 1 + hashes + 1;
    let end = format!("\"{}", "#".repeat(hashes));
    let inner = code[begin..].find(&end);
    inner.map_or(code.len(), |inner| begin + inner + end.len())
}

/// How long the literal of a character is that code begins with; 0 if it is a lifetime.
fn character(code: &str) -> usize {
    let mut characters = code.char_indices().skip(1);
    match characters.next() {
        Some((_, '\\')) => {
            // What follows the backslash may be a quote itself.
            let from = characters
                .next()
                .map_or(code.len(), |(at, one)| at + one.len_utf8());
            code[from..]
                .find('\'')
                .map_or(code.len(), |end| from + end + 1)
        }
        Some(_) => match characters.next() {
            Some((at, '\'')) => at + 1,
            _ => 0,
        },
        None => 0,
    }
}
