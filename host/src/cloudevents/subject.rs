//! The subject under which a CloudEvent is stored.

use super::{Envelope, Error, SUBJECT_ATTRIBUTE, percent};
use crate::subject;

/// A template that builds the subject from attributes: text with `{name}` for an attribute as one
/// token, and `{name:tokens}` for one whose dots separate tokens. Characters that a token cannot
/// contain are percent-encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubjectTemplate(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Token(String),
    Tokens(String),
}

/// Why a text is not a template.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A brace that is not closed or not opened, or an unknown form.
    #[error(
        "subject template `{0}` is malformed: write attributes as {{name}} for one token, or \
         {{name:tokens}} to keep the dots, such as flights.{{subject}}.{{type}}"
    )]
    Malformed(String),
    /// The text in braces cannot be an attribute.
    #[error(
        "subject template names `{0}`, which is not the name of an attribute: those have \
         lower-case letters and digits"
    )]
    Name(String),
    /// No values of its attributes could make it a subject.
    #[error("subject template cannot produce a subject: {0}")]
    Subject(subject::Error),
}

impl SubjectTemplate {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let malformed = || TemplateError::Malformed(text.chars().take(200).collect());
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            let (before, after) = rest.split_at(at);
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let (inner, behind) = after
                .strip_prefix('{')
                .and_then(|rest| rest.split_once('}'))
                .ok_or_else(malformed)?;
            parts.push(match inner.split_once(':') {
                None => Part::Token(name(inner)?),
                Some((inner, "tokens")) => Part::Tokens(name(inner)?),
                Some(_) => return Err(malformed()),
            });
            rest = behind;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        let template = Self(parts);
        // With a value that every token can have: what fails then fails always.
        let sample = template.fill(|_| Some("x")).map_err(|_| malformed())?;
        subject::validate(&sample).map_err(TemplateError::Subject)?;
        Ok(template)
    }

    /// The subject of an event. Without a template it is the one with which the event was exported,
    /// otherwise its type.
    pub fn subject(template: Option<&Self>, envelope: &Envelope<'_>) -> Result<String, Error> {
        Self::of(template, |name| envelope.get(name))
    }

    /// Like [`Self::subject`], with a lookup for attributes.
    pub fn of<'a>(
        template: Option<&Self>,
        get: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<String, Error> {
        let subject = match (template, get(SUBJECT_ATTRIBUTE)) {
            // A given template wins; without one, an exported event keeps its subject.
            (Some(template), _) => template.fill(&get)?,
            (None, Some(exported)) => exported.to_owned(),
            (None, None) => tokens(get("type").unwrap_or_default()),
        };
        match subject::validate(&subject) {
            Ok(()) => Ok(subject),
            Err(error) if template.is_none() && get(SUBJECT_ATTRIBUTE).is_some() => Err(
                Error::attribute(SUBJECT_ATTRIBUTE, format!("is not a subject: {error}")),
            ),
            // Without a template its tokens are encoded, so only its length can be wrong.
            Err(_) => {
                let reason = format!(
                    "gives a subject of {} bytes, and {} are allowed; use a fixed subject, or a \
                     template with shorter attributes",
                    subject.len(),
                    subject::LENGTH_MAX
                );
                Err(Error::attribute("type", reason))
            }
        }
    }

    fn fill<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> Result<String, Error> {
        let value = |name: &str| match get(name) {
            None => Err(Error::attribute(
                name,
                "is missing, but the subject template uses it; add it, or remove it from the \
                 template",
            )),
            Some("") => Err(Error::attribute(
                name,
                "is empty, but the subject template uses it; give it a value",
            )),
            Some(value) => Ok(value),
        };
        let mut subject = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => subject.push_str(text),
                Part::Token(name) => subject.push_str(&token(value(name)?)),
                Part::Tokens(name) => subject.push_str(&tokens(value(name)?)),
            }
        }
        Ok(subject)
    }
}

fn name(text: &str) -> Result<String, TemplateError> {
    super::check_name(text).map_err(|_| TemplateError::Name(text.chars().take(64).collect()))?;
    Ok(text.to_owned())
}

