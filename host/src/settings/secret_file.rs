//! Secrets in files that settings name.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Longest secret in a file, in bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// A file in the configuration can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{key}: cannot read {}: {error}; give a file that this user may read", path.display())]
pub struct ReadError {
    /// The key that names it.
    pub key: String,
    /// The file.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub error: io::Error,
}

/// The secret that a file has, without the end of its line.
pub(crate) fn read_secret(key: &str, path: &Path) -> Result<String, ReadError> {
    read_opened_secret(key, path, File::open(path))
}

/// The same for a file that is open already.
pub(crate) fn read_opened_secret(
    key: &str,
    path: &Path,
    file: io::Result<File>,
) -> Result<String, ReadError> {
    let failed = |error| ReadError {
        key: key.to_owned(),
        path: path.to_owned(),
        error,
    };
    let mut text = String::new();
    // The size in the metadata does not count, because pipes and devices have none.
    let read = file
        .map_err(failed)?
        .take(SECRET_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if read as u64 > SECRET_BYTES_MAX {
        return Err(failed(io::Error::other(format!(
            "it has more than {SECRET_BYTES_MAX} bytes, too many for a secret"
        ))));
    }
    let secret = text.trim_end_matches(['\n', '\r']);
    if secret.is_empty() {
        return Err(failed(io::Error::other("it is empty")));
    }
    Ok(secret.to_owned())
}
