//! The exit code of each error.

use std::io;

use super::client;
pub use super::exit_code::Exit;
use crate::{config, module, schemas};

/// An error of the command line itself, with its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// How the program ends.
    pub exit: Exit,
    /// What happened, and what to do next; if empty, nothing is shown.
    pub message: String,
}

impl Failure {
    /// A failure with its message.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }

    /// The end by Ctrl-C, which needs no message.
    pub fn interrupted() -> Self {
        Self::new(Exit::Interrupted, "")
    }
}

/// The exit code of an error.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    // The outermost cause that has a code: contexts around it have none.
    error
        .chain()
        .find_map(exit_of_cause)
        .unwrap_or(Exit::Failed)
}

fn exit_of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if let Some(failure) = cause.downcast_ref::<Failure>() {
        return Some(failure.exit);
    }
    if let Some(error) = cause.downcast_ref::<client::Error>() {
        return Some(error.exit());
    }
    if cause.is::<config::Error>() || cause.is::<config::ReadError>() {
        return Some(Exit::Usage);
    }
    if let Some(error) = cause.downcast_ref::<schemas::FileError>() {
        let is_missing = matches!(error, schemas::FileError::Unreadable { source, .. }
            if source.kind() == io::ErrorKind::NotFound);
        return Some(if is_missing {
            Exit::NotFound
        } else {
            Exit::Refused
        });
    }
    // The module's fault is a refusal; the host's, or the machine's, is a failure.
    match cause.downcast_ref::<module::Error>()? {
        module::Error::Refused(_)
        | module::Error::Manifest(_)
        | module::Error::Check(_)
        | module::Error::Compile(_) => Some(Exit::Refused),
        module::Error::Engine { .. } | module::Error::Busy(_) | module::Error::Short(_) => {
            Some(Exit::Failed)
        }
    }
}

/// The whole message: each cause that the earlier ones do not already mention.
pub fn message_of(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // Libraries often repeat their cause in their own text.
        if message.contains(&text) {
            continue;
        }
        if !message.is_empty() {
            message.push_str(": ");
        }
        message.push_str(&text);
    }
    message
}

/// Whether the reader of our output went away, which is not an error.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;
    use crate::api::Problem;

    fn problem(kind: &str) -> anyhow::Error {
        let problem = Problem {
            kind: kind.to_owned(),
            title: String::new(),
            status: 400,
            detail: "said".to_owned(),
            position: None,
        };
        client::Error::Problem(problem).into()
    }

    #[test]
    fn every_kind_of_problem_has_its_exit_code() {
        for (kind, exit) in [
            ("not-found", Exit::NotFound),
            ("invalid", Exit::Refused),
            ("too-large", Exit::Refused),
            ("conflict", Exit::Refused),
            ("refused", Exit::Refused),
            ("unauthorized", Exit::Refused),
            ("limit", Exit::Refused),
            ("unsupported-media-type", Exit::Refused),
            ("not-allowed", Exit::Refused),
            ("behind", Exit::TimedOut),
            ("timeout", Exit::TimedOut),
            ("slow", Exit::TimedOut),
            ("not-ready", Exit::Unreachable),
            ("busy", Exit::Unreachable),
            ("stopping", Exit::Unreachable),
            ("internal", Exit::Failed),
        ] {
            assert_eq!(exit_of(&problem(kind)), exit, "{kind}");
            assert_eq!(
                exit_of(&problem(kind).context("while deploying")),
                exit,
                "{kind} with context"
            );
        }
    }

    #[test]
    fn unknown_errors_are_failures() {
        assert_eq!(exit_of(&anyhow::anyhow!("something")), Exit::Failed);
        assert_eq!(
            exit_of(&module::Error::Refused("no world".to_owned()).into()),
            Exit::Refused
        );
    }

    #[test]
    fn causes_are_reported_once() {
        let inner = std::io::Error::other("the disk is full");
        let outer = Failure::new(Exit::Failed, "cannot write: the disk is full");
        let error = Err::<(), _>(inner)
            .context("cannot write")
            .expect_err("an error");
        assert_eq!(message_of(&error), "cannot write: the disk is full");
        assert_eq!(message_of(&outer.into()), "cannot write: the disk is full");
    }

    #[test]
    fn broken_pipes_are_recognised_below_other_errors() {
        let pipe = std::io::Error::from(io::ErrorKind::BrokenPipe);
        let error = Err::<(), _>(pipe)
            .context("cannot print")
            .expect_err("an error");
        assert!(is_broken_pipe(&error));
        assert!(!is_broken_pipe(&anyhow::anyhow!("something")));
    }
}
