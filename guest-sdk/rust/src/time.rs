//! Event time: instants and dates in UTC. There is no clock: a fold depends on its events only.

use std::error::Error;
use std::fmt::{self, Display};
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

const SECOND: u64 = 1_000_000_000;
const DAY_SECONDS: u64 = 86_400;

/// An instant: nanoseconds since 1970-01-01T00:00:00Z, up to the year 2554.
///
/// Shown, stored and used as a key in RFC 3339 with nine decimals, such as
/// `2026-11-23T14:05:06.123456789Z`, which sorts as time does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// From nanoseconds since the Unix epoch.
    pub const fn from_nanoseconds(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// From whole seconds since the Unix epoch; later than the year 2554 counts as the last
    /// instant.
    pub const fn from_seconds(seconds: u64) -> Self {
        Self(seconds.saturating_mul(SECOND))
    }

    /// Nanoseconds since the Unix epoch.
    pub const fn nanoseconds(self) -> u64 {
        self.0
    }

    /// Whole seconds since the Unix epoch.
    pub const fn seconds(self) -> u64 {
        self.0 / SECOND
    }

    /// The day in UTC.
    pub const fn date(self) -> Date {
        Date::from_days((self.0 / SECOND / DAY_SECONDS) as u32)
    }

    /// The hour of the day in UTC, 0 to 23.
    pub const fn hour(self) -> u8 {
        (self.seconds() % DAY_SECONDS / 3_600) as u8
    }

    /// How long after another instant it is; zero if it is earlier.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Later by this much; at most the last instant.
impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(nanoseconds(span)))
    }
}

/// Earlier by this much; at least the first instant.
impl Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(nanoseconds(span)))
    }
}

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

impl Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (second, nanosecond) = (self.seconds() % DAY_SECONDS, self.0 % SECOND);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        write!(
            formatter,
            "{}T{hour:02}:{minute:02}:{second:02}.{nanosecond:09}Z",
            self.date()
        )
    }
}

impl FromStr for Timestamp {
    type Err = TimeError;

    /// Reads RFC 3339, with up to nine decimals and `Z` or an offset.
    fn from_str(text: &str) -> Result<Self, TimeError> {
        parse_timestamp(text).ok_or(TimeError {
            expected: "a time such as 2026-11-23T14:05:06Z, 1970 to 2554",
        })
    }
}

/// A day in UTC, from 1970-01-01 to 9999-12-31; shown, stored and used as a key as `2026-11-23`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

impl Date {
    /// The first day there is, 1970-01-01.
    pub const FIRST: Self = Self {
        year: 1970,
        month: 1,
        day: 1,
    };

    /// The last day there is, 9999-12-31.
    pub const LAST: Self = Self {
        year: 9999,
        month: 12,
        day: 31,
    };

    /// The day with this year, month and day of the month, if it exists.
    pub const fn new(year: u16, month: u8, day: u8) -> Option<Self> {
        let known = year >= 1970 && year <= 9999 && month >= 1 && month <= 12 && day >= 1;
        if known && day <= days_of_month(year, month) {
            Some(Self { year, month, day })
        } else {
            None
        }
    }

    /// The year.
    pub const fn year(self) -> u16 {
        self.year
    }

    /// The month, 1 to 12.
    pub const fn month(self) -> u8 {
        self.month
    }

    /// The day of the month, from 1.
    pub const fn day(self) -> u8 {
        self.day
    }

    /// Days since 1970-01-01.
    pub const fn days(self) -> u32 {
        // Years begin in March, so that the leap day is the last: the algorithm of
        // Howard Hinnant's "chrono-compatible low-level date algorithms".
        let year = self.year as u32 - (self.month <= 2) as u32;
        let month = (self.month as u32 + 9) % 12;
        let day_of_year = (153 * month + 2) / 5 + self.day as u32 - 1;
        // 719,468 days lie between 0000-03-01 and 1970-01-01.
        year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
    }

    /// The day of the week.
    pub const fn weekday(self) -> Weekday {
        // The first day was a Thursday.
        match (self.days() + 3) % 7 {
            0 => Weekday::Monday,
            1 => Weekday::Tuesday,
            2 => Weekday::Wednesday,
            3 => Weekday::Thursday,
            4 => Weekday::Friday,
            5 => Weekday::Saturday,
            _ => Weekday::Sunday,
        }
    }

