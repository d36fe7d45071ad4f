//! The report in the format of JUnit, which most CI systems show.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use super::report::{Report, Tested};

/// Writes a report.
pub(super) fn write(report: &Report, path: &Path) -> anyhow::Result<()> {
    let unwritable = || format!("cannot write {}", path.display());
    let file = File::create(path).with_context(unwritable)?;
    junit(report).serialize(file).with_context(unwritable)
}

/// One suite per file of scenarios.
fn junit(report: &Report) -> quick_junit::Report {
    let mut files: BTreeMap<&str, Vec<&Tested>> = BTreeMap::new();
    for tested in &report.tested {
        files.entry(&tested.file).or_default().push(tested);
    }
    let mut junit = quick_junit::Report::new(report.module());
    junit.set_time(Duration::from_secs_f64(report.seconds));
    for (file, all) in files {
        let mut suite = TestSuite::new(file);
        suite.add_test_cases(all.into_iter().map(|tested| {
            let mut case = case(report, &tested.name, tested.passed, &tested.reasons());
            case.set_time(Duration::from_secs_f64(tested.seconds));
            // CI systems link these to the source.
            case.extra
                .insert("file".into(), tested.file.as_str().into());
            if let Some(place) = tested.place {
                let line = place.line.to_string();
                case.extra.insert("line".into(), line.into());
            }
            case
        }));
        let explored = report
            .explorations
            .iter()
            .filter(|explored| explored.file == file);
        suite.add_test_cases(explored.map(|explored| {
            let name = format!("up to {} scenarios that were drawn", explored.scenarios);
            case(report, &name, explored.passed, &explored.reasons())
        }));
        junit.add_test_suite(suite);
    }
    junit
}

fn case(report: &Report, name: &str, passed: bool, reasons: &[String]) -> TestCase {
    let mut status = TestCaseStatus::success();
    if !passed {
        status = TestCaseStatus::non_success(NonSuccessKind::Failure);
        status.set_message(reasons.first().cloned().unwrap_or_default());
        status.set_description(reasons.join("\n"));
    }
    let mut case = TestCase::new(name, status);
    case.set_classname(report.module());
    case
}
