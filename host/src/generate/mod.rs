//! Types of other languages, made of the JSON Schemas of events: `foldstream generate`.
//!
//! `jsonschema` checks the schemas (`schemas/`); the reader makes one form of all of them
//! (`shape.rs`), and a printer per language writes what the decoder of its SDK takes. So names,
//! optional members and the order of members are the same in each language, and so are the bytes
//! that the SDKs store.
//!
//! No library does this: generators for several languages run on Node or Go, which a user of the one
//! binary may not have. For Rust alone there is `typify`, which knows no draft after draft-07, ends
//! with a panic at schemas that it does not expect, and needs further crates in every module.
//!
//! A type accepts everything that fits its schema, and keeps it. Limits such as `minLength` are left
//! to the check against the schema. What a type cannot say is an error with its place, unless the
//! user asks for JSON as it is there.

mod alternatives;
mod facts;
mod go;
mod members;
mod names;
mod python;
mod read;
mod rust;
mod shape;
mod text;
mod typescript;

use crate::schemas::{self, EventSchema};
use shape::Document;

/// Most places that an error names.
const SHOWN_MAX: usize = 20;

/// A language of types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Structs and enums for serde.
    Rust,
    /// Interfaces, and the types by which the SDK checks.
    TypeScript,
    /// Dataclasses.
    Python,
    /// Structs with tags, in a package.
    Go {
        /// The package.
        package: String,
    },
}

/// What to do with what a type cannot say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inexpressible {
    /// Nothing is generated.
    Refuse,
    /// It has the type of any JSON.
    AnyJson,
}

/// Types of texts with a `format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Formats {
    /// `date` and `date-time` are the dates and times of the SDK.
    Typed,
    /// They are texts, like all others.
    Text,
}

/// What was generated.
#[derive(Debug)]
pub(crate) struct Generated {
    /// The file.
    pub code: String,
    /// The type of each event, in the order of events.
    pub events: Vec<(EventSchema, String)>,
    /// Places that have the type of any JSON because no type says what they are.
    pub loose: Vec<Place>,
}

/// A place in a schema, and why it has no type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The version of the event.
    pub event: String,
    /// The place, as a JSON pointer.
    pub pointer: String,
    /// In words.
    pub reason: String,
}

/// Why nothing was generated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is nothing to generate from.
    #[error("there are no schemas")]
    Nothing,
    /// A schema is refused.
    #[error("{0}")]
    Schema(#[from] schemas::Error),
    /// The language has no types for this.
    #[error(
        "{} has no types for this; change the schema, or accept any JSON there with --any{}",
        .language, shown(.places)
    )]
    Inexpressible {
        /// The language, for people.
        language: &'static str,
        /// Each place.
        places: Vec<Place>,
    },
    /// A schema takes too much work.
    #[error("the schema of {event} has too many alternatives to generate types")]
    TooMuch {
        /// The version of the event.
        event: String,
    },
}

fn shown(places: &[Place]) -> String {
    let mut text = String::new();
    for place in places.iter().take(SHOWN_MAX) {
        let (event, at, reason) = (&place.event, place.shown(), &place.reason);
        text.push_str(&format!("\n  {event} at {at}: {reason}"));
    }
    if places.len() > SHOWN_MAX {
        text.push_str(&format!("\n  and {} more", places.len() - SHOWN_MAX));
    }
    text
}

impl Place {
    /// The place, for people.
    pub(crate) fn shown(&self) -> &str {
        match self.pointer.as_str() {
            "" => "the whole schema",
            pointer => pointer,
        }
    }
}

impl Target {
    /// Its name, for people.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Rust => "Rust",
            Self::TypeScript => "TypeScript",
            Self::Python => "Python",
            Self::Go { .. } => "Go",
        }
    }
}

/// Generates the types of some events. The same schemas give the same bytes.
pub(crate) fn generate(
    schemas: &[EventSchema],
    target: &Target,
    inexpressible: Inexpressible,
    formats: Formats,
) -> Result<Generated, Error> {
    if schemas.is_empty() {
        return Err(Error::Nothing);
    }
    schemas::check(schemas)?;
    let mut document = read::document(schemas, formats)?;
    if let Target::Go { .. } = target {
        go::limit(&mut document);
    }
    if inexpressible == Inexpressible::Refuse && !document.loose.is_empty() {
        return Err(Error::Inexpressible {
            language: target.name(),
            places: document.loose,
        });
    }
    let printed = match target {
        Target::Rust => rust::print(&document),
        Target::TypeScript => typescript::print(&document),
        Target::Python => python::print(&document),
        Target::Go { package } => go::print(&document, package),
    };
    let Document { events, loose, .. } = document;
    let events = events.into_iter();
    let events = events.map(|(event, root)| (event, printed.names[root].clone()));
    Ok(Generated {
        code: printed.code,
        events: events.collect(),
        loose,
    })
}

#[cfg(test)]
mod tests;
