//! The rules for each attribute. Source: `cloudevents/spec.md` of
//! <https://github.com/cloudevents/spec>, "Context Attributes" and "Type System".

use iri_string::spec::IriSpec;
use iri_string::validate;
use mediatype::MediaType;

use super::Error;
use crate::timestamp;

/// Longest name, in bytes. The specification advises 20; a much longer name is a mistake.
const NAME_BYTES_MAX: usize = 64;

/// Attributes that every event has.
pub(super) const REQUIRED: [&str; 4] = ["specversion", "id", "source", "type"];
/// The only supported version; it does not include patch levels.
const VERSION: &str = "1.0";

/// Checks the name of an attribute.
pub fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty()
        || !name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    {
        return Err(Error::attribute(
            name,
            "has a name that is not of lower-case letters and digits; rename it",
        ));
    }
    if name.len() > NAME_BYTES_MAX {
        let reason = format!(
            "has a name of {} characters; use at most 20 (this host accepts {NAME_BYTES_MAX})",
            name.len()
        );
        return Err(Error::attribute(name, reason));
    }
    if name == "data" {
        return Err(Error::attribute(
            name,
            "is the name of the data, and no attribute may have it",
        ));
    }
    Ok(())
}

/// Checks the value of an attribute, as text.
pub fn check_text(name: &str, text: &str) -> Result<(), Error> {
    let refused = |reason: String| Err(Error::attribute(name, reason));
    // Nearly all values are printable ASCII, for which one look at the bytes is enough.
    let is_plain = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    let found = if is_plain {
        None
    } else {
        text.chars().find(|character| is_disallowed(*character))
    };
    if let Some(bad) = found {
        return refused(format!(
            "has the character U+{:04X}, which attributes must not contain; remove it",
            u32::from(bad)
        ));
    }
    // Extensions may be empty; what the specification defines may not.
    let is_core = REQUIRED.contains(&name)
        || matches!(name, "subject" | "time" | "dataschema" | "datacontenttype");
    if is_core && text.is_empty() {
        return refused("is empty; give it a value or leave it out".to_owned());
    }
    let found = || super::clip(text);
    match name {
        "specversion" if text != VERSION => refused(format!(
            "is {}; this host reads CloudEvents {VERSION}",
            found()
        )),
        // A source should be a URI reference. Senders put spaces into it all the same, and nothing
        // here parses it. Senders also use IRIs, which are URIs with letters beyond ASCII.
        "dataschema" if validate::iri::<IriSpec>(text).is_err() => refused(format!(
            "is {}, which is not an absolute URI (RFC 3986); begin it with a scheme",
            found()
        )),
        "datacontenttype" if MediaType::parse(text).is_err() => refused(format!(
            "is {}, which is not a media type (RFC 2046); write it like application/json",
            found()
        )),
        "time" => match timestamp::parse(text) {
            // A time that the host cannot compute with is still one.
            Ok(_) | Err(timestamp::Error::Range) => Ok(()),
            Err(error) => refused(format!("is {}, which {error}", found())),
        },
        _ => Ok(()),
    }
}

/// Checks that an event has the required attributes.
pub fn check_required<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<(), Error> {
    match REQUIRED.iter().find(|name| get(name).is_none()) {
        Some(missing) => Err(Error::attribute(
            missing,
            "is missing, and every event needs it",
        )),
        None => Ok(()),
    }
}

/// Control characters and noncharacters. Our texts cannot contain surrogates.
pub(super) fn is_disallowed(character: char) -> bool {
    let code = u32::from(character);
    // The last two code points of each plane are noncharacters, too.
    matches!(code, 0..=0x1f | 0x7f..=0x9f | 0xfdd0..=0xfdef) || code & 0xfffe == 0xfffe
}
