//! Whatever is uploaded, the client is answered with words, and the host answers afterwards.

use std::time::Duration;

use foldstream::api::{self, DeploymentState};
use foldstream::state::catalogue::{Audit, Catalogue};
use foldstream_tests::client::Client;
use foldstream_tests::host::Host;
use foldstream_tests::hostile::{self, COMPONENT_TYPE, INSTANCE_TYPE};
use foldstream_tests::process::{Process, children, signal};
use foldstream_tests::stage::{Kind, Stage};
use foldstream_tests::{cli, guests, wait};
use rustix::process::Signal;

use crate::pressure::metric;

/// Bombs by name: each would end a process that reads it without care, or keep it busy.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let ledger = guests::module("ledger");
    vec![
        (
            "component types inside component types",
            hostile::nested_types(COMPONENT_TYPE, 100_000),
        ),
        (
            "instance types inside instance types",
            hostile::nested_types(INSTANCE_TYPE, 100_000),
        ),
        (
            "millions of types inside types",
            hostile::nested_types(COMPONENT_TYPE, 5_000_000),
        ),
        (
            "types inside types in a core module",
            hostile::nested_types_in_core(COMPONENT_TYPE, 100_000),
        ),
        (
            "instance types in a core module",
            hostile::nested_types_in_core(INSTANCE_TYPE, 2_000_000),
        ),
        (
            "components inside components",
            hostile::nested_components(2_000),
        ),
        (
            "components deep inside components",
            hostile::nested_components(20_000),
        ),
        ("a million types", hostile::many_types(1_000_000)),
        ("a type of a million members", hostile::wide_type(1_000_000)),
        ("types that double", hostile::doubling_types(99, 1_000)),
        ("a million sections", hostile::empty_sections(3 << 20)),
        ("blocks inside blocks", hostile::nested_blocks(1_000_000)),
        (
            "a component cut in the middle",
            ledger[..ledger.len() / 2].to_vec(),
        ),
        ("the first bytes of a component alone", ledger[..8].to_vec()),
        (
            "zeros behind the first bytes",
            [&ledger[..8], &vec![0; 16 << 20]].concat(),
        ),
        ("nothing but zeros", vec![0; 16 << 20]),
    ]
}

/// Uploads that are small, or harmless to those who read them, and would take much memory of the
/// host that loads them.
#[tokio::test]
async fn what_a_module_describes_counts_in_the_memory_of_the_host() {
    let host = Host::start_with("[limits]\nmemory_bytes = \"192MiB\"\n").await;
    let ledger = guests::module("ledger");
    host.client().deploy("ledger", &ledger).await;
    let before = host.peak_memory_bytes();
    for (upload, words) in [
        (
            hostile::doubling_instances(&ledger, 19),
            "instantiate each other",
        ),
        (hostile::idle_globals(&ledger, 20, 100_000), "description"),
        (hostile::idle_globals(&ledger, 1, 900_000), "description"),
    ] {
        let problem = host.client().upload(upload, "?name=bomb").await;
        let problem = problem.problem(422, "refused");
        assert!(problem.detail.contains(words), "{}", problem.detail);
    }
    // One that is let in counts with what it describes, not with its code alone.
    let large = hostile::idle_globals(&ledger, 5, 50_000);
    host.client().deploy("large", &large).await;
    let code = metric(&host, "foldstream_memory_used_bytes{part=\"code\"}").await;
    assert!(code > 16e6, "{code}");
    // An upload that is read once, and a budget's worth of nothing else.
    let more = host.peak_memory_bytes() - before;
    assert!(more < 96 << 20, "{more} bytes more");
}

/// Uploads a bomb: the client gets words, not an end of its connection.
async fn refused(client: &Client, name: &str, bomb: Vec<u8>) {
    let answer = client.upload(bomb, "?name=bomb").await;
    let problem = answer.problem(422, "refused");
    let words = [
        "malformed",
        "check the module",
        "not WebAssembly",
        "does not export",
        "does not match",
        "become",
        "types",
        "inside components",
    ];
    assert!(
        words.iter().any(|word| problem.detail.contains(word)),
        "{name}: {}",
        problem.detail
    );
    assert!(
        problem.detail.len() < 8_192,
        "{name}: {} bytes of words",
        problem.detail.len()
    );
}

#[tokio::test]
async fn whatever_is_uploaded_is_refused_with_words_and_the_host_serves_on() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    for (name, bomb) in bombs() {
        refused(stage.client(), name, bomb).await;
    }
    let last = stage.publish(200).await;
    stage.client().reached("ledger", last).await;
    stage.assert_ledger_equals_model().await;
    assert!(!stage.host.has_ended(), "it is the same process");
}

