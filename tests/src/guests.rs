//! Guests: built once a run with `foldstream build`, as any user builds them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

/// The bytes of a module under `tests/guests` or `examples`.
///
/// # Panics
///
/// When it cannot be built.
pub fn module(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).expect("what was just built can be read")
}

/// The file of a module under `tests/guests` or `examples`.
///
/// # Panics
///
/// When it cannot be built.
pub fn path(name: &str) -> PathBuf {
    static BUILT: OnceLock<Mutex<HashMap<String, PathBuf>>> = OnceLock::new();
    // Held while building: cargo would lock its folder anyway. A failed build fails every test that
    // needs the module.
    let mut built = BUILT
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(path) = built.get(name) {
        return path.clone();
    }
    let path = build(&folder(name), name);
    built.insert(name.to_owned(), path.clone());
    path
}

/// The folder of a guest.
pub fn folder(name: &str) -> PathBuf {
    let places = [
        crate::root().join("tests/guests"),
        crate::root().join("examples"),
    ];
    let found = places
        .iter()
        .map(|place| place.join(name))
        .find(|folder| folder.is_dir());
    found.unwrap_or_else(|| panic!("there is no guest {name} under tests/guests or examples"))
}

fn build(folder: &Path, name: &str) -> PathBuf {
    let out = crate::built().join("guests").join(format!("{name}.wasm"));
    std::fs::create_dir_all(out.parent().expect("it has one"))
        .expect("the target folder can be written");
    let output = crate::cli::finish(
        crate::host::foldstream()
            .arg("build")
            .arg(folder)
            .arg("--out")
            .arg(&out),
        None,
    );
    assert_eq!(
        output.code, 0,
        "guest {name} does not build:\n{}{}",
        output.stdout, output.stderr
    );
    out
}

/// Another release of a module: it does the same, and has another digest.
///
/// # Panics
///
/// When the module cannot be built.
pub fn release(name: &str, number: u8) -> Vec<u8> {
    // Appended to the end: custom sections may be anywhere.
    let mut module = module(name);
    // A custom section, which is 0, its size, and a name with its length: no engine looks into it.
    module.extend([0, 9, 7]);
    module.extend(*b"release");
    module.push(number);
    module
}
