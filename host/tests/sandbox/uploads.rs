//! Uploads: what is let in and what is refused with which words, the process that looks inside
//! them, and the cache of what it compiled.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use foldstream::memory::Memory;
use foldstream::module::{Engine, Error, Options};

use crate::bed::*;

// ---- 1. what is let in ----

fn refusal(upload: impl Into<Bytes>) -> String {
    let error = shared().accept(upload.into()).expect_err("is refused");
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
    error.to_string()
}

fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("the text is valid")
}

#[test]
fn garbage_is_refused_with_words_that_help() {
    assert!(refusal("").contains("empty"));
    assert!(refusal("GIF89a").contains("not WebAssembly"));
    assert!(refusal("(module)").contains("as text"));
    assert!(refusal("\x7fELF\x02").contains("compiled for one machine"));
    assert!(refusal(&b"\0asm\x02\0\0\0"[..]).contains("version"));
    let probe = guest("");
    for length in [9, 100, probe.len() / 2, probe.len() - 1] {
        let error = refusal(probe.slice(..length));
        assert!(
            error.contains("malformed") || error.contains("does not match"),
            "{length} bytes: {error}"
        );
    }
}

#[test]
fn truncated_component_is_refused() {
    let component = shared().accept(guest("")).expect("accepted").component;
    for length in [9, 1_000, component.len() / 2, component.len() - 1] {
        assert!(
            refusal(component.slice(..length)).contains("malformed at byte"),
            "{length} bytes"
        );
    }
    // A changed byte anywhere is refused, or changes only what the code does; the host stays whole.
    for index in (8..component.len()).step_by(component.len() / 50) {
        let mut damaged = component.to_vec();
        damaged[index] ^= 0x55;
        let _ = shared().accept(damaged.into());
    }
}

#[test]
fn oversized_upload_is_refused() {
    let (engine, _folder) = engine(|options| options.upload_bytes_max = 10_000);
    let error = engine.accept(guest("")).expect_err("too large").to_string();
    assert!(error.contains("10000 are allowed"), "{error}");
}

#[test]
fn core_module_without_exports_is_refused() {
    let error = refusal(wat("(module)"));
    assert!(
        error.contains("core module without a `component-type` section"),
        "{error}"
    );
}

#[test]
fn component_of_another_world_is_refused_with_what_is_missing() {
    let error = refusal(wat("(component)"));
    assert!(error.contains("`manifest`, `apply`, `query`"), "{error}");
    let error = refusal(wat(r#"(component
            (core module $m (func (export "apply")))
            (core instance $i (instantiate $m))
            (func (export "apply") (canon lift (core func $i "apply"))))"#));
    assert!(
        error.contains("`apply` differs") && error.contains("0 parameters instead of 1"),
        "{error}"
    );
}

#[test]
fn migrate_of_another_type_is_refused() {
    let error = refusal(wat(r#"(component
            (core module $m (func (export "migrate")))
            (core instance $i (instantiate $m))
            (func (export "migrate") (canon lift (core func $i "migrate"))))"#));
    assert!(
        error.contains("export `migrate` differs") && error.contains("0 parameters instead of 2"),
        "{error}"
    );
}

#[test]
fn forbidden_imports_are_listed() {
    let error = refusal(wat(r#"(component
            (import "wasi:http/outgoing-handler@0.2.0" (instance))
            (import "wasi:clocks/wall-clock@0.2.0" (instance))
            (import "foldstream:module/state@0.2.0" (instance))
            (import "wasi:cli/run@0.3.0" (instance))
            (import "evil" (func)))"#));
    let named = "wasi:http/outgoing-handler@0.2.0, foldstream:module/state@0.2.0, \
                 wasi:cli/run@0.3.0, evil;";
    assert!(error.contains(named), "{error}");
    assert!(
        error.contains("allowed are foldstream:module 0.1.0 and WASI 0.2 io, clocks"),
        "{error}"
    );
}

#[test]
fn component_for_asynchronous_calls_is_refused() {
    let error = refusal(wat(r#"(component
            (core module $m (func (export "apply")) (func (export "next") (param i32 i32 i32) (result i32) i32.const 0))
            (core instance $i (instantiate $m))
            (func (export "apply") async
                (canon lift (core func $i "apply") async (callback (func $i "next")))))"#));
    assert!(error.contains("asynchronous"), "{error}");
}

// ---- 2. compilation and its cache ----

#[test]
fn compiled_code_is_cached_and_shared() {
    let (first, folder) = engine(|_| {});
    let accepted = first.accept(guest("")).expect("accepted");
    let loaded = first.load(&accepted).expect("loads");
    assert!(loaded.compile_time.is_some(), "compiled");
    let again = first.load(&accepted).expect("loads");
    assert!(
        again.compile_time.is_none() && Arc::ptr_eq(&loaded.module, &again.module),
        "shared"
    );
    let second = Engine::new(options(folder.path())).expect("starts");
    assert!(
        second
            .load(&accepted)
            .expect("loads")
            .compile_time
            .is_none(),
        "from the cache"
    );
}

#[test]
fn tampered_cache_is_never_loaded() {
    let (first, folder) = engine(|_| {});
    let accepted = first.accept(guest("")).expect("accepted");
    first.load(&accepted).expect("loads");
    let files = std::fs::read_dir(folder.path())
        .expect("lists")
        .flatten()
        .map(|entry| entry.path());
    let code = files
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "code")
        })
        .collect::<Vec<_>>();
    let [code] = code.as_slice() else {
        panic!("one file of code: {code:?}")
    };
    let whole = std::fs::read(code).expect("reads");
    let mut changed = whole.clone();
    *changed.last_mut().expect("not empty") ^= 1;
    for content in [changed, whole[..whole.len() / 2].to_vec(), Vec::new()] {
        std::fs::write(code, content).expect("writes");
        let engine = Engine::new(options(folder.path())).expect("starts");
        let log = logged(|| {
            let loaded = engine.load(&accepted).expect("loads");
            assert!(loaded.compile_time.is_some(), "compiled again");
        });
        assert!(log.contains("damaged or not ours"), "{log}");
        assert_eq!(
            std::fs::read(code).expect("reads").len(),
            whole.len(),
            "the file is whole again"
        );
    }
}

fn compile_error(change: impl FnOnce(&mut Options)) -> String {
    let accepted = shared().accept(guest("")).expect("accepted");
    let (engine, _folder) = engine(change);
    engine
        .load(&accepted)
        .expect_err("does not compile")
        .to_string()
}

#[test]
fn process_that_looks_inside_uploads_reaches_no_files_sockets_or_processes() {
    let folder = tempfile::tempdir().expect("a folder");
    let walls = foldstream::module::walls(&options(folder.path())).expect("it answers");
    assert_eq!(walls.gaps(), [""; 0], "what it tried, it was refused");
}

#[test]
fn checker_of_another_version_is_not_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let order = [
        "check-module",
        "check",
        "--host-version",
        "0.0.1",
        "--memory-bytes",
        "1000000000",
    ];
    let mut command = std::process::Command::new(compiler());
    let output = command
        .args(order)
        .args(["--cpu-seconds", "9", "--bytes-max", "9"])
        .current_dir(folder.path());
    let output = output
        .stdin(std::process::Stdio::null())
        .output()
        .expect("it runs");
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("the host has version 0.0.1"),
        "{output:?}"
    );
    let other = Options {
        compiler: "/bin/true".into(),
        ..options(folder.path())
    };
    let error = Engine::new(other)
        .expect("starts")
        .accept(guest(""))
        .expect_err("nobody answers")
        .to_string();
    assert!(error.contains("is it this program?"), "{error}");
}

