//! Times as text: RFC 3339 only, and nothing that merely looks like a time.
//! Source: <https://www.rfc-editor.org/rfc/rfc3339#section-5.6>.

use jiff::Timestamp;
use jiff::civil::DateTime;

/// Digits of a fraction to keep; RFC 3339 allows any number of them.
const FRACTION_DIGITS_MAX: usize = 9;

/// Why a text is not the time of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is not in RFC 3339.
    #[error("is not a time in RFC 3339; write it like 2026-11-20T10:00:00Z")]
    Malformed,
    /// It is outside the range of a log.
    #[error("is not between 1970 and 2554, the times that an event can have")]
    Range,
}

/// Parses a time strictly. Digits beyond nanoseconds are dropped.
pub fn parse(text: &str) -> Result<Timestamp, Error> {
    // The part before the fraction has a fixed length.
    let (whole, rest) = text.split_at_checked(19).ok_or(Error::Malformed)?;
    let shape = whole.bytes().zip(b"dddd-dd-ddTdd:dd:dd");
    let fits = |(byte, wanted): (u8, &u8)| match wanted {
        b'd' => byte.is_ascii_digit(),
        b'T' => byte.eq_ignore_ascii_case(&b'T'),
        other => byte == *other,
    };
    // After the date, whose hyphens are before this.
    let (fraction, offset) =
        rest.split_at(rest.find(['Z', 'z', '+', '-']).ok_or(Error::Malformed)?);
    if !shape.into_iter().all(fits) || !is_fraction(fraction) || !is_offset(offset) {
        return Err(Error::Malformed);
    }
    let fraction = &fraction[..fraction.len().min(1 + FRACTION_DIGITS_MAX)];
    // The parser takes some forms that RFC 3339 does not have; they were refused above.
    let text = format!("{whole}{fraction}{offset}").to_ascii_uppercase();
    text.parse().map_err(|_| {
        // It has no room for an offset at the ends of its range, such as the last day of 9999.
        match whole.to_ascii_uppercase().parse::<DateTime>() {
            Ok(_) => Error::Range,
            Err(_) => Error::Malformed,
        }
    })
}

/// Parses a time as nanoseconds since the Unix epoch.
pub fn parse_ns(text: &str) -> Result<u64, Error> {
    u64::try_from(parse(text)?.as_nanosecond()).map_err(|_| Error::Range)
}

/// A time in UTC, with nanoseconds.
pub fn format_ns(time_ns: u64) -> String {
    let time = Timestamp::from_nanosecond(i128::from(time_ns))
        .expect("64 bits of nanoseconds end in 2554");
    format!("{time:.9}")
}

fn is_fraction(text: &str) -> bool {
    match text.strip_prefix('.') {
        Some(digits) => !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()),
        None => text.is_empty(),
    }
}

fn is_offset(text: &str) -> bool {
    if matches!(text, "Z" | "z") {
        return true;
    }
    let bytes = text.as_bytes();
    let number = |at: usize| {
        text[at..at + 2]
            .parse::<u8>()
            .ok()
            .filter(|_| bytes[at].is_ascii_digit())
    };
    bytes.len() == 6
        && text.is_ascii()
        && bytes[3] == b':'
        && number(1).is_some_and(|hours| hours < 24)
        && number(4).is_some_and(|minutes| minutes < 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back() {
        for text in [
            "2026-11-20T10:00:00.000000000Z",
            "1970-01-01T00:00:00.000000001Z",
        ] {
            assert_eq!(format_ns(parse_ns(text).expect("sound")), text);
        }
        assert_eq!(format_ns(u64::MAX), "2554-07-21T23:34:33.709551615Z");
    }

    #[test]
    fn every_form_of_rfc_3339_is_read() {
        let wanted = parse_ns("2018-04-05T17:31:00Z").expect("sound");
        for text in [
            "2018-04-05t17:31:00z",
            "2018-04-05T17:31:00.0Z",
            "2018-04-05T17:31:00.000000000000Z",
            "2018-04-05T18:31:00+01:00",
            "2018-04-05T16:31:00-01:00",
            "2018-04-05T17:31:00-00:00",
        ] {
            assert_eq!(parse_ns(text), Ok(wanted), "{text}");
        }
        assert!(parse("2016-12-31T23:59:60Z").is_ok(), "a leap second");
        assert!(parse("1945-01-01T00:00:00Z").is_ok());
    }

    #[test]
    fn what_only_looks_like_a_time_is_refused() {
        for text in [
            "",
            "lunchtime",
            "2018-04-05",
            "2018-04-05T18:31Z",
            "2018-04-05T18:31:00",
            "2018-04-05T18:31:00X",
            "2018-04-05T18:31:00+25:00",
            "2018-04-05T18:31:00+xx:00",
            "2018-04-05T18:31:00++1:00",
            "2018-04-05T18:31:00+05",
            "2018-04-05T18:31:00+0500",
            "2018-04-05T18:31:00+05:00:00",
            "2018-04-05T18:31:00+05:00[Europe/Berlin]",
            "2018-04-05 18:31:00Z",
            "20180405T183100Z",
            "2018-02-30T18:31:00Z",
            "2018-04-05T24:00:00Z",
            "2018-04-05T18:31:00.Z",
            "2018-04-05T18:31:00,5Z",
            "+02018-04-05T18:31:00Z",
            "2018-04-05T18:31:0\u{663}Z",
            " 2018-04-05T18:31:00Z",
            "1522949460",
        ] {
            assert_eq!(parse(text), Err(Error::Malformed), "{text}");
        }
        assert_eq!(parse_ns("1969-12-31T23:59:59Z"), Err(Error::Range));
        assert_eq!(parse_ns("2600-01-01T00:00:00Z"), Err(Error::Range));
        for far in ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59.9999999+14:00"] {
            assert_eq!(parse_ns(far), Err(Error::Range), "{far}");
        }
        assert_eq!(parse_ns("9999-12-32T23:59:59Z"), Err(Error::Malformed));
    }
}
