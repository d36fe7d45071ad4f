//! The options of a build, its gate, and comparisons. What a request asks for is converted to what
//! the catalogue stores, and back to be shown.

use super::each;
use crate::api;
use crate::state::catalogue::{
    BuildSettings, Comparison, ComparisonExample, DifferingPart, Gate, Rule,
};

impl From<BuildSettings> for api::BuildSettings {
    fn from(value: BuildSettings) -> Self {
        let BuildSettings {
            promote,
            gate,
            max_rate,
            cpu_percent,
            accept_missing,
        } = value;
        Self {
            promote,
            gate: gate.map(Into::into),
            max_rate,
            cpu_percent,
            accept_missing,
        }
    }
}

impl From<Gate> for api::Gate {
    fn from(value: Gate) -> Self {
        let Gate {
            allow,
            sample,
            rules,
        } = value;
        Self {
            allow,
            sample,
            rules: each(rules),
        }
    }
}

impl From<api::Gate> for Gate {
    fn from(value: api::Gate) -> Self {
        let api::Gate {
            allow,
            sample,
            rules,
        } = value;
        Self {
            allow,
            sample,
            rules: each(rules),
        }
    }
}

impl From<Rule> for api::Rule {
    fn from(value: Rule) -> Self {
        let Rule {
            prefix,
            allow,
            ignore,
        } = value;
        Self {
            prefix,
            allow,
            ignore,
        }
    }
}

impl From<api::Rule> for Rule {
    fn from(value: api::Rule) -> Self {
        let api::Rule {
            prefix,
            allow,
            ignore,
        } = value;
        Self {
            prefix,
            allow,
            ignore,
        }
    }
}

impl From<Comparison> for api::Comparison {
    fn from(value: Comparison) -> Self {
        let Comparison {
            at,
            against,
            position,
            compared,
            entries,
            added,
            removed,
            changed,
            refused,
            ignored,
            examples,
            conclusion,
        } = value;
        Self {
            at,
            against,
            position,
            compared,
            entries,
            added,
            removed,
            changed,
            refused,
            ignored,
            examples: each(examples),
            conclusion,
        }
    }
}

impl From<ComparisonExample> for api::ComparisonExample {
    fn from(value: ComparisonExample) -> Self {
        let ComparisonExample {
            key,
            difference,
            parts,
            active,
            candidate,
            allowed,
        } = value;
        Self {
            key,
            difference,
            parts: each(parts),
            active,
            candidate,
            allowed,
        }
    }
}

impl From<DifferingPart> for api::DifferingPart {
    fn from(value: DifferingPart) -> Self {
        let DifferingPart {
            pointer,
            active,
            candidate,
        } = value;
        Self {
            pointer,
            active,
            candidate,
        }
    }
}
