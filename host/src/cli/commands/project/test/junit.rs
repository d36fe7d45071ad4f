//! The report in the format of JUnit, which most CI systems show.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use super::report::{Report, Tested};
use crate::cli::support::whole_file::WholeFile;

pub(super) fn write(report: &Report, path: &Path) -> anyhow::Result<()> {
    let unwritable = || format!("cannot write {}", path.display());
    let file = WholeFile::create(path).with_context(unwritable)?;
    junit(report)
        .serialize(file.file())
        .with_context(unwritable)?;
    file.complete().with_context(unwritable)
}

/// One suite per file of scenarios.
fn junit(report: &Report) -> quick_junit::Report {
    let mut files: BTreeMap<&str, Vec<&Tested>> = BTreeMap::new();
    for tested in &report.tested {
        files.entry(&tested.file).or_default().push(tested);
    }
    let mut junit = quick_junit::Report::new(xml(report.module()));
    junit.set_time(Duration::from_secs_f64(report.seconds));
    for (file, all) in files {
        let mut suite = TestSuite::new(xml(file));
        suite.add_test_cases(all.into_iter().map(|tested| {
            let mut case = case(
                report,
                &tested.name,
                (!tested.passed).then_some(&tested.reasons()),
            );
            case.set_time(Duration::from_secs_f64(tested.seconds));
            // CI systems link these to the source.
            case.extra.insert("file".into(), xml(&tested.file).into());
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
            case(
                report,
                &name,
                (!explored.passed).then_some(&explored.reasons()),
            )
        }));
        junit.add_test_suite(suite);
    }
    junit
}

/// A test case; it failed if there are reasons.
fn case(report: &Report, name: &str, failed: Option<&[String]>) -> TestCase {
    let mut status = TestCaseStatus::success();
    if let Some(reasons) = failed {
        status = TestCaseStatus::non_success(NonSuccessKind::Failure);
        status.set_message(xml(reasons.first().map_or("", String::as_str)));
        status.set_description(xml(&reasons.join("\n")));
    }
    let mut case = TestCase::new(xml(name), status);
    case.set_classname(xml(report.module()));
    case
}

/// A text without what XML cannot have in any form: readers refuse a whole report for one such
/// character. `quick_junit` leaves out control characters only.
fn xml(text: &str) -> Cow<'_, str> {
    let is_forbidden = |char| matches!(char, '\u{fffe}' | '\u{ffff}');
    if text.contains(is_forbidden) {
        return Cow::Owned(text.replace(is_forbidden, "\u{fffd}"));
    }
    Cow::Borrowed(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_xml_cannot_have_is_replaced() {
        assert_eq!(
            xml("a\u{fffe}b\u{ffff}c\u{fffd}d"),
            "a\u{fffd}b\u{fffd}c\u{fffd}d"
        );
        assert_eq!(xml("\u{10ffff}\t ü"), "\u{10ffff}\t ü");
    }
}
