//! Failures of deployments, and what the host does about them.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

pub use crate::failure::FailureClass;

/// An error that stopped or delays a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// A name that never changes: `rejected`, `retry`, `trap`, `deadline`, `limit`, `state`,
    /// `source-diverged`, …
    pub kind: String,
    /// What kind of failure to apply events it was; absent for all other failures.
    // A command line of an earlier release may read the class of a later one.
    #[serde(
        default,
        deserialize_with = "class_if_known",
        skip_serializing_if = "Option::is_none"
    )]
    pub class: Option<FailureClass>,
    /// What happened, and what to do next.
    pub message: String,
    /// The sequence of the event that failed, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// When the failure first happened in this streak.
    pub first_at: String,
    /// How often the host has tried.
    pub attempts: u32,
    /// When the host tries the event again; absent if it does not, or does not know when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<String>,
    /// Whether that is later than usual, because the retries of the deployment take more time than
    /// `pipeline.retry_percent` allows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub breaker_open: bool,
}

fn class_if_known<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<FailureClass>, D::Error> {
    let name = Option::<String>::deserialize(deserializer)?;
    Ok(name.as_deref().and_then(FailureClass::named))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_of_a_later_release_is_passed_over() {
        let read = |class: &str| {
            let text =
                format!(r#"{{"kind":"limit","message":"","first_at":"","attempts":1{class}}}"#);
            serde_json::from_str::<Failure>(&text)
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
