//! Keys of tables: readable text that sorts like the values that it encodes.
//!
//! A table's name and the parts of its key are joined by slashes, as in
//! `day/42/2026-11-23`. Each kind of part has a fixed form:
//!
//! | Rust | text | order |
//! |---|---|---|
//! | `u8` `u16` `u32` `u64` | 3, 5, 10, 20 digits | by number |
//! | `i8` `i16` `i32` `i64` | `p` and the digits; below zero `n` and the distance from the smallest | by number |
//! | `bool` | `0`, `1` | `false` first |
//! | [`Date`] | `2026-11-23` | by time |
//! | [`Timestamp`] | `2026-11-23T14:05:06.123456789Z` | by time |
//! | `String` | itself, with `%`, `/` and control characters as `%25`, `%2F`, `%0A` | by its bytes in this form |
//! | tuples of 2 to 4 | the parts | by the first part, then by the second … |
//!
//! Everything except text has a fixed width, so it sorts exactly at any place. Text also sorts
//! exactly if it has only letters, digits and characters after `/` in ASCII. For other text, note
//! two things: an escaped character sorts like `%`, and before further parts a text sorts as if it
//! ended with `/`, so `a-b` comes before `a`. Entries with the same leading parts are always
//! adjacent. To search for the beginning of a text, use
//! [`Scan::starting_with`](crate::Scan::starting_with), not a range.

use std::error::Error;
use std::fmt::{self, Display};

use crate::cached_key::word;
use crate::time::{Date, Timestamp};

/// A type that can be the key of a [`Table`](crate::Table).
///
/// Implement it for your own types by delegating to a type that implements it:
///
/// ```
/// use foldstream_sdk::key::{Key, KeyError, KeyReader, KeyWriter};
///
/// #[derive(Clone, Copy, Debug, PartialEq)]
/// struct Customer(u32);
///
/// impl Key for Customer {
///     type Ref<'a> = Self;
///     fn write(key: Self, writer: &mut KeyWriter<'_>) {
///         u32::write(key.0, writer);
///     }
///     fn read(reader: &mut KeyReader<'_>) -> Result<Self, KeyError> {
///         u32::read(reader).map(Self)
///     }
/// }
/// ```
pub trait Key: Sized {
    /// How a key is passed to the table: `&str` for `String`, the number itself for a number.
    type Ref<'a>: Copy;

    /// Appends the parts of a key.
    fn write(key: Self::Ref<'_>, writer: &mut KeyWriter<'_>);

    /// Takes the same parts back.
    fn read(reader: &mut KeyReader<'_>) -> Result<Self, KeyError>;
}

/// A key of several parts, which can be scanned by its leading parts.
pub trait Compound: Key {
    /// Its first part.
    type First: Key;

    /// The parts after the first.
    type Rest: Key;
}

/// A key of three or more parts.
pub trait Compound3: Compound {
    /// Its second part.
    type Second: Key;
}

/// Receives the parts of a key.
// Octets, because they are compared and hashed more often than they are displayed; always UTF-8.
#[derive(Debug)]
pub struct KeyWriter<'a> {
    octets: &'a mut Vec<u8>,
}

impl<'a> KeyWriter<'a> {
    #[inline]
    pub(crate) fn new(octets: &'a mut Vec<u8>) -> Self {
        Self { octets }
    }

    /// Adds a part that is any text.
    #[inline]
    pub fn text(&mut self, part: &str) {
        self.octets.reserve(part.len() + 9);
        self.octets.push(b'/');
        let start = self.octets.len();
        // Eight octets at a time: nearly all keys need no escaping, and this runs for each event.
        let words = part.as_bytes().chunks_exact(8);
        let rest = words.remainder();
        for octets in words {
            if has_escaped(word(octets)) {
                return self.escape(start, part);
            }
            self.octets.extend_from_slice(octets);
        }
        for byte in rest {
            if is_escaped(*byte) {
                return self.escape(start, part);
            }
            self.octets.push(*byte);
        }
    }

    /// Adds a part of `width` digits, with leading zeros. The number must fit.
    #[inline]
    pub fn digits(&mut self, number: u64, width: usize) {
        self.octets.push(b'/');
        self.bare_digits(number, width);
    }

    #[inline]
    fn bare_digits(&mut self, mut number: u64, width: usize) {
        // A number with more digits than `width` loses its first ones: callers give a width that
        // fits.
        let mut digits = [b'0'; 20];
        for digit in digits[20 - width..].iter_mut().rev() {
            *digit += (number % 10) as u8;
            number /= 10;
        }
        self.octets.extend_from_slice(&digits[20 - width..]);
    }

