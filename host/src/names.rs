//! Names of deployments: they are part of addresses, of file names and of labels, and so are short
//! and plain.

/// A name that no deployment can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "name `{0}` is refused: use 1 to 63 lower-case letters, digits and hyphens, a letter first"
)]
pub struct Invalid(pub String);

/// Whether a deployment can have this name.
pub(crate) fn check(name: &str) -> Result<(), Invalid> {
    let sound = (1..=63).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if sound {
        Ok(())
    } else {
        Err(Invalid(name.to_owned()))
    }
}
