//! Modules in every language: made, tested, built, deployed and asked as a user would; the same
//! bytes stored, the same failures; nothing of the system or of chance within reach.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use foldstream::api::{FailureClass, NewEvent};
use foldstream_tests::client::Client;
use foldstream_tests::host::{self, Host};
use foldstream_tests::process::Process;
use foldstream_tests::{cli, guests, root, wait};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A language with the tools that a project of it needs.
pub(crate) struct Language {
    pub(crate) name: &'static str,
    /// Commands that install the tools of a new project without a network; none if those on PATH do.
    install: &'static [&'static str],
    /// The command that tests a project, and what it prints if that went well.
    test: (&'static [&'static str], &'static str),
    /// The file with the projection, a line in it, and what makes that line throw.
    source: &'static str,
    line: &'static str,
    throws: &'static str,
    /// What an operator then reads of where it was thrown, and in the log.
    told: [&'static str; 2],
}

pub(crate) const PYTHON: Language = Language {
    name: "python",
    install: &[],
    test: (
        &[
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:schemathesis",
        ],
        "2 passed",
    ),
    source: "src/page_visits.py",
    line: "        page = event.token(2)\n",
    throws: "        page = {}[event.token(2)]\n",
    told: [
        "KeyError: 'home' (page_visits.py, line 16, in apply)",
        "File \"page_visits.py\", line 16, in apply",
    ],
};
pub(crate) const TYPESCRIPT: Language = Language {
    name: "typescript",
    install: &[
        "npm",
        "ci",
        "--offline",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
    ],
    test: (&["npm", "test"], "# pass 2"),
    source: "src/index.ts",
    line: "    const page = event.token(2);\n",
    throws: "    const page = (event as any).nothing(event.token(2));\n",
    told: ["(apply src/index.ts:17)", "at apply (src/index.ts:17)"],
};
pub(crate) const GO: Language = Language {
    name: "go",
    install: &[],
    test: (&["go", "test", "."], "ok"),
    source: "main.go",
    line: "		page := event.Token(2)\n",
    throws: "		page := []string{}[len(event.Subject)]\n",
    told: [
        "panic: runtime error: index out of range [11] with length 0 (main.go:22)",
        "at main.PageVisits.func1 (page-visits/main.go:22)",
    ],
};
const C: Language = Language {
    name: "c",
    install: &[],
    test: (&["make", "test"], "2 passed, 0 failed"),
    source: "src/page_visits.c",
    line: "    uint64_t *count = fs_edit(&pages, FS_KEY(page));\n",
    throws: "    uint64_t *count = NULL; return fs_reject(\"no page %d\", (int)page.length);\n",
    told: [
        "no page 4 (page_visits.c:10)",
        "no page 4 (page_visits.c:10)",
    ],
};

/// A command with the tools of the set-up behind those of the user.
fn with_tools(mut command: Command) -> Command {
    let cache = root().join(".cache");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([cache.join("bin")]);
    let path = std::env::join_paths(folders).expect("our folders have no colons");
    command
        .env("PATH", path)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("npm_config_cache", cache.join("npm"))
        // Go compiles its library once for WebAssembly, and needs nothing from elsewhere.
        .env("GOCACHE", cache.join("go-build"))
        .envs([("GOPROXY", "off"), ("GOTOOLCHAIN", "local")])
        .env("ZIG_GLOBAL_CACHE_DIR", cache.join("zig-cache"));
    command
}

pub(crate) fn run_in(folder: &Path, words: &[&str]) -> cli::Output {
    let command = match words[0] {
        "foldstream" => host::foldstream(),
        program => Command::new(program),
    };
    let mut command = with_tools(command);
    command.args(&words[1..]).current_dir(folder);
    cli::finish(&mut command, None)
}

#[test]
fn sdk_of_python_and_its_examples_pass_their_tests() {
    let sdk = root().join("guest-sdk/python");
    for folder in ["", "examples/order-totals", "examples/saga-orchestrated"] {
        run_in(&sdk.join(folder), PYTHON.test.0).expect(0);
    }
}