    /// Its first instant, in UTC; a day later than the year 2554 has the last one.
    pub const fn start(self) -> Timestamp {
        Timestamp::from_seconds(self.days() as u64 * DAY_SECONDS)
    }

    const fn from_days(days: u32) -> Self {
        // The inverse, from the same source.
        let days = days + 719_468;
        // An era has 400 years, after which the calendar repeats.
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = (day_of_year - (153 * month + 2) / 5 + 1) as u8;
        let (month, carry) = if month < 10 {
            (month as u8 + 3, 0)
        } else {
            (month as u8 - 9, 1)
        };
        Self {
            year: (era * 400 + year_of_era + carry) as u16,
            month,
            day,
        }
    }
}

/// The first day there is, 1970-01-01.
impl Default for Date {
    fn default() -> Self {
        Self::FIRST
    }
}

/// This many days later; at most [`Date::LAST`].
impl Add<u32> for Date {
    type Output = Self;

    fn add(self, days: u32) -> Self {
        Self::from_days(self.days().saturating_add(days).min(Self::LAST.days()))
    }
}

/// This many days earlier; at least [`Date::FIRST`].
impl Sub<u32> for Date {
    type Output = Self;

    fn sub(self, days: u32) -> Self {
        Self::from_days(self.days().saturating_sub(days))
    }
}

/// A day of the week; Monday is the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Weekday {
    /// Monday.
    Monday,
    /// Tuesday.
    Tuesday,
    /// Wednesday.
    Wednesday,
    /// Thursday.
    Thursday,
    /// Friday.
    Friday,
    /// Saturday.
    Saturday,
    /// Sunday.
    Sunday,
}

const fn days_of_month(year: u16, month: u8) -> u8 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

impl Display for Date {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{:04}-{:02}-{:02}",
            self.year, self.month, self.day
        )
    }
}

impl FromStr for Date {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        parse_date(text.as_bytes()).ok_or(TimeError {
            expected: "a date such as 2026-11-23, 1970 to 9999",
        })
    }
}

/// The text is not a time, or not a date.
#[derive(Debug)]
pub struct TimeError {
    expected: &'static str,
}

impl Display for TimeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "expected {}", self.expected)
    }
}

impl Error for TimeError {}

fn digits(text: &[u8]) -> Option<u32> {
    if text.is_empty() || text.len() > 9 {
        return None;
    }
    text.iter().try_fold(0, |number, digit| {
        digit
            .is_ascii_digit()
            .then(|| number * 10 + u32::from(digit - b'0'))
    })
}

fn parse_date(text: &[u8]) -> Option<Date> {
    if text.len() != 10 || text[4] != b'-' || text[7] != b'-' {
        return None;
    }
    Date::new(
        digits(&text[..4])? as u16,
        digits(&text[5..7])? as u8,
        digits(&text[8..])? as u8,
    )
}

fn parse_timestamp(text: &str) -> Option<Timestamp> {
    let text = text.as_bytes();
    // The shortest is without a fraction: `2026-11-23T14:05:06Z`.
    if text.len() < 20
        || !matches!(text[10], b'T' | b't' | b' ')
        || text[13] != b':'
        || text[16] != b':'
    {
        return None;
    }
    let date = parse_date(&text[..10])?;
    let (hour, minute, second) = (
        digits(&text[11..13])?,
        digits(&text[14..16])?,
        digits(&text[17..19])?,
    );
    // No leap second: a count since the epoch has no place for one.
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (nanosecond, zone) = parse_fraction(&text[19..])?;
    let local = i64::from(date.days()) * DAY_SECONDS as i64
        + i64::from(hour * 3_600 + minute * 60 + second);
    // An offset east of UTC is ahead of it, so it is subtracted.
    let seconds = u64::try_from(local - parse_offset(zone)?).ok()?;
    seconds
        .checked_mul(SECOND)?
        .checked_add(u64::from(nanosecond))
        .map(Timestamp)
}

/// Nanoseconds, and what follows the fraction.
fn parse_fraction(text: &[u8]) -> Option<(u32, &[u8])> {
    let Some(fraction) = text.strip_prefix(b".") else {
        return Some((0, text));
    };
    let length = fraction
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let number = digits(&fraction[..length])?;
    Some((number * 10_u32.pow(9 - length as u32), &fraction[length..]))
}

