//! The keywords of the reader, one by one, for values of one type.

use serde_json::{Map, Value};

use super::kinds::Kind;
use super::numbers::{self, Limit, Side};
use super::writer::Writer;
use super::{Comparison, Place, Reason, shown};

impl Comparison {
    /// Why the reader may refuse what the writer writes of a type.
    pub(super) fn keywords(
        &mut self,
        reader: &Value,
        writer: &Writer<'_>,
        kind: Kind,
        place: &Place,
    ) -> Vec<Reason> {
        if let Some(reasons) = self.is_over(place) {
            return reasons;
        }
        let node = match reader {
            Value::Object(node) => node,
            Value::Bool(true) => return Vec::new(),
            _ => return place.refused("nothing is accepted here"),
        };
        if let Some(wanted) = node.get("type").filter(|wanted| !kind.is_in(wanted)) {
            // What else is wrong with such a value tells nobody more.
            let name = match kind {
                Kind::Fraction => "number with a fraction",
                kind => kind.name(),
            };
            let message = format!("it may be of type {name}, accepted is {}", shown(wanted));
            return place.keyword("type").refused(message);
        }
        let mut reasons = Vec::new();
        for (keyword, value) in node {
            let at = place.keyword(keyword);
            reasons.extend(match keyword.as_str() {
                "const" | "enum" => {
                    at.refused(format!("it may have other values than {}", shown(value)))
                }
                "$ref" => self.keywords(value, writer, kind, &at),
                "allOf" => self.all_of(value, writer, kind, &at),
                "anyOf" => self.any_of(value, writer, kind, &at),
                "oneOf" => self.one_of(value, writer, kind, &at),
                "not" => self.not(value, writer, &at),
                "if" => self.conditional(node, writer, kind, place),
                "contentMediaType" if matches!(kind, Kind::Text) => {
                    self.media_type(node, value, writer, &at)
                }
                // Part of `if`; or looked at above.
                "then" | "else" | "type" => Vec::new(),
                keyword => match kind {
                    Kind::Integer | Kind::Fraction => number((keyword, value), writer, kind, &at),
                    Kind::Text => self.text((keyword, value), writer, &at),
                    Kind::List => self.list((node, keyword, value), writer, place),
                    Kind::Object => self.object((node, keyword, value), writer, place),
                    Kind::Null | Kind::Boolean => Vec::new(),
                },
            });
        }
        reasons
    }

    fn all_of(&mut self, list: &Value, writer: &Writer<'_>, kind: Kind, at: &Place) -> Vec<Reason> {
        let list = list.as_array().into_iter().flatten().enumerate();
        list.flat_map(|(index, part)| {
            self.keywords(part, writer, kind, &at.keyword(&index.to_string()))
        })
        .collect()
    }

    /// The reasons against the nearest alternative; empty if one accepts everything.
    fn any_of(&mut self, list: &Value, writer: &Writer<'_>, kind: Kind, at: &Place) -> Vec<Reason> {
        let mut nearest: Option<Vec<Reason>> = None;
        for (index, part) in list.as_array().into_iter().flatten().enumerate() {
            let reasons = self.keywords(part, writer, kind, &at.keyword(&index.to_string()));
            if reasons.is_empty() {
                return reasons;
            }
            if nearest
                .as_ref()
                .is_none_or(|nearest| reasons.len() < nearest.len())
            {
                nearest = Some(reasons);
            }
        }
        nearest.unwrap_or_else(|| at.refused("nothing is accepted here"))
    }

    fn one_of(&mut self, list: &Value, writer: &Writer<'_>, kind: Kind, at: &Place) -> Vec<Reason> {
        let parts: Vec<&Value> = list.as_array().into_iter().flatten().collect();
        let accepting = (0..parts.len()).find(|&index| {
            let at = at.keyword(&index.to_string());
            self.keywords(parts[index], writer, kind, &at).is_empty()
        });
        let Some(accepting) = accepting else {
            return self.any_of(list, writer, kind, at);
        };
        let others = parts.iter().enumerate();
        let mut others = others.filter(|(index, _)| *index != accepting);
        let is_alone = others.all(|(_, part)| self.is_disjoint_in(part, writer, kind));
        let is_same = || self.is_same(writer, |node| node.get("oneOf") == Some(list));
        if is_alone || is_same() {
            return Vec::new();
        }
        at.unknown("`oneOf`: two alternatives may accept the same value, which is then refused")
    }

    fn not(&mut self, refused: &Value, writer: &Writer<'_>, at: &Place) -> Vec<Reason> {
        let is_same = self.is_same(writer, |node| node.get("not") == Some(refused));
        if is_same || self.is_disjoint(refused, writer) {
            return Vec::new();
        }
        at.unknown("`not` is only understood if it obviously excludes nothing that is written")
    }

