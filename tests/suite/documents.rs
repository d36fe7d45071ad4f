//! What our documents tell people to type is what the command line takes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use foldstream_tests::root;

/// All documents of the repository.
fn documents(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("our own folders can be read") {
        let path = entry.expect("our own folders can be read").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(documents(&path));
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
    found
}

/// The words of a line as a shell would see them, up to a comment, a pipe or a redirection.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut begun) = (Vec::new(), String::new(), None, false);
    for character in line.chars() {
        match (quote, character) {
            (Some(open), close) if open == close => quote = None,
            (Some(_), inner) => word.push(inner),
            (None, '\'' | '"') => (quote, begun) = (Some(character), true),
            (None, '#') if word.is_empty() && !begun => break,
            (None, '|' | '>' | '&' | ';') => break,
            (None, ' ') => {
                if begun || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            (None, other) => word.push(other),
        }
    }
    if begun || !word.is_empty() {
        words.push(word);
    }
    words
}

/// The commands of ours in the code blocks of a document, with lines that go on put together.
fn commands(text: &str) -> Vec<Vec<String>> {
    let joined = text.replace("\\\n", " ");
    let (mut in_code, mut found) = (false, Vec::new());
    for line in joined.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if in_code {
            let words = words(line.trim_start().trim_start_matches("$ "));
            if words.first().is_some_and(|program| program == "foldstream" || program.ends_with("/foldstream")) {
                found.push(words);
            }
        }
    }
    found
}

#[test]
fn every_command_in_a_document_is_one_that_the_program_takes() {
    let mut checked = 0;
    for document in documents(root()) {
        let text = std::fs::read_to_string(&document).expect("our own files can be read");
        for words in commands(&text) {
            let arguments = words.iter().map(OsString::from);
            if let Err(error) = foldstream::cli::parse(arguments)
                && error.use_stderr()
            {
                panic!("{}: {}\n{error}", document.display(), words.join(" "));
            }
            checked += 1;
        }
    }
    assert!(checked > 5, "only {checked} commands were found");
}

#[test]
fn commands_are_found_and_wrong_ones_refused() {
    let text = "```sh\n$ foldstream query a b '{\"c\": 1}'  # why\nfoldstream scan a \\\n  --all -o ndjson > file\nls\n```\nfoldstream nothing\n";
    let found = commands(text);
    assert_eq!(
        found,
        [vec!["foldstream", "query", "a", "b", "{\"c\": 1}"], vec!["foldstream", "scan", "a", "--all", "-o", "ndjson"]]
    );
    assert!(foldstream::cli::parse(["foldstream", "shwo"].map(OsString::from)).is_err());
}

/// What of a source a reader has to type: no comments, no tests, no blank lines.
fn essence(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]").next().expect("a split has a first part");
    let lines = code.lines().map(str::trim_end);
    lines.filter(|line| !line.is_empty() && !line.trim_start().starts_with("//")).map(str::to_owned).collect()
}

#[test]
fn the_projection_in_the_readme_is_what_new_writes() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).expect("our own files can be read");
    let readme = read("README.md");
    let block = readme.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next()).expect("it shows Rust");
    let starter = read("examples/starter/src/lib.rs");
    let named = starter.replace("Starter", "MyTotals").replace("\"starter\"", "\"my-totals\"");
    assert_eq!(essence(block), essence(&named.replace("starter", "my_totals")));
}
