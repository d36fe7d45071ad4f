//! In how many lanes a projection is folded, as configurations, deploys and the catalogue say it.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Most lanes of one fold.
pub(crate) const LANES_MAX: u32 = 64;
/// Most lanes that `auto` chooses: the serial part of the path leaves little for more of them to do.
const AUTO_MAX: u32 = 4;

/// How many lanes are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lanes {
    /// As many as there are cores, at most four.
    Auto,
    /// This many; 1 is serial.
    Count(u32),
}

/// A text or number is not a number of lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lanes are `auto`, or a number from 1 to {LANES_MAX}")]
pub struct InvalidLanes;

impl Lanes {
    /// The number of lanes on this machine.
    pub fn count(self) -> u32 {
        match self {
            Self::Auto => std::thread::available_parallelism()
                .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(AUTO_MAX))
                .min(AUTO_MAX),
            Self::Count(count) => count,
        }
    }

    fn counted(count: u64) -> Result<Self, InvalidLanes> {
        match u32::try_from(count) {
            Ok(count @ 1..=LANES_MAX) => Ok(Self::Count(count)),
            _ => Err(InvalidLanes),
        }
    }
}

impl fmt::Display for Lanes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Count(count) => count.fmt(formatter),
        }
    }
}

impl FromStr for Lanes {
    type Err = InvalidLanes;

    fn from_str(text: &str) -> Result<Self, InvalidLanes> {
        match text {
            "auto" => Ok(Self::Auto),
            // Only digits: a sign or a space is a mistake.
            _ if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                Self::counted(text.parse().map_err(|_| InvalidLanes)?)
            }
            _ => Err(InvalidLanes),
        }
    }
}

impl Serialize for Lanes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Count(count) => serializer.serialize_u32(*count),
        }
    }
}

impl<'de> Deserialize<'de> for Lanes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written<'a> {
            Number(u64),
            #[serde(borrow)]
            Text(Cow<'a, str>),
        }
        let lanes = match Written::deserialize(deserializer) {
            Ok(Written::Number(count)) => Self::counted(count),
            Ok(Written::Text(text)) => text.parse(),
            // Of untagged values serde says only that none matched.
            Err(_) => Err(InvalidLanes),
        };
        lanes.map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_auto_or_a_small_number() {
        for (text, lanes) in [
            ("auto", Lanes::Auto),
            ("1", Lanes::Count(1)),
            ("64", Lanes::Count(64)),
        ] {
            assert_eq!(text.parse(), Ok(lanes));
            assert_eq!(lanes.to_string(), text);
            let json = serde_json::to_string(&lanes).expect("it is plain data");
            assert_eq!(serde_json::from_str::<Lanes>(&json).ok(), Some(lanes));
        }
        for text in [
            "",
            "0",
            "65",
            "+2",
            " 2",
            "-1",
            "Auto",
            "99999999999999999999",
        ] {
            assert_eq!(text.parse::<Lanes>(), Err(InvalidLanes), "{text}");
        }
        for json in ["0", "65", "-1", "1.5", "null", "\"many\"", "[2]"] {
            let error = serde_json::from_str::<Lanes>(json).expect_err(json);
            assert!(error.to_string().starts_with("lanes are `auto`"), "{error}");
        }
        assert!((1..=4).contains(&Lanes::Auto.count()));
        assert_eq!(Lanes::Count(7).count(), 7);
    }
}
