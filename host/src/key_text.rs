//! The form that texts have as parts of keys: the SDKs escape what would end a part, `%` and control
//! characters.

/// A text as a part of a key.
pub(crate) fn escaped(text: &str) -> String {
    let mut part = String::with_capacity(text.len());
    for character in text.chars() {
        if character == '/' || character == '%' || character.is_ascii_control() {
            part.push_str(&format!("%{:02X}", u32::from(character)));
        } else {
            part.push(character);
        }
    }
    part
}

/// A part of a key as it was before it was escaped. What is not an escape stays as it is.
pub(crate) fn unescaped(part: &str) -> String {
    let mut octets = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        let digits = behind.get(..2).filter(|_| *first == b'%');
        let escaped = digits
            .and_then(|digits| str::from_utf8(digits).ok())
            .filter(|digits| !digits.starts_with('+'))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        octets.push(escaped.unwrap_or(*first));
        rest = &rest[if escaped.is_some() { 2 } else { 0 }..];
    }
    String::from_utf8(octets).unwrap_or_else(|_| part.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_key_is_read_as_it_was_given() {
        assert_eq!(unescaped("a%2Fb%25%0A"), "a/b%\n");
        for odd in ["%", "%2", "%zz", "%+1", "100", "é"] {
            assert_eq!(unescaped(odd), odd);
        }
        for text in ["", "a/b", "100%", "%25", "é\u{7f}\n", "redacted-1"] {
            assert_eq!(unescaped(&escaped(text)), text);
        }
        assert_eq!(escaped("Smith/Jones é"), "Smith%2FJones é");
        assert_eq!(escaped("100%\u{7f}"), "100%25%7F");
    }
}