#[test]
fn sdk_of_typescript_and_its_examples_pass_their_tests_and_have_sound_types() {
    let sdk = root().join("guest-sdk/typescript");
    for file in [
        "test/keys.test.ts",
        "test/projection.test.ts",
        "test/handler.test.ts",
        "test/saga.test.ts",
        "test/migration.test.ts",
        "test/versions.test.ts",
        "test/data.test.ts",
        "examples/order-totals/test/index.test.ts",
        "examples/saga-orchestrated/test/index.test.ts",
    ] {
        run_in(&sdk, &["tsx", "--test", file]).expect(0);
    }
    let types = root().join(".cache/node/node_modules/@types");
    let types = types.display().to_string();
    run_in(&sdk, &["tsc", "--typeRoots", &types]).expect(0);
}

#[test]
fn sdk_of_go_and_its_examples_pass_their_tests() {
    let sdk = root().join("guest-sdk/go");
    for folder in [
        "foldstream",
        "examples/order-totals",
        "examples/saga-orchestrated",
    ] {
        run_in(&sdk.join(folder), &["go", "test", "./..."]).expect(0);
    }
    let formatted = run_in(&sdk, &["gofmt", "-l", "."]).expect(0);
    assert_eq!(formatted.stdout, "", "gofmt -w formats these");
}

#[test]
fn the_readme_of_go_shows_modules_that_pass_their_tests() {
    let sdk = root().join("guest-sdk/go");
    let readme = std::fs::read_to_string(sdk.join("README.md")).expect("it is there");
    let blocks = readme.split("```go\n").skip(1);
    let blocks: Vec<_> = blocks
        .filter_map(|block| Some(block.split_once("```")?.0))
        .collect();
    let [projection, handler, saga, _, _, of_projection, of_handler] = blocks[..] else {
        panic!("there are {} examples", blocks.len())
    };
    let of_saga = "func TestItCharges(t *testing.T) {\n\torders := foldstream.NewHarness(t, Orders)\n\t\
                   orders.Given(foldstream.Given{Subject: \"orders.1.placed\", Data: order{1}})\n\t\
                   if orders.Published()[0].Subject != \"payment.1.charge\" {\n\t\tt.Fail()\n\t}\n}\n";
    let sdk = sdk.join("foldstream");
    let project = format!(
        "module mine\n\nrequire foldstream v0.0.0\n\nreplace foldstream => {}\n\ngo 1.24\n",
        sdk.display()
    );
    for (module, test, imports) in [
        (projection, of_projection, "\"testing\""),
        (handler, of_handler, "\"reflect\"; \"testing\"; \"time\""),
        (saga, of_saga, "\"testing\""),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let test = format!("package main\n\nimport ({imports}; \"foldstream\")\n\n{test}");
        for (name, text) in [
            ("go.mod", &*project),
            ("main.go", module),
            ("main_test.go", &*test),
        ] {
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        let tested = run_in(folder.path(), &["go", "test", "-v", "."]).expect(0);
        assert!(tested.stdout.contains("--- PASS"), "{tested:?}");
    }
}

#[test]
fn sdk_of_c_and_its_examples_pass_their_tests() {
    let sdk = root().join("guest-sdk/c");
    for folder in ["tests", "examples/order-totals"] {
        run_in(&sdk.join(folder), C.test.0).expect(0);
    }
}

/// Makes a project of a kind in a folder, installs its tools, tests it, builds it, and plays its
/// scenarios; returns its folder.
pub(crate) fn made(language: &Language, kind: &str, folder: &Path, name: &str) -> PathBuf {
    let new = ["foldstream", "new", "--lang", language.name, "--kind", kind];
    run_in(folder, &[&new[..], &[name]].concat()).expect(0);
    let project = folder.join(name);
    if !language.install.is_empty() {
        run_in(&project, language.install).expect(0);
    }
    let tested = run_in(&project, language.test.0).expect(0);
    assert!(tested.stdout.contains(language.test.1), "{tested:?}");
    let built = run_in(&project, &["foldstream", "build"]).expect(0);
    assert!(
        built.stdout.starts_with(&format!("{kind} {name}, ")) && built.stdout.contains("sha256:"),
        "{built:?}"
    );
    let module = format!("{name}.wasm");
    let test = ["foldstream", "test", &module, "scenarios.yaml"];
    let tested = run_in(&project, &test).expect(0);
    assert!(tested.stdout.contains("2 passed, 0 failed"), "{tested:?}");
    project
}

/// Makes a project, tests and builds it, deploys it and asks it: all that its README says.
async fn first_projection(language: &Language) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let project = made(language, "projection", folder.path(), "page-visits");

    // As after `foldstream test --schema`, so that editors complete the file.
    let schema = std::fs::read_to_string(project.join("scenarios.schema.json")).expect("made");
    assert_eq!(schema, cli::run(&["test", "--schema"]).stdout);

    let host = Host::start().await;
    let module = project.join("page-visits.wasm").display().to_string();
    cli::on(&host, &["deploy", &module, "--wait", "--timeout", "120s"]).expect(0);
    let appended = cli::on(&host, &["events", "append", "visits.home"]).expect(0);
    let at_least = ["--at-least", appended.stdout.trim()];
    let query = ["query", "page-visits", "visits", "\"home\""];
    let asked = cli::on(&host, &[&query[..], &at_least[..]].concat()).expect(0);
    assert_eq!(asked.stdout.trim(), "1");
    cli::on(&host, &["query", "page-visits", "visits", "\"nowhere\""]).expect(3);

    // What the module throws reaches the operator in the terms of its language.
    let source = project.join(language.source);
    let text = std::fs::read_to_string(&source).expect("it is there");
    assert!(text.contains(language.line), "{text}");
    std::fs::write(&source, text.replace(language.line, language.throws)).expect("written");
    run_in(&project, &["foldstream", "build"]).expect(0);
    // Under a name of its own: no code before it takes its place when it fails.
    cli::on(&host, &["deploy", &module, "--name", "thrower"]).expect(0);
    let (_, failure) = host.client().failed("thrower").await;
    assert_eq!(failure.class, Some(FailureClass::Rejected), "{failure:?}");
    assert!(failure.message.contains(language.told[0]), "{failure:?}");
    host.prints(language.told[1]).await;

    broken_source_is_reported(language, &project, &source);
}

