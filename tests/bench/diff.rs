//! Two trees that were measured in turns: what changed, and how sure that is.
//!
//! Each pair is a run of one tree and then one of the other, so that whatever else the machine does
//! falls on both. A figure's ratio is the median over the pairs. The least and the greatest of them
//! enclose the true median with a probability of 1 - 2 / 2^pairs, whatever the noise looks like: it
//! lies outside only if all pairs fell on one side of it.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::report::median;

/// Values of one run by the names of their figures, which also say the unit.
type Figures = BTreeMap<String, f64>;

/// Prints the table of the runs in a folder: `before-1.json`, `after-1.json`, and so on.
///
/// # Errors
///
/// What keeps it from reading them.
pub fn print(folder: &Path) -> Result<(), String> {
    let mut pairs = Vec::new();
    for number in 1.. {
        let file = |side: &str| folder.join(format!("{side}-{number}.json"));
        if !file("before").is_file() || !file("after").is_file() {
            break;
        }
        pairs.push((read(&file("before"))?, read(&file("after"))?));
    }
    let Some((_, first)) = pairs.first() else {
        return Err(format!("{} has no pair of runs", folder.display()));
    };
    let confidence = 100.0 * (1.0 - 2.0 / 2_f64.powi(pairs.len() as i32));
    println!(
        "| figure | before | after | after / before | {confidence:.0} % between |\n|---|---:|---:|---:|---|"
    );
    // A figure that only one tree has cannot be compared.
    for name in first.keys() {
        let both =
            |(before, after): &(Figures, Figures)| Some((*before.get(name)?, *after.get(name)?));
        let found: Option<Vec<(f64, f64)>> = pairs.iter().map(both).collect();
        if let Some(found) = found {
            println!("{}", row(name, &found));
        }
    }
    Ok(())
}

fn row(name: &str, pairs: &[(f64, f64)]) -> String {
    let (before, after): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    let mut ratios: Vec<f64> = pairs.iter().map(|(before, after)| after / before).collect();
    ratios.sort_by(f64::total_cmp);
    let (least, greatest) = (ratios[0], ratios[ratios.len() - 1]);
    // Said only if it is sure: otherwise the sign of the change is not known.
    let differs = if least > 1.0 || greatest < 1.0 {
        ", differs"
    } else {
        ""
    };
    format!(
        "| {name} | {:.2} | {:.2} | {:.2} | {least:.2} to {greatest:.2}{differs} |",
        median(before),
        median(after),
        median(ratios),
    )
}

/// The figures of a run, and the processor time that notes name.
fn read(file: &Path) -> Result<Figures, String> {
    let unreadable = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let text = std::fs::read_to_string(file).map_err(|error| unreadable(&error))?;
    let whole: Value = serde_json::from_str(&text).map_err(|error| unreadable(&error))?;
    let mut figures = Figures::new();
    for figure in whole["figures"].as_array().into_iter().flatten() {
        let (Some(name), Some(value)) = (figure["name"].as_str(), figure["value"].as_f64()) else {
            continue;
        };
        let unit = figure["unit"].as_str().unwrap_or_default();
        figures.insert(format!("{name}, {unit}"), value);
        let note = figure["note"].as_str().unwrap_or_default();
        if let Some(seconds) = note
            .split_once(" s CPU per million")
            .map(|(seconds, _)| seconds)
            && let Ok(seconds) = seconds.parse()
        {
            figures.insert(format!("{name}, s CPU per million events"), seconds);
        }
    }
    Ok(figures)
}
