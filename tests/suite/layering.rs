//! The layers of ARCHITECTURE.md, the limits of length and the rule on arguments hold in our own
//! code, and no dependency is there for nothing; and each check can fail.

use std::collections::BTreeMap;

use foldstream_tests::arguments::{check_arguments, check_text};
use foldstream_tests::dependencies::{unused, unused_in};
use foldstream_tests::layering::{
    Uses, Violation, check_file, check_repository, circle, too_many_long,
};
use foldstream_tests::root;

fn rules(path: &str, text: &str) -> Vec<String> {
    check_file(path, text)
        .into_iter()
        .map(|violation| violation.rule)
        .collect()
}

#[test]
fn our_code_keeps_its_layers_and_lengths() {
    none(&check_repository(root()));
}

#[test]
fn our_functions_have_few_arguments_and_no_bool() {
    none(&check_arguments(root()));
}

#[test]
fn our_packages_name_what_they_depend_on() {
    none(&unused(root()));
}

fn none(violations: &[Violation]) {
    let text = |violation: &Violation| format!("{}: {}", violation.place, violation.rule);
    assert!(
        violations.is_empty(),
        "{}",
        violations.iter().map(text).collect::<Vec<_>>().join("\n")
    );
}

#[test]
fn a_circle_of_modules_is_found_and_shown() {
    let uses = |pairs: &[(&str, &str)]| {
        let mut uses: Uses = BTreeMap::new();
        for (module, used) in pairs {
            uses.entry((*module).to_owned())
                .or_default()
                .insert((*used).to_owned());
        }
        uses
    };
    let sound = [
        ("cli", "serve"),
        ("cli", "host"),
        ("serve", "host"),
        ("host", "state"),
    ];
    assert_eq!(
        circle(&uses(&sound)),
        None,
        "two ways to one module are no circle"
    );
    let found = circle(&uses(
        &[&sound[..], &[("state", "config"), ("config", "serve")]].concat(),
    ));
    assert_eq!(
        found.expect("there is one").join(" "),
        "host state config serve host"
    );
}

#[test]
fn a_module_without_a_layer_is_found() {
    let [rule] = &rules("host/src/kafka/mod.rs", "use crate::event::Event;\n")[..] else {
        panic!("one")
    };
    assert!(rule.starts_with("module kafka is in no layer"), "{rule}");
    assert_eq!(
        rules("host/src/position.rs", "use crate::batch::Batch;\n"),
        ["position must not know batch, which is not below it"]
    );
    assert_eq!(
        rules("host/src/batch.rs", "use crate::position::Checkpoint;\n"),
        [""; 0]
    );
}

#[test]
fn a_name_with_a_word_that_is_not_plain_is_found() {
    let text = "// goes on\nfn a_fold_goes_on() {\n    let s = \"anew\";\n}\nconst BESIDE: u8 = \
                0;\nfn besides() {}\n";
    assert_eq!(
        rules("tests/suite/swap.rs", text),
        [
            "a_fold_goes_on has the word goes_on; say continues",
            "BESIDE has the word beside; say alongside",
            "it says goes on; say continues"
        ]
    );
}

#[test]
fn json_of_the_api_away_from_server_and_client_is_found() {
    let rule = "must not know api: answer with a type of its own, which conversion/ converts";
    let modules = [
        "state",
        "config",
        "pipeline",
        "runner",
        "deployment",
        "deployments",
        "history",
        "exceptions",
        "handlers",
        "rollout",
        "backup",
        "host",
        "preflight",
    ];
    for module in modules {
        let path = format!("host/src/{module}/mod.rs");
        let code = "fn shown() -> crate::api::Deployment {\n    todo()\n}\n";
        assert_eq!(rules(&path, code), [format!("{module} {rule}")]);
    }
    for path in [
        "host/src/serve/wait.rs",
        "host/src/conversion/mod.rs",
        "host/src/cli/mod.rs",
    ] {
        assert_eq!(rules(path, "use crate::api::{self, Start};\n"), [""; 0]);
    }
}

