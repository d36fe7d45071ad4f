//! How a module carries schemas: a custom section of the WebAssembly file, with JSON in it.

use serde::{Deserialize, Serialize};

use super::{Error, EventSchema, check_names};

/// The name of the custom section.
pub(crate) const SECTION: &str = "foldstream:schemas";
/// Largest content of the section, in bytes.
pub(crate) const CARRIED_BYTES_MAX: usize = 128 << 10;
/// The form of the content.
const FORMAT: u32 = 1;

/// The content of the section.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Carried<T> {
    format: u32,
    schemas: T,
}

/// Parses the content of a section. The schemas themselves are not checked.
pub(crate) fn parse(content: &[u8]) -> Result<Vec<EventSchema>, Error> {
    if content.len() > CARRIED_BYTES_MAX {
        let bytes = content.len();
        return Err(Error::All(format!(
            "the schemas have {bytes} bytes together, at most {CARRIED_BYTES_MAX} are accepted"
        )));
    }
    let carried: Carried<Vec<EventSchema>> = serde_json::from_slice(content).map_err(|error| {
        Error::All(format!(
            "the section `{SECTION}` has not the form that `foldstream build` writes: {error}"
        ))
    })?;
    if carried.format != FORMAT {
        let format = carried.format;
        return Err(Error::All(format!(
            "its schemas have format {format}, this program reads {FORMAT}; upgrade foldstream"
        )));
    }
    check_names(&carried.schemas)?;
    Ok(carried.schemas)
}

/// The content of a section; empty for no schemas.
pub(crate) fn to_bytes(schemas: &[EventSchema]) -> Vec<u8> {
    if schemas.is_empty() {
        return Vec::new();
    }
    let carried = Carried {
        format: FORMAT,
        schemas,
    };
    serde_json::to_vec(&carried).expect("schemas are plain data")
}

/// A WebAssembly file with a section of schemas at its end, where every reader accepts one.
pub(crate) fn attach(module: &[u8], content: &[u8]) -> Vec<u8> {
    let name = [&leb128(SECTION.len()), SECTION.as_bytes()].concat();
    // 0 is the id of custom sections, also in components.
    let head = [&[0], leb128(name.len() + content.len()).as_slice()].concat();
    [module, &head, &name, content].concat()
}

/// A number as WebAssembly writes lengths.
fn leb128(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Direction;
    use super::*;
    use serde_json::json;

    fn schema(event: &str, version: u32) -> EventSchema {
        EventSchema {
            event: event.to_owned(),
            version,
            direction: Direction::Reads,
            schema: json!({ "type": "object" }),
        }
    }

    #[test]
    fn schemas_come_back_as_they_were() {
        let schemas = [schema("placed", 1), schema("placed", 2)];
        assert_eq!(parse(&to_bytes(&schemas)).expect("is sound"), schemas);
        assert_eq!(leb128(300), [0xac, 2]);
    }

    #[test]
    fn content_that_is_not_sound_is_refused() {
        let refused = |content: &[u8]| parse(content).expect_err("is refused").to_string();
        assert!(refused(b"{").contains("has not the form"));
        assert!(refused(br#"{"format":2,"schemas":[]}"#).contains("format 2"));
        assert!(refused(br#"{"format":1,"schemas":[],"more":1}"#).contains("unknown field"));
        assert!(refused(&vec![b' '; CARRIED_BYTES_MAX + 1]).contains("at most 131072"));
        assert!(refused(&to_bytes(&[schema("a", 1), schema("a", 1)])).contains("two schemas of a"));
        assert!(refused(&to_bytes(&[schema("", 1)])).contains("is empty"));
        assert!(refused(&to_bytes(&[schema("a", 0)])).contains("version 0"));
        assert!(refused(&to_bytes(&[schema("a.v2", 1)])).contains("names a version"));
        let twice = br#"{"format":1,"schemas":[{"event":"a","version":1,"direction":"reads",
            "schema":{"not":{"a":1,"a":2}}}]}"#;
        assert!(refused(twice).contains("two members are named"));
        let many: Vec<_> = (1..=129).map(|version| schema("a", version)).collect();
        assert!(refused(&to_bytes(&many)).contains("at most 128"));
        let deep = format!(r#"{{"format":1,"schemas":[{}"#, "[".repeat(10_000));
        assert!(refused(deep.as_bytes()).contains("has not the form"));
    }
}