    /// Adds a part that needs no escaping.
    fn plain(&mut self, part: impl Display) {
        use std::io::Write as _;
        write!(self.octets, "/{part}").expect("memory takes all that is written");
    }

    /// Rewrites a text from its start, with escapes.
    #[cold]
    fn escape(&mut self, start: usize, part: &str) {
        self.octets.truncate(start);
        for byte in part.bytes() {
            if is_escaped(byte) {
                // Upper case, so that each text has one form only.
                let [high, low] = [byte >> 4, byte & 15].map(|digit| HEX[usize::from(digit)]);
                self.octets.extend_from_slice(&[b'%', high, low]);
            } else {
                self.octets.push(byte);
            }
        }
    }
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

const fn is_escaped(byte: u8) -> bool {
    byte < 0x20 || byte == b'/' || byte == b'%' || byte == 0x7f
}

/// Whether any of eight octets needs escaping; keys are encoded for each event.
#[inline]
const fn has_escaped(word: u64) -> bool {
    const ONES: u64 = u64::MAX / 255;
    const fn below(word: u64, limit: u64) -> u64 {
        // The highest bit of an octet is set by a borrow: it was smaller, and no highest bit
        // itself.
        word.wrapping_sub(ONES * limit) & !word
    }
    const fn equal(word: u64, byte: u8) -> u64 {
        below(word ^ (ONES * byte as u64), 1)
    }
    (below(word, 0x20) | equal(word, b'/') | equal(word, b'%') | equal(word, 0x7f)) & (ONES * 0x80)
        != 0
}

/// The parts of a key, one after another.
#[derive(Debug)]
pub struct KeyReader<'a> {
    rest: Option<&'a str>,
}

impl<'a> KeyReader<'a> {
    /// Reads the text after a table's name, which begins with a slash unless it is empty.
    pub(crate) fn new(text: &'a str) -> Self {
        Self {
            // An empty text has no parts, as the key of a single value.
            rest: text.strip_prefix('/'),
        }
    }

    /// The next part as in the key.
    pub fn part(&mut self) -> Result<&'a str, KeyError> {
        let rest = self.rest.ok_or(KeyError {
            expected: "one more part",
        })?;
        match rest.split_once('/') {
            Some((part, rest)) => {
                self.rest = Some(rest);
                Ok(part)
            }
            None => {
                self.rest = None;
                Ok(rest)
            }
        }
    }

    pub(crate) fn end(&self) -> Result<(), KeyError> {
        if self.rest.is_some() {
            Err(KeyError {
                expected: "no further part",
            })
        } else {
            Ok(())
        }
    }

    fn number(&mut self, width: usize) -> Result<u64, KeyError> {
        let part = self.part()?;
        // Only the exact form: `+1` and short numbers would parse, and sort elsewhere.
        let fits = part.len() == width && part.bytes().all(|byte| byte.is_ascii_digit());
        fits.then(|| part.parse().ok()).flatten().ok_or(KeyError {
            expected: "a number of fixed width",
        })
    }
}

/// A stored key does not have the format that the table's type requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyError {
    expected: &'static str,
}

impl KeyError {
    /// Says what was expected.
    pub const fn expected(expected: &'static str) -> Self {
        Self { expected }
    }

    pub(crate) fn expectation(&self) -> &'static str {
        self.expected
    }
}

impl Display for KeyError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "expected {} in the key; raise the state version if keys change their format",
            self.expected
        )
    }
}

impl Error for KeyError {}

impl Key for String {
    type Ref<'a> = &'a str;

    #[inline]
    fn write(key: &str, writer: &mut KeyWriter<'_>) {
        writer.text(key);
    }

    fn read(reader: &mut KeyReader<'_>) -> Result<Self, KeyError> {
        unescape(reader.part()?).ok_or(KeyError {
            expected: "two hexadecimal digits after each %",
        })
    }
}

fn unescape(part: &str) -> Option<String> {
    let mut pieces = part.split('%');
    let mut text = pieces.next()?.to_owned();
    for piece in pieces {
        let digits = piece
            .get(..2)
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        let byte = u8::from_str_radix(digits, 16).ok().filter(u8::is_ascii)?;
        text.push(char::from(byte));
        text.push_str(&piece[2..]);
    }
    Some(text)
}

/// The text of a key, as it follows a table's name in the state.
pub fn encode<K: Key>(key: K::Ref<'_>) -> String {
    encode_behind::<K>("", key)
}

/// The same, appended to the name of a table.
pub(crate) fn encode_behind<K: Key>(name: &str, key: K::Ref<'_>) -> String {
    let mut octets = name.as_bytes().to_vec();
    K::write(key, &mut KeyWriter::new(&mut octets));
    String::from_utf8(octets).expect("keys are UTF-8")
}

