//! Errors of files: what happened, the error of redb or of the system below it, and what a caller
//! can do about it. States, the catalogue and logs make one where a file fails, and nobody looks at
//! its text again.

use std::fmt::{self, Display};
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::advice;
use crate::data_path::within;

/// What a caller can do about a file that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A disk, a quota or a limit of the process is used up: somebody has to make room.
    OutOfRoom,
    /// It failed earlier, and is reopened soon: the same request may succeed in a moment.
    FailedBefore,
    /// Anything else: an operator has to look at it.
    Other,
}

/// Why a file could not be opened, read or written. Cloning shares the source.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    text: String,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error that nothing else caused.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::Other,
            text: text.into(),
            source: None,
        }
    }

    /// The file failed earlier and was not reopened yet.
    pub fn failed_before(text: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::FailedBefore,
            ..Self::new(text)
        }
    }

    /// An error with its source, which the text quotes. Errors of redb must come as
    /// [`redb::Error`], which all of them can be turned into: the kind depends on it.
    pub fn because(
        text: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self {
            kind: kind_of(&source),
            text: text.into(),
            source: Some(Arc::new(source)),
        }
    }

    /// An error that says what its source says.
    pub fn of(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::because(source.to_string(), source)
    }

    /// The error of a file that has no other name for its user than its path.
    pub fn of_file(path: &Path, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::because(format!("{}: {source}", within(path)), source)
    }

    /// What a caller can do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source: &(dyn std::error::Error + 'static) = self.source.as_deref()?;
        Some(source)
    }
}

/// The kind of an error with this source. Looks through errors of ours down to the first one that
/// has a kind.
fn kind_of(error: &(dyn std::error::Error + 'static)) -> ErrorKind {
    if let Some(error) = error.downcast_ref::<Error>() {
        return error.kind;
    }
    if let Some(error) = error.downcast_ref::<redb::Error>() {
        return match error {
            redb::Error::Io(error) => kind_of(error),
            redb::Error::PreviousIo => ErrorKind::FailedBefore,
            _ => ErrorKind::Other,
        };
    }
    if let Some(error) = error.downcast_ref::<io::Error>() {
        if advice::is_out_of_room(error) {
            return ErrorKind::OutOfRoom;
        }
        // Its own source would be that of the error inside, which is what counts.
        return error
            .get_ref()
            .map_or(ErrorKind::Other, |inner| kind_of(inner));
    }
    error.source().map_or(ErrorKind::Other, kind_of)
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    fn io(errno: Errno) -> io::Error {
        errno.into()
    }

    #[test]
    fn a_full_disk_is_known_by_its_error_however_often_it_was_wrapped() {
        for full in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG] {
            let first = Error::of_file(
                Path::new("/a"),
                redb::Error::from(redb::StorageError::Io(io(full))),
            );
            assert_eq!(first.kind(), ErrorKind::OutOfRoom, "{first}");
            let wrapped = io::Error::other(first.clone());
            let again = Error::because("it failed a moment ago", wrapped);
            assert_eq!(again.kind(), ErrorKind::OutOfRoom, "{again}");
        }
        for other in [io(Errno::IO), io::Error::other("(os error 28)")] {
            assert_eq!(
                Error::of_file(Path::new("/a"), other).kind(),
                ErrorKind::Other
            );
        }
    }

    #[test]
    fn a_file_that_failed_before_is_known() {
        let error = Error::because("closed", redb::Error::PreviousIo);
        assert_eq!(error.kind(), ErrorKind::FailedBefore);
        assert_eq!(
            Error::failed_before("closed").kind(),
            ErrorKind::FailedBefore
        );
        assert_eq!(Error::new("closed").kind(), ErrorKind::Other);
    }

    #[test]
    fn a_source_can_be_found_again() {
        let error = Error::of_file(Path::new("/a"), io(Errno::IO));
        let source = std::error::Error::source(&error).expect("it has one");
        assert!(source.is::<io::Error>());
        assert_eq!(error.to_string(), format!("a: {source}"));
    }
}