#[test]
fn native_code_has_a_limit() {
    let error = compile_error(|options| options.code_bytes_max = 1_000);
    assert!(
        error.contains("1000 are allowed") && error.contains("modules.code_bytes_max"),
        "{error}"
    );
    let module = load(shared(), "");
    assert!(module.code_bytes() > 1_000 && shared().code_bytes() >= module.code_bytes());
}

#[test]
fn schemas_count_towards_the_memory_of_a_module() {
    let (engine, _folder) = engine(|_| {});
    let component = engine.accept(guest("")).expect("accepted").component;
    let with = |values: usize| {
        let values = vec!["[]"; values].join(",");
        let section = format!(
            r#"{{"format":1,"schemas":[{{"event":"a","version":1,"direction":"reads","schema":{{
                "examples":[{values}]}}}}]}}"#
        );
        let name = b"foldstream:schemas";
        let body = [&[name.len() as u8], &name[..], section.as_bytes()].concat();
        let (low, middle) = (body.len() as u8 | 0x80, (body.len() >> 7) as u8 | 0x80);
        let length = [0, low, middle, (body.len() >> 14) as u8];
        let upload = [&component[..], &length, &body].concat();
        let accepted = engine.accept(upload.into()).expect("accepted");
        let module = engine.load(&accepted).expect("loads");
        module.module.code_bytes()
    };
    let (few, many) = (with(10), with(20_000));
    assert!(many > few + 20_000 * 32, "{few} and {many} bytes");
}

#[test]
fn native_code_of_all_modules_has_a_limit() {
    const TOTAL: u64 = 4 << 20;
    // Half of it is for code.
    let (engine, _folder) = engine(|options| options.memory = Memory::new(TOTAL));
    let component = shared().accept(guest("")).expect("accepted").component;
    // The same with another digest: a custom section with a name of one byte.
    let load = |number: u8| {
        let upload = [&component[..], &[0, 2, 1, number]].concat();
        engine.load(&engine.accept(upload.into()).expect("accepted"))
    };
    let (mut loaded, mut refused) = (Vec::new(), None);
    for number in b'a'..=b'z' {
        match load(number) {
            Ok(module) => loaded.push(module),
            Err(error) => {
                refused = Some((number, error));
                break;
            }
        }
    }
    let (number, error) = refused.expect("there is no memory for all of them");
    assert!(
        matches!(error, Error::Short(_)) && error.is_passing(),
        "{error:?}"
    );
    assert!(
        loaded.len() > 1 && engine.code_bytes() <= TOTAL / 2,
        "{} bytes",
        engine.code_bytes()
    );
    loaded.clear();
    load(number).expect("there is memory again");
}

#[test]
fn slow_compilation_is_ended() {
    let error = compile_error(|options| options.compile_time_max = Duration::from_millis(1));
    assert!(error.contains("longer than 1ms"), "{error}");
}

#[test]
fn greedy_compilation_is_ended() {
    let error = compile_error(|options| options.compile_memory_max = 16 << 20);
    assert!(
        error.contains("more than 16777216 bytes of memory"),
        "{error}"
    );
}

#[test]
fn compiler_that_is_not_there_is_named() {
    let error = compile_error(|options| options.compiler = "/nowhere/foldstream".into());
    assert!(error.contains("/nowhere/foldstream"), "{error}");
    let error = compile_error(|options| options.compiler = "/bin/false".into());
    assert!(error.contains("failed with exit status: 1"), "{error}");
    let error = compile_error(|options| options.compiler = "/bin/true".into());
    assert!(error.contains("is it this program?"), "{error}");
}
