//! Files that are there whole or not at all, whenever the process is killed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Where a file is made before it gets its name.
pub fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("redb.new")
}

/// Makes a file under another name and then gives it its own, unless it is there already.
pub fn create(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let new = unfinished(path);
    if new.exists() {
        fs::remove_file(&new)?;
    }
    make(&new)?;
    fs::rename(&new, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
