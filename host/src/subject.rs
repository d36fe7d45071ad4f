//! Subjects: dot-separated tokens, and patterns over them with the wildcards of
//! NATS: `*` for one token, `>` for one or more tokens at the end.
//! Source: <https://docs.nats.io/nats-concepts/subjects>.

use std::fmt;

/// Longest subject or pattern, in bytes.
pub const LENGTH_MAX: usize = 1_024;
/// How many characters of a refused text are shown.
const SHOWN_MAX: usize = 128;
/// Most patterns in one set.
pub const PATTERNS_MAX: usize = 64;

/// The first token of subjects that belong to the host, such as those by which timers fire. Modules
/// get them only if they name the token.
const RESERVED: &str = "_fs";

/// Why a text is not a subject or pattern.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Too long, empty, or an empty token.
    #[error(
        "subject `{0}` has an empty token or is empty or longer than {LENGTH_MAX} bytes; write \
         tokens joined by single dots, such as `orders.42.placed`"
    )]
    Malformed(String),
    /// White space or a control character.
    #[error("subject `{0}` contains white space or control characters; remove them")]
    Character(String),
    /// A wildcard in a place where it is not allowed.
    #[error(
        "subject `{0}` uses a wildcard where none is allowed: `*` and `>` replace whole tokens, \
         `>` only at the end, and neither when publishing"
    )]
    Wildcard(String),
    /// Too many patterns, or none.
    #[error("{0} subjects given; give 1 to {PATTERNS_MAX}")]
    Count(usize),
}

/// Checks a subject to publish under: no wildcards.
pub fn validate(subject: &str) -> Result<(), Error> {
    tokens_are_sound(subject)?;
    if subject.split('.').any(|token| token == "*" || token == ">") {
        return Err(Error::Wildcard(shown(subject)));
    }
    Ok(())
}

