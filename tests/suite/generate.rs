//! Types that are generated from schemas: each language's own compiler takes them, and events that go
//! through them stay what they are.

use std::path::Path;

use foldstream_tests::{cli, guests, root};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::languages::run_in;

/// A folder of schemas, and what it is called in a command.
fn schemas(files: &[(&str, Value)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, schema) in files {
        let path = folder.path().join("schemas").join(name);
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("a folder can be made");
        std::fs::write(path, schema.to_string()).expect("a file can be written");
    }
    folder
}

/// What types have to say: members of every kind, names that are words of a language or collide,
/// notes that look like code.
fn placed() -> Value {
    let note = "*/ \"\"\" `x` \\ #[y] <z> ${w}\n\n- second \u{202e}paragraph";
    json!({
        "title": "An order was placed", "description": note, "type": "object",
        "required": ["order", "type", "payment", "lines", "a-b", "at"],
        "properties": {
            "order": { "type": "string", "description": note },
            "type": { "enum": ["in-store", "in store", "", "self"], "default": "in-store" },
            "a-b": { "type": "integer" }, "a_b": { "type": "string" },
            "a,b": { "type": "boolean" },
            "total_cents": { "type": "integer", "minimum": 0 },
            "at": { "type": "string", "format": "date-time" },
            "day": { "type": "string", "format": "date" },
            "note": { "type": ["string", "null"] },
            "rate": { "type": "number" },
            "priority": { "type": "integer", "default": 3 },
            "greeting": { "type": "string", "default": note },
            "state": { "enum": ["open", "done"], "default": "open" },
            "from": { "type": "string" }, "class": { "type": "string" }, "None": { "type": "string" },
            "str": { "type": "string" }, "date": { "type": "string", "format": "date" },
            "__proto__": { "type": "string" }, "größe'\"{x}`": { "type": "string" },
            "constructor": { "type": "string" }, "self": { "type": "string" },
            "pair": {
                "type": "array", "minItems": 2, "maxItems": 2,
                "prefixItems": [{ "type": "string" }, { "type": "number" }],
            },
            "lines": { "type": "array", "items": { "$ref": "#/$defs/line" } },
            "labels": { "type": "object", "additionalProperties": { "type": "array", "items": {
                "type": ["integer", "null"],
            } } },
            "meta": {},
            "payment": { "$ref": "#/$defs/payment" },
            "refund": { "anyOf": [{ "$ref": "#/$defs/payment" }, { "type": "null" }] },
        },
        "$defs": {
            "line": { "type": "object", "required": ["sku"], "properties": {
                "sku": { "type": "string" }, "tags": { "type": "array", "items": { "type": "string" } },
            } },
            "payment": { "oneOf": [
                { "type": "object", "required": ["kind", "digits"], "properties": {
                    "kind": { "const": "card" }, "digits": { "type": "string" },
                } },
                { "type": "object", "required": ["kind"], "properties": {
                    "kind": { "const": "gift-card" }, "left": { "type": "integer" },
                } },
                { "type": "object", "required": ["kind"], "properties": { "kind": { "const": "cash" } } },
            ] },
        },
    })
}

fn counted() -> Value {
    json!({ "required": ["least", "most"], "type": "object", "properties": {
        "least": { "type": "integer" }, "most": { "type": "integer", "minimum": 0 },
    } })
}

/// The schemas of all of them.
fn all() -> TempDir {
    with_placed(placed())
}

/// The same but for a member with a comma in its name, which Go does not have.
fn all_for_go() -> TempDir {
    let mut placed = placed();
    let members = placed["properties"].as_object_mut().expect("an object");
    members.remove("a,b");
    with_placed(placed)
}

fn with_placed(placed: Value) -> TempDir {
    schemas(&[
        ("placed.json", placed),
        ("counted.v2.json", counted()),
        ("published/option.json", json!({ "const": "only" })),
    ])
}

