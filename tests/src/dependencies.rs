//! What our packages depend on, and whether they name it. A dependency that nobody names is
//! compiled, audited and updated for nothing.

use std::path::{Path, PathBuf};

use crate::layering::{Violation, rust_files};

/// Dependencies that are there although no file names them: manifests and names.
const KEPT: &[(&str, &str)] = &[
    // Those who begin with the starter derive the types of their events next.
    ("examples/starter/Cargo.toml", "serde"),
    // Its code is that of `reactor`.
    ("tests/guests/reactor-broken/Cargo.toml", "wit-bindgen"),
    ("tests/guests/reactor-fixed/Cargo.toml", "wit-bindgen"),
];

/// Dependencies of the packages of the repository that no file of the package names, and
/// dependencies of the workspace that no package takes.
pub fn unused(root: &Path) -> Vec<Violation> {
    let manifests = manifests(root);
    let read = |path: &Path| std::fs::read_to_string(path).expect("our own files can be read");
    let mut found = Vec::new();
    for manifest in &manifests {
        let folder = manifest.parent().expect("a manifest is in a folder");
        // A package within another package has a manifest of its own.
        let is_own = |file: &PathBuf| {
            let closest = file
                .ancestors()
                .skip(1)
                .find(|above| above.join("Cargo.toml").is_file());
            closest == Some(folder)
        };
        let code: Vec<String> = rust_files(folder)
            .into_iter()
            .filter(is_own)
            .map(|file| read(&file))
            .collect();
        let place = manifest
            .strip_prefix(root)
            .expect("it was found there")
            .to_string_lossy()
            .into_owned();
        found.extend(unused_in(&place, &read(manifest), &code));
    }
    let workspace = names(&read(&root.join("Cargo.toml")), |section| {
        section == "workspace.dependencies"
    });
    let taken: Vec<String> = manifests
        .iter()
        .flat_map(|manifest| names(&read(manifest), is_of_package))
        .collect();
    let nobodys = workspace.into_iter().filter(|name| !taken.contains(name));
    found.extend(nobodys.map(|name| Violation {
        place: "Cargo.toml".to_owned(),
        rule: format!("no package takes {name} of the workspace; remove it"),
    }));
    found
}

/// The dependencies in a manifest that no file of its package names.
pub fn unused_in(place: &str, manifest: &str, code: &[String]) -> Vec<Violation> {
    let is_named = |name: &String| {
        // As Rust spells the name of a crate.
        let name = name.replace('-', "_");
        code.iter()
            .flat_map(|text| text.lines())
            .any(|line| names_word(line, &name))
    };
    let unused = names(manifest, is_of_package)
        .into_iter()
        .filter(|name| !is_named(name));
    let unused = unused.filter(|name| !KEPT.contains(&(place, name)));
    let violation = |name: String| {
        let rule = format!("no file of this package names {name}; remove the dependency");
        Violation {
            place: place.to_owned(),
            rule,
        }
    };
    unused.map(violation).collect()
}

fn is_of_package(section: &str) -> bool {
    section.ends_with("dependencies") && section != "workspace.dependencies"
}

/// The keys in some sections of a manifest, as cargo and people write them: one on a line.
fn names(manifest: &str, is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut wanted = false;
    let mut names = Vec::new();
    for line in manifest.lines() {
        if let Some(section) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            wanted = is_wanted(section);
        } else if wanted
            && let Some(name) = line.split(['.', '=', ' ']).next()
            && !name.is_empty()
            && !name.starts_with('#')
        {
            names.push(name.to_owned());
        }
    }
    names
}

/// Whether a line has a word outside of its comment. Strings count: attributes name crates in
/// strings.
fn names_word(line: &str, word: &str) -> bool {
    let code = line.split("//").next().unwrap_or(line);
    code.split(|character: char| !character.is_alphanumeric() && character != '_')
        .any(|found| found == word)
}

/// The manifests of all packages in a folder.
fn manifests(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("our own folders can be read") {
        let path = entry.expect("our own folders can be read").path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(manifests(&path));
        } else if name == "Cargo.toml" {
            found.push(path);
        }
    }
    found.sort();
    found
}
