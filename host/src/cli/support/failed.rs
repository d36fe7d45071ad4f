//! What a command prints for programs if what it has begun fails.

use std::fmt::Display;
use std::io;

use serde::Serialize;

use super::output::{Format, Output};

/// What is known of it, and why the command fails.
#[derive(Serialize)]
struct Failed<'a, T> {
    #[serde(flatten)]
    known: &'a T,
    error: String,
}

/// Prints what is known as JSON, with the error. For people the error alone says it.
pub(crate) fn show<T: Serialize>(
    known: &T,
    error: &impl Display,
    output: Output,
) -> io::Result<()> {
    if output.format == Format::Table {
        return Ok(());
    }
    // With its causes, as it is shown to people.
    let error = format!("{error:#}");
    output.one(&Failed { known, error }, |_| String::new())
}