fn broken_source_is_reported(language: &Language, project: &Path, source: &Path) {
    std::fs::write(source, "this is (no program").expect("written");
    let refused = run_in(project, &["foldstream", "build"]).expect(1).stderr;
    let file = source.file_name().expect("it has one").to_string_lossy();
    assert!(
        refused.contains("page-visits cannot be built:") && refused.contains(&*file),
        "{}: {refused}",
        language.name
    );
    assert!(!refused.contains("Stack backtrace"), "{refused}");
}

#[tokio::test]
async fn a_first_projection_in_python_works_as_its_readme_says() {
    first_projection(&PYTHON).await;
}

#[tokio::test]
async fn a_first_projection_in_typescript_works_as_its_readme_says() {
    first_projection(&TYPESCRIPT).await;
}

#[tokio::test]
async fn a_first_projection_in_go_works_as_its_readme_says() {
    first_projection(&GO).await;
}

#[tokio::test]
async fn a_first_projection_in_c_works_as_its_readme_says() {
    first_projection(&C).await;
}

#[tokio::test]
async fn dev_names_the_deployment_that_a_renamed_module_leaves() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let new = ["foldstream", "new", "--lang", "go", "page-visits"];
    run_in(folder.path(), &new).expect(0);
    let project = folder.path().join("page-visits");
    let mut command = with_tools(host::foldstream());
    let listen = ["dev", ".", "--listen", "127.0.0.1:0"];
    command.args(listen).current_dir(&project);
    let mut dev = Process::start("foldstream dev", &mut command);
    let long = Duration::from_secs(300);
    wait::until_within(long, "the first build to be deployed", async || {
        dev.printed("waiting for changes")
    })
    .await;

    let source = project.join("main.go");
    let text = std::fs::read_to_string(&source).expect("it is there");
    let renamed = text.replace("\"page-visits\"", "\"visits-of-pages\"");
    assert_ne!(renamed, text);
    std::fs::write(&source, renamed).expect("written");
    let advice = wait::until_within(long, "the old deployment to be named", async || {
        dev.printed(
            "the module is now named visits-of-pages; the old deployment page-visits keeps \
             running: delete it with `foldstream ",
        )
    })
    .await;
    wait::until_within(long, "commands for the new name", async || {
        dev.printed("  foldstream scan visits-of-pages ")
    })
    .await;

    let url = dev.printed("listening on ").expect("it listens");
    let client = Client::new(&url);
    let status = async |name: &str| {
        let path = format!("/v1/deployments/{name}");
        client.get(&path).await.status
    };
    assert_eq!(status("page-visits").await, 200);
    let deletes: Vec<_> = advice.trim_end_matches('`').split(' ').collect();
    assert_eq!(deletes, ["delete", "page-visits", "--url", &url]);
    cli::run(&[&deletes[..], &["--yes"]].concat()).expect(0);
    assert_eq!(status("page-visits").await, 404);
    assert_eq!(status("visits-of-pages").await, 200);
    dev.signal(Signal::INT);
    assert_eq!(dev.wait(wait::DEADLINE).code(), Some(0));
}

