//! What the set-up takes from registries is pinned, and what could not be checked is said at the
//! end.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use foldstream_tests::root;
use serde_json::Value;

fn setup() -> PathBuf {
    root().join("tests/setup")
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files of the set-up with this ending.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("it is there").flatten();
    let paths = entries.map(|entry| entry.path());
    let found: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|found| found == ending))
        .collect();
    assert!(!found.is_empty(), "{}: no .{ending}", folder.display());
    found
}

/// What commands begin with that take something from somewhere.
const INSTALLERS: [&str; 11] = [
    "pip install",
    "npm ci ",
    "npm install",
    "npx ",
    "cargo install",
    "apt-get install",
    "apt-get download",
    "rustup target",
    "rustup toolchain",
    "curl ",
    "wget ",
];

/// The commands of a script that install something, without what they say when they fail.
fn installations(script: &str) -> Vec<String> {
    let joined = script.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim);
    let commands = lines
        .filter(|line| !line.starts_with(['#', '"']) && !line.starts_with("hint="))
        .map(|line| line.split("fail ").next().unwrap_or_default().to_owned());
    let installs = |command: &String| INSTALLERS.iter().any(|word| command.contains(word));
    commands.filter(installs).collect()
}

/// Whether a command can only install what somebody has looked at.
fn is_pinned(command: &str) -> bool {
    let has = |words: &[&str]| words.iter().all(|word| command.contains(word));
    // The package manager of the system checks signatures, and rustup the hashes of what is signed.
    has(&["-m pip install", "--require-hashes", "--no-deps"])
        || has(&["npm ci ", "--ignore-scripts"])
        || has(&["cargo install --locked", "--version \"=$"])
        || has(&["apt-get install"])
        || has(&["apt-get download"])
        || has(&["rustup target add"])
        || has(&["rustup toolchain install \"$wanted\""])
}

#[test]
fn what_the_set_up_installs_is_pinned_by_version_and_hash() {
    let mut found = Vec::new();
    for script in files(&setup(), "sh") {
        for command in installations(&text(&script)) {
            assert!(is_pinned(&command), "{}: {command}", script.display());
            found.push(command);
        }
    }
    for tool in ["pip", "npm", "cargo", "apt-get", "rustup"] {
        assert!(
            found.iter().any(|command| command.contains(tool)),
            "{tool} is found: {found:#?}"
        );
    }
    for wrong in ["pip install x", "npm install", "cargo install --locked x"] {
        let script = format!("quietly {wrong} || fail \"see above\"");
        let commands = installations(&script);
        assert!(commands.len() == 1 && !is_pinned(&commands[0]), "{wrong}");
    }
}

#[test]
fn lists_of_packages_have_a_version_and_hashes_for_each() {
    for list in files(&setup().join("requirements"), "txt") {
        let joined = text(&list).replace("\\\n", " ");
        let lines = joined.lines().filter(|line| !line.starts_with('#'));
        for line in lines.filter(|line| !line.is_empty()) {
            let hashes = line.matches("--hash=sha256:").count();
            let is_exact = line
                .split(' ')
                .next()
                .is_some_and(|name| name.contains("=="));
            assert!(is_exact && hashes > 0, "{}: {line}", list.display());
        }
    }
    let lock = root().join("guest-sdk/typescript/examples/starter/package-lock.json");
    let lock: Value = serde_json::from_str(&text(&lock)).expect("it is JSON");
    let packages = lock["packages"].as_object().expect("it has packages");
    assert!(packages.len() > 10);
    for (name, package) in packages.iter().filter(|(name, _)| !name.is_empty()) {
        let hash = package["integrity"].as_str().unwrap_or_default();
        assert!(hash.starts_with("sha512-"), "{name}: {package}");
    }
}

/// A copy of the set-up, with a check of dependencies that finds nothing.
fn copy_of_setup() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let scripts = folder.path().join("tests/setup");
    let tools = folder.path().join(".cache/bin");
    for new in [&scripts, &tools] {
        std::fs::create_dir_all(new).expect("our folder is writable");
    }
    for script in ["common.sh", "deny.sh"] {
        symlink(setup().join(script), scripts.join(script)).expect("our folder is writable");
    }
    for file in ["Makefile", "deny.toml"] {
        std::fs::copy(root().join(file), folder.path().join(file)).expect("it is there");
    }
    let tool = tools.join("cargo-deny");
    std::fs::write(&tool, "#!/bin/sh\n").expect("our folder is writable");
    std::fs::set_permissions(&tool, PermissionsExt::from_mode(0o755)).expect("it is ours");
    folder
}

fn check_in(folder: &Path, database: &Path, advisories: &str) -> (bool, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new("sh")
        .arg(folder.join("tests/setup/deny.sh"))
        .env("FOLDSTREAM_ADVISORY_DB", database)
        .env("FOLDSTREAM_ADVISORIES", advisories)
        .output()
        .expect("sh runs");
    let words = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
    (status.success(), words)
}

#[test]
fn advisories_that_could_not_be_checked_are_said_and_said_again_at_the_end() {
    let folder = copy_of_setup();
    let nowhere = folder.path().join("nowhere");
    let (is_fine, words) = check_in(folder.path(), &nowhere, "");
    let line = "advisories were NOT checked";
    assert!(is_fine && words.contains(line), "{words}");
    let (is_fine, words) = check_in(folder.path(), &nowhere, "required");
    assert!(!is_fine && words.contains(line), "{words}");
    // The last thing that `make test` does, as far as make knows.
    let plan = Command::new("make")
        .args(["--no-print-directory", "--dry-run", "test"])
        .current_dir(folder.path())
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .output()
        .expect("make runs");
    let plan = String::from_utf8_lossy(&plan.stdout).into_owned();
    let last = plan.lines().last().expect("it does something");
    let said = Command::new("sh")
        .args(["-c", last])
        .current_dir(folder.path())
        .output()
        .expect("sh runs");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(
        said.starts_with("deny: ") && said.contains(line),
        "{last}: {said}"
    );

    // Once they were checked, nothing is said any more.
    let database = folder.path().join("database");
    let made = Command::new("git")
        .args(["init", "--quiet"])
        .arg(&database)
        .status();
    assert!(made.expect("git runs").success());
    let (is_fine, words) = check_in(folder.path(), &database, "required");
    assert!(is_fine && !words.contains(line), "{words}");
    let notes = std::fs::read_dir(folder.path().join(".cache/not-checked"));
    assert_eq!(notes.expect("it was made").count(), 0);
}