    fn conditional(
        &mut self,
        node: &Map<String, Value>,
        writer: &Writer<'_>,
        kind: Kind,
        place: &Place,
    ) -> Vec<Reason> {
        let keywords = ["if", "then", "else"];
        let is_same = self.is_same(writer, |own| {
            keywords
                .iter()
                .all(|keyword| own.get(keyword) == node.get(*keyword))
        });
        let mut branches = ["then", "else"].iter().filter_map(|keyword| {
            let branch = node.get(*keyword)?;
            Some((branch, place.keyword(keyword)))
        });
        // Whatever the condition says: both branches accept everything.
        let mut both = |all: &mut Self| {
            branches.all(|(branch, at)| all.keywords(branch, writer, kind, &at).is_empty())
        };
        if is_same || both(self) {
            return Vec::new();
        }
        place
            .keyword("if")
            .unknown("`if` is only understood if both branches accept everything that is written")
    }

    fn text(
        &mut self,
        (keyword, value): (&str, &Value),
        writer: &Writer<'_>,
        at: &Place,
    ) -> Vec<Reason> {
        match keyword {
            "minLength" => at_least(writer, keyword, value, at),
            "maxLength" => at_most(writer, keyword, value, at),
            "pattern" => {
                if writer.all(keyword).any(|own| own == value) {
                    return Vec::new();
                }
                match writer.all(keyword).next() {
                    None => at.refused(format!("it may be a text that does not match {value}")),
                    Some(own) => at.unknown(format!(
                        "`pattern`: {own} and {value} differ, and nothing shows that one includes \
                         the other"
                    )),
                }
            }
            "contentEncoding" => self.other((keyword, value), writer, at),
            _ => Vec::new(),
        }
    }

    /// What has this media type is the text, or what the text encodes: the encoding next to it must
    /// be the same.
    fn media_type(
        &self,
        node: &Map<String, Value>,
        value: &Value,
        writer: &Writer<'_>,
        at: &Place,
    ) -> Vec<Reason> {
        let is_same = self.is_same(writer, |own| {
            own.get("contentMediaType") == Some(value)
                && own.get("contentEncoding") == node.get("contentEncoding")
        });
        if is_same {
            return Vec::new();
        }
        at.unknown(
            "`contentMediaType` is not understood, unless the writer has it with the same encoding",
        )
    }

    /// A keyword that is not understood: it must be in the writer's schema as well.
    pub(super) fn other(
        &self,
        (keyword, value): (&str, &Value),
        writer: &Writer<'_>,
        at: &Place,
    ) -> Vec<Reason> {
        if self.is_same(writer, |node| node.get(keyword) == Some(value)) {
            return Vec::new();
        }
        at.unknown(format!("`{keyword}` is not understood"))
    }
}

fn number(
    (keyword, value): (&str, &Value),
    writer: &Writer<'_>,
    kind: Kind,
    at: &Place,
) -> Vec<Reason> {
    let (side, limit) = match keyword {
        "minimum" => (Side::Lower, Limit::Inclusive(value)),
        "exclusiveMinimum" => (Side::Lower, Limit::Exclusive(value)),
        "maximum" => (Side::Upper, Limit::Inclusive(value)),
        "exclusiveMaximum" => (Side::Upper, Limit::Exclusive(value)),
        "multipleOf" if numbers::are_multiples(writer, kind, value) => return Vec::new(),
        "multipleOf" => return at.refused(format!("it may be no multiple of {value}")),
        _ => return Vec::new(),
    };
    if numbers::keeps_limit(writer, kind, side, limit) {
        return Vec::new();
    }
    let beyond = match side {
        Side::Lower => "less than",
        Side::Upper => "more than",
    };
    let or_equal = match limit {
        Limit::Inclusive(_) => "",
        Limit::Exclusive(_) => " or equal to",
    };
    at.refused(format!("it may be {beyond}{or_equal} {value}"))
}

/// A lower limit that the writer must have as well.
pub(super) fn at_least(
    writer: &Writer<'_>,
    keyword: &str,
    value: &Value,
    at: &Place,
) -> Vec<Reason> {
    if numbers::least(writer, keyword) >= numbers::count(value) {
        return Vec::new();
    }
    at.refused(format!("it may have less than {value}"))
}

/// An upper limit that the writer must have as well.
pub(super) fn at_most(
    writer: &Writer<'_>,
    keyword: &str,
    value: &Value,
    at: &Place,
) -> Vec<Reason> {
    if numbers::most(writer, keyword).is_some_and(|most| most <= numbers::count(value)) {
        return Vec::new();
    }
    at.refused(format!("it may have more than {value}"))
}
