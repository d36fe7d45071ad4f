//! Sizes in bytes, as numbers or as text with a unit: `65536`, `"64KiB"`, `"1GiB"`.

use serde::{Deserialize, Deserializer, Serializer, de};

const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// The bytes that a text means; none if it is not a size.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    // No sign and no fraction: sizes are exact.
    let number: u64 = text[..digits].parse().ok()?;
    let unit = text[digits..].trim_start();
    if unit.is_empty() {
        return Some(number);
    }
    // `Kib`, `KIB`: people write all of them, and none can mean anything else.
    let (_, factor) = UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    number.checked_mul(*factor)
}

/// The shortest exact notation of a number of bytes.
pub(crate) fn format(bytes: u64) -> String {
    // The largest unit that divides it.
    let binary = UNITS[..4]
        .iter()
        .rev()
        .find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor));
    match binary {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

fn read<T: TryFrom<u64>, E: de::Error>(written: Written) -> Result<T, E> {
    let bytes = match written {
        Written::Number(number) => number,
        Written::Text(text) => {
            parse(&text).ok_or_else(|| E::custom(format!("`{text}` is not a size")))?
        }
    };
    T::try_from(bytes).map_err(|_| {
        E::custom(format!(
            "{bytes} bytes are more than this machine can address"
        ))
    })
}

fn widen<T: Copy + TryInto<u64>>(size: T) -> u64 {
    size.try_into().unwrap_or(u64::MAX)
}

pub(crate) fn serialize<T, S>(size: &T, serializer: S) -> Result<S::Ok, S::Error>
where
    T: Copy + TryInto<u64>,
    S: Serializer,
{
    serializer.serialize_str(&format(widen(*size)))
}

pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: TryFrom<u64>,
    D: Deserializer<'de>,
{
    read(Written::deserialize(deserializer)?)
}

/// The same for an optional size.
pub(crate) mod optional {
    use super::{Deserialize, Deserializer, Serializer, Written, format, read, widen};

    pub(crate) fn serialize<T, S>(size: &Option<T>, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Copy + TryInto<u64>,
        S: Serializer,
    {
        match size {
            Some(size) => serializer.serialize_str(&format(widen(*size))),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        T: TryFrom<u64>,
        D: Deserializer<'de>,
    {
        Option::<Written>::deserialize(deserializer)?
            .map(read)
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::{format, parse};

    #[test]
    fn sizes_are_read_with_and_without_units() {
        assert_eq!(parse("65536"), Some(65_536));
        assert_eq!(parse("64KiB"), Some(65_536));
        assert_eq!(parse("64 kib"), Some(65_536));
        assert_eq!(parse("2GB"), Some(2_000_000_000));
        assert_eq!(parse("0"), Some(0));
        for text in ["", "KiB", "-1", "1.5MiB", "64 furlongs", "99999999999TiB"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_as_the_same_size() {
        for bytes in [
            0,
            1,
            1_000,
            1_024,
            1_536,
            16 << 20,
            (1 << 30) + 1,
            64 << 30,
            3 << 40,
        ] {
            assert_eq!(parse(&format(bytes)), Some(bytes), "{}", format(bytes));
        }
        assert_eq!(format(16 << 20), "16MiB");
        assert_eq!(format(1_000), "1000B");
    }
}
