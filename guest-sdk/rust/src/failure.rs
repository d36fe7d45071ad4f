//! Errors, and what the host does about them.

use std::error::Error;
use std::fmt::{self, Display};

/// Why an event could not be applied.
///
/// Any error becomes one through `?`, which means `reject`: the event can never
/// be applied, so a retry would not help. If a retry may help, say so with
/// [`Retry::retry`].
///
/// ```
/// use foldstream_sdk::prelude::*;
///
/// fn parse(text: &str) -> Result<u64, Failure> {
///     let number = text.parse::<u64>()?;
///     if number == 0 {
///         return Err(Failure::reject("zero is no quantity"));
///     }
///     Ok(number)
/// }
/// assert_eq!(parse("0").unwrap_err().to_string(), "rejected: zero is no quantity");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    kind: FailureKind,
    message: String,
}

/// What the host does about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The cause may pass: the host retries after a pause.
    Retry,
    /// The event can never be applied: the host does not retry.
    Reject,
}

impl Failure {
    /// The event can never be applied, for the reason given.
    pub fn reject(message: impl Display) -> Self {
        Self {
            kind: FailureKind::Reject,
            message: message.to_string(),
        }
    }

    /// The event may be applied later, for the reason given.
    pub fn retry(message: impl Display) -> Self {
        Self {
            kind: FailureKind::Retry,
            message: message.to_string(),
        }
    }

    /// What the host does about it.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// What went wrong.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.kind {
            FailureKind::Retry => "try again",
            FailureKind::Reject => "rejected",
        };
        write!(formatter, "{verb}: {}", self.message)
    }
}

// `Failure` itself does not implement `std::error::Error`, so that this conversion can accept every
// error type.
impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::reject(with_causes(&error))
    }
}

/// Marks an error as one that may pass.
pub trait Retry<T> {
    /// The same result, but its error asks the host to retry.
    fn retry(self) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> Retry<T> for Result<T, E> {
    fn retry(self) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            kind: FailureKind::Retry,
            ..error.into()
        })
    }
}

/// Why a query has no answer. Any error becomes [`QueryError::Failed`] through `?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryError {
    /// The module has no query of that name.
    UnknownQuery,
    /// The arguments do not match the query; the text says how.
    InvalidArguments(String),
    /// The state has nothing for these arguments.
    NotFound,
    /// Anything else.
    Failed(String),
}

impl Display for QueryError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownQuery => formatter.write_str("the module has no query of that name"),
            Self::InvalidArguments(message) => write!(formatter, "invalid arguments: {message}"),
            Self::NotFound => formatter.write_str("not found"),
            Self::Failed(message) => formatter.write_str(message),
        }
    }
}

impl<E: Error> From<E> for QueryError {
    fn from(error: E) -> Self {
        Self::Failed(with_causes(&error))
    }
}

/// Why the state of an older version cannot be migrated. Any error becomes one through `?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrateError {
    message: String,
}

impl MigrateError {
    /// The state cannot be migrated, for the reason given.
    pub fn new(message: impl Display) -> Self {
        Self {
            message: message.to_string(),
        }
    }

    /// The state has a version that this one does not know.
    pub fn unknown_version(version: u32) -> Self {
        Self::new(format_args!(
            "state version {version} is unknown to this version of the projection"
        ))
    }

    /// What went wrong.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl Display for MigrateError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

// As for `Failure`: it does not implement `std::error::Error`, so that this conversion can accept
// every error type.
impl<E: Error> From<E> for MigrateError {
    fn from(error: E) -> Self {
        Self::new(with_causes(&error))
    }
}

/// Why a table could not read or write.
#[derive(Debug)]
pub struct TableError {
    // Boxed, so that results stay small.
    message: Box<str>,
}

impl TableError {
    pub(crate) fn new(message: impl Display) -> Self {
        Self {
            message: message.to_string().into(),
        }
    }
}

impl Display for TableError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl Error for TableError {}

fn with_causes(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(": ");
        message.push_str(&error.to_string());
        cause = error.source();
    }
    message
}
