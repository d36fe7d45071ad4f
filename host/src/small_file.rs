//! Files that an operator names: settings, secrets, certificates. They are small, and none is read
//! without an end.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Longest text, such as a file of tokens, in bytes.
const TEXT_BYTES_MAX: u64 = 8 << 20;

/// Reads a text file of limited size, such as one of tokens.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read_within(path, TEXT_BYTES_MAX)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no UTF-8 text"))
}

/// Reads a file of limited size: not by the size that it says to have, as a pipe or a device says
/// none.
pub(crate) fn read_within(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let read = File::open(path)?
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