#[test]
fn a_dependency_that_no_file_names_is_found() {
    let manifest = "[package]\nname = \"a\"\n[dependencies]\nserde.workspace = \
                    true\nhumantime-serde = \"1\"\n# why\nbackon = { version = \"1\" \
                    }\n[target.'cfg(unix)'.dependencies]\nlibc = \"0.2\"\n";
    let code =
        ["use serde::Serialize; // backon\n#[serde(with = \"humantime_serde\")]\n".to_owned()];
    let found: Vec<_> = unused_in("a/Cargo.toml", manifest, &code)
        .into_iter()
        .map(|found| found.rule)
        .collect();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].contains("names backon;") && found[1].contains("names libc;"),
        "{found:?}"
    );
}

#[test]
fn an_outside_crate_away_from_its_home_is_found() {
    assert_eq!(
        rules("host/src/serve/mod.rs", "use redb::Database;\n"),
        ["redb belongs to state/, log/, storage.rs"]
    );
    assert_eq!(
        rules(
            "host/src/pipeline/mod.rs",
            "fn f() {\n    let e = wasmtime::Engine::default();\n}\n"
        )
        .len(),
        1
    );
    assert_eq!(
        rules(
            "host/src/state/file.rs",
            "use redb::{Database, Durability};\n"
        ),
        [""; 0]
    );
    assert_eq!(
        rules(
            "host/src/serve/mod.rs",
            "// use redb::Database;\nconst A: &str = \"redb::Database\";\n"
        ),
        [""; 0]
    );
}

#[test]
fn a_layer_that_knows_too_much_is_found() {
    let grouped = "use crate::{\n    event::Event,\n    module::{Engine, Instance},\n};\n";
    assert_eq!(
        rules("host/src/state/mod.rs", grouped),
        ["state must not know module, which is not below it"; 2]
    );
    assert_eq!(
        rules("host/src/source/embedded.rs", "use crate::state;\n"),
        ["source/ must not know state"]
    );
    let shared = "pub(crate) use crate::{state, batch::Batch};\n";
    assert_eq!(
        rules("host/src/source/embedded.rs", shared),
        ["source/ must not know state"]
    );
    assert_eq!(
        rules(
            "host/src/serve/read.rs",
            "use crate::state::{Scan, Writer};\n"
        )
        .len(),
        1
    );
    assert_eq!(
        rules(
            "host/src/serve/read.rs",
            "use crate::state::{Scan, Snapshot};\n"
        ),
        [""; 0]
    );
    assert_eq!(
        rules(
            "host/src/cli/commands/reads/get.rs",
            "use crate::host::Host;\n"
        )
        .len(),
        1
    );
    assert_eq!(
        rules(
            "host/src/cli/commands/host/serve.rs",
            "use crate::host::Host;\n"
        ),
        [""; 0]
    );
}

#[test]
fn a_function_or_file_that_is_too_long_is_found() {
    let body = "    call();\n".repeat(99);
    let long =
        format!("impl A {{\n    pub async fn slow(\n        &self,\n    ) {{\n{body}    }}\n}}\n");
    assert_eq!(
        rules("tests/suite/a.rs", &long),
        ["function slow has 103 lines, more than 100"]
    );
    let short = format!("fn quick() {{\n{}}}\n", "    call();\n".repeat(98));
    assert_eq!(rules("tests/suite/a.rs", &short), [""; 0]);
    let empty = format!(
        "fn empty() {{}}\nmod a {{\n{}}}\n",
        "    const A: u8 = 1;\n".repeat(100)
    );
    assert_eq!(
        rules("tests/suite/a.rs", &empty),
        [""; 0],
        "a line of its own is all there is of it"
    );
    assert_eq!(
        rules("examples/a.rs", &"\n".repeat(1_001)),
        ["1001 lines are more than 1000"]
    );
}