/// Whether a character cannot be in a token, or would make two values equal.
fn is_encoded(character: char) -> bool {
    character.is_whitespace() || character.is_control() || matches!(character, '*' | '>' | '%')
}

/// A value as one token.
fn token(value: &str) -> String {
    percent::encode_where(value, |character| is_encoded(character) || character == '.').into_owned()
}

/// A value as tokens separated by its dots. A dot that would leave an empty token is encoded too.
fn tokens(value: &str) -> String {
    let mut subject = String::with_capacity(value.len());
    let mut characters = value.chars().peekable();
    while let Some(character) = characters.next() {
        let mut buffer = [0; 4];
        let text = character.encode_utf8(&mut buffer);
        if character != '.' {
            subject.push_str(&percent::encode_where(text, is_encoded));
            continue;
        }
        // An empty token is no subject: a dot at the begin, at the end, or after another is
        // encoded.
        let separates = !subject.is_empty()
            && !subject.ends_with('.')
            && characters.peek().is_some_and(|next| *next != '.');
        subject.push_str(if separates { "." } else { "%2E" });
    }
    subject
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(template: &str, attributes: &[(&str, &str)]) -> Result<String, Error> {
        let template = SubjectTemplate::parse(template).expect("a template");
        SubjectTemplate::of(Some(&template), |name| {
            attributes
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| *value)
        })
    }

    #[test]
    fn the_type_is_the_subject_whatever_it_holds() {
        for (kind, subject) in [
            ("com.example.made", "com.example.made"),
            ("flight departed", "flight%20departed"),
            ("a..b", "a%2E.b"),
            (".a.", "%2Ea%2E"),
            ("...", "%2E%2E%2E"),
            ("*", "%2A"),
            ("a.>", "a.%3E"),
            ("100%", "100%25"),
            ("größe", "größe"),
        ] {
            let found = SubjectTemplate::of(None, |name| (name == "type").then_some(kind))
                .expect("a subject");
            assert_eq!(found, subject, "{kind}");
            subject::validate(&found).expect("sound");
        }
    }

    #[test]
    fn templates_take_attributes_as_one_token_or_with_their_dots() {
        let attributes = [
            ("type", "com.example.made"),
            ("subject", "my file.jpg"),
            ("partition", ""),
        ];
        assert_eq!(
            fill("shop.{subject}.{type:tokens}", &attributes).as_deref(),
            Ok("shop.my%20file%2Ejpg.com.example.made")
        );
        assert_eq!(
            fill("{type}", &attributes).as_deref(),
            Ok("com%2Eexample%2Emade")
        );
        assert_eq!(fill("a.b", &attributes).as_deref(), Ok("a.b"));
        assert!(
            fill("a.{nothing}", &attributes)
                .expect_err("absent")
                .to_string()
                .contains("attribute nothing is missing")
        );
        assert!(
            fill("a.{partition}", &attributes)
                .expect_err("empty")
                .to_string()
                .contains("attribute partition is empty")
        );
    }

    #[test]
    fn templates_that_make_no_subject_are_refused() {
        for wrong in [
            "{",
            "}",
            "a.{type",
            "a.type}",
            "{type:dots}",
            "{}",
            "{Type}",
            "{a.b}",
            "",
            "a..{type}",
            "a b",
            "a.>",
        ] {
            assert!(SubjectTemplate::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_exported_event_keeps_its_subject() {
        let attributes = [(SUBJECT_ATTRIBUTE, "orders.1"), ("type", "placed")];
        let get = |name: &str| {
            attributes
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| *value)
        };
        assert_eq!(SubjectTemplate::of(None, get).as_deref(), Ok("orders.1"));
        let long = "x".repeat(2_000);
        let refused = SubjectTemplate::of(None, |name| (name == "type").then_some(long.as_str()));
        assert!(
            refused
                .expect_err("too long")
                .to_string()
                .contains("2000 bytes")
        );
        let wild = SubjectTemplate::of(None, |name| (name == SUBJECT_ATTRIBUTE).then_some("a.>"));
        assert!(
            wild.expect_err("no subject")
                .to_string()
                .contains(SUBJECT_ATTRIBUTE)
        );
    }
}