#[tokio::test]
async fn several_bombs_at_once_are_refused_while_a_sound_module_is_let_in() {
    let mut stage = Stage::start(Kind::Embedded).await;
    let bombs = (0..3).map(|_| hostile::nested_types(COMPONENT_TYPE, 100_000));
    let sent = bombs.map(|bomb| {
        let client = stage.client().clone();
        tokio::spawn(async move { refused(&client, "one of several", bomb).await })
    });
    let sent: Vec<_> = sent.collect();
    stage.deploy_ledger().await;
    for bomb in sent {
        bomb.await.expect("each is refused");
    }
    let last = stage.publish(50).await;
    stage.client().reached("ledger", last).await;
}

#[tokio::test]
async fn check_that_takes_too_long_is_ended_and_gives_its_place_back() {
    let stage = Stage::start_with(Kind::Embedded, "[modules]\ncheck_time_max = \"1ms\"\n").await;
    // More than there are places.
    for _ in 0..6 {
        let problem = stage
            .client()
            .upload(guests::module("ledger"), "")
            .await
            .problem(422, "refused");
        assert!(
            problem
                .detail
                .contains("longer than 1ms (modules.check_time_max)"),
            "{}",
            problem.detail
        );
    }
}

#[tokio::test]
async fn check_that_takes_too_much_memory_is_ended_with_the_name_of_the_limit() {
    let stage = Stage::start_with(
        Kind::Embedded,
        "[modules]\ncompile_memory_max = \"120MiB\"\n",
    )
    .await;
    let bomb = hostile::many_types(1_000_000);
    let problem = stage
        .client()
        .upload(bomb, "")
        .await
        .problem(422, "refused");
    assert!(
        problem.detail.contains("modules.compile_memory_max"),
        "{}",
        problem.detail
    );
    stage.client().get("/livez").await.expect(200);
}

#[tokio::test]
async fn check_that_nobody_waits_for_is_given_up() {
    let mut stage =
        Stage::start_with(Kind::Embedded, "[modules]\ncheck_time_max = \"10m\"\n").await;
    // Clients that leave while their uploads are checked or wait for that; more than there are
    // places for deploys.
    for _ in 0..6 {
        // It is read for seconds.
        let bomb = hostile::many_types(1_000_000);
        let request = stage
            .client()
            .request(reqwest::Method::POST, "/v1/deployments?name=slow");
        let request = request
            .header("content-type", "application/wasm")
            .body(bomb);
        let _ = tokio::time::timeout(Duration::from_millis(200), request.send()).await;
    }
    stage.deploy_ledger().await;
    let host = stage.host.process().id();
    let none_is_left = async || {
        wait::until("no child to be left", || async {
            children(host).is_empty().then_some(())
        })
        .await;
    };
    none_is_left().await;
    // One that would never end by itself.
    let client = stage.client().clone();
    let sent = tokio::spawn(async move {
        client
            .upload(hostile::many_types(1_000_000), "?name=slow")
            .await
    });
    let child = wait::until("a child", || async { children(host).pop() }).await;
    signal(&child, Signal::STOP);
    sent.abort();
    none_is_left().await;
}

#[tokio::test]
async fn host_whose_program_was_replaced_or_removed_still_takes_modules_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("foldstream");
    std::fs::copy(foldstream_tests::foldstream(), &program).expect("it can be copied");
    let config = folder.path().join("foldstream.toml");
    std::fs::write(
        &config,
        "data_dir = \"data\"\n[serve]\nanonymous = \"everything\"\n",
    )
    .expect("our folder can be written");
    let mut command = std::process::Command::new(&program);
    command
        .arg("serve")
        .arg("--config")
        .arg(&config)
        .args(["--listen", "127.0.0.1:0"])
        .current_dir(folder.path());
    let mut host = Process::start("foldstream serve", &mut command);
    let url = wait::until("the host to listen", || async {
        host.printed("listening on ")
    })
    .await;
    std::fs::remove_file(&program).expect("an upgrade removes it");
    std::fs::write(&program, "another program").expect("and puts another one in its place");
    let client = Client::new(url.split_whitespace().next().expect("an address follows"));
    client
        .upload(guests::module("ledger"), "")
        .await
        .expect(201);
    host.terminate(Duration::from_secs(20));
}