/// Events with the types of their data.
fn events() -> Vec<(&'static str, Value)> {
    let least = json!({
        "order": "1", "type": "", "payment": { "kind": "cash" }, "lines": [], "a-b": -1,
        "at": "2026-11-23T14:05:06.000000000Z",
        "priority": 3, "state": "open",
        "greeting": "*/ \"\"\" `x` \\ #[y] <z> ${w}\n\n- second \u{202e}paragraph",
    });
    let mut most = least.clone();
    let more = json!({
        "type": "in store", "a_b": "text", "total_cents": 5, "day": "2026-11-23", "rate": 0.1,
        "from": "f", "class": "c", "None": "n", "str": "s", "date": "1970-01-01", "__proto__": "p",
        "größe'\"{x}`": "g", "constructor": "k", "self": "me", "pair": ["é🦀", 1.5],
        "lines": [{ "sku": "a" }, { "sku": "b", "tags": [] }, { "sku": "c", "tags": ["\u{0}"] }],
        "labels": { "a": [1, null], "": [] }, "meta": { "any": [true, null, 1.5, "x"] },
        "payment": { "kind": "gift-card", "left": -7 }, "note": "n",
        "refund": { "kind": "card", "digits": "12" }, "priority": 9, "state": "done",
    });
    for (name, value) in more.as_object().expect("an object") {
        most[name] = value.clone();
    }
    vec![
        ("Placed", least),
        ("Placed", most),
        (
            "CountedV2",
            json!({ "least": -5, "most": 9_007_199_254_740_991_u64 }),
        ),
        ("CountedV2", json!({ "least": i64::MIN, "most": u64::MAX })),
    ]
}

/// Events that do not fit.
fn misfits() -> Vec<(&'static str, Value)> {
    let mut wrong_tag = events()[0].1.clone();
    wrong_tag["payment"] = json!({ "kind": "gold" });
    vec![
        ("Placed", json!({ "order": "1" })),
        ("CountedV2", json!({ "least": 1, "most": -1 })),
        ("CountedV2", json!({ "least": "1", "most": 1 })),
        ("Placed", wrong_tag),
    ]
}

fn generate(folder: &Path, out: &str) -> Value {
    let command = ["foldstream", "generate", "--out", out, "-o", "json"];
    run_in(folder, &command).expect(0).json()
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).expect("a file can be written");
}