/// The beginning of a text that may be as long as a request, without control characters.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_MAX).collect();
    // Bytes against bytes: the text was cut if any are missing.
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
        .chars()
        .map(|c| {
            if c.is_control() {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

fn tokens_are_sound(subject: &str) -> Result<(), Error> {
    if subject.is_empty() || subject.len() > LENGTH_MAX || subject.split('.').any(str::is_empty) {
        return Err(Error::Malformed(shown(subject)));
    }
    if subject.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Error::Character(shown(subject)));
    }
    Ok(())
}

/// Whether a subject belongs to the host.
pub fn is_reserved(subject: &str) -> bool {
    // The whole first token: `_fsx.a` is nobody's.
    subject
        .strip_prefix(RESERVED)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// One subject pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern(String);

impl Pattern {
    /// Reads a pattern.
    pub fn parse(pattern: &str) -> Result<Self, Error> {
        tokens_are_sound(pattern)?;
        let count = pattern.split('.').count();
        let misplaced = pattern.split('.').enumerate().any(|(index, token)| {
            (token == ">" && index + 1 != count)
                || (token.len() > 1 && (token.contains('*') || token.contains('>')))
        });
        if misplaced {
            return Err(Error::Wildcard(shown(pattern)));
        }
        Ok(Self(pattern.to_owned()))
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a subject matches.
    pub fn matches(&self, subject: &str) -> bool {
        let mut tokens = subject.split('.');
        // `>` takes one token or more, so the end of the subject ends the match before it.
        for wanted in self.0.split('.') {
            match (wanted, tokens.next()) {
                (_, None) => return false,
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (wanted, Some(token)) if wanted == token => {}
                _ => return false,
            }
        }
        tokens.next().is_none()
    }

    /// Whether its first token is a wildcard.
    fn begins_open(&self) -> bool {
        self.0.starts_with(['*', '>'])
    }

    /// Whether this one matches every subject that `other` matches.
    pub fn covers(&self, other: &Pattern) -> bool {
        let mut theirs = other.0.split('.');
        for ours in self.0.split('.') {
            match (ours, theirs.next()) {
                (_, None) => return false,
                (">", Some(_)) => return true,
                // `>` may be several tokens, of which `*` takes one.
                ("*", Some(token)) if token != ">" => {}
                (ours, Some(token)) if ours == token && token != ">" => {}
                _ => return false,
            }
        }
        theirs.next().is_none()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The subjects that a module reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubjectSet {
    patterns: Vec<Pattern>,
}

impl SubjectSet {
    /// Reads 1 to [`PATTERNS_MAX`] patterns.
    pub fn parse<S: AsRef<str>>(patterns: &[S]) -> Result<Self, Error> {
        if patterns.is_empty() || patterns.len() > PATTERNS_MAX {
            return Err(Error::Count(patterns.len()));
        }
        let patterns = patterns
            .iter()
            .map(|pattern| Pattern::parse(pattern.as_ref()))
            .collect::<Result<_, _>>()?;
        Ok(Self { patterns })
    }

    /// The patterns, as given.
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Whether all subjects match, but for those of the host's own.
    pub fn takes_everything(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.as_str() == ">")
    }

    /// Whether any pattern matches. A subject of the host's own is matched only by patterns that
    /// name its first token.
    pub fn matches(&self, subject: &str) -> bool {
        let is_reserved = is_reserved(subject);
        self.patterns
            .iter()
            .any(|pattern| pattern.matches(subject) && !(is_reserved && pattern.begins_open()))
    }

    /// Whether a pattern, as a server understands it, also matches subjects of the host's own that
    /// the set does not.
    pub fn is_open(&self) -> bool {
        self.patterns.iter().any(Pattern::begins_open)
    }

    /// The same set with one subject more, which may exceed the number of patterns that a module
    /// may have.
    pub fn with(&self, subject: &str) -> Self {
        let mut patterns = self.patterns.clone();
        patterns.push(Pattern(subject.to_owned()));
        Self { patterns }
    }

    /// The narrowest single pattern that covers all of the set.
    ///
    /// A JetStream consumer with two filters replays hundreds of times slower
    /// than one with a single filter, so the server gets this one and the host
    /// matches the rest.
    pub fn covering(&self) -> Pattern {
        if let Some(widest) = self
            .patterns
            .iter()
            .find(|one| self.patterns.iter().all(|other| one.covers(other)))
        {
            return widest.clone();
        }
        // None covers the others: the tokens in which they agree, and wildcards for the rest.
        let split: Vec<Vec<&str>> = self
            .patterns
            .iter()
            .map(|pattern| pattern.0.split('.').collect())
            .collect();
        let same_length = split
            .iter()
            .all(|tokens| tokens.len() == split[0].len() && tokens.last() != Some(&">"));
        let shortest = split.iter().map(Vec::len).min().unwrap_or(1);
        let mut merged = Vec::new();
        for index in 0..shortest {
            let first = split[0][index];
            let agree = split.iter().all(|tokens| tokens[index] == first);
            // A pattern ends here and another does not, or one is open from here on.
            let last_of_some = !same_length
                && split
                    .iter()
                    .any(|tokens| index + 1 >= tokens.len() || tokens[index] == ">");
            if last_of_some {
                merged.push(">");
                break;
            }
            merged.push(if agree { first } else { "*" });
        }
        Pattern(merged.join("."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covering(patterns: &[&str]) -> String {
        SubjectSet::parse(patterns)
            .expect("patterns are sound")
            .covering()
            .to_string()
    }

    #[test]
    fn wildcards_match_as_nats_does() {
        let matches =
            |pattern: &str, subject: &str| Pattern::parse(pattern).expect("sound").matches(subject);
        assert!(matches("orders.*.placed", "orders.42.placed"));
        assert!(matches("orders.>", "orders.42.placed"));
        assert!(matches(">", "orders"));
        assert!(!matches("orders.>", "orders"));
        assert!(!matches("orders.*", "orders.42.placed"));
        assert!(!matches("orders.*.placed", "orders.42"));
    }

    #[test]
    fn an_error_shows_only_the_beginning_of_a_long_subject_and_no_control_characters() {
        for subject in [
            "a".repeat(1 << 20),
            "ü ".repeat(1 << 20),
            format!("*.{}", "a.".repeat(1 << 19)),
        ] {
            let error = validate(&subject).expect_err("it is too long").to_string();
            assert!(error.len() < 1_024, "{} bytes", error.len());
        }
        let error = validate("a\n\u{1b}[31m")
            .expect_err("it has control characters")
            .to_string();
        assert!(!error.contains(char::is_control), "{error:?}");
    }

    #[test]
    fn subjects_of_the_host_are_matched_only_by_those_who_name_them() {
        let matches = |pattern: &str, subject: &str| {
            SubjectSet::parse(&[pattern])
                .expect("sound")
                .matches(subject)
        };
        for open in [">", "*.>", "*.timers.ship"] {
            assert!(!matches(open, "_fs.timers.ship"), "{open}");
        }
        assert!(matches("_fs.timers.>", "_fs.timers.ship"));
        assert!(matches(">", "_fsx.timers") && matches(">", "a._fs"));
        let more = SubjectSet::parse(&[">"])
            .expect("sound")
            .with("_fs.timers.ship");
        assert!(more.matches("_fs.timers.ship") && !more.matches("_fs.timers.other"));
    }

    #[test]
    fn one_pattern_covers_the_set() {
        assert_eq!(covering(&["orders.*.placed"]), "orders.*.placed");
        assert_eq!(
            covering(&["orders.*.placed", "orders.*.paid"]),
            "orders.*.*"
        );
        assert_eq!(covering(&["orders.>", "orders.*.paid"]), "orders.>");
        assert_eq!(covering(&["orders.a.b", "orders.c"]), "orders.>");
        assert_eq!(covering(&["orders", "orders.c"]), ">");
        assert_eq!(covering(&["a.b", "c.>"]), "*.>");
    }

    #[test]
    fn covering_pattern_matches_whatever_the_set_matches() {
        let tokens = ["a", "b", "*", ">"];
        let mut patterns = Vec::new();
        for first in tokens {
            patterns.push(first.to_owned());
            for second in tokens {
                patterns.push(format!("{first}.{second}"));
                for third in tokens {
                    patterns.push(format!("{first}.{second}.{third}"));
                }
            }
        }
        patterns.retain(|pattern| Pattern::parse(pattern).is_ok());
        let subjects = [
            "a", "b", "a.a", "a.b", "b.a", "a.a.a", "a.b.a", "b.b.b", "a.a.a.a", "b.a.b.a",
        ];
        for one in &patterns {
            for other in &patterns {
                let set = SubjectSet::parse(&[one, other]).expect("sound");
                let covering = set.covering();
                for subject in subjects.iter().filter(|subject| set.matches(subject)) {
                    assert!(
                        covering.matches(subject),
                        "{covering} misses {subject} of {one}, {other}"
                    );
                }
            }
        }
    }

    #[test]
    fn malformed_subjects_are_refused() {
        for subject in ["", ".a", "a.", "a..b", "a b", "a\n", "a.*", "a.>"] {
            assert!(validate(subject).is_err(), "{subject:?}");
        }
        for pattern in ["a.>.b", "a*.b", "a.b>"] {
            assert!(Pattern::parse(pattern).is_err(), "{pattern:?}");
        }
        assert!(validate("orders.42.placed").is_ok());
    }
}
