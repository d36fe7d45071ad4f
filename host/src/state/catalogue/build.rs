//! What the catalogue stores of a build: its options, its gate, and the last comparison. A field
//! that changes here changes the rows of the catalogue: see the test in `rows.rs`.

use serde::{Deserialize, Serialize};

use super::words::{Difference, Promotion};

/// The options with which a generation is built.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildSettings {
    /// When it takes over.
    #[serde(default)]
    pub promote: Promotion,
    /// The gate: which differences from the active generation are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// Most events per second while it is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<u64>,
    /// Share of one core that it may use while it is built, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u8>,
    /// Whether it may be built without events that are gone from the stream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_missing: bool,
}

/// Which differences a candidate may have and still take over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
// A release that does not know a part of a gate must not pass it.
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// Differences that are allowed unless a rule says otherwise.
    #[serde(default)]
    pub allow: Vec<Difference>,
    /// Compare about this many entries, chosen by a hash of their keys; default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<u64>,
    /// Rules for parts of the state; the rule with the longest matching prefix applies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

/// The allowed differences under a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Keys that begin with this prefix.
    pub prefix: String,
    /// Allowed differences.
    #[serde(default)]
    pub allow: Vec<Difference>,
    /// JSON pointers (RFC 6901) to parts of a value that are ignored, such as `/updated_at`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
}

/// The result of comparing two states at one position.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// When, in RFC 3339.
    pub at: String,
    /// Number of the active generation.
    #[serde(default)]
    pub against: u64,
    /// The position that both reflected.
    pub position: u64,
    /// Entries compared, each key once.
    pub compared: u64,
    /// Entries in both states together, each key once.
    pub entries: u64,
    /// Keys that only the candidate has.
    pub added: u64,
    /// Keys that only the active generation has.
    pub removed: u64,
    /// Keys with different values.
    pub changed: u64,
    /// How many of these differences the gate does not allow.
    pub refused: u64,
    /// Keys whose values differ only in parts that a rule of the gate ignores; not counted above.
    #[serde(default)]
    pub ignored: u64,
    /// The first differences.
    pub examples: Vec<ComparisonExample>,
    /// What the figures prove.
    pub conclusion: String,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComparisonExample {
    /// The key.
    pub key: String,
    /// How it differs.
    pub difference: Difference,
    /// The first parts in which two JSON values differ. None for other values, and if both say the
    /// same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<DifferingPart>,
    /// The active generation's value, shortened; absent if it has none. Of two values without
    /// `parts`, it begins shortly before the first difference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// The candidate's value, shortened; absent if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<String>,
    /// Whether the gate allows it.
    pub allowed: bool,
}

/// A part of a JSON value that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferingPart {
    /// Where it is, as a JSON pointer; empty for the whole value.
    pub pointer: String,
    /// What the active generation has there, as JSON text, shortened; absent if it has nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// What the candidate has there, as JSON text, shortened; absent if it has nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<String>,
}
