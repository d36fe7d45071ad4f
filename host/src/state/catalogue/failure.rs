//! The failure of a generation, as the catalogue stores it. A field that changes here changes the
//! rows of the catalogue: see the test in `rows.rs`.

use serde::{Deserialize, Deserializer, Serialize};

use crate::failure::{Failure, FailureClass};

/// A `Failure` in the row of its generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureRecord {
    /// See `Failure::kind`.
    pub kind: String,
    /// See `Failure::class`.
    // An earlier release may read the class of a later one.
    #[serde(
        default,
        deserialize_with = "class_if_known",
        skip_serializing_if = "Option::is_none"
    )]
    pub class: Option<FailureClass>,
    /// See `Failure::message`.
    pub message: String,
    /// See `Failure::sequence`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// See `Failure::first_at`.
    pub first_at: String,
    /// See `Failure::attempts`.
    pub attempts: u32,
    /// See `Failure::next_attempt_at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<String>,
    /// See `Failure::breaker_open`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub breaker_open: bool,
}

fn class_if_known<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<FailureClass>, D::Error> {
    let name = Option::<String>::deserialize(deserializer)?;
    Ok(name.as_deref().and_then(FailureClass::named))
}

impl From<Failure> for FailureRecord {
    fn from(value: Failure) -> Self {
        let Failure {
            kind,
            class,
            message,
            sequence,
            first_at,
            attempts,
            next_attempt_at,
            breaker_open,
        } = value;
        Self {
            kind,
            class,
            message,
            sequence,
            first_at,
            attempts,
            next_attempt_at,
            breaker_open,
        }
    }
}

impl From<FailureRecord> for Failure {
    fn from(value: FailureRecord) -> Self {
        let FailureRecord {
            kind,
            class,
            message,
            sequence,
            first_at,
            attempts,
            next_attempt_at,
            breaker_open,
        } = value;
        Self {
            kind,
            class,
            message,
            sequence,
            first_at,
            attempts,
            next_attempt_at,
            breaker_open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_of_a_later_release_is_passed_over() {
        let read = |class: &str| {
            let text =
                format!(r#"{{"kind":"limit","message":"","first_at":"","attempts":1{class}}}"#);
            serde_json::from_str::<FailureRecord>(&text)
                .expect("a failure")
                .class
        };
        assert_eq!(
            read(r#","class":"state-limit""#),
            Some(FailureClass::StateLimit)
        );
        assert_eq!(read(r#","class":"of-a-later-release""#), None);
        assert_eq!(read(""), None);
    }
}