/// The files of Go below a folder, without tests, by their paths in it.
fn files_of_go(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).expect("it is there") {
            let path = entry.expect("can be read").path();
            let name = path.to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".go") && !name.ends_with("_test.go") {
                let path = path.strip_prefix(folder).expect("it is below");
                files.push(path.to_owned());
            }
        }
    }
    files.sort();
    files
}

#[test]
fn a_new_project_in_go_has_all_packages_of_the_sdk() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let new = ["foldstream", "new", "--lang", "go", "mine"];
    run_in(folder.path(), &new).expect(0);
    let found = files_of_go(&folder.path().join("mine/foldstream"));
    let sdk = files_of_go(&root().join("guest-sdk/go/foldstream"));
    assert!(sdk.contains(&"saga/saga.go".into()), "{sdk:?}");
    assert_eq!(found, sdk);
}

#[test]
fn a_mistake_in_a_definition_in_go_is_reported_by_the_build() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    run_in(
        folder.path(),
        &["foldstream", "new", "--lang", "go", "mine"],
    )
    .expect(0);
    let project = folder.path().join("mine");
    let source = project.join("main.go");
    let text = std::fs::read_to_string(&source).expect("it is there");
    for (words, others, told) in [
        (
            "(p, \"page\")",
            "(p, \"Page\")",
            "panic: foldstream: table name \"Page\": use 1 to 64 lower-case letters, digits and \
             hyphens (main.go:18)",
        ),
        (
            "projection.Export(Mine) }",
            "projection.Export(Mine); projection.Export(Mine) }",
            "panic: foldstream: a module has one projection or handler (main.go:37)",
        ),
        (
            "Name:        \"mine\",",
            "Name:        \"mine\", Timers: true,",
            "panic: foldstream: a projection publishes nothing and sets no timers: write a \
             foldstream.Handler",
        ),
        (
            "projection.Export(Mine)",
            "_ = projection.Export",
            "panic: foldstream: the module exports nothing",
        ),
    ] {
        assert!(text.contains(words), "{text}");
        std::fs::write(&source, text.replace(words, others)).expect("written");
        let refused = run_in(&project, &["foldstream", "build"]).expect(4).stderr;
        assert!(refused.contains(told), "{refused}");
    }
}