/// One line of a program for each event: `call` gets the type and the event as a literal.
fn calls(call: impl Fn(&str, &str) -> String) -> String {
    let all = [events(), misfits()].concat().into_iter();
    let lines = all.map(|(kind, event)| {
        // JSON of a text is a literal in each language, as nothing else is escaped in it.
        let text = Value::String(event.to_string()).to_string();
        call(kind, &text)
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// What a program printed of each event: what became of it, or none if it was refused.
fn kept(printed: &str) -> Vec<Option<Value>> {
    let lines = printed.lines().filter_map(|line| {
        let line = line.trim_start_matches('.');
        match line.strip_prefix("KEPT ") {
            Some(text) => Some(Some(serde_json::from_str(text).expect("is JSON"))),
            None => line.starts_with("REFUSED").then_some(None),
        }
    });
    lines.collect()
}

/// Each event came back as it was, and what does not fit was refused.
fn all_are_kept(printed: &cli::Output) {
    let wanted = events().into_iter().map(|(_, event)| Some(event));
    let wanted: Vec<_> = wanted.chain(misfits().iter().map(|_| None)).collect();
    let found = kept(&printed.stdout);
    assert_eq!(found.len(), wanted.len(), "{printed:?}");
    for (found, wanted) in found.iter().zip(&wanted) {
        assert_eq!(found, wanted);
    }
}

#[test]
fn types_for_rust_compile_and_keep_events() {
    let folder = all();
    let project = folder.path();
    std::fs::create_dir(project.join("src")).expect("a folder can be made");
    let report = generate(project, "src/events.rs");
    let kinds = report["events"].as_array().expect("a list").iter();
    let kinds: Vec<_> = kinds.map(|event| event["type"].as_str()).collect();
    assert_eq!(kinds, [Some("CountedV2"), Some("Option2"), Some("Placed")]);
    let sdk = root().join("guest-sdk/rust").display().to_string();
    let manifest = format!(
        "[package]\nname = \"generated\"\nedition = \"2024\"\n[dependencies]\nfoldstream-sdk = {{ path \
         = {sdk:?} }}\nserde = {{ version = \"1\", features = [\"derive\"] }}\n[workspace]\n"
    );
    write(project, "Cargo.toml", &manifest);
    std::fs::copy(root().join("Cargo.lock"), project.join("Cargo.lock")).expect("copied");
    let literal = |text: &str| {
        format!(
            "{:?}",
            serde_json::from_str::<String>(text).expect("a text")
        )
    };
    let calls = calls(|kind, text| format!("    kept::<events::{kind}>({});", literal(text)));
    let main = format!(
        "#![deny(warnings)]\nmod events;\nuse foldstream_sdk::serde_json;\n\
         fn kept<T: serde::Serialize + serde::de::DeserializeOwned>(text: &str) {{\n    \
         match serde_json::from_str::<T>(text) {{\n        \
         Ok(value) => println!(\"KEPT {{}}\", serde_json::to_string(&value).expect(\"plain data\")),\n        \
         Err(error) => println!(\"REFUSED {{error}}\"),\n    }}\n}}\nfn main() {{\n{calls}\n}}\n"
    );
    write(project, "src/main.rs", &main);
    let target = foldstream_tests::built().join("guests/new");
    let target = format!("CARGO_TARGET_DIR={}", target.display());
    let run = ["env", &target, "cargo", "run", "--quiet", "--offline"];
    all_are_kept(&run_in(project, &run).expect(0));
    let format = ["rustfmt", "--edition", "2024", "--check", "src/events.rs"];
    run_in(project, &format).expect(0);
}

#[test]
fn types_for_typescript_are_sound_and_keep_events() {
    let folder = all();
    let project = folder.path();
    generate(project, "events.ts");
    let sdk = root().join("guest-sdk/typescript/src");
    let settings = json!({
        "compilerOptions": {
            "target": "es2023", "lib": ["es2024"], "types": ["node"], "module": "preserve",
            "strict": true, "noUncheckedIndexedAccess": true,
            "skipLibCheck": true, "noEmit": true,
            "paths": { "@foldstream/sdk": [sdk.join("index.ts")] },
        },
        "include": ["*.ts"],
    });
    write(project, "tsconfig.json", &settings.to_string());
    let calls = calls(|kind, text| format!("kept(events.{kind}, {text});"));
    let main = format!(
        "import {{ Mismatch, type Type }} from \"@foldstream/sdk\";\nimport * as events from \"./events\";\n\
         function kept<T>(type: Type<T>, text: string): void {{\n  try {{\n    \
         console.log(`KEPT ${{JSON.stringify(type.check(JSON.parse(text)))}}`);\n  }} catch (error) {{\n    \
         if (!(error instanceof Mismatch)) throw error;\n    console.log(`REFUSED ${{error.message}}`);\n  \
         }}\n}}\n{calls}\n\
         export function describe(payment: events.PlacedPayment): string {{\n  switch (payment.kind) {{\n    \
         case \"card\": return payment.digits;\n    case \"gift-card\": return String(payment.left ?? 0);\n    \
         case \"cash\": return \"cash\";\n  }}\n}}\n\
         const built: events.PlacedLine = {{ sku: \"a\" }};\nconst count: number = built.tags?.length ?? 0;\n\
         if (count > 0) throw new Error();\n"
    );
    write(project, "main.ts", &main);
    let types = root().join(".cache/node/node_modules/@types");
    run_in(
        project,
        &["tsc", "--typeRoots", &types.display().to_string()],
    )
    .expect(0);
    let printed = run_in(project, &["tsx", "main.ts"]).expect(0);
    let mut found = kept(&printed.stdout);
    // JavaScript has no such numbers: the event is refused, and never rounded.
    assert_eq!(found.remove(3), None);
    let mut wanted: Vec<_> = events().into_iter().map(|(_, event)| Some(event)).collect();
    wanted.remove(3);
    wanted.extend(misfits().iter().map(|_| None));
    assert_eq!(found, wanted, "{printed:?}");
}

#[test]
fn types_for_python_are_imported_and_keep_events() {
    let folder = all();
    let project = folder.path();
    generate(project, "events.py");
    let sdk = root().join("guest-sdk/python").display().to_string();
    let settings = format!("[tool.pytest.ini_options]\npythonpath = [\".\", {sdk:?}]\n");
    write(project, "pyproject.toml", &settings);
    let calls = calls(|kind, text| format!("    kept(events.{kind}, {text})"));
    let test = format!(
        "import events\nfrom foldstream.codec import codec, parse, to_json\nfrom foldstream.errors import Mismatch\n\n\
         def kept(kind, text):\n    try:\n        value = codec(kind).decode(parse(text))\n    \
         except Mismatch as error:\n        print(\"\\nREFUSED\", error)\n        return\n    \
         assert codec(kind).encode(value) == to_json(value)\n    \
         print(\"\\nKEPT\", codec(kind).encode(value))\n\n\
         def test_all_are_kept():\n    print()\n{calls}\n    \
         assert events.PlacedPaymentCard(digits=\"1\").kind == \"card\"\n"
    );
    write(project, "test_events.py", &test);
    let run = [
        "pytest",
        "-q",
        "-s",
        "-W",
        "error",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:schemathesis",
    ];
    all_are_kept(&run_in(project, &run).expect(0));
}

#[test]
fn types_for_go_are_vetted_and_keep_events() {
    let folder = all_for_go();
    let project = folder.path();
    generate(project, "events.go");
    let sdk = root().join("guest-sdk/go/foldstream").display().to_string();
    let module = format!(
        "module mine\n\nrequire foldstream v0.0.0\n\nreplace foldstream => {sdk}\n\ngo 1.24\n"
    );
    write(project, "go.mod", &module);
    write(project, "main.go", "package main\n\nfunc main() {}\n");
    let calls = calls(|kind, text| format!("\tkept[{kind}](t, {text})"));
    let test = format!(
        "package main\n\nimport (\n\t\"fmt\"\n\t\"testing\"\n\n\t\"foldstream\"\n)\n\n\
         func kept[V any](t *testing.T, text string) {{\n\t\
         values := foldstream.NewHarness(t, func(p *foldstream.Projection) {{\n\t\t\
         p.Manifest = foldstream.Manifest{{Name: \"kept\", Subjects: []string{{\"a.>\"}}}}\n\t\t\
         table := foldstream.NewTable[string, V](p, \"value\")\n\t\t\
         foldstream.On(p, \"kept\", func(_ *foldstream.Event, value V) error {{ table.Set(\"x\", value); return nil }})\n\t\
         }})\n\tif err := values.Try(foldstream.Given{{Subject: \"a.kept\", Data: text}}); err != nil {{\n\t\t\
         fmt.Println(\"REFUSED\", err)\n\t\treturn\n\t}}\n\
         \tfmt.Println(\"KEPT\", values.Get(\"value/x\"))\n}}\n\n\
         func TestAllAreKept(t *testing.T) {{\n{calls}\n}}\n\nvar _ = PlacedPayment{{Kind: PlacedPaymentGiftCard}}\n"
    );
    write(project, "main_test.go", &test);
    run_in(project, &["go", "vet", "."]).expect(0);
    let formatted = run_in(project, &["gofmt", "-d", "events.go"]).expect(0);
    assert_eq!(formatted.stdout, "");
    let printed = run_in(project, &["go", "test", "-v", "."]).expect(0);
    let mut found = kept(&printed.stdout);
    let mut wanted: Vec<_> = events().into_iter().map(|(_, event)| Some(event)).collect();
    // Its types do not know which values a text may have: the check against the schema does.
    let last = found.pop().expect("there are some").expect("is kept");
    assert_eq!(last["payment"]["kind"], "gold");
    wanted.extend(misfits().iter().skip(1).map(|_| None));
    assert_eq!(found, wanted, "{printed:?}");
}

#[test]
fn a_module_and_its_folder_give_the_same_types() {
    let module = guests::path("order-totals").display().to_string();
    let folder = guests::folder("order-totals").join("schemas");
    let folder = folder.display().to_string();
    for lang in ["rust", "typescript", "python", "go"] {
        let [one, other] = [&module, &folder].map(|schemas| {
            cli::run(&["generate", schemas, "--lang", lang])
                .expect(0)
                .stdout
        });
        assert_eq!(one, other);
        assert!(one.contains("Placed") && one.contains("Returned"), "{one}");
    }
    let shown = cli::run(&["generate", &module, "--lang", "go", "-o", "json"])
        .expect(0)
        .json();
    assert_eq!(shown["events"][2]["type"], "Placed");
    assert!(
        shown["code"]
            .as_str()
            .expect("a text")
            .starts_with("// Code generated by")
    );
}

#[test]
fn check_fails_once_the_schemas_differ_from_the_types() {
    let folder = schemas(&[(
        "a.json",
        json!({ "properties": { "x": { "type": "string" } } }),
    )]);
    let run = |arguments: &[&str], code: i32| {
        let command = [&["foldstream", "generate", "--out", "events.py"], arguments].concat();
        run_in(folder.path(), &command).expect(code)
    };
    let missing = run(&["--check"], 3).stderr;
    assert!(missing.contains("events.py does not exist"), "{missing}");
    let written = run(&[], 0).stdout;
    assert_eq!(written, "events.py: types of 1 event in Python\n");
    run(&["--check"], 0);
    let file = folder.path().join("events.py");
    let changed = |path: &Path| {
        std::fs::metadata(path)
            .expect("it is there")
            .modified()
            .expect("known")
    };
    let before = changed(&file);
    run(&[], 0);
    assert_eq!(
        changed(&file),
        before,
        "a file that is up to date is not written"
    );
    let code = std::fs::read_to_string(&file).expect("it is there");
    std::fs::write(&file, code.replace('\n', "\r\n")).expect("the folder is ours");
    run(&["--check"], 0);
    write(
        folder.path(),
        "schemas/a.json",
        r#"{"properties": {"x": {"type": "integer"}}}"#,
    );
    let differs = run(&["--check"], 1).stderr;
    assert!(
        differs.contains("events.py is not up to date: line"),
        "{differs}"
    );
    let left = std::fs::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(left, 2, "nothing else is left there");
}

#[test]
fn what_cannot_be_generated_is_refused_with_its_place() {
    let either = json!({ "properties": { "x": { "type": ["string", "integer"] } } });
    let folder = schemas(&[("a.v2.json", either)]);
    let run = |arguments: &[&str], code: i32| {
        let command = [&["foldstream", "generate"], arguments].concat();
        run_in(folder.path(), &command).expect(code)
    };
    let refused = run(&["--lang", "rust"], 4).stderr;
    assert!(
        refused.contains("a v2 at /properties/x: it may be a number or a string"),
        "{refused}"
    );
    let loose = run(&["--lang", "rust", "--any", "-o", "json"], 0).json();
    assert_eq!(loose["any"][0]["pointer"], "/properties/x");
    assert!(
        loose["code"]
            .as_str()
            .expect("a text")
            .contains("pub x: Option<Value>,")
    );
    run(&["none", "--lang", "go"], 3);
    run(&["--out", "events"], 2);
    run(&[], 2);
    run(&["--lang", "go", "--package", "func"], 2);
    run(&["--lang", "cobol"], 2);
    run(&["--out", "none/events.go", "--any"], 3);
    std::fs::create_dir(folder.path().join("empty")).expect("a folder can be made");
    let nothing = run(&["empty", "--lang", "go"], 3).stderr;
    assert!(nothing.contains("empty: there are no schemas"), "{nothing}");
    write(
        folder.path(),
        "schemas/b.json",
        r#"{"items": {"$ref": "https://example.com"}}"#,
    );
    let refused = run(&["--lang", "go"], 4).stderr;
    assert!(
        refused.contains("the schema of b at /items/$ref"),
        "{refused}"
    );
    write(folder.path(), "garbage.wasm", "no module");
    run(&["garbage.wasm", "--lang", "go"], 4);
}
