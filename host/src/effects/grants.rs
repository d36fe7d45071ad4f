//! Grants: what an operator lets a deployment publish, and to which source.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::reply::is_reply;
use crate::subject::{self, Pattern};

/// Most grants of one deployment.
pub const GRANTS_MAX: usize = 64;

/// A permission to publish under the subjects of a pattern to the stream of a source:
/// `shipping.*.cmd@orders`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The subjects.
    pub subjects: Pattern,
    /// Name of the source.
    pub source: String,
}

impl fmt::Display for Grant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}", self.subjects, self.source)
    }
}

/// Why grants are refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// It has no source after its subjects.
    #[error("grant `{0}` names no source; write it like `shipping.*.cmd@orders`")]
    NoSource(String),
    /// Its subjects are not a pattern.
    #[error("grant `{0}`: {1}")]
    Subjects(String, #[source] subject::Error),
    /// It covers subjects that modules may not publish to.
    #[error(
        "grant `{0}` covers subjects of the server or the host; begin it with a whole first token, \
         such as `shipping.>`"
    )]
    Reserved(String),
    /// There are more than [`GRANTS_MAX`].
    #[error("{0} grants; give at most {GRANTS_MAX}")]
    TooMany(usize),
    /// A subject would have two sources.
    #[error("grants `{0}` and `{1}` share subjects; give each subject one source")]
    Overlap(Grant, Grant),
}

impl FromStr for Grant {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Self, GrantError> {
        // The last `@`, because subjects may have one.
        let Some((subjects, source)) = text.rsplit_once('@') else {
            return Err(GrantError::NoSource(text.to_owned()));
        };
        let subjects = Pattern::parse(subjects)
            .map_err(|error| GrantError::Subjects(text.to_owned(), error))?;
        // A wildcard in front would cover subjects of the server.
        let first = subjects.as_str().split('.').next().unwrap_or_default();
        // Replies go to inboxes of the server.
        let is_reserved = first.starts_with(['$', '_', '*', '>']);
        if is_reserved && !is_reply(subjects.as_str()) {
            return Err(GrantError::Reserved(text.to_owned()));
        }
        if source.is_empty() {
            return Err(GrantError::NoSource(text.to_owned()));
        }
        Ok(Self {
            subjects,
            source: source.to_owned(),
        })
    }
}

/// The grants of a deployment. No subject belongs to grants with different sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants(Vec<Grant>);

impl Grants {
    /// Checks that each subject has one source.
    pub fn new(grants: Vec<Grant>) -> Result<Self, GrantError> {
        if grants.len() > GRANTS_MAX {
            return Err(GrantError::TooMany(grants.len()));
        }
        for (index, one) in grants.iter().enumerate() {
            let clash = grants[..index].iter().find(|other| {
                // Two grants for one source may overlap; a subject with two sources would have two
                // homes.
                other.source != one.source && overlap(&other.subjects, &one.subjects)
            });
            if let Some(other) = clash {
                return Err(GrantError::Overlap(other.clone(), one.clone()));
            }
        }
        let mut unique: Vec<Grant> = Vec::with_capacity(grants.len());
        for grant in grants {
            if !unique.contains(&grant) {
                unique.push(grant);
            }
        }
        Ok(Self(unique))
    }

    /// Reads grants as an operator writes them.
    pub fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Self, GrantError> {
        Self::new(
            texts
                .iter()
                .map(|text| text.as_ref().parse())
                .collect::<Result<_, _>>()?,
        )
    }

    /// All of them, in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = &Grant> {
        self.0.iter()
    }

    /// The source to which a subject may be published, if any.
    pub fn source_of(&self, subject: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|grant| grant.subjects.matches(subject))
            .map(|grant| grant.source.as_str())
    }

    /// Whether a subject may be published to a source.
    pub fn allow(&self, subject: &str, source: &str) -> bool {
        self.0
            .iter()
            .any(|grant| grant.source == source && grant.subjects.matches(subject))
    }

    /// Whether every subject of a pattern may be published, by one grant.
    pub fn cover(&self, wanted: &Pattern) -> bool {
        self.0.iter().any(|grant| grant.subjects.covers(wanted))
    }

    /// As text.
    pub fn texts(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }
}

impl Serialize for Grants {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.texts().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Grants {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        Self::parse(&texts).map_err(serde::de::Error::custom)
    }
}

/// Whether some subject matches both patterns.
pub fn overlap(one: &Pattern, other: &Pattern) -> bool {
    let (mut ones, mut others) = (one.as_str().split('.'), other.as_str().split('.'));
    loop {
        match (ones.next(), others.next()) {
            (None, None) => return true,
            (None, Some(_)) | (Some(_), None) => return false,
            // `>` takes one token and more, so both have to have one there.
            (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(a), Some(b)) if a == "*" || b == "*" || a == b => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).expect("valid")
    }

    #[test]
    fn patterns_overlap_if_a_subject_matches_both() {
        for (one, other, expected) in [
            ("a.b", "a.b", true),
            ("a.*", "*.b", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            ("a.b", "a.b.c", false),
            ("a.*.c", "a.b.d", false),
            (">", "x.y", true),
        ] {
            assert_eq!(
                overlap(&pattern(one), &pattern(other)),
                expected,
                "{one} {other}"
            );
            assert_eq!(
                overlap(&pattern(other), &pattern(one)),
                expected,
                "{other} {one}"
            );
        }
    }

    #[test]
    fn grant_without_a_source_or_for_everything_is_refused() {
        for text in [
            "a.b",
            "a.b@",
            ">@orders",
            "*.b@orders",
            "$JS.>@orders",
            "_fs.>@orders",
            "a..b@orders",
        ] {
            assert!(Grants::parse(&[text]).is_err(), "{text}");
        }
        let clash = Grants::parse(&["a.*@one", "a.b@two"]).expect_err("is ambiguous");
        assert!(matches!(clash, GrantError::Overlap(..)), "{clash}");
    }

    #[test]
    fn replies_can_be_granted_and_nothing_else_under_a_reserved_token() {
        let grants = Grants::parse(&["_INBOX.>@orders"]).expect("are replies");
        assert_eq!(grants.source_of("_INBOX.a.1"), Some("orders"));
        for text in ["_INBOX@orders", "_INBOXES.>@orders", "_inbox.>@orders"] {
            assert!(Grants::parse(&[text]).is_err(), "{text}");
        }
    }

    #[test]
    fn subject_belongs_to_the_source_of_its_grant() {
        let grants = Grants::parse(&["a.*@one", "b.>@two"]).expect("sound");
        assert_eq!(
            (grants.source_of("a.1"), grants.source_of("b.1.2")),
            (Some("one"), Some("two"))
        );
        assert_eq!(grants.source_of("c"), None);
        assert!(grants.allow("a.1", "one") && !grants.allow("a.1", "two"));
        assert!(grants.cover(&pattern("b.x.*")) && !grants.cover(&pattern("a.>")));
        let json = serde_json::to_string(&grants).expect("plain data");
        assert_eq!(
            serde_json::from_str::<Grants>(&json).expect("comes back"),
            grants
        );
    }
}
