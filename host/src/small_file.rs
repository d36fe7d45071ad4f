//! Files that an operator names: settings, secrets, certificates. They are small, and none is read
//! without an end.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Longest text, such as a file of tokens, in bytes.
const TEXT_BYTES_MAX: u64 = 8 << 20;

/// Reads a text file of limited size, such as one of tokens.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    text(read_within(path, TEXT_BYTES_MAX)?)
}

/// The same, of a regular file only. It never waits for a writer, so that a running host can read
/// a file again that has become a pipe.
pub(crate) fn read_regular_text(path: &Path) -> io::Result<String> {
    text(read_regular(path, TEXT_BYTES_MAX)?)
}

/// Reads a regular file of limited size, without waiting for anybody.
pub(crate) fn read_regular(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_open(&open_regular(path)?, bytes_max)
}

/// Reads a file of limited size: not by the size that it says to have, as a pipe or a device says
/// none.
pub(crate) fn read_within(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_open(&File::open(path)?, bytes_max)
}

/// Opens a regular file. Anything else is refused, and nothing is waited for.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    // Opening a pipe would otherwise wait until somebody writes to it. Regular files ignore this.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        "it is not a regular file; give the file itself",
    ))
}

fn text(content: Vec<u8>) -> io::Result<String> {
    String::from_utf8(content)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no UTF-8 text"))
}

/// Reads the rest of an open file of limited size.
pub(crate) fn read_open(file: &File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let read = file
        .take(bytes_max.saturating_add(1))
        .read_to_end(&mut content)?;
    if read as u64 > bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {bytes_max} bytes"),
        ));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read_where_nothing_may_wait() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (pipe, file) = (folder.path().join("pipe"), folder.path().join("file"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).expect("a pipe");
        std::fs::write(&file, "text").expect("our folder is writable");
        for path in [&pipe, Path::new("/dev/zero"), folder.path()] {
            let refused = read_regular_text(path).expect_err("not regular");
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{path:?}");
        }
        assert_eq!(read_regular_text(&file).expect("reads"), "text");
    }
}
