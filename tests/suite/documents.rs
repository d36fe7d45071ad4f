//! What our documents tell people to type is what the command line takes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use foldstream_tests::host::Host;
use foldstream_tests::{cli, guests, root, wait};

/// All documents of the repository.
fn documents(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("our own folders can be read") {
        let path = entry.expect("our own folders can be read").path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
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

/// Languages of code blocks with commands.
const SHELLS: [&str; 3] = ["", "sh", "console"];

/// The commands of ours in the code blocks of a document, with continued lines joined.
fn commands(text: &str) -> Vec<Vec<String>> {
    let joined = text.replace("\\\n", " ");
    let (mut language, mut found) = (None, Vec::new());
    for line in joined.lines() {
        if let Some(fence) = line.trim_start().strip_prefix("```") {
            language = language.is_none().then_some(fence);
        } else if language.is_some_and(|language| SHELLS.contains(&language)) {
            let words = words(line.trim_start().trim_start_matches("$ "));
            if words
                .first()
                .is_some_and(|program| program == "foldstream" || program.ends_with("/foldstream"))
            {
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
    let text = "```sh\n$ foldstream query a b '{\"c\": 1}'  # why\nfoldstream scan a \\\n  --all \
                -o ndjson > file\nls\n```\nfoldstream nothing\n```go\n\"foldstream\"\n```\n";
    let found = commands(text);
    assert_eq!(
        found,
        [
            vec!["foldstream", "query", "a", "b", "{\"c\": 1}"],
            vec!["foldstream", "scan", "a", "--all", "-o", "ndjson"]
        ]
    );
    assert!(foldstream::cli::parse(["foldstream", "shwo"].map(OsString::from)).is_err());
}

/// Two deployments of `order-totals` that an event stopped, as docs/poison-events.md has them.
async fn poisoned() -> Host {
    let host = Host::start().await;
    let samples = root().join("examples/order-totals/events.ndjson");
    cli::on(&host, &["events", "import", &samples.display().to_string()]).expect(0);
    cli::on(
        &host,
        &["events", "append", "orders.ada.placed", "not JSON"],
    )
    .expect(0);
    cli::on(
        &host,
        &[
            "events",
            "append",
            "orders.ada.placed",
            r#"{"order":"999","total_cents":1}"#,
        ],
    )
    .expect(0);
    for name in ["order-totals", "orders-eu"] {
        host.client()
            .deploy(name, &guests::module("order-totals"))
            .await;
        let (_, failure) = host.client().failed(name).await;
        assert_eq!(failure.sequence, Some(333), "{failure:?}");
    }
    host
}

#[tokio::test]
async fn every_command_about_poison_events_does_what_it_says() {
    let host = poisoned().await;
    let text = std::fs::read_to_string(root().join("docs/poison-events.md"))
        .expect("our own files can be read");
    let mut said = Vec::new();
    for words in commands(&text) {
        let words: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        // The next step is that of a person, who looks what came of the one before.
        let typed = words.join(" ");
        let output = wait::until(&typed, async || {
            let output = cli::on(&host, &words);
            (output.code == 0).then_some(output)
        })
        .await;
        said.push((typed, output.stdout));
    }
    let of = |command: &str| {
        &said
            .iter()
            .find(|(typed, _)| typed.starts_with(command))
            .expect("it is shown")
            .1
    };
    assert!(
        of("show").contains("`foldstream resume order-totals --skip 333 --reason TEXT`"),
        "{said:?}"
    );
    assert!(of("events read").contains("not JSON"), "{said:?}");
    assert!(of("resume --all").contains("orders-eu"), "{said:?}");
    assert!(
        of("skips order-totals").contains("333       skipped  orders.ada.placed"),
        "{said:?}"
    );
    assert!(
        of("verify").contains("without 1 event that was skipped: 333"),
        "{said:?}"
    );
    assert!(
        of("audit").contains("test data from the shop system"),
        "{said:?}"
    );
    assert!(
        of("skips order-totals --remove 333").contains("withdrawn"),
        "{said:?}"
    );
    let built = host
        .client()
        .becomes("order-totals", 2, foldstream::api::GenerationStatus::Active)
        .await;
    assert_eq!(built.skipped, 1);
}

#[tokio::test]
async fn every_command_about_failures_does_what_it_says() {
    let host = Host::start().await;
    let samples = root().join("examples/order-totals/events.ndjson");
    cli::on(&host, &["events", "import", &samples.display().to_string()]).expect(0);
    for data in ["not JSON", r#"{"order":"999","total_cents":1}"#] {
        cli::on(&host, &["events", "append", "orders.ada.placed", data]).expect(0);
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::copy(
        guests::path("order-totals"),
        folder.path().join("order-totals.wasm"),
    )
    .expect("it is copied");
    let text = std::fs::read_to_string(root().join("docs/failures.md"))
        .expect("our own files can be read");
    let mut said = Vec::new();
    for words in commands(&text) {
        let typed = words[1..].join(" ");
        // Before it, everything is folded, as a person would see.
        if typed.starts_with("parked list") {
            host.client().reached("order-totals", 334).await;
        }
        let mut command = foldstream_tests::host::foldstream();
        command
            .args(&words[1..])
            .current_dir(folder.path())
            .env("FOLDSTREAM_URL", host.url());
        let output = cli::finish(&mut command, None);
        let fails_again = typed.contains("--dry-run");
        assert_eq!(output.code, i32::from(fails_again), "{typed}: {output:?}");
        said.push((typed, output.stdout + &output.stderr));
    }
    let of = |command: &str| {
        &said
            .iter()
            .find(|(typed, _)| typed.starts_with(command))
            .expect("it is shown")
            .1
    };
    assert!(
        of("parked list").contains("ada  2       333    rejected"),
        "{said:?}"
    );
    assert!(of("show").contains("2 events of 1 key"), "{said:?}");
    assert!(
        of("parked export")
            .contains("order-totals-333.bundle.json: 2 events, 5 entries of the state; rejected"),
        "{said:?}"
    );
    assert!(
        of("replay").contains("334 orders.ada.placed: applied")
            && of("replay").contains("reproduced"),
        "{said:?}"
    );
    assert!(of("parked retry").contains("would fail again"), "{said:?}");
    assert!(of("parked drop").contains("dropped 1 event"), "{said:?}");
    assert!(
        of("verify").contains("without 1 event that was skipped: 333"),
        "{said:?}"
    );
    assert!(of("audit").contains("ticket 4711"), "{said:?}");
}

/// What of a source a reader has to type: no comments, no tests, no blank lines.
fn essence(source: &str) -> Vec<String> {
    let code = source
        .split("#[cfg(test)]")
        .next()
        .expect("a split has a first part");
    let lines = code.lines().map(str::trim_end);
    lines
        .filter(|line| !line.is_empty() && !line.trim_start().starts_with("//"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_projection_in_the_readme_is_what_new_writes() {
    let read =
        |path: &str| std::fs::read_to_string(root().join(path)).expect("our own files can be read");
    let readme = read("README.md");
    let block = readme
        .split("```rust\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("it shows Rust");
    let starter = read("examples/starter/src/lib.rs");
    let named = starter
        .replace("Starter", "MyTotals")
        .replace("\"starter\"", "\"my-totals\"");
    assert_eq!(
        essence(block),
        essence(&named.replace("starter", "my_totals"))
    );
}

#[test]
fn files_that_contributors_are_pointed_to_are_there() {
    let is_path = |code: &&str| {
        let is_plain =
            |letter: char| letter.is_ascii_lowercase() || "0123456789_./-".contains(letter);
        code.contains('/') && !code.starts_with('/') && code.chars().all(is_plain)
    };
    for document in [
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "docs/internals/failures.md",
        "docs/internals/handlers.md",
        "docs/internals/lanes.md",
        "docs/internals/resources.md",
        "docs/internals/rollouts.md",
    ] {
        let text = std::fs::read_to_string(root().join(document)).expect("it can be read");
        let code = text.split('`').skip(1).step_by(2);
        let paths: Vec<&str> = code.filter(is_path).collect();
        assert!(paths.len() >= 5, "{document} names {paths:?}");
        for path in paths {
            let is_there =
                root().join(path).exists() || root().join("host/src").join(path).exists();
            assert!(is_there, "{document} names {path}");
        }
    }
}

/// The text of all Rust files of tests and host.
fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).expect("our own folders can be read") {
        let path = entry.expect("our own folders can be read").path();
        if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(path).expect("our own files can be read"));
        }
    }
}

/// Whether some sources define a function of this name, or give a macro the name and a number to
/// make one of it.
fn is_test(name: &str, text: &str) -> bool {
    let is_made = |line: &str| {
        let arguments = line
            .trim()
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix(' ')?.strip_suffix(';'));
        let number = arguments.and_then(|arguments| arguments.rsplit(' ').next());
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    text.contains(&format!("fn {name}(")) || text.lines().any(is_made)
}

#[test]
fn a_mention_of_a_name_is_no_test() {
    let text = "// shown_by_this_one in a comment\nfn another_one_of_them() {}\nmade! \
                {\n    made_by_a_macro_1 0;\n}";
    let found = [
        "shown_by_this_one",
        "another_one_of_them",
        "made_by_a_macro_1",
        "made_by_a_macro",
    ];
    assert_eq!(
        found.map(|name| is_test(name, text)),
        [false, true, true, false]
    );
}

#[test]
fn every_fault_names_tests_that_exist() {
    let page = std::fs::read_to_string(root().join("docs/what-happens-when.md"))
        .expect("our own files can be read");
    let mut text = String::new();
    for folder in ["tests", "host"] {
        sources(&root().join(folder), &mut text);
    }
    let is_name = |word: &&str| {
        word.matches('_').count() >= 3
            && word
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
    };
    let faults: Vec<&str> = page.split("\n### ").skip(1).collect();
    assert!(faults.len() > 10, "only {} faults were found", faults.len());
    for fault in faults {
        let title = fault.lines().next().unwrap_or_default();
        let names: Vec<&str> = fault
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(is_name)
            .collect();
        assert!(!names.is_empty(), "no test shows: {title}");
        for name in names {
            assert!(
                is_test(name, &text),
                "there is no test {name}, which is to show: {title}"
            );
        }
    }
}
