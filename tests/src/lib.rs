//! The harness: real servers, real modules, real files, each started and stopped by its own handle.
//!
//! Nothing here knows how the host works inside. It starts the `foldstream` program that was built
//! with it, talks to it through HTTP and the command line, and compares what it answers with
//! [`model`], the same folds in plain Rust.

pub mod arguments;
pub mod cli;
pub mod client;
pub mod dependencies;
pub mod events;
pub mod fuzz;
pub mod guests;
pub mod host;
pub mod hostile;
pub mod layering;
pub mod model;
pub mod nats;
pub mod orders;
pub mod process;
pub mod proxy;
pub mod reactor;
pub mod stage;
pub mod wait;

use std::path::{Path, PathBuf};

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package is in the repository")
}

/// The folder of what cargo built in this profile: two above the running test or bench.
pub fn built() -> PathBuf {
    let executable = std::env::current_exe().expect("a running program has a path");
    executable
        .ancestors()
        .nth(2)
        .expect("tests are in <profile>/deps")
        .to_path_buf()
}

/// The program under test.
///
/// # Panics
///
/// When it was not built.
pub fn foldstream() -> PathBuf {
    let path = built().join("foldstream");
    assert!(
        path.is_file(),
        "{} is missing; run `cargo build --workspace --bin foldstream`, or `make suite`",
        path.display()
    );
    path
}

/// A tool that the set-up put into `.cache/bin`, unless `variable` or PATH names another.
///
/// # Panics
///
/// When it is nowhere.
pub fn tool(name: &str, variable: &str) -> PathBuf {
    tool_of(name, name, variable)
}

/// The same for one that the set-up of `setup` brings under another name.
///
/// # Panics
///
/// When it is nowhere.
pub fn tool_of(setup: &str, name: &str, variable: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return PathBuf::from(path);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // What the user has comes first, and the tools of the set-up last.
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.push(root().join(".cache/bin"));
    let found = folders
        .into_iter()
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file());
    found.unwrap_or_else(|| {
        panic!("{name} is missing; run `sh tests/setup/{setup}.sh`, or set {variable}")
    })
}

/// A seed for what is drawn by chance: from FOLDSTREAM_TEST_SEED, else fresh. It is printed, so
/// that a failing test can be run again with it.
pub fn seed() -> u64 {
    let seed = match std::env::var("FOLDSTREAM_TEST_SEED") {
        Ok(text) => text.parse().expect("FOLDSTREAM_TEST_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    eprintln!("seed: FOLDSTREAM_TEST_SEED={seed}");
    seed
}
