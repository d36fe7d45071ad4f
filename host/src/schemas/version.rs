//! How a type names a version: `placed.v2` is version 2 of `placed`. There is one way to write each.

/// The type and the version that a name is about.
pub(super) fn versioned(name: &str) -> (&str, u32) {
    version_named(name).unwrap_or((name, 1))
}

/// The type and the version that a name names, if it names a version.
pub(super) fn version_named(name: &str) -> Option<(&str, u32)> {
    let (event, digits) = split(name)?;
    Some((event, version(digits)?))
}

/// Why a name is no type of an event; none if it is one. A type that ends like a version would be
/// taken for one, or for another one.
pub(super) fn misplaced(event: &str) -> Option<String> {
    let (of, digits) = split(event)?;
    Some(match version(digits) {
        Some(version) => format!(
            "the type {event} names a version; the schema is that of the event {of}, version \
             {version}"
        ),
        None => format!(
            "the type {event} ends like a version, and v{digits} is none; versions are v1, v2 and \
             so on"
        ),
    })
}

/// A name before and behind `.v`, if digits are all that follows.
fn split(name: &str) -> Option<(&str, &str)> {
    let (event, last) = name.rsplit_once('.')?;
    let digits = last.strip_prefix('v')?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some((event, digits))
}

fn version(digits: &str) -> Option<u32> {
    digits.parse().ok().filter(|_| !digits.starts_with('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_a_type_and_a_version() {
        for (name, expected) in [
            ("placed", ("placed", 1)),
            ("placed.v1", ("placed", 1)),
            ("placed.v2", ("placed", 2)),
            ("com.example.placed.v12", ("com.example.placed", 12)),
            ("v2", ("v2", 1)),
            ("a.v", ("a.v", 1)),
            ("a.v+2", ("a.v+2", 1)),
            ("a.v02", ("a.v02", 1)),
        ] {
            assert_eq!(versioned(name), expected);
        }
    }

    #[test]
    fn types_that_end_like_a_version_are_none() {
        for event in [
            "placed",
            "v2",
            "a.v",
            "a.v+2",
            "a.v2.b",
            "a.version2",
            "av2",
        ] {
            assert_eq!(misplaced(event), None);
        }
        for event in ["a.v0", "a.v02", "a.v99999999999"] {
            let why = misplaced(event).expect("is none");
            assert!(why.contains("ends like a version"), "{why}");
        }
        let why = misplaced("a.b.v2").expect("names a version");
        assert!(why.contains("of the event a.b, version 2"), "{why}");
    }
}
