//! Where the parts of a file of scenarios are.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Serialize, de};
use serde_saphyr::{Location, Spanned};

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Place {
    /// The line, from 1.
    pub line: u64,
    /// The column, from 1.
    pub column: u64,
}

impl Place {
    pub(super) fn of(location: Location) -> Option<Self> {
        // Nothing is on line 0: the parser does not know.
        (location.line() > 0).then(|| Self {
            line: location.line(),
            column: location.column(),
        })
    }
}

/// The places of a value and of everything in it.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    place: Option<Place>,
    /// Members by name, items by index.
    parts: BTreeMap<String, Places>,
    /// It is a number beyond 64-bit integers.
    is_large: bool,
}

impl Places {
    /// The place of the deepest part on a path that there is.
    pub(super) fn find(&self, path: &[String]) -> Option<Place> {
        let (mut here, mut place) = (self, self.place);
        for part in path {
            let Some(next) = here.parts.get(part) else {
                break;
            };
            here = next;
            place = next.place.or(place);
        }
        place
    }

    /// The places of all numbers beyond 64-bit integers.
    pub(super) fn large(&self) -> Vec<Place> {
        let inner = self.parts.values().flat_map(Self::large);
        let own = self.place.filter(|_| self.is_large);
        own.into_iter().chain(inner).collect()
    }

    /// The names of the members at a path; none if there is nothing.
    pub(super) fn members(&self, path: &[String]) -> Vec<String> {
        let here = path
            .iter()
            .try_fold(self, |here, part| here.parts.get(part));
        here.map_or_else(Vec::new, |here| here.parts.keys().cloned().collect())
    }
}

impl<'de> Deserialize<'de> for Places {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned {
            value: Parts { parts, is_large },
            referenced,
            ..
        } = Spanned::deserialize(deserializer)?;
        Ok(Self {
            place: Place::of(referenced),
            parts,
            is_large,
        })
    }
}

/// What is in a value; nothing in a scalar.
#[derive(Default)]
struct Parts {
    parts: BTreeMap<String, Places>,
    is_large: bool,
}

impl<'de> Deserialize<'de> for Parts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PartsVisitor)
    }
}

struct PartsVisitor;

/// The first number after those of 64 bits with a sign.
const INTEGERS_END: f64 = 9_223_372_036_854_775_808.0;

/// Scalars of all types have no parts.
macro_rules! scalars {
    ($($visit:ident: $type:ty),* $(,)?) => {
        $(fn $visit<E: de::Error>(self, _: $type) -> Result<Parts, E> {
            Ok(Parts::default())
        })*
    };
}

impl<'de> Visitor<'de> for PartsVisitor {
    type Value = Parts;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    scalars! {
        visit_bool: bool,
        visit_i64: i64,
        visit_i128: i128,
        visit_u64: u64,
        visit_u128: u128,
        visit_str: &str,
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Parts, E> {
        Ok(Parts {
            is_large: number.abs() >= INTEGERS_END,
            ..Parts::default()
        })
    }

    fn visit_unit<E: de::Error>(self) -> Result<Parts, E> {
        Ok(Parts::default())
    }

    fn visit_none<E: de::Error>(self) -> Result<Parts, E> {
        Ok(Parts::default())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Parts, D::Error> {
        Parts::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Parts, A::Error> {
        let mut parts = BTreeMap::new();
        while let Some(item) = items.next_element()? {
            parts.insert(parts.len().to_string(), item);
        }
        Ok(Parts {
            parts,
            is_large: false,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Parts, A::Error> {
        let mut parts = BTreeMap::new();
        while let Some(name) = members.next_key::<Spanned<String>>()? {
            let mut part: Places = members.next_value()?;
            // People look for the name; a value may begin on the next line.
            if !part.is_large {
                part.place = Place::of(name.referenced).or(part.place);
            }
            parts.insert(name.value, part);
        }
        Ok(Parts {
            parts,
            is_large: false,
        })
    }
}
