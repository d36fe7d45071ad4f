//! Values of attributes in headers: percent-encoding, and the quotes of older senders. Source:
//! `bindings/http-protocol-binding.md` and `bindings/nats-protocol-binding.md`, 3.1.3.2.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The text of a header's value; none if it is not UTF-8. A percent sign without two hexadecimal
/// digits is kept as it is.
pub fn decode(value: &str) -> Option<Cow<'_, str>> {
    let value = unquote(value);
    if !value.contains('%') {
        return Some(value);
    }
    let bytes = value.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        // Looked up by `get`: a percent sign may stand at the end.
        let digit = |offset: usize| {
            bytes
                .get(at + offset)
                .and_then(|byte| char::from(*byte).to_digit(16))
        };
        match (bytes[at], digit(1), digit(2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, _, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    // Octets of one character may be encoded apart, so only the whole can be checked.
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

/// The header's value for a text: space, double quote, percent sign and everything that is not
/// printable ASCII are encoded.
pub fn encode(text: &str) -> Cow<'_, str> {
    encode_where(text, |character| {
        !('\u{21}'..='\u{7e}').contains(&character) || matches!(character, '"' | '%')
    })
}

/// Encodes the characters that need it, each of their octets like `%41`.
pub(super) fn encode_where(text: &str, is_encoded: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&is_encoded) {
        return Cow::Borrowed(text);
    }
    let mut encoded = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_encoded(character) {
            let mut buffer = [0; 4];
            for byte in character.encode_utf8(&mut buffer).bytes() {
                write!(encoded, "%{byte:02X}").expect("a string takes everything");
            }
        } else {
            encoded.push(character);
        }
    }
    Cow::Owned(encoded)
}

/// A value without its double quotes and the backslashes in them (RFC 7230, 3.2.6).
fn unquote(value: &str) -> Cow<'_, str> {
    let inner = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let Some(inner) = inner else {
        return Cow::Borrowed(value);
    };
    if !inner.contains('\\') {
        return Cow::Borrowed(inner);
    }
    let mut unquoted = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        // A backslash means the character after it; at the end it means nothing.
        unquoted.extend(if character == '\\' {
            characters.next()
        } else {
            Some(character)
        });
    }
    Cow::Owned(unquoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_from_their_headers() {
        for text in [
            "",
            "plain/text",
            "Euro € 😀",
            "100%",
            "a%20b",
            "\"quoted\"",
            "tab\tand\nline",
        ] {
            let encoded = encode(text);
            assert!(
                encoded.bytes().all(|byte| (0x21..0x7f).contains(&byte)),
                "{encoded}"
            );
            assert_eq!(decode(&encoded).as_deref(), Some(text));
        }
        assert_eq!(encode("Euro € 😀"), "Euro%20%E2%82%AC%20%F0%9F%98%80");
    }

    #[test]
    fn older_and_careless_senders_are_understood() {
        for (value, text) in [
            ("\"two words\"", "two words"),
            (r#""a \"b\" \\c""#, r#"a "b" \c"#),
            ("\"", "\""),
            ("%41%62", "Ab"),
            ("%e2%82%ac", "€"),
            ("100%", "100%"),
            ("%zz%4", "%zz%4"),
            ("ä", "ä"),
        ] {
            assert_eq!(decode(value).as_deref(), Some(text), "{value}");
        }
    }

    #[test]
    fn octets_that_are_no_text_are_refused() {
        for value in ["%ff", "%C0%A0", "%ed%a0%80", "a%80"] {
            assert_eq!(decode(value), None, "{value}");
        }
    }
}
