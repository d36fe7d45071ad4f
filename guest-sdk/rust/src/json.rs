//! How values are written as JSON: the same text in each language, whatever release of serde_json a
//! project has.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Error;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};

/// Longest text of a finite number, in octets, with some to spare.
const NUMBER_BYTES_MAX: usize = 32;

/// Appends a value.
#[inline]
pub(crate) fn append<V: Serialize + ?Sized>(to: &mut Vec<u8>, value: &V) -> Result<(), Error> {
    value.serialize(&mut Serializer::with_formatter(to, OneForm))
}

/// The text of a value.
pub(crate) fn text<V: Serialize + ?Sized>(value: &V) -> Result<String, Error> {
    let mut octets = Vec::with_capacity(128);
    append(&mut octets, value)?;
    Ok(String::from_utf8(octets).expect("serde_json writes UTF-8"))
}

/// Writes large fractions as `1e16`. Releases of serde_json differ: some write `1e+16`.
struct OneForm;

impl Formatter for OneForm {
    fn write_f32<W: Write + ?Sized>(&mut self, to: &mut W, value: f32) -> io::Result<()> {
        without_plus(to, |number| CompactFormatter.write_f32(number, value))
    }

    fn write_f64<W: Write + ?Sized>(&mut self, to: &mut W, value: f64) -> io::Result<()> {
        without_plus(to, |number| CompactFormatter.write_f64(number, value))
    }
}

fn without_plus<W: Write + ?Sized>(
    to: &mut W,
    write: impl FnOnce(&mut &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut octets = [0; NUMBER_BYTES_MAX];
    let mut rest = octets.as_mut_slice();
    write(&mut rest)?;
    let length = NUMBER_BYTES_MAX - rest.len();
    let number = &octets[..length];
    // Only an exponent has one.
    match number.iter().position(|octet| *octet == b'+') {
        None => to.write_all(number),
        Some(plus) => {
            to.write_all(&number[..plus])?;
            to.write_all(&number[plus + 1..])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts that the tests of the other SDKs expect.
    const FRACTIONS: [&str; 17] = [
        "0.0",
        "-0.0",
        "1.0",
        "-1.5",
        "0.1",
        "123456789.125",
        "1000000000000000.0",
        "1e16",
        "1.5e300",
        "1.7976931348623157e308",
        "-1.7976931348623157e308",
        "5e-324",
        "0.0001",
        "0.00001",
        "0.000012",
        "1e-6",
        "1.25e-7",
    ];

    #[test]
    fn fractions_have_the_form_of_all_languages() {
        for wanted in FRACTIONS {
            let value: f64 = wanted.parse().expect("a number");
            assert_eq!(text(&value).expect("is written"), wanted);
            let member = serde_json::json!({ "a": [value, 1, "1e+16"] });
            let wanted = format!(r#"{{"a":[{wanted},1,"1e+16"]}}"#);
            assert_eq!(text(&member).expect("is written"), wanted);
        }
        assert_eq!(text(&1e20_f32).expect("is written"), "1e20");
        assert_eq!(text(&f64::NAN).expect("is written"), "null");
    }
}
