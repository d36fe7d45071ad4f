//! Comments and literals that stay what they are, whatever a schema says.

/// The width at which comments are wrapped.
const WIDTH: usize = 96;
/// Most bytes of a paragraph in a comment.
const PARAGRAPH_BYTES_MAX: usize = 4 << 10;

/// Characters that end a line, steer a terminal or turn the direction of code.
pub(super) fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{2028}' | '\u{2029}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{feff}'
        )
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The paragraphs of a comment as lines that fit behind an indentation of this width.
pub(super) fn wrapped(paragraphs: &[String], indent: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in paragraphs {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        let mut line = String::new();
        for word in words(paragraph) {
            let is_full = line.chars().count() + 1 + word.chars().count() > WIDTH - indent;
            if is_full && !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(&word);
        }
        if !line.is_empty() {
            lines.push(line);
        }
    }
    lines
}

/// The words of a text, without what could end a comment or turn its direction.
fn words(text: &str) -> Vec<String> {
    let mut end = text.len().min(PARAGRAPH_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let plain: String = text[..end]
        .chars()
        .map(|c| if is_harmful(c) { ' ' } else { c })
        .collect();
    plain.split_whitespace().map(str::to_owned).collect()
}

/// A text in double quotes, with `escape` for what may not be in it.
pub(super) fn quoted(text: &str, escape: impl Fn(char) -> String) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if is_harmful(c) => quoted.push_str(&escape(c)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A character as JavaScript, Python and Go write it. All harmful ones have at most 16 bits.
pub(super) fn unicode_escape(c: char) -> String {
    format!("\\u{:04x}", u32::from(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_wrapped_and_cannot_end() {
        let long = "word ".repeat(30);
        let lines = wrapped(&["a\nb\u{202e}c\u{2028}d".to_owned(), long], 4);
        assert_eq!(lines[..2], ["a b c d", ""]);
        assert_eq!(lines.len(), 4);
        assert!(lines.iter().all(|line| line.len() <= 92));
        let huge = "é".repeat(3_000);
        assert_eq!(wrapped(&[huge], 0)[0].len(), 4_096);
    }

    #[test]
    fn literals_are_escaped() {
        let text = quoted("a\"\\\n\u{202e}é", unicode_escape);
        assert_eq!(text, "\"a\\\"\\\\\\u000a\\u202eé\"");
    }
}