#[test]
fn more_long_functions_than_1_in_100_are_found() {
    let long = ["a.rs:1", "b.rs:1"].map(str::to_owned);
    assert!(too_many_long(200, &long).is_none());
    let found = too_many_long(199, &long).expect("more than 1 in 100");
    assert!(
        found.rule.starts_with("2 of 199 functions"),
        "{}",
        found.rule
    );
    assert_eq!(found.place, "a.rs:1, b.rs:1");
}

/// Places and rules, without what to do about it.
fn arguments(text: &str) -> Vec<String> {
    let short = |violation: Violation| {
        let rule = violation.rule.split(';').next().unwrap_or("").to_owned();
        format!("{} {rule}", violation.place)
    };
    check_text("a.rs", text).into_iter().map(short).collect()
}

#[test]
fn a_bool_argument_is_found() {
    let text = "fn send(\n    &self,\n    #[cfg(unix)] is_last: bool,\n) {\n}\n\n\
                pub(crate) fn look(known: Option<bool>) {}\n\
                async fn turn<F: Fn(u8) -> u8>(f: F, (a, b): (u8, bool)) {}\n\
                const fn mark(of: &mut [bool], flag: &'static bool) {}\n\
                trait A {\n    fn ask(all: bool);\n}\n";
    assert_eq!(
        arguments(text),
        [
            "a.rs:1 function send has a bool argument (is_last: bool)",
            "a.rs:7 function look has a bool argument (known: Option<bool>)",
            "a.rs:8 function turn has a bool argument ((a, b): (u8, bool))",
            "a.rs:9 function mark has a bool argument (of: &mut [bool])",
            "a.rs:9 function mark has a bool argument (flag: &'static bool)",
            "a.rs:11 function ask has a bool argument (all: bool)",
        ]
    );
}

#[test]
fn what_only_looks_like_a_bool_argument_is_not_found() {
    let text = "fn is_last(&self, boolean: u8) -> bool {\n    let is_last = |is: bool| is;\n}\n\
                // fn a(is: bool) {}\n/* fn b(is: bool) {} */\n\
                const A: &str = \"\nfn c(is: bool) {}\n\\\"fn d(is: bool) {}\";\n\
                const B: &str = r#\"\nfn e(is: bool) {}\"\nfn f(is: bool) {}\"#;\n\
                const C: [char; 3] = ['\"', '\\'', '\\\\'];\n\
                fn each(f: impl Fn(&str) -> bool, g: fn(bool), done: Result<bool, E>) {}\n\
                fn hear(stops: &mut Receiver<bool>, g: Box<dyn Fn(bool)>) {}\n\
                impl<'a> Visitor<'a>\n    for Flag<'a>\n{\n    fn visit_bool(is: bool) {\n    }\n}\n\
                struct Row {\n    is_last: bool,\n}\n";
    assert_eq!(arguments(text), [""; 0]);
    // What follows is looked at again.
    let text = format!("impl Mark for Flag {{}}\n{text}fn last(is: bool) {{}}\n");
    assert_eq!(arguments(&text).len(), 1);
}

#[test]
fn a_fifth_argument_is_found() {
    let text = "fn four(&mut self, a: u8, (b, c): (u8, u8), d: Map<u8, u8>, e: fn(u8, u8)) {}\n\
                fn five<A>(a: A, b: [u8; 2], c: u8, d: u8, e: u8) {}\n\
                impl Sum {\n    fn of(\n        a: u8,\n        b: u8,\n        c: u8,\n        \
                d: u8,\n        e: impl Fn(u8) -> Map<u8, u8>,\n    ) {\n    }\n}\n";
    assert_eq!(
        arguments(text),
        [
            "a.rs:2 function five has 5 arguments, more than 4",
            "a.rs:4 function of has 5 arguments, more than 4",
        ]
    );
}
