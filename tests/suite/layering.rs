//! The layers of ARCHITECTURE.md and the limits of length hold in our own code; and the check can fail.

use foldstream_tests::layering::{Violation, check_file, check_repository};
use foldstream_tests::root;

fn rules(path: &str, text: &str) -> Vec<String> {
    check_file(path, text).into_iter().map(|violation| violation.rule).collect()
}

#[test]
fn our_code_keeps_its_layers_and_lengths() {
    let violations = check_repository(root());
    let text = |violation: &Violation| format!("{}: {}", violation.place, violation.rule);
    assert!(violations.is_empty(), "{}", violations.iter().map(text).collect::<Vec<_>>().join("\n"));
}

#[test]
fn an_outside_crate_away_from_its_home_is_found() {
    assert_eq!(rules("host/src/serve/mod.rs", "use redb::Database;\n"), ["redb belongs to state/, log/"]);
    assert_eq!(rules("host/src/pipeline.rs", "fn f() {\n    let e = wasmtime::Engine::default();\n}\n").len(), 1);
    assert_eq!(rules("host/src/state/file.rs", "use redb::{Database, Durability};\n"), [""; 0]);
    assert_eq!(
        rules("host/src/serve/mod.rs", "// use redb::Database;\nconst A: &str = \"redb::Database\";\n"),
        [""; 0]
    );
}

#[test]
fn a_layer_that_knows_too_much_is_found() {
    let grouped = "use crate::{\n    event::Event,\n    module::{Engine, Instance},\n};\n";
    assert_eq!(rules("host/src/state/mod.rs", grouped), ["state/ must not know module"; 2]);
    assert_eq!(rules("host/src/source/embedded.rs", "use crate::state;\n"), ["source/ must not know state"]);
    assert_eq!(rules("host/src/serve/read.rs", "use crate::state::{Scan, Writer};\n").len(), 1);
    assert_eq!(rules("host/src/serve/read.rs", "use crate::state::{Scan, Snapshot};\n"), [""; 0]);
    assert_eq!(rules("host/src/cli/commands/reads/get.rs", "use crate::host::Host;\n").len(), 1);
    assert_eq!(rules("host/src/cli/commands/host/serve.rs", "use crate::host::Host;\n"), [""; 0]);
}

#[test]
fn a_function_or_file_that_is_too_long_is_found() {
    let body = "    call();\n".repeat(69);
    let long = format!("impl A {{\n    pub async fn slow(\n        &self,\n    ) {{\n{body}    }}\n}}\n");
    assert_eq!(rules("tests/suite/a.rs", &long), ["function slow has 73 lines, more than 70"]);
    let short = format!("fn quick() {{\n{}}}\n", "    call();\n".repeat(68));
    assert_eq!(rules("tests/suite/a.rs", &short), [""; 0]);
    let empty = format!("fn empty() {{}}\nmod a {{\n{}}}\n", "    const A: u8 = 1;\n".repeat(70));
    assert_eq!(rules("tests/suite/a.rs", &empty), [""; 0], "a line of its own is all there is of it");
    assert_eq!(rules("examples/a.rs", &"\n".repeat(601)), ["601 lines are more than 600"]);
}