/// Decodes a key from the text that [`encode`] returns.
pub fn decode<K: Key>(text: &str) -> Result<K, KeyError> {
    let mut reader = KeyReader::new(text);
    let key = K::read(&mut reader)?;
    reader.end()?;
    Ok(key)
}

macro_rules! unsigned {
    ($($kind:ty, $width:literal;)*) => {$(
        impl Key for $kind {
            type Ref<'a> = $kind;

            #[inline]
            fn write(key: $kind, writer: &mut KeyWriter<'_>) {
                writer.digits(u64::from(key), $width);
            }

            fn read(reader: &mut KeyReader<'_>) -> Result<Self, KeyError> {
                <$kind>::try_from(reader.number($width)?).map_err(|_| KeyError { expected: "a \
                    smaller number" })
            }
        }
    )*};
}
unsigned! { u8, 3; u16, 5; u32, 10; u64, 20; }

macro_rules! signed {
    ($($kind:ty, $width:literal;)*) => {$(
        impl Key for $kind {
            type Ref<'a> = $kind;

            #[inline]
            fn write(key: $kind, writer: &mut KeyWriter<'_>) {
                // Below zero the distance from the smallest: it rises with the number, as texts
                // must.
                let (sign, origin) = if key < 0 { (b"/n", <$kind>::MIN) } else { (b"/p", 0) };
                writer.octets.extend_from_slice(sign);
                writer.bare_digits(u64::from(key.abs_diff(origin)), $width);
            }

            fn read(reader: &mut KeyReader<'_>) -> Result<Self, KeyError> {
                const FORM: KeyError = KeyError { expected: "p or n with a number of fixed width" };
                let part = reader.part()?;
                let (sign, digits) = part.split_at_checked(1).ok_or(FORM)?;
                let fits = digits.len() == $width && digits.bytes().all(|byte| byte.is_ascii_digit());
                let distance: $kind = fits.then(|| digits.parse().ok()).flatten().ok_or(FORM)?;
                match sign {
                    "p" => Ok(distance),
                    "n" => Ok(<$kind>::MIN + distance),
                    _ => Err(FORM),
                }
            }
        }
    )*};
}
signed! { i8, 3; i16, 5; i32, 10; i64, 19; }

impl Key for bool {
    type Ref<'a> = bool;

    fn write(key: bool, writer: &mut KeyWriter<'_>) {
        writer.digits(u64::from(key), 1);
    }

    fn read(reader: &mut KeyReader<'_>) -> Result<Self, KeyError> {
        match reader.number(1)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(KeyError { expected: "0 or 1" }),
        }
    }
}

macro_rules! fixed_text {
    ($($kind:ty, $expected:literal;)*) => {$(
        impl Key for $kind {
            type Ref<'a> = $kind;

            fn write(key: $kind, writer: &mut KeyWriter<'_>) {
                writer.plain(key);
            }

            fn read(reader: &mut KeyReader<'_>) -> Result<Self, KeyError> {
                reader.part()?.parse().map_err(|_| KeyError { expected: $expected })
            }
        }
    )*};
}
fixed_text! { Date, "a date"; Timestamp, "a time"; }

/// No parts: the key of a [`Value`](crate::Value) is its name alone.
impl Key for () {
    type Ref<'a> = ();

    fn write(_: (), _: &mut KeyWriter<'_>) {}

    fn read(_: &mut KeyReader<'_>) -> Result<Self, KeyError> {
        Ok(())
    }
}

macro_rules! tuple {
    ($($part:ident $value:ident),*) => {
        impl<$($part: Key),*> Key for ($($part,)*) {
            type Ref<'a> = ($($part::Ref<'a>,)*);

            #[inline]
            fn write(($($value,)*): Self::Ref<'_>, writer: &mut KeyWriter<'_>) {
                $($part::write($value, writer);)*
            }

            fn read(reader: &mut KeyReader<'_>) -> Result<Self, KeyError> {
                Ok(($($part::read(reader)?,)*))
            }
        }
    };
}
tuple!(A a, B b);
tuple!(A a, B b, C c);
tuple!(A a, B b, C c, D d);

impl<A: Key, B: Key> Compound for (A, B) {
    type First = A;
    type Rest = B;
}
impl<A: Key, B: Key, C: Key> Compound for (A, B, C) {
    type First = A;
    type Rest = (B, C);
}
impl<A: Key, B: Key, C: Key> Compound3 for (A, B, C) {
    type Second = B;
}
impl<A: Key, B: Key, C: Key, D: Key> Compound for (A, B, C, D) {
    type First = A;
    type Rest = (B, C, D);
}
impl<A: Key, B: Key, C: Key, D: Key> Compound3 for (A, B, C, D) {
    type Second = B;
}