#[test]
fn scenarios_find_chance_and_the_clock_in_a_module_of_any_language() {
    for (language, count, others) in [
        (
            &PYTHON,
            "self.pages.get(page, 0) + 1",
            [
                ("chance", "__import__('random').randrange(1 << 32)"),
                ("time", "__import__('time').time_ns()"),
            ],
        ),
        (
            &TYPESCRIPT,
            "(this.pages.get(page) ?? 0) + 1",
            // Its random numbers begin in each new instance as they did when it was built.
            [
                ("hidden-state", "Math.floor(Math.random() * 2 ** 32)"),
                ("time", "Date.now()"),
            ],
        ),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let new = ["foldstream", "new", "--lang", language.name, "page-visits"];
        run_in(folder.path(), &new).expect(0);
        let project = folder.path().join("page-visits");
        if !language.install.is_empty() {
            run_in(&project, language.install).expect(0);
        }
        let visits =
            "scenarios:\n  - name: visits\n    when: [{ subject: visits.home, times: 2 }]\n";
        std::fs::write(project.join("visits.yaml"), visits).expect("written");
        let source = project.join(language.source);
        let text = std::fs::read_to_string(&source).expect("it is there");
        assert!(text.contains(count), "{text}");
        for (property, other) in others {
            std::fs::write(&source, text.replace(count, other)).expect("written");
            run_in(&project, &["foldstream", "build"]).expect(0);
            let test = ["foldstream", "test", "page-visits.wasm", "visits.yaml"];
            let tested = run_in(&project, &test).expect(1);
            assert!(
                tested.stdout.contains(&format!("{property}: the ")),
                "{other}: {tested:?}"
            );
        }
    }
}

#[test]
fn a_build_says_what_would_never_run_and_where_a_module_throws_as_it_loads() {
    let async_method = ("    def apply(", "    async def apply(");
    let late = ("export default", "null.late();\nexport default");
    for (language, (part, other), told) in [
        (&PYTHON, async_method, "PageVisits.apply must not be async"),
        (&TYPESCRIPT, late, "src/index.ts:5)"),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let new = ["foldstream", "new", "--lang", language.name, "page-visits"];
        run_in(folder.path(), &new).expect(0);
        let project = folder.path().join("page-visits");
        if !language.install.is_empty() {
            run_in(&project, language.install).expect(0);
        }
        let source = project.join(language.source);
        let text = std::fs::read_to_string(&source).expect("it is there");
        assert!(text.contains(part), "{text}");
        std::fs::write(&source, text.replacen(part, other, 1)).expect("written");
        let refused = run_in(&project, &["foldstream", "build"]).expect(1).stderr;
        assert!(
            refused.contains(told) && !refused.contains("bundle.js"),
            "{refused}"
        );
    }
}

#[test]
fn a_missing_tool_is_named_with_the_command_that_installs_it() {
    for (language, install) in [
        ("python", "pip install -r requirements.txt"),
        ("typescript", "npm install"),
        ("go", "https://go.dev/dl"),
        ("c", "pip install ziglang"),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        cli::run_in(folder.path(), &["new", "--lang", language, "mine"]).expect(0);
        let mut command = host::foldstream();
        command
            .args(["build", "mine"])
            .current_dir(folder.path())
            .env_remove("VIRTUAL_ENV")
            .env("PATH", folder.path());
        let refused = cli::finish(&mut command, None).expect(1).stderr;
        assert!(
            refused.contains("cannot find ") && refused.contains(install),
            "{refused}"
        );
    }
}

/// A module of an SDK's folder, built once a run.
pub(crate) fn module(path: &str) -> Vec<u8> {
    let folder = root().join("guest-sdk").join(path);
    let out: PathBuf = foldstream_tests::built()
        .join("guests")
        .join(path.replace('/', "-") + ".wasm");
    let out = out.display().to_string();
    run_in(&folder, &["foldstream", "build", "--out", &out]).expect(0);
    std::fs::read(out).expect("what was just built can be read")
}

/// The names of the deployments of one module in each language.
const NAMES: [&str; 5] = ["in-rust", "in-python", "in-typescript", "in-go", "in-c"];

/// Deploys `order-totals` in each language.
async fn deploy_order_totals(host: &Host) {
    let modules = [
        guests::module("order-totals"),
        module("python/examples/order-totals"),
        module("typescript/examples/order-totals"),
        module("go/examples/order-totals"),
        module("c/examples/order-totals"),
    ];
    for (name, module) in NAMES.iter().zip(modules) {
        host.client().deploy(name, &module).await;
    }
}

