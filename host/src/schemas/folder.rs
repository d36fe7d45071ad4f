//! Schemas as files: `schemas/<type>.json`, `schemas/<type>.v2.json`, and the same below
//! `schemas/published/`.

use std::io;
use std::path::{Path, PathBuf};

use super::version::versioned;
use super::{Direction, Error, EventSchema, SCHEMA_BYTES_MAX, check, strict};
use crate::small_file::read_regular;

/// The folder of a project.
pub(crate) const FOLDER: &str = "schemas";
/// The folder in it of the events that the module publishes.
const PUBLISHED: &str = "published";
/// The ending of a file.
const ENDING: &str = ".json";

/// Why files are refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// A file or folder can't be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is no JSON.
    #[error("{} is no JSON: {source}", path.display())]
    NoJson {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Something else is in the folder.
    #[error(
        "{} does not belong there; a folder of schemas has files named after the type of an event, \
         such as placed.json and placed.v2.json, and a folder {PUBLISHED}",
        .0.display()
    )]
    Unexpected(PathBuf),
    /// A schema is not valid.
    #[error("{}: {source}", path.display())]
    Unsound {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: Error,
    },
}

/// All schemas in a folder, checked; none if there is no such folder.
pub(crate) fn of_folder(folder: &Path) -> Result<Vec<EventSchema>, FileError> {
    let mut schemas = Vec::new();
    read_folder(folder, Direction::Reads, &mut schemas)?;
    read_folder(&folder.join(PUBLISHED), Direction::Publishes, &mut schemas)?;
    check(&schemas).map_err(|source| FileError::Unsound {
        path: folder.to_owned(),
        source,
    })?;
    Ok(schemas)
}

/// The schema in a file, checked. It counts as one that is read.
pub(crate) fn of_file(path: &Path) -> Result<EventSchema, FileError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let schema = read_file(path, name.trim_end_matches(ENDING), Direction::Reads)?;
    check(std::slice::from_ref(&schema)).map_err(|source| FileError::Unsound {
        path: path.to_owned(),
        source,
    })?;
    Ok(schema)
}

fn read_folder(
    folder: &Path,
    direction: Direction,
    schemas: &mut Vec<EventSchema>,
) -> Result<(), FileError> {
    let unreadable = |source| FileError::Unreadable {
        path: folder.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(unreadable)?.path());
    }
    // The same module from the same files, whatever their order in the folder.
    paths.sort();
    for path in paths {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Err(FileError::Unexpected(path));
        };
        if path.is_dir() {
            if direction == Direction::Reads && name == PUBLISHED {
                continue;
            }
            // A misspelt `published` must not lose schemas in silence. Folders of other tools, such
            // as `__pycache__`, have none.
            if has_schemas(&path).map_err(unreadable)? {
                return Err(FileError::Unexpected(path));
            }
            continue;
        }
        // Notes and files of editors may lie next to schemas.
        if let Some(stem) = name.strip_suffix(ENDING).filter(|_| !name.starts_with('.')) {
            schemas.push(read_file(&path, stem, direction)?);
        }
    }
    Ok(())
}

/// Whether a folder has files that look like schemas.
fn has_schemas(folder: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(folder)? {
        if entry?.file_name().to_string_lossy().ends_with(ENDING) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read_file(path: &Path, stem: &str, direction: Direction) -> Result<EventSchema, FileError> {
    let content = read_regular(path, 2 * SCHEMA_BYTES_MAX as u64);
    let content = content.map_err(|source| FileError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let schema = strict::parse(&content).map_err(|source| FileError::NoJson {
        path: path.to_owned(),
        source,
    })?;
    let (event, version) = versioned(stem);
    Ok(EventSchema {
        event: event.to_owned(),
        version,
        direction,
        schema,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_is_read_in_order_and_refused_if_it_has_something_else() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path();
        assert_eq!(of_folder(&path.join("none")).expect("nothing is there"), []);
        let write = |name: &str, text: &str| std::fs::write(path.join(name), text).expect("write");
        std::fs::create_dir(path.join(PUBLISHED)).expect("a folder");
        write("b.json", "{}");
        write("a.v2.json", "true");
        write("README.md", "notes");
        write("published/c.json", "{}");
        let names = |schemas: Vec<EventSchema>| -> Vec<String> {
            let name =
                |schema: EventSchema| format!("{} {}", schema.direction.name(), schema.name());
            schemas.into_iter().map(name).collect()
        };
        let found = names(of_folder(path).expect("is sound"));
        assert_eq!(found, ["reads a v2", "reads b", "publishes c"]);
        let refused = || of_folder(path).expect_err("is refused").to_string();
        write("b.v1.json", "{}");
        assert!(refused().contains("two schemas of b that the module reads"));
        write("b.v1.json", "{");
        assert!(refused().contains("b.v1.json is no JSON"));
        write("b.v1.json", r#"{"type": "string", "type": "object"}"#);
        assert!(
            refused().contains("two members are named \"type\""),
            "{}",
            refused()
        );
        std::fs::remove_file(path.join("b.v1.json")).expect("remove");
        write("b.v02.json", "{}");
        assert!(refused().contains("b.v02 ends like a version"));
        std::fs::remove_file(path.join("b.v02.json")).expect("remove");
        // It would be waited for.
        let pipe = path.join("e.json");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).expect("a pipe");
        assert!(refused().contains("not a regular file"), "{}", refused());
        std::fs::remove_file(pipe).expect("remove");
        write("d.json", r#"{"type": 7}"#);
        assert!(
            refused().contains("the schema of d at /type"),
            "{}",
            refused()
        );
        std::fs::remove_file(path.join("d.json")).expect("remove");
        std::fs::create_dir(path.join("publish")).expect("a folder");
        of_folder(path).expect("a folder without schemas may be there");
        write("publish/a.json", "{}");
        assert!(refused().contains("publish does not belong there"));
    }
}
