//! The figures of a run: a table for people, JSON for everything else, and for each target whether
//! it was met.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::arguments::Arguments;

/// The figures so far.
pub struct Report {
    rows: Vec<Row>,
    machine: Value,
    settings: Value,
}

struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    detail: String,
    target: Option<Target>,
}

/// What the project promises of a figure.
#[derive(Clone, Copy)]
pub enum Target {
    /// At least so much.
    AtLeast(f64),
    /// At most so much.
    AtMost(f64),
}

impl Target {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!("at least {}", figure(least)),
            Self::AtMost(most) => format!("at most {}", figure(most)),
        }
    }
}

impl Report {
    /// An empty report that says where and with what it was made.
    pub fn new(arguments: &Arguments) -> Self {
        let settings = json!({
            "events": arguments.events, "customers": arguments.customers, "rounds": arguments.rounds,
            "rates": arguments.rates, "seconds": arguments.seconds, "deployments": arguments.deployments,
        });
        Self {
            rows: Vec::new(),
            machine: machine(),
            settings,
        }
    }

    /// Adds a figure.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        detail: impl Into<String>,
    ) {
        self.push(Row {
            name: name.into(),
            value,
            unit,
            detail: detail.into(),
            target: None,
        });
    }

    /// Adds a figure that has a target.
    pub fn add_with_target(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        target: Target,
    ) {
        self.push(Row {
            name: name.into(),
            value,
            unit,
            detail: String::new(),
            target: Some(target),
        });
    }

    /// Shown at once, so that a long run can be followed.
    fn push(&mut self, row: Row) {
        eprintln!("{}", line(&row));
        self.rows.push(row);
    }

    /// Prints the table and writes the JSON.
    pub fn finish(&self, file: &Path) {
        println!("\n| figure | value | unit | target | note |\n|---|---:|---|---|---|");
        for row in &self.rows {
            let target = row.target.map_or(String::new(), |target| {
                format!(
                    "{}: {}",
                    target.text(),
                    if target.is_met_by(row.value) {
                        "met"
                    } else {
                        "missed"
                    }
                )
            });
            println!(
                "| {} | {} | {} | {target} | {} |",
                row.name,
                figure(row.value),
                row.unit,
                row.detail
            );
        }
        let figures: Vec<Value> = self.rows.iter().map(as_json).collect();
        let whole =
            json!({ "machine": self.machine, "settings": self.settings, "figures": figures });
        let text = serde_json::to_string_pretty(&whole).expect("our own values are JSON");
        match std::fs::write(file, text) {
            Ok(()) => println!("\nmachine: {}\nJSON: {}", self.machine, file.display()),
            Err(error) => eprintln!("cannot write {}: {error}", file.display()),
        }
    }
}

fn line(row: &Row) -> String {
    format!(
        "{:<58} {:>12} {:<10} {}",
        row.name,
        figure(row.value),
        row.unit,
        row.detail
    )
}

fn as_json(row: &Row) -> Value {
    let mut object = Map::new();
    object.insert("name".to_owned(), json!(row.name));
    object.insert("value".to_owned(), json!(row.value));
    object.insert("unit".to_owned(), json!(row.unit));
    if !row.detail.is_empty() {
        object.insert("note".to_owned(), json!(row.detail));
    }
    if let Some(target) = row.target {
        object.insert("target".to_owned(), json!(target.text()));
        object.insert("met".to_owned(), json!(target.is_met_by(row.value)));
    }
    Value::Object(object)
}

/// Three digits that count.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 1_000.0 => {
            let digits = format!("{value:.0}");
            let mut grouped = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at).is_multiple_of(3) && !grouped.ends_with('-') {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            grouped
        }
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The middle one of some figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// A quantile of some figures, by rank.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

fn machine() -> Value {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| {
        line.strip_prefix("model name")
            .map(|rest| rest.trim_start_matches([' ', '\t', ':']))
    });
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes = memory
        .lines()
        .next()
        .and_then(|line| line.split_whitespace().nth(1))
        .and_then(|text| text.parse::<u64>().ok());
    json!({
        "cpu": model.unwrap_or("unknown"), "cores": cores, "memory_gib": kilobytes.unwrap_or(0) >> 20,
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
    })
}