/// Asserts that all languages store the same bytes under the same keys, and answer alike.
async fn same(host: &Host) {
    let client = host.client();
    let keys = |entries: Vec<foldstream::api::Entry>| -> Vec<String> {
        entries.into_iter().map(|entry| entry.key).collect()
    };
    let wanted = keys(client.entries(NAMES[0], "").await);
    assert!(wanted.len() > 100, "there is something to compare");
    for name in &NAMES[1..] {
        assert_eq!(keys(client.entries(name, "").await), wanted, "{name}");
    }
    for key in &wanted {
        // Keys may have slashes, and everything that a text may have.
        let key = reqwest::Url::parse("http://a").map(|mut url| {
            url.path_segments_mut().expect("it has a path").push(key);
            url.path().trim_start_matches('/').to_owned()
        });
        let key = key.expect("is an address");
        let mut bodies = Vec::new();
        for name in NAMES {
            let path = format!("/v1/deployments/{name}/entries/{key}");
            bodies.push(client.get(&path).await.expect(200).body);
        }
        assert!(
            bodies.iter().all(|body| *body == bodies[0]),
            "{key}: {bodies:?}"
        );
    }
    for (query, args) in [
        ("customer", json!({"customer": "ada"})),
        ("customer", json!({"customer": "nobody"})),
        ("customer", json!({"costumer": "ada"})),
        ("customer", json!({"customer": 5})),
        ("customer", json!(null)),
        (
            "days",
            json!({"customer": "ada", "from": "2026-10-01", "to": "2026-10-14"}),
        ),
        (
            "days",
            json!({"customer": "ada", "from": "2026-10-14", "to": "2026-10-01"}),
        ),
        (
            "days",
            json!({"customer": "ada", "from": "yesterday", "to": "2026-10-01"}),
        ),
        ("top-customers", json!(null)),
        ("top-customers", json!({"limit": 2})),
        ("top-customers", json!({"limit": -1})),
        ("nothing", json!(null)),
    ] {
        let mut answers = Vec::new();
        for name in NAMES {
            let answer = client.query(name, query, &args).await;
            // The messages are each language's own.
            let body = (answer.status == 200).then_some(answer.body);
            answers.push((answer.status, body));
        }
        assert!(
            answers.iter().all(|answer| *answer == answers[0]),
            "{query} {args}: {answers:?}"
        );
    }
}

fn order(customer: &str, kind: &str, data: Value) -> NewEvent {
    NewEvent {
        subject: format!("orders.{customer}.{kind}"),
        kind: None,
        id: None,
        time: Some("2026-11-23T14:05:06.123456Z".to_owned()),
        headers: std::collections::BTreeMap::new(),
        data,
    }
}

/// Orders whose names and numbers are at the edge of what is allowed.
fn unusual() -> Vec<NewEvent> {
    let names = [
        "",
        " ",
        "a/b",
        "%2F",
        "100%",
        "\u{0}\n\u{7f}",
        "Zoë",
        "東京",
        "🦀",
        "\u{10ffff}",
        "\u{e000}",
        "\"\\",
        &"x".repeat(900),
        "-1",
        "__proto__",
        "constructor",
        "01",
    ];
    let named = names.iter().enumerate().flat_map(|(number, name)| {
        [
            order(
                "odd",
                "placed",
                json!({"order": name, "total_cents": number}),
            ),
            order(
                "odd",
                "paid",
                json!({"order": name, "method": [1, {"deep": null}]}),
            ),
        ]
    });
    let others = [
        order("Zoë", "placed", json!({"order": "1", "total_cents": 0})),
        order(
            "many",
            "placed",
            json!({"order": "1", "total_cents": 9_007_199_254_740_000_u64}),
        ),
        order("many", "placed", json!({"order": "2", "total_cents": 991})),
        order(
            "many",
            "returned",
            json!({"order": "2", "refund_cents": 9_007_199_254_740_991_u64}),
        ),
        order("many", "cancelled", json!({"order": "1"})),
        order("many", "cancelled", json!({"order": "1"})),
        // Text that is JSON, with all its freedom.
        order(
            "odd",
            "placed",
            json!(" {\"total_cents\" : 5 ,\n\"\\u006frder\":\"\\ud83e\\udd80!\"} "),
        ),
        // A type that nobody handles may have any data.
        order("odd", "praised", json!({"$bytes": "/w=="})),
    ];
    named.chain(others).collect()
}

