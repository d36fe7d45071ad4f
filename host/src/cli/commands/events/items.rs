//! Splits a file into events: one per line, in JSON arrays, or as a sequence of JSON values over
//! any number of lines. It reads the file as a stream and never holds all of it.

use std::io::{self, BufRead, Read as _};

use serde::de::IgnoredAny;

/// Longest event, in bytes.
pub(super) const ITEM_BYTES_MAX: usize = 16 << 20;

/// The first bytes of compressed files.
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// A byte-order mark, which some programs write before UTF-8.
const BYTE_ORDER_MARK: &[u8] = &[0xef, 0xbb, 0xbf];

/// Why there is no next event.
#[derive(Debug)]
pub(super) enum Error {
    /// The text is not an event: the line, and what is wrong with it.
    Malformed(u64, String),
    /// The file cannot be read.
    Unreadable(io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error)
    }
}

/// How events are separated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Not determined yet.
    Unknown,
    /// One per line.
    Lines,
    /// A sequence of JSON values.
    Values,
    /// Elements of an array.
    Array,
}

/// The events of a file.
pub(super) struct Items<R> {
    reader: R,
    form: Form,
    /// Whether a comma or the end of the array comes next.
    is_behind_element: bool,
    /// Lines that have ended, plus one for the current line.
    line: u64,
    /// Bytes read so far.
    pub bytes: u64,
}

