//! Limits of numbers, compared exactly.

use std::cmp::Ordering;

use serde_json::Value;

use super::kinds::Kind;
use super::writer::Writer;

/// Numbers beyond this are compared as they are: none of 64 bits is there.
const EXACT_MAX: f64 = 1e30;

/// A side on which numbers have a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Lower,
    Upper,
}

impl Side {
    fn keywords(self) -> [&'static str; 2] {
        match self {
            Self::Lower => ["minimum", "exclusiveMinimum"],
            Self::Upper => ["maximum", "exclusiveMaximum"],
        }
    }
}

/// A limit of numbers.
#[derive(Clone, Copy)]
pub(super) enum Limit<'a> {
    /// The limit is the last number that is allowed.
    Inclusive(&'a Value),
    /// It is the first that is not.
    Exclusive(&'a Value),
}

impl<'a> Limit<'a> {
    fn number(self) -> &'a Value {
        match self {
            Self::Inclusive(number) | Self::Exclusive(number) => number,
        }
    }
}

/// Whether all numbers of a kind that a writer writes keep a limit.
pub(super) fn keeps_limit(writer: &Writer<'_>, kind: Kind, side: Side, limit: Limit<'_>) -> bool {
    let [inclusive, exclusive] = side.keywords();
    let own = writer.all(inclusive).map(Limit::Inclusive);
    let own = own.chain(writer.all(exclusive).map(Limit::Exclusive));
    own.into_iter().any(|own| {
        if kind == Kind::Integer
            && let Some(own) = last_integer(own, side)
            && let Some(limit) = last_integer(limit, side)
        {
            return match side {
                Side::Lower => own >= limit,
                Side::Upper => own <= limit,
            };
        }
        let order = match side {
            Side::Lower => compare(own.number(), limit.number()),
            Side::Upper => compare(limit.number(), own.number()),
        };
        match order {
            Some(Ordering::Greater) => true,
            Some(Ordering::Equal) => {
                matches!(own, Limit::Exclusive(_)) || matches!(limit, Limit::Inclusive(_))
            }
            _ => false,
        }
    })
}

/// The last integer within a limit.
fn last_integer(limit: Limit<'_>, side: Side) -> Option<i128> {
    let (near, is_exact) = match exact(limit.number()) {
        Some(integer) => (integer, true),
        None => {
            let limit = limit
                .number()
                .as_f64()
                .filter(|limit| limit.abs() < EXACT_MAX)?;
            let near = match side {
                Side::Lower => limit.ceil(),
                Side::Upper => limit.floor(),
            };
            (near as i128, false)
        }
    };
    let step = i128::from(matches!(limit, Limit::Exclusive(_)) && is_exact);
    Some(match side {
        Side::Lower => near + step,
        Side::Upper => near - step,
    })
}

/// A number without a fraction.
pub(super) fn exact(number: &Value) -> Option<i128> {
    let whole = number.as_i64().map(i128::from);
    let whole = whole.or_else(|| number.as_u64().map(i128::from));
    whole.or_else(|| {
        let float = number.as_f64()?;
        (float.fract() == 0.0 && float.abs() < EXACT_MAX).then_some(float as i128)
    })
}

fn compare(one: &Value, other: &Value) -> Option<Ordering> {
    match (exact(one), exact(other)) {
        (Some(one), Some(other)) => Some(one.cmp(&other)),
        // A number with a fraction is below 2^53, where its neighbours are exact, too.
        (Some(whole), None) => Some(against(whole, other.as_f64()?)),
        (None, Some(whole)) => Some(against(whole, one.as_f64()?).reverse()),
        (None, None) => one.as_f64()?.partial_cmp(&other.as_f64()?),
    }
}

/// A whole number compared with one that has a fraction, or is beyond all others.
fn against(whole: i128, other: f64) -> Ordering {
    if other.abs() >= EXACT_MAX {
        return if other > 0.0 {
            Ordering::Less
        } else {
            Ordering::Greater
        };
    }
    if whole <= other.floor() as i128 {
        Ordering::Less
    } else {
        Ordering::Greater
    }
}

/// Whether all numbers of a kind that a writer writes are multiples of a number.
pub(super) fn are_multiples(writer: &Writer<'_>, kind: Kind, of: &Value) -> bool {
    let divisor = exact(of);
    if kind == Kind::Integer && divisor == Some(1) {
        return true;
    }
    writer.all("multipleOf").any(|own| {
        let divides = |(divisor, own): (i128, i128)| divisor != 0 && own % divisor == 0;
        own == of || divisor.zip(exact(own)).is_some_and(divides)
    })
}

/// A limit of a length or a number of items, as schemas write it: `2` or `2.0`.
pub(super) fn count(limit: &Value) -> u64 {
    // One that is not exact is beyond all lengths.
    let count = exact(limit).and_then(|count| u64::try_from(count).ok());
    count.unwrap_or(u64::MAX)
}

/// The highest of the writer's lower limits of this kind; 0 without one.
pub(super) fn least(writer: &Writer<'_>, keyword: &str) -> u64 {
    writer.all(keyword).map(count).max().unwrap_or(0)
}

/// The lowest of the writer's upper limits of this kind.
pub(super) fn most(writer: &Writer<'_>, keyword: &str) -> Option<u64> {
    writer.all(keyword).map(count).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_compared_exactly() {
        let order = |one: Value, other: Value| compare(&one, &other).expect("are numbers");
        assert_eq!(order(json!(1), json!(1.0)), Ordering::Equal);
        assert_eq!(
            order(json!(u64::MAX), json!(u64::MAX - 1)),
            Ordering::Greater
        );
        assert_eq!(order(json!(i64::MIN), json!(0.5)), Ordering::Less);
        assert_eq!(order(json!(1), json!(0.5)), Ordering::Greater);
        assert_eq!(order(json!(-1), json!(-0.5)), Ordering::Less);
        assert_eq!(order(json!(0), json!(-0.5)), Ordering::Greater);
        assert_eq!(order(json!(9), json!(1e300)), Ordering::Less);
        assert_eq!(order(json!(9), json!(-1e300)), Ordering::Greater);
        assert_eq!(order(json!(0.25), json!(0.5)), Ordering::Less);
    }

    #[test]
    fn limits_of_integers_are_rounded_inwards() {
        let beyond = |limit: Value, side| last_integer(Limit::Exclusive(&limit), side);
        let up_to = |limit: Value, side| last_integer(Limit::Inclusive(&limit), side);
        assert_eq!(beyond(json!(1), Side::Lower), Some(2));
        assert_eq!(beyond(json!(1.5), Side::Lower), Some(2));
        assert_eq!(up_to(json!(1.5), Side::Upper), Some(1));
        assert_eq!(beyond(json!(1), Side::Upper), Some(0));
        assert_eq!(up_to(json!(1e300), Side::Upper), None);
    }
}