/// Data of a placed order that no language accepts.
fn bad() -> Vec<Value> {
    let mut bad = vec![
        json!({}),
        json!([]),
        json!(null),
        json!("no JSON"),
        json!(""),
        json!({"$bytes": "/w=="}),
        json!({"order": "1"}),
        json!({"order": 1, "total_cents": 1}),
        json!({"order": null, "total_cents": 1}),
        json!({"order": "1", "total_cents": "1"}),
        json!({"order": "1", "total_cents": -1}),
        json!({"order": "1", "total_cents": 1.5}),
        json!({"order": "1", "total_cents": true}),
        json!({"order": "x".repeat(1_100), "total_cents": 1}),
    ];
    let texts = [
        r#"{"order": "1", "total_cents": 18446744073709551616}"#,
        r#"{"order": "\ud800", "total_cents": 1}"#,
        r#"{"order": "1", "total_cents": NaN}"#,
        r#"{"order": "1", "total_cents": 01}"#,
        r#"{"order": "1", "total_cents": 1,}"#,
        r#"{"order": "1", "total_cents": 1} x"#,
        r#"{"order": "1", "total_cents": 1.0}"#,
        r#"{"order": "1", "total_cents": 1e2}"#,
        r#"{"order": "1", "total_cents": 1e-400}"#,
        r#"{"order": "1", "total_cents": 9007199254740990.7}"#,
        r#"{"order": "1", "total_cents": 1, "total_cents": 1}"#,
        r#"["1", 1]"#,
    ];
    bad.extend(texts.map(Value::from));
    bad
}

#[tokio::test]
async fn order_totals_stores_the_same_bytes_and_fails_alike_in_every_language() {
    let host = Host::start_with("[pipeline]\nbatch_events = 64\n").await;
    let client = host.client();
    let samples = root().join("examples/order-totals/events.ndjson");
    cli::on(&host, &["events", "import", &samples.display().to_string()]).expect(0);
    client.append(&unusual()).await;
    deploy_order_totals(&host).await;
    for (number, data) in bad().into_iter().enumerate() {
        let good = |name: &str| order("ada", "placed", json!({"order": name, "total_cents": 1}));
        let (before, after) = (format!("before-{number}"), format!("after-{number}"));
        let shown = data.to_string();
        let events = [good(&before), order("ada", "placed", data), good(&after)];
        let sequence = client.append(&events).await.last_sequence - 1;
        for name in NAMES {
            let (_, failure) = client.failed(name).await;
            assert_eq!(
                (failure.class, failure.sequence, failure.attempts),
                (Some(FailureClass::Rejected), Some(sequence), 1),
                "{name}: {shown}: {failure:?}"
            );
        }
        for name in NAMES {
            let number = sequence.to_string();
            let skip = ["resume", name, "--skip", &number, "--reason", "no order"];
            cli::on(&host, &skip).expect(0);
            client.reached(name, sequence + 1).await;
        }
    }
    same(&host).await;
}

/// What an event asks to fail by, the class of the failure, and a part of its message.
type Failing = (&'static str, FailureClass, &'static str);

/// What a module that depends on chance stored on a host of its own.
async fn chance(module: &[u8], more: &[Failing]) -> Vec<foldstream::api::Entry> {
    let host = Host::start().await;
    let event = |number: u32| NewEvent {
        subject: format!("chance.{number}"),
        ..order("", "", json!({}))
    };
    let last = host.client().append(&[event(1), event(2), event(3)]).await;
    host.client().deploy("chance", module).await;
    host.client().reached("chance", last.last_sequence).await;
    let entries = host.client().entries("chance", "").await;
    assert_eq!(entries.len(), 3);
    host.prints("printed 3").await;
    for &(how, class, told) in [
        ("assert", FailureClass::Rejected, "it does not hold"),
        ("allocate", FailureClass::Memory, "memory"),
    ]
    .iter()
    .chain(more)
    {
        let failing = NewEvent {
            subject: "chance.fail".to_owned(),
            ..order("", "", json!(how))
        };
        let sequence = host.client().append(&[failing]).await.last_sequence;
        let (_, failure) = host.client().failed("chance").await;
        assert_eq!(failure.class, Some(class), "{how}: {failure:?}");
        assert!(failure.message.contains(told), "{how}: {failure:?}");
        let number = sequence.to_string();
        let skip = ["resume", "chance", "--skip", &number, "--reason", "a test"];
        cli::on(&host, &skip).expect(0);
        host.client().reached("chance", sequence).await;
    }
    entries
}

