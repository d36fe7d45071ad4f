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

/// Whether all numbers of a kind that a writer writes keep a limit.
pub(super) fn keeps_limit(
    writer: &Writer<'_>,
    kind: Kind,
    side: Side,
    (limit, is_exclusive): (&Value, bool),
) -> bool {
    let [inclusive, exclusive] = side.keywords();
    let own = writer.all(inclusive).map(|own| (own, false));
    let own = own.chain(writer.all(exclusive).map(|own| (own, true)));
    own.into_iter().any(|(own, own_is_exclusive)| {
        if kind == Kind::Integer
            && let Some(own) = last_integer(own, own_is_exclusive, side)
            && let Some(limit) = last_integer(limit, is_exclusive, side)
        {
            return match side {
                Side::Lower => own >= limit,
                Side::Upper => own <= limit,
            };
        }
        let order = match side {
            Side::Lower => compare(own, limit),
            Side::Upper => compare(limit, own),
        };
        match order {
            Some(Ordering::Greater) => true,
            Some(Ordering::Equal) => own_is_exclusive || !is_exclusive,
            _ => false,
        }
    })
}

/// The last integer within a limit.
fn last_integer(limit: &Value, is_exclusive: bool, side: Side) -> Option<i128> {
    let (near, is_exact) = match exact(limit) {
        Some(integer) => (integer, true),
        None => {
            let limit = limit.as_f64().filter(|limit| limit.abs() < EXACT_MAX)?;
            let near = match side {
                Side::Lower => limit.ceil(),
                Side::Upper => limit.floor(),
            };
            (near as i128, false)
        }
    };
    let step = i128::from(is_exclusive && is_exact);
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
        let last = |limit: Value, is_exclusive, side| last_integer(&limit, is_exclusive, side);
        assert_eq!(last(json!(1), true, Side::Lower), Some(2));
        assert_eq!(last(json!(1.5), true, Side::Lower), Some(2));
        assert_eq!(last(json!(1.5), false, Side::Upper), Some(1));
        assert_eq!(last(json!(1), true, Side::Upper), Some(0));
        assert_eq!(last(json!(1e300), false, Side::Upper), None);
    }
}