/// Seconds east of UTC.
fn parse_offset(zone: &[u8]) -> Option<i64> {
    let sign = match zone {
        b"Z" | b"z" => return Some(0),
        [b'+', ..] => 1,
        [b'-', ..] => -1,
        _ => return None,
    };
    if zone.len() != 6 || zone[3] != b':' {
        return None;
    }
    let (hour, minute) = (digits(&zone[1..3])?, digits(&zone[4..])?);
    (hour <= 23 && minute <= 59).then(|| sign * i64::from(hour * 3_600 + minute * 60))
}

macro_rules! as_text {
    ($($kind:ty),*) => {$(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl de::Visitor<'_> for Text {
                    type Value = $kind;
                    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                        formatter.write_str("text")
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$kind, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    )*};
}
as_text!(Timestamp, Date);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_eight_thousand_years_has_its_own_name_and_number() {
        let mut previous: Option<Date> = None;
        for days in 0..=Date::new(9999, 12, 31).expect("a day").days() {
            let date = Date::from_days(days);
            assert_eq!(date.days(), days);
            assert_eq!(Date::new(date.year, date.month, date.day), Some(date));
            assert!(previous < Some(date));
            previous = Some(date);
        }
        assert_eq!(previous, Date::new(9999, 12, 31));
    }

    #[test]
    fn days_are_counted_over_the_ends_of_months_and_years() {
        let day = |text: &str| text.parse::<Date>().expect("a date");
        assert_eq!(day("2024-03-01") - 1, day("2024-02-29"));
        assert_eq!(day("2026-01-03") - 7, day("2025-12-27"));
        assert_eq!(day("2025-12-27") + 7, day("2026-01-03"));
        assert_eq!(Date::FIRST - 1, Date::FIRST);
        assert_eq!(Date::LAST + 1, Date::LAST);
        assert_eq!(Date::FIRST + u32::MAX, Date::LAST);
        assert_eq!(Date::FIRST.weekday(), Weekday::Thursday);
        assert_eq!(day("2026-11-26").weekday(), Weekday::Thursday);
        assert_eq!(day("2026-11-29").weekday(), Weekday::Sunday);
        assert_eq!(day("2026-11-30").weekday(), Weekday::Monday);
    }

    #[test]
    fn instants_move_by_spans_and_stay_within_their_range() {
        let noon: Timestamp = "2026-11-23T12:00:00Z".parse().expect("a time");
        let day = Duration::from_secs(DAY_SECONDS);
        assert_eq!((noon + day).to_string(), "2026-11-24T12:00:00.000000000Z");
        assert_eq!((noon - day).since(noon), Duration::ZERO);
        assert_eq!(noon.since(noon - day), day);
        assert_eq!(
            noon.date().start().to_string(),
            "2026-11-23T00:00:00.000000000Z"
        );
        assert_eq!(Timestamp::from_seconds(1) - day, Timestamp::from_seconds(0));
        assert_eq!((noon + Duration::MAX).nanoseconds(), u64::MAX);
    }

    #[test]
    fn instants_read_back_as_they_are_written() {
        for nanoseconds in [0, 1, 999_999_999, 1_795_000_000_123_456_789, u64::MAX] {
            let time = Timestamp::from_nanoseconds(nanoseconds);
            assert_eq!(
                time.to_string().parse::<Timestamp>().expect("own text"),
                time
            );
        }
        assert_eq!(
            Timestamp::from_nanoseconds(u64::MAX).to_string(),
            "2554-07-21T23:34:33.709551615Z"
        );
    }

    #[test]
    fn offsets_and_fractions_are_understood_and_nonsense_is_not() {
        let time: Timestamp = "2026-11-23T14:05:06.5+02:00".parse().expect("a time");
        assert_eq!(time.to_string(), "2026-11-23T12:05:06.500000000Z");
        assert_eq!(
            (time.date().to_string().as_str(), time.hour()),
            ("2026-11-23", 12)
        );
        for text in [
            "",
            "2026-11-23",
            "2026-02-30T00:00:00Z",
            "2026-11-23T24:00:00Z",
            "2026-11-23T00:00:00",
            "2026-11-23T00:00:00.Z",
            "1969-12-31T23:59:59Z",
            "2026-11-23T00:00:00+0200",
            "2555-01-01T00:00:00Z",
            "+026-11-23T00:00:00Z",
            "2026-11-23T00:00:00.1234567890Z",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }
}