impl<R: BufRead> Items<R> {
    /// The events of a reader.
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            form: Form::Unknown,
            is_behind_element: false,
            line: 1,
            bytes: 0,
        }
    }

    /// Appends the text of the next event to `body`, on one line, and returns the number of the
    /// line at which it begins; none at the end.
    pub(super) fn next(&mut self, body: &mut Vec<u8>) -> Result<Option<u64>, Error> {
        let begin = body.len();
        if self.form == Form::Unknown {
            self.begin(body)?;
            // A first line was read to tell the forms apart: it is the first event.
            if body.len() > begin {
                // Counted already, as the line that it ended.
                let line = self.line - 1;
                return match self.form {
                    // The first line was not a whole event: it is the beginning of an event over
                    // several lines.
                    Form::Values => self.finish(body, begin, line).map(Some),
                    _ if body.len() - begin > ITEM_BYTES_MAX => Err(too_long(line)),
                    _ => Ok(Some(line)),
                };
            }
        }
        match self.form {
            Form::Lines => self.next_line(body),
            Form::Values => self.next_value(body),
            Form::Array => self.next_element(body),
            Form::Unknown => Ok(None),
        }
    }

    /// Determines how events are separated. Leaves a line in `body` if it is the beginning of an
    /// event.
    fn begin(&mut self, body: &mut Vec<u8>) -> Result<(), Error> {
        // Not consumed: what is looked at here is read again by what follows.
        let start = self.reader.fill_buf()?;
        for (mark, program) in [(GZIP, "zcat"), (ZSTD, "zstdcat")] {
            if start.starts_with(mark) {
                let text = format!(
                    "the file is compressed; pipe it: {program} FILE | foldstream events import -"
                );
                return Err(Error::Malformed(1, text));
            }
        }
        if start.starts_with(BYTE_ORDER_MARK) {
            self.skip(BYTE_ORDER_MARK.len());
        }
        self.form = match self.peek_behind_space()? {
            None => return Ok(()),
            Some(b'[') => {
                self.skip(1);
                Form::Array
            }
            Some(_) => Form::Lines,
        };
        if self.form == Form::Array {
            return Ok(());
        }
        // A first line that ends within a value is not a complete event.
        let begin = body.len();
        self.read_line(body)?;
        // Ignored: only whether it is one whole value matters here.
        let first = serde_json::from_slice::<IgnoredAny>(&body[begin..]);
        if first.is_err_and(|error| error.is_eof()) && body[begin..].ends_with(b"\n") {
            self.form = Form::Values;
        } else if body[begin..].contains(&0x1e) {
            body.truncate(begin);
            return Err(Error::Malformed(
                1,
                "the file is a JSON text sequence (RFC 7464); write one event a line".to_owned(),
            ));
        }
        Ok(())
    }

    fn next_line(&mut self, body: &mut Vec<u8>) -> Result<Option<u64>, Error> {
        let begin = body.len();
        loop {
            let line = self.line;
            if !self.read_line(body)? {
                return Ok(None);
            }
            let text = body[begin..].trim_ascii();
            if text.len() > ITEM_BYTES_MAX {
                return Err(too_long(line));
            }
            if !text.is_empty() {
                return Ok(Some(line));
            }
            body.truncate(begin);
        }
    }

    /// Reads to the end of a line; returns whether there was one.
    fn read_line(&mut self, body: &mut Vec<u8>) -> Result<bool, Error> {
        let length = self
            .reader
            .by_ref()
            .take(ITEM_BYTES_MAX as u64 + 2)
            .read_until(b'\n', body)?;
        self.bytes += length as u64;
        self.line += 1;
        Ok(length > 0)
    }

    fn next_value(&mut self, body: &mut Vec<u8>) -> Result<Option<u64>, Error> {
        if self.peek_behind_space()?.is_none() {
            return Ok(None);
        }
        let (begin, line) = (body.len(), self.line);
        self.finish(body, begin, line).map(Some)
    }

    fn next_element(&mut self, body: &mut Vec<u8>) -> Result<Option<u64>, Error> {
        let malformed = |line: u64, text: &str| Err(Error::Malformed(line, text.to_owned()));
        loop {
            let mut next = self.peek_behind_space()?;
            if self.is_behind_element && next == Some(b',') {
                // One comma, and then an element must come.
                self.skip(1);
                next = self.peek_behind_space()?;
                if next == Some(b']') {
                    return malformed(self.line, "an element is missing after the comma");
                }
            } else if self.is_behind_element && !matches!(next, Some(b']') | None) {
                return malformed(self.line, "a comma is missing between two elements");
            }
            // Set before the element is read; an error ends the file anyway.
            self.is_behind_element = next != Some(b']');
            match next {
                None => return malformed(self.line, "the file ends within an array"),
                Some(b']') => self.skip(1),
                Some(_) => {
                    let (begin, line) = (body.len(), self.line);
                    return self.finish(body, begin, line).map(Some);
                }
            }
            // After an array another one may follow, as when files are joined.
            match self.peek_behind_space()? {
                None => return Ok(None),
                Some(b'[') => self.skip(1),
                Some(_) => return malformed(self.line, "there is text after the end of the array"),
            }
        }
    }

    /// Reads to the end of the value that begins at `begin` of `body`, or with the next byte;
    /// returns its line.
    fn finish(&mut self, body: &mut Vec<u8>, begin: usize, line: u64) -> Result<u64, Error> {
        // Everything that was read of it so far, again from its beginning.
        let mut scanner = Scanner::default();
        for byte in &mut body[begin..] {
            scanner.take(*byte);
            if matches!(*byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        loop {
            let bytes = self.reader.fill_buf()?;
            if bytes.is_empty() {
                break;
            }
            let (mut used, mut ended) = (0, false);
            for byte in bytes {
                // A number or a word ends before what follows it, which is not part of it.
                if scanner.ends_before(*byte) {
                    ended = true;
                    break;
                }
                used += 1;
                // JSON forbids it, and here it nearly always is a quote that is missing.
                if *byte == b'\n' && scanner.in_string {
                    return Err(Error::Malformed(
                        self.line,
                        "a string has a line break; write it as \\n".to_owned(),
                    ));
                }
                self.line += u64::from(*byte == b'\n');
                body.push(if matches!(byte, b'\n' | b'\r') {
                    b' '
                } else {
                    *byte
                });
                if scanner.take(*byte) {
                    ended = true;
                    break;
                }
            }
            self.skip(used);
            // Checked for each piece of the buffer: a string without an end must not fill the
            // memory.
            if body.len() - begin > ITEM_BYTES_MAX {
                return Err(too_long(line));
            }
            if ended {
                break;
            }
        }
        Ok(line)
    }

    /// The next byte that is not white space; none at the end.
    fn peek_behind_space(&mut self) -> Result<Option<u8>, Error> {
        loop {
            let bytes = self.reader.fill_buf()?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let space = bytes
                .iter()
                .take_while(|byte| byte.is_ascii_whitespace())
                .count();
            let lines = bytes[..space].iter().filter(|byte| **byte == b'\n').count();
            let found = bytes.get(space).copied();
            self.line += lines as u64;
            self.skip(space);
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    fn skip(&mut self, length: usize) {
        self.reader.consume(length);
        self.bytes += length as u64;
    }
}

fn too_long(line: u64) -> Error {
    Error::Malformed(
        line,
        format!("the event is longer than {ITEM_BYTES_MAX} bytes"),
    )
}

/// Finds the end of a JSON value without parsing it: whether it is valid is checked afterwards.
#[derive(Default)]
struct Scanner {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    has_begun: bool,
}

impl Scanner {
    /// Whether the value ended before this byte, as values without a closing character do.
    fn ends_before(&self, byte: u8) -> bool {
        let separates = byte.is_ascii_whitespace() || matches!(byte, b',' | b']' | b'}');
        // Only outermost values: inside of one, the same characters separate its parts.
        self.has_begun && self.depth == 0 && !self.in_string && separates
    }

    /// Takes a byte of the value; returns whether it was the last one.
    fn take(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => {
                    self.in_string = false;
                    // A text by itself is a value as well.
                    return self.depth == 0;
                }
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                // A value that is closed too often is found by the parser.
                return self.depth == 0;
            }
            _ => {}
        }
        self.has_begun |= !byte.is_ascii_whitespace();
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All events with their lines, and how it ended, read in pieces of some bytes.
    fn read(text: &[u8], piece: usize) -> (Vec<(u64, String)>, Option<String>) {
        let mut items = Items::new(io::BufReader::with_capacity(piece, text));
        let mut found = Vec::new();
        loop {
            let mut body = Vec::new();
            match items.next(&mut body) {
                Ok(Some(line)) => {
                    found.push((line, String::from_utf8_lossy(&body).trim().to_owned()));
                }
                Ok(None) => return (found, None),
                Err(Error::Malformed(line, text)) => {
                    return (found, Some(format!("{line}: {text}")));
                }
                Err(Error::Unreadable(error)) => panic!("{error}"),
            }
        }
    }

    fn lines_of(text: &str) -> Vec<u64> {
        let (found, end) = read(text.as_bytes(), 8 << 10);
        assert_eq!(end, None, "{text}");
        for (_, item) in &found {
            assert!(!item.contains('\n'), "{item}");
            serde_json::from_str::<IgnoredAny>(item).expect(item);
        }
        for piece in [4, 7] {
            assert_eq!(
                read(text.as_bytes(), piece),
                (found.clone(), None),
                "in pieces of {piece}: {text}"
            );
        }
        found.into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn events_are_found_however_they_are_separated() {
        for (text, lines) in [
            ("", vec![]),
            ("\n \n", vec![]),
            ("[]", vec![]),
            (" [ ]\n", vec![]),
            ("{\"a\":1}", vec![1]),
            ("\n{\"a\":1}\r\n\r\n{\"a\":2}\n", vec![2, 4]),
            ("\u{feff}{\"a\":1}\n", vec![1]),
            ("[{\"a\":1},{\"a\":2}]", vec![1, 1]),
            (
                "[\n  {\n    \"a\": \"],}{[\\\"\\\\\"\n  },\n  {\"b\": [1, {}]}\n]\n",
                vec![2, 5],
            ),
            ("[{}]\n[{}, {}]\n", vec![1, 2, 2]),
            ("{\n  \"a\": {\n    \"b\": [\n    ]\n  }\n}\n", vec![1]),
            ("{\n  \"a\": 1\n}\n{\n  \"a\": 2\n}\n{}", vec![1, 4, 7]),
            ("[1, \"two\", null, true]", vec![1, 1, 1, 1]),
        ] {
            assert_eq!(lines_of(text), lines, "{text}");
        }
    }

    #[test]
    fn what_is_malformed_is_named_by_its_line() {
        for (text, count, said) in [
            ("[{}", 1, "1: the file ends within an array"),
            ("[{},]", 1, "1: an element is missing"),
            ("[{}\n{}]", 1, "2: a comma is missing"),
            ("[{}]\nx", 1, "2: there is text after"),
            ("{\n\"a\": \"b\nc\"}", 0, "2: a string has a line break"),
        ] {
            let (found, end) = read(text.as_bytes(), 8 << 10);
            assert_eq!(found.len(), count, "{text}");
            assert!(
                end.as_deref().is_some_and(|end| end.starts_with(said)),
                "{text}: {end:?}"
            );
        }
        let (_, end) = read(&[0x1f, 0x8b, 8, 0], 8 << 10);
        assert!(end.expect("it is compressed").contains("zcat"));
        // A line that is broken off is one event, and the next one begins behind it.
        let (found, _) = read(b"{\"a\":1}\n{\n{\"a\":2}\n", 8 << 10);
        assert_eq!(
            found.iter().map(|(line, _)| *line).collect::<Vec<_>>(),
            [1, 2, 3]
        );
    }

    #[test]
    fn an_event_that_never_ends_is_given_up() {
        let endless = io::BufReader::new(b"[{\"a\":\"".chain(io::repeat(b'x')));
        let mut items = Items::new(endless);
        assert!(matches!(
            items.next(&mut Vec::new()),
            Err(Error::Malformed(1, _))
        ));
        let endless = io::BufReader::new(b"{\"a\":\"".chain(io::repeat(b'x')));
        assert!(matches!(
            Items::new(endless).next(&mut Vec::new()),
            Err(Error::Malformed(1, _)) | Ok(Some(1))
        ));
    }
}