#[tokio::test]
async fn chance_and_clocks_are_the_same_on_every_host_and_the_system_is_out_of_reach() {
    let python = module("python/tests/guests/chance");
    // Python counts its own frames; QuickJS fills the stack that the host limits.
    let more = [
        ("recurse", FailureClass::Rejected, "recursion"),
        ("drop", FailureClass::Rejected, "was never awaited"),
    ];
    let (one, other) = (chance(&python, &more).await, chance(&python, &more).await);
    assert_eq!(one, other, "in Python");
    let seen = &one[0].value;
    assert_eq!(seen["slept"], json!(true), "{seen}");
    assert_eq!(seen["environment"], json!([]), "{seen}");
    for closed in ["file", "folder", "socket", "thread"] {
        let found = seen[closed].as_str().expect("a text");
        assert!(found.ends_with("Error"), "{closed}: {seen}");
    }

    let typescript = module("typescript/test/guests/chance");
    let too_deep = ("recurse", FailureClass::Memory, "recursion");
    let more = [
        too_deep,
        // Nothing in a component runs what comes behind an `await`.
        (
            "wait",
            FailureClass::Rejected,
            "what follows would never run",
        ),
        ("fail later", FailureClass::Rejected, "waits for it"),
        ("queue", FailureClass::Rejected, "a microtask was queued"),
        ("return", FailureClass::Rejected, "apply must not be async"),
    ];
    let (one, other) = (
        chance(&typescript, &more).await,
        chance(&typescript, &more).await,
    );
    assert_eq!(one, other, "in TypeScript");
    let seen = &one[0].value;
    assert_eq!(seen["system"], json!([]), "{seen}");

    let go = module("go/tests/guests/chance");
    // A host waits for no goroutine.
    let more = [
        too_deep,
        (
            "leave",
            FailureClass::Rejected,
            "a goroutine is still running",
        ),
        // What Go's runtime writes before it gives up is the reason, with the place in the module.
        (
            "goroutine",
            FailureClass::Trap,
            "panic: out of stock (main.go:",
        ),
        (
            "deadlock",
            FailureClass::Trap,
            "fatal error: all goroutines are asleep - deadlock! (main.go:",
        ),
        (
            "odd",
            FailureClass::Rejected,
            "a value that panics when it is asked for its text (main.go:",
        ),
        ("odd error", FailureClass::Rejected, "its text"),
    ];
    let (one, other) = (chance(&go, &more).await, chance(&go, &more).await);
    assert_eq!(one, other, "in Go");
    let seen = &one[0].value;
    assert_eq!(seen["slept"], json!(true), "{seen}");
    assert_eq!(seen["environment"], json!([]), "{seen}");
    for closed in ["file", "folder", "socket", "process"] {
        let found = seen[closed].as_str().expect("a text");
        assert!(found.ends_with("Error"), "{closed}: {seen}");
    }

    let c = module("c/tests/guests/chance");
    let (one, other) = (chance(&c, &[]).await, chance(&c, &[]).await);
    assert_eq!(one, other, "in C");
    let seen = &one[0].value;
    assert_eq!(seen["slept"], json!(true), "{seen}");
    for closed in ["file", "folder", "environment"] {
        assert_eq!(seen[closed], json!(false), "{closed}: {seen}");
    }
}

#[tokio::test]
async fn what_a_go_module_prints_in_pieces_are_whole_lines_of_the_log() {
    let host = Host::start().await;
    let failing = NewEvent {
        subject: "chance.fail".to_owned(),
        ..order("", "", json!("print"))
    };
    host.client().append(&[failing]).await;
    let module = module("go/tests/guests/chance");
    host.client().deploy("chance", &module).await;
    let (_, failure) = host.client().failed("chance").await;
    let wanted = "panic: printed (main.go:";
    assert!(failure.message.contains(wanted), "{failure:?}");
    host.prints("WARN half of a line, and \u{fffd} ").await;
}