#[tokio::test]
async fn process_that_looks_inside_an_upload_has_no_privileges_few_descriptors_and_ends_first() {
    let mut stage =
        Stage::start_with(Kind::Embedded, "[modules]\ncheck_time_max = \"10m\"\n").await;
    let client = stage.client().clone();
    // It is read for seconds.
    let sent = tokio::spawn(async move {
        client
            .upload(hostile::many_types(1_000_000), "?name=slow")
            .await
    });
    let host = stage.host.process().id();
    wait::until("a child behind its walls", || async {
        let child = children(host).pop()?;
        let read = |file: &str| {
            std::fs::read_to_string(format!("/proc/{child}/{file}")).unwrap_or_default()
        };
        let open_files = read("limits").lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.starts_with(&["Max", "open", "files", "3", "3"])
        });
        let has_no_privileges = read("status")
            .lines()
            .any(|line| line.split_whitespace().eq(["NoNewPrivs:", "1"]));
        (open_files && has_no_privileges && read("oom_score_adj").trim() == "1000").then_some(())
    })
    .await;
    assert!([201, 422].contains(&sent.await.expect("it ends").status.as_u16()));
}

#[tokio::test]
async fn hostile_module_in_the_data_folder_fails_its_deployment_alone() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    let bombs: Vec<_> = bombs().into_iter().take(5).collect();
    let deployed = stage
        .client()
        .deploy("bomb", &guests::module("mischief"))
        .await;
    let mut digest = deployed.deployment.module.digest;
    let last = stage.publish(100).await;
    for (name, bomb) in bombs {
        stage.host.stop();
        let modules = stage.host.data_dir().join("modules");
        // As somebody could who writes to the folder and to the catalogue: the module bears the
        // digest of its bytes.
        let bears = foldstream::module::digest(&bomb);
        std::fs::write(modules.join(format!("{bears}.wasm")), &bomb).expect("the host is down");
        name_module(&stage.host.data_dir(), "bomb", &digest, &bears);
        digest.clone_from(&bears);
        stage.host.restart().await;
        // What may only be a lack of memory or time is tried again now and then; the rest fails.
        let is_reported = |shown: &api::Deployment| {
            matches!(
                shown.state,
                DeploymentState::Failed | DeploymentState::Retrying
            ) && shown.failure.is_some()
        };
        let shown = stage
            .client()
            .show_when("bomb", "say what is wrong with its module", is_reported)
            .await;
        let failure = shown.failure.as_ref().expect("it was just looked at");
        assert_eq!(
            (failure.kind.as_str(), shown.module.digest.as_str()),
            ("module", bears.as_str()),
            "{name}: {failure:?}"
        );
        assert!(
            failure.message.len() > 20 && failure.message.len() < 8_192,
            "{name}: {failure:?}"
        );
        stage.client().reached("ledger", last).await;
        stage.assert_ledger_equals_model().await;
        assert!(!stage.host.has_ended(), "{name}: it is the same process");
    }
}

/// Lets a deployment of a stopped host name another module.
fn name_module(folder: &std::path::Path, deployment: &str, from: &str, to: &str) {
    let catalogue = Catalogue::open(&folder.join("catalog.redb")).expect("the host is down");
    let records = catalogue.deployments().expect("it is sound");
    let mut record = records
        .into_iter()
        .find(|record| record.name == deployment)
        .expect("it is deployed");
    for generation in record
        .generations
        .iter_mut()
        .filter(|generation| generation.module.digest == from)
    {
        to.clone_into(&mut generation.module.digest);
    }
    let audit = Audit {
        at: String::new(),
        action: "test".to_owned(),
        deployment: deployment.to_owned(),
        detail: String::new(),
        actor: None,
        peer: None,
    };
    catalogue.put(&record, &audit).expect("the host is down");
}

#[test]
fn whatever_is_inspected_ends_with_words() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bomb) in bombs() {
        let file = folder.path().join("bomb.wasm");
        std::fs::write(&file, bomb).expect("our folder can be written");
        let output = cli::run(&["inspect", &file.display().to_string()]);
        assert_eq!(output.code, 4, "{name}: {output:?}");
        assert!(
            output.stderr.len() > 20 && output.stderr.len() < 8_192,
            "{name}: {output:?}"
        );
    }
}

#[tokio::test]
async fn host_with_little_address_space_still_takes_modules_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("foldstream.toml");
    std::fs::write(
        &config,
        "data_dir = \"data\"\n[serve]\nanonymous = \"everything\"\n",
    )
    .expect("our folder can be written");
    // Less than modules.compile_memory_max, in KiB.
    let shell =
        "ulimit -v 600000 && exec \"$0\" serve --config foldstream.toml --listen 127.0.0.1:0";
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", shell])
        .arg(foldstream_tests::foldstream())
        .current_dir(folder.path());
    let mut host = Process::start("foldstream serve", &mut command);
    let url = wait::until("the host to listen", || async {
        host.printed("listening on ")
    })
    .await;
    let client = Client::new(url.split_whitespace().next().expect("an address follows"));
    client
        .upload(guests::module("ledger"), "")
        .await
        .expect(201);
    host.terminate(Duration::from_secs(20));
}
